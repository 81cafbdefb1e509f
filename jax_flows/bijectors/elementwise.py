"""Bijectors that act on each dimension alone."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from jax_flows.bijectors.base import Bijector, Output, Variables
from jax_flows.registry import register


@register
@dataclass(frozen=True)
class Rescale(Bijector):
    """z = x * exp(log_scale): NICE's diagonal scaling. log|det| = sum(log_scale).

    Args:
        dim: number of dimensions.

    Shapes: x and z ``(*batch, dim)``. Reference: Dinh et al. (2015), NICE, arXiv:1410.8516.
    """

    dim: int

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("Rescale", dim=self.dim)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def _init(self, key: Array, dtype: Any) -> Variables:
        return {"params": {"log_scale": jnp.zeros(self.dim, dtype)}}

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        log_scale = variables["params"]["log_scale"]
        return x * jnp.exp(log_scale), jnp.broadcast_to(log_scale.sum(), x.shape[:-1])

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        log_scale = variables["params"]["log_scale"]
        return z * jnp.exp(-log_scale), jnp.broadcast_to(-log_scale.sum(), z.shape[:-1])


@register
@dataclass(frozen=True)
class Affine(Bijector):
    """z = x * exp(log_scale) + shift. log|det| = sum(log_scale).

    Args:
        dim: number of dimensions.

    Shapes: x and z ``(*batch, dim)``.
    """

    dim: int

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("Affine", dim=self.dim)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def _init(self, key: Array, dtype: Any) -> Variables:
        zeros = jnp.zeros(self.dim, dtype)
        return {"params": {"log_scale": zeros, "shift": zeros}}

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        log_scale, shift = variables["params"]["log_scale"], variables["params"]["shift"]
        return x * jnp.exp(log_scale) + shift, jnp.broadcast_to(log_scale.sum(), x.shape[:-1])

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        log_scale, shift = variables["params"]["log_scale"], variables["params"]["shift"]
        x = (z - shift) * jnp.exp(-log_scale)
        return x, jnp.broadcast_to(-log_scale.sum(), z.shape[:-1])
