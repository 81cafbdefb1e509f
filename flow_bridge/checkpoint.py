"""One ``.safetensors`` file holds the architecture and the weights; either half loads it.

Tensors carry the PyTorch names and layouts. The metadata carries the architecture as JSON, a format
version and a SHA-256 over both (integrity, not authenticity). The loader trusts nothing: it caps
sizes, refuses what the safetensors library lets pass (duplicate names, odd names, unknown fields),
builds the expected table of names and shapes from the architecture and compares it with the header
before it touches data, and then checks the hash and that every value is finite.
"""

import hashlib
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from flow_bridge.architecture import Architecture, construction_budget, to_json
from flow_bridge.checks import one_of
from flow_bridge.errors import CheckpointError, TwinflowsError
from flow_bridge.weights import DTYPES, check_table

FORMAT_VERSION = "1"
MAX_HEADER_BYTES = 16 << 20
MAX_METADATA_BYTES = 1 << 20
MAX_TENSORS = 100_000
MAX_RANK = 8
MAX_INTEGER = 1 << 20  # of an architecture's integers, seeds apart: nothing is sized beyond it
MAX_DEPTH = 32

_WEIGHT_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_COUNTER_DTYPES = {"I64": "int64", "I32": "int32", "U32": "uint32"}  # in optimiser states
_DTYPE_NAMES = _WEIGHT_DTYPES | _COUNTER_DTYPES
_NUMPY_DTYPES = DTYPES | {name: np.dtype(name) for name in _COUNTER_DTYPES.values()}
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_.]{0,511}$")
_METADATA_KEYS = {
    "format",
    "twinflows.format_version",
    "twinflows.kind",
    "twinflows.description",
    "twinflows.sha256",
}

Shapes = Mapping[str, tuple[int, ...]]


class TensorInfo(NamedTuple):
    """What the header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


class Header(NamedTuple):
    """A validated header: what the file claims to hold."""

    kind: str
    description: dict[str, Any]
    tensors: dict[str, TensorInfo]
    sha256: str

    @property
    def num_values(self) -> int:
        """How many numbers the file holds."""
        return sum(int(np.prod(info.shape)) for info in self.tensors.values())


def write_checkpoint(
    path: str | os.PathLike[str], architecture: Architecture, arrays: Mapping[str, np.ndarray]
) -> None:
    """Write architecture and weights to ``path``: atomically, then read back and verified.

    Args:
        path: the file; an existing one is replaced only by a complete new one.
        architecture: plain data, see ``flow_bridge.architecture``.
        arrays: torch names to floating-point arrays in PyTorch's layout, all of one dtype.

    Raises:
        CheckpointError: for arrays that are not floating point or not of one dtype, and if what was
            written does not read back equal.
    """
    dtypes = sorted({array.dtype.name for array in arrays.values()})
    if len(dtypes) > 1 or not set(dtypes) <= DTYPES.keys():
        raise CheckpointError(f"a checkpoint holds one float dtype, got {' and '.join(dtypes)}.")
    write_arrays(path, "model", architecture, arrays)


def read_checkpoint(
    path: str | os.PathLike[str],
    expected_shapes: Callable[[Architecture], Shapes],
    *,
    dtype: str | None = None,
    allow_non_finite: bool = False,
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """Read a checkpoint that nobody vouches for.

    Args:
        path: the file.
        expected_shapes: the table of names and shapes that an architecture must come with.
        dtype: convert the weights to this dtype.
        allow_non_finite: accept NaN and infinite weights.

    Returns:
        The architecture and the arrays by torch name.

    Raises:
        CheckpointError: with the reason, whatever is wrong with the file.
        FileNotFoundError: if there is none.
    """

    if dtype is not None:
        one_of("load", "dtype", dtype, DTYPES)

    def check(header: Header) -> None:
        _check_integers(header.description)
        with construction_budget(1000 + 2 * len(header.tensors)):
            expected = expected_shapes(header.description)
        check_table({name: info.shape for name, info in header.tensors.items()}, expected)
        dtypes = {info.dtype for info in header.tensors.values()}
        if len(dtypes) > 1 or not dtypes <= DTYPES.keys():
            raise CheckpointError("a checkpoint holds tensors of one floating-point dtype only.")

    header, arrays = read_arrays(path, "model", check, allow_non_finite=allow_non_finite)
    if dtype is not None:
        arrays = {name: array.astype(DTYPES[dtype]) for name, array in arrays.items()}
    return header.description, arrays


def read_header(path: str | os.PathLike[str]) -> Header:
    """The validated header alone: what ``twinflows inspect`` prints, without any framework."""
    with _reason(path), Path(path).open("rb") as file:
        return _read_header(file)


def write_arrays(
    path: str | os.PathLike[str],
    kind: str,
    description: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Write named arrays with a JSON description, atomically, and verify what was written."""
    path = Path(path)
    contiguous = {}
    for name, array in arrays.items():
        if array.dtype not in _NUMPY_DTYPES.values():
            raise CheckpointError(f"array {name!r} is {array.dtype}, which no checkpoint can hold.")
        if not _NAME.match(name):
            raise CheckpointError(f"array name {name!r} is not a dotted identifier.")
        # safetensors 0.8.0 scrambles arrays that are not C-contiguous
        contiguous[name] = np.ascontiguousarray(array).reshape(array.shape)
    text = to_json(dict(description))
    if len(text) > MAX_METADATA_BYTES:
        raise CheckpointError(f"the description has {len(text)} bytes, over {MAX_METADATA_BYTES}.")
    digest = _digest(kind, text, contiguous)
    metadata = {
        "format": "pt",
        "twinflows.format_version": FORMAT_VERSION,
        "twinflows.kind": kind,
        "twinflows.description": text,
        "twinflows.sha256": digest,
    }
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(safetensors.numpy.save(contiguous, metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        read_arrays(temporary, kind, allow_non_finite=True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_arrays(
    path: str | os.PathLike[str],
    kind: str,
    check: Callable[[Header], None] = lambda header: None,
    *,
    allow_non_finite: bool = False,
) -> tuple[Header, dict[str, np.ndarray]]:
    """Read a file of ``write_arrays``; ``check`` sees the header before any data is touched."""
    with _reason(path), Path(path).open("rb") as file:
        header = _read_header(file)
        if header.kind != kind:
            raise CheckpointError(f"the file holds a {header.kind[:20]}, expected a {kind}.")
        check(header)
        file.seek(0)
        views = dict(safetensors.deserialize(file.read()))
        arrays = {
            name: np.frombuffer(views[name]["data"], _NUMPY_DTYPES[info.dtype]).reshape(info.shape)
            for name, info in header.tensors.items()
        }
        if _digest(kind, to_json(header.description), arrays) != header.sha256:
            raise CheckpointError("the contents do not match their SHA-256.")
        if not allow_non_finite:
            for name, array in arrays.items():
                if not np.isfinite(array).all():
                    raise CheckpointError(f"tensor {name!r} holds a NaN or an infinity.")
    return header, arrays


@contextmanager
def _reason(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (TwinflowsError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error


def _read_header(file: BinaryIO) -> Header:
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise CheckpointError("the file is shorter than a safetensors header.")
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise CheckpointError(f"the header claims {length} bytes, which the file cannot hold.")
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise CheckpointError("the header is not a JSON object.")
    fields = _load_json(raw, "header")
    metadata = fields.pop("__metadata__", None)
    if not isinstance(metadata, dict) or set(metadata) != _METADATA_KEYS:
        raise CheckpointError("the file is a safetensors file, but not one of twinflows.")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("the metadata must map strings to strings.")
    if metadata["twinflows.format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"format version {metadata['twinflows.format_version'][:20]!r} is not supported; "
            f"this release reads version {FORMAT_VERSION}."
        )
    if len(metadata["twinflows.description"]) > MAX_METADATA_BYTES:
        raise CheckpointError(f"the description is over {MAX_METADATA_BYTES} bytes.")
    if len(fields) > MAX_TENSORS:
        raise CheckpointError(f"the file holds {len(fields)} tensors, over {MAX_TENSORS}.")
    return Header(
        kind=metadata["twinflows.kind"],
        description=_load_json(metadata["twinflows.description"], "description"),
        tensors=_tensor_table(fields, size - 8 - length),
        sha256=metadata["twinflows.sha256"],
    )


def _tensor_table(fields: dict[str, Any], num_bytes: int) -> dict[str, TensorInfo]:
    table, spans = {}, []
    for name, entry in fields.items():
        if not _NAME.match(name):
            raise CheckpointError(f"tensor name {name[:80]!r} is not a dotted identifier.")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"tensor {name!r} must have dtype, shape and data_offsets alone.")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPE_NAMES:
            raise CheckpointError(
                f"tensor {name!r} has dtype {str(entry['dtype'])[:20]!r}, "
                f"expected one of {', '.join(_DTYPE_NAMES)}."
            )
        dtype = _DTYPE_NAMES[entry["dtype"]]
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _is_counts(shape) or len(shape) > MAX_RANK:
            raise CheckpointError(f"tensor {name!r} has an impossible shape.")
        if not _is_counts(offsets) or len(offsets) != 2:
            raise CheckpointError(f"tensor {name!r} has impossible offsets.")
        size = _NUMPY_DTYPES[dtype].itemsize
        for axis in shape:
            size *= axis
        if offsets[1] - offsets[0] != size or offsets[1] > num_bytes:
            raise CheckpointError(f"tensor {name!r} does not fit its place in the file.")
        table[name] = TensorInfo(dtype, tuple(shape))
        spans.append((offsets[0], offsets[1]))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise CheckpointError("tensors overlap or leave a hole in the file.")
        end = stop
    if end != num_bytes:
        raise CheckpointError("the file has bytes that belong to no tensor.")
    return table


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**48 for item in value
    )


def _load_json(text: bytes | str, what: str) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise CheckpointError(f"the {what} has a duplicate name.")
        return result

    def no_constants(text: str) -> Any:
        raise CheckpointError(f"the {what} holds {text}, which is not JSON.")

    try:
        value = json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constants)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the {what} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"the {what} is not a JSON object.")
    return value


def _check_integers(value: Any, key: str = "", depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise CheckpointError(f"the architecture is nested deeper than {MAX_DEPTH}.")
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_integers(item, name, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_integers(item, key, depth + 1)
    elif isinstance(value, int) and key != "seed" and abs(value) > MAX_INTEGER:
        raise CheckpointError(f"the architecture's {key!r} is {value}, over {MAX_INTEGER}.")


def _digest(kind: str, text: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(f"{kind}\n{text}\n".encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(array.tobytes() if sys.byteorder == "little" else array.byteswap().tobytes())
    return digest.hexdigest()


def model_digest(description: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 that a checkpoint of a model carries: of its architecture and weights."""
    return _digest("model", to_json(description), arrays)
