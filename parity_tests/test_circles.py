"""Angles: densities on circles and tori, and spaces in which some coordinates are angles."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge.weights import torch_to_jax
from parity_tests.catalogue import arch, flow

HALVES = (torch_flows, jax_flows)
CIRCLE = math.pi


def on_both(architecture: dict[str, Any], x: np.ndarray, scale: float = 1.0) -> list[np.ndarray]:
    """log_prob in both halves, at the same random weights."""
    ours = torch_flows.build(architecture).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in ours.parameters():
            weight.copy_(scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    theirs = jax_flows.build(architecture)
    state = {name: value.numpy() for name, value in ours.state_dict().items()}
    variables = torch_to_jax(state, theirs.shapes())
    log_prob = jax.jit(theirs.log_prob)(variables, jnp.asarray(x))
    return [ours.log_prob(torch.from_numpy(x)).detach().numpy(), np.asarray(log_prob)]


def grid(*axes: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


def test_a_torus_has_mass_one_and_no_seam() -> None:
    network = arch("MLP", hidden_dims=[4], activation="tanh")
    moebius = arch("MoebiusMap", num_components=2, bound=1.0)
    layers = [
        arch("MaskedAutoregressive", dim=2, map=moebius, conditioner=network),
        arch("Coupling", dim=2, map=moebius, conditioner=network, mask="odd"),
    ]
    torus = flow(arch("Chain", bijectors=layers), arch("VonMises", dim=2, concentration=2.0))
    angles = np.linspace(-CIRCLE, CIRCLE, 129)[:-1]
    seam = np.array([[-CIRCLE, 0.4], [CIRCLE, 0.4], [-1.0, CIRCLE], [-1.0, -CIRCLE]])
    for log_prob in on_both(torus, np.concatenate([grid(angles, angles), seam]), 0.5):
        mass = np.exp(log_prob[:-4]).mean() * (2 * CIRCLE) ** 2
        assert mass == pytest.approx(1, abs=1e-10)
        assert log_prob[-4::2] == pytest.approx(log_prob[-3::2], abs=1e-12)


@pytest.mark.parametrize("concentration", [0.5, 200.0])
def test_von_mises(concentration: float) -> None:
    """Mass 1 by the trapezoid; a sample's distribution function, by another rule, is its noise."""
    noise = np.array([0.0, 1e-6, 0.2, 0.5, 0.97])
    nodes, weights = np.polynomial.legendre.leggauss(200)
    ours, theirs = (half.VonMises(1, concentration, loc=0.3) for half in HALVES)
    ends = [
        ours.from_noise(torch.from_numpy(noise[:, None])).numpy()[:, 0],
        np.asarray(theirs.from_noise({}, jnp.asarray(noise[:, None])))[:, 0],
    ]
    lengths = np.mod(np.stack(ends) - 0.3 + CIRCLE, 2 * CIRCLE)[..., None]
    points = 0.3 - CIRCLE + lengths / 2 * (nodes + 1)
    points = np.where(points < -CIRCLE, points + 2 * CIRCLE, points)
    beyond = np.array([-3.2, 3.2])
    z = np.concatenate([np.linspace(-CIRCLE, CIRCLE, 257)[1:], beyond, points.ravel()])[:, None]
    found = [
        ours.log_prob(torch.from_numpy(z)).numpy(),
        np.asarray(jax.jit(theirs.log_prob)({}, jnp.asarray(z))),
    ]
    for log_prob in found:
        density = np.exp(log_prob)
        assert density[:256].mean() * 2 * CIRCLE == pytest.approx(1, abs=1e-10)
        assert density[256:258].tolist() == [0, 0]
        shares = (density[258:].reshape(points.shape) * weights).sum(-1) * lengths[..., 0] / 2
        np.testing.assert_allclose(shares % 1, np.stack([noise, noise]), rtol=0, atol=1e-12)
    assert all(((end >= -CIRCLE) & (end < CIRCLE)).all() for end in ends)


@pytest.mark.parametrize("half", HALVES)
def test_numbers_out_of_range(half: Any) -> None:
    with pytest.raises(ValueError, match="concentration between 0 and 1000, got 0"):
        half.VonMises(1, 0)
    with pytest.raises(ValueError, match="loc from -1 to 1, got 2"):
        half.VonMises(1, 1.0, loc=2.0, low=-1.0, high=1.0)
    with pytest.raises(ValueError, match="bound between 0 and 100"):
        half.MoebiusMap(bound=1000.0)
