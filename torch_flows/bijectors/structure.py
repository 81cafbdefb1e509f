"""Bijectors made of others."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.domains import Interval
from torch_flows.bijectors.base import Bijector, Output, Shape
from torch_flows.registry import register


@register
class Chain(Bijector):
    """Composition: forward applies ``bijectors`` in order, inverse in reverse; log-dets add up.

    Args:
        bijectors: at least one, each of the event shape that the one before it makes; those with a
            ``context_dim`` share it.

    Raises:
        ValueError: if the list is empty or its members disagree.

    Examples:
        >>> import torch, torch_flows
        >>> chain = torch_flows.Chain([torch_flows.Affine(2), torch_flows.Tanh()])
        >>> z, log_det = chain.forward(torch.zeros(5, 2))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 2), (5,))
    """

    bijectors: Sequence[Bijector]

    def __init__(self, bijectors: Sequence[Bijector]) -> None:
        super().__init__()
        if not bijectors:
            raise ValueError("Chain expects at least one bijector.")
        checks.instances("Chain", "bijectors", bijectors, Bijector)
        self.bijectors = nn.ModuleList(bijectors)  # type: ignore[assignment]
        self.event_shape = checks.chain_event_shape("Chain", bijectors)
        self.context_dim = checks.common_context_dim("Chain", [b.context_dim for b in bijectors])
        self.domain, self.codomain = bijectors[0].domain, bijectors[-1].codomain

    @property
    def has_batch_statistics(self) -> bool:  # type: ignore[override]
        return any(b.has_batch_statistics for b in self.bijectors)

    def __len__(self) -> int:
        return len(self.bijectors)

    def __iter__(self) -> Iterator[Bijector]:
        return iter(self.bijectors)

    @overload
    def __getitem__(self, index: int) -> Bijector: ...

    @overload
    def __getitem__(self, index: slice) -> "Chain": ...

    def __getitem__(self, index: int | slice) -> "Bijector | Chain":
        """One member, or a chain of several, which it shares."""
        return Chain(self.bijectors[index]) if isinstance(index, slice) else self.bijectors[index]

    def map_shape(self, shape: Shape, inverse: bool = False) -> Shape:
        for bijector in list(self.bijectors)[:: -1 if inverse else 1]:
            shape = bijector.map_shape(shape, inverse)
        return shape

    def is_bounded(self, inverse: bool = False) -> bool:
        return any(bijector.is_bounded(inverse) for bijector in self.bijectors)

    def intervals(self, inverse: bool = False) -> list[Interval]:
        return self.bijectors[0 if inverse else -1].intervals(inverse)

    def outside(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        if not self.is_bounded(inverse):
            return super().outside(x, context, inverse)
        bijectors = list(self.bijectors)[:: -1 if inverse else 1]
        while not bijectors[-1].is_bounded(inverse):
            bijectors.pop()
        found = []
        for bijector in bijectors:
            layer_context = context if bijector.context_dim else None
            found.append(bijector.outside(x, layer_context, inverse))
            if bijector is not bijectors[-1]:
                step = bijector.map_inverse if inverse else bijector.map_forward
                x, _ = step(x, layer_context)
        return torch.stack(found).any(0)

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        x, log_dets = self._run(x, context)
        return x, torch.stack(log_dets).sum(0)

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        x, log_dets = self._run(z, context, inverse=True)
        return x, torch.stack(log_dets).sum(0)

    def map_point(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        return self._run(x, context, inverse, points=True)[0]

    def _run(
        self,
        x: Tensor,
        context: Tensor | None,
        inverse: bool = False,
        points: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """What the chain makes of x, and the terms of the log-determinant, not all of them if ``points``."""
        log_dets = []
        # Couplings of the same parts hand them on: x is put together only where that ends.
        parts: Any = None
        partition: Any = None
        fixed = free = x
        for run in _runs(reversed(self.bijectors) if inverse else self.bijectors):
            bijector = run[0]
            layer_context = context if bijector.context_dim else None
            own_parts = bijector.parts if bijector.couples else None
            if partition is not None and own_parts != parts:
                x, partition = partition.merge(fixed, free), None
            if len(run) > 1:
                x, log_det = bijector.map_stack(x, layer_context, run, inverse)
            elif own_parts is None and points:
                x = bijector.map_point(x, layer_context, inverse)
                continue
            elif own_parts is None:
                step = bijector.map_inverse if inverse else bijector.map_forward
                x, log_det = step(x, layer_context)
            else:
                before, partition, parts = partition, bijector.partition, own_parts
                if before is None:
                    fixed, free = partition.split(x)
                elif before.fixed_leads != partition.fixed_leads:
                    fixed, free = free, fixed
                free, log_det = bijector.couple(fixed, free, layer_context, inverse)
            log_dets.append(log_det)
        if partition is not None:
            x = partition.merge(fixed, free)
        return x, log_dets

    def map_steps(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> list[Output]:
        steps = []
        for bijector in self.bijectors[:: -1 if inverse else 1]:
            step = bijector.map_inverse if inverse else bijector.map_forward
            x, log_det = step(x, context if bijector.context_dim else None)
            steps.append((x, log_det))
        return steps

    def map_score(
        self,
        x: Tensor,
        score: Tensor,
        context: Tensor | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_dets = []
        for bijector in self.bijectors[:: -1 if inverse else 1]:
            layer_context = context if bijector.context_dim else None
            x, log_det, score = bijector.map_score(x, score, layer_context, inverse, differentiable)
            log_dets.append(log_det)
        return x, torch.stack(log_dets).sum(0), score

    def map_and_initialize(
        self, x: Tensor, context: Tensor | None, inverse: bool = False
    ) -> Tensor:
        for bijector in self.bijectors[:: -1 if inverse else 1]:
            x = bijector.map_and_initialize(x, context if bijector.context_dim else None, inverse)
        return x

    def map_and_set_statistics(
        self, x: Tensor, context: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        for bijector in self.bijectors:
            layer_context = context if bijector.context_dim else None
            x = bijector.map_and_set_statistics(x, layer_context, weights)
        return x


def _runs(bijectors: Iterable[Any]) -> list[list[Any]]:
    """Neighbours of one class and size that map as a stack, and every other one by itself."""
    runs: list[list[Any]] = []
    last: Any = None
    for bijector in bijectors:
        key = (type(bijector), bijector.stack_sizes) if bijector.stacks else None
        if key and key == last:
            runs[-1].append(bijector)
        else:
            runs.append([bijector])
        last = key
    return runs


@register
class Invert(Bijector):
    """Swaps the two directions of a bijector.

    The bijector is put in evaluation mode and stays there: in training both directions use the running
    averages, which do not change.

    Args:
        bijector: the one to turn around.

    Examples:
        >>> import torch, torch_flows
        >>> log = torch_flows.Invert(torch_flows.Exp())
        >>> log.forward(torch.ones(2))[0].tolist()
        [0.0, 0.0]
    """

    def __init__(self, bijector: Bijector) -> None:
        super().__init__()
        checks.instances("Invert", "bijector", [bijector], Bijector)
        self.bijector = bijector.eval()
        self.event_shape = bijector.latent_shape
        self.context_dim = bijector.context_dim
        self.domain, self.codomain = bijector.codomain, bijector.domain

    def map_shape(self, shape: Shape, inverse: bool = False) -> Shape:
        return self.bijector.map_shape(shape, not inverse)

    def is_bounded(self, inverse: bool = False) -> bool:
        return self.bijector.is_bounded(not inverse)

    def intervals(self, inverse: bool = False) -> list[Interval]:
        return self.bijector.intervals(not inverse)

    def outside(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        return self.bijector.outside(x, context, not inverse)

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        return self.bijector.map_inverse(x, context)

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        return self.bijector.map_forward(z, context)

    def map_point(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        return self.bijector.map_point(x, context, not inverse)

    def map_score(
        self,
        x: Tensor,
        score: Tensor,
        context: Tensor | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.bijector.map_score(x, score, context, not inverse, differentiable)

    def map_and_initialize(
        self, x: Tensor, context: Tensor | None, inverse: bool = False
    ) -> Tensor:
        return self.bijector.map_and_initialize(x, context, not inverse)

    def train(self, mode: bool = True) -> "Invert":
        self.training = mode
        self.bijector.eval()
        return self
