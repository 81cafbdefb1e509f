"""Models made of couplings."""

from collections.abc import Sequence
from dataclasses import dataclass

from flow_bridge import checks
from jax_flows.bijectors.base import Bijector
from jax_flows.bijectors.coupling import AdditiveCoupling, AffineCoupling
from jax_flows.bijectors.elementwise import Rescale
from jax_flows.bijectors.normalization import BatchNorm
from jax_flows.bijectors.structure import Chain
from jax_flows.distributions import Distribution, StandardNormal
from jax_flows.models.base import Model
from jax_flows.registry import register


@register
@dataclass(frozen=True)
class NICE(Model):
    """AdditiveCoupling repeated, with masks even, odd, even, ..., then Rescale; standard normal base.

    Only Rescale changes volumes: log|det| is the same for every x.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dims: widths of the hidden layers of each coupling's network.
        num_layers: number of couplings.
        context_dim: width of the context, 0 for none.

    Reference: Dinh et al. (2015), NICE, arXiv:1410.8516.
    """

    dim: int
    hidden_dims: Sequence[int] = (64, 64)
    num_layers: int = 4
    context_dim: int = 0

    def _parts(self) -> tuple[Bijector, Distribution]:
        checks.positive_int("NICE", num_layers=self.num_layers)
        layers: list[Bijector] = []
        for i in range(self.num_layers):
            mask = "even" if i % 2 == 0 else "odd"
            layers.append(
                AdditiveCoupling(self.dim, self.hidden_dims, mask, context_dim=self.context_dim)
            )
        return Chain((*layers, Rescale(self.dim))), StandardNormal(self.dim)


@register
@dataclass(frozen=True)
class RealNVP(Model):
    """(AffineCoupling, BatchNorm) repeated, with masks even, odd, even, ...; standard normal base.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dim: width of the two hidden layers of each scale and shift network.
        num_layers: number of couplings.
        context_dim: width of the context, 0 for none.

    71,744 trainable parameters at dim 2. Reference: Dinh et al. (2017), arXiv:1605.08803.

    Examples:
        >>> import jax, jax.numpy as jnp, jax_flows
        >>> flow = jax_flows.RealNVP(dim=2, num_layers=2, context_dim=3)
        >>> variables = flow.init(jax.random.key(0))
        >>> jax.jit(flow.log_prob)(variables, jnp.zeros((5, 2)), jnp.zeros((5, 3))).shape
        (5,)
    """

    dim: int
    hidden_dim: int = 64
    num_layers: int = 8
    context_dim: int = 0

    def _parts(self) -> tuple[Bijector, Distribution]:
        checks.positive_int("RealNVP", num_layers=self.num_layers)
        hidden_dims = (self.hidden_dim, self.hidden_dim)
        layers: list[Bijector] = []
        for i in range(self.num_layers):
            mask = "even" if i % 2 == 0 else "odd"
            layers += [
                AffineCoupling(self.dim, hidden_dims, mask, context_dim=self.context_dim),
                BatchNorm(self.dim),
            ]
        return Chain(tuple(layers)), StandardNormal(self.dim)
