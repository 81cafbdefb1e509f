"""A flow is a bijector and a base distribution; the named models are flows."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax import Array

from flow_bridge import checks
from jax_flows import interop
from jax_flows.bijectors.autoregressive import (
    MaskedAffineAutoregressive,
    MaskedSplineAutoregressive,
)
from jax_flows.bijectors.base import (
    Bijector,
    Chain,
    HasVariables,
    Invert,
    Output,
    Variables,
    check_input,
    child,
    freeze_lists,
    gather,
    initialize,
    weight_dtype,
)
from jax_flows.bijectors.continuous import ContinuousBijector
from jax_flows.bijectors.coupling import AdditiveCoupling, AffineCoupling, SplineCoupling
from jax_flows.bijectors.elementwise import Rescale
from jax_flows.bijectors.image import ConvAffineCoupling, Invertible1x1Conv, Split, Squeeze
from jax_flows.bijectors.linear import LULinear
from jax_flows.bijectors.normalization import ActNorm, BatchNorm
from jax_flows.bijectors.residual import InvertibleResidual, Planar, Radial, Sylvester
from jax_flows.distributions import Distribution, StandardNormal
from jax_flows.registry import register


@register
@dataclass(frozen=True)
class Flow(HasVariables):
    """The density of x whose latent z = bijector(x) has the base density.

    log p(x) = log p_base(z) + log|det dz/dx|.

    Args:
        bijector: maps data to latent.
        base: the distribution of the latent.

    Raises:
        ValueError: if the latent and the base are of different event shapes.

    Examples:
        >>> import jax, jax_flows
        >>> flow = jax_flows.Flow(jax_flows.Planar(2), jax_flows.StandardNormal(2))
        >>> variables = flow.init(jax.random.key(0))
        >>> jax.jit(flow.log_prob)(variables, jax.numpy.zeros((5, 2))).shape
        (5,)
        >>> sample = jax.jit(flow.sample_and_log_prob, static_argnums=2)
        >>> x, log_prob = sample(variables, jax.random.key(1), (3, 4))
        >>> x.shape, log_prob.shape
        ((3, 4, 2), (3, 4))
    """

    bijector: Bijector
    base: Distribution

    def __post_init__(self) -> None:
        name = type(self).__name__
        checks.instances(name, "bijector", [self.bijector], Bijector)
        checks.instances(name, "base", [self.base], Distribution)
        _ = self.event_shape

    @property
    def latent_shape(self) -> tuple[int | None, ...]:
        return checks.common_event_shape(
            type(self).__name__, [self.bijector.latent_shape, self.base.event_shape]
        )

    @property
    def event_shape(self) -> tuple[int | None, ...]:
        return self.bijector.map_shape(self.latent_shape, inverse=True)

    @property
    def context_dim(self) -> int:
        return self.bijector.context_dim

    def _init(self, key: Array, dtype: Any) -> Variables:
        bijector_key, base_key = jax.random.split(key)
        return gather(
            {
                "bijector": self.bijector._init(bijector_key, dtype),
                "base": self.base._init(base_key, dtype),
            }
        )

    def forward(self, variables: Variables, x: Array, context: Array | None = None) -> Output:
        """Data to latent.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            x: shape ``(*batch, *event_shape)``, floating point, of the weights' dtype.
            context: shape ``(*batch, context_dim)`` or broadcastable to it.

        Returns:
            z of shape ``(*batch, *latent_shape)`` and log|det dz/dx| of shape ``(*batch,)``.

        Raises:
            ValueError: for a wrong shape, and for a context that is missing or unexpected.
            TypeError: for a wrong dtype.
        """
        x, context = check_input(self, variables, "x", x, context)
        return self.bijector._forward(child(variables, "bijector"), x, context)

    def inverse(self, variables: Variables, z: Array, context: Array | None = None) -> Output:
        """Latent to data: x and log|det dx/dz| for z. Arguments and errors as ``forward``."""
        z, context = check_input(self, variables, "z", z, context)
        return self.bijector._inverse(child(variables, "bijector"), z, context)

    def initialize(
        self, variables: Variables, x: Array, context: Array | None = None
    ) -> dict[str, Any]:
        """New variables, with what is initialised from data set, see ``Bijector.initialize``."""
        own = child(variables, "bijector")
        own = initialize(self, self.bijector, variables, own, x, context)
        return {**variables, **gather({"bijector": own, "base": child(variables, "base")})}

    def log_prob(self, variables: Variables, x: Array, context: Array | None = None) -> Array:
        """The log-density in nats, shape ``(*batch,)``. Arguments and errors as ``forward``.

        A row of x with a NaN gives NaN in that row only.
        """
        z, log_det = self.forward(variables, x, context)
        return self.base.log_prob(child(variables, "base"), z) + log_det

    def log_prob_and_update(
        self, variables: Variables, x: Array, context: Array | None = None
    ) -> tuple[Array, Variables]:
        """``log_prob`` in training mode: (log_prob, the new ``batch_stats``)."""
        x, context = check_input(self, variables, "x", x, context)
        z, log_det, batch_stats = self.bijector._forward_and_update(
            child(variables, "bijector"), x, context
        )
        log_prob = self.base.log_prob(child(variables, "base"), z) + log_det
        return log_prob, {"bijector": batch_stats} if batch_stats else {}

    def sample(
        self,
        variables: Variables,
        key: Array,
        num_samples: int | Sequence[int],
        context: Array | None = None,
    ) -> Array:
        """Samples of shape ``(num_samples, *context_batch, *event_shape)``, differentiable.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            key: the source of randomness.
            num_samples: how many for each row of the context, an integer or a shape.
            context: shape ``(*context_batch, context_dim)``.
        """
        return self.sample_and_log_prob(variables, key, num_samples, context)[0]

    def sample_and_log_prob(
        self,
        variables: Variables,
        key: Array,
        num_samples: int | Sequence[int],
        context: Array | None = None,
    ) -> Output:
        """Samples and their log-densities, in one pass. Arguments as ``sample``."""
        shape = (num_samples,) if isinstance(num_samples, int) else tuple(num_samples)
        context_batch = () if context is None else context.shape[:-1]
        base = child(variables, "base")
        z = self.base.sample(base, key, (*shape, *context_batch), weight_dtype(variables))
        x, log_det = self.inverse(variables, z, context)
        return x, self.base.log_prob(base, z) - log_det

    def distribution(
        self,
        variables: Variables,
        context: Array | None = None,
        validate_args: bool | None = None,
    ) -> Any:
        """The flow as a NumPyro ``Distribution``, see ``interop.numpyro_distribution``."""
        return interop.numpyro_distribution(self, variables, context, validate_args)


@dataclass(frozen=True)
class Model(Flow):
    """A named flow: its fields are hyperparameters, from which ``_parts`` makes bijector and base."""

    bijector: Bijector = field(init=False, repr=False, compare=False)
    base: Distribution = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        freeze_lists(self)
        bijector, base = self._parts()
        object.__setattr__(self, "bijector", bijector)
        object.__setattr__(self, "base", base)
        super().__post_init__()

    @abstractmethod
    def _parts(self) -> tuple[Bijector, Distribution]: ...


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
    hidden_dims: tuple[int, ...] = (64, 64)
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
    hidden_dims: tuple[int, ...] = (128, 128)
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


@register
@dataclass(frozen=True)
class PlanarFlow(Model):
    """Planar maps one after the other; standard normal base.

    Args:
        dim: number of dimensions.
        num_layers: number of planar maps.
        context_dim: width of the context, 0 for none.

    160 trainable parameters at dim 2. Reference: Rezende and Mohamed (2015), arXiv:1505.05770.

    Examples:
        >>> import jax, jax_flows
        >>> flow = jax_flows.PlanarFlow(dim=2, num_layers=4)
        >>> variables = flow.init(jax.random.key(0))
        >>> jax.jit(flow.log_prob)(variables, jax.numpy.zeros((7, 2))).shape
        (7,)
    """

    dim: int
    num_layers: int = 32
    context_dim: int = 0

    def _parts(self) -> tuple[Bijector, Distribution]:
        checks.positive_int("PlanarFlow", num_layers=self.num_layers)
        layers = [Planar(self.dim, self.context_dim) for _ in range(self.num_layers)]
        return Chain(tuple(layers)), StandardNormal(self.dim)


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
    hidden_dims: tuple[int, ...] = (64, 64)
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
    hidden_dims: tuple[int, ...] = (64, 64)
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


@register
@dataclass(frozen=True)
class Glow(Model):
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
        >>> import jax, jax_flows
        >>> flow = jax_flows.Glow(shape=(1, 8, 8), num_levels=2, num_steps=1, hidden_channels=4)
        >>> variables = flow.init(jax.random.key(0))
        >>> jax.jit(flow.log_prob)(variables, jax.numpy.zeros((5, 1, 8, 8))).shape
        (5,)
    """

    shape: tuple[int, ...]
    num_levels: int = 3
    num_steps: int = 8
    hidden_channels: int = 64
    context_dim: int = 0

    def _parts(self) -> tuple[Bijector, Distribution]:
        checks.positive_int("Glow", num_levels=self.num_levels, num_steps=self.num_steps)
        shape = checks.image_shape("Glow", self.shape, 2**self.num_levels)
        level = _glow_level(
            shape, self.num_levels, self.num_steps, self.hidden_channels, self.context_dim
        )
        return level, StandardNormal(shape)


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
    return Chain((*layers, Invert(Squeeze())))


@register
@dataclass(frozen=True)
class RadialFlow(Model):
    """Radial maps one after the other; standard normal base.

    Args:
        dim: number of dimensions.
        num_layers: number of radial maps.
        context_dim: width of the context, 0 for none.

    Reference: Rezende and Mohamed (2015), arXiv:1505.05770.
    """

    dim: int
    num_layers: int = 32
    context_dim: int = 0

    def _parts(self) -> tuple[Bijector, Distribution]:
        checks.positive_int("RadialFlow", num_layers=self.num_layers)
        layers = [Radial(self.dim, self.context_dim) for _ in range(self.num_layers)]
        return Chain(tuple(layers)), StandardNormal(self.dim)


@register
@dataclass(frozen=True)
class SylvesterFlow(Model):
    """Sylvester maps one after the other; standard normal base.

    Args:
        dim: number of dimensions.
        num_layers: number of Sylvester maps.
        rank: of each map, ``dim`` if not given.
        context_dim: width of the context, 0 for none.

    Reference: van den Berg et al. (2018), arXiv:1803.05649.
    """

    dim: int
    num_layers: int = 8
    rank: int | None = None
    context_dim: int = 0

    def _parts(self) -> tuple[Bijector, Distribution]:
        checks.positive_int("SylvesterFlow", num_layers=self.num_layers)
        width = self.dim if self.rank is None else self.rank
        layers = [Sylvester(self.dim, width, self.context_dim) for _ in range(self.num_layers)]
        return Chain(tuple(layers)), StandardNormal(self.dim)


@register
@dataclass(frozen=True)
class ResidualFlow(Model):
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
        >>> import jax, jax_flows
        >>> flow = jax_flows.ResidualFlow(dim=2, hidden_dims=(8,), num_blocks=2)
        >>> variables = flow.init(jax.random.key(0))
        >>> jax.jit(flow.log_prob)(variables, jax.numpy.zeros((7, 2))).shape
        (7,)
    """

    dim: int
    hidden_dims: tuple[int, ...] = (64, 64)
    num_blocks: int = 8
    lipschitz: float = 0.97
    log_det: str = "exact"
    activation: str = "silu"
    context_dim: int = 0

    def _parts(self) -> tuple[Bijector, Distribution]:
        checks.positive_int("ResidualFlow", num_blocks=self.num_blocks)
        layers: list[Bijector] = []
        for _ in range(self.num_blocks):
            layers += [
                ActNorm(self.dim),
                InvertibleResidual(
                    self.dim,
                    self.hidden_dims,
                    self.lipschitz,
                    self.log_det,
                    self.activation,
                    context_dim=self.context_dim,
                ),
            ]
        return Chain((*layers, ActNorm(self.dim))), StandardNormal(self.dim)


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
        activation: a name in ``networks.ACTIVATIONS``.
        num_steps: steps of ``"rk4"``.
        kinetic_energy, jacobian_norm: weights of the penalties in training, see
            ``ContinuousBijector``.
        context_dim: width of the context, 0 for none.

    Reference: Chen et al. (2018), arXiv:1806.07366.
    """

    _trace = "exact"

    dim: int
    hidden_dims: tuple[int, ...] = (64, 64)
    solver: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    adjoint: bool = True
    activation: str = "tanh"
    num_steps: int = 20
    kinetic_energy: float = 0.0
    jacobian_norm: float = 0.0
    context_dim: int = 0

    def _parts(self) -> tuple[Bijector, Distribution]:
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
        )
        return bijector, StandardNormal(self.dim)


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
