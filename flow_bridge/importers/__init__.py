"""Models of other libraries as architectures and arrays of twinflows, exactly or not at all.

A reader takes an object of its library apart by the names of its classes and attributes; no library and
no framework is imported. What has no exact counterpart is refused with one sentence,
``UnsupportedModel``. Offsets and factors of parameters are folded into the last layer of the network
that makes them, and the order of a masked network follows from its masks. Readers are imported where one
is asked for.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from flow_bridge import checks
from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import parts
from flow_bridge.importers.parts import Reading
from flow_bridge.importers.reading import dtype_of, kind, version
from flow_bridge.weights import DTYPES


class Library(NamedTuple):
    """Which module reads the models of one library, and with which hints."""

    reader: str
    hints: tuple[str, ...] = ()


LIBRARIES: dict[str, Library] = {
    "zuko": Library("zuko", ("slope",)),
    "nflows": Library("nflows", ("embedding",)),
    "sbi": Library("sbi", ("embedding", "slope")),
    "normflows": Library("normflows"),
    "normflow": Library("normflows"),  # as it was called up to 1.2
    "FrEIA": Library("freia"),
    "pyro": Library("pyro"),
    "flowjax": Library("flowjax"),
    "distrax": Library("distrax", ("weights",)),
    "numpyro": Library("numpyro", ("weights",)),
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
    reading = _module(library.reader).read(peer, **hints)
    whole = parts.flow(reading)
    notes = tuple(dict.fromkeys(reading.notes))
    source = f"{root} {version(root)}".strip() + f", {kind(peer)}"
    dtype = reading.dtype or dtype_of(peer)
    return Imported(whole.architecture, whole.arrays, source, notes, dtype, reading)


STATES = "nflows", "normflows", "sbi", "zuko"
"""The libraries whose models can be read from arrays alone."""


def import_state(
    library: str, state: Mapping[str, Any], model: str | None = None, **hints: Any
) -> Imported:
    """Read the arrays of a model without the model: what ``state_dict()`` returned, or a file of it.

    Names and shapes tell the layers; ``hints`` tell what no file holds, as arguments of the same names
    did when the model was made. The result is compared with nothing.

    Args:
        library: ``"sbi"``, ``"nflows"``, ``"normflows"`` or ``"zuko"``.
        state: arrays or tensors by name.
        model: which of the library's models it is, for sbi: ``"maf"``, ``"nsf"``, ...
        hints: for splines of nflows ``spline`` and ``tail_bound``, for zuko ``slope`` and ``univariate``,
            for instance.

    Raises:
        UnsupportedModel: for arrays that do not tell what they belong to, and for a missing hint.
        TypeError: for a hint that the library does not take.
        ValueError: for an unknown library.
    """
    checks.one_of("import_state", "library", library, STATES)
    states = _module("states")
    if model is not None:
        if library != "sbi":
            raise TypeError(f"import_state takes no model for {library}: its arrays tell.")
        hints["model"] = model
    takes = states.hints_of(library, model)
    for hint in hints:
        if hint not in takes and hint != "model":
            raise TypeError(
                f"import_state takes no hint {hint!r} for {model or library}; it takes "
                f"{', '.join(takes)}."
            )
    reading = getattr(states, f"read_{library}")(state, **hints)
    whole = parts.flow(reading)
    notes = (*dict.fromkeys(reading.notes), "there was no model to compare with: compare log_prob.")
    name = f"{library} {model}" if model else library
    return Imported(whole.architecture, whole.arrays, name, notes, _dtype(state), reading)


def _module(name: str) -> Any:
    return import_module(f"flow_bridge.importers.{name}")


def _dtype(state: Mapping[str, Any]) -> str:
    """The dtype of the floating-point arrays."""
    names = [str(value.dtype).removeprefix("torch.") for value in state.values()]
    return next((name for name in names if name in DTYPES), "float32")


def _root(peer: Any) -> str:
    for cls in type(peer).__mro__:
        root = cls.__module__.split(".")[0]
        if root in LIBRARIES:
            return root
    raise UnsupportedModel(
        f"a {type(peer).__module__}.{type(peer).__name__} is no model of {', '.join(LIBRARIES)}."
    )
