"""Bijectors of images, of shape ``(channels, height, width)``."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks, images
from flow_bridge.domains import Interval
from flow_bridge.masks import Mask
from jax_flows.bijectors.base import Bijector, Output, Variables, child, gather
from jax_flows.bijectors.coupling import Partition
from jax_flows.bijectors.elementwise import Elementwise
from jax_flows.bijectors.linear import lu_matrix, lu_solve
from jax_flows.networks import ConvNet
from jax_flows.numerics import matmul_precision, softplus, sum_event
from jax_flows.registry import register

Shape = tuple[int | None, ...]


@register
@dataclass(frozen=True)
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
        >>> import jax, jax_flows
        >>> bijector = jax_flows.Squeeze()
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 1, 4, 4)))
        >>> z.shape, log_det.shape
        ((5, 4, 2, 2), (5,))
    """

    factor: int = 2

    stackable = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("Squeeze", factor=self.factor)

    @property
    def event_shape(self) -> Shape:
        return (None, None, None)

    def map_shape(self, shape: Shape, inverse: bool = False) -> Shape:
        return images.squeezed_shape(shape, self.factor, inverse)

    def _init(self, key: Array, dtype: Any) -> Variables:
        return {}

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        self.map_shape(x.shape[-3:])
        *batch, channels, height, width = x.shape
        f = self.factor
        blocks = x.reshape(*batch, channels, height // f, f, width // f, f)
        blocks = jnp.moveaxis(blocks, (-3, -1), (-4, -3))
        z = blocks.reshape(*batch, channels * f**2, height // f, width // f)
        return z, jnp.zeros(batch, x.dtype)

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        self.map_shape(z.shape[-3:], inverse=True)
        *batch, channels, height, width = z.shape
        f = self.factor
        blocks = z.reshape(*batch, channels // f**2, f, f, height, width)
        blocks = jnp.moveaxis(blocks, (-4, -3), (-3, -1))
        x = blocks.reshape(*batch, channels // f**2, height * f, width * f)
        return x, jnp.zeros(batch, z.dtype)


@register
@dataclass(frozen=True)
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

    bijector: Bijector

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.instances("Split", "bijector", [self.bijector], Bijector)
        _ = self.event_shape

    @cached_property
    def event_shape(self) -> Shape:
        return images.split_shape(self.bijector.event_shape, self.bijector.latent_shape)

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return self.bijector.context_dim

    def _init(self, key: Array, dtype: Any) -> Variables:
        return gather({"bijector": self.bijector._init(key, dtype)})

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        inner, outer = jnp.split(x, 2, -3)
        inner, log_det = self.bijector._forward(child(variables, "bijector"), inner, context)
        return jnp.concatenate([inner, outer], -3), log_det

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        inner, outer = jnp.split(z, 2, -3)
        inner, log_det = self.bijector._inverse(child(variables, "bijector"), inner, context)
        return jnp.concatenate([inner, outer], -3), log_det

    def _forward_and_update(
        self, variables: Variables, x: Array, context: Array | None
    ) -> tuple[Array, Array, Variables]:
        inner, outer = jnp.split(x, 2, -3)
        inner, log_det, batch_stats = self.bijector._forward_and_update(
            child(variables, "bijector"), inner, context
        )
        batch_stats = {"bijector": batch_stats} if batch_stats else {}
        return jnp.concatenate([inner, outer], -3), log_det, batch_stats

    def _initialize(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> tuple[Array, Variables]:
        inner, outer = jnp.split(x, 2, -3)
        own = child(variables, "bijector")
        inner, new = self.bijector._initialize(own, inner, context, inverse)
        return jnp.concatenate([inner, outer], -3), gather({"bijector": new})


@register
@dataclass(frozen=True)
class Invertible1x1Conv(Bijector):
    """z[:, h, w] = P L U x[:, h, w] at every pixel; log|det| = height * width * trace(lu).

    The same L, U and P as ``LULinear``: it starts as the reversal of the channels, its log-det is an
    exact sum of weights and its inverse solves by triangular substitution.

    Args:
        channels: number of channels.

    Shapes: x and z ``(*batch, channels, height, width)``.

    Reference: Kingma and Dhariwal (2018), Glow, arXiv:1807.03039.
    """

    channels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("Invertible1x1Conv", channels=self.channels)

    @property
    def event_shape(self) -> Shape:
        return (self.channels, None, None)

    def _init(self, key: Array, dtype: Any) -> Variables:
        return {"params": {"lu": jnp.zeros((self.channels, self.channels), dtype)}}

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        matrix = lu_matrix(variables["params"]["lu"])
        z = jnp.tensordot(matrix, x, (1, x.ndim - 3), precision=matmul_precision())
        return jnp.moveaxis(z, 0, -3), self._log_det(variables, x)

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        x = lu_solve(variables["params"]["lu"], jnp.moveaxis(z, -3, -1))
        return jnp.moveaxis(x, -1, -3), -self._log_det(variables, z)

    def _log_det(self, variables: Variables, x: Array) -> Array:
        num_pixels = x.shape[-2] * x.shape[-1]
        return jnp.broadcast_to(jnp.trace(variables["params"]["lu"]) * num_pixels, x.shape[:-3])


@register
@dataclass(frozen=True)
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

    channels: int
    hidden_channels: int = 64
    mask: Mask = "first_half"
    activation: str = "relu"
    context_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("ConvAffineCoupling", channels=self.channels)
        checks.non_negative_int("ConvAffineCoupling", context_dim=self.context_dim)
        _ = self.network

    @property
    def event_shape(self) -> Shape:
        return (self.channels, None, None)

    @cached_property
    def partition(self) -> Partition:
        """How the channels are taken apart."""
        return Partition(self.mask, self.channels, 0, axis=-3)

    @cached_property
    def network(self) -> ConvNet:
        """The conditioner."""
        in_channels = self.partition.num_fixed + self.context_dim
        out_channels = 2 * self.partition.num_free
        return ConvNet(
            in_channels, self.hidden_channels, out_channels, self.activation, parent=None
        )

    def _init(self, key: Array, dtype: Any) -> Variables:
        image = jnp.zeros((self.network.in_channels, 1, 1), dtype)
        return gather({"network": self.network.init(key, image)})

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        fixed, free = self.partition.split(x)
        s, t = self._predict(variables, fixed, context)
        return self.partition.merge(fixed, free * jnp.exp(s) + t), sum_event(s, 3)

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        fixed, free = self.partition.split(z)
        s, t = self._predict(variables, fixed, context)
        return self.partition.merge(fixed, (free - t) * jnp.exp(-s)), -sum_event(s, 3)

    def _predict(
        self, variables: Variables, fixed: Array, context: Array | None
    ) -> tuple[Array, Array]:
        if context is not None:
            shape = *context.shape, *fixed.shape[-2:]
            planes = jnp.broadcast_to(context[..., None, None], shape)
            fixed = jnp.concatenate([fixed, planes], -3)
        out = jnp.asarray(self.network.apply(child(variables, "network"), fixed))
        s, t = jnp.split(out, 2, -3)
        return jnp.tanh(s), t


@register
@dataclass(frozen=True)
class Logit(Elementwise):
    """z = log(y / (1 - y)) with y = alpha + (1 - 2 alpha) x: images on [0, 1) to the real line.

    alpha > 0 keeps z finite at the ends of [0, 1]; the domain then reaches beyond them by
    alpha / (1 - 2 alpha). log|det| = sum(log(1 - 2 alpha) - log(y) - log(1 - y)).

    Args:
        alpha: at least 0, below 1/2.
        event_ndim: number of axes of one event, 3 for images.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803, section 4.1.
    """

    alpha: float = 0.05
    event_ndim: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.logit_alpha("Logit", self.alpha)

    @property
    def domain(self) -> Interval:  # type: ignore[override]
        margin = self.alpha / (1 - 2 * self.alpha)
        return Interval(-margin, 1 + margin)

    @property
    def log_slope(self) -> float:
        """The constant part of the log-det of one entry."""
        return images.log_slope(self.alpha)

    def _map(self, x: Array) -> Output:
        y, rest = (self.alpha + (1 - 2 * self.alpha) * part for part in (x, 1 - x))
        log_y, log_rest = jnp.log(y), jnp.log(rest)
        return log_y - log_rest, self.log_slope - log_y - log_rest

    def _inverse_map(self, z: Array) -> Output:
        x = (jax.nn.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)
        return x, -softplus(z) - softplus(-z) - self.log_slope


def dequantize(
    x: Array, num_levels: int, noise: Array | None = None, key: Array | None = None
) -> Array:
    """(x + noise) / num_levels on [0, 1): integer levels as a density can take them.

    Args:
        x: values 0, 1, ..., num_levels - 1, integer or floating point.
        num_levels: number of levels, 256 for bytes.
        noise: on [0, 1), of x's shape; drawn uniformly if not given, then in x's dtype if that is
            floating point, else in JAX's default one. The result has the noise's dtype.
        key: the source of randomness, needed where no noise is given.

    Reference: Theis et al. (2016), arXiv:1511.01844.

    Examples:
        >>> import jax.numpy as jnp, jax_flows
        >>> x = jax_flows.dequantize(jnp.array([0, 255]), 256, noise=jnp.array([0.0, 0.5]))
        >>> jax_flows.quantize(x, 256).tolist()
        [0.0, 255.0]
    """
    checks.positive_int("dequantize", num_levels=num_levels)
    if noise is None:
        if key is None:
            raise ValueError("dequantize needs noise or a key to draw it from.")
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        noise = jax.random.uniform(key, x.shape, x.dtype if floating else jnp.result_type(float))
    y = (x + noise) / num_levels
    # the sum may round up to num_levels
    return jnp.where(y >= 1, 1 - jnp.finfo(y.dtype).eps / 2, y)


def quantize(x: Array, num_levels: int) -> Array:
    """The level of x on [0, 1]: floor(x * num_levels), kept within 0 and num_levels - 1."""
    checks.positive_int("quantize", num_levels=num_levels)
    return jnp.clip(jnp.floor(x * num_levels), 0, num_levels - 1)
