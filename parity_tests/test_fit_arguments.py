"""Arguments of `fit` and `fit_to_energy` that make no sense, the same sentence in both halves."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge.weights import torch_to_jax
from jax_flows.checkpoint import from_numpy
from jax_flows.training import NUM_PROGRAMS, Static, _Objective, _run_steps
from parity_tests.catalogue import Case, arch, flow
from parity_tests.test_training import HALVES, QUIET, data, fit_half

AFFINE = Case("affine", flow(arch("Affine", dim=2), arch("StandardNormal", dim=2)))
WEIGHTLESS = Case("weightless", flow(arch("LeakyReLU"), arch("StandardNormal", dim=2)))
ENERGY: dict[str, Any] = {"num_steps": 3, "batch_size": 8, "progress": False}


def energy_half(half: str, case: Case, energy: Any, **options: Any) -> Any:
    """``fit_to_energy`` in one half: its flow or variables, and the losses."""
    if half == "torch":
        model = case.torch_model()
        return model, torch_flows.fit_to_energy(model, energy, **ENERGY | options)
    model = jax_flows.build(case.architecture)
    variables = from_numpy(torch_to_jax(case.weights(), model.shapes()))
    return jax_flows.fit_to_energy(model, variables, energy, **ENERGY | options)


@HALVES
@pytest.mark.parametrize(("options", "message"), [
    ({"max_grad_norm": -1.0}, "fit expects max_grad_norm to be a number above 0"),
    ({"max_grad_norm": 0}, "fit expects max_grad_norm to be a number above 0"),
    ({"max_grad_norm": math.nan}, "fit expects max_grad_norm to be a number above 0"),
    ({"learning_rate": -0.1}, "fit expects learning_rate to be a number above 0"),
    ({"learning_rate": 0.0}, "fit expects learning_rate to be a number above 0"),
    ({"learning_rate": math.nan}, "fit expects learning_rate to be a number above 0"),
    ({"learning_rate": "fast"}, "fit expects learning_rate as a number, got 'fast'."),
    ({"learning_rate": lambda step: 0.1 - step}, "fit expects learning_rate to give a finite number of "
     "at least 0, got -0.9 at step 1."),
    ({"learning_rate": lambda step: math.nan}, "fit expects learning_rate to give a finite number of at "
     "least 0, got nan at step 0."),
    ({"learning_rate": lambda step: "slow"}, "fit expects learning_rate to give a finite number of at "
     "least 0, got 'slow' at step 0."),
    ({"learning_rate": lambda step: None}, "fit expects learning_rate to give a finite number of at "
     "least 0, got None at step 0."),
    ({"learning_rate": 1e-3, "optimizer": lambda parameters: None}, "fit takes learning_rate or "
     "optimizer, not both: an optimizer has its own rate."),
    ({"patience": 0}, "fit expects patience to be an integer of at least 1, got 0."),
    ({"patience": -3}, "fit expects patience to be an integer of at least 1, got -3."),
    ({"patience": 2.5}, "fit expects patience as an integer, got 2.5."),
    ({"patience": 2, "validation": 0}, "fit needs validation data for patience"),
    ({"state_path": 3}, "fit expects state_path as a path or None, got int."),
    ({"seed": -1}, "fit expects seed to be an integer of at least 0, got -1."),
    ({"num_epochs": -1}, "fit expects num_epochs to be an integer of at least 1, got -1."),
    ({"batch_size": 0}, "fit expects batch_size to be an integer of at least 1, got 0."),
    ({"state_every": 0}, "fit expects state_every to be an integer of at least 1, got 0."),
    ({"validation": 1}, "fit expects validation as a fraction in [0, 1), got 1."),
    ({"validation": True}, "fit expects validation as a fraction in [0, 1), got True."),
    ({"validation": math.nan}, "fit expects validation as a fraction in [0, 1), got nan."),
    ({"validation": 0.99}, "fit has no rows left to train on: validation=0.99 holds out all 12."),
    ({"validation_context": np.zeros((2, 1))}, "fit takes a validation_context with validation data only."),
])  # fmt: skip
def test_refused(half: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}"):
        fit_half(half, AFFINE, data(12), **{"num_epochs": 1, "batch_size": 4} | options)


@HALVES
def test_numbers_of_numpy_are_numbers(half: str) -> None:
    given = {"num_epochs": 1, "batch_size": 4, "seed": 3, "patience": 2}
    counts = {name: np.int64(value) for name, value in given.items()}
    rates = {"validation": np.float32(0.25), "learning_rate": np.float32(0.5)}
    _, history = fit_half(half, AFFINE, data(20), **counts, **rates)
    _, plain = fit_half(half, AFFINE, data(20), **given, validation=0.25, learning_rate=0.5)
    assert history == plain


@HALVES
def test_nothing_to_train(half: str) -> None:
    with pytest.raises(ValueError, match=r"^fit got a Flow without weights to train.$"):
        fit_half(half, WEIGHTLESS, data(12))
    with pytest.raises(ValueError, match=r"^fit got a Flow without weights to train.$"):
        energy_half(half, WEIGHTLESS, lambda x: x.sum(-1))
    part = Case("part", arch("Affine", dim=2))
    with pytest.raises(TypeError, match=r"^fit expects flow of type Flow, got Affine.$"):
        fit_half(half, part, data(12))
    frozen = AFFINE.torch_model().requires_grad_(False)
    with pytest.raises(ValueError, match=r"^fit got a Flow without weights to train.$"):
        torch_flows.fit(frozen, data(12), **QUIET)


@HALVES
@pytest.mark.parametrize(("energy", "got"), [
    (lambda x: (x**2).sum() / 2, "()"),
    (lambda x: (x**2).sum(-1)[:, None], "(8, 1)"),
    (lambda x: 1.0, "a number"),
])  # fmt: skip
def test_an_energy_is_one_number_for_each_row(
    half: str, energy: Callable[[Any], Any], got: str
) -> None:
    sentence = (
        "ReverseKL expects the energy of x of shape (8, 2) to be of shape (8,), "
        f"got {got}: vmap the energy of one event."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        energy_half(half, AFFINE, energy)
    with pytest.raises(TypeError, match=r"^ReverseKL expects energy as a function, got str.$"):
        energy_half(half, AFFINE, "energy")


@HALVES
def test_more_steps_for_an_energy(half: str, tmp_path: Any) -> None:
    """3 steps, then 4 more from the state file: as 7 at once."""

    def energy(x: Any) -> Any:
        return (x**2).sum(-1)

    state = tmp_path / "state"
    energy_half(half, AFFINE, energy, state_path=state)
    _, resumed = energy_half(half, AFFINE, energy, state_path=state, num_steps=7)
    _, straight = energy_half(half, AFFINE, energy, num_steps=7)
    assert resumed == straight
    assert len(straight.step_losses) == 7


@pytest.mark.parametrize("optimizer", [
    optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau()),
    optax.lbfgs(),
    optax.polyak_sgd(0.1),
    optax.MultiSteps(optax.adam(0.1), 2),
], ids=["reduce_on_plateau", "lbfgs", "polyak_sgd", "MultiSteps"])  # fmt: skip
def test_optax_optimisers_with_extra_arguments(optimizer: Any, quick_jax: None) -> None:
    _, history = fit_half("jax", AFFINE, data(64), num_epochs=20, validation=0, optimizer=optimizer)
    assert history.train_loss[-1] < history.train_loss[0] - 0.1


def test_a_torch_optimiser_that_evaluates_the_loss() -> None:
    """L-BFGS on all rows finds mean and standard deviation of the data."""
    model, x = AFFINE.torch_model(), data(64)
    optimizer = partial(torch.optim.LBFGS, line_search_fn="strong_wolfe")
    torch_flows.fit(
        model, x, optimizer=optimizer, num_epochs=3, batch_size=64, validation=0, progress=False
    )
    z, _ = model.forward(torch.from_numpy(x))
    np.testing.assert_allclose(z.detach().mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(z.detach().std(0, correction=0), 1, atol=1e-4)
    with pytest.raises(TypeError, match=r"^fit expects optimizer as a function, got SGD.$"):
        torch_flows.fit(model, x, optimizer=torch.optim.SGD(model.parameters(), 0.1), **QUIET)
    with pytest.raises(TypeError, match=r"^fit expects optimizer as an Optax transformation, got"):
        fit_half("jax", AFFINE, x, optimizer=torch.optim.SGD)


@pytest.mark.parametrize("transform", [jax.vmap, jax.jit])
def test_not_inside_a_transformation(transform: Any) -> None:
    model = jax_flows.build(AFFINE.architecture)
    stacked = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 2))
    with pytest.raises(TypeError, match=r"^fit reads its losses and cannot run inside jax.vmap"):
        transform(lambda variables: jax_flows.fit(model, variables, data(12), **QUIET)[0])(stacked)
    with pytest.raises(TypeError, match=r"^fit reads its losses and cannot run inside"):
        transform(lambda v: jax_flows.fit_to_energy(model, v, jnp.sum, **ENERGY)[0])(stacked)


def test_frozen_variables() -> None:
    model = jax_flows.build(AFFINE.architecture)
    variables = model.init(jax.random.key(0))
    frozen, _ = jax_flows.fit(model, flax.core.freeze(variables), data(12), num_epochs=1, **QUIET)
    plain, _ = jax_flows.fit(model, variables, data(12), num_epochs=1, **QUIET)
    jax.tree.map(np.testing.assert_array_equal, frozen, plain)


def test_programs_do_not_grow_in_number() -> None:
    """One for every number of rows of the same power of two, and for an equal optimiser made anew."""
    model = jax_flows.build(AFFINE.architecture)
    for rows in (110, 120, 130):
        fit_half("jax", AFFINE, data(rows), optimizer=optax.adam(1e-2), num_epochs=1)
    optimizer = Static(optax.with_extra_args_support(optax.adam(1e-2)))
    steps = _run_steps(
        _Objective(model, Static(jax_flows.NegativeLogLikelihood())), optimizer, None, 1
    )
    assert steps._cache_size() == 1
    assert _run_steps.cache_info().maxsize == NUM_PROGRAMS
    assert optimizer != Static(optax.with_extra_args_support(optax.adam(2e-2)))

    def schedule(step: Any) -> Any:
        return 1e-2

    assert Static(optax.adam(schedule)) == Static(optax.adam(schedule))
    assert Static(optax.adam(schedule)) != Static(optax.adam(lambda step: 1e-2))
