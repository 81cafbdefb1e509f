"""Architectures that nobody wrote down, and that what draws them reaches everything and can fail."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import torch_flows
from parity_tests import fuzz, primitives
from torch_flows.bijectors import linear

EVERY, QUICK = len(fuzz.EVENTS), (1, 10, 13)
"""In ``make test`` vectors of 2 entries, of 3 with a context, and images."""


@pytest.mark.parametrize(
    "first", [pytest.param(i, marks=() if i in QUICK else pytest.mark.slow) for i in range(EVERY)]
)
def test_drawn_architectures_agree(first: int) -> None:
    count = 6 if first in QUICK else 12
    done, failures = fuzz.run_many(seed=0, first=first, step=EVERY, count=count * EVERY)
    assert not failures, "\n\n".join(failures)
    assert done["architectures"] == count
    assert done["rows judged"] > 0.8 * done["rows"]


def test_a_difference_is_found(monkeypatch) -> None:
    """Outputs off by 1e-9 in one half, and a log-det that both halves miss."""
    described = {"type": "LULinear", "dim": 3, "bias": True}
    fuzz.check(described, (3,), seed=0, compiled=False)
    solve, trace = linear.lu_solve, linear.lu_matrix
    monkeypatch.setattr(linear, "lu_solve", lambda lu, z: solve(lu, z) + 1e-9)
    with pytest.raises(fuzz.Difference, match="x, row 0"):
        fuzz.check(described, (3,), seed=0, compiled=False)
    monkeypatch.setattr(linear, "lu_solve", solve)
    monkeypatch.setattr(linear, "lu_matrix", lambda lu: trace(lu) * 1.01)
    with pytest.raises(fuzz.Difference):
        fuzz.check(described, (3,), seed=0, compiled=False)


def test_every_type_can_be_drawn() -> None:
    kinds = (torch_flows.Bijector, torch_flows.Distribution, torch_flows.Flow)
    for name, cls in fuzz.types_of(*kinds).items():
        for parameter in inspect.signature(cls).parameters.values():
            drawn = parameter.name in fuzz.ARGUMENTS
            assert drawn or parameter.default is not parameter.empty, (
                f"{name}: parity_tests/fuzz.py has no values for {parameter.name!r}"
            )


def test_the_same_seed_draws_the_same() -> None:
    first, second = (
        fuzz.draw_architecture(np.random.default_rng([3, 20]), 3, 20) for _ in range(2)
    )
    assert first == second
    assert first[1] == (5,)


def test_operation_by_operation_is_what_jax_computes() -> None:
    """Loops, branches, reductions, moves and gradients in them, on shapes that are padded."""

    def function(x):
        def step(carry, row):
            carry = jax.lax.cond(row.sum() > 0, jnp.tanh, lambda c: c - 1, carry + row)
            return carry, jnp.cumsum(carry)[::-1].max()

        carry, found = jax.lax.scan(step, x[0], x, reverse=True)
        count, _ = jax.lax.while_loop(
            lambda c: c[1] < 9, lambda c: (c[0] + 1, c[1] * 2 + 1), (0, carry.sum() ** 2)
        )
        padded = jnp.pad(x.T @ x, ((1, 0), (0, 2)), constant_values=0.5)
        return found, count, jnp.linalg.slogdet(padded[1:, :3])[1], jnp.split(padded, 2)[1]

    x = np.random.default_rng(0).standard_normal((5, 3))
    for run in (function, jax.grad(lambda x: sum(jnp.sum(o[:3]) for o in function(x)[::3]))):
        for found, expected in zip(
            jax.tree.leaves(primitives.run(run, x)), jax.tree.leaves(jax.jit(run)(x)), strict=True
        ):
            assert found.dtype == expected.dtype
            np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)
