"""The state of a training run in a file: what it holds, and whether it is the state of this run.

``weights.*`` and, as soon as there are any, ``best.*`` are arrays by torch name, ``trained.*`` those that are
trained where the others are moving averages, ``optimizer.*`` the leaves
of the optimiser's state, ``step_losses``, ``train_loss`` and ``validation_loss`` what their names say. The
description holds the settings of the run and how far it is. ``load`` of either half opens the file as a
model.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.checkpoint import STATE, Header, TensorInfo, read_arrays, write_arrays
from flow_bridge.errors import CheckpointError
from flow_bridge.sources import HostRows, Source, Stream

PROGRESS = ("epoch_steps", "best_epoch", "stopped_early")
LOSSES = ("step_losses", "train_loss", "validation_loss")
PROBED_STEPS = (0, 1, 10, 100, 1000, 10_000)
HASHED_VALUES = 1 << 20  # of an array: all of a smaller one, evenly spread rows of a larger one
SAME = 1e-4  # relative: probed values that differ by less are of the same function


class Group(NamedTuple):
    """Arrays of which a state holds all, or if they are optional none; ``None``: whatever optimiser."""

    arrays: Mapping[str, TensorInfo] | None
    optional: bool = False


def group(arrays: Mapping[str, np.ndarray], optional: bool = False) -> Group:
    """The group of arrays like these."""
    return Group({k: TensorInfo(a.dtype.name, a.shape) for k, a in arrays.items()}, optional)


def weight_groups(weights: Mapping[str, TensorInfo], averaged: Iterable[str] = ()) -> list[Group]:
    """The groups of the last and of the best weights, and of those that are trained behind averages."""
    last, best = ({f"{g}.{k}": info for k, info in weights.items()} for g in ("weights", "best"))
    trained = {f"trained.{name}": weights[name] for name in averaged}
    return [Group(last), Group(best, optional=True), Group(trained)]


def run_settings(
    half: str,
    architecture: Architecture,
    seed: int,
    max_grad_norm: float | None,
    state_path: str | os.PathLike[str] | None,
    sizes: Mapping[str, Any],
    **probes: Callable[[], Any],
) -> dict[str, Any]:
    """What makes a run the same run; what takes time to find out only where a state is kept.

    Args:
        half: the package that trains.
        architecture: of the flow.
        seed, max_grad_norm: of the run.
        state_path: where its state is kept.
        sizes: number of rows and the like.
        probes: functions that return fingerprints of data, or values of learning rates, optimisers or
            energies at some points.
    """
    settings: dict[str, Any] = {"half": half, "architecture": architecture}
    settings |= {**sizes, "seed": seed, "max_grad_norm": max_grad_norm}
    if state_path is not None:
        check_path(state_path)
        settings |= {name: _plain(probe()) for name, probe in probes.items()}
    return settings


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise ``CheckpointError`` if a state cannot be written there, before hours are spent on it."""
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: this is a folder, not a file.")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: there is no folder {str(path.parent)!r} to write to.")


def fingerprint(
    source: Source | None, part: int, to_numpy: Callable[[Any], np.ndarray]
) -> str | None:
    """A hash of x (part 0) or its context (part 1); ``None`` for none, and for an iterable.

    Args:
        source: the rows.
        part: which of its arrays.
        to_numpy: turns an array of the half into one of numpy.
    """
    if source is None or isinstance(source, Stream) or part >= len(source.arrays):
        return None
    array, count = source.arrays[part], len(source)
    row_values = max(1, math.prod(array.shape[1:]))
    most = max(64, HASHED_VALUES // row_values)
    rows = np.arange(count) if count <= most else np.arange(most) * count // most
    if isinstance(source, HostRows):
        rows = source.numbers[rows]
    whole = len(rows) == len(array) and bool((rows == np.arange(len(rows))).all())
    sample = np.ascontiguousarray(to_numpy(array if whole else array[rows]))
    described = f"{sample.dtype.name} {count} {sample.shape}".encode()
    return hashlib.sha256(described + sample.tobytes()).hexdigest()[:16]


def fingerprints(
    source: Source | None,
    held_out: Source | None,
    conditional: bool,
    to_numpy: Callable[[Any], np.ndarray],
) -> dict[str, Callable[[], str | None]]:
    """The hashes of data and validation data, of their contexts and weights, as ``run_settings`` takes them.

    Args:
        source: the data.
        held_out: the validation data.
        conditional: whether the second array of either is a context.
        to_numpy: turns an array of the half into one of numpy.
    """
    names = ["data", *(["context"] if conditional else []), "weights"]
    probes: dict[str, Callable[[], str | None]] = {}
    for prefix, rows in (("", source), ("validation_", held_out)):
        for part, name in enumerate(names):
            probes[prefix + name] = partial(fingerprint, rows, part, to_numpy)
    return probes


def probe_rate(learning_rate: float | Callable[[int], float]) -> list[Any]:
    """A learning rate at some steps; ``None`` where a schedule does not go as far."""

    def at(step: int) -> float | None:
        try:
            return float(learning_rate(step)) if callable(learning_rate) else float(learning_rate)
        except Exception:  # the user's own function, asked for a step that it may not reach
            return None

    return [at(step) for step in PROBED_STEPS]


def probe_energy(energy: Callable[[Any], Any], x: Any) -> list[float] | None:
    """An energy at some points x; ``None`` for one that is random, or that cannot be asked there."""
    try:
        once, again = (np.asarray(energy(x), np.float64).ravel()[:64].tolist() for _ in range(2))
    except (
        Exception
    ):  # the user's own function; if it cannot be trained with, the first step says so
        return None
    return once if _is_same(once, again) else None


def save_state(
    path: str | os.PathLike[str],
    settings: Mapping[str, Any],
    progress: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Write a state, atomically.

    Args:
        path: the file.
        settings: of the run.
        progress: the fields of a ``History``, and ``epoch_steps``: how many were taken in the epoch that
            is not over.
        arrays: what the engine's ``state_arrays`` gives.
    """
    described = {name: progress[name] for name in PROGRESS}
    losses = {name: np.array(progress[name], np.float64) for name in LOSSES}
    write_arrays(path, STATE, {"settings": dict(settings), **described}, {**arrays, **losses})


def load_state(
    path: str | os.PathLike[str], settings: Mapping[str, Any], groups: list[Group]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what ``save_state`` wrote: progress and arrays.

    Args:
        path: the file; it is not trusted.
        settings: of this run.
        groups: the arrays that the engine's ``load_state_arrays`` takes.

    Raises:
        CheckpointError: naming what differs, if it is the state of another run, and with the reason,
            whatever else is wrong with it.
    """
    header, arrays = read_arrays(path, STATE, partial(_check, settings=settings, groups=groups))
    progress = {name: header.description[name] for name in PROGRESS}
    return progress | {name: arrays.pop(name).tolist() for name in LOSSES}, arrays


def _check(header: Header, settings: Mapping[str, Any], groups: list[Group]) -> None:
    description, tensors = header.description, dict(header.tensors)
    if set(description) != {"settings", *PROGRESS}:
        raise CheckpointError("the training state does not say what one says.")
    stored = description["settings"]
    if not isinstance(stored, dict):
        raise CheckpointError("the training state has no settings.")
    for name in [*settings, *stored]:
        found, value = stored.get(name), settings.get(name)
        if not _is_same(found, value):
            raise CheckpointError(
                f"this is the state of another run: its {name.replace('_', ' ')} is "
                f"{found!r:.200}, here it is {value!r:.200}."
            )
    unknown = stored.keys() - settings.keys()
    if unknown:
        raise CheckpointError(
            f"the training state has a setting that no run has: {min(unknown)!r}."
        )
    for name in LOSSES:
        found = tensors.pop(name, None)
        if found is None or found.dtype != "float64" or len(found.shape) != 1:
            raise CheckpointError(f"the training state has no list of numbers {name!r}.")
    has_best = bool(header.group("best"))
    _check_progress(description, {k: header.tensors[k].shape[0] for k in LOSSES}, has_best)
    for expected, optional in groups:
        if expected is None:
            tensors = {k: v for k, v in tensors.items() if not k.startswith("optimizer.")}
            continue
        present = expected.keys() & tensors.keys()
        if not present and optional:
            continue
        for name, info in expected.items():
            if name not in tensors:
                raise CheckpointError(f"array {name!r} is missing.")
            found = tensors.pop(name)
            if (found.dtype, found.shape) != (info.dtype, tuple(info.shape)):
                raise CheckpointError(
                    f"array {name!r} is {found.dtype} of shape {found.shape}, expected {info.dtype} "
                    f"of shape {tuple(info.shape)}."
                )
    if tensors:
        raise CheckpointError(f"array {min(tensors)!r} is unexpected.")


def _check_progress(progress: Mapping[str, Any], counts: Mapping[str, int], has_best: bool) -> None:
    steps, best = progress["epoch_steps"], progress["best_epoch"]
    if type(steps) is not int or not 0 <= steps <= counts["step_losses"]:
        raise CheckpointError(f"the training state has impossible epoch_steps {steps!r:.50}.")
    if best is not None and not (type(best) is int and 0 <= best < counts["validation_loss"]):
        raise CheckpointError(f"the training state has an impossible best_epoch {best!r:.50}.")
    if has_best != (best is not None):
        raise CheckpointError(
            "the training state has best weights without an epoch, or vice versa."
        )
    if type(progress["stopped_early"]) is not bool:
        raise CheckpointError("the training state does not say whether it stopped early.")


def _plain(value: Any) -> Any:
    """Lists, numbers and strings, as JSON gives them back; non-finite numbers are strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _is_same(a: Any, b: Any) -> bool:
    """Equality, up to rounding of numbers that are no integers."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return a == b or abs(a - b) <= SAME * max(abs(a), abs(b)) or (a != a and b != b)
    return type(a) is type(b) and bool(a == b)
