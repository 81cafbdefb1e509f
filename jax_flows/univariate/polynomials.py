"""Polynomials of one variable that increase, and go on as lines outside an interval."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

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
from jax_flows.numerics import at_least_float32, softplus
from jax_flows.registry import register
from jax_flows.univariate.base import Output, UnivariateMap
from jax_flows.univariate.roots import FARTHEST, bracket, invert


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

    def forward(self, x: Array, parameters: Array) -> Output:
        return _forward(self._evaluate, x, self._constrained(parameters), self.low, self.high)

    def inverse(self, z: Array, parameters: Array) -> Output:
        return _inverse(self._evaluate, z, self._constrained(parameters), self.low, self.high)

    def _constrained(self, parameters: Array) -> tuple[Array, Array]:
        """The slopes, ``(degree, *batch)``, and the coefficients, one more."""
        rows = jnp.moveaxis(at_least_float32(parameters), -1, 0)
        slopes = self.min_slope + softplus(rows[1:] + slope_offset(self.min_slope))
        first = rows[:1] + self.low
        rise = (self.high - self.low) / self.degree * slopes.cumsum(0)
        return slopes, jnp.concatenate([first, first + rise])

    def _evaluate(self, x: Array, slopes: Array, coefficients: Array) -> Output:
        width = self.high - self.low
        y, rest = (x - self.low) / width, (self.high - x) / width
        left, right = [jnp.ones_like(y)], [jnp.ones_like(y)]
        for _ in range(self.degree):
            left.append(left[-1] * y)
            right.append(right[-1] * rest)

        def weigh(values: Array, degree: int) -> Array:
            terms = [
                values[i] * (math.comb(degree, i) * left[i] * right[degree - i])
                for i in range(degree + 1)
            ]
            return jnp.stack(terms).sum(0)

        return weigh(coefficients, self.degree), jnp.log(weigh(slopes, self.degree - 1))


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

    def forward(self, x: Array, parameters: Array) -> Output:
        given = self._constrained(parameters)
        if self.outside == "polynomial":
            z, log_slope = self._evaluate(at_least_float32(x), *given)
            return z.astype(x.dtype), log_slope.astype(x.dtype)
        return _forward(self._evaluate, x, given, -self.bound, self.bound)

    def inverse(self, z: Array, parameters: Array) -> Output:
        given = self._constrained(parameters)
        if self.outside == "polynomial":
            wide = at_least_float32(z)
            ends = bracket(self._evaluate, wide, given, self.bound)
            x, log_slope = invert(self._evaluate, wide, given, *ends)
            return x.astype(z.dtype), log_slope.astype(z.dtype)
        return _inverse(self._evaluate, z, given, -self.bound, self.bound)

    def _constrained(self, parameters: Array) -> tuple[Array, Array]:
        """t, and the coefficients, ``(degree + 1, num_squares, *batch)``."""
        rows = jnp.moveaxis(at_least_float32(parameters), -1, 0)
        added = rows[1:].reshape(self.num_squares, self.degree + 1, *rows.shape[1:]).swapaxes(0, 1)
        starts = square_starts(self.degree, self.num_squares, self.min_slope)
        start = jnp.asarray(starts, rows.dtype)
        return rows[0], added + start.reshape(*start.shape, *[1] * (rows.ndim - 1))

    def _evaluate(self, x: Array, shift: Array, coefficients: Array) -> Output:
        share = x / self.bound
        terms = [
            weight * self._slope(share * node, coefficients)
            for node, weight in GAUSS_LEGENDRE[self.degree + 1]
        ]
        return shift + x * jnp.stack(terms).sum(0), jnp.log(self._slope(share, coefficients))

    def _slope(self, share: Array, coefficients: Array) -> Array:
        values = coefficients[-1]
        for j in reversed(range(self.degree)):
            values = coefficients[j] + share * values
        return jnp.square(values).sum(0) + self.min_slope


def _forward(
    evaluate: Callable[..., Output], x: Array, given: Sequence[Array], low: float, high: float
) -> Output:
    z, log_slope = _extended(evaluate, low, high)(at_least_float32(x), *given)
    return z.astype(x.dtype), log_slope.astype(x.dtype)


def _inverse(
    evaluate: Callable[..., Output], z: Array, given: Sequence[Array], low: float, high: float
) -> Output:
    wide = at_least_float32(z)
    near = jnp.clip(wide, -FARTHEST, FARTHEST)
    least, log_first = evaluate(jnp.full_like(wide, low), *given)
    largest, log_last = evaluate(jnp.full_like(wide, high), *given)
    below, above = near < least, near > largest
    first = low + (near - least) * jnp.exp(-log_first)
    last = high + (near - largest) * jnp.exp(-log_last)
    start = jnp.where(below, first, jnp.where(above, high, low))
    end = jnp.where(above, last, jnp.where(below, low, high))
    x, log_slope = invert(_extended(evaluate, low, high), near, given, start, end)
    x = x + (wide - near) * jnp.exp(log_slope)
    return x.astype(z.dtype), log_slope.astype(z.dtype)


def _extended(evaluate: Callable[..., Output], low: float, high: float) -> Callable[..., Output]:
    """A map of [low, high], and its tangents outside."""

    def extended(x: Array, *given: Array) -> Output:
        inner = jnp.where(x < low, low, jnp.where(x > high, high, x))
        z, log_slope = evaluate(inner, *given)
        return z + (x - inner) * jnp.exp(log_slope), log_slope

    return extended
