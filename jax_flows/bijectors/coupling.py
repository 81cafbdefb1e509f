"""Couplings: some dimensions stay fixed and condition an invertible map of the free ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks, masks
from flow_bridge.attention import check_pixels
from flow_bridge.domains import Interval
from flow_bridge.masks import CHECKERBOARDS, Index, Mask
from flow_bridge.networks import Network, as_network
from jax_flows.bijectors.base import Conditioned, Shape, overrides
from jax_flows.networks.attention import ImageTransformer
from jax_flows.networks.conditioner import (
    build_conditioner,
    conditioner_shapes,
    init_conditioner,
    run_conditioner,
)
from jax_flows.networks.convolutional import ConvNet
from jax_flows.networks.mlp import MLP, SeparateMLPs
from jax_flows.numerics import as_int32, sum_event
from jax_flows.registry import register
from jax_flows.univariate.affine import AffineMap, ShiftMap
from jax_flows.univariate.base import UnivariateMap
from jax_flows.univariate.splines import spline_within
from jax_flows.variables import Output, Variables, gather


class Parts(NamedTuple):
    """x apart: the part of entry 0, and the other."""

    leading: Array
    other: Array


class Partition:
    """Takes an axis (-1, the channels of images: -3) apart into fixed and free, and puts it together."""

    def __init__(self, mask: Mask, dim: int, axis: int = -1) -> None:
        self.axis = axis
        self._after: tuple[slice, ...] = (slice(None),) * (-1 - axis)
        partition = masks.Partition(mask, dim)
        self.parts = *partition.parts, axis
        self.num_fixed, self.num_free = len(partition.fixed), len(partition.free)
        self.fixed_leads, self.layout = partition.fixed_leads, partition.layout
        self._indices = {
            name: masks.as_index(as_int32(getattr(partition, name))) for name in ("fixed", "free")
        }
        self.order = as_int32(partition.order)

    def index(self, name: str) -> Index:
        """Positions of the ``"fixed"`` or the ``"free"`` dimensions."""
        return self._indices[name]

    def split(self, x: Array | Parts) -> tuple[Array, Array]:
        """The fixed and the free dimensions of x."""
        if isinstance(x, Parts):
            return x if self.fixed_leads else x[::-1]
        fixed, free = self.index("fixed"), self.index("free")
        after = self._after
        return x[(..., fixed, *after)], x[(..., free, *after)]

    def apart(self, fixed: Array, free: Array) -> Parts:
        """In the order that does not depend on which of the two is fixed."""
        return Parts(fixed, free) if self.fixed_leads else Parts(free, fixed)

    def merge(self, fixed: Array, free: Array, select: bool = False) -> Array:
        """The inverse of ``split``."""
        parts = self.apart(fixed, free)
        if self.layout == "alternating" and select and self.axis == -1:
            # what XLA on a CPU interleaves, it computes number by number; gradients are slower of this
            first, second = (jnp.repeat(part, 2, -1) for part in parts)
            return jnp.where(jnp.arange(first.shape[-1]) % 2 == 0, first, second)
        if self.layout == "alternating":
            shape = list(fixed.shape)
            shape[self.axis] *= 2
            return jnp.stack(parts, self.axis).reshape(shape)
        merged = jnp.concatenate(parts, self.axis)
        return merged[(..., self.order, *self._after)] if self.layout == "mixed" else merged


class Checkerboard:
    """Takes images apart by the colours of a chessboard: both parts are as large as the image."""

    parts = None

    def __init__(self, mask: str, channels: int) -> None:
        self.first = CHECKERBOARDS.index(mask)
        self.num_fixed = self.num_free = channels

    def fixed_pixels(self, x: Array) -> Array:
        """Which pixels of x stay fixed, ``(height, width)``."""
        rows, columns = (jnp.arange(size) for size in x.shape[-2:])
        return (rows[:, None] + columns) % 2 == self.first

    def split(self, x: Array) -> tuple[Array, Array]:
        """x with zeros in place of the free pixels, and x."""
        return jnp.where(self.fixed_pixels(x), x, 0), x

    def merge(self, fixed: Array, free: Array, select: bool = False) -> Array:
        """The fixed pixels of one and the free ones of the other."""
        return jnp.where(self.fixed_pixels(free), fixed, free)


@register
@dataclass(frozen=True)
class Coupling(Conditioned):
    """z_free = map(x_free; parameters(x_fixed)); log|det| is the sum of the logs of the map's slopes.

    Args:
        dim: number of dimensions, at least 2; or the shape (channels, height, width) of images, of
            which height and width may be ``None``, for any.
        map: what happens to a free dimension, given its parameters.
        conditioner: the network that makes the parameters, ``Network(CLASS, ...)`` or a class; ``MLP``
            if not given, for images ``ConvNet``. It is built with the widths of its input (the fixed
            dimensions, or what ``map.features`` makes of them, and the context) and of its output
            (all of the first parameter, all of the second, ...). If its class names ``context_dim``
            among its arguments it is called with the two apart.
        mask: which dimensions or channels stay fixed, see ``flow_bridge.masks.coupling_mask``. For
            images also ``"checkerboard_even"`` and ``"checkerboard_odd"``: the pixels whose row and
            column have an even or an odd sum.
        context_dim: width of the context, 0 for none; every pixel sees all of it.

    Shapes: x and z ``(*batch, dim)`` or ``(*batch, channels, height, width)``, context ``(*batch,
    context_dim)``.

    Raises:
        ValueError: for a mask that fixes everything or nothing.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803.

    Examples:
        >>> import jax, jax_flows
        >>> network = jax_flows.Network(jax_flows.ResidualMLP, hidden_dim=16)
        >>> bijector = jax_flows.Coupling(3, jax_flows.SplineMap(num_bins=4), network)
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 3)))
        >>> z.shape, log_det.shape
        ((5, 3), (5,))
    """

    dim: int | Sequence[int | None]
    map: UnivariateMap
    conditioner: Network | type | None = None
    mask: Mask = "even"
    context_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = self.event_shape
        checks.instances("Coupling", "map", [self.map], UnivariateMap)
        checks.map_of("Coupling", self.map, shape)
        checks.non_negative_int("Coupling", context_dim=self.context_dim)
        default = ConvNet if len(shape) == 3 else MLP
        conditioner = as_network("Coupling", self.conditioner, default)
        object.__setattr__(self, "conditioner", conditioner)
        _ = self.partition
        if isinstance(self.network, ImageTransformer):
            check_pixels(self.network.num_tokens, shape[1:])

    @property
    def event_shape(self) -> Shape:
        return checks.coupling_shape("Coupling", self.dim)

    @property
    def domain(self) -> Interval:  # type: ignore[override]
        return self.map.domain

    @property
    def codomain(self) -> Interval:  # type: ignore[override]
        return self.map.codomain

    @cached_property
    def partition(self) -> Partition | Checkerboard:
        """How the input is taken apart."""
        shape = self.event_shape
        num_channels = checks.known(shape[0])
        if len(shape) == 3 and self.mask in CHECKERBOARDS:
            return Checkerboard(str(self.mask), num_channels)
        return Partition(self.mask, num_channels, -len(shape))

    @property
    def parts(self) -> Any:
        return None if overrides(self, Coupling) else self.partition.parts

    @cached_property
    def maps(self) -> tuple[UnivariateMap, UnivariateMap]:
        """The map of the fixed entries, by which the network sees them, and that of the free ones."""
        dim = self.map.dim
        halves = masks.halves(self.mask, checks.known(self.event_shape[0]), dim)
        fixed, free = (self.map if dim is None else self.map.part(half) for half in halves)
        return fixed, free

    @cached_property
    def network(self) -> nn.Module:
        """The conditioner."""
        num_inputs = self.maps[0].num_inputs(self.partition.num_fixed)
        # a mask picks dimensions, not features of them
        picked = {"mask": self.mask} if num_inputs == self.partition.num_fixed else {}
        return build_conditioner(
            "Coupling",
            as_network("Coupling", self.conditioner, MLP),
            num_inputs,
            self.partition.num_free * self.maps[1].num_parameters,
            len(self.event_shape),
            self.context_dim,
            num_parameters=self.maps[1].num_parameters,
            **picked,
        )

    def intervals(self, inverse: bool = False) -> list[Interval]:
        return self.map.intervals(inverse)

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        ones = (1,) * (len(self.event_shape) - 1)
        fixed = jnp.zeros((self.partition.num_fixed, *ones), dtype)
        inputs = self.maps[0].features(fixed, -len(self.event_shape))
        return gather({"network": init_conditioner(self, key, inputs, self.context_dim, dtype)})

    def variable_shapes(self, dtype: Any) -> Variables:
        return conditioner_shapes(self, dtype) or super().variable_shapes(dtype)

    def map_forward(self, variables: Variables, x: Any, context: Array | None) -> Output:
        return self._map(variables, x, context)

    def map_inverse(self, variables: Variables, z: Any, context: Array | None) -> Output:
        return self._map(variables, z, context, inverse=True)

    def _map(
        self, variables: Variables, x: Any, context: Array | None, inverse: bool = False
    ) -> tuple[Any, Array]:
        fixed, free = self.partition.split(x)
        free, log_det = self.couple(variables, fixed, free, context, inverse)
        if isinstance(self.partition, Partition) and isinstance(x, Parts):
            return self.partition.apart(fixed, free), log_det
        return self.partition.merge(fixed, free, select=inverse), log_det

    def map_score(
        self,
        variables: Variables,
        x: Array,
        score: Array,
        context: Array | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Array, Array, Array]:
        if isinstance(self.partition, Checkerboard) or overrides(self, Coupling):
            return super().map_score(variables, x, score, context, inverse, differentiable)
        step = self.maps[1].inverse if inverse else self.maps[1].forward
        fixed, free = self.partition.split(x)
        score_fixed, score_free = self.partition.split(score)
        parameters, pull_network = jax.vjp(
            lambda fixed: self.parameters_of(variables, fixed, context), fixed
        )
        (free, log_slope), pull = jax.vjp(step, free, parameters)
        ones, zeros = jnp.ones_like(log_slope), jnp.zeros_like(free)
        score_free = (score_free - pull((zeros, ones))[0]) * jnp.exp(-log_slope)
        (change,) = pull_network(pull((score_free, ones))[1])
        z, score = (
            self.partition.merge(*parts)
            for parts in ((fixed, free), (score_fixed - change, score_free))
        )
        score = score if differentiable else jax.lax.stop_gradient(score)
        return z, sum_event(log_slope, len(self.event_shape)), score

    def couple(
        self,
        variables: Variables,
        fixed: Array,
        free: Array,
        context: Array | None,
        inverse: bool = False,
    ) -> Output:
        """The free part mapped given the fixed one, and log|det| of that."""
        step = self.maps[1].inverse if inverse else self.maps[1].forward
        parameters = self.parameters_of(variables, fixed, context)
        if isinstance(self.partition, Checkerboard):
            # fixed pixels are mapped too, for nothing: from where they are the map might overflow
            pixels = self.partition.fixed_pixels(free)
            interval = self.map.codomain if inverse else self.map.domain
            free, log_slope = step(jnp.where(pixels, interval.middle, free), parameters)
            log_slope = jnp.where(pixels, 0, log_slope)
        else:
            free, log_slope = step(free, parameters)
        return free, sum_event(log_slope, len(self.event_shape))

    def parameters_of(self, variables: Variables, fixed: Array, context: Array | None) -> Any:
        """The parameters of every free entry, ``(*free part, num_parameters)``, or a tuple of them."""
        axis, map = -len(self.event_shape), self.maps[1]
        out = run_conditioner(self, variables, self.maps[0].features(fixed, axis), context)
        if isinstance(out, tuple):
            return out if map.separable else jnp.stack(out, -1)
        if map.separable:
            return tuple(jnp.split(out, map.num_parameters, axis))
        shape = list(out.shape)
        shape[axis:] = [
            map.num_parameters,
            out.shape[axis] // map.num_parameters,
            *shape[axis:][1:],
        ]
        return jnp.moveaxis(out.reshape(shape), axis - 1, -1)


@register
def AdditiveCoupling(
    dim: int,
    hidden_dims: Sequence[int] = (64, 64),
    mask: Mask = "even",
    activation: str = "leaky_relu",
    context_dim: int = 0,
) -> Coupling:
    """z_free = x_free + t, with t from the fixed dimensions; log|det| = 0, exactly.

    A ``Coupling`` with ``ShiftMap`` and ``MLP``.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dims: widths of the conditioner's hidden layers.
        mask: which dimensions stay fixed, see ``flow_bridge.masks.coupling_mask``.
        activation: a name in ``networks.activations.ACTIVATIONS``; ``leaky_relu`` has slope 0.2.
        context_dim: width of the context, 0 for none.

    Reference: Dinh et al. (2015), NICE, arXiv:1410.8516.
    """
    network = Network(MLP, hidden_dims=hidden_dims, activation=activation)
    return Coupling(dim, ShiftMap(), network, mask, context_dim)


@register
def AffineCoupling(
    dim: int,
    hidden_dims: Sequence[int] = (64, 64),
    mask: Mask = "even",
    activation: str = "leaky_relu",
    separate_networks: bool = True,
    context_dim: int = 0,
) -> Coupling:
    """z_free = x_free * exp(s) + t, with (s, t) from the fixed dimensions; log|det| = sum(s).

    s ends in tanh, so that each layer scales by a factor between 1/e and e. A ``Coupling`` with
    ``AffineMap("tanh", bound=1)`` and ``SeparateMLPs`` or ``MLP``.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dims: widths of the conditioner's hidden layers.
        mask: which dimensions stay fixed, see ``flow_bridge.masks.coupling_mask``.
        activation: a name in ``networks.activations.ACTIVATIONS``; ``leaky_relu`` has slope 0.2.
        separate_networks: two networks for t and s, each with weights for all ``dim`` dimensions on
            both sides, of which the mask picks the ones that are used (the layout and the parameter
            count of the original RealNVP); ``False``: one network from fixed to free dimensions.
        context_dim: width of the context, 0 for none.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803.

    Examples:
        >>> import jax, jax_flows
        >>> bijector = jax_flows.AffineCoupling(dim=3, mask="odd")
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 3)))
        >>> z.shape, log_det.shape
        ((5, 3), (5,))
    """
    cls = SeparateMLPs if separate_networks else MLP
    network = Network(cls, hidden_dims=hidden_dims, activation=activation)
    return Coupling(dim, AffineMap("tanh", bound=1.0), network, mask, context_dim)


@register
def SplineCoupling(
    dim: int,
    hidden_dims: Sequence[int] = (64, 64),
    mask: Mask = "even",
    num_bins: int = 8,
    tail_bound: float = 5.0,
    activation: str = "leaky_relu",
    context_dim: int = 0,
) -> Coupling:
    """z_free = spline(x_free), with one spline for each free dimension from the fixed ones.

    The splines are rational-quadratic on (-tail_bound, tail_bound) and the identity outside;
    log|det| is the sum of the logs of their derivatives. A ``Coupling`` with ``SplineMap`` and ``MLP``.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dims: widths of the conditioner's hidden layers.
        mask: which dimensions stay fixed, see ``flow_bridge.masks.coupling_mask``.
        num_bins: bins of each spline, below 1000.
        tail_bound: where the identity begins.
        activation: a name in ``networks.activations.ACTIVATIONS``; ``leaky_relu`` has slope 0.2.
        context_dim: width of the context, 0 for none.

    Reference: Durkan et al. (2019), Neural Spline Flows, arXiv:1906.04032.
    """
    network = Network(MLP, hidden_dims=hidden_dims, activation=activation)
    return Coupling(dim, spline_within(tail_bound, num_bins), network, mask, context_dim)


@register
def ConvAffineCoupling(
    channels: int,
    hidden_channels: int = 64,
    mask: Mask = "first_half",
    activation: str = "relu",
    context_dim: int = 0,
) -> Coupling:
    """z_free = x_free * exp(s) + t on channels, (s, t) a ``ConvNet`` of the fixed ones; log|det| = sum(s).

    s ends in tanh, so that each layer scales by a factor between 1/e and e. The network ends in zeros,
    so that the coupling starts as the identity. A ``Coupling`` of images of any size with
    ``AffineMap("tanh", bound=1)`` and ``ConvNet``.

    Args:
        channels: number of channels, at least 2.
        hidden_channels: width of the network.
        mask: which channels stay fixed, see ``flow_bridge.masks.coupling_mask``.
        activation: a name in ``networks.activations.ACTIVATIONS``; ``leaky_relu`` has slope 0.2.
        context_dim: width of the context, 0 for none; every pixel sees all of it.

    Shapes: x and z ``(*batch, channels, height, width)``, context ``(*batch, context_dim)``.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803; Kingma and Dhariwal (2018), Glow,
    arXiv:1807.03039.
    """
    checks.positive_int("ConvAffineCoupling", channels=channels)
    network = Network(ConvNet, hidden_channels=hidden_channels, activation=activation)
    shape = (channels, None, None)
    return Coupling(shape, AffineMap("tanh", bound=1.0), network, mask, context_dim)
