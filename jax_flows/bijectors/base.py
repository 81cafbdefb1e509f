"""What every bijector is, and the ones made of others."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.architecture import count_construction
from flow_bridge.domains import REALS, Interval
from flow_bridge.layouts import stack_name
from jax_flows.registry import register

Variables = Mapping[str, Any]
Output = tuple[Array, Array]


class HasVariables(ABC):
    """What owns arrays: its ``init`` makes them, its other methods take them as ``variables``."""

    is_architecture = True

    def init(self, key: Array, dtype: Any = None) -> dict[str, Any]:
        """Fresh variables from a PRNG key, in ``dtype`` (JAX's default float type if not given)."""
        return _init(self, key, jnp.dtype(jnp.result_type(float) if dtype is None else dtype))

    def shapes(self) -> dict[str, Any]:
        """The variables' shapes and types, without computing anything."""
        return jax.eval_shape(self.init, jax.random.key(0))

    @abstractmethod
    def _init(self, key: Array, dtype: Any) -> Variables: ...


@partial(jax.jit, static_argnums=(0, 2))
def _init(owner: HasVariables, key: Array, dtype: Any) -> dict[str, Any]:
    return {"params": {}, "batch_stats": {}, **owner._init(key, dtype)}


class Bijector(HasVariables):
    """An invertible map between data x and latent z, with the log|det| of its Jacobian.

    A subclass is a frozen dataclass of plain values (its constructor's arguments) that writes
    ``_init``, ``_forward`` and ``_inverse`` and states ``event_shape``; the public methods check
    their input first. The arrays come in as ``variables``: ``{"params": ..., "batch_stats": ...}``.

    Attributes:
        event_shape: the shape of one x; ``None`` stands for any length.
        latent_shape: the shape of one z, equal to ``event_shape`` unless ``map_shape`` says otherwise.
        context_dim: width of the context, 0 for none.
        stackable: whether a chain may scan over equal ones; ``False`` for what changes the shape.
        domain, codomain: the open interval that every entry of x, of z lies in. Outside them the
            result is NaN, at an end of them it may be infinite.
    """

    context_dim: int = 0
    stackable: bool = True
    domain: Interval = REALS
    codomain: Interval = REALS

    def __post_init__(self) -> None:
        count_construction()
        freeze_lists(self)

    @property
    def event_shape(self) -> tuple[int | None, ...]:
        return (None,)

    @property
    def latent_shape(self) -> tuple[int | None, ...]:
        return self.map_shape(self.event_shape)

    def map_shape(
        self, shape: tuple[int | None, ...], inverse: bool = False
    ) -> tuple[int | None, ...]:
        """The shape of one z for that of one x, or with ``inverse`` the other way round."""
        return shape

    def forward(self, variables: Variables, x: Array, context: Array | None = None) -> Output:
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
        return self._forward(variables, *check_input(self, variables, "x", x, context))

    def inverse(self, variables: Variables, z: Array, context: Array | None = None) -> Output:
        """Latent to data: x and log|det dx/dz| for z. Arguments and errors as ``forward``."""
        return self._inverse(variables, *check_input(self, variables, "z", z, context))

    def forward_and_update(
        self, variables: Variables, x: Array, context: Array | None = None
    ) -> tuple[Array, Array, Variables]:
        """``forward`` in training mode: (z, log_det, the new ``batch_stats``)."""
        return self._forward_and_update(variables, *check_input(self, variables, "x", x, context))

    def initialize(
        self, variables: Variables, x: Array, context: Array | None = None
    ) -> dict[str, Any]:
        """New variables, with what is initialised from data (``ActNorm``) set, layer after layer.

        Args:
            variables: the arrays, from ``init``.
            x: a batch of data of at least 2 rows, a good sample of the whole.
            context: as in ``forward``.

        Raises:
            NonFiniteError: if weights would become NaN or infinite.
            ValueError, TypeError: as in ``forward``, and for fewer than 2 rows.

        Not for use under ``jit``: it looks at the values.
        """
        return initialize(self, self, variables, variables, x, context)

    def transform(self, variables: Variables, context: Array | None = None) -> Any:
        """The bijector as a NumPyro ``Transform``, see ``interop.numpyro_transform``."""
        from jax_flows import interop

        return interop.numpyro_transform(self, variables, context)

    def check_domain(self, x: Array) -> None:
        """Raise ``ValueError`` unless x lies in ``domain``; reads the values, so not for compiled code."""
        self.domain.check(type(self).__name__, "x", np.asarray(x, np.float64))

    def check_codomain(self, z: Array) -> None:
        """Raise ``ValueError`` unless z lies in ``codomain``, as ``check_domain`` does for x."""
        self.codomain.check(type(self).__name__, "z", np.asarray(z, np.float64))

    @abstractmethod
    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output: ...

    @abstractmethod
    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output: ...

    def _forward_and_update(
        self, variables: Variables, x: Array, context: Array | None
    ) -> tuple[Array, Array, Variables]:
        return *self._forward(variables, x, context), variables.get("batch_stats", {})

    def _initialize(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> tuple[Array, Variables]:
        """Initialise from x on its way forward (from z on its way back); returns what comes out."""
        return (self._inverse if inverse else self._forward)(variables, x, context)[0], variables


def initialize(
    owner: Any,
    bijector: Bijector,
    variables: Variables,
    own: Variables,
    x: Array,
    context: Array | None,
) -> dict[str, Any]:
    """The variables ``own`` of a bijector, initialised from data; ``variables`` are those of owner."""
    label = type(owner).__name__
    x, context = check_input(owner, variables, "x", x, context)
    rows = math.prod(x.shape[: x.ndim - len(owner.event_shape)])
    checks.enough_rows(label, rows, "to be initialised from data")
    new, finite = _initialize(bijector, own, x, context)
    checks.finite_initialization(label, bool(finite))
    return new


@partial(jax.jit, static_argnums=0)
def _initialize(
    bijector: Bijector, variables: Variables, x: Array, context: Array | None
) -> tuple[dict[str, Any], Array]:
    _, new = bijector._initialize(variables, x, context)
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(new.get("params", {}))]
    return {**variables, **new}, jnp.array(leaves).all()


def freeze_lists(instance: Any) -> None:
    """Turn list-valued fields of a frozen dataclass into tuples, so that it can be hashed."""
    for field in dataclasses.fields(instance):
        if field.init and isinstance(value := getattr(instance, field.name), list):
            object.__setattr__(instance, field.name, tuple(value))


def child(variables: Variables, name: str) -> dict[str, Any]:
    """The variables of one part."""
    return {collection: tree.get(name, {}) for collection, tree in variables.items()}


def gather(children: Mapping[str, Variables]) -> dict[str, Any]:
    """The variables of a whole from those of its parts; parts without any leave no trace."""
    return {
        collection: {name: v[collection] for name, v in children.items() if v.get(collection)}
        for collection in ("params", "batch_stats")
    }


def weight_dtype(variables: Variables) -> Any:
    """The dtype of the trainable weights, or ``None`` if there are none."""
    leaves = jax.tree.leaves(variables.get("params", {}))
    return leaves[0].dtype if leaves else None


def check_input(
    owner: Any, variables: Variables, name: str, x: Array, context: Array | None
) -> tuple[Array, Array | None]:
    """Check an input and its context, and return both, the context broadcast to the batch."""
    label = type(owner).__name__
    for what, value in ((name, x), ("context", context)):
        if not isinstance(value, jax.Array | np.ndarray | None):
            raise TypeError(f"{label} expects {what} as an array, got {type(value).__name__}.")
    dtype = weight_dtype(variables)
    batch = checks.input_array(
        label,
        name,
        x.shape,
        x.dtype.name,
        owner.latent_shape if name == "z" else owner.event_shape,
        None if dtype is None else dtype.name,
    )
    _check_context(owner, context, batch, x.dtype.name)
    if context is not None:
        context = jnp.broadcast_to(context, (*batch, owner.context_dim))
    return jnp.asarray(x), context


def context_batch(owner: Any, variables: Variables, context: Array | None) -> tuple[int, ...]:
    """Check a context that is given before its input, and return its batch shape."""
    if not isinstance(context, jax.Array | np.ndarray | None):
        label = type(owner).__name__
        raise TypeError(f"{label} expects context as an array, got {type(context).__name__}.")
    dtype = weight_dtype(variables) or getattr(context, "dtype", None)
    batch = () if context is None else context.shape[:-1]
    _check_context(owner, context, batch, "" if dtype is None else dtype.name)
    return batch


def _check_context(owner: Any, context: Array | None, batch: tuple[int, ...], dtype: str) -> None:
    shape = None if context is None else context.shape
    context_dtype = None if context is None else context.dtype.name
    checks.context_array(
        type(owner).__name__, shape, context_dtype, owner.context_dim, batch, dtype
    )


class _Segment(NamedTuple):
    """A run of a chain: ``repeats`` times the same block of ``period`` bijectors."""

    start: int
    period: int
    repeats: int

    def names(self) -> Iterator[tuple[str, range]]:
        """The key of each of the block's bijectors, and the positions that it stands for."""
        stop = self.start + self.period * self.repeats
        for i in range(self.start, self.start + self.period):
            indices = range(i, stop, self.period)
            yield (
                (f"bijectors_{i}" if self.repeats == 1 else stack_name("bijectors", indices)),
                indices,
            )


def _segments(bijectors: tuple[Bijector, ...]) -> list[_Segment]:
    def same(a: Bijector, b: Bijector) -> bool:
        return a == b and a.stackable

    segments, start = [], 0
    while start < len(bijectors):
        best = _Segment(start, 1, 1)
        for period in range(1, (len(bijectors) - start) // 2 + 1):
            stop = start + period
            while stop < len(bijectors) and same(bijectors[stop], bijectors[stop - period]):
                stop += 1
            repeats = (stop - start) // period
            if repeats > 1 and repeats * period > best.repeats * best.period:
                best = _Segment(start, period, repeats)
        segments.append(best)
        start += best.period * best.repeats
    return segments


@register
@dataclass(frozen=True)
class Chain(Bijector):
    """Composition: forward applies ``bijectors`` in order, inverse in reverse; log-dets add up.

    Where a block of bijectors repeats, its variables are stacked along a leading axis (under keys
    like ``bijectors_0:8:2`` for positions 0, 2, 4, 6) and the chain scans over them, so that compile
    time does not grow with depth.

    Args:
        bijectors: at least one, each of the event shape that the one before it makes; those with a
            ``context_dim`` share it.

    Raises:
        ValueError: if the list is empty or its members disagree.

    Examples:
        >>> import jax, jax_flows
        >>> chain = jax_flows.Chain((jax_flows.Affine(2), jax_flows.Tanh()))
        >>> z, log_det = chain.forward(chain.init(jax.random.key(0)), jax.numpy.zeros((5, 2)))
        >>> z.shape, log_det.shape
        ((5, 2), (5,))
    """

    bijectors: tuple[Bijector, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bijectors:
            raise ValueError("Chain expects at least one bijector.")
        checks.instances("Chain", "bijectors", self.bijectors, Bijector)
        _ = self.event_shape, self.context_dim

    @cached_property
    def event_shape(self) -> tuple[int | None, ...]:
        return checks.chain_event_shape("Chain", self.bijectors)

    @property
    def stackable(self) -> bool:  # type: ignore[override]
        return all(b.stackable for b in self.bijectors)

    def map_shape(
        self, shape: tuple[int | None, ...], inverse: bool = False
    ) -> tuple[int | None, ...]:
        for bijector in self.bijectors[:: -1 if inverse else 1]:
            shape = bijector.map_shape(shape, inverse)
        return shape

    @cached_property
    def context_dim(self) -> int:  # type: ignore[override]
        return checks.common_context_dim("Chain", [b.context_dim for b in self.bijectors])

    @property
    def domain(self) -> Interval:  # type: ignore[override]
        return self.bijectors[0].domain

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        return self.bijectors[-1].codomain

    @cached_property
    def segments(self) -> list[_Segment]:
        """The runs of equal blocks that the chain scans over."""
        return _segments(self.bijectors)

    def _init(self, key: Array, dtype: Any) -> Variables:
        keys = jax.random.split(key, len(self.bijectors))
        children = {}
        for segment in self.segments:
            for name, indices in segment.names():
                init = partial(self.bijectors[indices[0]]._init, dtype=dtype)
                layer_keys = keys[np.array(indices)]
                children[name] = (
                    init(keys[indices[0]]) if len(indices) == 1 else jax.lax.map(init, layer_keys)
                )
        return gather(children)

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        def step(bijector: Bijector, *args: Any) -> tuple[Array, Array, Variables]:
            return *bijector._forward(*args), {}

        return self._run(step, variables, x, context)[:2]

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        def step(bijector: Bijector, *args: Any) -> tuple[Array, Array, Variables]:
            return *bijector._inverse(*args), {}

        return self._run(step, variables, z, context, reverse=True)[:2]

    def _forward_and_update(
        self, variables: Variables, x: Array, context: Array | None
    ) -> tuple[Array, Array, Variables]:
        def step(bijector: Bijector, *args: Any) -> tuple[Array, Array, Variables]:
            return bijector._forward_and_update(*args)

        return self._run(step, variables, x, context)

    def _initialize(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> tuple[Array, Variables]:
        def step(
            bijector: Bijector, layer: Variables, x: Array, context: Array | None
        ) -> tuple[Array, Array, Variables]:
            x, layer = bijector._initialize(layer, x, context, inverse)
            return x, jnp.zeros((), x.dtype), layer

        x, _, layers = self._run(step, variables, x, context, inverse)
        return x, gather(layers)

    def _run(
        self,
        step: Callable[..., tuple[Array, Array, Variables]],
        variables: Variables,
        x: Array,
        context: Array | None,
        reverse: bool = False,
    ) -> tuple[Array, Array, Variables]:
        direction = -1 if reverse else 1
        carry = x, jnp.zeros(x.shape[: x.ndim - len(self.event_shape)], x.dtype)
        batch_stats: dict[str, Any] = {}
        for segment in self.segments[::direction]:
            block = [(name, self.bijectors[i[0]]) for name, i in segment.names()][::direction]

            def run_block(carry: Output, layers: Any, block: Any = block) -> Any:
                x, log_det = carry
                stats = {}
                for name, bijector in block:
                    layer_context = context if bijector.context_dim else None
                    x, term, stats[name] = step(bijector, layers[name], x, layer_context)
                    log_det = log_det + term
                return (x, log_det), stats

            layers = {name: child(variables, name) for name, _ in block}
            if segment.repeats == 1:
                carry, stats = run_block(carry, layers)
            else:
                carry, stats = jax.lax.scan(run_block, carry, layers, segment.repeats, reverse)
            batch_stats |= {name: tree for name, tree in stats.items() if tree}
        return *carry, batch_stats


@register
@dataclass(frozen=True)
class Invert(Bijector):
    """Swaps the two directions of a bijector.

    Batch statistics inside do not change in training: both directions use the running averages.

    Args:
        bijector: the one to turn around.

    Examples:
        >>> import jax, jax_flows
        >>> log = jax_flows.Invert(jax_flows.Exp())
        >>> log.forward(log.init(jax.random.key(0)), jax.numpy.ones(2))[0].tolist()
        [0.0, 0.0]
    """

    bijector: Bijector

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.instances("Invert", "bijector", [self.bijector], Bijector)

    @property
    def event_shape(self) -> tuple[int | None, ...]:
        return self.bijector.latent_shape

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return self.bijector.context_dim

    @property
    def stackable(self) -> bool:  # type: ignore[override]
        return self.bijector.stackable

    def map_shape(
        self, shape: tuple[int | None, ...], inverse: bool = False
    ) -> tuple[int | None, ...]:
        return self.bijector.map_shape(shape, not inverse)

    @property
    def domain(self) -> Interval:  # type: ignore[override]
        return self.bijector.codomain

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        return self.bijector.domain

    def _init(self, key: Array, dtype: Any) -> Variables:
        return gather({"bijector": self.bijector._init(key, dtype)})

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        return self.bijector._inverse(child(variables, "bijector"), x, context)

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        return self.bijector._forward(child(variables, "bijector"), z, context)

    def _initialize(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> tuple[Array, Variables]:
        own = child(variables, "bijector")
        x, new = self.bijector._initialize(own, x, context, not inverse)
        return x, gather({"bijector": new})
