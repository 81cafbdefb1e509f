"""The monotone rational-quadratic spline of Durkan et al. (2019), arXiv:1906.04032.

Both directions are written in sums of positive terms (xi from the left end of a bin and xi1 from the
right one, never 1 - xi), so that nothing cancels in float32, and the inverse's discriminant is a sum
of squares. Inside, the axis of the parameters leads, so that every step runs along whole rows.
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
    outside = jnp.abs(x) >= tail_bound
    inner = jnp.where(outside, 0, x)
    ends = select_bin(inner, spline_knots(parameters, tail_bound), inverse)
    y, log_slope = inverse_in_bin(inner, *ends) if inverse else forward_in_bin(inner, *ends)
    return jnp.where(outside, x, y), jnp.where(outside, 0, log_slope)


def spline_knots(parameters: Array, tail_bound: float) -> Array:
    """Positions, heights and raw derivatives of the knots, shape ``(3, num_bins + 1, *batch)``."""
    num_bins = (parameters.shape[-1] + 1) // 3
    logits, raw = jnp.split(jnp.moveaxis(parameters, -1, 0), [2 * num_bins])
    logits = logits.reshape(2, num_bins, *raw.shape[1:])
    shares = jnp.cumsum(jax.nn.softmax(logits, 1), 1)[:, :-1]
    least = jnp.arange(1, num_bins, dtype=raw.dtype) * MIN_SIZE
    start = (tail_bound * (2 * least - 1)).reshape(-1, *[1] * (raw.ndim - 1))
    inner = start + 2 * tail_bound * (1 - num_bins * MIN_SIZE) * shares
    first = -tail_bound * (jnp.arange(3) < 2).astype(raw.dtype)
    first = jnp.broadcast_to(first.reshape(3, 1, *[1] * (raw.ndim - 1)), (3, 1, *raw.shape[1:]))
    return jnp.concatenate([first, jnp.concatenate([inner, raw[None]]), -first], 1)


def select_bin(x: Array, knots: Array, inverse: bool) -> tuple[Array, ...]:
    """x0, x1, y0, y1, d0, d1 of the half-open bin [x0, x1) (inverse: [y0, y1)) of each entry of x."""
    # materialised, or a fusion may round a knot anew and see x on its other side
    knots = jax.lax.optimization_barrier(knots)
    index = (x >= knots[int(inverse), 1:-1]).sum(0)
    columns = knots.reshape(3, knots.shape[1], x.size)
    ends = jax.vmap(_neighbours, (-1, 0), -1)(columns, index.reshape(x.size)).reshape(6, *x.shape)
    raw = ends[4:]
    return *ends[:4], *(MIN_DERIVATIVE + softplus(raw + DERIVATIVE_OFFSET))


def _neighbours(column: Array, index: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(column, index, 2, 1)


def forward_in_bin(
    x: Array, x0: Array, x1: Array, y0: Array, y1: Array, d0: Array, d1: Array
) -> tuple[Array, Array]:
    """y and log(dy/dx) at x in [x0, x1]."""
    per_width, height = 1 / (x1 - x0), y1 - y0
    xi, xi1 = (x - x0) * per_width, (x1 - x) * per_width
    share, log_slope = _evaluate(xi, xi1, height * per_width, d0, d1)
    return y0 + height * share, log_slope


def inverse_in_bin(
    y: Array, x0: Array, x1: Array, y0: Array, y1: Array, d0: Array, d1: Array
) -> tuple[Array, Array]:
    """x and log(dx/dy) at y in [y0, y1].

    With e and e1 the distances of y from the two ends in heights, q = d0 e1 - d1 e and
    r = sqrt(q^2 + 4 s^2 e e1), xi = 2 s e / (2 s e + q + r) and xi1 = 2 s e1 / (2 s e1 + r - q).
    """
    width, per_height = x1 - x0, 1 / (y1 - y0)
    e, e1 = (y - y0) * per_height, (y1 - y) * per_height
    s = (y1 - y0) / width
    q = d0 * e1 - d1 * e
    left, right = 2 * s * e, 2 * s * e1
    rising, product = q >= 0, left * right
    # of r + q and r - q one is a sum; the other is the product over it
    larger = jnp.sqrt(q * q + product) + jnp.where(rising, q, -q)
    smaller = product / larger
    xi = left / (left + jnp.where(rising, larger, smaller))
    xi1 = right / (right + jnp.where(rising, smaller, larger))
    x = jnp.where(xi < 0.5, x0 + xi * width, x1 - xi1 * width)
    return x, -_evaluate(xi, xi1, s, d0, d1)[1]


def _evaluate(xi: Array, xi1: Array, s: Array, d0: Array, d1: Array) -> tuple[Array, Array]:
    """(y - y0) / height and log(dy/dx), from the distances to the two ends in widths.

    (s xi^2 + d0 xi xi1) / D and log(s^2 (d1 xi^2 + 2 s xi xi1 + d0 xi1^2) / D^2), with
    D = s (xi^2 + xi1^2) + (d0 + d1) xi xi1.
    """
    left, mixed, right = xi * xi, xi * xi1, xi1 * xi1
    rise = s * left + d0 * mixed
    per_d = 1 / (rise + s * right + d1 * mixed)
    slope = d1 * left + d0 * right + 2 * s * mixed
    ratio = s * per_d
    return rise * per_d, jnp.log(slope * ratio) + jnp.log(ratio)
