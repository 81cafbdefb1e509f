"""Base distributions of the latent z."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from flow_bridge import checks
from flow_bridge.domains import REALS, ClosedInterval, Interval, placed
from flow_bridge.networks import Network, as_network
from flow_bridge.series import GAMMA_SERIES, GAMMA_STEPS, student_t_constant, von_mises_series
from jax_flows.inputs import check_input, context_batch, to_jax
from jax_flows.networks.conditioner import (
    build_conditioner,
    conditioner_shapes,
    init_conditioner,
    run_conditioner,
)
from jax_flows.networks.mlp import MLP
from jax_flows.networks.regularization import acts_in_training
from jax_flows.numerics import at_least_float32, check_constants, sum_event
from jax_flows.registry import register
from jax_flows.univariate.circular import wrapped
from jax_flows.univariate.roots import invert
from jax_flows.variables import (
    AnyArray,
    HasVariables,
    Variables,
    check_key,
    child,
    freeze_lists,
    gather,
    kept,
    weight_dtype,
)


class Distribution(HasVariables):
    """A density on events of ``event_shape`` whose samples are a function of simple noise.

    A subclass writes ``log_density`` and ``map_noise``; the public methods check their input first.

    Attributes:
        context_dim: width of the context, 0 for none.
        noise: what ``from_noise`` takes, ``"normal"`` or ``"uniform"`` (on [0, 1)), independent per
            entry.
        noise_shape: its shape for one sample, ``event_shape`` unless stated.
        reparameterized: whether gradients through samples reach every weight.
        support: the interval that every entry of z lies in.
    """

    context_dim: int = 0
    noise = "normal"
    reparameterized = True
    support = REALS
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
    def log_prob(self, variables: Variables, z: AnyArray, context: AnyArray | None = None) -> Array:
        """The log-density of z ``(*batch, *event_shape)``, shape ``(*batch,)``.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            z: floating point, of the weights' dtype.
            context: shape ``(*batch, context_dim)`` or broadcastable to it.

        Raises:
            ValueError: for a wrong shape, and for a context that is missing or unexpected.
            TypeError: for a wrong dtype.
        """
        return self.log_density(
            variables, *check_input(self, variables, "z", z, context, self.event_shape)
        )

    @kept
    def from_noise(
        self, variables: Variables, noise: AnyArray, context: AnyArray | None = None
    ) -> Array:
        """Samples from noise of shape ``(*batch, *noise_shape)``, differentiable in the weights.

        Context and errors as in ``log_prob``.
        """
        return self.map_noise(
            variables, *check_input(self, variables, "noise", noise, context, self.noise_shape)
        )

    @kept
    def sample(
        self,
        variables: Variables,
        key: Array,
        shape: int | Sequence[int],
        dtype: Any = None,
        context: AnyArray | None = None,
    ) -> Array:
        """Samples of shape ``(*shape, *context_batch, *event_shape)``, in the weights' dtype unless one
        is given; ``context`` is of shape ``(*context_batch, context_dim)``."""
        check_key(self, key)
        shape = checks.sample_shape(type(self).__name__, "shape", shape)
        batch = *shape, *context_batch(self, variables, context)
        draw = jax.random.normal if self.noise == "normal" else jax.random.uniform
        dtype = dtype or weight_dtype(variables) or jnp.result_type(float)
        noise = draw(key, (*batch, *self.noise_shape), dtype)
        if context is not None:
            context = jnp.broadcast_to(to_jax(context), (*batch, self.context_dim))
        return self.map_noise(variables, noise, context)

    def intervals(self) -> list[Interval]:
        """Where the entries of z lie: one interval, or one of each entry."""
        return [self.support]

    @abstractmethod
    def log_density(self, variables: Variables, z: Array, context: Array | None) -> Array:
        """``log_prob`` of what has been checked."""

    @abstractmethod
    def map_noise(self, variables: Variables, noise: Array, context: Array | None) -> Array:
        """``from_noise`` of what has been checked."""


class _OfContext(Distribution):
    """One whose parameters may come from the context, all of them out of one network."""

    context_dim: int
    conditioner: Network | type | None
    num_outputs: int

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        checks.non_negative_int(owner, context_dim=self.context_dim)
        checks.no_conditioner(owner, self.conditioner, self.context_dim)
        if self.context_dim:
            object.__setattr__(self, "conditioner", as_network(owner, self.conditioner, MLP))
            _ = self.network

    @cached_property
    def network(self) -> nn.Module:
        """The conditioner, where there is a context."""
        owner = type(self).__name__
        conditioner = as_network(owner, self.conditioner, MLP)
        network = build_conditioner(owner, conditioner, self.context_dim, self.num_outputs, 1, 0)
        checks.same_in_training(owner, conditioner.cls.__name__, acts_in_training(network))
        return network

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        if not self.context_dim:
            return self._init_own(key, dtype)
        inputs = jnp.zeros(self.context_dim, dtype)
        return gather({"network": init_conditioner(self, key, inputs, 0, dtype)})

    def variable_shapes(self, dtype: Any) -> Variables:
        known = conditioner_shapes(self, dtype) if self.context_dim else None
        return known or super().variable_shapes(dtype)

    @abstractmethod
    def _init_own(self, key: Array, dtype: Any) -> Variables:
        """Fresh parameters that are weights."""


@register
@dataclass(frozen=True)
class StandardNormal(Distribution):
    """log p(z) = -|z|^2 / 2 - d log(2 pi) / 2.

    Args:
        dim: number of dimensions, or an event shape.
    """

    dim: int | Sequence[int]

    def log_density(self, variables: Variables, z: Array, context: Array | None) -> Array:
        event_ndim = len(self.event_shape)
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        return -sum_event(jnp.square(z), event_ndim) / 2 - constant

    def map_noise(self, variables: Variables, noise: Array, context: Array | None) -> Array:
        return noise


@register
@dataclass(frozen=True)
class DiagonalNormal(_OfContext):
    """Independent normals: z = loc + exp(log_scale) * noise.

    ``loc`` and ``log_scale`` are weights of their own, which start at zero, or come from the context.

    Args:
        dim: number of dimensions, or an event shape.
        context_dim: width of the context, 0 for none.
        conditioner: with a context, the network from it to loc and log_scale, ``Network(CLASS, ...)``
            or a class; ``MLP`` if not given.

    Raises:
        ValueError: for a conditioner without a context.

    Examples:
        >>> import jax, jax_flows
        >>> base, context = jax_flows.DiagonalNormal(2, context_dim=3), jax.numpy.zeros(3)
        >>> variables = base.init(jax.random.key(0))
        >>> z = base.sample(variables, jax.random.key(1), (5,), context=context)
        >>> z.shape, base.log_prob(variables, z, context).shape
        ((5, 2), (5,))
    """

    dim: int | Sequence[int]
    context_dim: int = 0
    conditioner: Network | type | None = None

    @property
    def num_outputs(self) -> int:  # type: ignore[override]
        return 2 * math.prod(self.event_shape)

    def _init_own(self, key: Array, dtype: Any) -> Variables:
        zeros = jnp.zeros(self.event_shape, dtype)
        return {"params": {"loc": zeros, "log_scale": zeros}}

    def log_density(self, variables: Variables, z: Array, context: Array | None) -> Array:
        event_ndim = len(self.event_shape)
        loc, log_scale = self._parameters_for(variables, context)
        standard = (z - loc) * jnp.exp(-log_scale)
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        return (
            -sum_event(jnp.square(standard), event_ndim) / 2
            - sum_event(log_scale, event_ndim)
            - constant
        )

    def map_noise(self, variables: Variables, noise: Array, context: Array | None) -> Array:
        loc, log_scale = self._parameters_for(variables, context)
        return loc + jnp.exp(log_scale) * noise

    def _parameters_for(self, variables: Variables, context: Array | None) -> tuple[Array, Array]:
        if context is None:
            return variables["params"]["loc"], variables["params"]["log_scale"]
        parameters = run_conditioner(self, variables, context, None)
        parameters = parameters.reshape(*context.shape[:-1], *self.event_shape, 2)
        return parameters[..., 0], parameters[..., 1]


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

    @property
    def support(self) -> Interval:  # type: ignore[override]
        return ClosedInterval(self.low, self.high)

    def log_density(self, variables: Variables, z: Array, context: Array | None) -> Array:
        axes = tuple(range(-len(self.event_shape), 0))
        check_constants(self, z, low=self.low, high=self.high, width=self.high - self.low)
        inside = ((z >= self.low) & (z <= self.high)).all(axes)
        density = jnp.asarray(
            -math.prod(self.event_shape) * math.log(self.high - self.low), z.dtype
        )
        log_prob = jnp.where(inside, density, -math.inf)
        return jnp.where(jnp.isnan(z).any(axes), math.nan, log_prob)

    def map_noise(self, variables: Variables, noise: Array, context: Array | None) -> Array:
        check_constants(self, noise, low=self.low, high=self.high, width=self.high - self.low)
        return self.low + (self.high - self.low) * noise


@register
@dataclass(frozen=True)
class GaussianMixture(_OfContext):
    """sum_k pi_k N(z; loc_k, diag(exp(log_scale_k))^2), with pi = softmax(logits).

    The parameters are weights of their own, or come from the context: a mixture density network.

    A sample takes one noise entry more than it has entries: the first one's normal quantile picks the
    component, the others are the component's noise. The pick has no derivative, so gradients through
    samples reach ``loc`` and ``log_scale`` but not ``logits``; those of ``log_prob`` reach all three.

    Args:
        dim: number of dimensions, or an event shape.
        num_components: number of normals.
        context_dim: width of the context, 0 for none.
        conditioner: with a context, the network from it to the parameters, ``Network(CLASS, ...)`` or
            a class; ``MLP`` if not given.

    Raises:
        ValueError: for a conditioner without a context.

    Reference: Bishop (1994), Mixture Density Networks.
    """

    reparameterized = False

    dim: int | Sequence[int]
    num_components: int
    context_dim: int = 0
    conditioner: Network | type | None = None

    def __post_init__(self) -> None:
        _ = self.event_shape
        checks.positive_int("GaussianMixture", num_components=self.num_components)
        super().__post_init__()

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (math.prod(self.event_shape) + 1,)

    @property
    def num_outputs(self) -> int:  # type: ignore[override]
        return self.num_components * (1 + 2 * math.prod(self.event_shape))

    def _init_own(self, key: Array, dtype: Any) -> Variables:
        shape = (self.num_components, *self.event_shape)
        return {
            "params": {
                "logits": jnp.zeros(self.num_components, dtype),
                "loc": jax.random.normal(key, shape, dtype),
                "log_scale": jnp.zeros(shape, dtype),
            }
        }

    def log_density(self, variables: Variables, z: Array, context: Array | None) -> Array:
        event_ndim = len(self.event_shape)
        logits, loc, log_scale = self._parameters_for(variables, context)
        standard = (jnp.expand_dims(z, -event_ndim - 1) - loc) * jnp.exp(-log_scale)
        log_prob = -sum_event(jnp.square(standard) / 2 + log_scale, event_ndim)
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        return jax.nn.logsumexp(log_prob + jax.nn.log_softmax(logits), -1) - constant

    def map_noise(self, variables: Variables, noise: Array, context: Array | None) -> Array:
        logits, loc, log_scale = self._parameters_for(variables, context)
        ends = jnp.cumsum(jax.nn.softmax(at_least_float32(logits)), -1)[..., :-1]
        component = (jax.scipy.special.ndtr(at_least_float32(noise[..., :1])) >= ends).sum(-1)
        normal = noise[..., 1:].reshape(*noise.shape[:-1], *self.event_shape)
        return self._pick(loc, component) + jnp.exp(self._pick(log_scale, component)) * normal

    def _parameters_for(
        self, variables: Variables, context: Array | None
    ) -> tuple[Array, Array, Array]:
        """Logits ``(*batch, num_components)``, and the others ``(*batch, num_components, *event_shape)``."""
        if context is None:
            params = variables["params"]
            return params["logits"], params["loc"], params["log_scale"]
        parameters = run_conditioner(self, variables, context, None)
        size = 1 + 2 * math.prod(self.event_shape)
        parameters = parameters.reshape(*context.shape[:-1], self.num_components, size)
        normals = parameters[..., 1:].reshape(*parameters.shape[:-1], *self.event_shape, 2)
        return parameters[..., 0], normals[..., 0], normals[..., 1]

    def _pick(self, values: Array, component: Array) -> Array:
        """One component's values in each row."""
        if not self.context_dim:
            return values[component]
        axis = -len(self.event_shape) - 1
        index = component.reshape(*component.shape, *[1] * -axis)
        return jnp.take_along_axis(values, index, axis).squeeze(axis)


@register
@dataclass(frozen=True)
class StudentT(Distribution):
    """Independent Student t per dimension: log p(z) = sum -(df + 1) / 2 log(1 + z^2 / df) + constant.

    A sample takes two uniforms u, v per entry: z = sqrt(df (u^(-2 / df) - 1)) cos(2 pi v).

    Args:
        dim: number of dimensions, or an event shape.
        df: degrees of freedom, above 0; 1 is the Cauchy distribution.
        learned: whether each dimension has its own, df exp(7 tanh(r / 7)) with a weight r that starts
            at 0, so that df is to be from 1 to 1000.

    Raises:
        ValueError: for numbers out of range.

    Reference: Bailey (1994), doi:10.1090/S0025-5718-1994-1219702-3, for the sampling; Laszkiewicz et al.
    (2022), marginal tail-adaptive flows, arXiv:2206.10311, for tails of each dimension.
    """

    noise = "uniform"

    dim: int | Sequence[int]
    df: float
    learned: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.degrees_of_freedom("StudentT", self.df, self.learned)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (2, *self.event_shape)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        return {"params": {"raw_df": jnp.zeros(self.event_shape, dtype)}} if self.learned else {}

    def log_density(self, variables: Variables, z: Array, context: Array | None) -> Array:
        df, event_ndim = self._df(variables), len(self.event_shape)
        root = jnp.sqrt(df) if isinstance(df, Array) else math.sqrt(df)
        x = z / root
        far = jnp.abs(x) > 1
        square, far_x = jnp.square(jnp.where(far, 0, x)), jnp.where(far, x, 1)
        log_x = jnp.log(jnp.abs(far_x))
        if isinstance(df, Array):
            log_x = jnp.log(jnp.abs(jnp.where(far, z, root))) - jnp.log(df) / 2
        elif df < 1:  # x may overflow
            log_x = jnp.log(jnp.abs(jnp.where(far, z, root))) - math.log(df) / 2
        share = (df + 1) / df / 2 * _ratio(jnp.log1p, square)
        falloff = jnp.where(
            far,
            (df + 1) * (log_x + jnp.log1p(jnp.square(1 / far_x)) / 2),
            jnp.square(jnp.where(far, 0, z)) * share,
        )
        if isinstance(df, Array):
            return sum_event(_student_t_constant(df) - falloff, event_ndim)
        constant = math.prod(self.event_shape) * student_t_constant(df)
        return constant - sum_event(falloff, event_ndim)

    def map_noise(self, variables: Variables, noise: Array, context: Array | None) -> Array:
        u, v = jnp.moveaxis(noise, -len(self.event_shape) - 1, 0)
        energy = -jnp.log1p(-u)
        exponent = energy / self._df(variables)
        # radius^2 = df (e^(2 exponent) - 1); beyond its dtype, the largest number of that
        largest = float(jnp.finfo(noise.dtype).max)
        growth = jnp.exp(jnp.minimum(exponent, math.log(largest)))
        share = _ratio(lambda x: -jnp.expm1(-x), 2 * exponent)
        radius = jnp.minimum(growth * jnp.sqrt(2 * energy * share), largest)
        return radius * jnp.cos(2 * math.pi * v)

    def _df(self, variables: Variables) -> float | Array:
        if not self.learned:
            return self.df
        return self.df * jnp.exp(FREEDOM * jnp.tanh(variables["params"]["raw_df"] / FREEDOM))


FREEDOM = 7.0
"""Of the logarithm of learned degrees of freedom."""


def _student_t_constant(df: Array) -> Array:
    """``student_t_constant`` of an array."""
    x = df / 2
    y = x + GAMMA_STEPS
    series = sum(c / y ** (2 * k + 1) for k, c in enumerate(GAMMA_SERIES))
    logs = sum(jnp.log1p(0.5 / (x + k)) for k in range(GAMMA_STEPS))
    return jnp.log1p(GAMMA_STEPS / x) / 2 - math.log(2 * math.pi) / 2 + series - logs


@register
@dataclass(frozen=True)
class VonMises(Distribution):
    """Independent von Mises densities: log p(z) = sum_i k (cos t_i - 1) + constant, t_i the angle of z_i
    from ``loc``; -inf outside [low, high], whose ends are one point of a circle.

    The uniform density on the circle is ``Uniform``. A sample inverts the distribution function at
    one uniform number per entry.

    Args:
        dim: number of dimensions, or an event shape.
        concentration: k, between 0 and 1000.
        loc: the mode, in [low, high].
        low, high: the interval that stands for the circle.

    Raises:
        ValueError: for numbers out of range.

    Examples:
        >>> import jax.numpy as jnp, jax_flows
        >>> base = jax_flows.VonMises(1, concentration=4.0)
        >>> z = jnp.linspace(-jnp.pi, jnp.pi, 65)[1:, None]
        >>> round(float(jnp.exp(base.log_prob({}, z)).mean() * 2 * jnp.pi), 5)
        1.0
    """

    noise = "uniform"

    dim: int | Sequence[int]
    concentration: float = 1.0
    loc: float = 0.0
    low: float = -math.pi
    high: float = math.pi

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.open_interval("VonMises", "concentration", self.concentration, 0, 1000)
        checks.interval("VonMises", low=self.low, high=self.high)
        checks.mode_inside("VonMises", self.loc, self.low, self.high)

    @property
    def support(self) -> Interval:  # type: ignore[override]
        return ClosedInterval(self.low, self.high)

    def log_density(self, variables: Variables, z: Array, context: Array | None) -> Array:
        low, high = self.low, self.high
        check_constants(self, z, low=low, high=high, width=high - low)
        outside = (z < low) | (z > high)
        half = (jnp.where(outside, low, z) - self.loc) * (math.pi / (high - low))
        constant = von_mises_series(self.concentration)[0] + math.log((high - low) / (2 * math.pi))
        log_prob = -2 * self.concentration * jnp.square(jnp.sin(half)) - constant
        return sum_event(jnp.where(outside, -math.inf, log_prob), len(self.event_shape))

    def map_noise(self, variables: Variables, noise: Array, context: Array | None) -> Array:
        low, high = self.low, self.high
        check_constants(self, noise, low=low, high=high, width=high - low)
        goal = (at_least_float32(noise) - 0.5) * (2 * math.pi)
        ends = jnp.full_like(goal, math.pi)
        angle = invert(self._turned, goal, (), -ends, ends)[0]
        z = self.loc + angle * ((high - low) / (2 * math.pi))
        return wrapped(z, low, high).astype(noise.dtype)

    def _turned(self, angle: Array) -> tuple[Array, Array]:
        """2 pi times the distribution function less 1/2 at an angle from the mode, and its log slope."""
        constant, listed = von_mises_series(self.concentration)
        ratios = jnp.asarray(listed, angle.dtype)
        index = jnp.arange(1, len(listed) + 1, dtype=angle.dtype)
        waves = jnp.sin(angle[..., None] * index)
        log_slope = math.log(2 * math.pi) - constant
        falloff = 2 * self.concentration * jnp.square(jnp.sin(angle / 2))
        return angle + 2 * (waves * (ratios / index)).sum(-1), log_slope - falloff


@register
@dataclass(frozen=True)
class Product(Distribution):
    """One distribution for these entries of a vector, another for those, independent of each other.

    The base of a flow of mixed spaces: normal, uniform on an interval, von Mises on a circle. Where some
    take normal noise and others uniform noise, it takes normal noise, whose distribution function the
    latter get.

    Args:
        distributions: of vectors; those with a ``context_dim`` share it.
        columns: for each the positions of its entries; every position once.

    Raises:
        ValueError: for columns that do not hold every position once, and for a distribution of another
            shape.

    Examples:
        >>> import jax, jax_flows
        >>> parts = [jax_flows.StandardNormal(2), jax_flows.VonMises(1)]
        >>> base = jax_flows.Product(parts, [[0, 2], [1]])
        >>> base.sample({}, jax.random.key(0), 5).shape
        (5, 3)
    """

    distributions: Sequence[Distribution]
    columns: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        checks.instances("Product", "distributions", self.distributions, Distribution)
        object.__setattr__(self, "distributions", tuple(self.distributions))
        object.__setattr__(self, "columns", tuple(tuple(block) for block in self.columns))
        super().__post_init__()
        _ = self.context_dim

    @cached_property
    def order(self) -> np.ndarray:
        """Where each entry stands when the blocks come one after the other."""
        shapes = [(d.event_shape, d.event_shape) for d in self.distributions]
        return checks.block_order("Product", self.columns, shapes, "distributions")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (len(self.order),)

    @property
    def noise(self) -> str:  # type: ignore[override]
        kinds = {d.noise for d in self.distributions}
        return kinds.pop() if len(kinds) == 1 else "normal"

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many entries of noise each takes."""
        return tuple(math.prod(d.noise_shape) for d in self.distributions)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (sum(self.sizes),)

    @property
    def reparameterized(self) -> bool:  # type: ignore[override]
        return all(d.reparameterized for d in self.distributions)

    @cached_property
    def context_dim(self) -> int:  # type: ignore[override]
        return checks.common_context_dim("Product", [d.context_dim for d in self.distributions])

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        keys = jax.random.split(key, len(self.distributions))
        pairs = enumerate(zip(self.distributions, keys, strict=True))
        return gather(
            {f"distributions_{i}": d.init_variables(k, dtype) for i, (d, k) in pairs}, lists=True
        )

    def intervals(self) -> list[Interval]:
        return placed(self.columns, [d.intervals() for d in self.distributions])

    def log_density(self, variables: Variables, z: Array, context: Array | None) -> Array:
        parts = [
            d.log_density(
                child(variables, f"distributions_{i}"),
                z[..., np.array(self.columns[i])],
                context if d.context_dim else None,
            )
            for i, d in enumerate(self.distributions)
        ]
        return jnp.stack(parts).sum(0)

    def map_noise(self, variables: Variables, noise: Array, context: Array | None) -> Array:
        parts, ends = [], np.cumsum(self.sizes)[:-1]
        for i, (d, part) in enumerate(
            zip(self.distributions, jnp.split(noise, ends, -1), strict=True)
        ):
            part = part.reshape(*noise.shape[:-1], *d.noise_shape)
            part = part if d.noise == self.noise else uniform_of(part)
            own = child(variables, f"distributions_{i}")
            parts.append(d.map_noise(own, part, context if d.context_dim else None))
        return jnp.concatenate(parts, -1)[..., self.order]


def uniform_of(normal: Array) -> Array:
    """Uniform noise in [0, 1) from normal noise."""
    largest = 1 - float(jnp.finfo(normal.dtype).eps) / 2
    share = jax.scipy.special.ndtr(at_least_float32(normal)).astype(normal.dtype)
    return jnp.clip(share, 0, largest)


def _ratio(function: Callable[[Array], Array], x: Array) -> Array:
    """function(x) / x for x >= 0, where the function starts as the identity."""
    apart = x > jnp.finfo(x.dtype).eps
    safe = jnp.where(apart, x, 1)
    return jnp.where(apart, function(safe) / safe, 1)
