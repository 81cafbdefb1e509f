"""A network in its place: built for a bijector, and run on what the bijector shows it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks
from flow_bridge.networks import Network
from jax_flows.networks.regularization import run_network
from jax_flows.variables import Variables, gather


def build_conditioner(
    owner: str,
    conditioner: Network,
    in_dim: int,
    out_dim: int,
    event_ndim: int,
    context_dim: int,
    **given: Any,
) -> nn.Module:
    """The network of a coupling or an elementwise map, for inputs without the context."""
    takes = getattr(conditioner.cls, "event_ndim", event_ndim)
    checks.conditioner_of(owner, conditioner.cls.__name__, takes, event_ndim)
    lacking = conditioner.lacks({"context_dim": context_dim, **given})
    checks.suits(owner, conditioner.cls.__name__, lacking)
    in_dim = in_dim if conditioner.takes("context_dim") else in_dim + context_dim
    arguments = conditioner.arguments({"context_dim": context_dim, **given})
    return conditioner.cls(in_dim, out_dim, **arguments, parent=None)


def init_conditioner(
    owner: Any, key: Array, inputs: Array, context_dim: int, dtype: Any
) -> Variables:
    """Fresh variables of ``owner.network``, all in one dtype."""
    context = jnp.zeros(context_dim, dtype) if context_dim else None
    variables = owner.network.init(key, *_arguments(owner, inputs, context))
    return jax.tree.map(lambda array: array.astype(dtype), variables)


def conditioner_shapes(owner: Any, dtype: Any) -> Variables | None:
    """The shapes of the variables of ``owner.network``; ``None`` where it takes a trace to know them."""
    known = hasattr(owner.network, "variable_shapes")
    return gather({"network": owner.network.variable_shapes(dtype)}) if known else None


def run_conditioner(owner: Any, variables: Variables, inputs: Array, context: Array | None) -> Any:
    """The output of ``owner.network``, whose class decides how the context goes in."""
    updates = variables.get("updates")
    arguments = _arguments(owner, inputs, context)
    return run_network(owner.network, variables, "network", updates, *arguments)


def _arguments(owner: Any, inputs: Array, context: Array | None) -> tuple[Array, ...]:
    if context is None:
        return (inputs,)
    if owner.conditioner.takes("context_dim"):
        return inputs, context
    axis = -len(owner.event_shape)
    if axis == -3:
        shape = *context.shape, *inputs.shape[-2:]
        context = jnp.broadcast_to(context[..., None, None], shape)
    return (jnp.concatenate([inputs, context], axis),)
