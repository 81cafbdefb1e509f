"""The harness can fail: each of these defects, put into one half on purpose, is caught."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flow_bridge.weights
import jax_flows
import jax_flows.networks.activations
import jax_flows.numerics
import torch_flows
from flow_bridge.layouts import find_layout
from jax_flows.bijectors import coupling, normalization, planar
from parity_tests.catalogue import Case, arch
from parity_tests.catalogue import coupling as coupling_row
from twinflows.parity.compare import compare

SQUARE = coupling_row(dim=4, hidden_dims=[4, 4])
MAP = jax_flows.AffineMap


def tanh_map(parameters: Any) -> Any:
    return parameters[..., 0], jnp.tanh(parameters[..., 1])


def swap_sign(map: Any, x: jax.Array, parameters: Any) -> Any:
    t, s = tanh_map(parameters)
    return x * jnp.exp(s) + t, -s


def drop_log_det(map: Any, x: jax.Array, parameters: Any) -> Any:
    t, s = tanh_map(parameters)
    return x * jnp.exp(s) + t, 0 * s


def swap_networks(map: Any, x: jax.Array, parameters: Any) -> Any:
    t, s = tanh_map(parameters[..., ::-1])
    return x * jnp.exp(s) + t, s


def detach_log_det(map: Any, x: jax.Array, parameters: Any) -> Any:
    t, s = tanh_map(parameters)
    return x * jnp.exp(s) + t, jax.lax.stop_gradient(s)


def threshold_softplus(x: jax.Array) -> jax.Array:
    return jnp.where(x > 20, x, jnp.logaddexp(x, 0))


def no_transpose(collection: str, name: str, ndim: int) -> Any:
    layout = find_layout(collection, name, ndim)
    return layout._replace(axes=tuple(range(ndim)))


def biased_update(bijector: Any, running: Any, new: Any) -> Any:
    return {k: old + 0.11 * (new[k] - old) for k, old in running.items()}


ACTIVATIONS = jax_flows.networks.activations.ACTIVATIONS
original_normalize = normalization.BatchNorm._normalize
original_index = coupling.Partition.index


def other_eps(bijector: Any, *args: Any) -> Any:
    return original_normalize(replace(bijector, eps=1.1e-5), *args)


def swap_mask(partition: Any, name: str) -> Any:
    return original_index(partition, {"fixed": "free", "free": "fixed"}[name])


def set_item(target: Any, key: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setitem(target, key, value)


def set_attr(target: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(target, name, value)


def normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.standard_normal(shape)


MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], dict[str, Any], float]] = {
    "log-det sign": (set_attr(MAP, "forward", swap_sign), SQUARE, 1),
    "log-det dropped": (set_attr(MAP, "forward", drop_log_det), SQUARE, 1),
    "scale and shift swapped": (set_attr(MAP, "forward", swap_networks), SQUARE, 1),
    "log-det detached": (set_attr(MAP, "forward", detach_log_det), SQUARE, 1),
    "square weight not transposed": (
        set_attr(flow_bridge.weights, "find_layout", no_transpose), SQUARE, 1,
    ),
    "mask parity": (set_attr(coupling.Partition, "index", swap_mask), SQUARE, 1),
    "gelu by tanh": (
        set_item(ACTIVATIONS, "gelu", jax.nn.gelu), coupling_row(dim=4, activation="gelu"), 1,
    ),
    "leaky slope": (
        set_item(ACTIVATIONS, "leaky_relu", lambda x: jnp.where(x > 0, x, 0.2001 * x)),
        coupling_row(dim=4, activation="leaky_relu"), 1,
    ),
    "softplus threshold": (
        set_item(ACTIVATIONS, "softplus", threshold_softplus),
        coupling_row(dim=4, activation="softplus", hidden_dims=[4]), 25,
    ),
    "activation through float32": (
        set_item(ACTIVATIONS, "tanh", lambda x: jnp.tanh(x).astype(jnp.float32).astype(x.dtype)),
        SQUARE, 1,
    ),
    "batch norm eps": (
        set_attr(normalization.BatchNorm, "_normalize", other_eps), arch("BatchNorm", dim=3), 1,
    ),
    "batch norm momentum": (
        set_attr(normalization.BatchNorm, "_update", biased_update), arch("BatchNorm", dim=3), 1,
    ),
    "planar without its constraint": (
        set_attr(planar, "softplus", lambda x: jnp.exp(x)), arch("Planar", dim=3), 1,
    ),
    "two Newton steps": (
        set_attr(planar, "DETACHED_STEPS", 0), arch("Planar", dim=3), 3,
    ),
    "detached inverse": (
        set_attr(planar, "DIFFERENTIABLE_STEPS", 0), arch("Planar", dim=3), 1,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_traces_of_another_mutant():
    """JAX keeps traces by function; a mutant's must not outlive it."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def run(architecture: dict[str, Any], size: float) -> Any:
    case = Case("mutant", architecture)
    inputs = size * case.inputs(6)
    return compare(
        torch_flows.build(architecture), jax_flows.build(architecture), case.weights(), inputs, None
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught(name: str, monkeypatch) -> None:
    mutate, architecture, size = MUTANTS[name]
    mutate(monkeypatch)
    report = run(architecture, size)
    assert not report.passed, str(report)


@pytest.mark.parametrize("row", sorted({str(m[1:]): m[1:] for m in MUTANTS.values()}.items()))
def test_without_a_mutation_all_pass(row: Any) -> None:
    report = run(*row[1])
    assert report.passed, str(report)
    assert "one model" in str(report)


def test_an_empty_report_is_no_pass() -> None:
    from twinflows.parity.report import ParityReport

    assert not ParityReport({"type": "Planar"}).passed


def test_non_finite_differences_are_caught(monkeypatch) -> None:
    monkeypatch.setattr(MAP, "forward", lambda map, x, p: (x * jnp.nan, p[..., 0]))
    assert not run(SQUARE, 1).passed
