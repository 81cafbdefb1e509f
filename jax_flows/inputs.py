"""Checks of inputs, the same sentences in both halves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from jax_flows.variables import AnyArray, Variables, check_variables, weight_dtype


def check_array(
    owner: Any, variables: Variables, name: str, x: AnyArray, event_shape: tuple[int | None, ...]
) -> tuple[int, ...]:
    """Check one array and return its batch shape."""
    label = type(owner).__name__
    if not is_array(x):
        raise TypeError(checks.not_an_array(label, name, type(x).__name__))
    check_variables(owner, variables)
    dtype = weight_dtype(variables)
    weight = None if dtype is None else dtype.name
    batch = checks.input_array(label, name, x.shape, x.dtype.name, event_shape, weight)
    if jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
        raise TypeError(checks.no_float64(label, name))
    return batch


def check_input(
    owner: Any,
    variables: Variables,
    name: str,
    x: AnyArray,
    context: AnyArray | None,
    event_shape: tuple[int | None, ...] | None = None,
) -> tuple[Array, Array | None]:
    """Check an input and its context, and return both, the context broadcast to the batch."""
    if event_shape is None:
        event_shape = owner.latent_shape if name == "z" else owner.event_shape
    batch = check_array(owner, variables, name, x, event_shape)
    _check_context(owner, context, batch, x.dtype.name)
    if context is not None:
        context = jnp.broadcast_to(to_jax(context), (*batch, owner.context_dim))
    return to_jax(x), context


def check_probe(owner: Any, variables: Variables, noise: AnyArray, x: Array) -> Array:
    """Check the probe of an estimate, which has the shape and the dtype of x, and return it."""
    check_array(owner, variables, "noise", noise, owner.event_shape)
    checks.probe_array(type(owner).__name__, noise.shape, x.shape)
    return jnp.asarray(noise)


def context_batch(owner: Any, variables: Variables, context: AnyArray | None) -> tuple[int, ...]:
    """Check a context that is given before its input, and return its batch shape."""
    check_variables(owner, variables)
    dtype = weight_dtype(variables) or getattr(context, "dtype", None)
    batch = context.shape[:-1] if context is not None and is_array(context) else ()
    _check_context(owner, context, batch, "" if dtype is None else dtype.name)
    return batch


def to_jax(x: AnyArray) -> Array:
    """x as JAX's array; numpy's may be in the other byte order."""
    return jnp.asarray(
        x if isinstance(x, jax.Array) else x.astype(x.dtype.newbyteorder("="), copy=False)
    )


def is_array(x: object) -> bool:
    """Whether x is an array for JAX: its own, or numpy's without a mask."""
    return isinstance(x, jax.Array | np.ndarray) and not isinstance(x, np.ma.MaskedArray)


def _check_context(
    owner: Any, context: AnyArray | None, batch: tuple[int, ...], dtype: str
) -> None:
    label = type(owner).__name__
    if context is None:
        return checks.context_array(label, None, None, owner.context_dim, batch, dtype)
    if not is_array(context):
        raise TypeError(checks.not_an_array(label, "context", type(context).__name__))
    given = context.dtype.name
    return checks.context_array(label, context.shape, given, owner.context_dim, batch, dtype)
