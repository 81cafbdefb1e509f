"""Models of other libraries as architectures and arrays of twinflows, exactly or not at all.

A reader takes an object of its library apart by the names of its classes and attributes; no library and
no framework is imported. What has no exact counterpart is refused with one sentence,
``UnsupportedModel``. Offsets and factors of parameters are folded into the last layer of the network
that makes them, and the order of a masked network follows from its masks.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import freia, nflows, normflows, parts, sbi, zuko
from flow_bridge.importers.parts import Reading
from flow_bridge.importers.reading import dtype_of, kind, version

Read = Callable[..., Reading]


class Library(NamedTuple):
    """How the models of one library are read, and with which hints."""

    read: Read
    hints: tuple[str, ...] = ()


LIBRARIES: dict[str, Library] = {
    "nflows": Library(nflows.read, ("embedding",)),
    "sbi": Library(sbi.read, ("embedding", "slope")),
    "FrEIA": Library(freia.read),
    "normflow": Library(normflows.read),  # as it was called up to 1.2
    "normflows": Library(normflows.read),
    "zuko": Library(zuko.read, ("slope",)),
}
"""By the first part of the name of the module that an object's class comes from."""


class Imported(NamedTuple):
    """What became of a model of another library.

    Attributes:
        architecture: of a ``Flow``.
        arrays: in float64, under their torch names: together what a checkpoint is written from.
        source: what was read.
        notes: sentences about what did not come with it.
        dtype: of the model that was read.
        reading: layer by layer, for the comparison with it.
    """

    architecture: Architecture
    arrays: Mapping[str, np.ndarray]
    source: str
    notes: tuple[str, ...]
    dtype: str
    reading: Reading


def import_flow(peer: Any, **hints: Any) -> Imported:
    """Read a live model of another library.

    Args:
        peer: the model: a ``Flow`` of zuko, for instance.
        hints: what the object does not say, such as ``slope=1e-4`` for weights of zuko 1.0.1 to 1.4.1.

    Raises:
        UnsupportedModel: for what has no exact counterpart; the message says what.
        TypeError: for a hint that the library does not take.
    """
    root = _root(peer)
    library = LIBRARIES[root]
    for hint in hints:
        if hint not in library.hints:
            takes = " and ".join(library.hints) or "none"
            raise TypeError(f"import_flow takes no hint {hint!r} for {root}; it takes {takes}.")
    reading = library.read(peer, **hints)
    whole = parts.flow(reading)
    notes = tuple(dict.fromkeys(reading.notes))
    source = f"{root} {version(root)}".strip() + f", {kind(peer)}"
    dtype = reading.dtype or dtype_of(peer)
    return Imported(whole.architecture, whole.arrays, source, notes, dtype, reading)


def _root(peer: Any) -> str:
    for cls in type(peer).__mro__:
        root = cls.__module__.split(".")[0]
        if root in LIBRARIES:
            return root
    raise UnsupportedModel(
        f"a {type(peer).__module__}.{type(peer).__name__} is no model of {', '.join(LIBRARIES)}."
    )
