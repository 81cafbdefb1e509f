"""What training can do beside taking steps: averages, schedules, decay, parts, callbacks, freezing."""

import math
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge.errors import NonFiniteError
from flow_bridge.schedules import exponential_decay, warmup_cosine, warmup_linear
from flow_bridge.weights import jax_to_torch
from jax_flows.training import move_averages as move_in_jax
from parity_tests.catalogue import Case, arch, flow, smooth_real_nvp
from parity_tests.test_training import HALVES, data, distance, fit_half, run_fit
from torch_flows.training import move_averages as move_in_torch
from twinflows.parity.limits import TRAJECTORY

AFFINE = Case("affine", flow(arch("Affine", dim=2), arch("StandardNormal", dim=2)))
MIXED = Case("mixed", flow(arch("Chain", bijectors=[
    smooth_real_nvp(2, 2), arch("LULinear", dim=2), arch("Planar", dim=2),
]), arch("StandardNormal", dim=2)))  # fmt: skip
BATCHED = Case("batched", flow(arch("Chain", bijectors=[
    arch("BatchNorm", dim=2), arch("Affine", dim=2),
]), arch("StandardNormal", dim=2)))  # fmt: skip
OPTIONS: dict[str, Any] = {
    "ema": 0.9,
    "weight_decay": 0.1,
    "learning_rate": warmup_cosine(1e-2, 10, 150, 1e-4),
    "accumulate": 4,
    "max_grad_norm": 0.5,
    "frozen": ["bijector.bijectors.1", "bijector.bijectors.2.w"],
}


def test_same_trajectory() -> None:
    """With all options at once, after 5 steps and after 200; each changes it."""
    x = data(160)
    for epochs in (1, 40):
        given = {"num_epochs": epochs, "validation": 0} | OPTIONS
        in_torch, in_jax, history, twin = run_fit(MIXED, x, **given)
        assert distance(in_torch, in_jax) < TRAJECTORY
        np.testing.assert_allclose(history.step_losses, twin.step_losses, rtol=1e-11)
    assert len(history.step_losses) == 200
    for name in OPTIONS.keys() - {"accumulate"}:
        less = {key: value for key, value in given.items() if key != name}
        assert distance(fit_half("torch", MIXED, x, **less | {"num_epochs": 3})[0], in_torch) > 1e-4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_averages_are_the_same_bits_in_both_halves(dtype: str) -> None:
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((60, 301)).astype(dtype)
    shares = np.array([1 - min(0.99, (1 + t) / (10 + t)) for t in range(60)])
    average = torch.from_numpy(weights[0].copy())
    for weight, share in zip(torch.from_numpy(weights), shares, strict=True):
        move_in_torch([average], [weight], float(share))

    @jax.jit
    def moved(average: Any, weights: Any, shares: Any) -> Any:
        return jax.lax.fori_loop(
            0, 60, lambda i, a: move_in_jax([a], [weights[i]], shares[i])[0], average
        )

    found = np.asarray(moved(weights[0], weights, shares.astype(dtype)))
    assert found.tobytes() == average.numpy().tobytes()
    exact = weights[0].astype(float)
    for weight, share in zip(weights.astype(float), shares, strict=True):
        exact += share * (weight - exact)
    np.testing.assert_allclose(found, exact, rtol=0, atol=20 * np.finfo(dtype).eps)


@HALVES
def test_averages_are_what_is_validated_kept_and_resumed(half: str, tmp_path: Path) -> None:
    """The average by hand from the weights of a run without it; batch statistics are those of the data."""
    x = data(64)
    options = {"num_epochs": 2, "batch_size": 32, "learning_rate": 1e-2, "validation": 0}
    trained = [BATCHED.weights()]
    for steps in range(1, 5):  # from then on a rate of 0 holds the weights still
        rate = partial(lambda steps, step: 1e-2 if step < steps else 0.0, steps)
        trained.append(fit_half(half, BATCHED, x, **options | {"learning_rate": rate})[0])
    averages, _ = fit_half(half, BATCHED, x, ema=0.5, **options)
    for name, average in trained[0].items():
        if "running" in name:
            assert not np.allclose(average, averages[name])
            continue
        for t, weights in enumerate(trained[1:]):
            average = average + (1 - min(0.5, (1 + t) / (10 + t))) * (weights[name] - average)
        np.testing.assert_allclose(averages[name], average, rtol=1e-12, atol=1e-14)
    state = tmp_path / "s"
    held_out = options | {"validation": 0.2, "ema": 0.5}
    fit_half(half, BATCHED, x, **held_out | {"num_epochs": 1}, state_path=state)
    resumed, found = fit_half(half, BATCHED, x, **held_out, state_path=state)
    straight, expected = fit_half(half, BATCHED, x, **held_out)
    assert found == expected
    for name, array in straight.items():
        np.testing.assert_array_equal(resumed[name], array)
    with pytest.raises(Exception, match=r"another run: its ema is 0.5, here it is None"):
        fit_half(half, BATCHED, x, **held_out | {"ema": None}, state_path=state)
    opened = torch_flows.load(state) if half == "torch" else jax_flows.load(state)[0]
    assert opened.event_shape == (2,)


@HALVES
def test_weight_decay_leaves_out_biases_scales_and_structured_weights(half: str) -> None:
    """Where gradients are 0, only matrices of networks shrink, by rate times decay."""
    loss = {
        "torch": lambda model, x, context: 0 * model.log_prob(x),
        "jax": lambda model, variables, x, context: 0 * model.log_prob(variables, x),
    }[half]
    options = {"num_epochs": 1, "batch_size": 8, "learning_rate": 0.5, "weight_decay": 0.25}
    weights, _ = fit_half(half, MIXED, data(8), validation=0, loss=loss, **options)
    shrunk = set()
    for name, start in MIXED.weights().items():
        if not np.array_equal(weights[name], start):
            np.testing.assert_allclose(weights[name], start * (1 - 0.5 * 0.25), rtol=1e-12)
            shrunk.add(name)
    assert shrunk == {k for k, a in weights.items() if k.endswith(".weight") and a.ndim == 2}
    assert len(shrunk) > 2


@HALVES
def test_parts_of_a_batch_make_the_same_step(half: str) -> None:
    options = {"num_epochs": 3, "batch_size": 30, "learning_rate": 1e-2, "validation": 0}
    whole, history = fit_half(half, AFFINE, data(60), **options)
    parts, found = fit_half(half, AFFINE, data(60), accumulate=5, **options)
    assert distance(whole, parts) < TRAJECTORY
    np.testing.assert_allclose(found.step_losses, history.step_losses, rtol=1e-12)
    with pytest.raises(
        ValueError, match=r"^fit with accumulate=7 expects batches of a multiple of 7"
    ):
        fit_half(half, AFFINE, data(60), accumulate=7, **options)


@HALVES
def test_a_callback_sees_losses_and_weights_and_stops(half: str, tmp_path: Path) -> None:
    seen = []

    def callback(history: Any, given: Any) -> bool:
        own = given.state_dict() if half == "torch" else jax_to_torch(given)
        seen.append((len(history.train_loss), np.array(own["bijector.shift"])))
        return history.train_loss[-1] < 1e9 and len(seen) == 3

    options = {"num_epochs": 9, "learning_rate": 1e-2, "validation": 0}
    weights, history = fit_half(
        half, AFFINE, data(60), callback=callback, state_path=tmp_path / "s", **options
    )
    assert [count for count, _ in seen] == [1, 2, 3]
    assert history.stopped_early
    np.testing.assert_array_equal(seen[-1][1], weights["bijector.shift"])
    assert not np.allclose(seen[0][1], seen[1][1])
    _, resumed = fit_half(half, AFFINE, data(60), state_path=tmp_path / "s", **options)
    assert resumed == history


@HALVES
def test_frozen_weights_stay(half: str) -> None:
    frozen = ["bijector.bijectors.0.bijectors.1", "bijector.bijectors.2.u"]
    weights, _ = fit_half(half, MIXED, data(60), num_epochs=2, learning_rate=1e-2, frozen=frozen)
    for name, start in MIXED.weights().items():
        held = name.startswith(tuple(frozen))
        assert np.array_equal(weights[name], start) == held, name
    with pytest.raises(ValueError, match=r"^fit got frozen='base', and no weight has this name or"):
        fit_half(half, MIXED, data(60), frozen="base")
    with pytest.raises(ValueError, match=r"^fit got a Flow without weights to train.$"):
        fit_half(half, MIXED, data(60), frozen="bijector")


def test_frozen_weights_can_be_trained_again() -> None:
    model = MIXED.torch_model()
    torch_flows.fit(model, data(40), num_epochs=1, frozen="bijector.bijectors.0", progress=False)
    assert all(p.requires_grad for p in model.parameters())


def test_schedulers_of_torch_and_their_states(tmp_path: Path) -> None:
    """As the same schedule by hand; taken up again; by the validation loss."""
    options = {"num_epochs": 4, "batch_size": 16, "validation": 0.2}

    def scheduled(parameters: Any) -> Any:
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)

    def plateau(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        made.append(optimizer)
        return optimizer, scheduler

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights, history = fit_half("torch", AFFINE, data(60), optimizer=scheduled, **options)
        rate = exponential_decay(1e-2, 0.5, 3, stairs=True)
        by_hand, _ = fit_half("torch", AFFINE, data(60), learning_rate=rate, **options)
        assert distance(weights, by_hand) < TRAJECTORY
        for optimizer in (scheduled, plateau):
            made: list[Any] = []
            state = tmp_path / optimizer.__name__
            given = options | {"optimizer": optimizer}
            fit_half("torch", AFFINE, data(60), **given | {"num_epochs": 2}, state_path=state)
            resumed, found = fit_half("torch", AFFINE, data(60), **given, state_path=state)
            straight, history = fit_half("torch", AFFINE, data(60), **given)
            assert found == history
            np.testing.assert_array_equal(resumed["bijector.shift"], straight["bijector.shift"])
    assert made[-1].param_groups[0]["lr"] < 0.1


def test_an_optimiser_that_leaves_out_what_is_not_finite() -> None:
    """``apply_if_finite``: the loss of one step is NaN, told and left out; too many in a row end it."""

    def loss(model: Any, variables: Any, x: Any, context: Any) -> Any:
        return -model.log_prob(variables, x) * jnp.where(x[:, 0] > 1e3, jnp.nan, 1)

    x = data(64)
    bad = x.copy()
    bad[0] = 2e3
    batches = [x[:32], bad[:32], x[32:]]
    options = {"num_epochs": 1, "validation": 0, "loss": loss}
    make = partial(optax.apply_if_finite, optax.adam(1e-2), max_consecutive_errors=2)
    with pytest.warns(
        UserWarning, match=r"^1 of 3 losses of epoch 0 are not finite: they are left"
    ):
        skipped, history = fit_half("jax", AFFINE, batches, optimizer=make(), **options)
    kept, other = fit_half("jax", AFFINE, batches[::2], optimizer=make(), **options)
    np.testing.assert_array_equal(skipped["bijector.shift"], kept["bijector.shift"])
    assert history.train_loss == other.train_loss
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 1"):
        fit_half("jax", AFFINE, batches, **options)


def test_schedules() -> None:
    rate = warmup_cosine(1.0, 4, 12, 0.2)
    np.testing.assert_allclose([rate(t) for t in range(5)], [0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(rate(8), 0.6)
    assert [rate(12), rate(99)] == [0.2, 0.2]
    line = warmup_linear(1.0, 0, 4)
    assert [line(t) for t in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    line = warmup_linear(1.0, 2, 4, 0.5)
    np.testing.assert_allclose([line(t) for t in range(6)], [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.5])
    fall = exponential_decay(1.0, 0.25, 2, floor=0.1)
    assert [fall(t) for t in range(5)] == [1.0, 0.5, 0.25, 0.125, 0.1]
    for refused, message in (
        (lambda: warmup_cosine(1.0, 5, 5), "warmup_cosine expects total_steps above warmup_steps"),
        (
            lambda: warmup_linear(1.0, 0, 5, 2.0),
            "warmup_linear expects floor to be from 0 to 1.0, got",
        ),
        (
            lambda: exponential_decay(1.0, 2.0, 3),
            "exponential_decay expects factor to be at most 1",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            refused()


@HALVES
@pytest.mark.parametrize(("options", "message"), [
    ({"ema": 1.0}, "fit expects ema to be a number between 0 and 1, got 1.0."),
    ({"ema": math.nan}, "fit expects ema to be a number between 0 and 1, got nan."),
    ({"weight_decay": -1}, "fit expects weight_decay to be a number above 0"),
    ({"weight_decay": 0.1, "optimizer": lambda parameters: None},
     "fit takes weight_decay or optimizer, not both: an optimizer has its own."),
    ({"accumulate": 0}, "fit expects accumulate to be an integer of at least 1, got 0."),
    ({"callback": 3}, "fit expects callback as a function, got int."),
    ({"frozen": [3]}, "fit expects frozen as names of weights, got int."),
])  # fmt: skip
def test_refused(half: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}"):
        fit_half(half, AFFINE, data(12), **{"num_epochs": 1, "batch_size": 4} | options)
