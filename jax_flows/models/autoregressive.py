"""Models made of masked autoregressive maps."""

from collections.abc import Sequence
from dataclasses import dataclass

from flow_bridge import checks
from jax_flows.bijectors.autoregressive import (
    MaskedAffineAutoregressive,
)
from jax_flows.bijectors.base import Bijector
from jax_flows.bijectors.structure import Chain, Invert
from jax_flows.distributions import Distribution, StandardNormal
from jax_flows.models.base import Model
from jax_flows.registry import register


@register
@dataclass(frozen=True)
class MAF(Model):
    """Masked affine autoregressive maps, their orders 0, 1, 2, ... and reversed by turns; standard
    normal base. A density takes one pass of each network, a sample about two.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of each network's hidden layers.
        num_layers: number of maps.
        context_dim: width of the context, 0 for none.

    Reference: Papamakarios et al. (2017), arXiv:1705.07057.

    Examples:
        >>> import jax, jax_flows
        >>> flow = jax_flows.MAF(dim=3, hidden_dims=(8,), num_layers=2)
        >>> variables = flow.init(jax.random.key(0))
        >>> jax.jit(flow.log_prob)(variables, jax.numpy.zeros((7, 3))).shape
        (7,)
    """

    dim: int
    hidden_dims: Sequence[int] = (64, 64)
    num_layers: int = 5
    context_dim: int = 0

    def _parts(self) -> tuple[Bijector, Distribution]:
        layers = _masked_affine_layers(self)
        return Chain(layers), StandardNormal(self.dim)


@register
@dataclass(frozen=True)
class IAF(Model):
    """The maps of ``MAF`` with the directions exchanged: a sample and its density take one pass of
    each network, the density of given data about two.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of each network's hidden layers.
        num_layers: number of maps.
        context_dim: width of the context, 0 for none.

    Reference: Kingma et al. (2016), arXiv:1606.04934.
    """

    dim: int
    hidden_dims: Sequence[int] = (64, 64)
    num_layers: int = 5
    context_dim: int = 0

    def _parts(self) -> tuple[Bijector, Distribution]:
        layers = _masked_affine_layers(self)
        return Invert(Chain(layers)), StandardNormal(self.dim)


def _masked_affine_layers(owner: MAF | IAF) -> tuple[Bijector, ...]:
    checks.positive_int(type(owner).__name__, num_layers=owner.num_layers)
    return tuple(
        MaskedAffineAutoregressive(
            owner.dim,
            owner.hidden_dims,
            None if i % 2 == 0 else "reverse",
            context_dim=owner.context_dim,
        )
        for i in range(owner.num_layers)
    )
