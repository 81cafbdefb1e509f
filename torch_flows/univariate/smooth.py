"""Smooth maps of one variable in closed form."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flow_bridge import checks
from torch_flows.numerics import log1p
from torch_flows.registry import register
from torch_flows.univariate.base import Output, UnivariateMap, unstack

FAR = 1e6
"""Beyond it the map is the identity to within rounding, and the cube would overflow."""


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
