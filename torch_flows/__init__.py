"""Normalizing flows in PyTorch: the reference half of twinflows."""

from torch_flows.bijectors import (
    Affine,
    AffineCoupling,
    BatchNorm,
    Bijector,
    Chain,
    ContinuousBijector,
    Invert,
    InvertibleResidual,
    Planar,
    Radial,
    Rescale,
    Sylvester,
)
from torch_flows.checkpoint import load, save
from torch_flows.distributions import DiagonalNormal, Distribution, StandardNormal, Uniform
from torch_flows.flows import (
    FFJORD,
    Flow,
    NeuralODE,
    PlanarFlow,
    RadialFlow,
    RealNVP,
    ResidualFlow,
    SylvesterFlow,
)
from torch_flows.registry import build, register
from torch_flows.training import fit, fit_to_energy

__all__ = [
    "FFJORD",
    "Affine",
    "AffineCoupling",
    "BatchNorm",
    "Bijector",
    "Chain",
    "ContinuousBijector",
    "DiagonalNormal",
    "Distribution",
    "Flow",
    "Invert",
    "InvertibleResidual",
    "NeuralODE",
    "Planar",
    "PlanarFlow",
    "Radial",
    "RadialFlow",
    "RealNVP",
    "Rescale",
    "ResidualFlow",
    "StandardNormal",
    "Sylvester",
    "SylvesterFlow",
    "Uniform",
    "build",
    "fit",
    "fit_to_energy",
    "load",
    "register",
    "save",
]
