"""One ``.safetensors`` file holds the architecture and the weights; either half loads it.

Tensors carry the PyTorch names and layouts. The metadata carries the architecture as JSON, a format
version and a SHA-256 over both (integrity, not authenticity). The loader trusts nothing: it caps
sizes, refuses what the safetensors library lets pass (duplicate names, odd names, unknown fields),
builds the expected table of names and shapes from the architecture, within a budget that the file's
own size sets, and compares it with the header before it touches data; then it checks the hash and that
every value is finite. The writer runs the same checks on what it is about to write.
"""

import glob
import hashlib
import json
import os
import re
import secrets
import socket
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO, TextIOBase
from math import isfinite, prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import safetensors.numpy

from flow_bridge.architecture import Architecture, construction_budget, to_json
from flow_bridge.checks import one_of
from flow_bridge.errors import CheckpointError, TwinflowsError
from flow_bridge.weights import DTYPES, check_table

FORMAT_VERSION = "1"
MODEL, STATE = "model", "training state"
MAX_HEADER_BYTES = 16 << 20
MAX_METADATA_BYTES = 1 << 20
MAX_TENSORS = 100_000
MAX_RANK = 8
MAX_NESTING = 128  # of lists and objects in an architecture
BASE_LAYERS, BYTES_PER_LAYER = 640, 4096
"""An architecture may ask for so many layers, and one more for so many bytes of its file."""
BASE_ENTRIES, ENTRIES_PER_VALUE = 1 << 19, 8
"""It may ask for so many entries of fixed arrays, and for so many more for each number in its file."""

_WEIGHT_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_STATE_DTYPES = {"BOOL": "bool"} | {  # in optimiser states
    f"{kind[0].upper()}{bits}": f"{kind}{bits}"
    for kind in ("int", "uint")
    for bits in (8, 16, 32, 64)
}
_DTYPE_NAMES = _WEIGHT_DTYPES | _STATE_DTYPES
_NUMPY_DTYPES = DTYPES | {name: np.dtype(name) for name in _STATE_DTYPES.values()}
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_.]{0,511}\Z")
_METADATA_KEYS = {
    "format",
    "twinflows.format_version",
    "twinflows.kind",
    "twinflows.description",
    "twinflows.sha256",
}
_SIGNATURES = {
    rb"PK\x03\x04": "a zip archive, as torch.save and numpy.savez write them",
    rb"\x80[\x02-\x05]": "a pickle",
    rb"\x93NUMPY": "a NumPy file",
    rb"\x89HDF": "an HDF5 file",
    rb"\x1f\x8b": "a gzip archive",
    rb"\x89PNG|\xff\xd8\xff|GIF8": "a picture",
    rb"%PDF": "a PDF file",
    rb"version https://git-lfs": "a Git LFS pointer; fetch the file itself with git lfs pull",
    rb"(?i)\s*<(!doctype|html|\?xml|head|body)": "an HTML page",
    rb"\s*[{\[]": "JSON",
    rb"[\x81-\x8f][\xa0-\xbf\xd9]": "a msgpack file, as Flax writes them",
}

Shapes = Mapping[str, tuple[int, ...]]
Readable = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]
"""Where a file is read from: a path, its bytes, or an open binary file."""
Writable = str | os.PathLike[str] | IO[bytes]
"""Where a file is written to: a path, or a binary file open for writing."""


class TensorInfo(NamedTuple):
    """What the header says of one tensor, and where its bytes start."""

    dtype: str
    shape: tuple[int, ...]
    start: int = 0


class Header(NamedTuple):
    """A validated header: what the file claims to hold."""

    kind: str
    description: dict[str, Any]
    tensors: dict[str, TensorInfo]
    sha256: str
    num_bytes: int

    @property
    def num_values(self) -> int:
        """How many numbers the file holds."""
        return sum(prod(info.shape) for info in self.tensors.values())

    def model(self) -> "Header":
        """The model in it: of a training state the best weights so far, without any the last."""
        if self.kind == MODEL:
            return self
        if self.kind != STATE:
            raise CheckpointError(f"the file holds a {self.kind[:20]!r}, expected a model.")
        settings = self.description.get("settings")
        architecture = settings.get("architecture") if isinstance(settings, dict) else None
        if not isinstance(architecture, dict):
            raise CheckpointError("the training state has no architecture.")
        weights = self.group("best") or self.group("weights")
        return self._replace(kind=MODEL, description=architecture, tensors=weights)

    def group(self, name: str) -> dict[str, TensorInfo]:
        """The tensors of a training state whose names begin with ``name.``, without that."""
        start = f"{name}."
        return {k.removeprefix(start): t for k, t in self.tensors.items() if k.startswith(start)}


def write_checkpoint(
    target: Writable,
    architecture: Architecture,
    arrays: Mapping[str, np.ndarray],
    expected_shapes: Callable[[Architecture], Shapes],
    *,
    allow_non_finite: bool = False,
) -> None:
    """Write architecture and weights: what ``read_checkpoint`` reads, atomically, and verified.

    Args:
        target: the file; an existing one is replaced only by a complete new one.
        architecture: plain data, see ``flow_bridge.architecture``.
        arrays: torch names to floating-point arrays in PyTorch's layout, all of one dtype.
        expected_shapes: the table of names and shapes that an architecture must come with.
        allow_non_finite: write NaN and infinite weights too.

    Raises:
        CheckpointError: for arrays that are not those of the architecture, not floating point, not
            finite or not of one dtype, for an architecture that asks for more than a file of that size
            may, and if what was written does not read back equal. The old file is then as it was.
    """
    dtypes = sorted({array.dtype.name for array in arrays.values()})
    if len(dtypes) > 1 or not set(dtypes) <= DTYPES.keys():
        raise CheckpointError(f"a checkpoint holds one float dtype, got {' and '.join(dtypes)}.")
    write_arrays(
        target,
        MODEL,
        architecture,
        arrays,
        lambda header: check_model(header, expected_shapes, writing=True),
        allow_non_finite=allow_non_finite,
    )


def read_checkpoint(
    source: Readable,
    expected_shapes: Callable[[Architecture], Shapes],
    *,
    dtype: str | None = None,
    allow_non_finite: bool = False,
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """Read a checkpoint, or the model of a training state, that nobody vouches for.

    Args:
        source: a path, bytes, or a file open for reading.
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
    header, arrays = read_arrays(
        source,
        (MODEL, STATE),
        lambda header: check_model(header, expected_shapes),
        allow_non_finite=allow_non_finite,
    )
    if header.kind == STATE:
        group = "best." if header.group("best") else "weights."
        arrays = {k.removeprefix(group): a for k, a in arrays.items() if k.startswith(group)}
    if dtype is not None:
        arrays = {name: array.astype(DTYPES[dtype]) for name, array in arrays.items()}
    return header.model().description, arrays


def check_model(
    header: Header, expected_shapes: Callable[[Architecture], Shapes], writing: bool = False
) -> None:
    """Raise unless a header's tensors are those of its architecture, within what a file may ask for.

    Args:
        header: what the file says.
        expected_shapes: the table of names and shapes that an architecture must come with.
        writing: allow a little less than a reader does, so that the other half, which may build more
            on its way, reads what this one writes.
    """
    model = header.model()
    _check_nesting(model.description)
    layers = BASE_LAYERS + header.num_bytes // BYTES_PER_LAYER
    entries = BASE_ENTRIES + ENTRIES_PER_VALUE * header.num_values
    with construction_budget(
        layers=layers if writing else layers * 5 // 4, entries=entries if writing else entries * 4
    ):
        expected = expected_shapes(model.description)
    check_table({name: info.shape for name, info in model.tensors.items()}, expected)
    dtypes = {info.dtype for info in model.tensors.values()}
    if len(dtypes) > 1 or not dtypes <= DTYPES.keys():
        raise CheckpointError("a checkpoint holds tensors of one floating-point dtype only.")


def read_header(source: Readable) -> Header:
    """The validated header alone: what ``twinflows inspect`` prints, without any framework."""
    _check_source(source)
    with refusals(source), _open(source) as file:
        return _read_header(file)[0]


def write_arrays(
    target: Writable,
    kind: str,
    description: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    check: Callable[[Header], None] = lambda header: None,
    *,
    allow_non_finite: bool = True,
) -> None:
    """Write named arrays with a JSON description, which ``read_arrays`` with this check will read.

    A path is replaced only by a complete new file. What processes that were killed while writing it
    left beside it is removed.
    """
    if not isinstance(target, str | os.PathLike) and not hasattr(target, "write"):
        raise TypeError(
            f"a file is written to a path or to an open binary file, got {type(target).__name__}."
        )
    with refusals(target):
        if isinstance(target, TextIOBase):
            raise CheckpointError("the file is open for text; open it in binary mode, 'wb'.")
        data = _pack(kind, description, arrays)
        _read_arrays(BytesIO(data), (kind,), check, allow_non_finite)
    if isinstance(target, str | os.PathLike):
        _replace(Path(target), data)
    else:
        target.write(data)


def read_arrays(
    source: Readable,
    kinds: str | tuple[str, ...],
    check: Callable[[Header], None] = lambda header: None,
    *,
    allow_non_finite: bool = False,
) -> tuple[Header, dict[str, np.ndarray]]:
    """Read a file of ``write_arrays``; ``check`` sees the header before any data is touched."""
    _check_source(source)
    with refusals(source), _open(source) as file:
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        return _read_arrays(file, kinds, check, allow_non_finite)


@contextmanager
def refusals(place: Readable | Writable) -> Iterator[None]:
    """Turn whatever a malformed file makes its reader raise into a ``CheckpointError`` with its name.

    What is wrong with the way to the file (no such file, no permission) stays what it is.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # an architecture can ask a constructor for anything
        known = isinstance(error, TwinflowsError | OSError)
        reason = str(error) if known else f"it cannot be read: {type(error).__name__}: {error}"
        raise CheckpointError(f"{_label(place)}: {reason:.1000}") from error


def _label(place: Readable | Writable) -> str:
    if isinstance(place, str | os.PathLike):
        return str(os.fspath(place))
    if isinstance(place, bytes | bytearray | memoryview):
        return "the given bytes"
    name = getattr(place, "name", None)
    return name if isinstance(name, str) else "the given file"


def _check_source(source: object) -> None:
    kinds = str | os.PathLike | bytes | bytearray | memoryview
    if not isinstance(source, kinds) and not hasattr(source, "read"):
        raise TypeError(
            "a file is read from a path, from bytes or from an open binary file, got "
            f"{type(source).__name__}."
        )


@contextmanager
def _open(source: Readable) -> Iterator[IO[bytes]]:
    if isinstance(source, str | os.PathLike):
        if Path(source).is_dir():
            raise CheckpointError("this is a folder, not a file.")
        with Path(source).open("rb") as file:
            yield file
    elif isinstance(source, bytes | bytearray | memoryview):
        yield BytesIO(source)
    else:
        data = source.read()
        if not isinstance(data, bytes):
            raise CheckpointError("the file is open for text; open it in binary mode, 'rb'.")
        yield BytesIO(data)


def _replace(path: Path, data: bytes) -> None:
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: there is no folder {str(path.parent)!r} to write to.")
    if path.is_dir():
        raise CheckpointError(f"{path}: this is a folder, not a file.")
    start = f".{path.name}.{zlib.crc32(socket.gethostname().encode()):08x}-"
    _remove_abandoned(path.parent, start)
    temporary = path.with_name(f"{start}{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if temporary.read_bytes() != data:
            raise CheckpointError(f"{path}: what was written does not read back equal.")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_abandoned(folder: Path, start: str) -> None:
    """Remove the temporary files of processes of this machine that no longer run."""
    if os.name != "posix":  # signal 0 asks whether a process runs only there
        return
    for path in folder.glob(f"{glob.escape(start)}*.tmp"):
        pid = path.name.removeprefix(start).split("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (ValueError, OverflowError, PermissionError):
            pass


def _pack(kind: str, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    contiguous = {}
    for name, array in arrays.items():
        if array.dtype not in _NUMPY_DTYPES.values():
            raise CheckpointError(f"array {name!r} is {array.dtype}, which no checkpoint can hold.")
        if not _NAME.match(name):
            raise CheckpointError(f"array name {name!r} is not a dotted identifier.")
        # safetensors 0.8.0 scrambles arrays that are not C-contiguous
        contiguous[name] = np.ascontiguousarray(array).reshape(array.shape)
    text = to_json(dict(description))
    metadata = {
        "format": "pt",
        "twinflows.format_version": FORMAT_VERSION,
        "twinflows.kind": kind,
        "twinflows.description": text,
        "twinflows.sha256": digest(kind, text, contiguous),
    }
    return safetensors.numpy.save(contiguous, metadata=metadata)


def _read_arrays(
    file: IO[bytes],
    kinds: tuple[str, ...],
    check: Callable[[Header], None],
    allow_non_finite: bool,
) -> tuple[Header, dict[str, np.ndarray]]:
    header, start = _read_header(file)
    if header.kind not in kinds:
        raise CheckpointError(f"the file holds a {header.kind[:20]!r}, expected a {kinds[0]}.")
    check(header)
    file.seek(start)
    data = file.read()
    arrays = {
        name: np.frombuffer(data, _NUMPY_DTYPES[info.dtype], prod(info.shape), info.start).reshape(
            info.shape
        )
        if prod(info.shape)
        else np.zeros(info.shape, _NUMPY_DTYPES[info.dtype])
        for name, info in header.tensors.items()
    }
    if digest(header.kind, to_json(header.description), arrays) != header.sha256:
        raise CheckpointError("the contents do not match their SHA-256.")
    for name, array in arrays.items():
        if array.dtype == bool and array.size and array.view(np.uint8).max() > 1:
            raise CheckpointError(f"tensor {name!r} holds a byte that is neither true nor false.")
        is_weight = header.kind == MODEL or name.startswith(("weights.", "best."))
        if is_weight and not allow_non_finite and not np.isfinite(array).all():
            raise CheckpointError(f"tensor {name!r} holds a NaN or an infinity.")
    return header, arrays


def _read_header(file: IO[bytes]) -> tuple[Header, int]:
    """The header, and where the data start."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    begin = file.read(64)
    length = int.from_bytes(begin[:8], "little")
    if size < 8 or length > MAX_HEADER_BYTES or 8 + length > size or begin[8:9] != b"{":
        raise CheckpointError(_foreign(begin, size, length))
    file.seek(8)
    fields = _load_json(file.read(length), "header")
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
    header = Header(
        kind=metadata["twinflows.kind"],
        description=_load_json(metadata["twinflows.description"], "description"),
        tensors=_tensor_table(fields, size - 8 - length),
        sha256=metadata["twinflows.sha256"],
        num_bytes=size,
    )
    return header, 8 + length


def _foreign(begin: bytes, size: int, length: int) -> str:
    """Why a file that begins like this is not a safetensors file."""
    for signature, what in _SIGNATURES.items():
        if re.match(signature, begin):
            return f"this is {what}, not a safetensors file."
    if size < 8:
        return "this is not a safetensors file: it is shorter than the header of one."
    if length > MAX_HEADER_BYTES or 8 + length > size:
        return (
            f"this is not a safetensors file, or not all of one: its header claims {length} bytes."
        )
    return "this is not a safetensors file: its header is not a JSON object."


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
        table[name] = TensorInfo(dtype, tuple(shape), offsets[0])
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
        raise CheckpointError(f"the {what} holds {text:.20}, which is not a finite number.")

    def finite(text: str) -> float:
        return value if isfinite(value := float(text)) else no_constants(text)

    try:
        value = json.loads(
            text,
            object_pairs_hook=no_duplicates,
            parse_constant=no_constants,
            parse_float=finite,
        )
        escapes = "\\u" in text if isinstance(text, str) else b"\\u" in text
        if escapes:  # half a surrogate pair is no text
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the {what} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"the {what} is not a JSON object.")
    return value


def _check_nesting(value: Mapping[str, Any] | list[Any], depth: int = 1) -> None:
    if depth > MAX_NESTING:
        raise CheckpointError(f"the architecture is nested deeper than {MAX_NESTING}.")
    for item in value.values() if isinstance(value, Mapping) else value:
        if isinstance(item, Mapping | list):
            _check_nesting(item, depth + 1)


def digest(kind: str, text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of a file's kind, description and arrays."""
    sha = hashlib.sha256(f"{kind}\n{text}\n".encode())
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        sha.update(array.tobytes() if sys.byteorder == "little" else array.byteswap().tobytes())
    return sha.hexdigest()
