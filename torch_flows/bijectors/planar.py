"""Planar, radial and Sylvester maps: the identity plus a few directions."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.series import TANH_EXCESS
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.numerics import (
    DETACHED_STEPS,
    DIFFERENTIABLE_STEPS,
    at_least_float32,
    derivatives,
    differentiable,
    divide,
    full_precision,
    log_sech2,
    log_softplus,
    norm,
    quotient,
    softplus,
    unbound,
)
from torch_flows.registry import register


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

    s: Tensor
    slope: Tensor
    rest: Tensor
    root: Tensor
    bend: Tensor
    limit: Tensor
    is_convex: Tensor

    def unbind(self, axis: int) -> "list[_Curve]":
        """Those along an axis, one by one."""
        return [
            _Curve(*parts) for parts in zip(*[unbound(part, axis) for part in self], strict=True)
        ]


def _curve(s: Tensor) -> _Curve:
    s = s.clamp_min(torch.finfo(s.dtype).tiny)
    slope = s.detach()
    bend = (4 * slope).log() / 2
    return _Curve(s, slope, 1 - slope, slope * slope.sqrt(), bend, bend - 1.5, slope <= 1)


@register
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
        >>> import torch, torch_flows
        >>> bijector = torch_flows.Planar(dim=3)
        >>> z, log_det = bijector.forward(torch.zeros(5, 3))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 3), (5,))
    """

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        checks.positive_int("Planar", dim=dim)
        checks.non_negative_int("Planar", context_dim=context_dim)
        self.dim = dim
        self.context_dim = context_dim
        self.event_shape = (dim,)
        self.stack_sizes = dim, context_dim
        w, u = torch.randn(dim), torch.randn(dim)
        if not w.is_meta:  # where each of these steps would take a millisecond for nothing
            # below 1 a step in w would move u_hat, u / |w|, by units
            w = w / w.norm().clamp(max=1)
            # w.u = log(e - 1) is where w.u_hat = 0, so that the map starts near the identity
            u = math.log(math.e - 1) * w / w.square().sum() + 0.01 * u
        self.w, self.u = nn.Parameter(w), nn.Parameter(u)
        self.b = nn.Parameter(torch.randn(()))
        if context_dim:
            self.context_weight = nn.Parameter(torch.zeros(2 * dim + 1, context_dim))

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        return self.map_stack(x, context, [self])

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        return self.map_stack(z, context, [self], True)

    @classmethod
    @full_precision
    def map_stack(
        cls, x: Tensor, context: Tensor | None, layers: Sequence["Planar"], inverse: bool = False
    ) -> Output:
        w, u_hat, b, s, log_s = _planar_parameters(layers, context)
        found = []
        curves = _curve(s).unbind(-1) if inverse else [None] * len(layers)
        parts = (unbound(w, -2), unbound(u_hat, -2), unbound(b, -1), curves)
        for w_i, u_i, b_i, curve in zip(*parts, strict=True):
            a = (w_i * x).sum(-1) + b_i
            if curve is not None:
                a = _solve(a, curve)
            step = u_i * a.tanh().unsqueeze(-1)
            x = x - step if inverse else x + step
            found.append(a)
        log_det = _log_det(torch.stack(found, -1), s, log_s).sum(-1)
        return x, -log_det if inverse else log_det


def _planar_parameters(layers: Sequence[Planar], context: Tensor | None) -> tuple[Tensor, ...]:
    """w, u_hat (..., layers, dim) and b, s, log(s) (..., layers)."""
    w = torch.stack([layer.w for layer in layers])
    u = torch.stack([layer.u for layer in layers])
    b = torch.stack([layer.b for layer in layers])
    if context is not None:
        dim = w.shape[-1]
        offset = _offsets(layers, context)
        w, u, b = w + offset[..., :dim], u + offset[..., dim:-1], b + offset[..., -1]
    wu = (w * u).sum(-1)
    norm2 = w.square().sum(-1)
    moving = norm2 > 0  # at w = 0 the map is a translation: w.u_hat is 0 whatever u is
    step = (softplus(-wu) - 1) / torch.where(moving, norm2, 1)
    s = torch.where(moving, softplus(wu), 1)
    log_s = torch.where(moving, log_softplus(wu), 0)
    return w, u + step.unsqueeze(-1) * w, b, s, log_s


def _offsets(layers: Sequence[Any], context: Tensor) -> Tensor:
    """What the context adds to the parameters of each layer, (..., layers, parameters)."""
    weights = torch.cat([layer.context_weight for layer in layers])
    return (context @ weights.T).unflatten(-1, (len(layers), -1))


@register
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

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        checks.positive_int("Radial", dim=dim)
        checks.non_negative_int("Radial", context_dim=context_dim)
        self.dim = dim
        self.context_dim = context_dim
        self.event_shape = (dim,)
        self.stack_sizes = dim, context_dim
        # alpha = s = 1 would be the identity
        start = math.log(math.e - 1)
        self.center = nn.Parameter(torch.randn(dim))
        self.raw_alpha = nn.Parameter(torch.tensor(start))
        self.raw_s = nn.Parameter(torch.randn(()).mul_(0.01).add_(start))
        if context_dim:
            self.context_weight = nn.Parameter(torch.zeros(dim + 2, context_dim))

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        return self.map_stack(x, context, [self])

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        return self.map_stack(z, context, [self], True)

    @classmethod
    @full_precision
    def map_stack(
        cls, x: Tensor, context: Tensor | None, layers: Sequence["Radial"], inverse: bool = False
    ) -> Output:
        center, alpha, s = _radial_parameters(layers, context)
        found = []
        parts = (unbound(center, -2), unbound(alpha, -1), unbound(s, -1))
        for center_i, alpha_i, s_i in zip(*parts, strict=True):
            offset = x - center_i
            r = norm(offset)
            if inverse:
                r = _positive_root(r, alpha_i, s_i)
                factor = divide(alpha_i + r, r + s_i)
            else:
                factor = divide(r + s_i, alpha_i + r)
            x = center_i + offset * factor.unsqueeze(-1)
            found.append(r)
        log_det = _radial_log_det(torch.stack(found, -1), alpha, s, x.shape[-1]).sum(-1)
        return x, -log_det if inverse else log_det


def _radial_parameters(layers: Sequence[Radial], context: Tensor | None) -> tuple[Tensor, ...]:
    """The centers (..., layers, dim), and alpha and s (..., layers)."""
    center = torch.stack([layer.center for layer in layers])
    raw_alpha = torch.stack([layer.raw_alpha for layer in layers])
    raw_s = torch.stack([layer.raw_s for layer in layers])
    if context is not None:
        offset = _offsets(layers, context)
        center = center + offset[..., :-2]
        raw_alpha, raw_s = raw_alpha + offset[..., -2], raw_s + offset[..., -1]
    tiny = torch.finfo(center.dtype).tiny
    return center, softplus(raw_alpha) + tiny, softplus(raw_s) + tiny


def _radial_log_det(r: Tensor, alpha: Tensor, s: Tensor, dim: int) -> Tensor:
    total = alpha + r
    excess, share = divide(s - alpha, total), divide(alpha, total)
    tangential = _log_of(excess, divide(r + s, total))
    squares = divide(r, total) * divide(r + 2 * alpha, total)
    radial = _log_of(share * excess, squares + share * divide(s, total))
    return (dim - 1) * tangential + radial


def _log_of(excess: Tensor, value: Tensor) -> Tensor:
    """log(value), from excess = value - 1 where that does not cancel."""
    mild = excess > -0.25
    near = torch.where(mild, excess, 0).log1p()
    return torch.where(mild, near, torch.where(mild, 1, value).log())


def _positive_root(rho: Tensor, alpha: Tensor, s: Tensor) -> Tensor:
    """The positive root r of r^2 + (s - rho) r - alpha rho, by the form that does not cancel."""
    p = s - rho
    scale = torch.maximum(p.abs(), 2 * alpha.sqrt() * rho.sqrt()).detach()
    q = scale * ((p / scale).square() + 4 * (alpha / scale) * (rho / scale)).sqrt()
    rising = p > 0
    return torch.where(rising, divide(2 * alpha * rho, torch.where(rising, p + q, 1)), (q - p) / 2)


@register
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

    def __init__(self, dim: int, rank: int, context_dim: int = 0) -> None:
        super().__init__()
        checks.positive_int("Sylvester", dim=dim, rank=rank)
        checks.non_negative_int("Sylvester", context_dim=context_dim)
        checks.at_most("Sylvester", "rank", rank, "dim", dim)
        self.dim = dim
        self.rank = rank
        self.context_dim = context_dim
        self.event_shape = (dim,)
        self.stack_sizes = dim, rank, context_dim
        self.householder = nn.Parameter(torch.randn(rank, dim))
        # R near 0 is near the identity; S starts with 0.76 on its diagonal
        factors = torch.randn(rank, rank + 1)
        if not factors.is_meta:
            factors = 0.01 * factors + torch.eye(rank, rank + 1)
        self.factors = nn.Parameter(factors)
        self.b = nn.Parameter(torch.randn(rank))
        if context_dim:
            self.context_weight = nn.Parameter(torch.zeros(rank * (rank + 2), context_dim))

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        return self.map_stack(x, context, [self])

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        return self.map_stack(z, context, [self], True)

    @classmethod
    @full_precision
    def map_stack(
        cls, x: Tensor, context: Tensor | None, layers: Sequence["Sylvester"], inverse: bool = False
    ) -> Output:
        outer, inner, b, s, log_s = _sylvester_parameters(layers, context)
        found = []
        columns = _orthonormal(torch.stack([layer.householder for layer in layers]))
        curves = _curve(s).unbind(-2) if inverse else [None] * len(layers)
        matrices = [unbound(matrix, -3) for matrix in (columns, outer, inner)]
        parts = (*matrices, unbound(b, -2), curves)
        for q, outer_i, inner_i, b_i, curve in zip(*parts, strict=True):
            y = _product(q.T, x)
            if curve is not None:
                a, tanh = _solve_triangle(y, outer_i, inner_i, b_i, curve)
                x = x - _product(q, _product(outer_i, tanh))
            else:
                a = _product(inner_i, y) + b_i
                x = x + _product(q, _product(outer_i, a.tanh()))
            found.append(a)
        log_det = _log_det(torch.stack(found, -2), s, log_s).sum((-2, -1))
        return x, -log_det if inverse else log_det


def _sylvester_parameters(
    layers: Sequence[Sylvester], context: Tensor | None
) -> tuple[Tensor, ...]:
    """R and S (..., layers, rank, rank), and b, s and log(s) (..., layers, rank)."""
    factors = torch.stack([layer.factors for layer in layers])
    b = torch.stack([layer.b for layer in layers])
    rank = b.shape[-1]
    if context is not None:
        offset = _offsets(layers, context)
        factors = factors + offset[..., :-rank].unflatten(-1, (rank, rank + 1))
        b = b + offset[..., -rank:]
    outer, inner = factors[..., 1:].triu(), factors[..., :-1].tril().mT
    p, q = outer.diagonal(0, -2, -1), inner.diagonal(0, -2, -1)
    log_s = (log_sech2(p) + log_sech2(q) - log_sech2(p + q)) / 2
    eye = torch.eye(rank, dtype=p.dtype, device=p.device)
    outer = outer.triu(1) + p.tanh().unsqueeze(-1) * eye
    inner = inner.triu(1) + q.tanh().unsqueeze(-1) * eye
    return outer, inner, b, log_s.exp(), log_s


def _solve_triangle(
    y: Tensor, outer: Tensor, inner: Tensor, b: Tensor, curve: _Curve
) -> tuple[Tensor, Tensor]:
    """a and tanh(a) for a = S v + b with v + R tanh(a) = y, the last coordinate first."""
    rank = y.shape[-1]
    curves = curve.unbind(-1)
    a = tanh = solved = torch.zeros_like(y + b)
    for i in reversed(range(rank)):
        now = torch.arange(rank, device=y.device) == i
        r, t = outer[..., i, :], inner[..., i, :]
        value = y[..., i] - (r * tanh).sum(-1)
        start = t[..., i] * value + (t * solved).sum(-1) + b[..., i]
        root = _solve(start, curves[i])
        a = torch.where(now, root.unsqueeze(-1), a)
        tanh = torch.where(now, root.tanh().unsqueeze(-1), tanh)
        value = value - r[..., i] * root.tanh()
        solved = torch.where(now, value.unsqueeze(-1), solved)
    return a, tanh


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    """The matrix, or each row's own one, times each row of the vectors."""
    if matrix.ndim == 2:
        return vector @ matrix.mT
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _orthonormal(vectors: Tensor) -> Tensor:
    """The first columns of the product of the reflections in ``vectors`` (..., rank, dim), as (..., dim,
    rank).

    A reflection is I - 2 v v^T / |v|^2, or the identity where v = 0; the product is I - V^T T V with
    T upper triangular, whose inverse is known from the inner products.
    """
    dtype, vectors = vectors.dtype, at_least_float32(vectors)
    rank, dim = vectors.shape[-2:]
    length = norm(vectors).unsqueeze(-1)
    unit = vectors / torch.where(length > 0, length, 1)
    eye = torch.eye(rank, dim, dtype=vectors.dtype, device=vectors.device)
    triangle = (unit @ unit.mT).triu(1) + eye[:, :rank] / 2
    solution = torch.linalg.solve_triangular(triangle, unit[..., :rank], upper=True)
    return (eye.T - unit.mT @ solution).to(dtype)


def _log_det(a: Tensor, s: Tensor, log_s: Tensor) -> Tensor:
    """log(s sech(a)^2 + tanh(a)^2), which is log(1 + (s - 1) sech(a)^2) where that is mild; else twice the
    logarithm of the larger root of the two terms, times sqrt(1 + ratio^2), ratio the other root over it."""
    t, sech = a.tanh(), _sech(a)
    excess = (s - 1) * sech * sech
    mild = excess > -0.25
    log_root = torch.where(mild, 0, log_s / 2)
    root = log_root.exp() * sech
    size = t.abs()
    flat = size <= root
    larger, smaller = torch.where(flat, root, size), torch.where(flat, t, root)
    ratio = divide(smaller, larger.clamp_min(torch.finfo(a.dtype).tiny))
    # the root may underflow where its logarithm does not
    small = torch.where(flat, sech, size) * (1 + ratio * ratio).sqrt()
    excess = torch.where(mild, excess, 0)
    near = 1 + excess
    lost = (excess - (near - 1)).masked_fill(near == math.inf, 0) / near
    log_value = torch.where(mild, near, small).log() + torch.where(flat, log_root, 0)
    return torch.where(mild, 1, 2) * log_value + lost


def _excess(a: Tensor, tanh: Tensor) -> Tensor:
    """a - tanh(a) without cancellation, and without gradients."""
    a, tanh = a.detach(), tanh.detach()
    square = a * a
    near = a * (square * quotient(square, *TANH_EXCESS[torch.finfo(a.dtype).bits]))
    return torch.where(square < 0.25, near, a - tanh)


def _sech(a: Tensor) -> Tensor:
    """sech(a), whose square 1 - tanh(a)^2 loses far out."""
    largest = math.log(torch.finfo(a.dtype).max) - 1
    # by a root, whose derivative needs the cube and not the fourth power of small numbers
    return a.clamp(-largest, largest).cosh().rsqrt().square()


def _halley_step(a: Tensor, minus_t: Tensor, curve: _Curve) -> Tensor:
    tanh, sech = a.tanh(), a.cosh().reciprocal()
    sech2 = sech * sech
    slope = torch.addcmul(tanh * tanh, curve.slope, sech2)
    # what may cancel is added first
    step = (_excess(a, tanh) + torch.addcmul(minus_t, curve.slope, tanh)) / slope
    half_bend = tanh * sech2 * curve.rest / slope
    # 0.73 at least but for rounding
    return torch.addcdiv(a, step, (1 - step * half_bend).clamp_min(0.5), value=-1)


def _newton_step(a: Tensor, t: Tensor, s: Tensor) -> Tensor:
    tanh, sech2 = a.tanh(), _sech(a).square()
    t1, s2 = tanh.detach(), sech2.detach()
    second, third = 2 * t1 * s2, 2 * s2 * (s2 - 2 * t1 * t1)
    excess = _excess(a, tanh) + derivatives(a, t1 * t1, second, third)
    tanh = t1 + derivatives(a, s2, -second, -third)  # whose own are 0 far out
    value = excess + (s * tanh - t)
    return a - divide(value - value.detach(), tanh.square() + s * sech2)


def _convex_start(t: Tensor, curve: _Curve) -> Tensor:
    """Near the root for s <= 1: off by at most 0.4 of it."""
    # Cardano's root without a difference, and with a sum in place of the root of two squares, which takes
    # less and ends nearer; beyond these t it is near the other bound
    triple = 3 * t.clamp(max=30)
    u = (triple + curve.root).pow(1 / 3).clamp_min(torch.finfo(t.dtype).tiny)
    other = curve.slope / u
    cubic = triple / torch.addcmul(torch.addcmul(curve.slope, u, u), other, other)
    ratio = t / curve.slope
    low = torch.minimum(ratio, cubic)
    return torch.where(low < 1, low, torch.minimum(ratio, t + 1))


def _concave_start(t: Tensor, curve: _Curve) -> Tensor:
    """Below the root for s > 1, by at most 0.3 of it."""
    tanh = ((curve.bend - t) / curve.rest).clamp(0.0, 1 - torch.finfo(t.dtype).eps)
    above = t - curve.slope
    bound = torch.maximum(t / curve.slope, above + 1)
    return torch.where(above < curve.limit, torch.maximum(bound, tanh.atanh()), bound)


def _solve(t: Tensor, curve: _Curve) -> Tensor:
    """The root a of a - tanh(a) + s tanh(a) = t.

    The left side is odd, and on one side of 0 convex (s <= 1) or concave (s > 1). The start is the root
    of s a + a^3 / 3 = t or of a linear bound for s <= 1, and else a lower bound by an upper one of a. From
    there Halley's steps come within 0.005, 2e-8 and 1e-14 of the root, to the rounding of t and s; two do in
    float32. Newton's leave that as it is and carry gradients, up to the third derivatives.
    """
    if t.ndim == curve.s.ndim == 0:  # PyTorch's forward mode makes float64 of float32 scalars
        return _solve(t.unsqueeze(-1), curve).squeeze(-1)
    fixed_t = t.detach()
    magnitude = fixed_t.abs()
    minus_t = -magnitude
    convex, concave = _convex_start(magnitude, curve), _concave_start(magnitude, curve)
    a, low = (torch.where(curve.is_convex, part, concave) for part in (convex, magnitude))
    for _ in range(DETACHED_STEPS if t.dtype == torch.float64 else DETACHED_STEPS - 1):
        # the rounding of an s beyond 1 / eps would send it anywhere
        a = torch.maximum(_halley_step(a, minus_t, curve), low)
    a = torch.copysign(a, fixed_t)
    for _ in range(DIFFERENTIABLE_STEPS if differentiable() else 0):
        a = _newton_step(a, t, curve.s)
    return a
