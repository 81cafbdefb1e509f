"""How errors are measured: in eps of their dtype, relative to the size of what is compared."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from twinflows.parity.limits import SMALL_GRADIENT

EPS = {"float64": 2.0**-52, "float32": 2.0**-23}

KINDS = {
    "z": "outputs",
    "log_det": "log_det",
    "log_prob": "log_det",
    "gradients": "gradients",
    "x": "outputs",
    "inverse log_det": "log_det",
    "inverse gradients": "gradients",
}
"""What every result of a side is, and by which gate it is judged."""

UNITS = {"outputs": "of {}", "log_det": "nats", "gradients": ""}


def row_errors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The error of every row, relative to the row's norm, or absolute where that is below 1.

    Equal infinities and NaN in the same places count as equal, everything else that is not finite as
    an infinite error.
    """
    if a.shape != b.shape:
        return np.full(1, np.inf)
    if not a.size:
        return np.zeros(len(a))
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0, np.abs(a.astype(np.float64) - b))
        scale = np.maximum(1, np.linalg.norm(np.where(np.isfinite(b), b, 0), axis=-1))
        errors = np.linalg.norm(difference, axis=-1) / scale
    return np.where(np.isnan(errors), np.inf, errors)


def error(name: str, a: Any, b: Any, dtype: str) -> float:
    """The largest error in eps: over rows, or over arrays of gradients (relative L2)."""
    if KINDS.get(name) != "gradients":
        return float(row_errors(a, b).max(initial=0) / EPS[dtype])
    with np.errstate(over="ignore", invalid="ignore"):
        total = math.sqrt(sum(float(np.square(v, dtype=np.float64).sum()) for v in b.values()))
        worst = 0.0
        for key in a.keys() & b.keys():
            scale = max(float(np.linalg.norm(b[key])), SMALL_GRADIENT * total, 1e-300)
            found = float(np.linalg.norm(a[key].astype(np.float64) - b[key])) / scale
            worst = max(worst, found if math.isfinite(found) else math.inf)
    return worst / EPS[dtype]


def absolute(name: str, a: Any, b: Any) -> float:
    """The largest difference of two finite entries, in the units of the quantity."""
    if isinstance(a, Mapping):
        return max((absolute("", a[key], b[key]) for key in a.keys() & b.keys()), default=0.0)
    if a.shape != b.shape:
        return math.inf
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(a.astype(np.float64) - b)
    return float(difference[np.isfinite(difference)].max(initial=0))


def has_dtype(value: Any, dtype: str) -> bool:
    """Whether an array, or every array of a mapping, is of a dtype."""
    arrays = value.values() if isinstance(value, Mapping) else [value]
    return all(array.dtype.name == dtype for array in arrays)


def cast(value: Any, dtype: str) -> Any:
    """An array, a mapping of arrays or None in a dtype."""
    if isinstance(value, Mapping):
        return {name: array.astype(dtype) for name, array in value.items()}
    return None if value is None else value.astype(dtype)
