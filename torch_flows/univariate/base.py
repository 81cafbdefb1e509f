"""What every univariate map is."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flow_bridge.arguments import PlainArguments
from flow_bridge.domains import REALS, Interval

Output = tuple[Tensor, Tensor]


class UnivariateMap(metaclass=PlainArguments):
    """An increasing map of one variable whose parameters are given from outside.

    It has no weights: a structure (``Elementwise``, ``Coupling``, ``MaskedAutoregressive``) hands it
    the parameters of each entry. A subclass is a frozen dataclass of plain values, the same in both
    halves, that states ``num_parameters`` and writes ``forward`` and ``inverse``. Parameters of zeros
    are to be the identity, or a start that the class states.

    Attributes:
        num_parameters: how many parameters one entry takes.
        domain, codomain: the open interval that x, that z lies in.
        separable: whether parameters may also come as a tuple, one array of x's shape for each; where
            they do, nothing is copied to put them side by side. See ``unstack``.
        broadcasts: whether the axes of parameters before the last may have length 1 where x's are longer.
        num_features: how many numbers a network sees of one entry, see ``features``.
        dim: for how many entries it is, ``None`` for any.
    """

    is_architecture = True
    domain: Interval = REALS
    codomain: Interval = REALS
    separable = False
    broadcasts = False
    num_features = 1
    dim: int | None = None

    @property
    @abstractmethod
    def num_parameters(self) -> int: ...

    @abstractmethod
    def forward(self, x: Tensor, parameters: Any) -> Output:
        """Data to latent.

        Args:
            x: shape ``(*batch,)``.
            parameters: shape ``(*batch, num_parameters)``.

        Returns:
            z and log(dz/dx), both of x's shape.
        """

    @abstractmethod
    def inverse(self, z: Tensor, parameters: Any) -> Output:
        """Latent to data: x and log(dx/dz) for z. Shapes as ``forward``."""

    def intervals(self, inverse: bool = False) -> list[Interval]:
        """Where the entries of z lie, with ``inverse`` those of x: one interval, or one of each entry."""
        return [self.domain if inverse else self.codomain]

    def part(self, positions: Sequence[int]) -> "UnivariateMap":
        """The map of the entries of a vector that stand in these positions: itself."""
        return self

    def num_inputs(self, dim: int) -> int:
        """How many numbers a network sees of so many entries."""
        return dim * self.num_features

    def features(self, x: Tensor, axis: int) -> Tensor:
        """What a network sees of entries that this map has transformed or will: x itself.

        Where an entry is an angle it is to be something periodic, ``num_features`` as long along
        ``axis``.
        """
        return x


def unstack(parameters: Any) -> tuple[Tensor, ...]:
    """The parameters one by one, whichever way a ``separable`` map gets them."""
    return parameters if isinstance(parameters, tuple) else parameters.unbind(-1)
