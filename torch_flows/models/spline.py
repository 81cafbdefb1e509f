"""Models made of splines."""

from collections.abc import Sequence

from flow_bridge import checks
from torch_flows.bijectors.autoregressive import (
    MaskedSplineAutoregressive,
)
from torch_flows.bijectors.base import Bijector
from torch_flows.bijectors.coupling import (
    SplineCoupling,
)
from torch_flows.bijectors.linear import LULinear
from torch_flows.bijectors.structure import Chain
from torch_flows.distributions import StandardNormal
from torch_flows.flows import Flow
from torch_flows.registry import register


@register
class NeuralSplineFlow(Flow):
    """(LULinear, SplineCoupling) repeated; standard normal base.

    The linear maps start as reversals and every coupling fixes the first half, so that all blocks are
    equal. ``autoregressive=True`` has MaskedSplineAutoregressive in place of the couplings.

    Args:
        dim: number of dimensions, at least 2 with couplings.
        hidden_dims: widths of the hidden layers of each spline's network.
        num_layers: number of spline layers.
        num_bins: bins of each spline, below 1000.
        tail_bound: where the splines become the identity; standardise the data to well inside it.
        autoregressive: whether each dimension depends on all before it, or half on the other half.
        context_dim: width of the context, 0 for none.

    Reference: Durkan et al. (2019), Neural Spline Flows, arXiv:1906.04032.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.NeuralSplineFlow(dim=2, hidden_dims=(8,), num_layers=2)
        >>> tuple(flow.log_prob(torch.zeros(7, 2)).shape)
        (7,)
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (128, 128),
        num_layers: int = 6,
        num_bins: int = 8,
        tail_bound: float = 5.0,
        autoregressive: bool = False,
        context_dim: int = 0,
    ) -> None:
        checks.positive_int("NeuralSplineFlow", num_layers=num_layers)
        layers: list[Bijector] = []
        for _ in range(num_layers):
            splines: Bijector
            if autoregressive:
                splines = MaskedSplineAutoregressive(
                    dim, hidden_dims, None, num_bins, tail_bound, context_dim=context_dim
                )
            else:
                splines = SplineCoupling(
                    dim, hidden_dims, "first_half", num_bins, tail_bound, context_dim=context_dim
                )
            layers += [LULinear(dim), splines]
        super().__init__(Chain(layers), StandardNormal(dim))
        self.dim = dim
        self.hidden_dims = tuple(hidden_dims)
        self.num_layers = num_layers
        self.num_bins = num_bins
        self.tail_bound = tail_bound
        self.autoregressive = autoregressive
