"""Energies with known answers: targets to start from, x to one number, p ~ exp(-energy)."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flow_bridge import checks
from flow_bridge.energies import (
    lattice,
    many_well_log_normalizer,
    mode_means,
    pairs,
    particles,
)


@dataclass(frozen=True)
class ManyWell:
    """Pairs (u, v) of x with u^4 - 6 u^2 - u / 2 + v^2 / 2: 2^(dim / 2) unequal modes.

    Args:
        dim: even.

    Raises:
        ValueError: for an odd dim.

    Reference: Noe et al. (2019), Boltzmann generators, arXiv:1812.01729; Midgley et al. (2023),
    arXiv:2208.01893, whose target it is at ``dim=32``.
    """

    dim: int = 32

    def __post_init__(self) -> None:
        checks.positive_int("ManyWell", dim=self.dim)
        checks.divisible("ManyWell", 2, dim=self.dim)

    @property
    def log_normalizer(self) -> float:
        """log Z, by quadrature."""
        return many_well_log_normalizer(self.dim)

    def __call__(self, x: Tensor) -> Tensor:
        """From ``(*batch, dim)`` to ``(*batch,)``."""
        u, v = x[..., ::2], x[..., 1::2]
        return (u**4 - 6 * u**2 - u / 2 + v**2 / 2).sum(-1)


@dataclass(frozen=True)
class NormalModes:
    """Equal normals around uniform means: -log of the mixture's density, so that log Z is 0.

    Args:
        num_modes: how many.
        dim: of x.
        width: the means lie from -width to width in each dimension.
        scale: the normals' standard deviation.
        seed: of the means.

    Attributes:
        means: shape ``(num_modes, dim)``.

    Raises:
        ValueError: for numbers out of range.

    Reference: Midgley et al. (2023), arXiv:2208.01893, for 40 of them in the plane (with other means).
    """

    num_modes: int = 40
    dim: int = 2
    width: float = 40.0
    scale: float = 1.3133
    seed: int = 0
    means: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.positive_int("NormalModes", num_modes=self.num_modes, dim=self.dim)
        checks.positive_number("NormalModes", width=self.width, scale=self.scale)
        checks.non_negative_int("NormalModes", seed=self.seed)
        means = mode_means(self.num_modes, self.dim, self.width, self.seed)
        object.__setattr__(self, "means", means)

    @property
    def log_normalizer(self) -> float:
        """log Z, which is 0."""
        return 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """From ``(*batch, dim)`` to ``(*batch,)``."""
        z = (x[..., None, :] - torch.as_tensor(self.means).to(x)) / self.scale
        constant = math.log(self.num_modes) + self.dim * math.log(
            self.scale * math.sqrt(2 * math.pi)
        )
        return constant - (-(z**2).sum(-1) / 2).logsumexp(-1)


@dataclass(frozen=True)
class ScalarField:
    """The action of a real field on a periodic lattice, sum_x (sum_mu (f(x + mu) - f(x))^2 + m f^2 + g f^4).

    Args:
        shape: sites along each axis; x holds them row by row.
        mass_squared: m, negative for two phases.
        coupling: g, at least 0.

    Raises:
        ValueError: for axes of less than 2 sites or a coupling below 0.

    Reference: Albergo, Kanwar and Shanahan (2019), Flow-based generative models for Markov chain Monte
    Carlo in lattice field theory, arXiv:1904.12072.
    """

    shape: tuple[int, ...] = (8, 8)
    mass_squared: float = -4.0
    coupling: float = 8.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        checks.positive_int("ScalarField", **{f"axis {i}": n for i, n in enumerate(self.shape)})
        lattice("ScalarField", self.shape)
        checks.non_negative_number("ScalarField", coupling=self.coupling)

    def __call__(self, x: Tensor) -> Tensor:
        """From ``(*batch, sites)`` to ``(*batch,)``."""
        values = x.reshape(*x.shape[:-1], *self.shape)
        density = self.mass_squared * values**2 + self.coupling * values**4
        for axis in range(-len(self.shape), 0):
            density = density + (values.roll(-1, axis) - values) ** 2
        return density.reshape(x.shape).sum(-1)


@dataclass(frozen=True)
class LennardJones:
    """Particles with depth ((r0 / r)^12 - 2 (r0 / r)^6) for each pair, held by stiffness |x|^2 / 2.

    Without the last term the density has no normaliser. At 13 particles in 3 dimensions the smallest pair
    energy is -44.326801 depth, an icosahedron's.

    Args:
        num_particles: at least 2.
        space_dim: of each; x holds the coordinates of one particle after the other.
        depth: of a pair's well.
        radius: r0, where it is.
        stiffness: at least 0.

    Raises:
        ValueError: for numbers out of range.

    Reference: Wales and Doye (1997), arXiv:cond-mat/9803344; Koehler, Klein and Noe (2020), Equivariant
    Flows, arXiv:2006.02425.
    """

    num_particles: int = 13
    space_dim: int = 3
    depth: float = 1.0
    radius: float = 1.0
    stiffness: float = 1.0

    def __post_init__(self) -> None:
        particles("LennardJones", self.num_particles, self.space_dim)
        checks.positive_number("LennardJones", depth=self.depth, radius=self.radius)
        checks.non_negative_number("LennardJones", stiffness=self.stiffness)

    def __call__(self, x: Tensor) -> Tensor:
        """From ``(*batch, num_particles * space_dim)`` to ``(*batch,)``."""
        squared = _squared_distances(x, self.num_particles, self.space_dim)
        sixth = (self.radius**2 / squared) ** 3
        energy = self.depth * (sixth**2 - 2 * sixth).sum(-1)
        return energy + self.stiffness / 2 * (x**2).sum(-1)


@dataclass(frozen=True)
class DoubleWellParticles:
    """Particles with a (r - r0)^2 + b (r - r0)^4 for each pair, held by stiffness |x|^2 / 2.

    Args:
        num_particles: at least 2.
        space_dim: as in ``LennardJones``.
        quadratic: a.
        quartic: b, above 0.
        offset: r0.
        stiffness: at least 0.

    Raises:
        ValueError: for numbers out of range.

    Reference: Koehler, Klein and Noe (2020), Equivariant Flows, arXiv:2006.02425, for four of them in the
    plane.
    """

    num_particles: int = 4
    space_dim: int = 2
    quadratic: float = -4.0
    quartic: float = 0.9
    offset: float = 4.0
    stiffness: float = 1.0

    def __post_init__(self) -> None:
        particles("DoubleWellParticles", self.num_particles, self.space_dim)
        checks.positive_number("DoubleWellParticles", quartic=self.quartic)
        checks.non_negative_number("DoubleWellParticles", stiffness=self.stiffness)

    def __call__(self, x: Tensor) -> Tensor:
        """From ``(*batch, num_particles * space_dim)`` to ``(*batch,)``."""
        squared = _squared_distances(x, self.num_particles, self.space_dim)
        beyond = squared.sqrt() - self.offset
        energy = (self.quadratic * beyond**2 + self.quartic * beyond**4).sum(-1)
        return energy + self.stiffness / 2 * (x**2).sum(-1)


def _squared_distances(x: Tensor, num_particles: int, space_dim: int) -> Tensor:
    """Of each pair, shape ``(*batch, pairs)``."""
    points = x.reshape(*x.shape[:-1], num_particles, space_dim)
    first, second = pairs(num_particles)
    return ((points[..., first, :] - points[..., second, :]) ** 2).sum(-1)
