"""Normalizing flows in PyTorch: the reference half of twinflows."""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "torch_flows needs PyTorch: pip install 'twinflows[torch]'.", name="torch"
    ) from error

from flow_bridge import __version__
from flow_bridge.images import bits_per_dimension
from torch_flows.bijectors.autoregressive import (
    MaskedAffineAutoregressive,
    MaskedSplineAutoregressive,
)
from torch_flows.bijectors.base import Bijector
from torch_flows.bijectors.continuous import ContinuousBijector
from torch_flows.bijectors.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    ConvAffineCoupling,
    SplineCoupling,
)
from torch_flows.bijectors.elementwise import (
    ELU,
    Affine,
    Exp,
    LeakyReLU,
    Logit,
    Rescale,
    Sigmoid,
    Softplus,
    Tanh,
)
from torch_flows.bijectors.linear import (
    Invertible1x1Conv,
    LULinear,
    Permutation,
    RandomPermutation,
    Rotation,
)
from torch_flows.bijectors.normalization import ActNorm, BatchNorm, Standardize
from torch_flows.bijectors.planar import Planar, Radial, Sylvester
from torch_flows.bijectors.residual import InvertibleResidual
from torch_flows.bijectors.shapes import Split, Squeeze
from torch_flows.bijectors.structure import Chain, Invert
from torch_flows.checkpoint import load, save
from torch_flows.distributions import (
    DiagonalNormal,
    Distribution,
    GaussianMixture,
    StandardNormal,
    StudentT,
    Uniform,
)
from torch_flows.export import export
from torch_flows.flows import Flow, standardized
from torch_flows.images import dequantize, quantize
from torch_flows.models.autoregressive import IAF, MAF
from torch_flows.models.continuous import FFJORD, NeuralODE
from torch_flows.models.coupling import NICE, RealNVP
from torch_flows.models.images import Glow
from torch_flows.models.residual import PlanarFlow, RadialFlow, ResidualFlow, SylvesterFlow
from torch_flows.models.spline import NeuralSplineFlow
from torch_flows.registry import build, register
from torch_flows.training import fit, fit_to_energy

__all__ = [
    "ELU",
    "FFJORD",
    "IAF",
    "MAF",
    "NICE",
    "ActNorm",
    "AdditiveCoupling",
    "Affine",
    "AffineCoupling",
    "BatchNorm",
    "Bijector",
    "Chain",
    "ContinuousBijector",
    "ConvAffineCoupling",
    "DiagonalNormal",
    "Distribution",
    "Exp",
    "Flow",
    "GaussianMixture",
    "Glow",
    "Invert",
    "Invertible1x1Conv",
    "InvertibleResidual",
    "LULinear",
    "LeakyReLU",
    "Logit",
    "MaskedAffineAutoregressive",
    "MaskedSplineAutoregressive",
    "NeuralODE",
    "NeuralSplineFlow",
    "Permutation",
    "Planar",
    "PlanarFlow",
    "Radial",
    "RadialFlow",
    "RandomPermutation",
    "RealNVP",
    "Rescale",
    "ResidualFlow",
    "Rotation",
    "Sigmoid",
    "Softplus",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "StandardNormal",
    "Standardize",
    "StudentT",
    "Sylvester",
    "SylvesterFlow",
    "Tanh",
    "Uniform",
    "__version__",
    "bits_per_dimension",
    "build",
    "dequantize",
    "export",
    "fit",
    "fit_to_energy",
    "load",
    "quantize",
    "register",
    "save",
    "standardized",
]
