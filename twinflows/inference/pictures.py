"""One picture per diagnostic: each function returns a matplotlib ``Figure``, for ``figure.savefig(path)``."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flow_bridge import optional
from twinflows.inference import arrays
from twinflows.inference.calibration import (
    LatentPIT,
    check_ranks,
    ecdf_bands,
    expected_coverage,
)
from twinflows.inference.comparison import compare_log_likelihoods, paired_differences
from twinflows.inference.importance import (
    Chain,
    effective_sample_size,
    elbo,
    eubo,
    log_evidence,
    normalized_weights,
)
from twinflows.inference.pareto import pareto_smoothed
from twinflows.inference.two_sample import C2ST, LocalC2ST

MAX_POINTS = 100
MAX_ROWS, MAX_COLUMNS = 2000, 8


def draw_weights(log_weights: Any) -> Any:
    """The largest importance weights in falling order, before and after smoothing, with ESS and k̂.

    Args, raises: as ``pareto_smoothed``; ``ImportError`` without matplotlib.
    """
    figure, axes = _figure("draw_weights")
    smoothed = pareto_smoothed(log_weights)
    log_w = arrays.log_weights("draw_weights", "log_weights", log_weights)
    for values, label, style in (
        (log_w, "weights", "k."),
        (smoothed.log_weights, "smoothed", "C0-"),
    ):
        shares = np.sort(normalized_weights(values))[::-1]
        shares = shares[shares > 0]
        axes.plot(np.arange(1, len(shares) + 1), shares, style, label=label, markersize=3)
    ess = effective_sample_size(log_w)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="rank of the draw",
        ylabel="share of all weight",
        title=f"ESS {ess:.0f} of {len(log_w)}, k̂ {smoothed.k:.2f} (up to {smoothed.threshold:.2f})",
    )
    axes.legend()
    return figure


def draw_evidence(log_weights: Any, log_z: float | None = None) -> Any:
    """``log_evidence`` ± one standard error of the first draws, against how many; jumps tell of heavy tails.

    Args:
        log_weights: shape ``(draws,)``.
        log_z: the true one, where it is known.

    Raises:
        ImportError: without matplotlib; else as ``log_evidence``.
    """
    figure, axes = _figure("draw_evidence")
    log_w = arrays.log_weights("draw_evidence", "log_weights", log_weights)
    first = int(np.flatnonzero(log_w > -np.inf)[0]) + 2
    counts = np.unique(np.geomspace(min(first, len(log_w)), len(log_w), 200).astype(int))
    values, errors = np.array([log_evidence(log_w[:count]) for count in counts]).T
    axes.plot(counts, values, label="log Z")
    axes.fill_between(counts, values - errors, values + errors, alpha=0.3, label="± one error")
    if log_z is not None:
        axes.axhline(log_z, color="k", linestyle="--", label="true")
    axes.set(xscale="log", xlabel="draws", ylabel="log Z (nats)")
    axes.legend()
    return figure


def draw_bounds(log_weights: Any, target_log_weights: Any) -> Any:
    """ELBO, log Z and EUBO with their standard errors, which bracket the evidence.

    Args:
        log_weights: of draws of the flow, shape ``(draws,)``.
        target_log_weights: of draws of the target, shape ``(draws,)``.

    Raises:
        ImportError: without matplotlib; else as ``log_evidence`` and ``eubo``.
    """
    figure, axes = _figure("draw_bounds")
    estimates = [elbo(log_weights), log_evidence(log_weights), eubo(target_log_weights)]
    for position, estimate in enumerate(estimates):
        axes.errorbar(position, estimate.value, estimate.standard_error, fmt="o", capsize=5)
    axes.set(ylabel="nats", xlim=(-0.5, 2.5))
    axes.set_xticks(range(3), ["ELBO", "log Z", "EUBO"])
    return figure


def draw_chain(chain: Chain) -> Any:
    """How long a chain of ``independence_metropolis`` stayed at each draw; one long stay spoils it."""
    figure, axes = _figure("draw_chain")
    _, starts = np.unique(chain.indices, return_index=True)
    stays = np.diff([*starts, len(chain.indices)])
    axes.vlines(starts, 0, stays)
    axes.set(
        xlabel="step",
        ylabel="steps at one draw",
        title=f"acceptance {chain.acceptance_rate:.2f}, longest stay {stays.max()}",
    )
    return figure


def draw_latent_pit(pit: LatentPIT, level: float = 0.95) -> Any:
    """F_n(u) - u of every latent entry and of the radius, with bands that hold at all points at once.

    Args:
        pit: of ``latent_pit``.
        level: of the bands, for one curve.
    """
    figure, axes = _figure("draw_latent_pit")
    entries = pit.entries.reshape(len(pit.entries), -1)
    points = np.arange(1, MAX_POINTS) / MAX_POINTS
    for i, values in enumerate(entries.T):
        label = "entries of z" if i == 0 else None
        axes.plot(points, _ecdf(values, points) - points, "C0", alpha=0.5, label=label)
    axes.plot(points, _ecdf(pit.radius, points) - points, "C1", label="‖z‖²")
    _draw_bands(axes, len(entries), points, level)
    axes.set(xlabel="u", ylabel="F(u) - u")
    axes.legend()
    return figure


def draw_ranks(
    ranks: Any, num_draws: int, names: Sequence[str] | None = None, level: float = 0.95
) -> Any:
    """The ranks' distribution function less the uniform one, with bands that hold at all points at once.

    A curve that rises first and falls below 0 then is of a density that is too narrow.

    Args:
        ranks: of ``sbc_ranks``, ``hpd_ranks`` or ``tarp_ranks``, shape ``(N,)`` or ``(N, dim)``.
        num_draws: L.
        names: of the parameters.
        level: of the bands, for one curve.
    """
    figure, axes = _figure("draw_ranks")
    columns = arrays.matrix("draw_ranks", "ranks", check_ranks("draw_ranks", ranks, num_draws))
    steps = np.unique(np.linspace(1, num_draws, min(num_draws, MAX_POINTS)).astype(int))
    points = steps / (num_draws + 1)
    for i, column in enumerate(columns.T):
        label = _plain(names[i]) if names else f"parameter {i}"
        axes.plot(points, _ecdf(column + 1, steps) - points, label=label)
    _draw_bands(axes, len(columns), points, level)
    axes.set(xlabel="rank / (L + 1)", ylabel="F(rank) - uniform")
    if columns.shape[1] <= 10:
        axes.legend()
    return figure


def draw_coverage(ranks: Any, num_draws: int, level: float = 0.95) -> Any:
    """``expected_coverage`` against credibility, with bands that hold at all points at once.

    Args:
        ranks: of ``hpd_ranks`` or ``tarp_ranks``, shape ``(N,)``.
        num_draws: L.
        level: of the bands.
    """
    figure, axes = _figure("draw_coverage")
    ranks = check_ranks("draw_coverage", ranks, num_draws)
    credibility, coverage = expected_coverage(ranks, num_draws)
    axes.plot(credibility, coverage, label="found")
    axes.plot([0, 1], [0, 1], "k--", label="calibrated")
    steps = np.unique(np.linspace(1, num_draws, min(num_draws, MAX_POINTS)).astype(int))
    bands = ecdf_bands(len(ranks), steps / (num_draws + 1), level)
    axes.fill_between(bands.points, bands.lower, bands.upper, color="k", alpha=0.15)
    axes.set(xlabel="credibility", ylabel="coverage", aspect="equal")
    axes.legend()
    return figure


def draw_c2st(result: C2ST) -> Any:
    """The probabilities that ``c2st`` gave to rows of either sample, alike where the samples are."""
    figure, axes = _figure("draw_c2st")
    halves = np.split(result.probabilities, 2)
    axes.hist(halves, np.linspace(0, 1, 31), histtype="step", label=["x", "y"])
    axes.set(
        xlabel="probability of y",
        ylabel="rows",
        title=f"accuracy {result.accuracy:.3f} (chance: 0.5)",
    )
    axes.legend()
    return figure


def draw_local_c2st(result: LocalC2ST) -> Any:
    """The statistic of each observation beside those of the null."""
    figure, axes = _figure("draw_local_c2st")
    axes.hist(np.ravel(result.null_statistics), 30, color="0.7", label="null")
    for i, (statistic, pvalue) in enumerate(
        zip(np.atleast_1d(result.statistic), np.atleast_1d(result.pvalue), strict=True)
    ):
        axes.axvline(statistic, color=f"C{i}", label=f"observation {i}: p = {pvalue:.3f}")
    axes.set(xlabel="statistic", ylabel="classifiers")
    axes.legend()
    return figure


def draw_comparison(log_prob_a: Any, log_prob_b: Any) -> Any:
    """The differences log p_a - log p_b of held-out rows, their mean and its error.

    Args, raises: as ``compare_log_likelihoods``; ``ImportError`` without matplotlib.
    """
    figure, axes = _figure("draw_comparison")
    differences = paired_differences("draw_comparison", log_prob_a, log_prob_b)
    mean, error, pvalue = compare_log_likelihoods(log_prob_a, log_prob_b)
    axes.hist(differences, 50, color="0.7")
    axes.axvline(0, color="k", linestyle="--")
    axes.axvline(mean, color="C0")
    axes.axvspan(mean - error, mean + error, color="C0", alpha=0.3)
    axes.set(
        xlabel="log p_a - log p_b (nats)",
        ylabel="rows",
        title=f"mean {mean:.4f} ± {error:.4f}, p = {pvalue:.3g}",
    )
    return figure


def draw_pairs(samples: Any, data: Any = None, names: Sequence[str] | None = None) -> Any:
    """Marginals on the diagonal, pairs of columns below it: samples of a model, beside data if given.

    Args:
        samples, data: shape ``(rows, columns)``; the first 8 columns are drawn, of 2,000 rows.
        names: of the columns.

    Raises:
        ValueError: for less than 2 rows, and for data of other columns than the samples.
        ImportError: without matplotlib.
    """
    matplotlib = optional.host("draw_pairs", "matplotlib.figure", "matplotlib", "inference")
    tables = {"samples": arrays.rows("draw_pairs", "samples", samples)}
    if data is not None:
        tables["data"] = arrays.rows("draw_pairs", "data", data)
    shapes = {table.shape[1:] for table in tables.values()}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError("draw_pairs expects samples and data of shape (rows, columns), the same.")
    tables = {label: table[:MAX_ROWS, :MAX_COLUMNS] for label, table in tables.items()}
    size = next(iter(tables.values())).shape[1]
    figure = matplotlib.Figure(figsize=(1 + 2 * size, 1 + 2 * size), layout="constrained")
    grid = figure.subplots(size, size, squeeze=False)
    ranges = [
        np.quantile(tables.get("data", tables["samples"])[:, i], [0.005, 0.995])
        for i in range(size)
    ]
    ends = [(low - 0.1 * (high - low), high + 0.1 * (high - low) + 1e-12) for low, high in ranges]
    for row in range(size):
        for column in range(size):
            axes = grid[row, column]
            if column > row:
                axes.remove()
                continue
            for i, (label, table) in enumerate(reversed(tables.items())):
                color = {"samples": "C0", "data": "0.5"}[label]
                if row == column:
                    style = {"histtype": "step", "density": True, "label": label, "color": color}
                    axes.hist(table[:, row], 40, range=ends[row], **style)
                else:
                    axes.plot(
                        table[:, column], table[:, row], ".", color=color, markersize=1.5, zorder=i
                    )
                    axes.set(ylim=ends[row])
            axes.set(xlim=ends[column])
            if names is not None and row == size - 1:
                axes.set(xlabel=_plain(names[column]))
            if names is not None and column == 0 and row:
                axes.set(ylabel=_plain(names[row]))
    if len(tables) > 1:
        grid[0, 0].legend()
    return figure


def _figure(owner: str) -> tuple[Any, Any]:
    matplotlib = optional.host(owner, "matplotlib.figure", "matplotlib", "inference")
    figure = matplotlib.Figure(figsize=(5.5, 4.5), layout="constrained")
    return figure, figure.subplots()


def _ecdf(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(values), points, side="right") / len(values)


def _draw_bands(axes: Any, count: int, points: np.ndarray, level: float) -> None:
    bands = ecdf_bands(count, points, level)
    axes.fill_between(
        points,
        bands.lower - points,
        bands.upper - points,
        color="k",
        alpha=0.15,
        label=f"{level:.0%}",
    )
    axes.axhline(0, color="k", linewidth=0.5)


def _plain(name: str) -> str:
    """A name as matplotlib prints it letter by letter."""
    return name.replace("$", r"\$")
