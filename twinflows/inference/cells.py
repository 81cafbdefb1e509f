"""Columns of whole numbers and of categories in a table whose density is continuous: each number n is the
cell [n, n + 1), and a category its place among all of its column, in the order of their values."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinflows.sides.bounds import Bounds

LogProb = Callable[[np.ndarray, np.ndarray | None], np.ndarray]

NODES, POINTS = 16, 64
"""Of the rule over the cells of one column, and over those of several."""
FRACTION_BITS = {"float32": 22, "float64": 51}
"""How many bits a number of a dtype has for what is in front of its point and behind, less one to spare."""
LEAST_BITS, MOST_BITS = 4, 20
"""Behind the point."""


@dataclass(frozen=True)
class Cells:
    """Which columns have cells, the values of those that hold categories, and the ends of all columns, of
    cells those of the outermost ones; most tables have none.

    A category has all of its cell, so that its probability is the integral over that, as a number's is.
    """

    columns: tuple[int, ...] = ()
    categories: tuple[tuple[int, tuple[float, ...]], ...] = ()
    ends: tuple[Bounds, ...] = ()

    @classmethod
    def learned(
        cls,
        x: np.ndarray,
        integers: Sequence[int],
        categories: Sequence[int],
        bounds: Sequence[Bounds],
        names: Sequence[str] | None,
    ) -> "Cells":
        """The cells of the columns of rows x that are stated; bounds are themselves numbers that occur.

        Raises:
            ValueError: for a column that is stated as both, and for bounds of categories.
        """
        for i in sorted({*integers} & {*categories}):
            label = i if names is None else repr(str(names[i]))
            raise ValueError(f"column {label} is stated as whole numbers and as categories.")
        values = tuple((i, tuple(np.unique(x[:, i]).tolist())) for i in categories)
        ends = [
            (low, high + 1) if i in integers else (low, high)
            for i, (low, high) in enumerate(bounds)
        ]
        for i, found in values:
            if np.isfinite(bounds[i]).any():
                raise ValueError(f"bounds of column {i}: it holds categories, which have no order.")
            ends[i] = (0.0, float(len(found)))
        return cls(tuple(sorted({*integers, *categories})), values, tuple(ends))

    def spread(
        self, x: np.ndarray, dtype: str, names: Sequence[str] | None, generator: np.random.Generator
    ) -> np.ndarray:
        """Rows somewhere inside their cells, uniformly; exact in a dtype.

        Raises:
            ValueError: for numbers that are not whole, and too large ones for the dtype.
        """
        x = self._places(x)
        result = x.copy()
        for i in self.columns:
            label = i if names is None else repr(str(names[i]))
            values = x[:, i]
            if (bad := values != np.floor(values)).any():
                raise ValueError(
                    f"column {label} is stated as whole numbers and holds {float(values[bad][0])!r}."
                )
            bits = FRACTION_BITS[dtype] - int(abs(values).max()).bit_length()
            if bits < LEAST_BITS:
                raise ValueError(
                    f"column {label} holds {abs(values).max():g}, too large for cells in {dtype}: leave it "
                    "out of integers, since next to that a 1 is little, or take another unit."
                )
            steps = 2 ** min(bits, MOST_BITS)
            result[:, i] += (np.floor(generator.random(len(x)) * steps) + 0.5) / steps
        return result

    def whole(self, drawn: np.ndarray) -> np.ndarray:
        """The number or category whose cell an entry lies in, along the last axis."""
        result = np.array(drawn)
        for i in self.columns:
            # far out a flow rounds to the end of its bounds, which is in no cell
            result[..., i] = np.minimum(np.floor(result[..., i]), self.ends[i][1] - 1)
        for i, values in self.categories:
            result[..., i] = np.array(values)[result[..., i].astype(int)]
        return result

    def log_prob(self, log_prob: LogProb, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """The log of the integral of a density over the cells of rows; -inf where none is whole."""
        if not self.columns:
            return log_prob(x, context)
        x = self._places(x)
        offsets, weights = self._rule()
        terms = []
        for offset, weight in zip(offsets, weights, strict=True):
            moved = x.astype(np.float64)
            moved[:, list(self.columns)] += offset
            terms.append(np.asarray(log_prob(moved, context), np.float64) + np.log(weight))
        inside = (x[:, list(self.columns)] == np.floor(x[:, list(self.columns)])).all(1)
        return np.where(inside, np.logaddexp.reduce(terms, 0), -np.inf)

    def _places(self, x: np.ndarray) -> np.ndarray:
        """Rows with categories replaced by their places, and those that are unknown by no whole number."""
        result = x.copy()
        for i, given in self.categories:
            values = np.array(given)
            places = np.searchsorted(values, x[:, i]).clip(max=len(values) - 1)
            result[:, i] = np.where(values[places] == x[:, i], places, places + 0.25)
        return result

    def _rule(self) -> tuple[np.ndarray, np.ndarray]:
        """Points in the unit cube and their weights: of Gauss and Legendre, of several columns a lattice."""
        count = len(self.columns)
        if count == 1:
            nodes, weights = np.polynomial.legendre.leggauss(NODES)
            return (1 + nodes[:, None]) / 2, weights / 2
        root = 2.0
        for _ in range(60):  # of x^(count + 1) = x + 1
            root = (1 + root) ** (1 / (count + 1))
        steps = root ** -np.arange(1.0, count + 1)
        return (0.5 + np.arange(POINTS)[:, None] * steps) % 1, np.full(POINTS, 1 / POINTS)


def check_columns(
    what: str, columns: Any, names: Sequence[str] | None, width: int
) -> tuple[int, ...]:
    """Positions of columns that are stated by name or position.

    Raises:
        ValueError: for columns that there are not.
    """
    if isinstance(columns, str) or not (columns is None or isinstance(columns, Iterable)):
        raise ValueError(f"{what} expect a list of columns, got {columns!r}.")
    found = set()
    for column in [] if columns is None else columns:
        if names is not None and column in names:
            found.add([*names].index(str(column)))
        elif (
            isinstance(column, int | np.integer)
            and not isinstance(column, bool)
            and 0 <= column < width
        ):
            found.add(int(column))
        else:
            known = f"{width} columns" if names is None else ", ".join(names)
            raise ValueError(f"{what} name column {column!r}; there are {known}.")
    return tuple(sorted(found))
