"""The evidence from draws of a posterior, by a learned harmonic mean."""

from typing import Any

import numpy as np

from flow_bridge import checks
from twinflows.inference import arrays
from twinflows.inference.importance import Estimate, effective_sample_size


def harmonic_mean(log_target: Any, log_density: Any) -> Estimate:
    """log Z of an unnormalised posterior p̃, from draws of it: 1 / Z = E[φ(θ) / p̃(θ)] for a density φ.

    Its variance is finite where φ has lighter tails than the posterior, which is why φ is learned
    (2111.12720). φ must not have been fitted to the draws that are used here: they would agree too well.

    Args:
        log_target: log φ of the draws, normalised, shape ``(draws,)``, or ``(draws, chains)``.
        log_density: log p̃ of the draws, likelihood times prior, of the same shape.

    Returns:
        log Z and its standard error: of independent draws, or with chains that of their spread, which
        holds for correlated draws too.

    Raises:
        ValueError: for fewer than 2 draws or chains, for a NaN or +inf, for a draw whose density is 0,
            and where φ is 0 at all draws.

    Examples:
        >>> harmonic_mean([0.0, 0.0], [1.0, 1.0])
        Estimate(value=1.0, standard_error=0.0)
    """
    owner = "harmonic_mean"
    density = arrays.rows(owner, "log_density", log_density)
    target = arrays.log_densities(owner, "log_target", log_target, 2)
    arrays.same_shape(owner, "log_target", target, "log_density", density)
    if density.ndim not in (1, 2) or density.shape[1:] == (1,):
        raise ValueError(
            f"{owner} expects log_density of shape (draws,) or (draws, chains), of at least 2 chains, "
            f"got {density.shape}."
        )
    ratios = arrays.log_weights(owner, "log_target", (target - density).reshape(-1))
    count = len(ratios)
    value = -arrays.log_mean_exp(ratios)
    if density.ndim == 1:
        error = max(1 / effective_sample_size(ratios) - 1 / count, 0) ** 0.5
    else:
        means = np.exp(target - density + value).mean(0)
        error = means.std(ddof=1) / len(means) ** 0.5
    return Estimate(float(value), float(error))


def learned_harmonic_mean(
    z: Any, log_det: Any, log_density: Any, temperature: float = 0.8
) -> Estimate:
    """``harmonic_mean`` with a flow whose base is narrowed to N(0, T): φ = N(z; 0, T) |det dz/dθ|.

    A flow fitted to half of the draws, narrowed and evaluated on the other half, has tails inside the
    posterior's (2307.00048). For a flow that fits, the relative variance of a draw is
    (T (2 - T))^(-dim / 2) - 1.

    Args:
        z: latents of draws by a flow whose base is ``StandardNormal``, shape ``(draws, dim)``, or
            ``(draws, chains, dim)``.
        log_det: log|det dz/dθ|, the other output of ``flow.forward``, shape ``(draws,)`` or
            ``(draws, chains)``.
        log_density: the unnormalised log-posterior of the draws, of the same shape.
        temperature: T, the variance of the narrowed base, in (0, 1].

    Raises:
        ValueError: as ``harmonic_mean``, for shapes that do not match, for another temperature.
    """
    owner = "learned_harmonic_mean"
    checks.positive_number(owner, temperature=temperature)
    if temperature > 1:
        raise ValueError(f"{owner} expects temperature to be at most 1, got {temperature!r}.")
    z = arrays.rows(owner, "z", z)
    log_det = arrays.rows(owner, "log_det", log_det)
    if z.shape[:-1] != log_det.shape:
        raise ValueError(
            f"{owner} expects z of shape (*log_det.shape, dim), got {z.shape} and {log_det.shape}."
        )
    normal = (z**2).sum(-1) / temperature + z.shape[-1] * np.log(2 * np.pi * temperature)
    return harmonic_mean(log_det - normal / 2, log_density)
