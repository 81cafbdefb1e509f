"""Weights of other libraries, from files that hold nothing but arrays."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from flow_bridge.checkpoint import write_checkpoint
from flow_bridge.errors import ConversionError
from flow_bridge.importers import Imported, import_state
from flow_bridge.weights import DTYPES
from twinflows.sides.models import check_storable, expected_shapes


def import_file(
    source: Path, model: str, options: Sequence[str], target: Path, dtype: str | None
) -> Imported:
    """Read a ``state_dict`` of another library and write it as a checkpoint.

    Args:
        source: what ``torch.save(model.state_dict(), ...)`` wrote, or safetensors. Nothing in it is run.
        model: what it is of, ``LIBRARY`` or ``LIBRARY:MODEL``.
        options: hints, each ``"NAME=JSON"``.
        target: the checkpoint.
        dtype: of the weights, that of the file if not given.

    Raises:
        ConversionError: if the file holds something else than arrays by name, or arrays that do not tell
            what they belong to.
    """
    library, _, name = model.partition(":")
    imported = import_state(library, _read(source), name or None, **_hints(options))
    kind = DTYPES[dtype or imported.dtype]
    arrays = {key: array.astype(kind) for key, array in imported.arrays.items()}
    architecture = dict(imported.architecture)
    check_storable(architecture, arrays)
    write_checkpoint(target, architecture, arrays, expected_shapes)
    return imported


def _hints(options: Sequence[str]) -> dict[str, Any]:
    """``NAME=JSON`` options; a word needs no quotation marks."""
    hints: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not name.isidentifier() or not equals:
            raise ValueError(f"--set expects NAME=VALUE, got {option[:40]!r}.")
        try:
            hints[name] = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            hints[name] = text
    return hints


def _read(source: Path) -> Mapping[str, Any]:
    with source.open("rb") as file:
        begin = file.read(9)
    if begin[8:9] == b"{":
        try:
            return safetensors.numpy.load_file(source)
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise ConversionError(f"{source} is not a safetensors file: {error}") from error
    import torch

    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{source} holds objects and not arrays alone, and is not opened: save state_dict() of the "
            "model (of a posterior's posterior_estimator) with torch.save."
        ) from error
    except (EOFError, KeyError, RuntimeError, ValueError) as error:
        raise ConversionError(
            f"{source} is neither safetensors nor of torch.save: {error}"
        ) from error
    if not isinstance(state, Mapping) or not state:
        raise ConversionError(f"{source} holds no arrays by name, as state_dict() returns them.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor | np.ndarray):
            raise ConversionError(
                f"{source} has {name!r:.60} of type {type(value).__name__}, where state_dict() has arrays."
            )
    return state
