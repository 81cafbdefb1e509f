"""Save and load: one file for the architecture and the weights, which either backend reads."""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flow_bridge import checkpoint
from flow_bridge.architecture import architecture
from flow_bridge.weights import DTYPES
from torch_flows.devices import whole
from torch_flows.registry import build


def save(flow: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a flow, bijector or base distribution to ``path``, atomically.

    Raises:
        CheckpointError: if the weights are not all of one floating-point dtype.

    Examples:
        >>> import torch_flows
        >>> torch_flows.save(torch_flows.NICE(dim=2), "nice.safetensors")
        >>> torch_flows.load("nice.safetensors").dim
        2
    """
    arrays = {name: to_numpy(array) for name, array in flow.state_dict().items()}
    checkpoint.write_checkpoint(path, architecture(flow), arrays)


def load(
    path: str | os.PathLike[str], *, dtype: str | None = None, allow_non_finite: bool = False
) -> Any:
    """Read what ``save`` of either backend wrote; the result is in evaluation mode.

    Args:
        path: the file; it is not trusted.
        dtype: convert the weights to this dtype, ``"float32"`` for instance.
        allow_non_finite: accept NaN and infinite weights.

    Raises:
        CheckpointError: with the reason, whatever is wrong with the file.
    """

    def expected_shapes(description: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        with torch.device("meta"):
            return {k: tuple(v.shape) for k, v in build(description).state_dict().items()}

    description, arrays = checkpoint.read_checkpoint(
        path, expected_shapes, dtype=dtype, allow_non_finite=allow_non_finite
    )
    with torch.random.fork_rng(devices=[]):
        flow = build(description)
    flow.load_state_dict({name: from_numpy(array) for name, array in arrays.items()}, assign=True)
    for parameter in flow.parameters():
        parameter.requires_grad_()
    weights = next(iter(flow.state_dict().values()), None)
    return flow.eval() if weights is None else flow.to(weights.dtype).eval()


def to_numpy(array: Tensor) -> np.ndarray:
    """A copy as a numpy array, bfloat16 included."""
    array = whole(array.detach()).cpu().contiguous()
    if array.dtype == torch.bfloat16:
        return array.view(torch.int16).numpy().view(DTYPES["bfloat16"]).copy()
    return array.numpy().copy()


def from_numpy(array: np.ndarray) -> Tensor:
    """A copy as a tensor, bfloat16 included."""
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())
