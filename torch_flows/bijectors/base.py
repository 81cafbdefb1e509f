"""What every bijector is, and the ones made of others."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.architecture import count_construction
from flow_bridge.domains import REALS, Interval
from torch_flows.registry import register

if TYPE_CHECKING:
    from torch_flows.interop import BijectorTransform

Output = tuple[Tensor, Tensor]

_DTYPE_NAMES = {getattr(torch, name): name for name in checks.FLOAT_DTYPES}


def dtype_name(dtype: torch.dtype) -> str:
    """The name that numpy and JAX have for a dtype."""
    return _DTYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))


class Bijector(nn.Module, ABC):
    """An invertible map between data x and latent z, with the log|det| of its Jacobian.

    A subclass writes ``_forward`` and ``_inverse``, keeps its constructor's arguments as attributes
    of the same names, and states ``event_shape``; the public methods check their input first.

    Attributes:
        event_shape: the shape of one x; ``None`` stands for any length.
        latent_shape: the shape of one z, equal to ``event_shape`` unless ``map_shape`` says otherwise.
        context_dim: width of the context, 0 for none.
        domain, codomain: the open interval that every entry of x, of z lies in. Outside them the
            result is NaN, at an end of them it may be infinite.
        parts: the two sets of positions that a coupling takes x apart into, ``None`` for all others.
    """

    is_architecture = True
    event_shape: tuple[int | None, ...] = (None,)
    context_dim: int = 0
    domain: Interval = REALS
    codomain: Interval = REALS
    parts: Any = None

    def __init__(self) -> None:
        super().__init__()
        count_construction()

    @property
    def latent_shape(self) -> tuple[int | None, ...]:
        return self.map_shape(self.event_shape)

    def map_shape(
        self, shape: tuple[int | None, ...], inverse: bool = False
    ) -> tuple[int | None, ...]:
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
        return self._forward(x, check_input(self, "x", x, context))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Output:
        """Latent to data: x and log|det dx/dz| for z. Arguments and errors as ``forward``."""
        return self._inverse(z, check_input(self, "z", z, context))

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

    def transform(self, context: Tensor | None = None, cache_size: int = 0) -> "BijectorTransform":
        """The bijector as a ``torch.distributions.Transform``, see ``interop.BijectorTransform``."""
        from torch_flows import interop

        return interop.BijectorTransform(self, context, cache_size)

    def check_domain(self, x: Tensor) -> None:
        """Raise ``ValueError`` unless x lies in ``domain``; reads the values, so not for compiled code."""
        self.domain.check(type(self).__name__, "x", x.detach().double().cpu().numpy())

    def check_codomain(self, z: Tensor) -> None:
        """Raise ``ValueError`` unless z lies in ``codomain``, as ``check_domain`` does for x."""
        self.codomain.check(type(self).__name__, "z", z.detach().double().cpu().numpy())

    @abstractmethod
    def _forward(self, x: Tensor, context: Tensor | None) -> Output: ...

    @abstractmethod
    def _inverse(self, z: Tensor, context: Tensor | None) -> Output: ...

    def _initialize(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        """Initialise from x on its way forward (from z on its way back); returns what comes out."""
        return (self._inverse if inverse else self._forward)(x, context)[0]


@torch.no_grad()
def initialize(owner: Any, bijector: Bijector, x: Tensor, context: Tensor | None) -> None:
    """Initialise a bijector from data, with all of its modules in evaluation mode, or change nothing."""
    label = type(owner).__name__
    context = check_input(owner, "x", x, context)
    rows = math.prod(x.shape[: x.ndim - len(owner.event_shape)])
    checks.enough_rows(label, rows, "to be initialised from data")
    before = {name: value.clone() for name, value in bijector.state_dict().items()}
    modes = {module: module.training for module in bijector.modules()}
    try:
        bijector.eval()._initialize(x, context)
        finite = all(bool(weight.isfinite().all()) for weight in bijector.parameters())
        checks.finite_initialization(label, finite)
    except BaseException:
        bijector.load_state_dict(before)
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_input(owner: Any, name: str, x: Tensor, context: Tensor | None) -> Tensor | None:
    """Check an input and its context, and return the context expanded to the input's batch."""
    label = type(owner).__name__
    for what, value in ((name, x), ("context", context)):
        if not isinstance(value, Tensor | None):
            raise TypeError(f"{label} expects {what} as an array, got {type(value).__name__}.")
    weight = next(owner.parameters(), None)
    dtype = dtype_name(x.dtype)
    batch = checks.input_array(
        label,
        name,
        x.shape,
        dtype,
        owner.latent_shape if name == "z" else owner.event_shape,
        None if weight is None else dtype_name(weight.dtype),
    )
    _check_context(owner, context, batch, dtype)
    return None if context is None else context.expand(*batch, owner.context_dim)


def context_batch(owner: Any, context: Tensor | None) -> tuple[int, ...]:
    """Check a context that is given before its input, and return its batch shape."""
    if not isinstance(context, Tensor | None):
        label = type(owner).__name__
        raise TypeError(f"{label} expects context as an array, got {type(context).__name__}.")
    weight = next(owner.parameters(), context)
    batch = () if context is None else tuple(context.shape[:-1])
    _check_context(owner, context, batch, "" if weight is None else dtype_name(weight.dtype))
    return batch


def _check_context(owner: Any, context: Tensor | None, batch: tuple[int, ...], dtype: str) -> None:
    shape = None if context is None else context.shape
    context_dtype = None if context is None else dtype_name(context.dtype)
    checks.context_array(
        type(owner).__name__, shape, context_dtype, owner.context_dim, batch, dtype
    )


@register
class Chain(Bijector):
    """Composition: forward applies ``bijectors`` in order, inverse in reverse; log-dets add up.

    Args:
        bijectors: at least one, each of the event shape that the one before it makes; those with a
            ``context_dim`` share it.

    Raises:
        ValueError: if the list is empty or its members disagree.

    Examples:
        >>> import torch, torch_flows
        >>> chain = torch_flows.Chain([torch_flows.Affine(2), torch_flows.Tanh()])
        >>> z, log_det = chain.forward(torch.zeros(5, 2))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 2), (5,))
    """

    bijectors: Sequence[Bijector]

    def __init__(self, bijectors: Sequence[Bijector]) -> None:
        super().__init__()
        if not bijectors:
            raise ValueError("Chain expects at least one bijector.")
        checks.instances("Chain", "bijectors", bijectors, Bijector)
        self.bijectors = nn.ModuleList(bijectors)  # type: ignore[assignment]
        self.event_shape = checks.chain_event_shape("Chain", bijectors)
        self.context_dim = checks.common_context_dim("Chain", [b.context_dim for b in bijectors])
        self.domain, self.codomain = bijectors[0].domain, bijectors[-1].codomain

    def map_shape(
        self, shape: tuple[int | None, ...], inverse: bool = False
    ) -> tuple[int | None, ...]:
        for bijector in self.bijectors[:: -1 if inverse else 1]:
            shape = bijector.map_shape(shape, inverse)
        return shape

    def _forward(self, x: Tensor, context: Tensor | None) -> Output:
        return self._run(self.bijectors, x, context)

    def _inverse(self, z: Tensor, context: Tensor | None) -> Output:
        return self._run(reversed(self.bijectors), z, context, inverse=True)

    def _run(
        self,
        bijectors: Iterable[Any],
        x: Tensor,
        context: Tensor | None,
        inverse: bool = False,
    ) -> Output:
        log_dets = []
        # Couplings of the same parts hand them on: x is put together only where that ends.
        parts: Any = None
        partition: Any = None
        fixed = free = x
        for bijector in bijectors:
            layer_context = context if bijector.context_dim else None
            if partition is not None and bijector.parts != parts:
                x, partition = partition.merge(fixed, free), None
            if bijector.parts is None:
                step = bijector._inverse if inverse else bijector._forward
                x, log_det = step(x, layer_context)
            else:
                before, partition, parts = partition, bijector.partition, bijector.parts
                if before is None:
                    fixed, free = partition.split(x)
                elif before.fixed_leads != partition.fixed_leads:
                    fixed, free = free, fixed
                free, log_det = bijector._couple(fixed, free, layer_context, inverse)
            log_dets.append(log_det)
        if partition is not None:
            x = partition.merge(fixed, free)
        return x, torch.stack(log_dets).sum(0)

    def _initialize(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        for bijector in self.bijectors[:: -1 if inverse else 1]:
            x = bijector._initialize(x, context if bijector.context_dim else None, inverse)
        return x


@register
class Invert(Bijector):
    """Swaps the two directions of a bijector.

    Batch statistics inside do not change in training: both directions use the running averages.

    Args:
        bijector: the one to turn around.

    Examples:
        >>> import torch, torch_flows
        >>> log = torch_flows.Invert(torch_flows.Exp())
        >>> log.forward(torch.ones(2))[0].tolist()
        [0.0, 0.0]
    """

    def __init__(self, bijector: Bijector) -> None:
        super().__init__()
        checks.instances("Invert", "bijector", [bijector], Bijector)
        self.bijector = bijector.eval()
        self.event_shape = bijector.latent_shape
        self.context_dim = bijector.context_dim
        self.domain, self.codomain = bijector.codomain, bijector.domain

    def map_shape(
        self, shape: tuple[int | None, ...], inverse: bool = False
    ) -> tuple[int | None, ...]:
        return self.bijector.map_shape(shape, not inverse)

    def _forward(self, x: Tensor, context: Tensor | None) -> Output:
        return self.bijector._inverse(x, context)

    def _inverse(self, z: Tensor, context: Tensor | None) -> Output:
        return self.bijector._forward(z, context)

    def _initialize(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        return self.bijector._initialize(x, context, not inverse)

    def train(self, mode: bool = True) -> "Invert":
        super().train(mode)
        self.bijector.eval()
        return self
