"""What every bijector is."""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Hashable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.architecture import count_construction
from flow_bridge.domains import REALS, Interval, check_inside
from jax_flows.inputs import check_input
from jax_flows.networks.regularization import Updates, has_batch_statistics
from jax_flows.numerics import beyond
from jax_flows.variables import AnyArray, HasVariables, Output, Variables, freeze_lists, kept

Shape = tuple[int | None, ...]


class Bijector(HasVariables):
    """An invertible map between data x and latent z, with the log|det| of its Jacobian.

    A subclass is a frozen dataclass of plain values (its constructor's arguments) that writes
    ``init_variables``, ``map_forward`` and ``map_inverse`` and states ``event_shape``; the public methods
    check their input first. The arrays come in as ``variables``: ``{"params": ..., "batch_stats": ...}``.

    Attributes:
        event_shape: the shape of one x; ``None`` stands for any length.
        latent_shape: the shape of one z, equal to ``event_shape`` unless ``map_shape`` says otherwise.
        context_dim: width of the context, 0 for none.
        has_batch_statistics: whether training mode normalises with statistics of the batch, which
            ``map_and_set_statistics`` replaces for evaluation.
        stackable: whether a chain may scan over equal ones; ``False`` for what changes the shape. On
            CPU XLA runs convolutions in a scan slowly: ``False`` may be faster for networks of them.
        constant_fields: the constructor's arguments that say nothing but which arrays ``scan_constants``
            gives: a chain may also scan over what differs in them alone. A subclass states them anew.
        domain, codomain: the interval that every entry of x, of z lies in, open unless it says that it
            is closed. Outside them the result is NaN, at an open end it may be infinite. A chain's are
            those of its ends; what its other members ask for depends on its weights, see ``outside``.
            XLA on a CPU takes a subnormal number (in float32 below 1.2e-38) for 0.
        adaptive: whether it solves in steps that it chooses by itself, so that each half takes its own.
        parts: the two sets of positions that a coupling takes x apart into, ``None`` for all others. A chain
            may hand x to it in these.
    """

    context_dim: int = 0
    has_batch_statistics: bool = False
    stackable: bool = True
    constant_fields: tuple[str, ...] = ()
    domain: Interval = REALS
    codomain: Interval = REALS
    adaptive: bool = False
    parts: Any = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        checks.overridden(cls.__name__, vars(cls), ("forward", "inverse", "forward_and_update"))
        if not maps_by(cls, "map_point"):
            cls.map_point = Bijector.map_point  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        count_construction()
        freeze_lists(self)

    @property
    def event_shape(self) -> Shape:
        return (None,)

    @property
    def latent_shape(self) -> Shape:
        return self.map_shape(self.event_shape)

    def map_shape(self, shape: Shape, inverse: bool = False) -> Shape:
        """The shape of one z for that of one x, or with ``inverse`` the other way round."""
        return shape

    @kept
    def forward(self, variables: Variables, x: AnyArray, context: AnyArray | None = None) -> Output:
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
        return self.map_forward(variables, *check_input(self, variables, "x", x, context))

    @kept
    def inverse(self, variables: Variables, z: AnyArray, context: AnyArray | None = None) -> Output:
        """Latent to data: x and log|det dx/dz| for z. Arguments and errors as ``forward``."""
        return self.map_inverse(variables, *check_input(self, variables, "z", z, context))

    @kept
    def forward_and_update(
        self, variables: Variables, x: AnyArray, context: AnyArray | None = None
    ) -> tuple[Array, Array, Variables]:
        """``forward`` in training mode: (z, log_det, the new ``batch_stats``)."""
        return self.map_forward_and_update(
            variables, *check_input(self, variables, "x", x, context)
        )

    @kept
    def steps(
        self,
        variables: Variables,
        x: AnyArray,
        context: AnyArray | None = None,
        inverse: bool = False,
    ) -> list[Output]:
        """Every intermediate value and the log-det of its step, in the order in which they come about.

        A chain has a step for each of its members, any other bijector one; the last value is that of
        ``forward``, the log-dets add up to its. With ``inverse`` x is a latent z, and the last value that
        of ``inverse``. Arguments and errors as ``forward``.
        """
        x, context = check_input(self, variables, "z" if inverse else "x", x, context)
        return self.map_steps(variables, x, context, inverse)

    def initialize(
        self, variables: Variables, x: AnyArray, context: AnyArray | None = None
    ) -> dict[str, Any]:
        """New variables, with what is initialised from data (``ActNorm``) set, layer after layer.

        Args:
            variables: the arrays, from ``init``.
            x: a batch of data of at least 2 rows, a good sample of the whole.
            context: as in ``forward``.

        Raises:
            NonFiniteError: if weights would become NaN or infinite.
            ValueError, TypeError: as in ``forward``, and for fewer than 2 rows.

        Not for use under ``jit``: it looks at the values.
        """
        return initialize(self, self, variables, variables, x, context)

    def set_statistics(
        self,
        variables: Variables,
        x: AnyArray,
        context: AnyArray | None = None,
        weights: Array | None = None,
    ) -> dict[str, Any]:
        """New variables, with the statistics of evaluation (``BatchNorm``) those of x, layer after layer.

        Each layer's are those of x as the layers before it map it in evaluation, with their new ones:
        the density in evaluation is then that of training mode with x as one batch. ``fit`` does it
        where an epoch ends; a loop of one's own should too.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            x: a batch of data, a good sample of the whole.
            context: as in ``forward``.
            weights: how much each row counts, shape ``(*batch,)``; all the same if not given.

        Raises:
            ValueError, TypeError: as in ``forward``.
        """
        x, context = check_input(self, variables, "x", x, context)
        _, batch_stats = self.map_and_set_statistics(variables, x, context, weights)
        return {**variables, "batch_stats": batch_stats}

    def transform(self, variables: Variables, context: AnyArray | None = None) -> Any:
        """The bijector as a NumPyro ``Transform``, see ``interop.numpyro_transform``."""
        from jax_flows import interop

        return interop.numpyro_transform(self, variables, context)

    def check_domain(self, x: AnyArray) -> None:
        """Raise ``ValueError`` unless x lies in ``domain``; reads the values, so not for compiled code."""
        check_inside(self.intervals(True), type(self).__name__, "x", np.asarray(x, np.float64))

    def check_codomain(self, z: AnyArray) -> None:
        """Raise ``ValueError`` unless z lies in ``codomain``, as ``check_domain`` does for x."""
        check_inside(self.intervals(), type(self).__name__, "z", np.asarray(z, np.float64))

    @property
    def scan_key(self) -> Hashable:
        """What is equal for bijectors that a chain may scan over."""
        names = vars(type(self)).get("constant_fields")
        return (type(self), _others(self, names)) if names else self

    def scan_constants(self) -> dict[str, Any]:
        """Fixed arrays by ``constant_fields``. In a scan ``variables["constants"]`` holds each one's."""
        return {}

    def constants(self, variables: Variables) -> dict[str, Any]:
        """Those of a scan, else its own."""
        return variables.get("constants") or self.scan_constants()

    def refined(self) -> dict[str, Any]:
        """For what solves in steps: the arguments that make them finer. ``check_parity`` measures by them."""
        return {}

    def is_bounded(self, inverse: bool = False) -> bool:
        """Whether a finite x may lie outside the domain, with ``inverse`` a z outside the codomain."""
        return any(interval != REALS for interval in self.intervals(not inverse))

    def intervals(self, inverse: bool = False) -> list[Interval]:
        """Where the entries of z lie, with ``inverse`` those of x: one interval, or one of each entry."""
        return [self.domain if inverse else self.codomain]

    def outside(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> Array:
        """Which rows of x are free of NaN and outside the domain, at an open end of it or infinite.

        With ``inverse``, which rows of z are so of the codomain. Shape ``(*batch,)``. A chain looks at
        what each of its members gets.
        """
        ndim = len(self.latent_shape if inverse else self.event_shape)
        return beyond(x, self.intervals(not inverse), ndim)

    @abstractmethod
    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output: ...

    @abstractmethod
    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output: ...

    def map_forward_and_update(
        self, variables: Variables, x: Array, context: Array | None
    ) -> tuple[Array, Array, Variables]:
        return *self.map_forward(variables, x, context), variables.get("batch_stats", {})

    def map_point(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> Array:
        """z of x (x of z if ``inverse``), where nobody asks for the log-determinant."""
        return (self.map_inverse if inverse else self.map_forward)(variables, x, context)[0]

    def map_steps(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> list[Output]:
        """``steps`` of what has been checked."""
        return [(self.map_inverse if inverse else self.map_forward)(variables, x, context)]

    def map_score(
        self,
        variables: Variables,
        x: Array,
        score: Array,
        context: Array | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Array, Array, Array]:
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
        z, log_det = step(variables, x, context)
        point, own, given = z, variables, context
        if not differentiable:
            point, own, given = jax.lax.stop_gradient((z, variables, context))
        _, pull = jax.vjp(lambda point: back(own, point, given), point)
        (new,) = pull((score, jnp.ones_like(log_det)))
        return z, log_det, new

    def map_and_initialize(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> tuple[Array, Variables]:
        """Initialise from x on its way forward (from z on its way back); returns what comes out."""
        return (self.map_inverse if inverse else self.map_forward)(variables, x, context)[
            0
        ], variables

    def map_and_set_statistics(
        self, variables: Variables, x: Array, context: Array | None, weights: Array | None
    ) -> tuple[Array, Variables]:
        """The statistics of evaluation as those of x on its way forward; returns what comes out, too."""
        return self.map_forward(variables, x, context)[0], variables.get("batch_stats", {})


def _others(bijector: Any, names: Collection[str]) -> tuple[Any, ...]:
    """The values of all fields but some."""
    fields = [field.name for field in dataclasses.fields(bijector) if field.name not in names]
    return tuple(getattr(bijector, name) for name in fields)


def score_of_entries(
    step: Callable[[Array], Output], x: Array, score: Array, differentiable: bool
) -> tuple[Array, Array, Array]:
    """``map_score`` of a map of each entry: z, the logs of its slopes, and (score - (log f')') / f'."""
    (z, log_slope), pull = jax.vjp(step, x)
    (change,) = pull((jnp.zeros_like(z), jnp.ones_like(log_slope)))
    new = (score - change) * jnp.exp(-log_slope)
    return z, log_slope, new if differentiable else jax.lax.stop_gradient(new)


def overrides(bijector: Bijector, cls: type) -> bool:
    """Whether a subclass maps in another way than a class, whose formulas then do not hold."""
    names = ("map_forward", "map_inverse", "map_forward_and_update")
    return any(getattr(type(bijector), name) is not getattr(cls, name) for name in names)


def maps_by(cls: type, method: str) -> bool:
    """Whether ``map_forward`` and ``map_inverse`` are those that were written with a method."""
    owner = next((base for base in cls.__mro__ if method in vars(base)), None)
    if owner is None:
        return False
    names = ("map_forward", "map_inverse")
    return all(getattr(cls, name) is vars(owner).get(name) for name in names)


def initialize(
    owner: Any,
    bijector: Bijector,
    variables: Variables,
    own: Variables,
    x: AnyArray,
    context: AnyArray | None,
    embed: Callable[[Variables, Array], Array] = lambda variables, context: context,
) -> dict[str, Any]:
    """The variables ``own`` of a bijector, initialised from data; ``variables`` are those of owner."""
    label = type(owner).__name__
    x, context = check_input(owner, variables, "x", x, context)
    rows = math.prod(x.shape[: x.ndim - len(owner.event_shape)])
    checks.enough_rows(label, rows, "to be initialised from data")
    embedded = embed(variables, context) if context is not None and bijector.context_dim else None
    new, finite = _initialize(bijector, own, x, embedded)
    checks.finite_initialization(label, bool(finite))
    return new


@partial(jax.jit, static_argnums=0)
def _initialize(
    bijector: Bijector, variables: Variables, x: Array, context: Array | None
) -> tuple[dict[str, Any], Array]:
    _, new = bijector.map_and_initialize(variables, x, context)
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(new.get("params", {}))]
    return {**variables, **new}, jnp.array(leaves).all()


class Conditioned(Bijector):
    """A bijector of a ``network``, which may have batch normalisation and dropout.

    These act in training mode, on the way forward; on the way back they are what they are in evaluation.
    """

    @cached_property
    def has_batch_statistics(self) -> bool:  # type: ignore[override]
        shapes = self.variable_shapes(jnp.dtype("float32"))
        return has_batch_statistics(shapes.get("batch_stats", {}))

    def map_forward_and_update(
        self, variables: Variables, x: Array, context: Array | None
    ) -> tuple[Array, Array, Variables]:
        updates = Updates()
        z, log_det = self.map_forward({**variables, "updates": updates}, x, context)
        return z, log_det, {**variables.get("batch_stats", {}), **updates}

    def map_and_set_statistics(
        self, variables: Variables, x: Array, context: Array | None, weights: Array | None
    ) -> tuple[Array, Variables]:
        updates = Updates()
        updates.weights = jnp.ones(()) if weights is None else weights
        z, _ = self.map_forward({**variables, "updates": updates}, x, context)
        return z, {**variables.get("batch_stats", {}), **updates}
