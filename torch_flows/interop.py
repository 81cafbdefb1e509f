"""Flows as ``torch.distributions``, bijectors as their transforms; Pyro is imported when it is used."""

import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from flow_bridge import checks, optional
from flow_bridge.domains import REALS, Interval
from torch_flows.bijectors.base import Bijector
from torch_flows.inputs import context_batch

if TYPE_CHECKING:
    from torch_flows.flows import Flow


class FlowDistribution(torch.distributions.Distribution):
    """A flow as a ``torch.distributions.Distribution``.

    ``support`` is the domain of the flow's bijector. The distribution holds the flow itself: training
    and ``flow.eval()`` after the construction count. Samples have shape
    ``(*sample_shape, *batch_shape, *event_shape)``; ``log_prob`` broadcasts its value against
    ``batch_shape``.

    Args:
        flow: the flow.
        context: shape ``(*batch_shape, context_dim)``, for a flow that takes one.
        validate_args: check that values lie in the support (and the context is free of NaN), which
            reads them; PyTorch's default if not given.

    Raises:
        ValueError, TypeError: for a context that is missing, unexpected, or of a wrong shape or dtype.
    """

    def __init__(
        self, flow: "Flow", context: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        self.flow = flow
        self.context = context
        batch_shape = torch.Size(context_batch(flow, context))
        super().__init__(batch_shape, torch.Size(flow.event_shape), validate_args)  # type: ignore[arg-type]

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        return {} if self.context is None else {"context": constraints.real_vector}

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return _constraint(self.flow.bijector.domain, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether gradients through samples reach every weight: whether they do in the flow's base."""
        return self.flow.base.reparameterized

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Samples with gradients; ``NotImplementedError`` if not ``has_rsample``."""
        if not self.has_rsample:
            base = type(self.flow.base).__name__
            raise NotImplementedError(checks.not_reparameterized(type(self).__name__, base))
        return self._draw(sample_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self._draw(sample_shape)

    def _draw(self, sample_shape: Any) -> Tensor:
        if self.context is None:
            return self.flow.sample((*sample_shape, *self.batch_shape))
        context = self.context.expand(*self.batch_shape, self.flow.context_dim)
        return self.flow.sample(tuple(sample_shape), context)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value = _expand(value, self.context, len(self.event_shape))
        log_prob = self.flow.log_prob(value, self.context)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlowDistribution":
        """The same distribution with its batch shape broadcast to a larger one."""
        new = self._get_checked_instance(FlowDistribution, _instance)
        batch_shape = torch.Size(batch_shape)
        checks.broadcastable(type(self).__name__, self.batch_shape, batch_shape)
        new.flow, new.context = self.flow, self.context
        super(FlowDistribution, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"{type(self).__name__}({type(self.flow).__name__}, {shapes})"


class BijectorTransform(Transform):
    """A bijector as a ``torch.distributions.Transform``, from data to latent.

    ``TransformedDistribution(base, flow.bijector.transform().inv)`` is the flow on any torch base. The
    event axes are those of the bijector: an elementwise bijector has ``event_ndim`` of them and sums
    its log-det over them. The log-det of the last pass is kept, so that ``log_abs_det_jacobian`` of
    its input and output costs nothing; with ``cache_size=1`` so is the output itself.

    Args:
        bijector: the bijector.
        context: shape ``(*batch, context_dim)``; inputs broadcast against its batch.
        cache_size: 0 or 1, as in every transform of PyTorch. Clear a cached transform (or make a new
            one) when the weights change.

    Raises:
        ValueError, TypeError: for a context that is missing, unexpected, or of a wrong shape or dtype.
    """

    bijective = True

    def __init__(
        self, bijector: Bijector, context: Tensor | None = None, cache_size: int = 0
    ) -> None:
        super().__init__(cache_size)
        self.bijector = bijector
        self.context = context
        self.domain = _constraint(bijector.domain, len(bijector.event_shape))
        self.codomain = _constraint(bijector.codomain, len(bijector.latent_shape))
        self._context_batch = context_batch(bijector, context)
        self._last: tuple[Tensor, Tensor, Tensor, bool] | None = None

    def _call(self, x: Tensor) -> Tensor:
        expanded = _expand(x, self.context, self.domain.event_dim)
        z, log_det = self.bijector.forward(expanded, self.context)
        self._last = x, z, log_det, torch.is_grad_enabled()
        return z

    def _inverse(self, z: Tensor) -> Tensor:
        expanded = _expand(z, self.context, self.codomain.event_dim)
        x, log_det = self.bijector.inverse(expanded, self.context)
        self._last = x, z, -log_det, torch.is_grad_enabled()
        return x

    def log_abs_det_jacobian(self, x: Tensor, z: Tensor) -> Tensor:
        """log|det dz/dx| of shape ``(*batch,)``."""
        if self._last is not None:
            last_x, last_z, log_det, had_grad = self._last
            # a log-det computed without gradients is of no use to who needs them
            if x is last_x and z is last_z and had_grad >= torch.is_grad_enabled():
                return log_det
        x = _expand(x, self.context, self.domain.event_dim)
        return self.bijector.forward(x, self.context)[1]

    def with_cache(self, cache_size: int = 1) -> "BijectorTransform":
        if cache_size == self._cache_size:
            return self
        return BijectorTransform(self.bijector, self.context, cache_size)

    def forward_shape(self, shape: Any) -> torch.Size:
        return self._shape("x", shape)

    def inverse_shape(self, shape: Any) -> torch.Size:
        return self._shape("z", shape)

    def _shape(self, name: str, shape: Any) -> torch.Size:
        event_shape = self.bijector.event_shape if name == "x" else self.bijector.latent_shape
        label = type(self.bijector).__name__
        batch = checks.batch_of(label, name, tuple(shape), event_shape)
        event: Any = self.bijector.map_shape(tuple(shape[len(batch) :]), inverse=name == "z")
        return torch.Size((*torch.broadcast_shapes(batch, self._context_batch), *event))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.bijector).__name__})"


def distribution(
    flow: "Flow", context: Tensor | None = None, validate_args: bool | None = None
) -> FlowDistribution:
    """A ``FlowDistribution``; a ``PyroFlowDistribution`` in a program that has imported Pyro."""
    # a compiler cannot trace the making of a class, and Pyro does not run in compiled code
    with_pyro = "pyro.distributions" in sys.modules and not torch.compiler.is_compiling()
    return (_pyro_class() if with_pyro else FlowDistribution)(flow, context, validate_args)


@cache
def _pyro_class() -> type[FlowDistribution]:
    pyro = optional.host("PyroFlowDistribution", "pyro.distributions.torch_distribution", "Pyro")
    Mixin: Any = pyro.TorchDistributionMixin

    class PyroFlowDistribution(FlowDistribution, Mixin):
        """A ``FlowDistribution`` with the methods that Pyro adds: ``to_event``, ``mask``, ..."""

    PyroFlowDistribution.__qualname__ = "PyroFlowDistribution"
    return PyroFlowDistribution


def __getattr__(name: str) -> Any:
    if name == "PyroFlowDistribution":
        return _pyro_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _constraint(interval: Interval, event_ndim: int) -> constraints.Constraint:
    """The interval as a constraint on events; PyTorch has no bounded interval that is open."""
    low, high = interval
    constraint: constraints.Constraint
    if interval == REALS:
        constraint = constraints.real
    elif high == REALS.high:
        constraint = constraints.positive if low == 0 else constraints.greater_than(low)
    elif low == REALS.low:
        constraint = constraints.less_than(high)
    else:
        constraint = constraints.interval(low, high)
    return constraints.independent(constraint, event_ndim)


def _expand(x: Tensor, context: Tensor | None, event_ndim: int) -> Tensor:
    """x with its batch broadcast against that of the context."""
    cut = x.ndim - event_ndim
    if context is None or cut < 0:
        return x
    return x.expand(*torch.broadcast_shapes(x.shape[:cut], context.shape[:-1]), *x.shape[cut:])
