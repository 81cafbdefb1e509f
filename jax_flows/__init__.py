"""Normalizing flows in JAX: the functional half of twinflows."""

try:
    import flax as _flax  # noqa: F401
    import jax as _jax  # noqa: F401
    import optax as _optax  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("jax_flows needs JAX: pip install 'twinflows[jax]'.", name="jax") from error

from flow_bridge import __version__
from flow_bridge.images import bits_per_dimension
from flow_bridge.networks import Network
from flow_bridge.replay import ReplayBuffer
from flow_bridge.schedules import exponential_decay, warmup_cosine, warmup_linear
from jax_flows import energies
from jax_flows.annealing import AnnealedImportanceSampling
from jax_flows.bijectors.autoregressive import (
    MaskedAffineAutoregressive,
    MaskedAutoregressive,
    MaskedSplineAutoregressive,
)
from jax_flows.bijectors.base import Bijector
from jax_flows.bijectors.block_autoregressive import BlockAutoregressive
from jax_flows.bijectors.blockwise import Blockwise
from jax_flows.bijectors.continuous import ContinuousBijector
from jax_flows.bijectors.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    ConvAffineCoupling,
    Coupling,
    SplineCoupling,
)
from jax_flows.bijectors.elementwise import (
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
from jax_flows.bijectors.linear import (
    ConvolutionExponential,
    Invertible1x1Conv,
    LULinear,
    Permutation,
    RandomPermutation,
    Rotation,
)
from jax_flows.bijectors.normalization import ActNorm, BatchNorm, Standardize
from jax_flows.bijectors.planar import Planar, Radial, Sylvester
from jax_flows.bijectors.residual import InvertibleResidual
from jax_flows.bijectors.shapes import Patches, Split, Squeeze
from jax_flows.bijectors.structure import Chain, Invert
from jax_flows.bijectors.transformer import TransformerAutoregressive
from jax_flows.checkpoint import load, save
from jax_flows.dequantization import DequantizationBound, Dequantized
from jax_flows.distributions import (
    DiagonalNormal,
    Distribution,
    GaussianMixture,
    Product,
    StandardNormal,
    StudentT,
    Uniform,
    VonMises,
)
from jax_flows.export import export, fixed_grid
from jax_flows.flows import Flow, pullback, standardized
from jax_flows.images import denoise, dequantize, quantize
from jax_flows.importing import import_flow
from jax_flows.losses import (
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
from jax_flows.models.autoregressive import BNAF, IAF, MAF, NAF
from jax_flows.models.continuous import FFJORD, NeuralODE
from jax_flows.models.coupling import NICE, RealNVP
from jax_flows.models.gaussianization import GaussianizationFlow
from jax_flows.models.images import Glow
from jax_flows.models.residual import PlanarFlow, RadialFlow, ResidualFlow, SylvesterFlow
from jax_flows.models.spline import NeuralSplineFlow
from jax_flows.models.transformer import Jet, TarFlow, guided
from jax_flows.networks.activations import register_activation
from jax_flows.networks.attention import ImageTransformer, Transformer
from jax_flows.networks.convolutional import ConvEmbedding, ConvNet
from jax_flows.networks.hollow import HollowMLP
from jax_flows.networks.masked import MaskedMLP, MaskedResidualMLP
from jax_flows.networks.mlp import MLP, SeparateMLPs
from jax_flows.networks.residual import ResidualMLP
from jax_flows.networks.sets import DeepSet
from jax_flows.registry import build, register, register_network
from jax_flows.spheres import cylinder_from_sphere, sphere_from_cylinder
from jax_flows.training import fit, fit_to_energy
from jax_flows.univariate.affine import AffineMap, ShiftMap
from jax_flows.univariate.base import UnivariateMap
from jax_flows.univariate.circular import MoebiusMap
from jax_flows.univariate.mixed import MixedMap
from jax_flows.univariate.mixture import DenseSigmoidMap, LogisticMixtureMap, NormalMixtureMap
from jax_flows.univariate.monotone import IntegratedNetworkMap, MonotoneNetworkMap
from jax_flows.univariate.piecewise import (
    CubicSplineMap,
    LinearRationalSplineMap,
    LinearSplineMap,
    QuadraticSplineMap,
)
from jax_flows.univariate.polynomials import BernsteinMap, SumOfSquaresMap
from jax_flows.univariate.smooth import CubicMap, CubicRationalMap, SinhMap
from jax_flows.univariate.splines import SplineMap
from jax_flows.univariate.tails import TailMap

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
