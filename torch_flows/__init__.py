"""Normalizing flows in PyTorch: the reference half of twinflows."""

from torch_flows.bijectors import (
    Affine,
    AffineCoupling,
    BatchNorm,
    Bijector,
    Chain,
    Invert,
    MaskedAffineAutoregressive,
    Planar,
    Rescale,
)
from torch_flows.checkpoint import load, save
from torch_flows.distributions import DiagonalNormal, Distribution, StandardNormal, Uniform
from torch_flows.flows import IAF, MAF, Flow, PlanarFlow, RealNVP
from torch_flows.registry import build, register
from torch_flows.training import fit, fit_to_energy

__all__ = [
    "Affine",
    "AffineCoupling",
    "BatchNorm",
    "Bijector",
    "Chain",
    "DiagonalNormal",
    "Distribution",
    "Flow",
    "Invert",
    "MAF",
    "IAF",
    "MaskedAffineAutoregressive",
    "Planar",
    "PlanarFlow",
    "RealNVP",
    "Rescale",
    "StandardNormal",
    "Uniform",
    "build",
    "fit",
    "fit_to_energy",
    "load",
    "register",
    "save",
]
