"""The constants of the rational-quadratic spline."""

import math

from flow_bridge import checks

MIN_SIZE = 1e-3
"""The least width and height of a bin, as a share of the box."""

MIN_DERIVATIVE = 1e-3
"""The least derivative at a knot."""

DERIVATIVE_OFFSET = math.log(math.expm1(1 - MIN_DERIVATIVE))
"""Added to a raw derivative, so that 0 stands for the derivative 1."""


def check_spline(owner: str, num_bins: int, tail_bound: float) -> None:
    """Raise ``ValueError`` for bins that do not fit or a bound that is not positive."""
    checks.positive_int(owner, num_bins=num_bins)
    checks.positive_number(owner, tail_bound=tail_bound)
    if not 1e-15 <= tail_bound <= 1e15:
        raise ValueError(
            f"{owner} expects tail_bound from 1e-15 to 1e15, whose squares float32 holds, got "
            f"{tail_bound!r}."
        )
    if num_bins * MIN_SIZE >= 1:
        raise ValueError(f"{owner} expects num_bins below {1 / MIN_SIZE:.0f}, got {num_bins}.")
