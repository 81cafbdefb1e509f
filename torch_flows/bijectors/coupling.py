"""Couplings: some dimensions stay fixed and condition an invertible map of the free ones."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flow_bridge import checks, masks
from flow_bridge.attention import check_pixels
from flow_bridge.domains import Interval
from flow_bridge.masks import CHECKERBOARDS, Mask
from flow_bridge.networks import Network, as_network
from torch_flows.bijectors.base import (
    Conditioned,
    Output,
    evaluation,
    overrides,
    score_of_entries,
    tracked,
    vjp,
)
from torch_flows.networks.attention import ImageTransformer
from torch_flows.networks.conditioner import build_conditioner, run_conditioner
from torch_flows.networks.convolutional import ConvNet
from torch_flows.networks.mlp import MLP, SeparateMLPs
from torch_flows.numerics import sum_event
from torch_flows.registry import register
from torch_flows.univariate.affine import AffineMap, ShiftMap
from torch_flows.univariate.base import UnivariateMap
from torch_flows.univariate.splines import spline_within


class Partition(nn.Module):
    """Takes an axis (-1, the channels of images: -3) apart into fixed and free, and puts it together."""

    order: Tensor

    def __init__(self, mask: Mask, dim: int, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis
        self._after: tuple[slice, ...] = (slice(None),) * (-1 - axis)
        partition = masks.Partition(mask, dim)
        self.parts = *partition.parts, axis
        self.num_fixed, self.num_free = len(partition.fixed), len(partition.free)
        self.fixed_leads, self.layout = partition.fixed_leads, partition.layout
        self._slices: dict[str, slice] = {}
        for name in ("fixed", "free"):
            index = masks.as_index(getattr(partition, name))
            if isinstance(index, slice):
                self._slices[name] = index
            else:
                self.register_buffer(name, torch.as_tensor(index), persistent=False)
        if self.layout == "mixed":
            self.register_buffer("order", torch.as_tensor(partition.order), persistent=False)

    def index(self, name: str) -> slice | Tensor:
        """Positions of the ``"fixed"`` or the ``"free"`` dimensions."""
        return self._slices[name] if name in self._slices else getattr(self, name)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The fixed and the free dimensions of x."""
        fixed, free = self.index("fixed"), self.index("free")
        after = self._after
        return x[(..., fixed, *after)], x[(..., free, *after)]

    def merge(self, fixed: Tensor, free: Tensor) -> Tensor:
        """The inverse of ``split``."""
        parts = [fixed, free] if self.fixed_leads else [free, fixed]
        if self.layout == "alternating":
            return torch.stack(parts, self.axis).flatten(self.axis - 1, self.axis)
        merged = torch.cat(parts, self.axis)
        return merged.index_select(self.axis, self.order) if self.layout == "mixed" else merged


class Checkerboard(nn.Module):
    """Takes images apart by the colours of a chessboard: both parts are as large as the image."""

    parts = None

    def __init__(self, mask: str, channels: int) -> None:
        super().__init__()
        self.first = CHECKERBOARDS.index(mask)
        self.num_fixed = self.num_free = channels

    def fixed_pixels(self, x: Tensor) -> Tensor:
        """Which pixels of x stay fixed, ``(height, width)``."""
        rows, columns = (torch.arange(size, device=x.device) for size in x.shape[-2:])
        return (rows[:, None] + columns) % 2 == self.first

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x with zeros in place of the free pixels, and x."""
        return torch.where(self.fixed_pixels(x), x, 0), x

    def merge(self, fixed: Tensor, free: Tensor) -> Tensor:
        """The fixed pixels of one and the free ones of the other."""
        return torch.where(self.fixed_pixels(free), fixed, free)


@register
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
        >>> import torch, torch_flows
        >>> network = torch_flows.Network(torch_flows.ResidualMLP, hidden_dim=16)
        >>> bijector = torch_flows.Coupling(3, torch_flows.SplineMap(num_bins=4), network)
        >>> z, log_det = bijector.forward(torch.zeros(5, 3))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 3), (5,))
    """

    def __init__(
        self,
        dim: int | Sequence[int | None],
        map: UnivariateMap,
        conditioner: Network | type | None = None,
        mask: Mask = "even",
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        shape = checks.coupling_shape("Coupling", dim)
        checks.instances("Coupling", "map", [map], UnivariateMap)
        checks.map_of("Coupling", map, shape)
        checks.non_negative_int("Coupling", context_dim=context_dim)
        self.dim = dim if isinstance(dim, int) else tuple(dim)
        self.map = map
        images = len(shape) == 3
        self.conditioner = as_network("Coupling", conditioner, ConvNet if images else MLP)
        self.mask = tuple(mask) if isinstance(mask, list) else mask
        self.context_dim = context_dim
        self.event_shape = shape
        self.domain, self.codomain = map.domain, map.codomain
        num_channels = checks.known(shape[0])
        self.partition: Partition | Checkerboard
        if images and self.mask in CHECKERBOARDS:
            self.partition = Checkerboard(str(self.mask), num_channels)
        else:
            self.partition = Partition(self.mask, num_channels, -len(shape))
        self.parts = self.partition.parts
        self.context_apart = self.conditioner.takes("context_dim")
        self._halves = map, self._halves_of(map)
        num_inputs = self.maps[0].num_inputs(self.partition.num_fixed)
        # a mask picks dimensions, not features of them
        picked = {"mask": self.mask} if num_inputs == self.partition.num_fixed else {}
        self.network = build_conditioner(
            "Coupling",
            self.conditioner,
            num_inputs,
            self.partition.num_free * self.maps[1].num_parameters,
            len(shape),
            context_dim,
            num_parameters=self.maps[1].num_parameters,
            **picked,
        )
        if isinstance(self.network, ImageTransformer):
            check_pixels(self.network.num_tokens, shape[1:])

    @property
    def maps(self) -> tuple[UnivariateMap, UnivariateMap]:
        """The map of the fixed entries, by which the network sees them, and that of the free ones."""
        map, halves = self._halves
        return halves if map is self.map else self._halves_of(self.map)

    def _halves_of(self, map: UnivariateMap) -> tuple[UnivariateMap, UnivariateMap]:
        if map.dim is None:
            return map, map
        fixed, free = masks.halves(self.mask, checks.known(self.event_shape[0]), map.dim)
        return map.part(fixed), map.part(free)

    def intervals(self, inverse: bool = False) -> list[Interval]:
        return self.map.intervals(inverse)

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        fixed, free = self.partition.split(x)
        free, log_det = self.couple(fixed, free, context)
        return self.partition.merge(fixed, free), log_det

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        fixed, free = self.partition.split(z)
        free, log_det = self.couple(fixed, free, context, inverse=True)
        return self.partition.merge(fixed, free), log_det

    def map_score(
        self,
        x: Tensor,
        score: Tensor,
        context: Tensor | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.parts is None or self.is_trained or overrides(self, Coupling):
            return super().map_score(x, score, context, inverse, differentiable)
        step = self.maps[1].inverse if inverse else self.maps[1].forward
        with torch.enable_grad():
            fixed, free = self.partition.split(x)
            fixed = tracked(fixed, keep_graph=True)
            parameters = self.parameters_of(fixed, context)
            score_fixed, score_free = self.partition.split(score)
            free, log_slope, score_free = score_of_entries(
                lambda free: step(free, parameters), free, score_free, differentiable
            )
            weights = score_free, torch.ones_like(log_slope)
            change = vjp((free, log_slope), fixed, weights, differentiable)
        z, score = (
            self.partition.merge(*parts)
            for parts in ((fixed, free), (score_fixed - change, score_free))
        )
        return z, sum_event(log_slope, len(self.event_shape)), score

    def couple(
        self, fixed: Tensor, free: Tensor, context: Tensor | None, inverse: bool = False
    ) -> Output:
        """The free part mapped given the fixed one, and log|det| of that."""
        if inverse and self.is_trained:
            with evaluation(self):
                return self.couple(fixed, free, context, inverse)
        map = self.maps[1]
        step = map.inverse if inverse else map.forward
        parameters = self.parameters_of(fixed, context)
        checkerboard: Any = self.partition if self.parts is None else None
        if checkerboard is not None:
            # fixed pixels are mapped too, for nothing: from where they are the map might overflow
            pixels = checkerboard.fixed_pixels(free)
            interval = self.map.codomain if inverse else self.map.domain
            free, log_slope = step(torch.where(pixels, interval.middle, free), parameters)
            log_slope = log_slope.masked_fill(pixels, 0)
        else:
            free, log_slope = step(free, parameters)
        return free, sum_event(log_slope, len(self.event_shape))

    def parameters_of(self, fixed: Tensor, context: Tensor | None) -> Any:
        """The parameters of every free entry, ``(*free part, num_parameters)``, or a tuple of them."""
        axis, (seen_by, map) = -len(self.event_shape), self.maps
        out = run_conditioner(self, seen_by.features(fixed, axis), context)
        if isinstance(out, tuple):
            if any(part.dtype != fixed.dtype for part in out):
                out = tuple([part.to(fixed.dtype) for part in out])
            return out if map.separable else torch.stack(out, -1)
        out = out if out.dtype == fixed.dtype else out.to(fixed.dtype)
        if map.separable:
            return out.chunk(map.num_parameters, axis)
        out = out.unflatten(axis, (map.num_parameters, -1))
        return out.movedim(axis - 1, -1)


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
        >>> import torch, torch_flows
        >>> bijector = torch_flows.AffineCoupling(dim=3, mask="odd")
        >>> z, log_det = bijector.forward(torch.zeros(5, 3))
        >>> tuple(z.shape), tuple(log_det.shape)
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
