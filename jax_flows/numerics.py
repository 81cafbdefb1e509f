"""Scalar functions in the form that holds up far from the origin."""

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.domains import REALS, Interval

DETACHED_STEPS, DIFFERENTIABLE_STEPS = 3, 2


def as_int32(index: np.ndarray) -> np.ndarray:
    """Positions as JAX can have them in both of its modes: it takes an array that it met in 64-bit mode
    for one of 64 bits ever after."""
    return index.astype(np.int32)


def log1p(x: Array) -> Array:
    """log(1 + x), to a few ULP in both frameworks (XLA's is 128 off near -0.41 in float64)."""
    small = jnp.abs(x) < 0.25
    return jnp.where(small, jnp.log1p(jnp.where(small, x, 0)), jnp.log(1 + x))


@jax.custom_jvp
def divide(a: Array, b: Array) -> Array:
    """a / b, whose derivatives do not square b, which may over- or underflow (JAX's own do)."""
    return a / b


@divide.defjvp
def _divide_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    a, b = primals
    da, db = tangents
    quotient = divide(a, b)
    return quotient, divide(da - quotient * db, b)


def with_partials(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function entry by entry, whose partial derivatives are computed with its values.

    Gradients are then sums of products, which XLA on a CPU may compute anew wherever they are read.
    """
    with_values = jax.custom_jvp(function)

    @with_values.defjvp
    def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Any, Any]:
        outputs, tree = jax.tree.flatten(function(*primals))
        slopes = []
        for i, output in enumerate(outputs):
            _, pull = jax.vjp(lambda *inputs, i=i: jax.tree.leaves(function(*inputs))[i], *primals)
            partials = pull(jnp.ones_like(output))
            slopes.append(sum(p * t for p, t in zip(partials, tangents, strict=True)))
        return jax.tree.unflatten(tree, outputs), jax.tree.unflatten(tree, slopes)

    @wraps(function)
    def broadcast(*inputs: Array) -> Any:
        return with_values(*jnp.broadcast_arrays(*inputs))

    return broadcast


def absolute(x: Array) -> Array:
    """|x|, whose derivative at 0 is 0 in both frameworks (JAX's own is 1)."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def split_sign(x: Array) -> tuple[Array, Array]:
    """A sign and |x|, whose derivative is that sign, at 0 too."""
    fixed = jax.lax.stop_gradient(x)
    sign = jnp.copysign(jnp.ones_like(fixed), fixed)
    return sign, sign * x


def quotient(s: Array, above: Sequence[float], below: Sequence[float]) -> Array:
    """Of two polynomials, their coefficients from the highest power on; without gradients."""
    s = jax.lax.stop_gradient(s)
    values = []
    for first, *rest in (above, below):
        value = jnp.full_like(s, first)
        for coefficient in rest:
            value = value * s + coefficient
        values.append(value)
    return values[0] / values[1]


def derivatives(x: Array, first: Array, second: Array | float, third: Array | float) -> Array:
    """Zeros, with these derivatives in x, which are numbers without gradients.

    What is computed without gradients gets exact ones by adding them.
    """
    change = x - jax.lax.stop_gradient(x)
    return change * (first + change * (second / 2 + change * (third / 6)))


def tanh(x: Array) -> Array:
    """tanh(x), 1 from 9.02 in float32 in both frameworks (XLA's own is 1 from 8.0 on a CPU)."""
    positive = x > 0
    below = jnp.where(positive, -x, x)
    exp, excess = jnp.exp(2 * below), jnp.expm1(2 * below)
    value = jnp.where(below < -1, 2 * exp / (1 + exp) - 1, excess / (2 + excess))
    return jnp.where(positive, -value, value)


def softplus(x: Array) -> Array:
    """log(1 + e^x), exact at every x."""
    return jnp.logaddexp(x, jnp.zeros_like(x))


def log_softplus(x: Array) -> Array:
    """log(log(1 + e^x)) without underflow: x - e^x/2 + 5 e^(2x)/24 for x < -15."""
    low = x < -15
    tail = jnp.where(low, x, -15.0)
    exp = jnp.exp(tail)
    return jnp.where(
        low, tail - exp / 2 + 5 * exp * exp / 24, jnp.log(softplus(jnp.where(low, -15.0, x)))
    )


def log_sech2(x: Array) -> Array:
    """log(1 - tanh(x)^2) = 2 log 2 - 2 log(e^x + e^-x)."""
    return 2 * (math.log(2) - jnp.logaddexp(x, -x))


def beyond(x: Array, intervals: Sequence[Interval], event_ndim: int) -> Array:
    """Which events are free of NaN and have an entry outside the interval, one or one of each entry."""
    axes, interval = tuple(range(-event_ndim, 0)), intervals[0]
    if any(other != interval for other in intervals):
        found = [beyond(x[..., i : i + 1], [own], 1) for i, own in enumerate(intervals)]
        return jnp.stack(found).any(0) & ~jnp.isnan(x).any(axes)
    if interval == REALS:
        return jnp.abs(x).max(axes) == math.inf
    if interval.closed:
        return (x.min(axes) < interval.low) | (x.max(axes) > interval.high)
    return (x.min(axes) <= interval.low) | (x.max(axes) >= interval.high)


def moved_inside(x: Array, rows: Array, intervals: Sequence[Interval], event_ndim: int) -> Array:
    """x, in these rows a point inside the intervals: they then have the gradient 0, not NaN."""
    if all(interval == REALS for interval in intervals):
        return x
    middle = [interval.middle for interval in intervals]
    inside = middle[0] if len(middle) == 1 else jnp.array(middle, x.dtype)
    return jnp.where(rows.reshape(*rows.shape, *[1] * event_ndim), inside, x)


def at_least_float32(x: Array) -> Array:
    """x, in float32 if its dtype has fewer bits: for what has no kernel or no digits there."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def check_constants(owner: Any, like: Array, **values: float) -> None:
    """Raise ``ValueError`` unless the dtype holds the constants: every one but float16 does."""
    if like.dtype == jnp.float16:
        largest = float(jnp.finfo(like.dtype).max)
        checks.held_by(type(owner).__name__, "float16", largest, **values)


def sum_event(x: Array, event_ndim: int) -> Array:
    """Sum over the last ``event_ndim`` axes."""
    return x.sum(tuple(range(-event_ndim, 0)))


def matmul_precision() -> jax.lax.Precision:
    """Full precision, as PyTorch's default, for every product that is not a conditioner's."""
    return jax.lax.Precision.HIGHEST


def conditioner_operands(a: Array, b: Array) -> tuple[Array, Array, dict[str, Any]]:
    """The factors of a product of a conditioner, and the options of ``jnp.matmul`` that go with them.

    Full precision, unless the user has stated another for JAX. Under
    ``jax.default_matmul_precision("bfloat16")`` float32 factors are rounded to bfloat16 and their
    products added up in float32, on every platform (XLA does so only where it is faster).
    """
    stated = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if stated == "bfloat16" and a.dtype == jnp.float32:
        options = {"preferred_element_type": a.dtype}
        return a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), options
    return a, b, {"precision": None if stated else matmul_precision()}


def in_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    """A map of x that computes in float32 where x has fewer bits, and returns x's dtype."""

    @wraps(method)
    def run(self: Any, variables: Any, x: Array, *args: Any) -> Any:
        output, log_det, *rest = method(self, variables, at_least_float32(x), *args)
        return output.astype(x.dtype), log_det.astype(x.dtype), *rest

    return run


def random_bits(step: Array, stream: int, shape: Sequence[int]) -> Array:
    """32 random bits for every entry, as a function of a counter: the same bits in both frameworks.

    Training noise comes from here, so that it needs no key, is pure, and is converted and saved with
    the weights.

    Args:
        step: the counter, a whole number in a float scalar.
        stream: which of several independent draws at this step.
        shape: the shape of the draw.
    """
    counter = jnp.floor(_finite(jax.lax.stop_gradient(step))).astype(jnp.int32).astype(jnp.uint32)
    seed = _mix(_mix(counter) + stream)
    index = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(tuple(shape))
    return _mix(seed + index * jnp.uint32(0x9E3779B9))


def _mix(x: Array) -> Array:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def rademacher(step: Array, stream: int, shape: Sequence[int]) -> Array:
    """Independent signs, from ``random_bits``, in the dtype of ``step``."""
    return (random_bits(step, stream, shape) >> 31).astype(step.dtype) * 2 - 1


def gaussian(step: Array, stream: int, shape: Sequence[int]) -> Array:
    """Independent standard normals, from ``random_bits``, in the dtype of ``step``."""
    bits = random_bits(step, stream, (2, *shape)).astype(at_least_float32(step).dtype)
    uniform, angle = (bits + 0.5) / 2**32
    return (jnp.sqrt(-2 * jnp.log(uniform)) * jnp.cos(2 * math.pi * angle)).astype(step.dtype)


def first_step(key: Array, dtype: Any) -> Array:
    """A random start of the counter of ``random_bits``."""
    return jnp.floor(jax.random.uniform(key, (), dtype) * _period(dtype))


def next_step(step: Array) -> Array:
    """The counter after one step; it starts again before its dtype would stop counting."""
    return (_finite(step) + 1) % _period(step.dtype)


def _finite(step: Array) -> Array:
    """A counter; 0 where it was too large for a dtype that it has been converted to."""
    return jnp.where(jnp.isfinite(step), step, 0)


def _period(dtype: Any) -> float:
    return min(2.0**23, 1 / float(jnp.finfo(dtype).eps))


def is_eager(x: Array) -> bool:
    """Whether x is a plain array: where it is not, values cannot be looked at."""
    return not isinstance(x, jax.core.Tracer)


def norm(x: Array) -> Array:
    """|x| over the last axis, without overflow, and with gradient 0 at x = 0."""
    largest = jax.lax.stop_gradient(jnp.abs(x)).max(-1, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1)
    square = jnp.square(x / scale).sum(-1)
    moving = square > 0
    # not times the scale: XLA may compute x anew for that, rounded to 0, which made this 1
    return jnp.where(moving, largest[..., 0] * jnp.sqrt(jnp.where(moving, square, 1)), square)
