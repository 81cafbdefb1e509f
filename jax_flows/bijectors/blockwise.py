"""One bijector for these entries, another for those."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.domains import Interval, placed
from jax_flows.bijectors.base import Bijector
from jax_flows.numerics import as_int32
from jax_flows.registry import register
from jax_flows.variables import Output, Variables, child, gather


@register
@dataclass(frozen=True)
class Blockwise(Bijector):
    """One bijector for these entries of a vector, another for those; log|det| is the sum of theirs.

    So that no column of a table leaves its support: bounded, positive, circular and free ones in one
    flow.

    Args:
        bijectors: of vectors; those with a ``context_dim`` share it.
        columns: for each bijector the positions of its entries; every position once.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for columns that do not hold every position once, and for a bijector of another
            shape.

    Examples:
        >>> import jax, jax_flows
        >>> bijector = jax_flows.Blockwise(
        ...     [jax_flows.Invert(jax_flows.Exp()), jax_flows.Affine(2)], [[1], [0, 2]]
        ... )
        >>> variables = bijector.init(jax.random.key(0))
        >>> bijector.forward(variables, jax.numpy.ones((5, 3)))[0].shape
        (5, 3)
    """

    bijectors: Sequence[Bijector]
    columns: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.instances("Blockwise", "bijectors", self.bijectors, Bijector)
        object.__setattr__(self, "columns", tuple(tuple(block) for block in self.columns))
        _ = self.order, self.context_dim

    @cached_property
    def order(self) -> np.ndarray:
        """Where each entry stands when the blocks come one after the other."""
        shapes = [(b.event_shape, b.latent_shape) for b in self.bijectors]
        return checks.block_order("Blockwise", self.columns, shapes)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (len(self.order),)

    @cached_property
    def context_dim(self) -> int:  # type: ignore[override]
        return checks.common_context_dim("Blockwise", [b.context_dim for b in self.bijectors])

    @property
    def has_batch_statistics(self) -> bool:  # type: ignore[override]
        return any(b.has_batch_statistics for b in self.bijectors)

    def is_bounded(self, inverse: bool = False) -> bool:
        return any(b.is_bounded(inverse) for b in self.bijectors)

    def intervals(self, inverse: bool = False) -> list[Interval]:
        return placed(self.columns, [b.intervals(inverse) for b in self.bijectors])

    def outside(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> Array:
        found = self._each(
            variables, x, context, lambda b, v, part, c: b.outside(v, part, c, inverse)
        )
        return jnp.stack(found).any(0) & ~jnp.isnan(x).any(-1)

    def check_domain(self, x: Any) -> None:
        self._each({}, x, None, lambda b, v, part, c: b.check_domain(part))

    def check_codomain(self, z: Any) -> None:
        self._each({}, z, None, lambda b, v, part, c: b.check_codomain(part))

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        keys = jax.random.split(key, len(self.bijectors))
        return gather(
            {
                f"bijectors_{i}": b.init_variables(k, dtype)
                for i, (b, k) in enumerate(zip(self.bijectors, keys, strict=True))
            },
            lists=True,
        )

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        parts = self._each(variables, x, context, lambda b, v, part, c: b.map_forward(v, part, c))
        return self._joined([z for z, _ in parts]), jnp.stack([term for _, term in parts]).sum(0)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        parts = self._each(variables, z, context, lambda b, v, part, c: b.map_inverse(v, part, c))
        return self._joined([x for x, _ in parts]), jnp.stack([term for _, term in parts]).sum(0)

    def map_point(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> Array:
        return self._joined(
            self._each(
                variables, x, context, lambda b, v, part, c: b.map_point(v, part, c, inverse)
            )
        )

    def map_forward_and_update(
        self, variables: Variables, x: Array, context: Array | None
    ) -> tuple[Array, Array, Variables]:
        parts = self._each(
            variables, x, context, lambda b, v, part, c: b.map_forward_and_update(v, part, c)
        )
        stats = {f"bijectors_{i}": new for i, (_, _, new) in enumerate(parts) if new}
        return self._joined([p[0] for p in parts]), jnp.stack([p[1] for p in parts]).sum(0), stats

    def map_and_initialize(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> tuple[Array, Variables]:
        parts = self._each(
            variables, x, context, lambda b, v, part, c: b.map_and_initialize(v, part, c, inverse)
        )
        new = gather({f"bijectors_{i}": own for i, (_, own) in enumerate(parts)}, lists=True)
        return self._joined([x for x, _ in parts]), new

    def map_and_set_statistics(
        self, variables: Variables, x: Array, context: Array | None, weights: Array | None
    ) -> tuple[Array, Variables]:
        parts = self._each(
            variables,
            x,
            context,
            lambda b, v, part, c: b.map_and_set_statistics(v, part, c, weights),
        )
        stats = {f"bijectors_{i}": new for i, (_, new) in enumerate(parts) if new}
        return self._joined([x for x, _ in parts]), stats

    def _each(
        self, variables: Variables, x: Array, context: Array | None, step: Callable[..., Any]
    ) -> list[Any]:
        """What every bijector makes of its entries."""
        return [
            step(
                b,
                child(variables, f"bijectors_{i}"),
                x[..., np.array(block)],
                context if b.context_dim else None,
            )
            for i, (b, block) in enumerate(zip(self.bijectors, self.columns, strict=True))
        ]

    def _joined(self, parts: Sequence[Array]) -> Array:
        return jnp.concatenate([*parts], -1)[..., as_int32(self.order)]
