"""Numbers of energies: what both halves compare flows with."""

import math

import numpy as np

from flow_bridge import checks


def mode_means(num_modes: int, dim: int, width: float, seed: int) -> np.ndarray:
    """Uniform from -width to width, shape ``(num_modes, dim)``."""
    return np.random.default_rng(seed).uniform(-width, width, (num_modes, dim))


def many_well_log_normalizer(dim: int) -> float:
    """log of the integral of exp(-energy) of ``ManyWell``, to rounding."""
    x, step = np.linspace(-8, 8, 4001, retstep=True)
    # the trapezoid is exact to rounding for what vanishes with all derivatives at its ends
    double_well = np.exp(-(x**4) + 6 * x**2 + x / 2).sum() * step
    return dim / 2 * (math.log(double_well) + math.log(2 * math.pi) / 2)


def pairs(num_particles: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the first and of the second particle of each pair."""
    return np.triu_indices(num_particles, 1)


def lattice(owner: str, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless a lattice has axes of at least 2 sites, so that neighbours differ."""
    if not shape or min(shape) < 2:
        raise ValueError(f"{owner} expects axes of at least 2 sites, got {list(shape)}.")


def particles(owner: str, num_particles: int, space_dim: int) -> None:
    """Raise ``ValueError`` unless there are two particles or more in a space."""
    checks.positive_int(owner, num_particles=num_particles, space_dim=space_dim)
    if num_particles < 2:
        raise ValueError(f"{owner} expects at least 2 particles, got {num_particles}.")
