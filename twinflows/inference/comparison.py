"""Which of two models predicts held-out rows better?"""

from typing import Any, NamedTuple

import numpy as np

from flow_bridge import optional
from twinflows.inference import arrays


class Comparison(NamedTuple):
    """Mean of log p_a - log p_b in nats, its standard error, and the p-value of no difference."""

    difference: float
    standard_error: float
    pvalue: float


def compare_log_likelihoods(log_prob_a: Any, log_prob_b: Any) -> Comparison:
    """Paired test of two models on the same held-out rows: mean and error of log p_a(x) - log p_b(x).

    Rows that are hard for both cancel, so that the error is that of the difference and not that of two
    means. The p-value is that of Student's t, two-sided: of independent rows, about the two models as
    they are, and not about how they would come out of another training.

    Args:
        log_prob_a: log-densities of held-out rows, shape ``(rows,)``.
        log_prob_b: of the same rows, in the same order.

    Raises:
        ValueError: for fewer than 2 rows, a NaN or an infinity, and shapes that do not match.
        ImportError: without SciPy.

    Examples:
        >>> compare_log_likelihoods([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
        Comparison(difference=0.0, standard_error=0.0, pvalue=1.0)
    """
    differences = paired_differences("compare_log_likelihoods", log_prob_a, log_prob_b)
    special = optional.host("compare_log_likelihoods", "scipy.special", "SciPy", "inference")
    count, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / count**0.5
    if error == 0:
        return Comparison(mean, 0.0, float(mean == 0))
    return Comparison(mean, error, float(2 * special.stdtr(count - 1, -abs(mean) / error)))


def paired_differences(owner: str, log_prob_a: Any, log_prob_b: Any) -> np.ndarray:
    """log p_a - log p_b of each row."""
    a = arrays.rows(owner, "log_prob_a", log_prob_a)
    b = arrays.rows(owner, "log_prob_b", log_prob_b)
    arrays.same_shape(owner, "log_prob_a", a, "log_prob_b", b)
    if a.ndim != 1:
        raise ValueError(f"{owner} expects log_prob_a of shape (rows,), got {a.shape}.")
    return a - b
