"""Activations by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jax_flows.numerics import softplus

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "leaky_relu": lambda x: jnp.where(x > 0, x, 0.2 * x),
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "softplus": softplus,
    "tanh": jnp.tanh,
}
"""Activations by name; ``leaky_relu`` has slope 0.2 and ``gelu`` is the exact one."""
