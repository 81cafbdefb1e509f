"""Calibration: is a conditional density q(θ | x) as sure as it may be?

The checks take N pairs (θ, x) of the model that q was trained for, and L draws of q(θ | x) for the x of
each, as ``flow.sample(L, x)`` gives them: shape ``(L, N, dim)``. They make ranks from 0 to L, uniform if q is
calibrated, for ``rank_test``, ``expected_coverage``, ``draw_ranks`` and ``draw_coverage``. Arrays are of
numpy, PyTorch or JAX.
"""

from typing import Any, NamedTuple

import numpy as np

from flow_bridge import optional
from twinflows.inference import arrays


class Uniformity(NamedTuple):
    """A statistic and its p-value; arrays of them for several columns."""

    statistic: Any
    pvalue: Any


class LatentPIT(NamedTuple):
    """Probability integral transforms of latents: of each entry, and of the distance from 0."""

    entries: np.ndarray
    radius: np.ndarray


class Bands(NamedTuple):
    """What an empirical distribution function of uniform values stays between."""

    points: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Coverage(NamedTuple):
    """Which part of the true parameters lies in credible regions of which content."""

    credibility: np.ndarray
    coverage: np.ndarray


def latent_pit(z: Any) -> LatentPIT:
    """Φ(z) of every entry and F(‖z‖²) of every row, F that of χ² with as many degrees of freedom.

    Uniform, and the entries independent, if z = flow.forward(x)[0] of held-out x is standard normal: the
    flow fits (Linhart et al., 2022, arXiv:2211.09602). Test them by ``uniformity``.

    Args:
        z: latents of a flow with the base ``StandardNormal``, shape ``(rows, *latent_shape)``.

    Returns:
        The entries, of the shape of z, and the radii, of shape ``(rows,)``.

    Raises:
        ValueError: for a NaN or an infinity, and without rows.
        ImportError: without SciPy.

    Examples:
        >>> latent_pit([[0.0], [0.0]]).entries.tolist()
        [[0.5], [0.5]]
    """
    z = arrays.rows("latent_pit", "z", z, 1)
    special = optional.host("latent_pit", "scipy.special", "SciPy", "inference")
    flat = z.reshape(len(z), -1)
    return LatentPIT(special.ndtr(z), special.chdtr(flat.shape[1], (flat**2).sum(1)))


def uniformity(values: Any) -> Uniformity:
    """Kolmogorov-Smirnov test against the uniform distribution: D = sup |F_n(u) - u|, with exact p-values.

    Args:
        values: numbers in [0, 1], shape ``(rows,)`` or ``(rows, ...)``, tested for each of the other axes.

    Raises:
        ValueError: for numbers outside of [0, 1], a NaN, and without rows.
        ImportError: without SciPy.
    """
    u = np.sort(arrays.rows("uniformity", "values", values, 1), axis=0)
    if u[0].min(initial=0) < 0 or u[-1].max(initial=1) > 1:
        raise ValueError("uniformity expects values in [0, 1].")
    stats = optional.host("uniformity", "scipy.stats", "SciPy", "inference")
    steps = np.arange(len(u) + 1).reshape(-1, *[1] * (u.ndim - 1)) / len(u)
    distance = np.maximum((steps[1:] - u).max(0), (u - steps[:-1]).max(0))
    return Uniformity(arrays.plain(distance), arrays.plain(stats.kstwo.sf(distance, len(u))))


def sbc_ranks(theta: Any, draws: Any, seed: Any = 0) -> np.ndarray:
    """Simulation-based calibration: how many draws lie below θ, for each parameter (1804.06788).

    A density that is too narrow has too many ranks at both ends, one too wide too many in the middle.
    Draws that equal θ are counted at random, so that discrete parameters have uniform ranks too.
    For a function of parameters and data, give its values.

    Args:
        theta: the true parameters, shape ``(N,)`` or ``(N, dim)``.
        draws: of q(θ | x) for the x of each, shape ``(L, *theta.shape)``.
        seed: of the ties, an integer or a ``numpy.random.Generator``.

    Returns:
        Integers from 0 to L, of the shape of theta.

    Raises:
        ValueError: for a NaN or an infinity, and for shapes that do not match.
    """
    owner = "sbc_ranks"
    theta = arrays.rows(owner, "theta", theta, 1)
    draws = arrays.rows(owner, "draws", draws, 1)
    arrays.draws_of(owner, "theta", theta, "draws", draws)
    return _ranks(draws, theta, arrays.generator(owner, seed))


def hpd_ranks(log_prob: Any, draws_log_prob: Any, seed: Any = 0) -> np.ndarray:
    """How many draws have a higher density than θ: ranks of highest-density regions.

    Rank / L is the content of the smallest region of highest density that reaches to θ (2110.06581).
    It sees how sure q is, for all parameters at once, and not how much q has learned: the prior, given
    for every x, passes.

    Args:
        log_prob: log q(θ | x) of the true parameters, shape ``(N,)``.
        draws_log_prob: log q of draws of q(θ | x), shape ``(L, N)``.
        seed: of the ties, an integer or a ``numpy.random.Generator``.

    Returns:
        Integers from 0 to L, shape ``(N,)``.

    Raises:
        ValueError: for a NaN or +inf, and for shapes that do not match.
    """
    owner = "hpd_ranks"
    log_prob = arrays.log_densities(owner, "log_prob", log_prob)
    of_draws = arrays.log_densities(owner, "draws_log_prob", draws_log_prob)
    arrays.draws_of(owner, "log_prob", log_prob, "draws_log_prob", of_draws)
    return _ranks(-of_draws, -log_prob, arrays.generator(owner, seed))


def tarp_ranks(theta: Any, draws: Any, references: Any = None, seed: Any = 0) -> np.ndarray:
    """How many draws are nearer to a random point than θ is, ranks of TARP (2302.03026).

    Needs draws only, no density. With reference points that depend on x, uniform ranks for
    all of them are also sufficient for q to be the posterior. Distances are Euclidean, each parameter
    in units of its range in theta.

    Args:
        theta: the true parameters, shape ``(N, dim)``.
        draws: of q(θ | x) for the x of each, shape ``(L, N, dim)``.
        references: one point for each, shape ``(N, dim)``; if not given, uniform in the box that theta
            spans.
        seed: of the reference points and ties, an integer or a ``numpy.random.Generator``.

    Returns:
        Integers from 0 to L, shape ``(N,)``.

    Raises:
        ValueError: for a NaN or an infinity, and for shapes that do not match.
    """
    owner = "tarp_ranks"
    theta = arrays.rows(owner, "theta", theta)
    draws = arrays.rows(owner, "draws", draws, 1)
    arrays.draws_of(owner, "theta", theta, "draws", draws)
    theta = arrays.matrix(owner, "theta", theta)
    draws = draws.reshape(len(draws), *theta.shape)
    generator = arrays.generator(owner, seed)
    low, width = theta.min(0), np.ptp(theta, axis=0)
    if references is None:
        references = generator.uniform(low, low + width, theta.shape)
    else:
        references = arrays.rows(owner, "references", references).reshape(len(references), -1)
        arrays.same_shape(owner, "theta", theta, "references", references)
    units = np.where(width > 0, width, 1)
    distances = (((draws - references) / units) ** 2).sum(-1)
    return _ranks(distances, (((theta - references) / units) ** 2).sum(-1), generator)


def rank_test(ranks: Any, num_draws: int, seed: Any = 0) -> Uniformity:
    """Whether ranks are uniform on 0, ..., L: ``uniformity`` of (rank + U) / (L + 1), U uniform.

    Args:
        ranks: shape ``(N,)``, or ``(N, dim)`` for a test of each parameter.
        num_draws: L.
        seed: of U, an integer or a ``numpy.random.Generator``.

    Raises:
        ValueError: for ranks that are no integers from 0 to L.
        ImportError: without SciPy.
    """
    ranks = check_ranks("rank_test", ranks, num_draws)
    noise = arrays.generator("rank_test", seed).uniform(size=ranks.shape)
    return uniformity((ranks + noise) / (num_draws + 1))


def expected_coverage(ranks: Any, num_draws: int) -> Coverage:
    """The part of true parameters that lie in regions of content j / (L + 1), j = 0, ..., L + 1.

    θ of rank r lies in those with j > r. Coverage equals credibility in expectation if the ranks are
    uniform; below the diagonal q is too sure (with ``hpd_ranks``).

    Args:
        ranks: of ``hpd_ranks`` or ``tarp_ranks``, shape ``(N,)``.
        num_draws: L.

    Raises:
        ValueError: for ranks that are no integers from 0 to L, and for another shape.

    Examples:
        >>> expected_coverage([0, 1, 1, 2], 2).coverage.tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    ranks = check_ranks("expected_coverage", ranks, num_draws)
    if ranks.ndim != 1:
        raise ValueError(f"expected_coverage expects ranks of shape (N,), got {ranks.shape}.")
    counts = np.bincount(ranks, minlength=num_draws + 1)
    coverage = np.concatenate([[0], counts.cumsum()]) / len(ranks)
    return Coverage(np.arange(num_draws + 2) / (num_draws + 1), coverage)


def ecdf_bands(
    num_values: int, points: Any, level: float = 0.95, num_simulations: int = 4000, seed: Any = 0
) -> Bands:
    """Simultaneous bands for the empirical distribution function of uniform values.

    With probability ``level`` the function stays between them at all points at once. They are quantiles
    of binomial distributions, at the pointwise level that simulations ask for (2103.10522).

    Args:
        num_values: how many values the function is made of.
        points: where it is looked at, increasing in (0, 1), shape ``(K,)``. For ranks from 0 to L take
            multiples of 1 / (L + 1).
        level: the probability.
        num_simulations: how many functions to simulate.
        seed: an integer or a ``numpy.random.Generator``.

    Raises:
        ValueError: for points that do not increase or lie outside, and for a level outside of (0, 1).
        ImportError: without SciPy.
    """
    owner = "ecdf_bands"
    num_values = arrays.count(owner, "num_values", num_values)
    num_simulations = arrays.count(owner, "num_simulations", num_simulations)
    arrays.fraction(owner, level=level)
    points = arrays.rows(owner, "points", points, 1)
    edges = np.concatenate([[0.0], points.ravel(), [1.0]])
    if points.ndim != 1 or not (np.diff(edges) > 0).all():
        raise ValueError("ecdf_bands expects points that increase inside of (0, 1).")
    stats = optional.host(owner, "scipy.stats", "SciPy", "inference")
    generator = arrays.generator(owner, seed)
    parts = generator.multinomial(num_values, np.diff(edges), num_simulations)
    counts = parts[:, :-1].cumsum(1)
    first = counts.min(0)  # the tails of each count that came up, once
    table = first + np.arange((counts - first).max() + 1)[:, None]
    below = stats.binom.cdf(table, num_values, points)
    above = stats.binom.sf(table - 1, num_values, points)
    tails = np.take_along_axis(np.minimum(below, above), counts - first, 0)
    extremes = np.sort(2 * tails.min(1))
    # a hair less, so that rounding cannot leave out the simulation that sets it
    tail = extremes[int((1 - level) * num_simulations)] / 2 * (1 - 1e-9)
    lower, upper = (f(tail, num_values, points) for f in (stats.binom.ppf, stats.binom.isf))
    return Bands(points, lower / num_values, upper / num_values)


def check_ranks(owner: str, ranks: Any, num_draws: int) -> np.ndarray:
    """Ranks as integers, or ``ValueError`` for what is none of 0, ..., ``num_draws``."""
    num_draws = arrays.count(owner, "num_draws", num_draws)
    found = arrays.rows(owner, "ranks", ranks, 1)
    if (found != np.round(found)).any() or found.min() < 0 or found.max() > num_draws:
        raise ValueError(f"{owner} expects ranks that are integers from 0 to {num_draws}.")
    return found.astype(np.int64)


def _ranks(draws: np.ndarray, value: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """How many draws are below a value; those that equal it count at random, from none to all."""
    ties = (draws == value).sum(0)
    return (draws < value).sum(0) + generator.integers(0, ties, endpoint=True)
