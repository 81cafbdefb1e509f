"""Masked autoregressive maps: each dimension is transformed given those generated before it."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from flow_bridge import checks
from flow_bridge.masks import Order
from flow_bridge.networks import Network, as_network
from torch_flows.bijectors.base import Conditioned, Output
from torch_flows.networks.masked import MASKED, MaskedNetwork
from torch_flows.networks.mlp import MLP
from torch_flows.numerics import full_precision, is_eager
from torch_flows.registry import register
from torch_flows.univariate.affine import AffineMap
from torch_flows.univariate.base import UnivariateMap
from torch_flows.univariate.splines import spline_within

Gates = Sequence[Tensor | None]

BLOCK_SIZE = 1.0
"""Length of the inverse's smallest blocks in roots of the dimension: what was fastest."""


@register
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
        >>> import torch, torch_flows
        >>> network = torch_flows.Network(torch_flows.ResidualMLP, hidden_dim=16)
        >>> bijector = torch_flows.MaskedAutoregressive(3, torch_flows.AffineMap("softplus"), network)
        >>> z, log_det = bijector.forward(torch.zeros(5, 3))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 3), (5,))
    """

    generated: Tensor
    position: Tensor

    def __init__(
        self,
        dim: int,
        map: UnivariateMap,
        conditioner: Network | type | None = None,
        order: Order = None,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        checks.positive_int("MaskedAutoregressive", dim=dim)
        checks.instances("MaskedAutoregressive", "map", [map], UnivariateMap)
        checks.one_map("MaskedAutoregressive", map)
        checks.non_negative_int("MaskedAutoregressive", context_dim=context_dim)
        self.dim = dim
        self.map = map
        self.conditioner = as_network("MaskedAutoregressive", conditioner, MLP)
        self.order = tuple(order) if isinstance(order, list) else order
        self.context_dim = context_dim
        self.event_shape = (dim,)
        self.domain, self.codomain = map.domain, map.codomain
        cls: Any = MASKED.get(self.conditioner.cls, self.conditioner.cls)
        options = self.conditioner.arguments({})
        checks.masked_conditioner(cls.__name__, issubclass(cls, MaskedNetwork))
        self.network: MaskedNetwork = cls(
            dim,
            map.num_parameters,
            **options,
            order=self.order,
            context_dim=context_dim,
            num_features=map.num_features,
        )
        generated = torch.as_tensor(self.network.plan.generated)
        # on the meta device a checkpoint of unknown origin may ask for any size, and nothing is run
        self._starts = [] if generated.is_meta else self.network.plan.starts
        self.register_buffer("generated", generated, persistent=False)
        self.register_buffer("position", generated.argsort(), persistent=False)

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        seen = self.map.features(x, -1)
        z, log_slope = self.map.forward(x, self.network(seen, context).to(x.dtype))
        return z, log_slope.sum(-1)

    @full_precision
    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        rows = z.reshape(-1, self.dim).T[self.generated]
        flat = None if context is None else context.reshape(-1, self.context_dim)
        weights, sums, gates = self.network.unrolled(flat)
        sums = [total.expand(-1, rows.shape[1]) for total in sums]
        parts = self.network.plan.parts(BLOCK_SIZE)
        _, x, log_slope = self._solve(parts, 0, rows, weights, sums, gates)
        x = x[self.position].T.reshape(z.shape)
        return x, log_slope.sum(0).reshape(z.shape[:-1])

    def _solve(
        self,
        parts: Sequence[int],
        start: int,
        z: Tensor,
        weights: Sequence[Tensor],
        sums: Sequence[Tensor],
        gates: Gates,
    ) -> tuple[list[list[Tensor]], Tensor, Tensor]:
        """Solve for a run of dimensions, everything generated before it being known.

        What one part of the run contributes to a later one is one product per layer; only what a
        part contributes to itself is left to the recursion.

        Args:
            parts: how to divide the run, see ``flow_bridge.masks.Autoregression``.
            start: how many dimensions are generated before the run.
            z: shape ``(run, batch)``: features lead, so that a part is a contiguous slice.
            weights: per layer, from the units of the run to the units of the run.
            sums: per layer, bias and contributions of everything before the run, ``(units, batch)``.
            gates: per layer, see ``networks.masked.Unrolled``.

        Returns:
            What the network sees of x and the values of each hidden layer, in the layout of z and in
            pieces to be joined; x; and log|dx/dz| of each dimension.
        """
        if len(parts) == 1:
            return self._solve_block(start, z, weights, sums, gates)
        sizes = self._sizes(start, z.shape[0], math.prod(parts[1:]))
        sum_parts = [
            total.split_with_sizes(size) for total, size in zip(sums, sizes[1:], strict=True)
        ]
        gate_parts = _split_gates(gates, sizes)
        weight_parts = [
            [rows.split_with_sizes(below, 1) for rows in weight.split_with_sizes(above)]
            for weight, (below, above) in zip(weights, pairwise(sizes), strict=True)
        ]
        solved: list[list[Tensor]] = [[] for _ in weights]
        found, log_dets = [], []
        eager = is_eager()  # vmap has no rule for sums in place
        for k, z_part in enumerate(z.split(math.prod(parts[1:]))):
            totals = [total[k] for total in sum_parts]
            for i, values in enumerate(solved):
                for j in range(k):
                    add = Tensor.addmm_ if eager and j else torch.addmm
                    totals[i] = add(totals[i], weight_parts[i][k][j], values[j])
            own = [weight[k][k] for weight in weight_parts]
            pieces, x, log_det = self._solve(parts[1:], start, z_part, own, totals, gate_parts[k])
            for values, layer in zip(solved, pieces, strict=True):
                values.append(_join(layer))
            found.append(x)
            log_dets.append(log_det)
            start += z_part.shape[0]
        return *self._with_x(solved, found), torch.cat(log_dets)

    def _solve_block(
        self,
        start: int,
        z: Tensor,
        weights: Sequence[Tensor],
        sums: Sequence[Tensor],
        gates: Gates,
    ) -> tuple[list[list[Tensor]], Tensor, Tensor]:
        """``_solve`` one dimension after another, with the hidden units that each one completes."""
        sizes = self._sizes(start, z.shape[0], 1)
        sum_parts = [
            total.split_with_sizes(size) for total, size in zip(sums, sizes[1:], strict=True)
        ]
        gate_parts = _split_gates(gates, sizes)
        weight_parts = [
            weight.split_with_sizes(size) for weight, size in zip(weights, sizes[1:], strict=True)
        ]
        solved: list[list[Tensor]] = [[z[:0]], *([] for _ in weights[1:])]
        found, log_dets = [], []
        step, inverse, separable = self.network.step, self.map.inverse, self.map.separable
        for k, z_row in enumerate(z):
            residual: Tensor | None = None
            for i, pieces in enumerate(solved):
                total, size = sum_parts[i][k], sizes[i + 1][k]
                if size and pieces:
                    known = _join(pieces)
                    pieces[:] = [known]
                    columns = weight_parts[i][k][:, : known.shape[0]]
                    total = torch.addmm(total, columns, known)
                if size and i + 1 < len(solved):
                    value, residual = step(i, total, residual, gate_parts[k][i])
                    solved[i + 1].append(value)
            x_row, log_det = inverse(z_row, total.unbind() if separable else total.T)
            found.append(x_row.unsqueeze(0))
            solved[0].append(self.map.features(found[-1], 0))
            log_dets.append(log_det)
        solved = [pieces or [z[:0]] for pieces in solved]
        return *self._with_x(solved, found), torch.stack(log_dets)

    def _with_x(
        self, solved: list[list[Tensor]], found: list[Tensor]
    ) -> tuple[list[list[Tensor]], Tensor]:
        """What has been solved, and x: joined once where it is what the network sees."""
        x = _join(found if self.map.num_features > 1 else solved[0])
        if self.map.num_features == 1:
            solved[0] = [x]
        return solved, x

    def _sizes(self, start: int, run: int, step: int) -> list[list[int]]:
        """How many inputs, units of each hidden layer and outputs belong to each ``step`` dimensions
        of a run."""
        stop = start + run
        bounds = [*range(start, stop, step), stop]
        return [[layer[b] - layer[a] for a, b in pairwise(bounds)] for layer in self._starts]


def _split_gates(gates: Gates, sizes: Sequence[Sequence[int]]) -> list[Gates]:
    """The gates of each part."""
    count = len(sizes[0])
    layers = [
        [None] * count if gate is None else gate.split_with_sizes(size)
        for gate, size in zip(gates, sizes[1:], strict=True)
    ]
    return [[layer[k] for layer in layers] for k in range(count)]


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


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
        >>> import torch, torch_flows
        >>> bijector = torch_flows.MaskedAffineAutoregressive(dim=3, hidden_dims=(8,))
        >>> z, log_det = bijector.forward(torch.zeros(5, 3))
        >>> tuple(z.shape), tuple(log_det.shape)
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
