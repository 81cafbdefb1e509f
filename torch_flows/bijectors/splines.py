"""The monotone rational-quadratic spline of Durkan et al. (2019), arXiv:1906.04032.

Both directions are written in sums of positive terms (xi from the left end of a bin and xi1 from the
right one, never 1 - xi), so that nothing cancels in float32, and the inverse's discriminant is a sum
of squares. Inside, the axis of the parameters leads, so that every step runs along whole rows.
"""

import torch
from torch import Tensor

from flow_bridge.splines import DERIVATIVE_OFFSET, MIN_DERIVATIVE, MIN_SIZE
from torch_flows.numerics import softplus


def rational_quadratic(
    x: Tensor, parameters: Tensor, tail_bound: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """A monotone spline of each entry of x on (-tail_bound, tail_bound), the identity outside.

    Args:
        x: shape ``(*batch,)``.
        parameters: shape ``(*batch, 3 * num_bins - 1)``: of each bin the logits of its width and of
            its height, and of each inner knot its raw derivative. All zeros give the identity.
        tail_bound: where the identity begins; the spline meets it with derivative 1.
        inverse: which way to map.

    Returns:
        The images and the logs of the derivatives, both of x's shape.

    A bin is at least ``MIN_SIZE`` of the box wide and high, a derivative at least ``MIN_DERIVATIVE``.
    """
    outside = x.abs() >= tail_bound
    inner = x.masked_fill(outside, 0)
    ends = select_bin(inner, spline_knots(parameters, tail_bound), inverse)
    y, log_slope = inverse_in_bin(inner, *ends) if inverse else forward_in_bin(inner, *ends)
    return torch.where(outside, x, y), log_slope.masked_fill(outside, 0)


def spline_knots(parameters: Tensor, tail_bound: float) -> Tensor:
    """Positions, heights and raw derivatives of the knots, shape ``(3, num_bins + 1, *batch)``."""
    num_bins = (parameters.shape[-1] + 1) // 3
    logits, raw = parameters.movedim(-1, 0).contiguous().split([2 * num_bins, num_bins - 1])
    shares = logits.unflatten(0, (2, num_bins)).softmax(1).cumsum(1)[:, :-1]
    least = torch.arange(1, num_bins, dtype=raw.dtype, device=raw.device) * MIN_SIZE
    start = tail_bound * (2 * least - 1).view(-1, *[1] * (raw.ndim - 1))
    inner = torch.add(start, shares, alpha=2 * tail_bound * (1 - num_bins * MIN_SIZE))
    first = -tail_bound * (torch.arange(3, device=raw.device) < 2).to(raw.dtype)
    first = first.view(3, 1, *[1] * (raw.ndim - 1)).expand(3, 1, *raw.shape[1:])
    return torch.cat([first, torch.cat([inner, raw.unsqueeze(0)]), -first], 1)


def select_bin(x: Tensor, knots: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """x0, x1, y0, y1, d0, d1 of the half-open bin [x0, x1) (inverse: [y0, y1)) of each entry of x."""
    num_knots = knots.shape[1]
    index = (x >= knots[int(inverse), 1:-1]).sum(0)
    starts = torch.arange(3, device=x.device).view(3, 1) * num_knots
    offsets = (starts + torch.arange(2, device=x.device)).view(6, *[1] * x.ndim)
    ends = knots.flatten(0, 1).gather(0, index + offsets)
    raw = ends[4:]
    return *ends[:4].unbind(), *(MIN_DERIVATIVE + softplus(raw + DERIVATIVE_OFFSET)).unbind()


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
