"""Couplings: some dimensions stay fixed and condition an invertible map of the free ones."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flow_bridge import checks, masks
from flow_bridge.masks import Mask
from flow_bridge.splines import check_spline
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.bijectors.splines import rational_quadratic
from torch_flows.networks import MLP, ConvNet
from torch_flows.numerics import sum_event
from torch_flows.registry import register


class Partition(nn.Module):
    """Takes an axis (-1, the channels of images: -3) apart into fixed and free, and puts it together."""

    order: Tensor

    def __init__(self, mask: Mask, dim: int, context_dim: int, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis
        self._after: tuple[slice, ...] = (slice(None),) * (-1 - axis)
        partition = masks.Partition(mask, dim, context_dim)
        self.num_fixed, self.num_free = len(partition.fixed), len(partition.free)
        self.fixed_leads, self.layout = partition.fixed_leads, partition.layout
        self._slices: dict[str, slice] = {}
        for name in ("fixed", "free", "inputs"):
            index = masks.as_index(getattr(partition, name))
            if isinstance(index, slice):
                self._slices[name] = index
            else:
                self.register_buffer(name, torch.from_numpy(index), persistent=False)
        if self.layout == "mixed":
            self.register_buffer("order", torch.from_numpy(partition.order), persistent=False)

    def index(self, name: str) -> slice | Tensor:
        """Positions of the ``"fixed"`` or ``"free"`` dimensions or of a conditioner's ``"inputs"``."""
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


class Coupling(Bijector):
    """What couplings share: a partition, and a conditioner that sees the fixed dimensions.

    A subclass writes ``_predict``, ``_transform`` and ``_inverse_transform``; a chain of couplings of
    the same parts calls these without putting x together in between.
    """

    def __init__(self, dim: int, mask: Mask, context_dim: int) -> None:
        super().__init__()
        name = type(self).__name__
        checks.positive_int(name, dim=dim)
        checks.non_negative_int(name, context_dim=context_dim)
        self.dim = dim
        self.mask = tuple(mask) if isinstance(mask, list) else mask
        self.context_dim = context_dim
        self.event_shape = (dim,)
        self.partition = Partition(self.mask, dim, context_dim)
        self.parts = masks.Partition(self.mask, dim).parts

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        fixed, free = self.partition.split(x)
        free, log_det = self.couple(fixed, free, context)
        return self.partition.merge(fixed, free), log_det

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        fixed, free = self.partition.split(z)
        free, log_det = self.couple(fixed, free, context, inverse=True)
        return self.partition.merge(fixed, free), log_det

    def couple(
        self, fixed: Tensor, free: Tensor, context: Tensor | None, inverse: bool = False
    ) -> Output:
        parameters = self._condition(fixed, context)
        return (self._inverse_transform if inverse else self._transform)(free, parameters)

    def _condition(self, fixed: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        return self._predict(fixed if context is None else torch.cat([fixed, context], -1))

    @abstractmethod
    def _predict(self, inputs: Tensor) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def _transform(self, free: Tensor, parameters: tuple[Tensor, ...]) -> Output: ...

    @abstractmethod
    def _inverse_transform(self, free: Tensor, parameters: tuple[Tensor, ...]) -> Output: ...


@register
class AdditiveCoupling(Coupling):
    """z_free = x_free + t, with t from the fixed dimensions; log|det| = 0, exactly.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dims: widths of the conditioner's hidden layers.
        mask: which dimensions stay fixed, see ``flow_bridge.masks.coupling_mask``.
        activation: a name in ``networks.ACTIVATIONS``; ``leaky_relu`` has slope 0.2.
        context_dim: width of the context, 0 for none.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for a mask that fixes everything or nothing.

    Reference: Dinh et al. (2015), NICE, arXiv:1410.8516.
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        mask: Mask = "even",
        activation: str = "leaky_relu",
        context_dim: int = 0,
    ) -> None:
        super().__init__(dim, mask, context_dim)
        self.hidden_dims = tuple(hidden_dims)
        self.activation = activation
        in_dim = self.partition.num_fixed + context_dim
        self.network = MLP(in_dim, hidden_dims, self.partition.num_free, activation)

    def _predict(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.network(inputs),)

    def _transform(self, free: Tensor, parameters: tuple[Tensor, ...]) -> Output:
        return free + parameters[0], free.new_zeros(free.shape[:-1])

    def _inverse_transform(self, free: Tensor, parameters: tuple[Tensor, ...]) -> Output:
        return free - parameters[0], free.new_zeros(free.shape[:-1])


@register
class AffineCoupling(Coupling):
    """z_free = x_free * exp(s) + t, with (s, t) from the fixed dimensions; log|det| = sum(s).

    s ends in tanh, so that each layer scales by a factor between 1/e and e.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dims: widths of the conditioner's hidden layers.
        mask: which dimensions stay fixed, see ``flow_bridge.masks.coupling_mask``.
        activation: a name in ``networks.ACTIVATIONS``; ``leaky_relu`` has slope 0.2.
        separate_networks: two networks for s and t, each with weights for all ``dim`` dimensions on
            both sides, of which the mask picks the ones that are used (the layout and the parameter
            count of the original RealNVP); ``False``: one network from fixed to free dimensions.
        context_dim: width of the context, 0 for none.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for a mask that fixes everything or nothing.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803.

    Examples:
        >>> import torch, torch_flows
        >>> bijector = torch_flows.AffineCoupling(dim=3, mask="odd")
        >>> z, log_det = bijector.forward(torch.zeros(5, 3))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 3), (5,))
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        mask: Mask = "even",
        activation: str = "leaky_relu",
        separate_networks: bool = True,
        context_dim: int = 0,
    ) -> None:
        super().__init__(dim, mask, context_dim)
        self.hidden_dims = tuple(hidden_dims)
        self.activation = activation
        self.separate_networks = separate_networks
        if separate_networks:
            self.scale_net = MLP(dim + context_dim, hidden_dims, dim, activation)
            self.shift_net = MLP(dim + context_dim, hidden_dims, dim, activation)
        else:
            in_dim = self.partition.num_fixed + context_dim
            self.network = MLP(in_dim, hidden_dims, 2 * self.partition.num_free, activation)

    def _predict(self, inputs: Tensor) -> tuple[Tensor, ...]:
        if not self.separate_networks:
            s, t = self.network(inputs).chunk(2, -1)
            return s.tanh(), t
        columns, rows = self.partition.index("inputs"), self.partition.index("free")
        s = self.scale_net(inputs, columns, rows)
        return s.tanh(), self.shift_net(inputs, columns, rows)

    def _transform(self, free: Tensor, parameters: tuple[Tensor, ...]) -> Output:
        s, t = parameters
        return free * s.exp() + t, s.sum(-1)

    def _inverse_transform(self, free: Tensor, parameters: tuple[Tensor, ...]) -> Output:
        s, t = parameters
        return (free - t) * (-s).exp(), -s.sum(-1)


@register
class SplineCoupling(Coupling):
    """z_free = spline(x_free), with one spline for each free dimension from the fixed ones.

    The splines are rational-quadratic on (-tail_bound, tail_bound) and the identity outside;
    log|det| is the sum of the logs of their derivatives.

    Args:
        dim: number of dimensions, at least 2.
        hidden_dims: widths of the conditioner's hidden layers.
        mask: which dimensions stay fixed, see ``flow_bridge.masks.coupling_mask``.
        num_bins: bins of each spline, below 1000.
        tail_bound: where the identity begins.
        activation: a name in ``networks.ACTIVATIONS``; ``leaky_relu`` has slope 0.2.
        context_dim: width of the context, 0 for none.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for a mask that fixes everything or nothing.

    Reference: Durkan et al. (2019), Neural Spline Flows, arXiv:1906.04032.
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        mask: Mask = "even",
        num_bins: int = 8,
        tail_bound: float = 5.0,
        activation: str = "leaky_relu",
        context_dim: int = 0,
    ) -> None:
        super().__init__(dim, mask, context_dim)
        check_spline("SplineCoupling", num_bins, tail_bound)
        self.hidden_dims = tuple(hidden_dims)
        self.num_bins = num_bins
        self.tail_bound = tail_bound
        self.activation = activation
        in_dim = self.partition.num_fixed + context_dim
        out_dim = self.partition.num_free * (3 * num_bins - 1)
        self.network = MLP(in_dim, hidden_dims, out_dim, activation)

    def _predict(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.network(inputs).unflatten(-1, (-1, 3 * self.num_bins - 1)),)

    def _transform(self, free: Tensor, parameters: tuple[Tensor, ...]) -> Output:
        free, log_slope = rational_quadratic(free, parameters[0], self.tail_bound)
        return free, log_slope.sum(-1)

    def _inverse_transform(self, free: Tensor, parameters: tuple[Tensor, ...]) -> Output:
        free, log_slope = rational_quadratic(free, parameters[0], self.tail_bound, inverse=True)
        return free, log_slope.sum(-1)


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

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        fixed, free = self.partition.split(x)
        s, t = self._predict(fixed, context)
        return self.partition.merge(fixed, torch.addcmul(t, free, s.exp())), sum_event(s, 3)

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        fixed, free = self.partition.split(z)
        s, t = self._predict(fixed, context)
        return self.partition.merge(fixed, (free - t) * (-s).exp()), -sum_event(s, 3)

    def _predict(self, fixed: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if context is not None:
            planes = context[..., None, None].expand(*context.shape, *fixed.shape[-2:])
            fixed = torch.cat([fixed, planes], -3)
        s, t = self.network(fixed).chunk(2, -3)
        return s.tanh(), t
