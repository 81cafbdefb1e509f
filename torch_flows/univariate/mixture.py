"""Maps made of the distribution function of a mixture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flow_bridge import checks
from flow_bridge.univariate import check_dense, dense_layers
from torch_flows.numerics import (
    at_least_float32,
    derivatives,
    differentiable,
    log1p,
    softplus,
    split_sign,
)
from torch_flows.registry import register
from torch_flows.univariate.base import Output, UnivariateMap
from torch_flows.univariate.roots import FARTHEST, invert
from torch_flows.univariate.tails import (
    LOG_ROOT,
    log_mills,
    log_tail,
    tail_excess,
    tail_quantile,
)

FAR = 1e12
"""Beyond it the map of a mixture of normals is linear to within rounding, and squares would overflow."""


@register
@dataclass(frozen=True)
class LogisticMixtureMap(UnivariateMap):
    """z = log D - log(1 - D), D = sum_j w_j sigmoid(c_j), c_j = a_j (x - m_j): the logit of the
    distribution function of a mixture of logistics.

    Onto the reals and infinitely often differentiable. With r_j = w_j sigmoid(c_j) / D and
    q_j = w_j sigmoid(-c_j) / (1 - D), two sets of weights of sum 1,

        dz/dx = sum_j r_j a_j sigmoid(-c_j) + sum_j q_j a_j sigmoid(c_j)

    is a sum of positive terms. It is at most the largest a_j, and the smallest one far out. The inverse
    is searched between the smallest and the largest z / a_j + m_j, and has the gradients of the exact
    solution.

    The 3 ``num_components`` parameters are the logits of w, raw numbers s for
    log a = bound tanh(s / bound), and raw numbers t for m_j = t_j + (2 j + 1) / num_components - 1,
    j = 0, 1, ... Zeros are within 0.17 of the identity, with slopes from 0.92 to 1: equal components
    would have equal gradients, and stay equal. One component is the affine map a (x - m).

    In a ``MaskedAutoregressive`` it is the deep sigmoidal flow of neural autoregressive flows; in a
    ``Coupling``, followed by an ``AffineMap`` coupling of the same mask, that of Flow++.

    With ``output="normal"`` z is the normal quantile of D in place of its logit, the map of trainable
    Gaussianization: onto the reals too, but far out |z| grows as the root of 2 a |x|. Its slope is that
    of the logit times sigmoid(|logit|) Phi(-|z|) / phi(z); zeros have slopes of about 0.63 at 0.

    Args:
        num_components: number of logistics.
        bound: of |log a_j|, between 0 and 10.
        output: ``"logistic"`` or ``"normal"``, see above.

    Raises:
        ValueError: for numbers out of range.

    Reference: Huang et al. (2018), arXiv:1804.00779; Ho et al. (2019), Flow++, arXiv:1902.00275;
    Meng et al. (2020), Gaussianization flows, arXiv:2003.01941.
    """

    broadcasts = True

    num_components: int = 8
    bound: float = 5.0
    output: str = "logistic"

    def __post_init__(self) -> None:
        checks.positive_int("LogisticMixtureMap", num_components=self.num_components)
        checks.open_interval("LogisticMixtureMap", "bound", self.bound, 0, 10)
        checks.one_of("LogisticMixtureMap", "output", self.output, ("logistic", "normal"))

    @property
    def num_parameters(self) -> int:
        return 3 * self.num_components

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        z, log_slope = _evaluate(at_least_float32(x), *self._constrained(parameters))
        if self.output == "normal":
            z, log_ratio = _to_normal(z)
            log_slope = log_slope + log_ratio
        return z.to(x.dtype), log_slope.to(x.dtype)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        log_w, log_a, center = self._constrained(parameters)
        wide = at_least_float32(z)
        log_ratio: Tensor | float = 0.0
        if self.output == "normal":
            wide, log_ratio = _from_normal(wide)
        near = wide.clamp(-FARTHEST, FARTHEST)
        ends = near * (-log_a).exp() + center
        given = log_w, log_a, center
        x, log_slope = invert(_evaluate, near, given, ends.amin(0), ends.amax(0))
        x = x + (wide - near) * log_slope.clamp_max(10).exp()  # not 0 times an infinity
        return x.to(z.dtype), (log_slope + log_ratio).to(z.dtype)

    def _constrained(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w, log a and m, each ``(num_components, *batch)``."""
        count = self.num_components
        rows = at_least_float32(parameters).movedim(-1, 0).contiguous()
        logits, raw, center = rows.unflatten(0, (3, count)).unbind()
        log_a = self.bound * (raw / self.bound).tanh()
        return logits.log_softmax(0), log_a, center - _spread(rows, count)


@register
@dataclass(frozen=True)
class DenseSigmoidMap(UnivariateMap):
    """Layers of logits of mixtures of logistics, whose units each see all outputs of the layer before:

        c_j = a_j (sum_k U_kj v_k - m_j),   v'_i = log D_i - log(1 - D_i),   D_i = sum_j W_ji sigmoid(c_j),

    with a_j > 0 and columns of U and W of sum 1; v is x in the first layer, as many numbers as it has units
    after each, and z after the last. With r_ji = W_ji sigmoid(c_j) / D_i and
    q_ji = W_ji sigmoid(-c_j) / (1 - D_i) the slopes in x

        dv'_i = sum_j (r_ji sigmoid(-c_j) + q_ji sigmoid(c_j)) a_j sum_k U_kj dv_k

    are sums of positive terms, taken as logarithms of sums. Onto the reals and infinitely often
    differentiable; the inverse is searched between bounds that the a_j and m_j set, and has the gradients of
    the exact solution.

    Parameters: for each layer the logits of U, but in the first, and of W, raw numbers s for
    log a = bound tanh(s / bound), and raw numbers t for m_j = t_j + (2 j + 1) / width - 1. All W but the last
    have 1 added to their diagonal, without which equal units would stay equal. Zeros of two layers are
    within 0.3 of the identity. One layer is ``LogisticMixtureMap``.

    In a ``MaskedAutoregressive`` it is the deep dense sigmoidal flow of neural autoregressive flows.

    Args:
        hidden_dims: the sigmoidal units of each layer.
        bound: of |log a_j|, between 0 and 10.

    Raises:
        ValueError: for widths or a bound out of range.

    Reference: Huang et al. (2018), arXiv:1804.00779.
    """

    broadcasts = True

    hidden_dims: Sequence[int] = (4, 4)
    bound: float = 5.0

    def __post_init__(self) -> None:
        widths = check_dense("DenseSigmoidMap", self.hidden_dims, self.bound)
        object.__setattr__(self, "hidden_dims", widths)

    @property
    def num_parameters(self) -> int:
        return sum(
            (below + above + 2) * width if i else (above + 2) * width
            for i, (below, width, above) in enumerate(dense_layers(self.hidden_dims))
        )

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        z, log_slope = _evaluate_dense(at_least_float32(x), *self._constrained(parameters))
        return z.to(x.dtype), log_slope.to(x.dtype)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        given = self._constrained(parameters)
        wide = at_least_float32(z)
        near = wide.clamp(-FARTHEST, FARTHEST)
        low = high = near
        for log_a, center in list(zip(given[2::4], given[3::4], strict=True))[::-1]:
            low = (low * (-log_a).exp() + center).amin(0)
            high = (high * (-log_a).exp() + center).amax(0)
        x, log_slope = invert(_evaluate_dense, near, given, low, high)
        largest = math.log(torch.finfo(x.dtype).max) - 1  # not 0 times an infinity
        x = x + (wide - near) * log_slope.clamp_max(largest).exp()
        return x.to(z.dtype), log_slope.to(z.dtype)

    def _constrained(self, parameters: Tensor) -> list[Tensor]:
        """Of each layer log U ``(below, width, *batch)``, log W ``(width, above, *batch)``, log a and m."""
        rows = at_least_float32(parameters).movedim(-1, 0)
        axes, given, start = [1] * (rows.ndim - 1), [], 0
        for i, (below, width, above) in enumerate(dense_layers(self.hidden_dims)):
            sizes = below * width if i else 0, width * above, width, width
            u, w, raw, center = rows[start : start + sum(sizes)].split(sizes)
            u = u.unflatten(0, (below, width)) if i else torch.zeros_like(raw).unsqueeze(0)
            w = w.unflatten(0, (width, above))
            if above == width:
                w = w + torch.eye(width, dtype=rows.dtype, device=rows.device).view(
                    width, width, *axes
                )
            log_a = self.bound * (raw / self.bound).tanh()
            given += [u.log_softmax(0), w.log_softmax(0), log_a, center - _spread(rows, width)]
            start += sum(sizes)
        return given


@register
@dataclass(frozen=True)
class NormalMixtureMap(UnivariateMap):
    """Phi(z) = mean_j Phi(c_j), c_j = a_j x + b_j: the normal quantile of a mixture of normals.

    Onto the reals, infinitely often differentiable, and linear far out: it makes a mixture of normals of
    equal weights normal. With the hazard h(c) = phi(c) / Phi(-c) and the weights r_j = Phi(c_j) / Phi(z) and
    q_j = Phi(-c_j) / Phi(-z), each divided by their number,

        dz/dx (h(z) + h(-z)) = sum_j r_j a_j h(-c_j) + sum_j q_j a_j h(c_j)

    is a sum of positive terms. The inverse is searched between the smallest and the largest
    (z - b_j) / a_j, and has the gradients of the exact solution.

    The 2 ``num_components`` parameters are shifts s for b_j = s_j + 1 - (2 j + 1) / num_components,
    j = 0, 1, ..., and raw numbers r for log a = bound tanh(r / bound), or for log a itself without a
    bound. Zeros have slopes from 0.85 to 1: equal components would have equal gradients, and
    stay equal. One component is the affine map a x + b.

    Args:
        num_components: number of normals.
        bound: of |log a_j|, between 0 and 10, or ``None``.

    Raises:
        ValueError: for numbers out of range.

    Reference: Chen and Gopinath (2000), Gaussianization; zuko's ``GaussianizationTransform``.
    """

    broadcasts = True

    num_components: int = 8
    bound: float | None = 5.0

    def __post_init__(self) -> None:
        checks.positive_int("NormalMixtureMap", num_components=self.num_components)
        if self.bound is not None:
            checks.open_interval("NormalMixtureMap", "bound", self.bound, 0, 10)

    @property
    def num_parameters(self) -> int:
        return 2 * self.num_components

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        wide = at_least_float32(x)
        log_a, shift = self._constrained(parameters)
        reach = self._reach(log_a)
        near = wide.clamp(-reach, reach)
        side, share, apart, _, log_slope = _smaller_tail(near, log_a, shift)
        t = tail_quantile(share.log() - apart * apart / 2)
        z, log_slope = side * t, log_slope + log_mills(t)
        return (z + (wide - near) * log_slope.exp()).to(x.dtype), log_slope.to(x.dtype)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        log_a, shift = self._constrained(parameters)
        wide = at_least_float32(z)
        near = wide.clamp(-FAR, FAR)
        logit, log_ratio = _from_normal(near)
        ends = (near - shift) * (-log_a).exp()
        given = log_a, shift
        x, log_slope = invert(_logit_of_normals, logit, given, ends.amin(0), ends.amax(0))
        log_slope = log_slope + log_ratio
        largest = math.log(torch.finfo(x.dtype).max) - 1  # not 0 times an infinity
        x = x + (wide - near) * log_slope.clamp_max(largest).exp()
        return x.to(z.dtype), log_slope.to(z.dtype)

    def _reach(self, log_a: Tensor) -> Any:
        """How far out the map is evaluated: there the flattest normal is."""
        if self.bound is not None:
            return FAR
        fixed = log_a.detach()
        return torch.minimum(
            FAR * (-fixed.amin(0)).exp(),
            torch.finfo(fixed.dtype).max / 1e8 * (-fixed.amax(0)).exp(),
        )

    def _constrained(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """log a and b, each ``(num_components, *batch)``."""
        count = self.num_components
        rows = at_least_float32(parameters).movedim(-1, 0).contiguous()
        shift, raw = rows.unflatten(0, (2, count)).unbind()
        log_a = raw if self.bound is None else self.bound * (raw / self.bound).tanh()
        return log_a, shift + _spread(rows, count)


def _spread(rows: Tensor, count: int) -> Tensor:
    """Numbers of mean 0 in (-1, 1), the largest first, for components along the first axis."""
    index = torch.arange(count, dtype=rows.dtype, device=rows.device)
    return (1 - (2 * index + 1) / count).view(-1, *[1] * (rows.ndim - 1))


def _smaller_tail(
    x: Tensor, log_a: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The smaller one S of the mean D of Phi(c), c = a x + b, and 1 - D.

    Returns:
        -1 where it is D and 1 where it is 1 - D; S and d in S exp(-d^2 / 2), d being the smallest |c| if
        all c have one sign, and 0 otherwise; |D - 1/2|, exact next to 0, where d is 0; the log of D' / S.
    """
    c = log_a.exp() * x + shift
    fixed = c.detach()
    signs, t = fixed.sign(), fixed.abs()
    low, high = fixed.amin(0), fixed.amax(0)
    apart = low.clamp_min(0) + (-high).clamp_min(0)
    exponent = (apart - t) * (apart + t) / 2
    density = exponent.exp() * (math.exp(-LOG_ROOT) / len(c))
    tails = density / (t + tail_excess(t))
    middle = signs.sum(0) / (2 * len(c)) - (signs * tails).sum(0)
    side = split_sign(torch.where(apart > 0, low, middle))[0]
    middle = torch.where(apart > 0, 0, side * middle)
    share = torch.where(apart > 0, tails.sum(0), 0.5 - middle)
    if differentiable():
        second = -density * fixed
        change = side * derivatives(c, density, second, -density - second * fixed).sum(0)
        middle, share = middle + change, share - change
        exponent = exponent + derivatives(c, -fixed, -1.0, 0.0)
    log_slope = _normalized(log_a + exponent)[1] - share.log() - (math.log(len(c)) + LOG_ROOT)
    return side, share, apart, middle, log_slope


def _logit_of_normals(x: Tensor, log_a: Tensor, shift: Tensor) -> Output:
    """log D - log(1 - D) for the mean D of Phi(c), c = a x + b, and the log of its slope."""
    side, share, apart, middle, log_slope = _smaller_tail(x, log_a, shift)
    log_scale = -apart * apart / 2
    log_rest = log1p(-share * log_scale.exp())
    far, near = log_rest - log_scale - share.log(), log1p(2 * middle / share)
    return side * torch.where(apart > 0, far, near), log_slope - log_rest


def _evaluate(x: Tensor, log_w: Tensor, log_a: Tensor, center: Tensor) -> Output:
    near = x.clamp(-FARTHEST, FARTHEST)
    c = log_a.exp() * (near - center)
    below, above = -softplus(-c), -softplus(c)  # log sigmoid(c), log sigmoid(-c)
    log_r, log_cdf = _normalized(log_w + below)
    log_q, log_rest = _normalized(log_w + above)
    log_slope = torch.cat([log_r + log_a + above, log_q + log_a + below]).logsumexp(0)
    return log_cdf - log_rest + (x - near) * log_slope.exp(), log_slope


def _evaluate_dense(x: Tensor, *given: Tensor) -> Output:
    near = x.clamp(-FARTHEST, FARTHEST)
    values, log_slope = near.unsqueeze(0), torch.zeros_like(near).unsqueeze(0)
    for i in range(0, len(given), 4):
        log_u, log_w, log_a, center = given[i : i + 4]
        inner = (log_u.exp() * values.unsqueeze(1)).sum(0) if i else values
        log_inner = (log_u + log_slope.unsqueeze(1)).logsumexp(0) if i else log_slope
        log_inner = (log_inner + log_a).unsqueeze(1)
        c = (log_a.exp() * (inner - center)).unsqueeze(1)
        below, above = -softplus(-c), -softplus(c)  # log sigmoid(c), log sigmoid(-c)
        log_r, log_cdf = _normalized(log_w + below)
        log_q, log_rest = _normalized(log_w + above)
        terms = [log_r + log_inner + above, log_q + log_inner + below]
        values, log_slope = log_cdf - log_rest, torch.cat(terms).logsumexp(0)
    return values[0] + (x - near) * log_slope[0].exp(), log_slope[0]


def _to_normal(logit: Tensor) -> Output:
    """The normal quantile of sigmoid(logit), and the log of its slope; from the smaller tail."""
    sign, size = split_sign(logit)
    t = tail_quantile(-softplus(size))
    return sign * t, log_mills(t) - softplus(-size)


def _from_normal(z: Tensor) -> Output:
    """The logit of Phi(z), and the log of its slope."""
    sign, t = split_sign(z)
    log_share = log_tail(t)
    size = log1p(-log_share.exp()) - log_share
    return sign * size, softplus(-size) - log_mills(t)


def _normalized(logits: Tensor) -> Output:
    """The logs of a softmax over the first axis, exact next to the largest, and of its denominator."""
    largest = logits.detach().amax(0)
    offset = logits - largest
    total = offset.exp().sum(0).log()
    return offset - total, largest + total
