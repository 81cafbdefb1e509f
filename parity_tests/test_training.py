"""Training: the same trajectory in both halves, and a loop that loses nothing."""

import warnings
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
import jax_flows.training as jax_training
import torch_flows
from flow_bridge.errors import CheckpointError, NonFiniteError
from flow_bridge.sources import Chunk, Part, row_batches
from flow_bridge.training import History, train
from flow_bridge.weights import jax_to_torch, torch_to_jax
from jax_flows.checkpoint import from_numpy
from jax_flows.training import clip_by_global_norm as clip_in_jax
from parity_tests.catalogue import Case, arch, cases, flow, smooth_real_nvp
from torch_flows.checkpoint import to_numpy
from torch_flows.networks.regularization import Dropout
from torch_flows.training import clip_by_global_norm as clip_in_torch
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


@pytest.mark.parametrize("largest", [2.5, 10.0])
def test_clipping_by_hand(largest: float) -> None:
    """Of two arrays of norm 5 together: scaled down to a smaller norm, left as they are for a larger one."""
    arrays = [np.array([3.0, 0.0]), np.array([[4.0]])]
    tensors = [torch.from_numpy(array.copy()) for array in arrays]
    clip_in_torch(tensors, largest)
    for array, one, other in zip(arrays, tensors, clip_in_jax(arrays, largest), strict=True):
        np.testing.assert_allclose(one, array * min(1, largest / 5))
        np.testing.assert_allclose(other, array * min(1, largest / 5))


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


def fit_compiled(x: np.ndarray, compile: bool) -> tuple[History, Any]:
    """Losses and weights, with what a compiler could get wrong: statistics, dropout, parts, clipping."""
    network = arch(
        "MLP", hidden_dims=[8], activation="tanh", normalization="batch_norm", dropout=0.1
    )
    layers = [
        arch("Coupling", dim=2, map=arch("AffineMap"), conditioner=network, mask=mask)
        for mask in ("even", "odd")
    ]
    model = Case(
        "compiled", flow(arch("Chain", bijectors=layers), arch("StandardNormal", dim=2))
    ).torch_model()
    options = {"max_grad_norm": 1.0, "accumulate": 2, "ema": 0.9, "batch_size": 32}
    history = torch_flows.fit(
        model, torch.from_numpy(x), num_epochs=3, progress=False, compile=compile, **options
    )
    return history, model.state_dict()


def test_compiled_steps_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a backend that traces and differentiates as the others do, and runs what it traced as it is."""
    given, traced = torch.nn.Module.compile, []

    def quick(module: torch.nn.Module) -> None:
        traced.append(module)
        given(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", quick)
    x = data(200)
    (plain, weights), (compiled, others) = (fit_compiled(x, compile) for compile in (False, True))
    assert len(traced) == 1
    assert compiled.step_losses == plain.step_losses
    for name, array in weights.items():
        torch.testing.assert_close(others[name], array, rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_steps_of_a_kernel_compiler_are_the_same() -> None:
    """Losses differed by 2.2e-16, as measured."""
    x = data(200)
    (plain, _), (compiled, _) = (fit_compiled(x, compile) for compile in (False, True))
    np.testing.assert_allclose(compiled.step_losses, plain.step_losses, rtol=1e-14)


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


# What evaluation uses where training normalises with statistics of the batch.

TWICE_NORMED = Case("twice", flow(arch("Chain", bijectors=[
    smooth_real_nvp(2, 2), arch("BatchNorm", dim=2),
    arch("Chain", bijectors=[arch("Affine", dim=2), arch("Tanh"), arch("BatchNorm", dim=2)]),
    arch("Invert", bijector=arch("BatchNorm", dim=2)),
]), arch("StandardNormal", dim=2)))  # fmt: skip


def evaluated(half: str, case: Case, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """-log_prob in evaluation mode."""
    if half == "torch":
        model = torch_flows.build(case.architecture).double().eval()
        model.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
        return -model.log_prob(torch.from_numpy(x)).detach().numpy()
    model = jax_flows.build(case.architecture)
    return -np.asarray(model.log_prob(from_numpy(torch_to_jax(weights, model.shapes())), x))


@HALVES
@pytest.mark.parametrize("kind", ["array", "iterable"])
def test_evaluation_has_the_statistics_of_the_data(half: str, kind: str, quick_jax: None) -> None:
    """Data of a scale of 1e-4: the density in evaluation is that of all rows as one training batch."""
    x = 1e-4 * data(96)
    batches = np.split(x, 3)
    source = x if kind == "array" else lambda epoch: (batch * (4 - epoch) for batch in batches)
    weights, _ = fit_half(
        half, TWICE_NORMED, source, num_epochs=4, learning_rate=1e-2, validation=0
    )
    model = torch_flows.build(TWICE_NORMED.architecture).double().train()
    model.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    trained = -model.log_prob(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(evaluated(half, TWICE_NORMED, weights, x), trained, rtol=1e-10)
    inverted = "bijector.bijectors.3.bijector.running_var"
    np.testing.assert_array_equal(weights[inverted], TWICE_NORMED.weights()[inverted])


def test_networks_with_batch_normalisation_and_dropout_train_alike() -> None:
    """The same masks in both halves, in coupling and context network; at the end of an epoch the statistics
    of evaluation are those of the data."""
    options = {
        "hidden_dims": [4],
        "activation": "tanh",
        "normalization": "batch_norm",
        "dropout": 0.4,
    }
    net = arch("MLP", **options)
    coupling = arch("Coupling", dim=2, map=arch("AffineMap", scale="tanh", bound=1.0), context_dim=2,
                    conditioner=net)  # fmt: skip
    base = arch("StandardNormal", dim=2)
    case = Case("", arch("Flow", bijector=coupling, base=base,
                         context_net=[{**net, "in_dim": 3, "out_dim": 2}]))  # fmt: skip
    x, context = data(40), data(40, 3)
    options = {"context": context, "num_epochs": 2, "batch_size": 16, "validation": 0}
    (weights, history), (twin, other) = (
        fit_half(half, case, x, **options) for half in ("torch", "jax")
    )
    np.testing.assert_allclose(history.step_losses, other.step_losses, rtol=1e-10)
    for name, array in weights.items():
        np.testing.assert_allclose(twin[name], array, rtol=1e-9, atol=1e-12, err_msg=name)
    inputs = (
        torch.from_numpy(context) @ torch.from_numpy(weights["context_net.0.layers.0.weight"]).T
    )
    inputs = inputs + torch.from_numpy(weights["context_net.0.layers.0.bias"])
    mean = weights["context_net.0.norms.0.running_mean"]
    np.testing.assert_allclose(mean, inputs.mean(0), rtol=1e-10)
    model = torch_flows.build(case.architecture).double().train()
    model.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    for part in model.modules():
        if isinstance(part, Dropout):
            part.threshold = part.rate = 0
    trained = model.log_prob(torch.from_numpy(x), torch.from_numpy(context)).detach()
    twin_model = jax_flows.build(case.architecture)
    variables = from_numpy(torch_to_jax(twin, twin_model.shapes()))
    np.testing.assert_allclose(twin_model.log_prob(variables, x, context), trained, rtol=1e-9)


@HALVES
def test_statistics_by_hand(half: str) -> None:
    """A weight of 0 leaves a row out; one of 2 counts it twice; modes stay as they were."""
    x, share = data(12), np.repeat([0.0, 1.0, 2.0], 4)
    doubled = np.concatenate([x[4:], x[8:]])
    if half == "torch":
        models = [NORMED.torch_model().train() for _ in range(2)]
        models[0].set_statistics(torch.from_numpy(x), weights=torch.from_numpy(share))
        models[1].set_statistics(torch.from_numpy(doubled))
        assert all(part.training for part in models[0].modules())
        results = [to_numpy(model.bijector.bijectors[1].running_var) for model in models]
        parts = [to_numpy(NORMED.torch_model().bijector.bijectors[1].running_var)]
    else:
        model = jax_flows.build(NORMED.architecture)
        start = from_numpy(torch_to_jax(NORMED.weights(), model.shapes()))
        new = model.set_statistics(start, x, weights=share), model.set_statistics(start, doubled)
        results, parts = (
            [v["batch_stats"]["bijector"]["bijectors_1"]["var"] for v in variables]
            for variables in (new, [start])
        )
    np.testing.assert_allclose(results[0], results[1], rtol=1e-12)
    assert not np.allclose(results[0], parts[0])


@HALVES
def test_batches_of_one_row_are_left_out(half: str, quick_jax: None) -> None:
    """Where batch statistics are taken; the last batch of a loader above all."""
    x = data(33)
    batches = [x[:32], x[32:]]
    _, history = fit_half(half, NORMED, batches, num_epochs=2, validation=0)
    assert len(history.step_losses) == 2
    with pytest.raises(
        ValueError, match=r"^fit got no batches of data with at least 2 rows in epoch 0"
    ):
        fit_half(half, NORMED, batches[1:], num_epochs=1, validation=0)
    with pytest.raises(
        ValueError, match=r"^fit of a flow with batch statistics needs at least 2 rows"
    ):
        fit_half(half, NORMED, x, batch_size=1)
    _, history = fit_half(half, SMALL, batches, num_epochs=1, validation=0)
    assert len(history.step_losses) == 2


# What interrupts training.


@HALVES
@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted(
    half: str, validated: bool, error: type[BaseException], quick_jax: None
) -> None:
    """In epoch 3: the best weights so far, or the last ones, ready for evaluation."""
    x = data(64)

    def batches(epoch: int) -> Any:
        for start in (0, 32):
            if epoch == 3 and start == 32:
                raise error
            yield x[start : start + 32]

    options = {"validation": x if validated else 0, "learning_rate": 1e-2}
    expected, _ = fit_half(half, NORMED, batches, num_epochs=3, **options)
    if half == "torch":
        model = NORMED.torch_model()
        with pytest.raises(error):
            torch_flows.fit(model, batches, num_epochs=9, **QUIET | options)
        assert not any(part.training for part in model.modules())
        found = {name: to_numpy(array) for name, array in model.state_dict().items()}
    else:
        model = jax_flows.build(NORMED.architecture)
        variables = from_numpy(torch_to_jax(NORMED.weights(), model.shapes()))
        with pytest.raises(error) as info:
            jax_flows.fit(model, variables, batches, num_epochs=9, **QUIET | options)
        found = jax_to_torch(info.value.variables)
        assert "`variables`" in info.value.__notes__[0]
    for name, array in expected.items():
        np.testing.assert_array_equal(array, found[name])


def test_interrupted_within_a_step() -> None:
    """PyTorch changes weights in place: a step that is cut off leaves those before its call."""

    class CutOff(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            raise KeyboardInterrupt

    model = SMALL.torch_model()
    with pytest.raises(KeyboardInterrupt):
        torch_flows.fit(model, data(64), optimizer=partial(CutOff, lr=0.1), **QUIET)
    assert not model.training
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array.numpy(), SMALL.weights()[name])


class Scripted:
    """An engine whose weights are the number of steps taken, with validation losses as given."""

    def __init__(self, losses: list[float]) -> None:
        self.losses, self.taken, self.part, self.is_main = losses, 0, Part(), True
        self.skips_non_finite = False

    def gather(self, values: Any) -> np.ndarray:
        return np.array([values])

    def run(self, chunk: Any, rates: np.ndarray, shares: Any) -> tuple[np.ndarray, bool]:
        self.taken += len(rates)
        return np.zeros(len(rates)), True

    def evaluate(self, block: Any, is_part: bool) -> float:
        return self.losses[self.taken - 1]

    def follow(self, history: History) -> None:
        pass

    def set_statistics(self) -> None:
        pass

    def snapshot(self) -> int:
        return self.taken

    def restore(self, snapshot: int) -> None:
        self.taken = snapshot


@pytest.mark.parametrize(("losses", "best", "epochs"), [
    ([np.nan, 2.0, 1.0, 3.0, 4.0], 2, 5),
    ([2.0, np.nan, 1.0, 1.0, np.nan], 3, 5),
    ([np.inf, np.inf, 3.0, 4.0, 5.0], 2, 5),
    ([3.0, np.nan, np.nan, 1.0, 1.0], 0, 3),
    ([np.nan] * 5, None, 2),
])  # fmt: skip
def test_which_epoch_is_the_best(losses: list[float], best: int | None, epochs: int) -> None:
    """A NaN is never it, and does not hide the ones after it."""
    engine: Any = Scripted(losses)
    history = train(
        engine,
        lambda epoch, skip: [Chunk((np.zeros((1, 1)),))],
        5,
        lambda: [(Chunk((np.zeros((1, 1)),)), True)],
        learning_rate=1e-3,
        patience=2,
        progress=False,
        state_path=None,
        state_every=None,
        settings={},
    )
    assert history.best_epoch == best
    assert engine.taken == (epochs if best is None else best + 1)
    assert len(history.validation_loss) == epochs


@HALVES
def test_a_first_loss_that_is_far_off_is_told(half: str) -> None:
    case = Case("affine", flow(arch("Affine", dim=2), arch("StandardNormal", dim=2)))
    with pytest.warns(UserWarning, match=r"nats per dimension: the data are far from where"):
        fit_half(half, case, 1e3 * data(40), num_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_half(half, case, data(40), num_epochs=1)


def test_fits_to_growing_data_share_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    programs, run_steps = [], jax_training._run_steps

    def recorded(*args: Any) -> Any:
        programs.append(run_steps(*args))
        return programs[-1]

    monkeypatch.setattr(jax_training, "_run_steps", recorded)
    model = jax_flows.build(flow(arch("Affine", dim=2), arch("DiagonalNormal", dim=2)))
    variables, num_arrays = model.init(jax.random.key(0)), set()
    x = data(1000)
    for rows in range(650, 1000, 70):  # up to the next power of two one program serves
        variables, _ = jax_flows.fit(model, variables, x[:rows], num_epochs=1, **QUIET)
        num_arrays.add(len(jax.live_arrays()))
    assert len({*map(id, programs)}) == 1
    assert programs[0]._cache_size() == 1
    assert len(num_arrays) == 1
