"""Normalizing flows in PyTorch: the reference half of twinflows."""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "torch_flows needs PyTorch: pip install 'twinflows[torch]'.", name="torch"
    ) from error

from flow_bridge import __version__
from flow_bridge.images import bits_per_dimension
from flow_bridge.networks import Network
from flow_bridge.replay import ReplayBuffer
from flow_bridge.schedules import exponential_decay, warmup_cosine, warmup_linear
from torch_flows import energies
from torch_flows.annealing import AnnealedImportanceSampling
from torch_flows.bijectors.autoregressive import (
    MaskedAffineAutoregressive,
    MaskedAutoregressive,
    MaskedSplineAutoregressive,
)
from torch_flows.bijectors.base import Bijector
from torch_flows.bijectors.block_autoregressive import BlockAutoregressive
from torch_flows.bijectors.blockwise import Blockwise
from torch_flows.bijectors.continuous import ContinuousBijector
from torch_flows.bijectors.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    ConvAffineCoupling,
    Coupling,
    SplineCoupling,
)
from torch_flows.bijectors.elementwise import (
    ELU,
    LOFT,
    Affine,
    Elementwise,
    Exp,
    LeakyReLU,
    LeakyTanh,
    Logit,
    NormalClip,
    Rescale,
    Sigmoid,
    Softclip,
    Softplus,
    Tanh,
)
from torch_flows.bijectors.linear import (
    ConvolutionExponential,
    Invertible1x1Conv,
    LULinear,
    Permutation,
    RandomPermutation,
    Rotation,
)
from torch_flows.bijectors.normalization import ActNorm, BatchNorm, Standardize
from torch_flows.bijectors.planar import Planar, Radial, Sylvester
from torch_flows.bijectors.residual import InvertibleResidual
from torch_flows.bijectors.shapes import Patches, Split, Squeeze
from torch_flows.bijectors.structure import Chain, Invert
from torch_flows.bijectors.transformer import TransformerAutoregressive
from torch_flows.checkpoint import load, save
from torch_flows.dequantization import DequantizationBound, Dequantized
from torch_flows.distributions import (
    DiagonalNormal,
    Distribution,
    GaussianMixture,
    Product,
    StandardNormal,
    StudentT,
    Uniform,
    VonMises,
)
from torch_flows.export import export, fixed_grid
from torch_flows.flows import Flow, pullback, standardized
from torch_flows.images import denoise, dequantize, quantize
from torch_flows.importing import import_flow
from torch_flows.losses import (
    AnnealedBootstrap,
    FisherDivergence,
    FlowMatching,
    ImportanceWeighted,
    Loss,
    NegativeLogLikelihood,
    NoisyLikelihood,
    OptimalTransportFlowMatching,
    Reflow,
    ReverseKL,
)
from torch_flows.models.autoregressive import BNAF, IAF, MAF, NAF
from torch_flows.models.continuous import FFJORD, NeuralODE
from torch_flows.models.coupling import NICE, RealNVP
from torch_flows.models.gaussianization import GaussianizationFlow
from torch_flows.models.images import Glow
from torch_flows.models.residual import PlanarFlow, RadialFlow, ResidualFlow, SylvesterFlow
from torch_flows.models.spline import NeuralSplineFlow
from torch_flows.models.transformer import Jet, TarFlow, guided
from torch_flows.networks.activations import register_activation
from torch_flows.networks.attention import ImageTransformer, Transformer
from torch_flows.networks.convolutional import ConvEmbedding, ConvNet
from torch_flows.networks.hollow import HollowMLP
from torch_flows.networks.masked import MaskedMLP, MaskedResidualMLP
from torch_flows.networks.mlp import MLP, SeparateMLPs
from torch_flows.networks.residual import ResidualMLP
from torch_flows.networks.sets import DeepSet
from torch_flows.registry import build, register, register_network
from torch_flows.spheres import cylinder_from_sphere, sphere_from_cylinder
from torch_flows.training import fit, fit_to_energy
from torch_flows.univariate.affine import AffineMap, ShiftMap
from torch_flows.univariate.base import UnivariateMap
from torch_flows.univariate.circular import MoebiusMap
from torch_flows.univariate.mixed import MixedMap
from torch_flows.univariate.mixture import DenseSigmoidMap, LogisticMixtureMap, NormalMixtureMap
from torch_flows.univariate.monotone import IntegratedNetworkMap, MonotoneNetworkMap
from torch_flows.univariate.piecewise import (
    CubicSplineMap,
    LinearRationalSplineMap,
    LinearSplineMap,
    QuadraticSplineMap,
)
from torch_flows.univariate.polynomials import BernsteinMap, SumOfSquaresMap
from torch_flows.univariate.smooth import CubicMap, CubicRationalMap, SinhMap
from torch_flows.univariate.splines import SplineMap
from torch_flows.univariate.tails import TailMap

__all__ = [
    "BNAF",
    "ELU",
    "FFJORD",
    "IAF",
    "LOFT",
    "MAF",
    "MLP",
    "NAF",
    "NICE",
    "ActNorm",
    "AdditiveCoupling",
    "Affine",
    "AffineCoupling",
    "AffineMap",
    "AnnealedBootstrap",
    "AnnealedImportanceSampling",
    "BatchNorm",
    "BernsteinMap",
    "Bijector",
    "BlockAutoregressive",
    "Blockwise",
    "Chain",
    "ContinuousBijector",
    "ConvAffineCoupling",
    "ConvEmbedding",
    "ConvNet",
    "ConvolutionExponential",
    "Coupling",
    "CubicMap",
    "CubicRationalMap",
    "CubicSplineMap",
    "DeepSet",
    "DenseSigmoidMap",
    "DequantizationBound",
    "Dequantized",
    "DiagonalNormal",
    "Distribution",
    "Elementwise",
    "Exp",
    "FisherDivergence",
    "Flow",
    "FlowMatching",
    "GaussianMixture",
    "GaussianizationFlow",
    "Glow",
    "HollowMLP",
    "ImageTransformer",
    "ImportanceWeighted",
    "IntegratedNetworkMap",
    "Invert",
    "Invertible1x1Conv",
    "InvertibleResidual",
    "Jet",
    "LULinear",
    "LeakyReLU",
    "LeakyTanh",
    "LinearRationalSplineMap",
    "LinearSplineMap",
    "LogisticMixtureMap",
    "Logit",
    "Loss",
    "MaskedAffineAutoregressive",
    "MaskedAutoregressive",
    "MaskedMLP",
    "MaskedResidualMLP",
    "MaskedSplineAutoregressive",
    "MixedMap",
    "MoebiusMap",
    "MonotoneNetworkMap",
    "NegativeLogLikelihood",
    "Network",
    "NeuralODE",
    "NeuralSplineFlow",
    "NoisyLikelihood",
    "NormalClip",
    "NormalMixtureMap",
    "OptimalTransportFlowMatching",
    "Patches",
    "Permutation",
    "Planar",
    "PlanarFlow",
    "Product",
    "QuadraticSplineMap",
    "Radial",
    "RadialFlow",
    "RandomPermutation",
    "RealNVP",
    "Reflow",
    "ReplayBuffer",
    "Rescale",
    "ResidualFlow",
    "ResidualMLP",
    "ReverseKL",
    "Rotation",
    "SeparateMLPs",
    "ShiftMap",
    "Sigmoid",
    "SinhMap",
    "Softclip",
    "Softplus",
    "SplineCoupling",
    "SplineMap",
    "Split",
    "Squeeze",
    "StandardNormal",
    "Standardize",
    "StudentT",
    "SumOfSquaresMap",
    "Sylvester",
    "SylvesterFlow",
    "TailMap",
    "Tanh",
    "TarFlow",
    "Transformer",
    "TransformerAutoregressive",
    "Uniform",
    "UnivariateMap",
    "VonMises",
    "__version__",
    "bits_per_dimension",
    "build",
    "cylinder_from_sphere",
    "denoise",
    "dequantize",
    "energies",
    "exponential_decay",
    "export",
    "fit",
    "fit_to_energy",
    "fixed_grid",
    "guided",
    "import_flow",
    "load",
    "pullback",
    "quantize",
    "register",
    "register_activation",
    "register_network",
    "save",
    "sphere_from_cylinder",
    "standardized",
    "warmup_cosine",
    "warmup_linear",
]
