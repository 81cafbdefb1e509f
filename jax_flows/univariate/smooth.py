"""Smooth maps of one variable in closed form."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from jax_flows.numerics import at_least_float32, log1p, tanh
from jax_flows.registry import register
from jax_flows.univariate.base import Output, UnivariateMap, unstack
from jax_flows.univariate.roots import FARTHEST, invert

FAR = 1e6
"""Beyond it the map is the identity to within rounding, and the cube would overflow."""

STEEP = 20.0
"""Beyond it a hyperbolic sine is written as a logarithm, before it overflows."""


@register
@dataclass(frozen=True)
class CubicMap(UnivariateMap):
    """A shift between two cubics: g(k z) = g(k x) + t, with g(u) = 3 u + 4 u^3 = sinh(3 arcsinh(u)).

    Infinitely often differentiable, onto the reals, and the identity far out; the shift acts where
    k x is small. dz/dx = (1 + 4 (k x)^2) / (1 + 4 (k z)^2). Two parameters: a raw number a for
    t = bound tanh(a / bound), and a raw number b for k = exp(2 tanh(b / 2)). Zeros are the identity.

    Args:
        bound: the largest |t|, above 0.

    Raises:
        ValueError: for a bound that is not a number above 0.

    Reference: arXiv:2601.10774 (cubic conjugation).
    """

    bound: float = 30.0
    separable = True

    def __post_init__(self) -> None:
        checks.positive_number("CubicMap", bound=self.bound)

    @property
    def num_parameters(self) -> int:
        return 2

    def forward(self, x: Array, parameters: Any) -> Output:
        return self._shifted(x, parameters, 1.0)

    def inverse(self, z: Array, parameters: Any) -> Output:
        return self._shifted(z, parameters, -1.0)

    def _shifted(self, x: Array, parameters: Any, sign: float) -> Output:
        shift, raw = unstack(parameters)
        shift = sign * self.bound * jnp.tanh(shift / self.bound)
        scale = jnp.exp(2 * jnp.tanh(raw / 2))
        far = jnp.abs(x * scale) > FAR
        u = jnp.where(far, 0, x * scale)
        v = jnp.sinh(jnp.arcsinh(u * (3 + 4 * u * u) + shift) / 3)
        log_slope = log1p(4 * u * u) - log1p(4 * v * v)
        return jnp.where(far, x, v / scale), jnp.where(far, 0, log_slope)


@register
@dataclass(frozen=True)
class CubicRationalMap(UnivariateMap):
    """z = x + a u / (1 + k^2 u^2), u = x - m, with a between -1 and 8: a steeper or flatter place at m.

    Infinitely often differentiable, onto the reals, and the identity far out. With v = k^2 u^2,

        dz/dx = (1 + a + (2 - a) v + v^2) / (1 + v)^2
              = ((v - a / 2 + 1)^2 + a (8 - a) / 4) / (1 + v)^2,

    the first for a < 2 and the second above: sums of positive terms. Three parameters: a raw number r
    for a = 9 / (1 + 8 exp(-bound tanh(r / bound))) - 1, a raw number b for k = exp(2 tanh(b / 2)), and
    m. Zeros are the identity. The inverse is searched, and has the gradients of the exact solution.

    Args:
        bound: keeps the slope apart from 0, see above; between 0 and 10.

    Raises:
        ValueError: for a bound out of range.

    Reference: arXiv:2601.10774 (cubic rational).
    """

    bound: float = 5.0
    separable = True

    def __post_init__(self) -> None:
        checks.open_interval("CubicRationalMap", "bound", self.bound, 0, 10)

    @property
    def num_parameters(self) -> int:
        return 3

    def forward(self, x: Array, parameters: Any) -> Output:
        center, *given = self._constrained(parameters)
        z, log_slope = _cubic_rational(at_least_float32(x) - center, *given)
        return (z + center).astype(x.dtype), log_slope.astype(x.dtype)

    def inverse(self, z: Array, parameters: Any) -> Output:
        center, *given = self._constrained(parameters)
        wide = at_least_float32(z)
        near = jnp.clip(wide, -FARTHEST, FARTHEST)
        moved = near - center
        share, _, scale = given
        ratio, reach = moved / (9 * share), jnp.abs(9 * share - 1) / (2 * scale)
        low = jnp.maximum(jnp.minimum(moved, ratio), moved - reach)
        high = jnp.minimum(jnp.maximum(moved, ratio), moved + reach)
        x, log_slope = invert(_cubic_rational, moved, given, low, high)
        return (x + center + (wide - near)).astype(z.dtype), log_slope.astype(z.dtype)

    def _constrained(self, parameters: Any) -> tuple[Array, Array, Array, Array]:
        """m, (1 + a) / 9, (8 - a) / 9 and k."""
        raw, log_scale, center = (at_least_float32(p) for p in unstack(parameters))
        logit = self.bound * tanh(raw / self.bound) - math.log(8)
        return (
            center,
            jax.nn.sigmoid(logit),
            jax.nn.sigmoid(-logit),
            jnp.exp(2 * tanh(log_scale / 2)),
        )


def _cubic_rational(x: Array, share: Array, rest: Array, scale: Array) -> Output:
    """Around 0, with a = 9 share - 1 = 8 - 9 rest; from k |x| = 1 on in terms of 1 / (k x)."""
    u = scale * x
    far = jnp.abs(u) > 1
    other = 1 / jnp.where(far, u, 1)
    small = jnp.where(far, other, u)
    v = small * small
    a = 9 * share - 1
    middle, steep = a / 2 - 1, a > 2
    floor = a * rest * 2.25
    # the same polynomial from its other end where v stands for 1 / v
    one, square = jnp.where(far, v, 1), jnp.where(far, 1, v)
    flat = 9 * share * one * one + (2 - a) * v + square * square
    peak = jnp.square(square - middle * one) + floor * one * one
    log_slope = jnp.log(jnp.where(steep, peak, flat)) - 2 * log1p(v)
    return x + a * (small / (1 + v)) / scale, log_slope


@register
@dataclass(frozen=True)
class SinhMap(UnivariateMap):
    """An affine map of the hyperbolic sine: sinh(k z) = e^s sinh(k x) + t.

    Infinitely often differentiable, onto the reals, with tails of slope 1 that are moved by s / k to
    the right and by -s / k to the left; t acts where k x is small. dz/dx = e^s cosh(k x) / cosh(k z).
    Three parameters: a raw number a for s = 3 tanh(a / 3), a raw number b for
    t = bound tanh(b / bound), and a raw number c for k = exp(2 tanh(c / 2)). Zeros are the identity.

    The form e^m (e^n sinh(x) + q) of the reference is this one with s = m + n and t = e^m q.

    Args:
        bound: the largest |t|, between 0 and 1000.

    Raises:
        ValueError: for a bound out of range.

    Reference: arXiv:2601.10774 (sinh conjugation).
    """

    bound: float = 10.0
    separable = True

    def __post_init__(self) -> None:
        checks.open_interval("SinhMap", "bound", self.bound, 0, 1000)

    @property
    def num_parameters(self) -> int:
        return 3

    def forward(self, x: Array, parameters: Any) -> Output:
        log_factor, shift, scale = self._constrained(parameters)
        return _sinh_map(x, log_factor, shift, scale)

    def inverse(self, z: Array, parameters: Any) -> Output:
        log_factor, shift, scale = self._constrained(parameters)
        return _sinh_map(z, -log_factor, -shift * jnp.exp(-log_factor), scale)

    def _constrained(self, parameters: Any) -> tuple[Array, Array, Array]:
        """s, t and k."""
        factor, shift, scale = (at_least_float32(p) for p in unstack(parameters))
        shift = self.bound * tanh(shift / self.bound)
        return 3 * tanh(factor / 3), shift, jnp.exp(2 * tanh(scale / 2))


def _sinh_map(x: Array, log_factor: Array, shift: Array, scale: Array) -> Output:
    """With r = k |x|, e^s sinh(k x) + t = e^r q: q is of the order of 1, and the slope is one of q."""
    wide = at_least_float32(x)
    u = scale * wide
    far, negative = jnp.abs(u) > STEEP, u < 0
    near = jnp.where(far, 0, u)
    sign = jnp.where(negative, -1.0, 1.0).astype(u.dtype)
    decay = jnp.exp(-sign * u)
    square = decay * decay
    q = jnp.exp(log_factor) * -jnp.expm1(-2 * sign * u) / 2 + sign * shift * decay
    inside = jnp.arcsinh(jnp.exp(log_factor) * jnp.sinh(near) + shift) / scale
    apart = jnp.where(far, q, 1)
    beyond = wide + sign * jnp.log(apart + jnp.sqrt(apart * apart + square)) / scale
    log_slope = log_factor - math.log(2) + log1p(square) - jnp.log(q * q + square) / 2
    return jnp.where(far, beyond, inside).astype(x.dtype), log_slope.astype(x.dtype)
