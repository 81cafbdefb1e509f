"""Masked networks: the parameters for one dimension see only the dimensions generated before it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.masks import Autoregression, Degrees, Order
from flow_bridge.networks import WIDE
from torch_flows.networks.activations import ACTIVATIONS
from torch_flows.networks.mlp import (
    MLP,
    Layer,
    Weights,
    apply_layers,
    branch_terms,
    context_layers,
    dropouts,
    joined,
    linear_layers,
    normalizations,
    pairs_of,
)
from torch_flows.networks.residual import ResidualMLP, apply_blocks, context_counts, start_small
from torch_flows.registry import register_network


class Unrolled(NamedTuple):
    """A masked network as its inverse needs it, units in the order in which they can be computed.

    Attributes:
        weights: per layer, ``(units above, units below)``, not masked, without what the context meets.
        sums: per layer, the bias and what the context adds, ``(units, 1)`` or ``(units, batch)``.
        gates: per layer, factors ``(units, batch)`` of what it adds to a residual, or ``None``. Where a
            batch normalisation follows that, ``(units, batch, 4)``: these, its mean, factor and bias.
    """

    weights: list[Tensor]
    sums: list[Tensor]
    gates: list[Tensor | None]


class MaskedNetwork(nn.Module):
    """What masked networks share, from ``(*batch, dim)`` to ``(*batch, dim, num_parameters)``.

    Who sees whom is stated in ``flow_bridge.masks.Autoregression``, which is ``plan``.
    """

    layers: Sequence[nn.Linear]
    gates: Sequence[nn.Linear]
    branches: Sequence[nn.Linear]
    norms: Sequence[Layer]
    drops: Sequence[Layer]

    def __init__(
        self,
        plan: Autoregression,
        activation: str,
        num_gates: int = 0,
        num_branches: int = 0,
        initial_scale: float = 1.0,
        normalization: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.activation = activation
        self.initial_scale = initial_scale
        self.num_gates, self.num_branches = num_gates, num_branches
        in_dim = plan.num_inputs + (0 if num_branches else plan.context_dim)
        widths = (in_dim, *plan.hidden_dims, plan.dim * plan.num_parameters)
        owner = type(self).__name__.removeprefix("Masked")
        self.layers = linear_layers(owner, widths, initial_scale)  # type: ignore[assignment]
        apart = plan.context_dim, widths[1]
        self.gates = context_layers(num_gates, *apart)  # type: ignore[assignment]
        self.branches = context_layers(num_branches, *apart)  # type: ignore[assignment]
        owner = type(self).__name__
        checks.masked_normalization(owner, normalization)
        checks.regularization(owner, normalization, dropout, ())
        self.is_regularized = bool(normalization or dropout)
        self.norms = normalizations(normalization, self.normalized_widths())  # type: ignore[assignment]
        self.drops = dropouts(dropout, self.num_dropouts())  # type: ignore[assignment]
        degrees = [torch.as_tensor(layer) for layer in plan.degrees]
        degrees[0] = degrees[0][: plan.num_inputs if plan.context_dim >= WIDE else in_dim]
        for i, (below, above) in enumerate(pairwise(degrees)):
            # in the weights' dtype: to multiply by it is many times faster than to select by it
            mask = (above[:, None] >= below).to(self.layers[i].weight.dtype)
            self.register_buffer(f"mask_{i}", mask, persistent=False)
        self.is_sorted = [order is None for order in plan.sorting]
        for i, order in enumerate(plan.sorting):
            if order is not None:
                self.register_buffer(f"sorting_{i}", torch.as_tensor(order), persistent=False)

    def normalized_widths(self) -> Sequence[int]:
        """Of what would be normalised."""
        return self.plan.hidden_dims

    def num_dropouts(self) -> int:
        """How many dropouts there would be."""
        return len(self.plan.hidden_dims)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Args: x, and a context of its batch shape."""
        gates = [gate(context).sigmoid() for gate in self.gates] if self.num_gates else ()
        terms = branch_terms(self.activation, self.branches, context) if self.num_branches else []
        h, weights = joined(x, None if terms else context, pairs_of(self.layers))
        weights = [
            (weight * getattr(self, f"mask_{i}").to(weight.dtype), bias)
            for i, (weight, bias) in enumerate(weights)
        ]
        out = self.evaluate(h, weights, gates, terms)
        return out.unflatten(-1, (self.plan.dim, self.plan.num_parameters))

    def evaluate(
        self, x: Tensor, weights: Weights, gates: Sequence[Tensor], terms: Sequence[Tensor]
    ) -> Tensor:
        """The network with given weights, and with what a context makes of its gates and branches."""
        layers = (self.norms, self.drops) if self.is_regularized else ()
        return apply_layers(self.activation, x, weights, terms, *layers)

    def folded_norms(self) -> list[tuple[int, Any]]:
        """The batch normalisations of what a layer gives, with the number of the layer."""
        return list(enumerate(self.norms))

    def block_norms(self) -> list[tuple[int, Any]]:
        """Those of what a layer has added to a residual."""
        return []

    def step(
        self, i: int, total: Tensor, residual: Tensor | None, gate: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What hidden units hand on, from what the i-th layer gives them.

        Args:
            i: which layer.
            total: shape ``(units, batch)``.
            residual: what the last call for the same units returned beside it.
            gate: their rows of ``Unrolled.gates``.
        """
        return ACTIVATIONS[self.activation](total), None

    def unrolled(self, context: Tensor | None) -> Unrolled:
        """The layers for a context ``(batch, context_dim)``; outputs stand in the order of generation."""
        plan = self.plan
        weights: list[Tensor] = [layer.weight for layer in self.layers]
        sums: list[Tensor] = [layer.bias.unsqueeze(-1) for layer in self.layers]
        gates: list[Tensor | None] = [None] * len(weights)
        terms = branch_terms(self.activation, self.branches, context)
        for i, term in enumerate(terms):
            at = max(0, 2 * i - 1)
            sums[at] = sums[at] + term.T
        if context is not None and not terms:
            sums[0] = torch.addmm(sums[0], weights[0][:, plan.num_inputs :], context.T)
            for i, layer in enumerate(self.gates):
                gates[2 * i + 2] = layer(context).sigmoid().T
        weights[0] = weights[0][:, : plan.num_inputs]
        for i, norm in self.folded_norms():
            mean, factor, bias = (array.unsqueeze(-1) for array in norm.line())
            weights[i], sums[i] = weights[i] * factor, (sums[i] - mean) * factor + bias
        for i, norm in self.block_norms():
            line = torch.stack(norm.line(), -1).unsqueeze(1)
            gate = gates[i]
            gate = torch.ones_like(line[..., 0]) if gate is None else gate
            line = line.expand(-1, gate.shape[1], -1)
            gates[i] = torch.cat([gate.unsqueeze(-1), line], -1)
        for i, is_sorted in enumerate(self.is_sorted):
            if is_sorted:
                continue
            order = self.get_buffer(f"sorting_{i}")
            if i:
                gate = gates[i - 1]
                gates[i - 1] = None if gate is None else gate[order]
                weights[i - 1], sums[i - 1] = weights[i - 1][order], sums[i - 1][order]
            if i < len(weights):
                weights[i] = weights[i][:, order]
        return Unrolled(weights, sums, gates)


@register_network
class MaskedMLP(MaskedNetwork):
    """``MLP`` with masks, from ``(*batch, dim)`` to ``(*batch, dim, num_parameters)``.

    Args:
        dim: number of dimensions.
        num_parameters: how many parameters each dimension gets.
        hidden_dims: widths of the hidden layers.
        activation: a name in ``ACTIVATIONS``.
        degrees: of the hidden units, see ``flow_bridge.masks.Autoregression``.
        order: which dimension is generated when, see ``flow_bridge.masks.autoregressive_order``.
        context_dim: width of the context, which every hidden unit sees; 0 for none.
        context, initial_scale: as in ``MLP``.
        num_features: how many inputs there are for each dimension: the input is of width ``dim`` times
            this, the first feature of all dimensions, then the second of all.
        normalization: ``"batch_norm"`` or ``None``, as in ``MLP``.
        dropout: as in ``MLP``.

    Raises:
        ValueError: for an unknown order or name, degrees that do not fit, a width below 1 and a branch
            without a hidden layer.

    Reference: Germain et al. (2015), MADE, arXiv:1502.03509.
    """

    def __init__(
        self,
        dim: int,
        num_parameters: int,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "leaky_relu",
        degrees: Degrees = None,
        order: Order = None,
        context_dim: int = 0,
        context: str = "concatenate",
        initial_scale: float = 1.0,
        num_features: int = 1,
        normalization: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        hidden_dims = checks.perceptron("MLP", hidden_dims, context, context_dim)
        checks.one_of("MLP", "activation", activation, ACTIVATIONS)
        widths = dim, hidden_dims, num_parameters
        plan = Autoregression(*widths, order, context_dim, degrees, num_features)
        num_branches = int(context == "branch" and context_dim > 0)
        options = initial_scale, normalization, dropout
        super().__init__(plan, activation, 0, num_branches, *options)


@register_network
class MaskedResidualMLP(MaskedNetwork):
    """``ResidualMLP`` with masks, from ``(*batch, dim)`` to ``(*batch, dim, num_parameters)``.

    Args:
        dim: number of dimensions.
        num_parameters: how many parameters each dimension gets.
        hidden_dim, num_blocks, activation, context: as in ``ResidualMLP``.
        degrees: of the hidden units, the same for all layers: in a list, one for each unit.
        order: which dimension is generated when, see ``flow_bridge.masks.autoregressive_order``.
        context_dim: width of the context, which every hidden unit sees; 0 for none.
        pre_activation: as in ``ResidualMLP``.
        initial_scale: as in ``MLP``.
        num_features: as in ``MaskedMLP``.
        normalization: ``"batch_norm"`` or ``None``, as in ``ResidualMLP``.
        dropout: as in ``ResidualMLP``.

    Raises:
        ValueError: for an unknown name, degrees that do not fit or a number below 1.

    Reference: Nash and Durkan (2019), ResMADE, arXiv:1904.05626.
    """

    def __init__(
        self,
        dim: int,
        num_parameters: int,
        hidden_dim: int = 64,
        num_blocks: int = 2,
        activation: str = "relu",
        context: str = "concatenate",
        degrees: str | Sequence[int] | None = None,
        order: Order = None,
        context_dim: int = 0,
        pre_activation: bool = True,
        initial_scale: float = 1.0,
        num_features: int = 1,
        normalization: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        checks.residual_network(
            "ResidualMLP", hidden_dim, num_blocks, context, context_dim, pre_activation
        )
        checks.one_of("ResidualMLP", "activation", activation, ACTIVATIONS)
        num_layers = 1 + 2 * num_blocks
        hidden_dims = (hidden_dim,) * num_layers
        listed = degrees if isinstance(degrees, str | None) else (degrees,) * num_layers
        widths = dim, hidden_dims, num_parameters
        plan = Autoregression(*widths, order, context_dim, listed, num_features)
        counts = context_counts(context, context_dim, num_blocks)
        super().__init__(plan, activation, *counts, initial_scale, normalization, dropout)
        self.pre_activation = pre_activation
        start_small(self.layers)

    def normalized_widths(self) -> Sequence[int]:
        return self.plan.hidden_dims[1:]

    def num_dropouts(self) -> int:
        return len(self.plan.hidden_dims) // 2

    def folded_norms(self) -> list[tuple[int, Any]]:
        return [(i, norm) for i, norm in enumerate(self.norms) if i % 2]

    def block_norms(self) -> list[tuple[int, Any]]:
        return [(i, norm) for i, norm in enumerate(self.norms) if not i % 2]

    def evaluate(
        self, x: Tensor, weights: Weights, gates: Sequence[Tensor], terms: Sequence[Tensor]
    ) -> Tensor:
        form = self.activation, self.pre_activation
        layers = (self.norms, self.drops) if self.is_regularized else ()
        return apply_blocks(*form, x, weights, gates, terms, *layers)

    def step(
        self, i: int, total: Tensor, residual: Tensor | None, gate: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if i % 2:
            return ACTIVATIONS[self.activation](total), residual
        line: list[Tensor] = []
        if gate is not None and gate.ndim == 3:
            gate, *line = gate.unbind(-1)
        if residual is not None:
            total = residual + total if gate is None else torch.addcmul(residual, total, gate)
        value = (total - line[0]) * line[1] + line[2] if line else total
        plain = i == len(self.layers) - 2 or not self.pre_activation
        return value if plain else ACTIVATIONS[self.activation](value), total


MASKED: dict[type, type[MaskedNetwork]] = {MLP: MaskedMLP, ResidualMLP: MaskedResidualMLP}
"""Which masked network a network stands for in ``MaskedAutoregressive``."""
