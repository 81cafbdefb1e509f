"""Where a bijector's inputs and outputs lie."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """The open interval (low, high), for every entry of an event."""

    low: float
    high: float

    def check(self, owner: str, name: str, values: np.ndarray) -> None:
        """Raise ``ValueError`` unless all values lie inside; NaN does not."""
        inside = (values > self.low) & (values < self.high)
        if self.closed:
            inside |= (values == self.low) | (values == self.high)
        if not inside.all():
            low, high = (f"{bound:g}" for bound in self)
            described = f"[{low}, {high}]" if self.closed else f"({low}, {high})"
            raise ValueError(
                f"{owner} expects {name} inside {described}, got {float(values[~inside][0])!r}."
            )

    @property
    def closed(self) -> bool:
        """Whether the ends belong to it."""
        return False

    @property
    def middle(self) -> float:
        """A point inside."""
        if math.isinf(self.low) and math.isinf(self.high):
            return 0.0
        if math.isinf(self.low) or math.isinf(self.high):
            return self.high - 1 if math.isinf(self.low) else self.low + 1
        return (self.low + self.high) / 2

    def ends(self, dtype: str) -> tuple[float, float]:
        """The first and the last normal number of a dtype inside."""
        return _first_inside(self.low, dtype, self.closed), -_first_inside(
            -self.high, dtype, self.closed
        )


def _first_inside(low: float, dtype: str, closed: bool) -> float:
    """The first number of a dtype above a bound (or at it): in plain Python, which compiles."""
    digits, tiny, largest = _NUMBERS[dtype]
    if abs(low) > largest:
        return math.copysign(largest, low)
    if low == 0:
        return 0.0 if closed else tiny
    mantissa, exponent = math.frexp(low)
    unit = math.ldexp(1.0, exponent - digits)
    value = math.ceil(low / unit) * unit
    if value > low or closed:
        return value
    return value + (unit / 2 if mantissa == -0.5 else unit)


_NUMBERS = {
    "float64": (53, 2.0**-1022, (2 - 2.0**-52) * 2.0**1023),
    "float32": (24, 2.0**-126, (2 - 2.0**-23) * 2.0**127),
    "bfloat16": (8, 2.0**-126, (2 - 2.0**-7) * 2.0**127),
    "float16": (11, 2.0**-14, (2 - 2.0**-10) * 2.0**15),
}
"""Binary digits, the smallest normal number and the largest of each dtype."""


class ClosedInterval(Interval):
    """The closed interval [low, high], of two finite ends."""

    @property
    def closed(self) -> bool:
        return True


def placed(
    columns: Sequence[Sequence[int]], blocks: Sequence[Sequence[Interval]]
) -> list[Interval]:
    """The interval of every column, from one of each block or one of each of its columns."""
    found: dict[int, Interval] = {}
    for block, intervals in zip(columns, blocks, strict=True):
        every = list(intervals) if len(intervals) == len(block) else list(intervals) * len(block)
        found.update(zip(block, every, strict=True))
    return [found[column] for column in range(len(found))]


def check_inside(intervals: Sequence[Interval], owner: str, name: str, values: np.ndarray) -> None:
    """``Interval.check`` of all values, or where there are several intervals of each of the last axis."""
    if len(set(intervals)) == 1:
        intervals[0].check(owner, name, values)
    else:
        for i, interval in enumerate(intervals):
            interval.check(owner, name, values[..., i])


REALS = Interval(-math.inf, math.inf)
POSITIVE = Interval(0.0, math.inf)
