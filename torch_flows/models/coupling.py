"""Models made of couplings."""

from collections.abc import Sequence

from flow_bridge import checks
from torch_flows.bijectors.base import Bijector
from torch_flows.bijectors.coupling import (
    AdditiveCoupling,
    AffineCoupling,
)
from torch_flows.bijectors.elementwise import Rescale
from torch_flows.bijectors.normalization import BatchNorm
from torch_flows.bijectors.structure import Chain
from torch_flows.distributions import StandardNormal
from torch_flows.flows import Flow
from torch_flows.registry import register


@register
class NICE(Flow):
    """AdditiveCoupling repeated, with masks even, odd, even, ..., then Rescale; standard normal base.

    Only Rescale changes volumes: log|det| is the same for every x.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dims: widths of the hidden layers of each coupling's network.
        num_layers: number of couplings.
        context_dim: width of the context, 0 for none.

    Reference: Dinh et al. (2015), NICE, arXiv:1410.8516.
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        num_layers: int = 4,
        context_dim: int = 0,
    ) -> None:
        checks.positive_int("NICE", num_layers=num_layers)
        layers: list[Bijector] = []
        for i in range(num_layers):
            mask = "even" if i % 2 == 0 else "odd"
            layers.append(AdditiveCoupling(dim, hidden_dims, mask, context_dim=context_dim))
        super().__init__(Chain([*layers, Rescale(dim)]), StandardNormal(dim))
        self.dim = dim
        self.hidden_dims = tuple(hidden_dims)
        self.num_layers = num_layers


@register
class RealNVP(Flow):
    """(AffineCoupling, BatchNorm) repeated, with masks even, odd, even, ...; standard normal base.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dim: width of the two hidden layers of each scale and shift network.
        num_layers: number of couplings.
        context_dim: width of the context, 0 for none.

    71,744 trainable parameters at dim 2. Reference: Dinh et al. (2017), arXiv:1605.08803.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.RealNVP(dim=2, num_layers=2, context_dim=3)
        >>> tuple(flow.log_prob(torch.zeros(5, 2), context=torch.zeros(5, 3)).shape)
        (5,)
    """

    def __init__(
        self, dim: int, hidden_dim: int = 64, num_layers: int = 8, context_dim: int = 0
    ) -> None:
        checks.positive_int("RealNVP", num_layers=num_layers)
        layers: list[Bijector] = []
        for i in range(num_layers):
            mask = "even" if i % 2 == 0 else "odd"
            layers += [
                AffineCoupling(dim, (hidden_dim, hidden_dim), mask, context_dim=context_dim),
                BatchNorm(dim),
            ]
        super().__init__(Chain(layers), StandardNormal(dim))
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
