"""Univariate families against mpmath: slopes at the corners of their boxes, far points, gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise, product
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

import jax_flows
import torch_flows
from parity_tests.catalogue import arch
from parity_tests.test_monotone import mixture_in_mpmath, on

HALVES = {"torch": torch_flows, "jax": jax_flows}
mpf = mpmath.mpf


@dataclass(frozen=True)
class Family:
    """A map, z of x and its parameters in mpmath, and how large raw parameters are tested."""

    architecture: dict[str, Any]
    exact: Callable[[Any, list[Any]], Any]
    corner: float = 30.0
    size: float = 2.0
    count: int = 8
    digits: int = 50


def cubic(x: Any, p: list[Any]) -> Any:
    k = mpmath.exp(2 * mpmath.tanh(p[1] / 2))
    shifted = k * x * (3 + 4 * (k * x) ** 2) + 30 * mpmath.tanh(p[0] / 30)
    return mpmath.sinh(mpmath.asinh(shifted) / 3) / k


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


def network(x: Any, p: list[Any]) -> Any:
    """Of 3 and 2 hidden units, the last of which go down."""
    values, at = [x], 0
    for below, starts in ((1, (-0.5, 0.5, 0)), (3, (0, 0)), (2, (0,))):
        width = len(starts)
        if at:
            half = (below + 1) // 2
            values = [elu(v) for v in values[:half]] + [-elu(-v) for v in values[half:]]
        raw = p[at : at + below * width]
        weights = [mpmath.log(1 + mpmath.exp(r) * mpmath.expm1(mpf(1) / below)) for r in raw]
        at += (below + 1) * width
        values = [
            sum(weights[j * below + i] * v for i, v in enumerate(values))
            + p[at - width + j]
            + start
            for j, start in enumerate(starts)
        ]
    return values[0]


def integral(x: Any, p: list[Any]) -> Any:
    """By the trapezoidal rule with nodes at -3, -1.5, 0, 1.5, 3, of a network of 2 and 3 hidden units."""

    def integrand(u: Any) -> Any:
        values = [mpmath.tanh((1 + p[j]) * u + p[2 + j] + (1.5, -1.5)[j]) for j in (0, 1)]
        rows = [[p[4 + 2 * j + i] + (i == j % 2) for i in (0, 1)] for j in range(3)]
        sums = [sum(w * v for w, v in zip(row, values, strict=True)) for row in rows]
        values = [mpmath.tanh(total + b) for total, b in zip(sums, p[10:13], strict=True)]
        n = sum(w * v for w, v in zip(p[13:16], values, strict=True)) + p[16]
        return mpmath.exp(7 * mpmath.tanh(n / 7))

    sign, left, total = mpmath.sign(x), abs(x), mpf(0)
    for k in range(2):
        first, last = (integrand(sign * mpf(1.5) * i) for i in (k, k + 1))
        width = min(max(left - mpf(1.5) * k, 0), mpf(1.5))
        total += width * (first + (last - first) * width / 3)
    return p[17] + sign * (total + max(left - 3, 0) * last)


def elu(u: Any) -> Any:
    return u if u > 0 else mpmath.expm1(u)


LOW, HIGH, FLOOR = mpf(-2), mpf(3), mpf(1e-3)


def knots(logits: list[Any], floor: Any = FLOOR) -> list[Any]:
    total, ends = sum(mpmath.exp(logit) for logit in logits), [LOW]
    for logit in logits:
        share = floor + (1 - len(logits) * floor) * mpmath.exp(logit) / total
        ends.append(ends[-1] + (HIGH - LOW) * share)
    return ends


def pieces(
    build: Callable[[list[Any]], tuple[list[Any], Callable[..., Any]]],
) -> Callable[..., Any]:
    """The identity outside; in bin i the function that ``build`` gives beside the knots."""

    def exact(x: Any, p: list[Any]) -> Any:
        if not LOW <= x <= HIGH:
            return x
        ends, inside = build(p)
        return inside(max(i for i in range(len(ends) - 1) if i == 0 or x >= ends[i]), x)

    return exact


def linear_spline(p: list[Any]) -> Any:
    x, y = knots([mpf(0)] * 2, mpf(0)), knots(p)
    return x, lambda i, u: y[i] + (y[i + 1] - y[i]) * (u - x[i]) / (x[i + 1] - x[i])


def quadratic_spline(p: list[Any]) -> Any:
    """The integral of the piecewise linear slope, whose ends are the area."""
    x = knots(p[:3])
    w = [(b - a) / 5 for a, b in pairwise(x)]
    v = [mpmath.log(1 + mpmath.exp(u)) + FLOOR for u in p[3:]]
    end = (w[0] * v[0] + w[2] * v[1] + w[1] * (v[0] + v[1])) / (2 - w[0] - w[2])
    v = [end, *v, end]
    area = sum(w[i] * (v[i] + v[i + 1]) for i in range(3)) / 2
    v = [FLOOR + (1 - FLOOR) * u / area for u in v]

    def inside(i: int, u: Any) -> Any:
        y = LOW + sum(5 * w[j] * (v[j] + v[j + 1]) for j in range(i)) / 2
        return y + v[i] * (u - x[i]) + (v[i + 1] - v[i]) * (u - x[i]) ** 2 / (10 * w[i])

    return x, inside


def cubic_spline(p: list[Any]) -> Any:
    """In the powers of the paper, with Steffen's slopes."""
    x, y = knots(p[:2]), knots(p[2:4])
    w = [x[1] - x[0], x[2] - x[1]]
    s = [(y[1] - y[0]) / w[0], (y[2] - y[1]) / w[1]]
    ends = [3 * rate / (1 + 2 * mpmath.exp(-u)) for rate, u in zip(s, p[4:], strict=True)]
    middle = 2 * min(s[0], s[1], (w[1] * s[0] + w[0] * s[1]) / (2 * (w[0] + w[1])))
    d = [ends[0], middle, ends[1]]

    def inside(i: int, u: Any) -> Any:
        a = (d[i] + d[i + 1] - 2 * s[i]) / w[i] ** 2
        b = (3 * s[i] - 2 * d[i] - d[i + 1]) / w[i]
        return y[i] + (u - x[i]) * (d[i] + (u - x[i]) * (b + (u - x[i]) * a))

    return x, inside


def linear_rational_spline(p: list[Any]) -> Any:
    """As the paper writes it, with the heights themselves."""
    x, y = knots(p[:2]), knots(p[2:4])
    slope = FLOOR + mpmath.log(1 + mpmath.exp(p[4]) * mpmath.expm1(1 - FLOOR))
    d = [mpf(1), slope, mpf(1)]

    def inside(i: int, u: Any) -> Any:
        share = mpf(0.025) + (1 - 2 * mpf(0.025)) / (1 + mpmath.exp(-p[5 + i]))
        w, b = x[i + 1] - x[i], mpmath.sqrt(d[i] / d[i + 1])
        c = (share * d[i] + (1 - share) * b * d[i + 1]) * w / (y[i + 1] - y[i])
        m = ((1 - share) * y[i] + share * b * y[i + 1]) / (1 - share + share * b)
        t = (u - x[i]) / w
        if t <= share:
            return (y[i] * (share - t) + c * m * t) / (share - t + c * t)
        return (c * m * (1 - t) + b * y[i + 1] * (t - share)) / (c * (1 - t) + b * (t - share))

    return x, inside


def quantile(log_share: Any) -> Any:
    """The t with log Phi(-t) = log_share, by bisection and Newton's steps on mpmath's erfc."""
    t = mpmath.sqrt(max(mpf(0), -2 * (log_share + mpmath.log(2)))) * mpf(0.9)
    for _ in range(8):
        tail = mpmath.erfc(t / mpmath.sqrt(2)) / 2
        t += (mpmath.log(tail) - log_share) * tail / mpmath.npdf(t)
    return t


def tail(x: Any, p: list[Any]) -> Any:
    u = (x - p[0]) * mpmath.exp(-p[1]) / mpmath.sqrt(mpmath.pi / 2)
    raw = p[2] if u < 0 else p[3]
    h = mpf(1e-3) + mpmath.log(1 + mpmath.exp(raw) * mpmath.expm1(1 - mpf(0.901)))
    return mpmath.sign(u) * quantile(-mpmath.log(1 + h * abs(u)) / h - mpmath.log(2))


def logistics(x: Any, p: list[Any]) -> Any:
    return mixture_in_mpmath(x, np.array(p, dtype=object))[0]


def dense(x: Any, p: list[Any]) -> Any:
    """Of layers of 2 and 3 units."""
    values, at = [x], 0

    def take(rows: int, columns: int, diagonal: int = 0) -> list[list[Any]]:
        """Weights whose columns have the sum 1."""
        nonlocal at
        at += rows * columns
        given = p[at - rows * columns : at]
        w = [
            [mpmath.exp(given[i * columns + j] + diagonal * (i == j)) for j in range(columns)]
            for i in range(rows)
        ]
        return [[v / sum(row[j] for row in w) for j, v in enumerate(line)] for line in w]

    for i, (width, above) in enumerate(((2, 2), (3, 1))):
        u = take(len(values), width) if i else [[mpf(1)] * width]
        w = take(width, above, 1 - i)
        raw, shifts = p[at : at + width], p[at + width : at + 2 * width]
        at += 2 * width
        c = [
            mpmath.exp(5 * mpmath.tanh(raw[j] / 5))
            * (
                sum(u[k][j] * v for k, v in enumerate(values))
                - shifts[j]
                - mpf(2 * j + 1) / width
                + 1
            )
            for j in range(width)
        ]
        values = [
            mpmath.log(
                sum(w[j][k] / (1 + mpmath.exp(-c[j])) for j in range(width))
                / sum(w[j][k] / (1 + mpmath.exp(c[j])) for j in range(width))
            )
            for k in range(above)
        ]
    return values[0]


def gaussianized(x: Any, p: list[Any]) -> Any:
    logit = logistics(x, p)
    return mpmath.sign(logit) * quantile(-mpmath.log(1 + mpmath.exp(abs(logit))))


def normals(x: Any, p: list[Any]) -> Any:
    """Of two normals, from the smaller tail."""
    c = [
        mpmath.exp(5 * mpmath.tanh(p[2 + j] / 5)) * x + p[j] + (1 - 2 * j) / mpf(2) for j in (0, 1)
    ]
    below, above = (sum(mpmath.erfc(s * v / mpmath.sqrt(2)) for v in c) / 4 for s in (-1, 1))
    return quantile(mpmath.log(above)) if above < below else -quantile(mpmath.log(below))


BOX = {"num_bins": 2, "low": -2.0, "high": 3.0}
FAMILIES = {
    "LinearSplineMap": Family(arch("LinearSplineMap", **BOX), pieces(linear_spline), 5.0),
    "QuadraticSplineMap": Family(
        arch("QuadraticSplineMap", **BOX | {"num_bins": 3}), pieces(quadratic_spline), 5.0
    ),
    "CubicSplineMap": Family(arch("CubicSplineMap", **BOX), pieces(cubic_spline), 2.0, 1.0),
    "LinearRationalSplineMap": Family(
        arch("LinearRationalSplineMap", **BOX), pieces(linear_rational_spline), 5.0
    ),
    "CubicMap": Family(arch("CubicMap"), cubic),
    "CubicRationalMap": Family(arch("CubicRationalMap"), cubic_rational, 12.0),
    "SinhMap": Family(arch("SinhMap"), sinh),
    "LogisticMixtureMap": Family(
        arch("LogisticMixtureMap", num_components=2), logistics, 4.0, count=1
    ),
    "DenseSigmoidMap": Family(
        arch("DenseSigmoidMap", hidden_dims=[2, 3]), dense, 4.0, count=1, digits=80
    ),
    "Gaussianization": Family(
        arch("LogisticMixtureMap", num_components=2, output="normal"), gaussianized, 4.0, count=2
    ),
    "NormalMixtureMap": Family(arch("NormalMixtureMap", num_components=2), normals, 4.0, count=1),
    "TailMap": Family(arch("TailMap"), tail, 3.0, 1.0, 2),
    "BernsteinMap": Family(
        arch("BernsteinMap", degree=4, low=-3.0, high=2.0), extended(bernstein, -3, 2), 9.0
    ),
    "SumOfSquaresMap": Family(
        arch("SumOfSquaresMap", degree=2, bound=3.0), extended(squares, -3, 3), 2.0, 1.0
    ),
    "SumOfSquaresMap-polynomial": Family(
        arch("SumOfSquaresMap", degree=2, bound=3.0, outside="polynomial"), squares, 2.0, 1.0
    ),
    "IntegratedNetworkMap": Family(
        arch("IntegratedNetworkMap", hidden_dims=[2, 3], bound=3.0, num_intervals=2),
        integral,
        4.0,
        1.0,
        4,
    ),
    "MonotoneNetworkMap": Family(arch("MonotoneNetworkMap", hidden_dims=[3, 2]), network, 4.0),
}
"""Every family with one choice of its options."""


def points(name: str, farthest: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Points from 0 to 1e6, each with parameters at corners of their box and inside it."""
    family = FAMILIES[name]
    count = torch_flows.build(family.architecture).num_parameters
    generator = np.random.default_rng(0)
    rows = [family.corner * generator.choice([-1.0, 1.0], count) for _ in range(family.count)]
    rows += [family.size * generator.standard_normal(count) for _ in range(family.count)]
    x = np.concatenate([[0.0, 0.3, 1.0, 2.6], 10.0 ** np.arange(1, farthest + 1)])
    x = np.concatenate([x, -x[1:]])
    return np.tile(x, (len(rows), 1)), np.repeat(np.reshape(rows, (-1, 1, count)), len(x), 1)


# the search for a root in a mixture against 50 digits takes its time
ROWS = [
    pytest.param(name, marks=pytest.mark.slow if name == "Gaussianization" else ())
    for name in FAMILIES
]
SLOW = ("DenseSigmoidMap", "Gaussianization", "LogisticMixtureMap", "NormalMixtureMap")
COMPILED = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILIES]
"""What JAX takes its time with is slow too."""


@pytest.mark.parametrize("name", ROWS)
def test_values_and_slopes_against_mpmath(name: str) -> None:
    """Slopes to 1e-14 of max(1, |log-slope|) in both halves, z to 1e-14 of what it is a sum of."""
    x, parameters = points(name)
    family = FAMILIES[name]
    results = [
        on(h, h.build(family.architecture), "forward", x, parameters) for h in HALVES.values()
    ]
    with mpmath.workdps(family.digits):
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
@pytest.mark.parametrize("name", ROWS)
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


@pytest.mark.parametrize("half", HALVES)
def test_far_out_the_flattest_normal_is_left(half: str) -> None:
    """Without a bound that may be where the squares of the others overflow."""
    map = HALVES[half].NormalMixtureMap(2, bound=None)
    for dtype, rtol in (("float64", 1e-12), ("float32", 3e-4)):
        x = np.array([1e26, -1e30, 1e38], dtype)
        parameters = np.full((3, 4), (0, 0, -46, 1), dtype)
        z, log_slope = on(HALVES[half], map, "forward", x, parameters)
        np.testing.assert_allclose(z, np.exp(-46) * x.astype(float) + 0.5, rtol=rtol)
        np.testing.assert_allclose(log_slope, -46, rtol=1e-6)
        back, log_back = on(HALVES[half], map, "inverse", z, parameters)
        np.testing.assert_allclose(back, x, rtol=rtol)
        np.testing.assert_allclose(log_back, 46, rtol=1e-6)


@pytest.mark.parametrize("half", HALVES)
def test_an_integral_returns_from_a_large_shift(half: str) -> None:
    map = HALVES[half].IntegratedNetworkMap((1,), num_intervals=1)
    x = np.array([1e18, -1e22])
    parameters = np.full((2, map.num_parameters), (*[0.0] * (map.num_parameters - 1), 1e20))
    z, _ = on(HALVES[half], map, "forward", x, parameters)
    back, log_slope = on(HALVES[half], map, "inverse", z, parameters)
    np.testing.assert_allclose(back, x, rtol=1e-12)
    assert (log_slope == 0).all()


@pytest.mark.parametrize("half", HALVES)
def test_a_polynomial_returns_from_where_it_is_steep(half: str) -> None:
    """Its values are far beyond 1e30, where maps with tangents are continued along them."""
    map = HALVES[half].SumOfSquaresMap(2, outside="polynomial")
    x = np.array([[1e8, -1e12, 1e20]])
    parameters = np.full((1, 3, map.num_parameters), 0.3)
    z, log_slope = on(HALVES[half], map, "forward", x, parameters)
    assert np.abs(z).min() > 1e35
    back, log_back = on(HALVES[half], map, "inverse", z, parameters)
    np.testing.assert_allclose(back, x, rtol=1e-13)
    np.testing.assert_allclose(log_back, -log_slope, rtol=1e-13)


@pytest.mark.parametrize("name", COMPILED)
def test_gradients_of_families_far_out(name: str) -> None:
    """Finite in float32 to 1e4, in both directions and both halves, at every corner."""
    x, parameters = (a.astype(np.float32) for a in points(name, 4))
    map, twin = (h.build(FAMILIES[name].architecture) for h in HALVES.values())
    for step in ("forward", "inverse"):
        inputs = [torch.from_numpy(a).requires_grad_() for a in (x, parameters)]
        if name == "TailMap" and step == "inverse":  # beyond them x leaves float32
            inputs = [
                torch.from_numpy(a[:, x[0] ** 2 < 4]).requires_grad_() for a in (x, parameters)
            ]
            x, parameters = (a.detach().numpy() for a in inputs)
        outputs = getattr(map, step)(*inputs)

        def total(x: Any, p: Any, step: str = step) -> Any:
            z, log_slope = getattr(twin, step)(x, p)
            return z.sum() + log_slope.sum()

        ours = torch.autograd.grad(outputs[0].sum() + outputs[1].sum(), inputs)
        for result in (*outputs, *ours, *jax.grad(total, (0, 1))(jnp.asarray(x), parameters)):
            assert np.isfinite(
                np.asarray(result.detach() if hasattr(result, "detach") else result)
            ).all()


@pytest.mark.parametrize("name", ROWS)
def test_densities_integrate_to_one(name: str) -> None:
    """The density of a standard normal z after training, by the trapezoidal rule in x, which a jump
    misleads."""
    map = torch_flows.build(FAMILIES[name].architecture)
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(map.num_parameters, generator=generator).double().requires_grad_()
    data, steps, losses = torch.linspace(-2, 3, 40).double(), torch.optim.Adam([raw], 0.05), []
    for _ in range(10):
        steps.zero_grad()
        z, log_slope = map.forward(data, raw.expand(len(data), -1))
        losses.append((z.square() / 2 - log_slope).mean())
        losses[-1].backward()
        steps.step()
    assert losses[-1] < losses[0]
    parameters = raw.detach()
    ends = torch.tensor([-9.0, 9.0]).double()
    low, high = map.inverse(ends, parameters.expand(2, -1))[0]
    x = torch.linspace(low, high, 200_001, dtype=torch.float64)
    z, log_slope = map.forward(x, parameters.expand(len(x), -1))
    density = (log_slope - z.square() / 2).exp() / np.sqrt(2 * np.pi)
    jump = density.diff().abs().max() * (x[1] - x[0])
    assert abs(torch.trapezoid(density, x) - 1) < 1e-9 + 4 * jump


@pytest.mark.parametrize("half", HALVES)
def test_a_cubic_spline_flat_at_its_ends(half: str) -> None:
    """Where float32's sigmoid is 0 its density is small there, not NaN in its gradient."""
    map = HALVES[half].CubicSplineMap(2, -1.0, 1.0)
    x = np.array([-1.0, -0.9, 1.0], np.float32)
    parameters = np.tile(np.array([0, 0, 0, 0, -1e3, -1e3], np.float32), (3, 1))
    if half == "torch":
        x, parameters = (torch.from_numpy(a).requires_grad_() for a in (x, parameters))
        total = sum(value.sum() for value in map.forward(x, parameters))
        found = torch.autograd.grad(total, (x, parameters))
    else:
        total = jax.grad(lambda *given: sum(v.sum() for v in map.forward(*given)), (0, 1))
        found = jax.jit(total)(x, parameters)
    assert all(np.isfinite(np.asarray(gradient)).all() for gradient in found)


def test_splines_of_nflows() -> None:
    """Of the same raw numbers, where the two start elsewhere after a shift."""
    splines = pytest.importorskip("nflows.transforms.splines")
    torch.manual_seed(0)
    x = torch.linspace(-1.9, 1.9, 40).double()
    widths, heights, ends = (torch.randn(40, n).double() for n in (4, 4, 2))
    box = {"num_bins": 4, "low": -2.0, "high": 2.0}
    linear = splines.unconstrained_linear_spline(x, heights, tail_bound=2.0)
    quadratic = splines.unconstrained_quadratic_spline(x, widths, heights[:, :3], tail_bound=2.0)
    cubic = splines.unconstrained_cubic_spline(
        x, widths, heights, ends[:, :1], ends[:, 1:], tail_bound=2.0
    )
    ours = [
        (torch_flows.LinearSplineMap(**box, min_height=0.0), [heights], linear),
        (
            torch_flows.QuadraticSplineMap(**box, edge_share=0.25),
            [widths, heights[:, :3]],
            quadratic,
        ),
        (torch_flows.CubicSplineMap(**box), [widths, heights, ends + np.log(2)], cubic),
    ]
    for map, parameters, theirs in ours:
        for own, other in zip(map.forward(x, torch.cat(parameters, -1)), theirs, strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


def test_the_spline_of_pyro() -> None:
    """Its inner slopes have no offset, and those at the ends are 1 - 1e-3."""
    spline = pytest.importorskip("pyro.distributions.transforms.spline")
    torch.manual_seed(0)
    x = torch.linspace(-2.9, 2.9, 40).double()
    widths, heights, slopes, shares = (torch.randn(40, n).double() for n in (4, 4, 3, 4))
    given = widths.softmax(-1), heights.softmax(-1), torch.nn.functional.softplus(slopes)
    theirs = spline._monotonic_rational_spline(x, *given, shares.sigmoid(), bound=3.0)
    offset = np.log(np.expm1(1 - 1e-3))
    parameters = torch.cat([widths, heights, slopes - offset, shares], -1)
    ours = torch_flows.LinearRationalSplineMap(4, -3.0, 3.0, edge_slope=0.999).forward(
        x, parameters
    )
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("half", HALVES)
def test_tails_of_the_normal(half: str, dtype: str) -> None:
    """Mills' ratio and the quantile of a tail, from its middle to 1e5 deviations."""
    tails = import_module(f"{half}_flows.univariate.tails")
    array = torch.from_numpy if half == "torch" else jnp.asarray
    t = np.concatenate([np.linspace(0, 8, 33), [4.501, 20.0, 100.0, 1e3, 1e5]]).astype(dtype)
    noise = 45 * np.finfo(dtype).eps  # 1e-14
    own = np.asarray(tails.log_tail(array(t)))
    mills = np.asarray(tails.log_mills(array(t)))
    back = np.asarray(tails.tail_quantile(array(own)))
    with mpmath.workdps(40):
        for value, log_share, log_ratio, again in zip(t, own, mills, back, strict=True):
            share = mpmath.erfc(mpf(float(value)) / mpmath.sqrt(2)) / 2
            exact = mpmath.log(share)
            assert abs(mpf(float(log_share)) / exact - 1) < noise
            ratio = mpmath.log(share / mpmath.npdf(mpf(float(value))))
            assert abs(mpf(float(log_ratio)) - ratio) < noise
            assert abs(again - value) < noise * (1 + value)


def test_degrees_of_freedom_are_learned() -> None:
    """Of the quantiles of Student t distributions, for each dimension its own."""
    share = (np.arange(1000) + 0.5) / 1000
    data = torch.from_numpy(np.stack([stats.t.ppf(share, df) for df in (1.5, 12.0)], -1))
    base = torch_flows.StudentT(2, 5.0, learned=True).double()
    steps = torch.optim.LBFGS(base.parameters(), max_iter=20, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        steps.zero_grad()
        value = -base.log_prob(data).mean()
        value.backward()
        return value

    steps.step(loss)
    found = 5 * (7 * (base.raw_df.detach() / 7).tanh()).exp()
    np.testing.assert_allclose(found, [1.5, 12.0], rtol=0.03)


@pytest.mark.slow
def test_heavy_tails_are_learned_to_their_index() -> None:
    """Of the quantiles of Pareto tails with the indices 0.3 on the left and 0.8 on the right."""
    share = (torch.arange(4000).double() + 0.5) / 4000
    data = torch.cat([-((1 - share) ** -0.3 - 1) / 0.3, ((1 - share) ** -0.8 - 1) / 0.8])
    map = torch_flows.TailMap()
    raw = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    steps = torch.optim.LBFGS([raw], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        steps.zero_grad()
        z, log_slope = map.forward(data, raw.expand(len(data), -1))
        value = (z.square() / 2 - log_slope).mean()
        value.backward()
        return value

    steps.step(loss)
    index = 1e-3 + torch.nn.functional.softplus(raw[2:].detach() + np.log(np.expm1(0.099)))
    torch.testing.assert_close(index, torch.tensor([0.3, 0.8]).double(), rtol=0, atol=0.02)
