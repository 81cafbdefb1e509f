"""Base distributions of the latent z."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.domains import REALS, ClosedInterval, Interval, placed
from flow_bridge.networks import Network, as_network
from flow_bridge.series import GAMMA_SERIES, GAMMA_STEPS, student_t_constant, von_mises_series
from torch_flows.inputs import check_input, context_batch
from torch_flows.networks.conditioner import build_conditioner
from torch_flows.networks.mlp import MLP
from torch_flows.networks.regularization import acts_in_training
from torch_flows.numerics import at_least_float32, check_constants, sum_event
from torch_flows.registry import register
from torch_flows.univariate.circular import wrapped
from torch_flows.univariate.roots import invert
from torch_flows.variables import HasVariables


class Distribution(HasVariables):
    """A density on events of ``event_shape`` whose samples are a function of simple noise.

    A subclass writes ``log_density`` and ``map_noise``; the public methods check their input first.

    Attributes:
        context_dim: width of the context, 0 for none.
        noise: what ``from_noise`` takes, ``"normal"`` or ``"uniform"`` (on [0, 1)), independent per
            entry.
        noise_shape: its shape for one sample, ``event_shape`` unless stated.
        reparameterized: whether gradients through samples reach every weight.
        support: the interval that every entry of z lies in.
    """

    context_dim: int = 0
    noise = "normal"
    reparameterized = True
    support: Interval = REALS
    device_anchor: Tensor

    def __init__(self, dim: int | Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        self.event_shape = checks.event_shape_of(type(self).__name__, dim)
        self.noise_shape = self.event_shape
        self.register_buffer("device_anchor", torch.zeros(()), persistent=False)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density of z ``(*batch, *event_shape)``, shape ``(*batch,)``.

        Args:
            z: floating point, of the weights' dtype.
            context: shape ``(*batch, context_dim)`` or broadcastable to it.

        Raises:
            ValueError: for a wrong shape, and for a context that is missing or unexpected.
            TypeError: for a wrong dtype.
        """
        return self.log_density(z, check_input(self, "z", z, context, self.event_shape))

    def from_noise(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Samples from noise of shape ``(*batch, *noise_shape)``, differentiable in the weights.

        Context and errors as in ``log_prob``.
        """
        return self.map_noise(noise, check_input(self, "noise", noise, context, self.noise_shape))

    def sample(
        self,
        shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Samples of shape ``(*shape, *context_batch, *event_shape)``, in the weights' dtype and on
        their device; ``context`` is of shape ``(*context_batch, context_dim)``."""
        shape = checks.sample_shape(type(self).__name__, "shape", shape)
        batch = *shape, *context_batch(self, context)
        draw = torch.randn if self.noise == "normal" else torch.rand
        like = self.device_anchor
        noise = draw(
            (*batch, *self.noise_shape), generator=generator, dtype=like.dtype, device=like.device
        )
        return self.map_noise(noise, None if context is None else context.expand(*batch, -1))

    def intervals(self) -> list[Interval]:
        """Where the entries of z lie: one interval, or one of each entry."""
        return [self.support]

    @abstractmethod
    def log_density(self, z: Tensor, context: Tensor | None) -> Tensor:
        """``log_prob`` of what has been checked."""

    @abstractmethod
    def map_noise(self, noise: Tensor, context: Tensor | None) -> Tensor:
        """``from_noise`` of what has been checked."""

    def _take_context(
        self, context_dim: int, conditioner: Network | type | None, num_parameters: int
    ) -> None:
        """Keep what the context goes through, and build its network."""
        owner = type(self).__name__
        checks.non_negative_int(owner, context_dim=context_dim)
        checks.no_conditioner(owner, conditioner, context_dim)
        self.context_dim = context_dim
        self.conditioner = as_network(owner, conditioner, MLP) if context_dim else None
        if self.conditioner is not None:
            self.network = build_conditioner(
                owner, self.conditioner, context_dim, num_parameters, 1, 0
            )
            kind = self.conditioner.cls.__name__
            checks.same_in_training(owner, kind, acts_in_training(self.network))


@register
class StandardNormal(Distribution):
    """log p(z) = -|z|^2 / 2 - d log(2 pi) / 2.

    Args:
        dim: number of dimensions, or an event shape.
    """

    def log_density(self, z: Tensor, context: Tensor | None) -> Tensor:
        event_ndim = len(self.event_shape)
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        return torch.rsub(sum_event(z.square(), event_ndim), -constant, alpha=0.5)

    def map_noise(self, noise: Tensor, context: Tensor | None) -> Tensor:
        return noise


@register
class DiagonalNormal(Distribution):
    """Independent normals: z = loc + exp(log_scale) * noise.

    ``loc`` and ``log_scale`` are weights of their own, which start at zero, or come from the context.

    Args:
        dim: number of dimensions, or an event shape.
        context_dim: width of the context, 0 for none.
        conditioner: with a context, the network from it to loc and log_scale, ``Network(CLASS, ...)``
            or a class; ``MLP`` if not given.

    Raises:
        ValueError: for a conditioner without a context.

    Examples:
        >>> import torch, torch_flows
        >>> base = torch_flows.DiagonalNormal(2, context_dim=3)
        >>> z = base.sample((5,), context=torch.zeros(3))
        >>> tuple(z.shape), tuple(base.log_prob(z, torch.zeros(3)).shape)
        ((5, 2), (5,))
    """

    def __init__(
        self,
        dim: int | Sequence[int],
        context_dim: int = 0,
        conditioner: Network | type | None = None,
    ) -> None:
        super().__init__(dim)
        self._take_context(context_dim, conditioner, 2 * math.prod(self.event_shape))
        if self.conditioner is None:
            self.loc = nn.Parameter(torch.zeros(self.event_shape))
            self.log_scale = nn.Parameter(torch.zeros(self.event_shape))

    def log_density(self, z: Tensor, context: Tensor | None) -> Tensor:
        event_ndim = len(self.event_shape)
        loc, log_scale = self._parameters_for(context)
        standard = (z - loc) * (-log_scale).exp()
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        return (
            -sum_event(standard.square(), event_ndim) / 2
            - sum_event(log_scale, event_ndim)
            - constant
        )

    def map_noise(self, noise: Tensor, context: Tensor | None) -> Tensor:
        loc, log_scale = self._parameters_for(context)
        return loc + log_scale.exp() * noise

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if context is None:
            return self.loc, self.log_scale
        parameters = self.network(context).to(context.dtype)
        loc, log_scale = parameters.unflatten(-1, (*self.event_shape, 2)).unbind(-1)
        return loc, log_scale


@register
class Uniform(Distribution):
    """The uniform density on [low, high] in every dimension: -d log(high - low) inside, -inf outside.

    Args:
        dim: number of dimensions, or an event shape.
        low, high: the bounds, low < high.

    Raises:
        ValueError: if the bounds are not finite or not in order.
    """

    noise = "uniform"

    def __init__(self, dim: int | Sequence[int], low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(dim)
        checks.interval("Uniform", low=low, high=high)
        self.low = low
        self.high = high
        self.support = ClosedInterval(low, high)

    def log_density(self, z: Tensor, context: Tensor | None) -> Tensor:
        axes = tuple(range(-len(self.event_shape), 0))
        check_constants(self, z, low=self.low, high=self.high, width=self.high - self.low)
        inside = ((z >= self.low) & (z <= self.high)).all(axes)
        density = z.new_tensor(-math.prod(self.event_shape) * math.log(self.high - self.low))
        log_prob = torch.where(inside, density, -math.inf)
        return torch.where(z.isnan().any(axes), math.nan, log_prob)

    def map_noise(self, noise: Tensor, context: Tensor | None) -> Tensor:
        check_constants(self, noise, low=self.low, high=self.high, width=self.high - self.low)
        return self.low + (self.high - self.low) * noise


@register
class GaussianMixture(Distribution):
    """sum_k pi_k N(z; loc_k, diag(exp(log_scale_k))^2), with pi = softmax(logits).

    The parameters are weights of their own, or come from the context: a mixture density network.

    A sample takes one noise entry more than it has entries: the first one's normal quantile picks the
    component, the others are the component's noise. The pick has no derivative, so gradients through
    samples reach ``loc`` and ``log_scale`` but not ``logits``; those of ``log_prob`` reach all three.

    Args:
        dim: number of dimensions, or an event shape.
        num_components: number of normals.
        context_dim: width of the context, 0 for none.
        conditioner: with a context, the network from it to the parameters, ``Network(CLASS, ...)`` or
            a class; ``MLP`` if not given.

    Raises:
        ValueError: for a conditioner without a context.

    Reference: Bishop (1994), Mixture Density Networks.
    """

    reparameterized = False

    def __init__(
        self,
        dim: int | Sequence[int],
        num_components: int,
        context_dim: int = 0,
        conditioner: Network | type | None = None,
    ) -> None:
        super().__init__(dim)
        checks.positive_int("GaussianMixture", num_components=num_components)
        size = math.prod(self.event_shape)
        self.num_components = num_components
        self.noise_shape = (size + 1,)
        self._take_context(context_dim, conditioner, num_components * (1 + 2 * size))
        if self.conditioner is None:
            self.logits = nn.Parameter(torch.zeros(num_components))
            self.loc = nn.Parameter(torch.randn(num_components, *self.event_shape))
            self.log_scale = nn.Parameter(torch.zeros(num_components, *self.event_shape))

    def log_density(self, z: Tensor, context: Tensor | None) -> Tensor:
        event_ndim = len(self.event_shape)
        logits, loc, log_scale = self._parameters_for(context)
        standard = (z.unsqueeze(-event_ndim - 1) - loc) * (-log_scale).exp()
        log_prob = -sum_event(standard.square() / 2 + log_scale, event_ndim)
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        return (log_prob + logits.log_softmax(-1)).logsumexp(-1) - constant

    def map_noise(self, noise: Tensor, context: Tensor | None) -> Tensor:
        logits, loc, log_scale = self._parameters_for(context)
        ends = at_least_float32(logits).softmax(-1).cumsum(-1)[..., :-1]
        component = (torch.special.ndtr(at_least_float32(noise[..., :1])) >= ends).sum(-1)
        normal = noise[..., 1:].unflatten(-1, self.event_shape)
        return self._pick(loc, component) + self._pick(log_scale, component).exp() * normal

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``(*batch, num_components)``, and the others ``(*batch, num_components, *event_shape)``."""
        if context is None:
            return self.logits, self.loc, self.log_scale
        parameters = self.network(context).to(context.dtype)
        parameters = parameters.unflatten(-1, (self.num_components, -1))
        normals = parameters[..., 1:].unflatten(-1, (*self.event_shape, 2))
        return parameters[..., 0], normals[..., 0], normals[..., 1]

    def _pick(self, values: Tensor, component: Tensor) -> Tensor:
        """One component's values in each row."""
        if self.conditioner is None:
            return values[component]
        axis = -len(self.event_shape) - 1
        index = component.reshape(*component.shape, *[1] * -axis)
        return values.take_along_dim(index, axis).squeeze(axis)


@register
class StudentT(Distribution):
    """Independent Student t per dimension: log p(z) = sum -(df + 1) / 2 log(1 + z^2 / df) + constant.

    A sample takes two uniforms u, v per entry: z = sqrt(df (u^(-2 / df) - 1)) cos(2 pi v).

    Args:
        dim: number of dimensions, or an event shape.
        df: degrees of freedom, above 0; 1 is the Cauchy distribution.
        learned: whether each dimension has its own, df exp(7 tanh(r / 7)) with a weight r that starts
            at 0, so that df is to be from 1 to 1000.

    Raises:
        ValueError: for numbers out of range.

    Reference: Bailey (1994), doi:10.1090/S0025-5718-1994-1219702-3, for the sampling; Laszkiewicz et al.
    (2022), marginal tail-adaptive flows, arXiv:2206.10311, for tails of each dimension.
    """

    noise = "uniform"

    def __init__(self, dim: int | Sequence[int], df: float, learned: bool = False) -> None:
        super().__init__(dim)
        checks.degrees_of_freedom("StudentT", df, learned)
        self.df = df
        self.learned = learned
        self.noise_shape = (2, *self.event_shape)
        if learned:
            self.raw_df = nn.Parameter(torch.zeros(self.event_shape))

    def log_density(self, z: Tensor, context: Tensor | None) -> Tensor:
        df, event_ndim = self._df(), len(self.event_shape)
        root = df.sqrt() if isinstance(df, Tensor) else math.sqrt(df)
        x = z / root
        far = x.abs() > 1
        square, far_x = torch.where(far, 0, x).square(), torch.where(far, x, 1)
        log_x = far_x.abs().log()
        if isinstance(df, Tensor):
            log_x = torch.where(far, z, root).abs().log() - df.log() / 2
        elif df < 1:  # x may overflow
            log_x = torch.where(far, z, root).abs().log() - math.log(df) / 2
        share = (df + 1) / df / 2 * _ratio(torch.log1p, square)
        falloff = torch.where(
            far,
            (df + 1) * (log_x + far_x.reciprocal().square().log1p() / 2),
            torch.where(far, 0, z).square() * share,
        )
        if isinstance(df, Tensor):
            return sum_event(_student_t_constant(df) - falloff, event_ndim)
        constant = math.prod(self.event_shape) * student_t_constant(df)
        return constant - sum_event(falloff, event_ndim)

    def map_noise(self, noise: Tensor, context: Tensor | None) -> Tensor:
        u, v = noise.unbind(-len(self.event_shape) - 1)
        energy = -(-u).log1p()
        exponent = energy / self._df()
        # radius^2 = df (e^(2 exponent) - 1); beyond its dtype, the largest number of that
        largest = torch.finfo(noise.dtype).max
        growth = exponent.clamp_max(math.log(largest)).exp()
        share = _ratio(lambda x: -(-x).expm1(), 2 * exponent)
        radius = (growth * (2 * energy * share).sqrt()).clamp_max(largest)
        return radius * (2 * math.pi * v).cos()

    def _df(self) -> float | Tensor:
        if not self.learned:
            return self.df
        return self.df * (FREEDOM * (self.raw_df / FREEDOM).tanh()).exp()


FREEDOM = 7.0
"""Of the logarithm of learned degrees of freedom."""


def _student_t_constant(df: Tensor) -> Tensor:
    """``student_t_constant`` of an array."""
    x = df / 2
    y = x + GAMMA_STEPS
    series = sum(c / y ** (2 * k + 1) for k, c in enumerate(GAMMA_SERIES))
    logs = sum((0.5 / (x + k)).log1p() for k in range(GAMMA_STEPS))
    return (GAMMA_STEPS / x).log1p() / 2 - math.log(2 * math.pi) / 2 + series - logs


@register
class VonMises(Distribution):
    """Independent von Mises densities: log p(z) = sum_i k (cos t_i - 1) + constant, t_i the angle of z_i
    from ``loc``; -inf outside [low, high], whose ends are one point of a circle.

    The uniform density on the circle is ``Uniform``. A sample inverts the distribution function at
    one uniform number per entry.

    Args:
        dim: number of dimensions, or an event shape.
        concentration: k, between 0 and 1000.
        loc: the mode, in [low, high].
        low, high: the interval that stands for the circle.

    Raises:
        ValueError: for numbers out of range.

    Examples:
        >>> import torch, torch_flows
        >>> base = torch_flows.VonMises(1, concentration=4.0)
        >>> z = torch.linspace(-torch.pi, torch.pi, 65)[1:, None]
        >>> round(float(base.log_prob(z).exp().mean() * 2 * torch.pi), 5)
        1.0
    """

    noise = "uniform"

    def __init__(
        self,
        dim: int | Sequence[int],
        concentration: float = 1.0,
        loc: float = 0.0,
        low: float = -math.pi,
        high: float = math.pi,
    ) -> None:
        super().__init__(dim)
        checks.open_interval("VonMises", "concentration", concentration, 0, 1000)
        checks.interval("VonMises", low=low, high=high)
        checks.mode_inside("VonMises", loc, low, high)
        self.concentration = concentration
        self.loc = loc
        self.low = low
        self.high = high
        self.support = ClosedInterval(low, high)
        self._constant, self._ratios = von_mises_series(concentration)

    def log_density(self, z: Tensor, context: Tensor | None) -> Tensor:
        low, high = self.low, self.high
        check_constants(self, z, low=low, high=high, width=high - low)
        outside = (z < low) | (z > high)
        half = (z.masked_fill(outside, low) - self.loc) * (math.pi / (high - low))
        constant = self._constant + math.log((high - low) / (2 * math.pi))
        log_prob = -2 * self.concentration * half.sin().square() - constant
        return sum_event(log_prob.masked_fill(outside, -math.inf), len(self.event_shape))

    def map_noise(self, noise: Tensor, context: Tensor | None) -> Tensor:
        low, high = self.low, self.high
        check_constants(self, noise, low=low, high=high, width=high - low)
        goal = (at_least_float32(noise) - 0.5) * (2 * math.pi)
        ends = torch.full_like(goal, math.pi)
        angle = invert(self._turned, goal, (), -ends, ends)[0]
        z = self.loc + angle * ((high - low) / (2 * math.pi))
        return wrapped(z, low, high).to(noise.dtype)

    def _turned(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """2 pi times the distribution function less 1/2 at an angle from the mode, and its log slope."""
        ratios = torch.tensor(self._ratios, dtype=angle.dtype, device=angle.device)
        index = torch.arange(1, len(ratios) + 1, dtype=angle.dtype, device=angle.device)
        waves = (angle.unsqueeze(-1) * index).sin()
        log_slope = math.log(2 * math.pi) - self._constant
        falloff = 2 * self.concentration * (angle / 2).sin().square()
        return angle + 2 * (waves * (ratios / index)).sum(-1), log_slope - falloff


@register
class Product(Distribution):
    """One distribution for these entries of a vector, another for those, independent of each other.

    The base of a flow of mixed spaces: normal, uniform on an interval, von Mises on a circle. Where some
    take normal noise and others uniform noise, it takes normal noise, whose distribution function the
    latter get.

    Args:
        distributions: of vectors; those with a ``context_dim`` share it.
        columns: for each the positions of its entries; every position once.

    Raises:
        ValueError: for columns that do not hold every position once, and for a distribution of another
            shape.

    Examples:
        >>> import torch_flows
        >>> parts = [torch_flows.StandardNormal(2), torch_flows.VonMises(1)]
        >>> base = torch_flows.Product(parts, [[0, 2], [1]])
        >>> tuple(base.sample(5).shape)
        (5, 3)
    """

    distributions: Sequence[Distribution]
    order: Tensor

    def __init__(
        self, distributions: Sequence[Distribution], columns: Sequence[Sequence[int]]
    ) -> None:
        checks.instances("Product", "distributions", distributions, Distribution)
        shapes = [(d.event_shape, d.event_shape) for d in distributions]
        order = checks.block_order("Product", columns, shapes, "distributions")
        super().__init__(len(order))
        self.distributions = nn.ModuleList(distributions)  # type: ignore[assignment]
        self.columns = tuple(tuple(block) for block in columns)
        kinds = {d.noise for d in distributions}
        self.noise = kinds.pop() if len(kinds) == 1 else "normal"
        self.sizes = tuple(math.prod(d.noise_shape) for d in distributions)
        self.noise_shape = (sum(self.sizes),)
        self.reparameterized = all(d.reparameterized for d in distributions)
        self.context_dim = checks.common_context_dim(
            "Product", [d.context_dim for d in distributions]
        )
        for i, block in enumerate(self.columns):
            self.register_buffer(f"columns_{i}", torch.as_tensor(block), persistent=False)
        self.register_buffer("order", torch.as_tensor(order), persistent=False)

    def intervals(self) -> list[Interval]:
        return placed(self.columns, [d.intervals() for d in self.distributions])

    def log_density(self, z: Tensor, context: Tensor | None) -> Tensor:
        parts = [
            d.log_density(
                z.index_select(-1, self.get_buffer(f"columns_{i}")),
                context if d.context_dim else None,
            )
            for i, d in enumerate(self.distributions)
        ]
        return torch.stack(parts).sum(0)

    def map_noise(self, noise: Tensor, context: Tensor | None) -> Tensor:
        parts = []
        for d, part in zip(self.distributions, noise.split(self.sizes, -1), strict=True):
            part = part.unflatten(-1, d.noise_shape)
            part = part if d.noise == self.noise else uniform_of(part)
            parts.append(d.map_noise(part, context if d.context_dim else None))
        return torch.cat(parts, -1).index_select(-1, self.order)


def uniform_of(normal: Tensor) -> Tensor:
    """Uniform noise in [0, 1) from normal noise."""
    largest = 1 - torch.finfo(normal.dtype).eps / 2
    share = torch.special.ndtr(at_least_float32(normal)).to(normal.dtype)
    return share.clamp(0, largest)


def _ratio(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) / x for x >= 0, where the function starts as the identity."""
    apart = x > torch.finfo(x.dtype).eps
    safe = torch.where(apart, x, 1)
    return torch.where(apart, function(safe) / safe, 1)
