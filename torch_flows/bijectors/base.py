"""What every bijector is."""

import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.architecture import count_construction
from flow_bridge.domains import REALS, Interval, check_inside
from torch_flows.inputs import check_input, check_output
from torch_flows.networks.regularization import (
    acts_in_training,
    has_batch_statistics,
    new_statistics,
)
from torch_flows.numerics import beyond, in_forward_mode
from torch_flows.variables import HasVariables

if TYPE_CHECKING:
    from torch_flows.interop import BijectorTransform

Output = tuple[Tensor, Tensor]

Shape = tuple[int | None, ...]


class Bijector(HasVariables):
    """An invertible map between data x and latent z, with the log|det| of its Jacobian.

    A subclass writes ``map_forward`` and ``map_inverse``, keeps its constructor's arguments as attributes
    of the same names, and states ``event_shape``; the public methods check their input first.

    Attributes:
        event_shape: the shape of one x; ``None`` stands for any length.
        latent_shape: the shape of one z, equal to ``event_shape`` unless ``map_shape`` says otherwise.
        context_dim: width of the context, 0 for none.
        domain, codomain: the interval that every entry of x, of z lies in, open unless it says that it
            is closed. Outside them the result is NaN, at an open end it may be infinite. A chain's are
            those of its ends; what its other members ask for depends on its weights, see ``outside``.
            XLA on a CPU takes a subnormal number (in float32 below 1.2e-38) for 0.
        has_batch_statistics: whether training mode normalises with statistics of the batch, which
            ``map_and_set_statistics`` replaces for evaluation.
        adaptive: whether it solves in steps that it chooses by itself, so that each half takes its own.
        parts: the two sets of positions that a coupling takes x apart into, ``None`` for all others.
        couples: whether a chain may call ``couple`` in place of ``map_forward`` and ``map_inverse``: no
            subclass has overridden these since ``couple`` was written.
        stacks: the same for ``map_stack``, which maps through several of a class at once, if they agree in
            their ``stack_sizes``.
    """

    event_shape: Shape = (None,)
    context_dim: int = 0
    domain: Interval = REALS
    codomain: Interval = REALS
    has_batch_statistics: bool = False
    adaptive: bool = False
    parts: Any = None
    couples: bool = False
    stacks: bool = False
    stack_sizes: Any = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        checks.overridden(cls.__name__, vars(cls), ("forward", "inverse"))
        cls.couples, cls.stacks = maps_by(cls, "couple"), maps_by(cls, "map_stack")
        if not maps_by(cls, "map_point"):
            cls.map_point = Bijector.map_point  # type: ignore[method-assign]

    def __init__(self) -> None:
        super().__init__()
        count_construction()

    @property
    def latent_shape(self) -> Shape:
        return self.map_shape(self.event_shape)

    def map_shape(self, shape: Shape, inverse: bool = False) -> Shape:
        """The shape of one z for that of one x, or with ``inverse`` the other way round."""
        return shape

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
        context = check_input(self, "x", x, context)
        return check_output(self, x, self.map_forward(x, context))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Output:
        """Latent to data: x and log|det dx/dz| for z. Arguments and errors as ``forward``."""
        context = check_input(self, "z", z, context)
        return check_output(self, z, self.map_inverse(z, context))

    def steps(
        self, x: Tensor, context: Tensor | None = None, inverse: bool = False
    ) -> list[Output]:
        """Every intermediate value and the log-det of its step, in the order in which they come about.

        A chain has a step for each of its members, any other bijector one; the last value is that of
        ``forward``, the log-dets add up to its. With ``inverse`` x is a latent z, and the last value that
        of ``inverse``. Arguments and errors as ``forward``.
        """
        context = check_input(self, "z" if inverse else "x", x, context)
        return self.map_steps(x, context, inverse)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set what is initialised from data (``ActNorm``), layer after layer, in place.

        Args:
            x: a batch of data of at least 2 rows, a good sample of the whole.
            context: as in ``forward``.

        Raises:
            NonFiniteError: if weights would become NaN or infinite; they then stay as they were.
            ValueError, TypeError: as in ``forward``, and for fewer than 2 rows.
        """
        initialize(self, self, x, context)

    def set_statistics(
        self, x: Tensor, context: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Set the statistics of evaluation (``BatchNorm``) to those of x, layer after layer, in place.

        Each layer's are those of x as the layers before it map it in evaluation, with their new ones:
        the density in evaluation is then that of training mode with x as one batch. ``fit`` does it
        where an epoch ends; a loop of one's own should too.

        Args:
            x: a batch of data, a good sample of the whole.
            context: as in ``forward``.
            weights: how much each row counts, shape ``(*batch,)``; all the same if not given.

        Raises:
            ValueError, TypeError: as in ``forward``.
        """
        context = check_input(self, "x", x, context)
        with torch.no_grad(), evaluation(self):
            self.map_and_set_statistics(x, context, weights)

    def transform(self, context: Tensor | None = None, cache_size: int = 0) -> "BijectorTransform":
        """The bijector as a ``torch.distributions.Transform``, see ``interop.BijectorTransform``."""
        from torch_flows import interop

        return interop.BijectorTransform(self, context, cache_size)

    def check_domain(self, x: Tensor) -> None:
        """Raise ``ValueError`` unless x lies in ``domain``; reads the values, so not for compiled code."""
        check_inside(
            self.intervals(True), type(self).__name__, "x", x.detach().double().cpu().numpy()
        )

    def check_codomain(self, z: Tensor) -> None:
        """Raise ``ValueError`` unless z lies in ``codomain``, as ``check_domain`` does for x."""
        check_inside(self.intervals(), type(self).__name__, "z", z.detach().double().cpu().numpy())

    def refined(self) -> dict[str, Any]:
        """For what solves in steps: the arguments that make them finer. ``check_parity`` measures by them."""
        return {}

    def is_bounded(self, inverse: bool = False) -> bool:
        """Whether a finite x may lie outside the domain, with ``inverse`` a z outside the codomain."""
        intervals = self.intervals(not inverse)
        return intervals.count(REALS) < len(intervals)

    def intervals(self, inverse: bool = False) -> list[Interval]:
        """Where the entries of z lie, with ``inverse`` those of x: one interval, or one of each entry."""
        return [self.domain if inverse else self.codomain]

    def outside(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        """Which rows of x are free of NaN and outside the domain, at an open end of it or infinite.

        With ``inverse``, which rows of z are so of the codomain. Shape ``(*batch,)``. A chain looks at
        what each of its members gets.
        """
        ndim = len(self.latent_shape if inverse else self.event_shape)
        return beyond(x, self.intervals(not inverse), ndim)

    @abstractmethod
    def map_forward(self, x: Tensor, context: Tensor | None) -> Output: ...

    @abstractmethod
    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output: ...

    def map_point(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        """z of x (x of z if ``inverse``), where nobody asks for the log-determinant."""
        return (self.map_inverse if inverse else self.map_forward)(x, context)[0]

    def map_steps(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> list[Output]:
        """``steps`` of what has been checked."""
        return [(self.map_inverse if inverse else self.map_forward)(x, context)]

    def map_score(
        self,
        x: Tensor,
        score: Tensor,
        context: Tensor | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The map, and with it the score of a density: (z, log_det, the score of the density of z).

        Where ``score`` is the gradient of log p(x), the third is that of log p(z), J^-T (score - gradient
        of log|det J|). Without a closed form it is one vector-Jacobian product through the other
        direction.

        Args:
            x: what has been checked, a z if ``inverse``.
            score: of x's shape.
            inverse: map z to x.
            differentiable: whether the new score is to have gradients.
        """
        directions: list[Any] = [self.map_forward, self.map_inverse]
        step, back = directions[::-1] if inverse else directions
        with evaluation(self):  # with batch statistics one direction is not the other's inverse
            z, log_det = step(x, context)
            with torch.enable_grad():
                point = tracked(z, differentiable)
                outputs = back(point, context)
                weights = score, torch.ones_like(outputs[1])
                new = vjp(outputs, point, weights, differentiable)
        return z, log_det, new

    def map_and_initialize(
        self, x: Tensor, context: Tensor | None, inverse: bool = False
    ) -> Tensor:
        """Initialise from x on its way forward (from z on its way back); returns what comes out."""
        return (self.map_inverse if inverse else self.map_forward)(x, context)[0]

    def map_and_set_statistics(
        self, x: Tensor, context: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        """Set the statistics of evaluation to those of x on its way forward; returns what comes out."""
        return self.map_forward(x, context)[0]


def tracked(x: Tensor, keep_graph: bool) -> Tensor:
    """x as something to differentiate by; with its graph if it is to be kept and there is one."""
    return x.view_as(x) if keep_graph and x.requires_grad else x.detach().requires_grad_()


def differentiates(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that needs gradients on its way: ``torch.inference_mode`` has none, forward mode others."""

    @cache
    def uncompiled() -> Callable[..., Any]:
        return torch.compiler.disable(method)

    @wraps(method)
    def run(self: Any, *args: Any, **options: Any) -> Any:
        if in_forward_mode():
            raise NotImplementedError(
                f"{method.__qualname__} has no derivatives in forward mode: use torch.autograd.grad."
            )
        if torch.is_grad_enabled() and "torch._dynamo" in sys.modules:
            # compiled programs have wrong second derivatives, or none
            if torch.compiler.is_compiling():  # with fullgraph, else PyTorch runs this as it is
                raise NotImplementedError(
                    f"{method.__qualname__} cannot be compiled where gradients are enabled: use no_grad."
                )
            return uncompiled()(self, *args, **options)
        if not torch.is_inference_mode_enabled():
            return method(self, *args, **options)
        with torch.inference_mode(False), torch.no_grad():
            args = tuple(map(_outside_inference_mode, args))
            options = {name: _outside_inference_mode(value) for name, value in options.items()}
            return method(self, *args, **options)

    return run


def _outside_inference_mode(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def vjp(
    outputs: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], differentiable: bool
) -> Tensor:
    """The gradient by x of the sum of outputs times weights; the graph of the outputs stays."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("scores need gradients, and torch.inference_mode has none: use no_grad.")
    pairs = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    if not pairs:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(
        [o for o, _ in pairs],
        x,
        [w for _, w in pairs],
        retain_graph=True,
        create_graph=differentiable,
        allow_unused=True,
        materialize_grads=True,
    )
    return gradient


def score_of_entries(
    step: Callable[[Tensor], Output], x: Tensor, score: Tensor, differentiable: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``map_score`` of a map of each entry: z, the logs of its slopes, and (score - (log f')') / f'."""
    with torch.enable_grad():
        x = tracked(x, keep_graph=True)
        z, log_slope = step(x)
        change = vjp([log_slope], x, [torch.ones_like(log_slope)], differentiable)
    new = (score - change) * (-log_slope).exp()
    return z, log_slope, new if differentiable else new.detach()


def overrides(bijector: Bijector, cls: type) -> bool:
    """Whether a subclass maps in another way than a class, whose formulas then do not hold."""
    names = ("map_forward", "map_inverse")
    return any(getattr(type(bijector), name) is not getattr(cls, name) for name in names)


def maps_by(cls: type, method: str) -> bool:
    """Whether ``map_forward`` and ``map_inverse`` are those that were written with a method."""
    owner = next((base for base in cls.__mro__ if method in vars(base)), None)
    if owner is None:
        return False
    names = ("map_forward", "map_inverse")
    return all(getattr(cls, name) is vars(owner).get(name) for name in names)


@torch.no_grad()
def initialize(
    owner: Any,
    bijector: Bijector,
    x: Tensor,
    context: Tensor | None,
    embed: Callable[[Tensor], Tensor] = lambda context: context,
) -> None:
    """Initialise a bijector from data, with all of its modules in evaluation mode, or change nothing."""
    label = type(owner).__name__
    context = check_input(owner, "x", x, context)
    rows = math.prod(x.shape[: x.ndim - len(owner.event_shape)])
    checks.enough_rows(label, rows, "to be initialised from data")
    before = {name: value.clone() for name, value in bijector.state_dict().items()}
    try:
        embedded = embed(context) if context is not None and bijector.context_dim else None
        with evaluation(bijector):
            bijector.map_and_initialize(x, embedded)
        finite = all(bool(weight.isfinite().all()) for weight in bijector.parameters())
        checks.finite_initialization(label, finite)
    except BaseException:
        bijector.load_state_dict(before)
        raise


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, for all of a module's parts; each then has its own mode again."""
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


class Conditioned(Bijector):
    """A bijector of a ``network``, which may have batch normalisation and dropout.

    These act in training mode, on the way forward; on the way back they are what they are in evaluation.
    """

    @property
    def has_batch_statistics(self) -> bool:  # type: ignore[override]
        return has_batch_statistics(self)

    @property
    def is_trained(self) -> bool:
        """Whether it is in training mode, and another map there."""
        return self.training and acts_in_training(self)

    def map_and_set_statistics(
        self, x: Tensor, context: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        with new_statistics(self, weights):
            return super().map_and_set_statistics(x, context, weights)
