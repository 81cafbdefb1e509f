"""Bijectors that act on each dimension alone."""

import torch
from torch import Tensor, nn

from flow_bridge import checks
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.registry import register


@register
class Rescale(Bijector):
    """z = x * exp(log_scale): NICE's diagonal scaling. log|det| = sum(log_scale).

    Args:
        dim: number of dimensions.

    Shapes: x and z ``(*batch, dim)``. Reference: Dinh et al. (2015), NICE, arXiv:1410.8516.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        checks.positive_int("Rescale", dim=dim)
        self.dim = dim
        self.event_shape = (dim,)
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def _forward(self, x: Tensor, context: Tensor | None) -> Output:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(x.shape[:-1])

    def _inverse(self, z: Tensor, context: Tensor | None) -> Output:
        return z * (-self.log_scale).exp(), -self.log_scale.sum().expand(z.shape[:-1])


@register
class Affine(Bijector):
    """z = x * exp(log_scale) + shift. log|det| = sum(log_scale).

    Args:
        dim: number of dimensions.

    Shapes: x and z ``(*batch, dim)``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        checks.positive_int("Affine", dim=dim)
        self.dim = dim
        self.event_shape = (dim,)
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    def _forward(self, x: Tensor, context: Tensor | None) -> Output:
        return x * self.log_scale.exp() + self.shift, self.log_scale.sum().expand(x.shape[:-1])

    def _inverse(self, z: Tensor, context: Tensor | None) -> Output:
        x = (z - self.shift) * (-self.log_scale).exp()
        return x, -self.log_scale.sum().expand(z.shape[:-1])
