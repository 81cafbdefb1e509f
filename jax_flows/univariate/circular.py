"""Maps of angles: low and high of an interval are one point of a circle."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from flow_bridge.domains import ClosedInterval, Interval
from jax_flows.numerics import at_least_float32, check_constants, tanh
from jax_flows.registry import register
from jax_flows.univariate.base import Output, UnivariateMap
from jax_flows.univariate.roots import invert

START = 0.1
"""How far from 0 the components of a ``MoebiusMap`` start, each in a direction of its own."""


@register
@dataclass(frozen=True)
class MoebiusMap(UnivariateMap):
    """A convex combination of Moebius transformations of the circle, and a rotation after it.

    With the angle t = 2 pi (x - low) / (high - low), a component moves t by

        h_j(t) = 2 atan(s_j / u_j), s_j = a_j sin t - b_j cos t, u_j = q_j - a_j cos t - b_j sin t,

    q_j = sqrt(1 + a_j^2 + b_j^2) (in the literature's terms omega_j = (a_j + i b_j) / q_j), so that
    its slope is 1 / (s_j^2 + u_j^2). Angles go to t + sum_j w_j (h_j(t) - h_j(0)): infinitely often
    differentiable, also at the point low = high, and of the slope sum_j w_j / (s_j^2 + u_j^2). The
    inverse is searched and has the gradients of the exact solution.

    The 3 ``num_components`` + 1 parameters are the logits of w, raw numbers r for
    a_j = bound tanh(r / bound), as many for b_j, and the rotation, in units of x. Zeros are the
    identity for one component, and within 0.01 of it for several, which start at a distance of 0.1
    from 0 each in another direction: equal components would have equal gradients, and stay equal.
    A network sees an angle's cosine and sine.

    Args:
        num_components: number of Moebius transformations.
        low, high: the interval.
        bound: of |a_j| and |b_j|, between 0 and 100; the largest slope is about 8 bound^2.

    Raises:
        ValueError: for numbers out of range.

    Reference: Rezende et al. (2020), arXiv:2002.02428.

    Examples:
        >>> import jax, jax_flows
        >>> map = jax_flows.MoebiusMap(num_components=2)
        >>> ends = jax.numpy.array([map.low, map.high])
        >>> z, log_slope = map.forward(ends, jax.numpy.ones((2, map.num_parameters)))
        >>> bool(jax.numpy.allclose(z[0], z[1], atol=1e-5))
        True
    """

    num_components: int = 4
    low: float = -math.pi
    high: float = math.pi
    bound: float = 10.0

    def __post_init__(self) -> None:
        checks.positive_int("MoebiusMap", num_components=self.num_components)
        checks.interval("MoebiusMap", low=self.low, high=self.high)
        checks.open_interval("MoebiusMap", "bound", self.bound, 0, 100)

    @property
    def num_parameters(self) -> int:
        return 3 * self.num_components + 1

    @property
    def domain(self) -> Interval:  # type: ignore[override]
        return ClosedInterval(self.low, self.high)

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        return self.domain

    @property
    def num_features(self) -> int:  # type: ignore[override]
        return 2

    def features(self, x: Array, axis: int) -> Array:
        return circle_features(x, self.low, self.high, axis)

    def forward(self, x: Array, parameters: Array) -> Output:
        wide, outside, rotation, given = self._prepared(x, parameters)
        turned, log_slope = _evaluate((wide - self.low) * self._per_unit, *given)
        z = wrapped(self.low + turned / self._per_unit + rotation, self.low, self.high)
        return _or_nan(z, log_slope, outside, x)

    def inverse(self, z: Array, parameters: Array) -> Output:
        wide, outside, rotation, given = self._prepared(z, parameters)
        turned = wrapped(wide - rotation, self.low, self.high)
        zero = jnp.zeros_like(turned)
        goal = (turned - self.low) * self._per_unit
        t, log_slope = invert(_evaluate, goal, given, zero, zero + 2 * math.pi)
        x = wrapped(self.low + t / self._per_unit, self.low, self.high)
        return _or_nan(x, log_slope, outside, z)

    @property
    def _per_unit(self) -> float:
        return 2 * math.pi / (self.high - self.low)

    def _prepared(
        self, x: Array, parameters: Array
    ) -> tuple[Array, Array, Array, tuple[Array, ...]]:
        """x inside the interval, what is not, the rotation; log w, a and b, ``(components, *batch)``."""
        low, high, count = self.low, self.high, self.num_components
        check_constants(self, x, low=low, high=high, width=high - low)
        outside = (x < low) | (x > high)
        inner = jnp.where(outside, (low + high) / 2, at_least_float32(x))
        rows = jnp.moveaxis(at_least_float32(parameters), -1, 0)
        logits, raw_a, raw_b = rows[:-1].reshape(3, count, *rows.shape[1:])
        index = jnp.arange(count, dtype=rows.dtype)
        angle = (2 * math.pi / count * index).reshape(-1, *[1] * (rows.ndim - 1))
        start = START if count > 1 else 0.0
        a = self.bound * tanh(raw_a / self.bound) + start * jnp.cos(angle)
        b = self.bound * tanh(raw_b / self.bound) + start * jnp.sin(angle)
        return inner, outside, rows[-1], (jax.nn.log_softmax(logits, 0), a, b)


def _evaluate(t: Array, log_w: Array, a: Array, b: Array) -> Output:
    """The angle that t becomes, and the log of the slope."""
    cos, sin = jnp.cos(t), jnp.sin(t)
    s, u = _turn(a, b, a * cos + b * sin, a * sin - b * cos)
    s0, u0 = _turn(a, b, a, -b)
    moved = jnp.arctan2(s, u) - jnp.arctan2(s0, u0)
    log_slope = jax.nn.logsumexp(log_w - jnp.log(s * s + u * u), 0)
    return t + 2 * (jnp.exp(log_w) * moved).sum(0), log_slope


def _turn(a: Array, b: Array, c: Array, s: Array) -> tuple[Array, Array]:
    """s, and u = q - c in a sum of positive terms: c^2 + s^2 = a^2 + b^2 = q^2 - 1."""
    q = jnp.sqrt(1 + a * a + b * b)
    return s, jnp.where(c > 0, (1 + s * s) / (q + jnp.abs(c)), q - c)


def _or_nan(y: Array, log_slope: Array, outside: Array, like: Array) -> Output:
    """Both in the dtype of x, NaN outside the interval."""
    y, log_slope = (jnp.where(outside, math.nan, value) for value in (y, log_slope))
    return y.astype(like.dtype), log_slope.astype(like.dtype)


def wrapped(x: Array, low: float, high: float) -> Array:
    """x modulo the circle, in [low, high)."""
    inside = jnp.mod(x - low, high - low) + low
    inside = jnp.where(inside >= high, inside - (high - low), inside)
    return jnp.where((x >= low) & (x < high), x, inside)


def circle_features(x: Array, low: float, high: float, axis: int) -> Array:
    """The cosines of angles, and their sines after them."""
    angle = (x - low) * (2 * math.pi / (high - low))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis)
