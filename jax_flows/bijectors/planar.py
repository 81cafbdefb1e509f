"""Planar, radial and Sylvester maps: the identity plus a few directions."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from flow_bridge import checks
from flow_bridge.series import TANH_EXCESS
from jax_flows.bijectors.base import Bijector
from jax_flows.numerics import (
    DETACHED_STEPS,
    DIFFERENTIABLE_STEPS,
    at_least_float32,
    derivatives,
    divide,
    log_sech2,
    log_softplus,
    matmul_precision,
    norm,
    quotient,
    softplus,
    with_partials,
)
from jax_flows.registry import register
from jax_flows.variables import Output, Variables, draws

Solved = tuple[Array, Array, Array]


class _Curve(NamedTuple):
    """What solving a - tanh(a) + s tanh(a) = t takes of s; without gradients but for s itself.

    Attributes:
        s, slope: the slope at 0, with and without gradients.
        rest: 1 - s.
        root: s^(3/2).
        bend: log(4 s) / 2, near which a large s tanh(a) becomes flat.
        limit: the t - s from where on it is flat.
        is_convex: s <= 1.
    """

    s: Array
    slope: Array
    rest: Array
    root: Array
    bend: Array
    limit: Array
    is_convex: Array


def _curve(s: Array) -> _Curve:
    s = jnp.maximum(s, jnp.finfo(s.dtype).tiny)
    slope = jax.lax.stop_gradient(s)
    bend = jnp.log(4 * slope) / 2
    return _Curve(s, slope, 1 - slope, slope * jnp.sqrt(slope), bend, bend - 1.5, slope <= 1)


@register
@dataclass(frozen=True)
class Planar(Bijector):
    """z = x + u_hat tanh(w.x + b), u_hat = u + (m(w.u) - w.u) w / |w|^2, m(v) = -1 + softplus(v).

    With a = w.x + b and s = 1 + w.u_hat = softplus(w.u) > 0, the determinant is
    s sech(a)^2 + tanh(a)^2, which is positive for every weight. The inverse solves the scalar
    equation a - tanh(a) + s tanh(a) = w.z + b by Halley's and Newton's steps, to a few eps, and its
    gradients are those of the exact solution.

    Args:
        dim: number of dimensions.
        context_dim: width of the context, 0 for none; (w, u, b) then get a term linear in it.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Reference: Rezende and Mohamed (2015), arXiv:1505.05770; amortised weights as in van den Berg et
    al. (2018), arXiv:1803.05649.

    Examples:
        >>> import jax, jax_flows
        >>> bijector = jax_flows.Planar(dim=3)
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 3)))
        >>> z.shape, log_det.shape
        ((5, 3), (5,))
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

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        w, offset, b = draws(jax.random.normal, key, [(self.dim,), (self.dim,), ()], dtype)
        # below 1 a step in w would move u_hat, u / |w|, by units
        w = w / jnp.minimum(jnp.linalg.norm(w), 1)
        # w.u = log(e - 1) is where w.u_hat = 0, so that the map starts near the identity
        u = math.log(math.e - 1) * w / jnp.square(w).sum()
        params = {
            "w": w,
            "u": u + 0.01 * offset,
            "b": b,
        }
        if self.context_dim:
            params["context_weight"] = jnp.zeros((2 * self.dim + 1, self.context_dim), dtype)
        return {"params": params}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        w, b, u_hat, s, log_s = self._constrained(variables["params"], context)
        a = (w * x).sum(-1) + b
        return x + u_hat * jnp.tanh(a)[..., None], _log_det(a, s, log_s)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        w, b, u_hat, s, log_s = self._constrained(variables["params"], context)
        a = _solve((w * z).sum(-1) + b, _curve(s))
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


@register
@dataclass(frozen=True)
class Radial(Bijector):
    """z = c + (x - c) (r + s) / (alpha + r), r = |x - c|: the map x + beta (x - c) / (alpha + r).

    alpha = softplus(raw_alpha) > 0 and s = alpha + beta = softplus(raw_s) > 0, so that the map is
    invertible for every weight. log|det| = (d - 1) log((r + s) / (alpha + r))
    + log((r^2 + 2 alpha r + alpha s) / (alpha + r)^2), both of positive terms only. The inverse is in
    closed form: r is the positive root of r^2 + (s - rho) r - alpha rho, rho = |z - c|.

    Args:
        dim: number of dimensions.
        context_dim: width of the context, 0 for none; (c, raw_alpha, raw_s) then get a term linear
            in it.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Reference: Rezende and Mohamed (2015), arXiv:1505.05770.
    """

    dim: int
    context_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("Radial", dim=self.dim)
        checks.non_negative_int("Radial", context_dim=self.context_dim)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        center, offset = draws(jax.random.normal, key, [(self.dim,), ()], dtype)
        # alpha = s = 1 would be the identity
        start = jnp.asarray(math.log(math.e - 1), dtype)
        params = {
            "center": center,
            "raw_alpha": start,
            "raw_s": start + 0.01 * offset,
        }
        if self.context_dim:
            params["context_weight"] = jnp.zeros((self.dim + 2, self.context_dim), dtype)
        return {"params": params}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        center, alpha, s = self._constrained(variables["params"], context)
        offset = x - center
        r = norm(offset)
        z = center + offset * divide(r + s, alpha + r)[..., None]
        return z, _radial_log_det(r, alpha, s, self.dim)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        center, alpha, s = self._constrained(variables["params"], context)
        offset = z - center
        r = _positive_root(norm(offset), alpha, s)
        x = center + offset * divide(alpha + r, r + s)[..., None]
        return x, -_radial_log_det(r, alpha, s, self.dim)

    def _constrained(self, params: Variables, context: Array | None) -> tuple[Array, ...]:
        center, raw_alpha, raw_s = params["center"], params["raw_alpha"], params["raw_s"]
        if context is not None:
            shift = jnp.matmul(context, params["context_weight"].T, precision=matmul_precision())
            center = center + shift[..., : self.dim]
            raw_alpha, raw_s = raw_alpha + shift[..., -2], raw_s + shift[..., -1]
        tiny = jnp.finfo(center.dtype).tiny
        return center, softplus(raw_alpha) + tiny, softplus(raw_s) + tiny


def _radial_log_det(r: Array, alpha: Array, s: Array, dim: int) -> Array:
    total = alpha + r
    excess, share = divide(s - alpha, total), divide(alpha, total)
    tangential = _log_of(excess, divide(r + s, total))
    squares = divide(r, total) * divide(r + 2 * alpha, total)
    radial = _log_of(share * excess, squares + share * divide(s, total))
    return (dim - 1) * tangential + radial


def _log_of(excess: Array, value: Array) -> Array:
    """log(value), from excess = value - 1 where that does not cancel."""
    mild = excess > -0.25
    near = jnp.log1p(jnp.where(mild, excess, 0))
    return jnp.where(mild, near, jnp.log(jnp.where(mild, 1, value)))


def _positive_root(rho: Array, alpha: Array, s: Array) -> Array:
    """The positive root r of r^2 + (s - rho) r - alpha rho, by the form that does not cancel."""
    p = s - rho
    fixed_p, fixed_alpha, fixed_rho = jax.lax.stop_gradient((p, alpha, rho))
    scale = jnp.maximum(jnp.abs(fixed_p), 2 * jnp.sqrt(fixed_alpha) * jnp.sqrt(fixed_rho))
    q = scale * jnp.sqrt(jnp.square(p / scale) + 4 * (alpha / scale) * (rho / scale))
    rising = p > 0
    return jnp.where(rising, divide(2 * alpha * rho, jnp.where(rising, p + q, 1)), (q - p) / 2)


@register
@dataclass(frozen=True)
class Sylvester(Bijector):
    """z = x + Q R tanh(S Q^T x + b): Q has ``rank`` orthonormal columns, R and S are upper triangular.

    Q is a product of Householder reflections. The diagonals of R and S are tanh(p) and tanh(q), so
    that s_i = 1 + R_ii S_ii = cosh(p_i + q_i) / (cosh(p_i) cosh(q_i)) is positive for every weight;
    with a = S Q^T x + b, the determinant is the product of s_i sech(a_i)^2 + tanh(a_i)^2. The inverse
    takes one coordinate of Q^T x after the other, the last first; each solves the equation of
    ``Planar``, in as many steps and with the same exact gradients.

    Args:
        dim: number of dimensions.
        rank: number of columns of Q, at most ``dim``.
        context_dim: width of the context, 0 for none; (R, S, b) then get a term linear in it, Q does
            not.

    ``factors`` holds both triangles: R in ``factors[:, 1:]`` on and above the diagonal, the transpose
    of S in ``factors[:, :-1]`` on and below it.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: if ``rank`` is larger than ``dim``.

    Reference: van den Berg et al. (2018), arXiv:1803.05649.
    """

    dim: int
    rank: int
    context_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("Sylvester", dim=self.dim, rank=self.rank)
        checks.non_negative_int("Sylvester", context_dim=self.context_dim)
        checks.at_most("Sylvester", "rank", self.rank, "dim", self.dim)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        shape = (self.rank, self.rank + 1)
        shapes = [(self.rank, self.dim), shape, (self.rank,)]
        householder, offset, b = draws(jax.random.normal, key, shapes, dtype)
        params = {
            "householder": householder,
            # R near 0 is near the identity; S starts with 0.76 on its diagonal
            "factors": 0.01 * offset + jnp.eye(*shape, dtype=dtype),
            "b": b,
        }
        if self.context_dim:
            rows = self.rank * (self.rank + 2)
            params["context_weight"] = jnp.zeros((rows, self.context_dim), dtype)
        return {"params": params}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        outer, inner, b, s, log_s = self._constrained(variables["params"], context)
        q = _orthonormal(variables["params"]["householder"])
        a = _product(inner, _product(q.T, x)) + b
        return x + _product(q, _product(outer, jnp.tanh(a))), _log_det(a, s, log_s).sum(-1)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        outer, inner, b, s, log_s = self._constrained(variables["params"], context)
        q = _orthonormal(variables["params"]["householder"])
        y = _product(q.T, z)

        def step(carry: Solved, i: Array) -> tuple[Solved, None]:
            a, tanh, solved = carry
            now = jnp.arange(self.rank) == i
            r, t = outer[..., i, :], inner[..., i, :]
            value = y[..., i] - (r * tanh).sum(-1)
            start = t[..., i] * value + (t * solved).sum(-1) + b[..., i]
            root = _solve(start, _curve(s[..., i]))
            a = jnp.where(now, root[..., None], a)
            tanh = jnp.where(now, jnp.tanh(root)[..., None], tanh)
            value = value - r[..., i] * jnp.tanh(root)
            solved = jnp.where(now, value[..., None], solved)
            return (a, tanh, solved), None

        zeros = jnp.zeros_like(y + b)
        (a, tanh, _), _ = jax.lax.scan(
            step, (zeros, zeros, zeros), jnp.arange(self.rank), reverse=True
        )
        return z - _product(q, _product(outer, tanh)), -_log_det(a, s, log_s).sum(-1)

    def _constrained(self, params: Variables, context: Array | None) -> tuple[Array, ...]:
        factors, b = (
            jnp.asarray(params["factors"]),
            jnp.asarray(params["b"]),
        )  # of numpy: a scan indexes them
        if context is not None:
            shift = jnp.matmul(context, params["context_weight"].T, precision=matmul_precision())
            factors = factors + shift[..., : -self.rank].reshape(*shift.shape[:-1], *factors.shape)
            b = b + shift[..., -self.rank :]
        outer, inner = jnp.triu(factors[..., 1:]), jnp.tril(factors[..., :-1]).mT
        p, q = jnp.diagonal(outer, 0, -2, -1), jnp.diagonal(inner, 0, -2, -1)
        log_s = (log_sech2(p) + log_sech2(q) - log_sech2(p + q)) / 2
        eye = jnp.eye(self.rank, dtype=factors.dtype)
        outer = jnp.triu(outer, 1) + jnp.tanh(p)[..., None] * eye
        inner = jnp.triu(inner, 1) + jnp.tanh(q)[..., None] * eye
        return outer, inner, b, jnp.exp(log_s), log_s


def _product(matrix: Array, vector: Array) -> Array:
    """The matrix, or each row's own one, times each row of the vectors."""
    if matrix.ndim == 2:
        return jnp.matmul(vector, matrix.mT, precision=matmul_precision())
    return jnp.matmul(matrix, vector[..., None], precision=matmul_precision())[..., 0]


def _orthonormal(vectors: Array) -> Array:
    """The first columns of the product of the reflections in ``vectors`` (rank, dim), as (dim, rank).

    A reflection is I - 2 v v^T / |v|^2, or the identity where v = 0; the product is I - V^T T V with
    T upper triangular, whose inverse is known from the inner products.
    """
    dtype, vectors = vectors.dtype, at_least_float32(vectors)
    rank, dim = vectors.shape
    length = norm(vectors)[..., None]
    unit = vectors / jnp.where(length > 0, length, 1)
    eye = jnp.eye(rank, dim, dtype=vectors.dtype)
    triangle = jnp.triu(_product(unit, unit), 1) + eye[:, :rank] / 2
    solution = solve_triangular(triangle, unit[:, :rank])
    return (eye.T - _product(unit.T, solution.T).T).astype(dtype)


@with_partials
def _log_det(a: Array, s: Array, log_s: Array) -> Array:
    """log(s sech(a)^2 + tanh(a)^2), which is log(1 + (s - 1) sech(a)^2) where that is mild; else twice the
    logarithm of the larger root of the two terms, times sqrt(1 + ratio^2), ratio the other root over it."""
    t, sech = jnp.tanh(a), _sech(a)
    excess = (s - 1) * sech * sech
    mild = excess > -0.25
    log_root = jnp.where(mild, 0, log_s / 2)
    root = jnp.exp(log_root) * sech
    size = jnp.abs(t)
    flat = size <= root
    larger, smaller = jnp.where(flat, root, size), jnp.where(flat, t, root)
    ratio = divide(smaller, jnp.maximum(larger, jnp.finfo(a.dtype).tiny))
    # the root may underflow where its logarithm does not
    small = jnp.where(flat, sech, size) * jnp.sqrt(1 + ratio * ratio)
    excess = jnp.where(mild, excess, 0)
    near = 1 + excess
    lost = jnp.where(near == math.inf, 0, excess - (near - 1)) / near
    log_value = jnp.log(jnp.where(mild, near, small)) + jnp.where(flat, log_root, 0)
    return jnp.where(mild, 1, 2) * log_value + lost


def _excess(a: Array, tanh: Array) -> Array:
    """a - tanh(a) without cancellation, and without gradients."""
    a, tanh = jax.lax.stop_gradient((a, tanh))
    square = a * a
    near = a * (square * quotient(square, *TANH_EXCESS[jnp.finfo(a.dtype).bits]))
    return jnp.where(square < 0.25, near, a - tanh)


def _sech(a: Array) -> Array:
    """sech(a), whose square 1 - tanh(a)^2 loses far out."""
    largest = math.log(float(jnp.finfo(a.dtype).max)) - 1
    # by a root, whose derivative needs the cube and not the fourth power of small numbers
    return jnp.square(jax.lax.rsqrt(jnp.cosh(jnp.clip(a, -largest, largest))))


def _halley_step(a: Array, t: Array, curve: _Curve) -> Array:
    tanh, sech = jnp.tanh(a), 1 / jnp.cosh(a)
    sech2 = sech * sech
    slope = tanh * tanh + curve.slope * sech2
    # what may cancel is added first
    step = (_excess(a, tanh) + (curve.slope * tanh - t)) / slope
    half_bend = tanh * sech2 * curve.rest / slope
    # 0.73 at least but for rounding
    return a - step / jnp.maximum(1 - step * half_bend, 0.5)


def _newton_step(a: Array, t: Array, s: Array) -> Array:
    tanh, sech2 = jnp.tanh(a), jnp.square(_sech(a))
    t1, s2 = jax.lax.stop_gradient((tanh, sech2))
    second, third = 2 * t1 * s2, 2 * s2 * (s2 - 2 * t1 * t1)
    excess = _excess(a, tanh) + derivatives(a, t1 * t1, second, third)
    tanh = t1 + derivatives(a, s2, -second, -third)  # whose own are 0 far out
    value = excess + (s * tanh - t)
    return a - divide(value - jax.lax.stop_gradient(value), jnp.square(tanh) + s * sech2)


def _convex_start(t: Array, curve: _Curve) -> Array:
    """Near the root for s <= 1: off by at most 0.4 of it."""
    # Cardano's root without a difference, and with a sum in place of the root of two squares, which takes
    # less and ends nearer; beyond these t it is near the other bound
    triple = 3 * jnp.minimum(t, 30)
    # XLA's cbrt and pow are slower
    u = jnp.exp(jnp.log(triple + curve.root) / 3)
    u = jnp.maximum(u, jnp.finfo(t.dtype).tiny)
    other = curve.slope / u
    cubic = triple / (curve.slope + u * u + other * other)
    ratio = t / curve.slope
    low = jnp.minimum(ratio, cubic)
    return jnp.where(low < 1, low, jnp.minimum(ratio, t + 1))


def _concave_start(t: Array, curve: _Curve) -> Array:
    """Below the root for s > 1, by at most 0.3 of it."""
    tanh = jnp.clip((curve.bend - t) / curve.rest, 0, 1 - jnp.finfo(t.dtype).eps)
    above = t - curve.slope
    bound = jnp.maximum(t / curve.slope, above + 1)
    # XLA's arctanh takes two logarithms
    arctanh = jnp.log1p(2 * tanh / (1 - tanh)) / 2
    return jnp.where(above < curve.limit, jnp.maximum(bound, arctanh), bound)


def _solve(t: Array, curve: _Curve) -> Array:
    """The root a of a - tanh(a) + s tanh(a) = t.

    The left side is odd, and on one side of 0 convex (s <= 1) or concave (s > 1). The start is the root
    of s a + a^3 / 3 = t or of a linear bound for s <= 1, and else a lower bound by an upper one of a. From
    there Halley's steps come within 0.005, 2e-8 and 1e-14 of the root, to the rounding of t and s; two do in
    float32. Newton's leave that as it is and carry gradients, up to the third derivatives.
    """
    fixed_t = jax.lax.stop_gradient(t)
    magnitude = jnp.abs(fixed_t)
    convex, concave = _convex_start(magnitude, curve), _concave_start(magnitude, curve)
    a, low = (jnp.where(curve.is_convex, part, concave) for part in (convex, magnitude))
    for _ in range(DETACHED_STEPS if t.dtype == jnp.float64 else DETACHED_STEPS - 1):
        # the rounding of an s beyond 1 / eps would send it anywhere
        a = jnp.maximum(_halley_step(a, magnitude, curve), low)
    a = jnp.copysign(a, fixed_t)
    for _ in range(DIFFERENTIABLE_STEPS):
        a = _newton_step(a, t, curve.s)
    return a
