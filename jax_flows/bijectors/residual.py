"""Residual maps: the identity plus something small enough to stay invertible."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from flow_bridge.series import tanh_series
from jax_flows.bijectors.base import Bijector, Output, Variables
from jax_flows.numerics import log_sech2, log_softplus, matmul_precision, softplus
from jax_flows.registry import register

_TANH_SERIES = tanh_series(17)
_DETACHED_STEPS, _DIFFERENTIABLE_STEPS = 6, 2


@register
@dataclass(frozen=True)
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

    dim: int
    context_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("Planar", dim=self.dim)
        checks.non_negative_int("Planar", context_dim=self.context_dim)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def _init(self, key: Array, dtype: Any) -> Variables:
        w_key, u_key, b_key = jax.random.split(key, 3)
        w = jax.random.normal(w_key, (self.dim,), dtype)
        # w.u = log(e - 1) is where w.u_hat = 0, so that the map starts near the identity
        u = math.log(math.e - 1) * w / jnp.square(w).sum()
        params = {
            "w": w,
            "u": u + 0.01 * jax.random.normal(u_key, (self.dim,), dtype),
            "b": jax.random.normal(b_key, (), dtype),
        }
        if self.context_dim:
            params["context_weight"] = jnp.zeros((2 * self.dim + 1, self.context_dim), dtype)
        return {"params": params}

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        w, b, u_hat, s, log_s = self._constrained(variables["params"], context)
        a = (w * x).sum(-1) + b
        return x + u_hat * jnp.tanh(a)[..., None], _log_det(a, s, log_s)

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        w, b, u_hat, s, log_s = self._constrained(variables["params"], context)
        a = _solve((w * z).sum(-1) + b, s)
        return z - u_hat * jnp.tanh(a)[..., None], -_log_det(a, s, log_s)

    def _constrained(self, params: Variables, context: Array | None) -> tuple[Array, ...]:
        w, u, b = params["w"], params["u"], params["b"]
        if context is not None:
            offset = jnp.matmul(context, params["context_weight"].T, precision=matmul_precision())
            w, u = w + offset[..., : self.dim], u + offset[..., self.dim : -1]
            b = b + offset[..., -1]
        wu = (w * u).sum(-1)
        norm2 = jnp.square(w).sum(-1)
        moving = norm2 > 0  # at w = 0 the map is a translation: w.u_hat is 0 whatever u is
        step = (softplus(-wu) - 1) / jnp.where(moving, norm2, 1)
        s = jnp.where(moving, softplus(wu), 1)
        log_s = jnp.where(moving, log_softplus(wu), 0)
        return w, b, u + step[..., None] * w, s, log_s


def _log_det(a: Array, s: Array, log_s: Array) -> Array:
    """log(s sech(a)^2 + tanh(a)^2), by the form that does not cancel where it stands."""
    t, log_h = jnp.tanh(a), log_sech2(a)
    excess = (s - 1) * jnp.exp(log_h)
    mild = excess > -0.5
    log_sh = log_s + log_h
    steep = ~mild & (2 * jnp.log(jnp.maximum(jnp.abs(t), 1e-30)) > log_sh)
    log_t2 = jnp.log(jnp.square(jnp.where(steep, t, 1)))
    ratio = t * jnp.exp(jnp.where(mild | steep, 0, -log_sh / 2))
    return jnp.where(
        mild,
        jnp.log1p(jnp.where(mild, excess, 0)),
        jnp.where(
            steep,
            log_t2 + jnp.log1p(jnp.exp(jnp.where(steep, log_sh - log_t2, 0))),
            log_sh + jnp.log1p(jnp.square(ratio)),
        ),
    )


def _excess(a: Array) -> Array:
    """a - tanh(a), by its series near 0."""
    small = jnp.abs(a) < 0.5
    near = jnp.where(small, a, 0)
    square = jnp.square(near)
    total = jnp.full_like(a, -_TANH_SERIES[-1])
    for coefficient in reversed(_TANH_SERIES[1:-1]):
        total = total * square - coefficient
    return jnp.where(small, near * square * total, a - jnp.tanh(a))


def _newton_step(a: Array, t: Array, s: Array) -> Array:
    tanh = jnp.tanh(a)
    slope = jnp.square(tanh) + s * (1 - tanh) * (1 + tanh)
    return a - (_excess(a) + s * tanh - t) / slope


def _solve(t: Array, s: Array) -> Array:
    """The root a of a - tanh(a) + s tanh(a) = t.

    The left side is odd, and on one side of 0 convex (s < 1) or concave (s >= 1): from a start beyond
    the root (below it for s >= 1) Newton's steps are monotone. The last two steps carry gradients,
    which makes derivatives up to the third exact at the root.
    """
    t, s = jnp.broadcast_arrays(t, s)
    fixed_t, scale = jax.lax.stop_gradient((t, jnp.maximum(s, jnp.finfo(s.dtype).tiny)))
    magnitude = jnp.abs(fixed_t)
    cubic = (5 * magnitude) ** (1 / 3)
    upper = jnp.minimum(magnitude / scale, magnitude + 1)
    upper = jnp.where(cubic <= 1, jnp.minimum(upper, cubic), upper)
    lower = jnp.maximum(magnitude / scale, magnitude + 1 - scale)
    a = jnp.where(scale < 1, upper, lower)
    a = jax.lax.fori_loop(0, _DETACHED_STEPS, lambda _, a: _newton_step(a, magnitude, scale), a)
    a = jnp.copysign(a, fixed_t)
    for _ in range(_DIFFERENTIABLE_STEPS):
        a = _newton_step(a, t, s)
    return a
