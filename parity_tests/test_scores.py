"""Scores that are carried through a flow: the formula, both halves, path gradients, Fisher divergences."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

import jax_flows
import torch_flows
from flow_bridge.weights import torch_to_jax
from jax_flows.checkpoint import from_numpy
from parity_tests.catalogue import Case, arch, flow, tanh_network
from parity_tests.test_losses import PACKAGES, run_losses
from parity_tests.test_parity import Direction
from parity_tests.test_training import HALVES, data, distance, fit_half
from twinflows.parity.limits import TRAJECTORY

# Closed forms, the default in both of its directions, inversion, a context, and a stack that JAX scans over.
PARTS = [
    *[arch("AffineCoupling", dim=3, hidden_dims=[5], activation="tanh", mask=mask, context_dim=1)
      for mask in ("even", "odd", "even", "odd")],
    arch("LULinear", dim=3), arch("Rotation", dim=3), arch("Permutation", permutation=[1, 2, 0]),
    arch("Invert", bijector=arch("SplineCoupling", dim=3, hidden_dims=[5], activation="tanh")),
    arch("AdditiveCoupling", dim=3, hidden_dims=[5], activation="tanh", mask="odd"),
    arch("Elementwise", dim=3, map=arch("CubicMap")), arch("Affine", dim=3),
    arch("Sigmoid"), arch("Invert", bijector=arch("Sigmoid")), arch("Planar", dim=3),
    arch("BatchNorm", dim=3),
    arch("Coupling", dim=3, conditioner=tanh_network(), map=arch(
        "MixedMap", columns=[[2], [0], [1]],
        maps=[arch("AffineMap"), arch("SplineMap", num_bins=2), arch("CubicMap")])),
]  # fmt: skip
ALL = Case("all", flow(arch("Chain", bijectors=PARTS), arch("DiagonalNormal", dim=3)))
SMALL = Case("small", flow(arch("Chain", bijectors=[
    arch("AffineCoupling", dim=2, hidden_dims=[4], activation="tanh"), arch("LULinear", dim=2),
    arch("AffineCoupling", dim=2, hidden_dims=[4], activation="tanh", mask="odd"),
]), arch("DiagonalNormal", dim=2)))  # fmt: skip
GENERATOR = np.random.default_rng(3)
X, SCORE, CONTEXT = (GENERATOR.standard_normal((4, size)) for size in (3, 3, 1))


def twins(case: Case) -> tuple[Any, Any, Any]:
    model = jax_flows.build(case.architecture)
    return case.torch_model(), model, from_numpy(torch_to_jax(case.weights(), model.shapes()))


def test_scores_are_those_of_the_density_that_is_pushed_forward() -> None:
    """Against the dense Jacobian: J^-T (score - gradient of log|det J|), of chain and members, both ways."""
    model, twin, variables = twins(ALL)
    x, score, context = (torch.from_numpy(a) for a in (X, SCORE, CONTEXT))

    def log_det(bijector: Any, name: str, x: Any, context: Any) -> Any:
        return getattr(bijector, name)(x[None], None if context is None else context[None])[1][0]

    def value(bijector: Any, name: str, x: Any, context: Any) -> Any:
        return getattr(bijector, name)(x[None], None if context is None else context[None])[0][0]

    for bijector in [model.bijector, *model.bijector.bijectors]:
        point = x.sigmoid() if bijector.is_bounded() and bijector is not model.bijector else x
        own = context if bijector.context_dim else None
        for inverse in (False, True):
            name = "map_inverse" if inverse else "map_forward"
            start = bijector.map_forward(point, own)[0].detach() if inverse else point
            z, found_log_det, found = bijector.map_score(start, score, own, inverse)
            for i in range(len(x)):
                given = None if own is None else own[i]
                step = partial(value, bijector, name, context=given)
                jacobian = torch.autograd.functional.jacobian(step, start[i])
                point_i = start[i].clone().requires_grad_()
                total = log_det(bijector, name, point_i, given)
                change = torch.zeros_like(point_i)
                if total.requires_grad:
                    (change,) = torch.autograd.grad(
                        total, point_i, allow_unused=True, materialize_grads=True
                    )
                expected = torch.linalg.solve(jacobian.T, score[i] - change)
                error = (found[i] - expected).abs().max() / expected.abs().max()
                assert error < 1e-10, (bijector, inverse)
                torch.testing.assert_close(found_log_det[i], total, rtol=1e-11, atol=1e-12)
    z, _, found = model.forward_with_score(x, score, context)
    latent, _, in_jax = jax.jit(twin.forward_with_score)(variables, X, SCORE, CONTEXT)
    np.testing.assert_allclose(in_jax, found.detach(), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(latent, z.detach(), rtol=1e-11, atol=1e-12)


def test_samples_and_their_scores() -> None:
    """The score of a sample is the gradient of log_prob there, in both halves; it has no gradients."""
    model, twin, variables = twins(ALL)
    noise, context = torch.from_numpy(X), torch.from_numpy(CONTEXT)
    x, log_prob, score = model.from_noise_with_score(noise, context)
    plain, expected = model.from_noise(noise, context)
    torch.testing.assert_close(x, plain)
    torch.testing.assert_close(log_prob, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        score, model.score(x.detach(), context).detach(), rtol=1e-9, atol=1e-9
    )
    assert x.requires_grad
    assert not score.requires_grad
    trained = model.train().from_noise_with_score(noise, context)[2]
    torch.testing.assert_close(trained, score, rtol=0, atol=0)
    with torch.no_grad():
        results = model.from_noise_with_score(noise, context)
        results += model.forward_with_score(x, score, context)
    assert not any(array.requires_grad for array in results)
    in_jax = jax.jit(twin.from_noise_with_score)(variables, X, CONTEXT)
    for one, other in zip((x, log_prob, score), in_jax, strict=True):
        np.testing.assert_allclose(other, one.detach(), rtol=1e-9, atol=1e-10)
    by_hand = twin.score(variables, in_jax[0], CONTEXT)
    np.testing.assert_allclose(by_hand, in_jax[2], rtol=1e-9, atol=1e-9)


@HALVES
def test_path_gradients_vanish_where_the_flow_is_the_target(half: str) -> None:
    """Each sample's, where those of the plain reverse KL are far from it; elsewhere both agree on average."""
    model, twin, variables = twins(SMALL)
    target = SMALL.torch_model()

    def gradients(energy: Any, path_gradient: bool, noise: np.ndarray) -> np.ndarray:
        loss = PACKAGES[half].ReverseKL(energy, path_gradient)
        if half == "torch":
            values = loss(model, None, None, torch.from_numpy(noise))
            found = torch.autograd.grad(values.mean(), list(model.parameters()))
            return np.concatenate([g.numpy().ravel() for g in found])

        def mean(params: Any) -> Any:
            return loss(twin, {**variables, "params": params}, None, None, noise).mean()

        found = jax.jit(jax.grad(mean))(variables["params"])
        return np.concatenate([np.ravel(g) for g in jax.tree.leaves(found)])

    def own(x: Any) -> Any:
        return -target.log_prob(x) if half == "torch" else -twin.log_prob(variables, x)

    def other(x: Any) -> Any:
        return own(x) + 0.1 * (x**2).sum(-1)

    few = np.random.default_rng(0).standard_normal((4, 2))
    assert np.abs(gradients(own, True, few)).max() < 1e-12
    assert np.abs(gradients(own, False, few)).max() > 1e-2
    many = np.random.default_rng(1).standard_normal((40_000, 2))
    path, plain = (gradients(other, path, many) for path in (True, False))
    assert np.linalg.norm(path - plain) < 0.05 * np.linalg.norm(plain)


def energy(x: Any) -> Any:
    return (x[..., 0] - 1) ** 2 + (x[..., 1] + 2) ** 2 / 8 + x[..., 0] * x[..., 1] / 4


@pytest.mark.parametrize(
    "kind", ["path", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("latent", "data"))]
)
def test_losses_of_scores_in_both_halves(kind: str) -> None:
    if kind == "path":
        losses = {half: package.ReverseKL(energy, True) for half, package in PACKAGES.items()}
        x, options = None, {"num_steps": 200, "batch_size": 16}
    else:
        latent = kind == "latent"
        losses = {h: package.FisherDivergence(energy, latent) for h, package in PACKAGES.items()}
        x, options = data(160), {"num_epochs": 40, "validation": 0}
    in_torch, in_jax, history, _ = run_losses(SMALL, x, losses, learning_rate=1e-2, **options)
    assert distance(in_torch, in_jax) < TRAJECTORY
    assert len(history.step_losses) == 200
    assert history.step_losses[-1] < history.step_losses[0]


@HALVES
def test_the_fisher_divergence_finds_a_normal_from_few_draws(half: str) -> None:
    """8 rows, not even draws of it, and their slopes say all about a normal density."""
    case = Case("affine", flow(arch("LULinear", dim=2), arch("StandardNormal", dim=2)))
    x = np.random.default_rng(0).uniform(-3, 3, (8, 2))
    loss = PACKAGES[half].FisherDivergence(energy)
    rate = torch_flows.warmup_cosine(3e-2, 0, 1500)
    options = {"num_epochs": 1500, "batch_size": 8, "validation": 0, "learning_rate": rate}
    weights, history = fit_half(half, case, x, loss=loss, **options)
    assert history.step_losses[-1] < 1e-8
    model = torch_flows.build(case.architecture).double()
    model.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    precision = np.array([[2, 0.25], [0.25, 0.25]])
    mean = np.linalg.solve(precision, [2, -0.5])
    matrix = model.bijector.matrix().detach().numpy()
    np.testing.assert_allclose(matrix.T @ matrix, precision, atol=1e-4)
    z, _ = model.forward(torch.from_numpy(mean))
    np.testing.assert_allclose(z.detach(), 0, atol=1e-4)


def test_a_subclass_that_maps_in_its_own_way_has_its_own_score() -> None:
    class Doubled(torch_flows.Exp):
        def map_forward(self, x: Any, context: Any) -> Any:
            z, log_det = super().map_forward(2 * x, context)
            return z, log_det + x.shape[-1] * np.log(2)

        def map_inverse(self, z: Any, context: Any) -> Any:
            x, log_det = super().map_inverse(z, context)
            return x / 2, log_det - x.shape[-1] * np.log(2)

    x, score = torch.from_numpy(X), torch.from_numpy(SCORE)
    _, _, found = Doubled().map_score(x, score, None)
    torch.testing.assert_close(found, (score - 2) / (2 * (2 * x).exp()))
    with pytest.raises(ValueError, match="score"):
        SMALL.torch_model().forward_with_score(x[:, :2], score)
    _, twin, variables = twins(SMALL)
    with pytest.raises(ValueError, match="score"):
        twin.forward_with_score(variables, jnp.asarray(X[:, :2]), jnp.asarray(SCORE))


def test_scores_in_inference_mode_are_those_outside_of_it() -> None:
    """Where PyTorch makes no graphs, they would be 0."""
    model, x, score = (
        SMALL.torch_model(),
        torch.from_numpy(X[:, :2]),
        torch.from_numpy(SCORE[:, :2]),
    )
    loss = torch_flows.FisherDivergence(energy)

    def values(x: Any) -> list[Any]:
        given = [model.score(x), *model.forward_with_score(x, score), model.base_score(x)]
        return [*given, *model.from_noise_with_score(noise=x), loss(model, x, None)]

    expected = values(x)
    with torch.inference_mode():
        found = values(x.clone())
        with pytest.raises(RuntimeError, match=r"torch\.inference_mode has none: use no_grad"):
            model.bijector.map_score(x, score, None)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.detach())
        assert not one.requires_grad


def test_scores_refuse_forward_mode() -> None:
    """Which would lose their tangents, as they differentiate on their way."""
    model, x = SMALL.torch_model(), torch.from_numpy(X[:, :2])
    for run in (
        model.score,
        model.base_score,
        model.from_noise_with_score,
        lambda x: model.forward_with_score(x, x),
    ):
        with pytest.raises(NotImplementedError, match="no derivatives in forward mode"):
            torch.func.jvp(run, (x,), (x,))
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode"):
            run(forward_ad.make_dual(x, x))
    scored = Direction(model, "score")
    weights = {name: p.detach() for name, p in scored.named_parameters()}

    def score(weights: Any) -> Any:
        return torch.func.functional_call(scored, weights, (x, None))

    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(score, (weights,), (weights,))


@pytest.mark.parametrize("name", ["path", "fisher"])
def test_compiled_steps_of_scores_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, second derivatives were wrong (path gradients) or raised: they run as they are."""
    given = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module: given(module, backend="aot_eager")
    )
    path = torch_flows.ReverseKL(energy, path_gradient=True)
    loss = path if name == "path" else torch_flows.FisherDivergence(energy)
    rows = None if name == "path" else torch.from_numpy(X[:, :2])
    length = {"num_steps": 4} if rows is None else {"num_epochs": 2, "validation": 0}
    found = []
    for compile in (False, True):
        model = SMALL.torch_model()
        history = torch_flows.fit(
            model, rows, loss=loss, batch_size=4, progress=False, compile=compile, **length
        )
        found.append((history.step_losses, list(model.state_dict().values())))
    torch.testing.assert_close(found[1], found[0])


def test_scores_with_gradients_refuse_one_graph() -> None:
    model, x = SMALL.torch_model(), torch.from_numpy(X[:, :2])
    scored = torch.compile(model.from_noise_with_score, backend="aot_eager")
    torch.testing.assert_close(scored(x), model.from_noise_with_score(x))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="cannot be compiled where gradients are enabled"):
        torch.compile(model.from_noise_with_score, backend="eager", fullgraph=True)(x)
