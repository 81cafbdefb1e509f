"""Convolutional networks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks
from flow_bridge.architecture import count_construction
from jax_flows.networks.activations import ACTIVATIONS
from jax_flows.networks.mlp import (
    SAVED,
    Linear,
    Weights,
    apply_norm,
    dropouts,
    first_weights,
    has_modules,
    matmul,
    normalizations,
)
from jax_flows.networks.regularization import regularization_shapes
from jax_flows.numerics import conditioner_operands
from jax_flows.registry import register_network
from jax_flows.variables import Variables, linear_shapes


def conv(x: Array, kernel: Array, bias: Array) -> Array:
    """A convolution of images ``(in_dim, n, height, width)``, channels first of all, padded with zeros.

    It is a product of matrices (a gather of the neighbours before it or a sum over them after it,
    whichever is narrower), because XLA on a CPU runs the gradient of a convolution inside a scan 10
    times slower.

    Args:
        x: the images.
        kernel: shape (size, size, in_dim, out_dim), size odd.
        bias: shape (out_dim,).
    """
    size, _, in_dim, out_dim = kernel.shape
    edge = size // 2
    offsets = [(i - edge, j - edge) for i in range(size) for j in range(size)]
    bias = bias[:, None, None, None]
    if in_dim <= out_dim:
        columns = jnp.concatenate([_shift(x, *offset) for offset in offsets])
        columns = columns.reshape(size**2 * in_dim, -1)
        rows, columns, options = conditioner_operands(kernel.reshape(-1, out_dim).T, columns)
        out = jnp.matmul(rows, columns, **options)
        return out.reshape(out_dim, *x.shape[1:]) + bias
    rows = kernel.transpose(0, 1, 3, 2).reshape(-1, in_dim)
    rows, columns, options = conditioner_operands(rows, x.reshape(in_dim, -1))
    out = jnp.matmul(rows, columns, **options)
    parts = jnp.split(out.reshape(len(rows), *x.shape[1:]), size**2)
    return sum((_shift(p, *offset) for p, offset in zip(parts, offsets, strict=True)), start=bias)


def _shift(x: Array, down: int, right: int) -> Array:
    """y[..., h, w] = x[..., h + down, w + right], 0 beyond the edges."""
    config = [(0, 0, 0)] * (x.ndim - 2) + [(-down, down, 0), (-right, right, 0)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


def _conv_net(
    activation: str, x: Array, weights: Weights, norms: Sequence[Any], drops: Sequence[nn.Module]
) -> Array:
    for i, layer in enumerate(weights[:-1]):
        x = conv(x, *layer)
        if norms:
            x = jnp.moveaxis(apply_norm(norms[i], jnp.moveaxis(x, 0, -1)), -1, 0)
        x = ACTIVATIONS[activation](x)
        x = jnp.moveaxis(drops[i](jnp.moveaxis(x, 0, -1)), -1, 0) if drops else x
    return conv(x, *weights[-1])


_plain_conv_net = jax.checkpoint(_conv_net, policy=SAVED, static_argnums=0)


def conv_layers(
    module: nn.Module, kernels: Sequence[tuple[int, int, int]], x: Array, initial_scale: float = 1.0
) -> list[tuple[Array, Array]]:
    """Convolutions, in the module that calls this, initialised as PyTorch's Conv2d.

    Args:
        module: the one that calls.
        kernels: the size of each one, and how many channels it takes and gives.
        x: what has the dtype of new weights.
        initial_scale: factor of the last one's first weights.
    """
    sizes = [(size * size * in_dim, out_dim) for size, in_dim, out_dim in kernels]
    bounds = [in_dim**-0.5 for in_dim, _ in sizes]
    bounds[-1] *= initial_scale
    first = first_weights(module, x.dtype, sizes, bounds)
    return [
        Linear((size, size, in_dim, out_dim), name=f"layers_{i}")(x, part)
        for i, ((size, in_dim, out_dim), part) in enumerate(zip(kernels, first, strict=True))
    ]


def conv_shapes(kernels: Sequence[tuple[int, int, int]], dtype: Any) -> dict[str, Any]:
    """The shapes of what ``conv_layers`` makes."""
    return {
        f"layers_{i}": {
            "kernel": jax.ShapeDtypeStruct((size, size, in_dim, out_dim), dtype),
            "bias": jax.ShapeDtypeStruct((out_dim,), dtype),
        }
        for i, (size, in_dim, out_dim) in enumerate(kernels)
    }


@register_network
class ConvNet(nn.Module):
    """Convolutions 3x3, 1x1, 3x3 with an activation between them, padded with zeros.

    Maps ``(*batch, in_channels, height, width)`` to ``(*batch, out_channels, height, width)``. The
    last convolution starts at zero, so that a coupling starts as the identity, unless ``initial_scale`` is
    given; the others start as PyTorch's Conv2d does, uniform within 1 / sqrt(fan_in), in both halves.

    On a GPU, PyTorch's half computes float32 convolutions in TF32 unless
    ``torch.backends.cudnn.allow_tf32`` is ``False`` (PyTorch's default is ``True``, this half uses
    full float32 precision): outputs then agree to about 1e-3 only, and an inverse is as inexact.

    Args:
        in_channels, out_channels: the widths of input and output.
        hidden_channels: width between the convolutions.
        activation: a name in ``ACTIVATIONS``.
        normalization: in front of every activation, ``"layer_norm"``, of the channels of each pixel, or
            ``"batch_norm"``, of each channel over the pixels of all images; or ``None``; see ``MLP``.
        initial_scale: factor of the last convolution's first weights.
        dropout: as in ``MLP``.

    Raises:
        ValueError: for an unknown name, a width below 1 and the layer normalisation of a single channel.
    """

    event_ndim = 3

    in_channels: int
    out_channels: int
    hidden_channels: int = 64
    activation: str = "relu"
    normalization: str | None = None
    initial_scale: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        checks.positive_int(
            "ConvNet",
            in_channels=self.in_channels,
            hidden_channels=self.hidden_channels,
            out_channels=self.out_channels,
        )
        checks.one_of("ConvNet", "activation", self.activation, ACTIVATIONS)
        checks.regularization("ConvNet", self.normalization, self.dropout, [self.hidden_channels])
        checks.non_negative_number("ConvNet", initial_scale=self.initial_scale)
        count_construction(3)
        super().__post_init__()

    @property
    def kernels(self) -> list[tuple[int, int, int]]:
        """The size of each kernel, and how many channels it takes and gives."""
        hidden = self.hidden_channels
        return [(3, self.in_channels, hidden), (1, hidden, hidden), (3, hidden, self.out_channels)]

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of the variables, without a trace."""
        pair = self.hidden_channels, self.hidden_channels
        shapes = regularization_shapes(self.normalization, pair, self.dropout, 2, dtype)
        shapes["params"] |= conv_shapes(self.kernels, dtype)
        return shapes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Args: x. Channels come first of all inside, so that each convolution is one product."""
        batch, hidden = x.shape[:-3], self.hidden_channels
        weights = conv_layers(self, self.kernels, x, self.initial_scale)
        norms = normalizations(self.normalization, (hidden, hidden), x)
        drops = dropouts(self.dropout, 2)
        x = jnp.moveaxis(x.reshape(-1, *x.shape[-3:]), 1, 0)
        run = _conv_net if has_modules(norms, drops) else _plain_conv_net
        x = run(self.activation, x, weights, norms, drops)
        return jnp.moveaxis(x, 0, 1).reshape(*batch, self.out_channels, *x.shape[-2:])


@register_network
class ConvEmbedding(nn.Module):
    """Convolutions 3x3, each with an activation and halved images behind it, and a linear layer.

    Maps images as vectors, ``(*batch, channels * height * width)``, to ``(*batch, out_dim)``: a network
    for a context that is an image. Images are halved by the mean of 2x2 pixels, padded with zeros.

    Args:
        in_dim: width of the input, the product of ``image_shape``.
        out_dim: width of the output.
        image_shape: (channels, height, width).
        hidden_channels: width after each convolution.
        activation: a name in ``ACTIVATIONS``.

    Raises:
        ValueError: for an unknown activation, a width below 1, and an image of another size or that
            cannot be halved so often.
    """

    event_ndim = 1

    in_dim: int
    out_dim: int
    image_shape: Sequence[int]
    hidden_channels: Sequence[int] = (16, 32)
    activation: str = "leaky_relu"

    def __post_init__(self) -> None:
        checks.hidden_widths("ConvEmbedding", self.hidden_channels)
        checks.convolutional_embedding(
            "ConvEmbedding", self.in_dim, self.out_dim, self.image_shape, self.hidden_channels
        )
        checks.one_of("ConvEmbedding", "activation", self.activation, ACTIVATIONS)
        super().__post_init__()

    @property
    def kernels(self) -> list[tuple[int, int, int]]:
        """The size of each kernel, and how many channels it takes and gives."""
        return [(3, *pair) for pair in pairwise((self.image_shape[0], *self.hidden_channels))]

    @property
    def pooled_dim(self) -> int:
        """How many numbers are left of an image."""
        channels, height, width = self.image_shape
        channels = (channels, *self.hidden_channels)[-1]
        return channels * height * width // 4 ** len(self.hidden_channels)

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of the variables, without a trace."""
        last = linear_shapes({"last": (self.pooled_dim, self.out_dim)}, dtype)
        return {"params": conv_shapes(self.kernels, dtype) | last}

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Args: x, images as vectors. Channels come first of all inside, as in ``ConvNet``."""
        h = jnp.moveaxis(x.reshape(-1, *self.image_shape), 1, 0)
        for layer in conv_layers(self, self.kernels, x):
            h = ACTIVATIONS[self.activation](conv(h, *layer))
            channels, count, height, width = h.shape
            h = h.reshape(channels, count, height // 2, 2, width // 2, 2).mean((3, 5))
        size = self.pooled_dim, self.out_dim
        (first,) = first_weights(self, x.dtype, [size], [self.pooled_dim**-0.5])
        kernel, bias = Linear(size, name="last")(x, first)
        h = jnp.moveaxis(h, 0, 1).reshape(*x.shape[:-1], self.pooled_dim)
        return matmul(h, kernel) + bias
