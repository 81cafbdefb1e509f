"""Columns with bounds: maps of theirs to the real line in front of a flow, and back out of its file.

A column above ``low`` becomes log(x - low), one below ``high`` log(high - x), one in between
logit((x - low) / (high - low)); a free one stays as it is. All are parts of the flow, so that densities and
samples are in the units of the data, and outside the bounds the density is 0.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.weights import DTYPES

Bounds = tuple[float, float]
FREE: Bounds = (-math.inf, math.inf)
LOG: Architecture = {"type": "Invert", "bijector": {"type": "Exp", "event_ndim": 1}}
KINDS = ("free", "above", "below", "between")
LOGIT: Architecture = {"type": "Logit", "alpha": 0.0, "event_ndim": 1}


def check_bounds(bounds: Any, names: Sequence[str] | None, width: int) -> list[Bounds]:
    """One pair for each column, ``FREE`` where none is stated.

    Args:
        bounds: ``None``; a mapping from names or positions of columns to pairs ``(low, high)``; or
            a sequence of pairs, one for each column. ``None`` is no bound, as a pair and as an end.

    Raises:
        ValueError: for columns that there are not, another number of pairs, and ends out of order.
    """
    if bounds is None:
        return [FREE] * width
    given = dict(bounds) if isinstance(bounds, Mapping) else dict(enumerate(bounds))
    if not isinstance(bounds, Mapping) and len(given) != width:
        raise ValueError(f"bounds are expected for {width} columns, got {len(given)}.")
    result = [FREE] * width
    for column, pair in given.items():
        if names is not None and column in names:
            index = [*names].index(str(column))
        elif isinstance(column, int | np.integer) and 0 <= column < width:
            index = int(column)
        else:
            known = f"{width} columns" if names is None else ", ".join(names)
            raise ValueError(f"bounds are stated of column {column!r}; there are {known}.")
        result[index] = _pair(column, pair)
    return result


def check_inside(
    x: np.ndarray, bounds: Sequence[Bounds], dtype: str, names: Sequence[str] | None = None
) -> None:
    """Raise ``ValueError`` where a column in a dtype leaves its bounds or touches one of them."""
    for i, ends in enumerate(bounds):
        cast = x[:, i].astype(DTYPES[dtype])
        low, high = np.array(ends, DTYPES[dtype])
        bad = (cast <= low) | (cast >= high)
        if np.isfinite(ends).all():  # the flow's own arithmetic, which rounds
            bad |= (cast - low) / (high - low) >= 1
        if bad.any():
            label = repr(names[i]) if names is not None else i
            raise ValueError(
                f"column {label} of the data holds {float(x[bad, i][0])!r}, which is not inside its "
                f"bounds ({low:g}, {high:g}): there a density has no value; widen them, or leave such "
                "rows out."
            )


def with_bounds(flow: Architecture, bounds: Sequence[Bounds]) -> Architecture:
    """A flow on the real line as one of columns with bounds; ``bound_arrays`` are its arrays."""
    kinds = _kinds(bounds)
    first = {
        "type": "Blockwise",
        "bijectors": [_map(kind, len(columns)) for kind, columns in kinds.items()],
        "columns": [*kinds.values()],
    }
    return flow | {"bijector": {"type": "Chain", "bijectors": [first, flow["bijector"]]}}


def bound_arrays(
    arrays: Mapping[str, np.ndarray], bounds: Sequence[Bounds], dtype: str
) -> dict[str, np.ndarray]:
    """The arrays of a flow on the real line, as those of ``with_bounds``."""
    result = {
        name.replace("bijector.", "bijector.bijectors.1.", 1)
        if name.startswith("bijector.")
        else name: array
        for name, array in arrays.items()
    }
    for i, (kind, columns) in enumerate(_kinds(bounds).items()):
        prefix = f"bijector.bijectors.0.bijectors.{i}{'' if kind == 'free' else '.bijectors.0'}"
        low, high = np.array([bounds[c] for c in columns]).T
        loc, scale = {
            "free": (0 * np.ones(len(columns)), np.ones(len(columns))),
            "above": (low, np.ones(len(columns))),
            "below": (high, -np.ones(len(columns))),
            "between": (low, high - low),
        }[kind]
        result[f"{prefix}.loc"] = loc.astype(DTYPES[dtype])
        result[f"{prefix}.scale"] = scale.astype(DTYPES[dtype])
    return result


def to_line(x: np.ndarray, bounds: Sequence[Bounds]) -> np.ndarray:
    """What the maps make of data, in float64: for the scaling that follows them."""
    result = np.array(x, np.float64)
    for i, (low, high) in enumerate(bounds):
        above, below = result[:, i] - low, high - result[:, i]
        if math.isfinite(low) and math.isfinite(high):
            result[:, i] = np.log(above) - np.log(below)
        elif math.isfinite(low):
            result[:, i] = np.log(above)
        elif math.isfinite(high):
            result[:, i] = np.log(below)
    return result


def stated_bounds(flow: Architecture, arrays: Mapping[str, np.ndarray]) -> list[Bounds] | None:
    """The bounds of a flow of ``with_bounds``, ``None`` for any other."""
    bijector = flow.get("bijector", {})
    first = (bijector.get("bijectors") or [{}])[0] if bijector.get("type") == "Chain" else {}
    if first.get("type") != "Blockwise":
        return None
    result = [FREE] * sum(map(len, first["columns"]))
    for i, (block, columns) in enumerate(zip(first["bijectors"], first["columns"], strict=True)):
        kind = next((k for k in KINDS if block == _map(k, len(columns))), None)
        if kind is None:
            return None
        if kind == "free":
            continue
        prefix = f"bijector.bijectors.0.bijectors.{i}.bijectors.0"
        ends = (arrays[f"{prefix}.{name}"].astype(np.float64) for name in ("loc", "scale"))
        for column, loc, scale in zip(columns, *map(np.ndarray.tolist, ends), strict=True):
            if kind == "between":
                result[column] = (loc, loc + scale)
            else:
                result[column] = (loc, math.inf) if scale > 0 else (-math.inf, loc)
    return result


def held_inside(x: np.ndarray, bounds: Sequence[Bounds], dtype: str) -> np.ndarray:
    """Samples of a dtype, those that were rounded to a bound moved to the number before it."""
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).tiny)
    result = np.array(x)
    for i, (low, high) in enumerate(bounds):
        first, last, width = low, high, 0.0 if math.isinf(low) else high - low
        if math.isfinite(low):
            first = low + abs(low) * eps or tiny
        if math.isfinite(high):
            last = high - max(abs(high), width) * eps or -tiny
        np.clip(result[:, i], first, last, out=result[:, i])
    return result


def _pair(column: Any, pair: Any) -> Bounds:
    if pair is None:
        return FREE
    try:
        low, high = pair
        result = (
            -math.inf if low is None else float(low),
            math.inf if high is None else float(high),
        )
    except (TypeError, ValueError):
        result = (math.nan, math.nan)
    if not result[0] < result[1]:
        raise ValueError(
            f"the bounds of column {column!r} are expected as (low, high), got {pair!r}."
        )
    return result


def _kinds(bounds: Sequence[Bounds]) -> dict[str, list[int]]:
    """The columns of each kind."""
    found: dict[str, list[int]] = {}
    for i, (low, high) in enumerate(bounds):
        lower, upper = math.isfinite(low), math.isfinite(high)
        kind = ("between" if upper else "above") if lower else ("below" if upper else "free")
        found.setdefault(kind, []).append(i)
    return found


def _map(kind: str, width: int) -> Architecture:
    scaling: Architecture = {"type": "Standardize", "dim": width}
    if kind == "free":
        return scaling
    return {"type": "Chain", "bijectors": [scaling, LOGIT if kind == "between" else LOG]}
