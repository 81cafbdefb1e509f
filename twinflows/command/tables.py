"""Rows of numbers from and to files: ``.npy``, ``.csv`` and ``.parquet``. Nothing is unpickled."""

from pathlib import Path
from typing import Any

import numpy as np

from flow_bridge import checks


def read_table(path: Path) -> np.ndarray:
    """The rows of a file, ``(rows, columns)``; of a ``.npy`` file of any shape with rows, memory-mapped.

    A CSV file may have a line of names; a first line of numbers is data.

    Raises:
        ValueError: for another kind of file, for columns that are not numbers, and for rows with a
            missing value, a NaN or an infinity; the message names the first one.
        ImportError: without pandas, for ``.csv`` and ``.parquet``.
    """
    check_kind(path)
    array = _READERS[path.suffix](path)
    if array.ndim < 2 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} is expected to hold rows of numbers, got shape {array.shape} of {array.dtype}."
        )
    for start in range(0, len(array), 65536):
        finite = np.isfinite(array[start : start + 65536]).reshape(len(array[start:][:65536]), -1)
        if not finite.all():
            row = start + int(np.argmin(finite.all(1)))
            raise ValueError(f"{path} has a missing value, a NaN or an infinity in row {row}.")
    return array


def write_table(path: Path, array: np.ndarray, names: list[str]) -> None:
    """Write rows; ``names`` head the columns of ``.csv`` and ``.parquet``.

    Raises:
        ValueError: for another kind of file, and for rows that are no vectors in other than ``.npy``.
    """
    check_kind(path)
    if path.suffix == ".npy":
        np.save(path, array, allow_pickle=False)
        return
    if array.ndim > 2:
        raise ValueError(f"{path.suffix} holds rows of numbers: write images to a .npy file.")
    frame = _pandas(path).DataFrame(array.reshape(len(array), -1), columns=names)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)


def check_kind(path: Path) -> None:
    """Raise ``ValueError`` unless the file's name is of a kind that can be read."""
    if path.suffix not in _READERS:
        raise ValueError(f"{path} is expected to end in {', '.join(_READERS)}.")


def _pandas(path: Path) -> Any:
    return checks.host(str(path), "pandas", "pandas", "tables")


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _read_csv(path: Path) -> np.ndarray:
    pandas = _pandas(path)
    with path.open() as file:
        has_names = not all(map(_is_number, file.readline().split(",")))
    return _numbers(path, pandas.read_csv(path, header=0 if has_names else None))


def _read_parquet(path: Path) -> np.ndarray:
    return _numbers(path, _pandas(path).read_parquet(path))


def _numbers(path: Path, frame: Any) -> np.ndarray:
    for name, dtype in frame.dtypes.items():
        if dtype.kind not in "fiu":
            raise ValueError(f"{path} has a column that is not of numbers: {name!r}.")
    return frame.to_numpy(np.float64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_READERS = {".npy": _read_npy, ".csv": _read_csv, ".parquet": _read_parquet}
