"""Models made of a differential equation."""

from collections.abc import Sequence

from torch_flows.bijectors.continuous import ContinuousBijector
from torch_flows.distributions import StandardNormal
from torch_flows.flows import Flow
from torch_flows.registry import register


@register
class NeuralODE(Flow):
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

    Reference: Chen et al. (2018), arXiv:1806.07366.
    """

    _trace = "exact"

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        solver: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        adjoint: bool = True,
        activation: str = "tanh",
        num_steps: int = 20,
        kinetic_energy: float = 0.0,
        jacobian_norm: float = 0.0,
        context_dim: int = 0,
    ) -> None:
        bijector = ContinuousBijector(
            dim,
            hidden_dims,
            self._trace,
            solver,
            rtol,
            atol,
            adjoint,
            activation,
            num_steps=num_steps,
            kinetic_energy=kinetic_energy,
            jacobian_norm=jacobian_norm,
            context_dim=context_dim,
        )
        super().__init__(bijector, StandardNormal(dim))
        self.dim = dim
        self.hidden_dims = tuple(hidden_dims)
        self.solver = solver
        self.rtol = rtol
        self.atol = atol
        self.adjoint = adjoint
        self.activation = activation
        self.num_steps = num_steps
        self.kinetic_energy = kinetic_energy
        self.jacobian_norm = jacobian_norm


@register
class FFJORD(NeuralODE):
    """One continuous bijector with Hutchinson's estimate of the trace in training; standard normal base.

    Evaluation takes the exact trace. Arguments as ``NeuralODE``.

    Reference: Grathwohl et al. (2019), arXiv:1810.01367.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.FFJORD(dim=2, hidden_dims=(8,), solver="rk4", num_steps=4)
        >>> tuple(flow.log_prob(torch.zeros(7, 2)).shape)
        (7,)
    """

    _trace = "hutchinson"
