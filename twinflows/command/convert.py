"""Files of other kinds: a bare torch ``state_dict`` in safetensors, and Flax variables in msgpack."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from flow_bridge.architecture import Architecture
from flow_bridge.checkpoint import read_checkpoint, read_header, write_checkpoint
from flow_bridge.errors import ConversionError
from flow_bridge.weights import jax_to_torch, torch_to_jax
from twinflows.command.outputs import replacing
from twinflows.sides.models import check_storable, expected_shapes


def convert_file(
    source: Path, source_form: str, target: Path, target_form: str, architecture_file: Path | None
) -> None:
    """Read ``source`` in one form and write ``target`` in another.

    Args:
        source, target: the files.
        source_form, target_form: ``"twinflows"`` (a checkpoint), ``"torch"`` (a bare ``state_dict``
            in safetensors) or ``"flax"`` (variables in msgpack; reading or writing it needs JAX).
        architecture_file: JSON of the architecture; needed unless the source is a checkpoint.

    Raises:
        ConversionError: if arrays are missing, unexpected, misshaped or mistyped.
        CheckpointError: if the source is a checkpoint and something is wrong with it.
    """
    if source_form == "twinflows":
        architecture, arrays = read_checkpoint(source, expected_shapes)
    else:
        if architecture_file is None:
            raise ConversionError(f"a {source_form} file carries no architecture: name one.")
        architecture = _read_architecture(architecture_file)
        arrays = _read_state(source) if source_form == "torch" else _read_flax(source)
        check_storable(architecture, arrays)
    if target_form == "twinflows":
        write_checkpoint(target, architecture, arrays, expected_shapes)
        return
    if target_form == "torch":
        contiguous = {name: np.array(array, order="C") for name, array in arrays.items()}
        contents = safetensors.numpy.save(contiguous, {"format": "pt"})
    else:
        from flax.serialization import to_bytes

        contents = to_bytes(torch_to_jax(arrays, _like(architecture)))
    with replacing(target) as temporary:
        temporary.write_bytes(contents)


def _read_architecture(path: Path) -> Architecture:
    """From JSON of it, from JSON that ``inspect`` prints, or from a checkpoint."""
    with path.open("rb") as file:
        is_json = file.read(64).lstrip().startswith(b"{")
    if not is_json:
        return read_header(path).model().description
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is no JSON of an architecture.") from error
    found = found.get("architecture", found)
    if not isinstance(found, dict):
        raise ConversionError(f"{path} is no JSON of an architecture.")
    return found


def _read_state(source: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(source)
    except safetensors.SafetensorError as error:
        raise ConversionError(f"{source} is not a safetensors file: {error}") from error


def _read_flax(source: Path) -> dict[str, np.ndarray]:
    from flax.serialization import msgpack_restore

    try:
        variables = msgpack_restore(source.read_bytes())
    except Exception as error:  # msgpack raises many types on foreign bytes
        raise ConversionError(f"{source} holds no Flax variables: {error}") from error
    if not isinstance(variables, Mapping):
        raise ConversionError(f"{source} holds no Flax variables.")
    return jax_to_torch(variables)


def _like(architecture: Architecture) -> Mapping[str, Any]:
    import jax_flows

    return jax_flows.build(architecture).shapes()
