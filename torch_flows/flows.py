"""A flow is a bijector and a base distribution; the named models are flows."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flow_bridge import checks
from torch_flows.bijectors.base import Bijector, Chain, Output, check_input
from torch_flows.bijectors.continuous import ContinuousBijector
from torch_flows.bijectors.coupling import AffineCoupling
from torch_flows.bijectors.elementwise import Affine
from torch_flows.bijectors.normalization import BatchNorm
from torch_flows.bijectors.residual import InvertibleResidual, Planar, Radial, Sylvester
from torch_flows.distributions import Distribution, StandardNormal
from torch_flows.registry import register


@register
class Flow(nn.Module):
    """The density of x whose latent z = bijector(x) has the base density.

    log p(x) = log p_base(z) + log|det dz/dx|.

    Args:
        bijector: maps data to latent.
        base: the distribution of the latent.

    Raises:
        ValueError: if the two are of different event shapes.
    """

    is_architecture = True

    def __init__(self, bijector: Bijector, base: Distribution) -> None:
        super().__init__()
        name = type(self).__name__
        self.event_shape = checks.common_event_shape(name, [bijector.event_shape, base.event_shape])
        self.context_dim = bijector.context_dim
        self.bijector = bijector
        self.base = base

    def forward(self, x: Tensor, context: Tensor | None = None) -> Output:
        """Data to latent.

        Args:
            x: shape ``(*batch, *event_shape)``, floating point, of the weights' dtype.
            context: shape ``(*batch, context_dim)`` or broadcastable to it.

        Returns:
            z of x's shape and log|det dz/dx| of shape ``(*batch,)``.

        Raises:
            ValueError: for a wrong shape, and for a context that is missing or unexpected.
            TypeError: for a wrong dtype.
        """
        return self.bijector._forward(x, check_input(self, "x", x, context))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Output:
        """Latent to data: x of z's shape and log|det dx/dz|. Arguments and errors as ``forward``."""
        return self.bijector._inverse(z, check_input(self, "z", z, context))

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density in nats, shape ``(*batch,)``. Arguments and errors as ``forward``.

        A row of x with a NaN gives NaN in that row only.
        """
        z, log_det = self.forward(x, context)
        return self.base.log_prob(z) + log_det

    def sample(
        self,
        num_samples: int | Sequence[int],
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples of shape ``(num_samples, *context_batch, *event_shape)``, differentiable.

        Args:
            num_samples: how many for each row of the context, an integer or a shape.
            context: shape ``(*context_batch, context_dim)``.
            generator: the source of randomness.
        """
        return self.sample_and_log_prob(num_samples, context, generator)[0]

    def sample_and_log_prob(
        self,
        num_samples: int | Sequence[int],
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Output:
        """Samples and their log-densities, in one pass. Arguments as ``sample``."""
        shape = (num_samples,) if isinstance(num_samples, int) else tuple(num_samples)
        context_batch = () if context is None else context.shape[:-1]
        z = self.base.sample((*shape, *context_batch), generator)
        x, log_det = self.inverse(z, context)
        return x, self.base.log_prob(z) - log_det


@register
class RealNVP(Flow):
    """(AffineCoupling, BatchNorm) repeated, with masks even, odd, even, ...; standard normal base.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dim: width of the two hidden layers of each scale and shift network.
        num_layers: number of couplings.
        context_dim: width of the context, 0 for none.

    71,744 trainable parameters at dim 2. Reference: Dinh et al. (2017), arXiv:1605.08803.
    """

    def __init__(
        self, dim: int, hidden_dim: int = 64, num_layers: int = 8, context_dim: int = 0
    ) -> None:
        checks.positive_int("RealNVP", num_layers=num_layers)
        layers: list[Bijector] = []
        for i in range(num_layers):
            mask = "even" if i % 2 == 0 else "odd"
            layers += [
                AffineCoupling(dim, (hidden_dim, hidden_dim), mask, context_dim=context_dim),
                BatchNorm(dim),
            ]
        super().__init__(Chain(layers), StandardNormal(dim))
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers


@register
class PlanarFlow(Flow):
    """Planar maps one after the other; standard normal base.

    Args:
        dim: number of dimensions.
        num_layers: number of planar maps.
        context_dim: width of the context, 0 for none.

    160 trainable parameters at dim 2. Reference: Rezende and Mohamed (2015), arXiv:1505.05770.
    """

    def __init__(self, dim: int, num_layers: int = 32, context_dim: int = 0) -> None:
        checks.positive_int("PlanarFlow", num_layers=num_layers)
        layers = [Planar(dim, context_dim) for _ in range(num_layers)]
        super().__init__(Chain(layers), StandardNormal(dim))
        self.dim = dim
        self.num_layers = num_layers


@register
class RadialFlow(Flow):
    """Radial maps one after the other; standard normal base.

    Args:
        dim: number of dimensions.
        num_layers: number of radial maps.
        context_dim: width of the context, 0 for none.

    Reference: Rezende and Mohamed (2015), arXiv:1505.05770.
    """

    def __init__(self, dim: int, num_layers: int = 32, context_dim: int = 0) -> None:
        checks.positive_int("RadialFlow", num_layers=num_layers)
        layers = [Radial(dim, context_dim) for _ in range(num_layers)]
        super().__init__(Chain(layers), StandardNormal(dim))
        self.dim = dim
        self.num_layers = num_layers


@register
class SylvesterFlow(Flow):
    """Sylvester maps one after the other; standard normal base.

    Args:
        dim: number of dimensions.
        num_layers: number of Sylvester maps.
        rank: of each map, ``dim`` if not given.
        context_dim: width of the context, 0 for none.

    Reference: van den Berg et al. (2018), arXiv:1803.05649.
    """

    def __init__(
        self, dim: int, num_layers: int = 8, rank: int | None = None, context_dim: int = 0
    ) -> None:
        checks.positive_int("SylvesterFlow", num_layers=num_layers)
        width = dim if rank is None else rank
        layers = [Sylvester(dim, width, context_dim) for _ in range(num_layers)]
        super().__init__(Chain(layers), StandardNormal(dim))
        self.dim = dim
        self.num_layers = num_layers
        self.rank = rank


@register
class ResidualFlow(Flow):
    """(Affine, InvertibleResidual) repeated, then Affine; standard normal base.

    The affine layers let the blocks, whose slopes stay between 1 - L and 1 + L, work at any scale.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the hidden layers of each block.
        num_blocks: number of residual blocks.
        lipschitz: the bound on each block's Lipschitz constant.
        log_det: ``"exact"``, or ``"series"`` for an unbiased estimate in training (large ``dim``).
        activation: a name in ``networks.ACTIVATIONS``.
        context_dim: width of the context, 0 for none.

    Reference: Behrmann et al. (2019), arXiv:1811.00995; Chen et al. (2019), arXiv:1906.02735.
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        num_blocks: int = 8,
        lipschitz: float = 0.97,
        log_det: str = "exact",
        activation: str = "silu",
        context_dim: int = 0,
    ) -> None:
        checks.positive_int("ResidualFlow", num_blocks=num_blocks)
        layers: list[Bijector] = []
        for _ in range(num_blocks):
            layers += [
                Affine(dim),
                InvertibleResidual(
                    dim, hidden_dims, lipschitz, log_det, activation, context_dim=context_dim
                ),
            ]
        super().__init__(Chain([*layers, Affine(dim)]), StandardNormal(dim))
        self.dim = dim
        self.hidden_dims = tuple(hidden_dims)
        self.num_blocks = num_blocks
        self.lipschitz = lipschitz
        self.log_det = log_det
        self.activation = activation


@register
class NeuralODE(Flow):
    """One continuous bijector with the exact trace; standard normal base.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the hidden layers of the vector field.
        solver: ``"dopri5"`` or ``"rk4"``.
        rtol, atol: tolerances of ``"dopri5"``.
        adjoint: gradients by the adjoint equation.
        activation: a name in ``networks.ACTIVATIONS``.
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
    """

    _trace = "hutchinson"
