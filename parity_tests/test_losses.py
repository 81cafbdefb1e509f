"""The losses of ``fit``: the same in both halves, weighted, drawn on the host, and the user's own."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge.weights import torch_to_jax
from jax_flows.checkpoint import from_numpy
from parity_tests.catalogue import Case, arch, flow
from parity_tests.test_training import HALVES, QUIET, SMALL, data, distance, fit_half, run_both
from twinflows.parity.limits import TRAJECTORY

AFFINE = Case("affine", flow(arch("Affine", dim=2), arch("StandardNormal", dim=2)))
CONDITIONAL = Case("conditional", flow(
    arch("Planar", dim=2, context_dim=1), arch("StandardNormal", dim=2),
))  # fmt: skip
PACKAGES: dict[str, Any] = {"torch": torch_flows, "jax": jax_flows}


def energy(x: Any) -> Any:
    return 2 * (x[..., 0] - 1) ** 2 + (x[..., 1] + 2) ** 2 / 2


def run_losses(case: Case, x: Any, losses: Any, **options: Any) -> Any:
    """``fit`` in both halves, each with its own loss."""
    options = QUIET | options
    return run_both(
        case,
        lambda m: torch_flows.fit(m, x, loss=losses["torch"], **options),
        lambda m, v: jax_flows.fit(m, v, x, loss=losses["jax"], **options),
    )


def shaken(package: Any) -> Any:
    """-log q of noisy rows: a loss of the user's own that draws."""

    @dataclass(frozen=True)
    class Shaken(package.Loss):
        scale: float = 1.0

        def draw(self, flow: Any, generator: Any, num_rows: int) -> Any:
            return generator.standard_normal((num_rows, 2)), generator.random(num_rows)

        def __call__(self, flow: Any, *given: Any) -> Any:
            *variables, x, context, noise, share = given
            moved = x + self.scale * share[:, None] * noise
            return -flow.log_prob(*variables, moved, context)

    return Shaken()


def matched(package: Any) -> Any:
    """A loss that reorders what it draws by the rows."""

    @dataclass(frozen=True)
    class Matched(package.Loss):
        def draw(self, flow: Any, generator: Any, num_rows: int) -> Any:
            return (generator.standard_normal((num_rows, 2)),)

        def match(self, rows: Any, noise: Any) -> Any:
            assert len(rows) == 2  # x and context
            assert all(isinstance(array, np.ndarray) for array in rows)
            order = np.empty(len(noise[0]), int)
            order[np.argsort(rows[0][:, 0])] = np.argsort(noise[0][:, 0])
            return (noise[0][order],)

        def __call__(self, flow: Any, *given: Any) -> Any:
            *variables, x, context, noise = given
            return -flow.log_prob(*variables, (x + noise) / 2, context)

    return Matched()


def test_a_loss_that_draws_gets_the_same_numbers_in_both_halves() -> None:
    losses = {half: shaken(package) for half, package in PACKAGES.items()}
    in_torch, in_jax, history, twin = run_losses(SMALL, data(100), losses, num_epochs=4)
    assert distance(in_torch, in_jax) < TRAJECTORY
    np.testing.assert_allclose(history.validation_loss, twin.validation_loss, rtol=1e-11)
    plain, _ = fit_half("torch", SMALL, data(100), num_epochs=4)
    assert distance(in_torch, plain) > 1e-4


def test_a_loss_that_matches_reads_rows_on_the_host() -> None:
    losses = {half: matched(package) for half, package in PACKAGES.items()}
    context = np.random.default_rng(0).standard_normal((70, 1))
    in_torch, in_jax, *_ = run_losses(
        CONDITIONAL, data(70), losses, context=context, num_epochs=3, learning_rate=1e-2
    )
    assert distance(in_torch, in_jax) < TRAJECTORY
    assert distance(in_torch, CONDITIONAL.weights()) > 1e-2


@HALVES
def test_a_run_with_a_loss_that_draws_is_resumed(half: str, tmp_path: Path) -> None:
    loss, x = shaken(PACKAGES[half]), data(90)
    options = {"loss": loss, "weights": np.arange(90.0)}
    fit_half(half, AFFINE, x, num_epochs=1, state_path=tmp_path / "s", state_every=2, **options)
    resumed, history = fit_half(half, AFFINE, x, num_epochs=3, state_path=tmp_path / "s", **options)
    straight, uninterrupted = fit_half(half, AFFINE, x, num_epochs=3, **options)
    assert history == uninterrupted
    for name, array in straight.items():
        np.testing.assert_array_equal(array, resumed[name])
    with pytest.raises(Exception, match="another run: its weights is"):
        fit_half(half, AFFINE, x, state_path=tmp_path / "s", loss=loss)
    with pytest.raises(Exception, match="another run: its loss is"):
        fit_half(half, AFFINE, x, state_path=tmp_path / "s", weights=options["weights"])


def test_a_function_of_the_user() -> None:
    """The mean of -log q and a penalty, in both halves."""

    def in_torch(model: Any, x: Any, context: Any) -> Any:
        z, _ = model.forward(x, context)
        return -model.log_prob(x, context) + 0.1 * (z**4).sum(-1)

    def in_jax(model: Any, variables: Any, x: Any, context: Any) -> Any:
        z, _ = model.forward(variables, x, context)
        return -model.log_prob(variables, x, context) + 0.1 * (z**4).sum(-1)

    losses = {"torch": in_torch, "jax": in_jax}
    one, other, *_ = run_losses(AFFINE, data(64), losses, num_epochs=3)
    assert distance(one, other) < TRAJECTORY
    assert distance(one, fit_half("torch", AFFINE, data(64), num_epochs=3)[0]) > 1e-4


@HALVES
def test_weights_of_rows(half: str, quick_jax: None) -> None:
    """Of 0 and 1: as the subset, in training and validation; twice a weight: the row twice."""
    x, kept = data(60), np.arange(60) % 3 > 0
    options = {"num_epochs": 3, "batch_size": 60, "learning_rate": 1e-2}
    given = {"validation": x, "validation_weights": kept.astype(float)}
    weighted = fit_half(half, AFFINE, x, weights=7.0 * kept, **given, **options)
    subset = fit_half(half, AFFINE, x[kept], validation=x[kept], **options)
    assert distance(weighted[0], subset[0]) < TRAJECTORY
    np.testing.assert_allclose(weighted[1].train_loss, subset[1].train_loss, rtol=1e-12)
    np.testing.assert_allclose(weighted[1].validation_loss, subset[1].validation_loss, rtol=1e-12)
    twice, _ = fit_half(half, AFFINE, x, weights=1.0 + kept, validation=0, **options)
    batch = np.concatenate([x, x[kept]])
    doubled, _ = fit_half(half, AFFINE, [batch], validation=0, **options)
    assert distance(twice, doubled) < TRAJECTORY
    triples = [(x, None, (1.0 + kept) / (1 + kept).mean())]
    streamed, _ = fit_half(half, AFFINE, triples, validation=0, **options)
    assert distance(twice, streamed) < TRAJECTORY


def test_weights_and_a_context_in_both_halves() -> None:
    context = np.random.default_rng(0).standard_normal((70, 1))
    options = {"context": context, "weights": np.random.default_rng(1).random(70), "num_epochs": 3}
    in_torch, in_jax, history, twin = run_losses(
        CONDITIONAL, data(70), {"torch": None, "jax": None}, **options
    )
    assert distance(in_torch, in_jax) < TRAJECTORY
    np.testing.assert_allclose(history.validation_loss, twin.validation_loss, rtol=1e-11)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_importance_weighted_bounds_in_both_halves(alpha: float) -> None:
    losses = {
        half: package.ImportanceWeighted(energy, 4, alpha) for half, package in PACKAGES.items()
    }
    in_torch, in_jax, history, _ = run_losses(AFFINE, None, losses, num_steps=250, batch_size=8)
    assert distance(in_torch, in_jax) < TRAJECTORY
    assert len(history.train_loss) == 2
    assert len(history.step_losses) == 250


@HALVES
def test_values_of_losses_by_hand(half: str, quick_jax: None) -> None:
    """Of x = (z - shift) / scale, whose densities and slopes are those of a normal."""
    package, noise = PACKAGES[half], np.random.default_rng(0).standard_normal((3, 4, 2))
    shift, scale = np.array([0.3, -0.2]), np.array([1.5, 0.5])
    weights = {"bijector.shift": shift, "bijector.log_scale": np.log(scale)}
    if half == "torch":
        model, given, array = AFFINE.torch_model(), (), torch.from_numpy
        model.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    else:
        model = jax_flows.build(AFFINE.architecture)
        given, array = (from_numpy(torch_to_jax(weights, model.shapes())),), jnp.asarray

    def values(loss: Any, x: Any, *noise: Any) -> Any:
        found = loss(model, *given, x, None, *noise)
        return found.detach() if half == "torch" else found

    x = (noise - shift) / scale
    log_q = -(noise**2).sum(-1) / 2 - np.log(2 * np.pi) + np.log(scale).sum()
    log_ratio, rise = log_q + energy(x), np.stack([4 * (x[..., 0] - 1), x[..., 1] + 2], -1)
    for path_gradient in (False, True):
        found = values(package.ReverseKL(energy, path_gradient), None, array(noise[:, 0]))
        np.testing.assert_allclose(found, log_ratio[:, 0], rtol=1e-12)
    for alpha in (0.0, 0.5, 2.0):
        loss = package.ImportanceWeighted(energy, 4, alpha)
        bound = -np.log(np.exp((alpha - 1) * log_ratio).mean(1)) / (1 - alpha)
        np.testing.assert_allclose(values(loss, None, array(noise)), bound, rtol=1e-12)
    slopes = (-rise - -noise * scale)[:, 0]
    for latent, difference in ((True, slopes / scale), (False, slopes)):
        found = values(package.FisherDivergence(energy, latent), array(x[:, 0]))
        np.testing.assert_allclose(found, (difference**2).sum(-1), rtol=1e-12)


def test_noisy_likelihood_in_both_halves() -> None:
    """The tail: a normal of variance 1 that holds noise of 0.36, whose denoised mean is known."""
    losses = {half: package.NoisyLikelihood(0.5) for half, package in PACKAGES.items()}
    in_torch, in_jax, history, twin = run_losses(
        AFFINE, data(64), losses, num_epochs=3, batch_size=32
    )
    assert distance(in_torch, in_jax) < TRAJECTORY
    np.testing.assert_allclose(history.train_loss, twin.train_loss, rtol=1e-11)
    plain, _ = fit_half("torch", AFFINE, data(64), num_epochs=3, batch_size=32)
    assert distance(in_torch, plain) > 1e-3
    x, given = np.random.default_rng(0).standard_normal((3, 2)), []
    for half, package in PACKAGES.items():
        normal = package.Flow(package.Affine(2), package.StandardNormal(2))
        if half == "torch":
            found = package.denoise(normal.double(), torch.from_numpy(x), 0.6).detach()
        else:
            weights = {f"bijector.{name}": np.zeros(2) for name in ("shift", "log_scale")}
            given = [from_numpy(torch_to_jax(weights, normal.shapes()))]
            found = package.denoise(normal, *given, jnp.asarray(x), 0.6)
        np.testing.assert_allclose(found, 0.64 * x, rtol=1e-12)
        with pytest.raises(ValueError, match="sigma"):
            package.NoisyLikelihood(0.0)
        with pytest.raises(ValueError, match="sigma"):
            package.denoise(normal, *given, x, -1.0)


@HALVES
def test_one_importance_weight_is_the_reverse_kl(half: str, quick_jax: None) -> None:
    package = PACKAGES[half]
    options = {"num_steps": 5, "batch_size": 16}
    one, _ = fit_half(half, AFFINE, None, loss=package.ImportanceWeighted(energy, 1), **options)
    other, _ = fit_half(half, AFFINE, None, loss=package.ReverseKL(energy), **options)
    assert distance(one, other) < TRAJECTORY


@HALVES
@pytest.mark.parametrize(("options", "message"), [
    ({"weights": -np.ones(12)}, "fit expects weights to be at least 0 and some above, got -1 to -1."),
    ({"weights": np.zeros(12)}, "fit expects weights to be at least 0 and some above, got 0 to 0."),
    ({"weights": np.ones(11)}, "fit expects data's weights of shape (12,) and dtype float64, one for each "
     "row, got float64 of shape (11,)."),
    ({"weights": np.full(12, math.nan)}, "fit got a NaN or an infinity in row 0 of data's weights."),
    ({"validation_weights": np.ones(3)}, "fit takes validation_weights with validation data only."),
    ({"num_steps": 3}, "fit takes num_steps without data only: with data num_epochs counts."),
    ({"loss": 3}, "fit expects loss as a function, got int."),
    ({"loss": lambda *given: given[-2].sum()}, "fit expects loss to give one number for each of 4 rows, "
     "shape (4,), got shape ()."),
    ({"loss": lambda *given: 0.0}, "fit expects loss to give one number for each of 4 rows, shape (4,), "
     "got a number."),
    ({"data": None}, "fit needs data for NegativeLogLikelihood."),
    ({"data": None, "loss": lambda *given: 0.0}, "fit without data needs num_steps."),
    ({"data": None, "loss": lambda *given: 0.0, "num_steps": 2},
     "fit without data needs a loss that draws its own rows."),
])  # fmt: skip
def test_refused(half: str, options: dict[str, Any], message: str) -> None:
    options = {"data": data(12), "num_epochs": 1, "batch_size": 4} | options
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}"):
        fit_half(half, AFFINE, options.pop("data"), **options)


@HALVES
def test_options_of_losses(half: str) -> None:
    package = PACKAGES[half]
    with pytest.raises(
        ValueError, match=r"^ImportanceWeighted with alpha=1 is ReverseKL: use that.$"
    ):
        package.ImportanceWeighted(energy, alpha=1)
    with pytest.raises(ValueError, match=r"^ImportanceWeighted expects alpha to be a number of at"):
        package.ImportanceWeighted(energy, alpha=-1)
    loss = package.ReverseKL(energy)
    with pytest.raises(ValueError, match=r"^fit takes weights with data only.$"):
        fit_half(half, AFFINE, None, loss=loss, num_steps=2, weights=np.ones(3))
