"""Networks each of whose outputs sees its own input only at the end."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flow_bridge import checks
from torch_flows.networks.activations import ACTIVATIONS
from torch_flows.networks.masked import MaskedMLP
from torch_flows.registry import register_network


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

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        width: int = 16,
        activation: str = "tanh",
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        checks.positive_int("HollowMLP", width=width)
        checks.square("HollowMLP", in_dim, out_dim)
        self.activation = activation
        given = hidden_dims, activation
        self.before = MaskedMLP(in_dim, width, *given, None, None, context_dim)
        self.after = MaskedMLP(in_dim, width, *given, None, "reverse", context_dim)
        self.own = nn.Parameter(torch.randn(in_dim, width))
        self.out = nn.Parameter(torch.zeros(in_dim, width))
        self.shift = nn.Parameter(torch.zeros(in_dim))

    def forward(
        self, x: Tensor, context: Tensor | None = None, others: Tensor | None = None
    ) -> Tensor:
        """Args: x, a context of its batch shape, and in whose place c is to be taken, x if not given."""
        others = x if others is None else others
        c = self.before(others, context) + self.after(others, context)
        hidden = ACTIVATIONS[self.activation](c + self.own * x.unsqueeze(-1))
        return (self.out * hidden).sum(-1) + self.shift
