"""Where the rows of training come from: arrays, arrays on the host, iterables of batches.

Batches of an array come from one numpy generator per epoch, so both backends see the same ones and a
run can be resumed at any step; so does what a loss draws at random. Steps run in calls of up to 200. What
one call takes is a ``Chunk``: arrays with a leading axis of steps and then one of rows. Where several
processes train together, each brings its own part of the rows of every step.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from flow_bridge import checks
from flow_bridge.weights import DTYPES

MAX_STEPS_PER_CALL = 200
MAX_BYTES_PER_CALL = 64 << 20  # of rows that come from the host
VALIDATION_ROWS = 4096  # in one call
STATISTICS_ROWS = 32768  # whose statistics evaluation uses, as many as fit in MAX_BYTES_PER_CALL

Arrays = tuple[np.ndarray, ...]
"""Row numbers, or rows: x, its context if there is one, and its weight if rows have one."""


class Chunk(NamedTuple):
    """What one call takes: rows or their numbers, and what the loss drew for each of them."""

    rows: Arrays
    noise: Arrays = ()

    @property
    def first(self) -> np.ndarray:
        """One of its arrays, which has their axes of steps and rows."""
        return (self.rows or self.noise)[0]


Draw = Callable[[np.random.Generator, int], Arrays]
"""From a generator and a number of rows to what a loss draws for them, each with an axis of rows."""
Match = Callable[[Arrays, Arrays], Arrays]
"""From rows and what was drawn for them to what takes its place."""
Chunks = Callable[[int, int], Iterable[Chunk]]
"""From an epoch, and how many of its steps to leave out, to the chunks of the others."""
Blocks = Callable[[], Iterable[tuple[Chunk, bool]]]
"""Validation data, block by block, and whether a block is this process's part of its rows."""


@dataclass(frozen=True)
class Part:
    """Part ``index`` of ``count`` equal parts of the rows of every batch, on ``devices`` in all."""

    index: int = 0
    count: int = 1
    devices: int = 1

    def of(self, array: np.ndarray, axis: int) -> np.ndarray:
        """This part of an array, along its axis of rows."""
        self.check(array.shape[axis])
        return np.split(array, self.count, axis)[self.index] if self.count > 1 else array

    def check(self, num_rows: int) -> None:
        """Raise ``ValueError`` unless a batch of all parts splits evenly over the devices."""
        if num_rows % self.devices:
            raise ValueError(
                f"fit on {self.devices} devices expects batches of a multiple of {self.devices} "
                f"rows, got {num_rows}."
            )


class Expected(NamedTuple):
    """What a flow takes: its name, and the shapes and the dtype of its input."""

    owner: str
    event_shape: tuple[int | None, ...]
    context_dim: int
    dtype: str | None

    def check(self, labels: Sequence[str], given: Sequence[tuple[tuple[int, ...], str]]) -> None:
        """Check shape and dtype of x and, if there are any, of its context and its weights."""
        name, (shape, dtype) = labels[0], given[0]
        batch = checks.input_array(self.owner, name, shape, dtype, self.event_shape, self.dtype)
        if len(batch) != 1:
            raise ValueError(f"fit expects {name} with one axis of rows, got shape {shape}.")
        others = list(given[1:])
        context, context_dtype = others.pop(0) if self.context_dim and others else (None, None)
        checks.context_array(self.owner, context, context_dtype, self.context_dim, batch, dtype)
        for weights, weights_dtype in others:
            if weights != batch or weights_dtype != dtype:
                raise ValueError(
                    f"fit expects {labels[-1]} of shape {batch} and dtype {dtype}, one for each row, got "
                    f"{weights_dtype} of shape {weights}."
                )

    def rows(self, labels: Sequence[str], arrays: Iterable[np.ndarray]) -> Arrays:
        """The arrays, checked and all of their rows finite."""
        checked = tuple(arrays)
        self.check(labels, described(checked))
        for label, array in zip(labels, checked, strict=False):
            check_rows(label, len(checked[0]), finite_rows(array))
        if len(checked) > 1 + (self.context_dim > 0):
            check_weights(labels[-1], checked[-1])
        return checked


@dataclass(frozen=True)
class Rows:
    """Arrays in the memory of the device: x, its context and its weights if there are any.

    A chunk holds row numbers, and the device picks the rows.
    """

    arrays: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def subset(self, rows: np.ndarray) -> "Rows":
        """The rows of these numbers alone."""
        return Rows(tuple(array[rows] for array in self.arrays))

    def take(self, rows: np.ndarray) -> Arrays:
        """What the device needs to pick these rows."""
        return (rows,)

    def steps_within(self, batch_size: int, max_steps: int) -> int:
        """How many steps of a batch size go into one call."""
        return max_steps


@dataclass(frozen=True)
class HostRows:
    """Arrays that stay where they are, memory-mapped ones above all: x, its context and weights.

    A chunk holds the rows themselves, read when they are needed and checked then.
    """

    labels: tuple[str, ...]
    arrays: Arrays
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def subset(self, rows: np.ndarray) -> "HostRows":
        """The rows of these numbers alone."""
        return HostRows(self.labels, self.arrays, self.numbers[rows])

    def take(self, rows: np.ndarray) -> Arrays:
        """The rows of these numbers, an array of any shape."""
        numbers = self.numbers[rows]
        taken = tuple(_native(np.asarray(array[numbers])) for array in self.arrays)
        for label, array in zip(self.labels, taken, strict=True):
            finite = np.isfinite(array).reshape(*rows.shape, -1).all(-1)
            if not finite.all():
                _refuse_row(label, int(numbers[~finite][0]))
        return taken

    def steps_within(self, batch_size: int, max_steps: int) -> int:
        """How many steps of a batch size go into one call."""
        row_bytes = sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array in self.arrays)
        return _steps_within(batch_size * row_bytes, max_steps)


@dataclass(frozen=True)
class Stream:
    """Batches that an iterable yields: arrays, or x with its context or weights or both.

    Args:
        name: what they are.
        source: the iterable, or a function from the epoch to one.
        expected: what the flow takes.
        to_numpy: turns an array of the half, which has a name, into one of numpy.
        min_rows: batches of fewer rows are left out.
        head: where to keep the first batches of an epoch, whose statistics evaluation uses.
    """

    name: str
    source: Any
    expected: Expected
    to_numpy: Callable[[str, Any], np.ndarray]
    min_rows: int = 1
    head: "Head | None" = None

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Arrays]:
        """The batches of one pass from number ``skip`` on, checked, as numpy arrays."""
        source = self.source(epoch) if callable(self.source) else self.source
        if self.head is not None:
            self.head.begin()
        number, used = -1, 0
        for number, given in enumerate(source):
            batch = self._read(f"batch {number} of {self.name}", given)
            if len(batch[0]) < self.min_rows:
                continue
            if self.head is not None:
                self.head.add(batch)
            used += 1
            if used > skip:
                yield batch
        if self.head is not None:
            self.head.complete = True
        if not used:
            rows = "" if number < 0 else f" with at least {self.min_rows} rows"
            raise ValueError(f"fit got no batches of {self.name}{rows} in epoch {epoch}.")

    def chunks(self, part: Part, max_steps: int) -> Callable[[int, int], Iterator[Arrays]]:
        """Successive batches of one shape; every process brings its own part of them."""

        def chunks(epoch: int, skip: int) -> Iterator[Arrays]:
            call: list[Arrays] = []
            for batch in self.batches(epoch, skip):
                part.check(len(batch[0]) * part.count)
                limit = _steps_within(sum(array.nbytes for array in batch), max_steps)
                if call and (len(call) >= limit or len(batch[0]) != len(call[0][0])):
                    yield _stack(call)
                    call = []
                call.append(batch)
            if call:
                yield _stack(call)

        return chunks

    def _read(self, what: str, batch: Any) -> Arrays:
        given = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        conditional = self.expected.context_dim > 0
        labels = array_labels(what, conditional)
        if len(given) == 3 and given[1] is None and not conditional:
            given = given[0], given[2]
        if not 1 <= len(given) <= len(labels) or not all(is_array(array) for array in given):
            names = ", ".join(type(array).__name__ for array in given)
            if conditional:
                raise TypeError(
                    f"fit expects {what} as x and its context, or these and the weights of the rows, "
                    f"got {names}."
                )
            raise TypeError(
                f"fit expects {what} as an array or as a pair of x and the weights of its rows, got "
                f"{names}."
            )
        return self.expected.rows(labels, map(self.to_numpy, labels, given))


class Head:
    """The first batches of an epoch, up to the rows whose statistics evaluation uses."""

    def __init__(self) -> None:
        self.last: list[Arrays] = []
        self.complete = False
        self.begin()

    def begin(self) -> None:
        """Begin an epoch."""
        if self.complete:
            self.last = self.batches
        self.batches: list[Arrays] = []
        self.num_rows, self.num_bytes, self.full, self.complete = 0, 0, False, False

    def add(self, batch: Arrays) -> None:
        """Keep a batch, if it is the first or still fits."""
        self.num_rows += len(batch[0])
        self.num_bytes += sum(array.nbytes for array in batch)
        fits = self.num_rows <= STATISTICS_ROWS and self.num_bytes <= MAX_BYTES_PER_CALL
        self.full |= not fits and bool(self.batches)
        if not self.full:
            self.batches.append(batch)

    def rows(self) -> Arrays:
        """Those of this epoch; while it is not over those of the one before, if there was one."""
        batches = self.batches if self.complete or not self.last else self.last
        return tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))


Source = Rows | HostRows | Stream


def array_labels(name: str, conditional: bool) -> tuple[str, ...]:
    """What the arrays of rows are called in sentences."""
    context = (f"{name}'s context",) if conditional else ()
    return name, *context, f"{name}'s weights"


def columns(rows: Sequence[Any], conditional: bool) -> tuple[Any, Any, Any]:
    """Of the arrays of rows x, its context and its weights, ``None`` for those that are not there."""
    x, *others = rows or [None]
    context = others.pop(0) if conditional and others else None
    return x, context, others[0] if others else None


def check_weights(name: str, weights: np.ndarray) -> None:
    """Raise ``ValueError`` unless weights of rows are at least 0, and not all of them 0."""
    if weights.min() < 0 or weights.max() == 0:
        raise ValueError(
            f"fit expects {name} to be at least 0 and some above, got {weights.min():.6g} to "
            f"{weights.max():.6g}."
        )


def prepared(
    source: Source | None, conditional: bool, matches: bool, to_numpy: Callable[[Any], np.ndarray]
) -> Source | None:
    """The source, weights of rows divided by their mean; on the host where a loss reads rows there.

    The weights of an iterable stay as they are.
    """
    if isinstance(source, Rows | HostRows) and len(source.arrays) > 1 + conditional:
        *others, weights = source.arrays
        values = to_numpy(weights)
        if isinstance(source, HostRows):
            values = values[source.numbers]
        check_weights("weights", values)
        mean = float(values.mean(dtype=np.float64))
        source = replace(source, arrays=(*others, weights / mean))
    if matches and isinstance(source, Rows):
        arrays = tuple(_native(to_numpy(array)) for array in source.arrays)
        return HostRows(array_labels("data", True)[: len(arrays)], arrays, np.arange(len(source)))
    return source


def plan(
    source: Source | None,
    held_out: Source | None,
    draw: Draw | None,
    match: Match | None,
    *,
    num_epochs: int,
    num_steps: int | None,
    batch_size: int,
    seed: int,
    part: Part,
    max_steps: int,
) -> tuple[int, Chunks, Blocks | None]:
    """The number of epochs, their chunks, and the blocks of validation data.

    Args:
        source: the data; ``None`` for ``num_steps`` steps of a loss that draws its own rows.
        held_out: the validation data, ``None`` for none.
        draw, match: of the loss.
    """
    blocks = None
    if source is not None:
        chunks = _source_chunks(source, batch_size, seed, part, max_steps, draw, match)
    elif draw is None:
        raise ValueError("fit without data needs a loss that draws its own rows.")
    else:
        num_epochs, chunks = _drawn_chunks(draw, num_steps or 1, batch_size, seed, part, max_steps)
    if held_out is not None:
        blocks = partial(_validation_chunks, held_out, part, seed, draw, match)
    return num_epochs, chunks, blocks


def is_array(data: Any) -> bool:
    """Whether data are one array or table or nested lists of numbers, and not an iterable of such."""
    leaf = data
    while isinstance(leaf, list | tuple) and len(leaf):
        leaf = leaf[0]
    if leaf is not data:
        return isinstance(leaf, numbers.Real)
    return hasattr(data, "to_numpy") or (hasattr(data, "shape") and hasattr(data, "dtype"))


def described(arrays: Iterable[np.ndarray]) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and names of dtypes."""
    return [(array.shape, array.dtype.name) for array in arrays]


def is_fraction(validation: Any, context: Any, weights: Any) -> TypeGuard[float]:
    """Whether ``validation`` is a number, and no data.

    Raises:
        ValueError: for a context or weights of validation data that are not given.
    """
    fraction = isinstance(validation, numbers.Real)
    if fraction and context is not None:
        raise ValueError("fit takes a validation_context with validation data only.")
    if fraction and weights is not None:
        raise ValueError("fit takes validation_weights with validation data only.")
    return fraction


def check_no_rows(validation: Any, **given: Any) -> None:
    """Raise ``ValueError`` for arguments that belong to data, where there are none."""
    given["validation"] = None if isinstance(validation, numbers.Real) else validation
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"fit takes {name} with data only.")


def host_array(name: str, data: Any, dtype: str | None) -> np.ndarray:
    """What ``is_array`` accepts as a numpy array that either framework reads; lists become ``dtype``.

    Raises:
        ValueError: for masked values, and for lists of unequal lengths.
    """
    if isinstance(data, np.ma.MaskedArray):
        masked = np.argwhere(np.atleast_1d(np.ma.getmaskarray(data)))
        if len(masked):
            raise ValueError(f"fit got a masked value in row {masked[0, 0]} of {name}.")
        data = data.data
    elif isinstance(data, list | tuple):
        try:
            data = np.array(data, None if dtype is None else DTYPES[dtype])
        except (ValueError, TypeError) as error:
            raise ValueError(f"fit expects the lists of {name} to be of one length.") from error
    elif hasattr(data, "to_numpy"):
        data = data.to_numpy()
    return _native(np.asarray(data))


def _native(array: np.ndarray) -> np.ndarray:
    """In the machine's byte order and with strides of rows."""
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def host_rows(expected: Expected, labels: Sequence[str], arrays: Arrays) -> HostRows:
    """Rows that stay on the host, their shapes and dtypes checked."""
    expected.check(labels, described(arrays))
    for label, array in zip(labels, arrays, strict=True):
        check_rows(label, len(arrays[0]), np.ones(len(array), bool))
    return HostRows(tuple(labels), arrays, np.arange(len(arrays[0])))


def stream(
    expected: Expected,
    name: str,
    source: Any,
    context: Any,
    weights: Any,
    num_epochs: int,
    to_numpy: Callable[[str, Any], np.ndarray],
) -> Stream:
    """Batches from an iterable or from a function that makes one."""
    if not (callable(source) or hasattr(source, "__iter__")):
        raise TypeError(
            f"fit expects {name} as an array, an iterable of batches or a function from the epoch "
            f"to one, got {type(source).__name__}."
        )
    if context is not None:
        raise ValueError(f"fit takes the context of {name} from batches that are pairs of both.")
    if weights is not None:
        raise ValueError(f"fit takes the weights of {name} from batches that hold them last.")
    if num_epochs > 1 and not callable(source) and iter(source) is source:
        raise ValueError(
            f"fit needs {num_epochs} passes over {name}, and a {type(source).__name__} has one: give "
            "an iterable that starts anew each time, or a function from the epoch to one."
        )
    return Stream(name, source, expected, to_numpy)


def split(source: Source, fraction: float, seed: int) -> tuple[Source, Source | None]:
    """What to train on, and a fraction of the rows held out for validation, ``None`` for none."""
    if isinstance(source, Stream):
        if fraction != 0:
            raise ValueError(
                "fit cannot hold out a fraction of an iterable: give validation data, or "
                "validation=0."
            )
        return source, None
    kept, held_out = split_rows(len(source), fraction, seed)
    return source.subset(kept), source.subset(held_out) if len(held_out) else None


def sizes(source: Source | None, batch_size: int) -> dict[str, int | None]:
    """What a state says of the data: rows and rows per step, unknown of an iterable."""
    if isinstance(source, Stream):
        return {"rows": None, "batch_size": None}
    return {"rows": None if source is None else len(source), "batch_size": batch_size}


def _source_chunks(
    source: Source,
    batch_size: int,
    seed: int,
    part: Part,
    max_steps: int,
    draw: Draw | None = None,
    match: Match | None = None,
) -> Chunks:
    """The chunks of every epoch, with what a loss draws for their rows."""
    if isinstance(source, Stream):
        taken = source.chunks(part, max_steps)
    else:
        taken = _row_chunks(source, min(batch_size, len(source)), seed, part, max_steps)

    def chunks(epoch: int, skip: int) -> Iterator[Chunk]:
        step = skip
        for rows in taken(epoch, skip):
            if draw is None:
                yield Chunk(rows)
                continue
            drawn = []
            for i in range(len(rows[0])):
                step += 1  # from 1: numpy takes [seed, epoch, 0] for [seed, epoch]
                own = tuple(array[i] for array in rows)
                drawn.append(_draw(draw, match, [seed, epoch, step], part, own))
            yield Chunk(rows, _stack(drawn))

    return chunks


def _row_chunks(
    source: "Rows | HostRows", batch_size: int, seed: int, part: Part, max_steps: int
) -> Callable[[int, int], Iterator[Arrays]]:
    part.check(batch_size)
    batches = row_batches(len(source), batch_size, seed)
    limit = source.steps_within(batch_size // part.count, max_steps)

    def chunks(epoch: int, skip: int) -> Iterator[Arrays]:
        for rows in _calls(batches(epoch), part, skip, limit):
            yield source.take(rows)

    return chunks


def _draw(draw: Draw, match: Match | None, seeds: list[int], part: Part, rows: Arrays) -> Arrays:
    """What a loss draws for this part of a batch: the same numbers, however many parts there are."""
    drawn = draw(np.random.default_rng(seeds), len(rows[0]) * part.count)
    own = tuple(part.of(array, 0) for array in drawn)
    return own if match is None else match(rows, own)


def _drawn_chunks(
    draw: Draw, num_steps: int, batch_size: int, seed: int, part: Part, max_steps: int
) -> tuple[int, Chunks]:
    """Chunks without rows, for ``num_steps`` steps of a loss that draws its own: (epochs, their chunks)."""

    def chunks(epoch: int, skip: int) -> Iterator[Chunk]:
        steps = min(MAX_STEPS_PER_CALL, num_steps - epoch * MAX_STEPS_PER_CALL)
        drawn = draw(np.random.default_rng([seed, epoch]), steps * batch_size)
        arrays = [array.reshape(steps, batch_size, *array.shape[1:]) for array in drawn]
        for call in zip(*(_calls(array, part, skip, max_steps) for array in arrays), strict=True):
            yield Chunk((), call)

    return math.ceil(num_steps / MAX_STEPS_PER_CALL), chunks


def with_statistics(source: Source, batch_size: int, part: Part) -> Source:
    """A source for a flow with batch statistics, which take 2 rows: no step has fewer.

    Raises:
        ValueError: if every batch of an array has one row.
    """
    if isinstance(source, Stream):
        return replace(source, min_rows=math.ceil(2 / part.count), head=Head())
    checks.enough_rows(
        "fit of a flow with batch statistics", min(batch_size, len(source)), "per step"
    )
    return source


def statistics_rows(source: Source) -> tuple[Arrays, bool]:
    """The rows whose statistics evaluation uses, and whether they are this process's part of them.

    They are all rows, or as many as ``STATISTICS_ROWS`` and ``MAX_BYTES_PER_CALL`` allow, evenly spread;
    of an iterable those of the first batches of an epoch.
    """
    if isinstance(source, Stream):
        return (source.head or Head()).rows(), True
    row_bytes = sum(array.nbytes // max(1, len(array)) for array in source.arrays)
    most = min(STATISTICS_ROWS, max(2, MAX_BYTES_PER_CALL // max(1, row_bytes)))
    count = min(len(source), most)
    return source.take((np.arange(count) * len(source) // count).astype(np.int32)), False


def _calls(steps: np.ndarray, part: Part, skip: int, max_steps: int) -> Iterator[np.ndarray]:
    """This part of an array ``(steps, batch_size, ...)``, call by call."""
    rest = part.of(steps, 1)[skip:]
    for call in np.array_split(rest, max(1, math.ceil(len(rest) / max_steps))):
        if len(call):
            yield call


def _validation_chunks(
    source: Source, part: Part, seed: int, draw: Draw | None = None, match: Match | None = None
) -> Iterator[tuple[Chunk, bool]]:
    """Validation data without an axis of steps, and whether they are this process's part of rows.

    The few rows that do not split evenly over the devices come last, to all processes. What a loss draws
    for them is the same in every epoch.
    """
    for number, (rows, is_part) in enumerate(_validation_rows(source, part)):
        own = part if is_part else Part()
        noise = () if draw is None else _draw(draw, match, [seed, number, 0, 1], own, rows)
        yield Chunk(rows, noise), is_part


def _validation_rows(source: Source, part: Part) -> Iterator[tuple[Arrays, bool]]:
    if isinstance(source, Stream):
        for batch in source.batches(0):
            part.check(len(batch[0]) * part.count)
            yield batch, True
        return
    even = len(source) // part.devices * part.devices
    size = max(1, VALIDATION_ROWS // part.devices) * part.devices
    for start in range(0, even, size):
        rows = np.arange(start, min(start + size, even), dtype=np.int32)
        yield source.take(part.of(rows, 0)), True
    if even < len(source):
        yield source.take(np.arange(even, len(source), dtype=np.int32)), False


def steps_per_call(state_every: int | None) -> int:
    """The most steps in one call."""
    return MAX_STEPS_PER_CALL if state_every is None else min(MAX_STEPS_PER_CALL, state_every)


def row_batches(num_rows: int, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """For each epoch, a permutation of the rows as ``(steps, batch_size)`` indices.

    Rows that do not fill a batch sit that epoch out; other rows do so in the next.
    """
    batch_size = min(batch_size, num_rows)
    steps = num_rows // batch_size
    dtype = np.int32 if num_rows < 2**31 else np.int64

    def epoch_batches(epoch: int) -> np.ndarray:
        order = np.random.default_rng([seed, epoch]).permutation(num_rows)
        return order[: steps * batch_size].reshape(steps, batch_size).astype(dtype)

    return epoch_batches


def base_noise(generator: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """What ``from_noise`` of a base distribution takes, in float64."""
    return generator.standard_normal(shape) if kind == "normal" else generator.random(shape)


def annealing_noise(
    generator: np.random.Generator,
    num_rows: int,
    base: tuple[str, tuple[int, ...]],
    num_moves: int,
    event_shape: tuple[int, ...],
) -> Arrays:
    """What moves rows of a base by Hamiltonian Monte Carlo: noise, momenta and uniform numbers."""
    kind, noise_shape = base
    return (
        base_noise(generator, kind, (num_rows, *noise_shape)),
        generator.standard_normal((num_rows, num_moves, *event_shape)),
        generator.random((num_rows, num_moves)),
    )


def split_rows(num_rows: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers for training and for validation, at least one of each.

    Raises:
        ValueError: if the fraction is not in [0, 1), or leaves no row to train on.
    """
    if isinstance(fraction, bool) or not 0 <= fraction < 1:
        raise ValueError(f"fit expects validation as a fraction in [0, 1), got {fraction!r}.")
    if fraction == 0:
        return np.arange(num_rows), np.arange(0)
    if num_rows < 2:
        raise ValueError("fit needs at least 2 rows to split off validation data.")
    order = np.random.default_rng([seed]).permutation(num_rows)
    num_validation = max(1, round(num_rows * fraction))
    if num_validation >= num_rows:
        raise ValueError(
            f"fit has no rows left to train on: validation={fraction!r} holds out all {num_rows}."
        )
    return order[num_validation:], order[:num_validation]


def finite_rows(array: np.ndarray) -> np.ndarray:
    """For each row, whether all its values are finite."""
    return np.isfinite(array).all(tuple(range(1, array.ndim)))


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
        _refuse_row(name, int(np.flatnonzero(~finite)[0]))


def _refuse_row(name: str, row: int) -> None:
    raise ValueError(f"fit got a NaN or an infinity in row {row} of {name}.")


def _stack(batches: list[Arrays]) -> Arrays:
    return tuple(np.stack(arrays) for arrays in zip(*batches, strict=True))


def _steps_within(batch_bytes: int, max_steps: int) -> int:
    return max(1, min(max_steps, MAX_BYTES_PER_CALL // max(1, batch_bytes)))
