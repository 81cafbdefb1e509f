"""Toy densities on the plane: the generators of the FFJORD paper's pictures, drawn independently.

Grathwohl et al. (2019), arXiv:1810.01367. Each takes a numpy generator and a number of rows and
returns points of shape ``(num_rows, 2)``; ``ENTROPY`` holds the differential entropy of the exact
density in nats, the best test negative log-likelihood that any model can reach.
"""

from collections.abc import Callable

import numpy as np

Generator = np.random.Generator


def eight_gaussians(generator: Generator, num_rows: int) -> np.ndarray:
    """Eight normals of deviation 0.5 on a circle of radius 4, all divided by sqrt(2)."""
    angle = generator.integers(8, size=num_rows) * np.pi / 4
    centre = 4 * np.stack([np.cos(angle), np.sin(angle)], -1)
    return (centre + 0.5 * generator.normal(size=(num_rows, 2))) / np.sqrt(2)


def checkerboard(generator: Generator, num_rows: int) -> np.ndarray:
    """The squares of one colour of a 4 by 4 board on [-4, 4]."""
    column, row = generator.integers(4, size=num_rows), generator.integers(2, size=num_rows)
    corner = np.stack([column, 2 * row + column % 2], -1) * 2 - 4
    return corner + 2 * generator.uniform(size=(num_rows, 2))


def pinwheel(generator: Generator, num_rows: int) -> np.ndarray:
    """Five normals, stretched along the radius and wound up by the exponential of the radius."""
    radius, offset = generator.normal(size=(2, num_rows)) * [[0.3], [0.1]] + [[1], [0]]
    angle = generator.integers(5, size=num_rows) * 2 * np.pi / 5 + 0.25 * np.exp(radius)
    cos, sin = np.cos(angle), np.sin(angle)
    return 2 * np.stack([radius * cos + offset * sin, offset * cos - radius * sin], -1)


def spirals(generator: Generator, num_rows: int) -> np.ndarray:
    """Two arms of one and a half turns each, with a small square and a normal as noise."""
    angle = 3 * np.pi * np.sqrt(generator.uniform(size=num_rows))
    arm = np.stack([-np.cos(angle), np.sin(angle)], -1) * angle[:, None]
    arm = (arm + 0.5 * generator.uniform(size=(num_rows, 2))) / 3
    side = generator.choice([-1, 1], size=(num_rows, 1))
    return side * arm + 0.1 * generator.normal(size=(num_rows, 2))


def rings(generator: Generator, num_rows: int) -> np.ndarray:
    """Four circles of radius 0.75, 1.5, 2.25 and 3, equally likely, with normal noise of 0.08."""
    radius = 0.75 * generator.integers(1, 5, size=num_rows)
    angle = generator.uniform(0, 2 * np.pi, size=num_rows)
    circle = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    return circle + 0.08 * generator.normal(size=(num_rows, 2))


SAMPLERS: dict[str, Callable[[Generator, int], np.ndarray]] = {
    "8 Gaussians": eight_gaussians,
    "checkerboard": checkerboard,
    "pinwheel": pinwheel,
    "spirals": spirals,
    "rings": rings,
}

# by numerical integration of the exact densities; the checkerboard's is log 32
ENTROPY = {
    "8 Gaussians": 2.831880,
    "checkerboard": 3.465736,
    "pinwheel": 2.317788,
    "spirals": 2.645450,
    "rings": 2.623183,
}
