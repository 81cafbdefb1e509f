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
        outside = values[~((values > self.low) & (values < self.high))]
        if outside.size:
            low, high = (f"{bound:g}" for bound in self)
            raise ValueError(
                f"{owner} expects {name} inside ({low}, {high}), got {float(outside[0])!r}."
            )

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
                return math.copysign(tiny, towards)
            value = kind.type(min(max(end, -largest), largest))
            if (float(value) - end) * towards <= 0 and math.isfinite(end):
                value = np.nextafter(value, kind.type(math.copysign(math.inf, towards)))
            return float(value)

        return inwards(self.low, 1.0), inwards(self.high, -1.0)


REALS = Interval(-math.inf, math.inf)
POSITIVE = Interval(0.0, math.inf)
