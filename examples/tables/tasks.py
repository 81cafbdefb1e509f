"""Six tasks of sbibm: priors and simulators from their definitions, observations from its wheel.

Lueckmann et al. (2021), Benchmarking Simulation-Based Inference, arXiv:2101.04653, appendix T.
"""

import bz2
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Generator = np.random.Generator


@dataclass(frozen=True)
class Box:
    """Uniform on (-bound, bound) in each entry."""

    dim: int
    bound: float

    def sample(self, generator: Generator, num_rows: int) -> np.ndarray:
        return generator.uniform(-self.bound, self.bound, (num_rows, self.dim))

    def log_prob(self, theta: np.ndarray) -> np.ndarray:
        return np.where((np.abs(theta) < self.bound).all(-1), 0.0, -np.inf)


@dataclass(frozen=True)
class Normal:
    """A normal of mean 0; log-densities but for a constant."""

    precision: np.ndarray

    @property
    def dim(self) -> int:
        return len(self.precision)

    def sample(self, generator: Generator, num_rows: int) -> np.ndarray:
        noise = generator.standard_normal((num_rows, self.dim))
        return np.linalg.solve(np.linalg.cholesky(self.precision).T, noise.T).T

    def log_prob(self, theta: np.ndarray) -> np.ndarray:
        return -((theta @ self.precision) * theta).sum(-1) / 2


def two_moons(generator: Generator, theta: np.ndarray) -> np.ndarray:
    angle = generator.uniform(-np.pi / 2, np.pi / 2, len(theta))
    radius = generator.normal(0.1, 0.01, len(theta))
    moon = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], -1)
    total, difference = theta.sum(-1), theta[:, 1] - theta[:, 0]
    return moon + np.stack([-np.abs(total), difference], -1) / np.sqrt(2)


def gaussian_linear(generator: Generator, theta: np.ndarray) -> np.ndarray:
    return theta + np.sqrt(0.1) * generator.standard_normal(theta.shape)


def gaussian_mixture(generator: Generator, theta: np.ndarray) -> np.ndarray:
    scale = generator.choice([1.0, 0.1], (len(theta), 1))
    return theta + scale * generator.standard_normal(theta.shape)


def slcp(generator: Generator, theta: np.ndarray) -> np.ndarray:
    """Four points of a bivariate normal."""
    first, second = theta[:, 2:3] ** 2, theta[:, 3:4] ** 2
    rho = np.tanh(theta[:, 4:])
    a, b = generator.standard_normal((2, len(theta), 4))
    x = theta[:, :1] + first * a
    y = theta[:, 1:2] + second * (rho * a + np.sqrt(1 - rho**2) * b)
    return np.stack([x, y], -1).reshape(len(theta), 8)


STIMULUS = np.random.RandomState(42).randn(100)
DESIGN = np.stack([np.ones(100), *(np.pad(STIMULUS, (j, 0))[:100] for j in range(9))], -1)


def bernoulli_glm(generator: Generator, theta: np.ndarray) -> np.ndarray:
    """A hundred spikes or none, summed up: how many, and the stimulus before them at nine lags."""
    spikes = generator.uniform(size=(len(theta), 100)) < 1 / (1 + np.exp(-theta @ DESIGN.T))
    return spikes @ DESIGN


def smooth_filter() -> Normal:
    """The prior of an offset and of a filter whose second differences are small."""
    differences = np.eye(9) - np.eye(9, k=-1)
    factor = differences @ differences + np.diag(np.sqrt(np.arange(9) / 9))
    precision = np.zeros((10, 10))
    precision[0, 0], precision[1:, 1:] = 0.5, factor.T @ factor
    return Normal(precision)


@dataclass(frozen=True)
class Task:
    prior: Box | Normal
    simulate: Callable[[Generator, np.ndarray], np.ndarray]


TASKS = {
    "two_moons": Task(Box(2, 1.0), two_moons),
    "gaussian_mixture": Task(Box(2, 10.0), gaussian_mixture),
    "slcp": Task(Box(5, 3.0), slcp),
    "gaussian_linear": Task(Normal(10 * np.eye(10)), gaussian_linear),
    "gaussian_linear_uniform": Task(Box(10, 1.0), gaussian_linear),
    "bernoulli_glm": Task(smooth_filter(), bernoulli_glm),
}


def shipped(wheel: zipfile.ZipFile, task: str, observation: int) -> dict[str, np.ndarray]:
    """An observation (1 to 10), its true parameters and 10,000 draws of its posterior."""
    folder = f"sbibm/tasks/{task}/files/num_observation_{observation}"
    packed = wheel.read(f"{folder}/reference_posterior_samples.csv.bz2")
    texts = {
        "x": wheel.read(f"{folder}/observation.csv"),
        "theta": wheel.read(f"{folder}/true_parameters.csv"),
        "draws": bz2.decompress(packed),
    }
    return {
        name: np.loadtxt(io.BytesIO(text), delimiter=",", skiprows=1)
        for name, text in texts.items()
    }
