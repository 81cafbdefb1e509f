"""Bijectors of images, of shape ``(channels, height, width)``."""

import torch
from torch import Tensor, nn

from flow_bridge import checks, images
from flow_bridge.domains import Interval
from flow_bridge.masks import Mask
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.bijectors.coupling import Partition
from torch_flows.bijectors.elementwise import Elementwise
from torch_flows.bijectors.linear import lu_matrix, lu_solve
from torch_flows.networks import ConvNet
from torch_flows.numerics import full_precision, softplus, sum_event
from torch_flows.registry import register

Shape = tuple[int | None, ...]


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

    def _forward(self, x: Tensor, context: Tensor | None) -> Output:
        self.map_shape(x.shape[-3:])
        *batch, channels, height, width = x.shape
        f = self.factor
        blocks = x.reshape(*batch, channels, height // f, f, width // f, f)
        blocks = blocks.movedim((-3, -1), (-4, -3))
        z = blocks.reshape(*batch, channels * f**2, height // f, width // f)
        return z, x.new_zeros(batch)

    def _inverse(self, z: Tensor, context: Tensor | None) -> Output:
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
        ValueError: if ``bijector`` is not one of images, or changes their shape.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803, section 3.6.
    """

    def __init__(self, bijector: Bijector) -> None:
        super().__init__()
        checks.instances("Split", "bijector", [bijector], Bijector)
        self.bijector = bijector
        self.event_shape = images.split_shape(bijector.event_shape, bijector.latent_shape)
        self.context_dim = bijector.context_dim

    def _forward(self, x: Tensor, context: Tensor | None) -> Output:
        inner, outer = x.chunk(2, -3)
        inner, log_det = self.bijector._forward(inner, context)
        return torch.cat([inner, outer], -3), log_det

    def _inverse(self, z: Tensor, context: Tensor | None) -> Output:
        inner, outer = z.chunk(2, -3)
        inner, log_det = self.bijector._inverse(inner, context)
        return torch.cat([inner, outer], -3), log_det

    def _initialize(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        inner, outer = x.chunk(2, -3)
        return torch.cat([self.bijector._initialize(inner, context, inverse), outer], -3)


@register
class Invertible1x1Conv(Bijector):
    """z[:, h, w] = P L U x[:, h, w] at every pixel; log|det| = height * width * trace(lu).

    The same L, U and P as ``LULinear``: it starts as the reversal of the channels, its log-det is an
    exact sum of weights and its inverse solves by triangular substitution.

    Args:
        channels: number of channels.

    Shapes: x and z ``(*batch, channels, height, width)``.

    Reference: Kingma and Dhariwal (2018), Glow, arXiv:1807.03039.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        checks.positive_int("Invertible1x1Conv", channels=channels)
        self.channels = channels
        self.event_shape = (channels, None, None)
        self.lu = nn.Parameter(torch.zeros(channels, channels))

    @full_precision
    def _forward(self, x: Tensor, context: Tensor | None) -> Output:
        z = torch.matmul(lu_matrix(self.lu), x.flatten(-2)).reshape(x.shape)
        return z, self._log_det(x)

    @full_precision
    def _inverse(self, z: Tensor, context: Tensor | None) -> Output:
        x = lu_solve(self.lu, z.movedim(-3, -1)).movedim(-1, -3).contiguous()
        return x, -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        num_pixels = x.shape[-2] * x.shape[-1]
        return (self.lu.trace() * num_pixels).expand(x.shape[:-3])


@register
class ConvAffineCoupling(Bijector):
    """z_free = x_free * exp(s) + t on channels, (s, t) a ``ConvNet`` of the fixed ones; log|det| = sum(s).

    s ends in tanh, so that each layer scales by a factor between 1/e and e. The network ends in zeros,
    so that the coupling starts as the identity.

    Args:
        channels: number of channels, at least 2.
        hidden_channels: width of the network.
        mask: which channels stay fixed, see ``flow_bridge.masks.coupling_mask``.
        activation: a name in ``networks.ACTIVATIONS``; ``leaky_relu`` has slope 0.2.
        context_dim: width of the context, 0 for none; every pixel sees all of it.

    Shapes: x and z ``(*batch, channels, height, width)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for a mask that fixes everything or nothing.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803; Kingma and Dhariwal (2018), Glow,
    arXiv:1807.03039.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int = 64,
        mask: Mask = "first_half",
        activation: str = "relu",
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        checks.positive_int("ConvAffineCoupling", channels=channels)
        checks.non_negative_int("ConvAffineCoupling", context_dim=context_dim)
        self.channels = channels
        self.hidden_channels = hidden_channels
        self.mask = mask if isinstance(mask, str) else tuple(mask)
        self.activation = activation
        self.context_dim = context_dim
        self.event_shape = (channels, None, None)
        self.partition = Partition(self.mask, channels, 0, axis=-3)
        in_channels = self.partition.num_fixed + context_dim
        out_channels = 2 * self.partition.num_free
        self.network = ConvNet(in_channels, hidden_channels, out_channels, activation)

    def _forward(self, x: Tensor, context: Tensor | None) -> Output:
        fixed, free = self.partition.split(x)
        s, t = self._predict(fixed, context)
        return self.partition.merge(fixed, torch.addcmul(t, free, s.exp())), sum_event(s, 3)

    def _inverse(self, z: Tensor, context: Tensor | None) -> Output:
        fixed, free = self.partition.split(z)
        s, t = self._predict(fixed, context)
        return self.partition.merge(fixed, (free - t) * (-s).exp()), -sum_event(s, 3)

    def _predict(self, fixed: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if context is not None:
            planes = context[..., None, None].expand(*context.shape, *fixed.shape[-2:])
            fixed = torch.cat([fixed, planes], -3)
        s, t = self.network(fixed).chunk(2, -3)
        return s.tanh(), t


@register
class Logit(Elementwise):
    """z = log(y / (1 - y)) with y = alpha + (1 - 2 alpha) x: images on [0, 1) to the real line.

    alpha > 0 keeps z finite at the ends of [0, 1]; the domain then reaches beyond them by
    alpha / (1 - 2 alpha). log|det| = sum(log(1 - 2 alpha) - log(y) - log(1 - y)).

    Args:
        alpha: at least 0, below 1/2.
        event_ndim: number of axes of one event, 3 for images.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803, section 4.1.
    """

    def __init__(self, alpha: float = 0.05, event_ndim: int = 3) -> None:
        super().__init__(event_ndim)
        checks.logit_alpha("Logit", alpha)
        self.alpha = alpha
        margin = alpha / (1 - 2 * alpha)
        self.domain = Interval(-margin, 1 + margin)
        self.log_slope = images.log_slope(alpha)

    def _map(self, x: Tensor) -> Output:
        y, rest = (self.alpha + (1 - 2 * self.alpha) * part for part in (x, 1 - x))
        log_y, log_rest = y.log(), rest.log()
        return log_y - log_rest, self.log_slope - log_y - log_rest

    def _inverse_map(self, z: Tensor) -> Output:
        x = (z.sigmoid() - self.alpha) / (1 - 2 * self.alpha)
        return x, -softplus(z) - softplus(-z) - self.log_slope


def dequantize(
    x: Tensor,
    num_levels: int,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(x + noise) / num_levels on [0, 1): integer levels as a density can take them.

    Args:
        x: values 0, 1, ..., num_levels - 1, integer or floating point.
        num_levels: number of levels, 256 for bytes.
        noise: on [0, 1), of x's shape; drawn uniformly if not given, then in x's dtype if that is
            floating point, else in torch's default one. The result has the noise's dtype.
        generator: the source of randomness.

    Reference: Theis et al. (2016), arXiv:1511.01844.

    Examples:
        >>> import torch, torch_flows
        >>> x = torch_flows.dequantize(torch.tensor([0, 255]), 256, noise=torch.tensor([0.0, 0.5]))
        >>> torch_flows.quantize(x, 256).tolist()
        [0.0, 255.0]
    """
    checks.positive_int("dequantize", num_levels=num_levels)
    if noise is None:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        noise = torch.rand(x.shape, generator=generator, dtype=dtype, device=x.device)
    y = (x + noise) / num_levels
    # the sum may round up to num_levels
    return torch.where(y >= 1, 1 - torch.finfo(y.dtype).eps / 2, y)


def quantize(x: Tensor, num_levels: int) -> Tensor:
    """The level of x on [0, 1]: floor(x * num_levels), kept within 0 and num_levels - 1."""
    checks.positive_int("quantize", num_levels=num_levels)
    return (x * num_levels).floor().clamp(0, num_levels - 1)
