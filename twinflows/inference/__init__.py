"""Inference with flows: evidence, calibration and comparison, from log-weights, ranks and draws.

numpy in, numpy out; tensors of PyTorch and arrays of JAX are taken too, and neither is imported. SciPy,
scikit-learn and matplotlib are imported where they are used: ``pip install 'twinflows[inference]'``.
"""

from typing import Any

from flow_bridge import optional
from twinflows.inference.calibration import (
    Bands,
    Coverage,
    LatentPIT,
    Uniformity,
    ecdf_bands,
    expected_coverage,
    hpd_ranks,
    latent_pit,
    rank_test,
    sbc_ranks,
    tarp_ranks,
    uniformity,
)
from twinflows.inference.comparison import Comparison, compare_log_likelihoods
from twinflows.inference.evidence import harmonic_mean, learned_harmonic_mean
from twinflows.inference.importance import (
    Chain,
    Estimate,
    effective_sample_size,
    elbo,
    eubo,
    importance_resample,
    independence_metropolis,
    log_evidence,
    normalized_weights,
)
from twinflows.inference.pareto import Smoothed, pareto_smoothed
from twinflows.inference.pictures import (
    draw_bounds,
    draw_c2st,
    draw_chain,
    draw_comparison,
    draw_coverage,
    draw_evidence,
    draw_latent_pit,
    draw_local_c2st,
    draw_pairs,
    draw_ranks,
    draw_weights,
)
from twinflows.inference.two_sample import C2ST, LocalC2ST, c2st, local_c2st

__all__ = [
    "C2ST",
    "Bands",
    "Chain",
    "Comparison",
    "ConditionalFlowDensity",
    "Coverage",
    "Estimate",
    "FlowDensity",
    "LatentPIT",
    "LocalC2ST",
    "Smoothed",
    "Uniformity",
    "c2st",
    "compare_log_likelihoods",
    "draw_bounds",
    "draw_c2st",
    "draw_chain",
    "draw_comparison",
    "draw_coverage",
    "draw_evidence",
    "draw_latent_pit",
    "draw_local_c2st",
    "draw_pairs",
    "draw_ranks",
    "draw_weights",
    "ecdf_bands",
    "effective_sample_size",
    "elbo",
    "eubo",
    "expected_coverage",
    "harmonic_mean",
    "hpd_ranks",
    "importance_resample",
    "independence_metropolis",
    "latent_pit",
    "learned_harmonic_mean",
    "local_c2st",
    "log_evidence",
    "normalized_weights",
    "pareto_smoothed",
    "rank_test",
    "sbc_ranks",
    "tarp_ranks",
    "uniformity",
]


def __getattr__(name: str) -> Any:
    """The estimators derive from scikit-learn's, which nothing else here needs at import."""
    if name not in ("ConditionalFlowDensity", "FlowDensity"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(
        optional.host(name, "twinflows.inference.density", "scikit-learn", "inference"), name
    )
