"""Activations by name."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from flow_bridge import checks
from flow_bridge.activations import Activations
from flow_bridge.lipschitz import SLOPE_BOUNDS
from torch_flows.derivatives import VALUE_AND_SLOPE
from torch_flows.numerics import softplus

Function = Callable[[Tensor], Tensor]


def _leaky(slope: float) -> Function:
    return lambda x: functional.leaky_relu(x, slope)


def _leaky_in_place(slope: float) -> Function:
    return lambda x: functional.leaky_relu_(x, slope)


ACTIVATIONS: dict[str, Function] = Activations(
    {
        "leaky_relu": _leaky(0.2),
        "relu": torch.relu,
        "elu": functional.elu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "mish": lambda x: x * softplus(x).tanh(),
        "selu": functional.selu,
        "sigmoid": torch.sigmoid,
        "silu": functional.silu,
        "sin": torch.sin,
        "softplus": softplus,
        "tanh": torch.tanh,
    },
    _leaky,
)
"""Activations by name; ``leaky_relu`` has slope 0.2 and ``leaky_relu:SLOPE`` another one, at least 0 and
below 1; ``gelu`` is the exact one, and ``gelu_tanh`` the one that ``jax.nn.gelu`` and others have by
default."""

IN_PLACE: dict[str, Function] = Activations(
    {"leaky_relu": _leaky_in_place(0.2), "relu": torch.relu_, "tanh": torch.tanh_}, _leaky_in_place
)
"""The same in place, which saves memory traffic, where the gradient needs no more than the output."""


def in_place(activation: str) -> Function:
    """An activation that may overwrite its input."""
    known = IN_PLACE.get(activation)
    return known or (IN_PLACE if activation in IN_PLACE else ACTIVATIONS)[activation]


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

    def value_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
        if slope is None:
            raise ValueError(checks.slope_of_activation(name))
        return function(x), slope(x)

    ACTIVATIONS[name] = function
    VALUE_AND_SLOPE[name] = value_and_slope
    SLOPE_BOUNDS[name] = largest_slope
