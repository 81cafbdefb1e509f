"""Bijectors that act on each entry alone."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks, images
from flow_bridge.domains import POSITIVE, Interval
from flow_bridge.networks import Network, as_network
from jax_flows.bijectors.base import Bijector, Conditioned, overrides, score_of_entries
from jax_flows.networks.conditioner import (
    build_conditioner,
    conditioner_shapes,
    init_conditioner,
    run_conditioner,
)
from jax_flows.networks.mlp import MLP
from jax_flows.numerics import (
    absolute,
    at_least_float32,
    check_constants,
    log1p,
    log_sech2,
    softplus,
    split_sign,
    sum_event,
    tanh,
)
from jax_flows.registry import register
from jax_flows.univariate.base import UnivariateMap
from jax_flows.univariate.tails import log_tail, tail_quantile
from jax_flows.variables import Output, Variables, gather


class Pointwise(Bijector):
    """z_i = f(x_i) for every entry. log|det| = the sum of log f'(x_i) over the event."""

    event_ndim: int

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.event_axes(type(self).__name__, self.event_ndim)

    @property
    def event_shape(self) -> tuple[None, ...]:
        return (None,) * self.event_ndim

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        return {}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        z, log_slope = self.map_entries(x)
        return z, sum_event(log_slope, self.event_ndim)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        x, log_slope = self.map_entries_inverse(z)
        return x, sum_event(log_slope, self.event_ndim)

    def map_score(
        self,
        variables: Variables,
        x: Array,
        score: Array,
        context: Array | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Array, Array, Array]:
        if overrides(self, Pointwise):
            return super().map_score(variables, x, score, context, inverse, differentiable)
        step = self.map_entries_inverse if inverse else self.map_entries
        z, log_slope, score = score_of_entries(step, x, score, differentiable)
        return z, sum_event(log_slope, self.event_ndim), score

    @abstractmethod
    def map_entries(self, x: Array) -> Output: ...

    @abstractmethod
    def map_entries_inverse(self, z: Array) -> Output: ...


def _nan_or_zero(x: Array) -> Array:
    """0, or NaN where x is NaN."""
    return jnp.where(jnp.isnan(x), x, 0)


@register
@dataclass(frozen=True)
class LeakyReLU(Pointwise):
    """z = x for x >= 0 and negative_slope * x below; the derivative at 0 is 1.

    Each direction takes the side by the sign of its own input, the same for x and its z. Where a layer
    before it rounds an entry to the other side of 0, log|det| changes by log(negative_slope).

    Args:
        negative_slope: above 0.
        event_ndim: number of axes of one event, 3 for images.
    """

    negative_slope: float = 0.01
    event_ndim: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_number("LeakyReLU", negative_slope=self.negative_slope)

    def map_entries(self, x: Array) -> Output:
        log_slope = jnp.where(x < 0, math.log(self.negative_slope), _nan_or_zero(x))
        return jnp.where(x < 0, self.negative_slope * x, x), log_slope

    def map_entries_inverse(self, z: Array) -> Output:
        log_slope = jnp.where(z < 0, -math.log(self.negative_slope), _nan_or_zero(z))
        return jnp.where(z < 0, z / self.negative_slope, z), log_slope


@register
@dataclass(frozen=True)
class ELU(Pointwise):
    """z = x for x >= 0 and alpha * (exp(x) - 1) below; the derivative at 0 is 1. Codomain (-alpha, inf).

    Far below 0 the map is flat: of x = -10 the inverse can recover 3 digits in float32. Each direction
    takes the side by the sign of its own input, as ``LeakyReLU`` does.

    Args:
        alpha: above 0.
        event_ndim: number of axes of one event, 3 for images.

    Reference: Clevert et al. (2016), arXiv:1511.07289.
    """

    alpha: float = 1.0
    event_ndim: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_number("ELU", alpha=self.alpha)

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        return Interval(-self.alpha, math.inf)

    def map_entries(self, x: Array) -> Output:
        check_constants(self, x, alpha=self.alpha)
        low = x < 0
        z = jnp.where(low, self.alpha * jnp.expm1(jnp.where(low, x, 0)), x)
        return z, jnp.where(low, x + math.log(self.alpha), _nan_or_zero(x))

    def map_entries_inverse(self, z: Array) -> Output:
        check_constants(self, z, alpha=self.alpha)
        low, near = z < 0, z > -self.alpha / 4
        # next to -alpha the sum is exact, where z / alpha would round
        log_sum = jnp.log(jnp.where(near, self.alpha, z + self.alpha) / self.alpha)
        log_ratio = jnp.log1p(jnp.where(low & near, z / self.alpha, 0))
        x = jnp.where(low, jnp.where(near, log_ratio, log_sum), z)
        return x, jnp.where(low, -x - math.log(self.alpha), _nan_or_zero(z))


@register
@dataclass(frozen=True)
class Softplus(Pointwise):
    """z = log(1 + e^x). Codomain (0, inf).

    Args:
        event_ndim: number of axes of one event, 3 for images.
    """

    codomain = POSITIVE
    event_ndim: int = 1

    def map_entries(self, x: Array) -> Output:
        return softplus(x), -softplus(-x)

    def map_entries_inverse(self, z: Array) -> Output:
        log_slope = -jnp.log(-jnp.expm1(-z))
        return z - log_slope, log_slope


@register
@dataclass(frozen=True)
class Exp(Pointwise):
    """z = e^x. Codomain (0, inf).

    Args:
        event_ndim: number of axes of one event, 3 for images.
    """

    codomain = POSITIVE
    event_ndim: int = 1

    def map_entries(self, x: Array) -> Output:
        return jnp.exp(x), x

    def map_entries_inverse(self, z: Array) -> Output:
        # the barrier keeps XLA from taking log(exp(x)) for x: past the range of exp it is infinite
        x = jnp.log(jax.lax.optimization_barrier(z))
        return x, -x


@register
@dataclass(frozen=True)
class Sigmoid(Pointwise):
    """z = 1 / (1 + e^-x). Codomain (0, 1).

    Past x = 17 (float32) or 37 (float64) z rounds to 1, whose inverse is infinity.

    Args:
        event_ndim: number of axes of one event, 3 for images.

    Examples:
        >>> import jax, jax_flows
        >>> bijector = jax_flows.Sigmoid()
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 2)))
        >>> z.shape, log_det.shape
        ((5, 2), (5,))
    """

    codomain = Interval(0.0, 1.0)
    event_ndim: int = 1

    def map_entries(self, x: Array) -> Output:
        return jax.nn.sigmoid(x), -softplus(x) - softplus(-x)

    def map_entries_inverse(self, z: Array) -> Output:
        log_z, log_rest = jnp.log(z), log1p(-z)
        return log_z - log_rest, -log_z - log_rest


@register
@dataclass(frozen=True)
class Tanh(Pointwise):
    """z = tanh(x). Codomain (-1, 1).

    Past |x| = 9 (float32) or 19 (float64) z rounds to 1 or -1, whose inverse is infinite.

    Args:
        event_ndim: number of axes of one event, 3 for images.
    """

    codomain = Interval(-1.0, 1.0)
    event_ndim: int = 1

    def map_entries(self, x: Array) -> Output:
        z, near = tanh(x), jnp.abs(x) < 0.3
        log_near = log1p(-jnp.square(jnp.where(near, z, 0)))
        return z, jnp.where(near, log_near, log_sech2(x))

    def map_entries_inverse(self, z: Array) -> Output:
        above, below, near = log1p(z), log1p(-z), jnp.abs(z) < 0.3
        log_near = log1p(-jnp.square(jnp.where(near, z, 0)))
        return (above - below) / 2, jnp.where(near, -log_near, -above - below)


@register
@dataclass(frozen=True)
class Softclip(Pointwise):
    """z = x / (1 + |x| / bound), with slope 1 at 0. Codomain (-bound, bound).

    Its slope falls as 1 / x^2, where that of ``Tanh`` falls as e^(-2 |x|).

    Args:
        bound: above 0.
        event_ndim: number of axes of one event, 3 for images.
    """

    bound: float = 1.0
    event_ndim: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_number("Softclip", bound=self.bound)

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        return Interval(-self.bound, self.bound)

    def map_entries(self, x: Array) -> Output:
        check_constants(self, x, bound=self.bound)
        share = absolute(x) / self.bound
        # a large x over a small bound overflows
        far = jnp.isinf(share)
        log_far = jnp.log(jnp.where(far, jnp.abs(x), 1)) - math.log(self.bound)
        log_slope = -2 * jnp.where(far, log_far, jnp.log1p(share))
        return self.bound * (x / (self.bound + absolute(x))), log_slope

    def map_entries_inverse(self, z: Array) -> Output:
        check_constants(self, z, bound=self.bound)
        rest = (self.bound - absolute(z)) / self.bound
        rest = jnp.where(rest < 0, math.nan, rest)
        return z / rest, -2 * jnp.log(rest)


@register
@dataclass(frozen=True)
class NormalClip(Pointwise):
    """Phi(z) = (1 - share) Phi(x) + share / 2: near the identity, onto the quantiles of a standard normal
    from share / 2 up to 1 - share / 2, the codomain.

    Args:
        share: of a standard normal, what z leaves out; between 1e-300 and 1.
        event_ndim: number of axes of one event, 3 for images.

    Raises:
        ValueError: for a share out of range.
    """

    share: float = 1e-6
    event_ndim: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.open_interval("NormalClip", "share", self.share, 1e-300, 1)

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        end = NormalDist().inv_cdf(self.share / 2)
        return Interval(end, -end)

    def map_entries(self, x: Array) -> Output:
        log_rest = math.log1p(-self.share)
        sign, t = split_sign(at_least_float32(x))
        log_ends = jnp.full_like(t, math.log(self.share / 2))
        clipped = tail_quantile(jnp.logaddexp(log_rest + log_tail(t), log_ends))
        log_slope = log_rest + (clipped - t) * (clipped + t) / 2
        return (sign * clipped).astype(x.dtype), log_slope.astype(x.dtype)

    def map_entries_inverse(self, z: Array) -> Output:
        log_rest = math.log1p(-self.share)
        sign, t = split_sign(at_least_float32(z))
        log_share = log_tail(t)
        gap = math.log(self.share / 2) - log_share
        inside = jnp.where(gap < 0, gap, math.nan)
        whole = tail_quantile(log_share + log1p(-jnp.exp(inside)) - log_rest)
        whole = jnp.where(gap == 0, math.inf, whole)
        log_slope = (whole - t) * (whole + t) / 2 - log_rest
        return (sign * whole).astype(z.dtype), log_slope.astype(z.dtype)


@register
@dataclass(frozen=True)
class LeakyTanh(Pointwise):
    """tanh(x) for |x| <= bound, and its tangents beyond: onto the reals, once continuously differentiable.

    Args:
        bound: where the tangents begin, between 0 and 8.
        event_ndim: number of axes of one event, 3 for images.

    Raises:
        ValueError: for a bound out of range.
    """

    bound: float = 3.0
    event_ndim: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.open_interval("LeakyTanh", "bound", self.bound, 0, 8)

    def map_entries(self, x: Array) -> Output:
        near = jnp.where(jnp.abs(x) > self.bound, jnp.sign(x) * self.bound, x)
        rest = (x - near) * math.cosh(self.bound) ** -2
        return tanh(near) + rest, log_sech2(near) + _nan_or_zero(x)

    def map_entries_inverse(self, z: Array) -> Output:
        edge = math.tanh(self.bound)
        far = jnp.abs(z) > edge
        near = jnp.where(far, 0, z)
        inside = (log1p(near) - log1p(-near)) / 2
        beyond = jnp.sign(z) * self.bound + (z - jnp.sign(z) * edge) * math.cosh(self.bound) ** 2
        log_near = -log1p(near) - log1p(-near)
        log_slope = jnp.where(far, 2 * math.log(math.cosh(self.bound)), log_near)
        return jnp.where(far, beyond, inside), log_slope + _nan_or_zero(z)


@register
@dataclass(frozen=True)
class LOFT(Pointwise):
    """z = x for |x| <= start, and start + log(1 + |x| - start) with the sign of x beyond.

    Flows in many dimensions whose samples run away stay in range with it behind them, as
    ``Invert(LOFT())``. Onto the reals, and once continuously differentiable;
    log|det| = -sum(log(1 + max(|x| - start, 0))).

    Args:
        start: where the logarithm begins, above 0.
        event_ndim: number of axes of one event, 3 for images.

    Reference: Andrade (2024), arXiv:2402.16408.
    """

    start: float = 100.0
    event_ndim: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_number("LOFT", start=self.start)

    def map_entries(self, x: Array) -> Output:
        check_constants(self, x, start=self.start)
        far = jnp.abs(x) > self.start
        growth = jnp.log1p(jnp.where(far, absolute(x) - self.start, 0))
        z = jnp.where(far, jnp.sign(x) * (self.start + growth), x)
        return z, _nan_or_zero(x) - growth

    def map_entries_inverse(self, z: Array) -> Output:
        check_constants(self, z, start=self.start)
        far = jnp.abs(z) > self.start
        growth = jnp.where(far, absolute(z) - self.start, 0)
        x = jnp.where(far, jnp.sign(z) * (self.start + jnp.expm1(growth)), z)
        return x, _nan_or_zero(z) + growth


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

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        return {"params": {"log_scale": jnp.zeros(self.dim, dtype)}}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        log_scale = variables["params"]["log_scale"]
        return x * jnp.exp(log_scale), jnp.broadcast_to(log_scale.sum(), x.shape[:-1])

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
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

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        zeros = jnp.zeros(self.dim, dtype)
        return {"params": {"log_scale": zeros, "shift": zeros}}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        log_scale, shift = variables["params"]["log_scale"], variables["params"]["shift"]
        return x * jnp.exp(log_scale) + shift, jnp.broadcast_to(log_scale.sum(), x.shape[:-1])

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        log_scale, shift = variables["params"]["log_scale"], variables["params"]["shift"]
        x = (z - shift) * jnp.exp(-log_scale)
        return x, jnp.broadcast_to(-log_scale.sum(), z.shape[:-1])


@register
@dataclass(frozen=True)
class Logit(Pointwise):
    """z = log(y / (1 - y)) with y = alpha + (1 - 2 alpha) x: images on [0, 1) to the real line.

    alpha > 0 keeps z finite at the ends of [0, 1]; the domain then reaches beyond them by
    alpha / (1 - 2 alpha). log|det| = sum(log(1 - 2 alpha) - log(y) - log(1 - y)).

    Args:
        alpha: at least 0, below 1/2.
        event_ndim: number of axes of one event, 3 for images.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803, section 4.1.
    """

    alpha: float = 0.05
    event_ndim: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.logit_alpha("Logit", self.alpha)

    @property
    def domain(self) -> Interval:  # type: ignore[override]
        margin = self.alpha / (1 - 2 * self.alpha)
        return Interval(-margin, 1 + margin)

    @property
    def log_slope(self) -> float:
        """The constant part of the log-det of one entry."""
        return images.log_slope(self.alpha)

    def map_entries(self, x: Array) -> Output:
        y, rest = (self.alpha + (1 - 2 * self.alpha) * part for part in (x, 1 - x))
        log_y, log_rest = jnp.log(y), jnp.log(rest)
        return log_y - log_rest, self.log_slope - log_y - log_rest

    def map_entries_inverse(self, z: Array) -> Output:
        x = (jax.nn.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)
        return x, -softplus(z) - softplus(-z) - self.log_slope


@register
@dataclass(frozen=True)
class Elementwise(Conditioned):
    """z_i = map(x_i; parameters_i) for every entry; log|det| is the sum of the logs of the map's slopes.

    The parameters are weights of their own, which start at zero, or come from the context.

    Args:
        dim: number of dimensions, or an event shape.
        map: what happens to an entry, given its parameters.
        context_dim: width of the context, 0 for none.
        conditioner: with a context, the network from it to the parameters, ``Network(CLASS, ...)`` or
            a class; ``MLP`` if not given.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for a conditioner without a context.

    Examples:
        >>> import jax, jax_flows
        >>> bijector = jax_flows.Elementwise(3, jax_flows.SplineMap(num_bins=4))
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 3)))
        >>> z.shape, log_det.shape
        ((5, 3), (5,))
    """

    dim: int | Sequence[int]
    map: UnivariateMap
    context_dim: int = 0
    conditioner: Network | type | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.instances("Elementwise", "map", [self.map], UnivariateMap)
        checks.map_of("Elementwise", self.map, self.event_shape)
        checks.non_negative_int("Elementwise", context_dim=self.context_dim)
        checks.no_conditioner("Elementwise", self.conditioner, self.context_dim)
        if self.context_dim:
            conditioner = as_network("Elementwise", self.conditioner, MLP)
            object.__setattr__(self, "conditioner", conditioner)
            _ = self.network

    @property
    def event_shape(self) -> tuple[int, ...]:
        return checks.event_shape_of("Elementwise", self.dim)

    @property
    def domain(self) -> Interval:  # type: ignore[override]
        return self.map.domain

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        return self.map.codomain

    @cached_property
    def network(self) -> nn.Module:
        """The conditioner, where there is a context."""
        out_dim = math.prod(self.event_shape) * self.map.num_parameters
        conditioner = as_network("Elementwise", self.conditioner, MLP)
        num_parameters = self.map.num_parameters
        return build_conditioner(
            "Elementwise", conditioner, self.context_dim, out_dim, 1, 0,
            num_parameters=num_parameters,
        )  # fmt: skip

    def intervals(self, inverse: bool = False) -> list[Interval]:
        return self.map.intervals(inverse)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        if not self.context_dim:
            zeros = jnp.zeros((*self.event_shape, self.map.num_parameters), dtype)
            return {"params": {"raw_parameters": zeros}}
        inputs = jnp.zeros(self.context_dim, dtype)
        return gather({"network": init_conditioner(self, key, inputs, 0, dtype)})

    def variable_shapes(self, dtype: Any) -> Variables:
        known = conditioner_shapes(self, dtype) if self.context_dim else None
        return known or super().variable_shapes(dtype)

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        z, log_slope = self.map.forward(x, self._parameters_for(variables, x, context))
        return z, sum_event(log_slope, len(self.event_shape))

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        x, log_slope = self.map.inverse(z, self._parameters_for(variables, z, context))
        return x, sum_event(log_slope, len(self.event_shape))

    def map_score(
        self,
        variables: Variables,
        x: Array,
        score: Array,
        context: Array | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Array, Array, Array]:
        if overrides(self, Elementwise):
            return super().map_score(variables, x, score, context, inverse, differentiable)
        step = self.map.inverse if inverse else self.map.forward
        parameters = self._parameters_for(variables, x, context)
        z, log_slope, score = score_of_entries(
            lambda x: step(x, parameters), x, score, differentiable
        )
        return z, sum_event(log_slope, len(self.event_shape)), score

    def _parameters_for(self, variables: Variables, x: Array, context: Array | None) -> Array:
        shape = *x.shape, self.map.num_parameters
        if context is None:
            raw = variables["params"]["raw_parameters"]
            if self.map.broadcasts:
                return raw.reshape(*[1] * (x.ndim + 1 - raw.ndim), *raw.shape)
            return jnp.broadcast_to(raw, shape)
        return run_conditioner(self, variables, context, None).reshape(shape)
