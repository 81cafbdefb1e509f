"""Base distributions of the latent z."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flow_bridge import checks
from torch_flows.numerics import sum_event
from torch_flows.registry import register


class Distribution(nn.Module, ABC):
    """A density on events of ``event_shape`` whose samples are a function of simple noise.

    Attributes:
        noise: what ``from_noise`` takes, ``"normal"`` or ``"uniform"`` (on [0, 1)), independent per
            dimension.
    """

    is_architecture = True
    noise = "normal"
    device_anchor: Tensor

    def __init__(self, dim: int | Sequence[int]) -> None:
        super().__init__()
        self.dim = dim if isinstance(dim, int) else tuple(dim)
        self.event_shape = checks.event_shape_of(type(self).__name__, dim)
        self.register_buffer("device_anchor", torch.zeros(()), persistent=False)

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density of z ``(*batch, *event_shape)``, shape ``(*batch,)``."""

    @abstractmethod
    def from_noise(self, noise: Tensor) -> Tensor:
        """Samples from noise of shape ``(*batch, *event_shape)``, differentiable in the weights."""

    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Samples of shape ``(*shape, *event_shape)``, in the weights' dtype and on their device."""
        draw = torch.randn if self.noise == "normal" else torch.rand
        like = self.device_anchor
        noise = draw(
            (*shape, *self.event_shape), generator=generator, dtype=like.dtype, device=like.device
        )
        return self.from_noise(noise)


@register
class StandardNormal(Distribution):
    """log p(z) = -|z|^2 / 2 - d log(2 pi) / 2.

    Args:
        dim: number of dimensions, or an event shape.
    """

    def log_prob(self, z: Tensor) -> Tensor:
        event_ndim = len(self.event_shape)
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        return -0.5 * sum_event(z.square(), event_ndim) - constant

    def from_noise(self, noise: Tensor) -> Tensor:
        return noise


@register
class DiagonalNormal(Distribution):
    """Independent normals with learnable ``loc`` and ``log_scale``: z = loc + exp(log_scale) * noise.

    Args:
        dim: number of dimensions, or an event shape.
    """

    def __init__(self, dim: int | Sequence[int]) -> None:
        super().__init__(dim)
        self.loc = nn.Parameter(torch.zeros(self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))

    def log_prob(self, z: Tensor) -> Tensor:
        standard = (z - self.loc) * (-self.log_scale).exp()
        constant = math.prod(self.event_shape) * math.log(2 * math.pi) / 2
        return (
            -sum_event(standard.square(), len(self.event_shape)) / 2
            - self.log_scale.sum()
            - constant
        )

    def from_noise(self, noise: Tensor) -> Tensor:
        return self.loc + self.log_scale.exp() * noise


@register
class Uniform(Distribution):
    """The uniform density on [low, high] in every dimension: -d log(high - low) inside, -inf outside.

    Args:
        dim: number of dimensions, or an event shape.
        low, high: the bounds, low < high.

    Raises:
        ValueError: if the bounds are not finite or not in order.
    """

    noise = "uniform"

    def __init__(self, dim: int | Sequence[int], low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(dim)
        checks.interval("Uniform", low=low, high=high)
        self.low = low
        self.high = high

    def log_prob(self, z: Tensor) -> Tensor:
        axes = tuple(range(-len(self.event_shape), 0))
        inside = ((z >= self.low) & (z <= self.high)).all(axes)
        density = z.new_tensor(-math.prod(self.event_shape) * math.log(self.high - self.low))
        log_prob = torch.where(inside, density, -math.inf)
        return torch.where(z.isnan().any(axes), math.nan, log_prob)

    def from_noise(self, noise: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * noise
