"""Masked networks: the parameters for one dimension see only the dimensions generated before it."""

from abc import abstractmethod
from collections.abc import Sequence
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
    SAVED,
    Weights,
    apply_layers,
    branch_terms,
    context_layers,
    context_shapes,
    dropouts,
    has_modules,
    joined,
    layer_shapes,
    linear_layers,
    normalizations,
)
from jax_flows.networks.regularization import EPS, regularization_shapes
from jax_flows.networks.residual import (
    ResidualMLP,
    apply_blocks,
    context_counts,
    gate_factors,
    small_starts,
)
from jax_flows.numerics import as_int32, matmul_precision
from jax_flows.registry import register_network
from jax_flows.variables import AnyArray, Variables


class Unrolled(NamedTuple):
    """A masked network as its inverse needs it, units in the order in which they can be computed.

    Attributes:
        weights: per layer, ``(units above, units below)``, not masked, without what the context meets.
        sums: per layer, the bias and what the context adds, ``(units, 1)`` or ``(units, batch)``.
        gates: per layer, factors ``(units, batch)`` of what it adds to a residual, or ``None``. Where a
            batch normalisation follows that, ``(units, batch, 4)``: these, its mean, factor and bias.
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
    def num_branches(self) -> int:
        """How many layers a context goes through apart from x."""
        return 0

    @property
    def normalized_widths(self) -> Sequence[int]:
        """Of what would be normalised."""
        return self.plan.hidden_dims

    @property
    def num_dropouts(self) -> int:
        """How many dropouts there would be."""
        return len(self.plan.hidden_dims)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of inputs, hidden layers and outputs."""
        plan = self.plan
        in_dim = plan.num_inputs + (0 if self.num_branches else plan.context_dim)
        return in_dim, *plan.hidden_dims, plan.dim * plan.num_parameters

    def constants(self) -> dict[str, Any]:
        """What follows from the order of the dimensions: degrees and places of inputs and outputs."""
        inputs, *_, outputs = self.plan.degrees
        return {
            "degrees": [as_int32(inputs), as_int32(outputs)],
            "ends": [as_int32(places) for places in self.plan.ends],
        }

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of the variables, without a trace."""
        apart = self.plan.context_dim, self.widths[1]
        gates = context_shapes("gates", self.num_gates, *apart, dtype)
        branches = context_shapes("branches", self.num_branches, *apart, dtype)
        shapes = regularization_shapes(
            self.normalization, self.normalized_widths, self.dropout, self.num_dropouts, dtype
        )
        shapes["params"] |= layer_shapes(self.widths, dtype) | gates | branches
        return shapes

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """Args: x, and a context of its batch shape."""
        plan, widths = self.plan, self.widths
        weights = linear_layers(self, widths, x, self.initial_scale, self.starts)
        apart = plan.context_dim, widths[1]
        gates = context_layers(self, "gates", self.num_gates, *apart, x)
        branches = context_layers(self, "branches", self.num_branches, *apart, x)
        terms = branch_terms(self.activation, branches, context)
        h, weights = joined(x, None if terms else context, weights)
        norms = normalizations(self.normalization, self.normalized_widths, x)
        drops = dropouts(self.dropout, self.num_dropouts)

        def evaluate(x: Array, weights: Weights, gates: Any, terms: Any) -> Array:
            # initialisation is about shapes: a checkpoint of unknown origin may ask for any size there
            weights = weights if self.is_initializing() else self.masked(weights)
            return self.evaluate(x, weights, gates, terms, norms, drops)

        if not has_modules(norms, drops):  # the backward pass masks the weights anew
            evaluate = jax.checkpoint(evaluate, policy=SAVED, prevent_cse=False)
        out = evaluate(h, weights, gate_factors(gates, context), terms)
        return out.reshape(*x.shape[:-1], plan.dim, plan.num_parameters)

    def masked(self, weights: Weights) -> Weights:
        """The layers without what a unit may not see."""
        degrees = [jnp.asarray(layer) for layer in self.plan.degrees]
        if self.has_variable("constants", "degrees"):
            degrees[0], degrees[-1] = self.get_variable("constants", "degrees")
        degrees[0] = degrees[0][: len(weights[0][0])]
        return [
            (jnp.where(above >= below[:, None], kernel, 0), bias)
            for (kernel, bias), (below, above) in zip(weights, pairwise(degrees), strict=True)
        ]

    def evaluate(
        self,
        x: Array,
        weights: Weights,
        gates: Sequence[Array],
        terms: Sequence[Array],
        norms: Sequence[Any],
        drops: Sequence[nn.Module],
    ) -> Array:
        """The network with given weights, and with what a context makes of its gates and branches."""
        return apply_layers(self.activation, x, weights, terms, norms, drops)

    def folded_norms(self) -> list[int]:
        """The layers with a batch normalisation ``norms_i`` of what they give."""
        return list(range(len(self.normalized_widths))) if self.normalization else []

    def block_norms(self) -> list[int]:
        """The layers with a batch normalisation of what they have added to a residual."""
        return []

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

    def unrolled(self, variables: Variables, context: Array | None) -> Unrolled:
        """The layers for a context ``(batch, context_dim)``; outputs stand in the order of generation."""
        plan, params = self.plan, variables["params"]
        layers = [params[f"layers_{i}"] for i in range(len(plan.hidden_dims) + 1)]
        weights: list[Array] = [layer["kernel"].T for layer in layers]
        sums: list[Array] = [layer["bias"][:, None] for layer in layers]
        gates: list[Array | None] = [None] * len(weights)

        def pairs(name: str, count: int) -> Weights:
            layers = [params[f"{name}_{i}"] for i in range(count)]
            return [(layer["kernel"], layer["bias"]) for layer in layers]

        # an inverse is computed in full precision
        with jax.default_matmul_precision("highest"):
            terms = branch_terms(self.activation, pairs("branches", self.num_branches), context)
            factors = gate_factors(pairs("gates", self.num_gates), context)
        for i, term in enumerate(terms):
            at = max(0, 2 * i - 1)
            sums[at] = sums[at] + term.T
        if context is not None and not terms:
            late = weights[0][:, plan.num_inputs :]
            product = jnp.matmul(late, context.T, precision=matmul_precision())
            sums[0] = sums[0] + product
        for i, factor in enumerate(factors):
            gates[2 * i + 2] = factor.T
        weights[0] = weights[0][:, : plan.num_inputs]

        def line(i: int) -> Array:
            """Mean, factor and bias of a batch normalisation in evaluation."""
            norm, running = (variables[kind][f"norms_{i}"] for kind in ("params", "batch_stats"))
            factor = norm["scale"] * jax.lax.rsqrt(running["var"] + EPS)
            return jnp.stack([running["mean"], factor, norm["bias"]], -1)[:, None]

        for i in self.folded_norms():
            mean, factor, bias = jnp.moveaxis(line(i), -1, 0)
            weights[i], sums[i] = weights[i] * factor, (sums[i] - mean) * factor + bias
        for i in self.block_norms():
            own = line(i)
            gate = gates[i]
            gate = jnp.ones_like(own[..., 0]) if gate is None else gate
            own = jnp.broadcast_to(own, (*gate.shape, 3))
            gates[i] = jnp.concatenate([gate[..., None], own], -1)
        sorting: list[AnyArray | None] = [*plan.sorting]
        if variables.get("constants"):
            sorting[0], sorting[-1] = variables["constants"]["ends"]
        for i, order in enumerate(sorting):
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

    dim: int
    num_parameters: int
    hidden_dims: Sequence[int] = (64, 64)
    activation: str = "leaky_relu"
    degrees: Degrees = None
    order: Order = None
    context_dim: int = 0
    context: str = "concatenate"
    initial_scale: float = 1.0
    num_features: int = 1
    normalization: str | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        checks.perceptron("MLP", self.hidden_dims, self.context, self.context_dim)
        checks.one_of("MLP", "activation", self.activation, ACTIVATIONS)
        checks.non_negative_number("MLP", initial_scale=self.initial_scale)
        checks.masked_normalization(type(self).__name__, self.normalization)
        checks.regularization(type(self).__name__, self.normalization, self.dropout, ())
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
            self.num_features,
        )

    @property
    def num_branches(self) -> int:
        return int(self.context == "branch" and self.context_dim > 0)


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

    dim: int
    num_parameters: int
    hidden_dim: int = 64
    num_blocks: int = 2
    activation: str = "relu"
    context: str = "concatenate"
    degrees: str | Sequence[int] | None = None
    order: Order = None
    context_dim: int = 0
    pre_activation: bool = True
    initial_scale: float = 1.0
    num_features: int = 1
    normalization: str | None = None
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
        checks.non_negative_number("ResidualMLP", initial_scale=self.initial_scale)
        checks.masked_normalization(type(self).__name__, self.normalization)
        checks.regularization(type(self).__name__, self.normalization, self.dropout, ())
        _ = self.plan
        super().__post_init__()

    @property
    def plan(self) -> Autoregression:
        num_layers = 1 + 2 * self.num_blocks
        hidden_dims = (self.hidden_dim,) * num_layers
        degrees = self.degrees
        listed = degrees if isinstance(degrees, str | None) else (degrees,) * num_layers
        return Autoregression(
            self.dim,
            hidden_dims,
            self.num_parameters,
            self.order,
            self.context_dim,
            listed,
            self.num_features,
        )

    @property
    def starts(self) -> list[float | None]:
        return small_starts(self.num_blocks)

    @property
    def num_gates(self) -> int:
        return context_counts(self.context, self.context_dim, self.num_blocks)[0]

    @property
    def num_branches(self) -> int:
        return context_counts(self.context, self.context_dim, self.num_blocks)[1]

    @property
    def normalized_widths(self) -> Sequence[int]:
        return self.plan.hidden_dims[1:]

    @property
    def num_dropouts(self) -> int:
        return self.num_blocks

    def folded_norms(self) -> list[int]:
        return super().folded_norms()[1::2]

    def block_norms(self) -> list[int]:
        return super().folded_norms()[::2]

    def evaluate(
        self,
        x: Array,
        weights: Weights,
        gates: Sequence[Array],
        terms: Sequence[Array],
        norms: Sequence[Any],
        drops: Sequence[nn.Module],
    ) -> Array:
        form = self.activation, self.pre_activation
        return apply_blocks(*form, x, weights, gates, terms, norms, drops)

    def step(
        self, i: int, total: Array, residual: Array | None, gate: Array | None
    ) -> tuple[Array, Array | None]:
        if i % 2:
            return ACTIVATIONS[self.activation](total), residual
        line: Sequence[Array] = ()
        if gate is not None and gate.ndim == 3:
            gate, *line = jnp.moveaxis(gate, -1, 0)
        if residual is not None:
            total = residual + total if gate is None else residual + total * gate
        value = (total - line[0]) * line[1] + line[2] if line else total
        plain = i == len(self.plan.hidden_dims) - 1 or not self.pre_activation
        return value if plain else ACTIVATIONS[self.activation](value), total


MASKED: dict[type, type[MaskedNetwork]] = {MLP: MaskedMLP, ResidualMLP: MaskedResidualMLP}
"""Which masked network a network stands for in ``MaskedAutoregressive``."""
