"""Networks of one variable that increase: of weights above 0, and integrated."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from flow_bridge.univariate import (
    INTEGRAND_LOG,
    check_integrand,
    check_monotone,
    integrand_starts,
    slope_offset,
    spread,
)
from torch_flows.numerics import at_least_float32, softplus
from torch_flows.registry import register
from torch_flows.univariate.base import Output, UnivariateMap
from torch_flows.univariate.piecewise import linear_slopes, linear_slopes_inverse
from torch_flows.univariate.roots import FARTHEST, bracket, invert

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
        >>> import torch, torch_flows
        >>> map = torch_flows.MonotoneNetworkMap((4,))
        >>> z, log_slope = map.forward(torch.zeros(5), torch.zeros(5, map.num_parameters))
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

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        z, log_slope = _evaluate(at_least_float32(x), *self._constrained(parameters))
        return z.to(x.dtype), log_slope.to(x.dtype)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        given = self._constrained(parameters)
        wide = at_least_float32(z)
        near = wide.clamp(-FARTHEST, FARTHEST)
        x, log_slope = invert(_evaluate, near, given, *bracket(_evaluate, near, given))
        x = x + (wide - near) * log_slope.exp()
        return x.to(z.dtype), log_slope.to(z.dtype)

    def _constrained(self, parameters: Tensor) -> list[Tensor]:
        """Weights ``(units, inputs, *batch)`` and biases ``(units, *batch)`` of each layer in turn."""
        rows = at_least_float32(parameters).movedim(-1, 0)
        given, start = [], 0
        for below, width in pairwise((1, *self.hidden_dims, 1)):
            stop = start + below * width
            weight = softplus(rows[start:stop] + slope_offset(1 - 1 / below)) + FLOOR
            given.append(weight.unflatten(0, (width, below)))
            first = torch.tensor(spread(width), dtype=rows.dtype, device=rows.device)
            bias = rows[stop : stop + width] + first.view(-1, *[1] * (rows.ndim - 1))
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
        >>> import torch, torch_flows
        >>> map = torch_flows.IntegratedNetworkMap((4,))
        >>> z, log_slope = map.forward(torch.zeros(5), torch.zeros(5, map.num_parameters))
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

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        (shift, *knots), wide = self._knots(parameters), at_least_float32(x)
        inner = torch.where(wide < -self.bound, -self.bound, wide)
        inner = torch.where(wide > self.bound, self.bound, inner)
        z, log_slope = linear_slopes(inner, *knots)
        z = z + (wide - inner) * log_slope.exp() + shift
        return z.to(x.dtype), log_slope.to(x.dtype)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        shift, *knots = self._knots(parameters)
        wide = at_least_float32(z) - shift
        inner = torch.where(wide < knots[1][0], knots[1][0], wide)
        inner = torch.where(wide > knots[1][-1], knots[1][-1], inner)
        x, log_slope = linear_slopes_inverse(inner, *knots)
        return (x + (wide - inner) * log_slope.exp()).to(z.dtype), log_slope.to(z.dtype)

    def _knots(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """t, and the nodes, z - t there, and g there, ``(nodes, *batch)``."""
        rows, count = at_least_float32(parameters).movedim(-1, 0), self.num_intervals
        axes = [1] * (rows.ndim - 1)
        step = self.bound / count
        at = [step * k for k in range(-count, count + 1)]
        nodes = torch.tensor(at, dtype=rows.dtype, device=rows.device).view(-1, *axes)
        values, start = nodes.unsqueeze(0), 0
        for i, layer in enumerate(integrand_starts(self.hidden_dims, self.bound)):
            first, last = (torch.tensor(a, dtype=rows.dtype, device=rows.device) for a in layer)
            width, inputs = first.shape
            stop = start + inputs * width
            weight = rows[start:stop].unflatten(0, (width, inputs)) + first.view(
                width, inputs, *axes
            )
            bias = rows[stop : stop + width] + last.view(-1, *axes)
            values = values.tanh() if i else values
            values = (weight.unsqueeze(2) * values).sum(1) + bias.unsqueeze(1)
            start = stop + width
        slopes = (INTEGRAND_LOG * (values[0] / INTEGRAND_LOG).tanh()).exp()
        area = step * (slopes[:-1] + slopes[1:]) / 2
        # from 0 on, so that what is small next to it is not lost in what is large on the other side
        below, above = -area[:count].flip(0).cumsum(0).flip(0), area[count:].cumsum(0)
        heights = torch.cat([below, torch.zeros_like(area[:1]), above])
        return rows[-1], nodes.expand(heights.shape), heights, slopes


def _evaluate(x: Tensor, *given: Tensor) -> Output:
    values, log_slope = x.unsqueeze(0), torch.zeros_like(x).unsqueeze(0)
    for i, (weight, bias) in enumerate(zip(given[::2], given[1::2], strict=True)):
        if i:
            half = (len(values) + 1) // 2
            signed = torch.cat([values[:half], -values[half:]])
            low = torch.where(signed < 0, signed, 0)
            active = torch.where(signed < 0, low.expm1(), signed)
            values = torch.cat([active[:half], -active[half:]])
            log_slope = log_slope + low
        largest = log_slope.detach().amax(0)
        log_slope = largest + (weight * (log_slope - largest).exp()).sum(1).log()
        values = (weight * values).sum(1) + bias
    return values[0], log_slope[0]
