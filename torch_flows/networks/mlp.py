"""Multilayer perceptrons."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_bridge import checks
from flow_bridge.masks import Mask, Partition, as_index
from torch_flows.networks.activations import ACTIVATIONS, in_place
from torch_flows.registry import register_network

Weights = Sequence[tuple[Tensor, Tensor]]


def apply_layers(activation: str, x: Tensor, weights: Weights) -> Tensor:
    """Linear layers with an activation between them."""
    function = in_place(activation)
    for weight, bias in weights[:-1]:
        x = function(functional.linear(x, weight, bias))
    return functional.linear(x, *weights[-1])


def linear_layers(widths: Sequence[int]) -> nn.ModuleList:
    """One linear layer from each width to the next."""
    return nn.ModuleList(nn.Linear(in_dim, out_dim) for in_dim, out_dim in pairwise(widths))


@register_network
class MLP(nn.Module):
    """Linear layers with an activation between them: ``(*batch, in_dim)`` to ``(*batch, out_dim)``.

    Args:
        in_dim, out_dim: the widths of input and output.
        hidden_dims: widths of the hidden layers.
        activation: a name in ``ACTIVATIONS``.

    Raises:
        ValueError: for an unknown activation or a width below 1.
    """

    event_ndim = 1
    layers: Sequence[nn.Linear]

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        hidden_dims = checks.hidden_widths("MLP", hidden_dims)
        checks.one_of("MLP", "activation", activation, ACTIVATIONS)
        self.in_dim, self.out_dim = in_dim, out_dim
        self.hidden_dims = hidden_dims
        self.activation = activation
        self.layers = linear_layers((in_dim, *hidden_dims, out_dim))  # type: ignore[assignment]

    def forward(
        self, x: Tensor, inputs: slice | Tensor | None = None, outputs: slice | Tensor | None = None
    ) -> Tensor:
        """Args: x; ``inputs`` and ``outputs`` select the columns of the first weight that x meets and
        the rows of the last weight that are computed (all of them by default)."""
        weights: list[tuple[Tensor, Tensor]] = [(layer.weight, layer.bias) for layer in self.layers]
        if inputs is not None:
            weights[0] = weights[0][0][:, inputs], weights[0][1]
        if outputs is not None:
            weights[-1] = weights[-1][0][outputs], weights[-1][1][outputs]
        return apply_layers(self.activation, x, weights).to(x.dtype)


@register_network
class SeparateMLPs(nn.Module):
    """One ``MLP`` for each parameter of a coupling's map.

    Each has weights for all dimensions on both sides, of which the coupling's mask picks the ones that
    are used: the layout and the parameter count of the original RealNVP. The output is a tuple, one
    array for each parameter.

    Args:
        in_dim, out_dim: the widths of input and output.
        num_parameters, mask, context_dim: of the coupling.
        hidden_dims: widths of the hidden layers of each network.
        activation: a name in ``ACTIVATIONS``.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803.
    """

    event_ndim = 1

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_parameters: int,
        mask: Mask,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        dim = in_dim + out_dim // num_parameters
        partition = Partition(mask, dim, context_dim)
        self._slices: dict[str, slice] = {}
        for name, positions in (("inputs", partition.inputs), ("outputs", partition.free)):
            index = as_index(positions)
            if isinstance(index, slice):
                self._slices[name] = index
            else:
                self.register_buffer(name, torch.as_tensor(index), persistent=False)
        self.networks = nn.ModuleList(
            MLP(dim + context_dim, dim, hidden_dims, activation) for _ in range(num_parameters)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Args: the fixed dimensions, and a context of their batch shape."""
        if context is not None:
            x = torch.cat([x, context], -1)
        slices = self._slices
        inputs = slices["inputs"] if "inputs" in slices else self.get_buffer("inputs")
        outputs = slices["outputs"] if "outputs" in slices else self.get_buffer("outputs")
        return tuple([network(x, inputs, outputs) for network in self.networks])
