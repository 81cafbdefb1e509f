"""Tables of activations by name."""

from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")

LEAKY = "leaky_relu:"


class Activations(dict[str, T]):
    """Something of each activation, by its name, ``"leaky_relu:SLOPE"`` for every slope.

    Args:
        entries: by name.
        leaky: makes the entry of a slope.

    Raises:
        ValueError: when asked for a slope that is not at least 0 and below 1.
    """

    def __init__(self, entries: Mapping[str, T], leaky: Callable[[float], T]) -> None:
        super().__init__(entries)
        self.leaky = leaky

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or _is_leaky(name)

    def __missing__(self, name: str) -> T:
        if not _is_leaky(name):
            raise KeyError(name)
        return self.leaky(float(name.removeprefix(LEAKY)))


def _is_leaky(name: object) -> bool:
    if not isinstance(name, str) or not name.startswith(LEAKY):
        return False
    try:
        slope = float(name.removeprefix(LEAKY))
    except ValueError:
        slope = -1.0
    if not 0 <= slope < 1:
        raise ValueError(f"leaky_relu:SLOPE has a slope of at least 0 and below 1, got {name!r}.")
    return True
