"""Models made of splines."""

from collections.abc import Sequence
from dataclasses import dataclass

from flow_bridge import checks
from flow_bridge.networks import Network
from jax_flows.bijectors.autoregressive import MaskedAutoregressive
from jax_flows.bijectors.base import Bijector
from jax_flows.bijectors.coupling import Coupling
from jax_flows.bijectors.structure import Chain
from jax_flows.models.base import Model, network_of, normalization_layers, permutation_layers
from jax_flows.networks.mlp import MLP
from jax_flows.registry import register
from jax_flows.univariate.splines import spline_within


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
        activation: a name in ``networks.activations.ACTIVATIONS``.
        conditioner: another network in place of these, ``Network(CLASS, ...)`` or a class.
        permutation: what precedes each spline layer: ``"lu"``, ``"reverse"``, ``"random"``,
            ``"rotation"`` or ``None``; with a fixed half, some of these leave dimensions as they are.
        normalization: what follows each spline layer, ``"batch_norm"``, ``"act_norm"`` or ``None``.
        initial_scale: factor of the first weights of each network's last layer, see ``MLP``.
        base: the distribution of the latent, a standard normal if not given.

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
    activation: str = "leaky_relu"
    conditioner: Network | type | None = None
    permutation: str | None = "lu"
    normalization: str | None = None
    initial_scale: float = 1.0

    def build_bijector(self) -> Bijector:
        owner, dim, context_dim = "NeuralSplineFlow", self.dim, self.context_dim
        checks.positive_int(owner, num_layers=self.num_layers)
        map = spline_within(self.tail_bound, self.num_bins)
        network = network_of(self, MLP)
        layers: list[Bijector] = []
        for i in range(self.num_layers):
            splines: Bijector
            if self.autoregressive:
                splines = MaskedAutoregressive(dim, map, network, None, context_dim)
            else:
                splines = Coupling(dim, map, network, "first_half", context_dim)
            layers += [
                *permutation_layers(owner, self.permutation, dim, i),
                splines,
                *normalization_layers(owner, self.normalization, dim),
            ]
        return Chain(tuple(layers))
