"""The networks that condition bijectors."""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks
from flow_bridge.masks import Autoregression, Index, Order
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
        self,
        x: Array,
        inputs: Index | None = None,
        outputs: Index | None = None,
        mask: Array | None = None,
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
        if mask is not None:
            kernel = jnp.where(mask, kernel, 0)
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


class MaskedMLP(nn.Module):
    """A network whose parameters for one dimension see only the dimensions generated before it.

    From ``(*batch, dim)`` to ``(*batch, dim, num_parameters)``. Who sees whom is stated in
    ``flow_bridge.masks.Autoregression``.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the hidden layers.
        num_parameters: how many parameters each dimension gets.
        order: which dimension is generated when, see ``flow_bridge.masks.autoregressive_order``.
        activation: a name in ``ACTIVATIONS``.
        context_dim: width of the context, which every unit sees; 0 for none.

    Raises:
        ValueError: for an unknown order or activation, or a width below 1.

    Reference: Germain et al. (2015), MADE, arXiv:1502.03509.
    """

    dim: int
    hidden_dims: tuple[int, ...]
    num_parameters: int
    order: Order = None
    activation: str = "leaky_relu"
    context_dim: int = 0

    def __post_init__(self) -> None:
        checks.hidden_widths("MLP", self.hidden_dims)
        checks.one_of("MLP", "activation", self.activation, ACTIVATIONS)
        _ = self.plan.generated
        super().__post_init__()

    @property
    def plan(self) -> Autoregression:
        """Who sees whom."""
        return Autoregression(
            self.dim, self.hidden_dims, self.num_parameters, self.order, self.context_dim
        )

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """Args: x, and a context of its batch shape."""
        h = x if context is None else jnp.concatenate([x, context], -1)
        degrees = [jnp.asarray(layer) for layer in self.plan.degrees]
        for i, (below, above) in enumerate(pairwise(degrees)):
            layer = Linear(len(below), len(above), name=f"layers_{i}")
            h = layer(
                h if i == 0 else ACTIVATIONS[self.activation](h), mask=above >= below[:, None]
            )
        return h.reshape(*x.shape, self.num_parameters)
