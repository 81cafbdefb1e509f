"""Residual maps: the identity plus something small enough to stay invertible."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from flow_bridge import checks
from flow_bridge import lipschitz as bridge
from flow_bridge.errors import ConvergenceError
from flow_bridge.series import tanh_series
from jax_flows.bijectors.base import Bijector, Output, Variables, check_input, child, gather
from jax_flows.derivatives import Layers, evaluate, jacobian, jvp, vjp
from jax_flows.networks import LipschitzMLP
from jax_flows.numerics import (
    first_step,
    is_eager,
    log_sech2,
    log_softplus,
    matmul_precision,
    next_step,
    rademacher,
    random_bits,
    softplus,
)
from jax_flows.registry import register

_Solved = tuple[Array, Array, Array]
_Search = tuple[Array, Array, Array, Array, Array, Array, Array]

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

    def _init(self, key: Array, dtype: Any) -> Variables:
        center_key, s_key = jax.random.split(key)
        # alpha = s = 1 would be the identity
        start = jnp.asarray(math.log(math.e - 1), dtype)
        params = {
            "center": jax.random.normal(center_key, (self.dim,), dtype),
            "raw_alpha": start,
            "raw_s": start + 0.01 * jax.random.normal(s_key, (), dtype),
        }
        if self.context_dim:
            params["context_weight"] = jnp.zeros((self.dim + 2, self.context_dim), dtype)
        return {"params": params}

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        center, alpha, s = self._constrained(variables["params"], context)
        offset = x - center
        r = _norm(offset)
        z = center + offset * ((r + s) / (alpha + r))[..., None]
        return z, self._log_det(r, alpha, s)

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        center, alpha, s = self._constrained(variables["params"], context)
        offset = z - center
        r = _positive_root(_norm(offset), alpha, s)
        x = center + offset * ((alpha + r) / (r + s))[..., None]
        return x, -self._log_det(r, alpha, s)

    def _constrained(self, params: Variables, context: Array | None) -> tuple[Array, ...]:
        center, raw_alpha, raw_s = params["center"], params["raw_alpha"], params["raw_s"]
        if context is not None:
            shift = jnp.matmul(context, params["context_weight"].T, precision=matmul_precision())
            center = center + shift[..., : self.dim]
            raw_alpha, raw_s = raw_alpha + shift[..., -2], raw_s + shift[..., -1]
        tiny = jnp.finfo(center.dtype).tiny
        return center, softplus(raw_alpha) + tiny, softplus(raw_s) + tiny

    def _log_det(self, r: Array, alpha: Array, s: Array) -> Array:
        total = alpha + r
        excess = (s - alpha) / total
        tangential = _log_of(excess, (r + s) / total)
        share = alpha / total
        radial = _log_of(
            share * excess, (r / total) * ((r + 2 * alpha) / total) + share * (s / total)
        )
        return (self.dim - 1) * tangential + radial


def _log_of(excess: Array, value: Array) -> Array:
    """log(value), from excess = value - 1 where that does not cancel."""
    mild = excess > -0.25
    near = jnp.log1p(jnp.where(mild, excess, 0))
    return jnp.where(mild, near, jnp.log(jnp.where(mild, 1, value)))


def _norm(x: Array) -> Array:
    """|x| over the last axis, without overflow, and with gradient 0 at x = 0."""
    largest = jax.lax.stop_gradient(jnp.abs(x)).max(-1, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1)
    square = jnp.square(x / scale).sum(-1)
    moving = square > 0
    return jnp.where(moving, scale[..., 0] * jnp.sqrt(jnp.where(moving, square, 1)), square)


def _positive_root(rho: Array, alpha: Array, s: Array) -> Array:
    """The positive root r of r^2 + (s - rho) r - alpha rho, by the form that does not cancel."""
    p = s - rho
    fixed_p, fixed_alpha, fixed_rho = jax.lax.stop_gradient((p, alpha, rho))
    scale = jnp.maximum(jnp.abs(fixed_p), 2 * jnp.sqrt(fixed_alpha) * jnp.sqrt(fixed_rho))
    q = scale * jnp.sqrt(jnp.square(p / scale) + 4 * (alpha / scale) * (rho / scale))
    rising = p > 0
    return jnp.where(rising, 2 * alpha * rho / jnp.where(rising, p + q, 1), (q - p) / 2)


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

    def _init(self, key: Array, dtype: Any) -> Variables:
        householder_key, factors_key, b_key = jax.random.split(key, 3)
        shape = (self.rank, self.rank + 1)
        params = {
            "householder": jax.random.normal(householder_key, (self.rank, self.dim), dtype),
            # R near 0 is near the identity; S starts with 0.76 on its diagonal
            "factors": 0.01 * jax.random.normal(factors_key, shape, dtype)
            + jnp.eye(*shape, dtype=dtype),
            "b": jax.random.normal(b_key, (self.rank,), dtype),
        }
        if self.context_dim:
            rows = self.rank * (self.rank + 2)
            params["context_weight"] = jnp.zeros((rows, self.context_dim), dtype)
        return {"params": params}

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        outer, inner, b, s, log_s = self._constrained(variables["params"], context)
        q = _orthonormal(variables["params"]["householder"])
        a = _product(inner, _product(q.T, x)) + b
        return x + _product(q, _product(outer, jnp.tanh(a))), _log_det(a, s, log_s).sum(-1)

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        outer, inner, b, s, log_s = self._constrained(variables["params"], context)
        q = _orthonormal(variables["params"]["householder"])
        y = _product(q.T, z)

        def step(carry: _Solved, i: Array) -> tuple[_Solved, None]:
            a, tanh, solved = carry
            now = jnp.arange(self.rank) == i
            r, t = outer[..., i, :], inner[..., i, :]
            value = y[..., i] - (r * tanh).sum(-1)
            start = t[..., i] * value + (t * solved).sum(-1) + b[..., i]
            root = _solve(start, s[..., i])
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
        factors, b = params["factors"], params["b"]
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
    rank, dim = vectors.shape
    norm = _norm(vectors)[..., None]
    unit = vectors / jnp.where(norm > 0, norm, 1)
    eye = jnp.eye(rank, dim, dtype=vectors.dtype)
    triangle = jnp.triu(_product(unit, unit), 1) + eye[:, :rank] / 2
    solution = solve_triangular(triangle, unit[:, :rank])
    return eye.T - _product(unit.T, solution.T).T


def _log_det(a: Array, s: Array, log_s: Array) -> Array:
    """log(s sech(a)^2 + tanh(a)^2), by the form that does not cancel where it stands."""
    t, log_h = jnp.tanh(a), log_sech2(a)
    excess = (s - 1) * jnp.exp(log_h)
    mild = excess > -0.25
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


@register
@dataclass(frozen=True)
class InvertibleResidual(Bijector):
    """z = x + g(x), g a network whose Lipschitz constant L is below ``lipschitz`` for every weight.

    log|det| = log det(I + J), J the Jacobian of g, which is known in closed form.

    - ``log_det="exact"``: from J itself, at a cost of ``dim`` network passes.
    - ``log_det="series"``: in training mode, tr(J) - tr(J^2)/2 + tr(J^3)/3 - ... with a random sign
      vector for the traces and a random number of terms: ``exact_terms``, and then one more as long
      as a roulette does not stop, each divided by the probability to get there. Unbiased, with a
      finite variance. Its gradient comes from the Neumann series of (I + J)^-1 in constant memory,
      is unbiased too, and cannot be differentiated again. Evaluation is deterministic: exact, or cut
      after ``eval_terms`` terms with an error of at most
      ``dim L^(n+1) / ((n+1) (1-L))``, see ``flow_bridge.lipschitz.truncation_bound``.

    Signs and lengths follow from the counter ``noise_step``, which is part of the weights' state: the
    two backends draw the same ones. ``forward_with_noise`` takes them as arguments.

    The inverse takes Newton steps with a line search, which falls back to a fixed-point step
    (that shrinks the residual for every g); the last two carry gradients, exact up to third order. A
    row that does not reach ``flow_bridge.lipschitz.inverse_tolerance`` is an error, or NaN in
    compiled code. At the solution, |x - x_exact| is at most the residual over (1 - L).

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the hidden layers of g.
        lipschitz: the bound on g's Lipschitz constant, between 0 and 1.
        log_det: ``"exact"`` or ``"series"``.
        activation: a name in ``networks.ACTIVATIONS``, divided by its largest slope.
        exact_terms: terms of the series that are always there.
        stop_probability: of the roulette; by default (1 - lipschitz^2) / 2.
        eval_terms: terms of the series in evaluation, ``None`` for the exact determinant.
        context_dim: width of the context, an unconstrained input of g; 0 for none.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for a ``stop_probability`` of 1 - lipschitz^2 or more: infinite variance.
        ConvergenceError: if an inverse does not converge, outside compiled code.

    Reference: Behrmann et al. (2019), arXiv:1811.00995; Chen et al. (2019), arXiv:1906.02735.
    """

    dim: int
    hidden_dims: tuple[int, ...] = (64, 64)
    lipschitz: float = 0.97
    log_det: str = "exact"
    activation: str = "silu"
    exact_terms: int = 10
    stop_probability: float | None = None
    eval_terms: int | None = None
    context_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "InvertibleResidual"
        checks.positive_int(name, dim=self.dim, exact_terms=self.exact_terms)
        checks.non_negative_int(name, context_dim=self.context_dim)
        checks.open_interval(name, "lipschitz", self.lipschitz, 0, 1)
        checks.one_of(name, "log_det", self.log_det, ("exact", "series"))
        if self.eval_terms is not None:
            checks.positive_int(name, eval_terms=self.eval_terms)
        _ = self._stop, self.network.mlp

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def network(self) -> LipschitzMLP:
        """The network g."""
        widths = (self.dim, self.hidden_dims)
        return LipschitzMLP(*widths, self.activation, self.lipschitz, self.context_dim)

    @property
    def _stop(self) -> float:
        return bridge.stop_probability("InvertibleResidual", self.stop_probability, self.lipschitz)

    def _init(self, key: Array, dtype: Any) -> Variables:
        network_key, step_key = jax.random.split(key)
        variables = gather({"network": self.network.init(network_key, dtype)})
        if self.log_det == "series":
            variables["batch_stats"]["noise_step"] = first_step(step_key, dtype)
        return variables

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        layers, _ = self.network.normalized(child(variables, "network"), context)
        return self._evaluate(layers, x, self.eval_terms)

    def _forward_and_update(
        self, variables: Variables, x: Array, context: Array | None
    ) -> tuple[Array, Array, Variables]:
        layers, new = self.network.normalized(child(variables, "network"), context, estimate=True)
        batch_stats: dict[str, Any] = {"network": new}
        if self.log_det == "exact":
            return *self._evaluate(layers, x, None), batch_stats
        step = variables["batch_stats"]["noise_step"]
        noise = rademacher(step, 0, x.shape)
        thresholds = bridge.roulette_thresholds(self._stop).astype("uint32")
        stopped = random_bits(step, 1, ()) < thresholds
        num_terms = self.exact_terms + stopped.sum()
        batch_stats["noise_step"] = next_step(step)
        return *self._estimate(layers, x, noise, num_terms), batch_stats

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        layers, _ = self.network.normalized(child(variables, "network"), context)
        x = self._solve(layers, z)
        image, log_det = self._evaluate(layers, x, self.eval_terms)
        fixed_x, fixed_z, residual = jax.lax.stop_gradient((x, z, image - z))
        scale = 1 + _norm(fixed_x) + _norm(fixed_z)
        tolerance = bridge.inverse_tolerance(float(jnp.finfo(z.dtype).eps))
        failed = ~(_norm(residual) <= tolerance * scale) & jnp.isfinite(z).all(-1)
        if is_eager(failed) and failed.any():
            raise ConvergenceError(
                bridge.inverse_message(int(failed.sum()), tolerance, self.lipschitz)
            )
        x = jnp.where(failed[..., None], math.nan, x)
        return x, jnp.where(failed, math.nan, -log_det)

    def forward_with_noise(
        self,
        variables: Variables,
        x: Array,
        noise: Array,
        num_terms: int | Array,
        context: Array | None = None,
    ) -> Output:
        """``forward`` in evaluation mode, with the estimate of the log-det that training uses.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            x: shape ``(*batch, dim)``.
            noise: the probe of the traces, of x's shape, with independent entries of mean 0 and
                variance 1.
            num_terms: the number of terms, at least 1: ``exact_terms`` plus a geometric number N with
                P(N >= j) = (1 - stop_probability)^j makes the estimate unbiased.
            context: as for ``forward``.
        """
        x, context = check_input(self, variables, "x", x, context)
        layers, _ = self.network.normalized(child(variables, "network"), context)
        return self._estimate(layers, x, noise, num_terms)

    def _evaluate(self, layers: Layers, x: Array, num_terms: int | None) -> Output:
        g, slopes = evaluate(layers, self.activation, x)
        jacobian_of_g = jacobian(layers, slopes)
        if num_terms is None:
            log_det = _log_det_plus_identity(jacobian_of_g)
        else:
            log_det = _truncated_log_det(jacobian_of_g, num_terms)
        return x + g, jnp.broadcast_to(log_det, x.shape[:-1])

    def _estimate(self, layers: Layers, x: Array, noise: Array, num_terms: int | Array) -> Output:
        """x + g(x), and the series with ``num_terms`` terms and its Neumann gradient."""
        g, slopes = evaluate(layers, self.activation, x)
        fixed, fixed_slopes, noise = jax.lax.stop_gradient((layers, slopes, noise))

        def add_term(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            row, value, left = carry
            k = i + 1
            sign = jnp.where(k % 2 == 1, 1, -1).astype(x.dtype)
            weight = sign * (1 - self._stop) ** -jnp.maximum(k - self.exact_terms, 0).astype(
                x.dtype
            )
            left = left + weight * row
            row = vjp(fixed, fixed_slopes, row)
            return row, value + weight / k * (row * noise).sum(-1), left

        zeros = jnp.zeros_like(x)
        start = noise, zeros[..., 0], zeros
        _, value, left = jax.lax.fori_loop(0, num_terms, add_term, jax.lax.stop_gradient(start))
        surrogate = (left * jvp(layers, slopes, noise)).sum(-1)
        return x + g, value + (surrogate - jax.lax.stop_gradient(surrogate))

    def _solve(self, layers: Layers, z: Array) -> Array:
        fixed, target = jax.lax.stop_gradient((layers, z))
        close = float(jnp.finfo(z.dtype).eps) ** 0.6 * (1 + _largest(target))
        given = jnp.isfinite(target).all(-1, keepdims=True)

        def unfinished(carry: _Search) -> Array:
            i, _, _, _, _, size, _ = carry
            return (i < bridge.newton_steps(self.lipschitz)) & ((size > close) & given).any()

        def step(carry: _Search) -> _Search:
            i, x, base, direction, fallback, size, share = carry
            newton, residual = self._newton_step(fixed, x, target)
            now = _largest(residual)
            good = now <= (1 - share / 4) * size
            base, direction = jnp.where(good, x, base), jnp.where(good, newton - x, direction)
            fallback = jnp.where(good, x - residual, fallback)
            size, share = jnp.where(good, now, size), jnp.where(good, 1, share / 2)
            lost = share < bridge.SMALLEST_SHARE
            base, share = jnp.where(lost, fallback, base), jnp.where(lost, 1, share)
            size = jnp.where(lost, math.inf, size)
            x = jnp.where(lost, fallback, base + share * direction)
            return i + 1, x, base, direction, fallback, size, share

        size, zeros = jnp.full_like(close, math.inf), jnp.zeros_like(target)
        # the fallback starts at z, so that a NaN row stays one
        start = jnp.zeros((), int), target, target, zeros, target, size, jnp.ones_like(close)
        _, _, base, direction, *_ = jax.lax.while_loop(unfinished, step, start)
        x = base + direction  # from close to the root, one more step reaches rounding
        for _ in range(_DIFFERENTIABLE_STEPS):
            x, _ = self._newton_step(layers, x, z)
        return x

    def _newton_step(self, layers: Layers, x: Array, z: Array) -> Output:
        g, slopes = evaluate(layers, self.activation, x)
        residual = x + g - z
        return x - _solve_plus_identity(jacobian(layers, slopes), residual), residual


def _largest(x: Array) -> Array:
    return jnp.abs(x).max(-1, keepdims=True)


def _log_det_plus_identity(matrix: Array) -> Array:
    """log det(I + A) where that is positive; in one and two dimensions from det(I + A) - 1."""
    dim = matrix.shape[-1]
    if dim > 2:
        return jnp.linalg.slogdet(jnp.eye(dim, dtype=matrix.dtype) + matrix)[1]
    if dim == 1:
        return jnp.log1p(matrix[..., 0, 0])
    (a, b), (c, d) = _entries(matrix)
    return jnp.log1p(a + d + (a * d - b * c))


def _solve_plus_identity(matrix: Array, vector: Array) -> Array:
    """(I + A)^-1 v; in two dimensions by Cramer's rule."""
    dim = matrix.shape[-1]
    if dim > 2:
        eye = jnp.eye(dim, dtype=matrix.dtype)
        matrix = jnp.broadcast_to(eye + matrix, (*vector.shape, dim))
        return jnp.linalg.solve(matrix, vector[..., None])[..., 0]
    if dim == 1:
        return vector / (1 + matrix[..., 0])
    (a, b), (c, d) = _entries(matrix)
    a, d = 1 + a, 1 + d
    v, w = vector[..., 0], vector[..., 1]
    return jnp.stack([d * v - b * w, a * w - c * v], -1) / (a * d - b * c)[..., None]


def _entries(matrix: Array) -> list[list[Array]]:
    return [[matrix[..., i, j] for j in (0, 1)] for i in (0, 1)]


def _truncated_log_det(matrix: Array, num_terms: int) -> Array:
    """tr(A) - tr(A^2) / 2 + ... up to the power ``num_terms``."""
    power, total = matrix, jnp.trace(matrix, 0, -2, -1)
    for k in range(2, num_terms + 1):
        power = jnp.matmul(power, matrix, precision=matmul_precision())
        total = total - (-1) ** k / k * jnp.trace(power, 0, -2, -1)
    return total
