"""The sphere as a cylinder: a flow of an angle and a height is a flow on the sphere, of the same density."""

import jax.numpy as jnp
from jax import Array

from flow_bridge import checks


def sphere_from_cylinder(x: Array) -> Array:
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
        >>> import jax.numpy as jnp, jax_flows
        >>> x = jnp.array([[0.0, 1.0], [jnp.pi / 2, 0.0]])
        >>> y = jax_flows.sphere_from_cylinder(x)
        >>> bool(jnp.allclose(y, jnp.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), atol=1e-6))
        True
    """
    checks.coordinates("sphere_from_cylinder", "x", x.shape, 2)
    angle, height = x[..., 0], x[..., 1]
    radius = jnp.sqrt((1 - height) * (1 + height))
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle), height], -1)


def cylinder_from_sphere(y: Array) -> Array:
    """The angle in [-pi, pi] and the height of vectors; the inverse of ``sphere_from_cylinder``.

    Args:
        y: shape ``(*batch, 3)``, of any length above 0: what counts is their direction.

    Returns:
        Shape ``(*batch, 2)``; at the poles the angle is 0.

    Raises:
        ValueError: for another shape.
    """
    checks.coordinates("cylinder_from_sphere", "y", y.shape, 3)
    length = jnp.sqrt(jnp.square(y).sum(-1))
    return jnp.stack([jnp.atan2(y[..., 1], y[..., 0]), y[..., 2] / length], -1)
