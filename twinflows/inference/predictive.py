"""What a flow foretells: quantiles of what it draws, and how far out a row lies."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from twinflows.sides.base import Side
from twinflows.sides.models import draw, images, in_blocks, noise_shape

MAX_DRAWS = 1 << 18
"""Made at once."""
SEED = 0
"""Of the draws that quantiles are taken of: the same for every context."""


def model_quantiles(
    model: Side, levels: Sequence[float], context: np.ndarray | None, num_draws: int
) -> np.ndarray:
    """Quantiles of every entry of a vector: ``(levels, rows of the context, dim)``, without one 1 row.

    Exact for one number whose base is one normal number, since a map of one number is monotone;
    otherwise of ``num_draws`` draws.

    Raises:
        ValueError: for levels outside (0, 1).
    """
    given = np.asarray(levels, np.float64)
    if given.ndim != 1 or not ((given > 0) & (given < 1)).all():
        raise ValueError(f"levels are expected as numbers between 0 and 1, got {levels!r}.")
    base = model.flow.base
    exact = model.flow.event_shape == base.noise_shape == (1,) and base.noise == "normal"
    if exact:
        normal = np.array([NormalDist().inv_cdf(level) for level in given])
        noise = np.concatenate([normal, -normal, [-1.0, 1.0]])[:, None]  # the map may fall
    elif base.noise == "uniform":
        noise = np.random.default_rng(SEED).random(noise_shape(model, num_draws))
    else:
        noise = np.random.default_rng(SEED).normal(size=noise_shape(model, num_draws))
    if context is None:
        draws = images(model, noise, None)[None]
    else:
        size = max(1, MAX_DRAWS // len(noise))
        blocks = [context[start : start + size] for start in range(0, len(context), size)]
        draws = np.concatenate([_images_of_each(model, noise, block) for block in blocks])
    if not exact:
        return np.quantile(draws, given, 1)
    rising = draws[:, -1:] > draws[:, -2:-1]
    count = len(given)
    return np.where(rising, draws[:, :count], draws[:, count : 2 * count]).swapaxes(0, 1)


def model_anomaly_scores(
    model: Side,
    x: np.ndarray,
    context: np.ndarray | None,
    num_draws: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """The share of the model's draws (for each row those given its context) of a higher density."""
    own = in_blocks(model.log_prob, x, context)
    if context is None:
        drawn = in_blocks(model.log_prob, draw(model, num_draws, generator, None), None)
        drawn = np.sort(drawn)
        return 1 - np.searchsorted(drawn, own, side="right") / num_draws
    size = max(1, MAX_DRAWS // num_draws)
    scores = []
    for start in range(0, len(x), size):
        repeated = np.repeat(context[start : start + size], num_draws, 0)
        drawn = draw(model, len(repeated), generator, repeated)
        densities = in_blocks(model.log_prob, drawn, repeated).reshape(-1, num_draws)
        scores.append((densities > own[start : start + size, None]).mean(1))
    return np.concatenate(scores)


def _images_of_each(model: Side, noise: np.ndarray, context: np.ndarray) -> np.ndarray:
    """The images of all noise for every row of a context: ``(rows, draws, dim)``."""
    repeated = np.repeat(context, len(noise), 0)
    tiled = np.tile(noise, (len(context), *(1,) * (noise.ndim - 1)))
    return images(model, tiled, repeated).reshape(len(context), len(noise), -1)
