"""Files made by hand: what no ``save`` would write, with an honest header and hash."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from flow_bridge.architecture import to_json
from flow_bridge.checkpoint import FORMAT_VERSION, MODEL, digest


def packed(
    description: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
    kind: str = MODEL,
) -> bytes:
    """A safetensors file of these arrays that says it holds this."""
    arrays, text = dict(arrays or {}), to_json(dict(description))
    metadata = {
        "format": "pt",
        "twinflows.format_version": FORMAT_VERSION,
        "twinflows.kind": kind,
        "twinflows.description": text,
        "twinflows.sha256": digest(kind, text, arrays),
    }
    return safetensors.numpy.save(arrays, metadata=metadata)
