"""Maps that change the shape of an event."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
from jax import Array

from flow_bridge import checks, images
from jax_flows.bijectors.base import Bijector, Shape
from jax_flows.registry import register
from jax_flows.variables import Output, Variables, child, gather


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

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        return {}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        self.map_shape(x.shape[-3:])
        *batch, channels, height, width = x.shape
        f = self.factor
        blocks = x.reshape(*batch, channels, height // f, f, width // f, f)
        blocks = jnp.moveaxis(blocks, (-3, -1), (-4, -3))
        z = blocks.reshape(*batch, channels * f**2, height // f, width // f)
        return z, jnp.zeros(batch, x.dtype)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
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
        ValueError: if ``bijector`` is not one of images, or changes their shape; for an odd number of
            channels.

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

    def map_shape(self, shape: Shape, inverse: bool = False) -> Shape:
        return images.kept_shape(shape, lambda inner: self.bijector.map_shape(inner, inverse))

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return self.bijector.context_dim

    @property
    def has_batch_statistics(self) -> bool:  # type: ignore[override]
        return self.bijector.has_batch_statistics

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        return gather({"bijector": self.bijector.init_variables(key, dtype)})

    def variable_shapes(self, dtype: Any) -> Variables:
        return gather({"bijector": self.bijector.variable_shapes(dtype)})

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        self.map_shape(x.shape[-3:])
        inner, outer = jnp.split(x, 2, -3)
        inner, log_det = self.bijector.map_forward(child(variables, "bijector"), inner, context)
        return jnp.concatenate([inner, outer], -3), log_det

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        self.map_shape(z.shape[-3:], inverse=True)
        inner, outer = jnp.split(z, 2, -3)
        inner, log_det = self.bijector.map_inverse(child(variables, "bijector"), inner, context)
        return jnp.concatenate([inner, outer], -3), log_det

    def map_forward_and_update(
        self, variables: Variables, x: Array, context: Array | None
    ) -> tuple[Array, Array, Variables]:
        inner, outer = jnp.split(x, 2, -3)
        inner, log_det, batch_stats = self.bijector.map_forward_and_update(
            child(variables, "bijector"), inner, context
        )
        batch_stats = {"bijector": batch_stats} if batch_stats else {}
        return jnp.concatenate([inner, outer], -3), log_det, batch_stats

    def map_and_initialize(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> tuple[Array, Variables]:
        inner, outer = jnp.split(x, 2, -3)
        own = child(variables, "bijector")
        inner, new = self.bijector.map_and_initialize(own, inner, context, inverse)
        return jnp.concatenate([inner, outer], -3), gather({"bijector": new})

    def map_and_set_statistics(
        self, variables: Variables, x: Array, context: Array | None, weights: Array | None
    ) -> tuple[Array, Variables]:
        inner, outer = jnp.split(x, 2, -3)
        inner, batch_stats = self.bijector.map_and_set_statistics(
            child(variables, "bijector"), inner, context, weights
        )
        batch_stats = {"bijector": batch_stats} if batch_stats else {}
        return jnp.concatenate([inner, outer], -3), batch_stats


@register
@dataclass(frozen=True)
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
        >>> import jax, jax_flows
        >>> bijector = jax_flows.Patches((1, 4, 4), patch_size=2)
        >>> x = jax.numpy.arange(16.0).reshape(1, 4, 4)
        >>> bijector.forward(bijector.init(jax.random.key(0)), x)[0][:6].tolist()
        [0.0, 1.0, 4.0, 5.0, 2.0, 3.0]
    """

    shape: Sequence[int]
    patch_size: int

    stackable = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("Patches", patch_size=self.patch_size)
        checks.image_shape("Patches", self.shape, self.patch_size)

    @property
    def event_shape(self) -> Shape:
        return tuple(self.shape)

    def map_shape(self, shape: Shape, inverse: bool = False) -> Shape:
        return tuple(self.shape) if inverse else (math.prod(self.shape),)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        return {}

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        *batch, channels, height, width = x.shape
        f = self.patch_size
        blocks = x.reshape(*batch, channels, height // f, f, width // f, f)
        z = jnp.moveaxis(blocks, (-4, -2), (-5, -4)).reshape(*batch, channels * height * width)
        return z, jnp.zeros(batch, x.dtype)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        batch, (channels, height, width) = z.shape[:-1], self.shape
        f = self.patch_size
        blocks = z.reshape(*batch, height // f, width // f, channels, f, f)
        x = jnp.moveaxis(blocks, (-5, -4), (-4, -2)).reshape(*batch, *self.shape)
        return x, jnp.zeros(batch, z.dtype)
