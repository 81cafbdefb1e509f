"""Maps of angles: low and high of an interval are one point of a circle."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_bridge import checks
from flow_bridge.domains import ClosedInterval, Interval
from torch_flows.numerics import at_least_float32, check_constants, tanh
from torch_flows.registry import register
from torch_flows.univariate.base import Output, UnivariateMap
from torch_flows.univariate.roots import invert

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
        >>> import torch, torch_flows
        >>> map = torch_flows.MoebiusMap(num_components=2)
        >>> ends = torch.tensor([map.low, map.high], dtype=torch.float64)
        >>> z, log_slope = map.forward(ends, torch.ones(2, map.num_parameters, dtype=torch.float64))
        >>> bool(torch.allclose(z[0], z[1])) and bool(torch.allclose(log_slope[0], log_slope[1]))
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

    def features(self, x: Tensor, axis: int) -> Tensor:
        return circle_features(x, self.low, self.high, axis)

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        wide, outside, rotation, given = self._prepared(x, parameters)
        turned, log_slope = _evaluate((wide - self.low) * self._per_unit, *given)
        z = wrapped(self.low + turned / self._per_unit + rotation, self.low, self.high)
        return _or_nan(z, log_slope, outside, x)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        wide, outside, rotation, given = self._prepared(z, parameters)
        turned = wrapped(wide - rotation, self.low, self.high)
        zero = torch.zeros_like(turned)
        goal = (turned - self.low) * self._per_unit
        t, log_slope = invert(_evaluate, goal, given, zero, zero + 2 * math.pi)
        x = wrapped(self.low + t / self._per_unit, self.low, self.high)
        return _or_nan(x, log_slope, outside, z)

    @property
    def _per_unit(self) -> float:
        return 2 * math.pi / (self.high - self.low)

    def _prepared(
        self, x: Tensor, parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """x inside the interval, what is not, the rotation; log w, a and b, ``(components, *batch)``."""
        low, high, count = self.low, self.high, self.num_components
        check_constants(self, x, low=low, high=high, width=high - low)
        outside = (x < low) | (x > high)
        inner = at_least_float32(x).masked_fill(outside, (low + high) / 2)
        rows = at_least_float32(parameters).movedim(-1, 0).contiguous()
        logits, raw_a, raw_b = rows[:-1].unflatten(0, (3, count)).unbind()
        index = torch.arange(count, dtype=rows.dtype, device=rows.device)
        angle = (2 * math.pi / count * index).view(-1, *[1] * (rows.ndim - 1))
        start = START if count > 1 else 0.0
        a = self.bound * tanh(raw_a / self.bound) + start * angle.cos()
        b = self.bound * tanh(raw_b / self.bound) + start * angle.sin()
        return inner, outside, rows[-1], (logits.log_softmax(0), a, b)


def _evaluate(t: Tensor, log_w: Tensor, a: Tensor, b: Tensor) -> Output:
    """The angle that t becomes, and the log of the slope."""
    cos, sin = t.cos(), t.sin()
    s, u = _turn(a, b, a * cos + b * sin, a * sin - b * cos)
    s0, u0 = _turn(a, b, a, -b)
    moved = torch.atan2(s, u) - torch.atan2(s0, u0)
    log_slope = (log_w - (s * s + u * u).log()).logsumexp(0)
    return t + 2 * (log_w.exp() * moved).sum(0), log_slope


def _turn(a: Tensor, b: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """s, and u = q - c in a sum of positive terms: c^2 + s^2 = a^2 + b^2 = q^2 - 1."""
    q = (1 + a * a + b * b).sqrt()
    return s, torch.where(c > 0, (1 + s * s) / (q + c.abs()), q - c)


def _or_nan(y: Tensor, log_slope: Tensor, outside: Tensor, like: Tensor) -> Output:
    """Both in the dtype of x, NaN outside the interval."""
    y, log_slope = (value.masked_fill(outside, math.nan) for value in (y, log_slope))
    return y.to(like.dtype), log_slope.to(like.dtype)


def wrapped(x: Tensor, low: float, high: float) -> Tensor:
    """x modulo the circle, in [low, high)."""
    inside = (x - low).remainder(high - low) + low
    inside = torch.where(inside >= high, inside - (high - low), inside)
    return torch.where((x >= low) & (x < high), x, inside)


def circle_features(x: Tensor, low: float, high: float, axis: int) -> Tensor:
    """The cosines of angles, and their sines after them."""
    angle = (x - low) * (2 * math.pi / (high - low))
    return torch.cat([angle.cos(), angle.sin()], axis)
