"""Models made of planar, radial, Sylvester and residual maps."""

from collections.abc import Sequence
from dataclasses import dataclass

from flow_bridge import checks
from torch_flows.bijectors.base import Bijector
from torch_flows.bijectors.planar import Planar, Radial, Sylvester
from torch_flows.bijectors.residual import InvertibleResidual
from torch_flows.bijectors.structure import Chain
from torch_flows.models.base import Model, normalization_layers
from torch_flows.registry import register


@register
@dataclass(eq=False, repr=False)
class PlanarFlow(Model):
    """Planar maps one after the other; standard normal base.

    Args:
        dim: number of dimensions.
        num_layers: number of planar maps.
        context_dim: width of the context, 0 for none.
        base: the distribution of the latent, a standard normal if not given.

    160 trainable parameters at dim 2. Reference: Rezende and Mohamed (2015), arXiv:1505.05770.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.PlanarFlow(dim=2, num_layers=4)
        >>> tuple(flow.log_prob(torch.zeros(7, 2)).shape)
        (7,)
    """

    dim: int
    num_layers: int = 32
    context_dim: int = 0

    def build_bijector(self) -> Bijector:
        checks.positive_int("PlanarFlow", num_layers=self.num_layers)
        layers = [Planar(self.dim, self.context_dim) for _ in range(self.num_layers)]
        return Chain(tuple(layers))


@register
@dataclass(eq=False, repr=False)
class RadialFlow(Model):
    """Radial maps one after the other; standard normal base.

    Args:
        dim: number of dimensions.
        num_layers: number of radial maps.
        context_dim: width of the context, 0 for none.
        base: the distribution of the latent, a standard normal if not given.

    Reference: Rezende and Mohamed (2015), arXiv:1505.05770.
    """

    dim: int
    num_layers: int = 32
    context_dim: int = 0

    def build_bijector(self) -> Bijector:
        checks.positive_int("RadialFlow", num_layers=self.num_layers)
        layers = [Radial(self.dim, self.context_dim) for _ in range(self.num_layers)]
        return Chain(tuple(layers))


@register
@dataclass(eq=False, repr=False)
class SylvesterFlow(Model):
    """Sylvester maps one after the other; standard normal base.

    Args:
        dim: number of dimensions.
        num_layers: number of Sylvester maps.
        rank: of each map, ``dim`` if not given.
        context_dim: width of the context, 0 for none.
        base: the distribution of the latent, a standard normal if not given.

    Reference: van den Berg et al. (2018), arXiv:1803.05649.
    """

    dim: int
    num_layers: int = 8
    rank: int | None = None
    context_dim: int = 0

    def build_bijector(self) -> Bijector:
        checks.positive_int("SylvesterFlow", num_layers=self.num_layers)
        width = self.dim if self.rank is None else self.rank
        layers = [Sylvester(self.dim, width, self.context_dim) for _ in range(self.num_layers)]
        return Chain(tuple(layers))


@register
@dataclass(eq=False, repr=False)
class ResidualFlow(Model):
    """(ActNorm, InvertibleResidual) repeated, then ActNorm; standard normal base.

    The ActNorm layers let the blocks, whose slopes stay between 1 - L and 1 + L, work at any scale.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the hidden layers of each block.
        num_blocks: number of residual blocks.
        lipschitz: the bound on each block's Lipschitz constant.
        log_det: ``"exact"``, or ``"series"`` for an unbiased estimate in training (large ``dim``).
        activation: a name in ``networks.activations.ACTIVATIONS``.
        context_dim: width of the context, 0 for none.
        normalization: what precedes each block and ends the flow, ``"act_norm"``, ``"batch_norm"`` or
            ``None``.
        base: the distribution of the latent, a standard normal if not given.

    Reference: Behrmann et al. (2019), arXiv:1811.00995; Chen et al. (2019), arXiv:1906.02735.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.ResidualFlow(dim=2, hidden_dims=(8,), num_blocks=2)
        >>> tuple(flow.log_prob(torch.zeros(7, 2)).shape)
        (7,)
    """

    dim: int
    hidden_dims: Sequence[int] = (64, 64)
    num_blocks: int = 8
    lipschitz: float = 0.97
    log_det: str = "exact"
    activation: str = "silu"
    context_dim: int = 0
    normalization: str | None = "act_norm"

    def build_bijector(self) -> Bijector:
        checks.positive_int("ResidualFlow", num_blocks=self.num_blocks)
        layers: list[Bijector] = []
        for _ in range(self.num_blocks):
            layers += [
                *normalization_layers("ResidualFlow", self.normalization, self.dim),
                InvertibleResidual(
                    self.dim,
                    self.hidden_dims,
                    self.lipschitz,
                    self.log_det,
                    self.activation,
                    context_dim=self.context_dim,
                ),
            ]
        last = normalization_layers("ResidualFlow", self.normalization, self.dim)
        return Chain((*layers, *last))
