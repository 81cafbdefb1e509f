"""Angles: densities on circles and tori, and spaces in which some coordinates are angles."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

import jax_flows
import torch_flows
from flow_bridge.weights import torch_to_jax
from parity_tests.catalogue import arch, flow

HALVES = (torch_flows, jax_flows)
CIRCLE = math.pi
NORMAL = arch("StandardNormal", dim=1)


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


def test_moebius_maps_of_the_plane() -> None:
    """The formula of Rezende et al. in complex numbers, its angle continued from low."""
    count, low, high, bound = 3, -1.0, 2.0, 4.0
    parameters = np.random.default_rng(0).standard_normal(3 * count + 1)
    logits, raw_a, raw_b = parameters[:-1].reshape(3, count, 1)
    start = 0.1 * np.exp(2j * np.pi * np.arange(count)[:, None] / count)
    c = bound * np.tanh(raw_a / bound) + 1j * bound * np.tanh(raw_b / bound) + start
    omega = c / np.sqrt(1 + abs(c) ** 2)
    x = np.linspace(low, high, 301)
    point = np.exp(2j * np.pi * (x - low) / (high - low))
    moved = (1 - abs(omega) ** 2) / abs(point - omega) ** 2 * (point - omega) - omega
    angle = np.unwrap(np.angle(moved), axis=1)
    weights = np.exp(logits) / np.exp(logits).sum()
    turned = (weights * (angle - angle[:, :1])).sum(0) * (high - low) / (2 * np.pi)
    expected = np.mod(turned + parameters[-1], high - low) + low
    rows = np.tile(parameters, (len(x), 1))
    ours, theirs = (half.MoebiusMap(count, low, high, bound) for half in HALVES)
    for z in (
        ours.forward(torch.from_numpy(x), torch.from_numpy(rows))[0].numpy(),
        np.asarray(jax.jit(theirs.forward)(x, rows)[0]),
    ):
        np.testing.assert_allclose(np.sin(z - expected), 0, atol=1e-13)
        assert abs(z - expected).max() < 1e-12


def test_what_networks_see_of_angles() -> None:
    x = np.array([[0.0, 0.5, 1.25]])
    expected = [[1, -1, 0, 0, 0, 1]]  # of 0, a half and a quarter of a turn of length 1
    for found in (
        torch_flows.MoebiusMap(low=0.0, high=1.0).features(torch.from_numpy(x), -1),
        jax_flows.SplineMap(2, 0.0, 1.0, "circular").features(jnp.asarray(x), -1),
    ):
        np.testing.assert_allclose(np.asarray(found), expected, atol=1e-15)


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


def test_a_line_times_a_circle() -> None:
    """Coordinates of two kinds condition each other: mass 1, no seam, and outside of it nothing."""
    network = arch("MLP", hidden_dims=[4], activation="tanh")
    map = arch("MixedMap", maps=[arch("AffineMap"), arch("MoebiusMap", num_components=2, bound=1.0)],
               columns=[[1], [0]])  # fmt: skip
    layers = [
        arch("Coupling", dim=2, map=map, conditioner=network, mask=mask) for mask in ("even", "odd")
    ]
    base = arch("Product", distributions=[NORMAL, arch("VonMises", dim=1)], columns=[[1], [0]])
    mixed = flow(arch("Chain", bijectors=[arch("Elementwise", dim=2, map=map), *layers]), base)
    angles, line = np.linspace(-CIRCLE, CIRCLE, 193)[:-1], np.linspace(-30, 30, 401)
    seam = np.array([[-CIRCLE, 0.4], [CIRCLE, 0.4]])
    outside = np.array([[CIRCLE + 0.1, 0.0]])
    for log_prob in on_both(mixed, np.concatenate([grid(angles, line), seam, outside]), 0.3):
        mass = np.exp(log_prob[:-3]).sum() * (2 * CIRCLE / 192) * (line[1] - line[0])
        assert mass == pytest.approx(1, abs=1e-10)
        assert log_prob[-3] == pytest.approx(log_prob[-2], abs=1e-12)
        assert log_prob[-1] == -np.inf


def test_a_continuous_flow_on_the_torus() -> None:
    steps = (np.arange(17) / 16).tolist()
    field = arch("ContinuousBijector", dim=2, hidden_dims=[4], circular=[0, 1], grid=steps)
    torus = flow(field, arch("Uniform", dim=2, low=-CIRCLE, high=CIRCLE))
    angles = np.linspace(-CIRCLE, CIRCLE, 49)[:-1]
    seam = np.array([[-CIRCLE, 0.4], [CIRCLE, 0.4], [CIRCLE + 0.1, 0.0]])
    for log_prob in on_both(torus, np.concatenate([grid(angles, angles), seam]), 0.3):
        mass = np.exp(log_prob[:-3]).mean() * (2 * CIRCLE) ** 2
        assert mass == pytest.approx(1, abs=1e-10)
        assert log_prob[-3] == pytest.approx(log_prob[-2], abs=1e-12)
        assert log_prob[-1] == -np.inf
        assert log_prob[:-3].std() > 0.1


@pytest.mark.parametrize("half", HALVES)
def test_columns_of_several_kinds(half: Any) -> None:
    parts = [half.StandardNormal(2), half.Uniform(1, -1.0, 2.0)]
    base = half.Product(parts, [[0, 2], [1]])
    given = () if half is torch_flows else (base.init(jax.random.key(0)),)
    noise = np.array([0.1, -0.2, 0.7], np.float32)
    found = base.from_noise(*given, torch.from_numpy(noise) if half is torch_flows else noise)
    np.testing.assert_allclose(found, [0.1, 3 * stats.norm.cdf(0.7) - 1, -0.2], rtol=1e-6)
    map = half.MixedMap([half.AffineMap(), half.SplineMap(2, -1.0, 2.0, "circular")], [[0, 2], [1]])
    assert map.part([1]) == half.MixedMap([map.maps[1]], [[0]])
    flow = half.Flow(half.Coupling(3, map), base)
    assert [interval.low for interval in flow.bijector.intervals()] == [-np.inf, -1, -np.inf]
    with pytest.raises(ValueError, match="its density would not integrate to 1"):
        half.Flow(half.Coupling(3, map), half.StandardNormal(3))
    with pytest.raises(ValueError, match=r"shape .*4.*, but a MixedMap of 3 columns"):
        half.Coupling(4, map)
    with pytest.raises(ValueError, match="no mask for its conditioner SeparateMLPs: take another"):
        half.Coupling(3, half.SplineMap(2, boundary="circular"), half.networks.mlp.SeparateMLPs)
    with pytest.raises(ValueError, match="one map for all dimensions: a MixedMap belongs"):
        half.MaskedAutoregressive(3, map)
    with pytest.raises(ValueError, match=r"distributions\[1\] of shape .* for 2 columns"):
        half.Product(parts, [[0, 2], [1, 3]])


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


def test_von_mises_of_another_circle_is_scipys() -> None:
    x, u = np.linspace(-1, 2, 7)[:, None], np.array([[0.3], [0.9]])
    ours, theirs = (half.VonMises(1, 3.0, loc=0.5, low=-1.0, high=2.0) for half in HALVES)
    turn = 2 * np.pi / 3
    expected = stats.vonmises.logpdf(turn * (x[:, 0] - 0.5), 3.0) + np.log(turn)
    drawn = 0.5 + stats.vonmises.ppf(u, 3.0) / turn
    np.testing.assert_allclose(ours.log_prob(torch.from_numpy(x)), expected, rtol=1e-12)
    np.testing.assert_allclose(theirs.log_prob({}, x), expected, rtol=1e-12)
    np.testing.assert_allclose(ours.from_noise(torch.from_numpy(u)), drawn, rtol=1e-9)


@pytest.mark.parametrize("half", HALVES)
def test_numbers_out_of_range(half: Any) -> None:
    with pytest.raises(ValueError, match="concentration between 0 and 1000, got 0"):
        half.VonMises(1, 0)
    with pytest.raises(ValueError, match="loc from -1 to 1, got 2"):
        half.VonMises(1, 1.0, loc=2.0, low=-1.0, high=1.0)
    with pytest.raises(ValueError, match="bound between 0 and 100"):
        half.MoebiusMap(bound=1000.0)


def test_the_sphere_is_a_cylinder_of_the_same_areas() -> None:
    x = torch.tensor(np.random.default_rng(0).uniform(-1, 1, (2, 5, 2)) * [math.pi, 1])
    y = torch_flows.sphere_from_cylinder(x)
    np.testing.assert_allclose(y.square().sum(-1), 1, rtol=1e-15)
    np.testing.assert_allclose(torch_flows.cylinder_from_sphere(3 * y), x, atol=1e-12)
    np.testing.assert_allclose(jax_flows.sphere_from_cylinder(jnp.asarray(x)), y, atol=1e-15)
    np.testing.assert_allclose(jax_flows.cylinder_from_sphere(jnp.asarray(y)), x, atol=1e-12)
    slopes = torch.autograd.functional.jacobian(torch_flows.sphere_from_cylinder, x[0, 0])
    assert torch.linalg.cross(*slopes.T).norm().item() == pytest.approx(1, abs=1e-12)  # the area
    for half, array in ((torch_flows, x), (jax_flows, jnp.asarray(x))):
        with pytest.raises(ValueError, match=r"expects y of shape \(\*batch, 3\), got \(2, 5, 2\)"):
            half.cylinder_from_sphere(array)


@pytest.mark.parametrize("mask", ["even", "odd"])
def test_a_flow_on_the_sphere_integrates_to_one(mask: str) -> None:
    maps = [
        arch("MoebiusMap", num_components=2),
        arch("SplineMap", num_bins=3, low=-1.0, high=1.0, boundary="bounded"),
    ]
    map = arch("MixedMap", maps=maps, columns=[[0], [1]])
    uniform = [arch("Uniform", dim=1, low=-end, high=end) for end in (CIRCLE, 1.0)]
    base = arch("Product", columns=[[0], [1]], distributions=uniform)
    network = arch("MLP", hidden_dims=[4], activation="tanh")
    layer = arch("Coupling", dim=2, map=map, conditioner=network, mask=mask)
    angles, (edges, width) = (
        np.linspace(-CIRCLE, CIRCLE, 33)[:-1],
        np.linspace(-1, 1, 201, retstep=True),
    )
    nodes, weights = np.polynomial.legendre.leggauss(4)
    heights = (edges[:-1, None] + width * (nodes + 1) / 2).ravel()
    for log_prob in on_both(flow(layer, base), grid(angles, heights), 0.5):
        mass = np.exp(log_prob).reshape(32, -1).sum(0) @ np.tile(weights, 200)
        assert mass * width / 2 * CIRCLE / 16 == pytest.approx(1, abs=1e-6)
