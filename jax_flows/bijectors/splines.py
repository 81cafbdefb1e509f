"""The monotone rational-quadratic spline of Durkan et al. (2019), arXiv:1906.04032.

Both directions are written in sums of positive terms (xi from the left end of a bin and xi1 from the
right one, never 1 - xi), so that nothing cancels in float32, and the inverse's discriminant is a sum
of squares.
"""

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge.splines import DERIVATIVE_OFFSET, MIN_DERIVATIVE, MIN_SIZE
from jax_flows.numerics import softplus


def rational_quadratic(
    x: Array, parameters: Array, tail_bound: float, inverse: bool = False
) -> tuple[Array, Array]:
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
    inside = (x > -tail_bound) & (x < tail_bound)
    safe = jnp.where(inside, x, 0)
    knots = spline_knots(parameters, tail_bound)
    y, log_slope = (_inverse if inverse else _forward)(safe, *_select_bin(safe, knots, inverse))
    log_tail = jnp.where(jnp.isnan(x), x, 0)
    return jnp.where(inside, y, x), jnp.where(inside, log_slope, log_tail)


def spline_knots(parameters: Array, tail_bound: float) -> Array:
    """Positions, heights and derivatives of the knots, shape ``(*batch, 3, num_bins + 1)``."""
    num_bins = (parameters.shape[-1] + 1) // 3
    logits = parameters[..., : 2 * num_bins].reshape(*parameters.shape[:-1], 2, num_bins)
    sizes = MIN_SIZE + (1 - num_bins * MIN_SIZE) * jax.nn.softmax(logits)
    inner = tail_bound * (2 * jnp.cumsum(sizes, -1)[..., :-1] - 1)
    raw = parameters[..., None, 2 * num_bins :] + DERIVATIVE_OFFSET
    derivatives = MIN_DERIVATIVE + softplus(raw)
    ends = jnp.array([[tail_bound], [tail_bound], [1]], inner.dtype)
    ends = jnp.broadcast_to(ends, (*inner.shape[:-2], 3, 1))
    starts = jnp.array([[-1], [-1], [1]], inner.dtype) * ends
    return jnp.concatenate([starts, jnp.concatenate([inner, derivatives], -2), ends], -1)


def _select_bin(x: Array, knots: Array, inverse: bool) -> tuple[Array, ...]:
    """x0, x1, y0, y1, d0, d1 of the half-open bin [x0, x1) (inverse: [y0, y1)) of each entry of x."""
    inner = knots[..., int(inverse), 1:-1]
    index = (x[..., None] >= inner).sum(-1, keepdims=True)
    index = jnp.concatenate([index, index + 1], -1)[..., None, :]
    bins = jnp.take_along_axis(knots, index, -1, mode="promise_in_bounds")
    return tuple(bins[..., i, j] for i in range(3) for j in range(2))


def _forward(
    x: Array, x0: Array, x1: Array, y0: Array, y1: Array, d0: Array, d1: Array
) -> tuple[Array, Array]:
    width, height = x1 - x0, y1 - y0
    s = height / width
    xi, xi1 = (x - x0) / width, (x1 - x) / width
    y = y0 + height * xi * (s * xi + d0 * xi1) / _denominator(xi, xi1, s, d0, d1)
    return y, _log_slope(xi, xi1, s, d0, d1)


def _inverse(
    y: Array, x0: Array, x1: Array, y0: Array, y1: Array, d0: Array, d1: Array
) -> tuple[Array, Array]:
    width, height = x1 - x0, y1 - y0
    s = height / width
    e, e1 = (y - y0) / height, (y1 - y) / height
    q = d0 * e1 - d1 * e
    positive = q >= 0
    product = 4 * s * s * e * e1
    larger = jnp.sqrt(q * q + product) + jnp.where(positive, q, -q)
    smaller = product / larger
    left, right = 2 * s * e, 2 * s * e1
    xi = left / (left + jnp.where(positive, larger, smaller))
    xi1 = right / (right + jnp.where(positive, smaller, larger))
    x = jnp.where(xi < 0.5, x0 + xi * width, x1 - xi1 * width)
    return x, -_log_slope(xi, xi1, s, d0, d1)


def _denominator(xi: Array, xi1: Array, s: Array, d0: Array, d1: Array) -> Array:
    return s * (xi * xi + xi1 * xi1) + (d0 + d1) * (xi * xi1)


def _log_slope(xi: Array, xi1: Array, s: Array, d0: Array, d1: Array) -> Array:
    """log(s^2 (d1 xi^2 + 2 s xi xi1 + d0 xi1^2) / denominator^2)."""
    ratio = s / _denominator(xi, xi1, s, d0, d1)
    return jnp.log((d1 * xi * xi + 2 * s * xi * xi1 + d0 * xi1 * xi1) * ratio * ratio)
