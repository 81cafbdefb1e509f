"""The networks that condition bijectors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks
from flow_bridge.lipschitz import POWER_STEPS, SLOPE_BOUNDS, SQUARINGS
from flow_bridge.masks import Index
from jax_flows.derivatives import Layers
from jax_flows.numerics import matmul_precision, softplus

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "leaky_relu": lambda x: jnp.where(x > 0, x, 0.2 * x),
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "softplus": softplus,
    "tanh": jnp.tanh,
}
"""Activations by name; ``leaky_relu`` has slope 0.2 and ``gelu`` is the exact one."""


class Linear(nn.Module):
    """x W + b, initialised as PyTorch's Linear: uniform within 1 / sqrt(in_dim)."""

    in_dim: int
    out_dim: int

    @nn.compact
    def __call__(
        self, x: Array, inputs: Index | None = None, outputs: Index | None = None
    ) -> Array:
        bound = self.in_dim**-0.5

        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, x.dtype, -bound, bound)

        kernel = self.param("kernel", uniform, (self.in_dim, self.out_dim))
        bias = self.param("bias", uniform, (self.out_dim,))
        if inputs is not None:
            kernel = kernel[inputs]
        if outputs is not None:
            kernel, bias = kernel[:, outputs], bias[outputs]
        return jnp.matmul(x, kernel, precision=matmul_precision()) + bias


class MLP(nn.Module):
    """Linear layers with an activation between them: ``(*batch, in_dim)`` to ``(*batch, out_dim)``.

    Args:
        in_dim: width of the input.
        hidden_dims: widths of the hidden layers.
        out_dim: width of the output.
        activation: a name in ``ACTIVATIONS``.

    Raises:
        ValueError: for an unknown activation or a width below 1.
    """

    in_dim: int
    hidden_dims: tuple[int, ...]
    out_dim: int
    activation: str = "leaky_relu"

    def __post_init__(self) -> None:
        checks.hidden_widths("MLP", self.hidden_dims)
        checks.one_of("MLP", "activation", self.activation, ACTIVATIONS)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Array, inputs: Index | None = None, outputs: Index | None = None
    ) -> Array:
        """Args: x; ``inputs`` and ``outputs`` select the columns of the first weight that x meets and
        the rows of the last weight that are computed (all of them by default)."""
        widths = (self.in_dim, *self.hidden_dims, self.out_dim)
        last = len(self.hidden_dims)
        for i, (in_dim, out_dim) in enumerate(pairwise(widths)):
            layer = Linear(in_dim, out_dim, name=f"layers_{i}")
            x = layer(x, inputs if i == 0 else None, outputs if i == last else None)
            if i < last:
                x = ACTIVATIONS[self.activation](x)
        return x


@dataclass(frozen=True)
class LipschitzMLP:
    """A network from ``(*batch, dim)`` to itself whose Lipschitz constant is at most ``lipschitz``.

    Each of its n weights is divided by its spectral norm wherever that is above lipschitz^(1/n)
    (less by the largest slope of the activation, for those that come after one). In training mode
    the norm is u^T W v, with singular vectors u and v that take a few power iterations a step;
    otherwise it is a certified upper bound, so that the constant holds whatever the vectors are.

    Args:
        dim: width of the input and of the output.
        hidden_dims: widths of the hidden layers.
        activation: a name in ``ACTIVATIONS``.
        lipschitz: the constant, between 0 and 1.
        context_dim: width of a context that enters next to x, without any constraint.

    Reference: Miyato et al. (2018), arXiv:1802.05957; Behrmann et al. (2019), arXiv:1811.00995.
    """

    dim: int
    hidden_dims: tuple[int, ...]
    activation: str = "silu"
    lipschitz: float = 0.97
    context_dim: int = 0

    @property
    def mlp(self) -> MLP:
        """The network without its bounds."""
        widths = (self.dim + self.context_dim, self.hidden_dims, self.dim)
        return MLP(*widths, self.activation, parent=None)

    def init(self, key: Array, dtype: Any) -> dict[str, Any]:
        """Fresh weights, and their leading singular vectors in ``batch_stats``."""
        variables = dict(self.mlp.init(key, jnp.zeros(self.dim + self.context_dim, dtype)))
        batch_stats = {}
        for name, layer in variables["params"].items():
            kernel = layer["kernel"][: self.dim] if name == "layers_0" else layer["kernel"]
            exact = jnp.promote_types(dtype, jnp.float32)
            left, _, right = jnp.linalg.svd(kernel.T.astype(exact), full_matrices=False)
            batch_stats[name] = {"u": left[:, 0].astype(dtype), "v": right[0].astype(dtype)}
        return {**variables, "batch_stats": batch_stats}

    def normalized(
        self, variables: Mapping[str, Any], context: Array | None, estimate: bool = False
    ) -> tuple[Layers, dict[str, Any]]:
        """The layers with bounded weights and the context in the first bias; the ``batch_stats``.

        Args:
            variables: as ``init`` makes them.
            context: shape ``(*batch, context_dim)``.
            estimate: move the singular vectors and use their estimate of the norms, as in training.
        """
        target = self.lipschitz ** (1 / (len(self.hidden_dims) + 1))
        layers, batch_stats = [], {}
        for i in range(len(self.hidden_dims) + 1):
            name = f"layers_{i}"
            kernel, bias = (variables["params"][name][leaf] for leaf in ("kernel", "bias"))
            if i == 0:
                if context is not None:
                    weight = kernel[self.dim :]
                    bias = jnp.matmul(context, weight, precision=matmul_precision()) + bias
                kernel = kernel[: self.dim]
            if estimate:
                old = variables["batch_stats"][name]
                norm, batch_stats[name] = self._estimate(old, kernel)
            else:
                norm = spectral_bound(kernel)
            bound = target / SLOPE_BOUNDS.get(self.activation, 1.0) if i else target
            large = norm > bound
            layers.append((kernel * jnp.where(large, bound / jnp.where(large, norm, 1), 1), bias))
        return layers, batch_stats

    def _estimate(self, old: Mapping[str, Array], kernel: Array) -> tuple[Array, dict[str, Array]]:
        u, v = power_iteration(jax.lax.stop_gradient(kernel).T, old["u"], old["v"])
        norm = jnp.matmul(jnp.matmul(kernel.T, v, precision=matmul_precision()), u)
        return norm, {"u": u, "v": v}


def power_iteration(weight: Array, u: Array, v: Array) -> tuple[Array, Array]:
    """A few steps of the leading singular vectors; they stay as they were if these are not finite."""
    new_u, new_v = u, v
    for _ in range(POWER_STEPS):
        new_v = _unit(jnp.matmul(new_u, weight, precision=matmul_precision()))
        new_u = _unit(jnp.matmul(weight, new_v, precision=matmul_precision()))
    finite = jnp.isfinite(new_u).all() & jnp.isfinite(new_v).all()
    return jnp.where(finite, new_u, u), jnp.where(finite, new_v, v)


def _unit(x: Array) -> Array:
    norm = jnp.linalg.norm(x)
    return x / jnp.where(norm > 0, norm, 1)


def spectral_bound(weight: Array) -> Array:
    """An upper bound of the spectral norm: |G^m|_F^(1/(2m)) of the Gram matrix G, m = 2^12.

    Smooth wherever the weight is not zero, and the same on every device; no singular value
    decomposition has both.
    """
    largest = jax.lax.stop_gradient(jnp.abs(weight)).max()
    scale = jnp.where(largest > 0, largest, 1)
    weight = weight / scale
    if weight.shape[0] > weight.shape[1]:
        weight = weight.T
    gram = jnp.matmul(weight, weight.T, precision=matmul_precision())

    def square_up(carry: tuple[Array, Array], share: Array) -> tuple[tuple[Array, Array], None]:
        gram, log_norm = carry
        square = jnp.square(gram).sum()
        square = jnp.where(square > 0, square, 1)
        gram = gram * jax.lax.rsqrt(square)
        gram = jnp.matmul(gram, gram, precision=matmul_precision())
        return (gram, log_norm + share * jnp.log(square)), None

    shares = 0.25 * 0.5 ** jnp.arange(SQUARINGS + 1, dtype=weight.dtype)
    start = gram, jnp.zeros_like(scale)
    (_, log_norm), _ = jax.lax.scan(square_up, start, shares)
    return jnp.where(largest > 0, scale * jnp.exp(log_norm), largest)
