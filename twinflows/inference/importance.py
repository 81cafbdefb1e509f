"""Importance sampling: a flow q as the proposal of an unnormalised density p̃.

Log-weights are log w = log p̃(x) - log q(x), in nats, of shape ``(draws,)`` or ``(draws, ...)`` with a
result for each of the other axes: what ``flow.sample_and_log_prob(draws, context)`` leads to. They
are arrays of numpy, PyTorch or JAX, computed with in float64. The draws are independent ones of q, unless
something else is said.
"""

from typing import Any, NamedTuple

import numpy as np

from flow_bridge import checks
from twinflows.inference import arrays


class Estimate(NamedTuple):
    """A number and its standard error; arrays of them for log-weights of several axes."""

    value: Any
    standard_error: Any


class Chain(NamedTuple):
    """A Markov chain as indices of the draws that were proposed, and how many were accepted."""

    indices: np.ndarray
    acceptance_rate: float


def normalized_weights(log_weights: Any) -> np.ndarray:
    """w / Σ w over the draws, of the shape of ``log_weights``.

    Raises:
        ValueError: for a NaN, for +inf, and where all are -inf.

    Examples:
        >>> normalized_weights([0.0, float("-inf"), 0.0]).tolist()
        [0.5, 0.0, 0.5]
    """
    log_w = arrays.log_weights("normalized_weights", "log_weights", log_weights, 1)
    weights = np.exp(log_w - log_w.max(0))
    return weights / weights.sum(0)


def effective_sample_size(log_weights: Any, drawn_from: str = "proposal") -> Any:
    """How many independent draws of p the weighted ones are worth: (Σ w)² / Σ w², from 1 to n (Kish).

    For a target N(0, 1) and a proposal N(0, s²) its share of n goes to √(2s² - 1) / s² if s² > 1/2, and to
    0 otherwise. A q that misses a mode of p is not found out by its own draws; with draws of the
    target, ESS = n / (mean w · mean 1/w) is (Nicoli et al., 2023); that takes a q with tails that draws of p
    reach.

    Args:
        log_weights: shape ``(draws, ...)``, see the module.
        drawn_from: ``"proposal"``, or ``"target"`` where x are draws of p.

    Returns:
        A number, or an array of the other axes.

    Raises:
        ValueError: for a NaN, for +inf, where all are -inf, and with draws of the target for any -inf.

    Examples:
        >>> effective_sample_size([0.0, 0.0, float("-inf")])
        2.0
    """
    owner = "effective_sample_size"
    checks.one_of(owner, "drawn_from", drawn_from, ("proposal", "target"))
    log_w = arrays.log_weights(owner, "log_weights", log_weights, 1)
    count = len(log_w)
    if drawn_from == "target":
        _refuse_zeros(owner, log_w)
        log_mean, log_mean_inverse = (arrays.log_mean_exp(sign * log_w) for sign in (1, -1))
        return arrays.plain(count * np.exp(np.minimum(-log_mean - log_mean_inverse, 0)))
    weights = np.exp(log_w - log_w.max(0))
    return arrays.plain(np.clip(weights.sum(0) ** 2 / (weights**2).sum(0), 1, count))


def log_evidence(log_weights: Any) -> Estimate:
    """log Z = log ∫ p̃, estimated by log mean w; the standard error is √(1 / ESS - 1 / n).

    The estimate of Z is unbiased, so that of log Z is low, by half the squared error. The error is
    that of the delta method: it holds where it is small, and where k̂ of ``pareto_smoothed`` is
    below its threshold.

    Args:
        log_weights: shape ``(draws, ...)``, see the module.

    Raises:
        ValueError: for fewer than 2 draws, for a NaN, for +inf, and where all are -inf.

    Examples:
        >>> log_evidence([1.0, 1.0, 1.0])
        Estimate(value=1.0, standard_error=0.0)
    """
    log_w = arrays.log_weights("log_evidence", "log_weights", log_weights)
    inverse = 1 / np.asarray(effective_sample_size(log_w)) - 1 / len(log_w)
    error = np.sqrt(np.maximum(inverse, 0))
    return Estimate(arrays.plain(arrays.log_mean_exp(log_w)), arrays.plain(error))


def elbo(log_weights: Any) -> Estimate:
    """The lower bound E_q[log w] = log Z - KL(q || p), with the standard error of the mean.

    It is -inf, with NaN as its error, where q draws what p excludes.

    Args:
        log_weights: shape ``(draws, ...)``, see the module.

    Raises:
        ValueError: for fewer than 2 draws, for a NaN, for +inf, and where all are -inf.
    """
    return _mean(arrays.log_weights("elbo", "log_weights", log_weights))


def eubo(log_weights: Any) -> Estimate:
    """The upper bound E_p[log w] = log Z + KL(p || q), of draws of the target, with its standard error.

    The error is that of independent draws; those of a Markov chain are to be thinned first. Unlike
    ``elbo`` it sees the modes that q misses (Blessing et al., 2024).

    Args:
        log_weights: shape ``(draws, ...)``, where the draws are of p.

    Raises:
        ValueError: for fewer than 2 draws, and for a NaN or an infinity.
    """
    log_w = arrays.log_weights("eubo", "log_weights", log_weights)
    _refuse_zeros("eubo", log_w)
    return _mean(log_w)


def importance_resample(
    log_weights: Any, num_draws: int, method: str = "systematic", seed: Any = 0
) -> np.ndarray:
    """Indices of draws, chosen in proportion to their weights and with replacement, in random order.

    ``x[indices]`` are approximate draws of p, good where ``effective_sample_size`` is many times
    ``num_draws``.

    Args:
        log_weights: shape ``(draws,)``.
        num_draws: how many to choose.
        method: ``"systematic"``: draw i is chosen ⌊num_draws wᵢ⌋ or ⌈num_draws wᵢ⌉ times, which adds the
            least noise (Kitagawa, 1996), or ``"multinomial"``: independently.
        seed: an integer or a ``numpy.random.Generator``.

    Returns:
        Integers of shape ``(num_draws,)``.

    Raises:
        ValueError: for a NaN, for +inf, where all are -inf, and for another shape.
    """
    owner = "importance_resample"
    num_draws = arrays.count(owner, "num_draws", num_draws)
    checks.one_of(owner, "method", method, ("systematic", "multinomial"))
    weights = normalized_weights(_one_axis(owner, log_weights, 1))
    generator = arrays.generator(owner, seed)
    if method == "multinomial":
        return generator.choice(len(weights), num_draws, p=weights)
    positions = (np.arange(num_draws) + generator.uniform()) / num_draws
    sums = weights.cumsum()
    chosen = np.searchsorted(sums / sums[-1], positions, side="right")
    last = np.flatnonzero(weights)[-1]  # rounding may put a position on 1
    return generator.permutation(np.minimum(chosen, last))


def independence_metropolis(log_weights: Any, seed: Any = 0) -> Chain:
    """Metropolis-Hastings whose proposals are the draws of the flow: accept with min(1, w(x') / w(x)).

    Its draws are exactly p's in the limit, however bad the flow (Tierney, 1994); the longest stay tells
    how bad. The chain starts at the first draw whose weight is above 0.

    Args:
        log_weights: shape ``(draws,)``, in the order in which they are proposed.
        seed: an integer or a ``numpy.random.Generator``.

    Returns:
        The chain: ``x[chain.indices]`` are its states, one for each draw from the start on, and the
        rate of acceptance.

    Raises:
        ValueError: for fewer than 2 draws, for a NaN, for +inf, where all are -inf, for another shape.
    """
    log_w = _one_axis("independence_metropolis", log_weights, 2)
    uniforms = arrays.generator("independence_metropolis", seed).uniform(size=len(log_w))
    start = int(np.flatnonzero(log_w > -np.inf)[0])
    # 1 - u lies in (0, 1]: its logarithm is finite
    bars, values = np.log1p(-uniforms).tolist(), log_w.tolist()
    indices, current, accepted = [start], start, 0
    for i in range(start + 1, len(values)):
        if bars[i] < values[i] - values[current]:
            current = i
            accepted += 1
        indices.append(current)
    steps = len(indices) - 1
    return Chain(np.array(indices), accepted / steps if steps else 0.0)


def _one_axis(owner: str, log_weights: Any, at_least: int) -> np.ndarray:
    log_w = arrays.log_weights(owner, "log_weights", log_weights, at_least)
    if log_w.ndim != 1:
        raise ValueError(f"{owner} expects log_weights of shape (draws,), got {log_w.shape}.")
    return log_w


def _refuse_zeros(owner: str, log_w: np.ndarray) -> None:
    if np.isneginf(log_w).any():
        raise ValueError(f"{owner} got -inf in log_weights: draws of the target have a weight.")


def _mean(values: np.ndarray) -> Estimate:
    with np.errstate(invalid="ignore"):
        error = values.std(0, ddof=1) / np.sqrt(len(values))
    return Estimate(arrays.plain(values.mean(0)), arrays.plain(error))
