"""Models of other libraries as flows, see ``flow_bridge.importers``."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from flow_bridge import checks, importers
from flow_bridge.architecture import Architecture
from flow_bridge.importers.comparison import Opened, compare
from flow_bridge.weights import DTYPES, check_table
from torch_flows.checkpoint import expected_shapes, from_numpy
from torch_flows.registry import build


def import_flow(peer: Any, dtype: str | None = None, check: bool = True, **hints: Any) -> Any:
    """A trained model of another library as a ``Flow``: the same function, to rounding.

    What did not come with it (dropout, for instance) is said in warnings.

    Args:
        peer: the model, a ``Flow`` of zuko for instance, which is not changed; or what
            ``flow_bridge.importers.import_state`` made of its arrays.
        dtype: of the weights, ``"float32"`` for instance, that of the model if not given.
        check: compare the two in float64, on rows drawn from the flow and on wider ones.
        hints: what the object does not say; see the page on importing.

    Raises:
        UnsupportedModel: for what has no exact counterpart; the message says what.
        ConversionError: if the two differ; the message says where.
        TypeError: for a hint that the library does not take.
    """
    imported = peer
    if not isinstance(peer, importers.Imported):
        imported = importers.import_flow(peer, **hints)
    dtype = imported.dtype if dtype is None else dtype
    checks.one_of("import_flow", "dtype", dtype, DTYPES)
    if check:
        compare(imported.reading, imported.source, _opened)
    flow = _loaded(imported.architecture, imported.arrays, dtype)
    for note in imported.notes:
        warnings.warn(f"{imported.source}: {note}", stacklevel=2)
    return flow


def _loaded(architecture: Architecture, arrays: Mapping[str, np.ndarray], dtype: str) -> Any:
    expected = expected_shapes(architecture)
    check_table({name: array.shape for name, array in arrays.items()}, expected)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = build(architecture)
    state = {name: from_numpy(array.astype(DTYPES[dtype])) for name, array in arrays.items()}
    model.load_state_dict(state, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_()
    if state:
        model.to(next(iter(state.values())).dtype)
    return model.to(torch.get_default_device()).eval()


def _opened(architecture: Architecture, arrays: Mapping[str, np.ndarray]) -> Opened:
    with torch.device("cpu"):
        model = _loaded(architecture, arrays, "float64")

    def in_numpy(function: Any, *given: Any) -> Any:
        tensors = [None if a is None else torch.tensor(np.ascontiguousarray(a)) for a in given]
        with torch.no_grad():
            return tuple(out.numpy() for out in function(*tensors))

    def sample(num: int, context: np.ndarray | None) -> np.ndarray:
        with torch.no_grad():
            z = model.base.sample((num,), torch.Generator().manual_seed(0)).double()
        return in_numpy(model.inverse, z.numpy(), context)[0]

    return Opened(
        lambda x, context: in_numpy(model.forward, x, context),
        lambda z, context: in_numpy(model.inverse, z, context),
        sample,
    )
