"""The commands of ``examples/tables``: their simulators, samplers and references, and each in little."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "tables"
WHEELS = ROOT / "outputs" / "tables" / "wheels"


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a script's own folder is to it."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


def test_simulators() -> None:
    """Moments of the definitions, at parameters of the prior."""
    from tasks import DESIGN, TASKS

    generator = np.random.default_rng(0)
    theta = {name: task.prior.sample(generator, 1) for name, task in TASKS.items()}
    x = {
        name: task.simulate(generator, np.repeat(theta[name], 20_000, 0))
        for name, task in TASKS.items()
    }
    for name in ("gaussian_linear", "gaussian_linear_uniform", "gaussian_mixture"):
        variance = (1 + 0.1**2) / 2 if name == "gaussian_mixture" else 0.1
        found = x[name] - theta[name]
        np.testing.assert_allclose(found.mean(0), 0, atol=5 * (variance / 20_000) ** 0.5)
        np.testing.assert_allclose(found.var(0), variance, rtol=0.1)

    a, b = theta["two_moons"][0]
    moon = x["two_moons"] + np.array([abs(a + b), a - b]) / 2**0.5 - [0.25, 0]
    radius = np.hypot(*moon.T)
    assert moon[:, 0].min() > 0
    np.testing.assert_allclose([radius.mean(), radius.std()], [0.1, 0.01], rtol=0.03)

    mean, (first, second) = theta["slcp"][0, :2], theta["slcp"][0, 2:4] ** 2
    rho = np.tanh(theta["slcp"][0, 4])
    points = x["slcp"].reshape(-1, 2)
    cross = rho * first * second
    covariance = np.array([[first**2, cross], [cross, second**2]])
    scale = np.array([first, second])
    np.testing.assert_allclose((points.mean(0) - mean) / scale, 0, atol=0.02)
    np.testing.assert_allclose(
        np.cov(points.T) / np.outer(scale, scale), covariance / np.outer(scale, scale), atol=0.02
    )

    chance = 1 / (1 + np.exp(-DESIGN @ theta["bernoulli_glm"][0]))
    spread = np.sqrt(np.diag(DESIGN.T @ (DESIGN * (chance * (1 - chance))[:, None])))
    found = (x["bernoulli_glm"].mean(0) - chance @ DESIGN) / spread
    np.testing.assert_allclose(found, 0, atol=0.04)


def test_chains() -> None:
    """Both samplers on normals, and the one without gradients from mode to mode."""
    from chains import differential_evolution, hamiltonian

    generator = np.random.default_rng(0)
    factor = np.tril(generator.standard_normal((5, 5))) / 3 + np.eye(5)
    covariance = factor @ factor.T
    precision = np.linalg.inv(covariance)
    scale = np.sqrt(np.diag(covariance))

    def value(x: np.ndarray) -> np.ndarray:
        return -((x @ precision) * x).sum(-1) / 2

    start = 2 * generator.standard_normal((2, 200, 5))
    walkers = differential_evolution(value, start, 400, generator, 20)[5:]
    assert walkers.shape == (15, 2, 200, 5)
    of_chains, rate = hamiltonian(lambda z: (value(z), -z @ precision), start[0], 60, generator)
    assert 0.8 < rate < 0.98
    for draws in (walkers, of_chains):
        found = np.cov(draws.reshape(-1, 5).T)
        np.testing.assert_allclose(
            found / np.outer(scale, scale), covariance / np.outer(scale, scale), atol=0.08
        )

    def modes(x: np.ndarray) -> np.ndarray:
        near, far = (-2 * ((x - side) ** 2).sum(-1) for side in ([4, 0], [-4, 0]))
        return np.logaddexp(np.log(0.3) + near, np.log(0.7) + far)

    draws = differential_evolution(
        modes, 6 * generator.standard_normal((1, 400, 2)), 600, generator, 10
    )
    assert abs((draws[20:, ..., 0] > 0).mean() - 0.3) < 0.05


def test_references() -> None:
    """The closed form of the regression, by differences of its density, which is quadratic."""
    import targets

    target = targets.regression()
    density, axes = target.log_density(np), np.eye(10)
    ahead = density(target.mean + axes) - density(target.mean)
    both = density(target.mean + axes[:, None] + axes) - density(target.mean)
    precision = ahead[:, None] + ahead - both
    np.testing.assert_allclose(density(target.mean - axes), ahead + density(target.mean), rtol=1e-6)
    found = np.sqrt(np.diag(np.linalg.inv(precision)))
    np.testing.assert_allclose(found, target.deviation, rtol=1e-3)
    _, log_det = np.linalg.slogdet(precision / (2 * np.pi))
    np.testing.assert_allclose(density(target.mean) - log_det / 2, target.log_z, rtol=1e-6)


def test_classifier_follows_scikit_learn() -> None:
    """The same losses, with a last batch that is not full, the same probabilities, and the same end."""
    from classifier import Classifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    generator = np.random.default_rng(0)
    x, labels = generator.standard_normal((450, 2)), np.repeat([0, 1], 225)
    x[225:] += 0.5
    ours = Classifier((6, 5), 4, 1).fit(x, labels)
    theirs = MLPClassifier((6, 5), max_iter=4, random_state=1)
    with pytest.warns(ConvergenceWarning):
        theirs.fit(x, labels)
    # float32 beside float64: 1.1e-7 and 9e-7 were measured
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), rtol=0, atol=5e-6)
    nothing, options = np.zeros_like(x), {"max_iter": 100, "random_state": 2}
    ours = Classifier((6, 5), **options).fit(nothing, labels)
    theirs = MLPClassifier((6, 5), **options).fit(nothing, labels)
    assert len(ours.loss_curve_) == len(theirs.loss_curve_) < 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        (
            "sbibm",
            "--tasks two_moons --budgets 100 --observations 1 --num-draws 200",
            4,
        ),
        (
            "posteriors",
            "--names banana --num-steps 5 --num-draws 200 --chain-length 5",
            6,
        ),
        (
            "tokens",
            "--num-simulations 200 --num-epochs 1 --num-draws 100",
            6,
        ),
        (
            "tabular",
            "--tables iris --families MAF --num-splits 1 --num-epochs 2",
            4,
        ),
    ],
)
def test_commands(name: str, options: str, rows: int, tmp_path: Path) -> None:
    """Each in little: its table, its file, and nothing to do the second time."""
    if name == "sbibm" and not list(WHEELS.glob("sbibm-*.whl")):
        pytest.skip("the wheel of sbibm has not been downloaded")
    out = tmp_path / f"{name}.json"
    command = [sys.executable, str(FOLDER / f"{name}.py"), *options.split(), "--out", str(out)]
    for _ in range(2):
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        content = json.loads(out.read_text())
        assert len(content["records"]) >= rows
        assert {"versions", "settings", "date"} <= content.keys()
        assert out.with_suffix(".md").read_text().startswith("| ")


def test_a_file_of_other_settings_is_refused(tmp_path: Path) -> None:
    from report import read, write

    path, records = tmp_path / "table.json", [{"split": 0, "value": 1.5}]
    assert read(path, {"steps": 3}) == []
    write(path, "| a |\n", {"steps": 3, "sizes": (1, 2)}, records)
    assert read(path, {"steps": 3, "sizes": (1, 2)}) == records
    with pytest.raises(ValueError, match="other settings"):
        read(path, {"steps": 4, "sizes": (1, 2)})
