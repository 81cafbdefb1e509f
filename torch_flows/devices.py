"""What the ranks of a process group share in training.

Where ``torch.distributed`` is initialised, all ranks train one model together, each on its own part of
every batch. In JAX the devices of a mesh do, and the compiler does what stands here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if num_ranks() > 1 else 0


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of the ranks' values, differentiable any number of times."""
    return _Mean.apply(x) if num_ranks() > 1 else x


class _Mean(torch.autograd.Function):
    """Its own adjoint: the gradient is the mean of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / num_ranks()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Mean.apply(gradient)


def gather(values: Sequence[int], device: torch.device) -> Tensor:
    """The values of every rank, ``(ranks, values)``."""
    own = torch.tensor(values, device=device)
    if num_ranks() == 1:
        return own[None]
    everyone = [torch.empty_like(own) for _ in range(num_ranks())]
    dist.all_gather(everyone, own)
    return torch.stack(everyone)


def own_rows(draw: Callable[[Sequence[int]], Tensor], shape: Sequence[int]) -> Tensor:
    """This rank's rows of a draw for the rows of all ranks, so that one process draws the same."""
    if num_ranks() == 1 or not shape:
        return draw(shape)
    return draw((shape[0] * num_ranks(), *shape[1:]))[rank() * shape[0] :][: shape[0]]


def is_sharded(tensor: Tensor) -> bool:
    """Whether the ranks hold parts of a tensor, as ``fully_shard`` leaves it."""
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of a tensor; where it is sharded, all ranks must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def sharded_like(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor in parts, where another one of its shape is."""
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
