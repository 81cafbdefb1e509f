"""Linear bijectors: fixed and learnable."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_bridge import checks, masks
from flow_bridge.images import exponential_terms
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.numerics import at_least_float32, full_precision
from torch_flows.registry import register


class _Reordering(Bijector):
    """What permutations share: by index along one axis, so that a NaN stays in its dimension."""

    order: Tensor
    inverse_order: Tensor

    def _set_order(self, order: np.ndarray, event_ndim: int) -> None:
        checks.event_axes(type(self).__name__, event_ndim)
        self.event_ndim = event_ndim
        self.event_shape = (len(order), *[None] * (event_ndim - 1))
        self.register_buffer("order", torch.as_tensor(order), persistent=False)
        inverse_order = torch.as_tensor(np.argsort(order))
        self.register_buffer("inverse_order", inverse_order, persistent=False)

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        axis = -self.event_ndim
        return x.index_select(axis, self.order), x.new_zeros(x.shape[:axis])

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        axis = -self.event_ndim
        return z.index_select(axis, self.inverse_order), z.new_zeros(z.shape[:axis])

    def map_score(
        self,
        x: Tensor,
        score: Tensor,
        context: Tensor | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        step = self.map_inverse if inverse else self.map_forward  # orthogonal: J^-T = J
        score = step(score, context)[0]
        return *step(x, context), score if differentiable else score.detach()


@register
class Permutation(_Reordering):
    """z_i = x_permutation[i]. log|det| = 0.

    Args:
        permutation: a list that holds 0, 1, ..., dim - 1 once each, or ``"reverse"``.
        dim: number of dimensions; needed for ``"reverse"`` only.
        event_ndim: number of axes of one event, whose first one is permuted: 3 for the channels of images.

    Shapes: x and z ``(*batch, dim)``, of images ``(*batch, dim, height, width)``.

    Raises:
        ValueError: if the list is not a permutation, or not of length ``dim``.
    """

    def __init__(
        self, permutation: str | Sequence[int], dim: int | None = None, event_ndim: int = 1
    ) -> None:
        super().__init__()
        if dim is not None:
            checks.positive_int("Permutation", dim=dim)
        self.permutation = tuple(permutation) if isinstance(permutation, list) else permutation
        self.dim = dim
        self._set_order(masks.permutation_order(self.permutation, dim), event_ndim)


@register
class RandomPermutation(_Reordering):
    """A fixed permutation that numpy's generator draws from ``seed``. log|det| = 0.

    Args:
        dim: number of dimensions.
        seed: the same seed gives the same permutation in both frameworks.
        event_ndim: see ``Permutation``.

    Shapes: x and z ``(*batch, dim)``, of images ``(*batch, dim, height, width)``.
    """

    def __init__(self, dim: int, seed: int, event_ndim: int = 1) -> None:
        super().__init__()
        checks.positive_int("RandomPermutation", dim=dim)
        checks.non_negative_int("RandomPermutation", seed=seed)
        self.dim = dim
        self.seed = seed
        self._set_order(masks.random_permutation(dim, seed), event_ndim)


@register
class Rotation(Bijector):
    """z = Q x with a learnable rotation Q, a product of Householder reflections. log|det| = 0.

    Q = H_1 H_2 ... H_k with H_i = I - 2 v_i v_i^T / |v_i|^2, and H_i = I where v_i = 0. The number k
    of reflections is even, and enough for every rotation. The product is taken in its compact form
    Q = I - V^T T V, whose error is a few eps whatever the weights are.

    Args:
        dim: number of dimensions.

    Shapes: x and z ``(*batch, dim)``.

    Reference: Tomczak and Welling (2016), arXiv:1611.09630; Schreiber and Van Loan (1989),
    doi:10.1137/0910005, for the compact form.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        checks.positive_int("Rotation", dim=dim)
        self.dim = dim
        self.event_shape = (dim,)
        self.vectors = nn.Parameter(torch.randn(max(2, dim - dim % 2), dim))

    def matrix(self) -> Tensor:
        """Q, of shape ``(dim, dim)``."""
        # dividing by the largest entry first keeps the squares from under- and overflowing
        vectors = at_least_float32(self.vectors)
        size = vectors.detach().abs().amax(-1, keepdim=True)
        v = vectors / torch.where(size > 0, size, 1)
        norm2 = v.square().sum(-1, keepdim=True)
        v = v * torch.where(norm2 > 0, norm2, 1).rsqrt()
        half = torch.eye(len(v), dtype=v.dtype, device=v.device) / 2
        inverse_t = (v @ v.T).triu(1) + half
        identity = torch.eye(self.dim, dtype=v.dtype, device=v.device)
        q = identity - v.T @ torch.linalg.solve_triangular(inverse_t, v, upper=True)
        return q.to(self.vectors.dtype)

    @full_precision
    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        return x @ self.matrix().T, x.new_zeros(x.shape[:-1])

    @full_precision
    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        return z @ self.matrix(), z.new_zeros(z.shape[:-1])

    def map_score(
        self,
        x: Tensor,
        score: Tensor,
        context: Tensor | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        step = self.map_inverse if inverse else self.map_forward  # orthogonal: J^-T = J
        score = step(score, context)[0]
        return *step(x, context), score if differentiable else score.detach()


def lu_matrix(lu: Tensor) -> Tensor:
    """P L U of the packed weights ``lu`` of shape (n, n); P reverses the rows.

    L has ones on its diagonal and the entries of ``lu`` below it; U has the exponentials of the
    diagonal of ``lu`` on its own, and the entries of ``lu`` above it. log|det| = trace(lu).
    """
    upper = _upper(lu)
    return torch.addmm(upper, lu.tril(-1), upper).flip(0)


def lu_solve(lu: Tensor, z: Tensor) -> Tensor:
    """The x with z = P L U x, along the last axis, by two triangular substitutions."""
    # solved from the right, rows stay rows: 2 to 3 times faster than on the transposed columns
    solve = partial(torch.linalg.solve_triangular, left=False)
    lu, rows = at_least_float32(lu), at_least_float32(z).flip(-1).reshape(-1, z.shape[-1])
    rows = solve(lu.T, rows, upper=True, unitriangular=True)
    return solve(_upper(lu).T, rows, upper=False).reshape(z.shape).to(z.dtype)


def _upper(lu: Tensor) -> Tensor:
    return lu.triu(1) + lu.diagonal().exp().diag()


class _Factored(Bijector):
    """What ``LULinear`` and ``Invertible1x1Conv`` share: z = P S L U x."""

    lu: nn.Parameter
    order: Tensor
    inverse_order: Tensor
    row_signs: Tensor

    def _set_factors(
        self, dim: int, permutation: str | Sequence[int], signs: Sequence[int] | None
    ) -> None:
        self.permutation, self.signs = permutation, signs
        self.lu = nn.Parameter(torch.zeros(dim, dim))
        rows = masks.factor_rows(type(self).__name__, permutation, signs, dim)
        self.is_reversal = rows is None
        if rows is not None:
            order, row_signs = rows
            self.register_buffer("order", torch.as_tensor(order), persistent=False)
            inverse_order = torch.as_tensor(np.argsort(order))
            self.register_buffer("inverse_order", inverse_order, persistent=False)
            self.register_buffer("row_signs", torch.as_tensor(row_signs), persistent=False)

    def matrix(self) -> Tensor:
        """P S L U."""
        rows = lu_matrix(self.lu)
        if self.is_reversal:
            return rows
        return rows.index_select(0, self.order) * self.row_signs.unsqueeze(-1)

    def solve(self, z: Tensor) -> Tensor:
        """The x with z = P S L U x, along the last axis."""
        if not self.is_reversal:
            z = (z * self.row_signs).index_select(-1, self.inverse_order)
        return lu_solve(self.lu, z)


@register
class LULinear(_Factored):
    """z = P S L U x + b; L is unit lower triangular, U upper triangular with a positive diagonal.

    P is a fixed permutation and S a fixed diagonal of signs, with which the map starts: as the
    reversal, if not given. The diagonal of U is the exponential of a weight, which makes log|det| the
    exact sum of those weights. The inverse solves by triangular substitution; its error grows with
    ``condition()``. Every invertible matrix is P S L U for some P and S.

    Args:
        dim: number of dimensions.
        bias: whether to add b.
        permutation: P, with (P y)_i = y_permutation[i]: a list that holds 0, 1, ..., dim - 1 once
            each, or ``"reverse"``.
        signs: the diagonal of S, a list of 1 and -1, or ``None`` for ones.

    Shapes: x and z ``(*batch, dim)``.

    Raises:
        ValueError: for a list that is no permutation or no signs, or not of length ``dim``.

    Reference: Oliva et al. (2018), arXiv:1801.09819; Kingma and Dhariwal (2018), Glow,
    arXiv:1807.03039.

    Examples:
        >>> import torch, torch_flows
        >>> bijector = torch_flows.LULinear(dim=3)
        >>> z, log_det = bijector.forward(torch.zeros(5, 3))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 3), (5,))
    """

    def __init__(
        self,
        dim: int,
        bias: bool = True,
        permutation: str | Sequence[int] = "reverse",
        signs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        checks.positive_int("LULinear", dim=dim)
        checks.boolean("LULinear", bias=bias)
        self.dim = dim
        self.event_shape = (dim,)
        self._set_factors(dim, permutation, signs)
        self.bias = bias
        if bias:
            self.shift = nn.Parameter(torch.zeros(dim))

    def condition(self) -> Tensor:
        """The condition number of L U in the 2-norm: relative errors of the inverse grow by it."""
        return torch.linalg.cond(lu_matrix(at_least_float32(self.lu)))

    @full_precision
    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        z = functional.linear(x, self.matrix(), self.shift if self.bias else None)
        return z, self.lu.trace().expand(x.shape[:-1])

    @full_precision
    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        x = self.solve(z - self.shift if self.bias else z)
        return x, -self.lu.trace().expand(z.shape[:-1])


@register
class Invertible1x1Conv(_Factored):
    """z[:, h, w] = P S L U x[:, h, w] at every pixel; log|det| = height * width * trace(lu).

    The same P, S, L and U as in ``LULinear``: it starts as a permutation of the channels, its log-det
    is an exact sum of weights and its inverse solves by triangular substitution.

    Args:
        channels: number of channels.
        permutation: P, a list or ``"reverse"``.
        signs: the diagonal of S, or ``None`` for ones.

    Shapes: x and z ``(*batch, channels, height, width)``.

    Raises:
        ValueError: for a list that is no permutation or no signs, or not of length ``channels``.

    Reference: Kingma and Dhariwal (2018), Glow, arXiv:1807.03039.
    """

    def __init__(
        self,
        channels: int,
        permutation: str | Sequence[int] = "reverse",
        signs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        checks.positive_int("Invertible1x1Conv", channels=channels)
        self.channels = channels
        self.event_shape = (channels, None, None)
        self._set_factors(channels, permutation, signs)

    @full_precision
    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        z = torch.matmul(self.matrix(), x.flatten(-2)).reshape(x.shape)
        return z, self._log_det(x)

    @full_precision
    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        x = self.solve(z.movedim(-3, -1)).movedim(-1, -3).contiguous()
        return x, -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        num_pixels = x.shape[-2] * x.shape[-1]
        return (self.lu.trace() * num_pixels).expand(x.shape[:-3])


@register
class ConvolutionExponential(Bijector):
    """z = exp(M) x for the convolution M with a square kernel, padded with zeros, between all channels:

        z = x + M x + M M x / 2 + ...,   log|det| = height width sum_c kernel[c, c] at its centre,

    the trace of M. The inverse is exp(-M). The kernel is divided by what its largest sum of absolute
    values of an output channel exceeds ``bound`` by, which bounds M in the maximum norm, and the sum ends
    where the rest is below rounding: 19 terms in float64 and 11 in float32 for a bound of 1. It starts as
    the identity.

    Args:
        channels: number of channels.
        kernel_size: odd, in both directions.
        bound: of the norm of M, between 0 and 5.

    Shapes: x and z ``(*batch, channels, height, width)``.

    Raises:
        ValueError: for an even kernel size, and numbers out of range.

    Reference: Hoogeboom et al. (2020), The convolution exponential, arXiv:2006.01910.
    """

    def __init__(self, channels: int, kernel_size: int = 3, bound: float = 1.0) -> None:
        super().__init__()
        checks.positive_int("ConvolutionExponential", channels=channels)
        checks.odd("ConvolutionExponential", kernel_size=kernel_size)
        checks.open_interval("ConvolutionExponential", "bound", bound, 0, 5)
        self.channels = channels
        self.kernel_size = kernel_size
        self.bound = bound
        self.event_shape = (channels, None, None)
        self.raw_kernel = nn.Parameter(torch.zeros(channels, channels, kernel_size, kernel_size))

    @full_precision
    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        return self._exponential(x, 1.0)

    @full_precision
    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        return self._exponential(z, -1.0)

    def _exponential(self, x: Tensor, sign: float) -> Output:
        kernel = sign * self.kernel()
        term = y = at_least_float32(x).reshape(-1, *x.shape[-3:])
        for k in range(1, exponential_terms(self.bound, torch.finfo(y.dtype).eps) + 1):
            term = functional.conv2d(term, kernel, padding=self.kernel_size // 2) / k
            y = y + term
        middle = self.kernel_size // 2
        trace = x.shape[-2] * x.shape[-1] * kernel[:, :, middle, middle].trace()
        return y.reshape(x.shape).to(x.dtype), trace.to(x.dtype).expand(x.shape[:-3])

    def kernel(self) -> Tensor:
        """The kernel of M, ``(out channels, in channels, kernel_size, kernel_size)``."""
        raw = at_least_float32(self.raw_kernel)
        size = raw.abs().sum((1, 2, 3)).amax()
        return raw * (self.bound / torch.where(size > self.bound, size, self.bound))
