"""Scalar functions in the form that holds up far from the origin."""

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from flow_bridge import checks
from flow_bridge.domains import REALS, Interval

DETACHED_STEPS, DIFFERENTIABLE_STEPS = 3, 2

KERNELS = torch.float32, torch.bfloat16


def log1p(x: Tensor) -> Tensor:
    """log(1 + x), to a few ULP in both frameworks (XLA's is 128 off near -0.41 in float64)."""
    return x.log1p()


def divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, whose derivatives do not square b, which may over- or underflow (JAX's own do)."""
    return a / b


def absolute(x: Tensor) -> Tensor:
    """|x|, whose derivative at 0 is 0 in both frameworks (JAX's own is 1)."""
    return x.abs()


def split_sign(x: Tensor) -> tuple[Tensor, Tensor]:
    """A sign and |x|, whose derivative is that sign, at 0 too."""
    fixed = x.detach()
    sign = torch.ones_like(fixed).copysign(fixed)
    return sign, sign * x


def quotient(s: Tensor, above: Sequence[float], below: Sequence[float]) -> Tensor:
    """Of two polynomials, their coefficients from the highest power on; without gradients."""
    s, values = s.detach(), []
    # as arrays: a number would be converted at every step
    coefficients = s.new_tensor((*above, *below)).unbind()
    for value, *rest in (coefficients[: len(above)], coefficients[len(above) :]):
        for coefficient in rest:
            value = torch.addcmul(coefficient, value, s)
        values.append(value)
    return values[0] / values[1]


def derivatives(x: Tensor, first: Tensor, second: Tensor | float, third: Tensor | float) -> Tensor:
    """Zeros, with these derivatives in x, which are numbers without gradients.

    What is computed without gradients gets exact ones by adding them.
    """
    change = x - x.detach()
    return change * (first + change * (second / 2 + change * (third / 6)))


def tanh(x: Tensor) -> Tensor:
    """tanh(x), 1 from 9.02 in float32 in both frameworks (XLA's own is 1 from 8.0 on a CPU)."""
    return x.tanh()


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact at every x (``torch.nn.functional.softplus`` is linear above 20)."""
    return torch.logaddexp(x, torch.zeros_like(x))


def log_softplus(x: Tensor) -> Tensor:
    """log(log(1 + e^x)) without underflow: x - e^x/2 + 5 e^(2x)/24 for x < -15."""
    low = x < -15
    tail = torch.where(low, x, -15.0)
    exp = tail.exp()
    return torch.where(
        low, tail - exp / 2 + 5 * exp * exp / 24, softplus(torch.where(low, -15.0, x)).log()
    )


def log_sech2(x: Tensor) -> Tensor:
    """log(1 - tanh(x)^2) = 2 log 2 - 2 log(e^x + e^-x)."""
    return 2 * (math.log(2) - torch.logaddexp(x, -x))


def beyond(x: Tensor, intervals: Sequence[Interval], event_ndim: int) -> Tensor:
    """Which events are free of NaN and have an entry outside the interval, one or one of each entry."""
    axes, interval = tuple(range(-event_ndim, 0)), intervals[0]
    if any(other != interval for other in intervals):
        found = [beyond(x[..., i : i + 1], [own], 1) for i, own in enumerate(intervals)]
        return torch.stack(found).any(0) & ~x.isnan().any(axes)
    if interval == REALS:
        return x.abs().amax(axes) == math.inf
    if interval.closed:
        return (x.amin(axes) < interval.low) | (x.amax(axes) > interval.high)
    return (x.amin(axes) <= interval.low) | (x.amax(axes) >= interval.high)


def moved_inside(x: Tensor, rows: Tensor, intervals: Sequence[Interval], event_ndim: int) -> Tensor:
    """x, in these rows a point inside the intervals: they then have the gradient 0, not NaN."""
    if all(interval == REALS for interval in intervals):
        return x
    middle = [interval.middle for interval in intervals]
    inside = middle[0] if len(middle) == 1 else x.new_tensor(middle)
    return torch.where(rows.reshape(*rows.shape, *[1] * event_ndim), inside, x)


def at_least_float32(x: Tensor) -> Tensor:
    """x, in float32 if its dtype has fewer bits: for what has no kernel or no digits there."""
    return x.float() if x.dtype.itemsize < 4 else x


def check_constants(owner: Any, like: Tensor, **values: float) -> None:
    """Raise ``ValueError`` unless the dtype holds the constants: every one but float16 does."""
    if like.dtype == torch.float16:
        largest = torch.finfo(like.dtype).max
        checks.held_by(type(owner).__name__, "float16", largest, **values)


def sum_event(x: Tensor, event_ndim: int) -> Tensor:
    """Sum over the last ``event_ndim`` axes."""
    return x.sum(-1) if event_ndim == 1 else x.sum(tuple(range(-event_ndim, 0)))


def full_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of x that computes in x's dtype under ``torch.autocast``, which is for conditioners."""

    @wraps(method)
    def run(self: Any, x: Tensor, *args: Any) -> Any:
        device = x.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return method(self, x, *args)
        with torch.autocast(device, enabled=False):
            return method(self, x, *args)

    return run


def in_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    """A map of x that computes in float32 where x has fewer bits, and returns x's dtype."""

    @wraps(method)
    def run(self: Any, x: Tensor, *args: Any) -> Any:
        output, log_det = method(self, at_least_float32(x), *args)
        return output.to(x.dtype), log_det.to(x.dtype)

    return run


def random_bits(step: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """32 random bits for every entry, as a function of a counter: the same bits in both frameworks.

    Training noise comes from here, so that it needs no generator, is pure, and is converted and
    saved with the weights.

    Args:
        step: the counter, a whole number in a float scalar.
        stream: which of several independent draws at this step.
        shape: the shape of the draw.
    """
    seed = _mix(_mix(_finite(step.detach()).floor().to(torch.int64)) + stream)
    index = torch.arange(math.prod(shape), device=step.device).reshape(tuple(shape))
    return _mix(seed + index * 0x9E3779B9)


def _mix(x: Tensor) -> Tensor:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = x & 0xFFFFFFFF
        x = (x ^ (x >> shift)) * factor
    x = x & 0xFFFFFFFF
    return x ^ (x >> 16)


def rademacher(step: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Independent signs, from ``random_bits``, in the dtype of ``step``."""
    return ((random_bits(step, stream, shape) >> 31) * 2 - 1).to(step.dtype)


def gaussian(step: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Independent standard normals, from ``random_bits``, in the dtype of ``step``."""
    bits = random_bits(step, stream, (2, *shape)).to(at_least_float32(step).dtype)
    uniform, angle = (bits + 0.5) / 2**32
    return ((-2 * uniform.log()).sqrt() * (2 * math.pi * angle).cos()).to(step.dtype)


def first_step(like: Tensor) -> Tensor:
    """A random start of the counter of ``random_bits``, in the dtype of ``like``."""
    return (torch.rand_like(like) * _period(like)).floor()


def next_step(step: Tensor) -> Tensor:
    """The counter after one step; it starts again before its dtype would stop counting."""
    return (_finite(step) + 1) % _period(step)


def advance(step: Tensor) -> None:
    """Set the counter to ``next_step``; by a view, as ``torch.compile`` loses changes of float64 scalars."""
    step.view(1).copy_(next_step(step).view(1))


def _finite(step: Tensor) -> Tensor:
    """A counter; 0 where it was too large for a dtype that it has been converted to."""
    return torch.where(step.isfinite(), step, 0)


def _period(step: Tensor) -> float:
    return min(2.0**23, 1 / torch.finfo(step.dtype).eps)


def is_eager() -> bool:
    """Whether code runs on plain tensors: where it does not, values cannot be looked at."""
    transformed = torch._C._are_functorch_transforms_active()
    return not (torch.compiler.is_compiling() or transformed)


def unbound(x: Tensor, axis: int) -> Sequence[Tensor]:
    """The parts of x along an axis, where x is used as a whole too.

    A compiled backward pass (PyTorch 2.13) keeps what ``unbind`` returns beside x, as if they had memory of
    their own, and overwrites one before it has read the other.
    """
    if is_eager():
        return x.unbind(axis)
    return [x.select(axis, i) for i in range(x.shape[axis])]


def differentiable() -> bool:
    """Whether derivatives may be asked for: forward mode has them under ``torch.no_grad`` too."""
    return torch.is_grad_enabled() or in_forward_mode()


def in_forward_mode() -> bool:
    """Whether forward mode differentiates by something: an input, or weights."""
    return forward_ad._current_level >= 0


def has_tangent(x: Tensor) -> bool:
    """Whether forward mode differentiates by x."""
    return in_forward_mode() and forward_ad.unpack_dual(x).tangent is not None


def takes_kernels(*inputs: Tensor) -> bool:
    """Whether PyTorch's fused kernels, whose higher derivatives are wrong or missing, may compute with these.

    They may in float32 and bfloat16; float64 stays with the plain form, which JAX has too.
    """
    kind = inputs[0].dtype
    if not is_eager() or kind not in KERNELS or any(x.dtype != kind for x in inputs):
        return False
    return not any(map(has_tangent, inputs))


def recomputed(
    ctx: Any, function: Callable[..., Tensor], inputs: Sequence[Any], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """The backward pass of a ``torch.autograd.Function``, by differentiating a plain one anew."""
    needed, again = ctx.needs_input_grad, torch.is_grad_enabled()
    with torch.enable_grad():
        # views, as one tensor may be several of the inputs
        given = [x.view_as(x) if need else x for x, need in zip(inputs, needed, strict=True)]
        wanted = [x for x, need in zip(given, needed, strict=True) if need]
        found = torch.autograd.grad(function(*given), wanted, gradient, create_graph=again)
    rest = iter(found)
    return tuple(next(rest) if need else None for need in needed)


def loops() -> bool:
    """Whether ``torch.compile`` is at work, for which a loop may be one operation; exporters unroll loops."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return not torch._C._are_functorch_transforms_active()


def norm(x: Tensor) -> Tensor:
    """|x| over the last axis, without overflow, and with gradient 0 at x = 0."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1)
    square = (x / scale).square().sum(-1)
    moving = square > 0
    # not times the scale: XLA may compute x anew for that, rounded to 0, which made this 1
    return torch.where(moving, largest.squeeze(-1) * torch.where(moving, square, 1).sqrt(), square)
