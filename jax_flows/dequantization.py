"""Flows of whole numbers: noise that a second flow learns, and bounds of their probabilities."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.dequantization import noise_shape_of
from flow_bridge.sources import base_noise
from jax_flows.flows import Flow
from jax_flows.images import dequantize, quantize
from jax_flows.inputs import check_array, check_input, to_jax
from jax_flows.losses import Loss
from jax_flows.registry import register
from jax_flows.variables import (
    AnyArray,
    HasVariables,
    Variables,
    check_key,
    check_variables,
    child,
    freeze_lists,
    gather,
    joined,
    kept,
)


@register
@dataclass(frozen=True)
class Dequantized(HasVariables):
    """Whole numbers x whose probability P(x) is the integral of a flow's density over the cell [x, x + 1).

    ``sample`` draws from P. There is no ``log_prob``: the integral is not known but by bounds, with noise
    u_k on (0, 1) from a second flow q, its context x and then the context of the first,

        log mean_k p(x + u_k) / q(u_k | x),  k of num_draws,

    whose mean lies below log P(x) and rises to it with the number of draws. ``fit`` trains both flows by
    it, unless told otherwise with ``DequantizationBound(1)``; ``save``, ``load`` and conversion keep both.
    Noise that is uniform where it starts, as that of a bounded ``SplineMap`` is, can only get better.

    Args:
        flow: the flow p of x + u.
        noise: the flow q, of the shape of u, on (0, 1); uniform noise if not given. Its ``context_dim`` is
            the number of entries of x plus that of the flow's context.
        num_levels: x is one of 0, 1, ..., num_levels - 1, as grey levels of images are, and p, like the
            context of q, has x / num_levels and u / num_levels in place of x and u, see ``dequantize``. The
            end cells get what p has beyond them. If not given, x may be any whole number.
        integers: the positions of whole numbers in a vector, all of them if not given. Noise is for these
            alone, and P(x) a density in the others. Categories are whole numbers here.

    Raises:
        ValueError: for parts that do not fit together, and with batch statistics.

    Reference: Ho et al. (2019), Flow++, arXiv:1902.00275; Burda et al. (2016), arXiv:1509.00519, for
    several draws.

    Examples:
        >>> import jax, jax_flows
        >>> map = jax_flows.SplineMap(num_bins=4, low=0.0, high=1.0, boundary="bounded")
        >>> noise = jax_flows.Flow(jax_flows.Elementwise(2, map, 2), jax_flows.Uniform(2))
        >>> model = jax_flows.Dequantized(jax_flows.MAF(dim=2, num_layers=2), noise)
        >>> variables, key = model.init(jax.random.key(0)), jax.random.key(1)
        >>> model.log_prob_bound(variables, key, jax.numpy.zeros((5, 2)), num_draws=3).shape
        (5,)
    """

    flow: Flow
    noise: Flow | None = None
    num_levels: int | None = None
    integers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        checks.instances("Dequantized", "flow", [self.flow], Flow)
        checks.instances("Dequantized", "noise", [] if self.noise is None else [self.noise], Flow)
        freeze_lists(self)
        noise_shape_of(self.flow, self.noise, self.num_levels, self.integers)

    has_batch_statistics = False

    @property
    def event_shape(self) -> tuple[int | None, ...]:
        return self.flow.event_shape

    @property
    def context_dim(self) -> int:
        return self.flow.context_dim

    @property
    def u_shape(self) -> tuple[int, ...]:
        return noise_shape_of(self.flow, None, self.num_levels, self.integers)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of one event of what ``bound_from_noise`` takes."""
        return self.u_shape if self.noise is None else self.noise.base.noise_shape

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        parts = self._modules()
        keys = jax.random.split(key, len(parts))
        return gather(
            {
                name: part.init_variables(own, dtype)
                for (name, part), own in zip(parts.items(), keys, strict=True)
            }
        )

    def variable_shapes(self, dtype: Any) -> Variables:
        return gather({n: part.variable_shapes(dtype) for n, part in self._modules().items()})

    @kept
    def log_prob_bound(
        self,
        variables: Variables,
        key: Array,
        x: AnyArray,
        context: AnyArray | None = None,
        num_draws: int = 1,
    ) -> Array:
        """A draw of the bound of log P(x) in nats, shape ``(*batch,)``; -inf for what is no whole number.

        ``bits_per_dimension`` of it (``num_levels`` 1 there, the cells are counted already) bounds the bits
        from above.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            key: the source of randomness.
            x: shape ``(*batch, *event_shape)``, floating point, of the weights' dtype.
            context: shape ``(*batch, context_dim)`` or broadcastable to it.
            num_draws: of the noise, each with a density of its own.

        Raises:
            ValueError: for a wrong shape, and for a context that is missing or unexpected.
            TypeError: for a wrong dtype.
        """
        checks.positive_int("Dequantized", num_draws=num_draws)
        check_key(self, key)
        x, context = check_input(self, variables, "x", x, context)
        x, outside = self._inside(x)
        if self.noise is None:
            u = jax.random.uniform(key, (num_draws, *outside.shape, *self.u_shape), x.dtype)
            return self._bound(variables, x, u, None, context, outside)[0]
        given = self._noise_context(x, context)
        own = child(variables, "noise")
        u, log_q = self.noise.sample_and_log_prob(own, key, num_draws, given)
        return self._bound(variables, x, u, log_q, context, outside)[0]

    @kept
    def bound_from_noise(
        self, variables: Variables, x: AnyArray, noise: AnyArray, context: AnyArray | None = None
    ) -> Array:
        """``log_prob_bound`` from given noise of q's base, or uniform noise where there is no q.

        Its shape is ``(num_draws, *batch, *noise_shape)``. Other arguments and errors as there.
        """
        return self._from_noise(variables, x, noise, context)[0]

    def bound_and_update(
        self, variables: Variables, x: AnyArray, noise: AnyArray, context: AnyArray | None = None
    ) -> tuple[Array, Variables]:
        """``bound_from_noise`` in training mode: (the bound, the new ``batch_stats``)."""
        bound, stats = self._from_noise(variables, x, noise, context, in_training=True)
        parts = self._parts(variables) | {"flow": {"batch_stats": stats}}
        return bound, gather(parts)["batch_stats"]

    @kept
    def sample(
        self,
        variables: Variables,
        key: Array,
        num_samples: int | Sequence[int] = (),
        context: AnyArray | None = None,
    ) -> Array:
        """Whole numbers from P, exactly: the cells of samples of the flow. Arguments as ``Flow.sample``."""
        check_variables(self, variables)
        x = self.flow.sample(child(variables, "flow"), key, num_samples, context)
        if self.num_levels is not None:
            return quantize(x, self.num_levels)
        if self.integers is None:
            return jnp.floor(x)
        return jnp.where(self._whole(), jnp.floor(x), x)

    def _inside(self, x: Array) -> tuple[Array, Array]:
        """x, with 0 in the entries that have no probability, and which events have such entries."""
        whole = (x == jnp.floor(x)) & (jnp.abs(x) < math.inf)
        if self.num_levels is not None:
            whole = whole & (x >= 0) & (x < self.num_levels)
        if self.integers is not None:
            whole = whole | ~self._whole()
        wrong = ~(whole | jnp.isnan(x))
        return jnp.where(wrong, 0, x), wrong.any(tuple(range(-len(self.event_shape), 0)))

    def _whole(self) -> np.ndarray:
        """Which columns are whole numbers."""
        integers = self.integers or ()
        return np.array([i in integers for i in range(checks.known(self.event_shape[0]))])

    def _noise_context(self, x: Array, context: Array | None) -> Array:
        flat = x.reshape(*x.shape[: x.ndim - len(self.event_shape)], -1)
        if self.num_levels is not None:
            flat = flat / self.num_levels
        return flat if context is None else jnp.concatenate([flat, context], -1)

    def _from_noise(
        self,
        variables: Variables,
        x: AnyArray,
        noise: AnyArray,
        context: AnyArray | None,
        in_training: bool = False,
    ) -> tuple[Array, Variables]:
        x, context = check_input(self, variables, "x", x, context)
        check_array(self, variables, "noise", noise, self.noise_shape)
        x, outside = self._inside(x)
        if self.noise is None:
            return self._bound(variables, x, to_jax(noise), None, context, outside, in_training)
        given = self._noise_context(x, context)
        u, log_q = self.noise.from_noise(child(variables, "noise"), noise, given)
        return self._bound(variables, x, u, log_q, context, outside, in_training)

    def _bound(
        self,
        variables: Variables,
        x: Array,
        u: Array,
        log_q: Array | None,
        context: Array | None,
        outside: Array,
        in_training: bool = False,
    ) -> tuple[Array, Variables]:
        if self.integers is not None:
            # column i of x gets what stands at its place, the others 0
            places = [
                self.integers.index(i) if i in self.integers else len(self.integers)
                for i in range(x.shape[-1])
            ]
            u = jnp.concatenate([u, jnp.zeros_like(u[..., :1])], -1)[..., np.array(places)]
        y = x + u if self.num_levels is None else dequantize(x, self.num_levels, u)
        own = child(variables, "flow")
        if in_training:
            log_ratio, stats = self.flow.log_prob_and_update(own, y, context)
        else:
            log_ratio, stats = self.flow.log_prob(own, y, context), own["batch_stats"]
        if self.num_levels is not None:
            log_ratio = log_ratio - math.prod(self.u_shape) * math.log(self.num_levels)
        if log_q is not None:
            log_ratio = log_ratio - log_q
        one = len(u) == 1
        bound = log_ratio[0] if one else jax.nn.logsumexp(log_ratio, 0) - math.log(len(u))
        return jnp.where(outside, -math.inf, bound), stats

    def split(self, variables: Variables) -> dict[str, Variables]:
        """The variables of each part, by its name: ``"flow"`` and ``"noise"``."""
        check_variables(self, variables)
        return self._parts(variables)

    def join(self, parts: Mapping[str, Variables]) -> dict[str, Any]:
        """The variables from those of the parts, as ``split`` returns them."""
        return joined(self, parts, list(self._modules()))

    def _modules(self) -> dict[str, Flow]:
        return {"flow": self.flow} | ({} if self.noise is None else {"noise": self.noise})

    def _parts(self, variables: Variables) -> dict[str, Variables]:
        return {name: child(variables, name) for name in self._modules()}


@dataclass(frozen=True)
class DequantizationBound(Loss):
    """-``Dequantized.log_prob_bound`` with noise that is new in every step: both flows learn.

    With several draws the bound is tighter, and a row costs as many densities.

    Args:
        num_draws: of the noise of each row.

    Raises:
        ValueError: for another number; in ``fit``, for noise whose samples have no gradients.

    Reference: Ho et al. (2019), Flow++, arXiv:1902.00275.
    """

    models = Dequantized
    num_draws: int = 1

    def __post_init__(self) -> None:
        checks.positive_int("DequantizationBound", num_draws=self.num_draws)

    def check(self, flow: Any) -> None:
        if flow.noise is not None:
            base = flow.noise.base
            checks.reparameterized("DequantizationBound", type(base).__name__, base.reparameterized)

    def draw(
        self, flow: Any, generator: np.random.Generator, num_rows: int
    ) -> tuple[np.ndarray, ...]:
        kind = "uniform" if flow.noise is None else flow.noise.base.noise
        return (base_noise(generator, kind, (num_rows, self.num_draws, *flow.noise_shape)),)

    def __call__(
        self,
        flow: Any,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> Array:
        return -flow.bound_from_noise(variables, x, jnp.moveaxis(noise[0], 1, 0), context)

    def call_and_update(
        self,
        flow: Any,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> tuple[Array, Variables]:
        moved = jnp.moveaxis(noise[0], 1, 0)
        bound, batch_stats = flow.bound_and_update(variables, x, moved, context)
        return -bound, batch_stats
