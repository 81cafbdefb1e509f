"""Activations by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from flow_bridge.activations import Activations
from flow_bridge.lipschitz import SLOPE_BOUNDS
from jax_flows.derivatives import VALUE_AND_SLOPE
from jax_flows.numerics import softplus

Function = Callable[[Array], Array]


def _leaky(slope: float) -> Function:
    return lambda x: jnp.where(x > 0, x, slope * x)


ACTIVATIONS: dict[str, Function] = Activations(
    {
        "leaky_relu": _leaky(0.2),
        "relu": jax.nn.relu,
        "elu": jax.nn.elu,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "mish": lambda x: x * jnp.tanh(softplus(x)),
        "selu": jax.nn.selu,
        "sigmoid": jax.nn.sigmoid,
        "silu": jax.nn.silu,
        "sin": jnp.sin,
        "softplus": softplus,
        "tanh": jnp.tanh,
    },
    _leaky,
)
"""Activations by name; ``leaky_relu`` has slope 0.2 and ``leaky_relu:SLOPE`` another one, at least 0 and
below 1; ``gelu`` is the exact one, and ``gelu_tanh`` the one that ``jax.nn.gelu`` and others have by
default."""


def register_activation(
    name: str,
    function: Function,
    slope: Function | None = None,
    largest_slope: float = 1.0,
) -> None:
    """Make an activation known under a name, in this half; do the same in the other one.

    Args:
        name: a new one.
        function: what it does to every entry.
        slope: its derivative, which residual and continuous flows need.
        largest_slope: the largest |derivative|, rounded up, which residual flows divide by.

    Raises:
        ValueError: for a name that exists, or a largest slope that is not above 0.
    """
    checks.new_activation(name, ACTIVATIONS, largest_slope)

    def value_and_slope(x: Array) -> tuple[Array, Array]:
        if slope is None:
            raise ValueError(checks.slope_of_activation(name))
        return function(x), slope(x)

    ACTIVATIONS[name] = function
    VALUE_AND_SLOPE[name] = value_and_slope
    SLOPE_BOUNDS[name] = largest_slope
