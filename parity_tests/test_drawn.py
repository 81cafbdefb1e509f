"""Architectures that nobody wrote down: hypothesis draws chains, both halves must agree on them."""

from typing import Any

import jax
import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jax_flows
from flow_bridge.weights import jax_to_torch, torch_to_jax
from jax_flows.checkpoint import from_numpy
from parity_tests.catalogue import Case, arch, coupling


@st.composite
def architectures(draw: Any) -> dict[str, Any]:
    """A chain of 1 to 6 bijectors of one dimension, blocks repeated, inverted, with or without context."""
    dim = draw(st.integers(1, 5))
    context_dim = draw(st.sampled_from([0, 0, 2]))
    width = st.integers(1, 4)

    def leaf(kind: str) -> dict[str, Any]:
        if kind == "Planar":
            return arch("Planar", dim=dim, context_dim=context_dim)
        if kind == "AffineCoupling":
            mask = draw(st.sampled_from(["even", "odd", "first_half", "second_half"]))
            hidden = draw(st.lists(width, max_size=2))
            one = draw(st.booleans())
            return coupling(dim=dim, mask=mask, hidden_dims=hidden, separate_networks=one,
                            context_dim=context_dim)  # fmt: skip
        return arch(kind, dim=dim)

    kinds = [
        "Planar",
        "Affine",
        "Rescale",
        "BatchNorm",
        "LULinear",
        "Rotation",
        *(["AffineCoupling"] * 2 if dim > 1 else []),
    ]
    block = [leaf(kind) for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))]
    chain = arch("Chain", bijectors=block * draw(st.integers(1, 2)))
    return arch("Invert", bijector=chain) if draw(st.booleans()) else chain


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(architecture=architectures(), seed=st.integers(0, 2**16))
def test_drawn_architectures_agree(architecture: dict[str, Any], seed: int) -> None:
    case = Case("drawn", architecture)
    model, twin, weights = (
        case.torch_model(seed=seed),
        jax_flows.build(architecture),
        case.weights(seed),
    )
    variables = from_numpy(torch_to_jax(weights, twin.shapes()))
    for name, array in jax_to_torch(variables).items():
        np.testing.assert_array_equal(array, weights[name])
    x, context = case.inputs(4, seed=seed), case.context(4, seed=seed)
    given = [torch.from_numpy(a.copy()) for a in (x, context) if a is not None]
    with torch.no_grad():
        z, log_det = model.forward(*given)
        back, inverse_log_det = model.inverse(z, *given[1:])
    there, twin_log_det = jax.jit(twin.forward)(variables, x, context)
    scale = 1 + z.norm(dim=-1, keepdim=True).numpy()
    assert (np.abs(z.numpy() - there) / scale).max() < 1e-11
    np.testing.assert_allclose(twin_log_det, log_det.numpy(), rtol=1e-11, atol=1e-11)
    assert (np.abs(back.numpy() - x) / (1 + np.abs(x))).max() < 1e-6
    np.testing.assert_allclose(inverse_log_det.numpy(), -log_det.numpy(), rtol=1e-6, atol=1e-6)
