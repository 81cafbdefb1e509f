"""Flows of whole numbers with noise, for both halves."""

import math
from collections.abc import Sequence
from typing import Any

from flow_bridge import checks

OWNER = "Dequantized"


def noise_shape_of(
    flow: Any, noise: Any, num_levels: int | None, integers: Sequence[int] | None
) -> tuple[int, ...]:
    """The shape of the noise of one event, once the parts of ``Dequantized`` fit together."""
    if None in flow.event_shape:
        raise ValueError(
            f"{OWNER} expects a flow of one event shape, got {checks.describe(flow.event_shape)}."
        )
    shape = tuple(flow.event_shape)
    if num_levels is not None:
        checks.positive_int(OWNER, num_levels=num_levels)
        if integers is not None:
            raise ValueError(f"{OWNER} takes num_levels or integers, not both.")
    if integers is not None:
        positions = list(integers)
        if len(shape) != 1 or not positions or not _are_positions(positions, shape[0]):
            raise ValueError(
                f"{OWNER} expects integers as different positions in a vector, got {positions} for "
                f"event shape {checks.describe(shape)}."
            )
        shape = (len(positions),)
    for name, part in (("flow", flow), ("noise", noise)):
        if part is not None and part.has_batch_statistics:
            raise ValueError(f"{OWNER} takes no batch statistics, as {name} has them.")
    if noise is not None:
        _check_noise(noise, shape, flow)
    return shape


def _check_noise(noise: Any, shape: tuple[int, ...], flow: Any) -> None:
    context_dim = math.prod(flow.event_shape) + flow.context_dim
    if tuple(noise.event_shape) != shape or noise.context_dim != context_dim:
        raise ValueError(
            f"{OWNER} expects noise of event shape {checks.describe(shape)} and context_dim {context_dim}, "
            f"x and the context, got {checks.describe(noise.event_shape)} and {noise.context_dim}."
        )
    for low, high in noise.bijector.intervals(True):
        if low < 0 or high > 1:
            raise ValueError(
                f"{OWNER} expects noise inside (0, 1), got a flow on ({low:g}, {high:g}): begin it with "
                "Logit()."
            )


def _are_positions(positions: Sequence[Any], dim: int) -> bool:
    kinds = all(isinstance(i, int) and not isinstance(i, bool) for i in positions)
    return kinds and len(set(positions)) == len(positions) and set(positions) <= set(range(dim))
