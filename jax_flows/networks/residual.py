"""Residual networks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks
from jax_flows.networks.activations import ACTIVATIONS
from jax_flows.networks.mlp import Linear, Weights, layer_shapes, linear_layers, matmul
from jax_flows.registry import register_network
from jax_flows.variables import Variables, linear_shapes

SMALL = 1e-3
"""The last layer of a block starts uniform within it, so that blocks start small."""


@partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable, static_argnums=0)
def apply_blocks(activation: str, x: Array, weights: Weights, gates: Sequence[Array]) -> Array:
    """A linear layer, blocks h + W1 act(W0 act(h)) gate, and a linear layer."""
    function = ACTIVATIONS[activation]

    def linear(x: Array, layer: tuple[Array, Array]) -> Array:
        return matmul(x, layer[0]) + layer[1]

    h = linear(x, weights[0])
    for i in range(1, len(weights) - 1, 2):
        step = linear(function(h), weights[i])
        step = linear(function(step), weights[i + 1])
        h = h + step * gates[i // 2] if gates else h + step
    return linear(h, weights[-1])


def small_starts(num_blocks: int) -> list[float | None]:
    """How far the weights of each layer start from zero at most; ``None`` for as far as usual."""
    return [None, *[None, SMALL] * num_blocks, None]


@register_network
class ResidualMLP(nn.Module):
    """h = W x + b, then blocks h + W1 act(W0 act(h)), then a linear layer.

    Args:
        in_dim, out_dim: the widths of input and output.
        hidden_dim: width of the blocks.
        num_blocks: number of blocks.
        activation: a name in ``ACTIVATIONS``.
        context: how a context enters: ``"concatenate"``, next to x; ``"gate"``, there and as a factor
            sigmoid(V c + d) of what each block adds.
        context_dim: width of the context, 0 for none.

    Raises:
        ValueError: for an unknown name or a number below 1.

    Reference: He et al. (2016), arXiv:1603.05027; Durkan et al. (2019), arXiv:1906.04032.
    """

    event_ndim = 1

    in_dim: int
    out_dim: int
    hidden_dim: int = 64
    num_blocks: int = 2
    activation: str = "relu"
    context: str = "concatenate"
    context_dim: int = 0

    def __post_init__(self) -> None:
        checks.residual_network("ResidualMLP", self.hidden_dim, self.num_blocks, self.context)
        checks.one_of("ResidualMLP", "activation", self.activation, ACTIVATIONS)
        super().__post_init__()

    @property
    def widths(self) -> tuple[int, ...]:
        """Of inputs, hidden layers and outputs."""
        hidden_dims = (self.hidden_dim,) * (1 + 2 * self.num_blocks)
        return self.in_dim + self.context_dim, *hidden_dims, self.out_dim

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of the variables, without a trace."""
        gated = self.context == "gate" and self.context_dim > 0
        pair = self.context_dim, self.hidden_dim
        gates = {f"gates_{i}": pair for i in range(self.num_blocks if gated else 0)}
        return {"params": layer_shapes(self.widths, dtype) | linear_shapes(gates, dtype)}

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """Args: x, and a context of its batch shape."""
        weights = linear_layers(self.widths, x, small_starts(self.num_blocks))
        gates = []
        if self.context == "gate" and context is not None:
            for i in range(self.num_blocks):
                kernel, bias = Linear(self.context_dim, self.hidden_dim, name=f"gates_{i}")(x)
                gates.append(jax.nn.sigmoid(matmul(context, kernel) + bias))
        h = x if context is None else jnp.concatenate([x, context], -1)
        return apply_blocks(self.activation, h, weights, gates)
