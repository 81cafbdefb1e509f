"""Models made of a differential equation."""

from collections.abc import Sequence
from dataclasses import dataclass

from flow_bridge.networks import Network
from jax_flows.bijectors.base import Bijector
from jax_flows.bijectors.continuous import ContinuousBijector
from jax_flows.models.base import Model
from jax_flows.registry import register


@register
@dataclass(frozen=True)
class NeuralODE(Model):
    """One continuous bijector with the exact trace; standard normal base.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the hidden layers of the vector field.
        solver: ``"dopri5"`` or ``"rk4"``.
        rtol, atol: tolerances of ``"dopri5"``.
        adjoint: gradients by the adjoint equation.
        activation: a name in ``networks.activations.ACTIVATIONS``.
        num_steps: steps of ``"rk4"``.
        kinetic_energy, jacobian_norm: weights of the penalties in training, see
            ``ContinuousBijector``.
        context_dim: width of the context, 0 for none.
        conditioner, time_features: another network in place of the one of those widths, and what it sees
            of the time, see ``ContinuousBijector``.
        time_scaling: scale what it sees and gives by what is normal in standardised data, see there.
        base: the distribution of the latent, a standard normal if not given.

    Reference: Chen et al. (2018), arXiv:1806.07366.
    """

    _trace = "exact"

    dim: int
    hidden_dims: Sequence[int] = (64, 64)
    solver: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    adjoint: bool = True
    activation: str = "tanh"
    num_steps: int = 20
    kinetic_energy: float = 0.0
    jacobian_norm: float = 0.0
    context_dim: int = 0
    conditioner: Network | type | None = None
    time_features: int = 0
    time_scaling: bool = False

    def build_bijector(self) -> Bijector:
        bijector = ContinuousBijector(
            self.dim,
            self.hidden_dims,
            self._trace,
            self.solver,
            self.rtol,
            self.atol,
            self.adjoint,
            self.activation,
            num_steps=self.num_steps,
            kinetic_energy=self.kinetic_energy,
            jacobian_norm=self.jacobian_norm,
            context_dim=self.context_dim,
            conditioner=self.conditioner,
            time_features=self.time_features,
            time_scaling=self.time_scaling,
        )
        return bijector


@register
@dataclass(frozen=True)
class FFJORD(NeuralODE):
    """One continuous bijector with Hutchinson's estimate of the trace in training; standard normal base.

    Evaluation takes the exact trace. Arguments as ``NeuralODE``.

    Reference: Grathwohl et al. (2019), arXiv:1810.01367.

    Examples:
        >>> import jax, jax_flows
        >>> flow = jax_flows.FFJORD(dim=2, hidden_dims=(8,), solver="rk4", num_steps=4)
        >>> variables = flow.init(jax.random.key(0))
        >>> jax.jit(flow.log_prob)(variables, jax.numpy.zeros((7, 2))).shape
        (7,)
    """

    _trace = "hutchinson"
