"""The monotone rational-quadratic spline of Durkan et al. (2019), arXiv:1906.04032.

Both directions are written in sums of positive terms (xi from the left end of a bin and xi1 from the
right one, never 1 - xi), so that nothing cancels in float32, and the inverse's discriminant is a sum
of squares. Inside, the axis of the parameters leads, so that every step runs along whole rows.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from flow_bridge.domains import REALS, ClosedInterval, Interval
from flow_bridge.univariate import check_spline, raw_slope, slope_offset
from jax_flows.numerics import absolute, check_constants, softplus, with_partials
from jax_flows.registry import register
from jax_flows.univariate.base import Output, UnivariateMap
from jax_flows.univariate.circular import circle_features, wrapped


@register
@dataclass(frozen=True)
class SplineMap(UnivariateMap):
    """A monotone rational-quadratic spline from [low, high] onto itself.

    Parameters, in this order: of each bin the logit of its width, of each bin the logit of its
    height, then the raw slopes at the knots that have one. Zeros are the identity.

    Args:
        num_bins: bins of the spline, below 1 / ``min_width`` and 1 / ``min_height``.
        low, high: the interval.
        boundary: what happens at its ends and beyond.
            ``"identity"``: slope ``edge_slope`` at both ends, the identity outside.
            ``"linear"``: free slopes at the ends, with which the map goes on outside.
            ``"kinked"``: free slopes at the ends, the identity outside; the density jumps there.
            ``"bounded"``: free slopes at the ends; only [low, high] exists.
            ``"circular"``: x and z are angles, low and high the same point. One slope at that point,
            and a rotation after the spline as the last parameter. A network sees an angle's cosine
            and sine.
        min_width, min_height: the least width and height of a bin, as a share of the interval.
        min_slope: the least slope at a knot, below 1.
        edge_slope: the slope at the ends of ``"identity"``; another than 1 makes the density jump there.
        squash: ``None``; or a number S below 1, which keeps bins and slopes apart from 0 in another
            way: with c = -log S, logits are v / (1 + 2 |v| / c) and slopes exp(v / (1 + |v| / c)),
            between S and 1 / S, in place of ``min_slope``.

    Raises:
        ValueError: for an unknown boundary, and numbers out of range.

    Reference: Durkan et al. (2019), arXiv:1906.04032; Rezende et al. (2020), arXiv:2002.02428, for
    bounded and circular ones.

    Examples:
        >>> import jax, jax_flows
        >>> map = jax_flows.SplineMap(num_bins=4, low=0.0, high=1.0, boundary="bounded")
        >>> keys = jax.random.split(jax.random.key(0))
        >>> parameters = jax.random.normal(keys[0], (5, map.num_parameters))
        >>> z, log_slope = map.forward(jax.random.uniform(keys[1], 5), parameters)
        >>> bool((z > 0).all() and (z < 1).all())
        True
    """

    num_bins: int = 8
    low: float = -5.0
    high: float = 5.0
    boundary: str = "identity"
    min_width: float = 1e-3
    min_height: float = 1e-3
    min_slope: float = 1e-3
    edge_slope: float = 1.0
    squash: float | None = None

    def __post_init__(self) -> None:
        given = (self.num_bins, self.low, self.high, self.boundary, self.min_width)
        slopes = self.min_slope, self.edge_slope, self.squash
        check_spline("SplineMap", *given, self.min_height, *slopes)

    @property
    def num_parameters(self) -> int:
        return 3 * self.num_bins + (-1 if self.boundary == "identity" else 1)

    @property
    def domain(self) -> Interval:  # type: ignore[override]
        inside = self.boundary in ("bounded", "circular")
        return ClosedInterval(self.low, self.high) if inside else REALS

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        return self.domain

    @property
    def num_features(self) -> int:  # type: ignore[override]
        return 2 if self.boundary == "circular" else 1

    def features(self, x: Array, axis: int) -> Array:
        if self.boundary != "circular":
            return x
        return circle_features(x, self.low, self.high, axis)

    def forward(self, x: Array, parameters: Array) -> Output:
        if self.boundary != "circular":
            return self._map(x, parameters)
        z, log_slope = self._map(x, parameters[..., :-1])
        return wrapped(z + parameters[..., -1], self.low, self.high), log_slope

    def inverse(self, z: Array, parameters: Array) -> Output:
        if self.boundary != "circular":
            return self._map(z, parameters, inverse=True)
        turned = wrapped(z - parameters[..., -1], self.low, self.high)
        x, log_slope = self._map(turned, parameters[..., :-1], inverse=True)
        outside = (z < self.low) | (z > self.high)
        x = jnp.where(outside, math.nan, wrapped(x, self.low, self.high))
        return x, jnp.where(outside, math.nan, log_slope)

    def _map(self, x: Array, parameters: Array, inverse: bool = False) -> Output:
        low, high = self.low, self.high
        check_constants(self, x, low=low, high=high, width=high - low)
        if self.boundary in ("bounded", "circular"):
            outside = (x < low) | (x > high)
        else:
            outside = jnp.abs(x) >= high if low == -high else (x <= low) | (x >= high)
        inner = jnp.where(outside, (low + high) / 2, x)
        knots = self.knots(parameters)
        in_bin = with_partials(partial(self._in_bin, inverse))
        y, log_slope = in_bin(inner, *select_bin(inner, knots, inverse))
        if self.boundary in ("bounded", "circular"):
            return jnp.where(outside, math.nan, y), jnp.where(outside, math.nan, log_slope)
        if self.boundary != "linear":
            return jnp.where(outside, x, y), jnp.where(outside, 0, log_slope)
        below = x < inner
        end = jnp.where(below, jnp.full_like(x, low), high)
        raw = jnp.where(below, knots[2, 0], knots[2, -1])
        slope = slope_of(raw, self.min_slope, self.squash)
        slope = 1 / slope if inverse else slope
        beyond = end + slope * (x - end)
        return jnp.where(outside, beyond, y), jnp.where(outside, jnp.log(slope), log_slope)

    def _in_bin(self, inverse: bool, x: Array, *ends: Array) -> Output:
        slopes = (slope_of(raw, self.min_slope, self.squash) for raw in ends[4:])
        return (inverse_in_bin if inverse else forward_in_bin)(x, *ends[:4], *slopes)

    def knots(self, parameters: Array) -> Array:
        """Positions, heights and raw slopes of the knots, shape ``(3, num_bins + 1, *batch)``."""
        num_bins, width = self.num_bins, self.high - self.low
        rows = jnp.moveaxis(parameters, -1, 0)
        logits, raw = jnp.split(rows, [2 * num_bins])
        ones = [1] * (raw.ndim - 1)
        if self.squash is not None:
            logits = logits / (1 - 2 * absolute(logits) / math.log(self.squash))
        logits = logits.reshape(2, num_bins, *raw.shape[1:])
        shares = jnp.cumsum(jax.nn.softmax(logits, 1), 1)[:, :-1]
        least = jnp.arange(1, num_bins, dtype=raw.dtype).reshape(-1, *ones)
        if self.min_width == self.min_height:
            start = self.low + width * self.min_width * least
            x_knots, y_knots = start + width * (1 - num_bins * self.min_width) * shares
        else:
            x_knots, y_knots = (
                self.low + width * (size * least + (1 - num_bins * size) * share)
                for size, share in zip((self.min_width, self.min_height), shares, strict=True)
            )
        low, high = (jnp.full((1, *raw.shape[1:]), end, raw.dtype) for end in (self.low, self.high))
        slopes = [raw]
        if self.boundary == "identity":
            edge = raw_slope(self.edge_slope, self.min_slope, self.squash)
            slopes = [jnp.full_like(low, edge), raw, jnp.full_like(low, edge)]
        elif self.boundary == "circular":
            slopes = [raw, raw[:1]]
        rows = jnp.concatenate([low, x_knots, high, low, y_knots, high, *slopes])
        return rows.reshape(3, num_bins + 1, *raw.shape[1:])


def spline_within(tail_bound: float, num_bins: int) -> SplineMap:
    """The spline on (-tail_bound, tail_bound) that is the identity outside."""
    checks.positive_number("SplineMap", tail_bound=tail_bound)
    return SplineMap(num_bins, -float(tail_bound), float(tail_bound))


def slope_of(raw: Array, min_slope: float, squash: float | None = None) -> Array:
    """The slope that a raw number stands for, 1 at 0."""
    if squash is not None:
        return jnp.exp(raw / (1 - absolute(raw) / math.log(squash)))
    return min_slope + softplus(raw + slope_offset(min_slope))


def select_bin(x: Array, knots: Array, inverse: bool) -> Array:
    """x0, x1, y0, y1 and the raw slopes of the half-open bin [x0, x1) (inverse: [y0, y1)) of each entry."""
    # materialised, or a fusion may round a knot anew and see x on its other side
    knots = jax.lax.optimization_barrier(knots)
    index = (x >= knots[int(inverse), 1:-1]).sum(0)
    columns = knots.reshape(3, knots.shape[1], x.size)
    ends = jax.vmap(_neighbours, (-1, 0), -1)(columns, index.reshape(x.size))
    return ends.reshape(6, *x.shape)


def _neighbours(column: Array, index: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(column, index, 2, 1)


def forward_in_bin(
    x: Array, x0: Array, x1: Array, y0: Array, y1: Array, d0: Array, d1: Array
) -> tuple[Array, Array]:
    """y and log(dy/dx) at x in [x0, x1]."""
    per_width, height = 1 / (x1 - x0), y1 - y0
    xi, xi1 = (x - x0) * per_width, (x1 - x) * per_width
    share, log_slope = _evaluate(xi, xi1, height * per_width, d0, d1)
    return y0 + height * share, log_slope


def inverse_in_bin(
    y: Array, x0: Array, x1: Array, y0: Array, y1: Array, d0: Array, d1: Array
) -> tuple[Array, Array]:
    """x and log(dx/dy) at y in [y0, y1].

    With e and e1 the distances of y from the two ends in heights, q = d0 e1 - d1 e and
    r = sqrt(q^2 + 4 s^2 e e1), xi = 2 s e / (2 s e + q + r) and xi1 = 2 s e1 / (2 s e1 + r - q).
    """
    width, per_height = x1 - x0, 1 / (y1 - y0)
    e, e1 = (y - y0) * per_height, (y1 - y) * per_height
    s = (y1 - y0) / width
    q = d0 * e1 - d1 * e
    left, right = 2 * s * e, 2 * s * e1
    rising, product = q >= 0, left * right
    # of r + q and r - q one is a sum; the other is the product over it
    larger = jnp.sqrt(q * q + product) + jnp.where(rising, q, -q)
    smaller = product / larger
    xi = left / (left + jnp.where(rising, larger, smaller))
    xi1 = right / (right + jnp.where(rising, smaller, larger))
    x = jnp.where(xi < 0.5, x0 + xi * width, x1 - xi1 * width)
    return x, -_evaluate(xi, xi1, s, d0, d1)[1]


def _evaluate(xi: Array, xi1: Array, s: Array, d0: Array, d1: Array) -> tuple[Array, Array]:
    """(y - y0) / height and log(dy/dx), from the distances to the two ends in widths.

    (s xi^2 + d0 xi xi1) / D and log(s^2 (d1 xi^2 + 2 s xi xi1 + d0 xi1^2) / D^2), with
    D = s (xi^2 + xi1^2) + (d0 + d1) xi xi1.
    """
    left, mixed, right = xi * xi, xi * xi1, xi1 * xi1
    rise = s * left + d0 * mixed
    per_d = 1 / (rise + s * right + d1 * mixed)
    slope = d1 * left + d0 * right + 2 * s * mixed
    ratio = s * per_d
    return rise * per_d, jnp.log(slope * ratio) + jnp.log(ratio)
