"""A flow is a bijector and a base distribution."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.domains import REALS, Interval
from flow_bridge.standardization import context_location_and_scale, location_and_scale
from flow_bridge.training import check_callable
from flow_bridge.weights import jax_to_torch, torch_to_jax
from jax_flows import interop
from jax_flows.bijectors.base import Bijector, initialize
from jax_flows.bijectors.normalization import Standardize
from jax_flows.bijectors.structure import Chain
from jax_flows.distributions import Distribution
from jax_flows.inputs import check_array, check_input, context_batch, to_jax
from jax_flows.networks.regularization import Updates, has_batch_statistics, run_network
from jax_flows.numerics import beyond, moved_inside
from jax_flows.registry import register
from jax_flows.variables import (
    AnyArray,
    HasVariables,
    Output,
    Variables,
    check_key,
    check_variables,
    child,
    freeze_lists,
    gather,
    joined,
    kept,
    network_shapes,
    weight_dtype,
)


@register
@dataclass(frozen=True)
class Flow(HasVariables):
    """The density of x whose latent z = bijector(x) has the base density.

    log p(x) = log p_base(z) + log|det dz/dx|. A context goes to those of the two that take one.

    Args:
        bijector: maps data to latent.
        base: the distribution of the latent.
        context_net: what the context passes through first, trained, saved and converted with the flow:
            a registered network that keeps its widths as ``in_dim`` and ``out_dim``, a bijector of
            vectors (its log-det does not count), or a list of them. ``context_dim`` is then its input's.
        columns: names of the entries of x, where these are the columns of a table.
        context_columns: names of the entries of the context.

    Raises:
        ValueError: if the latent and the base are of different event shapes, if the context network
            makes another width than they take, for a base that reaches beyond what the bijector makes, and
            for names that are not one for each entry.

    Examples:
        >>> import jax, jax_flows
        >>> flow = jax_flows.Flow(jax_flows.Planar(2), jax_flows.StandardNormal(2))
        >>> variables = flow.init(jax.random.key(0))
        >>> jax.jit(flow.log_prob)(variables, jax.numpy.zeros((5, 2))).shape
        (5,)
        >>> sample = jax.jit(flow.sample_and_log_prob, static_argnums=2)
        >>> x, log_prob = sample(variables, jax.random.key(1), (3, 4))
        >>> x.shape, log_prob.shape
        ((3, 4, 2), (3, 4))
    """

    bijector: Bijector
    base: Distribution
    context_net: Any | Sequence[Any] | None = None
    columns: Sequence[str] | None = None
    context_columns: Sequence[str] | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        checks.instances(name, "bijector", [self.bijector], Bijector)
        checks.instances(name, "base", [self.base], Distribution)
        checks.onto_base(name, self.bijector, self.base)
        freeze_lists(self)
        object.__setattr__(self, "context_net", tuple(list_of_nets(self.context_net)) or None)
        checks.column_names(name, "columns", self.columns, self.event_shape[0])
        checks.column_names(name, "context_columns", self.context_columns, self.context_dim)

    @property
    def latent_shape(self) -> tuple[int | None, ...]:
        return checks.common_event_shape(
            type(self).__name__, [self.bijector.latent_shape, self.base.event_shape]
        )

    @property
    def event_shape(self) -> tuple[int | None, ...]:
        return self.bijector.map_shape(self.latent_shape, inverse=True)

    @property
    def context_dim(self) -> int:
        name = type(self).__name__
        widths = [net_widths(name, net) for net in list_of_nets(self.context_net)]
        taken = checks.common_context_dim(name, [self.bijector.context_dim, self.base.context_dim])
        return checks.context_width(name, widths, taken)

    @property
    def has_batch_statistics(self) -> bool:
        """Whether training mode normalises with statistics of the batch, see ``set_statistics``."""
        shapes = self.variable_shapes(jnp.dtype("float32")).get("batch_stats", {})
        nets = [tree for name, tree in shapes.items() if name.startswith("context_net")]
        return self.bijector.has_batch_statistics or any(map(has_batch_statistics, nets))

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        nets = list_of_nets(self.context_net)
        bijector_key, base_key, *net_keys = jax.random.split(key, 2 + len(nets))
        parts = {
            "bijector": self.bijector.init_variables(bijector_key, dtype),
            "base": self.base.init_variables(base_key, dtype),
        }
        for i, (net, net_key) in enumerate(zip(nets, net_keys, strict=True)):
            parts[f"context_net_{i}"] = (
                net.init_variables(net_key, dtype)
                if isinstance(net, Bijector)
                else net.init(net_key, jnp.zeros(net.in_dim, dtype))
            )
        return gather(parts, lists=True)

    def variable_shapes(self, dtype: Any) -> Variables:
        parts = {
            "bijector": self.bijector.variable_shapes(dtype),
            "base": self.base.variable_shapes(dtype),
        }
        for i, net in enumerate(list_of_nets(self.context_net)):
            parts[f"context_net_{i}"] = (
                net.variable_shapes(dtype)
                if isinstance(net, Bijector)
                else network_shapes(net, (net.in_dim,), dtype)
            )
        return gather(parts, lists=True)

    @kept
    def forward(self, variables: Variables, x: AnyArray, context: AnyArray | None = None) -> Output:
        """Data to latent.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            x: shape ``(*batch, *event_shape)``, floating point, of the weights' dtype.
            context: shape ``(*batch, context_dim)`` or broadcastable to it.

        Returns:
            z of shape ``(*batch, *latent_shape)`` and log|det dz/dx| of shape ``(*batch,)``.

        Raises:
            ValueError: for a wrong shape, and for a context that is missing or unexpected.
            TypeError: for a wrong dtype.
        """
        x, condition, _ = self._condition(variables, "x", x, context)
        return self.bijector.map_forward(child(variables, "bijector"), x, condition)

    @kept
    def inverse(self, variables: Variables, z: AnyArray, context: AnyArray | None = None) -> Output:
        """Latent to data: x and log|det dx/dz| for z. Arguments and errors as ``forward``."""
        z, condition, _ = self._condition(variables, "z", z, context)
        return self.bijector.map_inverse(child(variables, "bijector"), z, condition)

    @kept
    def forward_and_update(
        self, variables: Variables, x: AnyArray, context: AnyArray | None = None
    ) -> tuple[Array, Array, Variables]:
        """``forward`` in training mode: (z, log_det, the new ``batch_stats``)."""
        updates = Updates()
        x, condition, _ = self._condition(variables, "x", x, context, updates)
        return self._forward_and_update(variables, x, condition, updates)

    @kept
    def steps(
        self,
        variables: Variables,
        x: AnyArray,
        context: AnyArray | None = None,
        inverse: bool = False,
    ) -> list[Output]:
        """Every intermediate value and the log-det of its step, see ``Bijector.steps``."""
        x, condition, _ = self._condition(variables, "z" if inverse else "x", x, context)
        return self.bijector.map_steps(child(variables, "bijector"), x, condition, inverse)

    def initialize(
        self, variables: Variables, x: AnyArray, context: AnyArray | None = None
    ) -> dict[str, Any]:
        """New variables, with what is initialised from data set, see ``Bijector.initialize``."""
        own = child(variables, "bijector")
        own = initialize(self, self.bijector, variables, own, x, context, self.embed)
        return {**variables, **gather(self._parts(variables) | {"bijector": own}, lists=True)}

    @kept
    def embed(self, variables: Variables, context: AnyArray) -> Array:
        """What bijector and base take of a context ``(*batch, context_dim)``: what ``context_net`` makes."""
        return self._through_nets(variables, context)

    def set_statistics(
        self,
        variables: Variables,
        x: AnyArray,
        context: AnyArray | None = None,
        weights: Array | None = None,
    ) -> dict[str, Any]:
        """New variables, with the batch statistics of evaluation set, see ``Bijector.set_statistics``."""
        x, expanded = check_input(self, variables, "x", x, context)
        updates = Updates()
        updates.weights = jnp.ones(()) if weights is None else weights
        batch = x.shape[: x.ndim - len(self.event_shape)]
        condition, _ = self._embed(variables, expanded, batch, updates)
        own = child(variables, "bijector")
        _, batch_stats = self.bijector.map_and_set_statistics(own, x, condition, weights)
        updates["bijector"] = batch_stats
        return {**variables, "batch_stats": self._updated(variables, updates)}

    @kept
    def log_prob(self, variables: Variables, x: AnyArray, context: AnyArray | None = None) -> Array:
        """The log-density in nats, shape ``(*batch,)``. Arguments and errors as ``forward``.

        Outside the domain of the bijector and at its open ends (at infinity too) it is -inf; a row of
        x with a NaN gives NaN in that row only.
        """
        x, condition, base_condition = self._condition(variables, "x", x, context)
        own = child(variables, "bijector")
        outside = self.bijector.outside(own, x, condition)
        z, log_det = self.bijector.map_forward(own, self._inside(x, outside), condition)
        log_prob = self.base.log_prob(child(variables, "base"), z, base_condition) + log_det
        return jnp.where(outside, -math.inf, log_prob)

    @kept
    def log_prob_and_update(
        self, variables: Variables, x: AnyArray, context: AnyArray | None = None
    ) -> tuple[Array, Variables]:
        """``log_prob`` in training mode: (log_prob, the new ``batch_stats``)."""
        updates = Updates()
        x, condition, base_condition = self._condition(variables, "x", x, context, updates)
        outside = beyond(x, self.bijector.intervals(True), len(self.event_shape))
        x = self._inside(x, outside)
        z, log_det, batch_stats = self._forward_and_update(variables, x, condition, updates)
        log_prob = self.base.log_prob(child(variables, "base"), z, base_condition) + log_det
        return jnp.where(outside, -math.inf, log_prob), batch_stats

    @kept
    def sample(
        self,
        variables: Variables,
        key: Array,
        num_samples: int | Sequence[int] = (),
        context: AnyArray | None = None,
    ) -> Array:
        """Samples of shape ``(num_samples, *context_batch, *event_shape)``, differentiable.

        Where the bijector has a bounded domain, they lie inside: rounding would put some at its ends.
        Continuous bijectors integrate x alone, without the trace: with adaptive steps samples are
        those of ``sample_and_log_prob`` to within the tolerances.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            key: the source of randomness.
            num_samples: how many for each row of the context, an integer or a shape; ``()``: one.
            context: shape ``(*context_batch, context_dim)``.
        """
        if type(self).sample_and_log_prob is not Flow.sample_and_log_prob:
            return self.sample_and_log_prob(variables, key, num_samples, context)[0]
        z, condition, _ = self._latent(variables, key, num_samples, context)
        x = self.bijector.map_point(child(variables, "bijector"), z, condition, inverse=True)
        return held_inside(x, self.bijector.intervals(True))

    @kept
    def sample_and_log_prob(
        self,
        variables: Variables,
        key: Array,
        num_samples: int | Sequence[int] = (),
        context: AnyArray | None = None,
    ) -> Output:
        """Samples and their log-densities, in one pass. Arguments as ``sample``."""
        latent = self._latent(variables, key, num_samples, context)
        return self._from_latent(variables, *latent)

    @kept
    def from_noise(
        self, variables: Variables, noise: AnyArray, context: AnyArray | None = None
    ) -> Output:
        """Samples and their log-densities from the base's noise ``(*batch, *base.noise_shape)``.

        Context and errors as in ``forward``.
        """
        noise_shape = self.base.noise_shape
        noise, _ = check_input(self, variables, "noise", noise, context, noise_shape)
        batch = noise.shape[: noise.ndim - len(noise_shape)]
        condition, base_condition = self._embed(variables, context, batch)
        z = self.base.from_noise(child(variables, "base"), noise, base_condition)
        check_array(self, variables, "z", z, self.latent_shape)
        return self._from_latent(variables, z, condition, base_condition)

    @kept
    def score(self, variables: Variables, x: AnyArray, context: AnyArray | None = None) -> Array:
        """The gradient of ``log_prob`` in x, of x's shape. Arguments and errors as ``forward``."""
        log_prob, pull = jax.vjp(lambda x: self.log_prob(variables, x, context), to_jax(x))
        return pull(jnp.ones_like(log_prob))[0]

    @kept
    def forward_with_score(
        self, variables: Variables, x: AnyArray, score: AnyArray, context: AnyArray | None = None
    ) -> tuple[Array, Array, Array]:
        """``forward``, and the score of a density of x as that of its latent: (z, log_det, score of z).

        Where ``score``, of x's shape, is the gradient of log p(x) for any p, the third is that of the
        density of z under p, of z's shape, differentiable: where the flow fits p, that of the base.

        Reference: Vaitl et al. (2022), Gradients should stay on path, arXiv:2207.08219.
        """
        x, condition, _ = self._condition(variables, "x", x, context)
        score = to_jax(score)
        check_array(self, variables, "score", score, self.event_shape)
        return self.bijector.map_score(child(variables, "bijector"), x, score, condition)

    @kept
    def base_score(
        self, variables: Variables, z: AnyArray, context: AnyArray | None = None
    ) -> Array:
        """The gradient of the base's log-density in z, of z's shape. Context and errors as ``inverse``."""
        z, _, base_condition = self._condition(variables, "z", z, context)
        own = child(variables, "base")
        density, pull = jax.vjp(lambda z: self.base.log_prob(own, z, base_condition), z)
        return pull(jnp.ones_like(density))[0]

    @kept
    def from_noise_with_score(
        self, variables: Variables, noise: AnyArray, context: AnyArray | None = None
    ) -> tuple[Array, Array, Array]:
        """``from_noise``, and the score of each sample: (x, log_prob, gradient of log_prob in x).

        The score is carried from layer to layer, without a pass back through the flow, and has no gradients:
        with s and that of a target p, the mean of (s - gradient of log p) * x has the path gradient of
        KL(q || p).
        """
        noise_shape = self.base.noise_shape
        noise, _ = check_input(self, variables, "noise", noise, context, noise_shape)
        batch = noise.shape[: noise.ndim - len(noise_shape)]
        condition, base_condition = self._embed(variables, context, batch)
        base, own = child(variables, "base"), child(variables, "bijector")
        z = self.base.from_noise(base, noise, base_condition)
        fixed, point, given = jax.lax.stop_gradient((base, z, base_condition))
        density, pull = jax.vjp(lambda z: self.base.log_prob(fixed, z, given), point)
        score = pull(jnp.ones_like(density))[0]
        x, log_det, score = self.bijector.map_score(own, z, score, condition, True, False)
        x = held_inside(x, self.bijector.intervals(True))
        return x, self.base.log_prob(base, z, base_condition) - log_det, score

    def _latent(
        self,
        variables: Variables,
        key: Array,
        num_samples: int | Sequence[int],
        context: AnyArray | None,
    ) -> tuple[Array, Array | None, Array | None]:
        """Samples of the base, and what the bijector and the base take of the context."""
        check_key(self, key)
        shape = checks.sample_shape(type(self).__name__, "num_samples", num_samples)
        batch = *shape, *context_batch(self, variables, context)
        condition, base_condition = self._embed(variables, context, batch)
        rows = batch if base_condition is None else ()
        base = child(variables, "base")
        z = self.base.sample(base, key, rows, weight_dtype(variables), base_condition)
        check_array(self, variables, "z", z, self.latent_shape)
        return z, condition, base_condition

    def _from_latent(
        self,
        variables: Variables,
        z: Array,
        condition: Array | None,
        base_condition: Array | None,
    ) -> Output:
        x, log_det = self.bijector.map_inverse(child(variables, "bijector"), z, condition)
        log_prob = self.base.log_prob(child(variables, "base"), z, base_condition)
        return held_inside(x, self.bijector.intervals(True)), log_prob - log_det

    def distribution(
        self,
        variables: Variables,
        context: AnyArray | None = None,
        validate_args: bool | None = None,
    ) -> Any:
        """The flow as a NumPyro ``Distribution``, see ``interop.numpyro_distribution``."""
        return interop.numpyro_distribution(self, variables, context, validate_args)

    def _inside(self, x: Array, outside: Array) -> Array:
        """x, with another point in rows outside: such rows then have the gradient 0, not NaN."""
        return moved_inside(x, outside, self.bijector.intervals(True), len(self.event_shape))

    def _forward_and_update(
        self, variables: Variables, x: Array, condition: Array | None, updates: Updates
    ) -> tuple[Array, Array, Variables]:
        z, log_det, updates["bijector"] = self.bijector.map_forward_and_update(
            child(variables, "bijector"), x, condition
        )
        return z, log_det, self._updated(variables, updates)

    def _updated(self, variables: Variables, updates: Updates) -> Variables:
        """The ``batch_stats`` of all parts, those of some being new."""
        new = {name: {"batch_stats": stats} for name, stats in updates.items()}
        return gather(self._parts(variables) | new, lists=True)["batch_stats"]

    def _condition(
        self,
        variables: Variables,
        name: str,
        x: AnyArray,
        context: AnyArray | None,
        updates: Updates | None = None,
    ) -> tuple[Array, Array | None, Array | None]:
        """Check an input and its context; return it, and what the bijector and the base take of that."""
        x, expanded = check_input(self, variables, name, x, context)
        batch = () if expanded is None else expanded.shape[:-1]
        return x, *self._embed(variables, context, batch, updates)

    def _through_nets(
        self, variables: Variables, context: AnyArray, updates: Updates | None = None
    ) -> Array:
        embedded = to_jax(context)
        for i, net in enumerate(list_of_nets(self.context_net)):
            name = f"context_net_{i}"
            if isinstance(net, Bijector):
                embedded = net.map_forward(child(variables, name), embedded, None)[0]
            else:
                embedded = run_network(net, variables, name, updates, embedded)
        return embedded

    def _embed(
        self,
        variables: Variables,
        context: AnyArray | None,
        batch: Sequence[int],
        updates: Updates | None = None,
    ) -> tuple[Array | None, Array | None]:
        """What the bijector and the base take of a context, for a batch of inputs."""
        if context is None:
            return None, None
        embedded = self._through_nets(variables, context, updates)
        embedded = jnp.broadcast_to(embedded, (*batch, embedded.shape[-1]))
        return (
            embedded if self.bijector.context_dim else None,
            embedded if self.base.context_dim else None,
        )

    def split(self, variables: Variables) -> dict[str, Variables]:
        """The variables of each part, by its name: ``"bijector"``, ``"base"``, ``"context_net_0"``, ..."""
        check_variables(self, variables)
        return self._parts(variables)

    def _parts(self, variables: Variables) -> dict[str, Variables]:
        nets = [f"context_net_{i}" for i in range(len(self.context_net or ()))]
        return {name: child(variables, name) for name in ("bijector", "base", *nets)}

    def join(self, parts: Mapping[str, Variables]) -> dict[str, Any]:
        """The flow's variables from those of its parts, as ``split`` returns them."""
        return joined(self, parts, list(self._parts({})))


def standardized(
    flow: Flow, variables: Variables, x: Any, context: Any = None, robust: bool = False
) -> tuple[Flow, dict[str, Any]]:
    """The flow of data in units of their own, for one of data that are standardised; its variables.

    It begins with ``Standardize``, mean and standard deviation those of x, and where a context is given
    the context passes through another. Both are fixed arrays of the flow and of its file, so that its
    densities and samples are those of x. Call it before ``fit``, on the data that ``fit`` gets.

    Args:
        flow: shares its modules with the result.
        variables: the arrays of the flow.
        x: data, shape ``(rows, *event_shape)``, of any dtype; images get one scale per channel.
        context: shape ``(rows, context_dim)``, to scale the context too. Where it goes to a ``DeepSet``
            first, all elements that count get one scale, and padding stays what it is; where to a
            ``ConvEmbedding``, each channel does.
        robust: scale by median and interquartile range / 1.349, which outliers do not move.

    Raises:
        ValueError: for a NaN or an infinity, and for a column that is constant or that the weights'
            dtype cannot tell from a constant.

    Examples:
        >>> import jax, jax_flows, numpy as np
        >>> x = np.random.default_rng(0).normal(50, 20, (100, 2))
        >>> flow = jax_flows.MAF(dim=2, num_layers=2)
        >>> flow, variables = jax_flows.standardized(flow, flow.init(jax.random.key(0)), x)
        >>> flow.bijector.bijectors[0]
        Standardize(dim=2)
    """
    dtype = weight_dtype(variables) or jnp.result_type(float)
    arrays: dict[str, Any] = {}

    def scaling(array: Any, values_of: Callable[[Any, str], Any], prefix: str) -> Standardize:
        array = np.asarray(array)
        shape = array.shape[1:]
        loc, scale = values_of(array, dtype.name)
        arrays.update({f"{prefix}.loc": loc.astype(dtype), f"{prefix}.scale": scale.astype(dtype)})
        return Standardize(shape[0] if len(shape) == 1 else shape)

    nets = list_of_nets(flow.context_net)
    shift = 0 if context is None else 1
    if context is not None:
        net, names = nets[0] if nets else None, flow.context_columns
        of_context = partial(context_location_and_scale, net=net, names=names, robust=robust)
        nets = [scaling(context, of_context, "context_net.0"), *nets]
    of_data = partial(location_and_scale, names=flow.columns, robust=robust)
    first = scaling(x, of_data, "bijector.bijectors.0")
    for name, array in jax_to_torch(variables).items():
        part, rest = name.split(".", 1)
        if part == "bijector":
            name = f"bijector.bijectors.1.{rest}"
        elif part == "context_net":
            index, rest = rest.split(".", 1)
            name = f"context_net.{int(index) + shift}.{rest}"
        arrays[name] = array
    chain = Chain((first, flow.bijector))
    result = Flow(chain, flow.base, nets, flow.columns, flow.context_columns)
    converted = torch_to_jax(arrays, result.shapes())
    return result, jax.tree.map(jnp.array, converted)


def pullback(
    flow: Flow,
    variables: Variables,
    log_density: Callable[[Array], Array],
    context: AnyArray | None = None,
) -> Callable[[AnyArray], Array]:
    """The log-density of the latent: z ↦ log_density(x) + log|det dx/dz|, x = flow.inverse(z).

    A sampler that draws z from it draws x(z) from the density, exactly, whatever the flow; where the
    flow fits, z is nearly of the base distribution, which is easy to sample (NeuTra, Hoffman et al., 2019,
    arXiv:1903.03704). Pulled back by a flow, its own density is that of its base.

    Args:
        flow: its weights stay as they are.
        variables: the arrays of the flow.
        log_density: from x ``(*batch, *event_shape)`` to ``(*batch,)``, differentiable; it need not be
            normalised. Where the flow has a bounded domain, x lies inside, as samples do.
        context: shape ``(*batch, context_dim)`` or broadcastable to it, for a conditional flow.

    Returns:
        A function of z, shape ``(*batch, *latent_shape)``: -inf outside the codomain of the bijector and
        at infinity. Its errors are those of ``flow.inverse``, and ``ValueError`` where log_density gives
        another shape.

    Raises:
        TypeError: for what is no flow, or no function.

    Examples:
        >>> import jax, jax_flows
        >>> flow = jax_flows.RealNVP(dim=2, hidden_dims=(8,), num_layers=2)
        >>> variables = flow.init(jax.random.key(0))
        >>> log_density = jax_flows.pullback(flow, variables, lambda x: -(x**4).sum(-1))
        >>> jax.jit(log_density)(jax.numpy.zeros((5, 2))).shape
        (5,)
    """
    checks.instances("pullback", "flow", [flow], Flow)
    check_callable("pullback", "log_density", log_density)

    def pulled_back(z: AnyArray) -> Array:
        z, expanded = check_input(flow, variables, "z", z, context)
        bijector, ndim = flow.bijector, len(flow.latent_shape)
        condition = None
        if expanded is not None and bijector.context_dim:
            condition = flow.embed(variables, expanded)
        outside = bijector.outside(child(variables, "bijector"), z, condition, inverse=True)
        z = moved_inside(z, outside, bijector.intervals(), ndim)
        x, log_det = flow.inverse(variables, z, context)
        value = log_density(held_inside(x, bijector.intervals(True)))
        shape = getattr(value, "shape", None)
        checks.one_per_event("pullback", "log_density", x.shape, log_det.shape, shape)
        return jnp.where(outside, -math.inf, value + log_det)

    return pulled_back


def held_inside(x: Array, intervals: Sequence[Interval]) -> Array:
    """x, where rounding puts it on an open end of its interval the last number before it."""
    if all(interval == REALS for interval in intervals):
        return x
    ends = [i if i == REALS else i.ends(x.dtype.name) for i in intervals]
    if len(ends) == 1:
        low, high = ends[0]
        return jnp.where(x < low, low, jnp.where(x > high, high, x))
    lows, highs = jnp.array(ends, x.dtype).T
    return jnp.where(x < lows, lows, jnp.where(x > highs, highs, x))


def list_of_nets(context_net: Any) -> list[Any]:
    """The networks that a context passes through, in turn."""
    if context_net is None:
        return []
    return list(context_net) if isinstance(context_net, list | tuple) else [context_net]


def net_widths(owner: str, net: Any) -> tuple[int | None, int | None]:
    """Widths of the input and of the output of a part of ``context_net``; ``None`` is any."""
    if isinstance(net, Bijector):
        return checks.vector_widths(owner, net)
    return checks.network_widths(owner, net)
