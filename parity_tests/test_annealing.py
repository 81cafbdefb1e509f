"""Annealed importance sampling, its bootstrap and the energies: closed forms, and the same in both halves."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import jax_flows
import torch_flows
from parity_tests.catalogue import Case, arch, flow
from parity_tests.test_losses import run_losses
from parity_tests.test_training import HALVES, distance
from twinflows.inference import log_evidence
from twinflows.parity.limits import TRAJECTORY

NORMAL = Case("normal", flow(arch("Affine", dim=2), arch("StandardNormal", dim=2)))
MEAN, SCALE = np.array([0.5, -0.4]), np.array([0.6, 1.1])
PACKAGES: dict[str, Any] = {"torch": torch_flows, "jax": jax_flows}


def energy(x: Any) -> Any:
    """Of a normal, times exp(-3)."""
    return (((x - like(x, MEAN)) / like(x, SCALE)) ** 2).sum(-1) / 2 + 3


def like(x: Any, array: np.ndarray) -> Any:
    return (
        torch.as_tensor(array, dtype=x.dtype) if isinstance(x, torch.Tensor) else jnp.asarray(array)
    )


LOG_Z = math.log(2 * math.pi * SCALE.prod()) - 3


def annealed(half: str, num_samples: int, energy: Any = energy, **options: Any) -> Any:
    """Samples from the standard normal towards an energy."""
    sampling = PACKAGES[half].AnnealedImportanceSampling(energy, **options)
    if half == "torch":
        model = NORMAL.torch_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return sampling.sample(model, num_samples)
    model = jax_flows.build(NORMAL.architecture)
    variables = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0)))
    return sampling.sample(model, variables, num_samples)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_both_halves_draw_the_same(power: float) -> None:
    pair = [annealed(half, 50, power=power, step_size=0.3) for half in ("torch", "jax")]
    for a, b in zip(*pair, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-11)


def test_the_mean_weight_is_the_normaliser() -> None:
    draws = annealed("torch", 4000, step_size=0.5, num_temperatures=6)
    estimate = log_evidence(draws.log_weight)
    assert estimate.standard_error < 0.02
    assert abs(estimate.value - LOG_Z) < 4 * estimate.standard_error
    unmoved = log_evidence(-energy(draws.x) - draws.log_prob)  # of x that are not the flow's
    assert abs(unmoved.value - LOG_Z) > 4 * estimate.standard_error


def test_at_power_two_the_mean_weight_is_the_integral_of_the_squared_density_over_q() -> None:
    draws = annealed("torch", 4000, power=2.0, step_size=0.5, num_temperatures=6)
    variance = 1 / (2 / SCALE**2 - 1)  # of p^2 / q
    exponent = variance * (2 * MEAN / SCALE**2) ** 2 / 2 - MEAN**2 / SCALE**2
    exact = (np.log(np.sqrt(2 * np.pi * variance)) + exponent).sum() + math.log(2 * math.pi) - 6
    estimate = log_evidence(draws.log_weight)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error < 0.1
    mean = draws.log_weight.softmax(0) @ draws.x
    np.testing.assert_allclose(mean, variance * 2 * MEAN / SCALE**2, atol=0.1)


def test_in_inference_mode_it_moves_as_outside() -> None:
    with torch.inference_mode():
        inside = annealed("torch", 20, step_size=0.3)
    np.testing.assert_array_equal(inside.x, annealed("torch", 20, step_size=0.3).x)


@HALVES
def test_without_steps_that_move_it_is_importance_sampling(half: str) -> None:
    draws = annealed(half, 20, step_size=1e-9)
    np.testing.assert_allclose(draws.log_weight, -draws.energy - draws.log_prob, atol=1e-6)
    assert np.asarray(draws.acceptance).min() == 1


@HALVES
def test_no_move_leaves_the_support(half: str) -> None:
    """Where the energy is infinite or NaN."""

    def walled(x: Any) -> Any:
        where = torch.where if half == "torch" else jnp.where
        return where(x[..., 0] > 0, where(x[..., 0] > 1, math.nan, energy(x)), math.inf)

    draws = annealed(half, 200, walled, step_size=0.7)
    finite = np.isfinite(np.asarray(draws.log_weight))
    inside = np.asarray(draws.x)[finite, 0]
    assert 0.2 < finite.mean() < 0.5
    assert inside.min() > 0
    assert inside.max() <= 1


def test_the_bootstrap_trains_alike_and_finds_the_target() -> None:
    losses = {
        half: package.AnnealedBootstrap(
            package.AnnealedImportanceSampling(energy, 2.0, num_temperatures=2, step_size=0.4)
        )
        for half, package in PACKAGES.items()
    }
    options = {"num_steps": 120, "batch_size": 128, "learning_rate": 0.05}
    state, twin, *_ = run_losses(NORMAL, None, losses, **options)
    assert distance(state, twin) < TRAJECTORY
    model = NORMAL.torch_model()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    with torch.no_grad():
        x = model.sample(20_000, generator=torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.1)
    np.testing.assert_allclose(x.std(0), SCALE, rtol=0.1)


def test_replayed_rows_follow_their_weights() -> None:
    buffer = torch_flows.ReplayBuffer(1000, seed=1)
    x = np.arange(1000.0)[:, None]
    buffer.add(x, np.where(x[:, 0] < 500, 0, math.log(3)), np.zeros(1000))
    drawn = np.concatenate([buffer.draw(50).x[:, 0] for _ in range(100)])
    assert abs((drawn >= 500).mean() - 0.75) < 0.03
    assert len(np.unique(buffer.draw(1000).rows)) == 1000


def test_corrections_of_replayed_rows() -> None:
    buffer = jax_flows.ReplayBuffer(3, power=2.0, largest=10.0)
    buffer.add([[0.0]], [0.0], [0.0])  # pushed out
    x = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    buffer.add(x, [0.0, 0.0, math.nan], [-1.0, -1.0, -1.0])
    assert len(buffer) == 3
    drawn = buffer.draw(3)
    rows = np.argsort(drawn.x[:, 0])
    assert drawn.x[rows, 0].tolist() == [0, 1, 2]
    factors = buffer.correct(drawn.rows[rows], np.array([0.0, -1.5, -9.0]))
    np.testing.assert_allclose(factors, [1, math.exp(0.5), 10])
    again = buffer.draw(3)
    assert sorted(again.log_prob) == [-9, -1.5, 0]
    np.testing.assert_allclose(buffer.correct(again.rows, again.log_prob), 1)
    with pytest.raises(ValueError, match="asked for 4"):
        buffer.draw(4)
    with pytest.raises(ValueError, match=r"rows of shape \(1,\), got \(2,\)"):
        buffer.add(np.zeros((1, 2)), [0.0], [0.0])
    with pytest.raises(ValueError, match="for each of 1 rows"):
        buffer.add(np.zeros((1, 1)), [0.0, 0.0], [0.0])


ENERGIES = [
    ("ManyWell", {"dim": 4}, 4),
    ("NormalModes", {"num_modes": 3, "width": 2.0}, 2),
    ("ScalarField", {"shape": (3, 4)}, 12),
    ("ScalarField", {"shape": (2,), "mass_squared": 1.0}, 2),
    ("LennardJones", {"num_particles": 3}, 9),
    ("DoubleWellParticles", {}, 8),
]


@pytest.mark.parametrize(("name", "options", "dim"), ENERGIES)
def test_energies_and_forces_are_the_same(name: str, options: Any, dim: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, dim))
    point = torch.from_numpy(x).requires_grad_()
    ours = getattr(torch_flows.energies, name)(**options)(point)
    theirs, pull = jax.vjp(getattr(jax_flows.energies, name)(**options), jnp.asarray(x))
    assert ours.shape == theirs.shape == (2, 3)
    (force,) = torch.autograd.grad(ours.sum(), point)
    np.testing.assert_allclose(ours.detach(), theirs, rtol=1e-12)
    np.testing.assert_allclose(force, pull(jnp.ones_like(theirs))[0], rtol=1e-9, atol=1e-9)


def test_normalisers_by_quadrature() -> None:
    ends = np.linspace(-9, 9, 1201)
    plane = torch.from_numpy(np.stack(np.meshgrid(ends, ends), -1))
    for target in (
        torch_flows.energies.ManyWell(2),
        torch_flows.energies.NormalModes(5, width=3.0, scale=0.7),
    ):
        total = (-target(plane)).exp().sum().item() * (ends[1] - ends[0]) ** 2
        assert abs(math.log(total) - target.log_normalizer) < 1e-10
    assert math.isclose(
        torch_flows.energies.ManyWell(32).log_normalizer,
        16 * torch_flows.energies.ManyWell(2).log_normalizer,
    )


def test_the_icosahedron_of_thirteen_particles() -> None:
    """The known smallest energy of Lennard-Jones clusters, from an icosahedron and its centre."""
    golden = (1 + math.sqrt(5)) / 2
    corners = [(0, a, b) for a in (-1, 1) for b in (-golden, golden)]
    points = [np.roll(corner, k) for corner in corners for k in range(3)] + [np.zeros(3)]
    target = torch_flows.energies.LennardJones(stiffness=0.0)

    def run(x: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(x).requires_grad_()
        value = target(point)
        return value.item(), torch.autograd.grad(value, point)[0].numpy()

    found = minimize(run, np.concatenate(points) / 2, jac=True, tol=1e-12)
    assert abs(found.fun + 44.326801) < 1e-6


def test_a_field_without_neighbours_is_free() -> None:
    """A constant field has no gradient term; one site moved by h adds 2 h^2 for each axis."""
    target = torch_flows.energies.ScalarField((4, 5), mass_squared=-1.0, coupling=0.5)
    x = torch.full((20,), 2.0, dtype=torch.float64)
    assert target(x).item() == pytest.approx(20 * (-4 + 0.5 * 16))
    x[7] = 0.0
    assert target(x).item() == pytest.approx(19 * 4 + 2 * 2 * 4)


@HALVES
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.AnnealedImportanceSampling(3), "energy"),
        (lambda p: p.AnnealedImportanceSampling(energy, power=0), "power"),
        (lambda p: p.AnnealedImportanceSampling(energy, num_leapfrog=0), "num_leapfrog"),
        (lambda p: p.AnnealedBootstrap(energy), "AnnealedImportanceSampling"),
        (lambda p: p.energies.ManyWell(3), "divisible"),
        (lambda p: p.energies.ScalarField((1, 3)), "at least 2 sites"),
        (lambda p: p.energies.LennardJones(1), "at least 2 particles"),
        (lambda p: p.ReplayBuffer(0), "capacity"),
    ],
)
def test_refused(half: str, make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make(PACKAGES[half])
