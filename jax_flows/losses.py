"""Losses: what ``fit`` minimises, one number for each row."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.sources import Draw, Match, base_noise
from flow_bridge.training import check_callable, check_energy, check_order
from jax_flows.flows import Flow
from jax_flows.variables import Variables


class Loss(ABC):
    """What ``fit`` minimises: the mean over a batch, or weighted mean, of one number for each row.

    A subclass is a frozen dataclass whose fields are its options. What it draws at random comes from
    ``draw``, on the host, so that both backends get the same numbers; ``fit`` hands them to the loss with
    the rows they were drawn for. Validation takes the same ones after every epoch.

    Attributes:
        needs_data: whether it needs rows x; ``fit`` runs others also for ``num_steps`` without data.
    """

    needs_data: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> Array:
        """One number for each row, shape ``(rows,)``.

        Args:
            flow: the flow.
            variables: its arrays.
            x: shape ``(rows, *event_shape)``, ``None`` without data.
            context: shape ``(rows, context_dim)``, or without data ``(context_dim,)``; ``None`` for none.
            noise: what ``draw`` gave, in the weights' dtype.
        """

    def call_and_update(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> tuple[Array, Variables]:
        """The loss in training mode: (one number for each row, the new ``batch_stats``)."""
        return self(flow, variables, x, context, *noise), variables["batch_stats"]

    def draw(
        self, flow: Flow, generator: np.random.Generator, num_rows: int
    ) -> tuple[np.ndarray, ...]:
        """What is drawn at random for some rows: arrays of ``num_rows`` rows, or none."""
        return ()

    def match(
        self, rows: tuple[np.ndarray, ...], noise: tuple[np.ndarray, ...]
    ) -> tuple[np.ndarray, ...]:
        """What takes the place of ``noise``, given x, its context and weights as far as there are any.

        Where a loss defines it, data stay on the host.
        """
        return noise

    def check(self, flow: Flow) -> None:  # noqa: B027
        """Raise ``ValueError`` or ``TypeError`` for a flow that it cannot train."""

    def describe(self) -> Any:
        """What a training state says of it: its name, and the options that are no functions."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return [type(self).__name__, {k: v for k, v in options.items() if not callable(v)}]


@dataclass(frozen=True)
class NegativeLogLikelihood(Loss):
    """-log q(x): maximum likelihood, the loss of ``fit`` unless another is given.

    With ``weights`` of rows p(x) / r(x) for rows drawn from r it is the forward KL divergence to p, but
    for a constant.
    """

    def __call__(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> Array:
        return -flow.log_prob(variables, x, context)

    def call_and_update(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> tuple[Array, Variables]:
        log_prob, batch_stats = flow.log_prob_and_update(variables, x, context)
        return -log_prob, batch_stats

    def describe(self) -> Any:
        return "negative log-likelihood"


@dataclass(frozen=True)
class ReverseKL(Loss):
    """log q(x) + energy(x) for x from the flow: KL(q || p) for p ~ exp(-energy), but for log Z.

    Args:
        energy: from x ``(rows, *event_shape)`` to ``(rows,)``, differentiable; one written for one
            event is mapped over them first (``vmap``).

    Raises:
        TypeError: for an energy that is no function.
        ValueError: in ``fit``, for an energy that is not one number for each row, and for a base whose
            samples have no gradients.
    """

    needs_data = False
    energy: Callable[[Array], Array]

    def __post_init__(self) -> None:
        check_callable("ReverseKL", "energy", self.energy)

    def check(self, flow: Flow) -> None:
        checks.reparameterized("ReverseKL", type(flow.base).__name__, flow.base.reparameterized)

    def draw(
        self, flow: Flow, generator: np.random.Generator, num_rows: int
    ) -> tuple[np.ndarray, ...]:
        return (base_noise(generator, flow.base.noise, (num_rows, *flow.base.noise_shape)),)

    def __call__(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> Array:
        return _log_ratio("ReverseKL", flow, variables, self.energy, noise[0], context)

    def describe(self) -> Any:
        return "reverse KL"


@dataclass(frozen=True)
class ImportanceWeighted(Loss):
    """A bound on -log Z from several samples of the flow for each row, Z the integral of exp(-energy).

    With w_k = exp(-energy(x_k)) / q(x_k) for k of ``num_samples`` it is

        -log(mean_k w_k^(1 - alpha)) / (1 - alpha),

    the importance-weighted bound at alpha = 0, which covers the target best, and ``ReverseKL`` in the limit
    alpha to 1.

    Args:
        energy: as in ``ReverseKL``.
        num_samples: samples for each row, of which ``batch_size`` are in a step.
        alpha: the order, at least 0 and not 1.

    Raises:
        TypeError: for an energy that is no function.
        ValueError: for options out of range; in ``fit`` as ``ReverseKL``.

    Reference: Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519;
    Li and Turner (2016), Renyi Divergence Variational Inference, arXiv:1602.02311.
    """

    needs_data = False
    energy: Callable[[Array], Array]
    num_samples: int = 8
    alpha: float = 0.0

    def __post_init__(self) -> None:
        check_callable("ImportanceWeighted", "energy", self.energy)
        checks.positive_int("ImportanceWeighted", num_samples=self.num_samples)
        check_order("ImportanceWeighted", self.alpha)

    def check(self, flow: Flow) -> None:
        name = "ImportanceWeighted"
        checks.reparameterized(name, type(flow.base).__name__, flow.base.reparameterized)

    def draw(
        self, flow: Flow, generator: np.random.Generator, num_rows: int
    ) -> tuple[np.ndarray, ...]:
        shape = (num_rows, self.num_samples, *flow.base.noise_shape)
        return (base_noise(generator, flow.base.noise, shape),)

    def __call__(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> Array:
        if context is not None and context.ndim > 1:
            context = context[:, None]
        log_ratio = _log_ratio(
            "ImportanceWeighted", flow, variables, self.energy, noise[0], context
        )
        power = 1 - self.alpha
        return (math.log(self.num_samples) - jax.nn.logsumexp(-power * log_ratio, 1)) / power


@dataclass(frozen=True)
class _Function(Loss):
    """A function of the user's: of the flow, its variables, x and its context.

    It may give the new ``batch_stats`` beside the losses, as ``log_prob_and_update`` does.
    """

    needs_data = False
    function: Callable[..., Array]

    def __call__(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> Array:
        values = self.function(flow, variables, x, context)
        return values[0] if isinstance(values, tuple) else values

    def call_and_update(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> tuple[Array, Variables]:
        values = self.function(flow, variables, x, context)
        return values if isinstance(values, tuple) else (values, variables["batch_stats"])

    def describe(self) -> Any:
        return getattr(self.function, "__qualname__", type(self.function).__name__)


def as_loss(loss: Loss | Callable[..., Array] | None) -> Loss:
    """The argument ``loss`` of ``fit`` as a ``Loss``."""
    if loss is None:
        return NegativeLogLikelihood()
    check_callable("fit", "loss", loss)
    return loss if isinstance(loss, Loss) else _Function(loss)


def draws(loss: Loss, flow: Flow) -> tuple[Draw | None, Match | None]:
    """What a loss draws and matches on the host, ``None`` for a loss that does not."""
    draw = None if type(loss).draw is Loss.draw else partial(loss.draw, flow)
    return draw, None if type(loss).match is Loss.match else loss.match


def _log_ratio(
    owner: str,
    flow: Flow,
    variables: Variables,
    energy: Callable[[Array], Array],
    noise: Array,
    context: Array | None,
) -> Array:
    """log q(x) + energy(x), of x from the flow."""
    x, log_prob = flow.from_noise(variables, noise, context)
    events = x.reshape(-1, *x.shape[log_prob.ndim :])
    values = energy(events)
    check_energy(owner, events.shape, getattr(values, "shape", None))
    return log_prob + values.reshape(log_prob.shape)
