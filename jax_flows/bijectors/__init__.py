"""The bijectors."""

from jax_flows.bijectors.autoregressive import (
    MaskedAffineAutoregressive,
    MaskedSplineAutoregressive,
)
from jax_flows.bijectors.base import Bijector, Chain, Invert
from jax_flows.bijectors.continuous import ContinuousBijector
from jax_flows.bijectors.coupling import AdditiveCoupling, AffineCoupling, SplineCoupling
from jax_flows.bijectors.elementwise import (
    ELU,
    Affine,
    Exp,
    LeakyReLU,
    Rescale,
    Sigmoid,
    Softplus,
    Tanh,
)
from jax_flows.bijectors.image import (
    ConvAffineCoupling,
    Invertible1x1Conv,
    Logit,
    Split,
    Squeeze,
    dequantize,
    quantize,
)
from jax_flows.bijectors.linear import LULinear, Permutation, RandomPermutation, Rotation
from jax_flows.bijectors.normalization import ActNorm, BatchNorm
from jax_flows.bijectors.residual import InvertibleResidual, Planar, Radial, Sylvester

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
