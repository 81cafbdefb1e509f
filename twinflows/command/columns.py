"""Which columns of a table are data and which are context, by name or by count."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twinflows.command.tables import Table
from twinflows.sides.bounds import Bounds, check_bounds


def choose(table: Table, context: str | None, context_columns: int) -> tuple[list[int], list[int]]:
    """The columns of data and of context, as a user names the latter or counts them from the end.

    Raises:
        ValueError: for names that the table does not have, and if no column is left for the data.
    """
    width = table.values.shape[1]
    if context is None:
        chosen = list(range(width - context_columns, width))
    elif context_columns:
        raise ValueError("--context and --context-columns say the same: give one of them.")
    elif table.names is None:
        raise ValueError(f"{table.path} has no names of columns: give --context-columns.")
    else:
        names = [name.strip() for name in context.split(",")]
        check_names(table.path, names, table.names)
        chosen = [table.names.index(name) for name in names]
    if chosen and (table.values.ndim != 2 or len(chosen) >= width):
        raise ValueError(
            f"{table.path} is expected to have more than {len(chosen)} columns, {len(chosen)} of "
            f"them the context; its shape is {table.values.shape}."
        )
    return [i for i in range(width) if i not in chosen], chosen


def match(
    table: Table,
    columns: Sequence[str] | None,
    context_columns: Sequence[str] | None,
    context_dim: int,
) -> tuple[list[int], list[int], list[str]]:
    """The columns of data and of context as a model knows them, and warnings.

    By name where both have names; otherwise the context comes last.

    Raises:
        ValueError: if the table lacks a column or has one that the model does not know.
    """
    width = table.values.shape[1]
    if columns is None or (context_dim and context_columns is None):
        return *choose(table, None, context_dim), []
    known = [*columns, *(context_columns or ())]
    if table.names is None:
        if width != len(known):
            raise ValueError(f"{table.path} has {width} columns, the model {_list(known)}.")
        order = (
            f"{table.path} has no names: its columns are taken as {_list(known)}, in this order."
        )
        return *choose(table, None, context_dim), [order]
    check_names(table.path, known, table.names)
    if extra := [name for name in table.names if name not in known]:
        raise ValueError(
            f"{table.path} has a column {extra[0]!r} that the model does not know; it knows "
            f"{_list(known)}."
        )
    places = [table.names.index(name) for name in known]
    return places[: len(columns)], places[len(columns) :], []


def take(table: Table, columns: Sequence[int], context: Sequence[int]) -> tuple[np.ndarray, ...]:
    """The rows, and their contexts if there are any; without a copy where the order is the file's."""
    values = table.values
    if list(columns) != list(range(values.shape[1])):
        return values[:, list(columns)], values[:, list(context)]
    return values, values[:, :0]


def one_context(
    text: str | None, names: Sequence[str] | None, context_dim: int
) -> np.ndarray | None:
    """A context that is given as numbers in order, or as ``name=number``, with commas.

    Raises:
        ValueError: for other text, unknown names, and another count than the model's.
    """
    parts = [part.partition("=") for part in text.split(",")] if text else []
    by_name = bool(parts) and all(equals for _, equals, _ in parts)
    try:
        values = [float(right if equals else left) for left, equals, right in parts]
        if any(equals for _, equals, _ in parts) != by_name or not np.isfinite(values).all():
            raise ValueError
    except ValueError as error:
        raise ValueError(
            f"--context is expected as numbers with commas, or as NAME=NUMBER, got {text!r}."
        ) from error
    if by_name:
        given = [left.strip() for left, _, _ in parts]
        if names is None:
            raise ValueError("the model has no names of columns: give the context as numbers.")
        check_names("--context", names, given)
        check_names("the model's context", given, names)
        values = [values[given.index(name)] for name in names]
    if len(values) != context_dim:
        known = f" ({_list(names)})" if names else ""
        raise ValueError(
            f"the model expects a context of {context_dim} numbers{known}, got {len(values)}."
        )
    return np.array(values) if values else None


def check_names(where: str | Path, wanted: Sequence[str], found: Sequence[str]) -> None:
    """Raise ``ValueError`` unless all wanted names are found, each wanted once."""
    for i, name in enumerate(wanted):
        if name not in found:
            raise ValueError(f"{where} has no column {name!r}; it has {_list(found)}.")
        if name in wanted[:i]:
            raise ValueError(f"column {name!r} is named twice.")


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:20]))
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"


def column_bounds(
    texts: Sequence[str], names: Sequence[str] | None, width: int
) -> list[Bounds] | None:
    """Bounds given as ``COLUMN=LOW:HIGH``, an end that is left out being none.

    Raises:
        ValueError: for other text, unknown columns, and ends out of order.
    """
    if not texts:
        return None
    found: dict[str | int, tuple[float, float]] = {}
    for text in texts:
        column, _, pair = text.rpartition("=")
        low, colon, high = pair.partition(":")
        try:
            if not (column and colon):
                raise ValueError
            ends = float(low or -np.inf), float(high or np.inf)
        except ValueError as error:
            raise ValueError(f"--bounds expects COLUMN=LOW:HIGH, got {text!r}.") from error
        named = names is not None and column in names
        found[int(column) if not named and column.isdecimal() else column] = ends
    return check_bounds(found, names, width)
