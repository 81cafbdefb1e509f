"""Images of whole numbers as data."""

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from jax_flows.flows import Flow
from jax_flows.variables import Variables


def dequantize(
    x: Array, num_levels: int, noise: Array | None = None, key: Array | None = None
) -> Array:
    """(x + noise) / num_levels on [0, 1): integer levels as a density can take them.

    Args:
        x: values 0, 1, ..., num_levels - 1, integer or floating point.
        num_levels: number of levels, 256 for bytes.
        noise: on [0, 1), of x's shape; drawn uniformly if not given, then in x's dtype if that is
            floating point, else in JAX's default one. The result has the noise's dtype.
        key: the source of randomness, needed where no noise is given.

    Reference: Theis et al. (2016), arXiv:1511.01844.

    Examples:
        >>> import jax.numpy as jnp, jax_flows
        >>> x = jax_flows.dequantize(jnp.array([0, 255]), 256, noise=jnp.array([0.0, 0.5]))
        >>> jax_flows.quantize(x, 256).tolist()
        [0.0, 255.0]
    """
    checks.positive_int("dequantize", num_levels=num_levels)
    if noise is None:
        if key is None:
            raise ValueError("dequantize needs noise or a key to draw it from.")
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        noise = jax.random.uniform(key, x.shape, x.dtype if floating else jnp.result_type(float))
    y = (x + noise) / num_levels
    # the sum may round up to num_levels
    return jnp.where(y >= 1, 1 - jnp.finfo(y.dtype).eps / 2, y)


def quantize(x: Array, num_levels: int) -> Array:
    """The level of x on [0, 1]: floor(x * num_levels), kept within 0 and num_levels - 1."""
    checks.positive_int("quantize", num_levels=num_levels)
    return jnp.clip(jnp.floor(x * num_levels), 0, num_levels - 1)


def denoise(
    flow: Flow, variables: Variables, x: Array, sigma: float, context: Array | None = None
) -> Array:
    """The mean of what x was before normal noise of standard deviation sigma was added (Tweedie's formula).

    It is x + sigma^2 times the score of the density of noisy x, which a flow trained with
    ``NoisyLikelihood(sigma)`` has learned; one pass and its gradient.

    Args:
        flow: the flow.
        variables: the arrays, from ``init``, ``fit`` or ``load``.
        x: noisy data or samples, ``(*batch, *event_shape)``.
        sigma: above 0.
        context: as for ``Flow.score``.

    Raises:
        ValueError: for another sigma.

    Reference: Efron (2011), Tweedie's formula and selection bias; Zhai et al. (2024), arXiv:2412.06329.
    """
    checks.positive_number("denoise", sigma=sigma)
    return x + sigma**2 * flow.score(variables, x, context)
