"""What the named models share."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

from flow_bridge import checks
from flow_bridge.networks import Network, as_network
from jax_flows.bijectors.base import Bijector
from jax_flows.bijectors.linear import (
    Invertible1x1Conv,
    LULinear,
    Permutation,
    RandomPermutation,
    Rotation,
)
from jax_flows.bijectors.normalization import ActNorm, BatchNorm
from jax_flows.distributions import Distribution, StandardNormal
from jax_flows.flows import Flow
from jax_flows.networks.mlp import MLP
from jax_flows.variables import freeze_lists


def nothing() -> None:
    """The default of ``base``: where a field has a plain one, PyTorch does not find the part itself."""


@dataclass(frozen=True)
class Model(Flow):
    """A named flow: its fields are hyperparameters, from which ``build_bijector`` makes the bijector.

    Args:
        base: the distribution of the latent, a standard normal if not given.
    """

    bijector: Bijector = field(init=False, repr=False, compare=False)
    base: Any = field(default_factory=nothing, kw_only=True)
    context_net: None = field(init=False, repr=False, compare=False, default=None)
    columns: None = field(init=False, repr=False, compare=False, default=None)
    context_columns: None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        freeze_lists(self)
        bijector = self.build_bijector()
        object.__setattr__(self, "bijector", bijector)
        base = self.default_base() if self.base is None else self.base
        checks.context_of_base(type(self).__name__, bijector.context_dim, base)
        object.__setattr__(self, "base", base)
        super().__post_init__()

    @abstractmethod
    def build_bijector(self) -> Bijector: ...

    def default_base(self) -> Distribution:
        """The base where none is given."""
        return StandardNormal(vars(self)["dim"])


def permutation_layers(
    owner: str, kind: str | None, dim: int, seed: int, event_ndim: int = 1
) -> list[Bijector]:
    """What mixes dimensions, or the channels of images: nothing, ``"reverse"``, ``"random"``, ``"lu"``, or
    of vectors ``"rotation"``."""
    if kind is None:
        return []
    kinds = ("reverse", "random", "lu", *(["rotation"] if event_ndim == 1 else []))
    checks.one_of(owner, "permutation", kind, kinds)
    if kind == "reverse":
        return [Permutation("reverse", dim, event_ndim)]
    if kind == "random":
        return [RandomPermutation(dim, seed, event_ndim)]
    if kind == "rotation":
        return [Rotation(dim)]
    return [LULinear(dim) if event_ndim == 1 else Invertible1x1Conv(dim)]


def normalization_layers(
    owner: str, kind: str | None, dim: int | tuple[int, ...]
) -> list[Bijector]:
    """Nothing, ``"act_norm"``, or of vectors ``"batch_norm"``."""
    if kind is None:
        return []
    kinds = ("act_norm", *(["batch_norm"] if isinstance(dim, int) else []))
    checks.one_of(owner, "normalization", kind, kinds)
    return [BatchNorm(dim) if isinstance(dim, int) and kind == "batch_norm" else ActNorm(dim)]


def network_of(model: Any, cls: type) -> Network:
    """The conditioner that a model is given, or a ``cls`` of the sizes that it states."""
    owner = type(model).__name__
    checks.initial_scale(owner, model.initial_scale, model.conditioner)
    if model.conditioner is not None:
        return as_network(owner, model.conditioner, MLP)
    return Network(
        cls,
        hidden_dims=model.hidden_dims,
        activation=model.activation,
        initial_scale=model.initial_scale,
    )
