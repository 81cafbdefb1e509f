"""Networks of sets, whose elements have no order."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flow_bridge import checks
from torch_flows.networks.activations import ACTIVATIONS
from torch_flows.networks.mlp import MLP
from torch_flows.registry import register_network


@register_network
class DeepSet(nn.Module):
    """rho(mean_i phi(x_i)) of a set of elements x_i, phi and rho being ``MLP``s: no order matters.

    The elements stand one after the other, ``(*batch, num_elements * element_dim)`` to ``(*batch,
    out_dim)``: ``x.flatten(-2)`` of a tensor ``(*batch, num_elements, element_dim)``. So a set is a
    context like any other, in ``fit``, in tables and in files.

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
        >>> import torch, torch_flows
        >>> net = torch_flows.DeepSet(in_dim=12, out_dim=2, element_dim=3)
        >>> x = torch.randn(5, 4, 3)
        >>> torch.allclose(net(x.flatten(-2)), net(x.flip(-2).flatten(-2)), atol=1e-6)
        True
    """

    event_ndim = 1

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        element_dim: int = 1,
        set_dim: int = 64,
        hidden_dims: Sequence[int] = (64,),
        activation: str = "leaky_relu",
        padded: bool = False,
    ) -> None:
        super().__init__()
        checks.set_network("DeepSet", in_dim, out_dim, element_dim, set_dim, padded)
        checks.hidden_widths("DeepSet", hidden_dims)
        checks.one_of("DeepSet", "activation", activation, ACTIVATIONS)
        self.in_dim, self.out_dim = in_dim, out_dim
        self.element_dim, self.set_dim = element_dim, set_dim
        self.hidden_dims = tuple(hidden_dims)
        self.activation = activation
        self.padded = padded
        self.phi = MLP(element_dim - padded, set_dim, hidden_dims, activation)
        self.rho = MLP(set_dim, out_dim, hidden_dims, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x, the elements one after the other."""
        elements = x.unflatten(-1, (-1, self.element_dim))
        if not self.padded:
            return self.rho(self.phi(elements).mean(-2))
        counts = elements[..., :1] > 0
        seen = self.phi(torch.where(counts, elements[..., 1:], 0))
        total = torch.where(counts, seen, 0).sum(-2)
        return self.rho(total / counts.sum(-2).clamp(min=1))
