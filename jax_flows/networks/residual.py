"""Residual networks."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks
from jax_flows.networks.activations import ACTIVATIONS
from jax_flows.networks.mlp import (
    SAVED,
    Weights,
    apply_norm,
    branch_terms,
    context_layers,
    context_shapes,
    dropouts,
    has_modules,
    joined,
    layer_shapes,
    linear_layers,
    matmul,
    normalizations,
)
from jax_flows.networks.regularization import regularization_shapes
from jax_flows.registry import register_network
from jax_flows.variables import Variables

SMALL = 1e-3
"""The last layer of a block starts uniform within it, so that blocks start small."""


def apply_blocks(
    activation: str,
    pre_activation: bool,
    x: Array,
    weights: Weights,
    gates: Sequence[Array],
    terms: Sequence[Array],
    norms: Sequence[Any] = (),
    drops: Sequence[nn.Module] = (),
) -> Array:
    """A linear layer, blocks h + W1 act(W0 act(h)) gate, and a linear layer.

    Args:
        pre_activation: whether blocks have the activation of h.
        terms: what the first layer and the first one of each block gain.
        norms: what each block begins with, and what stands in front of its second activation, see
            ``apply_layers``.
        drops: what stands behind that, one for each block.
    """
    apply = _apply_blocks if has_modules(norms, drops) else _apply_plain_blocks
    return apply(activation, pre_activation, x, weights, gates, terms, norms, drops)


def _apply_blocks(
    activation: str,
    pre_activation: bool,
    x: Array,
    weights: Weights,
    gates: Sequence[Array],
    terms: Sequence[Array],
    norms: Sequence[Any],
    drops: Sequence[nn.Module],
) -> Array:
    function = ACTIVATIONS[activation]

    def linear(x: Array, layer: tuple[Array, Array]) -> Array:
        return matmul(x, layer[0]) + layer[1]

    h = linear(x, weights[0])
    h = h + terms[0] if terms else h
    for k, i in enumerate(range(1, len(weights) - 1, 2)):
        step = apply_norm(norms[2 * k], h) if norms else h
        step = linear(function(step) if pre_activation else step, weights[i])
        step = step + terms[k + 1] if terms else step
        step = function(apply_norm(norms[2 * k + 1], step) if norms else step)
        step = linear(drops[k](step) if drops else step, weights[i + 1])
        h = h + step * gates[k] if gates else h + step
    return linear(h, weights[-1])


_apply_plain_blocks = jax.checkpoint(_apply_blocks, policy=SAVED, static_argnums=(0, 1))


def context_counts(context: str, context_dim: int, num_blocks: int) -> tuple[int, int]:
    """How many gates and how many branches a residual network has."""
    if not context_dim:
        return 0, 0
    return num_blocks * (context == "gate"), (num_blocks + 1) * (context == "branch")


def gate_factors(gates: Weights, context: Array | None) -> list[Array]:
    """The factor of what each block adds."""
    return [jax.nn.sigmoid(matmul(jnp.asarray(context), kernel) + bias) for kernel, bias in gates]


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
            sigmoid(V c + d) of what each block adds; ``"branch"``, by layers of its own, h = W x + b +
            act(V c + d) and blocks h + W1 act(W0 act(h) + V_k c + d_k).
        context_dim: width of the context, 0 for none.
        pre_activation: whether blocks begin with an activation; else they are h + W1 act(W0 h).
        normalization: ``"layer_norm"`` or ``"batch_norm"``, for one of what a block begins with and one in
            front of its second activation, or ``None``; see ``MLP``.
        initial_scale: as in ``MLP``.
        dropout: as in ``MLP``, behind the second activation of each block.

    Raises:
        ValueError: for an unknown name, a number below 1 and the layer normalisation of a single unit.

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
    pre_activation: bool = True
    normalization: str | None = None
    initial_scale: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        checks.residual_network(
            "ResidualMLP",
            self.hidden_dim,
            self.num_blocks,
            self.context,
            self.context_dim,
            self.pre_activation,
        )
        checks.one_of("ResidualMLP", "activation", self.activation, ACTIVATIONS)
        checks.regularization("ResidualMLP", self.normalization, self.dropout, [self.hidden_dim])
        checks.non_negative_number("ResidualMLP", initial_scale=self.initial_scale)
        super().__post_init__()

    @property
    def num_gates(self) -> int:
        """How many blocks have a gate."""
        return context_counts(self.context, self.context_dim, self.num_blocks)[0]

    @property
    def num_branches(self) -> int:
        """How many layers a context goes through apart from x."""
        return context_counts(self.context, self.context_dim, self.num_blocks)[1]

    @property
    def widths(self) -> tuple[int, ...]:
        """Of inputs, hidden layers and outputs."""
        hidden_dims = (self.hidden_dim,) * (1 + 2 * self.num_blocks)
        in_dim = self.in_dim if self.num_branches else self.in_dim + self.context_dim
        return in_dim, *hidden_dims, self.out_dim

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of the variables, without a trace."""
        pair = self.context_dim, self.hidden_dim
        gates = context_shapes("gates", self.num_gates, *pair, dtype)
        branches = context_shapes("branches", self.num_branches, *pair, dtype)
        shapes = regularization_shapes(
            self.normalization, self.widths[2:-1], self.dropout, self.num_blocks, dtype
        )
        shapes["params"] |= layer_shapes(self.widths, dtype) | gates | branches
        return shapes

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """Args: x, and a context of its batch shape."""
        starts = small_starts(self.num_blocks)
        weights = linear_layers(self, self.widths, x, self.initial_scale, starts)
        pair = self.context_dim, self.hidden_dim
        gates = gate_factors(context_layers(self, "gates", self.num_gates, *pair, x), context)
        branches = context_layers(self, "branches", self.num_branches, *pair, x)
        terms = branch_terms(self.activation, branches, context)
        h, weights = joined(x, None if terms else context, weights)
        norms = normalizations(self.normalization, self.widths[2:-1], x)
        drops = dropouts(self.dropout, self.num_blocks)
        form = self.activation, self.pre_activation
        return apply_blocks(*form, h, weights, gates, terms, norms, drops)
