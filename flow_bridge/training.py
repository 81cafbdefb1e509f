"""The training loop that both halves share: everything about it that is not arithmetic.

The loop's decisions (validation, early stopping, what is kept, what is written and when) are the same
in both backends by construction. A half brings an ``Engine`` that runs steps on its own arrays.
"""

import json
import math
import numbers
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from flow_bridge import checks
from flow_bridge.arguments import plain
from flow_bridge.errors import NonFiniteError
from flow_bridge.sources import Blocks, Chunk, Chunks, Part
from flow_bridge.training_state import Group, load_state, save_state

LearningRate = float | Callable[[int], float]
Item = TypeVar("Item")

DEFAULT_RATE = 1e-3
FAR_LOSS = 10.0  # nats per dimension: a standard normal has them 4.3 away from its mean


@dataclass
class History:
    """What happened in training.

    Attributes:
        train_loss: mean loss of each epoch, in nats.
        validation_loss: mean loss on the validation data after each epoch, empty without any.
        step_losses: loss of every step.
        best_epoch: the epoch (from 0) whose weights were kept, ``None`` without validation data and where
            none of its losses is a number.
        stopped_early: whether ``patience`` ran out, or ``callback`` stopped.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    step_losses: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False


class Engine(Protocol):
    """What a half brings: weights and an optimiser, and how to take steps with them.

    Attributes:
        part: which part of every batch this process works on.
        is_main: whether this process writes the state and shows progress.
        skips_non_finite: whether the optimiser leaves out steps whose gradients are not finite.
    """

    part: Part
    is_main: bool
    skips_non_finite: bool

    def gather(self, values: Sequence[int]) -> np.ndarray:
        """The values of every process that trains along, ``(processes, values)``."""

    def run(
        self, chunk: Chunk, rates: np.ndarray, shares: np.ndarray | None
    ) -> tuple[np.ndarray, bool]:
        """Take one step per batch; return the losses, and whether the weights are all finite.

        With ``shares`` the weights that every other method sees are the moving averages of the trained
        ones, which come nearer to these by that share of their difference after each step.
        """

    def follow(self, history: "History") -> None:
        """Take note of epochs that are over, for what changes the learning rate by their losses."""

    def weights(self) -> Any:
        """What a callback gets: the flow, or its variables."""

    def evaluate(self, block: Chunk, is_part: bool) -> float:
        """The sum of the loss over a block of validation rows, over those of all processes if it
        is this one's part of them."""

    def set_statistics(self) -> None:
        """Give evaluation the batch statistics that the training data have under the present weights."""

    def snapshot(self) -> Any:
        """A copy of the weights (batch statistics included)."""

    def restore(self, snapshot: Any) -> None:
        """Put the weights of a snapshot back."""

    def state_arrays(self, best: Any) -> dict[str, np.ndarray]:
        """Weights, best weights and optimiser state by name."""

    def state_groups(self) -> list[Group]:
        """What ``load_state_arrays`` takes."""

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """Take over what ``state_arrays`` gave, and return the best weights."""


def check_options(
    owner: str,
    optimizer: object,
    *,
    seed: int,
    learning_rate: LearningRate | None,
    max_grad_norm: float | None,
    state_path: str | os.PathLike[str] | None,
    **counts: int | None,
) -> list[Any]:
    """The arguments that both halves have in common, as plain numbers and in the order given.

    Raises:
        ValueError: for one that makes no sense, and for an optimiser beside a learning rate.
        TypeError: for a ``state_path`` that is no path.
    """
    if state_path is not None and not isinstance(state_path, str | os.PathLike):
        kind = type(state_path).__name__
        raise TypeError(f"{owner} expects state_path as a path or None, got {kind}.")
    if optimizer is not None and learning_rate is not None:
        raise ValueError(
            f"{owner} takes learning_rate or optimizer, not both: an optimizer has its own rate."
        )
    seed = plain(owner, "seed", int, seed)
    checks.non_negative_int(owner, seed=seed)
    positive: dict[str, Any] = {"learning_rate": learning_rate, "max_grad_norm": max_grad_norm}
    for name, value in positive.items():
        if value is not None and not (name == "learning_rate" and callable(value)):
            positive[name] = plain(owner, name, float, value)
            checks.positive_number(owner, **{name: positive[name]})
    if learning_rate is None:
        positive["learning_rate"] = DEFAULT_RATE
    for name, count in counts.items():
        if count is not None or name not in ("patience", "state_every", "num_steps"):
            count = plain(owner, name, int, count)
            checks.positive_int(owner, **{name: count})
            counts[name] = count
    return [seed, *positive.values(), *counts.values()]


def check_manners(
    optimizer: object, ema: float | None, weight_decay: float | None, callback: object
) -> tuple[float | None, float | None]:
    """``ema`` and ``weight_decay`` as plain numbers.

    Raises:
        ValueError: for one out of range, and for weight decay beside an optimiser.
        TypeError: for a callback that is no function.
    """
    if ema is not None:
        ema = plain("fit", "ema", float, ema)
        if not 0 < ema < 1:
            raise ValueError(f"fit expects ema to be a number between 0 and 1, got {ema!r}.")
    if weight_decay is not None:
        if optimizer is not None:
            raise ValueError(
                "fit takes weight_decay or optimizer, not both: an optimizer has its own."
            )
        weight_decay = plain("fit", "weight_decay", float, weight_decay)
        checks.positive_number("fit", weight_decay=weight_decay)
    if callback is not None:
        check_callable("fit", "callback", callback)
    return ema, weight_decay


def frozen_names(frozen: str | Sequence[str], names: Iterable[str]) -> set[str]:
    """The names of weights that are frozen, themselves or in what holds them.

    Raises:
        TypeError: for what is no name.
        ValueError: for one that no weight has.
    """
    held: set[str] = set()
    names = list(names)
    for start in [frozen] if isinstance(frozen, str) else list(frozen):
        if not isinstance(start, str):
            raise TypeError(f"fit expects frozen as names of weights, got {type(start).__name__}.")
        found = {name for name in names if f"{name}.".startswith(f"{start}.")}
        if not found:
            raise ValueError(f"fit got frozen={start!r}, and no weight has this name or begins so.")
        held |= found
    return held


def check_parts(num_rows: int, accumulate: int) -> None:
    """Raise ``ValueError`` unless a batch splits evenly into the parts that it is evaluated in."""
    if num_rows % accumulate:
        raise ValueError(
            f"fit with accumulate={accumulate} expects batches of a multiple of {accumulate} rows, got "
            f"{num_rows}."
        )


def check_weights(owner: str, flow: str, num_weights: int) -> None:
    """Raise ``ValueError`` unless there is something to train."""
    if num_weights == 0:
        raise ValueError(f"{owner} got a {flow} without weights to train.")


def check_callable(owner: str, name: str, value: object) -> None:
    """Raise ``TypeError`` unless an argument is a function."""
    if not callable(value):
        raise TypeError(f"{owner} expects {name} as a function, got {type(value).__name__}.")


def check_energy(owner: str, events: Sequence[int], shape: Sequence[int] | None) -> None:
    """Raise ``ValueError`` unless the energy of a batch of events is one number for each."""
    checks.one_per_event(owner, "energy", events, events[:1], shape)


def check_order(owner: str, alpha: float) -> None:
    """Raise ``ValueError`` unless alpha is the order of a bound from below: at least 0, and not 1."""
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not 0 <= alpha < math.inf:
        raise ValueError(f"{owner} expects alpha to be a number of at least 0, got {alpha!r}.")
    if alpha == 1:
        raise ValueError(f"{owner} with alpha=1 is ReverseKL: use that.")


def check_loss(num_rows: int, shape: Sequence[int] | None) -> None:
    """Raise ``ValueError`` unless a loss is one number for each row of a batch."""
    if shape is None or tuple(shape) != (num_rows,):
        got = "a number" if shape is None else f"shape {tuple(shape)}"
        raise ValueError(
            f"fit expects loss to give one number for each of {num_rows} rows, shape ({num_rows},), got "
            f"{got}."
        )


def check_data(loss: str, needs_data: bool, has_data: bool, num_steps: int | None) -> None:
    """Raise ``ValueError`` unless a loss has the data it needs, or the number of its steps."""
    if needs_data and not has_data:
        raise ValueError(f"fit needs data for {loss}.")
    if has_data and num_steps is not None:
        raise ValueError("fit takes num_steps without data only: with data num_epochs counts.")
    if not has_data and num_steps is None:
        raise ValueError("fit without data needs num_steps.")


def train(
    engine: Engine,
    chunks: Chunks,
    num_epochs: int,
    validation: Blocks | None,
    *,
    learning_rate: LearningRate,
    patience: int | None,
    progress: bool,
    state_path: str | os.PathLike[str] | None,
    state_every: int | None,
    settings: Mapping[str, Any],
    event_shape: Sequence[int | None] = (),
    epoch_length: int | None = None,
    ema: float | None = None,
    callback: Callable[[History, Any], object] | None = None,
) -> History:
    """Run the epochs and leave the best weights in the engine (the last without validation data).

    Whatever interrupts it, the engine is left so: with the best weights so far, or without validation
    data those of the last call that was completed.

    Args:
        event_shape: of the data, to say when the first loss shows that they are far off.
        epoch_length: steps of every epoch but the last one, which may be a part; ``None`` if all are whole.
        ema: the decay of the moving averages of the weights, ``None`` for none.
        callback: gets the history and the weights after every epoch; what is true stops.

    Raises:
        NonFiniteError: naming the step.
        CheckpointError: if ``state_path`` holds a corrupt file or the state of another run.
        ValueError: if processes that train together are given different things, and for patience without
            validation data.
    """
    if patience is not None and validation is None:
        raise ValueError("fit needs validation data for patience: nothing else says when to stop.")
    history, best, skip, stale = History(), None, 0, False
    if state_path is not None and Path(state_path).exists():
        made, arrays = load_state(state_path, settings, engine.state_groups())
        skip, history = made.pop("epoch_steps"), History(**made)
        best = engine.load_state_arrays(arrays)
        if epoch_length is not None:
            complete, skip = divmod(len(history.step_losses), epoch_length)
            del history.train_loss[complete:]
        engine.follow(history)
    # values of an energy may differ in their last bits from device to device
    common = {name: value for name, value in settings.items() if name != "energy"}
    fingerprint = zlib.crc32(json.dumps(common, sort_keys=True).encode()) >> 1
    _agree(engine, "other settings or another state file", [fingerprint, len(history.step_losses)])

    def settle() -> None:
        nonlocal stale
        if stale:
            engine.set_statistics()
        stale = False

    def save(epoch_steps: int) -> None:
        if state_path is not None:
            settle()
            arrays = engine.state_arrays(best)  # of all processes
            if engine.is_main:
                made = {"epoch_steps": epoch_steps, **vars(history)}
                save_state(state_path, settings, made, arrays)

    epochs = range(len(history.train_loss), num_epochs)
    silent = not (progress and engine.is_main)
    try:
        with tqdm(total=num_epochs, initial=epochs.start, disable=silent, unit="epoch") as bar:
            for epoch in epochs:
                if history.stopped_early:
                    break
                start = len(history.step_losses) - skip
                unsaved = 0
                for chunk in _in_step(engine, chunks(epoch, skip), lambda chunk: chunk):
                    stale = True
                    losses = _run_call(engine, chunk, learning_rate, ema, history)
                    if not history.step_losses:
                        _warn_of_far_data(losses[0], event_shape)
                    history.step_losses += losses
                    unsaved += len(losses)
                    if state_every is not None and unsaved >= state_every:
                        save(len(history.step_losses) - start)
                        unsaved = 0
                skip = 0
                history.train_loss.append(_mean_of_finite(history.step_losses[start:], epoch))
                status = {"loss": f"{history.train_loss[-1]:.4f}"}
                if validation is not None:
                    settle()
                    loss = _mean_loss(engine, validation)
                    history.validation_loss.append(loss)
                    status["validation"] = f"{loss:.4f}"
                    kept = history.best_epoch
                    if loss <= (math.inf if kept is None else history.validation_loss[kept]):
                        history.best_epoch, best = epoch, engine.snapshot()
                    waited = epoch - (-1 if history.best_epoch is None else history.best_epoch)
                    history.stopped_early = patience is not None and waited >= patience
                engine.follow(history)
                if callback is not None:
                    settle()
                    stop = [int(bool(callback(history, engine.weights())))]
                    history.stopped_early |= bool(engine.gather(stop).any())
                save(0)
                bar.set_postfix(status)
                bar.update()
    except BaseException:
        if best is not None:
            engine.restore(best)
        elif engine.part.count == 1:  # other processes would have to join in
            settle()
        raise
    if best is not None:
        engine.restore(best)
    else:
        settle()
    return history


def _mean_loss(engine: Engine, validation: Blocks) -> float:
    total, num_rows = 0.0, 0
    for block, is_part in _in_step(engine, validation(), itemgetter(0)):
        total += engine.evaluate(block, is_part)
        num_rows += len(block.first) * (engine.part.count if is_part else 1)
    return total / num_rows


def _in_step(
    engine: Engine, items: Iterable[Item], chunk: Callable[[Item], Chunk]
) -> Iterator[Item]:
    """The items, each handed out once all processes are known to have one of the same size.

    A process with more of them than another would wait for it forever.
    """
    what = "another number of batches, or of rows in them"
    for item in items:
        array = chunk(item).first
        _agree(engine, what, [len(array), array.size])
        yield item
    _agree(engine, what, [0, 0])


def _agree(engine: Engine, what: str, values: Sequence[int]) -> None:
    everyone = engine.gather(values)
    if (everyone != everyone[0]).any():
        raise ValueError(f"fit trains in {len(everyone)} processes, and one of them has {what}.")


def _run_call(
    engine: Engine, chunk: Chunk, learning_rate: LearningRate, ema: float | None, history: History
) -> list[float]:
    good, start = engine.snapshot(), len(history.step_losses)
    steps = range(start, start + len(chunk.first))
    rates = _rates(learning_rate, steps)
    shares = None if ema is None else np.array([1 - min(ema, (1 + t) / (10 + t)) for t in steps])
    try:
        losses, weights_finite = engine.run(chunk, rates, shares)
    except BaseException:
        engine.restore(good)
        raise
    finite = np.isfinite(losses)
    if not (weights_finite and (finite.all() or engine.skips_non_finite)):
        engine.restore(good)
        step = start + int(np.argmin(finite)) if not finite.all() else start + len(losses) - 1
        what = "loss" if not finite.all() else "gradient"
        kept = f"after {start} steps"
        if history.best_epoch is not None:
            kept = f"of epoch {history.best_epoch}, the best so far"
        raise NonFiniteError(
            f"the {what} is not finite at step {step}; the weights are those {kept}. "
            "A lower learning rate or max_grad_norm often helps."
        )
    return losses.tolist()


def _mean_of_finite(losses: list[float], epoch: int) -> float:
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < len(losses):
        warnings.warn(
            f"{len(losses) - len(finite)} of {len(losses)} losses of epoch {epoch} are not finite: they "
            "are left out of its mean.",
            stacklevel=1,
        )
    return math.fsum(finite) / len(finite) if finite else math.nan


def _rates(learning_rate: LearningRate, steps: range) -> np.ndarray:
    if not callable(learning_rate):
        return np.full(len(steps), learning_rate, np.float64)
    rates = []
    for step in steps:
        value = learning_rate(step)
        try:
            rate = None if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError):
            rate = None
        if rate is None or not (math.isfinite(rate) and rate >= 0):
            raise ValueError(
                "fit expects learning_rate to give a finite number of at least 0, got "
                f"{value if rate is None else rate!r:.100} at step {step}."
            )
        rates.append(rate)
    return np.array(rates)


def _warn_of_far_data(loss: float, event_shape: Sequence[int | None]) -> None:
    sizes = [size for size in event_shape if size is not None]
    if sizes and loss > FAR_LOSS * math.prod(sizes):
        warnings.warn(
            f"the first loss is {loss / math.prod(sizes):.3g} nats per dimension: the data are far from "
            "where the flow starts. Standardise them, as standardized(flow, x) does.",
            stacklevel=1,
        )
