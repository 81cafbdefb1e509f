"""Models made of transformers."""

from collections.abc import Sequence
from dataclasses import dataclass

from flow_bridge import attention as bridge
from flow_bridge import checks
from flow_bridge.architecture import architecture
from flow_bridge.networks import Network
from jax_flows.bijectors.base import Bijector
from jax_flows.bijectors.coupling import Coupling
from jax_flows.bijectors.shapes import Patches, Squeeze
from jax_flows.bijectors.structure import Chain, Invert
from jax_flows.bijectors.transformer import TransformerAutoregressive
from jax_flows.distributions import Distribution, StandardNormal
from jax_flows.flows import Flow
from jax_flows.models.base import Model
from jax_flows.networks.attention import ImageTransformer
from jax_flows.registry import build, register
from jax_flows.univariate.affine import AffineMap
from jax_flows.univariate.base import UnivariateMap


@register
@dataclass(frozen=True)
class TarFlow(Model):
    """Transformer autoregressive maps of tokens, their orders first to last and back by turns; standard
    normal base. The tokens are the patches of images, or the columns of vectors.

    A density takes one pass of each transformer, a sample one token after another, see
    ``TransformerAutoregressive``. z has the shape of x, each patch's part at its own pixels.

    Args:
        shape: (channels, height, width) of images, or the number of dimensions of vectors.
        patch_size: side of the square patches, which divides height and width; of vectors, how many
            dimensions one token has.
        num_layers: number of maps.
        hidden_dim: width of the tokens in each transformer, a multiple of ``num_heads``.
        num_blocks: blocks of each transformer, or a list of one number for each; deep and shallow ones, the
            deep one last, as it generates first, are STARFlow's.
        num_heads: heads of the attention.
        context_dim: width of the context (a class label as a one-hot vector), 0 for none.
        activation: of the transformers, a name in ``networks.activations.ACTIVATIONS``.
        map: what happens to an entry, any univariate map; by default
            ``AffineMap("tanh", bound=2, order="shift_divide")``.
        initial_scale: factor of the first weights of each transformer's last layer; with 0 most maps
            start as the identity.
        max_sweeps, sweep_size: see ``TransformerAutoregressive``.
        rotary, qk_norm, gated, context, context_tokens, checkpointing: as in ``networks.Transformer``.
        guidance: see ``guided``.
        base: the distribution of the latent, a standard normal if not given.

    Raises:
        ValueError: for a shape that is neither of an image nor of a vector, or not divisible.

    Reference: Zhai et al. (2024), arXiv:2412.06329. Theirs has the scale exp(a), here
    ``map=AffineMap("exp", order="shift_divide")``, and maps the first token of each layer by the
    identity.

    Examples:
        >>> import jax, jax_flows
        >>> flow = jax_flows.TarFlow((1, 4, 4), patch_size=2, num_layers=2, hidden_dim=8, num_blocks=1)
        >>> variables = flow.init(jax.random.key(0))
        >>> flow.log_prob(variables, jax.numpy.zeros((5, 1, 4, 4))).shape
        (5,)
    """

    shape: int | Sequence[int]
    patch_size: int = 1
    num_layers: int = 4
    hidden_dim: int = 64
    num_blocks: int | Sequence[int] = 2
    num_heads: int = 4
    context_dim: int = 0
    activation: str = "gelu"
    map: UnivariateMap | None = None
    initial_scale: float = 0.0
    max_sweeps: int | None = None
    rotary: bool = False
    qk_norm: bool = False
    gated: bool = False
    context: str = "add"
    context_tokens: int = 1
    checkpointing: bool = False
    guidance: bridge.Guidance = None
    sweep_size: int | None = None

    def build_bijector(self) -> Bijector:
        checks.positive_int("TarFlow", num_layers=self.num_layers)
        dim, token_dim, image = bridge.tokens_of("TarFlow", self.shape, self.patch_size)
        depths = bridge.depths("TarFlow", self.num_blocks, self.num_layers)
        map = self.map
        if map is None:
            map = AffineMap("tanh", bound=2.0, order="shift_divide")
        layers: list[Bijector] = [
            TransformerAutoregressive(
                dim,
                map,
                token_dim,
                self.hidden_dim,
                depth,
                self.num_heads,
                "reverse" if i % 2 else None,
                self.context_dim,
                self.activation,
                self.initial_scale,
                self.max_sweeps,
                self.rotary,
                self.qk_norm,
                self.gated,
                self.context,
                self.context_tokens,
                self.checkpointing,
                self.guidance,
                self.sweep_size,
            )
            for i, depth in enumerate(depths)
        ]
        if image is not None:
            patches = Patches(image, self.patch_size)
            layers = [patches, *layers, Invert(Patches(image, self.patch_size))]
        return Chain(tuple(layers))

    def default_base(self) -> Distribution:
        shape = bridge.shape_of("TarFlow", self.shape)
        return StandardNormal(shape[0] if len(shape) == 1 else shape)


@register
@dataclass(frozen=True)
class Jet(Model):
    """Couplings of patches of images, whose parameters come from transformers; standard normal base.

    By turns four couplings fix half of the channels of every patch (two random halves and their
    complements) and one every second patch of a checkerboard. A free entry becomes 2 sigma(s) (x - t): its
    scale stays below 2. Densities and samples both take one pass of each transformer.

    Args:
        shape: (channels, height, width) of images.
        patch_size: side of the square patches, which divides height and width.
        num_layers: number of couplings.
        hidden_dim: width of the tokens in each transformer, a multiple of ``num_heads``.
        num_blocks: blocks of each transformer.
        num_heads: heads of the attention.
        context_dim: width of the context (a class label as a one-hot vector), 0 for none.
        activation: of the transformers, a name in ``networks.activations.ACTIVATIONS``.
        map: what happens to a free entry, any univariate map; by default
            ``AffineMap("sigmoid", bound=2, order="shift_scale")``.
        initial_scale: factor of the first weights of each transformer's last layer; with 0 most maps
            start as the identity.
        rotary, qk_norm, gated, context, context_tokens, checkpointing: as in ``networks.Transformer``.
        base: the distribution of the latent, a standard normal if not given.

    Raises:
        ValueError: for a shape that is not of an image or not divisible, and patches of one number.

    Reference: Kolesnikov et al. (2024), arXiv:2412.15129. Theirs has stripes of patches beside
    checkerboards, and new random channels for each coupling.

    Examples:
        >>> import jax, jax_flows
        >>> flow = jax_flows.Jet((1, 4, 4), patch_size=2, num_layers=5, hidden_dim=8, num_blocks=1)
        >>> variables = flow.init(jax.random.key(0))
        >>> flow.log_prob(variables, jax.numpy.zeros((5, 1, 4, 4))).shape
        (5,)
    """

    shape: Sequence[int]
    patch_size: int = 2
    num_layers: int = 20
    hidden_dim: int = 64
    num_blocks: int = 2
    num_heads: int = 4
    context_dim: int = 0
    activation: str = "gelu"
    map: UnivariateMap | None = None
    initial_scale: float = 0.0
    rotary: bool = False
    qk_norm: bool = False
    gated: bool = False
    context: str = "add"
    context_tokens: int = 1
    checkpointing: bool = False

    def build_bijector(self) -> Bijector:
        checks.positive_int("Jet", num_layers=self.num_layers, patch_size=self.patch_size)
        channels, height, width = checks.image_shape("Jet", self.shape, self.patch_size)
        size = channels * self.patch_size**2, height // self.patch_size, width // self.patch_size
        network = Network(
            ImageTransformer,
            num_tokens=size[1] * size[2],
            hidden_dim=self.hidden_dim,
            num_blocks=self.num_blocks,
            num_heads=self.num_heads,
            activation=self.activation,
            initial_scale=self.initial_scale,
            rotary=self.rotary,
            qk_norm=self.qk_norm,
            gated=self.gated,
            context=self.context,
            context_tokens=self.context_tokens,
            checkpointing=self.checkpointing,
        )
        map = self.map
        if map is None:
            map = AffineMap("sigmoid", bound=2.0, order="shift_scale")
        masks = bridge.patch_masks(size[0])
        layers: list[Bijector] = [
            Coupling(size, map, network, masks[i % len(masks)], self.context_dim)
            for i in range(self.num_layers)
        ]
        squeeze = Squeeze(self.patch_size)
        return Chain((squeeze, *layers, Invert(Squeeze(self.patch_size))))

    def default_base(self) -> Distribution:
        return StandardNormal(tuple(self.shape))


def guided(flow: Flow, guidance: bridge.Guidance) -> Flow:
    """A flow of the same weights, made for sampling, whose transformers are guided: its context is two.

    With contexts c and u side by side, as a label and none, each transformer's map has the parameters
    p_c + w (p_c - p_u): samples move away from what is likely without c. It is a flow like any other, whose
    log-density is that of these samples, and which is the first one at w = 0.

    Args:
        flow: a ``TarFlow``, or a flow whose conditional parts all are ``TransformerAutoregressive``. Train it
            with a part of the contexts replaced by u.
        guidance: w, at least 0, or that of the first token generated and of the last, the others on a line.

    Raises:
        ValueError: for a flow without such parts, and for weights below 0.

    Reference: Ho and Salimans (2022), arXiv:2207.12598; Zhai et al. (2024), arXiv:2412.06329.
    """
    return build(bridge.guided_architecture("guided", architecture(flow), guidance))
