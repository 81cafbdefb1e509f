"""Networks each of whose outputs sees its own input only at the end."""

from collections.abc import Sequence

from flax import linen as nn
from jax import Array

from flow_bridge import checks
from jax_flows.networks.activations import ACTIVATIONS
from jax_flows.networks.masked import MaskedMLP
from jax_flows.registry import register_network


@register_network
class HollowMLP(nn.Module):
    """A velocity whose trace costs one pass: v_i = sum_k u_ik phi(c_ik + w_ik x_i) + b_i.

    The c_i are sums of two ``MaskedMLP``, of the entries before i and of those after it, so that they do
    not see x_i, and the diagonal of the Jacobian is sum_k u_ik w_ik phi'. A field of a
    ``ContinuousBijector``, which it starts as the identity; its Jacobian is any matrix.

    Args:
        in_dim, out_dim: the number of dimensions, twice.
        hidden_dims: widths of the hidden layers of the masked networks.
        width: how many k there are.
        activation: a name in ``ACTIVATIONS``.
        context_dim: width of the context, 0 for none.

    Raises:
        ValueError: for two different widths, and for what ``MaskedMLP`` refuses.

    Reference: Chen and Duvenaud (2019), Neural Networks with Cheap Differential Operators,
    arXiv:1912.03579.
    """

    event_ndim = 1
    hollow = True

    in_dim: int
    out_dim: int
    hidden_dims: Sequence[int] = (64, 64)
    width: int = 16
    activation: str = "tanh"
    context_dim: int = 0

    def __post_init__(self) -> None:
        checks.positive_int("HollowMLP", width=self.width)
        checks.square("HollowMLP", self.in_dim, self.out_dim)
        checks.one_of("MLP", "activation", self.activation, ACTIVATIONS)
        super().__post_init__()

    def setup(self) -> None:
        given = self.in_dim, self.width, self.hidden_dims, self.activation
        self.before = MaskedMLP(*given, None, None, self.context_dim)
        self.after = MaskedMLP(*given, None, "reverse", self.context_dim)
        shape = self.in_dim, self.width
        self.own = self.param("own", nn.initializers.normal(1.0), shape)
        self.out = self.param("out", nn.initializers.zeros, shape)
        self.shift = self.param("shift", nn.initializers.zeros, (self.in_dim,))

    def __call__(
        self, x: Array, context: Array | None = None, others: Array | None = None
    ) -> Array:
        """Args: x, a context of its batch shape, and in whose place c is to be taken, x if not given."""
        others = x if others is None else others
        c = self.before(others, context) + self.after(others, context)
        hidden = ACTIVATIONS[self.activation](c + self.own * x[..., None])
        return (self.out * hidden).sum(-1) + self.shift
