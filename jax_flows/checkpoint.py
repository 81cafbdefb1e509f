"""Save and load: one file for the architecture and the weights, which either backend reads."""

from typing import Any

import jax
import numpy as np

from flow_bridge import checkpoint
from flow_bridge.architecture import Architecture, architecture
from flow_bridge.checkpoint import Readable, Shapes, Writable
from flow_bridge.checks import no_device
from flow_bridge.errors import ConversionError
from flow_bridge.weights import jax_to_torch, torch_shapes, torch_to_jax
from jax_flows.registry import build
from jax_flows.variables import HasVariables, Variables


def save(
    flow: HasVariables,
    variables: Variables,
    target: Writable,
    *,
    allow_non_finite: bool = False,
) -> None:
    """Write a flow, bijector or base distribution, atomically; only what ``load`` reads is written.

    Args:
        flow: the flow.
        variables: its arrays.
        target: a path, or a binary file open for writing.
        allow_non_finite: write NaN and infinite weights, which ``load`` then must be told to accept.

    Raises:
        CheckpointError: if the weights are not all of one floating-point dtype or not finite, and for an
            architecture that asks for more than a file of its size may; an existing file stays as
            it was.
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
    checkpoint.write_checkpoint(
        target, architecture(flow), arrays, expected_shapes, allow_non_finite=allow_non_finite
    )


def load(
    source: Readable,
    *,
    dtype: str | None = None,
    device: jax.Device | jax.sharding.Sharding | None = None,
    allow_non_finite: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Read what ``save`` of either backend wrote: the flow and its variables.

    The state of a training run opens as the model with its best weights so far (the last without
    validation data).

    Args:
        source: a path, bytes, or a file open for reading; it is not trusted.
        dtype: convert the weights to this dtype, ``"float32"`` for instance.
        device: where to put the variables, a device or a sharding, JAX's default device if not given.
        allow_non_finite: accept NaN and infinite weights.

    Raises:
        CheckpointError: with the reason, whatever is wrong with the file.
        ConversionError: for float64 weights where JAX's 64-bit mode is off.
        ValueError: for a device that is not there.
    """
    _check_device(device)
    description, arrays = checkpoint.read_checkpoint(
        source, expected_shapes, dtype=dtype, allow_non_finite=allow_non_finite
    )
    with checkpoint.refusals(source):
        flow = build(description)
        variables = torch_to_jax(arrays, flow.shapes())
    loaded = from_numpy(variables)
    return flow, loaded if device is None else jax.device_put(loaded, device)


def _check_device(device: Any) -> None:
    if device is not None and not isinstance(device, jax.Device | jax.sharding.Sharding):
        raise ValueError(no_device(device))


def expected_shapes(description: Architecture) -> Shapes:
    """The names and shapes of the weights of an architecture, without making any."""
    return torch_shapes(build(description).shapes())


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
        return jax.device_put(np.array(array))  # jnp.array compiles a program for each shape

    return jax.tree.map(convert, dict(variables))
