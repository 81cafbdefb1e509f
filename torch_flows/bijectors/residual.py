"""Residual maps: the identity plus something small enough to stay invertible."""

import math

import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.series import tanh_series
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.numerics import log_sech2, log_softplus, softplus
from torch_flows.registry import register

_TANH_SERIES = tanh_series(17)
_DETACHED_STEPS, _DIFFERENTIABLE_STEPS = 6, 2


@register
class Planar(Bijector):
    """z = x + u_hat tanh(w.x + b), u_hat = u + (m(w.u) - w.u) w / |w|^2, m(v) = -1 + softplus(v).

    With a = w.x + b and s = 1 + w.u_hat = softplus(w.u) > 0, the determinant is
    s sech(a)^2 + tanh(a)^2, which is positive for every weight. The inverse solves the scalar
    equation a - tanh(a) + s tanh(a) = w.z + b by monotone Newton steps, to a few eps, and its
    gradients are those of the exact solution.

    Args:
        dim: number of dimensions.
        context_dim: width of the context, 0 for none; (w, u, b) then get a term linear in it.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Reference: Rezende and Mohamed (2015), arXiv:1505.05770; amortised weights as in van den Berg et
    al. (2018), arXiv:1803.05649.
    """

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        checks.positive_int("Planar", dim=dim)
        checks.non_negative_int("Planar", context_dim=context_dim)
        self.dim = dim
        self.context_dim = context_dim
        self.event_shape = (dim,)
        w = torch.randn(dim)
        # w.u = log(e - 1) is where w.u_hat = 0, so that the map starts near the identity
        self.w = nn.Parameter(w)
        self.u = nn.Parameter(math.log(math.e - 1) * w / w.square().sum() + 0.01 * torch.randn(dim))
        self.b = nn.Parameter(torch.randn(()))
        if context_dim:
            self.context_weight = nn.Parameter(torch.zeros(2 * dim + 1, context_dim))

    def _forward(self, x: Tensor, context: Tensor | None) -> Output:
        w, b, u_hat, s, log_s = self._constrained(context)
        a = (w * x).sum(-1) + b
        return x + u_hat * a.tanh().unsqueeze(-1), _log_det(a, s, log_s)

    def _inverse(self, z: Tensor, context: Tensor | None) -> Output:
        w, b, u_hat, s, log_s = self._constrained(context)
        a = _solve((w * z).sum(-1) + b, s)
        return z - u_hat * a.tanh().unsqueeze(-1), -_log_det(a, s, log_s)

    def _constrained(self, context: Tensor | None) -> tuple[Tensor, ...]:
        w: Tensor = self.w
        u: Tensor = self.u
        b: Tensor = self.b
        if context is not None:
            offset = context @ self.context_weight.T
            w, u = w + offset[..., : self.dim], u + offset[..., self.dim : -1]
            b = b + offset[..., -1]
        wu = (w * u).sum(-1)
        norm2 = w.square().sum(-1)
        moving = norm2 > 0  # at w = 0 the map is a translation: w.u_hat is 0 whatever u is
        step = (softplus(-wu) - 1) / torch.where(moving, norm2, 1)
        s = torch.where(moving, softplus(wu), 1)
        log_s = torch.where(moving, log_softplus(wu), 0)
        return w, b, u + step.unsqueeze(-1) * w, s, log_s


def _log_det(a: Tensor, s: Tensor, log_s: Tensor) -> Tensor:
    """log(s sech(a)^2 + tanh(a)^2), by the form that does not cancel where it stands."""
    t, log_h = a.tanh(), log_sech2(a)
    excess = (s - 1) * log_h.exp()
    mild = excess > -0.5
    log_sh = log_s + log_h
    steep = ~mild & (2 * t.abs().clamp_min(1e-30).log() > log_sh)
    log_t2 = torch.where(steep, t, 1).square().log()
    ratio = t * (torch.where(mild | steep, 0, -log_sh / 2)).exp()
    return torch.where(
        mild,
        torch.where(mild, excess, 0).log1p(),
        torch.where(
            steep,
            log_t2 + torch.where(steep, log_sh - log_t2, 0).exp().log1p(),
            log_sh + ratio.square().log1p(),
        ),
    )


def _excess(a: Tensor) -> Tensor:
    """a - tanh(a), by its series near 0."""
    small = a.abs() < 0.5
    near = torch.where(small, a, 0)
    square = near.square()
    total = torch.full_like(a, -_TANH_SERIES[-1])
    for coefficient in reversed(_TANH_SERIES[1:-1]):
        total = total * square - coefficient
    return torch.where(small, near * square * total, a - a.tanh())


def _newton_step(a: Tensor, t: Tensor, s: Tensor) -> Tensor:
    tanh = a.tanh()
    slope = tanh.square() + s * (1 - tanh) * (1 + tanh)
    return a - (_excess(a) + s * tanh - t) / slope


def _solve(t: Tensor, s: Tensor) -> Tensor:
    """The root a of a - tanh(a) + s tanh(a) = t.

    The left side is odd, and on one side of 0 convex (s < 1) or concave (s >= 1): from a start beyond
    the root (below it for s >= 1) Newton's steps are monotone. The last two steps carry gradients,
    which makes derivatives up to the third exact at the root.
    """
    t, s = torch.broadcast_tensors(t, s)
    fixed_t, scale = t.detach(), s.detach().clamp_min(torch.finfo(s.dtype).tiny)
    magnitude = fixed_t.abs()
    cubic = (5 * magnitude).pow(1 / 3)
    upper = torch.minimum(magnitude / scale, magnitude + 1)
    upper = torch.where(cubic <= 1, torch.minimum(upper, cubic), upper)
    lower = torch.maximum(magnitude / scale, magnitude + 1 - scale)
    a = torch.where(scale < 1, upper, lower)
    for _ in range(_DETACHED_STEPS):
        a = _newton_step(a, magnitude, scale)
    a = torch.copysign(a, fixed_t)
    for _ in range(_DIFFERENTIABLE_STEPS):
        a = _newton_step(a, t, s)
    return a
