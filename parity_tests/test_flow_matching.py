"""Flow matching: closed forms, the same training in both halves, and what a matched batch must not change."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from scipy.stats import kstest

import jax_flows
import torch_flows
from flow_bridge.matching import draw_times, matched
from parity_tests.catalogue import Case, arch, continuous, flow
from parity_tests.test_training import data, distance, run_both
from twinflows.parity.limits import TRAJECTORY

PACKAGES: dict[str, Any] = {"torch": torch_flows, "jax": jax_flows}
QUIET = {"progress": False, "validation": 0}
NORMAL = arch("StandardNormal", dim=2)
MEAN, SCALE = 0.7, 0.5


class GaussianVelocity(torch.nn.Module):
    """The field of data N(MEAN, SCALE^2) under the rectified path, closed."""

    def __init__(self, in_dim: int, out_dim: int, context_dim: int = 0) -> None:
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: Any, t: Any) -> Any:
        variance = (1 - t) ** 2 * SCALE**2 + t**2
        slope = (t - (1 - t) * SCALE**2) / variance
        return slope * (x - (1 - t) * MEAN) - MEAN + self.zero


class GaussianVelocityTwin(nn.Module):
    in_dim: int
    out_dim: int
    context_dim: int = 0

    @nn.compact
    def __call__(self, x: Any, t: Any) -> Any:
        zero = self.param("zero", nn.initializers.zeros, ())
        variance = (1 - t) ** 2 * SCALE**2 + t**2
        slope = (t - (1 - t) * SCALE**2) / variance
        return slope * (x - (1 - t) * MEAN) - MEAN + zero


def of_field(half: str, **options: Any) -> tuple[Any, tuple[Any, ...]]:
    """A flow of the exact field, and its variables."""
    package = PACKAGES[half]
    field = GaussianVelocity if half == "torch" else GaussianVelocityTwin
    model = package.NeuralODE(2, conditioner=field, solver="rk4", **options)
    return (model.double(), ()) if half == "torch" else (model, (model.init(jax.random.key(0)),))


def array(half: str, x: np.ndarray) -> Any:
    return torch.from_numpy(x) if half == "torch" else jnp.asarray(x)


@pytest.mark.parametrize("half", PACKAGES)
@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_a_constant_velocity_moves_the_normal(half: str, solver: str) -> None:
    """z = x - c, so that log q(x) = log N(x - c; 0, I); flowMC's own flow matching is 2 nats off."""
    model = PACKAGES[half].NeuralODE(2, (), solver=solver, num_steps=3)
    c, x = np.array([2.0, -1.0]), np.random.default_rng(0).normal(size=(5, 2))
    if half == "torch":
        model = model.double()
        state = {name: torch.zeros_like(w) for name, w in model.state_dict().items()}
        state["bijector.network.layers.0.bias"] = torch.from_numpy(-c)
        model.load_state_dict(state)
        log_prob = model.log_prob(torch.from_numpy(x)).detach()
    else:
        variables = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), "float64"))
        variables["params"]["bijector"]["network"]["layers_0"]["bias"] = jnp.asarray(-c)
        log_prob = model.log_prob(variables, x)
    exact = -np.square(x - c).sum(1) / 2 - math.log(2 * math.pi)
    np.testing.assert_allclose(np.asarray(log_prob), exact, rtol=1e-13)


@pytest.mark.parametrize("half", PACKAGES)
def test_gaussian_data(half: str) -> None:
    """A field of the user's own: the exact one gives the exact density, and the analytic minimum."""
    model, options = of_field(half, num_steps=40)
    x = MEAN + SCALE * np.random.default_rng(0).normal(size=(4, 2))
    log_prob = np.asarray(_detached(model.log_prob(*options, array(half, x))))
    exact = -np.square((x - MEAN) / SCALE).sum(1) / 2 - math.log(2 * math.pi * SCALE**2)
    np.testing.assert_allclose(log_prob, exact, rtol=1e-6)
    loss = PACKAGES[half].FlowMatching()
    rows = 40_000
    x = MEAN + SCALE * np.random.default_rng(1).normal(size=(rows, 2))
    drawn = loss.draw(model, np.random.default_rng(2), rows)
    values = loss(model, *options, array(half, x), None, *(array(half, a) for a in drawn))
    values = np.asarray(_detached(values))
    error = values.std() / rows**0.5
    assert abs(values.mean() - 2 * SCALE * math.pi / 2) < 4 * error < 0.05


@pytest.mark.parametrize("half", PACKAGES)
def test_paths_and_their_velocities_by_hand(half: str) -> None:
    """x_t as the docstring has it, and its derivative by a complex step."""
    model, variables = of_field(half)
    x, z, e, t = np.random.default_rng(0).random((4, 5, 2))
    t = t[:, :1]
    sigma = 0.4

    def bridge(t: Any) -> Any:
        return (1 - t) * x + t * z + sigma * (t * (1 - t)) ** 0.5 * e

    paths = {
        "rectified": (lambda t: (1 - t) * x + t * z + sigma * e, 1),
        "lipman": (lambda t: (1 - t) * x + (sigma + (1 - sigma) * t) * z, 1),
        "schroedinger_bridge": (bridge, 4 * t[:, 0] * (1 - t[:, 0])),
        "variance_preserving": (
            lambda t: np.cos(math.pi * t / 2) * x + np.sin(math.pi * t / 2) * z, 1
        ),
    }  # fmt: skip
    for name, (path, factor) in paths.items():
        loss = PACKAGES[half].FlowMatching(name, 0.0 if name == "variance_preserving" else sigma)
        drawn = [z, t[:, 0], e][: len(loss.draw(model, np.random.default_rng(0), 1))]
        found = loss(model, *variables, array(half, x), None, *(array(half, a) for a in drawn))
        variance = (1 - t) ** 2 * SCALE**2 + t**2
        field = (t - (1 - t) * SCALE**2) / variance * (path(t) - (1 - t) * MEAN) - MEAN
        error = field - path(t + 1e-30j).imag / 1e-30
        np.testing.assert_allclose(_detached(found), factor * (error**2).sum(1), rtol=1e-12)


def test_times() -> None:
    t = draw_times(np.random.default_rng(0), "logit_normal", 20_000)
    assert kstest(np.log(t / (1 - t)), "norm").pvalue > 0.01
    assert kstest(draw_times(np.random.default_rng(0), "uniform", 20_000), "uniform").pvalue > 0.01


def _detached(values: Any) -> Any:
    return values.detach() if isinstance(values, torch.Tensor) else values


FIELD = Case("field", flow(continuous(dim=2, time_features=2), NORMAL))
ANGLE = Case("angle", flow(
    continuous(dim=2, circular=[1]), arch("Product", columns=[[0], [1]], distributions=[
        arch("StandardNormal", dim=1), arch("Uniform", dim=1, low=-math.pi, high=math.pi)]),
))  # fmt: skip
RESIDUAL = Case("residual", flow(
    continuous(dim=2, context_dim=1, time_features=1, conditioner=arch(
        "ResidualMLP", hidden_dim=5, num_blocks=1, activation="tanh", context="gate")), NORMAL,
))  # fmt: skip


@pytest.mark.parametrize(
    ("case", "name", "options", "steps"),
    [
        (FIELD, "FlowMatching", {"times": "logit_normal", "sigma": 0.1}, 200),
        (FIELD, "FlowMatching", {"path": "lipman", "sigma": 0.1}, 1),
        (FIELD, "FlowMatching", {"path": "variance_preserving"}, 1),
        (FIELD, "OptimalTransportFlowMatching", {"path": "schroedinger_bridge", "sigma": 0.2}, 20),
        (RESIDUAL, "OptimalTransportFlowMatching", {"max_rows": 9}, 20),
        (ANGLE, "FlowMatching", {}, 20),
    ],
)
def test_the_same_training(case: Case, name: str, options: dict[str, Any], steps: int) -> None:
    x, epochs = data(40), -(-steps // 2)
    given = QUIET | {"num_epochs": epochs, "batch_size": 20, "learning_rate": 3e-3}
    if case is RESIDUAL:
        given["context"] = np.arange(40.0)[:, None] % 3
    losses = {half: getattr(package, name)(**options) for half, package in PACKAGES.items()}
    in_torch, in_jax, history, twin = run_both(
        case,
        lambda m: torch_flows.fit(m, x, loss=losses["torch"], **given),
        lambda m, v: jax_flows.fit(m, v, x, loss=losses["jax"], **given),
    )
    assert distance(in_torch, in_jax) < TRAJECTORY
    np.testing.assert_allclose(history.train_loss, twin.train_loss, rtol=1e-11)
    assert distance(in_torch, case.weights()) > 1e-4


def test_reflow_is_the_same_training() -> None:
    """On the pairs that one flow made, with their contexts."""
    x, z = data(40), data(40)[::-1].copy()
    given = {"num_steps": 20, "batch_size": 10, "learning_rate": 3e-3, "progress": False}
    pairs = x, z, np.arange(40.0)[:, None] % 3
    in_torch, in_jax, history, twin = run_both(
        RESIDUAL,
        lambda m: torch_flows.fit(m, None, loss=torch_flows.Reflow(*pairs), **given),
        lambda m, v: jax_flows.fit(m, v, None, loss=jax_flows.Reflow(*pairs), **given),
    )
    assert distance(in_torch, in_jax) < TRAJECTORY
    np.testing.assert_allclose(history.train_loss, twin.train_loss, rtol=1e-11)
    assert distance(in_torch, RESIDUAL.weights()) > 1e-4


@pytest.mark.parametrize("half", PACKAGES)
def test_straight_pairs_and_the_shorter_way_round(half: str) -> None:
    """With f = c the loss is |z - x - c|^2, on a circle of the nearest z."""
    package, c = PACKAGES[half], np.array([0.3, 0.5])
    x, z = np.array([[3.0, -3.0], [-3.0, 0.1]]), np.array([[-3.0, 2.9], [0.3, 0.2]])
    field = package.ContinuousBijector(2, (), circular=(1,), solver="rk4", num_steps=1)
    angle = package.Uniform(1, -math.pi, math.pi)
    base = package.Product([package.StandardNormal(1), angle], [[0], [1]])
    model = package.Flow(field, base)
    given: tuple[Any, ...] = ()
    if half == "torch":
        model = model.double()
        state = {name: torch.zeros_like(w) for name, w in model.state_dict().items()}
        model.load_state_dict(state | {"bijector.network.layers.0.bias": torch.from_numpy(c)})
    else:
        variables = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), "float64"))
        variables["params"]["bijector"]["network"]["layers_0"]["bias"] = jnp.asarray(c)
        given = (variables,)
    loss = package.Reflow(x, z)
    loss.check(model)
    drawn = loss.draw(model, np.random.default_rng(0), 5)
    moved = drawn[1] - drawn[0] - c
    moved[:, 1] += np.array([0, 2 * math.pi])[(moved[:, 1] < -math.pi) * 1]
    moved[:, 1] -= np.array([0, 2 * math.pi])[(moved[:, 1] > math.pi) * 1]
    found = loss(model, *given, None, None, *(array(half, a) for a in drawn))
    np.testing.assert_allclose(_detached(found), np.square(moved).sum(1), rtol=1e-12)
    straight = _detached(model.forward(*given, array(half, x))[0])
    np.testing.assert_allclose(straight, [[3.3, -2.5], [-2.7, 0.6]], rtol=1e-12)
    with pytest.raises(ValueError, match=r"no path 'lipman' for circular columns"):
        package.FlowMatching("lipman").check(model)
    with pytest.raises(ValueError, match="x, z and a context of as many rows, got"):
        package.Reflow(x, z[:1])
    with pytest.raises(ValueError, match=r"as many rows, got shapes \[\(\), \(2, 2\)\]"):
        package.Reflow(None, z)
    with pytest.raises(ValueError, match="of numbers, got <U"):
        package.Reflow(x.astype(str), z)
    with pytest.raises(ValueError, match="got a NaN"):
        package.Reflow(x, z * np.nan)
    with pytest.raises(ValueError, match=r"of widths \(\(2,\), \(2,\), None\) for this flow"):
        package.Reflow(x, z[:, :1]).check(model)
    with pytest.raises(ValueError, match="holds its own x and z"):
        loss(model, *given, x, None, *drawn)


def test_matching_stays_among_equal_keys() -> None:
    """The least cost of all pairs; never across contexts or weights, nor across blocks."""
    generator = np.random.default_rng(0)
    x, z = generator.normal(size=(2, 6, 2))
    found = matched(x, z, (), 6)
    from itertools import permutations

    costs = [np.square(x - z[list(order)]).sum() for order in permutations(range(6))]
    assert np.square(x - found).sum() == pytest.approx(min(costs))
    keys = np.array([0.0, 1, 0, 1, 2, 0])[:, None], np.array([1.0, 1, 1, 1, 1, 3])
    found = matched(x, z, keys, 6)
    groups = [[0, 2], [1, 3], [4], [5]]
    for rows in groups:
        assert sorted(found[rows].tolist()) == sorted(z[rows].tolist())
    assert sorted(matched(x, z, (), 2)[:2].tolist()) == sorted(z[:2].tolist())


@pytest.mark.parametrize("half", PACKAGES)
def test_what_is_refused(half: str) -> None:
    package = PACKAGES[half]
    with pytest.raises(ValueError, match="sigma with the other paths only, not 'variance_pre"):
        package.FlowMatching("variance_preserving", sigma=0.1)
    with pytest.raises(ValueError, match="path to be one of lipman"):
        package.FlowMatching("straight")
    with pytest.raises(ValueError, match="this flow's bijector is Affine"):
        package.FlowMatching().check(package.Flow(package.Affine(2), package.StandardNormal(2)))
    field = package.ContinuousBijector(2)
    loss = package.OptimalTransportFlowMatching()
    for model in (
        package.Flow(package.Chain([package.Affine(2), field]), package.StandardNormal(2)),
        package.Flow(package.ContinuousBijector(2), package.StudentT(2, 3.0)),
    ):
        package.FlowMatching().check(model)
        with pytest.raises(
            ValueError, match="standardise the data beforehand, or take FlowMatching"
        ):
            loss.check(model)
