"""What the named models share."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from flow_bridge import checks
from flow_bridge.networks import Network, as_network
from torch_flows.bijectors.base import Bijector
from torch_flows.bijectors.linear import (
    Invertible1x1Conv,
    LULinear,
    Permutation,
    RandomPermutation,
    Rotation,
)
from torch_flows.bijectors.normalization import ActNorm, BatchNorm
from torch_flows.distributions import Distribution, StandardNormal
from torch_flows.flows import Flow
from torch_flows.networks.mlp import MLP


def nothing() -> None:
    """The default of ``base``: where a field has a plain one, PyTorch does not find the part itself."""


@dataclass(eq=False, repr=False)
class Model(Flow):
    """A named flow: its fields are hyperparameters, from which ``build_bijector`` makes the bijector.

    Args:
        base: the distribution of the latent, a standard normal if not given.
    """

    base: Any = field(default_factory=nothing, kw_only=True)

    def __new__(cls, *args: Any, **kwargs: Any) -> "Model":
        model = super().__new__(cls)
        nn.Module.__init__(model)  # fields are set before ``__post_init__``, and a base is a module
        return model

    def __post_init__(self) -> None:
        for name in self._modules.keys() - {"base"}:  # a field's plain default would hide it
            vars(self)[name] = self._modules.pop(name)
        bijector = self.build_bijector()
        base = self.default_base() if self.base is None else self.base
        checks.context_of_base(type(self).__name__, bijector.context_dim, base)
        super().__init__(bijector, base)

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
