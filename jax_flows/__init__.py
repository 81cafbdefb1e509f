"""Normalizing flows in JAX: the functional half of twinflows."""

from jax_flows.bijectors import (
    ELU,
    Affine,
    AffineCoupling,
    BatchNorm,
    Bijector,
    Chain,
    Exp,
    Invert,
    LeakyReLU,
    LULinear,
    Permutation,
    Planar,
    RandomPermutation,
    Rescale,
    Rotation,
    Sigmoid,
    Softplus,
    Tanh,
)
from jax_flows.checkpoint import load, save
from jax_flows.distributions import DiagonalNormal, Distribution, StandardNormal, Uniform
from jax_flows.flows import Flow, PlanarFlow, RealNVP
from jax_flows.registry import build, register
from jax_flows.training import fit, fit_to_energy

__all__ = [
    "ELU",
    "Affine",
    "AffineCoupling",
    "BatchNorm",
    "Bijector",
    "Chain",
    "DiagonalNormal",
    "Distribution",
    "Exp",
    "Flow",
    "Invert",
    "LULinear",
    "LeakyReLU",
    "Permutation",
    "Planar",
    "PlanarFlow",
    "RandomPermutation",
    "RealNVP",
    "Rescale",
    "Rotation",
    "Sigmoid",
    "Softplus",
    "StandardNormal",
    "Tanh",
    "Uniform",
    "build",
    "fit",
    "fit_to_energy",
    "load",
    "register",
    "save",
]
