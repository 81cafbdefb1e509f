"""Location and scale of the columns of data, and which columns have none."""

from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from flow_bridge.weights import DTYPES

BLOCK_ROWS = 65536
IQR_OF_NORMAL = 1.3489795003921634


def location_and_scale(
    x: Any,
    dtype: str,
    what: str = "data",
    names: Sequence[str] | None = None,
    robust: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (biased) standard deviation of every column, of images of every channel.

    Args:
        x: shape ``(rows, columns)`` or ``(rows, channels, height, width)``; read in blocks of rows.
        dtype: of the flow that they are for.
        what: what x is, for the messages.
        names: of the columns, for the messages.
        robust: median and interquartile range / 1.349, which is the standard deviation of a normal
            distribution; mean and standard deviation still where half of a column is one value.

    Returns:
        Both in float64, shape ``(columns,)``.

    Raises:
        ValueError: for fewer than 2 rows, a NaN or an infinity, and for a column that is constant, that
            ``dtype`` cannot tell from a constant, or that ``dtype`` cannot hold.
    """
    if getattr(x, "ndim", 0) < 2 or len(x) < 2:
        raise ValueError(f"the {what} are expected as at least 2 rows, got shape {np.shape(x)}.")
    info = ml_dtypes.finfo(DTYPES[dtype])
    low = np.min([block.min((0, 2)) for block in _blocks(x)], 0)
    high = np.max([block.max((0, 2)) for block in _blocks(x)], 0)
    largest = np.maximum(abs(low), abs(high))

    def column(bad: np.ndarray) -> str:
        index = int(np.argmax(bad))
        label = repr(names[index]) if names is not None else index
        return f"{'column' if x.ndim == 2 else 'channel'} {label} of the {what}"

    if (bad := ~np.isfinite(largest)).any():
        raise ValueError(f"{column(bad)} holds a NaN or an infinity.")
    if (bad := largest > float(info.max) / 4).any():
        raise ValueError(
            f"{column(bad)} has values of {largest[bad][0]:.3g}, too large for {dtype}: divide it "
            "by a constant first."
        )
    if (bad := low == high).any():
        why = "it has no density" if what == "data" else "leave it out"
        raise ValueError(f"{column(bad)} is constant: {why}.")
    unit = largest[:, None]  # squares of large numbers overflow
    count = len(x) * int(np.prod(x.shape[2:]))
    mean = sum((block / unit).sum((0, 2)) for block in _blocks(x)) / count
    squares = sum(np.square(block / unit - mean[:, None]).sum((0, 2)) for block in _blocks(x))
    mean, sd = mean * largest, np.sqrt(squares / count) * largest
    if robust:
        for i in range(x.shape[1]):
            first, median, third = np.quantile(np.asarray(x[:, i], np.float64), (0.25, 0.5, 0.75))
            if first < third:
                mean[i], sd[i] = median, (third - first) / IQR_OF_NORMAL
    noise = np.maximum(abs(mean) * float(info.eps), float(info.tiny))
    if (bad := noise > 1e-3 * sd).any():
        raise ValueError(
            f"{column(bad)} lies around {mean[bad][0]:.3g} with a scale of "
            f"{sd[bad][0]:.3g}, too little for {dtype}: subtract a constant first, or take float64."
        )
    return mean, sd


def context_location_and_scale(
    context: Any,
    dtype: str,
    net: Any = None,
    names: Sequence[str] | None = None,
    robust: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """As ``location_and_scale``, of a context that goes to ``net`` first.

    What a network of sets takes as elements has one scale for all elements that count, so that their order
    still does not matter and padding stays padding; what one of images takes has one per channel.
    """
    known = context.ndim == 2 and getattr(net, "in_dim", None) == context.shape[1]
    if known and hasattr(net, "image_shape"):
        images = context.reshape(len(context), *net.image_shape)
        found = location_and_scale(images, dtype, "context", None, robust)
        return tuple(np.repeat(a, context.shape[1] // len(a)) for a in found)  # type: ignore[return-value]
    if known and hasattr(net, "element_dim"):
        flags = int(net.padded)
        elements = context.reshape(-1, net.element_dim)
        elements = elements[elements[:, 0] > 0] if flags else elements
        own = [str(i) for i in range(flags, net.element_dim)]
        found = location_and_scale(elements[:, flags:], dtype, "context's elements", own, robust)
        ends = [0.0] * flags, [1.0] * flags
        count = context.shape[1] // net.element_dim
        loc, scale = (np.tile([*end, *a], count) for end, a in zip(ends, found, strict=True))
        return loc, scale
    return location_and_scale(context, dtype, "context", names, robust)


def _blocks(x: Any) -> Iterator[np.ndarray]:
    """``(rows, columns, values)`` in float64, a few thousand rows at a time."""
    for start in range(0, len(x), BLOCK_ROWS):
        block = np.asarray(x[start : start + BLOCK_ROWS], np.float64)
        yield block.reshape(len(block), x.shape[1], -1)
