"""Polynomials of one variable that increase, and go on as lines outside an interval."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_bridge import checks
from flow_bridge.univariate import (
    GAUSS_LEGENDRE,
    MAX_DEGREE,
    OUTSIDE,
    check_box,
    check_polynomial,
    check_squares,
    slope_offset,
    square_starts,
)
from torch_flows.numerics import at_least_float32, softplus
from torch_flows.registry import register
from torch_flows.univariate.base import Output, UnivariateMap
from torch_flows.univariate.roots import FARTHEST, bracket, invert


@register
@dataclass(frozen=True)
class BernsteinMap(UnivariateMap):
    """A polynomial of degree n in Bernstein form on [low, high], and its tangents outside.

    With y = (x - low) / (high - low) and B_i the Bernstein polynomials of degree n - 1,

        dz/dx = sum_i s_i B_i(y),

    a weighted mean of positive slopes s_i, of which the first and the last go on outside: onto the
    reals and once continuously differentiable. z itself is the sum of the n + 1 Bernstein polynomials
    of degree n by coefficients that rise by s_i (high - low) / n. The inverse is searched, and has the
    gradients of the exact solution.

    The n + 1 parameters are the shift of the lowest coefficient, then the raw slopes r for
    s_i = softplus(r + c) + min_slope, where c makes a raw 0 the slope 1. Zeros are the identity.

    Args:
        degree: n, from 1 to 60.
        low, high: the interval.
        min_slope: the least slope, from 1e-6 to below 1.

    Raises:
        ValueError: for numbers out of range.

    Reference: Sick et al. (2020), arXiv:2004.00464; Ramasinghe et al. (2021), arXiv:2102.03509.
    """

    degree: int = 8
    low: float = -5.0
    high: float = 5.0
    min_slope: float = 1e-3

    def __post_init__(self) -> None:
        check_polynomial("BernsteinMap", self.degree, 60, self.min_slope)
        check_box("BernsteinMap", self.low, self.high)

    @property
    def num_parameters(self) -> int:
        return self.degree + 1

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        return _forward(self._evaluate, x, self._constrained(parameters), self.low, self.high)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        return _inverse(self._evaluate, z, self._constrained(parameters), self.low, self.high)

    def _constrained(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The slopes, ``(degree, *batch)``, and the coefficients, one more."""
        rows = at_least_float32(parameters).movedim(-1, 0)
        slopes = self.min_slope + softplus(rows[1:] + slope_offset(self.min_slope))
        first = rows[:1] + self.low
        rise = (self.high - self.low) / self.degree * slopes.cumsum(0)
        return slopes, torch.cat([first, first + rise])

    def _evaluate(self, x: Tensor, slopes: Tensor, coefficients: Tensor) -> Output:
        width = self.high - self.low
        y, rest = (x - self.low) / width, (self.high - x) / width
        left, right = [torch.ones_like(y)], [torch.ones_like(y)]
        for _ in range(self.degree):
            left.append(left[-1] * y)
            right.append(right[-1] * rest)

        def weigh(values: Tensor, degree: int) -> Tensor:
            terms = [
                values[i] * (math.comb(degree, i) * left[i] * right[degree - i])
                for i in range(degree + 1)
            ]
            return torch.stack(terms).sum(0)

        return weigh(coefficients, self.degree), weigh(slopes, self.degree - 1).log()


@register
@dataclass(frozen=True)
class SumOfSquaresMap(UnivariateMap):
    """The integral of a sum of squares of polynomials on [-bound, bound], and its tangents outside:

        z = t + integral from 0 to x of sum_k p_k(u / bound)^2 + min_slope du.

    Onto the reals and once continuously differentiable. The integral is that of the Gauss-Legendre rule
    with degree + 1 nodes, which is exact here, and a sum of positive terms. The inverse is searched,
    and has the gradients of the exact solution.

    Parameters: t, then the degree + 1 coefficients of each p_k, in rising powers, that are added to
    those of the start: p_0 = sqrt(1 - min_slope), and p_k(y) = 0.1 y^k for the others, which could not
    move from 0. One square starts as the identity, several within 1e-2 of it for |x| < bound / 2.

    Args:
        degree: of each p_k, from 1 to 15; z has twice as many and one.
        num_squares: how many p_k, up to degree + 1; two make every positive polynomial.
        bound: half the width of the interval.
        min_slope: the least slope, from 1e-6 to below 1.
        outside: ``"tangent"``, or ``"polynomial"`` for the integral on all reals, which is infinitely
            often differentiable and grows as x^(2 degree + 1).

    Raises:
        ValueError: for numbers out of range.

    Reference: Jaini et al. (2019), arXiv:1905.02325.
    """

    degree: int = 3
    num_squares: int = 2
    bound: float = 5.0
    min_slope: float = 1e-3
    outside: str = "tangent"

    def __post_init__(self) -> None:
        check_polynomial("SumOfSquaresMap", self.degree, MAX_DEGREE, self.min_slope)
        check_squares("SumOfSquaresMap", self.num_squares, self.degree)
        check_box("SumOfSquaresMap", -self.bound, self.bound)
        checks.one_of("SumOfSquaresMap", "outside", self.outside, OUTSIDE)

    @property
    def num_parameters(self) -> int:
        return 1 + self.num_squares * (self.degree + 1)

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        given = self._constrained(parameters)
        if self.outside == "polynomial":
            z, log_slope = self._evaluate(at_least_float32(x), *given)
            return z.to(x.dtype), log_slope.to(x.dtype)
        return _forward(self._evaluate, x, given, -self.bound, self.bound)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        given = self._constrained(parameters)
        if self.outside == "polynomial":
            wide = at_least_float32(z)
            ends = bracket(self._evaluate, wide, given, self.bound)
            x, log_slope = invert(self._evaluate, wide, given, *ends)
            return x.to(z.dtype), log_slope.to(z.dtype)
        return _inverse(self._evaluate, z, given, -self.bound, self.bound)

    def _constrained(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """t, and the coefficients, ``(degree + 1, num_squares, *batch)``."""
        rows = at_least_float32(parameters).movedim(-1, 0)
        added = rows[1:].unflatten(0, (self.num_squares, self.degree + 1)).transpose(0, 1)
        starts = square_starts(self.degree, self.num_squares, self.min_slope)
        start = torch.as_tensor(starts, dtype=rows.dtype, device=rows.device)
        return rows[0], added + start.view(*start.shape, *[1] * (rows.ndim - 1))

    def _evaluate(self, x: Tensor, shift: Tensor, coefficients: Tensor) -> Output:
        share = x / self.bound
        terms = [
            weight * self._slope(share * node, coefficients)
            for node, weight in GAUSS_LEGENDRE[self.degree + 1]
        ]
        return shift + x * torch.stack(terms).sum(0), self._slope(share, coefficients).log()

    def _slope(self, share: Tensor, coefficients: Tensor) -> Tensor:
        values = coefficients[-1]
        for j in reversed(range(self.degree)):
            values = coefficients[j] + share * values
        return values.square().sum(0) + self.min_slope


def _forward(
    evaluate: Callable[..., Output], x: Tensor, given: Sequence[Tensor], low: float, high: float
) -> Output:
    z, log_slope = _extended(evaluate, low, high)(at_least_float32(x), *given)
    return z.to(x.dtype), log_slope.to(x.dtype)


def _inverse(
    evaluate: Callable[..., Output], z: Tensor, given: Sequence[Tensor], low: float, high: float
) -> Output:
    wide = at_least_float32(z)
    near = wide.clamp(-FARTHEST, FARTHEST)
    least, log_first = evaluate(torch.full_like(wide, low), *given)
    largest, log_last = evaluate(torch.full_like(wide, high), *given)
    below, above = near < least, near > largest
    first = low + (near - least) * (-log_first).exp()
    last = high + (near - largest) * (-log_last).exp()
    start = torch.where(below, first, torch.where(above, high, low))
    end = torch.where(above, last, torch.where(below, low, high))
    x, log_slope = invert(_extended(evaluate, low, high), near, given, start, end)
    x = x + (wide - near) * log_slope.exp()
    return x.to(z.dtype), log_slope.to(z.dtype)


def _extended(evaluate: Callable[..., Output], low: float, high: float) -> Callable[..., Output]:
    """A map of [low, high], and its tangents outside."""

    def extended(x: Tensor, *given: Tensor) -> Output:
        inner = torch.where(x < low, low, torch.where(x > high, high, x))
        z, log_slope = evaluate(inner, *given)
        return z + (x - inner) * log_slope.exp(), log_slope

    return extended
