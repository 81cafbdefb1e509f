"""A network as an argument: which class, and with what; the same spelling in both halves."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from flow_bridge.arguments import convert
from flow_bridge.errors import ArchitectureError

GIVEN = ("context_dim", "num_parameters", "mask", "order", "num_features")
"""Arguments that a network gets from the bijector that it is built for, if its class names them."""

WIDE = 256
"""From this width on a context meets the first layer apart from x: what was fastest."""

REGISTERED: set[type] = set()
"""The classes that ``register_network`` of either half has seen."""

FLAX = ("parent", "name")
"""Arguments that Flax adds to every module."""


@dataclass(frozen=True, init=False, repr=False)
class Network:
    """A network that is still to be built: its class, and its arguments but for the widths.

    The class is any ``nn.Module`` or Linen module whose first two arguments are the widths of its
    input and output. What is left out of ``options`` is the class's default.

    Args:
        cls: the class.
        options: its other arguments, plain data.

    Raises:
        ArchitectureError: for an argument that the class does not have, or lacks.

    Examples:
        >>> import torch_flows
        >>> torch_flows.Network(torch_flows.HollowMLP, hidden_dims=(8,), width=4)
        Network(HollowMLP, hidden_dims=(8,), width=4, activation='tanh')
    """

    cls: type
    options: tuple[tuple[str, Any], ...]

    def __init__(self, cls: type, **options: Any) -> None:
        parameters = network_arguments(cls)
        for name in options:
            if name not in parameters:
                raise ArchitectureError(
                    f"{cls.__name__} has no argument {name!r} to choose; it has {[*parameters]}."
                )
        chosen = {name: options.get(name, p.default) for name, p in parameters.items()}
        for name, value in chosen.items():
            if value is inspect.Parameter.empty:
                raise ArchitectureError(f"{cls.__name__} needs its argument {name!r}.")
        frozen = tuple(
            (name, _frozen(cls, name, convert(cls, name, value))) for name, value in chosen.items()
        )
        object.__setattr__(self, "cls", cls)
        object.__setattr__(self, "options", frozen)

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options)
        return f"Network({self.cls.__name__}{options})"

    def takes(self, name: str) -> bool:
        """Whether the class names one of ``GIVEN`` among its arguments."""
        return name in _parameters(self.cls)

    def lacks(self, given: Mapping[str, Any]) -> str | None:
        """What the class needs of ``GIVEN`` and is not given; a masked network needs an order."""
        parameters = _parameters(self.cls)
        for name in reversed(GIVEN):
            if name in parameters and name not in given:
                required = parameters[name].default is inspect.Parameter.empty
                if required or name == "order":
                    return name
        return None

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options, and what the class takes of ``given``."""
        return {**dict(self.options), **{k: v for k, v in given.items() if self.takes(k)}}

    def architecture(self) -> dict[str, Any]:
        """The network as plain data, ``{"type": "MLP", "hidden_dims": [64, 64], ...}``.

        Raises:
            ArchitectureError: for a class that is not registered.
        """
        if self.cls not in REGISTERED:
            raise ArchitectureError(
                f"the network {self.cls.__name__} is not registered: put register_network above it, "
                "and above a class of the same name in the other half."
            )
        return {"type": self.cls.__name__, **dict(self.options)}


def network_arguments(cls: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a network's class that are the user's to choose."""
    parameters = list(_parameters(cls).items())
    if len(parameters) < 2:
        raise ArchitectureError(
            f"{cls.__name__} is no network: its first two arguments are to be the widths of its "
            "input and output."
        )
    return {name: p for name, p in parameters[2:] if name not in (*GIVEN, *FLAX)}


def as_network(owner: str, conditioner: Any, default: type) -> Network:
    """A ``Network``, from a class alone or ``None`` too.

    Raises:
        TypeError: for anything else.
    """
    if conditioner is None:
        return Network(default)
    if isinstance(conditioner, type):
        return Network(conditioner)
    if not isinstance(conditioner, Network):
        kind = "list" if isinstance(conditioner, tuple) else type(conditioner).__name__
        raise TypeError(
            f"{owner} expects its conditioner as Network(CLASS, ...) or as a class, got {kind}."
        )
    return conditioner


@cache
def _parameters(cls: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls).parameters


def _frozen(cls: type, name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return tuple(_frozen(cls, name, item) for item in value)
    raise ArchitectureError(
        f"{cls.__name__} expects {name} as plain data (numbers, strings, lists), "
        f"got {type(value).__name__}."
    )
