"""Scalar functions in the form that holds up far from the origin."""

import math

import jax
import jax.numpy as jnp
from jax import Array


def log1p(x: Array) -> Array:
    """log(1 + x), to a few ULP in both frameworks (XLA's is 128 off near -0.41 in float64)."""
    small = jnp.abs(x) < 0.25
    return jnp.where(small, jnp.log1p(jnp.where(small, x, 0)), jnp.log(1 + x))


def softplus(x: Array) -> Array:
    """log(1 + e^x), exact at every x."""
    return jnp.logaddexp(x, jnp.zeros_like(x))


def log_softplus(x: Array) -> Array:
    """log(log(1 + e^x)) without underflow: x - e^x/2 + 5 e^(2x)/24 for x < -15."""
    low = x < -15
    tail = jnp.where(low, x, -15.0)
    exp = jnp.exp(tail)
    return jnp.where(
        low, tail - exp / 2 + 5 * exp * exp / 24, jnp.log(softplus(jnp.where(low, -15.0, x)))
    )


def log_sech2(x: Array) -> Array:
    """log(1 - tanh(x)^2) = 2 log 2 - 2 |x| - 2 log(1 + e^(-2 |x|))."""
    return 2 * (math.log(2) - x - softplus(-2 * x))


def sum_event(x: Array, event_ndim: int) -> Array:
    """Sum over the last ``event_ndim`` axes."""
    return x.sum(tuple(range(-event_ndim, 0)))


def matmul_precision() -> jax.lax.Precision | None:
    """Full float32 precision, as PyTorch's default, unless the user has stated another for JAX."""
    stated = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return None if stated else jax.lax.Precision.HIGHEST
