"""Normalizing flows in PyTorch: the reference half of twinflows."""

from torch_flows.bijectors import (
    Affine,
    AffineCoupling,
    BatchNorm,
    Bijector,
    Chain,
    Invert,
    LULinear,
    Permutation,
    Planar,
    RandomPermutation,
    Rescale,
    Rotation,
)
from torch_flows.distributions import DiagonalNormal, Distribution, StandardNormal, Uniform
from torch_flows.flows import Flow, PlanarFlow, RealNVP
from torch_flows.registry import build, register

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
    "LULinear",
    "Permutation",
    "Planar",
    "PlanarFlow",
    "RandomPermutation",
    "RealNVP",
    "Rescale",
    "Rotation",
    "StandardNormal",
    "Uniform",
    "build",
    "register",
]
