"""Where a bijector's inputs and outputs lie."""

import math
from typing import NamedTuple

import numpy as np


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


REALS = Interval(-math.inf, math.inf)
POSITIVE = Interval(0.0, math.inf)
