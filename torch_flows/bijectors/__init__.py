"""The bijectors."""

from torch_flows.bijectors.base import Bijector, Chain, Invert
from torch_flows.bijectors.continuous import ContinuousBijector
from torch_flows.bijectors.coupling import AffineCoupling
from torch_flows.bijectors.elementwise import Affine, Rescale
from torch_flows.bijectors.normalization import BatchNorm
from torch_flows.bijectors.residual import InvertibleResidual, Planar, Radial, Sylvester

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
