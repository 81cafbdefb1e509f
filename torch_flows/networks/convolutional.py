"""Convolutional networks."""

from collections.abc import Sequence

from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.architecture import count_construction
from torch_flows.networks.activations import ACTIVATIONS, in_place
from torch_flows.networks.mlp import layer_norms, normalize, pairs_of
from torch_flows.registry import register_network


@register_network
class ConvNet(nn.Module):
    """Convolutions 3x3, 1x1, 3x3 with an activation between them, padded with zeros.

    Maps ``(*batch, in_channels, height, width)`` to ``(*batch, out_channels, height, width)``. The
    last convolution starts at zero, so that a coupling starts as the identity; the others start as
    PyTorch's Conv2d does, uniform within 1 / sqrt(fan_in), in both halves.

    On a GPU, cuDNN computes float32 convolutions in TF32 unless
    ``torch.backends.cudnn.allow_tf32`` is ``False`` (PyTorch's default is ``True``, JAX's half uses
    full float32 precision): outputs then agree to about 1e-3 only, and an inverse is as inexact.

    Args:
        in_channels, out_channels: the widths of input and output.
        hidden_channels: width between the convolutions.
        activation: a name in ``ACTIVATIONS``.
        normalization: ``"layer_norm"``, for layer normalisation of the channels of each pixel in front of
            every activation, or ``None``.

    Raises:
        ValueError: for an unknown name, a width below 1 and the normalisation of a single channel.
    """

    event_ndim = 3
    layers: Sequence[nn.Conv2d]
    norms: Sequence[nn.LayerNorm]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        activation: str = "relu",
        normalization: str | None = None,
    ) -> None:
        super().__init__()
        checks.positive_int(
            "ConvNet",
            in_channels=in_channels,
            hidden_channels=hidden_channels,
            out_channels=out_channels,
        )
        checks.one_of("ConvNet", "activation", activation, ACTIVATIONS)
        checks.layer_normalization("ConvNet", normalization, [hidden_channels])
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
        self.norms = layer_norms(normalization, widths)  # type: ignore[assignment]
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Args: x. Channels come last in memory inside, which is what convolutions are fast at."""
        batch = x.shape[:-3]
        x = x.reshape(-1, *x.shape[-3:]).movedim(-3, -1).contiguous().movedim(-1, -3)
        *layers, last = self.layers
        activation, norms = in_place(self.activation), pairs_of(self.norms)
        for i, layer in enumerate(layers):
            x = layer(x)
            if norms:
                x = normalize(x.movedim(-3, -1), *norms[i]).movedim(-1, -3)
            x = activation(x)
        x = last(x).contiguous()
        return x.reshape(*batch, *x.shape[-3:])
