"""Models made of masked autoregressive maps."""

from collections.abc import Sequence

from flow_bridge import checks
from torch_flows.bijectors.autoregressive import (
    MaskedAffineAutoregressive,
)
from torch_flows.bijectors.base import Bijector
from torch_flows.bijectors.structure import Chain, Invert
from torch_flows.distributions import StandardNormal
from torch_flows.flows import Flow
from torch_flows.registry import register


@register
class MAF(Flow):
    """Masked affine autoregressive maps, their orders 0, 1, 2, ... and reversed by turns; standard
    normal base. A density takes one pass of each network, a sample about two.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of each network's hidden layers.
        num_layers: number of maps.
        context_dim: width of the context, 0 for none.

    Reference: Papamakarios et al. (2017), arXiv:1705.07057.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.MAF(dim=3, hidden_dims=(8,), num_layers=2)
        >>> tuple(flow.log_prob(torch.zeros(7, 3)).shape)
        (7,)
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        num_layers: int = 5,
        context_dim: int = 0,
    ) -> None:
        layers = _masked_affine_layers("MAF", dim, hidden_dims, num_layers, context_dim)
        super().__init__(Chain(layers), StandardNormal(dim))
        self.dim = dim
        self.hidden_dims = tuple(hidden_dims)
        self.num_layers = num_layers


@register
class IAF(Flow):
    """The maps of ``MAF`` with the directions exchanged: a sample and its density take one pass of
    each network, the density of given data about two.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of each network's hidden layers.
        num_layers: number of maps.
        context_dim: width of the context, 0 for none.

    Reference: Kingma et al. (2016), arXiv:1606.04934.
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        num_layers: int = 5,
        context_dim: int = 0,
    ) -> None:
        layers = _masked_affine_layers("IAF", dim, hidden_dims, num_layers, context_dim)
        super().__init__(Invert(Chain(layers)), StandardNormal(dim))
        self.dim = dim
        self.hidden_dims = tuple(hidden_dims)
        self.num_layers = num_layers


def _masked_affine_layers(
    owner: str, dim: int, hidden_dims: Sequence[int], num_layers: int, context_dim: int
) -> list[Bijector]:
    checks.positive_int(owner, num_layers=num_layers)
    return [
        MaskedAffineAutoregressive(
            dim, hidden_dims, None if i % 2 == 0 else "reverse", context_dim=context_dim
        )
        for i in range(num_layers)
    ]
