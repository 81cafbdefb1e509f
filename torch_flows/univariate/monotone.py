"""Networks of one variable whose weights are above 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from flow_bridge.univariate import check_monotone, slope_offset, spread
from torch_flows.numerics import at_least_float32, softplus
from torch_flows.registry import register
from torch_flows.univariate.base import Output, UnivariateMap
from torch_flows.univariate.roots import FARTHEST, bracket, invert

FLOOR = 1e-30
"""The least weight, which keeps logarithms finite."""


@register
@dataclass(frozen=True)
class MonotoneNetworkMap(UnivariateMap):
    """A network of one input and one output whose weights are above 0, and are the map's parameters:

        h_1 = a(W_1 x + b_1), h_2 = a(W_2 h_1 + b_2), ..., z = W_n h_(n-1) + b_n.

    a(u) is elu(u) for the first half of the units of a layer and -elu(-u) for the others: onto the reals,
    linear far out, and once continuously differentiable. The log of the slope is that of a product of
    matrices of positive entries, which nothing cancels in. The inverse is searched between 0 and the
    first of 1, 2, 4, ... that is beyond it, and has the gradients of the exact solution.

    Parameters: for each layer the raw numbers r of its weights, W = softplus(r + c), row by row, where
    c makes a raw 0 the inverse of the layer's inputs, and then its biases, which are added to numbers
    spread over (-1, 1), the same in either half. With zeros the slope is between 1 / 2^m and 1 for m
    hidden layers.

    In a ``MaskedAutoregressive`` it is a neural autoregressive flow whose conditioner gives all weights.

    Args:
        hidden_dims: widths of the hidden layers, from 2 on.

    Raises:
        ValueError: for no layers, and for layers of one unit.

    Reference: Huang et al. (2018), Neural autoregressive flows, arXiv:1804.00779.

    Examples:
        >>> import torch, torch_flows
        >>> map = torch_flows.MonotoneNetworkMap((4,))
        >>> z, log_slope = map.forward(torch.zeros(5), torch.zeros(5, map.num_parameters))
        >>> tuple(z.shape), tuple(log_slope.shape)
        ((5,), (5,))
    """

    hidden_dims: Sequence[int] = (8,)

    def __post_init__(self) -> None:
        widths = check_monotone("MonotoneNetworkMap", self.hidden_dims)
        object.__setattr__(self, "hidden_dims", widths)

    @property
    def num_parameters(self) -> int:
        return sum((below + 1) * width for below, width in pairwise((1, *self.hidden_dims, 1)))

    def forward(self, x: Tensor, parameters: Tensor) -> Output:
        z, log_slope = _evaluate(at_least_float32(x), *self._constrained(parameters))
        return z.to(x.dtype), log_slope.to(x.dtype)

    def inverse(self, z: Tensor, parameters: Tensor) -> Output:
        given = self._constrained(parameters)
        wide = at_least_float32(z)
        near = wide.clamp(-FARTHEST, FARTHEST)
        x, log_slope = invert(_evaluate, near, given, *bracket(_evaluate, near, given))
        x = x + (wide - near) * log_slope.exp()
        return x.to(z.dtype), log_slope.to(z.dtype)

    def _constrained(self, parameters: Tensor) -> list[Tensor]:
        """Weights ``(units, inputs, *batch)`` and biases ``(units, *batch)`` of each layer in turn."""
        rows = at_least_float32(parameters).movedim(-1, 0)
        given, start = [], 0
        for below, width in pairwise((1, *self.hidden_dims, 1)):
            stop = start + below * width
            weight = softplus(rows[start:stop] + slope_offset(1 - 1 / below)) + FLOOR
            given.append(weight.unflatten(0, (width, below)))
            first = torch.tensor(spread(width), dtype=rows.dtype, device=rows.device)
            bias = rows[stop : stop + width] + first.view(-1, *[1] * (rows.ndim - 1))
            given.append(bias)
            start = stop + width
        return given


def _evaluate(x: Tensor, *given: Tensor) -> Output:
    values, log_slope = x.unsqueeze(0), torch.zeros_like(x).unsqueeze(0)
    for i, (weight, bias) in enumerate(zip(given[::2], given[1::2], strict=True)):
        if i:
            half = (len(values) + 1) // 2
            signed = torch.cat([values[:half], -values[half:]])
            low = torch.where(signed < 0, signed, 0)
            active = torch.where(signed < 0, low.expm1(), signed)
            values = torch.cat([active[:half], -active[half:]])
            log_slope = log_slope + low
        largest = log_slope.detach().amax(0)
        log_slope = largest + (weight * (log_slope - largest).exp()).sum(1).log()
        values = (weight * values).sum(1) + bias
    return values[0], log_slope[0]
