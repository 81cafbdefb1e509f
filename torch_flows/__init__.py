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
from torch_flows.flows import Flow, PlanarFlow, RealNVP
from torch_flows.registry import build, register
from torch_flows.training import fit, fit_to_energy

__all__ = [
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
    "Planar",
    "PlanarFlow",
    "Radial",
    "RealNVP",
    "Rescale",
    "StandardNormal",
    "Sylvester",
    "Uniform",
    "build",
    "fit",
    "fit_to_energy",
    "load",
    "register",
    "save",
]
