"""Couplings: some dimensions stay fixed and condition an invertible map of the free ones."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flow_bridge.splines import check_spline
from jax import Array

from flow_bridge import checks, masks
from flow_bridge.masks import Index, Mask
from jax_flows.bijectors.base import Bijector, Shape
from jax_flows.bijectors.splines import rational_quadratic
from jax_flows.networks import MLP, ConvNet
from jax_flows.numerics import sum_event
from jax_flows.registry import register
from jax_flows.variables import Output, Variables, child, gather


class Partition:
    """Takes an axis (-1, the channels of images: -3) apart into fixed and free, and puts it together."""

    def __init__(self, mask: Mask, dim: int, context_dim: int, axis: int = -1) -> None:
        self.axis = axis
        self._after: tuple[slice, ...] = (slice(None),) * (-1 - axis)
        partition = masks.Partition(mask, dim, context_dim)
        self.num_fixed, self.num_free = len(partition.fixed), len(partition.free)
        self.fixed_leads, self.layout = partition.fixed_leads, partition.layout
        self._indices = {
            name: masks.as_index(getattr(partition, name)) for name in ("fixed", "free", "inputs")
        }
        self.order = partition.order

    def index(self, name: str) -> Index:
        """Positions of the ``"fixed"`` or ``"free"`` dimensions or of a conditioner's ``"inputs"``."""
        return self._indices[name]

    def split(self, x: Array) -> tuple[Array, Array]:
        """The fixed and the free dimensions of x."""
        fixed, free = self.index("fixed"), self.index("free")
        after = self._after
        return x[(..., fixed, *after)], x[(..., free, *after)]

    def merge(self, fixed: Array, free: Array) -> Array:
        """The inverse of ``split``."""
        parts = [fixed, free] if self.fixed_leads else [free, fixed]
        if self.layout == "alternating":
            shape = list(fixed.shape)
            shape[self.axis] *= 2
            return jnp.stack(parts, self.axis).reshape(shape)
        merged = jnp.concatenate(parts, self.axis)
        return merged[(..., self.order, *self._after)] if self.layout == "mixed" else merged


class Coupling(Bijector):
    """What couplings share: a partition, and a conditioner that sees the fixed dimensions."""

    dim: int
    mask: Mask

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        checks.positive_int(name, dim=self.dim)
        checks.non_negative_int(name, context_dim=self.context_dim)
        _ = self.partition, self.networks

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @cached_property
    def partition(self) -> Partition:
        """How the input is taken apart."""
        return Partition(self.mask, self.dim, self.context_dim)

    @cached_property
    @abstractmethod
    def networks(self) -> dict[str, MLP]:
        """The conditioner's networks by name."""

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        keys = jax.random.split(key, len(self.networks))
        return gather(
            {
                name: network.init(k, jnp.zeros(network.in_dim, dtype))
                for k, (name, network) in zip(keys, self.networks.items(), strict=True)
            }
        )

    def _apply(self, name: str, variables: Variables, inputs: Array, *args: Any) -> Array:
        return jnp.asarray(self.networks[name].apply(child(variables, name), inputs, *args))

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        fixed, free = self.partition.split(x)
        free, log_det = self._transform(free, self._condition(variables, fixed, context))
        return self.partition.merge(fixed, free), log_det

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        fixed, free = self.partition.split(z)
        free, log_det = self._inverse_transform(free, self._condition(variables, fixed, context))
        return self.partition.merge(fixed, free), log_det

    def _condition(
        self, variables: Variables, fixed: Array, context: Array | None
    ) -> tuple[Array, ...]:
        inputs = fixed if context is None else jnp.concatenate([fixed, context], -1)
        return self._predict(variables, inputs)

    @abstractmethod
    def _predict(self, variables: Variables, inputs: Array) -> tuple[Array, ...]: ...

    @abstractmethod
    def _transform(self, free: Array, parameters: tuple[Array, ...]) -> Output: ...

    @abstractmethod
    def _inverse_transform(self, free: Array, parameters: tuple[Array, ...]) -> Output: ...


@register
@dataclass(frozen=True)
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

    dim: int
    hidden_dims: tuple[int, ...] = (64, 64)
    mask: Mask = "even"
    activation: str = "leaky_relu"
    context_dim: int = 0

    @cached_property
    def networks(self) -> dict[str, MLP]:
        in_dim, out_dim = self.partition.num_fixed + self.context_dim, self.partition.num_free
        return {"network": MLP(in_dim, self.hidden_dims, out_dim, self.activation, parent=None)}

    def _predict(self, variables: Variables, inputs: Array) -> tuple[Array, ...]:
        return (self._apply("network", variables, inputs),)

    def _transform(self, free: Array, parameters: tuple[Array, ...]) -> Output:
        return free + parameters[0], jnp.zeros(free.shape[:-1], free.dtype)

    def _inverse_transform(self, free: Array, parameters: tuple[Array, ...]) -> Output:
        return free - parameters[0], jnp.zeros(free.shape[:-1], free.dtype)


@register
@dataclass(frozen=True)
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
        >>> import jax, jax_flows
        >>> bijector = jax_flows.AffineCoupling(dim=3, mask="odd")
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 3)))
        >>> z.shape, log_det.shape
        ((5, 3), (5,))
    """

    dim: int
    hidden_dims: tuple[int, ...] = (64, 64)
    mask: Mask = "even"
    activation: str = "leaky_relu"
    separate_networks: bool = True
    context_dim: int = 0

    @cached_property
    def networks(self) -> dict[str, MLP]:
        if self.separate_networks:
            widths = (self.dim + self.context_dim, self.hidden_dims, self.dim)
            return {
                name: MLP(*widths, self.activation, parent=None)
                for name in ("scale_net", "shift_net")
            }
        in_dim = self.partition.num_fixed + self.context_dim
        out_dim = 2 * self.partition.num_free
        return {"network": MLP(in_dim, self.hidden_dims, out_dim, self.activation, parent=None)}

    def _predict(self, variables: Variables, inputs: Array) -> tuple[Array, ...]:
        if not self.separate_networks:
            s, t = jnp.split(self._apply("network", variables, inputs), 2, -1)
            return jnp.tanh(s), t
        used = self.partition.index("inputs"), self.partition.index("free")
        s = self._apply("scale_net", variables, inputs, *used)
        return jnp.tanh(s), self._apply("shift_net", variables, inputs, *used)

    def _transform(self, free: Array, parameters: tuple[Array, ...]) -> Output:
        s, t = parameters
        return free * jnp.exp(s) + t, s.sum(-1)

    def _inverse_transform(self, free: Array, parameters: tuple[Array, ...]) -> Output:
        s, t = parameters
        return (free - t) * jnp.exp(-s), -s.sum(-1)


@register
@dataclass(frozen=True)
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

    dim: int
    hidden_dims: tuple[int, ...] = (64, 64)
    mask: Mask = "even"
    num_bins: int = 8
    tail_bound: float = 5.0
    activation: str = "leaky_relu"
    context_dim: int = 0

    def __post_init__(self) -> None:
        check_spline("SplineCoupling", self.num_bins, self.tail_bound)
        super().__post_init__()

    @cached_property
    def networks(self) -> dict[str, MLP]:
        in_dim = self.partition.num_fixed + self.context_dim
        out_dim = self.partition.num_free * (3 * self.num_bins - 1)
        return {"network": MLP(in_dim, self.hidden_dims, out_dim, self.activation, parent=None)}

    def _predict(self, variables: Variables, inputs: Array) -> tuple[Array, ...]:
        raw = self._apply("network", variables, inputs)
        shape = (*inputs.shape[:-1], self.partition.num_free, 3 * self.num_bins - 1)
        return (raw.reshape(shape),)

    def _transform(self, free: Array, parameters: tuple[Array, ...]) -> Output:
        free, log_slope = rational_quadratic(free, parameters[0], self.tail_bound)
        return free, log_slope.sum(-1)

    def _inverse_transform(self, free: Array, parameters: tuple[Array, ...]) -> Output:
        free, log_slope = rational_quadratic(free, parameters[0], self.tail_bound, inverse=True)
        return free, log_slope.sum(-1)


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

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        image = jnp.zeros((self.network.in_channels, 1, 1), dtype)
        return gather({"network": self.network.init(key, image)})

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        fixed, free = self.partition.split(x)
        s, t = self._predict(variables, fixed, context)
        return self.partition.merge(fixed, free * jnp.exp(s) + t), sum_event(s, 3)

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
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
