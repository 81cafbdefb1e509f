"""The estimators of scikit-learn: its own checks, closed forms, bounds, pickles, both halves."""

import pickle
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, kstest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import torch_flows
from twinflows.inference import ConditionalFlowDensity, FlowDensity
from twinflows.inference.predictive import model_quantiles
from twinflows.sides.base import half
from twinflows.sides.bounds import check_bounds, held_inside
from twinflows.sides.models import draw
from twinflows.sides.torch_side import TorchSide

TINY: dict[str, Any] = {"num_layers": 1, "hidden_dims": [4]}
QUICK: dict[str, Any] = {"model_options": TINY, "num_epochs": 1, "random_state": 0}
RNG = np.random.default_rng(0)
BOUNDS = [(2.0, None), (None, -1.0), (0.0, 3.0), None]


def table(rows: int = 60) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.column_stack(
        [
            2 + rng.exponential(5, rows),
            -1 - rng.exponential(0.1, rows),
            3 * rng.beta(2, 5, rows),
            rng.normal(1e3, 50, rows),
        ]
    )


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(FlowDensity("maf", "torch", **QUICK), id="density"),
        pytest.param(
            ConditionalFlowDensity("maf", "torch", **QUICK),
            id="conditional",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_scikit_learn_finds_nothing_wrong(estimator: Any) -> None:
    results = check_estimator(estimator, on_skip=None)
    assert {r["status"] for r in results} == {"passed", "skipped"}


@pytest.mark.parametrize("bounds", [(2.0, None), (None, -1.0), (0.0, 3.0), None])
def test_densities_of_bounded_columns_are_whole(bounds: Any) -> None:
    """Integral 1 inside, nothing outside; draws stay inside."""
    x = table()[:, [BOUNDS.index(bounds)]]
    density = FlowDensity("maf", "torch", bounds=[bounds], dtype="float64", **QUICK).fit(x)
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    low, high = -np.inf if low is None else low, np.inf if high is None else high
    start = low if np.isfinite(low) else x.min() - 20 * np.ptp(x)
    stop = high if np.isfinite(high) else x.max() + 20 * np.ptp(x)
    width = (stop - start) / 20000
    grid = start + width * (np.arange(20000) + 0.5)
    assert np.exp(density.score_samples(grid[:, None])).sum() * width == pytest.approx(1, abs=2e-3)
    drawn = density.sample(200)
    assert ((drawn > low) & (drawn < high)).all()
    for end in (end for end in (low, high) if np.isfinite(end)):
        outside = np.array([[end], [end + np.sign(end - x.mean())]])
        assert np.isneginf(density.score_samples(outside)).all()


def test_samples_that_rounding_puts_on_a_bound_stay_inside() -> None:
    bounds = check_bounds([(1e3, None), (None, 1e3), (-5.0, 1.0), (0, 1), None], None, 5)
    held = held_inside(np.array([[1e3, 1e3, 1.0, 0.0, 0.0]]), bounds, "float32")
    cast = held.astype(np.float32)
    assert cast[0, 0] > 1e3 > cast[0, 1]
    assert (cast[0, 2] + np.float32(5)) / np.float32(6) < 1
    assert 0 < cast[0, 3] < 1e-30


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_both_halves_read_what_either_fitted(backend: str, tmp_path: Any) -> None:
    x = pd.DataFrame(table(), columns=["income", "loss", "share", "age"])
    bounds = {"income": (2, None), "loss": (None, -1), "share": (0, 3)}
    density = FlowDensity("maf", backend, bounds=bounds, heavy_tails=True, **QUICK).fit(x)
    density.save(tmp_path / "model.safetensors")
    flow = torch_flows.load(tmp_path / "model.safetensors")
    assert flow.columns == ("income", "loss", "share", "age")
    for name in ("torch", "jax"):
        side = half(name).load(tmp_path / "model.safetensors")
        np.testing.assert_allclose(
            side.log_prob(np.array(x), None), density.score_samples(x), rtol=1e-5, atol=1e-5
        )
        drawn = draw(side, 5, np.random.default_rng(3), None)
        expected = draw(density.flow_, 5, np.random.default_rng(3), None)
        np.testing.assert_allclose(drawn, expected, rtol=1e-4)
    again = pickle.loads(pickle.dumps(density))
    assert np.array_equal(again.score_samples(x), density.score_samples(x))
    assert np.array_equal(again.sample(3), density.sample(3))


def test_pickles_are_plain_data() -> None:
    density = FlowDensity("maf", "torch", dtype="float64", **QUICK).fit(table())
    data = pickle.dumps(density)
    for module in (b"torch_flows", b"jax_flows", b"torch._utils", b"jax._src"):
        assert module not in data
    assert not hasattr(clone(density), "flow_")


def test_pipelines_cross_validation_and_grid_search() -> None:
    x = table()
    density = FlowDensity("maf", "torch", **QUICK)
    assert np.isfinite(cross_val_score(make_pipeline(StandardScaler(), density), x, cv=2)).all()
    search = GridSearchCV(density, {"learning_rate": [1e-3, 1e-1]}, cv=2).fit(x)
    assert search.best_estimator_.score(x) == pytest.approx(
        search.best_estimator_.score_samples(x).mean(dtype=np.float64)
    )


def test_anomaly_scores() -> None:
    density = FlowDensity("maf", "torch", **QUICK).fit(table())
    own = density.anomaly_scores(density.sample(300, 1), 2000, 2)
    assert kstest(own, "uniform").pvalue > 1e-3
    far = np.array([[1e4, -9.0, 9.0, 0.0]])
    assert density.anomaly_scores(far) == 1
    for number in (0, -1, 1.5):
        for call in (density.sample, lambda n: density.anomaly_scores(far, n)):
            with pytest.raises(ValueError, match="sampling expects the number of samples"):
                call(number)


@pytest.mark.parametrize("sign", [1, -1])
def test_quantiles_of_one_target_are_exact(sign: int) -> None:
    """The mass below each is its level, by integration; for maps that rise and maps that fall."""
    x = RNG.normal(size=(80, 2))
    y = np.exp(x[:, 0] + 0.3 * RNG.normal(size=80))
    density = ConditionalFlowDensity("maf", "torch", bounds=[(0, None)], dtype="float64", **QUICK)
    density.fit(x, y)
    if sign < 0:
        mirror = torch_flows.Standardize(1).double()
        mirror.scale.fill_(-1)
        flow = density.flow_.flow
        flow.bijector = torch_flows.Chain([flow.bijector, mirror])
    levels = [0.9, 0.1, 0.5]
    found = density.quantiles(x[:2], levels)
    assert found.shape == (3, 2)
    assert np.array_equal(density.quantiles(x[:1], [0.5])[0], density.predict(x[:1]))
    assert (density.anomaly_scores(x[:2], [1e4, 1e-4], 50) > 0.9).all()
    for row in range(2):
        for level, end in zip(levels, found[:, row], strict=True):
            grid = end * (np.arange(4000) + 0.5) / 4000
            repeated = np.repeat(x[row : row + 1], 4000, 0)
            mass = np.exp(density.log_prob(repeated, grid)).sum() * end / 4000
            assert mass == pytest.approx(level, abs=2e-3)


def test_a_map_that_turns_a_circle_is_not_monotone() -> None:
    """So that its quantiles are not those of the noise: they are those of draws."""
    turn = torch_flows.Elementwise(1, torch_flows.SplineMap(1, 0.0, 1.0, "circular"))
    turn.raw_parameters.data[:, -1] = 0.3
    chain = torch_flows.Chain([turn, torch_flows.Invert(torch_flows.Sigmoid())])
    model = TorchSide(torch_flows.Flow(chain, torch_flows.StandardNormal(1)))
    drawn = draw(model, 20000, np.random.default_rng(1), None)
    found = model_quantiles(model, [0.1, 0.5, 0.9], None, 20000)[:, 0]
    np.testing.assert_allclose(found, np.quantile(drawn, [0.1, 0.5, 0.9], 0), atol=0.02)


@pytest.mark.parametrize("base", ["normal", "heavy"])
def test_quantiles_of_several_targets_are_those_of_draws(base: str) -> None:
    x = RNG.normal(size=(60, 1))
    y = np.column_stack([x[:, 0] + RNG.normal(size=60), 50 * RNG.normal(size=60)])
    density = ConditionalFlowDensity("maf", "torch", heavy_tails=base == "heavy", **QUICK)
    density.fit(x, y)
    found = density.quantiles(x[:3], [0.25, 0.5], num_draws=4000)
    drawn = density.sample(x[:3], 4000)
    assert found.shape == (2, 3, 2)
    assert drawn.shape == (4000, 3, 2)
    spread = np.ptp(np.quantile(drawn, [0.25, 0.75], 0), 0)
    assert (abs(found - np.quantile(drawn, [0.25, 0.5], 0)) < 0.1 * spread).all()


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_whole_numbers(backend: str) -> None:
    """Their probabilities are whole, and those of what they were drawn from; draws are numbers that occur."""
    rng = np.random.default_rng(0)
    x = pd.DataFrame({"count": rng.binomial(4, 0.3, 3000)})
    options = {"num_layers": 1, "hidden_dims": [4], "num_bins": 8}
    density = FlowDensity("nsf", backend, model_options=options, integers=["count"], num_epochs=20,
                          bounds={"count": (0, 4)}, random_state=0, learning_rate=2e-2).fit(x)  # fmt: skip
    numbers = pd.DataFrame({"count": np.arange(-1, 6)})
    found = np.exp(density.score_samples(numbers))
    assert found[0] == found[-1] == 0
    assert found.sum() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(found[1:-1], binom.pmf(np.arange(5), 4, 0.3), atol=0.03)
    assert np.isneginf(density.score_samples(numbers + 0.5)).all()
    assert set(density.sample(200)[:, 0]) <= set(range(5))
    own = density.anomaly_scores(numbers[1:-1], 2000)
    assert own[1] < 0.05 < own[2] < own[4]


def test_categories() -> None:
    """Probabilities beside a column that depends on them; whole, and none for others."""
    rng = np.random.default_rng(0)
    kind = rng.choice([7.0, -2.0, 40.0], 1500, p=[0.5, 0.2, 0.3])
    x = np.column_stack([rng.normal(kind / 10, 1), kind])
    options = {"num_layers": 2, "hidden_dims": [8], "num_bins": 8}
    density = FlowDensity("nsf", "torch", model_options=options, categories=[1], num_epochs=15,
                          random_state=0, learning_rate=2e-2).fit(x)  # fmt: skip
    grid = np.linspace(-8, 12, 801)
    found = [
        np.exp(density.score_samples(np.column_stack([grid, np.full(801, value)]))).sum() / 40
        for value in (-2, 7, 40, 8)
    ]
    np.testing.assert_allclose(found, [0.2, 0.5, 0.3, 0], atol=0.05)
    assert sum(found) == pytest.approx(1, abs=5e-3)
    drawn = density.sample(300)
    assert set(drawn[:, 1]) == {7, -2, 40}
    assert drawn[drawn[:, 1] == 40, 0].mean() > 2 > drawn[drawn[:, 1] == -2, 0].mean()
    at_ends = density.cells_.whole(np.array([[0.0, 0.0], [0.0, 3.0]]))  # far out a flow gives these
    np.testing.assert_array_equal(at_ends[:, 1], [-2, 40])
    again = pickle.loads(pickle.dumps(density))
    np.testing.assert_array_equal(again.score_samples(x[:9]), density.score_samples(x[:9]))
    labels = ConditionalFlowDensity("maf", "torch", categories=[0], **QUICK).fit(x[:, :1], kind)
    with pytest.raises(ValueError, match="categories have no order and no quantiles"):
        labels.predict(x[:3, :1])


def test_whole_numbers_given_others() -> None:
    """Quantiles are the smallest numbers of at least so much probability below and at them."""
    x = RNG.normal(size=(300, 1))
    y = np.column_stack([RNG.poisson(np.exp(x[:, 0])), RNG.poisson(2 + x[:, 0] ** 2)])
    density = ConditionalFlowDensity("maf", "torch", integers=[0, 1], **QUICK).fit(x, y)
    drawn = density.sample(x[:2], 500)
    quantiles = density.quantiles(x[:2], [0.5], 500)
    for values in (drawn, quantiles):
        assert (values == np.floor(values)).all()
    grid = np.stack(np.meshgrid(np.arange(-40, 60), np.arange(-40, 60)), -1).reshape(-1, 2)
    found = np.exp(density.log_prob(np.repeat(x[:1], len(grid), 0), grid))
    assert found.sum() == pytest.approx(1, abs=2e-3)
    one = ConditionalFlowDensity("maf", "torch", integers=[0], **QUICK).fit(x, y[:, 0])
    levels = np.array([0.2, 0.5, 0.9])
    below = np.cumsum(np.exp(one.log_prob(np.repeat(x[:1], 100, 0), np.arange(-40, 60))))
    ends = one.quantiles(x[:1], levels)[:, 0]
    assert (below[(ends + 40).astype(int)] >= levels - 1e-4).all()
    assert (below[(ends + 39).astype(int)] <= levels + 1e-4).all()


def holed(value: float) -> np.ndarray:
    x = table()
    x[3, 2] = value
    return x


@pytest.mark.parametrize(
    ("x", "options", "sentence"),
    [
        (
            holed(np.nan),
            {},
            "column 2 of the data holds a missing value (NaN): leave such rows out",
        ),
        (holed(np.inf), {}, "column 2 of the data holds an infinity (inf)"),
        (table() * [1, 0, 1, 1], {}, "column 1 of the data is constant"),
        (holed(3.0), {"bounds": BOUNDS}, "holds 3.0, which is not inside its bounds (0, 3)"),
        (table(), {"bounds": {7: (0, 1)}}, "bounds are stated of column 7; there are 4 columns"),
        (table(), {"bounds": [(0, 1)]}, "bounds are expected for 4 columns, got 1"),
        (table(), {"bounds": {0: (1, 0)}}, "column 0 are expected as (low, high), got (1, 0)"),
        (table(), {"integers": [1]}, "column 1 is stated as whole numbers and holds -1."),
        (
            table(),
            {"integers": [0], "categories": [0]},
            "stated as whole numbers and as categories",
        ),
        (
            table(),
            {"categories": [1], "bounds": {1: (0, 9)}},
            "it holds categories, which have no order",
        ),
        (table(), {"integers": "age"}, "integers expect a list of columns, got 'age'"),
        (table(), {"integers": 0}, "integers expect a list of columns, got 0"),
        (table(), {"integers": ["age"]}, "integers name column 'age'; there are 4 columns"),
        (np.floor(1e6 * table()), {"integers": [0]}, "too large for cells in float32"),
        (table(), {"model": "glow"}, "Glow"),
        (table(), {"model": "none"}, "there is no model 'none'"),
    ],
)
def test_refused(x: np.ndarray, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        FlowDensity(**({"model": "maf", "backend": "torch"} | QUICK | options)).fit(x)
    if not options and "infinity" not in sentence:
        with pytest.raises(ValueError, match=re.escape(sentence.partition("data")[2][:12])):
            ConditionalFlowDensity("maf", "torch", **QUICK).fit(x, x[:, 0])
