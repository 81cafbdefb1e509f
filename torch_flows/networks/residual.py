"""Residual networks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_bridge import checks
from torch_flows.networks.activations import ACTIVATIONS, in_place
from torch_flows.networks.mlp import (
    Layer,
    Weights,
    branch_terms,
    context_layers,
    dropouts,
    joined,
    linear,
    linear_layers,
    normalizations,
    pairs_of,
)
from torch_flows.registry import register_network

SMALL = 1e-3
"""The last layer of a block starts uniform within it, so that blocks start small."""


def apply_blocks(
    activation: str,
    pre_activation: bool,
    x: Tensor,
    weights: Weights,
    gates: Sequence[Tensor],
    terms: Sequence[Tensor],
    norms: Sequence[Layer] = (),
    drops: Sequence[Layer] = (),
) -> Tensor:
    """A linear layer, blocks h + W1 act(W0 act(h)) gate, and a linear layer.

    Args:
        pre_activation: whether blocks have the activation of h.
        terms: what the first layer and the first one of each block gain.
        norms: what each block begins with, and what stands in front of its second activation.
        drops: what stands behind that, one for each block.
    """
    function, consume = ACTIVATIONS[activation], in_place(activation)
    h = linear(x, *weights[0])
    h = h + terms[0] if terms else h
    for k, i in enumerate(range(1, len(weights) - 1, 2)):
        step = norms[2 * k](h) if norms else h
        step = functional.linear(function(step) if pre_activation else step, *weights[i])
        step = step + terms[k + 1] if terms else step
        step = norms[2 * k + 1](step) if norms else step
        step = consume(step)
        step = functional.linear(drops[k](step) if drops else step, *weights[i + 1])
        h = torch.addcmul(h, step, gates[k]) if gates else h + step
    return functional.linear(h, *weights[-1])


def context_counts(context: str, context_dim: int, num_blocks: int) -> tuple[int, int]:
    """How many gates and how many branches a residual network has."""
    if not context_dim:
        return 0, 0
    return num_blocks * (context == "gate"), (num_blocks + 1) * (context == "branch")


def start_small(layers: Sequence[nn.Linear]) -> None:
    """Initialise the last layer of every block."""
    for layer in layers[2:-1:2]:
        nn.init.uniform_(layer.weight, -SMALL, SMALL)
        nn.init.uniform_(layer.bias, -SMALL, SMALL)


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
    layers: Sequence[nn.Linear]
    gates: Sequence[nn.Linear]
    branches: Sequence[nn.Linear]
    norms: Sequence[Layer]
    drops: Sequence[Layer]

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int = 64,
        num_blocks: int = 2,
        activation: str = "relu",
        context: str = "concatenate",
        context_dim: int = 0,
        pre_activation: bool = True,
        normalization: str | None = None,
        initial_scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        checks.residual_network(
            "ResidualMLP", hidden_dim, num_blocks, context, context_dim, pre_activation
        )
        checks.one_of("ResidualMLP", "activation", activation, ACTIVATIONS)
        checks.regularization("ResidualMLP", normalization, dropout, [hidden_dim])
        hidden_dims = (hidden_dim,) * (1 + 2 * num_blocks)
        self.in_dim, self.out_dim = in_dim, out_dim
        self.hidden_dim = hidden_dim
        self.num_blocks = num_blocks
        self.activation = activation
        self.context = context
        self.context_dim = context_dim
        self.pre_activation = pre_activation
        self.normalization = normalization
        self.initial_scale = initial_scale
        self.dropout = dropout
        num_gates, num_branches = context_counts(context, context_dim, num_blocks)
        in_dim = in_dim if num_branches else in_dim + context_dim
        widths = (in_dim, *hidden_dims, out_dim)
        self.layers = linear_layers("ResidualMLP", widths, initial_scale)  # type: ignore[assignment]
        start_small(self.layers)
        self.gates = context_layers(num_gates, context_dim, hidden_dim)  # type: ignore[assignment]
        self.branches = context_layers(num_branches, context_dim, hidden_dim)  # type: ignore[assignment]
        self.norms = normalizations(normalization, hidden_dims[1:])  # type: ignore[assignment]
        self.drops = dropouts(dropout, num_blocks)  # type: ignore[assignment]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Args: x, and a context of its batch shape."""
        weights = pairs_of(self.layers)
        gates = [gate(context).sigmoid() for gate in self.gates]
        terms = branch_terms(self.activation, self.branches, context)
        h, weights = joined(x, None if terms else context, weights)
        form = self.activation, self.pre_activation
        layers = self.norms, self.drops
        return apply_blocks(*form, h, weights, gates, terms, *layers).to(x.dtype)
