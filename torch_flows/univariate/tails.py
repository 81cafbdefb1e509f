"""The tail of the normal distribution in logarithms, and maps made of it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flow_bridge.univariate import slope_offset
from torch_flows.numerics import DIFFERENTIABLE_STEPS, at_least_float32, log1p, softplus
from torch_flows.registry import register
from torch_flows.univariate.base import Output, UnivariateMap, unstack

LOG_ROOT = math.log(2 * math.pi) / 2
DEPTH, SPLIT = 24, 4.5
"""Of the continued fraction for the tail, which takes over from here."""

QUANTILE = (2.515517, 0.802853, 0.010328), (1.432788, 0.189269, 0.001308)
STEPS = 3
"""Hastings' approximation of the quantile of a tail (Abramowitz and Stegun, 26.2.23), and Newton's steps."""


def log_mills(t: Tensor) -> Tensor:
    """log(Phi(-t) / phi(t)) of the standard normal, for t from 0 on."""
    far = t > SPLIT
    near = torch.where(far, 0, t)
    inside = (near / math.sqrt(2)).erfc().log() - math.log(2) + near * near / 2 + LOG_ROOT
    apart = torch.where(far, t, SPLIT)
    fraction = apart
    for i in reversed(range(1, DEPTH)):
        fraction = apart + i / fraction
    return torch.where(far, -fraction.log(), inside)


def log_tail(t: Tensor) -> Tensor:
    """log Phi(-t) of the standard normal, for t from 0 on."""
    return log_mills(t) - t * t / 2 - LOG_ROOT


def tail_quantile(log_share: Tensor) -> Tensor:
    """The t with log Phi(-t) = ``log_share``, from log(1/2) down; exact gradients.

    Newton's steps from an approximation that is right to 5e-4 near the middle, and to 0.1 far out, where
    a step squares an error and divides it by t.
    """
    fixed = log_share.detach()
    start = (-2 * fixed).sqrt()
    (a, b, c), (d, e, f) = QUANTILE
    t = start - (a + start * (b + start * c)) / (1 + start * (d + start * (e + start * f)))
    for _ in range(STEPS):
        log_ratio = log_mills(t)
        t = t + (log_ratio - t * t / 2 - LOG_ROOT - fixed) * log_ratio.exp()
    t = t.clamp_min(0)
    for _ in range(DIFFERENTIABLE_STEPS if torch.is_grad_enabled() else 0):
        log_ratio = log_mills(t)
        residual = log_ratio - t * t / 2 - LOG_ROOT - log_share
        t = t + (residual - residual.detach()) * log_ratio.exp()
    return torch.where(start.isinf(), start, t)


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
        negative = moved < 0
        index = torch.where(negative, left, right)
        growth = log1p(index * torch.where(negative, -moved, moved) * (-log_scale).exp())
        t = tail_quantile(-growth / index - math.log(2))
        z = torch.where(negative, -t, t)
        return z.to(x.dtype), (log_mills(t) - log_scale - growth).to(x.dtype)

    def inverse(self, z: Tensor, parameters: Any) -> Output:
        center, log_scale, left, right = self._constrained(parameters)
        wide = at_least_float32(z)
        negative = wide < 0
        index = torch.where(negative, left, right)
        t = torch.where(negative, -wide, wide)
        growth = -index * (log_tail(t) + math.log(2))
        u = log_scale.exp() * growth.expm1() / index
        x = center + torch.where(negative, -u, u)
        return x.to(z.dtype), (log_scale + growth - log_mills(t)).to(z.dtype)

    def _constrained(self, parameters: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """m, log s, and h on the left and on the right."""
        center, log_scale, *raw = (at_least_float32(p) for p in unstack(parameters))
        left, right = (1e-3 + softplus(r + slope_offset(0.901)) for r in raw)
        return center, log_scale + math.log(math.pi / 2) / 2, left, right
