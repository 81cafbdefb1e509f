"""Constants of residual networks that both halves share."""

import math

import numpy as np

from flow_bridge import checks
from flow_bridge.architecture import count_entries

SLOPE_BOUNDS = {
    "gelu": 1.1290,
    "gelu_tanh": 1.1291,
    "mish": 1.0885,
    "selu": 1.7581,
    "sigmoid": 0.25,
    "silu": 1.0999,
}
"""The largest slope of each activation, rounded up; 1 for those not listed."""

POWER_STEPS = 5
"""Power iterations in every training step; the vectors start converged and are kept."""

SQUARINGS, BLOCK = 12, 3
"""How often a Gram matrix is squared, and after how many times it is scaled back to norm 1 (before
float32 could underflow). The certified norm of an (m, n) matrix is then at most
min(m, n)^(1 / 2^14) times the true one."""

SMALLEST_SHARE = 1 / 64
"""The smallest part of a Newton step that the line search of the inverse tries."""


def newton_steps(lipschitz: float) -> int:
    """At most so many steps of the inverse, before the two that carry gradients.

    Measured on networks built to be hard (one hidden unit, aligned weights): 12 steps at 0.99, 16 at
    0.999, 32 at 0.9999; on ordinary ones 6.
    """
    return 10 + math.ceil(-2 * math.log2(1 - lipschitz))


def inverse_tolerance(eps: float) -> float:
    """The residual |x + g(x) - z| / (1 + |x| + |z|) that an inverse must reach."""
    return 512 * eps


def inverse_message(num_rows: int, tolerance: float, lipschitz: float) -> str:
    """What an inverse that did not converge says."""
    return (
        f"the inverse of InvertibleResidual did not reach its tolerance {tolerance:.1e} within "
        f"{newton_steps(lipschitz)} steps in {num_rows} of the rows."
    )


def check_eval_terms(owner: str, eval_terms: int | None, log_det: str) -> None:
    """Raise ``ValueError`` unless the number of terms is ``None``, or positive and of a series."""
    if eval_terms is None:
        return
    checks.positive_int(owner, eval_terms=eval_terms)
    if log_det != "series":
        raise ValueError(
            f'{owner} takes eval_terms with log_det="series" only, got eval_terms={eval_terms!r} '
            f"and log_det={log_det!r}."
        )


def stop_probability(owner: str, value: float | None, lipschitz: float) -> float:
    """The roulette's probability to stop at each term; by default half of what it must stay below.

    Raises:
        ValueError: where the variance of the estimate would be infinite.
    """
    limit = 1 - lipschitz**2
    if value is None:
        return limit / 2
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < limit:
        raise ValueError(
            f"{owner} expects stop_probability between 0 and 1 - lipschitz^2 = {limit:.4g}, above "
            f"which the estimate has infinite variance, got {value!r}."
        )
    return float(value)


def roulette_length(stop: float) -> int:
    """How many numbers of terms the roulette can tell apart.

    Raises:
        ValueError: for a roulette that would need more than 2^20.
    """
    length = math.ceil(32 * math.log(2) / -math.log1p(-stop))
    if length > 1 << 20:
        raise ValueError(
            f"InvertibleResidual expects a stop_probability of at least {32 * math.log(2) / 2**20:.2g} "
            f"in a series, got {stop!r} (half of 1 - lipschitz^2 if not given)."
        )
    count_entries(length)
    return length


def roulette_thresholds(stop: float) -> np.ndarray:
    """Integers t: the number of t[j] above a uniform 32-bit integer is geometric, P(N >= j) = q^j."""
    survival = np.exp(np.arange(1, roulette_length(stop) + 1) * np.log1p(-stop))
    return np.floor(survival * 2**32).astype(np.int64)


def truncation_bound(dim: int, lipschitz: float, num_terms: int) -> float:
    """The largest error of the series cut after ``num_terms``: d L^(n+1) / ((n+1) (1-L))."""
    return dim * lipschitz ** (num_terms + 1) / ((num_terms + 1) * (1 - lipschitz))
