"""Residual maps: the identity plus something small enough to stay invertible."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from flow_bridge import checks
from flow_bridge import lipschitz as bridge
from flow_bridge.errors import ConvergenceError
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.derivatives import Layers, evaluate, jacobian, jvp, vjp
from torch_flows.devices import own_rows
from torch_flows.inputs import check_input, check_probe
from torch_flows.networks.lipschitz import LipschitzMLP
from torch_flows.numerics import (
    DIFFERENTIABLE_STEPS,
    advance,
    at_least_float32,
    differentiable,
    first_step,
    full_precision,
    in_float32,
    is_eager,
    norm,
    rademacher,
    random_bits,
)
from torch_flows.registry import register


@register
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

    noise_step: Tensor
    thresholds: Tensor

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        lipschitz: float = 0.97,
        log_det: str = "exact",
        activation: str = "silu",
        exact_terms: int = 10,
        stop_probability: float | None = None,
        eval_terms: int | None = None,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        name = "InvertibleResidual"
        checks.positive_int(name, dim=dim, exact_terms=exact_terms)
        checks.non_negative_int(name, context_dim=context_dim)
        checks.open_interval(name, "lipschitz", lipschitz, 0, 1)
        checks.one_of(name, "log_det", log_det, ("exact", "series"))
        bridge.check_eval_terms(name, eval_terms, log_det)
        stop = bridge.stop_probability(name, stop_probability, lipschitz)
        self.dim = dim
        self.hidden_dims = tuple(hidden_dims)
        self.lipschitz = lipschitz
        self.log_det = log_det
        self.activation = activation
        self.exact_terms = exact_terms
        self.stop_probability = stop_probability
        self.eval_terms = eval_terms
        self.context_dim = context_dim
        self.event_shape = (dim,)
        self.network = LipschitzMLP(dim, hidden_dims, activation, lipschitz, context_dim)
        self._stop = stop
        if log_det == "series":
            thresholds = torch.as_tensor(bridge.roulette_thresholds(stop))
            self.register_buffer("thresholds", thresholds, persistent=False)
            self.register_buffer("noise_step", first_step(torch.zeros(())))

    @full_precision
    @in_float32
    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        if not self.training:
            return self._evaluate(self.network.normalized(context), x, self.eval_terms)
        layers = self.network.normalized(context, estimate=True)
        if self.log_det == "exact":
            return self._evaluate(layers, x, None)
        noise = own_rows(partial(rademacher, self.noise_step, 0), x.shape)
        stopped = random_bits(self.noise_step, 1, ()) < self.thresholds
        num_terms = self.exact_terms + int(stopped.sum())
        advance(self.noise_step)
        return self._estimate(layers, x, noise, num_terms)

    @full_precision
    @in_float32
    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        layers = self.network.normalized(context)
        x = self._solve(layers, z)
        image, log_det = self._evaluate(layers, x, self.eval_terms)
        fixed_x, fixed_z, residual = x.detach(), z.detach(), (image - z).detach()
        scale = 1 + norm(fixed_x) + norm(fixed_z)
        tolerance = bridge.inverse_tolerance(torch.finfo(z.dtype).eps)
        finite = z.isfinite().all(-1)
        solved = finite & (norm(residual) <= tolerance * scale)
        failed = finite & ~solved
        if is_eager() and failed.any():
            raise ConvergenceError(
                bridge.inverse_message(int(failed.sum()), tolerance, self.lipschitz)
            )
        x = torch.where(solved.unsqueeze(-1), x, math.nan)
        return x, torch.where(solved, -log_det, math.nan)

    def forward_with_noise(
        self, x: Tensor, noise: Tensor, num_terms: int, context: Tensor | None = None
    ) -> Output:
        """``forward`` in evaluation mode, with the estimate of the log-det that training uses.

        Args:
            x: shape ``(*batch, dim)``.
            noise: the probe of the traces, of x's shape, with independent entries of mean 0 and
                variance 1.
            num_terms: the number of terms, at least 1: ``exact_terms`` plus a geometric number N with
                P(N >= j) = (1 - stop_probability)^j makes the estimate unbiased.
            context: as for ``forward``.
        """
        context = check_input(self, "x", x, context)
        noise = check_probe(self, noise, x)
        checks.positive_int("InvertibleResidual", num_terms=num_terms)
        return self._map_with_noise(x, noise, num_terms, context)

    @full_precision
    @in_float32
    def _map_with_noise(
        self, x: Tensor, noise: Tensor, num_terms: int, context: Tensor | None
    ) -> Output:
        return self._estimate(self.network.normalized(context), x, noise, num_terms)

    def _evaluate(self, layers: Layers, x: Tensor, num_terms: int | None) -> Output:
        g, slopes = evaluate(layers, self.activation, x)
        jacobian_of_g = jacobian(layers, slopes)
        if num_terms is None:
            log_det = _log_det_plus_identity(jacobian_of_g)
        else:
            log_det = _truncated_log_det(jacobian_of_g, num_terms)
        return x + g, log_det.expand(x.shape[:-1])

    def _estimate(self, layers: Layers, x: Tensor, noise: Tensor, num_terms: int) -> Output:
        """x + g(x), and the series with ``num_terms`` terms and its Neumann gradient."""
        g, slopes = evaluate(layers, self.activation, x)
        fixed = [(weight.detach(), bias) for weight, bias in layers]
        fixed_slopes = [slope.detach() for slope in slopes]
        noise = at_least_float32(noise)
        # denormal numbers, which XLA takes for zero, would make the products ten times slower
        denormal = torch.finfo(noise.dtype).tiny / torch.finfo(noise.dtype).eps
        row, value, left = noise, torch.zeros_like(x[..., 0]), torch.zeros_like(x)
        for k in range(1, num_terms + 1):
            weight = (-1) ** (k + 1) * (1 - self._stop) ** -max(k - self.exact_terms, 0)
            left = left + weight * row
            row = hardshrink(vjp(fixed, fixed_slopes, row), denormal)
            value = value + weight / k * (row * noise).sum(-1)
        surrogate = (left * jvp(layers, slopes, noise)).sum(-1)
        return x + g, value + (surrogate - surrogate.detach())

    def _solve(self, layers: Layers, z: Tensor) -> Tensor:
        fixed = [(weight.detach(), bias.detach()) for weight, bias in layers]
        target = z.detach()
        close = torch.finfo(z.dtype).eps ** 0.6 * (1 + _largest(target))
        given = target.isfinite().all(-1, keepdim=True)
        x = base = target
        size, share = torch.full_like(close, math.inf), torch.ones_like(close)
        direction, fallback = torch.zeros_like(x), target  # so that a NaN row stays one
        for _ in range(bridge.newton_steps(self.lipschitz)):
            newton, residual = self._newton_step(fixed, x, target)
            now = _largest(residual)
            good = now <= (1 - share / 4) * size
            base, direction = torch.where(good, x, base), torch.where(good, newton - x, direction)
            fallback = torch.where(good, x - residual, fallback)
            size, share = torch.where(good, now, size), torch.where(good, 1, share / 2)
            lost = share < bridge.SMALLEST_SHARE
            base, share = torch.where(lost, fallback, base), torch.where(lost, 1, share)
            size = torch.where(lost, math.inf, size)
            x = torch.where(lost, fallback, base + share * direction)
            if is_eager() and not ((size > close) & given).any():
                break
        x = base + direction  # from close to the root, one more step reaches rounding
        for _ in range(DIFFERENTIABLE_STEPS if differentiable() else 0):
            x, _ = self._newton_step(layers, x, z)
        return x

    def _newton_step(self, layers: Layers, x: Tensor, z: Tensor) -> Output:
        g, slopes = evaluate(layers, self.activation, x)
        residual = x + g - z
        return x - _solve_plus_identity(jacobian(layers, slopes), residual), residual


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax(-1, keepdim=True)


def _log_det_plus_identity(matrix: Tensor) -> Tensor:
    """log det(I + A) where that is positive; in one and two dimensions from det(I + A) - 1."""
    dim = matrix.shape[-1]
    if dim > 2:
        eye = torch.eye(dim, dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.slogdet(eye + matrix)[1]
    if dim == 1:
        return matrix[..., 0, 0].log1p()
    (a, b), (c, d) = _entries(matrix)
    return (a + d + (a * d - b * c)).log1p()


def _solve_plus_identity(matrix: Tensor, vector: Tensor) -> Tensor:
    """(I + A)^-1 v; in two dimensions by Cramer's rule."""
    dim = matrix.shape[-1]
    if dim > 2:
        eye = torch.eye(dim, dtype=matrix.dtype, device=matrix.device)
        matrix = (eye + matrix).expand(*vector.shape, dim)
        return torch.linalg.solve_ex(matrix, vector.unsqueeze(-1))[0].squeeze(-1)
    if dim == 1:
        return vector / (1 + matrix[..., 0])
    (a, b), (c, d) = _entries(matrix)
    a, d = 1 + a, 1 + d
    v, w = vector[..., 0], vector[..., 1]
    return torch.stack([d * v - b * w, a * w - c * v], -1) / (a * d - b * c).unsqueeze(-1)


def _entries(matrix: Tensor) -> list[list[Tensor]]:
    return [[matrix[..., i, j] for j in (0, 1)] for i in (0, 1)]


def _truncated_log_det(matrix: Tensor, num_terms: int) -> Tensor:
    """tr(A) - tr(A^2) / 2 + ... up to the power ``num_terms``."""
    power, total = matrix, matrix.diagonal(0, -2, -1).sum(-1)
    for k in range(2, num_terms + 1):
        power = power @ matrix
        total = total - (-1) ** k / k * power.diagonal(0, -2, -1).sum(-1)
    return total
