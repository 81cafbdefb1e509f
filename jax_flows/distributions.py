"""Base distributions of the latent z."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from flow_bridge.series import student_t_constant
from jax_flows.inputs import check_array
from jax_flows.numerics import at_least_float32, check_constants, sum_event
from jax_flows.registry import register
from jax_flows.variables import (
    AnyArray,
    HasVariables,
    Variables,
    check_variables,
    freeze_lists,
    kept,
    weight_dtype,
)


class Distribution(HasVariables):
    """A density on events of ``event_shape`` whose samples are a function of simple noise.

    A subclass writes ``log_density`` and ``map_noise``; the public methods check their input first.

    Attributes:
        noise: what ``from_noise`` takes, ``"normal"`` or ``"uniform"`` (on [0, 1)), independent per
            entry.
        noise_shape: its shape for one sample, ``event_shape`` unless stated.
        reparameterized: whether gradients through samples reach every weight.
    """

    noise = "normal"
    reparameterized = True
    dim: int | Sequence[int]

    def __post_init__(self) -> None:
        freeze_lists(self)
        _ = self.event_shape

    @property
    def event_shape(self) -> tuple[int, ...]:
        return checks.event_shape_of(type(self).__name__, self.dim)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.event_shape

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        return {}

    @kept
    def log_prob(self, variables: Variables, z: AnyArray) -> Array:
        """The log-density of z ``(*batch, *event_shape)``, shape ``(*batch,)``.

        Raises:
            ValueError: for a wrong shape.
            TypeError: for a wrong dtype.
        """
        check_array(self, variables, "z", z, self.event_shape)
        return self.log_density(variables, jnp.asarray(z))

    @kept
    def from_noise(self, variables: Variables, noise: AnyArray) -> Array:
        """Samples from noise of shape ``(*batch, *noise_shape)``, differentiable in the weights.

        Errors as ``log_prob``.
        """
        check_array(self, variables, "noise", noise, self.noise_shape)
        return self.map_noise(variables, jnp.asarray(noise))

    @kept
    def sample(
        self, variables: Variables, key: Array, shape: int | Sequence[int], dtype: Any = None
    ) -> Array:
        """Samples of shape ``(*shape, *event_shape)``, in the weights' dtype unless one is given."""
        check_variables(self, variables)
        shape = checks.sample_shape(type(self).__name__, "shape", shape)
        draw = jax.random.normal if self.noise == "normal" else jax.random.uniform
        dtype = dtype or weight_dtype(variables) or jnp.result_type(float)
        return self.map_noise(variables, draw(key, (*shape, *self.noise_shape), dtype))

    @abstractmethod
    def log_density(self, variables: Variables, z: Array) -> Array:
        """``log_prob`` of what has been checked."""

    @abstractmethod
    def map_noise(self, variables: Variables, noise: Array) -> Array:
        """``from_noise`` of what has been checked."""


@register
@dataclass(frozen=True)
class StandardNormal(Distribution):
    """log p(z) = -|z|^2 / 2 - d log(2 pi) / 2.

    Args:
        dim: number of dimensions, or an event shape.
    """

    dim: int | Sequence[int]

    def log_density(self, variables: Variables, z: Array) -> Array:
        event_ndim = len(self.event_shape)
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        return -sum_event(jnp.square(z), event_ndim) / 2 - constant

    def map_noise(self, variables: Variables, noise: Array) -> Array:
        return noise


@register
@dataclass(frozen=True)
class DiagonalNormal(Distribution):
    """Independent normals with learnable ``loc`` and ``log_scale``: z = loc + exp(log_scale) * noise.

    Args:
        dim: number of dimensions, or an event shape.

    Examples:
        >>> import jax, jax_flows
        >>> base = jax_flows.DiagonalNormal(2)
        >>> variables = base.init(jax.random.key(0))
        >>> z = base.sample(variables, jax.random.key(1), (5,), "float32")
        >>> z.shape, base.log_prob(variables, z).shape
        ((5, 2), (5,))
    """

    dim: int | Sequence[int]

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        zeros = jnp.zeros(self.event_shape, dtype)
        return {"params": {"loc": zeros, "log_scale": zeros}}

    def log_density(self, variables: Variables, z: Array) -> Array:
        loc, log_scale = variables["params"]["loc"], variables["params"]["log_scale"]
        standard = (z - loc) * jnp.exp(-log_scale)
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        return (
            -sum_event(jnp.square(standard), len(self.event_shape)) / 2 - log_scale.sum() - constant
        )

    def map_noise(self, variables: Variables, noise: Array) -> Array:
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

    dim: int | Sequence[int]
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.interval("Uniform", low=self.low, high=self.high)

    def log_density(self, variables: Variables, z: Array) -> Array:
        axes = tuple(range(-len(self.event_shape), 0))
        check_constants(self, z, low=self.low, high=self.high, width=self.high - self.low)
        inside = ((z >= self.low) & (z <= self.high)).all(axes)
        density = jnp.asarray(
            -math.prod(self.event_shape) * math.log(self.high - self.low), z.dtype
        )
        log_prob = jnp.where(inside, density, -math.inf)
        return jnp.where(jnp.isnan(z).any(axes), math.nan, log_prob)

    def map_noise(self, variables: Variables, noise: Array) -> Array:
        check_constants(self, noise, low=self.low, high=self.high, width=self.high - self.low)
        return self.low + (self.high - self.low) * noise


@register
@dataclass(frozen=True)
class GaussianMixture(Distribution):
    """sum_k pi_k N(z; loc_k, diag(exp(log_scale_k))^2), with pi = softmax(logits); all learnable.

    A sample takes one noise entry more than it has entries: the first one's normal quantile picks the
    component, the others are the component's noise. The pick has no derivative, so gradients through
    samples reach ``loc`` and ``log_scale`` but not ``logits``; those of ``log_prob`` reach all three.

    Args:
        dim: number of dimensions, or an event shape.
        num_components: number of normals.
    """

    reparameterized = False

    dim: int | Sequence[int]
    num_components: int

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("GaussianMixture", num_components=self.num_components)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (math.prod(self.event_shape) + 1,)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        shape = (self.num_components, *self.event_shape)
        return {
            "params": {
                "logits": jnp.zeros(self.num_components, dtype),
                "loc": jax.random.normal(key, shape, dtype),
                "log_scale": jnp.zeros(shape, dtype),
            }
        }

    def log_density(self, variables: Variables, z: Array) -> Array:
        params, event_ndim = variables["params"], len(self.event_shape)
        log_scale = params["log_scale"]
        standard = (jnp.expand_dims(z, -event_ndim - 1) - params["loc"]) * jnp.exp(-log_scale)
        log_prob = -sum_event(jnp.square(standard) / 2 + log_scale, event_ndim)
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        log_weights = jax.nn.log_softmax(params["logits"])
        return jax.nn.logsumexp(log_prob + log_weights, -1) - constant

    def map_noise(self, variables: Variables, noise: Array) -> Array:
        params = variables["params"]
        ends = jnp.cumsum(jax.nn.softmax(at_least_float32(params["logits"])))[:-1]
        component = (jax.scipy.special.ndtr(at_least_float32(noise[..., :1])) >= ends).sum(-1)
        normal = noise[..., 1:].reshape(*noise.shape[:-1], *self.event_shape)
        return params["loc"][component] + jnp.exp(params["log_scale"][component]) * normal


@register
@dataclass(frozen=True)
class StudentT(Distribution):
    """Independent Student t per dimension: log p(z) = sum -(df + 1) / 2 log(1 + z^2 / df) + constant.

    A sample takes two uniforms u, v per entry: z = sqrt(df (u^(-2 / df) - 1)) cos(2 pi v).

    Args:
        dim: number of dimensions, or an event shape.
        df: degrees of freedom, above 0; 1 is the Cauchy distribution.

    Reference: Bailey (1994), doi:10.1090/S0025-5718-1994-1219702-3, for the sampling.
    """

    noise = "uniform"

    dim: int | Sequence[int]
    df: float

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_number("StudentT", df=self.df)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (2, *self.event_shape)

    def log_density(self, variables: Variables, z: Array) -> Array:
        df, event_ndim = self.df, len(self.event_shape)
        x = z / math.sqrt(df)
        far = jnp.abs(x) > 1
        square, far_x = jnp.square(jnp.where(far, 0, x)), jnp.where(far, x, 1)
        log_x = jnp.log(jnp.abs(far_x))
        if df < 1:  # x may overflow
            log_x = jnp.log(jnp.abs(jnp.where(far, z, math.sqrt(df)))) - math.log(df) / 2
        share = (df + 1) / df / 2 * _ratio(jnp.log1p, square)
        falloff = jnp.where(
            far,
            (df + 1) * (log_x + jnp.log1p(jnp.square(1 / far_x)) / 2),
            jnp.square(jnp.where(far, 0, z)) * share,
        )
        constant = math.prod(self.event_shape) * student_t_constant(df)
        return constant - sum_event(falloff, event_ndim)

    def map_noise(self, variables: Variables, noise: Array) -> Array:
        u, v = jnp.moveaxis(noise, -len(self.event_shape) - 1, 0)
        energy = -jnp.log1p(-u)
        exponent = energy / self.df
        # radius^2 = df (e^(2 exponent) - 1); beyond its dtype, the largest number of that
        largest = float(jnp.finfo(noise.dtype).max)
        growth = jnp.exp(jnp.minimum(exponent, math.log(largest)))
        share = _ratio(lambda x: -jnp.expm1(-x), 2 * exponent)
        radius = jnp.minimum(growth * jnp.sqrt(2 * energy * share), largest)
        return radius * jnp.cos(2 * math.pi * v)


def _ratio(function: Callable[[Array], Array], x: Array) -> Array:
    """function(x) / x for x >= 0, where the function starts as the identity."""
    apart = x > jnp.finfo(x.dtype).eps
    safe = jnp.where(apart, x, 1)
    return jnp.where(apart, function(safe) / safe, 1)
