"""States of training runs: of this run and no other, of any optimiser, and models by themselves."""

import io
import os
import subprocess
import sys
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
from flow_bridge.checkpoint import STATE, read_arrays
from flow_bridge.errors import CheckpointError
from parity_tests.files import packed

HALVES = pytest.mark.parametrize("half", ["torch", "jax"])
X = np.random.default_rng(0).normal(size=(40, 2))
QUICK: dict[str, Any] = {"num_epochs": 1, "batch_size": 16, "progress": False}


def run(
    half: str, state: Path | None, x: np.ndarray = X, context_dim: int = 0, **options: Any
) -> Any:
    """Fit a planar map; its history."""
    options = QUICK | {"state_path": state} | options
    package = torch_flows if half == "torch" else jax_flows
    base = package.StandardNormal(2)
    if half == "torch":
        torch.manual_seed(0)
        flow = torch_flows.Flow(torch_flows.Planar(2, context_dim), base).double()
        return torch_flows.fit(flow, x, **options)
    flow = jax_flows.Flow(jax_flows.Planar(2, context_dim), base)
    return jax_flows.fit(flow, flow.init(jax.random.key(0)), x, **options)[1]


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "data": ({}, {"x": X + 1}, "data"),
    "rows": ({}, {"x": X[:30]}, "rows"),
    "context": (
        {"context_dim": 1, "context": X[:, :1]},
        {"context_dim": 1, "context": X[:, 1:]},
        "context",
    ),
    "validation data": ({"validation": X[:9]}, {"validation": X[9:18]}, "validation data"),
    "learning rate": ({}, {"learning_rate": 2e-3}, "learning rate"),
    "schedule": (
        {"learning_rate": lambda step: 1e-3},
        {"learning_rate": lambda step: 1e-3 if step < 50 else 1e-4},
        "learning rate",
    ),
    "seed": ({}, {"seed": 1}, "seed"),
    "clipping": ({}, {"max_grad_norm": 1.0}, "max grad norm"),
}


@HALVES
@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_by_name(name: str, half: str, tmp_path: Path) -> None:
    first, second, what = OTHERS[name]
    run(half, tmp_path / "s", **first)
    with pytest.raises(CheckpointError, match=f"the state of another run: its {what} is"):
        run(half, tmp_path / "s", **{**second, "num_epochs": 2})
    run(half, tmp_path / "s", **{**first, "num_epochs": 2})


JAX_OPTIMISERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: optax.adam(1e-3),
    "adam, other rate": lambda: optax.adam(2e-3),
    "adamw": lambda: optax.adamw(1e-3),
    "adabelief": lambda: optax.adabelief(1e-3),
    "momentum": lambda: optax.sgd(1e-3, momentum=0.9),
    "rmsprop": lambda: optax.rmsprop(1e-3),
}


def test_jax_optimisers_are_told_apart(tmp_path: Path) -> None:
    run("jax", tmp_path / "adam", optimizer=optax.adam(1e-3))
    for name, make in JAX_OPTIMISERS.items():
        if name == "adam":
            run("jax", tmp_path / "adam", optimizer=make(), num_epochs=2)
            continue
        with pytest.raises(CheckpointError, match="another run: its optimizer is"):
            run("jax", tmp_path / "adam", optimizer=make(), num_epochs=3)


def test_torch_optimisers_are_told_apart(tmp_path: Path) -> None:
    makers: list[Any] = [
        partial(torch.optim.Adam, lr=1e-3),
        partial(torch.optim.Adam, lr=2e-3),
        partial(torch.optim.AdamW, lr=1e-3),
        partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
        partial(torch.optim.RMSprop, lr=1e-3),
    ]
    run("torch", tmp_path / "s", optimizer=makers[0])
    run("torch", tmp_path / "s", optimizer=makers[0], num_epochs=2)
    for make in makers[1:]:
        with pytest.raises(CheckpointError, match="another run: its optimizer is"):
            run("torch", tmp_path / "s", optimizer=make, num_epochs=3)


def test_the_halves_do_not_take_up_each_others_states(tmp_path: Path) -> None:
    for half, other in (("torch", "jax"), ("jax", "torch")):
        run(half, tmp_path / half)
        with pytest.raises(CheckpointError, match="another run: its half is"):
            run(other, tmp_path / half, num_epochs=2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.apply_if_finite(optax.adam(1e-3), 3),
        lambda: optax.noisy_sgd(1e-3, key=jax.random.key(1)),
        lambda: optax.chain(optax.clip(1.0), optax.sgd(1e-3), optax.contrib.reduce_on_plateau()),
    ],
    ids=["bool leaves", "key leaves", "infinite leaves"],
)
def test_odd_leaves_of_optimisers(make: Any, tmp_path: Path) -> None:
    run("jax", tmp_path / "s", optimizer=make())
    resumed = run("jax", tmp_path / "s", optimizer=make(), num_epochs=2)
    assert resumed == run("jax", None, optimizer=make(), num_epochs=2)


@HALVES
def test_infinite_losses_and_many_of_them(half: str, tmp_path: Path) -> None:
    """Losses are arrays: neither their values nor their number stops a run."""
    run(half, tmp_path / "s")
    header, arrays = read_arrays(tmp_path / "s", STATE)
    arrays["step_losses"] = np.full(400_000, np.inf)
    arrays["train_loss"] = np.full(30_000, np.inf)
    arrays["validation_loss"] = np.full(30_000, np.nan)
    (tmp_path / "s").write_bytes(packed(header.description, arrays, STATE))
    history = run(half, tmp_path / "s", num_epochs=30_001)
    assert len(history.train_loss) == 30_001
    assert np.isinf(history.train_loss[0])


def energy(x: Any) -> Any:
    return (x**2).sum(-1) / 2


def shifted(x: Any) -> Any:
    return ((x - 1) ** 2).sum(-1) / 2


def run_energy(half: str, state: Path | None, function: Any = energy, **options: Any) -> Any:
    options = {"num_steps": 6, "batch_size": 4, "progress": False, "state_path": state} | options
    if half == "torch":
        torch.manual_seed(0)
        flow = torch_flows.Flow(torch_flows.Affine(2), torch_flows.StandardNormal(2))
        return torch_flows.fit_to_energy(flow, function, **options)
    twin = jax_flows.Flow(jax_flows.Affine(2), jax_flows.StandardNormal(2))
    return jax_flows.fit_to_energy(twin, twin.init(jax.random.key(0)), function, **options)[1]


@HALVES
def test_energies(half: str, tmp_path: Path) -> None:
    """More steps may be asked for than the state has; another energy is another run."""
    run_energy(half, tmp_path / "s")
    with pytest.raises(CheckpointError, match="another run: its energy is"):
        run_energy(half, tmp_path / "s", shifted)
    longer = run_energy(half, tmp_path / "s", num_steps=9)
    assert longer.step_losses == run_energy(half, None, num_steps=9).step_losses
    run(half, tmp_path / "fit")
    with pytest.raises(CheckpointError, match="another run: its architecture is"):
        run_energy(half, tmp_path / "fit")


@HALVES
def test_a_state_opens_as_a_model(half: str, tmp_path: Path) -> None:
    run(half, tmp_path / "s", num_epochs=2)
    _, arrays = read_arrays(tmp_path / "s", STATE)
    model = torch_flows.load(tmp_path / "s")
    np.testing.assert_array_equal(model.bijector.w.detach().numpy(), arrays["best.bijector.w"])
    _, variables = jax_flows.load((tmp_path / "s").read_bytes())
    np.testing.assert_array_equal(variables["params"]["bijector"]["w"], arrays["best.bijector.w"])
    run(half, tmp_path / "last", validation=0)
    _, arrays = read_arrays(tmp_path / "last", STATE)
    last = torch_flows.load(tmp_path / "last")
    np.testing.assert_array_equal(last.bijector.w.detach().numpy(), arrays["weights.bijector.w"])


def change_description(**changes: Any) -> Any:
    def change(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        description.update(changes)

    return change


def drop(name: str) -> Any:
    def change(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        del arrays[next(key for key in arrays if key.startswith(name))]

    return change


def put(name: str, make: Any) -> Any:
    def change(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        key = next((key for key in arrays if key.startswith(name)), name)
        arrays[key] = make(arrays.get(key, np.zeros(2, np.float32)))

    return change


MALFORMED: dict[str, Any] = {
    "no weight": drop("weights."),
    "no best weight": drop("best."),
    "no optimiser leaf": drop("optimizer."),
    "no losses": drop("step_losses"),
    "another shape": put("weights.", lambda a: np.zeros((7, 7), a.dtype)),
    "float32 weights": put("weights.", lambda a: a.astype(np.float32)),
    "float32 optimiser": put("optimizer.", lambda a: a.astype(np.float16)),
    "NaN weight": put("weights.", lambda a: np.full_like(a, np.nan)),
    "losses of another kind": put("step_losses", lambda a: a.astype(np.int64)),
    "an unknown leaf": put("optimizer.p99", lambda a: a),
    "an unknown slot": put("optimizer.bijector.w.other", lambda a: a),
    "an unknown array": put("other", lambda a: a),
    "missing field": lambda d, a: d.pop("epoch_steps"),
    "odd field": change_description(extra=1),
    "text for steps": change_description(epoch_steps="many"),
    "steps not taken": change_description(epoch_steps=10**6),
    "epoch not run": change_description(best_epoch=99),
    "number for a truth": change_description(stopped_early=0),
    "no settings": change_description(settings=None),
    "list of settings": change_description(settings=[1]),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("states")
    for half in ("torch", "jax"):
        run(half, folder / half)
    return {half: folder / half for half in ("torch", "jax")}


@HALVES
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_states_are_refused(
    name: str, half: str, good: dict[str, Path], tmp_path: Path
) -> None:
    header, arrays = read_arrays(good[half], STATE)
    description = dict(header.description)
    MALFORMED[name](description, arrays)
    (tmp_path / "bad").write_bytes(packed(description, arrays, STATE))
    with pytest.raises(CheckpointError, match=r"bad: \S"):
        run(half, tmp_path / "bad", num_epochs=2)


@HALVES
def test_places_that_hold_no_state(half: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="this is a folder, not a file"):
        run(half, tmp_path / "folder")
    with pytest.raises(CheckpointError, match="there is no folder"):
        run(half, tmp_path / "nowhere" / "state")
    (tmp_path / "text").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(CheckpointError, match="this is an HTML page, not a safetensors file"):
        run(half, tmp_path / "text")
    (tmp_path / "model").write_bytes(b"")
    file = io.BytesIO()
    torch_flows.save(torch_flows.Planar(2), file)
    (tmp_path / "model").write_bytes(file.getvalue())
    with pytest.raises(CheckpointError, match="holds a 'model', expected a training state"):
        run(half, tmp_path / "model")


@pytest.mark.skipif(os.name != "posix", reason="processes are asked for as POSIX does")
def test_what_killed_processes_left_is_removed(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "m.safetensors"
    names: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: names.extend(os.listdir(tmp_path)))
    torch_flows.save(torch_flows.Planar(2), path)
    assert os.listdir(tmp_path) == [path.name]
    (own,) = names  # of this process, while it wrote
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = own.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    assert left != own
    for name in (left, own):
        (tmp_path / name).write_bytes(b"half a file")
    jax_flow = jax_flows.Planar(2)
    jax_flows.save(jax_flow, jax_flow.init(jax.random.key(0)), path)
    assert sorted(os.listdir(tmp_path)) == sorted([own, path.name])
