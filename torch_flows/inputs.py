"""Checks of inputs, the same sentences in both halves."""

from typing import Any

import torch
from torch import Tensor

from flow_bridge import checks

_DTYPE_NAMES = {getattr(torch, name): name for name in checks.FLOAT_DTYPES}


def dtype_name(dtype: torch.dtype) -> str:
    """The name that numpy and JAX have for a dtype."""
    return _DTYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))


def check_input(owner: Any, name: str, x: Tensor, context: Tensor | None) -> Tensor | None:
    """Check an input and its context, and return the context expanded to the input's batch."""
    label = type(owner).__name__
    for what, value in ((name, x), ("context", context)):
        if not isinstance(value, Tensor | None):
            raise TypeError(f"{label} expects {what} as an array, got {type(value).__name__}.")
    weight = next(owner.parameters(), None)
    dtype = dtype_name(x.dtype)
    batch = checks.input_array(
        label,
        name,
        x.shape,
        dtype,
        owner.latent_shape if name == "z" else owner.event_shape,
        None if weight is None else dtype_name(weight.dtype),
    )
    _check_context(owner, context, batch, dtype)
    return None if context is None else context.expand(*batch, owner.context_dim)


def context_batch(owner: Any, context: Tensor | None) -> tuple[int, ...]:
    """Check a context that is given before its input, and return its batch shape."""
    if not isinstance(context, Tensor | None):
        label = type(owner).__name__
        raise TypeError(f"{label} expects context as an array, got {type(context).__name__}.")
    weight = next(owner.parameters(), context)
    batch = () if context is None else tuple(context.shape[:-1])
    _check_context(owner, context, batch, "" if weight is None else dtype_name(weight.dtype))
    return batch


def _check_context(owner: Any, context: Tensor | None, batch: tuple[int, ...], dtype: str) -> None:
    shape = None if context is None else context.shape
    context_dtype = None if context is None else dtype_name(context.dtype)
    checks.context_array(
        type(owner).__name__, shape, context_dtype, owner.context_dim, batch, dtype
    )
