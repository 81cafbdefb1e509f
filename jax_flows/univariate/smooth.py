"""Smooth maps of one variable in closed form."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from jax_flows.numerics import log1p
from jax_flows.registry import register
from jax_flows.univariate.base import Output, UnivariateMap, unstack

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
