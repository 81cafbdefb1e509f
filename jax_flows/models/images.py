"""Models of images."""

from collections.abc import Sequence
from dataclasses import dataclass

from flow_bridge import checks
from jax_flows.bijectors.base import Bijector
from jax_flows.bijectors.coupling import (
    ConvAffineCoupling,
)
from jax_flows.bijectors.linear import Invertible1x1Conv
from jax_flows.bijectors.normalization import ActNorm
from jax_flows.bijectors.shapes import Split, Squeeze
from jax_flows.bijectors.structure import Chain, Invert
from jax_flows.distributions import Distribution, StandardNormal
from jax_flows.models.base import Model
from jax_flows.registry import register


@register
@dataclass(frozen=True)
class Glow(Model):
    """A multi-scale flow of images: Squeeze, steps of (ActNorm, Invertible1x1Conv, coupling), Split.

    Every level trades space for channels, runs its steps, and sends half of the channels to the base;
    the last level keeps all of them. z has the shape of x, each level's part at its own pixels.
    Standard normal base. Call ``initialize`` with a batch of data before training.

    Args:
        shape: (channels, height, width); 2^num_levels divides height and width.
        num_levels: number of levels.
        num_steps: number of steps of each level.
        hidden_channels: width of each coupling's ``ConvNet``.
        context_dim: width of the context (a class label as a one-hot vector), 0 for none.
        base: the distribution of the latent, a standard normal if not given.

    Raises:
        ValueError: for a shape that is not of an image or not divisible.

    Reference: Kingma and Dhariwal (2018), arXiv:1807.03039. Theirs has a learned normal base for each
    level and a scale of sigmoid(s + 2); here ActNorm and the last coupling do what the base's loc and
    scale would, and the scale is exp(tanh(s)), as in ``AffineCoupling``.

    Examples:
        >>> import jax, jax_flows
        >>> flow = jax_flows.Glow(shape=(1, 8, 8), num_levels=2, num_steps=1, hidden_channels=4)
        >>> variables = flow.init(jax.random.key(0))
        >>> jax.jit(flow.log_prob)(variables, jax.numpy.zeros((5, 1, 8, 8))).shape
        (5,)
    """

    shape: Sequence[int]
    num_levels: int = 3
    num_steps: int = 8
    hidden_channels: int = 64
    context_dim: int = 0

    def build_bijector(self) -> Bijector:
        checks.positive_int("Glow", num_levels=self.num_levels, num_steps=self.num_steps)
        shape = checks.image_shape("Glow", self.shape, 2 ** min(self.num_levels, 62))
        level = _glow_level(
            shape, self.num_levels, self.num_steps, self.hidden_channels, self.context_dim
        )
        return level

    def default_base(self) -> Distribution:
        return StandardNormal(tuple(self.shape))


def _glow_level(
    shape: Sequence[int], num_levels: int, num_steps: int, hidden_channels: int, context_dim: int
) -> Chain:
    channels, height, width = 4 * shape[0], shape[1] // 2, shape[2] // 2
    layers: list[Bijector] = [Squeeze()]
    for _ in range(num_steps):
        layers += [
            ActNorm((channels, height, width)),
            Invertible1x1Conv(channels),
            ConvAffineCoupling(channels, hidden_channels, context_dim=context_dim),
        ]
    if num_levels > 1:
        rest = (channels // 2, height, width)
        inner = _glow_level(rest, num_levels - 1, num_steps, hidden_channels, context_dim)
        layers.append(Split(inner))
    return Chain((*layers, Invert(Squeeze())))
