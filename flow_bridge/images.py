"""Shapes and units of images, for both halves."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from flow_bridge import checks

T = TypeVar("T")
Shape = tuple[int | None, ...]


def squeezed_shape(shape: Shape, factor: int, inverse: bool = False) -> Shape:
    """``(channels, height, width)`` after ``Squeeze(factor)``, or before it with ``inverse``."""
    channels, *sizes = shape
    if inverse:
        checks.divisible("Squeeze", factor**2, channels=channels)
        return _over(channels, factor**2), *(_times(size, factor) for size in sizes)
    checks.divisible("Squeeze", factor, height=sizes[0], width=sizes[1])
    return _times(channels, factor**2), *(_over(size, factor) for size in sizes)


def split_shape(event_shape: Shape, latent_shape: Shape) -> Shape:
    """The event shape of ``Split`` from the two of its bijector."""
    if len(event_shape) != 3 or event_shape != latent_shape:
        raise ValueError(
            "Split expects a bijector of images (channels, height, width) that keeps their shape, "
            f"got one from {checks.describe(event_shape)} to {checks.describe(latent_shape)}."
        )
    return _times(event_shape[0], 2), *event_shape[1:]


def kept_shape(shape: Shape, map_inner: Callable[[Shape], Shape]) -> Shape:
    """``shape``, if ``Split`` can halve it and its bijector keeps that of the half."""
    checks.divisible("Split", 2, channels=shape[0])
    inner = _over(shape[0], 2), *shape[1:]
    return split_shape(inner, map_inner(inner))


def log_slope(alpha: float) -> float:
    """log(1 - 2 alpha), of ``Logit``."""
    return math.log1p(-2 * alpha)


def exponential_terms(bound: float, eps: float) -> int:
    """How many powers of a matrix of norm ``bound`` its exponential needs, for a rest below rounding."""
    rest, count = bound, 1
    while rest * 2 > eps:
        count += 1
        rest *= bound / count
    return count


def bits_per_dimension(log_prob: T, event_shape: int | Sequence[int], num_levels: int = 1) -> T:
    """Bits per dimension of quantised data: -log_prob / (D log 2) + log2(num_levels).

    A density on data that ``dequantize`` spread over [0, 1) gives one level the probability of a
    cell of volume num_levels^-D; its expected log-density is a lower bound of the log-probability
    (Theis et al., 2016, arXiv:1511.01844), so the result is an upper bound of the bits. For data
    left on [0, num_levels) leave ``num_levels`` at 1.

    Args:
        log_prob: in nats, a number or an array of either framework.
        event_shape: the shape of one image, or its number of dimensions D.
        num_levels: what the data were divided by.

    Examples:
        >>> from flow_bridge.images import bits_per_dimension
        >>> bits_per_dimension(0.0, event_shape=(1, 8, 8), num_levels=256)
        8.0
    """
    checks.positive_int("bits_per_dimension", num_levels=num_levels)
    dim = math.prod(checks.event_shape_of("bits_per_dimension", event_shape))
    return log_prob / (-dim * math.log(2)) + math.log2(num_levels)  # type: ignore[operator,return-value]


def _times(size: int | None, factor: int) -> int | None:
    return None if size is None else size * factor


def _over(size: int | None, factor: int) -> int | None:
    return None if size is None else size // factor
