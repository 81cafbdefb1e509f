"""Models made of splines."""

from collections.abc import Sequence
from dataclasses import dataclass

from flow_bridge import checks
from jax_flows.bijectors.autoregressive import (
    MaskedSplineAutoregressive,
)
from jax_flows.bijectors.base import Bijector
from jax_flows.bijectors.coupling import SplineCoupling
from jax_flows.bijectors.linear import LULinear
from jax_flows.bijectors.structure import Chain
from jax_flows.distributions import Distribution, StandardNormal
from jax_flows.models.base import Model
from jax_flows.registry import register


@register
@dataclass(frozen=True)
class NeuralSplineFlow(Model):
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
        >>> import jax, jax_flows
        >>> flow = jax_flows.NeuralSplineFlow(dim=2, hidden_dims=(8,), num_layers=2)
        >>> variables = flow.init(jax.random.key(0))
        >>> jax.jit(flow.log_prob)(variables, jax.numpy.zeros((7, 2))).shape
        (7,)
    """

    dim: int
    hidden_dims: Sequence[int] = (128, 128)
    num_layers: int = 6
    num_bins: int = 8
    tail_bound: float = 5.0
    autoregressive: bool = False
    context_dim: int = 0

    def _parts(self) -> tuple[Bijector, Distribution]:
        checks.positive_int("NeuralSplineFlow", num_layers=self.num_layers)
        layers: list[Bijector] = []
        for _ in range(self.num_layers):
            splines: Bijector
            if self.autoregressive:
                splines = MaskedSplineAutoregressive(
                    self.dim,
                    self.hidden_dims,
                    None,
                    self.num_bins,
                    self.tail_bound,
                    context_dim=self.context_dim,
                )
            else:
                splines = SplineCoupling(
                    self.dim,
                    self.hidden_dims,
                    "first_half",
                    self.num_bins,
                    self.tail_bound,
                    context_dim=self.context_dim,
                )
            layers += [LULinear(self.dim), splines]
        return Chain(tuple(layers)), StandardNormal(self.dim)
