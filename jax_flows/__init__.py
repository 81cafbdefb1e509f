"""Normalizing flows in JAX: the functional half of twinflows."""

from jax_flows.bijectors import (
    Affine,
    AffineCoupling,
    BatchNorm,
    Bijector,
    Chain,
    Invert,
    Planar,
    Rescale,
)
from jax_flows.distributions import DiagonalNormal, Distribution, StandardNormal, Uniform
from jax_flows.flows import Flow, PlanarFlow, RealNVP
from jax_flows.registry import build, register

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
    "Planar",
    "PlanarFlow",
    "RealNVP",
    "Rescale",
    "StandardNormal",
    "Uniform",
    "build",
    "register",
]
