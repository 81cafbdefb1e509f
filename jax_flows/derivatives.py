"""Derivatives of small networks in closed form, so that they cost a few products and no tape.

A network is given as ``Layers``: pairs of a kernel ``(in, out)`` and a bias ``(out,)`` or, where it
holds what a context adds, ``(*batch, out)``, with one activation between them. With D_k the diagonal
of the activation's slopes after layer k and W the transposed kernels, its Jacobian is
W_n D_(n-1) W_(n-1) ... D_1 W_1.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge.activations import Activations
from jax_flows.numerics import matmul_precision, softplus

Layers = Sequence[tuple[Array, Array]]


def _tanh(x: Array) -> tuple[Array, Array]:
    tanh = jnp.tanh(x)
    return tanh, 1 - tanh * tanh


def _softplus(x: Array) -> tuple[Array, Array]:
    return softplus(x), jax.nn.sigmoid(x)


def _silu(x: Array) -> tuple[Array, Array]:
    sigmoid = jax.nn.sigmoid(x)
    value = x * sigmoid
    return value, sigmoid + value * (1 - sigmoid)


def _gelu(x: Array) -> tuple[Array, Array]:
    cdf = jax.lax.erfc(-x / math.sqrt(2)) / 2
    return x * cdf, cdf + x * jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh(x: Array) -> tuple[Array, Array]:
    c = math.sqrt(2 / math.pi)
    share = jax.nn.sigmoid(2 * c * (x + 0.044715 * x * x * x))
    near = jnp.clip(x, -30, 30)  # the share is 0 or 1 beyond, and x * x may overflow
    return x * share, share + 2 * c * near * (1 + 0.134145 * near * near) * share * (1 - share)


def _sigmoid(x: Array) -> tuple[Array, Array]:
    sigmoid = jax.nn.sigmoid(x)
    return sigmoid, sigmoid * (1 - sigmoid)


def _sin(x: Array) -> tuple[Array, Array]:
    return jnp.sin(x), jnp.cos(x)


def _elu(x: Array) -> tuple[Array, Array]:
    positive = x > 0
    below = jnp.where(positive, 0, x)
    return jnp.where(positive, x, jnp.expm1(below)), jnp.exp(below)


def _selu(x: Array) -> tuple[Array, Array]:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    value, slope = _elu(x)
    return scale * jnp.where(x > 0, value, alpha * value), scale * jnp.where(
        x > 0, slope, alpha * slope
    )


def _mish(x: Array) -> tuple[Array, Array]:
    share = jnp.tanh(softplus(x))
    return x * share, share + x * (1 - share * share) * jax.nn.sigmoid(x)


def _leaky(slope: float) -> Callable[[Array], tuple[Array, Array]]:
    def value_and_slope(x: Array) -> tuple[Array, Array]:
        slopes = jnp.where(x > 0, jnp.ones_like(x), slope)
        return x * slopes, slopes

    return value_and_slope


VALUE_AND_SLOPE: dict[str, Callable[[Array], tuple[Array, Array]]] = Activations(
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


def evaluate(layers: Layers, activation: str, x: Array) -> tuple[Array, list[Array]]:
    """The network's output at x ``(*batch, in)``, and the slopes of every hidden layer there."""
    slopes = []
    for kernel, bias in layers[:-1]:
        x, slope = VALUE_AND_SLOPE[activation](_matmul(x, kernel) + bias)
        slopes.append(slope)
    kernel, bias = layers[-1]
    return _matmul(x, kernel) + bias, slopes


def jvp(layers: Layers, slopes: Sequence[Array], v: Array) -> Array:
    """The Jacobian times v ``(*batch, in)``."""
    for (kernel, _), slope in zip(layers[:-1], slopes, strict=True):
        v = _matmul(v, kernel) * slope
    return _matmul(v, layers[-1][0])


def vjp(layers: Layers, slopes: Sequence[Array], w: Array) -> Array:
    """w ``(*batch, out)`` times the Jacobian."""
    w = _matmul(w, layers[-1][0].T)
    for (kernel, _), slope in zip(layers[-2::-1], slopes[::-1], strict=True):
        w = _matmul(w * slope, kernel.T)
    return w


def jacobian(layers: Layers, slopes: Sequence[Array]) -> Array:
    """The Jacobian, ``(*batch, out, in)``; without a batch if the network has no hidden layer."""
    rows = layers[0][0]
    for (kernel, _), slope in zip(layers[1:], slopes, strict=True):
        rows = _matmul(rows * slope[..., None, :], kernel)
    return rows.mT


def trace_weight(layers: Layers) -> Array | None:
    """What ``trace`` needs to know of the weights, made once for many evaluations.

    With one or two hidden layers the trace is a weighted sum of the slopes, or of products of one
    slope of each layer; for other networks this is ``None``.
    """
    kernels = [kernel for kernel, _ in layers]
    if len(kernels) == 2:
        return (kernels[0].T * kernels[1]).sum(-1)
    if len(kernels) == 3:
        return kernels[1] * _matmul(kernels[2], kernels[0]).T
    return None


def trace(layers: Layers, slopes: Sequence[Array], weight: Array | None) -> Array:
    """The trace of a square Jacobian, ``(*batch,)``; ``weight`` is what ``trace_weight`` gave."""
    if weight is None:
        return jnp.trace(jacobian(layers, slopes), 0, -2, -1)
    if len(slopes) == 1:
        return _matmul(slopes[0], weight)
    return (_matmul(slopes[0], weight) * slopes[1]).sum(-1)


def _matmul(a: Array, b: Array) -> Array:
    if b.ndim < 2 or b.shape[0] <= b.shape[1]:
        return jnp.matmul(a, b, precision=matmul_precision())
    # as in networks.mlp.matmul: XLA on a CPU is slow at tall products, which the gradient of b would be
    transposed = jax.lax.optimization_barrier(b.T)
    return jnp.einsum("...i,oi->...o", a, transposed, precision=matmul_precision())
