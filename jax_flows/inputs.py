"""Checks of inputs, the same sentences in both halves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from jax_flows.variables import Variables, weight_dtype


def check_input(
    owner: Any, variables: Variables, name: str, x: Array, context: Array | None
) -> tuple[Array, Array | None]:
    """Check an input and its context, and return both, the context broadcast to the batch."""
    label = type(owner).__name__
    for what, value in ((name, x), ("context", context)):
        if not isinstance(value, jax.Array | np.ndarray | None):
            raise TypeError(f"{label} expects {what} as an array, got {type(value).__name__}.")
    dtype = weight_dtype(variables)
    batch = checks.input_array(
        label,
        name,
        x.shape,
        x.dtype.name,
        owner.latent_shape if name == "z" else owner.event_shape,
        None if dtype is None else dtype.name,
    )
    _check_context(owner, context, batch, x.dtype.name)
    if context is not None:
        context = jnp.broadcast_to(context, (*batch, owner.context_dim))
    return jnp.asarray(x), context


def context_batch(owner: Any, variables: Variables, context: Array | None) -> tuple[int, ...]:
    """Check a context that is given before its input, and return its batch shape."""
    if not isinstance(context, jax.Array | np.ndarray | None):
        label = type(owner).__name__
        raise TypeError(f"{label} expects context as an array, got {type(context).__name__}.")
    dtype = weight_dtype(variables) or getattr(context, "dtype", None)
    batch = () if context is None else context.shape[:-1]
    _check_context(owner, context, batch, "" if dtype is None else dtype.name)
    return batch


def _check_context(owner: Any, context: Array | None, batch: tuple[int, ...], dtype: str) -> None:
    shape = None if context is None else context.shape
    context_dtype = None if context is None else context.dtype.name
    checks.context_array(
        type(owner).__name__, shape, context_dtype, owner.context_dim, batch, dtype
    )
