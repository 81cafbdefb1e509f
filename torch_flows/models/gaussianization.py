"""Gaussianization flows."""

from dataclasses import dataclass

from flow_bridge import checks
from torch_flows.bijectors.base import Bijector
from torch_flows.bijectors.elementwise import Elementwise
from torch_flows.bijectors.linear import Rotation
from torch_flows.bijectors.structure import Chain
from torch_flows.models.base import Model
from torch_flows.registry import register
from torch_flows.univariate.mixture import LogisticMixtureMap


@register
@dataclass(eq=False, repr=False)
class GaussianizationFlow(Model):
    """Elementwise ``LogisticMixtureMap`` with normal outputs, and a learnable rotation after each but
    the last; standard normal base. Each layer makes the marginals normal, and the rotation shows it
    others. No networks, unless there is a context: few weights, and none of it autoregressive.

    Args:
        dim: number of dimensions.
        num_layers: number of elementwise maps.
        num_components: logistics of each entry.
        context_dim: width of the context, 0 for none; the mixtures are functions of it.
        bound: see ``LogisticMixtureMap``.
        base: the distribution of the latent, a standard normal if not given.

    Reference: Meng et al. (2020), arXiv:2003.01941.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.GaussianizationFlow(dim=2, num_layers=2)
        >>> tuple(flow.log_prob(torch.zeros(7, 2)).shape)
        (7,)
    """

    dim: int
    num_layers: int = 6
    num_components: int = 8
    context_dim: int = 0
    bound: float = 5.0

    def build_bijector(self) -> Bijector:
        checks.positive_int(type(self).__name__, num_layers=self.num_layers)
        map = LogisticMixtureMap(self.num_components, self.bound, "normal")
        layers: list[Bijector] = []
        for i in range(self.num_layers):
            if i:
                layers.append(Rotation(self.dim))
            layers.append(Elementwise(self.dim, map, self.context_dim))
        return Chain(tuple(layers))
