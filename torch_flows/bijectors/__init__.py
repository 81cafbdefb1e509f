"""The bijectors."""

from torch_flows.bijectors.autoregressive import (
    MaskedAffineAutoregressive,
    MaskedSplineAutoregressive,
)
from torch_flows.bijectors.base import Bijector, Chain, Invert
from torch_flows.bijectors.continuous import ContinuousBijector
from torch_flows.bijectors.coupling import AdditiveCoupling, AffineCoupling, SplineCoupling
from torch_flows.bijectors.elementwise import (
    ELU,
    Affine,
    Exp,
    LeakyReLU,
    Rescale,
    Sigmoid,
    Softplus,
    Tanh,
)
from torch_flows.bijectors.image import (
    ConvAffineCoupling,
    Invertible1x1Conv,
    Logit,
    Split,
    Squeeze,
    dequantize,
    quantize,
)
from torch_flows.bijectors.linear import LULinear, Permutation, RandomPermutation, Rotation
from torch_flows.bijectors.normalization import ActNorm, BatchNorm
from torch_flows.bijectors.residual import InvertibleResidual, Planar, Radial, Sylvester

__all__ = [
    "ELU",
    "ActNorm",
    "AdditiveCoupling",
    "Affine",
    "AffineCoupling",
    "BatchNorm",
    "Bijector",
    "Chain",
    "ContinuousBijector",
    "ConvAffineCoupling",
    "Exp",
    "Invert",
    "Invertible1x1Conv",
    "InvertibleResidual",
    "LULinear",
    "LeakyReLU",
    "Logit",
    "MaskedAffineAutoregressive",
    "MaskedSplineAutoregressive",
    "Permutation",
    "Planar",
    "Radial",
    "RandomPermutation",
    "Rescale",
    "Rotation",
    "Sigmoid",
    "Softplus",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "Sylvester",
    "Tanh",
    "dequantize",
    "quantize",
]
