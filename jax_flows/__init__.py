"""Normalizing flows in JAX: the functional half of twinflows."""

from jax_flows.bijectors import (
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
from jax_flows.checkpoint import load, save
from jax_flows.distributions import DiagonalNormal, Distribution, StandardNormal, Uniform
from jax_flows.flows import (
    FFJORD,
    Flow,
    NeuralODE,
    PlanarFlow,
    RadialFlow,
    RealNVP,
    ResidualFlow,
    SylvesterFlow,
)
from jax_flows.registry import build, register
from jax_flows.training import fit, fit_to_energy

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
