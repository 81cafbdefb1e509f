"""Models made of masked autoregressive maps."""

from collections.abc import Sequence
from dataclasses import dataclass

from flow_bridge import checks
from flow_bridge.networks import Network
from torch_flows.bijectors.autoregressive import MaskedAutoregressive
from torch_flows.bijectors.base import Bijector
from torch_flows.bijectors.block_autoregressive import BlockAutoregressive
from torch_flows.bijectors.structure import Chain, Invert
from torch_flows.models.base import Model, network_of, normalization_layers, permutation_layers
from torch_flows.networks.mlp import MLP
from torch_flows.registry import register
from torch_flows.univariate.affine import AffineMap
from torch_flows.univariate.mixture import DenseSigmoidMap, LogisticMixtureMap


@register
@dataclass(eq=False, repr=False)
class MAF(Model):
    """Masked affine autoregressive maps, their orders 0, 1, 2, ... and reversed by turns; standard
    normal base. A density takes one pass of each network, a sample about two.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of each network's hidden layers.
        num_layers: number of maps.
        context_dim: width of the context, 0 for none.
        activation: a name in ``networks.activations.ACTIVATIONS``.
        conditioner: another network in place of these, ``Network(CLASS, ...)`` or a class.
        scale, bound: see ``AffineMap``.
        order: of the maps, ``"alternate"`` (0, 1, 2, ... and reversed by turns), or ``"random"``.
        normalization: what follows each map, ``"batch_norm"``, ``"act_norm"`` or ``None``.
        permutation: what follows that, ``"reverse"``, ``"random"``, ``"rotation"``, ``"lu"`` or ``None``.
        offset: see ``AffineMap``.
        initial_scale: factor of the first weights of each network's last layer, see ``MLP``.
        base: the distribution of the latent, a standard normal if not given.

    Reference: Papamakarios et al. (2017), arXiv:1705.07057.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.MAF(dim=3, hidden_dims=(8,), num_layers=2)
        >>> tuple(flow.log_prob(torch.zeros(7, 3)).shape)
        (7,)
    """

    dim: int
    hidden_dims: Sequence[int] = (64, 64)
    num_layers: int = 5
    context_dim: int = 0
    activation: str = "leaky_relu"
    conditioner: Network | type | None = None
    scale: str = "tanh"
    bound: float = 2.0
    order: str = "alternate"
    normalization: str | None = None
    permutation: str | None = None
    offset: float | None = None
    initial_scale: float = 1.0

    def build_bijector(self) -> Bijector:
        owner = type(self).__name__
        checks.positive_int(owner, num_layers=self.num_layers)
        checks.one_of(owner, "order", self.order, ("alternate", "random"))
        map = AffineMap(self.scale, self.bound, self.offset, order="shift_divide")
        network = network_of(self, MLP)
        layers: list[Bijector] = []
        for i in range(self.num_layers):
            order = f"random:{i}" if self.order == "random" else ("reverse" if i % 2 else None)
            layers += [
                MaskedAutoregressive(self.dim, map, network, order, self.context_dim),
                *normalization_layers(owner, self.normalization, self.dim),
                *permutation_layers(owner, self.permutation, self.dim, i),
            ]
        return Chain(tuple(layers))


@register
@dataclass(eq=False, repr=False)
class IAF(MAF):
    """The maps of ``MAF`` with the directions exchanged: a sample and its density take one pass of
    each network, the density of given data about two. Arguments as ``MAF``.

    Reference: Kingma et al. (2016), arXiv:1606.04934.
    """

    def build_bijector(self) -> Bijector:
        return Invert(super().build_bijector())


@register
@dataclass(eq=False, repr=False)
class NAF(Model):
    """Masked autoregressive maps by ``LogisticMixtureMap``, their orders 0, 1, 2, ... and reversed by
    turns; standard normal base: neural autoregressive flows whose monotone network is a deep sigmoidal
    flow of one layer, or with ``dense_dims`` a deep dense one, by ``DenseSigmoidMap``. A density takes one
    pass of each network, a sample about two and a search for the root of each entry.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of each network's hidden layers.
        num_layers: number of maps.
        num_components: sigmoids of each entry.
        context_dim: width of the context, 0 for none.
        activation: a name in ``networks.activations.ACTIVATIONS``.
        conditioner: another network in place of these, ``Network(CLASS, ...)`` or a class.
        bound: see ``LogisticMixtureMap``.
        initial_scale: factor of the first weights of each network's last layer, see ``MLP``.
        base: the distribution of the latent, a standard normal if not given.
        dense_dims: the sigmoids of each layer of a deep dense sigmoidal flow, in place of ``num_components``.

    Reference: Huang et al. (2018), arXiv:1804.00779.
    """

    dim: int
    hidden_dims: Sequence[int] = (64, 64)
    num_layers: int = 3
    num_components: int = 8
    context_dim: int = 0
    activation: str = "leaky_relu"
    conditioner: Network | type | None = None
    bound: float = 5.0
    initial_scale: float = 1.0
    dense_dims: Sequence[int] | None = None

    def build_bijector(self) -> Bijector:
        owner = type(self).__name__
        checks.positive_int(owner, num_layers=self.num_layers)
        map = (
            LogisticMixtureMap(self.num_components, self.bound)
            if self.dense_dims is None
            else DenseSigmoidMap(self.dense_dims, self.bound)
        )
        network = network_of(self, MLP)
        layers = [
            MaskedAutoregressive(
                self.dim, map, network, "reverse" if i % 2 else None, self.context_dim
            )
            for i in range(self.num_layers)
        ]
        return Chain(tuple(layers))


@register
@dataclass(eq=False, repr=False)
class BNAF(Model):
    """Block neural autoregressive flows: ``BlockAutoregressive`` networks, the dimensions reversed between
    them, all but the last with a gate; standard normal base. A density takes one pass of each network, a
    sample a search for each dimension in turn.

    Args:
        dim: number of dimensions.
        hidden_dims: units of each dimension in each hidden layer.
        num_layers: number of networks.
        context_dim: width of the context, 0 for none.
        permutation: what is between them, ``"reverse"``, ``"random"``, ``"rotation"``, ``"lu"`` or ``None``.
        base: the distribution of the latent, a standard normal if not given.

    Reference: De Cao et al. (2019), arXiv:1904.04676.
    """

    dim: int
    hidden_dims: Sequence[int] = (8, 8)
    num_layers: int = 3
    context_dim: int = 0
    permutation: str | None = "reverse"

    def build_bijector(self) -> Bijector:
        owner = type(self).__name__
        checks.positive_int(owner, num_layers=self.num_layers)
        layers: list[Bijector] = []
        for i in range(self.num_layers):
            gate = i + 1 < self.num_layers
            if i:
                layers += permutation_layers(owner, self.permutation, self.dim, i)
            layers.append(BlockAutoregressive(self.dim, self.hidden_dims, self.context_dim, gate))
        return Chain(tuple(layers))
