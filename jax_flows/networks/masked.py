"""Masked networks: the parameters for one dimension see only the dimensions generated before it."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks
from flow_bridge.masks import Autoregression, Degrees, Order
from jax_flows.networks.activations import ACTIVATIONS
from jax_flows.networks.mlp import (
    MLP,
    Linear,
    Weights,
    apply_layers,
    layer_shapes,
    linear_layers,
    matmul,
)
from jax_flows.networks.residual import ResidualMLP, apply_blocks, small_starts
from jax_flows.numerics import matmul_precision
from jax_flows.registry import register_network
from jax_flows.variables import Variables, linear_shapes


class Unrolled(NamedTuple):
    """A masked network as its inverse needs it, units in the order in which they can be computed.

    Attributes:
        weights: per layer, ``(units above, units below)``, without what the context meets.
        sums: per layer, the bias and what the context adds, ``(units, 1)`` or ``(units, batch)``.
        gates: per layer, factors ``(units, batch)`` of what it adds to a residual, or ``None``.
    """

    weights: list[Array]
    sums: list[Array]
    gates: list[Array | None]


class MaskedNetwork(nn.Module):
    """What masked networks share, from ``(*batch, dim)`` to ``(*batch, dim, num_parameters)``.

    Who sees whom is stated in ``flow_bridge.masks.Autoregression``, which is ``plan``.
    """

    @property
    @abstractmethod
    def plan(self) -> Autoregression:
        """Who sees whom."""

    @property
    def starts(self) -> list[float | None]:
        """How far the weights of each layer start from zero, see ``small_starts``."""
        return [None] * (len(self.plan.hidden_dims) + 1)

    @property
    def num_gates(self) -> int:
        """How many residual blocks have a gate."""
        return 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Of inputs, hidden layers and outputs."""
        plan = self.plan
        return plan.dim + plan.context_dim, *plan.hidden_dims, plan.dim * plan.num_parameters

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of the variables, without a trace."""
        plan = self.plan
        gates = {
            f"gates_{i}": (plan.context_dim, plan.hidden_dims[0]) for i in range(self.num_gates)
        }
        return {"params": layer_shapes(self.widths, dtype) | linear_shapes(gates, dtype)}

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """Args: x, and a context of its batch shape."""
        plan, widths = self.plan, self.widths
        weights = linear_layers(widths, x, self.starts)
        gates = [
            Linear(plan.context_dim, plan.hidden_dims[0], name=f"gates_{i}")(x)
            for i in range(self.num_gates)
        ]
        # initialisation is about shapes: a checkpoint of unknown origin may ask for any size there
        if not self.is_initializing():
            degrees = [jnp.asarray(layer) for layer in plan.degrees]
            weights = [
                (jnp.where(above >= below[:, None], kernel, 0), bias)
                for (kernel, bias), (below, above) in zip(weights, pairwise(degrees), strict=True)
            ]
        h = x if context is None else jnp.concatenate([x, context], -1)
        factors = [
            jax.nn.sigmoid(matmul(jnp.asarray(context), kernel) + bias) for kernel, bias in gates
        ]
        out = self.evaluate(h, weights, factors)
        return out.reshape(*x.shape, plan.num_parameters)

    def evaluate(self, x: Array, weights: Weights, gates: Sequence[Array]) -> Array:
        """The network with given weights."""
        return apply_layers(self.activation, x, weights)

    def step(
        self, i: int, total: Array, residual: Array | None, gate: Array | None
    ) -> tuple[Array, Array | None]:
        """What hidden units hand on, from what the i-th layer gives them.

        Args:
            i: which layer.
            total: shape ``(units, batch)``.
            residual: what the last call for the same units returned beside it.
            gate: their rows of ``Unrolled.gates``.
        """
        return ACTIVATIONS[self.activation](total), None

    def unrolled(self, params: Mapping[str, Any], context: Array | None) -> Unrolled:
        """The layers for a context ``(batch, context_dim)``; outputs stand in the order of generation."""
        plan = self.plan
        weights, sums = [], []
        for i, (below, above) in enumerate(pairwise(plan.degrees)):
            layer = params[f"layers_{i}"]
            mask = jnp.asarray(above) >= jnp.asarray(below)[:, None]
            weights.append(jnp.where(mask, layer["kernel"], 0).T)
            sums.append(layer["bias"][:, None])
        gates: list[Array | None] = [None] * len(weights)
        if context is not None:
            product = jnp.matmul(weights[0][:, plan.dim :], context.T, precision=matmul_precision())
            sums[0] = sums[0] + product
            for i in range(self.num_gates):
                gate = params[f"gates_{i}"]
                product = jnp.matmul(context, gate["kernel"], precision=matmul_precision())
                gates[2 * i + 2] = jax.nn.sigmoid(product + gate["bias"]).T
        weights[0] = weights[0][:, : plan.dim]
        for i, order in enumerate(plan.sorting):
            if order is None:
                continue
            if i:
                before = gates[i - 1]
                gates[i - 1] = None if before is None else before[order]
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
        context_dim: width of the context, which every unit sees; 0 for none.

    Raises:
        ValueError: for an unknown order or activation, degrees that do not fit or a width below 1.

    Reference: Germain et al. (2015), MADE, arXiv:1502.03509.
    """

    dim: int
    num_parameters: int
    hidden_dims: Sequence[int] = (64, 64)
    activation: str = "leaky_relu"
    degrees: Degrees = None
    order: Order = None
    context_dim: int = 0

    def __post_init__(self) -> None:
        checks.hidden_widths("MLP", self.hidden_dims)
        checks.one_of("MLP", "activation", self.activation, ACTIVATIONS)
        _ = self.plan
        super().__post_init__()

    @property
    def plan(self) -> Autoregression:
        return Autoregression(
            self.dim,
            tuple(self.hidden_dims),
            self.num_parameters,
            self.order,
            self.context_dim,
            self.degrees,
        )


@register_network
class MaskedResidualMLP(MaskedNetwork):
    """``ResidualMLP`` with masks, from ``(*batch, dim)`` to ``(*batch, dim, num_parameters)``.

    Args:
        dim: number of dimensions.
        num_parameters: how many parameters each dimension gets.
        hidden_dim, num_blocks, activation, context: as in ``ResidualMLP``.
        degrees: of the hidden units, the same for all layers: in a list, one for each unit.
        order: which dimension is generated when, see ``flow_bridge.masks.autoregressive_order``.
        context_dim: width of the context, which every unit sees; 0 for none.

    Raises:
        ValueError: for an unknown name, degrees that do not fit or a number below 1.

    Reference: Nash and Durkan (2019), ResMADE, arXiv:1904.05626.
    """

    dim: int
    num_parameters: int
    hidden_dim: int = 64
    num_blocks: int = 2
    activation: str = "relu"
    context: str = "concatenate"
    degrees: Degrees = None
    order: Order = None
    context_dim: int = 0

    def __post_init__(self) -> None:
        checks.residual_network("ResidualMLP", self.hidden_dim, self.num_blocks, self.context)
        checks.one_of("ResidualMLP", "activation", self.activation, ACTIVATIONS)
        _ = self.plan
        super().__post_init__()

    @property
    def plan(self) -> Autoregression:
        num_layers = 1 + 2 * self.num_blocks
        hidden_dims = (self.hidden_dim,) * num_layers
        degrees = self.degrees
        if not isinstance(degrees, str | None):
            degrees = (degrees,) * num_layers  # type: ignore[assignment]
        return Autoregression(
            self.dim, hidden_dims, self.num_parameters, self.order, self.context_dim, degrees
        )

    @property
    def starts(self) -> list[float | None]:
        return small_starts(self.num_blocks)

    @property
    def num_gates(self) -> int:
        return self.num_blocks if self.context == "gate" and self.context_dim else 0

    def evaluate(self, x: Array, weights: Weights, gates: Sequence[Array]) -> Array:
        return apply_blocks(self.activation, x, weights, gates)

    def step(
        self, i: int, total: Array, residual: Array | None, gate: Array | None
    ) -> tuple[Array, Array | None]:
        if i % 2:
            return ACTIVATIONS[self.activation](total), residual
        if residual is not None:
            total = residual + total if gate is None else residual + total * gate
        last = i == len(self.plan.hidden_dims) - 1
        return total if last else ACTIVATIONS[self.activation](total), total


MASKED: dict[type, type[MaskedNetwork]] = {MLP: MaskedMLP, ResidualMLP: MaskedResidualMLP}
"""Which masked network a network stands for in ``MaskedAutoregressive``."""
