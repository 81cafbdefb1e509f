"""Base distributions of the latent z."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from jax_flows.bijectors.base import HasVariables, Variables, freeze_lists, weight_dtype
from jax_flows.numerics import sum_event
from jax_flows.registry import register


class Distribution(HasVariables):
    """A density on events of ``event_shape`` whose samples are a function of simple noise.

    Attributes:
        noise: what ``from_noise`` takes, ``"normal"`` or ``"uniform"`` (on [0, 1)), independent per
            dimension.
    """

    noise = "normal"
    dim: int | tuple[int, ...]

    def __post_init__(self) -> None:
        freeze_lists(self)
        _ = self.event_shape

    @property
    def event_shape(self) -> tuple[int, ...]:
        return checks.event_shape_of(type(self).__name__, self.dim)

    def _init(self, key: Array, dtype: Any) -> Variables:
        return {}

    @abstractmethod
    def log_prob(self, variables: Variables, z: Array) -> Array:
        """The log-density of z ``(*batch, *event_shape)``, shape ``(*batch,)``."""

    @abstractmethod
    def from_noise(self, variables: Variables, noise: Array) -> Array:
        """Samples from noise of shape ``(*batch, *event_shape)``, differentiable in the weights."""

    def sample(
        self, variables: Variables, key: Array, shape: Sequence[int], dtype: Any = None
    ) -> Array:
        """Samples of shape ``(*shape, *event_shape)``, in the weights' dtype unless one is given."""
        draw = jax.random.normal if self.noise == "normal" else jax.random.uniform
        dtype = dtype or weight_dtype(variables) or jnp.result_type(float)
        return self.from_noise(variables, draw(key, (*shape, *self.event_shape), dtype))


@register
@dataclass(frozen=True)
class StandardNormal(Distribution):
    """log p(z) = -|z|^2 / 2 - d log(2 pi) / 2.

    Args:
        dim: number of dimensions, or an event shape.
    """

    dim: int | tuple[int, ...]

    def log_prob(self, variables: Variables, z: Array) -> Array:
        event_ndim = len(self.event_shape)
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        return -sum_event(jnp.square(z), event_ndim) / 2 - constant

    def from_noise(self, variables: Variables, noise: Array) -> Array:
        return noise


@register
@dataclass(frozen=True)
class DiagonalNormal(Distribution):
    """Independent normals with learnable ``loc`` and ``log_scale``: z = loc + exp(log_scale) * noise.

    Args:
        dim: number of dimensions, or an event shape.
    """

    dim: int | tuple[int, ...]

    def _init(self, key: Array, dtype: Any) -> Variables:
        zeros = jnp.zeros(self.event_shape, dtype)
        return {"params": {"loc": zeros, "log_scale": zeros}}

    def log_prob(self, variables: Variables, z: Array) -> Array:
        loc, log_scale = variables["params"]["loc"], variables["params"]["log_scale"]
        standard = (z - loc) * jnp.exp(-log_scale)
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        return (
            -sum_event(jnp.square(standard), len(self.event_shape)) / 2 - log_scale.sum() - constant
        )

    def from_noise(self, variables: Variables, noise: Array) -> Array:
        loc, log_scale = variables["params"]["loc"], variables["params"]["log_scale"]
        return loc + jnp.exp(log_scale) * noise


@register
@dataclass(frozen=True)
class Uniform(Distribution):
    """The uniform density on [low, high] in every dimension: -d log(high - low) inside, -inf outside.

    Args:
        dim: number of dimensions, or an event shape.
        low, high: the bounds, low < high.

    Raises:
        ValueError: if the bounds are not finite or not in order.
    """

    noise = "uniform"

    dim: int | tuple[int, ...]
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.interval("Uniform", low=self.low, high=self.high)

    def log_prob(self, variables: Variables, z: Array) -> Array:
        axes = tuple(range(-len(self.event_shape), 0))
        inside = ((z >= self.low) & (z <= self.high)).all(axes)
        density = jnp.asarray(
            -math.prod(self.event_shape) * math.log(self.high - self.low), z.dtype
        )
        log_prob = jnp.where(inside, density, -math.inf)
        return jnp.where(jnp.isnan(z).any(axes), math.nan, log_prob)

    def from_noise(self, variables: Variables, noise: Array) -> Array:
        return self.low + (self.high - self.low) * noise
