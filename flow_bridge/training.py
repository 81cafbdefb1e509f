"""The training loop that both halves share: everything about it that is not arithmetic.

Batches come from one numpy generator per epoch, so both backends see the same ones, a run can be
resumed at any epoch, and the loop's decisions (validation, early stopping, what is kept) are the same
by construction. A half brings an ``Engine`` that runs steps on its own arrays.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from flow_bridge.checkpoint import read_arrays, write_arrays
from flow_bridge.errors import CheckpointError, NonFiniteError

MAX_STEPS_PER_CALL = 200

LearningRate = float | Callable[[int], float]


@dataclass
class History:
    """What happened in training.

    Attributes:
        train_loss: mean loss of each epoch, in nats.
        validation_loss: mean loss on the validation data after each epoch, empty without any.
        step_losses: loss of every step.
        best_epoch: the epoch (from 0) whose weights were kept, ``None`` without validation data.
        stopped_early: whether ``patience`` ran out.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    step_losses: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False


class Engine(Protocol):
    """What a half brings: weights and an optimiser, and how to take steps with them."""

    def run(self, batches: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, bool]:
        """Take one step per batch; return the losses, and whether the weights are all finite."""

    def validate(self) -> float | None:
        """The mean loss on the validation data, ``None`` without any."""

    def snapshot(self) -> Any:
        """A copy of the weights (batch statistics included)."""

    def restore(self, snapshot: Any) -> None:
        """Put the weights of a snapshot back."""

    def state_arrays(self, best: Any) -> dict[str, np.ndarray]:
        """Weights, best weights and optimiser state by name."""

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """Take over what ``state_arrays`` gave, and return the best weights."""


def train(
    engine: Engine,
    epoch_batches: Callable[[int], np.ndarray],
    num_epochs: int,
    *,
    learning_rate: LearningRate,
    patience: int | None,
    progress: bool,
    state_path: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
) -> History:
    """Run the epochs and leave the best weights in the engine (the last without validation data).

    Raises:
        NonFiniteError: naming the step; the engine then holds the last good weights.
        CheckpointError: if ``state_path`` holds a corrupt file or the state of another run.
    """
    history, best = History(), None
    if state_path is not None and Path(state_path).exists():
        history, best = _load_state(engine, state_path, settings)
    epochs = range(len(history.train_loss), num_epochs)
    with tqdm(total=num_epochs, initial=epochs.start, disable=not progress, unit="epoch") as bar:
        for epoch in epochs:
            if history.stopped_early:
                break
            losses = _run_epoch(
                engine, epoch_batches(epoch), learning_rate, len(history.step_losses)
            )
            history.step_losses += losses
            history.train_loss.append(math.fsum(losses) / len(losses))
            status = {"loss": f"{history.train_loss[-1]:.4f}"}
            if (validation_loss := engine.validate()) is not None:
                history.validation_loss.append(validation_loss)
                status["validation"] = f"{validation_loss:.4f}"
                if validation_loss <= min(history.validation_loss):
                    history.best_epoch, best = epoch, engine.snapshot()
                waited = epoch - (history.best_epoch if history.best_epoch is not None else -1)
                history.stopped_early = patience is not None and waited >= patience
            if state_path is not None:
                _save_state(engine, state_path, settings, history, best)
            bar.set_postfix(status)
            bar.update()
    if best is not None:
        engine.restore(best)
    return history


def row_batches(num_rows: int, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """For each epoch, a permutation of the rows as ``(steps, batch_size)`` indices.

    Rows that do not fill a batch sit that epoch out; other rows do so in the next.
    """
    batch_size = min(batch_size, num_rows)
    steps = num_rows // batch_size

    def epoch_batches(epoch: int) -> np.ndarray:
        order = np.random.default_rng([seed, epoch]).permutation(num_rows)
        return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)

    return epoch_batches


def noise_batches(
    kind: str, num_steps: int, shape: tuple[int, ...], seed: int
) -> tuple[int, Callable[[int], np.ndarray]]:
    """Base noise for ``num_steps`` steps of one batch of ``shape`` each: (epochs, their batches)."""

    def epoch_batches(epoch: int) -> np.ndarray:
        steps = min(MAX_STEPS_PER_CALL, num_steps - epoch * MAX_STEPS_PER_CALL)
        generator = np.random.default_rng([seed, epoch])
        draw = generator.standard_normal if kind == "normal" else generator.random
        return draw((steps, *shape))

    return math.ceil(num_steps / MAX_STEPS_PER_CALL), epoch_batches


def split_rows(num_rows: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers for training and for validation, at least one of each.

    Raises:
        ValueError: if the fraction is not in [0, 1) or there are fewer than 2 rows to split.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fit expects validation as a fraction in [0, 1), got {fraction!r}.")
    if fraction == 0:
        return np.arange(num_rows), np.arange(0)
    if num_rows < 2:
        raise ValueError("fit needs at least 2 rows to split off validation data.")
    order = np.random.default_rng([seed]).permutation(num_rows)
    num_validation = max(1, round(num_rows * fraction))
    return order[num_validation:], order[:num_validation]


def check_rows(name: str, num_rows: int, finite: np.ndarray) -> None:
    """Raise ``ValueError`` unless there are rows and all of them are finite.

    Args:
        name: what the rows are.
        num_rows: how many are expected.
        finite: for each row, whether all its values are finite.
    """
    if len(finite) != num_rows:
        raise ValueError(f"fit expects {num_rows} rows of {name}, got {len(finite)}.")
    if num_rows == 0:
        raise ValueError(f"fit got no rows of {name}.")
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"fit got a NaN or an infinity in row {row} of {name}.")


def _run_epoch(
    engine: Engine, batches: np.ndarray, learning_rate: LearningRate, first_step: int
) -> list[float]:
    losses: list[float] = []
    calls = math.ceil(len(batches) / MAX_STEPS_PER_CALL)
    for part in np.array_split(batches, calls):
        good = engine.snapshot()
        start = first_step + len(losses)
        steps = range(start, start + len(part))
        rates = [learning_rate(s) if callable(learning_rate) else learning_rate for s in steps]
        step_losses, weights_finite = engine.run(part, np.array(rates))
        finite = np.isfinite(step_losses)
        if not (finite.all() and weights_finite):
            engine.restore(good)
            step = start + int(np.argmin(finite)) if not finite.all() else steps[-1]
            what = "loss" if not finite.all() else "gradient"
            raise NonFiniteError(
                f"the {what} is not finite at step {step}; the weights are those after {start} "
                "steps. A lower learning rate or max_grad_norm often helps."
            )
        losses += step_losses.tolist()
    return losses


def _save_state(
    engine: Engine,
    path: str | os.PathLike[str],
    settings: Mapping[str, Any],
    history: History,
    best: Any,
) -> None:
    description = {
        "settings": dict(settings),
        "train_loss": history.train_loss,
        "validation_loss": history.validation_loss,
        "best_epoch": history.best_epoch,
        "stopped_early": history.stopped_early,
    }
    arrays = engine.state_arrays(best) | {"step_losses": np.array(history.step_losses)}
    write_arrays(path, "training state", description, arrays)


def _load_state(
    engine: Engine, path: str | os.PathLike[str], settings: Mapping[str, Any]
) -> tuple[History, Any]:
    header, arrays = read_arrays(path, "training state")
    description = header.description
    stored = description.pop("settings")
    for name, value in settings.items():
        if stored.get(name) != value:
            raise CheckpointError(
                f"{os.fspath(path)} is the state of another run: its {name} is "
                f"{stored.get(name)!r}, here it is {value!r}."
            )
    step_losses = arrays.pop("step_losses").tolist()
    return History(**description, step_losses=step_losses), engine.load_state_arrays(arrays)
