"""Pareto smoothed importance sampling."""

from typing import Any, NamedTuple

import numpy as np

from twinflows.inference import arrays

MIN_TAIL = 5


class Smoothed(NamedTuple):
    """Smoothed log-weights, the shape of their tail, and up to which shape they can be trusted."""

    log_weights: np.ndarray
    k: float
    threshold: float


def pareto_smoothed(log_weights: Any) -> Smoothed:
    """Importance weights whose largest are replaced by quantiles of a generalised Pareto law; its k̂.

    The M = min(n / 5, 3√n) largest weights are fitted by the method of Zhang and Stephens, with the prior
    of Vehtari et al. (2024, arXiv:1507.02646), and cut at the largest. k̂ estimates how heavy the
    tail is: moments of order up to 1 / k exist. Above the threshold min(1 - 1 / log₁₀ n, 0.7) means and
    their errors cannot be trusted. The numbers are those of ArviZ's ``psislw``, whose log-weights
    are normalised besides.

    Args:
        log_weights: log p̃ - log q of independent draws of q, shape ``(draws,)``.

    Returns:
        The smoothed log-weights, of the scale and in the order given, k̂ and the threshold. Where the
        largest weights are all equal, there is no tail: k̂ is -inf. Where most of them are 0 beside the
        largest in float64, it is inf. In both cases the weights stay as they are.

    Raises:
        ValueError: for fewer than 25 draws, for fewer than 5 distinct weights in the tail, for a NaN, for
            +inf, where all are -inf, and for another shape.
    """
    owner = "pareto_smoothed"
    log_w = arrays.log_weights(owner, "log_weights", log_weights, 5 * MIN_TAIL)
    if log_w.ndim != 1:
        raise ValueError(f"{owner} expects log_weights of shape (draws,), got {log_w.shape}.")
    count = len(log_w)
    threshold = float(min(1 - 1 / np.log10(count), 0.7))
    size = int(min(count / 5, 3 * count**0.5))
    order = np.argsort(log_w, kind="stable")
    tail = order[count - size :]
    if log_w[tail[0]] == log_w[tail[-1]]:
        return Smoothed(log_w, -np.inf, threshold)
    top, cutoff = log_w[tail[-1]], log_w[order[count - size - 1]]
    tail = tail[log_w[tail] > cutoff]  # ties with the cutoff are no part of it
    if len(tail) < MIN_TAIL:
        raise ValueError(
            f"{owner} expects at least {MIN_TAIL} weights above the {size + 1}th largest, got {len(tail)}."
        )
    floor = np.exp(cutoff - top)
    excess = np.exp(log_w[tail] - top) - floor
    if excess[_quartile(len(excess))] == 0:
        return Smoothed(log_w, np.inf, threshold)
    k, sigma = _fit(excess)
    levels = np.arange(0.5, len(tail)) / len(tail)
    quantiles = floor + sigma * np.expm1(-k * np.log1p(-levels)) / k
    smoothed = log_w.copy()
    smoothed[tail] = top + np.minimum(np.log(quantiles), 0)
    return Smoothed(smoothed, float(k), threshold)


def _quartile(count: int) -> int:
    return int(count / 4 + 0.5) - 1


def _fit(excess: np.ndarray) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto law, from sorted values above 0."""
    count = len(excess)
    grid_size = 30 + int(count**0.5)
    grid = 1 - np.sqrt(grid_size / (np.arange(1, grid_size + 1) - 0.5))
    grid = grid / (3 * excess[_quartile(count)]) + 1 / excess[-1]
    shapes = np.log1p(-grid[:, None] * excess).mean(1)
    log_likelihood = count * (np.log(-grid / shapes) - shapes - 1)
    weights = np.exp(log_likelihood - log_likelihood.max())
    weights /= weights.sum()
    weights[weights < 10 * np.finfo(float).eps] = 0
    inverse_scale = (grid * weights).sum() / weights.sum()
    shape = np.log1p(-inverse_scale * excess).mean()
    prior_strength = 10
    regularized = (count * shape + prior_strength * 0.5) / (count + prior_strength)
    return regularized, -shape / inverse_scale
