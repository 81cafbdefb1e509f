"""Whether an import computes what the peer computes."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import ConvergenceError, ConversionError
from flow_bridge.importers import parts
from flow_bridge.importers.parts import Part, Reading
from flow_bridge.importers.reading import Run

EPS = float(np.finfo(np.float64).eps)
ROWS, WIDE_ROWS = 192, 64
WIDE, FAR = 4.0, 12.0
"""How much wider the wide rows are, and where others are cut off, in standard deviations."""
FLOOR, PER_LAYER, BY_MOVING = 64.0, 8.0, 8.0
"""A difference may be ``FLOOR`` and ``PER_LAYER`` for each bijector, in eps, or ``BY_MOVING`` times what
the peer itself moves when the input of it, or of each of its layers, does by one eps, or its log|det|
when its output does."""


class Opened(NamedTuple):
    """A model of one half with its weights, in float64: numpy in and out.

    Attributes:
        forward, inverse: data to latent and back, with log|det|.
        sample: of a flow, given a number of rows and contexts.
    """

    forward: Run
    inverse: Run
    sample: Callable[[int, np.ndarray | None], np.ndarray]


Open = Callable[[Architecture, Mapping[str, np.ndarray]], Opened]


def compare(reading: Reading, name: str, open_model: Open) -> None:
    """Raise ``ConversionError`` unless the import and the peer agree; without a peer do nothing.

    They are compared in float64, on rows drawn from the import and on wider ones, in z and log|det|.

    Args:
        reading: of the peer.
        name: of the peer.
        open_model: gives the model of an architecture and its arrays.
    """
    if reading.run is None:
        return
    flow = parts.flow(reading)
    model = open_model(flow.architecture, flow.arrays)
    generator = np.random.default_rng(0)
    context = _contexts(reading, generator)
    count = len([item for layer in reading.layers for item in layer.parts])
    x = _rows(reading, model, context, generator)
    ours = _Ours(flow, open_model, reading.inverse, model)
    found = _difference(ours, reading.run, x, context, count, reading)
    if found is None:
        return
    raise ConversionError(
        f"the import of {name} differs from it: {found}. {_first_layer(reading, open_model, x, context)}"
    )


class _Ours(NamedTuple):
    """The import, or a part of it, opened."""

    part: Part
    open_model: Open
    inverse: bool
    model: Opened

    def run(self, x: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        return (self.model.inverse if self.inverse else self.model.forward)(x, context)

    def shifts(self, z: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """By how much x moves when z does by one eps."""
        back = self.model.forward if self.inverse else self.model.inverse
        return back(_nudged(z, np.random.default_rng(2)), context)[0] - back(z, context)[0]


def _nudged(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return x + EPS * generator.choice([-1.0, 1.0], x.shape) * np.maximum(1, abs(x))


def _contexts(reading: Reading, generator: np.random.Generator) -> np.ndarray | None:
    width = context_width(reading)
    if not width:
        return None
    context = generator.normal(size=(ROWS + WIDE_ROWS, width))
    first = next(iter(reading.context_net), None)
    if first is not None and first.architecture["type"] == "Standardize":
        context = context * first.arrays["scale"] + first.arrays["loc"]
    return context


def context_width(reading: Reading) -> int:
    """The width of the context that a model takes, 0 for none."""
    if reading.context_net:
        first = reading.context_net[0].architecture
        return int(first["in_dim"] if "in_dim" in first else first["dim"])
    found = [parts.context_dim(item) for layer in reading.layers for item in layer.parts]
    return max(found, default=0)


def _rows(
    reading: Reading, model: Opened, context: np.ndarray | None, generator: np.random.Generator
) -> np.ndarray:
    """Rows drawn from the flow, and behind them wider ones; of noise where the peer starts from it."""
    shape = np.atleast_1d(reading.base.architecture["dim"])
    normal = generator.normal(size=(ROWS + WIDE_ROWS, *shape))
    if reading.inverse:
        normal[ROWS:] *= WIDE
        return normal
    drawn = model.sample(ROWS, None if context is None else context[:ROWS])
    event = tuple(range(1, drawn.ndim))
    drawn = np.where(np.isfinite(drawn).all(event, keepdims=True), drawn, normal[:ROWS])
    low, middle, high = np.quantile(drawn, [0.16, 0.5, 0.84], 0)  # a flow may have far outliers
    half = (high - low) / 2 + 1e-3
    drawn = np.clip(drawn, middle - FAR * half, middle + FAR * half)
    return np.concatenate([drawn, middle + WIDE * half * normal[ROWS:]])


def _difference(
    ours: _Ours,
    theirs: Run,
    x: np.ndarray,
    context: np.ndarray | None,
    count: int,
    reading: Reading | None = None,
) -> str | None:
    """What differs, in words; ``None`` if nothing does."""
    expected, found = theirs(x, context), ours.run(x, context)
    moved = moves(theirs, x, context, expected)
    if reading is not None and len(reading.layers) > 1:
        moved = np.fmax(moved, _moves_between(reading, x, context, expected))
    limits = (FLOOR + PER_LAYER * count) * EPS * np.ones((2, len(x)))
    finite = np.isfinite(expected[0]).all(tuple(range(1, x.ndim))) & np.isfinite(expected[1])
    if not finite[:ROWS].any():
        return "it gives no finite number on any row drawn from the import"
    for rows in (slice(ROWS), slice(ROWS, None)):
        most = BY_MOVING * np.where(finite, moved, 0)[:, rows].max(1, initial=0)
        limits[:, rows] = np.maximum(limits[:, rows], most[:, None])
    if _exceeding(found, expected, np.where(finite, limits, np.inf)) is None:
        return None
    # where a slope is small, rounding of z stands for much in x
    with np.errstate(invalid="ignore"), suppress(ConvergenceError):
        shifted = theirs(x + ours.shifts(found[0], context), context)
        limit = BY_MOVING * errors(shifted, expected)[1]
        limits[1] = np.fmax(limits[1], np.where(np.isfinite(limit), limit, 0))
    return _exceeding(found, expected, np.where(finite, limits, np.inf))


def _exceeding(
    found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...], limits: np.ndarray
) -> str | None:
    """A row that differs by more than its limit, in words."""
    with np.errstate(invalid="ignore"):
        apart = errors(found, expected)
    apart = np.where(np.isfinite(apart), apart, np.finfo(np.float64).max)
    for i, name in enumerate(("z", "log_det")):
        row = int(np.argmax(apart[i] / limits[i]))
        if apart[i, row] > limits[i, row]:
            here, there = (np.ravel(pair[i][row]) for pair in (found, expected))
            worst = abs(here - there) / np.maximum(1, abs(there))
            entry = int(np.argmax(np.nan_to_num(worst, nan=np.inf)))
            return (
                f"{name} of a row is {here[entry]:.17g} here and {there[entry]:.17g} there, "
                f"where rounding explains {limits[i, row] * max(1, abs(there[entry])):.1e}"
            )
    return None


def moves(
    theirs: Run, x: np.ndarray, context: np.ndarray | None, expected: tuple[np.ndarray, ...]
) -> np.ndarray:
    """By how much z and log|det| of every row move when x does by one eps, all as ``errors`` counts.

    So entries below 1 move by one eps of 1: knots of splines, for instance, are no more exact than that.
    """
    generator = np.random.default_rng(1)
    moved = np.zeros((2, len(x)))
    with np.errstate(invalid="ignore"):
        for _ in range(2):
            near = theirs(_nudged(x, generator), context)
            moved = np.fmax(moved, errors(near, expected))
    return moved


def _moves_between(
    reading: Reading, x: np.ndarray, context: np.ndarray | None, expected: tuple[np.ndarray, ...]
) -> np.ndarray:
    """The same when what goes from each of the peer's layers to the next moves by one eps."""
    generator = np.random.default_rng(3)
    seen = context if context is None or reading.embed is None else reading.embed(context)
    total = np.zeros(len(x))
    with np.errstate(invalid="ignore"):
        for layer in reversed(reading.layers) if reading.inverse else reading.layers:
            x, log_det = layer.run(_nudged(x, generator), seen)
            total = total + log_det
        return errors((x, total), expected)


def errors(found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> np.ndarray:
    """Of every row the largest error of z and that of log|det|, relative above 1."""
    z, log_det = (abs(a - b) / np.maximum(1, abs(b)) for a, b in zip(found, expected, strict=True))
    return np.stack([z.max(tuple(range(1, z.ndim))), log_det])


def _first_layer(
    reading: Reading, open_model: Open, x: np.ndarray, context: np.ndarray | None
) -> str:
    """The first layer that differs, in the order in which the peer runs them."""
    seen = context
    if context is not None and reading.embed is not None:
        seen = reading.embed(context)
        if reading.context_net and (
            unlike := _embedding_differs(reading, open_model, context, seen)
        ):
            return unlike
    for layer in reversed(reading.layers) if reading.inverse else reading.layers:
        given = seen if any(parts.context_dim(item) for item in layer.parts) else None
        if layer.parts:
            whole = parts.chain(layer.parts)
            model = open_model(whole.architecture, whole.arrays)
            ours = _Ours(whole, open_model, reading.inverse, model)

            def theirs(x: np.ndarray, given: Any, layer: Any = layer) -> Any:
                return layer.run(x, given if given is not None else seen)

            if _difference(ours, theirs, x, given, len(layer.parts)):
                return f"The first layer that differs is {layer.name}."
        x = layer.run(x, seen)[0]
    return "Each layer alone agrees: the peer puts them together in another way."


def _embedding_differs(
    reading: Reading, open_model: Open, context: np.ndarray, expected: np.ndarray
) -> str:
    """A sentence if the context networks differ."""
    h = context
    for net in reading.context_net:
        h = open_model(net.architecture, net.arrays).forward(h, None)[0]
    error = (abs(h - expected) / np.maximum(1, abs(expected))).max()
    if error > (FLOOR + PER_LAYER) * EPS:
        return "The first layer that differs is the network of the context."
    return ""
