"""Normalisation with statistics of the data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from jax_flows.bijectors.base import Bijector
from jax_flows.networks.regularization import moments, store, unbiased
from jax_flows.registry import register
from jax_flows.variables import Output, Variables

AVERAGES = ("mean", "var")


@register
@dataclass(frozen=True)
class BatchNorm(Bijector):
    """z = (x - mean) / sqrt(var + eps) * exp(log_gamma) + beta.

    log|det| = sum(log_gamma - log(var + eps) / 2). ``forward_and_update`` uses the mean and the
    biased variance of the batch and moves the running averages towards the mean and the unbiased
    variance; ``forward`` uses the running averages, as ``inverse`` always does. A batch with a NaN
    or an infinity leaves the running averages as they were. They lag behind the weights: ``fit`` sets
    them to the mean and the biased variance of the training data where an epoch ends, and
    ``set_statistics`` does so for a loop of one's own. Of a batch that is sharded over devices
    these are the statistics of the whole.

    Args:
        dim: number of dimensions.
        eps: added to the variance, between 0 and 1.
        momentum: share of the new batch in the running averages, above 0 and at most 1.

    Shapes: x and z ``(*batch, dim)``, at least 2 rows in training mode.

    Raises:
        ValueError: in training mode with fewer than 2 rows.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803, appendix E.
    """

    dim: int
    eps: float = 1e-5
    momentum: float = 0.1
    has_batch_statistics = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("BatchNorm", dim=self.dim)
        checks.open_interval("BatchNorm", "eps", self.eps, 0, 1)
        checks.momentum("BatchNorm", self.momentum)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        zeros = jnp.zeros(self.dim, dtype)
        return {
            "params": {"log_gamma": zeros, "beta": zeros},
            "batch_stats": {"mean": zeros, "var": jnp.ones(self.dim, dtype)},
        }

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        running = variables["batch_stats"]
        return self._normalize(variables["params"], x, running["mean"], running["var"])

    def map_forward_and_update(
        self, variables: Variables, x: Array, context: Array | None
    ) -> tuple[Array, Array, Variables]:
        running = _averages(variables)
        rows = x.reshape(-1, self.dim)
        mean, var = moments(rows)
        of_batch = mean, unbiased(var, "BatchNorm", len(rows))
        pairs = zip(running, of_batch, strict=True)
        new = store(running, [old + self.momentum * (new - old) for old, new in pairs])
        return *self._normalize(variables["params"], x, mean, var), dict(
            zip(AVERAGES, new, strict=True)
        )

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        params, running = variables["params"], variables["batch_stats"]
        log_scale = params["log_gamma"] - jnp.log(running["var"] + self.eps) / 2
        x = (z - params["beta"]) * jnp.exp(-log_scale) + running["mean"]
        return x, jnp.broadcast_to(-log_scale.sum(), z.shape[:-1])

    def map_and_set_statistics(
        self, variables: Variables, x: Array, context: Array | None, weights: Array | None
    ) -> tuple[Array, Variables]:
        weights_of_rows = None if weights is None else weights.reshape(-1)
        of_data = moments(x.reshape(-1, self.dim), weights_of_rows)
        batch_stats = dict(zip(AVERAGES, store(_averages(variables), of_data), strict=True))
        variables = {**variables, "batch_stats": batch_stats}
        return super().map_and_set_statistics(variables, x, context, weights)

    def _normalize(self, params: Variables, x: Array, mean: Array, var: Array) -> Output:
        log_scale = params["log_gamma"] - jnp.log(var + self.eps) / 2
        z = (x - mean) * jnp.exp(log_scale) + params["beta"]
        return z, jnp.broadcast_to(log_scale.sum(), x.shape[:-1])


def _averages(variables: Variables) -> list[Array]:
    return [variables["batch_stats"][name] for name in AVERAGES]


@register
@dataclass(frozen=True)
class ActNorm(Bijector):
    """z = x * exp(log_scale) + shift, for images with one scale and shift per channel.

    log|det| = sum(log_scale) (times height * width). The identity until ``initialize(variables, x)``,
    called once before training, sets scale and shift so that z has mean 0 and (biased) standard
    deviation 1 in every dimension or channel of x; a dimension that is constant up to rounding keeps
    a finite scale. From then on both are weights like any other, and nothing depends on a batch.

    Args:
        dim: number of dimensions, or ``(channels, height, width)``.

    Shapes: x and z ``(*batch, dim)`` or ``(*batch, channels, height, width)``.

    Reference: Kingma and Dhariwal (2018), Glow, arXiv:1807.03039.

    Examples:
        >>> import jax, jax_flows
        >>> bijector = jax_flows.ActNorm(dim=3)
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 3)))
        >>> z.shape, log_det.shape
        ((5, 3), (5,))
    """

    dim: int | Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.event_shape

    @cached_property
    def event_shape(self) -> tuple[int, ...]:
        return checks.vector_or_image("ActNorm", self.dim)

    @property
    def num_pixels(self) -> int:
        """How many numbers share a scale: height * width, or 1."""
        return math.prod(self.event_shape[1:])

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        zeros = jnp.zeros(self.event_shape[0], dtype)
        return {"params": {"log_scale": zeros, "shift": zeros}}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        log_scale, shift = self._weights(variables)
        return x * jnp.exp(log_scale) + shift, self._log_det(log_scale, x)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        log_scale, shift = self._weights(variables)
        return (z - shift) * jnp.exp(-log_scale), -self._log_det(log_scale, z)

    def map_and_initialize(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> tuple[Array, Variables]:
        channels = jnp.moveaxis(x.reshape(-1, self.event_shape[0], self.num_pixels), 1, 0)
        channels = channels.reshape(self.event_shape[0], -1)
        mean = channels.mean(1)
        mean = mean + (channels - mean[:, None]).mean(1)
        sd = jnp.sqrt(jnp.square(channels - mean[:, None]).mean(1))
        eps = float(jnp.finfo(x.dtype).eps)
        log_sd = jnp.log(jnp.maximum(jnp.maximum(sd, 4 * eps * abs(mean)), max(1e-6, eps)))
        params = {
            "log_scale": log_sd if inverse else -log_sd,
            "shift": mean if inverse else -mean * jnp.exp(-log_sd),
        }
        return super().map_and_initialize({**variables, "params": params}, x, context, inverse)

    def _weights(self, variables: Variables) -> tuple[Array, Array]:
        ones = (1,) * (len(self.event_shape) - 1)
        params = variables["params"]
        return params["log_scale"].reshape(-1, *ones), params["shift"].reshape(-1, *ones)

    def _log_det(self, log_scale: Array, x: Array) -> Array:
        batch = x.shape[: x.ndim - len(self.event_shape)]
        return jnp.broadcast_to(log_scale.sum() * self.num_pixels, batch)


@register
@dataclass(frozen=True)
class Standardize(Bijector):
    """z = (x - loc) / scale with fixed arrays, for images with one of each per channel.

    log|det| = -sum(log|scale|) (times height * width). The identity until ``standardized`` sets
    ``loc`` and ``scale`` from data. They are no weights: training and ``initialize`` leave them alone.

    Args:
        dim: number of dimensions, or ``(channels, height, width)``.

    Shapes: x and z ``(*batch, dim)`` or ``(*batch, channels, height, width)``.

    Examples:
        >>> import jax, jax_flows
        >>> bijector = jax_flows.Standardize(dim=3)
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 3)))
        >>> z.shape, log_det.shape
        ((5, 3), (5,))
    """

    dim: int | Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.event_shape

    @cached_property
    def event_shape(self) -> tuple[int, ...]:
        return checks.vector_or_image("Standardize", self.dim)

    @property
    def num_pixels(self) -> int:
        """How many numbers share a scale: height * width, or 1."""
        return math.prod(self.event_shape[1:])

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        channels = self.event_shape[0]
        return {
            "batch_stats": {"loc": jnp.zeros(channels, dtype), "scale": jnp.ones(channels, dtype)}
        }

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        loc, scale = self._arrays(variables)
        return (x - loc) / scale, -self._log_det(scale, x)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        loc, scale = self._arrays(variables)
        return z * scale + loc, self._log_det(scale, z)

    def _arrays(self, variables: Variables) -> tuple[Array, Array]:
        ones = (1,) * (len(self.event_shape) - 1)
        fixed = variables["batch_stats"]
        return fixed["loc"].reshape(-1, *ones), fixed["scale"].reshape(-1, *ones)

    def _log_det(self, scale: Array, x: Array) -> Array:
        batch = x.shape[: x.ndim - len(self.event_shape)]
        return jnp.broadcast_to(jnp.log(jnp.abs(scale)).sum() * self.num_pixels, batch)
