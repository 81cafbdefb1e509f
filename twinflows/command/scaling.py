"""What a checkpoint says of the columns of its table."""

from pathlib import Path
from typing import Any

import numpy as np

from flow_bridge.checkpoint import Header, read_arrays


def read_scaling(path: Path, header: Header) -> dict[str, list[dict[str, Any]]]:
    """Name, location and scale of every column, under ``"columns"``, ``"context_columns"``.

    Names are numbers where the checkpoint has none, location and scale are ``None`` where it
    does not standardise; without both there is no entry.
    """
    flow, result = header.description, {}
    first = {
        "columns": (_first(flow.get("bijector"), "bijectors"), "bijector.bijectors.0"),
        "context_columns": (_first(flow, "context_net"), "context_net.0"),
    }
    arrays: Any = {}
    if any(part.get("type") == "Standardize" for part, _ in first.values()):
        _, arrays = read_arrays(path, header.kind, allow_non_finite=True)
    for title, (part, prefix) in first.items():
        names, scaling = flow.get(title), [arrays.get(f"{prefix}.{n}") for n in ("loc", "scale")]
        if part.get("type") != "Standardize" or any(np.ndim(a) != 1 for a in scaling):
            scaling = [np.full(len(names) if isinstance(names, list) else 0, None)] * 2
        if not isinstance(names, list):
            names = range(len(scaling[0]))
        if len({len(names), *map(len, scaling)}) == 1 and names:
            result[title] = [
                {
                    "name": str(name),
                    "loc": m if m is None else float(m),
                    "scale": m if m is None else float(s),
                }
                for name, m, s in zip(names, *scaling, strict=True)
            ]
    return result


def _first(description: Any, name: str) -> dict[str, Any]:
    """The first of a list of parts, as plain data that may be anything."""
    parts = description.get(name) if isinstance(description, dict) else None
    first = parts[0] if isinstance(parts, list) and parts else None
    return first if isinstance(first, dict) else {}
