"""Learning rates as functions of the step, in plain Python: the same numbers in both backends."""

import math
from collections.abc import Callable

from flow_bridge import checks

Schedule = Callable[[int], float]


def warmup_cosine(peak: float, warmup_steps: int, total_steps: int, floor: float = 0.0) -> Schedule:
    """From 0 to ``peak`` in a straight line, then half a cosine down to ``floor``, which stays.

    Args:
        peak: the largest rate, that of step ``warmup_steps``.
        warmup_steps: 0 begins at the peak; step 0 has ``peak / (warmup_steps + 1)``, not 0.
        total_steps: the step that reaches the floor.
        floor: the smallest rate of the second part.

    Raises:
        ValueError: for numbers out of range.

    Reference: Loshchilov and Hutter (2017), SGDR, arXiv:1608.03983.

    Examples:
        >>> from flow_bridge.schedules import warmup_cosine
        >>> rate = warmup_cosine(1.0, 1, 5)
        >>> [round(rate(step), 3) for step in range(7)]
        [0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    _check("warmup_cosine", peak, warmup_steps, total_steps, floor)

    def rate(step: int) -> float:
        if step < warmup_steps:
            return peak * (step + 1) / (warmup_steps + 1)
        share = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
        return floor + (peak - floor) * (1 + math.cos(math.pi * share)) / 2

    return rate


def warmup_linear(peak: float, warmup_steps: int, total_steps: int, floor: float = 0.0) -> Schedule:
    """As ``warmup_cosine``, but down in a straight line."""
    _check("warmup_linear", peak, warmup_steps, total_steps, floor)

    def rate(step: int) -> float:
        if step < warmup_steps:
            return peak * (step + 1) / (warmup_steps + 1)
        share = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
        return peak + (floor - peak) * share

    return rate


def exponential_decay(
    start: float, factor: float, every: int, floor: float = 0.0, stairs: bool = False
) -> Schedule:
    """``start * factor ** (step / every)``, at least ``floor``.

    Args:
        start: the rate of step 0.
        factor: in (0, 1].
        every: steps in which the rate falls by the factor.
        floor: the smallest rate.
        stairs: fall at once after ``every`` steps, and stay in between.

    Raises:
        ValueError: for numbers out of range.
    """
    checks.positive_number("exponential_decay", start=start, factor=factor)
    checks.positive_int("exponential_decay", every=every)
    if not factor <= 1:
        raise ValueError(f"exponential_decay expects factor to be at most 1, got {factor!r}.")
    _check_floor("exponential_decay", start, floor)

    def rate(step: int) -> float:
        return max(floor, start * factor ** (step // every if stairs else step / every))

    return rate


def _check(owner: str, peak: float, warmup_steps: int, total_steps: int, floor: float) -> None:
    checks.positive_number(owner, peak=peak)
    checks.non_negative_int(owner, warmup_steps=warmup_steps)
    checks.positive_int(owner, total_steps=total_steps)
    if total_steps <= warmup_steps:
        raise ValueError(
            f"{owner} expects total_steps above warmup_steps, got {total_steps} and {warmup_steps}."
        )
    _check_floor(owner, peak, floor)


def _check_floor(owner: str, peak: float, floor: float) -> None:
    if not 0 <= floor <= peak:
        raise ValueError(f"{owner} expects floor to be from 0 to {peak!r}, got {floor!r}.")
