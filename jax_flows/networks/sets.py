"""Networks of sets, whose elements have no order."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks
from flow_bridge.architecture import count_construction
from jax_flows.networks.activations import ACTIVATIONS
from jax_flows.networks.mlp import MLP, layer_shapes
from jax_flows.registry import register_network
from jax_flows.variables import Variables


@register_network
class DeepSet(nn.Module):
    """rho(mean_i phi(x_i)) of a set of elements x_i, phi and rho being ``MLP``s: no order matters.

    The elements stand one after the other, ``(*batch, num_elements * element_dim)`` to ``(*batch,
    out_dim)``: ``x.reshape(*batch, -1)`` of an array ``(*batch, num_elements, element_dim)``. So a set
    is a context like any other, in ``fit``, in tables and in files.

    Args:
        in_dim: width of the input, a multiple of ``element_dim``.
        out_dim: width of the output.
        element_dim: numbers per element.
        set_dim: how many numbers phi makes of an element.
        hidden_dims: widths of the hidden layers of both networks.
        activation: a name in ``ACTIVATIONS``.
        padded: for sets of different sizes: the first number of an element is above 0 if the element
            counts, else it is padding, of which nothing is seen. An empty set has the mean 0.

    Raises:
        ValueError: for an unknown activation, a width below 1, and an ``in_dim`` that holds no whole
            number of elements.

    Reference: Zaheer et al. (2017), Deep Sets, arXiv:1703.06114.

    Examples:
        >>> import jax, jax_flows
        >>> net = jax_flows.DeepSet(in_dim=12, out_dim=2, element_dim=3)
        >>> x = jax.random.normal(jax.random.key(0), (5, 4, 3))
        >>> out = net.apply(net.init(jax.random.key(1), x[0].ravel()), x.reshape(5, 12))
        >>> out.shape
        (5, 2)
    """

    event_ndim = 1

    in_dim: int
    out_dim: int
    element_dim: int = 1
    set_dim: int = 64
    hidden_dims: Sequence[int] = (64,)
    activation: str = "leaky_relu"
    padded: bool = False

    def __post_init__(self) -> None:
        checks.set_network(
            "DeepSet", self.in_dim, self.out_dim, self.element_dim, self.set_dim, self.padded
        )
        checks.hidden_widths("DeepSet", self.hidden_dims)
        count_construction(2 * len(self.hidden_dims))  # of phi and rho, which Flax builds later
        checks.one_of("DeepSet", "activation", self.activation, ACTIVATIONS)
        super().__post_init__()

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of the variables, without a trace."""
        phi = self.element_dim - self.padded, *self.hidden_dims, self.set_dim
        rho = self.set_dim, *self.hidden_dims, self.out_dim
        return {"params": {"phi": layer_shapes(phi, dtype), "rho": layer_shapes(rho, dtype)}}

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Args: x, the elements one after the other."""
        given = self.hidden_dims, self.activation
        phi = MLP(self.element_dim - self.padded, self.set_dim, *given, name="phi")
        rho = MLP(self.set_dim, self.out_dim, *given, name="rho")
        elements = x.reshape(*x.shape[:-1], self.in_dim // self.element_dim, self.element_dim)
        if not self.padded:
            return rho(phi(elements).mean(-2))
        counts = elements[..., :1] > 0
        seen = phi(jnp.where(counts, elements[..., 1:], 0))
        total = jnp.where(counts, seen, 0).sum(-2)
        return rho(total / counts.sum(-2).clip(1).astype(x.dtype))
