"""twinflows.inference against closed forms, and against posteriors that are wrong by a known amount."""

import importlib
import re
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from scipy.special import ndtr, ndtri
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

import twinflows
from twinflows import inference

LOG_Z = 1.7
N, L = 400, 99
INF = float("inf")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def log_normal(x: Any, mean: Any = 0.0, sd: Any = 1.0) -> Any:
    return -(((x - mean) / sd) ** 2) / 2 - np.log(sd * np.sqrt(2 * np.pi))


def quantiles(count: int) -> np.ndarray:
    """Evenly spread draws of a standard normal distribution: means over them are integrals."""
    return ndtri((np.arange(count) + 0.5) / count)


def gaussian_pair(sd: float, mean: float = 0.0, of_target: bool = False) -> np.ndarray:
    """Log-weights of exp(LOG_Z) N(0, 1) against a proposal N(mean, sd²)."""
    x = quantiles(40000) if of_target else mean + sd * quantiles(40000)
    return LOG_Z + log_normal(x) - log_normal(x, mean, sd)


# importance


@pytest.mark.parametrize("sd", [0.9, 1.0, 1.3, 3.0])
def test_ess_and_evidence_of_a_gaussian_pair(sd: float) -> None:
    log_w = gaussian_pair(sd)
    share = np.sqrt(2 * sd**2 - 1) / sd**2
    assert inference.effective_sample_size(log_w) / 40000 == pytest.approx(share, rel=2e-3)
    value, error = inference.log_evidence(log_w)
    assert value == pytest.approx(LOG_Z, abs=1e-4)
    assert error == pytest.approx(np.sqrt((1 / share - 1) / 40000), abs=1e-5)
    if sd < 1.4:  # draws of p do not reach the tails of a wider q
        of_target = gaussian_pair(sd, of_target=True)
        by_target = inference.effective_sample_size(of_target, "target")
        assert by_target / 40000 == pytest.approx(share, rel=2e-3)


def test_bounds_of_a_gaussian_pair() -> None:
    sd, mean = 1.2, 0.5
    reverse = -np.log(sd) + (sd**2 + mean**2 - 1) / 2
    forward = np.log(sd) + (1 + mean**2) / (2 * sd**2) - 1 / 2
    lower, upper = (
        inference.elbo(gaussian_pair(sd, mean)),
        inference.eubo(gaussian_pair(sd, mean, True)),
    )
    assert lower.value == pytest.approx(LOG_Z - reverse, abs=1e-3)
    assert upper.value == pytest.approx(LOG_Z + forward, abs=1e-3)
    x = quantiles(40000)
    spread = np.std(x * (1 - sd**2) * x / 2 - x * mean * sd)  # of log w, its constant left out
    assert lower.standard_error == pytest.approx(spread / 200, rel=1e-3)
    assert inference.elbo([0.0, -INF]).value == -INF
    assert np.isnan(inference.elbo([0.0, -INF]).standard_error)


def test_errors_are_those_of_repeated_estimates() -> None:
    x = 1.3 * generator().standard_normal((500, 400))
    log_w = LOG_Z + log_normal(x) - log_normal(x, sd=1.3)
    for estimate in (inference.log_evidence, inference.elbo):
        values, errors = estimate(log_w)
        assert values.shape == errors.shape == (400,)
        assert np.std(values) == pytest.approx(errors.mean(), rel=0.12)
        assert values[7] == pytest.approx(estimate(log_w[:, 7]).value, rel=1e-14)


def test_weights_of_any_size() -> None:
    for shift in (-1e5, 1e5):
        assert inference.log_evidence([shift, shift - 1e4]).value == pytest.approx(
            shift - np.log(2)
        )
        assert inference.effective_sample_size([shift] * 3) == 3.0
        assert inference.effective_sample_size([shift, shift + 1], "target") == pytest.approx(
            2 / (1 + np.cosh(1)) * 2
        )
        np.testing.assert_array_equal(inference.normalized_weights([shift, -INF]), [1, 0])


def test_a_missed_mode_is_seen_by_draws_of_the_target() -> None:
    """p has a mode at -5 and one at 5, q only the second."""
    x = quantiles(2000)
    both = np.concatenate([x - 5, x + 5])

    def log_weights(x: np.ndarray) -> np.ndarray:
        return np.logaddexp(log_normal(x, -5), log_normal(x, 5)) - np.log(2) - log_normal(x, 5)

    assert inference.effective_sample_size(log_weights(x + 5)) > 1990
    assert inference.effective_sample_size(log_weights(both), "target") < 1
    assert inference.eubo(log_weights(both)).value > 10


@pytest.mark.parametrize("method", ["systematic", "multinomial"])
def test_resampling(method: str) -> None:
    weights = np.array([0.0, 0.07, 0.5, 0.43, 0.0])
    with np.errstate(divide="ignore"):
        log_w = np.log(weights) + 3
    chosen = inference.importance_resample(log_w, 1001, method)
    counts = np.bincount(chosen, minlength=5)
    if method == "systematic":
        assert (np.abs(counts - 1001 * weights) < 1).all()
        assert inference.importance_resample([-INF, 0.0, -INF], 50).tolist() == [1] * 50
        every = inference.importance_resample(np.zeros(40), 40)
        assert sorted(every.tolist()) == list(range(40))
    else:
        assert scipy.stats.chisquare(counts[1:4], 1001 * weights[1:4]).pvalue > 1e-3
        assert counts[[0, 4]].sum() == 0
    assert np.std(chosen[:100] - chosen[-100:]) > 0.3  # in random order
    np.testing.assert_array_equal(chosen, inference.importance_resample(log_w, 1001, method))
    other = inference.importance_resample(log_w, 1001, method, generator())
    assert (chosen != other).any()


def test_independence_metropolis() -> None:
    """Three states, drawn evenly, of weights 1 : 2 : 5."""
    states = generator(1).integers(0, 3, 40000)
    weights = np.array([1.0, 2.0, 5.0])
    chain = inference.independence_metropolis(np.log(weights)[states] - 1e3)
    np.testing.assert_allclose(np.bincount(states[chain.indices]) / 40000, weights / 8, atol=0.012)
    flows = np.minimum(weights[:, None], weights) / (3 * 8)
    assert chain.acceptance_rate == pytest.approx(flows.sum(), abs=0.01)
    late = inference.independence_metropolis([-INF, -INF, 0.0, -INF, 2.0])
    assert late.indices.tolist() == [2, 2, 4]
    assert late.acceptance_rate == 0.5


ARVIZ = {
    (100, 0.5): (
        0.4567077379249998,
        [-7.440093459884183, -3.6520620723467294, -2.9768102453693053],
    ),
    (400, 1.5): (1.1817908915853235, [-19.35956744665893, -4.358251176973582, -0.8798415501984915]),
    (2000, 3.0): (2.68320236301774, [-47.76032129133894, -7.977605303239239, -0.07699155388866652]),
}
"""k̂ and three log-weights by ``psislw`` of arviz-stats 0.8.0 (``r_eff=1``): the smallest, the tenth and
the largest."""


@pytest.mark.parametrize(("count", "scale"), ARVIZ)
def test_pareto_smoothing_is_arviz(count: int, scale: float) -> None:
    u = (np.arange(count) + 0.5) / count
    log_w = scale * np.log(u / (1 - u))[::-1] + np.sin(7 * u)
    k, expected = ARVIZ[count, scale]
    for shift in (0.0, 800.0):
        result = inference.pareto_smoothed(log_w + shift)
        assert result.k == pytest.approx(k, abs=1e-9)
        smoothed = np.log(inference.normalized_weights(result.log_weights))
        np.testing.assert_allclose(smoothed[np.argsort(log_w)[[0, -10, -1]]], expected, atol=1e-9)
    assert result.threshold == min(1 - 1 / np.log10(count), 0.7)
    np.testing.assert_array_equal(result.log_weights[count // 2 :], log_w[count // 2 :] + shift)


def test_pareto_k_of_a_known_tail() -> None:
    """Weights u^-k have the tail k, and those of a proposal as wide as its target are safe."""
    u = (np.arange(20000) + 0.5) / 20000
    for k in (0.3, 0.9):
        assert inference.pareto_smoothed(-k * np.log(u)).k == pytest.approx(k, abs=0.03)
    assert inference.pareto_smoothed(gaussian_pair(1.2)).k < 0.2
    assert inference.pareto_smoothed(gaussian_pair(0.6)).k > 0.4
    assert inference.pareto_smoothed(np.zeros(50)).k == -INF
    assert inference.pareto_smoothed(np.arange(100) * 1e3).k == INF


# calibration


def posterior(sd: float, seed: int = 2, num: int = N) -> dict[str, np.ndarray]:
    """θ ~ N(0, I), x = θ + noise of variance 1/4: draws of the posterior, with ``sd`` times its width."""
    rng = generator(seed)
    theta = rng.standard_normal((num, 2))
    x = theta + 0.5 * rng.standard_normal((num, 2))
    mean, width = 0.8 * x, sd * 0.2**0.5
    draws = mean + width * rng.standard_normal((L, num, 2))
    return {
        "theta": theta,
        "draws": draws,
        "x": x,
        "z": (theta - mean) / width,
        "log_prob": log_normal(theta, mean, width).sum(-1),
        "draws_log_prob": log_normal(draws, mean, width).sum(-1),
    }


def ranks_of(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "sbc": inference.sbc_ranks(case["theta"], case["draws"]),
        "hpd": inference.hpd_ranks(case["log_prob"], case["draws_log_prob"]),
        "tarp": inference.tarp_ranks(case["theta"], case["draws"]),
    }


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_the_right_posterior_is_calibrated(seed: int) -> None:
    case = posterior(1.0, seed)
    for ranks in ranks_of(case).values():
        assert np.min(inference.rank_test(ranks, L).pvalue) > 0.01
    pit = inference.latent_pit(case["z"])
    assert inference.uniformity(pit.entries).pvalue.min() > 0.01
    assert inference.uniformity(pit.radius).pvalue > 0.01
    coverage = inference.expected_coverage(ranks_of(case)["hpd"], L)
    assert np.abs(coverage.coverage - coverage.credibility).max() < 1.63 / np.sqrt(N) + 0.01


@pytest.mark.parametrize("sd", [0.8, 1.25])
def test_a_posterior_of_the_wrong_width_is_found_out(sd: float) -> None:
    case = posterior(sd)
    ranks = ranks_of(case)
    pvalues = {name: np.min(inference.rank_test(r, L).pvalue) for name, r in ranks.items()}
    assert pvalues["hpd"] < 1e-5
    assert pvalues["sbc"] < 0.1  # the width of one parameter moves both ends alike
    assert inference.uniformity(inference.latent_pit(case["z"]).radius).pvalue < 1e-5
    coverage = inference.expected_coverage(ranks["hpd"], L)
    assert np.sign((coverage.coverage - coverage.credibility).sum()) == np.sign(sd - 1)
    points = np.arange(1, L + 1) / (L + 1)
    bands = inference.ecdf_bands(N, points)
    for ranks_of_one in (*ranks["sbc"].T, ranks["hpd"]):
        ecdf = np.searchsorted(np.sort(ranks_of_one + 1), np.arange(1, L + 1), "right") / N
        assert ((ecdf < bands.lower) | (ecdf > bands.upper)).any()


def test_tarp_finds_out_a_narrow_posterior() -> None:
    cases = [posterior(sd, num=1500) for sd in (0.8, 1.0)]
    ranks = [inference.tarp_ranks(case["theta"], case["draws"]) for case in cases]
    narrow, right = (inference.rank_test(r, L).pvalue for r in ranks)
    assert narrow < 1e-4 < 0.01 < right


def test_ranks_by_their_definition() -> None:
    case = {name: array[..., :50, :] for name, array in posterior(1.0).items() if array.ndim > 1}
    theta, draws = case["theta"], case["draws"]
    references = generator(5).uniform(-1, 1, theta.shape)
    sbc = inference.sbc_ranks(theta, draws)
    tarp = inference.tarp_ranks(theta, draws, references)
    units = theta.max(0) - theta.min(0)
    for i in range(50):
        assert sbc[i].tolist() == [sum(draws[:, i, j] < theta[i, j]) for j in range(2)]
        near = np.linalg.norm((theta[i] - references[i]) / units)
        found = np.linalg.norm((draws[:, i] - references[i]) / units, axis=-1)
        assert tarp[i] == (found < near).sum()


def test_even_ranks_are_uniform() -> None:
    assert inference.rank_test(np.repeat(np.arange(10), 1000), 9).statistic < 0.01


def test_ties_are_counted_at_random() -> None:
    rng = generator()
    theta, draws = rng.integers(0, 2, 2000), rng.integers(0, 2, (9, 2000))
    assert inference.rank_test(inference.sbc_ranks(theta, draws), 9).pvalue > 0.01


def test_a_seed_that_made_the_data_is_no_seed_of_the_check() -> None:
    theta = generator().uniform(size=(N, 2))
    draws = generator(1).uniform(size=(L, N, 2))
    assert inference.rank_test(inference.tarp_ranks(theta, draws, seed=0), L).pvalue > 0.01


def test_uniformity_is_scipy() -> None:
    u = generator().uniform(size=(30, 2)) ** [1.3, 0.7]
    found = inference.uniformity(u)
    for i in range(2):
        expected = scipy.stats.ks_1samp(u[:, i], scipy.stats.uniform.cdf, method="exact")
        assert found.statistic[i] == pytest.approx(expected.statistic, rel=1e-12)
        assert found.pvalue[i] == pytest.approx(expected.pvalue, rel=1e-12)


def test_latent_pit_is_that_of_normal_and_chi_squared() -> None:
    z = generator().standard_normal((20, 3, 2))
    pit = inference.latent_pit(z)
    np.testing.assert_allclose(pit.entries, scipy.stats.norm.cdf(z), rtol=1e-12)
    squares = (z**2).sum((1, 2))
    np.testing.assert_allclose(pit.radius, scipy.stats.chi2(6).cdf(squares), rtol=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_bands_hold_at_all_points_at_once(level: float) -> None:
    points = np.arange(1, 20) / 20
    bands = inference.ecdf_bands(50, points, level)
    u = generator(9).uniform(size=(4000, 50, 1))
    ecdf = (u <= points).mean(1)
    inside = ((ecdf >= bands.lower) & (ecdf <= bands.upper)).all(1).mean()
    assert level - 0.02 < inside < level + 0.04  # counts are whole
    one = inference.ecdf_bands(50, [0.5], level)
    tail = scipy.stats.binom.cdf(round(one.lower[0] * 50) - 1, 50, 0.5)
    assert tail < (1 - level) / 2 + 0.01


# two samples


def test_c2st_has_the_accuracy_of_the_best_classifier() -> None:
    rng = generator()
    quick = QuadraticDiscriminantAnalysis()
    x, y = rng.standard_normal((2, 4000, 2))
    for shift in (0.0, 1.0, 2.0):
        found = inference.c2st(x, y + np.array([shift, 0]), classifier=quick)
        assert found.accuracy == pytest.approx(ndtr(shift / 2), abs=0.015)
        assert found.probabilities.shape == (8000,)
    narrow = inference.c2st(x, 0.8 * y, classifier=quick).accuracy
    inner = scipy.stats.chi2(2).cdf
    edge = 4 * np.log(0.8) / (1 - 1 / 0.64)  # ‖x‖² where the densities are equal
    assert narrow == pytest.approx((1 + inner(edge / 0.64) - inner(edge)) / 2, abs=0.015)


def test_the_network_of_c2st() -> None:
    x = generator().standard_normal((20, 1))
    assert inference.c2st(x, x + 8.0, num_folds=2).accuracy == 1.0


def test_local_c2st_finds_where_a_flow_is_wrong() -> None:
    """Latents that are 0.8 times too narrow for x above 0 only."""
    rng = generator()
    x = rng.standard_normal((1000, 1))
    z = rng.standard_normal((1000, 1)) * np.where(x > 0, 0.7, 1.0)
    found = inference.local_c2st(
        z, x, [[1.0], [-0.8]], num_null=19, num_eval=200, classifier=cubic()
    )
    assert found.pvalue[0] == 1 / 20
    assert found.statistic[0] > 2 * found.statistic[1]
    right = inference.local_c2st(
        rng.standard_normal((1000, 1)), x, [1.0], num_null=19, num_eval=200, classifier=cubic()
    )
    assert right.pvalue > 0.05
    assert right.null_statistics.shape == (19,)


@pytest.mark.parametrize("sd", [0.8, 1.0])
def test_local_c2st_finds_out_a_narrow_posterior(sd: float) -> None:
    case, quick = posterior(sd), QuadraticDiscriminantAnalysis()
    found = inference.local_c2st(case["z"], case["x"], [0.5, -0.5], 40, 200, quick)
    assert found.pvalue == 1 / 41 if sd < 1 else found.pvalue > 0.05


def cubic() -> Any:
    return make_pipeline(PolynomialFeatures(3), LogisticRegression())


# evidence and comparison


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.0])
def test_learned_harmonic_mean_of_a_gaussian(temperature: float) -> None:
    """The posterior N(1, 4), the flow z = (θ - 1) / 2."""
    z = quantiles(20000)[:, None]
    log_density = LOG_Z + log_normal(1 + 2 * z[:, 0], 1, 2)
    log_det = np.full(20000, -np.log(2))
    value, error = inference.learned_harmonic_mean(z, log_det, log_density, temperature)
    assert value == pytest.approx(LOG_Z, abs=1e-4)
    relative = (temperature * (2 - temperature)) ** -0.5 - 1
    assert error == pytest.approx(np.sqrt(relative / 20000), rel=1e-2, abs=1e-9)


def test_harmonic_mean_errors_are_those_of_repeated_estimates() -> None:
    found = []
    for seed in range(60):
        z = generator(seed).standard_normal((400, 8))  # independent, as chains
        target, density = log_normal(z, 0, 0.8), LOG_Z + log_normal(z)
        by_chain = inference.harmonic_mean(target, density)
        pooled = inference.harmonic_mean(target.ravel(), density.ravel())
        assert by_chain.value == pytest.approx(pooled.value, rel=1e-12)
        found.append([pooled.value, pooled.standard_error, by_chain.standard_error])
    values, errors, chain_errors = np.array(found).T
    assert values.mean() == pytest.approx(LOG_Z, abs=3 * errors[0] / 60**0.5)
    assert np.std(values) == pytest.approx(errors.mean(), rel=0.25)
    assert np.sqrt(np.mean(chain_errors**2)) == pytest.approx(errors.mean(), rel=0.1)


def test_chains_that_stand_still_widen_the_error() -> None:
    z = np.repeat(generator().standard_normal((10, 8)), 100, 0)
    target, density = log_normal(z, 0, 0.8), log_normal(z)
    by_chain = inference.harmonic_mean(target, density).standard_error
    assert by_chain > 5 * inference.harmonic_mean(target.ravel(), density.ravel()).standard_error


def test_comparison_is_the_paired_t_test() -> None:
    rng = generator()
    hard = 5 * rng.standard_normal(200)  # for both models
    a, b = hard + rng.standard_normal(200), hard + rng.standard_normal(200) - 0.3
    found = inference.compare_log_likelihoods(a, b)
    expected = scipy.stats.ttest_rel(a, b)
    assert found.difference == pytest.approx(np.mean(a - b), rel=1e-12)
    assert found.difference / found.standard_error == pytest.approx(expected.statistic, rel=1e-12)
    assert found.pvalue == pytest.approx(expected.pvalue, rel=1e-10)
    assert inference.compare_log_likelihoods(b, a).difference == -found.difference
    assert inference.compare_log_likelihoods(a, a).pvalue == 1.0
    assert inference.compare_log_likelihoods(a, a - 1.0).pvalue < 1e-12


def test_a_density_of_the_wrong_width_loses() -> None:
    x = generator().standard_normal(2000)
    found = inference.compare_log_likelihoods(log_normal(x), log_normal(x, sd=0.8))
    expected = 1 / (2 * 0.64) - 1 / 2 + np.log(0.8)
    assert found.difference == pytest.approx(expected, abs=3 * found.standard_error)
    assert found.pvalue < 1e-3


# arrays and sentences


def test_arrays_of_either_framework() -> None:
    log_w = generator().standard_normal(64).astype(np.float32)
    expected = inference.effective_sample_size(log_w)
    for same in (torch.tensor(log_w, requires_grad=True), jnp.array(log_w), log_w.tolist()):
        assert inference.effective_sample_size(same) == pytest.approx(expected, rel=1e-12)
        assert isinstance(inference.pareto_smoothed(same).log_weights, np.ndarray)
    low = torch.tensor(log_w).bfloat16(), jnp.array(log_w, jnp.bfloat16)
    assert inference.log_evidence(low[0]) == inference.log_evidence(low[1])
    case = posterior(1.0)
    ranks = inference.sbc_ranks(torch.tensor(case["theta"]), jnp.array(case["draws"]))
    np.testing.assert_array_equal(ranks, inference.sbc_ranks(case["theta"], case["draws"]))
    assert twinflows.inference is inference


NAN = float("nan")
ZEROS = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: inference.log_evidence([0.0, NAN]),
            "log_evidence got a NaN in row 1 of log_weights.",
        ),
        (
            lambda: inference.log_evidence([0.0, INF]),
            "log_evidence got +inf in row 1 of log_weights.",
        ),
        (
            lambda: inference.elbo([-INF, -INF]),
            "elbo got no weight above 0: all of log_weights is -inf.",
        ),
        (
            lambda: inference.effective_sample_size([[0.0, -INF], [0.0, -INF]]),
            "effective_sample_size got no weight above 0: all of log_weights is -inf.",
        ),
        (
            lambda: inference.log_evidence([0.0]),
            "log_evidence expects at least 2 rows in log_weights, got 1.",
        ),
        (
            lambda: inference.log_evidence(0.0),
            "log_evidence expects at least 2 rows in log_weights, got a number.",
        ),
        (
            lambda: inference.pareto_smoothed(np.zeros(24)),
            "pareto_smoothed expects at least 25 rows in log_weights, got 24.",
        ),
        (
            lambda: inference.pareto_smoothed([0.0] * 200 + [1.0, 2.0]),
            "pareto_smoothed expects at least 5 weights above the 41th largest, got 2.",
        ),
        (
            lambda: inference.eubo([0.0, -INF]),
            "eubo got -inf in log_weights: draws of the target have a weight.",
        ),
        (
            lambda: inference.effective_sample_size([0.0, 1.0], "prior"),
            "effective_sample_size expects drawn_from to be one of proposal, target, got 'prior'.",
        ),
        (
            lambda: inference.importance_resample(ZEROS, 3),
            "importance_resample expects log_weights of shape (draws,), got (3, 2).",
        ),
        (
            lambda: inference.importance_resample([0.0], 0),
            "importance_resample expects num_draws to be an integer of at least 1, got 0.",
        ),
        (
            lambda: inference.log_evidence(np.ma.masked_array([0.0, 1.0], [0, 1])),
            "log_evidence got masked values in log_weights.",
        ),
        (
            lambda: inference.log_evidence([[0.0], [1.0, 2.0]]),
            "log_evidence expects the lists of log_weights to be of one length.",
        ),
        (
            lambda: inference.sbc_ranks(ZEROS, np.zeros((9, 2, 2))),
            "sbc_ranks expects draws of shape (draws, 3, 2) for theta of shape (3, 2), got (9, 2, 2).",
        ),
        (
            lambda: inference.hpd_ranks([0.0, NAN], np.zeros((9, 2))),
            "hpd_ranks got a NaN in row 1 of log_prob.",
        ),
        (
            lambda: inference.tarp_ranks(ZEROS, np.zeros((9, 3, 2)), np.zeros((3, 1))),
            "tarp_ranks expects theta and references of one shape, got (3, 2) and (3, 1).",
        ),
        (
            lambda: inference.rank_test([0, 10], 9),
            "rank_test expects ranks that are integers from 0 to 9.",
        ),
        (
            lambda: inference.expected_coverage([0.5], 9),
            "expected_coverage expects ranks that are integers from 0 to 9.",
        ),
        (lambda: inference.uniformity([0.1, 1.2]), "uniformity expects values in [0, 1]."),
        (
            lambda: inference.latent_pit([0.0, INF]),
            "latent_pit got a NaN or an infinity in row 1 of z.",
        ),
        (
            lambda: inference.ecdf_bands(9, [0.5, 0.5]),
            "ecdf_bands expects points that increase inside of (0, 1).",
        ),
        (
            lambda: inference.ecdf_bands(9, [0.5], 1.0),
            "ecdf_bands expects level between 0 and 1, got 1.0.",
        ),
        (
            lambda: inference.c2st(np.zeros(20), np.zeros(19)),
            "c2st expects x and y of one shape, got (20, 1) and (19, 1).",
        ),
        (lambda: inference.c2st(ZEROS, ZEROS), "c2st expects at least 10 rows in x, got 3."),
        (
            lambda: inference.local_c2st(np.zeros(20), np.zeros((20, 2)), [0.0]),
            "local_c2st expects observation of shape (2,) or (M, 2), got (1,).",
        ),
        (
            lambda: inference.harmonic_mean([0.0, 0.0], [0.0, -INF]),
            "harmonic_mean got a NaN or an infinity in row 1 of log_density.",
        ),
        (
            lambda: inference.harmonic_mean(np.zeros((3, 1)), np.zeros((3, 1))),
            "harmonic_mean expects log_density of shape (draws,) or (draws, chains), of at least 2 "
            "chains, got (3, 1).",
        ),
        (
            lambda: inference.learned_harmonic_mean(ZEROS, np.zeros(3), np.zeros(3), 1.5),
            "learned_harmonic_mean expects temperature to be at most 1, got 1.5.",
        ),
        (
            lambda: inference.learned_harmonic_mean(np.zeros(3), np.zeros(3), np.zeros(3)),
            "learned_harmonic_mean expects z of shape (*log_det.shape, dim), got (3,) and (3,).",
        ),
        (
            lambda: inference.compare_log_likelihoods([0.0, -INF], [0.0, 0.0]),
            "compare_log_likelihoods got a NaN or an infinity in row 1 of log_prob_a.",
        ),
        (
            lambda: inference.compare_log_likelihoods([0.0, 0.0], [0.0]),
            "compare_log_likelihoods expects at least 2 rows in log_prob_b, got 1.",
        ),
    ],
)
def test_bad_input_gets_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


@pytest.mark.parametrize("values", [["a", "b"], [1j, 0], [True, False], [None, 1.0]])
def test_what_is_no_number_is_refused(values: Any) -> None:
    with pytest.raises(TypeError, match="log_evidence expects log_weights as real numbers, got "):
        inference.log_evidence(values)


# pictures


def pictures() -> dict[str, Any]:
    log_w = gaussian_pair(1.5)[:: 40000 // 400]
    case = posterior(0.8)
    ranks = ranks_of(case)
    quick = QuadraticDiscriminantAnalysis()
    local = inference.local_c2st(case["z"], case["x"], [0.0, 0.0], 20, 50, quick)
    return {
        "ESS": lambda: inference.draw_weights(log_w),
        "log Z": lambda: inference.draw_evidence(generator().permutation(log_w), LOG_Z),
        "EUBO": lambda: inference.draw_bounds(log_w, log_w),
        "acceptance": lambda: inference.draw_chain(inference.independence_metropolis(log_w)),
        "‖z‖²": lambda: inference.draw_latent_pit(inference.latent_pit(case["z"])),
        r"\$a": lambda: inference.draw_ranks(ranks["sbc"], L, ["$a", "b"]),
        "parameter 0": lambda: inference.draw_ranks(ranks["tarp"], L),
        "data": lambda: inference.draw_pairs(case["theta"], case["theta"], ["a", "b"]),
        "calibrated": lambda: inference.draw_coverage(ranks["hpd"], L),
        "accuracy": lambda: inference.draw_c2st(
            inference.c2st(case["theta"], case["x"], classifier=quick)
        ),
        "observation 0: p = 0.048": lambda: inference.draw_local_c2st(local),
        "mean": lambda: inference.draw_comparison(log_normal(log_w), log_normal(log_w, sd=2)),
    }


def test_every_diagnostic_has_a_picture() -> None:
    names = {name for name in inference.__all__ if name.startswith("draw_")}
    drawn = set()
    for shown, draw in pictures().items():
        figure = draw()
        axes = figure.axes[0]
        legend = axes.get_legend()
        texts = [axes.get_title(), *(t.get_text() for t in axes.get_xticklabels())]
        texts += [] if legend is None else [t.get_text() for t in legend.get_texts()]
        assert any(shown in text for text in texts), (shown, texts)
        drawn.add(draw.__code__.co_names[1])
    assert drawn >= names


@pytest.mark.parametrize(
    ("module", "package", "call"),
    [
        ("scipy.special", "SciPy", lambda: inference.latent_pit([0.0, 1.0])),
        ("scipy.stats", "SciPy", lambda: inference.uniformity([0.0, 1.0])),
        (
            "sklearn.model_selection",
            "scikit-learn",
            lambda: inference.c2st(np.zeros(10), np.zeros(10)),
        ),
        (
            "sbi.neural_nets.estimators.base",
            "sbi",
            lambda: importlib.import_module("twinflows.inference.sbi"),
        ),
        ("matplotlib.figure", "matplotlib", lambda: inference.draw_weights(np.zeros(30))),
    ],
)
def test_what_is_missing_is_named(monkeypatch, module: str, package: str, call: Any) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    extra = "sbi" if package == "sbi" else "inference"
    with pytest.raises(ImportError, match=rf"needs {package}: pip install 'twinflows\[{extra}\]'"):
        call()
