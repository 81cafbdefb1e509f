"""Masked autoregressive maps: each dimension is transformed given those generated before it."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from flow_bridge import checks
from flow_bridge.masks import Order
from flow_bridge.splines import check_spline
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.bijectors.splines import rational_quadratic
from torch_flows.networks import ACTIVATIONS, MaskedMLP
from torch_flows.numerics import full_precision
from torch_flows.registry import register

SCALE_BOUND = 2.0
"""The largest |log scale| of an affine map."""
BLOCK_SIZE = 1.0
"""Length of the inverse's smallest blocks in roots of the dimension: what was fastest."""


class MaskedAutoregressive(Bijector):
    """What masked autoregressive maps share: z_i = f(x_i; parameters_i(x_<i)), in both directions.

    ``forward`` is one pass of the network. ``inverse`` finds one dimension after another, but a
    hidden unit of degree m follows from the first m of them, so that each is computed only once: the
    arithmetic is that of about one pass too.
    """

    generated: Tensor
    position: Tensor

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int],
        num_parameters: int,
        order: Order,
        activation: str,
        context_dim: int,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        checks.positive_int(name, dim=dim)
        checks.non_negative_int(name, context_dim=context_dim)
        self.dim = dim
        self.hidden_dims = checks.hidden_widths(name, hidden_dims)
        self.order = tuple(order) if isinstance(order, list) else order
        self.activation = activation
        self.context_dim = context_dim
        self.event_shape = (dim,)
        self.network = MaskedMLP(
            dim, self.hidden_dims, num_parameters, self.order, activation, context_dim
        )
        generated = torch.tensor(self.network.plan.generated)
        # on the meta device a checkpoint of unknown origin may ask for any size, and nothing is run
        self._starts = [] if generated.is_meta else self.network.plan.starts
        self.register_buffer("generated", generated, persistent=False)
        self.register_buffer("position", generated.argsort(), persistent=False)

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        z, log_det = self._transform(x, self.network(x, context))
        return z, log_det.sum(-1)

    @full_precision
    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        rows = z.reshape(-1, self.dim).T[self.generated]
        weights: list[Tensor] = [layer.weight for layer in self.network.layers]
        sums: list[Tensor] = [layer.bias.unsqueeze(-1) for layer in self.network.layers]
        if context is not None:
            flat = context.reshape(-1, self.context_dim)
            sums[0] = torch.addmm(sums[0], weights[0][:, self.dim :], flat.T)
        weights[0] = weights[0][:, self.generated]
        weights[-1], sums[-1] = (
            array.unflatten(0, (self.dim, -1))[self.generated].flatten(0, 1)
            for array in (weights[-1], sums[-1])
        )
        sums = [total.expand(-1, rows.shape[1]) for total in sums]
        solved, log_det = self._solve(self.network.plan.parts(BLOCK_SIZE), 0, rows, weights, sums)
        x = _join(solved[0])[self.position].T.reshape(z.shape)
        return x, log_det.sum(0).reshape(z.shape[:-1])

    def _solve(
        self,
        parts: Sequence[int],
        start: int,
        z: Tensor,
        weights: Sequence[Tensor],
        sums: Sequence[Tensor],
    ) -> tuple[list[list[Tensor]], Tensor]:
        """Solve for a run of dimensions, everything generated before it being known.

        What one part of the run contributes to a later one is one product per layer; only what a
        part contributes to itself is left to the recursion.

        Args:
            parts: how to divide the run, see ``flow_bridge.masks.Autoregression``.
            start: how many dimensions are generated before the run.
            z: shape ``(run, batch)``: features lead, so that a part is a contiguous slice.
            weights: per layer, from the units of the run to the units of the run.
            sums: per layer, bias and contributions of everything before the run, ``(units, batch)``.

        Returns:
            x and the values of each hidden layer, in the layout of z and in pieces to be joined; and
            log|dx/dz| of each dimension.
        """
        if len(parts) == 1:
            return self._solve_block(start, z, weights, sums)
        sizes = self._sizes(start, z.shape[0], math.prod(parts[1:]))
        sum_parts = [total.split(size) for total, size in zip(sums, sizes[1:], strict=True)]
        weight_parts = [
            [rows.split(below, 1) for rows in weight.split(above)]
            for weight, (below, above) in zip(weights, pairwise(sizes), strict=True)
        ]
        solved: list[list[Tensor]] = [[] for _ in weights]
        log_dets = []
        for k, z_part in enumerate(z.split(sizes[0])):
            totals = [total[k] for total in sum_parts]
            for i, values in enumerate(solved):
                for j, value in enumerate(values):
                    totals[i] = torch.addmm(totals[i], weight_parts[i][k][j], value)
            own = [weight[k][k] for weight in weight_parts]
            pieces, log_det = self._solve(parts[1:], start, z_part, own, totals)
            for values, layer in zip(solved, pieces, strict=True):
                values.append(_join(layer))
            log_dets.append(log_det)
            start += z_part.shape[0]
        return solved, torch.cat(log_dets)

    def _solve_block(
        self, start: int, z: Tensor, weights: Sequence[Tensor], sums: Sequence[Tensor]
    ) -> tuple[list[list[Tensor]], Tensor]:
        """``_solve`` one dimension after another, with the hidden units that each one completes."""
        sizes = self._sizes(start, z.shape[0], 1)
        sum_parts = [total.split(size) for total, size in zip(sums, sizes[1:], strict=True)]
        weight_parts = [weight.split(size) for weight, size in zip(weights, sizes[1:], strict=True)]
        solved: list[list[Tensor]] = [[z[:0]], *([] for _ in weights[1:])]
        log_dets = []
        for k, z_row in enumerate(z):
            for i, pieces in enumerate(solved):
                total, size = sum_parts[i][k], sizes[i + 1][k]
                if size and pieces:
                    known = _join(pieces)
                    pieces[:] = [known]
                    columns = weight_parts[i][k][:, : known.shape[0]]
                    total = torch.addmm(total, columns, known)
                if size and i + 1 < len(solved):
                    solved[i + 1].append(ACTIVATIONS[self.activation](total))
            x_row, log_det = self._inverse_transform(z_row, total.transpose(0, 1))
            solved[0].append(x_row.unsqueeze(0))
            log_dets.append(log_det)
        return [pieces or [z[:0]] for pieces in solved], torch.stack(log_dets)

    def _sizes(self, start: int, run: int, step: int) -> list[list[int]]:
        """How many inputs, units of each hidden layer and outputs belong to each ``step`` dimensions
        of a run."""
        stop = start + run
        bounds = [*range(start, stop, step), stop]
        return [[layer[b] - layer[a] for a, b in pairwise(bounds)] for layer in self._starts]

    @abstractmethod
    def _transform(self, x: Tensor, parameters: Tensor) -> Output:
        """From x ``(...)`` and parameters ``(..., num_parameters)`` to z and log|dz/dx|, ``(...)``."""

    @abstractmethod
    def _inverse_transform(self, z: Tensor, parameters: Tensor) -> Output:
        """From z to x and log|dx/dz|, as ``_transform``."""


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


@register
class MaskedAffineAutoregressive(MaskedAutoregressive):
    """z_i = (x_i - mu_i) * exp(-alpha_i), (mu_i, a_i) from a masked network of x_<i.

    alpha_i = 2 tanh(a_i / 2) stays within 2 of 0: with a_i in its place, five layers in 64 dimensions
    overflow once the network's outputs are of scale 1. log|det| = -sum(alpha).

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the network's hidden layers, any number of them.
        order: which dimension is generated when: ``None`` (0, 1, 2, ...), ``"reverse"``,
            ``"random:SEED"``, or a list of the dimensions.
        activation: a name in ``networks.ACTIVATIONS``.
        context_dim: width of the context, which all dimensions see; 0 for none.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for an order that is not one.

    Reference: Papamakarios et al. (2017), MAF, arXiv:1705.07057.

    Examples:
        >>> import torch, torch_flows
        >>> bijector = torch_flows.MaskedAffineAutoregressive(dim=3, hidden_dims=(8,))
        >>> z, log_det = bijector.forward(torch.zeros(5, 3))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 3), (5,))
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        order: Order = None,
        activation: str = "leaky_relu",
        context_dim: int = 0,
    ) -> None:
        super().__init__(dim, hidden_dims, 2, order, activation, context_dim)

    def _transform(self, x: Tensor, parameters: Tensor) -> Output:
        mu, a = parameters.unbind(-1)
        alpha = SCALE_BOUND * (a / SCALE_BOUND).tanh()
        return (x - mu) * (-alpha).exp(), -alpha

    def _inverse_transform(self, z: Tensor, parameters: Tensor) -> Output:
        mu, a = parameters.unbind(-1)
        alpha = SCALE_BOUND * (a / SCALE_BOUND).tanh()
        return torch.addcmul(mu, z, alpha.exp()), alpha


@register
class MaskedSplineAutoregressive(MaskedAutoregressive):
    """Each z_i is a monotone spline of x_i, whose parameters come from a masked network of x_<i.

    The splines are rational-quadratic on (-tail_bound, tail_bound) and the identity outside;
    log|det| is the sum of the logs of their derivatives.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the network's hidden layers, any number of them.
        order: which dimension is generated when: ``None`` (0, 1, 2, ...), ``"reverse"``,
            ``"random:SEED"``, or a list of the dimensions.
        num_bins: bins of each spline, below 1000.
        tail_bound: where the identity begins.
        activation: a name in ``networks.ACTIVATIONS``.
        context_dim: width of the context, which all dimensions see; 0 for none.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for an order that is not one.

    Reference: Durkan et al. (2019), Neural Spline Flows, arXiv:1906.04032.
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        order: Order = None,
        num_bins: int = 8,
        tail_bound: float = 5.0,
        activation: str = "leaky_relu",
        context_dim: int = 0,
    ) -> None:
        check_spline("MaskedSplineAutoregressive", num_bins, tail_bound)
        super().__init__(dim, hidden_dims, 3 * num_bins - 1, order, activation, context_dim)
        self.num_bins = num_bins
        self.tail_bound = tail_bound

    def _transform(self, x: Tensor, parameters: Tensor) -> Output:
        return rational_quadratic(x, parameters, self.tail_bound)

    def _inverse_transform(self, z: Tensor, parameters: Tensor) -> Output:
        return rational_quadratic(z, parameters, self.tail_bound, inverse=True)
