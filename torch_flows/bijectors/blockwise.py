"""One bijector for these entries, another for those."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.domains import Interval, placed
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.registry import register


@register
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
        >>> import torch, torch_flows
        >>> bijector = torch_flows.Blockwise(
        ...     [torch_flows.Invert(torch_flows.Exp()), torch_flows.Affine(2)], [[1], [0, 2]]
        ... )
        >>> tuple(bijector.forward(torch.ones(5, 3))[0].shape)
        (5, 3)
    """

    bijectors: Sequence[Bijector]
    order: Tensor

    def __init__(self, bijectors: Sequence[Bijector], columns: Sequence[Sequence[int]]) -> None:
        super().__init__()
        checks.instances("Blockwise", "bijectors", bijectors, Bijector)
        shapes = [(b.event_shape, b.latent_shape) for b in bijectors]
        order = checks.block_order("Blockwise", columns, shapes)
        self.bijectors = nn.ModuleList(bijectors)  # type: ignore[assignment]
        self.columns = tuple(tuple(block) for block in columns)
        self.event_shape = (len(order),)
        self.context_dim = checks.common_context_dim(
            "Blockwise", [b.context_dim for b in bijectors]
        )
        for i, block in enumerate(self.columns):
            self.register_buffer(f"columns_{i}", torch.as_tensor(block), persistent=False)
        self.register_buffer("order", torch.as_tensor(order), persistent=False)

    @property
    def has_batch_statistics(self) -> bool:  # type: ignore[override]
        return any(b.has_batch_statistics for b in self.bijectors)

    def is_bounded(self, inverse: bool = False) -> bool:
        return any(b.is_bounded(inverse) for b in self.bijectors)

    def intervals(self, inverse: bool = False) -> list[Interval]:
        return placed(self.columns, [b.intervals(inverse) for b in self.bijectors])

    def outside(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        found = self._each(x, context, lambda b, part, c: b.outside(part, c, inverse))
        return torch.stack(found).any(0) & ~x.isnan().any(-1)

    def check_domain(self, x: Tensor) -> None:
        self._each(x, None, lambda b, part, c: b.check_domain(part))

    def check_codomain(self, z: Tensor) -> None:
        self._each(z, None, lambda b, part, c: b.check_codomain(part))

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        parts = self._each(x, context, lambda b, part, c: b.map_forward(part, c))
        return self._joined([z for z, _ in parts]), torch.stack([term for _, term in parts]).sum(0)

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        parts = self._each(z, context, lambda b, part, c: b.map_inverse(part, c))
        return self._joined([x for x, _ in parts]), torch.stack([term for _, term in parts]).sum(0)

    def map_point(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        return self._joined(
            self._each(x, context, lambda b, part, c: b.map_point(part, c, inverse))
        )

    def map_and_initialize(
        self, x: Tensor, context: Tensor | None, inverse: bool = False
    ) -> Tensor:
        return self._joined(
            self._each(x, context, lambda b, part, c: b.map_and_initialize(part, c, inverse))
        )

    def map_and_set_statistics(
        self, x: Tensor, context: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        return self._joined(
            self._each(x, context, lambda b, part, c: b.map_and_set_statistics(part, c, weights))
        )

    def _each(self, x: Tensor, context: Tensor | None, step: Callable[..., Any]) -> list[Any]:
        """What every bijector makes of its entries."""
        return [
            step(
                b,
                x.index_select(-1, self.get_buffer(f"columns_{i}")),
                context if b.context_dim else None,
            )
            for i, b in enumerate(self.bijectors)
        ]

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([*parts], -1).index_select(-1, self.order)
