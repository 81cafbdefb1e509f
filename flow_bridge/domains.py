"""Where a bijector's inputs and outputs lie."""

import math
from typing import NamedTuple

import ml_dtypes
import numpy as np

from flow_bridge.weights import DTYPES


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
        kind, info = DTYPES[dtype], ml_dtypes.finfo(DTYPES[dtype])
        tiny, largest = float(info.smallest_normal), float(info.max)

        def inwards(end: float, towards: float) -> float:
            if end == 0:
                return 0.0 if self.closed else math.copysign(tiny, towards)
            value = kind.type(min(max(end, -largest), largest))
            depth = (float(value) - end) * towards
            if math.isfinite(end) and (depth < 0 or (depth == 0 and not self.closed)):
                value = np.nextafter(value, kind.type(math.copysign(math.inf, towards)))
            return float(value)

        return inwards(self.low, 1.0), inwards(self.high, -1.0)


class ClosedInterval(Interval):
    """The closed interval [low, high], of two finite ends."""

    @property
    def closed(self) -> bool:
        return True


REALS = Interval(-math.inf, math.inf)
POSITIVE = Interval(0.0, math.inf)
