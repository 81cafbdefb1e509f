"""The inverse of an increasing map that has none in closed form."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flow_bridge.univariate import COMPILED_DOUBLINGS, COMPILED_STEPS, DOUBLINGS, ROOT_STEPS
from torch_flows.numerics import DIFFERENTIABLE_STEPS, differentiable, is_eager
from torch_flows.univariate.base import Output

FARTHEST = 1e30
"""Inverses are searched up to here; beyond it maps are linear to within rounding, and their terms may
overflow."""


def invert(
    evaluate: Callable[..., Output],
    z: Tensor,
    parameters: Sequence[Tensor],
    low: Tensor,
    high: Tensor,
) -> Output:
    """The x with ``evaluate(x, *parameters)[0]`` = z, and log(dx/dz) there.

    x is found without gradients. Two Newton steps whose residual has the value 0 then give it those of
    the exact solution, up to third order, and leave its value as it is. Where the search does not end,
    which only compiled code can meet, x is NaN.

    Args:
        evaluate: the map and the log of its slope, entry by entry.
        low, high: bounds of the solution, up to rounding.
    """
    fixed = [parameter.detach() for parameter in parameters]
    x = _find(evaluate, z.detach(), fixed, low.detach(), high.detach())
    largest = math.log(torch.finfo(x.dtype).max) - 1
    for _ in range(DIFFERENTIABLE_STEPS if differentiable() else 0):
        y, log_slope = evaluate(x, *parameters)
        residual = y - z
        # where the map is flat, 0 must not meet an infinity
        x = x - (residual - residual.detach()) * (-log_slope).clamp_max(largest).exp()
    return x, -evaluate(x, *parameters)[1]


def bracket(
    evaluate: Callable[..., Output], z: Tensor, parameters: Sequence[Tensor], reach: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Bounds of the x with ``evaluate(x, *parameters)[0]`` = z: 0 and ``reach``, or twice that, and so on.

    They are NaN where no number of steps that are allowed reaches z.
    """
    z, fixed = z.detach(), [parameter.detach() for parameter in parameters]
    inner = torch.zeros_like(z)
    sign = torch.where(z < evaluate(inner, *fixed)[0], -1.0, 1.0).to(z.dtype)
    outer = sign * reach
    for _ in range(DOUBLINGS if is_eager() else COMPILED_DOUBLINGS):
        short = sign * (z - evaluate(outer, *fixed)[0]) > 0
        inner, outer = torch.where(short, outer, inner), torch.where(short, 2 * outer, outer)
        if is_eager() and not short.any():
            break
    outer = torch.where(short, math.nan, outer)
    return torch.minimum(inner, outer), torch.maximum(inner, outer)


def _find(
    evaluate: Callable[..., Output],
    z: Tensor,
    parameters: Sequence[Tensor],
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """Newton's steps as long as they stay in the bracket and halve the residual; others halve the
    bracket."""
    eps = torch.finfo(z.dtype).eps
    low, high = low - 8 * eps * low.abs(), high + 8 * eps * high.abs()
    x = low + (high - low) / 2
    last, done = torch.full_like(z, math.inf), x.isnan()
    for _ in range(ROOT_STEPS if is_eager() else COMPILED_STEPS):
        y, log_slope = evaluate(x, *parameters)
        residual = y - z
        size, step = residual.abs(), residual * (-log_slope).exp()
        rounding = 4 * eps * x.abs()
        close = (step.abs() <= rounding) | (high - low <= rounding)
        done = done | close | (size <= 8 * eps * (1 + z.abs()))
        low, high = torch.where(residual <= 0, x, low), torch.where(residual >= 0, x, high)
        newton = x - step
        good = (newton >= low) & (newton <= high) & (size <= last / 2)
        # one more step reaches rounding, unless the map is flat there
        near = step.abs() <= math.sqrt(eps) * x.abs()
        last = torch.where(good, size, math.inf)
        searched = torch.where(good, newton, low + (high - low) / 2)
        x = torch.where(done, torch.where(near, newton, x), searched)
        if is_eager() and done.all():
            break
    return torch.where(done, x, math.nan)
