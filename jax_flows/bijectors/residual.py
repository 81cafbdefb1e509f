"""Residual maps: the identity plus something small enough to stay invertible."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from flow_bridge import lipschitz as bridge
from flow_bridge.errors import ConvergenceError
from jax_flows.bijectors.base import Bijector
from jax_flows.derivatives import Layers, evaluate, jacobian, jvp, vjp
from jax_flows.inputs import check_input, check_probe
from jax_flows.networks.lipschitz import LipschitzMLP
from jax_flows.numerics import (
    DIFFERENTIABLE_STEPS,
    at_least_float32,
    first_step,
    in_float32,
    is_eager,
    matmul_precision,
    next_step,
    norm,
    rademacher,
    random_bits,
)
from jax_flows.registry import register
from jax_flows.variables import AnyArray, Output, Variables, child, gather

_Search = tuple[Array, Array, Array, Array, Array, Array, Array]


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
        activation: a name in ``networks.activations.ACTIVATIONS``, divided by its largest slope.
        exact_terms: terms of the series that are always there.
        stop_probability: of the roulette; by default (1 - lipschitz^2) / 2.
        eval_terms: terms of the series in evaluation, ``None`` for the exact determinant; not with
            ``log_det="exact"``.
        context_dim: width of the context, an unconstrained input of g; 0 for none.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for a ``stop_probability`` of 1 - lipschitz^2 or more: infinite variance.
        ConvergenceError: if an inverse does not converge, outside compiled code.

    Reference: Behrmann et al. (2019), arXiv:1811.00995; Chen et al. (2019), arXiv:1906.02735.
    """

    dim: int
    hidden_dims: Sequence[int] = (64, 64)
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
        bridge.check_eval_terms(name, self.eval_terms, self.log_det)
        _ = self._stop, self.network.mlp
        if self.log_det == "series":
            bridge.roulette_length(self._stop)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def network(self) -> LipschitzMLP:
        """The network g."""
        widths = (self.dim, tuple(self.hidden_dims))
        return LipschitzMLP(*widths, self.activation, self.lipschitz, self.context_dim)

    @property
    def _stop(self) -> float:
        return bridge.stop_probability("InvertibleResidual", self.stop_probability, self.lipschitz)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        network_key, step_key = jax.random.split(key)
        variables = gather({"network": self.network.init(network_key, dtype)})
        if self.log_det == "series":
            variables["batch_stats"]["noise_step"] = first_step(step_key, dtype)
        return variables

    def variable_shapes(self, dtype: Any) -> Variables:
        variables = gather({"network": self.network.variable_shapes(dtype)})
        if self.log_det == "series":
            variables["batch_stats"]["noise_step"] = jax.ShapeDtypeStruct((), dtype)
        return variables

    @in_float32
    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        layers, _ = self.network.normalized(child(variables, "network"), context)
        return self._evaluate(layers, x, self.eval_terms)

    @in_float32
    def map_forward_and_update(
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

    @in_float32
    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        layers, _ = self.network.normalized(child(variables, "network"), context)
        x = self._solve(layers, z)
        image, log_det = self._evaluate(layers, x, self.eval_terms)
        fixed_x, fixed_z, residual = jax.lax.stop_gradient((x, z, image - z))
        scale = 1 + norm(fixed_x) + norm(fixed_z)
        tolerance = bridge.inverse_tolerance(float(jnp.finfo(z.dtype).eps))
        finite = jnp.isfinite(z).all(-1)
        solved = finite & (norm(residual) <= tolerance * scale)
        failed = finite & ~solved
        if is_eager(failed) and failed.any():
            raise ConvergenceError(
                bridge.inverse_message(int(failed.sum()), tolerance, self.lipschitz)
            )
        x = jnp.where(solved[..., None], x, math.nan)
        return x, jnp.where(solved, -log_det, math.nan)

    def forward_with_noise(
        self,
        variables: Variables,
        x: AnyArray,
        noise: AnyArray,
        num_terms: int | Array,
        context: AnyArray | None = None,
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
        noise = check_probe(self, variables, noise, x)
        if not isinstance(num_terms, jax.Array):
            checks.positive_int("InvertibleResidual", num_terms=num_terms)
        return self._map_with_noise(variables, x, noise, num_terms, context)

    @in_float32
    def _map_with_noise(
        self,
        variables: Variables,
        x: Array,
        noise: Array,
        num_terms: int | Array,
        context: Array | None,
    ) -> Output:
        layers, _ = self.network.normalized(child(variables, "network"), context)
        return self._estimate(layers, x, noise, num_terms)

    # the backward pass computes the block anew: half the time, and less memory, than to keep it
    @partial(jax.checkpoint, static_argnums=(0, 3))
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
        noise = jax.lax.stop_gradient(at_least_float32(noise))

        @jax.checkpoint
        def differentiated(layers: Layers, x: Array, left: Array) -> Output:
            g, slopes = evaluate(layers, self.activation, x)
            return x + g, (left * jvp(layers, slopes, noise)).sum(-1)

        fixed = jax.lax.stop_gradient(layers)
        _, fixed_slopes = evaluate(fixed, self.activation, jax.lax.stop_gradient(x))

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
        z, surrogate = differentiated(layers, x, left)
        return z, value + (surrogate - jax.lax.stop_gradient(surrogate))

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
        for _ in range(DIFFERENTIABLE_STEPS):
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
