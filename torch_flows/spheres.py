"""The sphere as a cylinder: a flow of an angle and a height is a flow on the sphere, of the same density."""

import torch
from torch import Tensor

from flow_bridge import checks


def sphere_from_cylinder(x: Tensor) -> Tensor:
    """(sqrt(1 - h^2) cos a, sqrt(1 - h^2) sin a, h) of an angle a and a height h in [-1, 1].

    Areas stay what they are (Archimedes): a density of (a, h) is one per unit area of the sphere, and that
    which is uniform is -log(4 pi) on both. A flow of a circular map for the first column and one onto
    [-1, 1] for the second is one of the sphere.

    Args:
        x: shape ``(*batch, 2)``.

    Returns:
        Unit vectors, shape ``(*batch, 3)``; NaN for a height outside [-1, 1].

    Raises:
        ValueError: for another shape.

    Reference: Rezende et al. (2020), Normalizing Flows on Tori and Spheres, arXiv:2002.02428.

    Examples:
        >>> import torch, torch_flows
        >>> x = torch.tensor([[0.0, 1.0], [torch.pi / 2, 0.0]])
        >>> y = torch_flows.sphere_from_cylinder(x)
        >>> bool(torch.allclose(y, torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), atol=1e-6))
        True
    """
    checks.coordinates("sphere_from_cylinder", "x", x.shape, 2)
    angle, height = x[..., 0], x[..., 1]
    radius = torch.sqrt((1 - height) * (1 + height))
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle), height], -1)


def cylinder_from_sphere(y: Tensor) -> Tensor:
    """The angle in [-pi, pi] and the height of vectors; the inverse of ``sphere_from_cylinder``.

    Args:
        y: shape ``(*batch, 3)``, of any length above 0: what counts is their direction.

    Returns:
        Shape ``(*batch, 2)``; at the poles the angle is 0.

    Raises:
        ValueError: for another shape.
    """
    checks.coordinates("cylinder_from_sphere", "y", y.shape, 3)
    length = torch.sqrt(torch.square(y).sum(-1))
    return torch.stack([torch.atan2(y[..., 1], y[..., 0]), y[..., 2] / length], -1)
