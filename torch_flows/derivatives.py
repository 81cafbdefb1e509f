"""Derivatives of small networks in closed form, so that they cost a few products and no tape.

A network is given as ``Layers``: pairs of a weight ``(out, in)`` and a bias ``(out,)`` or, where it
holds what a context adds, ``(*batch, out)``, with one activation between them. With D_k the diagonal
of the activation's slopes after layer k, its Jacobian is W_n D_(n-1) W_(n-1) ... D_1 W_1.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from flow_bridge.activations import Activations
from torch_flows.numerics import softplus

Layers = Sequence[tuple[Tensor, Tensor]]


def _tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    tanh = x.tanh()
    return tanh, 1 - tanh * tanh


def _softplus(x: Tensor) -> tuple[Tensor, Tensor]:
    return softplus(x), x.sigmoid()


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    sigmoid = x.sigmoid()
    value = x * sigmoid
    return value, sigmoid + value * (1 - sigmoid)


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    cdf = torch.special.erfc(-x / math.sqrt(2)) / 2
    return x * cdf, cdf + x * (-x * x / 2).exp() / math.sqrt(2 * math.pi)


def _gelu_tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    c = math.sqrt(2 / math.pi)
    share = (2 * c * (x + 0.044715 * x * x * x)).sigmoid()
    near = x.clamp(-30, 30)  # the share is 0 or 1 beyond, and x * x may overflow
    return x * share, share + 2 * c * near * (1 + 0.134145 * near * near) * share * (1 - share)


def _sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    sigmoid = x.sigmoid()
    return sigmoid, sigmoid * (1 - sigmoid)


def _sin(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sin(), x.cos()


def _elu(x: Tensor) -> tuple[Tensor, Tensor]:
    positive = x > 0
    below = torch.where(positive, 0, x)
    return torch.where(positive, x, below.expm1()), below.exp()


def _selu(x: Tensor) -> tuple[Tensor, Tensor]:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    value, slope = _elu(x)
    return scale * torch.where(x > 0, value, alpha * value), scale * torch.where(
        x > 0, slope, alpha * slope
    )


def _mish(x: Tensor) -> tuple[Tensor, Tensor]:
    share = softplus(x).tanh()
    return x * share, share + x * (1 - share * share) * x.sigmoid()


def _leaky(slope: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def value_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
        slopes = torch.where(x > 0, torch.ones_like(x), slope)
        return x * slopes, slopes

    return value_and_slope


VALUE_AND_SLOPE: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = Activations(
    {
        "elu": _elu,
        "gelu": _gelu,
        "gelu_tanh": _gelu_tanh,
        "leaky_relu": _leaky(0.2),
        "mish": _mish,
        "relu": _leaky(0.0),
        "selu": _selu,
        "sigmoid": _sigmoid,
        "silu": _silu,
        "sin": _sin,
        "softplus": _softplus,
        "tanh": _tanh,
    },
    _leaky,
)
"""The activations of ``networks.activations.ACTIVATIONS`` with their derivatives."""


def evaluate(layers: Layers, activation: str, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The network's output at x ``(*batch, in)``, and the slopes of every hidden layer there."""
    slopes = []
    for weight, bias in layers[:-1]:
        x, slope = VALUE_AND_SLOPE[activation](_linear(x, weight, bias))
        slopes.append(slope)
    return _linear(x, *layers[-1]), slopes


def jvp(layers: Layers, slopes: Sequence[Tensor], v: Tensor) -> Tensor:
    """The Jacobian times v ``(*batch, in)``."""
    for (weight, _), slope in zip(layers[:-1], slopes, strict=True):
        v = v @ weight.T * slope
    return v @ layers[-1][0].T


def vjp(layers: Layers, slopes: Sequence[Tensor], w: Tensor) -> Tensor:
    """w ``(*batch, out)`` times the Jacobian."""
    w = w @ layers[-1][0]
    for (weight, _), slope in zip(layers[-2::-1], slopes[::-1], strict=True):
        w = (w * slope) @ weight
    return w


def jacobian(layers: Layers, slopes: Sequence[Tensor]) -> Tensor:
    """The Jacobian, ``(*batch, out, in)``; without a batch if the network has no hidden layer."""
    rows = layers[0][0].T.contiguous()  # so that its products are one matrix each, not a batch
    for (weight, _), slope in zip(layers[1:], slopes, strict=True):
        rows = (rows * slope.unsqueeze(-2)) @ weight.T
    return rows.mT


def trace_weight(layers: Layers) -> Tensor | None:
    """What ``trace`` needs to know of the weights, made once for many evaluations.

    With one or two hidden layers the trace is a weighted sum of the slopes, or of products of one
    slope of each layer; for other networks this is ``None``.
    """
    weights = [weight for weight, _ in layers]
    if len(weights) == 2:
        return (weights[0] * weights[1].T).sum(-1)
    if len(weights) == 3:
        return weights[1] * (weights[0] @ weights[2]).T
    return None


def trace(layers: Layers, slopes: Sequence[Tensor], weight: Tensor | None) -> Tensor:
    """The trace of a square Jacobian, ``(*batch,)``; ``weight`` is what ``trace_weight`` gave."""
    if weight is None:
        return jacobian(layers, slopes).diagonal(0, -2, -1).sum(-1)
    if len(slopes) == 1:
        return slopes[0] @ weight
    return (slopes[0] @ weight.T * slopes[1]).sum(-1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if bias.ndim == 1:
        return functional.linear(x, weight, bias)
    return x @ weight.T + bias
