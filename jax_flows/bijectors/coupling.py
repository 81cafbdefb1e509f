"""Couplings: some dimensions stay fixed and condition an invertible map of the free ones."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks, masks
from flow_bridge.masks import Index, Mask
from jax_flows.bijectors.base import Bijector, Output, Variables, child, gather
from jax_flows.networks import MLP
from jax_flows.registry import register


class Partition:
    """Takes the last axis apart into fixed and free dimensions and puts it together again."""

    def __init__(self, mask: Mask, dim: int, context_dim: int) -> None:
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
        return x[..., self.index("fixed")], x[..., self.index("free")]

    def merge(self, fixed: Array, free: Array) -> Array:
        """The inverse of ``split``."""
        parts = [fixed, free] if self.fixed_leads else [free, fixed]
        if self.layout == "alternating":
            return jnp.stack(parts, -1).reshape(*fixed.shape[:-1], 2 * fixed.shape[-1])
        merged = jnp.concatenate(parts, -1)
        return merged[..., self.order] if self.layout == "mixed" else merged


class Coupling(Bijector):
    """What couplings share: a partition, and a conditioner that sees the fixed dimensions."""

    dim: int
    mask: Mask

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        checks.positive_int(name, dim=self.dim)
        checks.non_negative_int(name, context_dim=self.context_dim)
        _ = self.partition

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @cached_property
    def partition(self) -> Partition:
        """How the input is taken apart."""
        return Partition(self.mask, self.dim, self.context_dim)

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        fixed, free = self.partition.split(x)
        free, log_det = self._transform(free, self._condition(variables, fixed, context))
        return self.partition.merge(fixed, free), log_det

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
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
    """

    dim: int
    hidden_dims: tuple[int, ...] = (64, 64)
    mask: Mask = "even"
    activation: str = "leaky_relu"
    separate_networks: bool = True
    context_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.networks

    @cached_property
    def networks(self) -> dict[str, MLP]:
        """The conditioner: ``scale_net`` and ``shift_net``, or one ``network``."""
        if self.separate_networks:
            widths = (self.dim + self.context_dim, self.hidden_dims, self.dim)
            return {
                name: MLP(*widths, self.activation, parent=None)
                for name in ("scale_net", "shift_net")
            }
        in_dim = self.partition.num_fixed + self.context_dim
        out_dim = 2 * self.partition.num_free
        return {"network": MLP(in_dim, self.hidden_dims, out_dim, self.activation, parent=None)}

    def _init(self, key: Array, dtype: Any) -> Variables:
        keys = jax.random.split(key, len(self.networks))
        return gather(
            {
                name: network.init(k, jnp.zeros(network.in_dim, dtype))
                for k, (name, network) in zip(keys, self.networks.items(), strict=True)
            }
        )

    def _predict(self, variables: Variables, inputs: Array) -> tuple[Array, ...]:
        def network(name: str, *args: Any) -> Array:
            return jnp.asarray(self.networks[name].apply(child(variables, name), inputs, *args))

        if not self.separate_networks:
            s, t = jnp.split(network("network"), 2, -1)
            return jnp.tanh(s), t
        columns, rows = self.partition.index("inputs"), self.partition.index("free")
        s = network("scale_net", columns, rows)
        return jnp.tanh(s), network("shift_net", columns, rows)

    def _transform(self, free: Array, parameters: tuple[Array, ...]) -> Output:
        s, t = parameters
        return free * jnp.exp(s) + t, s.sum(-1)

    def _inverse_transform(self, free: Array, parameters: tuple[Array, ...]) -> Output:
        s, t = parameters
        return (free - t) * jnp.exp(-s), -s.sum(-1)
