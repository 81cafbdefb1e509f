"""Activations by name."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from torch_flows.numerics import softplus

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.2),
    "relu": torch.relu,
    "elu": functional.elu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "softplus": softplus,
    "tanh": torch.tanh,
}
"""Activations by name; ``leaky_relu`` has slope 0.2 and ``gelu`` is the exact one."""

IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda x: functional.leaky_relu_(x, 0.2),
    "relu": torch.relu_,
    "tanh": torch.tanh_,
}
"""The same in place, which saves memory traffic, where the gradient needs no more than the output."""


def in_place(activation: str) -> Callable[[Tensor], Tensor]:
    """An activation that may overwrite its input."""
    return IN_PLACE.get(activation, ACTIVATIONS[activation])
