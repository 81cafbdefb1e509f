"""Save and load: one file for the architecture and the weights, which either backend reads."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flow_bridge import checkpoint
from flow_bridge.architecture import architecture
from flow_bridge.errors import ConversionError
from flow_bridge.weights import jax_to_torch, torch_shapes, torch_to_jax
from jax_flows.registry import build
from jax_flows.variables import HasVariables, Variables


def save(flow: HasVariables, variables: Variables, path: str | os.PathLike[str]) -> None:
    """Write a flow, bijector or base distribution to ``path``, atomically.

    Raises:
        CheckpointError: if the weights are not all of one floating-point dtype.
        ConversionError: if the variables are not those of this flow.

    Examples:
        >>> import jax, jax_flows
        >>> flow = jax_flows.NICE(dim=2)
        >>> jax_flows.save(flow, flow.init(jax.random.key(0)), "nice.safetensors")
        >>> jax_flows.load("nice.safetensors")[0] == flow
        True
    """
    arrays = jax_to_torch(variables)
    torch_to_jax(arrays, flow.shapes())
    checkpoint.write_checkpoint(path, architecture(flow), arrays)


def load(
    path: str | os.PathLike[str], *, dtype: str | None = None, allow_non_finite: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Read what ``save`` of either backend wrote: the flow and its variables.

    Args:
        path: the file; it is not trusted.
        dtype: convert the weights to this dtype, ``"float32"`` for instance.
        allow_non_finite: accept NaN and infinite weights.

    Raises:
        CheckpointError: with the reason, whatever is wrong with the file.
        ConversionError: for float64 weights where JAX's 64-bit mode is off.
    """
    description, arrays = checkpoint.read_checkpoint(
        path,
        lambda description: torch_shapes(build(description).shapes()),
        dtype=dtype,
        allow_non_finite=allow_non_finite,
    )
    flow = build(description)
    return flow, from_numpy(torch_to_jax(arrays, flow.shapes()))


def from_numpy(variables: Variables) -> dict[str, Any]:
    """Copies as JAX arrays of the same dtypes.

    Raises:
        ConversionError: for float64 where JAX's 64-bit mode is off, which would truncate it.
    """

    def convert(array: np.ndarray) -> jax.Array:
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise ConversionError(
                f"the weights are {array.dtype}, which JAX would truncate: enable jax_enable_x64, "
                'or load with dtype="float32".'
            )
        return jnp.array(array)

    return jax.tree.map(convert, dict(variables))
