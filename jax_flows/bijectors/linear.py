"""Linear bijectors: fixed and learnable."""

import math
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks, masks
from flow_bridge.images import exponential_terms
from jax_flows.bijectors.base import Bijector, Shape
from jax_flows.numerics import as_int32, at_least_float32, matmul_precision
from jax_flows.registry import register
from jax_flows.variables import AnyArray, Output, Variables


class _Reordering(Bijector):
    """What permutations share: by index along one axis, so that a NaN stays in its dimension."""

    event_ndim: int

    @property
    @abstractmethod
    def order(self) -> np.ndarray: ...

    @property
    def event_shape(self) -> Shape:
        return (len(self.order), *[None] * (self.event_ndim - 1))

    @property
    def scan_key(self) -> Hashable:
        return super().scan_key if self.event_ndim == 1 else self  # see ``stackable``

    def scan_constants(self) -> dict[str, Any]:
        return {"order": as_int32(self.order), "inverse": as_int32(np.argsort(self.order))}

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        return {}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        return self._reorder(x, self.constants(variables)["order"])

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        return self._reorder(z, self.constants(variables)["inverse"])

    def map_score(
        self,
        variables: Variables,
        x: Array,
        score: Array,
        context: Array | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Array, Array, Array]:
        step = self.map_inverse if inverse else self.map_forward  # orthogonal: J^-T = J
        score = step(variables, score, context)[0]
        return *step(variables, x, context), score if differentiable else jax.lax.stop_gradient(
            score
        )

    def _reorder(self, x: Array, order: AnyArray) -> Output:
        others = (slice(None),) * (self.event_ndim - 1)
        return x[(..., order, *others)], jnp.zeros(x.shape[: x.ndim - self.event_ndim], x.dtype)


@register
@dataclass(frozen=True)
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

    permutation: str | Sequence[int]
    dim: int | None = None
    event_ndim: int = 1

    constant_fields = ("permutation",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim is not None:
            checks.positive_int("Permutation", dim=self.dim)
        _ = self.order
        checks.event_axes("Permutation", self.event_ndim)

    @cached_property
    def order(self) -> np.ndarray:
        return masks.permutation_order(self.permutation, self.dim)


@register
@dataclass(frozen=True)
class RandomPermutation(_Reordering):
    """A fixed permutation that numpy's generator draws from ``seed``. log|det| = 0.

    Args:
        dim: number of dimensions.
        seed: the same seed gives the same permutation in both frameworks.
        event_ndim: see ``Permutation``.

    Shapes: x and z ``(*batch, dim)``, of images ``(*batch, dim, height, width)``.
    """

    dim: int
    seed: int
    event_ndim: int = 1

    constant_fields = ("seed",)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("RandomPermutation", dim=self.dim)
        checks.non_negative_int("RandomPermutation", seed=self.seed)
        _ = self.order
        checks.event_axes("RandomPermutation", self.event_ndim)

    @cached_property
    def order(self) -> np.ndarray:
        return masks.random_permutation(self.dim, self.seed)


@register
@dataclass(frozen=True)
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

    dim: int

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("Rotation", dim=self.dim)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        shape = (max(2, self.dim - self.dim % 2), self.dim)
        return {"params": {"vectors": jax.random.normal(key, shape, dtype)}}

    def matrix(self, variables: Variables) -> Array:
        """Q, of shape ``(dim, dim)``."""
        vectors = at_least_float32(variables["params"]["vectors"])
        # dividing by the largest entry first keeps the squares from under- and overflowing
        size = jnp.abs(jax.lax.stop_gradient(vectors)).max(-1, keepdims=True)
        v = vectors / jnp.where(size > 0, size, 1)
        norm2 = jnp.square(v).sum(-1, keepdims=True)
        v = v * jax.lax.rsqrt(jnp.where(norm2 > 0, norm2, 1))
        half = jnp.eye(len(v), dtype=v.dtype) / 2
        inverse_t = jnp.triu(jnp.matmul(v, v.T, precision=matmul_precision()), 1) + half
        identity = jnp.eye(self.dim, dtype=v.dtype)
        solved = jax.scipy.linalg.solve_triangular(inverse_t, v)
        q = identity - jnp.matmul(v.T, solved, precision=matmul_precision())
        return q.astype(variables["params"]["vectors"].dtype)

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        z = jnp.matmul(x, self.matrix(variables).T, precision=matmul_precision())
        return z, jnp.zeros(x.shape[:-1], x.dtype)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        x = jnp.matmul(z, self.matrix(variables), precision=matmul_precision())
        return x, jnp.zeros(z.shape[:-1], z.dtype)

    def map_score(
        self,
        variables: Variables,
        x: Array,
        score: Array,
        context: Array | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Array, Array, Array]:
        step = self.map_inverse if inverse else self.map_forward  # orthogonal: J^-T = J
        score = step(variables, score, context)[0]
        return *step(variables, x, context), score if differentiable else jax.lax.stop_gradient(
            score
        )


def lu_matrix(lu: Array) -> Array:
    """P L U of the packed weights ``lu`` of shape (n, n); P reverses the rows.

    L has ones on its diagonal and the entries of ``lu`` below it; U has the exponentials of the
    diagonal of ``lu`` on its own, and the entries of ``lu`` above it. log|det| = trace(lu).
    """
    upper = _upper(lu)
    return (upper + jnp.matmul(jnp.tril(lu, -1), upper, precision=matmul_precision()))[::-1]


def lu_solve(lu: Array, z: Array) -> Array:
    """The x with z = P L U x, along the last axis, by two triangular substitutions."""
    lu, columns = at_least_float32(lu), at_least_float32(z)[..., ::-1].reshape(-1, z.shape[-1]).T
    columns = jax.scipy.linalg.solve_triangular(lu, columns, lower=True, unit_diagonal=True)
    x = jax.scipy.linalg.solve_triangular(_upper(lu), columns).T.reshape(z.shape)
    return x.astype(z.dtype)


def _upper(lu: Array) -> Array:
    return jnp.triu(lu, 1) + jnp.diag(jnp.exp(jnp.diagonal(lu)))


class _Factored(Bijector):
    """What ``LULinear`` and ``Invertible1x1Conv`` share: z = P S L U x."""

    permutation: str | Sequence[int]
    signs: Sequence[int] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.rows

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray] | None:
        dim = checks.known(self.event_shape[0])
        return masks.factor_rows(type(self).__name__, self.permutation, self.signs, dim)

    def matrix(self, variables: Variables) -> Array:
        """P S L U."""
        rows = lu_matrix(variables["params"]["lu"])
        if self.rows is None:
            return rows
        order, signs = self.rows
        return rows[as_int32(order)] * signs.astype(rows.dtype)[:, None]

    def solve(self, variables: Variables, z: Array) -> Array:
        """The x with z = P S L U x, along the last axis."""
        if self.rows is not None:
            order, signs = self.rows
            z = (z * signs.astype(z.dtype))[..., np.argsort(order)]
        return lu_solve(variables["params"]["lu"], z)


@register
@dataclass(frozen=True)
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
        >>> import jax, jax_flows
        >>> bijector = jax_flows.LULinear(dim=3)
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 3)))
        >>> z.shape, log_det.shape
        ((5, 3), (5,))
    """

    dim: int
    bias: bool = True
    permutation: str | Sequence[int] = "reverse"
    signs: Sequence[int] | None = None

    def __post_init__(self) -> None:
        checks.positive_int("LULinear", dim=self.dim)
        checks.boolean("LULinear", bias=self.bias)
        super().__post_init__()

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        params = {"lu": jnp.zeros((self.dim, self.dim), dtype)}
        if self.bias:
            params["shift"] = jnp.zeros(self.dim, dtype)
        return {"params": params}

    def condition(self, variables: Variables) -> Array:
        """The condition number of L U in the 2-norm: relative errors of the inverse grow by it."""
        return jnp.linalg.cond(lu_matrix(at_least_float32(variables["params"]["lu"])))

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        params = variables["params"]
        z = jnp.matmul(x, self.matrix(variables).T, precision=matmul_precision())
        log_det = jnp.broadcast_to(jnp.trace(params["lu"]), x.shape[:-1])
        return z + params["shift"] if self.bias else z, log_det

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        params = variables["params"]
        x = self.solve(variables, z - params["shift"] if self.bias else z)
        return x, jnp.broadcast_to(-jnp.trace(params["lu"]), z.shape[:-1])


@register
@dataclass(frozen=True)
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

    channels: int
    permutation: str | Sequence[int] = "reverse"
    signs: Sequence[int] | None = None

    def __post_init__(self) -> None:
        checks.positive_int("Invertible1x1Conv", channels=self.channels)
        super().__post_init__()

    @property
    def event_shape(self) -> Shape:
        return (self.channels, None, None)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        return {"params": {"lu": jnp.zeros((self.channels, self.channels), dtype)}}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        z = jnp.tensordot(self.matrix(variables), x, (1, x.ndim - 3), precision=matmul_precision())
        return jnp.moveaxis(z, 0, -3), self._log_det(variables, x)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        x = self.solve(variables, jnp.moveaxis(z, -3, -1))
        return jnp.moveaxis(x, -1, -3), -self._log_det(variables, z)

    def _log_det(self, variables: Variables, x: Array) -> Array:
        num_pixels = x.shape[-2] * x.shape[-1]
        return jnp.broadcast_to(jnp.trace(variables["params"]["lu"]) * num_pixels, x.shape[:-3])


@register
@dataclass(frozen=True)
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

    channels: int
    kernel_size: int = 3
    bound: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("ConvolutionExponential", channels=self.channels)
        checks.odd("ConvolutionExponential", kernel_size=self.kernel_size)
        checks.open_interval("ConvolutionExponential", "bound", self.bound, 0, 5)

    @property
    def event_shape(self) -> Shape:
        return (self.channels, None, None)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        shape = self.channels, self.channels, self.kernel_size, self.kernel_size
        return {"params": {"raw_kernel": jnp.zeros(shape, dtype)}}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        return self._exponential(variables, x, 1.0)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        return self._exponential(variables, z, -1.0)

    def _exponential(self, variables: Variables, x: Array, sign: float) -> Output:
        kernel, size = sign * self.kernel(variables), self.kernel_size
        batch, (height, width), middle = (
            math.prod(x.shape[:-3]),
            x.shape[-2:],
            self.kernel_size // 2,
        )
        term = y = at_least_float32(x).reshape(batch, *x.shape[-3:])
        rows = kernel.transpose(0, 2, 3, 1).reshape(self.channels, -1)
        edges = [(0, 0), (0, 0), (middle, middle), (middle, middle)]
        for k in range(1, exponential_terms(self.bound, float(jnp.finfo(y.dtype).eps)) + 1):
            # a product of matrices, which XLA differentiates faster than a convolution on a CPU
            padded = jnp.pad(term, edges)
            near = [
                padded[..., i : i + height, j : j + width] for i in range(size) for j in range(size)
            ]
            columns = jnp.concatenate(near, 1).reshape(batch, rows.shape[1], height * width)
            term = jnp.matmul(rows, columns, precision=matmul_precision()).reshape(y.shape) / k
            y = y + term
        trace = height * width * jnp.trace(kernel[:, :, middle, middle])
        return y.reshape(x.shape).astype(x.dtype), jnp.full(x.shape[:-3], trace.astype(x.dtype))

    def kernel(self, variables: Variables) -> Array:
        """The kernel of M, ``(out channels, in channels, kernel_size, kernel_size)``."""
        raw = at_least_float32(variables["params"]["raw_kernel"])
        size = jnp.abs(raw).sum((1, 2, 3)).max()
        return raw * (self.bound / jnp.where(size > self.bound, size, self.bound))
