"""The inverse of an increasing map that has none in closed form."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge.univariate import DOUBLINGS, ROOT_STEPS
from jax_flows.numerics import DIFFERENTIABLE_STEPS
from jax_flows.univariate.base import Output

FARTHEST = 1e30
"""Inverses are searched up to here; beyond it maps are linear to within rounding, and their terms may
overflow."""

_Search = tuple[Array, Array, Array, Array, Array, Array]
_Bracket = tuple[Array, Array, Array, Array]


def invert(
    evaluate: Callable[..., Output], z: Array, parameters: Sequence[Array], low: Array, high: Array
) -> Output:
    """The x with ``evaluate(x, *parameters)[0]`` = z, and log(dx/dz) there.

    x is found without gradients. Two Newton steps whose residual has the value 0 then give it those of
    the exact solution, up to third order, and leave its value as it is. Where the search does not end,
    which only compiled code can meet, x is NaN.

    Args:
        evaluate: the map and the log of its slope, entry by entry.
        low, high: bounds of the solution, up to rounding.
    """
    x = _find(evaluate, *jax.lax.stop_gradient((z, list(parameters), low, high)))
    largest = math.log(float(jnp.finfo(x.dtype).max)) - 1
    for _ in range(DIFFERENTIABLE_STEPS):
        y, log_slope = evaluate(x, *parameters)
        residual = y - z
        # where the map is flat, 0 must not meet an infinity
        change = residual - jax.lax.stop_gradient(residual)
        x = x - change * jnp.exp(jnp.minimum(-log_slope, largest))
    return x, -evaluate(x, *parameters)[1]


def bracket(
    evaluate: Callable[..., Output], z: Array, parameters: Sequence[Array], reach: float = 1.0
) -> tuple[Array, Array]:
    """Bounds of the x with ``evaluate(x, *parameters)[0]`` = z: 0 and ``reach``, or twice that, and so on.

    They are NaN where no number of steps that are allowed reaches z.
    """
    z, fixed = jax.lax.stop_gradient((z, list(parameters)))
    inner = jnp.zeros_like(z)
    sign = jnp.where(z < evaluate(inner, *fixed)[0], -1.0, 1.0).astype(z.dtype)

    def unfinished(carry: _Bracket) -> Array:
        i, _, _, short = carry
        return (i < DOUBLINGS) & short.any()

    def widen(carry: _Bracket) -> _Bracket:
        i, inner, outer, _ = carry
        short = sign * (z - evaluate(outer, *fixed)[0]) > 0
        inner, outer = jnp.where(short, outer, inner), jnp.where(short, 2 * outer, outer)
        return i + 1, inner, outer, short

    start = jnp.zeros((), int), inner, sign * reach, jnp.ones_like(z, bool)
    _, inner, outer, short = jax.lax.while_loop(unfinished, widen, start)
    outer = jnp.where(short, math.nan, outer)
    return jnp.minimum(inner, outer), jnp.maximum(inner, outer)


def _find(
    evaluate: Callable[..., Output], z: Array, parameters: Sequence[Array], low: Array, high: Array
) -> Array:
    """Newton's steps as long as they stay in the bracket and halve the residual; others halve the
    bracket."""
    eps = float(jnp.finfo(z.dtype).eps)
    low, high = low - 8 * eps * jnp.abs(low), high + 8 * eps * jnp.abs(high)
    x = low + (high - low) / 2
    last, done = jnp.full_like(z, math.inf), jnp.isnan(x)

    def unfinished(carry: _Search) -> Array:
        i, _, _, _, _, done = carry
        return (i < ROOT_STEPS) & ~done.all()

    def search(carry: _Search) -> _Search:
        i, x, low, high, last, done = carry
        y, log_slope = evaluate(x, *parameters)
        residual = y - z
        size, step = jnp.abs(residual), residual * jnp.exp(-log_slope)
        rounding = 4 * eps * jnp.abs(x)
        close = (jnp.abs(step) <= rounding) | (high - low <= rounding)
        done = done | close | (size <= 8 * eps * (1 + jnp.abs(z)))
        low, high = jnp.where(residual <= 0, x, low), jnp.where(residual >= 0, x, high)
        newton = x - step
        good = (newton >= low) & (newton <= high) & (size <= last / 2)
        # one more step reaches rounding, unless the map is flat there
        near = jnp.abs(step) <= math.sqrt(eps) * jnp.abs(x)
        last = jnp.where(good, size, math.inf)
        searched = jnp.where(good, newton, low + (high - low) / 2)
        x = jnp.where(done, jnp.where(near, newton, x), searched)
        return i + 1, x, low, high, last, done

    start = jnp.zeros((), int), x, low, high, last, done
    _, x, *_, done = jax.lax.while_loop(unfinished, search, start)
    return jnp.where(done, x, math.nan)
