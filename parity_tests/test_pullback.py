"""``pullback``: closed forms, and the two halves against each other."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flow_bridge
import jax_flows
import torch_flows

Z = np.random.default_rng(0).standard_normal((5, 2))
CONTEXT = np.random.default_rng(1).standard_normal((5, 3))


def make(half: Any, name: str) -> Any:
    if name == "affine":
        return half.Flow(half.Affine(2), half.StandardNormal(2))
    if name == "context":
        return half.MAF(2, (4,), num_layers=2, context_dim=3)
    return half.Flow(  # data in (0, inf)
        half.Chain([half.Invert(half.Exp()), half.AffineCoupling(2, (3,))]), half.StandardNormal(2)
    )


def both(name: str) -> tuple[Any, Any, Any]:
    """A flow of random weights in float64, its twin, and the twin's variables."""
    torch.manual_seed(0)
    flow, twin = make(torch_flows, name).double(), make(jax_flows, name)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    arrays = {name: array.numpy() for name, array in flow.state_dict().items()}
    return flow, twin, flow_bridge.torch_to_jax(arrays, twin.shapes())


@pytest.mark.parametrize("name", ["affine", "context", "bounded"])
def test_the_halves_agree_with_the_definition(name: str) -> None:
    flow, twin, variables = both(name)
    context = CONTEXT if name == "context" else None
    given = None if context is None else torch.tensor(context)
    log_density = torch_flows.pullback(flow, lambda x: -(x**4).sum(-1) / 3, given)
    in_jax = jax_flows.pullback(twin, variables, lambda x: -(x**4).sum(-1) / 3, context)
    z = torch.tensor(Z, requires_grad=True)
    values = log_density(z)
    (gradient,) = torch.autograd.grad(values.sum(), z)
    found, pull = jax.vjp(jax.jit(in_jax), jnp.array(Z))
    np.testing.assert_allclose(found, values.detach(), rtol=1e-12)
    np.testing.assert_allclose(pull(jnp.ones(5))[0], gradient, rtol=1e-11)
    for i in range(5):
        row = None if given is None else given[i]
        jacobian = torch.func.jacrev(lambda z, row=row: flow.inverse(z, row)[0])(z[i])
        expected = -(flow.inverse(z[i], row)[0] ** 4).sum() / 3 + torch.linalg.slogdet(jacobian)[1]
        assert values[i].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["affine", "context", "bounded"])
def test_a_flow_pulls_its_own_density_back_to_its_base(name: str) -> None:
    flow, twin, variables = both(name)
    context = CONTEXT if name == "context" else None
    given = None if context is None else torch.tensor(context)
    expected = -(Z**2).sum(-1) / 2 - np.log(2 * np.pi)
    own = torch_flows.pullback(flow, lambda x: flow.log_prob(x, given), given)
    np.testing.assert_allclose(own(torch.tensor(Z)).detach(), expected, rtol=1e-11)
    in_jax = jax_flows.pullback(
        twin, variables, lambda x: twin.log_prob(variables, x, context), context
    )
    np.testing.assert_allclose(in_jax(Z), expected, rtol=1e-11)


def test_a_gaussian_pulled_back_by_an_affine_map() -> None:
    """x = (z - shift) / scale, and the target N(0, I)."""
    flow, twin, variables = both("affine")
    x, log_det = (a.detach().numpy() for a in flow.inverse(torch.tensor(Z)))
    expected = -(x**2).sum(-1) / 2 + log_det
    found = torch_flows.pullback(flow, lambda x: -(x**2).sum(-1) / 2)(torch.tensor(Z))
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-12)
    single = jax_flows.pullback(twin, variables, lambda x: -(x**2).sum() / 2)
    np.testing.assert_allclose(jax.vmap(single)(Z), expected, rtol=1e-12)
    np.testing.assert_allclose(single(Z[0]), expected[0], rtol=1e-12)


def test_the_density_is_asked_inside_the_domain_only() -> None:
    """Far out the logistic map rounds to 0 and 1, where the uniform density ends."""
    z = np.array([[-800.0], [-40.0], [0.0], [40.0]])
    seen: list[Any] = []

    def log_density(x: Any) -> Any:
        seen.append(np.asarray(x))
        return 0 * x.sum(-1)

    flow, twin = (
        half.Flow(half.Invert(half.Sigmoid()), half.StandardNormal(1))
        for half in (torch_flows, jax_flows)
    )
    expected = -np.abs(z[:, 0]) - 2 * np.log1p(np.exp(-np.abs(z[:, 0])))
    found = torch_flows.pullback(flow, log_density)(torch.tensor(z))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(jax_flows.pullback(twin, {}, log_density)(z), expected, rtol=1e-12)
    assert all(((x > 0) & (x < 1)).all() for x in seen)


@pytest.mark.parametrize("inner", [False, True])
def test_outside_the_codomain_it_is_minus_infinity(inner: bool) -> None:
    """Latents in (-1, 1); with ``inner`` it is a member before the last that says so."""
    z = np.array([[0.5, -0.25], [1.0, 0.0], [0.0, -3.0], [np.inf, 0.0], [np.nan, 5.0]])

    def build(half: Any) -> Any:
        parts = [half.Tanh(), half.Affine(2)] if inner else [half.Tanh()]
        base = half.StandardNormal(2) if inner else half.Uniform(2, -1.0, 1.0)
        return half.Flow(half.Chain(parts), base)

    flow, twin = build(torch_flows).double(), build(jax_flows)
    variables = twin.init(jax.random.key(0), "float64")
    given = torch.tensor(z, requires_grad=True)
    found = torch_flows.pullback(flow, lambda x: -x.square().sum(-1))(given)
    pulled_back = jax_flows.pullback(twin, variables, lambda x: -jnp.square(x).sum(-1))
    x = np.arctanh(z[0])
    inside = -(x**2).sum() - np.log1p(-(z[0] ** 2)).sum()
    expected = [inside, -np.inf, -np.inf, -np.inf, np.nan]
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(pulled_back)(z), expected, rtol=1e-12)
    if not inner:  # a sampler that steps outside gets a gradient
        (gradient,) = torch.autograd.grad(found[1:4].sum(), given)
        in_jax = jax.grad(lambda z: pulled_back(z)[1:4].sum())(z)
        assert not gradient[:4].any()
        assert not in_jax[:4].any()


def test_wrong_arguments_get_the_same_sentence() -> None:
    flow, twin, variables = both("affine")
    z = torch.tensor(Z)

    def refused(error: type, message: str, in_torch: Any, in_jax: Any) -> None:
        for call in (in_torch, in_jax):
            with pytest.raises(error, match=f"^{re.escape(message)}$"):
                call()

    for wrong, got in (
        (lambda x: x, "(5, 2)"),
        (lambda x: x.sum(), "()"),
        (lambda x: 1.0, "a number"),
    ):
        refused(
            ValueError,
            "pullback expects the log_density of x of shape (5, 2) to be of shape (5,), got "
            f"{got}: vmap the log_density of one event.",
            lambda wrong=wrong: torch_flows.pullback(flow, wrong)(z),
            lambda wrong=wrong: jax_flows.pullback(twin, variables, wrong)(Z),
        )
    refused(
        TypeError,
        "pullback expects log_density as a function, got int.",
        lambda: torch_flows.pullback(flow, 3),
        lambda: jax_flows.pullback(twin, variables, 3),
    )
    refused(
        TypeError,
        "pullback expects flow of type Flow, got Affine.",
        lambda: torch_flows.pullback(flow.bijector, len),
        lambda: jax_flows.pullback(twin.bijector, variables, len),
    )
