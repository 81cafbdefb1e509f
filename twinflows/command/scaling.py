"""What a checkpoint says of the columns of its table."""

from pathlib import Path
from typing import Any

from flow_bridge.checkpoint import Header, read_arrays


def read_scaling(path: Path, header: Header) -> dict[str, list[dict[str, Any]]]:
    """Name, mean and standard deviation of every column, under ``"columns"``, ``"context_columns"``.

    Names are numbers where the checkpoint has none, mean and standard deviation are ``None`` where it
    does not standardise; without both there is no entry.
    """
    flow = header.description
    first = {
        "columns": (_first(flow.get("bijector"), "bijectors"), "bijector.bijectors.0"),
        "context_columns": (_first(flow, "context_net"), "context_net.0"),
    }
    arrays: Any = {}
    if any(part.get("type") == "Standardize" for part, _ in first.values()):
        _, arrays = read_arrays(path, header.kind, allow_non_finite=True)
    result = {}
    for title, (part, prefix) in first.items():
        names, scaled = flow.get(title), part.get("type") == "Standardize"
        count = len(names) if names else len(arrays.get(f"{prefix}.loc", ())) if scaled else 0
        columns = [
            {
                "name": names[i] if names else str(i),
                "mean": float(arrays[f"{prefix}.loc"][i]) if scaled else None,
                "sd": float(arrays[f"{prefix}.scale"][i]) if scaled else None,
            }
            for i in range(count)
        ]
        if columns:
            result[title] = columns
    return result


def _first(description: Any, name: str) -> dict[str, Any]:
    """The first of a list of parts, as plain data that may be anything."""
    parts = description.get(name) if isinstance(description, dict) else None
    first = parts[0] if isinstance(parts, list) and parts else None
    return first if isinstance(first, dict) else {}
