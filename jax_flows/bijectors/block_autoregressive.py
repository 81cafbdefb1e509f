"""Block autoregressive networks: the bijector is the network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from jax_flows.bijectors.base import Bijector
from jax_flows.numerics import at_least_float32, log_sech2, matmul_precision, softplus
from jax_flows.registry import register
from jax_flows.univariate.roots import FARTHEST, bracket, invert
from jax_flows.variables import Output, Variables, draws

Layer = tuple[Array, Array, Array]

FLOOR = 1e-30
"""The least weight of a diagonal block, which keeps logarithms finite."""


@register
@dataclass(frozen=True)
class BlockAutoregressive(Bijector):
    """A network from x to z with a block of hidden units for each dimension, that see those before.

    Each layer is W h + b with block lower triangular W, whose diagonal blocks are exp(raw) > 0, and
    a(u) = tanh(u) + leak u between: z_i is an increasing function of x_i, onto the reals, given
    x_1, ..., x_(i-1). dz_i/dx_i is an entry of a product of the diagonal blocks and a'(u), all above 0,
    which is taken in logarithms. With a gate z = g f(x) + (1 - g) x for such a network f, g in (0, 1).

    The inverse searches one x_i after the other, between 0 and the first of 1, 2, 4, ... that is beyond
    it, and has the gradients of the exact solution.

    Args:
        dim: number of dimensions.
        hidden_dims: units of each dimension in each hidden layer, one layer at least.
        context_dim: width of the context, 0 for none; it enters the first layer.
        gate: whether the network is mixed with the identity.
        leak: the least slope of a, between 0 and 1.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for no hidden layers, and for numbers out of range.

    Reference: De Cao et al. (2019), arXiv:1904.04676, whose a is tanh, which is not onto.

    Examples:
        >>> import jax, jax_flows
        >>> bijector = jax_flows.BlockAutoregressive(dim=3)
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 3)))
        >>> z.shape, log_det.shape
        ((5, 3), (5,))
    """

    dim: int
    hidden_dims: Sequence[int] = (8,)
    context_dim: int = 0
    gate: bool = False
    leak: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("BlockAutoregressive", dim=self.dim)
        checks.non_negative_int("BlockAutoregressive", context_dim=self.context_dim)
        checks.boolean("BlockAutoregressive", gate=self.gate)
        checks.open_interval("BlockAutoregressive", "leak", self.leak, 0, 1)
        widths = checks.some_hidden_widths("BlockAutoregressive", self.hidden_dims)
        object.__setattr__(self, "hidden_dims", widths)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        params, widths, shapes = {}, [*pairwise((1, *self.hidden_dims, 1))], []
        for inputs, width in widths:
            rows = self.dim * width
            shapes += [(self.dim, width, inputs), (rows, self.dim * inputs), (rows,)]
        drawn = draws(jax.random.normal, key, shapes, dtype)
        for i, (inputs, _) in enumerate(widths):
            last = i == len(self.hidden_dims)
            raw, weight, bias = drawn[3 * i : 3 * i + 3]
            params[f"diagonal_{i}"] = 0.1 * raw - math.log(inputs)
            params[f"weight_{i}"] = weight * (0.1 / math.sqrt(self.dim * inputs))
            params[f"bias_{i}"] = jnp.zeros_like(bias) if last else bias
        if self.context_dim:
            width = self.dim * self.hidden_dims[0]
            params["context_weight"] = jnp.zeros((width, self.context_dim), dtype)
        if self.gate:
            params["raw_gate"] = jnp.zeros((), dtype)
        return {"params": params}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        params = variables["params"]
        h = at_least_float32(x)[..., None]
        first, log_slope = h, jnp.zeros_like(h)
        for i, (diagonal, below, bias) in enumerate(self._layers(params, context)):
            if i:
                h, log_slope = self._activated(h, log_slope)
            own = _product(diagonal, h) + bias
            weight = below.reshape(own.shape[-2] * own.shape[-1], -1)
            flat = h.reshape(*h.shape[:-2], h.shape[-2] * h.shape[-1])
            offset = jnp.matmul(flat, weight.T, precision=matmul_precision())
            h, log_slope = own + offset.reshape(own.shape), _through(diagonal, log_slope)
        z, log_slope = _gated(first, h, log_slope, *self._gate(params))
        return z[..., 0].astype(x.dtype), log_slope.sum((-2, -1)).astype(x.dtype)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        params = variables["params"]
        wide = at_least_float32(z)
        near = jnp.clip(wide, -FARTHEST, FARTHEST)
        layers = self._layers(params, context)
        gate = self._gate(params)

        def step(known: list[Array], at: Any) -> Any:
            j, near_j, rest, of_layers = at
            given = []
            for (diagonal, below, own), before in zip(of_layers, known, strict=True):
                seen = jnp.einsum("udi,...di->...u", below, before, precision=matmul_precision())
                given += [diagonal, own + seen]
            ends = bracket(self._entry, near_j, given + gate)
            x, log_slope = invert(self._entry, near_j, given + gate, *ends)
            x = x + rest * jnp.exp(log_slope)
            units = self._units(x, *given)
            known = [a.at[..., j, :].set(h) for a, h in zip(known, units, strict=True)]
            return known, (x, log_slope)

        known = [jnp.zeros((*z.shape, n), wide.dtype) for n in (1, *self.hidden_dims)]
        of_layers = [(d, b, jnp.moveaxis(bias, -2, 0)) for d, b, bias in layers]
        by_entry = [jnp.moveaxis(a, -1, 0) for a in (near, wide - near)]
        _, (x, log_slopes) = jax.lax.scan(step, known, (jnp.arange(self.dim), *by_entry, of_layers))
        return jnp.moveaxis(x, 0, -1).astype(z.dtype), log_slopes.sum(0).astype(z.dtype)

    def _layers(self, params: Variables, context: Array | None) -> list[Layer]:
        """Of each layer the diagonal blocks ``(dim, units, inputs)``, those below
        ``(dim, units, dim, inputs)``, and the biases ``(*batch, dim, units)``."""
        layers = []
        for i, (inputs, width) in enumerate(pairwise((1, *self.hidden_dims, 1))):
            names = (f"diagonal_{i}", f"weight_{i}", f"bias_{i}")
            raw, weight, bias = (at_least_float32(params[name]) for name in names)
            if context is not None and not i:
                added = at_least_float32(params["context_weight"]).T
                wide = at_least_float32(context)
                bias = bias + jnp.matmul(wide, added, precision=matmul_precision())
            blocks = weight.reshape(self.dim, width, self.dim, inputs)
            before = jnp.tril(jnp.ones((self.dim, self.dim), weight.dtype), -1)
            below = blocks * before.reshape(self.dim, 1, self.dim, 1)
            bias = bias.reshape(*bias.shape[:-1], self.dim, width)
            layers.append((jnp.exp(raw) + FLOOR, below, bias))
        return layers

    def _activated(self, u: Array, log_slope: Array) -> Output:
        """a(u), and the log of the slope with that of a."""
        floor = jnp.full_like(u, math.log(self.leak))
        return jnp.tanh(u) + self.leak * u, log_slope + jnp.logaddexp(log_sech2(u), floor)

    def _gate(self, params: Variables) -> list[Array]:
        return [at_least_float32(params["raw_gate"])] if self.gate else []

    def _entry(self, x: Array, *given: Array) -> Output:
        """z of one dimension, given the diagonal blocks, what the layers get from those before, and the
        gate."""
        h = first = x[..., None]
        log_slope, stop = jnp.zeros_like(h), 2 * len(self.hidden_dims) + 2
        for i, (diagonal, own) in enumerate(zip(given[:stop:2], given[1:stop:2], strict=True)):
            if i:
                h, log_slope = self._activated(h, log_slope)
            h, log_slope = _product(diagonal, h) + own, _through(diagonal, log_slope)
        z, log_slope = _gated(first, h, log_slope, *given[stop:])
        return z[..., 0], log_slope[..., 0]

    def _units(self, x: Array, *given: Array) -> list[Array]:
        """The inputs of each layer that belong to one dimension."""
        h = x[..., None]
        found = [h]
        for diagonal, own in zip(given[:-2:2], given[1:-2:2], strict=True):
            u = _product(diagonal, h) + own
            h = jnp.tanh(u) + self.leak * u
            found.append(h)
        return found


def _gated(x: Array, f: Array, log_slope: Array, *gate: Array) -> Output:
    """What a network and its slope become with a gate, where there is one."""
    if not gate:
        return f, log_slope
    (raw,) = gate
    z = jax.nn.sigmoid(raw) * f + jax.nn.sigmoid(-raw) * x
    return z, jnp.logaddexp(log_slope - softplus(-raw), -softplus(raw))


def _product(diagonal: Array, h: Array) -> Array:
    return jnp.einsum("...ui,...i->...u", diagonal, h, precision=matmul_precision())


def _through(diagonal: Array, log_slope: Array) -> Array:
    """log(diagonal exp(log_slope))."""
    largest = jax.lax.stop_gradient(log_slope).max(-1, keepdims=True)
    return largest + jnp.log(_product(diagonal, jnp.exp(log_slope - largest)))
