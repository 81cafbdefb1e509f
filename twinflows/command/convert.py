"""Files of other kinds: a bare torch ``state_dict`` in safetensors, and Flax variables in msgpack."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.checkpoint import read_checkpoint, write_checkpoint
from flow_bridge.errors import ConversionError
from flow_bridge.weights import check_table, jax_to_torch, torch_shapes, torch_to_jax


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
        architecture = json.loads(architecture_file.read_text())
        arrays = _read_state(source) if source_form == "torch" else _read_flax(source)
        check_table({name: a.shape for name, a in arrays.items()}, expected_shapes(architecture))
    if target_form == "twinflows":
        write_checkpoint(target, architecture, arrays, expected_shapes)
    elif target_form == "torch":
        from safetensors.numpy import save_file

        save_file({n: np.array(a, order="C") for n, a in arrays.items()}, target, {"format": "pt"})
    else:
        from flax.serialization import to_bytes

        target.write_bytes(to_bytes(torch_to_jax(arrays, _like(architecture))))


def _read_state(source: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(source)
    except SafetensorError as error:
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


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The expected table, from whichever half is installed."""
    try:
        from torch_flows import checkpoint
    except ImportError:
        return torch_shapes(_like(architecture))
    return dict(checkpoint.expected_shapes(architecture))
