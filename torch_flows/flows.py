"""A flow is a bijector and a base distribution; the named models are flows."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flow_bridge import checks
from torch_flows import interop
from torch_flows.bijectors.autoregressive import (
    MaskedAffineAutoregressive,
    MaskedSplineAutoregressive,
)
from torch_flows.bijectors.base import Bijector, Chain, Invert, Output, check_input, initialize
from torch_flows.bijectors.continuous import ContinuousBijector
from torch_flows.bijectors.coupling import AdditiveCoupling, AffineCoupling, SplineCoupling
from torch_flows.bijectors.elementwise import Rescale
from torch_flows.bijectors.image import ConvAffineCoupling, Invertible1x1Conv, Split, Squeeze
from torch_flows.bijectors.linear import LULinear
from torch_flows.bijectors.normalization import ActNorm, BatchNorm
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
        ValueError: if the latent and the base are of different event shapes.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.Flow(torch_flows.Planar(2), torch_flows.StandardNormal(2))
        >>> tuple(flow.log_prob(torch.zeros(5, 2)).shape)
        (5,)
        >>> x, log_prob = flow.sample_and_log_prob((3, 4))
        >>> tuple(x.shape), tuple(log_prob.shape)
        ((3, 4, 2), (3, 4))
    """

    is_architecture = True

    def __init__(self, bijector: Bijector, base: Distribution) -> None:
        super().__init__()
        name = type(self).__name__
        checks.instances(name, "bijector", [bijector], Bijector)
        checks.instances(name, "base", [base], Distribution)
        latent_shape = checks.common_event_shape(name, [bijector.latent_shape, base.event_shape])
        self.latent_shape = latent_shape
        self.event_shape = bijector.map_shape(latent_shape, inverse=True)
        self.context_dim = bijector.context_dim
        self.bijector = bijector
        self.base = base

    def forward(self, x: Tensor, context: Tensor | None = None) -> Output:
        """Data to latent.

        Args:
            x: shape ``(*batch, *event_shape)``, floating point, of the weights' dtype.
            context: shape ``(*batch, context_dim)`` or broadcastable to it.

        Returns:
            z of shape ``(*batch, *latent_shape)`` and log|det dz/dx| of shape ``(*batch,)``.

        Raises:
            ValueError: for a wrong shape, and for a context that is missing or unexpected.
            TypeError: for a wrong dtype.
        """
        return self.bijector._forward(x, check_input(self, "x", x, context))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Output:
        """Latent to data: x and log|det dx/dz| for z. Arguments and errors as ``forward``."""
        return self.bijector._inverse(z, check_input(self, "z", z, context))

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set what is initialised from data (``ActNorm``) in place, see ``Bijector.initialize``."""
        initialize(self, self.bijector, x, context)

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

    def distribution(
        self, context: Tensor | None = None, validate_args: bool | None = None
    ) -> interop.FlowDistribution:
        """The flow as a ``torch.distributions.Distribution``, see ``interop.FlowDistribution``."""
        return interop.distribution(self, context, validate_args)


@register
class NICE(Flow):
    """AdditiveCoupling repeated, with masks even, odd, even, ..., then Rescale; standard normal base.

    Only Rescale changes volumes: log|det| is the same for every x.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dims: widths of the hidden layers of each coupling's network.
        num_layers: number of couplings.
        context_dim: width of the context, 0 for none.

    Reference: Dinh et al. (2015), NICE, arXiv:1410.8516.
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        num_layers: int = 4,
        context_dim: int = 0,
    ) -> None:
        checks.positive_int("NICE", num_layers=num_layers)
        layers: list[Bijector] = []
        for i in range(num_layers):
            mask = "even" if i % 2 == 0 else "odd"
            layers.append(AdditiveCoupling(dim, hidden_dims, mask, context_dim=context_dim))
        super().__init__(Chain([*layers, Rescale(dim)]), StandardNormal(dim))
        self.dim = dim
        self.hidden_dims = tuple(hidden_dims)
        self.num_layers = num_layers


@register
class RealNVP(Flow):
    """(AffineCoupling, BatchNorm) repeated, with masks even, odd, even, ...; standard normal base.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dim: width of the two hidden layers of each scale and shift network.
        num_layers: number of couplings.
        context_dim: width of the context, 0 for none.

    71,744 trainable parameters at dim 2. Reference: Dinh et al. (2017), arXiv:1605.08803.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.RealNVP(dim=2, num_layers=2, context_dim=3)
        >>> tuple(flow.log_prob(torch.zeros(5, 2), context=torch.zeros(5, 3)).shape)
        (5,)
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
class NeuralSplineFlow(Flow):
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
        >>> import torch, torch_flows
        >>> flow = torch_flows.NeuralSplineFlow(dim=2, hidden_dims=(8,), num_layers=2)
        >>> tuple(flow.log_prob(torch.zeros(7, 2)).shape)
        (7,)
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (128, 128),
        num_layers: int = 6,
        num_bins: int = 8,
        tail_bound: float = 5.0,
        autoregressive: bool = False,
        context_dim: int = 0,
    ) -> None:
        checks.positive_int("NeuralSplineFlow", num_layers=num_layers)
        layers: list[Bijector] = []
        for _ in range(num_layers):
            splines: Bijector
            if autoregressive:
                splines = MaskedSplineAutoregressive(
                    dim, hidden_dims, None, num_bins, tail_bound, context_dim=context_dim
                )
            else:
                splines = SplineCoupling(
                    dim, hidden_dims, "first_half", num_bins, tail_bound, context_dim=context_dim
                )
            layers += [LULinear(dim), splines]
        super().__init__(Chain(layers), StandardNormal(dim))
        self.dim = dim
        self.hidden_dims = tuple(hidden_dims)
        self.num_layers = num_layers
        self.num_bins = num_bins
        self.tail_bound = tail_bound
        self.autoregressive = autoregressive


@register
class PlanarFlow(Flow):
    """Planar maps one after the other; standard normal base.

    Args:
        dim: number of dimensions.
        num_layers: number of planar maps.
        context_dim: width of the context, 0 for none.

    160 trainable parameters at dim 2. Reference: Rezende and Mohamed (2015), arXiv:1505.05770.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.PlanarFlow(dim=2, num_layers=4)
        >>> tuple(flow.log_prob(torch.zeros(7, 2)).shape)
        (7,)
    """

    def __init__(self, dim: int, num_layers: int = 32, context_dim: int = 0) -> None:
        checks.positive_int("PlanarFlow", num_layers=num_layers)
        layers = [Planar(dim, context_dim) for _ in range(num_layers)]
        super().__init__(Chain(layers), StandardNormal(dim))
        self.dim = dim
        self.num_layers = num_layers


@register
class MAF(Flow):
    """Masked affine autoregressive maps, their orders 0, 1, 2, ... and reversed by turns; standard
    normal base. A density takes one pass of each network, a sample about two.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of each network's hidden layers.
        num_layers: number of maps.
        context_dim: width of the context, 0 for none.

    Reference: Papamakarios et al. (2017), arXiv:1705.07057.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.MAF(dim=3, hidden_dims=(8,), num_layers=2)
        >>> tuple(flow.log_prob(torch.zeros(7, 3)).shape)
        (7,)
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        num_layers: int = 5,
        context_dim: int = 0,
    ) -> None:
        layers = _masked_affine_layers("MAF", dim, hidden_dims, num_layers, context_dim)
        super().__init__(Chain(layers), StandardNormal(dim))
        self.dim = dim
        self.hidden_dims = tuple(hidden_dims)
        self.num_layers = num_layers


@register
class IAF(Flow):
    """The maps of ``MAF`` with the directions exchanged: a sample and its density take one pass of
    each network, the density of given data about two.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of each network's hidden layers.
        num_layers: number of maps.
        context_dim: width of the context, 0 for none.

    Reference: Kingma et al. (2016), arXiv:1606.04934.
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        num_layers: int = 5,
        context_dim: int = 0,
    ) -> None:
        layers = _masked_affine_layers("IAF", dim, hidden_dims, num_layers, context_dim)
        super().__init__(Invert(Chain(layers)), StandardNormal(dim))
        self.dim = dim
        self.hidden_dims = tuple(hidden_dims)
        self.num_layers = num_layers


def _masked_affine_layers(
    owner: str, dim: int, hidden_dims: Sequence[int], num_layers: int, context_dim: int
) -> list[Bijector]:
    checks.positive_int(owner, num_layers=num_layers)
    return [
        MaskedAffineAutoregressive(
            dim, hidden_dims, None if i % 2 == 0 else "reverse", context_dim=context_dim
        )
        for i in range(num_layers)
    ]


@register
class Glow(Flow):
    """A multi-scale flow of images: Squeeze, steps of (ActNorm, Invertible1x1Conv, coupling), Split.

    Every level trades space for channels, runs its steps, and sends half of the channels to the base;
    the last level keeps all of them. z has the shape of x, each level's part at its own pixels.
    Standard normal base. Call ``initialize`` with a batch of data before training.

    Args:
        shape: (channels, height, width); 2^num_levels divides height and width.
        num_levels: number of levels.
        num_steps: number of steps of each level.
        hidden_channels: width of each coupling's ``ConvNet``.
        context_dim: width of the context (a class label as a one-hot vector), 0 for none.

    Raises:
        ValueError: for a shape that is not of an image or not divisible.

    Reference: Kingma and Dhariwal (2018), arXiv:1807.03039. Theirs has a learned normal base for each
    level and a scale of sigmoid(s + 2); here ActNorm and the last coupling do what the base's loc and
    scale would, and the scale is exp(tanh(s)), as in ``AffineCoupling``.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.Glow(shape=(1, 8, 8), num_levels=2, num_steps=1, hidden_channels=4)
        >>> tuple(flow.log_prob(torch.zeros(5, 1, 8, 8)).shape)
        (5,)
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_levels: int = 3,
        num_steps: int = 8,
        hidden_channels: int = 64,
        context_dim: int = 0,
    ) -> None:
        checks.positive_int("Glow", num_levels=num_levels, num_steps=num_steps)
        shape = checks.image_shape("Glow", shape, 2**num_levels)
        level = _glow_level(shape, num_levels, num_steps, hidden_channels, context_dim)
        super().__init__(level, StandardNormal(shape))
        self.shape = shape
        self.num_levels = num_levels
        self.num_steps = num_steps
        self.hidden_channels = hidden_channels


def _glow_level(
    shape: tuple[int, ...], num_levels: int, num_steps: int, hidden_channels: int, context_dim: int
) -> Chain:
    channels, height, width = 4 * shape[0], shape[1] // 2, shape[2] // 2
    layers: list[Bijector] = [Squeeze()]
    for _ in range(num_steps):
        layers += [
            ActNorm((channels, height, width)),
            Invertible1x1Conv(channels),
            ConvAffineCoupling(channels, hidden_channels, context_dim=context_dim),
        ]
    if num_levels > 1:
        rest = (channels // 2, height, width)
        inner = _glow_level(rest, num_levels - 1, num_steps, hidden_channels, context_dim)
        layers.append(Split(inner))
    return Chain([*layers, Invert(Squeeze())])


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
    """(ActNorm, InvertibleResidual) repeated, then ActNorm; standard normal base.

    The ActNorm layers let the blocks, whose slopes stay between 1 - L and 1 + L, work at any scale.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the hidden layers of each block.
        num_blocks: number of residual blocks.
        lipschitz: the bound on each block's Lipschitz constant.
        log_det: ``"exact"``, or ``"series"`` for an unbiased estimate in training (large ``dim``).
        activation: a name in ``networks.ACTIVATIONS``.
        context_dim: width of the context, 0 for none.

    Reference: Behrmann et al. (2019), arXiv:1811.00995; Chen et al. (2019), arXiv:1906.02735.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.ResidualFlow(dim=2, hidden_dims=(8,), num_blocks=2)
        >>> tuple(flow.log_prob(torch.zeros(7, 2)).shape)
        (7,)
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
                ActNorm(dim),
                InvertibleResidual(
                    dim, hidden_dims, lipschitz, log_det, activation, context_dim=context_dim
                ),
            ]
        super().__init__(Chain([*layers, ActNorm(dim)]), StandardNormal(dim))
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

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.FFJORD(dim=2, hidden_dims=(8,), solver="rk4", num_steps=4)
        >>> tuple(flow.log_prob(torch.zeros(7, 2)).shape)
        (7,)
    """

    _trace = "hutchinson"
