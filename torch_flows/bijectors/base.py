"""What every bijector is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.architecture import count_construction
from flow_bridge.domains import REALS, Interval
from torch_flows.inputs import check_input, check_output

if TYPE_CHECKING:
    from torch_flows.interop import BijectorTransform

Output = tuple[Tensor, Tensor]

Shape = tuple[int | None, ...]


class Bijector(nn.Module, ABC):
    """An invertible map between data x and latent z, with the log|det| of its Jacobian.

    A subclass writes ``map_forward`` and ``map_inverse``, keeps its constructor's arguments as attributes
    of the same names, and states ``event_shape``; the public methods check their input first.

    Attributes:
        event_shape: the shape of one x; ``None`` stands for any length.
        latent_shape: the shape of one z, equal to ``event_shape`` unless ``map_shape`` says otherwise.
        context_dim: width of the context, 0 for none.
        domain, codomain: the open interval that every entry of x, of z lies in. Outside them the
            result is NaN, at an end of them it may be infinite.
        adaptive: whether it solves in steps that it chooses by itself, so that each half takes its own.
        parts: the two sets of positions that a coupling takes x apart into, ``None`` for all others.
    """

    is_architecture = True
    event_shape: Shape = (None,)
    context_dim: int = 0
    domain: Interval = REALS
    codomain: Interval = REALS
    adaptive: bool = False
    parts: Any = None

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

    def refined(self) -> dict[str, Any]:
        """For what solves in steps: the arguments that make them finer. ``check_parity`` measures by them."""
        return {}

    @abstractmethod
    def map_forward(self, x: Tensor, context: Tensor | None) -> Output: ...

    @abstractmethod
    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output: ...

    def map_and_initialize(
        self, x: Tensor, context: Tensor | None, inverse: bool = False
    ) -> Tensor:
        """Initialise from x on its way forward (from z on its way back); returns what comes out."""
        return (self.map_inverse if inverse else self.map_forward)(x, context)[0]


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
    modes = {module: module.training for module in bijector.modules()}
    try:
        embedded = None if context is None else embed(context)
        bijector.eval().map_and_initialize(x, embedded)
        finite = all(bool(weight.isfinite().all()) for weight in bijector.parameters())
        checks.finite_initialization(label, finite)
    except BaseException:
        bijector.load_state_dict(before)
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
