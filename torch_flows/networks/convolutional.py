"""Convolutional networks."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from flow_bridge import checks
from flow_bridge.architecture import count_construction
from torch_flows.networks.activations import ACTIVATIONS, in_place
from torch_flows.networks.mlp import Layer, dropouts, normalizations, scale_weights
from torch_flows.registry import register_network


@register_network
class ConvNet(nn.Module):
    """Convolutions 3x3, 1x1, 3x3 with an activation between them, padded with zeros.

    Maps ``(*batch, in_channels, height, width)`` to ``(*batch, out_channels, height, width)``. The
    last convolution starts at zero, so that a coupling starts as the identity, unless ``initial_scale`` is
    given; the others start as PyTorch's Conv2d does, uniform within 1 / sqrt(fan_in), in both halves.

    On a GPU, cuDNN computes float32 convolutions in TF32 unless
    ``torch.backends.cudnn.allow_tf32`` is ``False`` (PyTorch's default is ``True``, JAX's half uses
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
    layers: Sequence[nn.Conv2d]
    norms: Sequence[Layer]
    drops: Sequence[Layer]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        activation: str = "relu",
        normalization: str | None = None,
        initial_scale: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        checks.positive_int(
            "ConvNet",
            in_channels=in_channels,
            hidden_channels=hidden_channels,
            out_channels=out_channels,
        )
        checks.one_of("ConvNet", "activation", activation, ACTIVATIONS)
        checks.regularization("ConvNet", normalization, dropout, [hidden_channels])
        checks.non_negative_number("ConvNet", initial_scale=initial_scale)
        count_construction(3)
        self.activation = activation
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            [
                nn.Conv2d(in_channels, hidden_channels, 3, padding=1),
                nn.Conv2d(hidden_channels, hidden_channels, 1),
                nn.Conv2d(hidden_channels, out_channels, 3, padding=1),
            ]
        )
        widths = (hidden_channels, hidden_channels)
        self.norms = normalizations(normalization, widths)  # type: ignore[assignment]
        self.drops = dropouts(dropout, len(widths))  # type: ignore[assignment]
        scale_weights(self.layers[-1], initial_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x. Channels come last in memory inside, which is what convolutions are fast at."""
        batch = x.shape[:-3]
        x = x.reshape(-1, *x.shape[-3:]).movedim(-3, -1).contiguous().movedim(-1, -3)
        *layers, last = self.layers
        activation, norms, drops = in_place(self.activation), [*self.norms], [*self.drops]
        for i, layer in enumerate(layers):
            x = layer(x)
            x = _of_channels(norms[i], x) if norms else x
            x = activation(x)
            x = _of_channels(drops[i], x) if drops else x
        x = last(x).contiguous()
        return x.reshape(*batch, *x.shape[-3:])


def _of_channels(layer: Layer, x: Tensor) -> Tensor:
    """A layer of the last axis, of images."""
    return layer(x.movedim(-3, -1)).movedim(-1, -3)


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
    layers: Sequence[nn.Conv2d]

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        image_shape: Sequence[int],
        hidden_channels: Sequence[int] = (16, 32),
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        hidden_channels = checks.hidden_widths("ConvEmbedding", hidden_channels)
        channels, height, width = checks.convolutional_embedding(
            "ConvEmbedding", in_dim, out_dim, image_shape, hidden_channels
        )
        checks.one_of("ConvEmbedding", "activation", activation, ACTIVATIONS)
        self.in_dim, self.out_dim = in_dim, out_dim
        self.image_shape = channels, height, width
        self.hidden_channels = hidden_channels
        self.activation = activation
        widths = channels, *hidden_channels
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            nn.Conv2d(*pair, 3, padding=1) for pair in pairwise(widths)
        )
        self.last = nn.Linear(widths[-1] * height * width // 4 ** len(hidden_channels), out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x, images as vectors."""
        h = x.reshape(-1, *self.image_shape)
        for layer in self.layers:
            h = functional.avg_pool2d(in_place(self.activation)(layer(h)), 2)
        h = h.reshape(*x.shape[:-1], self.last.in_features)
        return self.last(h).to(x.dtype)
