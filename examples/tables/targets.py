"""Eight posteriors whose moments and normalisers are known: in closed form, by quadrature, or by NUTS.

Densities are written once for both halves, on ``torch`` or ``jax.numpy``. Those of inference-gym 0.0.5 take
its data, and its moments by long runs of Stan, from its wheel.
"""

import ast
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special
from sklearn import datasets

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Target:
    """A posterior on the reals.

    Attributes:
        dim: of x.
        log_density: likelihood times prior, from ``torch`` or ``jax.numpy`` to a function of x.
        mean, deviation: of what ``quantities`` makes of x.
        log_z: the log of the integral, ``None`` where nobody knows it.
        quantities: from draws ``(..., dim)`` to what the moments are of.
        source: where these come from.
    """

    dim: int
    log_density: Callable[[Any], Callable[[Any], Any]]
    mean: np.ndarray
    deviation: np.ndarray
    log_z: float | None
    source: str
    quantities: Callable[[np.ndarray], np.ndarray] = lambda x: x


def normal(x: Any, scale: Any = 1.0) -> Any:
    """log N(x; 0, scale^2) summed over the last axis; a number for the scale."""
    return -((x / scale) ** 2).sum(-1) / 2 - x.shape[-1] * (math.log(scale) + LOG_2PI / 2)


def normal_each(xp: Any, x: Any, log_scale: Any) -> Any:
    """The same with the log of a scale for each row."""
    squares = (x**2).sum(-1) * xp.exp(-2 * log_scale)
    return -squares / 2 - x.shape[-1] * (log_scale + LOG_2PI / 2)


def regression() -> Target:
    """Coefficients of scikit-learn's diabetes table, normal noise and prior: conjugate."""
    table = datasets.load_diabetes()
    x, y = ((a - a.mean(0)) / a.std(0) for a in (table.data, table.target))
    noise = 0.7
    precision = np.eye(10) + x.T @ x / noise**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ x.T @ y / noise**2
    log_z = float(
        -(y @ y) / (2 * noise**2)
        + mean @ precision @ mean / 2
        - np.linalg.slogdet(precision)[1] / 2
        - len(y) * (math.log(noise) + LOG_2PI / 2)
    )

    def log_density(xp: Any) -> Any:
        design, target = xp.asarray(np.float32(x.T)), xp.asarray(np.float32(y))
        return lambda theta: normal(theta) + normal(target - theta @ design, noise)

    return Target(10, log_density, mean, np.sqrt(np.diag(covariance)), log_z, "closed form")


def logistic(num_samples: int = 2000, num_chains: int = 8) -> Target:
    """Logistic regression on scikit-learn's breast cancer table, 30 columns and an intercept."""
    table = datasets.load_breast_cancer()
    x = np.hstack([(table.data - table.data.mean(0)) / table.data.std(0), np.ones((569, 1))])
    sign = 2.0 * table.target - 1

    def log_density(xp: Any) -> Any:
        design = xp.asarray(np.float32((sign[:, None] * x).T))
        zero = xp.asarray(np.float32(0))
        return lambda theta: normal(theta) - xp.logaddexp(zero, -(theta @ design)).sum(-1)

    draws = nuts(log_density(jnp), 31, num_samples, num_chains)
    mean, deviation = draws.mean((0, 1)), draws.std((0, 1))
    source = f"NUTS, {num_samples * num_chains:,} draws"
    return Target(31, log_density, mean, deviation, None, source)


def nuts(log_density: Any, dim: int, num_samples: int, num_chains: int) -> np.ndarray:
    """Chains of BlackJAX's NUTS after 500 steps of adaptation, ``(num_chains, num_samples, dim)``."""

    @jax.jit
    def chain(key: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
        (state, parameters), _ = adaptation.run(first, jnp.zeros(dim), 500)
        step = blackjax.nuts(log_density, **parameters).step

        def advance(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            state, _ = step(key, state)
            return state, state.position

        return jax.lax.scan(advance, state, jax.random.split(second, num_samples))[1]

    keys = jax.random.split(jax.random.key(0), num_chains)
    return np.stack([np.asarray(chain(key), np.float64) for key in keys])


def banana() -> Target:
    """x_1 bent along a parabola of x_0, which has deviation 10."""

    def log_density(xp: Any) -> Any:
        def function(x: Any) -> Any:
            bent = x[..., 1:] - 0.03 * (x[..., :1] ** 2 - 100)
            return normal(x[..., :1], 10.0) + normal(bent)

        return function

    deviation = np.array([10.0, math.sqrt(1 + 0.03**2 * 2 * 100**2)])
    return Target(2, log_density, np.zeros(2), deviation, 0.0, "closed form")


def funnel() -> Target:
    """Neal's: nine normals whose log-variance is normal with deviation 3; moments of the first."""

    def log_density(xp: Any) -> Any:
        return lambda x: normal(x[..., :1], 3.0) + normal_each(xp, x[..., 1:], x[..., 0] / 2)

    return Target(
        10, log_density, np.zeros(1), np.array([3.0]), 0.0, "closed form", lambda x: x[..., :1]
    )


def quartic() -> Target:
    """Two normals and one measurement of a quartic of them, noise 0.1: four modes, joined by ridges."""

    def log_density(xp: Any) -> Any:
        def function(x: Any) -> Any:
            a, b = x[..., :1], x[..., 1:]
            return normal(x) + normal(1 - b**2 - 3 * a**2 * (a**2 - 1), 0.1)

        return function

    axis = np.linspace(-4, 4, 2001)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    weights = np.exp(log_density(np)(grid))
    log_z = math.log(weights.sum() * (axis[1] - axis[0]) ** 2)
    mean = np.average(grid.reshape(-1, 2), 0, weights.ravel())
    square = np.average(grid.reshape(-1, 2) ** 2, 0, weights.ravel())
    # the mean is 0 by symmetry: the moments of |x| show the modes
    size = np.average(np.abs(grid).reshape(-1, 2), 0, weights.ravel())
    return Target(
        2,
        log_density,
        np.concatenate([mean, size]),
        np.sqrt(np.concatenate([square - mean**2, square - size**2])),
        log_z,
        "quadrature",
        lambda x: np.concatenate([x, np.abs(x)], -1),
    )


def eight_schools(wheel: zipfile.ZipFile) -> Target:
    """Noncentred: the mean effect / 10, the log of its spread - 5, and eight standardised effects."""
    effects = np.array([28, 8, -3, 7, -1, 1, 18, 12.0])
    errors = np.array([15, 10, 16, 11, 9, 11, 10, 18.0])

    def log_density(xp: Any) -> Any:
        y, error = (xp.asarray(np.float32(values)) for values in (effects, errors))
        constant = float(-np.log(errors).sum() - 4 * LOG_2PI)

        def function(x: Any) -> Any:
            schools = 10 * x[..., :1] + xp.exp(5 + x[..., 1:2]) * x[..., 2:]
            return normal(x) - (((y - schools) / error) ** 2).sum(-1) / 2 + constant

        return function

    def quantities(x: np.ndarray) -> np.ndarray:
        average, log_spread = 10 * x[..., :1], 5 + x[..., 1:2]
        return np.concatenate([average, log_spread, average + np.exp(log_spread) * x[..., 2:]], -1)

    found = truth(wheel, "eight_schools")
    names = ("AVG_EFFECT", "LOG_STDDEV", "SCHOOL_EFFECTS")
    axis = np.linspace(-8, 8, 801)
    variance = np.exp(2 * (5 + axis))[:, None, None] + errors**2
    mean = 10 * axis[:, None]
    logs = -((effects - mean) ** 2 / variance + np.log(variance) + LOG_2PI).sum(-1) / 2
    logs = logs - (axis[:, None] ** 2 + axis**2) / 2 - LOG_2PI
    log_z = float(special.logsumexp(logs) + 2 * math.log(axis[1] - axis[0]))
    return Target(10, log_density, *moments(found, names), log_z, "inference-gym", quantities)


def brownian(wheel: zipfile.ZipFile, scales_known: bool) -> Target:
    """Thirty steps of a walk, the middle ten not seen; in units of its increments.

    Where the scales are not known, the logs of both over 2 come first.
    """
    data = constants(wheel, "inference_gym/internal/datasets", BROWNIAN)
    seen = np.asarray(data["OBSERVED_LOC"], float)
    rows = np.flatnonzero(np.isfinite(seen))
    y, walk = seen[rows], np.tril(np.ones((30, 30)))
    known = float(data["INNOVATION_NOISE"]), float(data["OBSERVATION_NOISE"])
    skip = 0 if scales_known else 2

    def log_density(xp: Any) -> Any:
        sums, target = xp.asarray(np.float32(walk[rows].T)), xp.asarray(np.float32(y))

        def function(x: Any) -> Any:
            if scales_known:
                return normal(x) + normal(target - known[0] * (x @ sums), known[1])
            step, noise = xp.exp(2 * x[..., :1]), 2 * x[..., 1]
            return normal(x) + normal_each(xp, target - step * (x[..., 2:] @ sums), noise)

        return function

    def quantities(x: np.ndarray) -> np.ndarray:
        if scales_known:
            return known[0] * x @ walk.T
        scales = np.exp(2 * x[..., :2])
        return np.concatenate([scales, scales[..., :1] * (x[..., 2:] @ walk.T)], -1)

    name = BROWNIAN if scales_known else BROWNIAN.replace("motion", "motion_unknown_scales")
    names = ("",) if scales_known else ("INNOVATION_NOISE_SCALE", "OBSERVATION_NOISE_SCALE", "LOCS")
    values, vectors = np.linalg.eigh(walk[rows] @ walk[rows].T)
    squares = (vectors.T @ y) ** 2

    def log_evidence(step: Any, noise: Any) -> Any:
        variance = np.square(step)[..., None] * values + np.square(noise)[..., None]
        return -(squares / variance + np.log(variance) + LOG_2PI).sum(-1) / 2

    if scales_known:
        log_z = float(log_evidence(*known))
    else:
        a, b = np.meshgrid(np.linspace(-5, 5, 1001), np.linspace(-5, 5, 1001), indexing="ij")
        logs = log_evidence(np.exp(2 * a), np.exp(2 * b)) - (a**2 + b**2) / 2 - LOG_2PI
        log_z = float(special.logsumexp(logs) + 2 * math.log(0.01))
    found = moments(truth(wheel, name), names)
    return Target(30 + skip, log_density, *found, log_z, "inference-gym", quantities)


BROWNIAN = "brownian_motion_missing_middle_observations"


def truth(wheel: zipfile.ZipFile, name: str) -> dict[str, Any]:
    return constants(wheel, "inference_gym/targets/ground_truth", name)


def moments(found: dict[str, Any], names: tuple[str, ...]) -> list[np.ndarray]:
    """Means and standard deviations of several quantities, one behind the other."""
    prefixes = [f"IDENTITY_{name}_" if name else "IDENTITY_" for name in names]
    return [
        np.concatenate([np.ravel(found[prefix + kind]) for prefix in prefixes])
        for kind in ("MEAN", "STANDARD_DEVIATION")
    ]


def constants(wheel: zipfile.ZipFile, folder: str, name: str) -> dict[str, Any]:
    """The numbers that a module assigns to its names, read without running it."""
    tree = ast.parse(wheel.read(f"{folder}/{name}.py").decode())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            numbers = [
                float("nan") if isinstance(part, ast.Attribute) else ast.literal_eval(part)
                for part in leaves(node.value)
            ]
            found[node.targets[0].id] = numbers if len(numbers) != 1 else numbers[0]
    return found


def leaves(node: ast.expr) -> list[ast.expr]:
    """The numbers, and names of numbers, in an array that is written out."""
    if isinstance(node, ast.List | ast.Tuple):
        return [leaf for part in node.elts for leaf in leaves(part)]
    if isinstance(node, ast.Call):  # np.array([...]).reshape(...), .astype(...)
        inner = node.func.value if isinstance(node.func, ast.Attribute) else node.func
        return leaves(inner if isinstance(inner, ast.Call) else node.args[0])
    numeric = ast.Constant | ast.UnaryOp | ast.Attribute
    return [node] if isinstance(node, numeric) else []
