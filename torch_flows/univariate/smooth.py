"""Smooth maps of one variable in closed form."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flow_bridge import checks
from torch_flows.numerics import at_least_float32, log1p, tanh
from torch_flows.registry import register
from torch_flows.univariate.base import Output, UnivariateMap, unstack
from torch_flows.univariate.roots import FARTHEST, invert

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

    def forward(self, x: Tensor, parameters: Any) -> Output:
        return self._shifted(x, parameters, 1.0)

    def inverse(self, z: Tensor, parameters: Any) -> Output:
        return self._shifted(z, parameters, -1.0)

    def _shifted(self, x: Tensor, parameters: Any, sign: float) -> Output:
        shift, raw = unstack(parameters)
        shift = sign * self.bound * (shift / self.bound).tanh()
        scale = (2 * (raw / 2).tanh()).exp()
        far = (x * scale).abs() > FAR
        u = (x * scale).masked_fill(far, 0)
        v = ((u * (3 + 4 * u * u) + shift).asinh() / 3).sinh()
        log_slope = log1p(4 * u * u) - log1p(4 * v * v)
        return torch.where(far, x, v / scale), log_slope.masked_fill(far, 0)


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

    def forward(self, x: Tensor, parameters: Any) -> Output:
        center, *given = self._constrained(parameters)
        z, log_slope = _cubic_rational(at_least_float32(x) - center, *given)
        return (z + center).to(x.dtype), log_slope.to(x.dtype)

    def inverse(self, z: Tensor, parameters: Any) -> Output:
        center, *given = self._constrained(parameters)
        wide = at_least_float32(z)
        near = wide.clamp(-FARTHEST, FARTHEST)
        moved = near - center
        share, _, scale = given
        ratio, reach = moved / (9 * share), (9 * share - 1).abs() / (2 * scale)
        low = torch.maximum(torch.minimum(moved, ratio), moved - reach)
        high = torch.minimum(torch.maximum(moved, ratio), moved + reach)
        x, log_slope = invert(_cubic_rational, moved, given, low, high)
        return (x + center + (wide - near)).to(z.dtype), log_slope.to(z.dtype)

    def _constrained(self, parameters: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """m, (1 + a) / 9, (8 - a) / 9 and k."""
        raw, log_scale, center = (at_least_float32(p) for p in unstack(parameters))
        logit = self.bound * tanh(raw / self.bound) - math.log(8)
        return center, logit.sigmoid(), (-logit).sigmoid(), (2 * tanh(log_scale / 2)).exp()


def _cubic_rational(x: Tensor, share: Tensor, rest: Tensor, scale: Tensor) -> Output:
    """Around 0, with a = 9 share - 1 = 8 - 9 rest; from k |x| = 1 on in terms of 1 / (k x)."""
    u = scale * x
    far = u.abs() > 1
    other = torch.where(far, u, 1).reciprocal()
    small = torch.where(far, other, u)
    v = small * small
    a = 9 * share - 1
    middle, steep = a / 2 - 1, a > 2
    floor = a * rest * 2.25
    # the same polynomial from its other end where v stands for 1 / v
    one, square = torch.where(far, v, 1), torch.where(far, 1, v)
    flat = 9 * share * one * one + (2 - a) * v + square * square
    peak = (square - middle * one).square() + floor * one * one
    log_slope = torch.where(steep, peak, flat).log() - 2 * log1p(v)
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

    def forward(self, x: Tensor, parameters: Any) -> Output:
        log_factor, shift, scale = self._constrained(parameters)
        return _sinh_map(x, log_factor, shift, scale)

    def inverse(self, z: Tensor, parameters: Any) -> Output:
        log_factor, shift, scale = self._constrained(parameters)
        return _sinh_map(z, -log_factor, -shift * (-log_factor).exp(), scale)

    def _constrained(self, parameters: Any) -> tuple[Tensor, Tensor, Tensor]:
        """s, t and k."""
        factor, shift, scale = (at_least_float32(p) for p in unstack(parameters))
        shift = self.bound * tanh(shift / self.bound)
        return 3 * tanh(factor / 3), shift, (2 * tanh(scale / 2)).exp()


def _sinh_map(x: Tensor, log_factor: Tensor, shift: Tensor, scale: Tensor) -> Output:
    """With r = k |x|, e^s sinh(k x) + t = e^r q: q is of the order of 1, and the slope is one of q."""
    wide = at_least_float32(x)
    u = scale * wide
    far, negative = u.abs() > STEEP, u < 0
    near = torch.where(far, 0, u)
    sign = torch.where(negative, -1.0, 1.0).to(u.dtype)
    decay = (-sign * u).exp()
    square = decay * decay
    q = log_factor.exp() * -(-2 * sign * u).expm1() / 2 + sign * shift * decay
    inside = (log_factor.exp() * near.sinh() + shift).asinh() / scale
    apart = torch.where(far, q, 1)
    beyond = wide + sign * (apart + (apart * apart + square).sqrt()).log() / scale
    log_slope = log_factor - math.log(2) + log1p(square) - (q * q + square).log() / 2
    return torch.where(far, beyond, inside).to(x.dtype), log_slope.to(x.dtype)
