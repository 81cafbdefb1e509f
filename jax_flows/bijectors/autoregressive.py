"""Masked autoregressive maps: each dimension is transformed given those generated before it."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.domains import Interval
from flow_bridge.masks import Order
from flow_bridge.networks import Network, as_network
from jax_flows.bijectors.base import Conditioned
from jax_flows.networks.conditioner import conditioner_shapes
from jax_flows.networks.masked import MASKED, MaskedNetwork
from jax_flows.networks.mlp import MLP
from jax_flows.networks.regularization import run_network
from jax_flows.numerics import as_int32, matmul_precision
from jax_flows.registry import register
from jax_flows.univariate.affine import AffineMap
from jax_flows.univariate.base import UnivariateMap
from jax_flows.univariate.splines import spline_within
from jax_flows.variables import Output, Variables, child, gather

Gates = Sequence[Array | None]

BLOCK_SIZE = 0.5
"""Length of the inverse's smallest blocks in roots of the dimension: what was fastest. In a block the
units are computed anew for each of its dimensions, so blocks are shorter than in PyTorch."""

ROWS = 1024
"""How many rows a CPU's inverse solves at a time: what it computes with then stays in the cache."""


@register
@dataclass(frozen=True)
class MaskedAutoregressive(Conditioned):
    """z_i = map(x_i; parameters_i(x_<i)): each dimension given those generated before it.

    ``forward`` is one pass of the network. ``inverse`` finds one dimension after another, but a
    hidden unit of degree m follows from the first m of them, so that each is computed only once: the
    arithmetic is that of about one pass too. log|det| is the sum of the logs of the map's slopes.

    Args:
        dim: number of dimensions.
        map: what happens to a dimension, given its parameters.
        conditioner: the network that makes the parameters, ``Network(CLASS, ...)`` or a class: ``MLP``
            (if not given) or ``ResidualMLP``, which get masks, or ``MaskedMLP`` or
            ``MaskedResidualMLP``, where one can state the degrees of the hidden units.
        order: which dimension is generated when: ``None`` (0, 1, 2, ...), ``"reverse"``,
            ``"random:SEED"``, or a list of the dimensions.
        context_dim: width of the context, which all dimensions see; 0 for none.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for an order that is not one, a network without masks, and a ``MixedMap``.

    Reference: Papamakarios et al. (2017), MAF, arXiv:1705.07057.

    Examples:
        >>> import jax, jax_flows
        >>> network = jax_flows.Network(jax_flows.ResidualMLP, hidden_dim=16)
        >>> bijector = jax_flows.MaskedAutoregressive(3, jax_flows.AffineMap("softplus"), network)
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 3)))
        >>> z.shape, log_det.shape
        ((5, 3), (5,))
    """

    dim: int
    map: UnivariateMap
    conditioner: Network | type | None = None
    order: Order = None
    context_dim: int = 0

    constant_fields = ("order",)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("MaskedAutoregressive", dim=self.dim)
        checks.instances("MaskedAutoregressive", "map", [self.map], UnivariateMap)
        checks.one_map("MaskedAutoregressive", self.map)
        checks.non_negative_int("MaskedAutoregressive", context_dim=self.context_dim)
        conditioner = as_network("MaskedAutoregressive", self.conditioner, MLP)
        object.__setattr__(self, "conditioner", conditioner)
        _ = self.network

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def domain(self) -> Interval:  # type: ignore[override]
        return self.map.domain

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        return self.map.codomain

    @cached_property
    def network(self) -> MaskedNetwork:
        """The conditioner."""
        conditioner = as_network("MaskedAutoregressive", self.conditioner, MLP)
        cls: Any = MASKED.get(conditioner.cls, conditioner.cls)
        options = conditioner.arguments({})
        checks.masked_conditioner(cls.__name__, issubclass(cls, MaskedNetwork))
        return cls(
            self.dim,
            self.map.num_parameters,
            **options,
            order=self.order,
            context_dim=self.context_dim,
            num_features=self.map.num_features,
            parent=None,
        )

    @property
    def scan_key(self) -> Hashable:
        # a network of one's own may read its order elsewhere than in ``constants``
        return super().scan_key if type(self.network) in MASKED.values() else self

    def scan_constants(self) -> dict[str, Any]:
        generated = self.network.plan.generated
        places = {"generated": as_int32(generated), "position": as_int32(np.argsort(generated))}
        return {**places, "network": self.network.constants()}

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        widths = self.network.plan.num_inputs, self.context_dim
        inputs = [jnp.zeros(n, dtype) for n in widths if n]
        return gather({"network": self.network.init(key, *inputs)})

    def variable_shapes(self, dtype: Any) -> Variables:
        return conditioner_shapes(self, dtype) or super().variable_shapes(dtype)

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        seen = self.map.features(x, -1)
        updates = variables.get("updates")
        own = (seen,) if context is None else (seen, context)
        parameters = run_network(self.network, variables, "network", updates, *own)
        z, log_slope = self.map.forward(x, jnp.asarray(parameters))
        return z, log_slope.sum(-1)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        return implicit_inverse(self, variables, z, context)

    def explicit_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        rows = z.reshape(-1, self.dim)
        flat = None if context is None else context.reshape(-1, self.context_dim)
        x, log_det = _in_turns(partial(self._invert_rows, variables), rows, flat)
        return x.reshape(z.shape), log_det.reshape(z.shape[:-1])

    def _invert_rows(self, variables: Variables, z: Array, context: Array | None) -> Output:
        """The inverse for z of shape ``(batch, dim)``."""
        constants = self.constants(variables)
        rows = z.T[constants["generated"]]
        own = child(variables, "network")
        weights, sums, gates = self.network.unrolled(own, context)
        sums = [jnp.broadcast_to(total, (len(total), rows.shape[1])) for total in sums]
        parts = self.network.plan.parts(BLOCK_SIZE)
        x, log_slope = self._solve(parts, rows, weights, sums, gates)
        return x[constants["position"]].T, log_slope.sum(0)

    def _solve(
        self,
        parts: Sequence[int],
        z: Array,
        weights: Sequence[Array],
        sums: Sequence[Array],
        gates: Gates,
    ) -> Output:
        """Solve for all dimensions.

        What earlier parts contribute to a later one is one product per layer; only what a part
        contributes to itself is left to ``_solve_part``.

        Args:
            parts: how to divide the dimensions, see ``flow_bridge.masks.Autoregression``.
            z: shape ``(dim, batch)``: features lead, so that a part is a contiguous slice.
            weights: per layer, from the units below to the units, in the order of generation.
            sums: per layer, bias and contributions of the context, ``(units, batch)``.
            gates: per layer, see ``networks.masked.Unrolled``.

        Returns:
            x, in the layout of z, and log|dx/dz| of each dimension.
        """
        run = math.prod(parts[1:])
        if run == 1:
            return self._solve_rows(z, weights, sums, gates)
        plan = self.network.plan
        bounds, starts = [*range(0, self.dim, run), self.dim], plan.starts
        inputs, *others = plan.degrees
        levels = [np.sort(degrees) for degrees in (inputs[: plan.num_inputs], *others)]
        solved: list[list[Array]] = [[] for _ in weights]
        found, log_dets = [], []
        for first, last in pairwise(bounds):
            own = [slice(layer[first], layer[last]) for layer in starts]
            totals = [total[units] for total, units in zip(sums, own[1:], strict=True)]
            factors = [
                None if gate is None else gate[units]
                for gate, units in zip(gates, own[1:], strict=True)
            ]
            rows = [weight[units] for weight, units in zip(weights, own[1:], strict=True)]
            if first:
                known = [jnp.concatenate(pieces) for pieces in solved]
                totals = [
                    _add_product(total, weight[:, : len(values)], values)
                    for total, weight, values in zip(totals, rows, known, strict=True)
                ]
            # what units see of earlier runs they see all of: the masks are those within a run
            diagonal = [
                jnp.where(above[to][:, None] >= below[units], weight[:, units], 0)
                for weight, (below, above), (units, to) in zip(
                    rows, pairwise(levels), pairwise(own), strict=True
                )
            ]
            values, x, log_det = self._solve_part(
                parts[1:], first, z[first:last], diagonal, totals, factors
            )
            for pieces, piece in zip(solved, values, strict=True):
                pieces.append(piece)
            found.append(x)
            log_dets.append(log_det)
        return jnp.concatenate(found), jnp.concatenate(log_dets)

    def _solve_part(
        self,
        parts: Sequence[int],
        start: int,
        z: Array,
        weights: Sequence[Array],
        sums: Sequence[Array],
        gates: Gates,
    ) -> tuple[list[Array], Array, Array]:
        """``_solve`` for a run that begins after ``start`` dimensions, by a scan over its blocks.

        Blocks are padded to one size, and each takes what the run contributes to it from arrays that
        hold zeros for everything still unknown. What the network sees of x and the values of each
        hidden layer are returned first.
        """
        if len(parts) == 1:
            return self._solve_block(z, weights, sums, gates)
        index = self.network.plan.blocks(start, z.shape[0], parts[1])
        dims = np.minimum(np.arange(len(index[0]) * parts[1]), z.shape[0]).reshape(-1, parts[1])
        sizes = [positions.shape[1] for positions in index]
        batch = z.shape[1]

        def step(known: list[Array], block: Any) -> tuple[list[Array], tuple[Array, Array]]:
            k, z_block, rows, totals, factors = block
            totals = [
                _add_product(total, weight, values)
                for total, weight, values in zip(totals, rows, known, strict=True)
            ]
            own = [
                jax.lax.dynamic_slice_in_dim(weight, k * size, size, 1)
                for weight, size in zip(rows, sizes, strict=False)
            ]
            solved, x, log_det = self._solve_block(z_block, own, totals, factors)
            known = [
                jax.lax.dynamic_update_slice_in_dim(values, piece, k * size, 0)
                for values, piece, size in zip(known, solved, sizes, strict=False)
            ]
            return known, (x, log_det)

        blocks = (
            jnp.arange(len(index[0])),
            _take(z, dims),
            [
                _take(_take(weight.T, below.ravel()).T, above)
                for weight, (below, above) in zip(weights, pairwise(index), strict=True)
            ],
            [_take(total, above) for total, above in zip(sums, index[1:], strict=True)],
            [
                None if gate is None else _take(gate, above)
                for gate, above in zip(gates, index[1:], strict=True)
            ],
        )
        nothing = [jnp.zeros((positions.size, batch), z.dtype) for positions in index[:-1]]
        known, found = jax.lax.scan(step, nothing, blocks)
        seen, *values = (
            values[positions.ravel().argsort()[: weight.shape[1]]]
            for values, positions, weight in zip(known, index, weights, strict=False)
        )
        x, log_det = (rows.reshape(dims.size, batch)[: z.shape[0]] for rows in found)
        return [x if self.map.num_features == 1 else seen, *values], x, log_det

    def _solve_rows(
        self, z: Array, weights: Sequence[Array], sums: Sequence[Array], gates: Gates
    ) -> Output:
        """``_solve`` one dimension after another, with the hidden units that each one completes."""
        starts = self.network.plan.starts
        solved: list[list[Array]] = [[] for _ in weights]
        found, log_dets = [], []
        for k, z_row in enumerate(z):
            residual: Array | None = None
            for i, (weight, total, gate) in enumerate(zip(weights, sums, gates, strict=True)):
                units = slice(starts[i + 1][k], starts[i + 1][k + 1])
                last = starts[i][k + bool(i)]
                total = total[units]
                if last:
                    known = jnp.concatenate(solved[i])
                    total = _add_product(total, weight[units, :last], known)
                if i + 1 < len(weights):
                    own = None if gate is None else gate[units]
                    value, residual = self.network.step(i, total, residual, own)
                    solved[i + 1].append(value)
            x_row, log_det = self.map.inverse(z_row, total.T)
            solved[0].append(self.map.features(x_row[None], 0))
            found.append(x_row)
            log_dets.append(log_det)
        return jnp.stack(found), jnp.stack(log_dets)

    def _solve_block(
        self, z: Array, weights: Sequence[Array], sums: Sequence[Array], gates: Gates
    ) -> tuple[list[Array], Array, Array]:
        """``_solve`` for a block, dimension by dimension: what a unit misses yet meets zero weights."""
        size, batch = z.shape
        num_parameters = self.map.num_parameters

        def step(solved: list[Array], row: Any) -> tuple[list[Array], tuple[Array, Array]]:
            k, z_row, last_weight, last_sum = row
            values = solved[:1]
            residual: Array | None = None
            for i, (weight, total) in enumerate(zip(weights[:-1], sums[:-1], strict=True)):
                total = _add_product(total, weight, values[-1])
                value, residual = self.network.step(i, total, residual, gates[i])
                values.append(value)
            parameters = _add_product(last_sum, last_weight, values[-1])
            # XLA runs small networks half as fast where these come one by one
            x_row, log_det = self.map.inverse(z_row, parameters.T)
            seen = self.map.features(x_row[None], 0)
            shown = jax.lax.dynamic_update_slice_in_dim(values[0], seen, k * len(seen), 0)
            return [shown, *values[1:]], (x_row, log_det)

        rows = (
            jnp.arange(size),
            z,
            weights[-1].reshape(size, num_parameters, weights[-1].shape[1]),
            sums[-1].reshape(size, num_parameters, batch),
        )
        nothing = [jnp.zeros((weight.shape[1], batch), z.dtype) for weight in weights]
        solved, (x, log_det) = jax.lax.scan(step, nothing, rows)
        return solved, x, log_det


def _in_turns(solve: Any, z: Array, context: Array | None) -> Output:
    """``solve`` for rows and their contexts, on a CPU for some ``ROWS`` of them after the others."""
    batch = z.shape[0]
    count = batch // ROWS if isinstance(batch, int) else 0
    if count < 2:
        return solve(z, context)

    def in_turns(z: Array, context: Array | None) -> Output:
        parts = [
            None
            if rows is None
            else jnp.pad(rows, ((0, -batch % count), (0, 0)), "edge").reshape(
                count, -1, rows.shape[1]
            )
            for rows in (z, context)
        ]
        x, log_det = jax.lax.map(lambda part: solve(*part), parts)
        return x.reshape(-1, z.shape[1])[:batch], log_det.ravel()[:batch]

    return jax.lax.platform_dependent(z, context, cpu=in_turns, default=solve)


def _take(array: Array, index: np.ndarray) -> Array:
    """Rows by position; one past the end is a row of zeros."""
    if np.array_equal(index.ravel(), np.arange(len(array))):
        return array.reshape(*index.shape, *array.shape[1:])
    return jnp.pad(array, ((0, 1), *((0, 0),) * (array.ndim - 1)))[index]


def _add_product(total: Array, weight: Array, known: Array) -> Array:
    return total + jnp.matmul(weight, known, precision=matmul_precision())


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def implicit_inverse(
    bijector: Any, variables: Variables, z: Array, context: Array | None
) -> Output:
    """``bijector.explicit_inverse``, with gradients of its own."""
    return bijector.explicit_inverse(variables, z, context)


@implicit_inverse.defjvp
def _implicit_inverse_jvp(
    bijector: Any, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Output, Output]:
    """z = f(x, weights) gives dx = (df/dx)^-1 (dz - df/dweights dweights): weights and context enter
    by one pass at the solution, and only the linear solve goes through the recursion."""
    variables, z, context = primals
    d_variables, dz, d_context = tangents
    (x, log_det), solve = jax.linearize(
        lambda z: bijector.explicit_inverse(variables, z, context), z
    )
    _, (dz_weights, d_log_det) = jax.jvp(
        lambda variables, context: bijector.map_forward(variables, x, context),
        (variables, context),
        (d_variables, d_context),
    )
    dx, dx_log_det = solve(dz - dz_weights)
    return (x, log_det), (dx, dx_log_det - d_log_det)


@register
def MaskedAffineAutoregressive(
    dim: int,
    hidden_dims: Sequence[int] = (64, 64),
    order: Order = None,
    activation: str = "leaky_relu",
    context_dim: int = 0,
) -> MaskedAutoregressive:
    """z_i = (x_i - mu_i) * exp(-alpha_i), (mu_i, a_i) from a masked network of x_<i.

    alpha_i = 2 tanh(a_i / 2) stays within 2 of 0: with a_i in its place, five layers in 64 dimensions
    overflow once the network's outputs are of scale 1. log|det| = -sum(alpha). A
    ``MaskedAutoregressive`` with ``AffineMap("tanh", bound=2, order="shift_divide")`` and ``MLP``.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the network's hidden layers, any number of them.
        order: which dimension is generated when: ``None`` (0, 1, 2, ...), ``"reverse"``,
            ``"random:SEED"``, or a list of the dimensions.
        activation: a name in ``networks.activations.ACTIVATIONS``.
        context_dim: width of the context, which all dimensions see; 0 for none.

    Reference: Papamakarios et al. (2017), MAF, arXiv:1705.07057.

    Examples:
        >>> import jax, jax_flows
        >>> bijector = jax_flows.MaskedAffineAutoregressive(dim=3, hidden_dims=(8,))
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 3)))
        >>> z.shape, log_det.shape
        ((5, 3), (5,))
    """
    network = Network(MLP, hidden_dims=hidden_dims, activation=activation)
    map = AffineMap("tanh", bound=2.0, order="shift_divide")
    return MaskedAutoregressive(dim, map, network, order, context_dim)


@register
def MaskedSplineAutoregressive(
    dim: int,
    hidden_dims: Sequence[int] = (64, 64),
    order: Order = None,
    num_bins: int = 8,
    tail_bound: float = 5.0,
    activation: str = "leaky_relu",
    context_dim: int = 0,
) -> MaskedAutoregressive:
    """Each z_i is a monotone spline of x_i, whose parameters come from a masked network of x_<i.

    The splines are rational-quadratic on (-tail_bound, tail_bound) and the identity outside;
    log|det| is the sum of the logs of their derivatives. A ``MaskedAutoregressive`` with ``SplineMap``
    and ``MLP``.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the network's hidden layers, any number of them.
        order: which dimension is generated when: ``None`` (0, 1, 2, ...), ``"reverse"``,
            ``"random:SEED"``, or a list of the dimensions.
        num_bins: bins of each spline, below 1000.
        tail_bound: where the identity begins.
        activation: a name in ``networks.activations.ACTIVATIONS``.
        context_dim: width of the context, which all dimensions see; 0 for none.

    Reference: Durkan et al. (2019), Neural Spline Flows, arXiv:1906.04032.
    """
    network = Network(MLP, hidden_dims=hidden_dims, activation=activation)
    map = spline_within(tail_bound, num_bins)
    return MaskedAutoregressive(dim, map, network, order, context_dim)
