"""Models made of couplings."""

from collections.abc import Sequence
from dataclasses import dataclass

from flow_bridge import checks
from flow_bridge.networks import Network
from torch_flows.bijectors.base import Bijector
from torch_flows.bijectors.coupling import Coupling
from torch_flows.bijectors.elementwise import Rescale
from torch_flows.bijectors.structure import Chain
from torch_flows.models.base import Model, network_of, normalization_layers, permutation_layers
from torch_flows.networks.mlp import MLP, SeparateMLPs
from torch_flows.registry import register
from torch_flows.univariate.affine import AffineMap, ShiftMap


@register
@dataclass(eq=False, repr=False)
class NICE(Model):
    """AdditiveCoupling repeated, with masks even, odd, even, ..., then Rescale; standard normal base.

    Only Rescale changes volumes: log|det| is the same for every x.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dims: widths of the hidden layers of each coupling's network.
        num_layers: number of couplings.
        context_dim: width of the context, 0 for none.
        activation: a name in ``networks.activations.ACTIVATIONS``.
        conditioner: another network in place of these, ``Network(CLASS, ...)`` or a class.
        normalization, permutation: what follows each coupling, see ``RealNVP``.
        initial_scale: factor of the first weights of each network's last layer, see ``MLP``.
        base: the distribution of the latent, a standard normal if not given.

    Reference: Dinh et al. (2015), NICE, arXiv:1410.8516.
    """

    dim: int
    hidden_dims: Sequence[int] = (64, 64)
    num_layers: int = 4
    context_dim: int = 0
    activation: str = "leaky_relu"
    conditioner: Network | type | None = None
    normalization: str | None = None
    permutation: str | None = None
    initial_scale: float = 1.0

    def build_bijector(self) -> Bijector:
        checks.positive_int("NICE", num_layers=self.num_layers)
        network = network_of(self, MLP)
        layers: list[Bijector] = []
        for i in range(self.num_layers):
            mask = "even" if i % 2 == 0 else "odd"
            layers += [
                Coupling(self.dim, ShiftMap(), network, mask, self.context_dim),
                *normalization_layers("NICE", self.normalization, self.dim),
                *permutation_layers("NICE", self.permutation, self.dim, i),
            ]
        return Chain((*layers, Rescale(self.dim)))


@register
@dataclass(eq=False, repr=False)
class RealNVP(Model):
    """(AffineCoupling, BatchNorm) repeated, with masks even, odd, even, ...; standard normal base.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dims: widths of the hidden layers of each scale and shift network.
        num_layers: number of couplings.
        context_dim: width of the context, 0 for none.
        activation: a name in ``networks.activations.ACTIVATIONS``.
        conditioner: another network in place of these, ``Network(CLASS, ...)`` or a class.
        scale, bound: see ``AffineMap``.
        normalization: what follows each coupling, ``"batch_norm"``, ``"act_norm"`` or ``None``.
        permutation: what follows that, ``"reverse"``, ``"random"``, ``"rotation"``, ``"lu"`` or ``None``.
        offset: see ``AffineMap``.
        initial_scale: factor of the first weights of each network's last layer, see ``MLP``.
        base: the distribution of the latent, a standard normal if not given.

    71,744 trainable parameters at dim 2. Reference: Dinh et al. (2017), arXiv:1605.08803.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.RealNVP(dim=2, num_layers=2, context_dim=3)
        >>> tuple(flow.log_prob(torch.zeros(5, 2), context=torch.zeros(5, 3)).shape)
        (5,)
    """

    dim: int
    hidden_dims: Sequence[int] = (64, 64)
    num_layers: int = 8
    context_dim: int = 0
    activation: str = "leaky_relu"
    conditioner: Network | type | None = None
    scale: str = "tanh"
    bound: float = 1.0
    normalization: str | None = "batch_norm"
    permutation: str | None = None
    offset: float | None = None
    initial_scale: float = 1.0

    def build_bijector(self) -> Bijector:
        checks.positive_int("RealNVP", num_layers=self.num_layers)
        map = AffineMap(self.scale, self.bound, self.offset)
        network = network_of(self, SeparateMLPs)
        layers: list[Bijector] = []
        for i in range(self.num_layers):
            mask = "even" if i % 2 == 0 else "odd"
            layers += [
                Coupling(self.dim, map, network, mask, self.context_dim),
                *normalization_layers("RealNVP", self.normalization, self.dim),
                *permutation_layers("RealNVP", self.permutation, self.dim, i),
            ]
        return Chain(tuple(layers))
