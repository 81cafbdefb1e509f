"""Residual networks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_bridge import checks
from torch_flows.networks.activations import ACTIVATIONS, in_place
from torch_flows.networks.mlp import Weights, linear_layers
from torch_flows.registry import register_network

SMALL = 1e-3
"""The last layer of a block starts uniform within it, so that blocks start small."""


def apply_blocks(activation: str, x: Tensor, weights: Weights, gates: Sequence[Tensor]) -> Tensor:
    """A linear layer, blocks h + W1 act(W0 act(h)) gate, and a linear layer."""
    function, consume = ACTIVATIONS[activation], in_place(activation)
    h = functional.linear(x, *weights[0])
    for i in range(1, len(weights) - 1, 2):
        step = functional.linear(function(h), *weights[i])
        step = functional.linear(consume(step), *weights[i + 1])
        h = torch.addcmul(h, step, gates[i // 2]) if gates else h + step
    return functional.linear(h, *weights[-1])


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
            sigmoid(V c + d) of what each block adds.
        context_dim: width of the context, 0 for none.

    Raises:
        ValueError: for an unknown name or a number below 1.

    Reference: He et al. (2016), arXiv:1603.05027; Durkan et al. (2019), arXiv:1906.04032.
    """

    event_ndim = 1
    layers: Sequence[nn.Linear]
    gates: Sequence[nn.Linear]

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int = 64,
        num_blocks: int = 2,
        activation: str = "relu",
        context: str = "concatenate",
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        checks.residual_network("ResidualMLP", hidden_dim, num_blocks, context)
        checks.one_of("ResidualMLP", "activation", activation, ACTIVATIONS)
        hidden_dims = (hidden_dim,) * (1 + 2 * num_blocks)
        self.in_dim, self.out_dim = in_dim, out_dim
        self.hidden_dim = hidden_dim
        self.num_blocks = num_blocks
        self.activation = activation
        self.context = context
        self.context_dim = context_dim
        self.layers = linear_layers((in_dim + context_dim, *hidden_dims, out_dim))  # type: ignore[assignment]
        start_small(self.layers)
        num_gates = num_blocks if context == "gate" and context_dim else 0
        self.gates = nn.ModuleList(  # type: ignore[assignment]
            nn.Linear(context_dim, hidden_dim) for _ in range(num_gates)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Args: x, and a context of its batch shape."""
        weights = [(layer.weight, layer.bias) for layer in self.layers]
        gates = [gate(context).sigmoid() for gate in self.gates]
        h = x if context is None else torch.cat([x, context], -1)
        return apply_blocks(self.activation, h, weights, gates).to(x.dtype)
