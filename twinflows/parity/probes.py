"""Rows that try to find a difference, beside the rows that were given."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flow_bridge.domains import Interval

FAR = 1e3
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (3, 2), (7,))
"""Batch shapes that must give the rows of a flat batch."""

Draw = Callable[[tuple[int, ...]], np.ndarray]


class Probes(NamedTuple):
    """Rows of a model's shape.

    Attributes:
        x: ``(rows, *event_shape)``, float32.
        context: ``(rows, context_dim)`` or ``None``.
        regular: which rows have no entry at a kink (0) or at an end of the domain, where one-sided
            derivatives may differ from each other.
    """

    x: np.ndarray
    context: np.ndarray | None
    regular: np.ndarray


def probes(x: np.ndarray, context: np.ndarray | None, domain: Interval, seed: int = 0) -> Probes:
    """Zeros, other seeds, far tails and the ends of the domain, for rows like ``x``."""
    generator = np.random.default_rng(seed)
    event = x.shape[1:]
    drawn = np.stack([row for draw in _draws(domain, x, generator) for row in draw(event)])
    drawn = drawn.astype(np.float32)
    inside = np.isfinite(drawn) & (drawn != 0) & (drawn > domain.low) & (drawn < domain.high)
    regular = inside.reshape(len(drawn), -1).all(-1)
    if context is None:
        return Probes(drawn, None, regular)
    index = np.arange(len(drawn)) % len(context)
    factor = np.array([1, 3, 0, -1])[np.arange(len(drawn)) // 4 % 4]
    return Probes(drawn, np.asarray(factor[:, None] * context[index], np.float32), regular)


def _draws(domain: Interval, x: np.ndarray, generator: np.random.Generator) -> list[Draw]:
    def normal(scale: float, rows: int = 2, loc: float = 0.0) -> Draw:
        return lambda event: loc + scale * generator.standard_normal((rows, *event))

    def constant(value: float) -> Draw:
        return lambda event: np.full((1, *event), value)

    def alone(value: float) -> Draw:
        """One entry far out, the others as usual."""

        def draw(event: tuple[int, ...]) -> np.ndarray:
            row = generator.standard_normal((1, *event))
            row.reshape(-1)[generator.integers(row.size)] = value
            return row

        return draw

    def signs(size: float) -> Draw:
        return lambda event: size * generator.choice([-1.0, 1.0], (1, *event))

    around = normal(2 * float(x.std()) + 1e-3, 4, float(x.mean()))
    if domain == (-math.inf, math.inf):
        scales = [normal(scale) for scale in (1e-6, 0.3, 1, 3, 6, 12, 30, 100)]
        far = [constant(FAR), constant(-FAR), signs(FAR), alone(FAR), alone(-20.0)]
        return [constant(0.0), constant(1e-3), constant(-1e-3), around, *scales, *far]
    low, high = domain

    def between(points: Draw) -> Draw:
        """What is drawn from (0, 1), on the interval."""

        def draw(event: tuple[int, ...]) -> np.ndarray:
            u = points(event)
            if math.isinf(high):
                return low + u / (1 - u)
            return high - u / (1 - u) if math.isinf(low) else low + (high - low) * u

        return draw

    def logistic(scale: float, rows: int = 3) -> Draw:
        return between(lambda e: 1 / (1 + np.exp(-scale * generator.standard_normal((rows, *e)))))

    ends = [constant(end) for end in (low, high) if math.isfinite(end)]
    outside = [constant(low - 1.0)] if math.isfinite(low) else [constant(high + 1.0)]
    edges = [between(constant(u)) for u in (1e-6, 1e-3, 0.5, 0.999)]
    return [*map(logistic, (0.3, 1, 3, 6)), *edges, *ends, *outside]
