"""Constructor arguments as plain values of the kinds that their annotations name, in one place.

A numpy integer, number, truth value or array is taken as what it holds; a value of another kind is
refused with the same sentence in both halves. Ranges are the constructors' own to check.
"""

import inspect
import numbers
import operator
import types
import typing
from abc import ABCMeta
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_NAMES = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
_PLURALS = {
    int: "a list of integers",
    float: "a list of numbers",
    str: "a list of strings",
    bool: "a list of True and False",
}


class PlainArguments(ABCMeta):
    """Metaclass of what has an architecture."""

    def __call__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        signature, kinds = _describe(cast(Any, cls))
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return type.__call__(cls, *args, **kwargs)  # Python says what is missing or too much
        for name, value in arguments.items():
            if name in kinds:
                arguments[name] = kinds[name].convert(cls.__name__, name, value)
        bound = inspect.BoundArguments(signature, arguments)
        return type.__call__(cls, *bound.args, **bound.kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        return _describe(cls)[0]


def convert_arguments(function: F) -> F:
    """A function that takes its arguments as a class of ``PlainArguments`` does."""
    signature, kinds = _describe_function(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python says what is missing or too much
        for name, value in arguments.items():
            if name in kinds:
                arguments[name] = kinds[name].convert(function.__name__, name, value)
        return function(**arguments)

    return cast(F, call)


def convert(cls: type, name: str, value: Any) -> Any:
    """One argument of any class as a plain value, where the class says of which kind it is."""
    kinds = _describe(cls)[1]
    return kinds[name].convert(cls.__name__, name, value) if name in kinds else value


class Kind(NamedTuple):
    """What an annotation allows: plain types, lists of plain types, and what is not looked at."""

    types: tuple[type, ...]
    lists: tuple["Kind", ...]
    anything: bool

    def convert(self, owner: str, name: str, value: Any) -> Any:
        """The value as it is kept, or ``ValueError``."""
        for plain in self.types:
            converted = _plain(plain, value)
            if converted is not _OTHER:
                return converted
        entries = _entries(value) if self.lists else None
        if entries is not None:
            for kind in self.lists:
                try:
                    return tuple(kind.convert(owner, name, entry) for entry in entries)
                except ValueError:
                    continue
        if self.anything:
            return value
        raise ValueError(f"{owner} expects {name} as {self}, got {_shown(value)}.")

    def __str__(self) -> str:
        words = [_NAMES[kind] for kind in self.types if kind in _NAMES]
        words += [_PLURALS.get(next(iter(kind.types), None), "a list") for kind in self.lists]  # type: ignore[arg-type]
        if type(None) in self.types:
            words.append("None")
        words = list(dict.fromkeys(words))
        return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


_OTHER = object()


def plain(owner: str, name: str, kind: type, value: Any) -> Any:
    """One argument as a value of a plain type, or ``ValueError``."""
    return Kind((kind,), (), False).convert(owner, name, value)


@cache
def _describe(cls: type) -> tuple[inspect.Signature, dict[str, Kind]]:
    signature, kinds = _describe_function(cls.__init__)  # type: ignore[misc]
    _, *parameters = signature.parameters.values()
    return signature.replace(parameters=parameters), kinds


def _describe_function(
    function: Callable[..., Any],
) -> tuple[inspect.Signature, dict[str, Kind]]:
    signature = inspect.signature(function)
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # a name that only type checkers see
        hints = {}
    kinds = {name: _kind(hints[name]) for name in signature.parameters if name in hints}
    return signature, kinds


def _kind(annotation: Any) -> Kind:
    if annotation in (int, float, bool, str, type(None)):
        return Kind((annotation,), (), False)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        members = [_kind(member) for member in inner]
        return Kind(
            tuple(kind for member in members for kind in member.types),
            tuple(kind for member in members for kind in member.lists),
            any(member.anything for member in members),
        )
    if origin in (Sequence, tuple):
        return Kind((), (_kind(inner[0]),), False)
    return Kind((), (), True)


def _plain(kind: type, value: Any) -> Any:
    """The value as one of a plain type, or ``_OTHER``."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    truth = isinstance(value, bool | np.bool_)
    if kind is bool:
        return bool(value) if truth else _OTHER
    if truth:
        return _OTHER
    if (
        kind is float
        and isinstance(value, numbers.Real)
        and not isinstance(value, numbers.Integral)
    ):
        return float(value)
    if kind in (int, float):
        try:
            return operator.index(value)
        except TypeError:
            return _OTHER
    if kind is str:
        return str(value) if isinstance(value, str) else _OTHER
    return value if isinstance(value, kind) else _OTHER


def _entries(value: Any) -> list[Any] | None:
    """The entries of a list, of a tuple or of an array."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim else None
    if isinstance(value, str | bytes | Mapping) or hasattr(value, "is_architecture"):
        return None
    return list(value) if isinstance(value, Iterable) else None


def _shown(value: Any) -> str:
    plain = value is None or isinstance(
        value, bool | int | float | str | list | tuple | np.generic | np.ndarray
    )
    return repr(value) if plain else type(value).__name__


def arguments_of(instance: Any) -> list[tuple[str, Any]]:
    """Names and values of an object's constructor arguments, as far as it keeps them."""
    names = _describe(cast(Any, type(instance)))[0].parameters
    return [(name, getattr(instance, name)) for name in names if hasattr(instance, name)]
