"""Networks of bounded Lipschitz constant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge.lipschitz import BLOCK, POWER_STEPS, SLOPE_BOUNDS, SQUARINGS
from jax_flows.derivatives import Layers
from jax_flows.networks.mlp import MLP, layer_shapes
from jax_flows.numerics import at_least_float32, matmul_precision
from jax_flows.variables import Variables


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
    hidden_dims: Sequence[int]
    activation: str = "silu"
    lipschitz: float = 0.97
    context_dim: int = 0

    @property
    def mlp(self) -> MLP:
        """The network without its bounds."""
        widths = (self.dim + self.context_dim, self.dim)
        return MLP(*widths, self.hidden_dims, self.activation, parent=None)

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

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of the variables, without a trace."""
        widths = (self.dim + self.context_dim, *self.hidden_dims, self.dim)
        params = layer_shapes(widths, dtype)
        batch_stats = {}
        for name, layer in params.items():
            in_dim, out_dim = layer["kernel"].shape
            in_dim = self.dim if name == "layers_0" else in_dim
            u, v = (jax.ShapeDtypeStruct((size,), dtype) for size in (out_dim, in_dim))
            batch_stats[name] = {"u": u, "v": v}
        return {"params": params, "batch_stats": batch_stats}

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
            layer = variables["params"][name]
            kernel, bias = at_least_float32(layer["kernel"]), at_least_float32(layer["bias"])
            if i == 0:
                if context is not None:
                    weight = kernel[self.dim :]
                    context = at_least_float32(context)
                    bias = jnp.matmul(context, weight, precision=matmul_precision()) + bias
                kernel = kernel[: self.dim]
            if estimate:
                old = variables["batch_stats"][name]
                norm, batch_stats[name] = self._estimate(old, kernel)
            else:
                norm = spectral_bound(kernel)
            bound = target / SLOPE_BOUNDS.get(self.activation, 1.0) if i else target
            layers.append((kernel * (bound / jnp.where(norm > bound, norm, bound)), bias))
        return layers, batch_stats

    def _estimate(self, old: Mapping[str, Array], kernel: Array) -> tuple[Array, dict[str, Array]]:
        old_u, old_v = at_least_float32(old["u"]), at_least_float32(old["v"])
        u, v = power_iteration(jax.lax.stop_gradient(kernel).T, old_u, old_v)
        image = jnp.matmul(kernel.T, v, precision=matmul_precision())
        new = {"u": u.astype(old["u"].dtype), "v": v.astype(old["v"].dtype)}
        return jnp.matmul(image, u, precision=matmul_precision()), new


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
    tiny = jnp.finfo(weight.dtype).tiny  # makes zero weights harmless, and no difference to others
    scale = jax.lax.stop_gradient(jnp.abs(weight)).max() + tiny
    weight = weight / scale
    if weight.shape[0] > weight.shape[1]:
        weight = weight.T
    gram = jnp.matmul(weight, weight.T, precision=matmul_precision())

    def square_up(carry: tuple[Array, Array], share: Array) -> tuple[tuple[Array, Array], None]:
        gram, log_norm = carry
        norm = jnp.sqrt(jnp.square(gram).sum() + tiny)
        gram = gram / norm
        for _ in range(BLOCK):
            gram = jnp.matmul(gram, gram, precision=matmul_precision())
        return (gram, log_norm + share * jnp.log(norm)), None

    shares = 0.5 ** jnp.arange(1, SQUARINGS + 2, BLOCK, dtype=weight.dtype)
    (_, log_norm), _ = jax.lax.scan(square_up, (gram, jnp.zeros_like(scale)), shares)
    return scale * jnp.exp(log_norm)
