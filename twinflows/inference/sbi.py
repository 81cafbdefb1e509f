"""Flows of PyTorch as the density estimators of sbi: ``pip install 'twinflows[sbi]'``.

The flow that sbi trains is ``estimator.net``, scaling of parameters and data included: ``torch_flows.save``
writes it, and ``jax_flows.load`` reads it for samplers that need gradients and ``vmap``.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

import torch_flows
from flow_bridge import optional
from flow_bridge.standardization import context_location_and_scale
from torch_flows.flows import list_of_nets
from torch_flows.inputs import dtype_name
from twinflows.sides.models import describe

base: Any = optional.host(__name__, "sbi.neural_nets.estimators.base", "sbi", "sbi")


def posterior_estimator(
    model: str | torch_flows.Flow = "nsf",
    *,
    embedding_net: nn.Module | None = None,
    standardize: bool = True,
    **options: Any,
) -> "EstimatorFactory":
    """The density of parameters given data, for ``NPE(prior, density_estimator=...)``.

    Args:
        model: the name of a model, or a flow, of which each training gets a copy.
        embedding_net: what the standardised data pass through; trained with the flow. Networks of
            twinflows (``MLP``, ``DeepSet``, ``ConvEmbedding``) become part of the flow and of its file;
            any other module stays outside, and its output is the context of ``estimator.net``.
        standardize: scale parameters and data to mean 0 and standard deviation 1, inside the flow. Constant
            entries of the data are left as they are; constant parameters are refused, they have no
            density.
        options: arguments of the model, such as ``num_layers=3`` or ``base=...``.

    Returns:
        A callable of parameters and data, which pickles.

    Raises:
        ValueError: when called, for parameters that are no vectors or have a constant entry, and for a flow
            of another shape.
    """
    return EstimatorFactory(model, embedding_net, standardize, options, of_data=False)


def likelihood_estimator(
    model: str | torch_flows.Flow = "nsf",
    *,
    embedding_net: nn.Module | None = None,
    standardize: bool = True,
    **options: Any,
) -> "EstimatorFactory":
    """The density of data given parameters, for ``NLE(prior, density_estimator=...)``.

    As ``posterior_estimator`` with both exchanged: the data are vectors without constant entries, and the
    embedding network is that of the parameters.
    """
    return EstimatorFactory(model, embedding_net, standardize, options, of_data=True)


def variational_posterior(model: str = "nsf", **options: Any) -> "VariationalFactory":
    """The variational family of ``VIPosterior``: ``build_posterior(..., sample_with="vi", ...)``'s ``q``.

    Args:
        model, options: as in ``posterior_estimator``.
    """
    return VariationalFactory(model, options)


@dataclass(frozen=True, eq=False)
class EstimatorFactory:
    """Makes an estimator from parameters and data, see ``posterior_estimator``."""

    model: str | torch_flows.Flow
    embedding_net: nn.Module | None
    standardize: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    of_data: bool = False

    def __call__(self, theta: Tensor, x: Tensor) -> "FlowEstimator":
        values, condition = (x, theta) if self.of_data else (theta, x)
        what = "data" if self.of_data else "parameters"
        if values.ndim != 2:
            raise ValueError(
                f"the {what} are expected as vectors, got {tuple(values.shape[1:])}: flatten them."
            )
        embedding = copy.deepcopy(self.embedding_net)
        inside = embedding is None or isinstance(getattr(embedding, "in_dim", None), int)
        if inside:
            width = condition[0].numel() if embedding is None else int(embedding.out_dim)  # type: ignore[arg-type]
        else:
            assert embedding is not None
            if self.standardize:
                embedding = nn.Sequential(_Scaling(condition), embedding)
            with torch.no_grad():
                width = embedding(condition[:2]).flatten(1).shape[1]
        flow = self._flow(values, width)
        nets: list[Any] = [embedding] if inside and embedding is not None else []
        nets += list_of_nets(flow.context_net)
        if self.standardize:
            flow = torch_flows.standardized(flow, values)
            if inside:
                scaling = _Scaling(condition.flatten(1), nets[0] if nets else None)
                nets = [scaling.as_bijector(), *nets]
        flow = torch_flows.Flow(flow.bijector, flow.base, nets).eval()
        return FlowEstimator(
            flow, None if inside else embedding, values[0].shape, condition[0].shape
        )

    def _flow(self, values: Tensor, context_dim: int) -> torch_flows.Flow:
        shape = tuple(values.shape[1:])
        if isinstance(self.model, str):
            described = describe(self.model, "torch", shape, context_dim, self.options)
            return torch_flows.build(described).to(values.dtype)
        flow = copy.deepcopy(self.model).to(values.dtype)
        if (flow.event_shape, flow.context_dim) != (shape, context_dim):
            raise ValueError(
                f"the flow is expected to be of events {shape} with a context of {context_dim}, got "
                f"{flow.event_shape} and {flow.context_dim}."
            )
        return flow


class FlowEstimator(base.ConditionalDensityEstimator):
    """A flow behind the interface of sbi's density estimators.

    Args:
        flow: ``net``; its context is the condition, flattened, or what ``embedding`` makes of it.
        embedding: a module that stays outside the flow.
        input_shape, condition_shape: of one event and of one condition.
    """

    def __init__(
        self,
        flow: torch_flows.Flow,
        embedding: nn.Module | None,
        input_shape: Any,
        condition_shape: Any,
    ) -> None:
        super().__init__(flow, input_shape, condition_shape)
        self._embedding = embedding

    @property
    def embedding_net(self) -> nn.Module | None:
        """What the condition passes through, the scaling included."""
        return self._embedding if self._embedding is not None else self.net.context_net

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """``(samples, batch)`` for input ``(samples, batch, dim)`` and condition ``(batch, ...)``."""
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        input, _, _ = self._broadcast_and_align(input, condition)
        return self.net.log_prob(input, self._context(condition))

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """The negative log-density of every row, ``(batch,)``."""
        return -self.log_prob(input[None], condition)[0]

    def sample(self, sample_shape: Any, condition: Tensor, **kwargs: Any) -> Tensor:
        """``(*sample_shape, batch, dim)``."""
        self._check_condition_shape(condition)
        return self.net.sample(tuple(sample_shape), self._context(condition))

    def sample_and_log_prob(
        self, sample_shape: Any, condition: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities in one pass."""
        self._check_condition_shape(condition)
        return self.net.sample_and_log_prob(tuple(sample_shape), self._context(condition))

    def inverse_transform(self, input: Tensor, condition: Tensor) -> Tensor:
        """The latents, which are standard normal where the estimator is right (for L-C2ST)."""
        input, _, _ = self._broadcast_and_align(input, condition)
        return self.net.forward(input, self._context(condition))[0]

    def _context(self, condition: Tensor) -> Tensor:
        lead = condition.shape[: condition.ndim - len(self.condition_shape)]
        if self._embedding is None:
            return condition.reshape(*lead, -1)
        return self._embedding(condition.reshape(-1, *self.condition_shape)).reshape(*lead, -1)


@dataclass(frozen=True, eq=False)
class VariationalFactory:
    """Makes ``q`` of sbi's variational posterior, see ``variational_posterior``."""

    model: str
    options: Mapping[str, Any]

    def __call__(
        self, event_shape: Any, link_transform: Any, device: str = "cpu"
    ) -> "VariationalFlow":
        described = describe(self.model, "torch", tuple(event_shape), 0, self.options)
        return VariationalFlow(torch_flows.build(described).to(device), link_transform)


class VariationalFlow(Distribution):
    """A flow on the real line, carried to the support of a prior by sbi's transform."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, flow: torch_flows.Flow, link_transform: Any) -> None:
        self._held = _Held(flow)
        self._link = link_transform
        super().__init__(event_shape=torch.Size(flow.event_shape), validate_args=False)  # type: ignore[arg-type]

    @property
    def flow(self) -> torch_flows.Flow:
        """The flow, of parameters without bounds."""
        return self._held.flow

    @property
    def support(self) -> Any:
        return self._link.codomain

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.flow.base.reparameterized

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Samples with gradients."""
        return self._link(self.flow.distribution(validate_args=False).rsample(sample_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Samples without gradients, of any base."""
        with torch.no_grad():
            return self._link(self.flow.sample(tuple(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density in the parameters' own units."""
        x = self._link.inv(value)
        slope = self._link.log_abs_det_jacobian(x, value)
        if slope.ndim == value.ndim:
            slope = slope.sum(-1)
        return self.flow.log_prob(x) - slope

    def parameters(self) -> Iterable[Tensor]:
        """The weights of the flow."""
        return self.flow.parameters()

    def modules(self) -> Iterable[nn.Module]:
        """The flow."""
        return [self.flow]

    def to(self, device: Any) -> None:
        """Move the weights, in place."""
        self.flow.to(device)


class _Held:
    """Hides a flow from sbi, which rewrites the attributes of all objects that it finds."""

    __slots__ = ("flow",)

    def __init__(self, flow: torch_flows.Flow) -> None:
        self.flow = flow


class _Scaling(nn.Module):
    """Mean 0 and standard deviation 1: of every entry, or of structured data as a whole.

    Missing values (NaN) do not count, constant entries keep their scale. What ``net`` takes as elements of a
    set, or as channels of an image, is scaled as in ``standardized``.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, condition: Tensor, net: nn.Module | None = None) -> None:
        super().__init__()
        values = condition.detach().cpu().double().numpy()
        values = values.reshape(len(values), -1)
        if hasattr(net, "element_dim") or hasattr(net, "image_shape"):
            loc, scale = context_location_and_scale(values, dtype_name(condition.dtype), net)
        else:
            axis = 0 if condition.ndim == 2 else None
            loc, scale = np.nanmean(values, axis), np.nanstd(values, axis)
        noise = np.maximum(abs(loc) * torch.finfo(condition.dtype).eps * 1e3, 0)
        for name, array in (("loc", loc), ("scale", np.where(scale > noise, scale, 1.0))):
            self.register_buffer(name, torch.as_tensor(array).to(condition))

    def forward(self, condition: Tensor) -> Tensor:
        return (condition - self.loc) / self.scale

    def as_bijector(self) -> torch_flows.Standardize:
        """The same as a part of a flow, which files know."""
        bijector = torch_flows.Standardize(len(self.loc)).to(self.loc)
        bijector.loc.copy_(self.loc)
        bijector.scale.copy_(self.scale)
        return bijector
