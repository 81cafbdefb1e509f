"""The tail of the normal distribution in logarithms, and maps made of it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flow_bridge.univariate import TAIL_EXCESS, TAIL_SCALE, TAIL_START, slope_offset
from torch_flows.numerics import (
    at_least_float32,
    derivatives,
    differentiable,
    log1p,
    quotient,
    softplus,
    split_sign,
)
from torch_flows.registry import register
from torch_flows.univariate.base import Output, UnivariateMap, unstack

LOG_ROOT = math.log(2 * math.pi) / 2


def tail_excess(t: Tensor) -> Tensor:
    """phi(t) / Phi(-t) - t of the standard normal, for t from 0 on: about 1 / t far out. No gradients."""
    fixed = t.detach()
    s = TAIL_SCALE / (TAIL_SCALE + fixed)
    return s * quotient(s, *TAIL_EXCESS[torch.finfo(t.dtype).bits])


def log_mills(t: Tensor) -> Tensor:
    """log(Phi(-t) / phi(t)) of the standard normal, for t from 0 on."""
    fixed = t.detach()
    excess = tail_excess(fixed)
    value = -(fixed + excess).log()
    if not differentiable():
        return value
    near = t.clamp_max(torch.finfo(t.dtype).max)  # not an infinity less itself
    first, fixed = -excess, near.detach()
    second = 1 - excess * (fixed + excess)
    third = second * (fixed + 2 * excess) - excess
    return value + derivatives(near, first, second, third)


def log_tail(t: Tensor) -> Tensor:
    """log Phi(-t) of the standard normal, for t from 0 on."""
    return log_mills(t) - t * t / 2 - LOG_ROOT


def tail_quantile(log_share: Tensor) -> Tensor:
    """The t with log Phi(-t) = ``log_share``, from log(1/2) down; exact gradients."""
    fixed = log_share.detach()
    root = (-2 * fixed).sqrt()
    near = root.clamp_max(math.sqrt(torch.finfo(root.dtype).max))
    v = 1 / (1 + near)
    bits = torch.finfo(root.dtype).bits
    t = near - v * quotient(v, *TAIL_START[bits])
    if bits == 64:
        excess = tail_excess(t)
        slope = t + excess
        step = (-slope.log() - t / 2 * t - LOG_ROOT - fixed) / slope
        t = t + step / (1 + step * excess / 2)
    t = t.clamp_min(0)
    if differentiable():
        excess = tail_excess(t)
        ratio = 1 / (t + excess)
        second = -excess * ratio * ratio
        third = ((excess * (t + excess) - 1) - 2 * excess * excess) * ratio * ratio * ratio
        finite = log_share.clamp_min(torch.finfo(root.dtype).min)
        t = t + derivatives(finite, -ratio, second, third)
    return torch.where(root.isinf(), root, t)


@register
@dataclass(frozen=True)
class TailMap(UnivariateMap):
    """Heavy tails to normal ones: with u = (x - m) / s and the tail index h of the side that u is on,

        log Phi(-|z|) = -log(1 + h |u|) / h - log 2,   z of the sign of u.

    If z is normal, |x| has the tail of a Pareto distribution: P(|u| > r) = (1 + h r)^(-1 / h), whose
    moments exist below 1 / h. Onto the reals and once continuously differentiable. The inverse is
    |u| = (exp(-h (log Phi(-|z|) + log 2)) - 1) / h.

    Four parameters: m, a raw number a for s = exp(a) sqrt(pi / 2), and raw numbers r for
    h = softplus(r + c) + 1e-3 on the left and on the right. With zeros both h are 0.1, and the slope is
    1 at 0.

    Reference: Hickling and Prangle (2024), arXiv:2406.16971, as the last layer of a sampler.
    """

    separable = True

    @property
    def num_parameters(self) -> int:
        return 4

    def forward(self, x: Tensor, parameters: Any) -> Output:
        center, log_scale, left, right = self._constrained(parameters)
        moved = at_least_float32(x) - center
        sign, distance = split_sign(moved)
        index = torch.where(sign < 0, left, right)
        growth = log1p(index * distance * (-log_scale).exp())
        t = tail_quantile(-growth / index - math.log(2))
        z = sign * t
        return z.to(x.dtype), (log_mills(t) - log_scale - growth).to(x.dtype)

    def inverse(self, z: Tensor, parameters: Any) -> Output:
        center, log_scale, left, right = self._constrained(parameters)
        sign, t = split_sign(at_least_float32(z))
        index = torch.where(sign < 0, left, right)
        growth = -index * (log_tail(t) + math.log(2))
        u = log_scale.exp() * growth.expm1() / index
        x = center + sign * u
        return x.to(z.dtype), (log_scale + growth - log_mills(t)).to(z.dtype)

    def _constrained(self, parameters: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """m, log s, and h on the left and on the right."""
        center, log_scale, *raw = (at_least_float32(p) for p in unstack(parameters))
        left, right = (1e-3 + softplus(r + slope_offset(0.901)) for r in raw)
        return center, log_scale + math.log(math.pi / 2) / 2, left, right
