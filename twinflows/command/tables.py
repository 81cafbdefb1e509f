"""Rows of numbers from and to files: ``.npy``, ``.csv`` and ``.parquet``. Nothing is unpickled."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from flow_bridge import optional
from twinflows.command.outputs import replacing

BLOCK_ROWS = 65536
FEW_VALUES = 20
_MISSING = {"", "na", "n/a", "nan", "null", "none", "nil", "-", "?", "."}


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        path: the file.
        values: shape ``(rows, columns)``; of a ``.npy`` file of any shape with rows, memory-mapped.
        names: of the columns, ``None`` where the file has none.
        place: says in words where a row stands in the file.
        warnings: what a user should know of the file.
    """

    path: Path
    values: np.ndarray
    names: tuple[str, ...] | None
    place: Callable[[int], str]
    warnings: tuple[str, ...] = ()

    def label(self, column: int) -> str:
        """A column by its name or its number."""
        return f"column {column if self.names is None else repr(self.names[column])}"

    def check(self) -> None:
        """Raise ``ValueError`` for no rows, and for a row with a missing value, a NaN or an infinity."""
        if self.values.size == 0:
            what = "columns" if len(self.values) else "rows"
            raise ValueError(f"{self.path} has no {what}.")
        for start in range(0, len(self.values), BLOCK_ROWS):
            block = self.values[start : start + BLOCK_ROWS]
            finite = np.isfinite(block).reshape(len(block), self.values.shape[1], -1).all(2)
            if not finite.all():
                row, column = map(int, np.argwhere(~finite)[0])
                what = "a missing value or a NaN" if np.isnan(block[row]).any() else "an infinity"
                raise ValueError(
                    f"{self.path} has {what} in {self.label(column)}, {self.place(start + row)}."
                )

    def few_values(self, columns: Sequence[int]) -> Iterator[str]:
        """A warning for every one of these columns that has few values: no density fits those."""
        first = np.asarray(self.values[:10_000])
        for column in columns:
            count = len(np.unique(first[:, column]))
            if count <= min(FEW_VALUES, len(first) // 10):
                yield (
                    f"{self.label(column)} has {count} values: a density of its own for each number "
                    "between them means little."
                )


def read_table(path: Path) -> Table:
    """The table in a file. A CSV file may have a line of names; a first line of numbers is data.

    Raises:
        ValueError: for another kind of file, for columns that are not numbers, for no rows, and for
            rows with a missing value, a NaN or an infinity; the message names the first one.
        ImportError: without pandas, for ``.parquet``.
    """
    check_kind(path)
    table = _READERS[path.suffix](path)
    if table.values.ndim < 2 or table.values.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} is expected to hold rows of numbers, got shape {table.values.shape} of "
            f"{table.values.dtype}."
        )
    table.check()
    return _without_index(table)


def write_table(path: Path, array: np.ndarray, names: Sequence[str], digits: int = 9) -> None:
    """Write rows, completely or not at all; ``names`` head the columns of ``.csv`` and ``.parquet``.

    Raises:
        ValueError: for another kind of file, and for rows that are no vectors in other than ``.npy``.
    """
    check_kind(path)
    if path.suffix != ".npy" and array.ndim > 2:
        raise ValueError(f"{path.suffix} holds rows of numbers: write images to a .npy file.")
    with replacing(path) as temporary:
        if path.suffix == ".npy":
            with temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
        elif path.suffix == ".csv":
            with temporary.open("w", newline="", encoding="utf-8") as file:
                write_csv(file, array, names, digits)
        else:
            pandas = optional.host(str(path), "pandas", "pandas", "tables")
            pandas.DataFrame(array, columns=list(names)).to_parquet(temporary, index=False)


def write_csv(file: Any, array: np.ndarray, names: Sequence[str], digits: int = 9) -> None:
    """Write a line of names and a line for every row, to so many digits."""
    csv.writer(file, lineterminator="\n").writerow(names)
    np.savetxt(file, array.reshape(len(array), -1), fmt=f"%.{digits}g", delimiter=",")


def check_kind(path: Path) -> None:
    """Raise ``ValueError`` unless the file's name is of a kind that can be read."""
    if path.suffix in (".npz", ".pkl", ".pickle", ".xlsx", ".xls", ".json", ".pt"):
        raise ValueError(f"{path} is no table of numbers: save it as {' or '.join(_READERS)}.")
    if path.suffix not in _READERS:
        raise ValueError(f"{path} is expected to end in {', '.join(_READERS)}.")


def _read_npy(path: Path) -> Table:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        if "Python objects" in str(error) or "pickle" in str(error):
            raise ValueError(
                f"{path} holds Python objects, which are never unpickled: save an array of numbers."
            ) from error
        raise ValueError(f"{path} is no .npy file that can be read: {error}.") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an .npz file of several arrays: save one as .npy.")
    return Table(path, array, None, _from_zero)


def _read_csv(path: Path) -> Table:
    with _utf8(path), path.open(encoding="utf-8-sig", newline="") as file:
        begin, first = next(_cells(file), (0, []))
        first = [cell.strip() for cell in first]
        second = next(_cells(file), (0, []))[1]
        if not first:
            raise ValueError(f"{path} is empty.")
        for separator in ";\t":
            if any(separator in cell for cell in first):
                raise ValueError(
                    f"{path} seems to be separated by {separator!r}: write it with commas."
                )
        has_names = _is_header(first, second)
        names = _names(path, first) if has_names else None
        values = np.zeros((0, len(first)))
        if second or not has_names:  # numpy warns of no rows
            file.seek(0)
            lines = islice(file, begin if has_names else 0, None)
            try:
                values = np.loadtxt(
                    (line for line in lines if line.strip()),
                    delimiter=",",
                    quotechar='"',
                    comments=None,
                    ndmin=2,
                )
            except ValueError as error:
                file.seek(0)
                raise ValueError(_what_is_wrong(path, file, first, has_names)) from error
            if values.shape[1] != len(first):
                file.seek(0)
                raise ValueError(_what_is_wrong(path, file, first, has_names))

    def place(row: int) -> str:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, (line, _) in enumerate(_cells(file)):
                if number == row + has_names:
                    return f"line {line}"
        return _from_zero(row)

    return Table(path, values, names, place)


def _cells(file: Any) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every line that is not empty."""
    reader = csv.reader(file)
    for cells in reader:
        if len(cells) > 1 or (cells and (cells[0].strip() or not cells[0])):  # "" is missing
            yield reader.line_num, cells


def _is_header(first: list[str], second: list[str]) -> bool:
    """Whether a line is of names: a cell that is neither a number nor missing, over one that is."""
    names = [i for i, cell in enumerate(first) if not _is_number(cell) and not _is_missing(cell)]
    below = [second[i] for i in names if i < len(second)]
    return bool(names) and (not below or any(_is_number(c) or _is_missing(c) for c in below))


def _what_is_wrong(path: Path, file: Any, first: list[str], has_names: bool) -> str:
    """What stands in the way of reading a CSV file, in one sentence."""
    for number, (line, cells) in enumerate(_cells(file)):
        if has_names and number == 0:
            continue
        if len(cells) != len(first):
            return f"{path} has {len(cells)} values in line {line}, {len(first)} in the first line."
        for i, cell in enumerate(cells):
            if not _is_number(cell):
                label = repr(first[i]) if has_names else i
                if _is_missing(cell):
                    return f"{path} has a missing value in column {label}, line {line}."
                return (
                    f"{path} has a column that is not of numbers: column {label} holds "
                    f"{cell.strip()[:40]!r} in line {line}."
                )
    return f"{path} is no CSV file of numbers."


def _names(path: Path, cells: Sequence[str]) -> tuple[str, ...]:
    """The names in a header, the first of which may be missing."""
    names = tuple(str(cell).strip() for cell in cells)
    if "" in names[1:]:
        raise ValueError(f"column {names.index('', 1)} of {path} has no name: give it one.")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"{path} has two columns of the name {twice[0]!r}.")
    return names


def _without_index(table: Table) -> Table:
    """The table without a first column that has no name, as an index has none."""
    if table.names is None or table.names[0]:
        return table
    index = np.asarray(table.values[:, 0])
    if (index != np.floor(index)).any() or len(np.unique(index)) < len(index):
        raise ValueError(
            f"the first column of {table.path} has no name and is no index of the rows: give it a name."
        )
    if len(table.names) == 1:
        raise ValueError(f"{table.path} has no columns but an index.")
    warning = (
        f"the first column of {table.path} has no name: it is left out as an index of the rows."
    )
    return replace(table, values=table.values[:, 1:], names=table.names[1:], warnings=(warning,))


def _read_parquet(path: Path) -> Table:
    pandas = optional.host(str(path), "pandas", "pandas", "tables")
    optional.host(str(path), "pyarrow", "pyarrow", "tables")
    if not path.is_file():
        raise FileNotFoundError(2, "No such file", str(path))
    try:
        frame = pandas.read_parquet(path)
    except Exception as error:  # of pyarrow, which has many
        raise ValueError(f"{path} is no Parquet file that can be read.") from error
    names = _names(path, list(frame.columns)) if len(frame.columns) else None
    for name, dtype in zip(names or (), frame.dtypes, strict=True):
        if dtype.kind not in "fiu":
            raise ValueError(
                f"{path} has a column that is not of numbers: column {name!r} is of {dtype}."
            )
    values = np.column_stack(
        [frame.iloc[:, i].to_numpy(np.float64, na_value=np.nan) for i in range(frame.shape[1])]
        or [np.zeros((len(frame), 0))]
    )
    return Table(path, values, names, _from_zero)


@contextmanager
def _utf8(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8.") from error
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file: {error}.") from error


def _from_zero(row: int) -> str:
    return f"row {row} (the first is 0)"


def _is_missing(text: str) -> bool:
    return text.strip().lower() in _MISSING


def _is_number(text: str) -> bool:
    try:
        return not _is_missing(text) and "_" not in text and float(text) is not None
    except ValueError:
        return False


_READERS: dict[str, Callable[[Path], Table]] = {
    ".npy": _read_npy,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
