"""Losses: what ``fit`` minimises, one number for each row."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.matching import (
    check_circle,
    check_matching,
    check_pairs,
    digest,
    draw_times,
    draws_its_own,
    host_pairs,
    matched,
    needs_continuous,
    needs_plain_space,
)
from flow_bridge.sources import Draw, Match, base_noise
from flow_bridge.training import check_callable, check_energy, check_order
from jax_flows.annealing import AnnealedImportanceSampling
from jax_flows.bijectors.base import Bijector
from jax_flows.bijectors.continuous import ContinuousBijector
from jax_flows.bijectors.structure import Chain
from jax_flows.distributions import StandardNormal
from jax_flows.flows import Flow
from jax_flows.numerics import sum_event
from jax_flows.univariate.circular import wrapped
from jax_flows.variables import HasVariables, Variables


class Loss(ABC):
    """What ``fit`` minimises: the mean over a batch, or weighted mean, of one number for each row.

    A subclass is a frozen dataclass whose fields are its options. What it draws at random comes from
    ``draw``, on the host, so that both backends get the same numbers; ``fit`` hands them to the loss with
    the rows they were drawn for. Validation takes the same ones after every epoch.

    Attributes:
        needs_data: whether it needs rows x; ``fit`` runs others also for ``num_steps`` without data.
        models: the class of what it can train.
    """

    needs_data: ClassVar[bool] = True
    models: ClassVar[type] = Flow

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
class NoisyLikelihood(NegativeLogLikelihood):
    """-log q(x + sigma e) for e standard normal, drawn anew in every step: noise augmentation.

    The flow learns the density of data blurred by noise, for data near thin sets as images are; ``denoise``
    takes the noise off its samples.

    Args:
        sigma: above 0.

    Raises:
        ValueError: for another sigma.

    Reference: Zhai et al. (2024), TarFlow, arXiv:2412.06329.
    """

    sigma: float = 0.05

    def __post_init__(self) -> None:
        checks.positive_number("NoisyLikelihood", sigma=self.sigma)

    def draw(
        self, flow: Flow, generator: np.random.Generator, num_rows: int
    ) -> tuple[np.ndarray, ...]:
        return (generator.standard_normal((num_rows, *map(checks.known, flow.event_shape))),)

    def __call__(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> Array:
        return super().__call__(flow, variables, x + self.sigma * noise[0], context)

    def call_and_update(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> tuple[Array, Variables]:
        return super().call_and_update(flow, variables, x + self.sigma * noise[0], context)

    def describe(self) -> Any:
        return ["noisy likelihood", self.sigma]


@dataclass(frozen=True)
class ReverseKL(Loss):
    """log q(x) + energy(x) for x from the flow: KL(q || p) for p ~ exp(-energy), but for log Z.

    Args:
        energy: from x ``(rows, *event_shape)`` to ``(rows,)``, differentiable; one written for one
            event is mapped over them first (``vmap``).
        path_gradient: leave out the part of the gradient that is 0 on average, that of log q with x held:
            what remains is exactly 0 in every step where q = p. The score of q is carried from layer to
            layer, see ``Flow.from_noise_with_score``.

    Raises:
        TypeError: for an energy that is no function.
        ValueError: in ``fit``, for an energy that is not one number for each row, and for a base whose
            samples have no gradients.

    Reference: Roeder, Wu and Duvenaud (2017), Sticking the landing, arXiv:1703.09194; Vaitl et al. (2022),
    Gradients should stay on path, arXiv:2207.08219.
    """

    needs_data = False
    energy: Callable[[Array], Array]
    path_gradient: bool = False

    def __post_init__(self) -> None:
        check_callable("ReverseKL", "energy", self.energy)
        checks.boolean("ReverseKL", path_gradient=self.path_gradient)

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
        if not self.path_gradient:
            return _log_ratio("ReverseKL", flow, variables, self.energy, noise[0], context)
        x, log_prob, score = flow.from_noise_with_score(variables, noise[0], context)
        along = sum_event(score * x, x.ndim - 1)  # whose gradient is that of log q at x along x
        return (
            jax.lax.stop_gradient(log_prob - along) + along + _energies("ReverseKL", self.energy, x)
        )

    def describe(self) -> Any:
        return ["reverse KL", "path gradient"] if self.path_gradient else "reverse KL"


@dataclass(frozen=True)
class FisherDivergence(Loss):
    """|score of z under p - gradient of log p_base(z)|^2, z the latent of a row x: no normaliser, no samples.

    It compares slopes, not densities: each row says as many things as it has entries, so that it takes
    fewer rows than maximum likelihood. It is 0 where q = p; modes that are far apart do not feel each
    other's weights.

    Args:
        energy: from x ``(rows, *event_shape)`` to ``(rows,)``, differentiable: p ~ exp(-energy).
        latent: compare in latent space, where the flow makes scales alike; if not, scores of x.

    Raises:
        TypeError: for an energy that is no function.
        ValueError: in ``fit``, for an energy that is not one number for each row.

    Reference: Hyvarinen (2005), Estimation of Non-Normalized Statistical Models by Score Matching.
    """

    energy: Callable[[Array], Array]
    latent: bool = True

    def __post_init__(self) -> None:
        check_callable("FisherDivergence", "energy", self.energy)
        checks.boolean("FisherDivergence", latent=self.latent)

    def __call__(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> Array:
        values, pull = jax.vjp(lambda x: _energies("FisherDivergence", self.energy, x), x)
        target = -pull(jnp.ones_like(values))[0]
        if not self.latent:
            score = flow.score(variables, x, context)
            return sum_event(jnp.square(score - target), x.ndim - 1)
        z, _, score = flow.forward_with_score(variables, x, target, context)
        difference = score - flow.base_score(variables, z, context)
        return sum_event(jnp.square(difference), z.ndim - 1)


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
class AnnealedBootstrap(Loss):
    """-N w_i log q(x_i) of N annealed samples x_i, w_i their normalised weights: modes are found and kept.

    The samples are those of ``sampling``, without gradients. With ``power=2`` they lie where q is too small
    for p; the mean gradient is 0 at q = p with any. Each batch is weighted by itself, and each of several
    processes its own part. A ``ReplayBuffer`` uses samples more than once.

    Args:
        sampling: an ``AnnealedImportanceSampling``, whose energy is that of the target.

    Raises:
        TypeError: for another sampling.
        ValueError: in ``fit``, for an energy that is not one number for each row.

    Reference: Midgley et al. (2023), Flow Annealed Importance Sampling Bootstrap, arXiv:2208.01893.
    """

    needs_data = False
    sampling: AnnealedImportanceSampling

    def __post_init__(self) -> None:
        checks.instances(
            "AnnealedBootstrap", "sampling", [self.sampling], AnnealedImportanceSampling
        )

    def draw(
        self, flow: Flow, generator: np.random.Generator, num_rows: int
    ) -> tuple[np.ndarray, ...]:
        return self.sampling.draw(flow, generator, num_rows)

    def __call__(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> Array:
        latent, momenta, uniforms = noise
        annealed = self.sampling.from_noise(flow, variables, latent, momenta, uniforms, context)
        weights = jax.nn.softmax(annealed.log_weight)
        return -len(weights) * weights * flow.log_prob(variables, annealed.x, context)

    def describe(self) -> Any:
        options = vars(self.sampling)
        return [type(self).__name__, {k: v for k, v in options.items() if not callable(v)}]


@dataclass(frozen=True)
class FlowMatching(Loss):
    """Flow matching: |f(x_t, t) - dx_t/dt|^2 for a ``ContinuousBijector`` f and paths from data to noise.

    A step costs one evaluation of f and its gradient, where maximum likelihood integrates. The path goes
    from x at t = 0 to z at t = 1, z from the base and independent of x; e is standard normal.

    - ``"rectified"``: x_t = (1 - t) x + t z + sigma e, dx_t/dt = z - x;
    - ``"lipman"``: x_t = (1 - t) x + (sigma + (1 - sigma) t) z, dx_t/dt = (1 - sigma) z - x;
    - ``"schroedinger_bridge"``: x_t = (1 - t) x + t z + sigma r e, and
      dx_t/dt = z - x + sigma (1 - 2 t) / (2 r) e, r^2 = t (1 - t);
    - ``"variance_preserving"``: x_t = cos(pi t / 2) x + sin(pi t / 2) z and its derivative.

    The bridge's loss is multiplied by 4 r^2: otherwise its variance is infinite. With a sigma above 0 the
    density of ``"lipman"`` is that of data blurred by a normal of that standard deviation; ``"rectified"``
    ends in z blurred too, which the base is not: its density is near that for a small sigma only.

    In ``circular`` columns of the bijector z is the one of its angles that is nearest to x, so that paths
    go the shorter way round; the base lies on the circle (``Uniform(dim, -pi, pi)``, ``VonMises``).

    The smallest loss is no bound of the likelihood: fit again without a loss to polish it. Members of a
    chain before the ``ContinuousBijector`` (``Standardize``) and the base are not trained. The solver and
    the trace play no part.

    Args:
        path: one of these.
        sigma: at least 0.
        times: of t, ``"uniform"``; or ``"logit_normal"``, the sigmoid of a standard normal.

    Raises:
        ValueError: for options out of range; in ``fit``, for a flow of another kind.

    Reference: Lipman et al. (2023), arXiv:2210.02747; Liu et al. (2023), arXiv:2209.03003; Albergo and
    Vanden-Eijnden (2023), arXiv:2209.15571; Tong et al. (2024), arXiv:2302.00482; Esser et al. (2024),
    arXiv:2403.03206, for the times; Chen and Lipman (2024), arXiv:2302.03660, for angles.
    """

    path: str = "rectified"
    sigma: float = 0.0
    times: str = "uniform"

    def __post_init__(self) -> None:
        check_matching(type(self).__name__, self.path, self.sigma, self.times)

    def check(self, flow: Flow) -> None:
        if not isinstance(_members(flow)[1], ContinuousBijector):
            name = type(flow.bijector).__name__
            raise ValueError(needs_continuous(type(self).__name__, name))
        check_circle(type(self).__name__, self.path, _members(flow)[1].circular)

    def draw(
        self, flow: Flow, generator: np.random.Generator, num_rows: int
    ) -> tuple[np.ndarray, ...]:
        noise = base_noise(generator, flow.base.noise, (num_rows, *flow.base.noise_shape))
        t = draw_times(generator, self.times, num_rows)
        if self.path == "schroedinger_bridge" or (self.path == "rectified" and self.sigma):
            return noise, t, generator.standard_normal((num_rows, _members(flow)[1].dim))
        return noise, t

    def __call__(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> Array:
        condition = None if context is None else flow.embed(variables, context)
        given = condition if flow.base.context_dim else None
        z = flow.base.map_noise(flow.split(variables)["base"], noise[0], given)
        return self.errors(flow, variables, x, z, condition, *noise[1:])

    def errors(
        self,
        flow: Flow,
        variables: Variables,
        x: Array,
        z: Array,
        condition: Array | None,
        t: Array,
        *noise: Array,
    ) -> Array:
        """The loss of the paths from x to z at the times t, given the embedded context."""
        before, field = _members(flow)
        own = _split(flow, flow.split(variables)["bijector"])
        for bijector, arrays in zip(before, own, strict=False):
            x, _ = bijector.map_forward(arrays, x, condition if bijector.context_dim else None)
        if field.circular:
            near = x + wrapped(z - x, -math.pi, math.pi)
            z = jnp.where(np.isin(np.arange(field.dim), field.circular), near, z)
        x, z = jax.lax.stop_gradient((x, z))
        point, target, factor = self._path(x, z, t[:, None], noise)
        given = condition if field.context_dim else None
        velocity = field.map_velocity(own[-1], point, t, given)
        error = (velocity if factor is None else factor * velocity) - target
        return jnp.square(error).sum(-1)

    def _path(
        self, x: Array, z: Array, t: Array, noise: Sequence[Array]
    ) -> tuple[Array, Array, Array | None]:
        """x_t, dx_t/dt times a factor, and the factor unless it is 1."""
        factor, sigma = None, self.sigma
        if self.path == "lipman":
            return (1 - t) * x + (sigma + (1 - sigma) * t) * z, (1 - sigma) * z - x, factor
        if self.path == "variance_preserving":
            cos, sin = jnp.cos(math.pi / 2 * t), jnp.sin(math.pi / 2 * t)
            return cos * x + sin * z, math.pi / 2 * (cos * z - sin * x), factor
        target = z - x
        point = x + t * target
        if self.path == "schroedinger_bridge":
            factor = 2 * jnp.sqrt(t * (1 - t))
            point = point + sigma / 2 * factor * noise[0]
            target = factor * target + sigma * (1 - 2 * t) * noise[0]
        elif noise:
            point = point + sigma * noise[0]
        return point, target, factor


@dataclass(frozen=True)
class OptimalTransportFlowMatching(FlowMatching):
    """``FlowMatching`` with z matched to x: in each batch the pairs of the smallest summed squared distance.

    The matching is exact (SciPy's ``linear_sum_assignment``), on the host and the same in both backends.
    Paths cross less: the field is straighter, and its gradients have a smaller variance.

    Matching rows of different contexts would make z depend on the context, and the conditional densities
    wrong: rows are matched with those of an equal context and an equal weight only. So contexts of few
    values (classes) gain, and for contexts that are all different this is ``FlowMatching``. Each of several
    processes matches its own rows.

    Args:
        path, sigma, times: as in ``FlowMatching``.
        max_rows: the most rows that are matched together; time grows with the cube.

    Raises:
        ValueError: for options out of range; in ``fit``, for a flow whose data and noise lie in different
            spaces: another base than ``StandardNormal``, or a chain.
        ImportError: in ``fit``, without SciPy.

    Reference: Tong et al. (2024), arXiv:2302.00482; Pooladian et al. (2023), arXiv:2304.14772.
    """

    max_rows: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int(type(self).__name__, max_rows=self.max_rows)

    def check(self, flow: Flow) -> None:
        super().check(flow)
        if _members(flow)[0] or not isinstance(flow.base, StandardNormal):
            names = type(flow.bijector).__name__, type(flow.base).__name__
            raise ValueError(needs_plain_space(type(self).__name__, *names))

    def match(
        self, rows: tuple[np.ndarray, ...], noise: tuple[np.ndarray, ...]
    ) -> tuple[np.ndarray, ...]:
        x, *keys = rows
        return matched(x, noise[0], tuple(keys), self.max_rows), *noise[1:]


@dataclass(frozen=True, eq=False)
class Reflow(Loss):
    """Flow matching on the pairs (x, z) of a trained flow: |f(x_t, t) - (z - x)|^2, x_t = (1 - t) x + t z.

    z is then no longer independent of x but a function of it, whose straight paths cross less: a second flow
    (or the first, trained on) is straighter, and needs fewer steps of its solver for the same map. The loss
    itself, its mean the flow's straightness, is 0 where one step is exact. It draws its own pairs: ``fit``
    without data, with ``num_steps``.

    For pairs take ``x = flow.sample(n)`` and z of ``flow.forward(x)``, or that z of data x.

    Args:
        x: shape ``(num_rows, *event_shape)``, of either backend.
        z: the latent of each, shape ``(num_rows, *latent_shape)``.
        context: shape ``(num_rows, context_dim)``, for a conditional flow.
        times: as in ``FlowMatching``.

    Raises:
        ValueError: for pairs that are not finite or not one for each row; in ``fit``, for another shape
            than the flow's, for a flow of another kind, and with data.

    Reference: Liu, Gong and Liu (2023), Flow Straight and Fast, arXiv:2209.03003.
    """

    needs_data = False
    x: Any
    z: Any
    context: Any = None
    times: str = "uniform"

    def __post_init__(self) -> None:
        pairs = host_pairs(type(self).__name__, self.x, self.z, self.context)
        for name, array in zip(("x", "z", "context"), pairs, strict=False):
            object.__setattr__(self, name, array)
        check_matching(type(self).__name__, "rectified", 0.0, self.times)

    def check(self, flow: Flow) -> None:
        FlowMatching().check(flow)
        width = None if self.context is None else self.context.shape[1]
        shapes = self.x.shape[1:], self.z.shape[1:], width
        check_pairs(type(self).__name__, shapes, flow)

    def draw(
        self, flow: Flow, generator: np.random.Generator, num_rows: int
    ) -> tuple[np.ndarray, ...]:
        rows = generator.integers(len(self.x), size=num_rows)
        drawn = self.x[rows], self.z[rows], draw_times(generator, self.times, num_rows)
        return drawn if self.context is None else (*drawn, self.context[rows])

    def __call__(
        self,
        flow: Flow,
        variables: Variables,
        x: Any,
        context: Array | None,
        *noise: Array,
    ) -> Array:
        if x is not None:
            raise ValueError(draws_its_own(type(self).__name__))
        x, z, t, *given = noise
        condition = flow.embed(variables, given[0]) if given else None
        return FlowMatching().errors(flow, variables, x, z, condition, t)

    def describe(self) -> Any:
        return [type(self).__name__, self.times, digest(self.x, self.z, self.context)]


@dataclass(frozen=True)
class _Function(Loss):
    """A function of the user's: of the flow, its variables, x and its context.

    It may give the new ``batch_stats`` beside the losses, as ``log_prob_and_update`` does.
    """

    needs_data = False
    models = HasVariables
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
    return log_prob + _energies(owner, energy, events).reshape(log_prob.shape)


def _energies(owner: str, energy: Callable[[Array], Array], x: Array) -> Array:
    values = energy(x)
    check_energy(owner, x.shape, getattr(values, "shape", None))
    return values


def _members(flow: Flow) -> tuple[list[Bijector], Any]:
    """The members of a flow's chain before the last, and that; or its one bijector."""
    *before, last = flow.bijector if isinstance(flow.bijector, Chain) else [flow.bijector]
    return before, last


def _split(flow: Flow, variables: Variables) -> list[Variables]:
    """The variables of ``_members``, one after the other."""
    chain = flow.bijector
    return chain.split(variables) if isinstance(chain, Chain) else [variables]
