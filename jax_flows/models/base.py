"""What the named models share."""

from abc import abstractmethod
from dataclasses import dataclass, field

from jax_flows.bijectors.base import Bijector
from jax_flows.distributions import Distribution
from jax_flows.flows import Flow
from jax_flows.variables import (
    freeze_lists,
)


@dataclass(frozen=True)
class Model(Flow):
    """A named flow: its fields are hyperparameters, from which ``_parts`` makes bijector and base."""

    bijector: Bijector = field(init=False, repr=False, compare=False)
    base: Distribution = field(init=False, repr=False, compare=False)
    context_net: None = field(init=False, repr=False, compare=False, default=None)
    columns: None = field(init=False, repr=False, compare=False, default=None)
    context_columns: None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        freeze_lists(self)
        bijector, base = self._parts()
        object.__setattr__(self, "bijector", bijector)
        object.__setattr__(self, "base", base)
        super().__post_init__()

    @abstractmethod
    def _parts(self) -> tuple[Bijector, Distribution]: ...
