"""Splines of other pieces than quotients of quadratics: pyro's linear-rational ones, nflows' polynomials.

Positions are measured from both ends of a bin, xi from the left and xi1 from the right, so that what is
positive is a sum of positive terms wherever the formula has such a form.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_bridge import checks
from flow_bridge.domains import REALS, ClosedInterval, Interval
from flow_bridge.univariate import check_pieces, check_share, slope_offset
from torch_flows.numerics import at_least_float32, check_constants, softplus
from torch_flows.registry import register
from torch_flows.univariate.base import Output, UnivariateMap
from torch_flows.univariate.roots import invert

LEAST_SLOPE = 1e-30
"""Of a ``CubicSplineMap`` at its ends, whose logarithm would be infinite."""


@dataclass(frozen=True)
class _Pieces(UnivariateMap):
    """An interval of bins, onto itself; the identity outside, or nothing where it is bounded."""

    num_bins: int = 8
    low: float = -5.0
    high: float = 5.0
    boundary: str = "identity"

    @property
    def domain(self) -> Interval:  # type: ignore[override]
        return ClosedInterval(self.low, self.high) if self.boundary == "bounded" else REALS

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        return self.domain

    def _inside(
        self, step: Callable[[Tensor, Tensor], Output], x: Tensor, parameters: Tensor
    ) -> Output:
        check_constants(self, x, low=self.low, high=self.high, width=self.high - self.low)
        wide = at_least_float32(x)
        outside = (wide < self.low) | (wide > self.high)
        inner = wide.masked_fill(outside, (self.low + self.high) / 2)
        y, log_slope = step(inner, at_least_float32(parameters).movedim(-1, 0))
        if self.boundary == "bounded":
            y, log_slope = (a.masked_fill(outside, math.nan) for a in (y, log_slope))
        else:
            y, log_slope = torch.where(outside, wide, y), log_slope.masked_fill(outside, 0)
        return y.to(x.dtype), log_slope.to(x.dtype)

    def _knots(self, logits: Tensor, least: float) -> tuple[Tensor, Tensor]:
        """The ends of bins whose shares are ``least`` and a softmax, ``(num_bins + 1, *batch)``, and
        their sizes, which differences of ends know less well."""
        count, width = self.num_bins, self.high - self.low
        shares = logits.softmax(0)
        index = torch.arange(1, count, dtype=logits.dtype, device=logits.device)
        floor = least * index.view(-1, *[1] * (logits.ndim - 1))
        inner = self.low + width * (floor + (1 - count * least) * shares.cumsum(0)[:-1])
        sizes = width * (least + (1 - count * least) * shares)
        return self._ended(inner, logits[:1]), sizes

    def _ended(self, inner: Tensor, like: Tensor) -> Tensor:
        """Inner knots between low and high."""
        low, high = torch.full_like(like, self.low), torch.full_like(like, self.high)
        return torch.cat([low, inner, high])


@register
@dataclass(frozen=True)
class LinearSplineMap(_Pieces):
    """A piecewise linear spline with bins of equal width: the density is constant in each.

    Parameters: of each bin the logit of its height. Zeros are the identity. log|dz/dx| jumps at the
    knots, and has no gradient in x.

    Args:
        num_bins: bins of the spline, below 1 / ``min_height``.
        low, high: the interval.
        boundary: ``"identity"`` outside, or ``"bounded"``: only [low, high] exists.
        min_height: the least height of a bin, as a share of the interval; nflows has 0.

    Raises:
        ValueError: for an unknown boundary, and numbers out of range.

    Reference: Mueller et al. (2018), arXiv:1808.03856; ``linear_spline`` in nflows.
    """

    min_height: float = 1e-3

    def __post_init__(self) -> None:
        given = self.num_bins, self.low, self.high, self.boundary
        check_pieces("LinearSplineMap", *given, self.min_height, self.min_height)

    @property
    def num_parameters(self) -> int:
        return self.num_bins

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        return self._inside(lambda x, rows: self._map(x, rows, False), x, parameters)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        return self._inside(lambda z, rows: self._map(z, rows, True), z, parameters)

    def _map(self, x: Tensor, rows: Tensor, inverse: bool) -> Output:
        heights, sizes = self._knots(rows, self.min_height)
        positions, _ = self._knots(torch.zeros_like(rows), 0.0)
        given, other = (heights, positions) if inverse else (positions, heights)
        index = _bin_of(x, given)
        x0, x1, y0, y1 = _ends(index, given, other)
        slope = _take(sizes, index) * (self.num_bins / (self.high - self.low))
        slope = 1 / slope if inverse else slope
        y = torch.where(x - x0 < x1 - x, y0 + slope * (x - x0), y1 - slope * (x1 - x))
        return y, slope.log()


@register
@dataclass(frozen=True)
class QuadraticSplineMap(_Pieces):
    """A piecewise quadratic spline: the slope is piecewise linear, v_i at the knots.

    In a bin of width w, with r = v_0 xi1 + v_1 xi the slope at x,

        y - y0 = w xi (v_0 + r) / 2,   xi = 2 e / (v_0 + r),   r^2 = (v_0^2 e1 + v_1^2 e) / (e + e1)

    where e = (y - y0) / w and e1 = (y1 - y) / w: sums of positive terms in both directions.

    Parameters: of each bin the logit of its width; of each knot that is free the raw slope u, of which
    softplus(u) + 1e-3 is divided by the area, so that the spline ends at high, and then mixed with
    ``min_slope``. Zeros are the identity.

    Args:
        num_bins: bins of the spline, below 1 / ``min_width``.
        low, high: the interval.
        boundary: ``"identity"`` outside, with num_bins - 1 free knots; or ``"bounded"``: only
            [low, high] exists, and all knots are free.
        min_width: the least width of a bin, as a share of the interval.
        min_slope: the least slope, below 1.
        edge_share: of ``"identity"``: the share of the outer bins that the slope at the ends is found
            with. 0.5 makes it 1; with nflows' 0.25 the density jumps there.

    Raises:
        ValueError: for an unknown boundary, and numbers out of range.

    Reference: Mueller et al. (2018), arXiv:1808.03856; ``quadratic_spline`` in nflows.
    """

    min_width: float = 1e-3
    min_slope: float = 1e-3
    edge_share: float = 0.5

    def __post_init__(self) -> None:
        given = self.num_bins, self.low, self.high, self.boundary
        check_pieces("QuadraticSplineMap", *given, self.min_width, self.min_width)
        check_share("QuadraticSplineMap", "min_slope", self.min_slope)
        check_share("QuadraticSplineMap", "edge_share", self.edge_share)

    @property
    def num_parameters(self) -> int:
        return 2 * self.num_bins + (1 if self.boundary == "bounded" else -1)

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        return self._inside(self._forward, x, parameters)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        return self._inside(self._inverse, z, parameters)

    def _forward(self, x: Tensor, rows: Tensor) -> Output:
        return linear_slopes(x, *self._pieces(rows))

    def _inverse(self, y: Tensor, rows: Tensor) -> Output:
        return linear_slopes_inverse(y, *self._pieces(rows))

    def _pieces(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, heights and slopes of the knots."""
        positions, sizes = self._knots(rows[: self.num_bins], self.min_width)
        widths = sizes / (self.high - self.low)
        v = softplus(rows[self.num_bins :]) + 1e-3
        if self.boundary != "bounded":
            v = self._with_ends(v, widths)
        area = (widths * (v[:-1] + v[1:])).sum(0) / 2
        slopes = self.min_slope + (1 - self.min_slope) * v / area
        rise = (widths * (slopes[:-1] + slopes[1:])).cumsum(0) / 2
        inner = self.low + (self.high - self.low) * rise[:-1]
        return positions, self._ended(inner, positions[:1]), slopes

    def _with_ends(self, v: Tensor, widths: Tensor) -> Tensor:
        """The slope that is the area, at both ends."""
        if self.num_bins == 1:
            end = torch.ones_like(widths)
            return torch.cat([end, end])
        first, last = self.edge_share * widths[:1], self.edge_share * widths[-1:]
        middle = (widths[1:-1] * (v[:-1] + v[1:])).sum(0, keepdim=True) / 2
        end = (first * v[:1] + last * v[-1:] + middle) / (1 - first - last)
        return torch.cat([end, v, end])


@register
@dataclass(frozen=True)
class CubicSplineMap(_Pieces):
    """A piecewise cubic spline with Steffen's slopes at the inner knots.

    In a bin of width w and mean slope s, with d_0 and d_1 the slopes at its ends and m = 3 s - d_0 - d_1,

        dz/dx = d_0 xi1^2 + 2 m xi xi1 + d_1 xi^2.

    At an inner knot the slope is 2 min(s, s', (w' s + w s') / (2 (w + w'))), of the bins on both sides;
    at the two ends it is 3 s / (1 + 2 exp(-u)). Outside is the identity: the density jumps at the ends.
    The inverse is searched, and has the gradients of the exact solution.

    Parameters: of each bin the logit of its width, of each bin the logit of its height, and u at low and
    at high. Zeros are the identity.

    Args:
        num_bins: bins of the spline, below 1 / ``min_width`` and 1 / ``min_height``.
        low, high: the interval.
        boundary: ``"identity"`` outside, or ``"bounded"``: only [low, high] exists.
        min_width, min_height: the least width and height of a bin, as a share of the interval.

    Raises:
        ValueError: for an unknown boundary, and numbers out of range.

    Reference: Durkan et al. (2019), arXiv:1906.02145; ``cubic_spline`` in nflows.
    """

    min_width: float = 1e-3
    min_height: float = 1e-3

    def __post_init__(self) -> None:
        given = self.num_bins, self.low, self.high, self.boundary
        check_pieces("CubicSplineMap", *given, self.min_width, self.min_height)

    @property
    def num_parameters(self) -> int:
        return 2 * self.num_bins + 2

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        return self._inside(self._forward, x, parameters)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        return self._inside(self._inverse, z, parameters)

    def _forward(self, x: Tensor, rows: Tensor) -> Output:
        positions, heights, slopes, means = self._pieces(rows)
        index = _bin_of(x, positions)
        ends = _ends(index, positions, heights, slopes)
        return _cubic(x, *[*ends, _take(means, index)])

    def _inverse(self, y: Tensor, rows: Tensor) -> Output:
        positions, heights, slopes, means = self._pieces(rows)
        index = _bin_of(y, heights)
        ends = _ends(index, positions, heights, slopes)
        return invert(_cubic, y, [*ends, _take(means, index)], ends[0], ends[1])

    def _pieces(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Positions, heights and slopes of the knots, and the mean slopes of the bins."""
        count = self.num_bins
        positions, widths = self._knots(rows[:count], self.min_width)
        heights, rises = self._knots(rows[count : 2 * count], self.min_height)
        s = rises / widths
        mean = widths[1:] * s[:-1] + widths[:-1] * s[1:]
        mean = mean / (2 * (widths[1:] + widths[:-1]))
        inner = 2 * torch.minimum(torch.minimum(s[:-1], s[1:]), mean)
        ends = (3 * (rows[2 * count :] - math.log(2)).sigmoid()).clamp_min(LEAST_SLOPE)
        first, last = ends.split(1)
        return positions, heights, torch.cat([first * s[:1], inner, last * s[-1:]]), s


@register
@dataclass(frozen=True)
class LinearRationalSplineMap(_Pieces):
    """A spline of quotients of lines, two to a bin, which meet at the share l of its width.

    With weights a = 1 and b = sqrt(d_0 / d_1) at the ends of a bin of mean slope s, and
    c = (l a d_0 + (1 - l) b d_1) / s where the two pieces meet, at the share
    m = l b / ((1 - l) a + l b) of the height,

        left of there    (y - y0) / (y1 - y0) = c m xi / (a (l - xi) + c xi),

    with the inverse xi = l a e / (c (m - e) + a e), e the share of the height; and likewise from the
    right. Once continuously differentiable, and without a root in either direction.

    Parameters: of each bin the logit of its width, of each bin the logit of its height, the raw slopes
    at the inner knots, and of each bin a raw number for l = min_share + (1 - 2 min_share) / (1 + exp(-u)).
    Zeros are the identity.

    Args:
        num_bins: bins of the spline, below 1 / ``min_width`` and 1 / ``min_height``.
        low, high: the interval.
        boundary: ``"identity"`` outside, or ``"bounded"``: only [low, high] exists.
        min_width, min_height: the least width and height of a bin, as a share of the interval.
        min_slope: the least slope at a knot, below 1.
        min_share: the least of l and 1 - l, below 1/2.
        edge_slope: the slope at both ends; another than 1 makes the density jump there.

    Raises:
        ValueError: for an unknown boundary, and numbers out of range.

    Reference: Dolatabadi et al. (2020), arXiv:2001.05168; the default of ``Spline`` in pyro, whose
    ``edge_slope`` is 1 - ``min_slope``.
    """

    min_width: float = 1e-3
    min_height: float = 1e-3
    min_slope: float = 1e-3
    min_share: float = 0.025
    edge_slope: float = 1.0

    def __post_init__(self) -> None:
        given = self.num_bins, self.low, self.high, self.boundary
        check_pieces("LinearRationalSplineMap", *given, self.min_width, self.min_height)
        check_share("LinearRationalSplineMap", "min_slope", self.min_slope)
        check_share("LinearRationalSplineMap", "min_share", self.min_share, 0.5)
        checks.positive_number("LinearRationalSplineMap", edge_slope=self.edge_slope)

    @property
    def num_parameters(self) -> int:
        return 4 * self.num_bins - 1

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        return self._inside(self._forward, x, parameters)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        return self._inside(self._inverse, z, parameters)

    def _forward(self, x: Tensor, rows: Tensor) -> Output:
        x0, x1, y0, y1, width, height, c, left, right = self._piece(x, rows, False)
        xi, xi1 = (x - x0) / width, (x1 - x) / width
        first = xi <= left[0]
        share, a, m = (torch.where(first, p, q) for p, q in zip(left, right, strict=True))
        near = torch.where(first, xi, xi1)
        per = (a * (share - near) + c * near).reciprocal()
        reached = height * (c * m * near * per)
        log_slope = (share * a * c * m * height / width).log() + 2 * per.log()
        return torch.where(first, y0 + reached, y1 - reached), log_slope

    def _inverse(self, y: Tensor, rows: Tensor) -> Output:
        x0, x1, y0, y1, width, height, c, left, right = self._piece(y, rows, True)
        e, e1 = (y - y0) / height, (y1 - y) / height
        first = e <= left[2]
        share, a, m = (torch.where(first, p, q) for p, q in zip(left, right, strict=True))
        near = torch.where(first, e, e1)
        per = (c * (m - near) + a * near).reciprocal()
        reached = width * (share * a * near * per)
        log_slope = (share * a * c * m * width / height).log() + 2 * per.log()
        return torch.where(first, x0 + reached, x1 - reached), log_slope

    def _piece(
        self, x: Tensor, rows: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
        """The ends and sizes of the bin, c, and l, a, m as the left and as the right end see them."""
        count = self.num_bins
        positions, widths = self._knots(rows[:count], self.min_width)
        heights, rises = self._knots(rows[count : 2 * count], self.min_height)
        slopes = self.min_slope + softplus(
            rows[2 * count : 3 * count - 1] + slope_offset(self.min_slope)
        )
        end = torch.full_like(rows[:1], self.edge_slope)
        slopes = torch.cat([end, slopes, end])
        index = _bin_of(x, heights if inverse else positions)
        x0, x1, y0, y1, d0, d1 = _ends(index, positions, heights, slopes)
        width, height, raw = (
            _take(values, index) for values in (widths, rises, rows[3 * count - 1 :])
        )
        rest = 1 - 2 * self.min_share
        meeting, other = (self.min_share + rest * u.sigmoid() for u in (raw, -raw))
        b = (d0 / d1).sqrt()
        c = (meeting * d0 + other * b * d1) * width / height
        total = other + meeting * b
        left = [meeting, torch.ones_like(b), meeting * b / total]
        right = [other, b, other / total]
        return x0, x1, y0, y1, width, height, c, left, right


def linear_slopes(x: Tensor, positions: Tensor, heights: Tensor, slopes: Tensor) -> Output:
    """A map whose slope is linear between knots, ``(knots, *batch)``, and the log of its slope."""
    x0, x1, y0, y1, v0, v1 = _ends(_bin_of(x, positions), positions, heights, slopes)
    width = x1 - x0
    xi, xi1 = (x - x0) / width, (x1 - x) / width
    slope = v0 * xi1 + v1 * xi
    left, right = (x - x0) * (v0 + slope) / 2, (x1 - x) * (v1 + slope) / 2
    return torch.where(xi < 0.5, y0 + left, y1 - right), slope.log()


def linear_slopes_inverse(y: Tensor, positions: Tensor, heights: Tensor, slopes: Tensor) -> Output:
    """Its inverse."""
    x0, x1, y0, y1, v0, v1 = _ends(_bin_of(y, heights), positions, heights, slopes)
    e, e1 = y - y0, y1 - y
    slope = ((v0 * v0 * e1 + v1 * v1 * e) / (e + e1)).sqrt()
    left, right = 2 * e / (v0 + slope), 2 * e1 / (v1 + slope)
    return torch.where(left < right, x0 + left, x1 - right), -slope.log()


def _bin_of(x: Tensor, knots: Tensor) -> Tensor:
    """The index of the half-open bin [k_i, k_(i + 1)) of each entry."""
    return (x >= knots[1:-1]).sum(0)


def _take(rows: Tensor, index: Tensor) -> Tensor:
    return rows.gather(0, index.unsqueeze(0)).squeeze(0)


def _ends(index: Tensor, *knots: Tensor) -> list[Tensor]:
    """Of each array of knots the two that the bin lies between."""
    return [_take(rows, index + i) for rows in knots for i in (0, 1)]


def _cubic(
    x: Tensor, x0: Tensor, x1: Tensor, y0: Tensor, y1: Tensor, d0: Tensor, d1: Tensor, s: Tensor
) -> Output:
    width = x1 - x0
    xi, xi1 = (x - x0) / width, (x1 - x) / width
    m = 3 * s - d0 - d1
    left = d0 * (1 + xi1 + xi1 * xi1) + m * xi * (1 + 2 * xi1) + d1 * xi * xi
    right = d1 * (1 + xi + xi * xi) + m * xi1 * (1 + 2 * xi) + d0 * xi1 * xi1
    y = torch.where(xi < 0.5, y0 + (x - x0) * left / 3, y1 - (x1 - x) * right / 3)
    return y, (d0 * xi1 * xi1 + 2 * m * xi * xi1 + d1 * xi * xi).log()
