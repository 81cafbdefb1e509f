"""A flow is a bijector and a base distribution."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.architecture import Architecture, describe
from flow_bridge.domains import REALS, Interval
from flow_bridge.errors import ArchitectureError
from flow_bridge.standardization import context_location_and_scale, location_and_scale
from flow_bridge.training import check_callable
from torch_flows import interop
from torch_flows.bijectors.base import (
    Bijector,
    Output,
    differentiates,
    evaluation,
    initialize,
    tracked,
    vjp,
)
from torch_flows.bijectors.normalization import Standardize
from torch_flows.bijectors.structure import Chain
from torch_flows.distributions import Distribution
from torch_flows.inputs import (
    check_array,
    check_input,
    check_output,
    context_batch,
    dtype_name,
)
from torch_flows.networks.regularization import (
    acts_in_training,
    has_batch_statistics,
    new_statistics,
)
from torch_flows.numerics import beyond, moved_inside
from torch_flows.registry import register
from torch_flows.variables import HasVariables


@register
class Flow(HasVariables):
    """The density of x whose latent z = bijector(x) has the base density.

    log p(x) = log p_base(z) + log|det dz/dx|. A context goes to those of the two that take one.

    Args:
        bijector: maps data to latent.
        base: the distribution of the latent.
        context_net: what the context passes through first, trained, saved and converted with the flow:
            a registered network that keeps its widths as ``in_dim`` and ``out_dim``, a bijector of
            vectors (its log-det does not count), or a list of them. ``context_dim`` is then its input's.
        columns: names of the entries of x, where these are the columns of a table.
        context_columns: names of the entries of the context.

    Raises:
        ValueError: if the latent and the base are of different event shapes, if the context network
            makes another width than they take, for a base that reaches beyond what the bijector makes, and
            for names that are not one for each entry.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.Flow(torch_flows.Planar(2), torch_flows.StandardNormal(2))
        >>> tuple(flow.log_prob(torch.zeros(5, 2)).shape)
        (5,)
        >>> x, log_prob = flow.sample_and_log_prob((3, 4))
        >>> tuple(x.shape), tuple(log_prob.shape)
        ((3, 4, 2), (3, 4))
    """

    def __init__(
        self,
        bijector: Bijector,
        base: Distribution,
        context_net: nn.Module | Sequence[nn.Module] | None = None,
        columns: Sequence[str] | None = None,
        context_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        checks.instances(name, "bijector", [bijector], Bijector)
        checks.instances(name, "base", [base], Distribution)
        latent_shape = checks.common_event_shape(name, [bijector.latent_shape, base.event_shape])
        checks.onto_base(name, bijector, base)
        self.latent_shape = latent_shape
        self.event_shape = bijector.map_shape(latent_shape, inverse=True)
        nets = list_of_nets(context_net)
        widths = [net_widths(name, net) for net in nets]
        taken = checks.common_context_dim(name, [bijector.context_dim, base.context_dim])
        self.context_dim = checks.context_width(name, widths, taken)
        checks.column_names(name, "columns", columns, self.event_shape[0])
        checks.column_names(name, "context_columns", context_columns, self.context_dim)
        self.columns = None if columns is None else tuple(columns)
        self.context_columns = None if context_columns is None else tuple(context_columns)
        self.bijector = bijector
        self.base = base
        self.context_net = nn.ModuleList(nets) if nets else None

    @property
    def has_batch_statistics(self) -> bool:
        """Whether training mode normalises with statistics of the batch, see ``set_statistics``."""
        return self.bijector.has_batch_statistics or has_batch_statistics(self)

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
        condition, _ = self._condition("x", x, context, in_training=True)
        return check_output(self, x, self.bijector.map_forward(x, condition))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Output:
        """Latent to data: x and log|det dx/dz| for z. Arguments and errors as ``forward``."""
        condition, _ = self._condition("z", z, context)
        return check_output(self, z, self.bijector.map_inverse(z, condition))

    def steps(
        self, x: Tensor, context: Tensor | None = None, inverse: bool = False
    ) -> list[Output]:
        """Every intermediate value and the log-det of its step, see ``Bijector.steps``."""
        condition, _ = self._condition("z" if inverse else "x", x, context)
        return self.bijector.map_steps(x, condition, inverse)

    def confirm(self, architecture: Architecture) -> Architecture:
        """As ``HasVariables.confirm``; a named model whose parts were changed is a ``Flow`` of them."""
        try:
            return super().confirm(architecture)
        except ArchitectureError:
            if type(self) is Flow:
                raise
        architecture = describe(self, Flow)
        self.compare(architecture, Flow)
        return architecture

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set what is initialised from data (``ActNorm``) in place, see ``Bijector.initialize``."""
        initialize(self, self.bijector, x, context, self.embed)

    def embed(self, context: Tensor) -> Tensor:
        """What bijector and base take of a context ``(*batch, context_dim)``: what ``context_net`` makes."""
        nets = self.context_net
        if nets is None or not (self.training and acts_in_training(nets)):
            return self._through_nets(context)
        with evaluation(nets):
            return self._through_nets(context)

    def set_statistics(
        self, x: Tensor, context: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Set the batch statistics of evaluation in place, see ``Bijector.set_statistics``."""
        with torch.no_grad(), evaluation(self):
            expanded = check_input(self, "x", x, context)
            nets = self.context_net or nn.ModuleList()
            with new_statistics(nets, weights):
                condition, _ = self._embed(expanded, x.shape[: x.ndim - len(self.event_shape)])
            self.bijector.map_and_set_statistics(x, condition, weights)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density in nats, shape ``(*batch,)``. Arguments and errors as ``forward``.

        Outside the domain of the bijector and at its open ends (at infinity too) it is -inf; a row of
        x with a NaN gives NaN in that row only.
        """
        intervals, ndim = self.bijector.intervals(True), len(self.event_shape)
        condition, base_condition = self._condition("x", x, context, in_training=True)
        # in training mode a second pass through the first members would count as another batch
        outside = (
            beyond(x, intervals, ndim) if self.training else self.bijector.outside(x, condition)
        )
        x = moved_inside(x, outside, intervals, ndim)
        z, log_det = check_output(self, x, self.bijector.map_forward(x, condition))
        log_prob = self.base.log_prob(z, base_condition) + log_det
        return log_prob.masked_fill(outside, -math.inf)

    def sample(
        self,
        num_samples: int | Sequence[int] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples of shape ``(num_samples, *context_batch, *event_shape)``, differentiable.

        Where the bijector has a bounded domain, they lie inside: rounding would put some at its ends.
        Continuous bijectors integrate x alone, without the trace: with adaptive steps samples are
        those of ``sample_and_log_prob`` to within the tolerances.

        Args:
            num_samples: how many for each row of the context, an integer or a shape; ``()``: one.
            context: shape ``(*context_batch, context_dim)``.
            generator: the source of randomness.
        """
        if type(self).sample_and_log_prob is not Flow.sample_and_log_prob:
            return self.sample_and_log_prob(num_samples, context, generator)[0]
        z, condition, _ = self._latent(num_samples, context, generator)
        x = self.bijector.map_point(z, condition, inverse=True)
        return held_inside(check_output(self, z, (x, x))[0], self.bijector.intervals(True))

    def sample_and_log_prob(
        self,
        num_samples: int | Sequence[int] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Output:
        """Samples and their log-densities, in one pass. Arguments as ``sample``."""
        return self._from_latent(*self._latent(num_samples, context, generator))

    def from_noise(self, noise: Tensor, context: Tensor | None = None) -> Output:
        """Samples and their log-densities from the base's noise ``(*batch, *base.noise_shape)``.

        Context and errors as in ``forward``.
        """
        check_input(self, "noise", noise, context, self.base.noise_shape)
        batch = noise.shape[: noise.ndim - len(self.base.noise_shape)]
        condition, base_condition = self._embed(context, batch)
        z = self.base.from_noise(noise, base_condition)
        check_array(self, "z", z, self.latent_shape)
        return self._from_latent(z, condition, base_condition)

    @differentiates
    def score(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The gradient of ``log_prob`` in x, of x's shape. Arguments and errors as ``forward``."""
        with torch.enable_grad(), evaluation(self):
            point = tracked(x, keep_graph=True)
            log_prob = self.log_prob(point, context)
            score = vjp([log_prob], point, [torch.ones_like(log_prob)], differentiable=True)
        return score if torch.is_grad_enabled() else score.detach()

    @differentiates
    def forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``forward``, and the score of a density of x as that of its latent: (z, log_det, score of z).

        Where ``score``, of x's shape, is the gradient of log p(x) for any p, the third is that of the
        density of z under p, of z's shape, differentiable: where the flow fits p, that of the base.

        Reference: Vaitl et al. (2022), Gradients should stay on path, arXiv:2207.08219.
        """
        condition, _ = self._condition("x", x, context)
        check_array(self, "score", score, self.event_shape)
        z, log_det, score = self.bijector.map_score(x, score, condition)
        if torch.is_grad_enabled():
            return z, log_det, score
        return z.detach(), log_det.detach(), score.detach()

    @differentiates
    def base_score(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The gradient of the base's log-density in z, of z's shape. Context and errors as ``inverse``."""
        _, base_condition = self._condition("z", z, context)
        with torch.enable_grad():
            z = tracked(z, keep_graph=True)
            density = self.base.log_prob(z, base_condition)
            score = vjp([density], z, [torch.ones_like(density)], differentiable=True)
        return score if torch.is_grad_enabled() else score.detach()

    @differentiates
    def from_noise_with_score(
        self, noise: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``from_noise``, and the score of each sample: (x, log_prob, gradient of log_prob in x).

        The score is carried from layer to layer, without a pass back through the flow, and has no gradients:
        with s and that of a target p, the mean of (s - gradient of log p) * x has the path gradient of
        KL(q || p).
        """
        check_input(self, "noise", noise, context, self.base.noise_shape)
        batch = noise.shape[: noise.ndim - len(self.base.noise_shape)]
        condition, base_condition = self._embed(context, batch)
        z = self.base.from_noise(noise, base_condition)
        with torch.enable_grad():
            point = tracked(z, keep_graph=False)
            density = self.base.log_prob(point, base_condition)
            score = vjp([density], point, [torch.ones_like(density)], differentiable=False)
        x, log_det, score = self.bijector.map_score(z, score, condition, True, False)
        x = held_inside(x, self.bijector.intervals(True))
        log_prob = self.base.log_prob(z, base_condition) - log_det
        if not torch.is_grad_enabled():
            x, log_prob = x.detach(), log_prob.detach()
        return x, log_prob, score

    def _latent(
        self,
        num_samples: int | Sequence[int],
        context: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Samples of the base, and what the bijector and the base take of the context."""
        shape = checks.sample_shape(type(self).__name__, "num_samples", num_samples)
        batch = *shape, *context_batch(self, context)
        condition, base_condition = self._embed(context, batch)
        rows = batch if base_condition is None else ()
        z = self.base.sample(rows, generator, base_condition)
        check_array(self, "z", z, self.latent_shape)
        return z, condition, base_condition

    def _from_latent(
        self, z: Tensor, condition: Tensor | None, base_condition: Tensor | None
    ) -> Output:
        x, log_det = check_output(self, z, self.bijector.map_inverse(z, condition))
        return held_inside(x, self.bijector.intervals(True)), self.base.log_prob(
            z, base_condition
        ) - log_det

    def distribution(
        self, context: Tensor | None = None, validate_args: bool | None = None
    ) -> interop.FlowDistribution:
        """The flow as a ``torch.distributions.Distribution``, see ``interop.FlowDistribution``."""
        return interop.distribution(self, context, validate_args)

    def _condition(
        self, name: str, x: Tensor, context: Tensor | None, in_training: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """Check an input and its context, and return what the bijector and the base take of that."""
        expanded = check_input(self, name, x, context)
        batch = () if expanded is None else expanded.shape[:-1]
        return self._embed(context, batch, in_training)

    def _through_nets(self, context: Tensor) -> Tensor:
        for net in list_of_nets(self.context_net):
            context = (
                net.map_forward(context, None)[0] if isinstance(net, Bijector) else net(context)
            )
        return context

    def _embed(
        self, context: Tensor | None, batch: Sequence[int], in_training: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """What the bijector and the base take of a context, for a batch of inputs."""
        if context is None:
            return None, None
        embedded = self._through_nets(context) if in_training else self.embed(context)
        embedded = embedded.expand(*batch, -1)
        return (
            embedded if self.bijector.context_dim else None,
            embedded if self.base.context_dim else None,
        )


@torch.no_grad()
def standardized(flow: Flow, x: Any, context: Any = None, robust: bool = False) -> Flow:
    """The flow of data in units of their own, for one of data that are standardised.

    It begins with ``Standardize``, mean and standard deviation those of x, and where a context is given
    the context passes through another. Both are fixed arrays of the flow and of its file, so that its
    densities and samples are those of x. Call it before ``fit``, on the data that ``fit`` gets.

    Args:
        flow: shares its modules with the result.
        x: data, shape ``(rows, *event_shape)``, of any dtype; images get one scale per channel.
        context: shape ``(rows, context_dim)``, to scale the context too. Where it goes to a ``DeepSet``
            first, all elements that count get one scale, and padding stays what it is; where to a
            ``ConvEmbedding``, each channel does.
        robust: scale by median and interquartile range / 1.349, which outliers do not move.

    Raises:
        ValueError: for a NaN or an infinity, and for a column that is constant or that the weights'
            dtype cannot tell from a constant.

    Examples:
        >>> import numpy as np, torch, torch_flows
        >>> x = np.random.default_rng(0).normal(50, 20, (100, 2))
        >>> flow = torch_flows.standardized(torch_flows.MAF(dim=2, num_layers=2), x)
        >>> bool(flow.bijector.bijectors[0].loc[0] == np.float32(x.mean(0)[0]))
        True
    """
    weight = next(iter(flow.state_dict().values()), torch.zeros(()))

    def scaling(array: Any, values_of: Callable[[Any, str], Any]) -> Standardize:
        array = array.detach().cpu() if isinstance(array, Tensor) else array
        array = np.asarray(array)
        shape = array.shape[1:]
        values = values_of(array, dtype_name(weight.dtype))
        bijector = Standardize(shape[0] if len(shape) == 1 else shape).to(weight)
        for buffer, value in zip((bijector.loc, bijector.scale), values, strict=True):
            buffer.copy_(torch.from_numpy(value))
        return bijector.eval()

    nets = list_of_nets(flow.context_net)
    if context is not None:
        net, names = nets[0] if nets else None, flow.context_columns
        of_context = partial(context_location_and_scale, net=net, names=names, robust=robust)
        nets = [scaling(context, of_context), *nets]
    of_data = partial(location_and_scale, names=flow.columns, robust=robust)
    bijector = Chain([scaling(x, of_data), flow.bijector])
    result = Flow(bijector, flow.base, nets, flow.columns, flow.context_columns)
    return result.train(flow.training)


def pullback(
    flow: Flow, log_density: Callable[[Tensor], Tensor], context: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """The log-density of the latent: z ↦ log_density(x) + log|det dx/dz|, x = flow.inverse(z).

    A sampler that draws z from it draws x(z) from the density, exactly, whatever the flow; where the
    flow fits, z is nearly of the base distribution, which is easy to sample (NeuTra, Hoffman et al., 2019,
    arXiv:1903.03704). Pulled back by a flow, its own density is that of its base.

    Args:
        flow: its weights stay as they are.
        log_density: from x ``(*batch, *event_shape)`` to ``(*batch,)``, differentiable; it need not be
            normalised. Where the flow has a bounded domain, x lies inside, as samples do.
        context: shape ``(*batch, context_dim)`` or broadcastable to it, for a conditional flow.

    Returns:
        A function of z, shape ``(*batch, *latent_shape)``: -inf outside the codomain of the bijector and
        at infinity. Its errors are those of ``flow.inverse``, and ``ValueError`` where log_density gives
        another shape.

    Raises:
        TypeError: for what is no flow, or no function.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.RealNVP(dim=2, hidden_dims=(8,), num_layers=2)
        >>> log_density = torch_flows.pullback(flow, lambda x: -(x**4).sum(-1))
        >>> log_density(torch.zeros(5, 2)).shape
        torch.Size([5])
    """
    inner = getattr(flow, "_orig_mod", flow)  # of what torch.compile returns
    checks.instances("pullback", "flow", [inner], Flow)
    check_callable("pullback", "log_density", log_density)

    def pulled_back(z: Tensor) -> Tensor:
        expanded = check_input(inner, "z", z, context)
        bijector, ndim = flow.bijector, len(flow.latent_shape)
        condition = None
        if expanded is not None and bijector.context_dim:
            condition = inner.embed(expanded)
        outside = bijector.outside(z, condition, inverse=True)
        z = moved_inside(z, outside, bijector.intervals(), ndim)
        x, log_det = flow.inverse(z, context)
        value = log_density(held_inside(x, bijector.intervals(True)))
        shape = getattr(value, "shape", None)
        checks.one_per_event("pullback", "log_density", x.shape, log_det.shape, shape)
        return torch.where(outside, -math.inf, value + log_det)

    return pulled_back


def held_inside(x: Tensor, intervals: Sequence[Interval]) -> Tensor:
    """x, where rounding puts it on an open end of its interval the last number before it."""
    if all(interval == REALS for interval in intervals):
        return x
    ends = [i if i == REALS else i.ends(dtype_name(x.dtype)) for i in intervals]
    if len(ends) == 1:
        low, high = ends[0]
        return torch.where(x < low, low, torch.where(x > high, high, x))
    lows, highs = x.new_tensor(ends).unbind(-1)
    return torch.where(x < lows, lows, torch.where(x > highs, highs, x))


def list_of_nets(context_net: Any) -> list[Any]:
    """The networks that a context passes through, in turn."""
    if context_net is None:
        return []
    return (
        list(context_net)
        if isinstance(context_net, list | tuple | nn.ModuleList)
        else [context_net]
    )


def net_widths(owner: str, net: Any) -> tuple[int | None, int | None]:
    """Widths of the input and of the output of a part of ``context_net``; ``None`` is any."""
    if isinstance(net, Bijector):
        return checks.vector_widths(owner, net)
    return checks.network_widths(owner, net)
