"""The bijectors."""

from jax_flows.bijectors.base import Bijector, Chain, Invert
from jax_flows.bijectors.continuous import ContinuousBijector
from jax_flows.bijectors.coupling import AffineCoupling
from jax_flows.bijectors.elementwise import Affine, Rescale
from jax_flows.bijectors.normalization import BatchNorm
from jax_flows.bijectors.residual import InvertibleResidual, Planar, Radial, Sylvester

__all__ = [
    "Affine",
    "AffineCoupling",
    "BatchNorm",
    "Bijector",
    "Chain",
    "ContinuousBijector",
    "Invert",
    "InvertibleResidual",
    "Planar",
    "Radial",
    "Rescale",
    "Sylvester",
]
