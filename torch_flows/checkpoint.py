"""Save and load: one file for the architecture and the weights, which either backend reads."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flow_bridge import checkpoint
from flow_bridge.architecture import Architecture, architecture
from flow_bridge.checkpoint import Readable, Shapes, Writable
from flow_bridge.checks import no_device
from flow_bridge.weights import DTYPES
from torch_flows.devices import whole
from torch_flows.registry import build


def save(flow: nn.Module, target: Writable, *, allow_non_finite: bool = False) -> None:
    """Write a flow, bijector or base distribution, atomically; only what ``load`` reads is written.

    Args:
        flow: the flow.
        target: a path, or a binary file open for writing.
        allow_non_finite: write NaN and infinite weights, which ``load`` then must be told to accept.

    Raises:
        CheckpointError: if the weights are not those of the architecture, not all of one
            floating-point dtype or not finite, and for an architecture that asks for more than a file
            of its size may; an existing file stays as it was.
        ArchitectureError: for a flow that was changed into what no arguments build.

    Examples:
        >>> import torch_flows
        >>> torch_flows.save(torch_flows.NICE(dim=2), "nice.safetensors")
        >>> torch_flows.load("nice.safetensors").dim
        2
    """
    flow = getattr(flow, "_orig_mod", flow)  # of what torch.compile returns
    arrays = {name: to_numpy(array) for name, array in flow.state_dict().items()}
    checkpoint.write_checkpoint(
        target, architecture(flow), arrays, expected_shapes, allow_non_finite=allow_non_finite
    )


def load(
    source: Readable,
    *,
    dtype: str | None = None,
    device: torch.device | str | None = None,
    allow_non_finite: bool = False,
) -> Any:
    """Read what ``save`` of either backend wrote; the result is in evaluation mode.

    The state of a training run opens as the model with its best weights so far (the last without
    validation data).

    Args:
        source: a path, bytes, or a file open for reading; it is not trusted.
        dtype: convert the weights to this dtype, ``"float32"`` for instance.
        device: where to put the model, PyTorch's default device if not given.
        allow_non_finite: accept NaN and infinite weights.

    Raises:
        CheckpointError: with the reason, whatever is wrong with the file.
        ValueError: for a device that is not there.
    """
    _check_device(device)
    description, arrays = checkpoint.read_checkpoint(
        source, expected_shapes, dtype=dtype, allow_non_finite=allow_non_finite
    )
    with checkpoint.refusals(source), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        flow = build(description)
    flow.load_state_dict({name: from_numpy(array) for name, array in arrays.items()}, assign=True)
    for parameter in flow.parameters():
        parameter.requires_grad_()
    weights = next(iter(flow.state_dict().values()), None)
    flow.to(torch.get_default_device() if device is None else device)
    return flow.eval() if weights is None else flow.to(weights.dtype).eval()


def _check_device(device: Any) -> None:
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(no_device(device)) from error


def expected_shapes(description: Architecture) -> Shapes:
    """The names and shapes of the weights of an architecture, without making any."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return {k: tuple(v.shape) for k, v in build(description).state_dict().items()}


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
