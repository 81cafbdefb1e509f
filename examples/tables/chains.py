"""Two samplers for many chains at once, of log-densities that either half evaluates."""

from collections.abc import Callable
from typing import Any

import numpy as np


def differential_evolution(
    log_density: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    num_steps: int,
    generator: np.random.Generator,
    thin: int = 1,
) -> np.ndarray:
    """Metropolis steps along differences of other walkers, which no scale and no correlation stops.

    The walkers of either half move along differences of two walkers of the other half, 2.38 / sqrt(2 dim) of
    it, and each tenth time the whole: from mode to mode. (ter Braak, 2006, Statistics and Computing 16.)

    Args:
        log_density: from ``(*batch, num_walkers / 2, dim)`` to ``(*batch, num_walkers / 2)``.
        start: shape ``(*batch, num_walkers, dim)``, an even number of walkers.
        num_steps: steps of each walker.
        generator: the source of randomness.
        thin: keep the walkers after each so many steps.

    Returns:
        The walkers kept, shape ``(num_steps // thin, *batch, num_walkers, dim)``.
    """
    half, dim = start.shape[-2] // 2, start.shape[-1]
    walkers = [start[..., :half, :].copy(), start[..., half:, :].copy()]
    values = [log_density(part) for part in walkers]
    kept = []
    for step in range(1, num_steps + 1):
        factor = 1.0 if step % 10 == 0 else 2.38 / np.sqrt(2 * dim)
        for i in (0, 1):
            others = walkers[1 - i]
            first = generator.integers(half, size=values[i].shape)
            second = (first + generator.integers(1, half, size=first.shape)) % half
            difference = _rows(others, first) - _rows(others, second)
            noise = (
                1e-5
                * others.std(-2, keepdims=True)
                * generator.standard_normal(start[..., :half, :].shape)
            )
            proposal = walkers[i] + factor * difference + noise
            value = log_density(proposal)
            bar = np.log1p(-generator.uniform(size=value.shape))
            accept = bar < value - values[i]
            walkers[i] = np.where(accept[..., None], proposal, walkers[i])
            values[i] = np.where(accept, value, values[i])
        if step % thin == 0:
            kept.append(np.concatenate(walkers, -2))
    return np.stack(kept)


def hamiltonian(
    value_and_gradient: Callable[[np.ndarray], tuple[Any, Any]],
    start: np.ndarray,
    num_steps: int,
    generator: np.random.Generator,
    num_leapfrog: int = 5,
    warm_up: int = 100,
) -> tuple[np.ndarray, float]:
    """Hamiltonian Monte Carlo; in the warm-up the step size goes where 90 percent are accepted.

    Args:
        value_and_gradient: of the log-density, from ``(chains, dim)`` to ``(chains,)`` and ``(chains, dim)``.
        start: shape ``(chains, dim)``.
        num_steps: steps that are kept.
        generator: the source of randomness.
        num_leapfrog: leapfrog steps on average.
        warm_up: steps before them.

    Returns:
        The chains, shape ``(num_steps, chains, dim)``, and the mean acceptance of the steps kept.
    """
    z, (value, gradient) = start, value_and_gradient(start)
    step_size, kept, rates = 0.5, [], []
    for step in range(warm_up + num_steps):
        momentum = generator.standard_normal(z.shape)
        point, slope, energy = z, gradient, value - (momentum**2).sum(-1) / 2
        size = step_size * generator.uniform(0.5, 1.1)
        for _ in range(generator.integers(1, 2 * num_leapfrog)):
            momentum = momentum + size / 2 * slope
            point = point + size * momentum
            new, slope = value_and_gradient(point)
            momentum = momentum + size / 2 * slope
        with np.errstate(invalid="ignore", over="ignore"):
            change = new - (momentum**2).sum(-1) / 2 - energy
        change = np.where(np.isfinite(change), change, -np.inf)
        accept = np.log1p(-generator.uniform(size=change.shape)) < change
        z = np.where(accept[:, None], point, z)
        gradient = np.where(accept[:, None], slope, gradient)
        value = np.where(accept, new, value)
        rate = np.exp(np.minimum(change, 0)).mean()
        if step < warm_up:
            step_size *= np.exp((rate - 0.9) / (1 + step) ** 0.5)
        else:
            kept.append(z)
            rates.append(rate)
    return np.stack(kept), float(np.mean(rates))


def _rows(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.take_along_axis(array, indices[..., None], -2)
