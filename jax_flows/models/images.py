"""Models of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flow_bridge import checks
from flow_bridge.masks import CHECKERBOARDS
from flow_bridge.networks import Network, as_network
from jax_flows.bijectors.base import Bijector
from jax_flows.bijectors.coupling import Coupling
from jax_flows.bijectors.shapes import Split, Squeeze
from jax_flows.bijectors.structure import Chain, Invert
from jax_flows.distributions import Distribution, StandardNormal
from jax_flows.models.base import Model, normalization_layers, permutation_layers
from jax_flows.networks.convolutional import ConvNet
from jax_flows.registry import register
from jax_flows.univariate.affine import AffineMap, ShiftMap
from jax_flows.univariate.base import UnivariateMap


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
        activation: of the networks, a name in ``networks.activations.ACTIVATIONS``.
        conditioner: another network of images in place of these, ``Network(CLASS, ...)`` or a class.
        scale, bound, offset: see ``AffineMap``; with ``scale=None`` the couplings only shift.
        normalization: what each step begins with, ``"act_norm"`` or ``None``.
        permutation: what mixes the channels: ``"lu"`` (``Invertible1x1Conv``), ``"reverse"``,
            ``"random"`` or ``None``.
        initial_scale: factor of the first weights of each network's last layer, see ``ConvNet``.
        map: of the couplings, in place of these; ``LogisticMixtureMap()`` as in Flow++, say.
        mask: what the couplings fix, ``"first_half"`` of the channels, or pixels, ``"checkerboard"``, whose
            colours take turns.
        base: the distribution of the latent, a standard normal if not given.

    Raises:
        ValueError: for a shape that is not of an image or not divisible, an unknown mask, and a map together
            with a scale, bound or offset.

    Reference: Kingma and Dhariwal (2018), arXiv:1807.03039. Theirs has a learned normal base for each
    level, here ``base=DiagonalNormal(shape)``, and a scale of sigmoid(s + 2), here ``scale="sigmoid"``
    with ``bound=1`` and ``offset=2``; the default is exp(tanh(s)), as in ``AffineCoupling``.

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
    activation: str = "relu"
    conditioner: Network | type | None = None
    scale: str | None = "tanh"
    bound: float = 1.0
    offset: float | None = None
    normalization: str | None = "act_norm"
    permutation: str | None = "lu"
    initial_scale: float = 0.0
    map: UnivariateMap | None = None
    mask: str = "first_half"

    def build_bijector(self) -> Bijector:
        checks.positive_int("Glow", num_levels=self.num_levels, num_steps=self.num_steps)
        shape = checks.image_shape("Glow", self.shape, 2 ** min(self.num_levels, 62))
        checks.one_of("Glow", "mask", self.mask, ("first_half", "checkerboard"))
        map: UnivariateMap = ShiftMap()
        if self.map is not None:
            checks.map_alone("Glow", self.scale, self.bound, self.offset)
            checks.instances("Glow", "map", [self.map], UnivariateMap)
            map = self.map
        elif self.scale is not None:
            map = AffineMap(self.scale, self.bound, self.offset)
        checks.initial_scale("Glow", self.initial_scale, self.conditioner, default=0)
        conditioner: Any = self.conditioner
        if conditioner is None:
            conditioner = Network(
                ConvNet,
                hidden_channels=self.hidden_channels,
                activation=self.activation,
                initial_scale=self.initial_scale,
            )
        return self._level(shape, 0, map, as_network("Glow", conditioner, ConvNet))

    def default_base(self) -> Distribution:
        return StandardNormal(tuple(self.shape))

    def _level(
        self, shape: Sequence[int], level: int, map: UnivariateMap, network: Network
    ) -> Chain:
        channels, height, width = 4 * shape[0], shape[1] // 2, shape[2] // 2
        layers: list[Bijector] = [Squeeze()]
        for i in range(self.num_steps):
            seed = level * self.num_steps + i
            mask = CHECKERBOARDS[i % 2] if self.mask == "checkerboard" else self.mask
            layers += [
                *normalization_layers("Glow", self.normalization, (channels, height, width)),
                *permutation_layers("Glow", self.permutation, channels, seed, 3),
                Coupling((channels, height, width), map, network, mask, self.context_dim),
            ]
        if level + 1 < self.num_levels:
            rest = (channels // 2, height, width)
            layers.append(Split(self._level(rest, level + 1, map, network)))
        return Chain((*layers, Invert(Squeeze())))
