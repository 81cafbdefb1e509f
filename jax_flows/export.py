"""Flows as files that run without this package: serialised ``jax.export`` programs (StableHLO)."""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import deployment as bridge
from jax_flows.variables import HasVariables, Output, Variables, weight_dtype


def export(
    flow: HasVariables,
    variables: Variables,
    path: str | os.PathLike[str],
    method: str = "log_prob",
    platforms: Sequence[str] | None = None,
    vjp_order: int = 0,
) -> None:
    """Write one method of a flow or bijector, with its weights, as a program for other processes.

    The program is that of evaluation mode, for one leading batch axis of any size from 1, in the
    weights' dtype. Its arguments are x (``"inverse"``: z) of shape ``(batch, *event_shape)`` and, if
    the flow takes one, a context ``(batch, context_dim)``; it does not check their values.

    Args:
        flow: the flow or bijector.
        variables: its arrays.
        path: ``.jax``, for ``jax.export.deserialize(...).call``.
        method: ``"log_prob"``, ``"forward"`` or ``"inverse"``.
        platforms: where the program is to run, such as ``("cpu", "cuda", "tpu")``; by default where
            JAX runs now.
        vjp_order: how many times the program can be differentiated in its arguments.

    Raises:
        ValueError: for another suffix or method, and for an event shape with open axes.
    """
    path = bridge.check_path("jax_flows.export", path, (".jax",))
    inputs, _ = bridge.check_method("jax_flows.export", flow, method)
    variables = dict(variables)

    def program(x: Array, context: Array | None = None) -> Array | Output:
        return getattr(flow, method)(variables, x, context)

    (batch,) = jax.export.symbolic_shape("batch")
    dtype = weight_dtype(variables) or jnp.result_type(float)
    arguments = [jax.ShapeDtypeStruct((batch, *shape), dtype) for shape in inputs.values()]
    exported = jax.export.export(jax.jit(program), platforms=platforms)(*arguments)
    with bridge.replacing(path) as file:
        file.write_bytes(exported.serialize(vjp_order=vjp_order))
