"""Models of other libraries as flows, see ``flow_bridge.importers``."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flow_bridge import checks, importers
from flow_bridge.architecture import Architecture
from flow_bridge.importers.comparison import Opened, compare
from flow_bridge.weights import DTYPES, torch_to_jax
from jax_flows.checkpoint import from_numpy
from jax_flows.registry import build
from jax_flows.variables import child


def import_flow(
    peer: Any, dtype: str | None = None, check: bool = True, **hints: Any
) -> tuple[Any, dict[str, Any]]:
    """A trained model of another library as a ``Flow`` and its variables: the same function, to rounding.

    What did not come with it (dropout, for instance) is said in warnings.

    Args:
        peer: the model, a ``Flow`` of zuko for instance, which is not changed; or what
            ``flow_bridge.importers.import_state`` made of its arrays.
        dtype: of the weights, ``"float32"`` for instance, that of the model if not given.
        check: compare the two in float64, on rows drawn from the flow and on wider ones.
        hints: what the object does not say; see the page on importing.

    Raises:
        UnsupportedModel: for what has no exact counterpart; the message says what.
        ConversionError: if the two differ; the message says where. And for float64 weights where JAX's
            64-bit mode is off.
        TypeError: for a hint that the library does not take.
    """
    imported = peer
    if not isinstance(peer, importers.Imported):
        imported = importers.import_flow(peer, **hints)
    dtype = imported.dtype if dtype is None else dtype
    checks.one_of("import_flow", "dtype", dtype, DTYPES)
    if check:
        with jax.enable_x64(True):
            compare(imported.reading, imported.source, _opened)
    flow, variables = _loaded(imported.architecture, imported.arrays, dtype)
    for note in imported.notes:
        warnings.warn(f"{imported.source}: {note}", stacklevel=2)
    return flow, variables


def _loaded(
    architecture: Architecture, arrays: Mapping[str, np.ndarray], dtype: str
) -> tuple[Any, dict[str, Any]]:
    model = build(architecture)
    state = {name: array.astype(DTYPES[dtype]) for name, array in arrays.items()}
    return model, from_numpy(torch_to_jax(state, model.shapes()))


def _opened(architecture: Architecture, arrays: Mapping[str, np.ndarray]) -> Opened:
    model, variables = _loaded(architecture, arrays, "float64")

    def in_numpy(function: Any, *given: Any) -> Any:
        return tuple(np.asarray(out) for out in jax.jit(function)(variables, *given))

    def sample(num: int, context: np.ndarray | None) -> np.ndarray:
        z = model.base.sample(child(variables, "base"), jax.random.key(0), (num,), np.float64)
        return in_numpy(model.inverse, z, context)[0]

    return Opened(
        lambda x, context: in_numpy(model.forward, x, context),
        lambda z, context: in_numpy(model.inverse, z, context),
        sample,
    )
