"""Univariate families against mpmath: slopes at the corners of their boxes, far points, gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from parity_tests.catalogue import arch
from parity_tests.test_monotone import on

HALVES = {"torch": torch_flows, "jax": jax_flows}
mpf = mpmath.mpf


@dataclass(frozen=True)
class Family:
    """A map, z of x and its parameters in mpmath, and how large raw parameters are tested."""

    architecture: dict[str, Any]
    exact: Callable[[Any, list[Any]], Any]
    corner: float = 30.0
    size: float = 2.0


def cubic_rational(x: Any, p: list[Any]) -> Any:
    a = 9 / (1 + 8 * mpmath.exp(-5 * mpmath.tanh(p[0] / 5))) - 1
    u = x - p[2]
    return x + a * u / (1 + (mpmath.exp(2 * mpmath.tanh(p[1] / 2)) * u) ** 2)


def sinh(x: Any, p: list[Any]) -> Any:
    factor, shift = mpmath.exp(3 * mpmath.tanh(p[0] / 3)), 10 * mpmath.tanh(p[1] / 10)
    k = mpmath.exp(2 * mpmath.tanh(p[2] / 2))
    if abs(k * x) < 5000:
        return mpmath.asinh(factor * mpmath.sinh(k * x) + shift) / k
    return x + mpmath.sign(x) * mpmath.log(factor) / k


def extended(inside: Callable[..., Any], low: Any, high: Any) -> Callable[..., Any]:
    """A polynomial of [low, high] and its tangents."""

    def exact(x: Any, p: list[Any]) -> Any:
        end = min(max(x, mpf(low)), mpf(high))
        slope = mpmath.diff(lambda u: inside(u, p), end) if end != x else 0
        return inside(end, p) + (x - end) * slope

    return exact


def bernstein(x: Any, p: list[Any]) -> Any:
    n, low, high = len(p) - 1, mpf(-3), mpf(2)
    floor = mpf(1e-3)
    heights = [low + p[0]]
    for raw in p[1:]:
        slope = floor + mpmath.log(1 + mpmath.exp(raw) * mpmath.expm1(1 - floor))
        heights.append(heights[-1] + slope * (high - low) / n)
    y = (x - low) / (high - low)
    return sum(h * mpmath.binomial(n, i) * y**i * (1 - y) ** (n - i) for i, h in enumerate(heights))


def squares(x: Any, p: list[Any]) -> Any:
    """The squares multiplied out and integrated power by power."""
    floor, bound, total = mpf(1e-3), mpf(3), p[0] + mpf(1e-3) * x
    rows = [[mpmath.sqrt(1 - floor) + p[1], *p[2:4]], [p[4], mpf(0.1) + p[5], p[6]]]
    for row in rows:
        for (i, a), (j, b) in product(enumerate(row), enumerate(row)):
            total += a * b * x ** (i + j + 1) / (bound ** (i + j) * (i + j + 1))
    return total


FAMILIES = {
    "CubicRationalMap": Family(arch("CubicRationalMap"), cubic_rational, 12.0),
    "SinhMap": Family(arch("SinhMap"), sinh),
    "BernsteinMap": Family(
        arch("BernsteinMap", degree=4, low=-3.0, high=2.0), extended(bernstein, -3, 2), 9.0
    ),
    "SumOfSquaresMap": Family(
        arch("SumOfSquaresMap", degree=2, bound=3.0), extended(squares, -3, 3), 2.0, 1.0
    ),
}
"""Every family with one choice of its options."""


def points(name: str, farthest: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Points from 0 to 1e6, each with parameters at corners of their box and inside it."""
    family = FAMILIES[name]
    count = torch_flows.build(family.architecture).num_parameters
    generator = np.random.default_rng(0)
    rows = [family.corner * generator.choice([-1.0, 1.0], count) for _ in range(8)]
    rows += [family.size * generator.standard_normal(count) for _ in range(8)]
    x = np.concatenate([[0.0, 0.3, 1.0, 2.6], 10.0 ** np.arange(1, farthest + 1)])
    x = np.concatenate([x, -x[1:]])
    return np.tile(x, (16, 1)), np.repeat(np.reshape(rows, (16, 1, count)), len(x), 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_values_and_slopes_against_mpmath(name: str) -> None:
    """Slopes to 1e-14 of max(1, |log-slope|) in both halves, z to 1e-14 of what it is a sum of."""
    x, parameters = points(name)
    family = FAMILIES[name]
    results = [
        on(h, h.build(family.architecture), "forward", x, parameters) for h in HALVES.values()
    ]
    with mpmath.workdps(50):
        for index in np.ndindex(x.shape):
            raw = [mpf(float(p)) for p in parameters[index]]
            point = mpf(float(x[index]))
            z = family.exact(point, raw)
            slope = mpmath.log(mpmath.diff(lambda u, raw=raw: family.exact(u, raw), point))
            # a sum of terms of both signs knows z to the rounding of the largest
            scale = 1 + abs(z) + abs(point) * mpmath.exp(slope) + abs(family.exact(mpf(0), raw))
            for own_z, own_slope in results:
                assert abs(mpf(float(own_z[index])) - z) < 1e-14 * scale, (index, own_z[index], z)
                error = abs(mpf(float(own_slope[index])) - slope)
                assert error < 1e-14 * max(1, abs(slope)), (index, own_slope[index], slope)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", FAMILIES)
def test_families_return(name: str, half: str) -> None:
    """x comes back from 1e6 at 1e-12, and the slopes with it."""
    x, parameters = points(name)
    map = HALVES[half].build(FAMILIES[name].architecture)
    z, log_slope = on(HALVES[half], map, "forward", x, parameters)
    back, log_back = on(HALVES[half], map, "inverse", z, parameters)
    # what rounding of z, and of the terms that z is a sum of, does to x
    lost = np.exp(-log_slope) * (1 + np.abs(z) + np.abs(z[:, :1]))
    assert (np.abs(back - x) <= 1e-12 * (1 + np.abs(x)) + 32 * 2.3e-16 * lost).all()
    assert (np.abs(log_back + log_slope) <= 1e-11 + 1e-12 * lost).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_families_far_out(name: str) -> None:
    """Finite in float32 to 1e4, in both directions and both halves, at every corner."""
    x, parameters = (a.astype(np.float32) for a in points(name, 4))
    map, twin = (h.build(FAMILIES[name].architecture) for h in HALVES.values())
    for step in ("forward", "inverse"):
        inputs = [torch.from_numpy(a).requires_grad_() for a in (x, parameters)]
        outputs = getattr(map, step)(*inputs)

        def total(x: Any, p: Any, step: str = step) -> Any:
            z, log_slope = getattr(twin, step)(x, p)
            return z.sum() + log_slope.sum()

        ours = torch.autograd.grad(outputs[0].sum() + outputs[1].sum(), inputs)
        for result in (*outputs, *ours, *jax.grad(total, (0, 1))(jnp.asarray(x), parameters)):
            assert np.isfinite(
                np.asarray(result.detach() if hasattr(result, "detach") else result)
            ).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_densities_integrate_to_one(name: str) -> None:
    """The density of a standard normal z, by the trapezoidal rule in x."""
    map = torch_flows.build(FAMILIES[name].architecture)
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(map.num_parameters, generator=generator).double()
    ends = torch.tensor([-9.0, 9.0]).double()
    low, high = map.inverse(ends, parameters.expand(2, -1))[0]
    x = torch.linspace(low, high, 200_001, dtype=torch.float64)
    z, log_slope = map.forward(x, parameters.expand(len(x), -1))
    density = (log_slope - z.square() / 2).exp() / np.sqrt(2 * np.pi)
    assert abs(torch.trapezoid(density, x) - 1) < 1e-7
