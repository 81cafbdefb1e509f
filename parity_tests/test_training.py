"""Training: the same trajectory in both halves, and a loop that loses nothing."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge.errors import CheckpointError, NonFiniteError
from flow_bridge.sources import row_batches
from flow_bridge.training import History
from flow_bridge.weights import jax_to_torch, torch_to_jax
from jax_flows.checkpoint import from_numpy
from parity_tests.catalogue import Case, arch, cases, flow, smooth_real_nvp
from torch_flows.checkpoint import to_numpy
from twinflows.parity.limits import TRAJECTORY, TRAJECTORY_STEPS

SMALL = Case("small", flow(smooth_real_nvp(2, 2), arch("DiagonalNormal", dim=2)))
NORMED = Case("normed", flow(arch("Chain", bijectors=[
    smooth_real_nvp(2, 2), arch("BatchNorm", dim=2), arch("Planar", dim=2),
]), arch("StandardNormal", dim=2)))  # fmt: skip
QUIET: dict[str, Any] = {"progress": False, "batch_size": 32}


def data(rows: int, dim: int = 2) -> np.ndarray:
    x = np.random.default_rng(5).standard_normal((rows, dim))
    x[:, -1] += x[:, 0] ** 2
    return x


def run_both(
    case: Case, torch_fit: Callable[[Any], History], jax_fit: Callable[[Any, Any], Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], History, History]:
    """Fit from the same weights in both halves; the weights after it by torch name."""
    torch_model, jax_model = case.torch_model(), jax_flows.build(case.architecture)
    variables = from_numpy(torch_to_jax(case.weights(), jax_model.shapes()))
    torch_history = torch_fit(torch_model)
    variables, jax_history = jax_fit(jax_model, variables)
    state = {name: to_numpy(array) for name, array in torch_model.state_dict().items()}
    return state, jax_to_torch(variables), torch_history, jax_history


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Relative L2 distance of all weights."""
    difference = sum(float(np.square(a[name] - b[name]).sum()) for name in b)
    return (difference / sum(float(np.square(array).sum()) for array in b.values())) ** 0.5


def run_fit(case: Case, x: np.ndarray, **options: Any) -> Any:
    options = QUIET | options
    return run_both(
        case,
        lambda model: torch_flows.fit(model, x, **options),
        lambda model, variables: jax_flows.fit(model, variables, x, **options),
    )


@cases(lambda case: case.trajectory)
def test_same_trajectory(case: Case) -> None:
    """The same weights after 200 steps of Adam, and the weights did move."""
    x = data(160, case.inputs(1).shape[-1])
    epochs = TRAJECTORY_STEPS // 5
    in_torch, in_jax, history, twin = run_fit(case, x, num_epochs=epochs, validation=0)
    assert len(history.step_losses) == TRAJECTORY_STEPS
    np.testing.assert_allclose(history.step_losses, twin.step_losses, rtol=1e-11)
    assert distance(in_torch, in_jax) < TRAJECTORY
    assert distance(case.weights(), in_jax) > 1e-2


def test_same_trajectory_with_batch_statistics_clipping_and_schedule() -> None:
    options = {
        "max_grad_norm": 0.5,
        "learning_rate": lambda step: 1e-2 / (1 + step),
        "num_epochs": 8,
    }
    in_torch, in_jax, history, twin = run_fit(NORMED, data(200), **options)
    np.testing.assert_allclose(history.step_losses, twin.step_losses, rtol=1e-10)
    np.testing.assert_allclose(history.validation_loss, twin.validation_loss, rtol=1e-10)
    assert (history.best_epoch, history.stopped_early) == (twin.best_epoch, twin.stopped_early)
    for name in ("running_mean", "running_var"):
        key = f"bijector.bijectors.1.{name}"
        np.testing.assert_allclose(in_torch[key], in_jax[key], rtol=1e-9)
        assert not np.allclose(in_jax[key], NORMED.weights()[key])


def test_another_optimiser() -> None:
    """SGD with momentum, given in each framework's own terms."""
    x, options = data(100), QUIET | {"num_epochs": 4, "validation": 0}
    in_torch, in_jax, *_ = run_both(
        SMALL,
        lambda m: torch_flows.fit(
            m, x, optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9), **options
        ),
        lambda m, v: jax_flows.fit(m, v, x, optimizer=optax.sgd(0.01, momentum=0.9), **options),
    )
    assert distance(in_torch, in_jax) < TRAJECTORY
    assert distance(SMALL.weights(), in_jax) > 1e-3


def test_energy_in_both() -> None:
    """Reverse KL to a normal: the same trajectory, and it finds the target."""

    def energy(x: Any) -> Any:
        return 2 * (x[..., 0] - 1) ** 2 + (x[..., 1] + 2) ** 2 / 2

    case = Case("affine", flow(arch("Affine", dim=2), arch("StandardNormal", dim=2)))
    options = {"num_steps": 250, "progress": False, "learning_rate": 3e-2, "batch_size": 64}
    in_torch, in_jax, history, twin = run_both(
        case,
        lambda m: torch_flows.fit_to_energy(m, energy, **options),
        lambda m, v: jax_flows.fit_to_energy(m, v, energy, **options),
    )
    assert distance(in_torch, in_jax) < TRAJECTORY
    assert len(history.step_losses) == len(twin.step_losses) == 250
    flow_ = torch_flows.build(case.architecture).double()
    flow_.load_state_dict({name: torch.from_numpy(a) for name, a in in_torch.items()})
    with torch.no_grad():
        samples = flow_.sample(4000, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(samples.mean(0), [1, -2], atol=0.1)
    np.testing.assert_allclose(samples.std(0), [0.5, 1], atol=0.1)


def fit_half(
    half: str, case: Case, x: np.ndarray, **options: Any
) -> tuple[dict[str, Any], History]:
    """Fit in one half; its weights by torch name."""
    options = QUIET | options
    if half == "torch":
        model = case.torch_model()
        history = torch_flows.fit(model, x, **options)
        assert not model.training
        return {name: to_numpy(a) for name, a in model.state_dict().items()}, history
    model = jax_flows.build(case.architecture)
    variables = from_numpy(torch_to_jax(case.weights(), model.shapes()))
    variables, history = jax_flows.fit(model, variables, x, **options)
    return jax_to_torch(variables), history


HALVES = pytest.mark.parametrize("half", ["torch", "jax"])


@HALVES
def test_resuming_changes_nothing(half: str, tmp_path: Path) -> None:
    """Two epochs, then three more from the state file: bit for bit as five at once."""
    x, state = data(150), tmp_path / "state.safetensors"
    fit_half(half, NORMED, x, num_epochs=2, state_path=state)
    resumed, history = fit_half(half, NORMED, x, num_epochs=5, state_path=state)
    straight, uninterrupted = fit_half(half, NORMED, x, num_epochs=5)
    assert history == uninterrupted
    assert resumed.keys() == straight.keys()
    for name, array in straight.items():
        assert array.tobytes() == resumed[name].tobytes(), name
    with pytest.raises(
        CheckpointError, match="the state of another run: its seed is 0, here it is 1"
    ):
        fit_half(half, NORMED, x, num_epochs=5, state_path=state, seed=1)
    state.write_bytes(state.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match="state"):
        fit_half(half, NORMED, x, num_epochs=5, state_path=state)


@HALVES
def test_early_stopping_keeps_the_best(half: str) -> None:
    """A learning rate that first helps and then ruins."""
    x = data(120)
    options = {"num_epochs": 30, "patience": 3}
    ruin = {"learning_rate": lambda step: 1e-3 if step < 20 else 0.3}
    weights, history = fit_half(half, SMALL, x, **options, **ruin)
    assert history.stopped_early
    assert len(history.train_loss) == history.best_epoch + 1 + 3
    assert history.validation_loss[history.best_epoch] == min(history.validation_loss)
    best, _ = fit_half(half, SMALL, x, num_epochs=history.best_epoch + 1, **ruin)
    for name, array in best.items():
        np.testing.assert_array_equal(array, weights[name])


@HALVES
def test_non_finite_loss_names_the_step_and_keeps_the_last_good_weights(half: str) -> None:
    case = Case("affine", flow(arch("Affine", dim=2), arch("StandardNormal", dim=2)))
    late = {"learning_rate": lambda step: 1e-3 if step < 9 else 1e300}
    with pytest.raises(
        NonFiniteError, match=r"at step 10; the weights are those of epoch 3, the best"
    ):
        fit_half(half, case, data(100), **late)
    with pytest.raises(NonFiniteError, match=r"at step 10; the weights are those after 9 steps"):
        fit_half(half, case, data(100), validation=0, **late)
    if half == "jax":
        model = jax_flows.build(case.architecture)
        variables = from_numpy(torch_to_jax(case.weights(), model.shapes()))
        with pytest.raises(NonFiniteError) as info:
            jax_flows.fit(model, variables, data(100), learning_rate=1e38, **QUIET)
        jax.tree.map(np.testing.assert_array_equal, info.value.variables, variables)
    else:
        model = case.torch_model()
        with pytest.raises(NonFiniteError):
            torch_flows.fit(model, data(100), learning_rate=1e38, **QUIET)
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(array.numpy(), case.weights()[name])


@HALVES
def test_conditional_fit_and_given_validation_data(half: str) -> None:
    case = Case("conditional", flow(
        arch("Planar", dim=2, context_dim=1), arch("StandardNormal", dim=2),
    ))  # fmt: skip
    context = np.random.default_rng(0).standard_normal((90, 1))
    x = data(90) + context
    options = {"context": context[:60], "validation": x[60:], "validation_context": context[60:]}
    _, history = fit_half(half, case, x[:60], num_epochs=40, learning_rate=1e-2, **options)
    assert np.mean(history.train_loss[-5:]) < np.mean(history.train_loss[:5])
    assert len(history.validation_loss) == 40


@HALVES
def test_progress_bar_can_be_turned_off(half: str, capsys) -> None:
    fit_half(half, SMALL, data(40), num_epochs=1)
    assert capsys.readouterr().err == ""
    fit_half(half, SMALL, data(40), num_epochs=1, progress=True)
    assert "validation=" in capsys.readouterr().err


def test_batches_are_a_permutation_per_epoch() -> None:
    batches = row_batches(103, 20, seed=3)
    first, second = batches(0), batches(1)
    assert first.shape == (5, 20)
    assert len(np.unique(first)) == 100
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, row_batches(103, 20, seed=3)(0))
    assert row_batches(4, 256, seed=0)(0).shape == (1, 4)
