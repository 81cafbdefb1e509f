"""What a flow foretells: quantiles of what it draws, and how far out a row lies."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import NormalDist

import numpy as np

from twinflows.inference.cells import LogProb
from twinflows.sides.base import Side
from twinflows.sides.models import draw, images, in_blocks, noise_shape

MAX_DRAWS = 1 << 18
"""Made at once."""
FAR = 8.0
"""The normal number up to which a map is asked whether it is monotone: one with a circle in it is not."""
SEED = 0
"""Of the draws that quantiles are taken of: the same for every context."""


def model_quantiles(
    model: Side, levels: Sequence[float], context: np.ndarray | None, num_draws: int
) -> np.ndarray:
    """Quantiles of every entry of a vector: ``(levels, rows of the context, dim)``, without one 1 row.

    Exact for one number that is a monotone map of one normal number; otherwise of ``num_draws`` draws.

    Raises:
        ValueError: for levels outside (0, 1).
    """
    given = np.asarray(levels, np.float64)
    if given.ndim != 1 or not ((given > 0) & (given < 1)).all():
        raise ValueError(f"levels are expected as numbers between 0 and 1, got {levels!r}.")
    base = model.flow.base
    if model.flow.event_shape == base.noise_shape == (1,) and base.noise == "normal":
        normal = np.array([NormalDist().inv_cdf(level) for level in given])
        far = max(FAR, abs(normal).max())
        noise = np.concatenate([[-far], np.sort(normal), [far], normal, -normal])
        found = _images_of_each(model, noise[:, None], context)
        path, rising, falling = np.split(found, [len(given) + 2, 2 * len(given) + 2], 1)
        change = path[:, -1:] - path[:, :1]
        if (abs(np.diff(path, axis=1)).sum(1) <= 1.01 * abs(change[:, 0])).all():
            return np.where(change > 0, rising, falling).swapaxes(0, 1)
    generator, shape = np.random.default_rng(SEED), noise_shape(model, num_draws)
    noise = generator.random(shape) if base.noise == "uniform" else generator.normal(size=shape)
    return np.quantile(_images_of_each(model, noise, context), given, 1)


def model_anomaly_scores(
    model: Side,
    x: np.ndarray,
    context: np.ndarray | None,
    num_draws: int,
    generator: np.random.Generator,
    log_prob: LogProb | None = None,
    finish: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> np.ndarray:
    """The share of the model's draws (for each row those given its context) of a higher density.

    Args:
        model: the model.
        x, context: the rows.
        num_draws, generator: of the draws.
        log_prob: the density that is meant, that of the model if not given.
        finish: what becomes of a draw.
    """
    log_prob = log_prob or partial(in_blocks, model.log_prob)
    own = log_prob(x, context)
    if context is None:
        drawn = np.sort(log_prob(finish(draw(model, num_draws, generator, None)), None))
        return 1 - np.searchsorted(drawn, own, side="right") / num_draws
    size = max(1, MAX_DRAWS // num_draws)
    scores = []
    for start in range(0, len(x), size):
        repeated = np.repeat(context[start : start + size], num_draws, 0)
        drawn = finish(draw(model, len(repeated), generator, repeated))
        densities = log_prob(drawn, repeated).reshape(-1, num_draws)
        scores.append((densities > own[start : start + size, None]).mean(1))
    return np.concatenate(scores)


def _images_of_each(model: Side, noise: np.ndarray, context: np.ndarray | None) -> np.ndarray:
    """The images of all noise for every row of a context: ``(rows, draws, dim)``, without one 1 row."""
    if context is None:
        return images(model, noise, None)[None]
    size = max(1, MAX_DRAWS // len(noise))
    blocks = []
    for start in range(0, len(context), size):
        block = context[start : start + size]
        tiled = np.tile(noise, (len(block), *(1,) * (noise.ndim - 1)))
        found = images(model, tiled, np.repeat(block, len(noise), 0))
        blocks.append(found.reshape(len(block), len(noise), -1))
    return np.concatenate(blocks)
