"""Bijectors made of others."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.domains import Interval
from flow_bridge.errors import ConversionError
from flow_bridge.layouts import stack_name
from jax_flows.bijectors.base import Bijector, Shape
from jax_flows.registry import register
from jax_flows.variables import (
    Output,
    Variables,
    check_variables,
    child,
    gather,
    stacked_shapes,
)

MAX_PERIOD = 64
"""The longest block of bijectors that a chain looks for repetitions of."""


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


def _segments(bijectors: Sequence[Bijector]) -> list[_Segment]:
    known: dict[Hashable, int] = {}  # equal ones have one number, what does not stack its own
    kinds = [
        known.setdefault(b.scan_key, len(known)) if b.stackable else -1 - i
        for i, b in enumerate(bijectors)
    ]
    segments, start = [], 0
    while start < len(kinds):
        best = _Segment(start, 1, 1)
        for period in range(1, min(MAX_PERIOD, (len(kinds) - start) // 2) + 1):
            stop = start + period
            if kinds[stop] != kinds[start]:
                continue
            while stop < len(kinds) and kinds[stop] == kinds[stop - period]:
                stop += 1
            repeats = (stop - start) // period
            if repeats > 1 and repeats * period > best.repeats * best.period:
                best = _Segment(start, period, repeats)
            if stop == len(kinds):
                break
        segments.append(best)
        start += best.period * best.repeats
    return segments


@register
@dataclass(frozen=True)
class Chain(Bijector):
    """Composition: forward applies ``bijectors`` in order, inverse in reverse; log-dets add up.

    Where a block of bijectors repeats, its variables are stacked along a leading axis (under keys
    like ``bijectors_0:8:2`` for positions 0, 2, 4, 6) and the chain scans over them, so that compile
    time does not grow with depth. Orders of dimensions need not be the same in all repetitions.

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

    bijectors: Sequence[Bijector]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bijectors:
            raise ValueError("Chain expects at least one bijector.")
        checks.instances("Chain", "bijectors", self.bijectors, Bijector)
        _ = self.event_shape, self.context_dim

    def __len__(self) -> int:
        return len(self.bijectors)

    def __iter__(self) -> Iterator[Bijector]:
        return iter(self.bijectors)

    @overload
    def __getitem__(self, index: int) -> Bijector: ...

    @overload
    def __getitem__(self, index: slice) -> "Chain": ...

    def __getitem__(self, index: int | slice) -> "Bijector | Chain":
        """One member, or a chain of several; ``split`` has their variables."""
        return Chain(self.bijectors[index]) if isinstance(index, slice) else self.bijectors[index]

    @cached_property
    def event_shape(self) -> Shape:
        return checks.chain_event_shape("Chain", self.bijectors)

    @property
    def stackable(self) -> bool:  # type: ignore[override]
        return all(b.stackable for b in self.bijectors)

    @property
    def has_batch_statistics(self) -> bool:  # type: ignore[override]
        return any(b.has_batch_statistics for b in self.bijectors)

    def map_shape(self, shape: Shape, inverse: bool = False) -> Shape:
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

    @property
    def scan_key(self) -> Hashable:
        own = Chain, tuple(bijector.scan_key for bijector in self.bijectors)
        return own if type(self) is Chain else self

    def scan_constants(self) -> dict[str, Any]:
        return {
            name: _stacked([self.bijectors[i].scan_constants() for i in indices])
            for segment in self.segments
            for name, indices in segment.names()
        }

    def _layers(self, segment: _Segment, variables: Variables) -> dict[str, dict[str, Any]]:
        """The variables of a segment, and the constants of bijectors that are not all equal."""
        layers: dict[str, dict[str, Any]] = {}
        for name, indices in segment.names():
            layers[name] = child(variables, name)
            own = [self.bijectors[i] for i in indices]
            if not variables.get("constants") and any(bijector != own[0] for bijector in own):
                layers[name]["constants"] = _stacked(
                    [bijector.scan_constants() for bijector in own]
                )
        return layers

    @cached_property
    def segments(self) -> list[_Segment]:
        """The runs of equal blocks that the chain scans over."""
        return _segments(self.bijectors)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        keys = jax.random.split(key, len(self.bijectors))
        children = {}
        for segment in self.segments:
            for name, indices in segment.names():
                init = partial(self.bijectors[indices[0]].init_variables, dtype=dtype)
                layer_keys = keys[np.array(indices)]
                children[name] = (
                    init(keys[indices[0]]) if len(indices) == 1 else jax.lax.map(init, layer_keys)
                )
        return gather(children, lists=True)

    def split(self, variables: Variables) -> list[Variables]:
        """The variables of each member, taken out of the stacks."""
        check_variables(self, variables)
        layers: dict[int, Variables] = {}
        for segment in self.segments:
            for name, indices in segment.names():
                own = child(variables, name)
                for i, index in enumerate(indices):
                    layers[index] = (
                        jax.tree.map(lambda leaf, i=i: leaf[i], own) if indices[1:] else own
                    )
        return [layers[index] for index in range(len(self))]

    def join(self, layers: Sequence[Variables]) -> dict[str, Any]:
        """The chain's variables from those of its members, as ``split`` returns them."""
        if len(layers) != len(self):
            expected = f"{len(self)} bijectors"
            raise ConversionError(checks.parts_of("Chain", len(layers), expected))
        for bijector, layer in zip(self, layers, strict=True):
            check_variables(bijector, layer)
        children = {}
        for segment in self.segments:
            for name, indices in segment.names():
                own = [layers[index] for index in indices]
                children[name] = (
                    jax.tree.map(lambda *leaves: jnp.stack(leaves), *own) if own[1:] else own[0]
                )
        return gather(children, lists=True)

    def variable_shapes(self, dtype: Any) -> Variables:
        known: dict[Bijector, Variables] = {}
        children = {}
        for segment in self.segments:
            for name, indices in segment.names():
                bijector = self.bijectors[indices[0]]
                if bijector not in known:
                    known[bijector] = bijector.variable_shapes(dtype)
                shapes, count = known[bijector], len(indices)
                children[name] = shapes if count == 1 else stacked_shapes(shapes, count)
        return gather(children, lists=True)

    def is_bounded(self, inverse: bool = False) -> bool:
        return any(bijector.is_bounded(inverse) for bijector in self.bijectors)

    def intervals(self, inverse: bool = False) -> list[Interval]:
        return self.bijectors[0 if inverse else -1].intervals(inverse)

    def outside(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> Array:
        if not self.is_bounded(inverse):
            return super().outside(variables, x, context, inverse)

        def step(
            bijector: Bijector, layer: Variables, x: Array, context: Array | None
        ) -> tuple[Array, Array, Variables]:
            found = bijector.outside(layer, x, context, inverse)
            move = bijector.map_inverse if inverse else bijector.map_forward
            return move(layer, x, context)[0], found.astype(x.dtype), {}

        segments = self.segments[:: -1 if inverse else 1]
        while not any(
            self.bijectors[indices[0]].is_bounded(inverse) for _, indices in segments[-1].names()
        ):
            segments.pop()
        return self._run(step, variables, x, context, inverse, segments)[1] > 0

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        def step(bijector: Bijector, *args: Any) -> tuple[Array, Array, Variables]:
            return *bijector.map_forward(*args), {}

        return self._run(step, variables, x, context, hands_on=True)[:2]

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        def step(bijector: Bijector, *args: Any) -> tuple[Array, Array, Variables]:
            return *bijector.map_inverse(*args), {}

        return self._run(step, variables, z, context, reverse=True, hands_on=True)[:2]

    def map_point(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> Array:
        def step(
            bijector: Bijector, layer: Variables, x: Array, context: Array | None
        ) -> tuple[Array, float, Variables]:
            return bijector.map_point(layer, x, context, inverse), 0.0, {}

        return self._run(step, variables, x, context, inverse, hands_on=True)[0]

    def map_forward_and_update(
        self, variables: Variables, x: Array, context: Array | None
    ) -> tuple[Array, Array, Variables]:
        def step(bijector: Bijector, *args: Any) -> tuple[Array, Array, Variables]:
            return bijector.map_forward_and_update(*args)

        return self._run(step, variables, x, context, hands_on=True)

    def map_steps(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> list[Output]:
        steps = []
        members = list(zip(self.bijectors, self.split(variables), strict=True))
        for bijector, layer in members[:: -1 if inverse else 1]:
            step = bijector.map_inverse if inverse else bijector.map_forward
            x, log_det = step(layer, x, context if bijector.context_dim else None)
            steps.append((x, log_det))
        return steps

    def map_score(
        self,
        variables: Variables,
        x: Array,
        score: Array,
        context: Array | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Array, Array, Array]:
        log_det: Any = 0
        for segment in self.segments[:: -1 if inverse else 1]:
            block = [(name, self.bijectors[i[0]]) for name, i in segment.names()]
            block = block[:: -1 if inverse else 1]

            def run_block(carry: Any, layers: Any, block: Any = block) -> Any:
                x, score = carry
                total = 0
                for name, bijector in block:
                    own = context if bijector.context_dim else None
                    x, term, score = bijector.map_score(
                        layers[name], x, score, own, inverse, differentiable
                    )
                    total = total + term
                return (x, score), total

            layers = self._layers(segment, variables)
            if segment.repeats == 1:
                (x, score), term = run_block((x, score), layers)
            else:
                (x, score), terms = jax.lax.scan(
                    run_block, (x, score), layers, segment.repeats, inverse
                )
                term = terms.sum(0)
            log_det = log_det + term
        return x, log_det, score

    def map_and_initialize(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> tuple[Array, Variables]:
        def step(
            bijector: Bijector, layer: Variables, x: Array, context: Array | None
        ) -> tuple[Array, Array, Variables]:
            x, layer = bijector.map_and_initialize(layer, x, context, inverse)
            return x, jnp.zeros((), x.dtype), layer

        x, _, layers = self._run(step, variables, x, context, inverse)
        return x, gather(layers, lists=True)

    def map_and_set_statistics(
        self, variables: Variables, x: Array, context: Array | None, weights: Array | None
    ) -> tuple[Array, Variables]:
        def step(
            bijector: Bijector, layer: Variables, x: Array, context: Array | None
        ) -> tuple[Array, Array, Variables]:
            x, batch_stats = bijector.map_and_set_statistics(layer, x, context, weights)
            return x, jnp.zeros((), x.dtype), batch_stats

        x, _, batch_stats = self._run(step, variables, x, context)
        return x, batch_stats

    def _run(
        self,
        step: Callable[..., tuple[Array, Array | float, Variables]],
        variables: Variables,
        x: Array,
        context: Array | None,
        reverse: bool = False,
        segments: list[_Segment] | None = None,
        hands_on: bool = False,
    ) -> tuple[Array, Array, Variables]:
        direction = -1 if reverse else 1
        carry: Any = x, jnp.zeros(x.shape[: x.ndim - len(self.event_shape)], x.dtype)
        batch_stats: dict[str, Any] = {}
        # Couplings of the same parts hand them on: x is put together only where that ends.
        partition: Any = None
        for segment in segments or self.segments[::direction]:
            block: Any = [(name, self.bijectors[i[0]]) for name, i in segment.names()][::direction]
            parts = _common_parts(block) if hands_on else None
            if partition is not None and parts != partition.parts:
                carry, partition = (_together(partition, carry[0], reverse), carry[1]), None
            if partition is None and parts is not None:
                partition = block[0][1].partition
                carry = partition.apart(*partition.split(carry[0])), carry[1]
            copies = reverse and parts is not None and segment.repeats > 1

            def run_block(
                carry: Any, layers: Any, block: Any = block, copies: bool = copies
            ) -> Any:
                x, log_det = carry
                stats = {}
                layers = jax.tree.map(_copy_vector, layers) if copies else layers
                for name, bijector in block:
                    layer_context = context if bijector.context_dim else None
                    x, term, stats[name] = step(bijector, layers[name], x, layer_context)
                    log_det = log_det + term
                return (x, log_det), stats

            layers = self._layers(segment, variables)
            if segment.repeats == 1:
                carry, stats = run_block(carry, layers)
            else:
                carry, stats = jax.lax.scan(run_block, carry, layers, segment.repeats, reverse)
            batch_stats |= {name: tree for name, tree in stats.items() if tree}
        x, log_det = carry
        return _together(partition, x, reverse), log_det, batch_stats


def _stacked(trees: Sequence[Any]) -> Any:
    """Of one tree it itself, of several one with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees) if trees[1:] else trees[0]


def _common_parts(block: Any) -> Any:
    """What all of a block's couplings take x apart into, ``None`` where they do not agree."""
    if not all(hasattr(bijector, "couple") for _, bijector in block):
        return None
    first, *others = (bijector.parts for _, bijector in block)
    return first if all(parts == first for parts in others) else None


def _together(partition: Any, x: Any, select: bool) -> Array:
    """x from its parts, if it is apart."""
    return x if partition is None else partition.merge(*partition.split(x), select)


def _copy_vector(leaf: Array) -> Array:
    """A vector in memory of its own.

    A loop that reads two parts of one slice of a stack, as scales and shifts of one bias are, XLA computes
    number by number on a CPU.
    """
    if leaf.ndim != 1:
        return leaf
    return jax.lax.platform_dependent(
        leaf, cpu=lambda leaf: leaf[jnp.arange(len(leaf))], default=lambda leaf: leaf
    )


@register
@dataclass(frozen=True)
class Invert(Bijector):
    """Swaps the two directions of a bijector.

    The bijector is put in evaluation mode and stays there: in training both directions use the running
    averages, which do not change.

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
    def event_shape(self) -> Shape:
        return self.bijector.latent_shape

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return self.bijector.context_dim

    @property
    def stackable(self) -> bool:  # type: ignore[override]
        return self.bijector.stackable

    def map_shape(self, shape: Shape, inverse: bool = False) -> Shape:
        return self.bijector.map_shape(shape, not inverse)

    @property
    def domain(self) -> Interval:  # type: ignore[override]
        return self.bijector.codomain

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        return self.bijector.domain

    @property
    def scan_key(self) -> Hashable:
        return (Invert, self.bijector.scan_key) if type(self) is Invert else self

    def scan_constants(self) -> dict[str, Any]:
        return {"bijector": self.bijector.scan_constants()}

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        return gather({"bijector": self.bijector.init_variables(key, dtype)})

    def variable_shapes(self, dtype: Any) -> Variables:
        return gather({"bijector": self.bijector.variable_shapes(dtype)})

    def is_bounded(self, inverse: bool = False) -> bool:
        return self.bijector.is_bounded(not inverse)

    def intervals(self, inverse: bool = False) -> list[Interval]:
        return self.bijector.intervals(not inverse)

    def outside(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> Array:
        return self.bijector.outside(child(variables, "bijector"), x, context, not inverse)

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        return self.bijector.map_inverse(child(variables, "bijector"), x, context)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        return self.bijector.map_forward(child(variables, "bijector"), z, context)

    def map_point(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> Array:
        return self.bijector.map_point(child(variables, "bijector"), x, context, not inverse)

    def map_score(
        self,
        variables: Variables,
        x: Array,
        score: Array,
        context: Array | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Array, Array, Array]:
        own = child(variables, "bijector")
        return self.bijector.map_score(own, x, score, context, not inverse, differentiable)

    def map_and_initialize(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> tuple[Array, Variables]:
        own = child(variables, "bijector")
        x, new = self.bijector.map_and_initialize(own, x, context, not inverse)
        return x, gather({"bijector": new})
