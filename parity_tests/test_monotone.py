"""Univariate maps whose inverse is searched for: slopes, far points, flat places, gradients."""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows

HALVES = (torch_flows, jax_flows)


def mixture_points() -> tuple[np.ndarray, np.ndarray]:
    """Points from 0 to 1e6, each with parameters at the corners of their box and inside it."""
    corners = np.array(list(product((-8.0, 8.0), (-30.0, 30.0), (-6.0, 6.0))))
    generator = np.random.default_rng(0)
    inside = generator.standard_normal((6, 3)) * (1, 3, 2)
    rows = [np.stack([a, b], -1) for a in corners for b in (corners[1], corners[6], *inside[:2])]
    rows += [inside[i : i + 2].T for i in range(5)]
    x = np.concatenate([[0.0, 1.0], 10.0 ** np.arange(-1, 7)])
    x = np.concatenate([x, -x[1:]])
    parameters = np.repeat(np.reshape(rows, (-1, 1, 6)), len(x), 1)
    return np.tile(x, (len(rows), 1)), parameters


def on(half: Any, map: Any, step: str, x: np.ndarray, parameters: np.ndarray) -> list[np.ndarray]:
    """A step of a map of a half, in numpy."""
    array = torch.from_numpy if half is torch_flows else jnp.asarray
    return [np.asarray(a) for a in getattr(map, step)(array(x), array(parameters))]


def mixture_in_mpmath(x: float, parameters: np.ndarray) -> tuple[Any, Any]:
    """z and log(dz/dx), from the weights, scales and centres of the docstring."""
    exact = [[mpmath.mpf(float(value)) for value in row] for row in parameters.reshape(3, -1)]
    logits, raw, shifts = exact
    count = len(logits)
    weights = [mpmath.exp(logit) for logit in logits]
    cdf, rest, slope = mpmath.mpf(0), mpmath.mpf(0), mpmath.mpf(0)
    for j, weight in enumerate(weights):
        a = mpmath.exp(5 * mpmath.tanh(raw[j] / 5))
        c = a * (mpmath.mpf(x) - shifts[j] - mpmath.mpf(2 * j + 1) / count + 1)
        share, other = 1 / (1 + mpmath.exp(-c)), 1 / (1 + mpmath.exp(c))
        cdf, rest = cdf + weight * share, rest + weight * other
        slope += weight * a * share * other
    return mpmath.log(cdf / rest), mpmath.log(slope / (cdf * rest) * sum(weights))


@pytest.mark.parametrize("half", ["torch", "jax"])
def test_mixtures_against_mpmath(half: str) -> None:
    """Values and slopes, relative to max(1, |.|), over the box of parameters and to 1e6."""
    x, parameters = mixture_points()
    x, parameters = x[::3, ::2], parameters[::3, ::2]
    own = torch_flows if half == "torch" else jax_flows
    z, log_slope = on(own, own.LogisticMixtureMap(2), "forward", x, parameters)
    with mpmath.workdps(60):
        for index in np.ndindex(x.shape):
            exact = mixture_in_mpmath(float(x[index]), parameters[index])
            for value, true in zip((z[index], log_slope[index]), exact, strict=True):
                error = abs(mpmath.mpf(float(value)) - true) / max(1, abs(true))
                assert error < 1e-14, (index, value, true)


@pytest.mark.parametrize("half", HALVES)
def test_mixtures_return(half: Any) -> None:
    """x comes back as far as the slope lets it, to 1e6 at 1e-12; z always, to rounding."""
    x, parameters = mixture_points()
    map = half.LogisticMixtureMap(2)
    z, log_slope = on(half, map, "forward", x, parameters)
    back, log_back = on(half, map, "inverse", z, parameters)
    again, _ = on(half, map, "forward", back, parameters)
    scale = 1 + np.abs(z) + np.abs(x) * np.exp(log_slope)
    assert (np.abs(again - z) <= 64 * 2.3e-16 * scale).all()
    steep = log_slope > -6
    assert steep.mean() > 0.8
    assert (np.abs(back - x) <= 1e-12 * (1 + np.abs(x)))[steep].all()
    assert (np.abs(log_back + log_slope) <= 1e-9)[steep].all()


@pytest.mark.parametrize("half", HALVES)
def test_one_dense_layer_is_a_mixture(half: Any) -> None:
    x, parameters = mixture_points()
    found = on(half, half.DenseSigmoidMap((2,)), "forward", x, parameters)
    expected = on(half, half.LogisticMixtureMap(2), "forward", x, parameters)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


def test_gradients_of_mixtures_far_out() -> None:
    """Finite in float32, in both directions, at every corner."""
    x, parameters = mixture_points()
    near = np.abs(x[0]) <= 1e4
    x, parameters = (a[:, near].astype(np.float32) for a in (x, parameters))
    map, twin = torch_flows.LogisticMixtureMap(2), jax_flows.LogisticMixtureMap(2)
    for step in ("forward", "inverse"):
        inputs = [torch.from_numpy(a).requires_grad_() for a in (x, parameters)]
        outputs = getattr(map, step)(*inputs)
        if step == "inverse":  # where dx/dz itself is a number of float32
            assert all(output.isfinite().all() for output in outputs)
            kept = outputs[1] < 60
            assert kept.float().mean() > 0.9
            outputs = [output[kept] for output in outputs]
            x, parameters = x[kept.numpy()], parameters[kept.numpy()]

        def total(x: Any, p: Any, step: str = step) -> Any:
            z, log_slope = getattr(twin, step)(x, p)
            return z.sum() + log_slope.sum()

        ours = torch.autograd.grad(outputs[0].sum() + outputs[1].sum(), inputs)
        for gradient in (*ours, *jax.grad(total, (0, 1))(x, parameters)):
            assert np.isfinite(np.asarray(gradient)).all()


def test_inverses_know_infinity_and_nan() -> None:
    for half in HALVES:
        map = half.LogisticMixtureMap(3)
        given = np.array([np.inf, -np.inf, np.nan, 3e37], np.float32)
        x, log_slope = on(half, map, "inverse", given, np.zeros((4, 9), np.float32))
        np.testing.assert_array_equal(x[:3], given[:3])
        assert abs(x[3] / 3e37 - 1) < 1e-6
        np.testing.assert_allclose(log_slope[[0, 1, 3]], 0, atol=1e-6)


@pytest.mark.parametrize("half", ["torch", "jax"])
def test_an_unfinished_search_is_refused(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the steps do not suffice the inverse is NaN, not what it had so far."""
    monkeypatch.setattr(f"{half}_flows.univariate.roots.ROOT_STEPS", 1)
    own = dict(zip(("torch", "jax"), HALVES, strict=True))[half]
    parameters = np.random.default_rng(0).standard_normal((4, 9))
    assert np.isnan(on(own, own.LogisticMixtureMap(3), "inverse", np.ones(4), parameters)[0]).all()


def test_squares_compile_in_one_graph() -> None:
    torch._dynamo.reset()
    bijector = torch_flows.Elementwise(2, torch_flows.SumOfSquaresMap(degree=1)).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    found = torch.compile(bijector.forward, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(found, bijector.forward(x))
