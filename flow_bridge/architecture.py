"""An architecture is plain data: ``{"type": "RealNVP", "dim": 2, ...}``, the same in both halves.

A class takes part by the scikit-learn convention: its constructor's arguments are plain values (or
other bijectors), kept as attributes of the same names. Nothing else is needed per class.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from flow_bridge.arguments import convert_arguments
from flow_bridge.errors import ArchitectureError
from flow_bridge.networks import FLAX, REGISTERED, Network, network_arguments

Architecture = dict[str, Any]
T = TypeVar("T", bound=Callable[..., Any])
N = TypeVar("N")


@dataclass
class Budget:
    """What may still be built."""

    layers: int
    entries: int


_budget: ContextVar[Budget | None] = ContextVar("twinflows_budget", default=None)


class Registry:
    """The types that one half can build, by name."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.types: dict[str, Callable[..., Any]] = {}

    def register(self, cls: T) -> T:
        """Decorator: make a class, or a function that makes one's object, known to ``build`` and ``load``.

        Raises:
            ArchitectureError: if another class already has that name.
        """
        known = self.types.get(cls.__name__)
        if known is not None and (known.__module__, known.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise ArchitectureError(
                f"{self.package} already has a type {cls.__name__!r}, from {known.__module__}."
            )
        registered = cls if isinstance(cls, type) else convert_arguments(cls)
        self.types[cls.__name__] = registered
        return registered

    def register_network(self, cls: type[N]) -> type[N]:
        """Class decorator: make a network known to ``build`` and ``load`` under its own name.

        Args:
            cls: a class whose first two arguments are the widths of its input and output, and whose
                others are plain data. Registered in both halves under one name, with the same
                arguments and weights, it is converted and saved like the built-in ones.

        Raises:
            ArchitectureError: for a class with fewer arguments, or if another has that name.
        """
        network_arguments(cls)
        self.register(cls)
        REGISTERED.add(cls)
        return cls

    def build(self, architecture: Architecture) -> Any:
        """The object that an architecture describes, with freshly initialised weights.

        Raises:
            ArchitectureError: for an unknown type or argument, or a value that its constructor
                refuses.
        """
        if not isinstance(architecture, Mapping) or not isinstance(architecture.get("type"), str):
            raise ArchitectureError(
                'an architecture is a mapping with a "type" that names a class.'
            )
        name = architecture["type"]
        if name not in self.types:
            raise ArchitectureError(
                f"{self.package} has no type {name!r}; a class of your own must be registered "
                f"first, with {self.package}.register."
            )
        cls: Any = self.types[name]
        known = argument_names(cls)
        unbuilt = cls in REGISTERED and known[0] not in architecture
        known = [*network_arguments(cls)] if unbuilt else known
        arguments = {
            key: self._value(value) for key, value in architecture.items() if key != "type"
        }
        unknown = [key for key in arguments if key not in known]
        if unknown:
            raise ArchitectureError(f"{name} has no argument {unknown[0]!r}; it has {known}.")
        try:
            return Network(cls, **arguments) if unbuilt else cls(**arguments)
        except ArchitectureError:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ArchitectureError(f"{name} cannot be built: {error}") from error

    def _value(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self.build(dict(value))
        if isinstance(value, list | tuple):
            return tuple(
                self._value(item) if isinstance(item, Mapping | list | tuple) else item
                for item in value
            )
        return value

    def knows(self, architecture: Any) -> bool:
        """Whether every type in an architecture is registered."""
        if isinstance(architecture, list):
            return all(self.knows(item) for item in architecture)
        if not isinstance(architecture, Mapping):
            return True
        return architecture.get("type") in self.types and self.knows(list(architecture.values()))


def architecture(obj: Any) -> Architecture:
    """The architecture of a flow, bijector or base distribution of either half.

    Raises:
        ArchitectureError: if a constructor argument is not kept as an attribute of its name, or is
            not plain data, and for an object that was changed into what no arguments build.

    Examples:
        >>> import torch_flows
        >>> from flow_bridge import architecture
        >>> architecture(torch_flows.Planar(dim=2))
        {'type': 'Planar', 'dim': 2, 'context_dim': 0}
    """
    if isinstance(obj, Network):
        return _network(obj, "Network")
    described = describe(obj, type(obj))
    return obj.confirm(described) if hasattr(obj, "confirm") else described


def describe(obj: Any, cls: type) -> Architecture:
    """The arguments that would build an object as one of a class, read from its attributes."""
    name = cls.__name__
    result: Architecture = {"type": name}
    for argument in argument_names(cls):
        if not hasattr(obj, argument):
            raise ArchitectureError(f"{name} does not keep its argument {argument!r}.")
        result[argument] = _plain(getattr(obj, argument), f"{name}.{argument}")
    return result


def to_json(value: Architecture) -> str:
    """Canonical JSON: sorted keys, no spaces, floats that read back exactly."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@contextmanager
def construction_budget(*, layers: int, entries: int) -> Iterator[Budget]:
    """Let no more be built inside: a small file must not ask for a huge model.

    Args:
        layers: of bijectors, distributions and layers of networks, all together.
        entries: of the fixed arrays that follow from constructor arguments, all together.
    """
    budget = Budget(layers, entries)
    token = _budget.set(budget)
    try:
        yield budget
    finally:
        _budget.reset(token)


def count_construction(layers: int = 1) -> None:
    """Called by everything that is built, before it builds its parts."""
    budget = _budget.get()
    if budget is not None:
        budget.layers -= layers
        if budget.layers < 0:
            raise ArchitectureError(
                "the architecture asks for more layers than a file of this size may."
            )


def count_entries(entries: int) -> None:
    """Called with the size of every fixed array before it is made (a mask, an order, a table)."""
    budget = _budget.get()
    if budget is not None:
        budget.entries -= entries
        if budget.entries < 0:
            raise ArchitectureError(
                "the architecture asks for larger masks, orders or tables than a file of this size may."
            )


def argument_names(cls: Callable[..., Any]) -> list[str]:
    """The names of a constructor's arguments."""
    parameters = inspect.signature(cls).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in names if name not in FLAX] if cls in REGISTERED else names


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple) or type(value).__name__ == "ModuleList":
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, type):
        value = Network(value)
    if isinstance(value, Network):
        return _network(value, where)
    if hasattr(value, "is_architecture") or type(value) in REGISTERED:
        return describe(value, type(value))
    raise ArchitectureError(
        f"{where} is a {type(value).__name__}, which is not plain data; "
        "use numbers, strings, lists or registered classes."
    )


def _network(network: Network, where: str) -> Architecture:
    return {key: _plain(item, where) for key, item in network.architecture().items()}
