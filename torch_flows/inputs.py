"""Checks of inputs, the same sentences in both halves."""

from typing import Any

import torch
from torch import Tensor, nn

from flow_bridge import checks

_DTYPE_NAMES = {getattr(torch, name): name for name in checks.FLOAT_DTYPES}


def dtype_name(dtype: torch.dtype) -> str:
    """The name that numpy and JAX have for a dtype."""
    return _DTYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))


def first_weight(module: nn.Module) -> nn.Parameter | None:
    """The first parameter, without the search for shared ones that ``parameters`` makes of every call."""
    for weight in module._parameters.values():
        if weight is not None:
            return weight
    for part in module._modules.values():
        if part is not None and (weight := first_weight(part)) is not None:
            return weight
    return None


def check_array(
    owner: Any, name: str, x: Tensor, event_shape: tuple[int | None, ...]
) -> tuple[int, ...]:
    """Check one array and return its batch shape."""
    label = type(owner).__name__
    if not isinstance(x, Tensor):
        raise TypeError(checks.not_a_tensor(label, name, type(x).__name__))
    weight = first_weight(owner)
    weight_dtype = None if weight is None else dtype_name(weight.dtype)
    dtype = dtype_name(x.dtype)
    return checks.input_array(
        label, name, x.shape, dtype, event_shape, weight_dtype, ".to(torch.{})"
    )


def check_input(
    owner: Any,
    name: str,
    x: Tensor,
    context: Tensor | None,
    event_shape: tuple[int | None, ...] | None = None,
) -> Tensor | None:
    """Check an input and its context, and return the context expanded to the input's batch."""
    if event_shape is None:
        event_shape = owner.latent_shape if name == "z" else owner.event_shape
    batch = check_array(owner, name, x, event_shape)
    _check_context(owner, context, batch, dtype_name(x.dtype))
    return None if context is None else context.expand(*batch, owner.context_dim)


def check_output(owner: Any, x: Tensor, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return an output as it is, unless weights of another dtype than x have changed its dtype."""
    if output[0].dtype != x.dtype or output[1].dtype != x.dtype:
        checks.one_dtype(type(owner).__name__, {dtype_name(p.dtype) for p in owner.parameters()})
    return output


def check_probe(owner: Any, noise: Tensor, x: Tensor) -> Tensor:
    """Check the probe of an estimate, which has the shape and the dtype of x, and return it."""
    check_array(owner, "noise", noise, owner.event_shape)
    checks.probe_array(type(owner).__name__, noise.shape, x.shape)
    return noise


def context_batch(owner: Any, context: Tensor | None) -> tuple[int, ...]:
    """Check a context that is given before its input, and return its batch shape."""
    first = first_weight(owner)
    weight = context if first is None else first
    batch = tuple(context.shape[:-1]) if isinstance(context, Tensor) else ()
    _check_context(owner, context, batch, "" if weight is None else dtype_name(weight.dtype))
    return batch


def _check_context(owner: Any, context: Tensor | None, batch: tuple[int, ...], dtype: str) -> None:
    label = type(owner).__name__
    if context is None:
        return checks.context_array(label, None, None, owner.context_dim, batch, dtype)
    if not isinstance(context, Tensor):
        raise TypeError(checks.not_a_tensor(label, "context", type(context).__name__))
    given = dtype_name(context.dtype)
    return checks.context_array(label, context.shape, given, owner.context_dim, batch, dtype)
