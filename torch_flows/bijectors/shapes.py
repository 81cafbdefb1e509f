"""Maps that change the shape of an event."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flow_bridge import checks, images
from torch_flows.bijectors.base import Bijector, Output, Shape
from torch_flows.registry import register


@register
class Squeeze(Bijector):
    """Trades space for channels: every ``factor`` x ``factor`` block of pixels becomes channels.

    z[c f^2 + i f + j, h, w] = x[c, f h + i, f w + j]; log|det| = 0.

    Args:
        factor: f, at least 1.

    Shapes: x ``(*batch, channels, height, width)``, z ``(*batch, channels * f^2, height / f,
    width / f)``.

    Raises:
        ValueError: where f does not divide height and width.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803.

    Examples:
        >>> import torch, torch_flows
        >>> bijector = torch_flows.Squeeze()
        >>> z, log_det = bijector.forward(torch.zeros(5, 1, 4, 4))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 4, 2, 2), (5,))
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        checks.positive_int("Squeeze", factor=factor)
        self.factor = factor
        self.event_shape = (None, None, None)

    def map_shape(self, shape: Shape, inverse: bool = False) -> Shape:
        return images.squeezed_shape(shape, self.factor, inverse)

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        self.map_shape(x.shape[-3:])
        *batch, channels, height, width = x.shape
        f = self.factor
        blocks = x.reshape(*batch, channels, height // f, f, width // f, f)
        blocks = blocks.movedim((-3, -1), (-4, -3))
        z = blocks.reshape(*batch, channels * f**2, height // f, width // f)
        return z, x.new_zeros(batch)

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        self.map_shape(z.shape[-3:], inverse=True)
        *batch, channels, height, width = z.shape
        f = self.factor
        blocks = z.reshape(*batch, channels // f**2, f, f, height, width)
        blocks = blocks.movedim((-4, -3), (-3, -1))
        x = blocks.reshape(*batch, channels // f**2, height * f, width * f)
        return x, z.new_zeros(batch)


@register
class Split(Bijector):
    """Half of the channels go on through ``bijector``, the others leave to the base as they are.

    z = (bijector(x_first_half), x_second_half), so that z keeps x's shape at every level of a
    multi-scale flow. What leaves need not be processed any more: that is where such a flow saves.

    Args:
        bijector: of images ``(channels / 2, height, width)``; it must keep their shape. One that
            squeezes ends in ``Invert(Squeeze(...))``.

    Shapes: x and z ``(*batch, channels, height, width)``.

    Raises:
        ValueError: if ``bijector`` is not one of images, or changes their shape; for an odd number of
            channels.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803, section 3.6.
    """

    def __init__(self, bijector: Bijector) -> None:
        super().__init__()
        checks.instances("Split", "bijector", [bijector], Bijector)
        self.bijector = bijector
        self.event_shape = images.split_shape(bijector.event_shape, bijector.latent_shape)
        self.context_dim = bijector.context_dim

    def map_shape(self, shape: Shape, inverse: bool = False) -> Shape:
        return images.kept_shape(shape, lambda inner: self.bijector.map_shape(inner, inverse))

    @property
    def has_batch_statistics(self) -> bool:  # type: ignore[override]
        return self.bijector.has_batch_statistics

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        self.map_shape(x.shape[-3:])
        inner, outer = x.chunk(2, -3)
        inner, log_det = self.bijector.map_forward(inner, context)
        return torch.cat([inner, outer], -3), log_det

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        self.map_shape(z.shape[-3:], inverse=True)
        inner, outer = z.chunk(2, -3)
        inner, log_det = self.bijector.map_inverse(inner, context)
        return torch.cat([inner, outer], -3), log_det

    def map_and_initialize(
        self, x: Tensor, context: Tensor | None, inverse: bool = False
    ) -> Tensor:
        inner, outer = x.chunk(2, -3)
        return torch.cat([self.bijector.map_and_initialize(inner, context, inverse), outer], -3)

    def map_and_set_statistics(
        self, x: Tensor, context: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        inner, outer = x.chunk(2, -3)
        inner = self.bijector.map_and_set_statistics(inner, context, weights)
        return torch.cat([inner, outer], -3)


@register
class Patches(Bijector):
    """Takes images apart into square patches, one after the other in a vector.

    z[(i n + j) c f^2 + k f^2 + a f + b] = x[k, f i + a, f j + b], with n patches in a row and c channels;
    log|det| = 0.

    Args:
        shape: (channels, height, width).
        patch_size: f, which divides height and width.

    Shapes: x ``(*batch, channels, height, width)``, z ``(*batch, channels * height * width)``.

    Raises:
        ValueError: for a shape that is not of an image or not divisible.

    Examples:
        >>> import torch, torch_flows
        >>> bijector = torch_flows.Patches((1, 4, 4), patch_size=2)
        >>> bijector.forward(torch.arange(16.0).reshape(1, 4, 4))[0][:6].tolist()
        [0.0, 1.0, 4.0, 5.0, 2.0, 3.0]
    """

    def __init__(self, shape: Sequence[int], patch_size: int) -> None:
        super().__init__()
        checks.positive_int("Patches", patch_size=patch_size)
        self.shape = self.event_shape = checks.image_shape("Patches", shape, patch_size)
        self.patch_size = patch_size

    def map_shape(self, shape: Shape, inverse: bool = False) -> Shape:
        return tuple(self.shape) if inverse else (math.prod(self.shape),)

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        *batch, channels, height, width = x.shape
        f = self.patch_size
        blocks = x.reshape(*batch, channels, height // f, f, width // f, f)
        z = blocks.movedim((-4, -2), (-5, -4)).reshape(*batch, channels * height * width)
        return z, x.new_zeros(batch)

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        batch, (channels, height, width) = z.shape[:-1], self.shape
        f = self.patch_size
        blocks = z.reshape(*batch, height // f, width // f, channels, f, f)
        x = blocks.movedim((-5, -4), (-4, -2)).reshape(*batch, *self.shape)
        return x, z.new_zeros(batch)
