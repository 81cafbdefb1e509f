"""The monotone rational-quadratic spline of Durkan et al. (2019), arXiv:1906.04032.

Both directions are written in sums of positive terms (xi from the left end of a bin and xi1 from the
right one, never 1 - xi), so that nothing cancels in float32, and the inverse's discriminant is a sum
of squares. Inside, the axis of the parameters leads, so that every step runs along whole rows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_bridge import checks
from flow_bridge.domains import REALS, ClosedInterval, Interval
from flow_bridge.univariate import check_spline, raw_slope, slope_offset
from torch_flows.numerics import absolute, check_constants, softplus
from torch_flows.registry import register
from torch_flows.univariate.base import Output, UnivariateMap
from torch_flows.univariate.circular import circle_features, wrapped


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
        >>> import torch, torch_flows
        >>> map = torch_flows.SplineMap(num_bins=4, low=0.0, high=1.0, boundary="bounded")
        >>> z, log_slope = map.forward(torch.rand(5), torch.randn(5, map.num_parameters))
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

    def features(self, x: Tensor, axis: int) -> Tensor:
        if self.boundary != "circular":
            return x
        return circle_features(x, self.low, self.high, axis)

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        if self.boundary != "circular":
            return self._map(x, parameters)
        z, log_slope = self._map(x, parameters[..., :-1])
        return wrapped(z + parameters[..., -1], self.low, self.high), log_slope

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        if self.boundary != "circular":
            return self._map(z, parameters, inverse=True)
        turned = wrapped(z - parameters[..., -1], self.low, self.high)
        x, log_slope = self._map(turned, parameters[..., :-1], inverse=True)
        outside = (z < self.low) | (z > self.high)
        x = wrapped(x, self.low, self.high).masked_fill(outside, math.nan)
        return x, log_slope.masked_fill(outside, math.nan)

    def _map(self, x: Tensor, parameters: Tensor, inverse: bool = False) -> Output:
        low, high = self.low, self.high
        check_constants(self, x, low=low, high=high, width=high - low)
        if self.boundary in ("bounded", "circular"):
            outside = (x < low) | (x > high)
        else:
            outside = x.abs() >= high if low == -high else (x <= low) | (x >= high)
        inner = x.masked_fill(outside, (low + high) / 2)
        knots = self.knots(parameters)
        y, log_slope = self._in_bin(inverse, inner, select_bin(inner, knots, inverse))
        if self.boundary in ("bounded", "circular"):
            return y.masked_fill(outside, math.nan), log_slope.masked_fill(outside, math.nan)
        if self.boundary != "linear":
            return torch.where(outside, x, y), log_slope.masked_fill(outside, 0)
        below = x < inner
        end = torch.where(below, torch.full_like(x, low), high)
        raw = torch.where(below, knots[2, 0], knots[2, -1])
        slope = slope_of(raw, self.min_slope, self.squash)
        slope = slope.reciprocal() if inverse else slope
        beyond = torch.addcmul(end, slope, x - end)
        return torch.where(outside, beyond, y), torch.where(outside, slope.log(), log_slope)

    def _in_bin(self, inverse: bool, x: Tensor, ends: Tensor) -> Output:
        slopes = slope_of(ends[4:], self.min_slope, self.squash).unbind()
        return (inverse_in_bin if inverse else forward_in_bin)(x, *ends[:4].unbind(), *slopes)

    def knots(self, parameters: Tensor) -> Tensor:
        """Positions, heights and raw slopes of the knots, shape ``(3, num_bins + 1, *batch)``."""
        num_bins, width = self.num_bins, self.high - self.low
        rows = parameters.movedim(-1, 0).contiguous()
        logits, raw = rows.split([2 * num_bins, rows.shape[0] - 2 * num_bins])
        ones = [1] * (raw.ndim - 1)
        if self.squash is not None:
            logits = logits / (1 - 2 * absolute(logits) / math.log(self.squash))
        shares = logits.unflatten(0, (2, num_bins)).softmax(1).cumsum(1)[:, :-1]
        least = torch.arange(1, num_bins, dtype=raw.dtype, device=raw.device).view(-1, *ones)
        if self.min_width == self.min_height:
            start = self.low + width * self.min_width * least
            inner = torch.add(start, shares, alpha=width * (1 - num_bins * self.min_width))
            x_knots, y_knots = inner.unbind()
        else:
            x_knots, y_knots = (
                self.low + width * (size * least + (1 - num_bins * size) * share)
                for size, share in zip((self.min_width, self.min_height), shares, strict=True)
            )
        low, high = (raw.new_full((1, *raw.shape[1:]), end) for end in (self.low, self.high))
        slopes = [raw]
        if self.boundary == "identity":
            edge = raw_slope(self.edge_slope, self.min_slope, self.squash)
            slopes = [torch.full_like(low, edge), raw, torch.full_like(low, edge)]
        elif self.boundary == "circular":
            slopes = [raw, raw[:1]]
        rows = torch.cat([low, x_knots, high, low, y_knots, high, *slopes])
        return rows.unflatten(0, (3, num_bins + 1))


def spline_within(tail_bound: float, num_bins: int) -> SplineMap:
    """The spline on (-tail_bound, tail_bound) that is the identity outside."""
    checks.positive_number("SplineMap", tail_bound=tail_bound)
    return SplineMap(num_bins, -float(tail_bound), float(tail_bound))


def slope_of(raw: Tensor, min_slope: float, squash: float | None = None) -> Tensor:
    """The slope that a raw number stands for, 1 at 0."""
    if squash is not None:
        return (raw / (1 - absolute(raw) / math.log(squash))).exp()
    return min_slope + softplus(raw + slope_offset(min_slope))


def select_bin(x: Tensor, knots: Tensor, inverse: bool) -> Tensor:
    """x0, x1, y0, y1 and the raw slopes of the half-open bin [x0, x1) (inverse: [y0, y1)) of each entry."""
    index = (x >= knots[int(inverse), 1:-1]).sum(0)
    both = torch.stack([index, index + 1]).expand(3, 2, *x.shape)
    return knots.gather(1, both).flatten(0, 1)


def forward_in_bin(
    x: Tensor, x0: Tensor, x1: Tensor, y0: Tensor, y1: Tensor, d0: Tensor, d1: Tensor
) -> tuple[Tensor, Tensor]:
    """y and log(dy/dx) at x in [x0, x1]."""
    per_width, height = (x1 - x0).reciprocal(), y1 - y0
    xi, xi1 = (x - x0) * per_width, (x1 - x) * per_width
    share, log_slope = _evaluate(xi, xi1, height * per_width, d0, d1)
    return torch.addcmul(y0, height, share), log_slope


def inverse_in_bin(
    y: Tensor, x0: Tensor, x1: Tensor, y0: Tensor, y1: Tensor, d0: Tensor, d1: Tensor
) -> tuple[Tensor, Tensor]:
    """x and log(dx/dy) at y in [y0, y1].

    With e and e1 the distances of y from the two ends in heights, q = d0 e1 - d1 e and
    r = sqrt(q^2 + 4 s^2 e e1), xi = 2 s e / (2 s e + q + r) and xi1 = 2 s e1 / (2 s e1 + r - q).
    """
    width, per_height = x1 - x0, (y1 - y0).reciprocal()
    e, e1 = (y - y0) * per_height, (y1 - y) * per_height
    s = per_height.reciprocal() / width
    q = d0 * e1 - d1 * e
    left, right = 2 * s * e, 2 * s * e1
    rising, product = q >= 0, left * right
    # of r + q and r - q one is a sum; the other is the product over it
    larger = (q * q + product).sqrt() + torch.where(rising, q, -q)
    smaller = product / larger
    xi = left / (left + torch.where(rising, larger, smaller))
    xi1 = right / (right + torch.where(rising, smaller, larger))
    x = torch.where(xi < 0.5, torch.addcmul(x0, xi, width), torch.addcmul(x1, xi1, -width))
    return x, -_evaluate(xi, xi1, s, d0, d1)[1]


def _evaluate(xi: Tensor, xi1: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """(y - y0) / height and log(dy/dx), from the distances to the two ends in widths.

    (s xi^2 + d0 xi xi1) / D and log(s^2 (d1 xi^2 + 2 s xi xi1 + d0 xi1^2) / D^2), with
    D = s (xi^2 + xi1^2) + (d0 + d1) xi xi1.
    """
    left, mixed, right = xi * xi, xi * xi1, xi1 * xi1
    rise = torch.addcmul(s * left, d0, mixed)
    per_d = torch.addcmul(torch.addcmul(rise, s, right), d1, mixed).reciprocal()
    slope = torch.addcmul(torch.addcmul(d1 * left, d0, right), s, mixed, value=2)
    ratio = s * per_d
    return rise * per_d, (slope * ratio).log() + ratio.log()
