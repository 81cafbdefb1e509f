"""Networks of one variable that increase: of weights above 0, and integrated."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge.univariate import (
    INTEGRAND_LOG,
    check_integrand,
    check_monotone,
    integrand_starts,
    slope_offset,
    spread,
)
from jax_flows.numerics import at_least_float32, softplus
from jax_flows.registry import register
from jax_flows.univariate.base import Output, UnivariateMap
from jax_flows.univariate.piecewise import linear_slopes, linear_slopes_inverse
from jax_flows.univariate.roots import FARTHEST, bracket, invert

FLOOR = 1e-30
"""The least weight, which keeps logarithms finite."""


@register
@dataclass(frozen=True)
class MonotoneNetworkMap(UnivariateMap):
    """A network of one input and one output whose weights are above 0, and are the map's parameters:

        h_1 = a(W_1 x + b_1), h_2 = a(W_2 h_1 + b_2), ..., z = W_n h_(n-1) + b_n.

    a(u) is elu(u) for the first half of the units of a layer and -elu(-u) for the others: onto the reals,
    linear far out, and once continuously differentiable. The log of the slope is that of a product of
    matrices of positive entries, which nothing cancels in. The inverse is searched between 0 and the
    first of 1, 2, 4, ... that is beyond it, and has the gradients of the exact solution.

    Parameters: for each layer the raw numbers r of its weights, W = softplus(r + c), row by row, where
    c makes a raw 0 the inverse of the layer's inputs, and then its biases, which are added to numbers
    spread over (-1, 1), the same in either half. With zeros the slope is between 1 / 2^m and 1 for m
    hidden layers.

    In a ``MaskedAutoregressive`` it is a neural autoregressive flow whose conditioner gives all weights.

    Args:
        hidden_dims: widths of the hidden layers, from 2 on.

    Raises:
        ValueError: for no layers, and for layers of one unit.

    Reference: Huang et al. (2018), Neural autoregressive flows, arXiv:1804.00779.

    Examples:
        >>> import jax.numpy as jnp, jax_flows
        >>> map = jax_flows.MonotoneNetworkMap((4,))
        >>> z, log_slope = map.forward(jnp.zeros(5), jnp.zeros((5, map.num_parameters)))
        >>> tuple(z.shape), tuple(log_slope.shape)
        ((5,), (5,))
    """

    hidden_dims: Sequence[int] = (8,)

    def __post_init__(self) -> None:
        widths = check_monotone("MonotoneNetworkMap", self.hidden_dims)
        object.__setattr__(self, "hidden_dims", widths)

    @property
    def num_parameters(self) -> int:
        return sum((below + 1) * width for below, width in pairwise((1, *self.hidden_dims, 1)))

    def forward(self, x: Array, parameters: Array) -> Output:
        z, log_slope = _evaluate(at_least_float32(x), *self._constrained(parameters))
        return z.astype(x.dtype), log_slope.astype(x.dtype)

    def inverse(self, z: Array, parameters: Array) -> Output:
        given = self._constrained(parameters)
        wide = at_least_float32(z)
        near = jnp.clip(wide, -FARTHEST, FARTHEST)
        x, log_slope = invert(_evaluate, near, given, *bracket(_evaluate, near, given))
        x = x + (wide - near) * jnp.exp(log_slope)
        return x.astype(z.dtype), log_slope.astype(z.dtype)

    def _constrained(self, parameters: Array) -> list[Array]:
        """Weights ``(units, inputs, *batch)`` and biases ``(units, *batch)`` of each layer in turn."""
        rows = jnp.moveaxis(at_least_float32(parameters), -1, 0)
        given, start = [], 0
        for below, width in pairwise((1, *self.hidden_dims, 1)):
            stop = start + below * width
            weight = softplus(rows[start:stop] + slope_offset(1 - 1 / below)) + FLOOR
            given.append(weight.reshape(width, below, *rows.shape[1:]))
            first = jnp.asarray(spread(width), rows.dtype)
            bias = rows[stop : stop + width] + first.reshape(-1, *[1] * (rows.ndim - 1))
            given.append(bias)
            start = stop + width
        return given


@register
@dataclass(frozen=True)
class IntegratedNetworkMap(UnivariateMap):
    """The integral of a positive network of one variable, an unconstrained monotonic neural network:

        z = t + int_0^x g(u) du,   log g(u) = 7 tanh(n(u) / 7),

    with a network n of one input, tanh between its layers, whose weights are parameters of the map. The
    integral is that of the trapezoidal rule with fixed nodes: n is evaluated at the ends of
    2 ``num_intervals`` equal intervals of [-bound, bound], g is linear between them and constant outside. So
    z is onto the reals and increasing, the log of its slope is that of g at x, once it is linear, and the
    inverse is in closed form. A quadrature whose nodes move with x has none of that: its slope is not g(x),
    and need not be above 0.

    Parameters: for each layer its weights, row by row, and its biases, added to fixed numbers that make
    the units of the first layer steps along the interval; then t. Zeros are the identity.

    In a ``MaskedAutoregressive`` it is an unconstrained neural autoregressive flow whose conditioner gives
    all weights.

    Args:
        hidden_dims: widths of the hidden layers of n.
        bound: half the width of the interval.
        num_intervals: intervals on each side of 0.

    Raises:
        ValueError: for widths, a bound or a number out of range.

    Reference: Wehenkel and Louppe (2019), arXiv:1908.05164.

    Examples:
        >>> import jax.numpy as jnp, jax_flows
        >>> map = jax_flows.IntegratedNetworkMap((4,))
        >>> z, log_slope = map.forward(jnp.zeros(5), jnp.zeros((5, map.num_parameters)))
        >>> tuple(z.shape), tuple(log_slope.shape)
        ((5,), (5,))
    """

    hidden_dims: Sequence[int] = (8,)
    bound: float = 5.0
    num_intervals: int = 16

    def __post_init__(self) -> None:
        given = self.hidden_dims, self.bound, self.num_intervals
        object.__setattr__(self, "hidden_dims", check_integrand("IntegratedNetworkMap", *given))

    @property
    def num_parameters(self) -> int:
        return 1 + sum((below + 1) * width for below, width in pairwise((1, *self.hidden_dims, 1)))

    def forward(self, x: Array, parameters: Array) -> Output:
        (shift, *knots), wide = self._knots(parameters), at_least_float32(x)
        inner = jnp.where(wide < -self.bound, -self.bound, wide)
        inner = jnp.where(wide > self.bound, self.bound, inner)
        z, log_slope = linear_slopes(inner, *knots)
        z = z + (wide - inner) * jnp.exp(log_slope) + shift
        return z.astype(x.dtype), log_slope.astype(x.dtype)

    def inverse(self, z: Array, parameters: Array) -> Output:
        shift, *knots = self._knots(parameters)
        wide = at_least_float32(z) - shift
        inner = jnp.where(wide < knots[1][0], knots[1][0], wide)
        inner = jnp.where(wide > knots[1][-1], knots[1][-1], inner)
        x, log_slope = linear_slopes_inverse(inner, *knots)
        return (x + (wide - inner) * jnp.exp(log_slope)).astype(z.dtype), log_slope.astype(z.dtype)

    def _knots(self, parameters: Array) -> tuple[Array, Array, Array, Array]:
        """t, and the nodes, z - t there, and g there, ``(nodes, *batch)``."""
        rows, count = jnp.moveaxis(at_least_float32(parameters), -1, 0), self.num_intervals
        axes = [1] * (rows.ndim - 1)
        step = self.bound / count
        at = [step * k for k in range(-count, count + 1)]
        nodes = jnp.asarray(at, rows.dtype).reshape(-1, *axes)
        values, start = nodes[None], 0
        for i, layer in enumerate(integrand_starts(self.hidden_dims, self.bound)):
            first, last = (jnp.asarray(a, rows.dtype) for a in layer)
            width, inputs = first.shape
            stop = start + inputs * width
            weight = rows[start:stop].reshape(width, inputs, *rows.shape[1:])
            weight = weight + first.reshape(width, inputs, *axes)
            bias = rows[stop : stop + width] + last.reshape(-1, *axes)
            values = jnp.tanh(values) if i else values
            values = (weight[:, :, None] * values).sum(1) + bias[:, None]
            start = stop + width
        slopes = jnp.exp(INTEGRAND_LOG * jnp.tanh(values[0] / INTEGRAND_LOG))
        area = step * (slopes[:-1] + slopes[1:]) / 2
        # from 0 on, so that what is small next to it is not lost in what is large on the other side
        below, above = -area[:count][::-1].cumsum(0)[::-1], area[count:].cumsum(0)
        heights = jnp.concatenate([below, jnp.zeros_like(area[:1]), above])
        return rows[-1], jnp.broadcast_to(nodes, heights.shape), heights, slopes


def _evaluate(x: Array, *given: Array) -> Output:
    values, log_slope = x[None], jnp.zeros_like(x)[None]
    for i, (weight, bias) in enumerate(zip(given[::2], given[1::2], strict=True)):
        if i:
            half = (len(values) + 1) // 2
            signed = jnp.concatenate([values[:half], -values[half:]])
            low = jnp.where(signed < 0, signed, 0)
            active = jnp.where(signed < 0, jnp.expm1(low), signed)
            values = jnp.concatenate([active[:half], -active[half:]])
            log_slope = log_slope + low
        largest = jax.lax.stop_gradient(log_slope).max(0)
        log_slope = largest + jnp.log((weight * jnp.exp(log_slope - largest)).sum(1))
        values = (weight * values).sum(1) + bias
    return values[0], log_slope[0]
