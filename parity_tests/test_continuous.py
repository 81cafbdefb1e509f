"""Continuous flows: closed-form solutions, error control per row, unbiased traces, adaptive parity."""

import copy
import dataclasses
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge.architecture import architecture
from flow_bridge.errors import ConvergenceError
from flow_bridge.weights import jax_to_torch, torch_to_jax
from jax_flows.checkpoint import from_numpy
from torch_flows.checkpoint import to_numpy
from torch_flows.derivatives import evaluate, jacobian, jvp, trace, trace_weight, vjp


def continuous(seed: int = 0, scale: float = 1.0, **arguments) -> torch_flows.ContinuousBijector:
    """A bijector in float64 with random weights."""
    torch.manual_seed(seed)
    defaults = {"dim": 3, "hidden_dims": (8, 8)}
    model = torch_flows.ContinuousBijector(**(defaults | arguments)).double().eval()
    for parameter in model.parameters():
        parameter.data *= 2 * scale
    return model


def twin(model):
    """The JAX half of a torch model."""
    jax_model = jax_flows.build(architecture(model))
    state = {name: to_numpy(array) for name, array in model.state_dict().items()}
    return jax_model, from_numpy(torch_to_jax(state, jax_model.shapes()))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("hidden_dims", [(), (5,), (5, 4), (5, 4, 6)])
def test_closed_form_derivatives(hidden_dims: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = torch_flows.MLP(3, 3, hidden_dims, "silu").double()
    layers = [(layer.weight, layer.bias) for layer in network.layers]
    x, v = normal(7, 3), normal(7, 3, seed=1)
    value, slopes = evaluate(layers, "silu", x)
    torch.testing.assert_close(value, network(x))
    exact = torch.func.vmap(torch.func.jacrev(network))(x)
    torch.testing.assert_close(jacobian(layers, slopes).expand_as(exact), exact)
    torch.testing.assert_close(jvp(layers, slopes, v), (exact @ v.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(vjp(layers, slopes, v), (v.unsqueeze(-2) @ exact).squeeze(-2))
    found = trace(layers, slopes, trace_weight(layers))
    torch.testing.assert_close(found.expand(7), exact.diagonal(0, -2, -1).sum(-1))


def test_linear_field_is_a_matrix_exponential() -> None:
    for solver in ("dopri5", "rk4"):
        model = continuous(hidden_dims=(), solver=solver, rtol=1e-9, atol=1e-9, num_steps=200)
        (layer,) = model.network.layers
        system = torch.zeros(5, 5, dtype=torch.float64)  # of x, t and 1
        system[:3] = torch.cat([layer.weight, layer.bias.unsqueeze(1)], 1)
        system[3, 4] = 1
        x = normal(6, 3)
        start = torch.cat([x, torch.zeros(6, 1), torch.ones(6, 1)], 1)
        z = (start @ torch.linalg.matrix_exp(system).T)[:, :3]
        jax_model, variables = twin(model)
        with torch.no_grad():
            ours = model.forward(x)
        for result in (ours, jax_model.forward(variables, x.numpy())):
            found = [torch.from_numpy(np.array(a)) for a in result]
            torch.testing.assert_close(found[0], z, rtol=0, atol=1e-7)
            exact = layer.weight[:, :3].trace().expand(6)
            torch.testing.assert_close(found[1], exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize("half", [torch_flows, jax_flows])
def test_any_network_is_a_field(half) -> None:
    """The network of the closed form, given as a conditioner: the same rates, with a probe and penalties."""
    given = {"solver": "rk4", "num_steps": 2, "context_dim": 1, "time_scaling": True}
    given |= {"kinetic_energy": 0.2, "jacobian_norm": 0.1, "time_features": 1}
    ours = continuous(dim=2, hidden_dims=(4,), **given)
    conditioner = half.Network(half.MLP, hidden_dims=(4,), activation="tanh")
    x, context, noise = normal(5, 2), normal(5, 1, seed=1), normal(5, 2, seed=2)
    if half is torch_flows:
        other = continuous(dim=2, conditioner=conditioner, **given)
        other.load_state_dict(ours.state_dict())
        pairs = [
            [
                model.forward(x, context),
                model.forward_with_noise(x, noise, context),
                model.train().forward(x, context),
                (model.velocity(x, 0.3, context),) * 2,
            ]
            for model in (ours, other)
        ]
    else:
        twin_of_ours, variables = twin(ours)
        pairs = [
            jax.jit(lambda v, model=model: [
                model.forward(v, x.numpy(), context.numpy()),
                model.forward_with_noise(v, x.numpy(), noise.numpy(), context.numpy()),
                model.map_forward_and_update(v, jnp.asarray(x), jnp.asarray(context))[:2],
                (model.velocity(v, x.numpy(), 0.3, context.numpy()),) * 2,
            ])(variables)
            for model in (twin_of_ours, half.ContinuousBijector(2, conditioner=conditioner, **given))
        ]  # fmt: skip
    for one, another in zip(*pairs, strict=True):
        for a, b in zip(one, another, strict=True):
            np.testing.assert_allclose(to_array(a), to_array(b), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("solver", "conditioner"),
    [("rk4", None), ("rk4", "MLP"), ("rk4", "HollowMLP"), ("dopri5", None)],
)
def test_samples_need_no_trace(solver: str, conditioner: str | None, monkeypatch) -> None:
    """In chains, inverted and in blocks too; they and their gradients are those of what has one."""
    given = {"solver": solver, "num_steps": 2, "rtol": 1e-7, "atol": 1e-7}
    if conditioner:
        network = getattr(torch_flows, conditioner)
        given["conditioner"] = torch_flows.Network(network, hidden_dims=(6,))
    parts = [continuous(seed, **given) for seed in range(3)]
    for i, weight in enumerate(w for part in parts for w in part.parameters()):
        weight.data = 0.4 * normal(*weight.shape, seed=i)
    chain = torch_flows.Chain([parts[0], torch_flows.Invert(parts[1])])
    blocks = torch_flows.Blockwise([chain, parts[2]], [[0, 2, 4], [1, 3, 5]])
    bijector = blocks if solver == "rk4" and not conditioner else parts[0]
    flow = torch_flows.Flow(bijector, torch_flows.StandardNormal(*bijector.event_shape)).double()
    other, variables = twin(flow)

    def draw(method: str) -> list[np.ndarray]:
        generator = torch.Generator().manual_seed(0)
        x = getattr(flow, method)(20, generator=generator)
        x = x if method == "sample" else x[0]
        found = [x, *torch.autograd.grad(x.square().sum(), list(flow.parameters()))]
        return [array.detach().numpy() for array in found]

    def draw_in_jax(method: str) -> list[np.ndarray]:
        def total(variables):
            x = getattr(other, method)(variables, jax.random.key(0), 20)
            x = x if method == "sample" else x[0]
            return jnp.square(x).sum(), x

        gradients, x = jax.jit(jax.grad(total, has_aux=True))(variables)
        return [np.asarray(array) for array in (x, *jax.tree.leaves(gradients))]

    expected = [half("sample_and_log_prob") for half in (draw, draw_in_jax)]
    for name in ("torch_flows", "jax_flows"):
        monkeypatch.setattr(sys.modules[f"{name}.bijectors.continuous"], "trace", None)
    with monkeypatch.context() as patch:
        patch.setattr(torch.func, "vjp", None)
        found = [draw("sample")]
    if conditioner:  # the adjoint equation of the other takes it for its gradients
        monkeypatch.setattr(jax, "vjp", None)
    found.append(draw_in_jax("sample"))
    tolerance = 1e-12 if solver == "rk4" else 1e-5
    for ours, exact in zip(found, expected, strict=True):
        for one, another in zip(ours, exact, strict=True):
            np.testing.assert_allclose(one, another, rtol=tolerance, atol=tolerance)


def mixin(count: int) -> type:
    """Of bijectors whose inverse takes so many arguments."""

    class Mixin:
        def map_inverse(self, *given):
            assert len(given) == count
            x, log_det = super().map_inverse(*given)
            return x + 100, log_det

    return Mixin


def test_samples_follow_an_inverse_of_ones_own() -> None:
    """Of a subclass of what has a shorter way to them, and a flow's own samples."""

    class Doubled(torch_flows.Chain):
        def map_inverse(self, z, context):
            x, log_det = super().map_inverse(z, context)
            return 2 * x, log_det

    class DoubledInJax(jax_flows.Chain):
        def map_inverse(self, variables, z, context):
            x, log_det = super().map_inverse(variables, z, context)
            return 2 * x, log_det

    class Mixed(mixin(2), torch_flows.Chain):
        pass

    class MixedInJax(mixin(3), jax_flows.Chain):
        pass

    class Farther(torch_flows.Flow):
        def sample_and_log_prob(self, *given):
            x, log_prob = super().sample_and_log_prob(*given)
            return x + 100, log_prob

    class FartherInJax(jax_flows.Flow):
        def sample_and_log_prob(self, *given):
            x, log_prob = super().sample_and_log_prob(*given)
            return x + 100, log_prob

    torch.manual_seed(0)
    key, layers = jax.random.key(0), [torch_flows.Affine(2)]
    base, base_in_jax = torch_flows.StandardNormal(2), jax_flows.StandardNormal(2)
    for chain in (Doubled, Mixed, torch_flows.Chain):
        kind = Farther if chain is torch_flows.Chain else torch_flows.Flow
        flow = kind(chain(layers), base)
        draws = [
            draw(5, None, torch.Generator().manual_seed(0))
            for draw in (flow.sample, flow.sample_and_log_prob)
        ]
        torch.testing.assert_close(draws[0], draws[1][0], rtol=0, atol=0)
    for chain in (DoubledInJax, MixedInJax, jax_flows.Chain):
        kind = FartherInJax if chain is jax_flows.Chain else jax_flows.Flow
        other = kind(chain([jax_flows.Affine(2)]), base_in_jax)
        variables = other.init(key)
        x, _ = other.sample_and_log_prob(variables, key, 5)
        np.testing.assert_array_equal(other.sample(variables, key, 5), x)


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_a_hollow_field_has_its_trace_in_one_pass(solver: str, monkeypatch) -> None:
    """Equal to the trace of the whole Jacobian, and its gradients to those of that, in both halves."""
    network = torch_flows.Network(torch_flows.HollowMLP, hidden_dims=(6,), width=2)
    given = {"solver": solver, "num_steps": 2, "context_dim": 1, "time_features": 1}
    model = continuous(dim=4, conditioner=network, **given)
    weights = list(model.parameters())
    for i, weight in enumerate(weights):
        weight.data = 0.5 * normal(*weight.shape, seed=i)
    x, context = normal(5, 4), normal(5, 1, seed=1)
    every = torch.autograd.functional.jacobian(
        lambda x: model.velocity(x[None], 0.5, context[:1])[0], x[0]
    )
    assert every.abs().min() > 1e-4
    other, variables = twin(model)
    found, calls = [], []
    hook = model.network.register_forward_hook(lambda *args: calls.append(1))
    for hollow in (True, False):
        monkeypatch.setattr(torch_flows.HollowMLP, "hollow", hollow)
        monkeypatch.setattr(jax_flows.HollowMLP, "hollow", hollow)
        calls.clear()
        log_det = model.forward(x, context)[1]
        if hollow:
            assert len(calls) == model.count_evaluations(x, context) or solver == "dopri5"
        found.append((log_det, *torch.autograd.grad(log_det.sum(), weights)))
    hook.remove()
    for one, another in zip(*found, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-7, atol=1e-9)
    monkeypatch.setattr(jax_flows.HollowMLP, "hollow", True)
    log_det = other.forward(variables, x.numpy(), context.numpy())[1]
    tolerance = 1e-12 if solver == "rk4" else 1e-3
    np.testing.assert_allclose(log_det, found[0][0].detach(), rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="HollowMLP has as many outputs as inputs, got 2 and 3"):
        torch_flows.HollowMLP(2, 3)


def test_what_a_field_sees_of_time() -> None:
    expected = [[0.25, 0.5**0.5, 0, 0.5**0.5, 1], [1, -1, 1, 0, 0]]
    for found in (
        torch_flows.bijectors.continuous.time_inputs(torch.tensor([0.25, 1.0]).double(), 2),
        jax_flows.bijectors.continuous.time_inputs(jnp.asarray([0.25, 1.0]), 2),
    ):
        np.testing.assert_allclose(np.asarray(found), expected, atol=1e-15)


def test_a_scaled_field_without_a_network_is_that_of_normal_data() -> None:
    """z = x, along the field of N(0, 1) under the rectified path."""
    model, x, t = continuous(time_scaling=True, rtol=1e-10, atol=1e-10), normal(5, 3), 0.3
    model.load_state_dict({name: torch.zeros_like(w) for name, w in model.state_dict().items()})
    with torch.no_grad():
        z, log_det = model.forward(x)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0, atol=1e-9)
    expected = (t - (1 - t)) / (t**2 + (1 - t) ** 2) * x  # the regression of z - x on x_t
    torch.testing.assert_close(model.velocity(x, t), expected)


@pytest.mark.slow
def test_a_hollow_field_is_compiled() -> None:
    network = torch_flows.Network(torch_flows.HollowMLP, hidden_dims=(4,), width=2)
    model, x = continuous(dim=2, conditioner=network, solver="rk4", num_steps=1), normal(3, 2)
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model.forward(x))


def to_array(values) -> np.ndarray:
    return np.asarray(values.detach() if isinstance(values, torch.Tensor) else values)


def gradients_of(model, direction: str, x: torch.Tensor, context: torch.Tensor):
    """Outputs and gradients of a fixed loss, in both halves."""
    jax_model, variables = twin(model)
    weights, log_weights = normal(*x.shape, seed=5), normal(len(x), seed=6)
    points = [a.clone().requires_grad_() for a in (x, context)]
    out, log_det = getattr(model, direction)(*points)
    loss = (out * weights).sum() + (log_det * log_weights).sum()
    found = torch.autograd.grad(loss, [*points, *model.parameters()])
    names = ["x", "context", *(name for name, _ in model.named_parameters())]
    torch_results = dict(zip(names, (g.numpy() for g in found), strict=True))
    torch_results |= {"out": out.detach().numpy(), "log_det": log_det.detach().numpy()}

    def total(params, x, context):
        out, log_det = getattr(jax_model, direction)({**variables, "params": params}, x, context)
        loss = (out * weights.numpy()).sum() + (log_det * log_weights.numpy()).sum()
        return loss, (out, log_det)

    gradient = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
    (params, *inputs), (out, log_det) = gradient(variables["params"], x.numpy(), context.numpy())
    jax_results = jax_to_torch({"params": params})
    jax_results |= {"x": inputs[0], "context": inputs[1], "out": out, "log_det": log_det}
    return torch_results, {name: np.asarray(array) for name, array in jax_results.items()}


@pytest.mark.parametrize("adjoint", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_adaptive_solvers_agree(adjoint: bool, direction: str) -> None:
    model = continuous(rtol=1e-9, atol=1e-9, adjoint=adjoint, context_dim=2)
    ours, theirs = gradients_of(model, direction, normal(5, 3), normal(5, 2, seed=1))
    exact = continuous(rtol=1e-12, atol=1e-12, adjoint=False, context_dim=2)
    points = [a.clone().requires_grad_() for a in (normal(5, 3), normal(5, 2, seed=1))]
    out, log_det = getattr(exact, direction)(*points)
    loss = (out * normal(5, 3, seed=5)).sum() + (log_det * normal(5, seed=6)).sum()
    truth = dict(zip(("x", "context"), torch.autograd.grad(loss, points), strict=True))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        scale = max(1.0, np.linalg.norm(array))
        assert np.linalg.norm(array - theirs[name]) < 1e-11 * scale, name  # the same steps
        if name in truth:
            assert np.linalg.norm(array - truth[name].numpy()) < 1e-6 * scale, name


def test_adjoint_tolerance_is_relative_to_the_gradient() -> None:
    """A mean over many rows makes every row's gradient small; its relative error must not grow."""
    x = normal(5, 3).requires_grad_()
    results = []
    for adjoint, tolerance in ((True, 1e-6), (False, 1e-12)):
        model = continuous(rtol=tolerance, atol=tolerance, adjoint=adjoint)
        z, log_det = model.forward(x)
        loss = 1e-9 * (z.square().sum() - log_det.sum())
        results.append(torch.autograd.grad(loss, [x, *model.parameters()]))
    for found, exact in zip(*results, strict=True):
        assert (found - exact).norm() < 1e-4 * exact.norm()


def test_round_trip_and_tolerance() -> None:
    exact = continuous(rtol=1e-12, atol=1e-12)
    x = normal(20, 3)
    with torch.no_grad():
        z, log_det = exact.forward(x)
        errors = []
        for tolerance in (1e-9, 1e-7, 1e-5):
            model = continuous(rtol=tolerance, atol=tolerance)
            found, found_log_det = model.forward(x)
            error = max((found - z).abs().max(), (found_log_det - log_det).abs().max())
            assert error < 10 * tolerance
            errors.append(float(error))
            if tolerance == 1e-9:
                back, back_log_det = model.inverse(found)
                assert (back - x).abs().max() < 1e-7
                assert (back_log_det + found_log_det).abs().max() < 1e-7
    assert errors == sorted(errors)


def test_results_are_within_ten_tolerances() -> None:
    """At the default tolerance, with weights of scale 1; this log-det was 37 tolerances off."""
    models = []
    for tolerance in (1e-12, 1e-5):
        models.append(continuous(rtol=tolerance, atol=tolerance))
        generator = torch.Generator().manual_seed(1)
        for parameter in models[-1].parameters():
            parameter.data.normal_(generator=generator)
    exact, model = models
    jax_model, variables = twin(model)
    x = normal(12, 3, seed=1)
    with torch.no_grad():
        z, log_det = exact.forward(x)
        back, inverse_log_det = exact.inverse(z)
        truth = [z, log_det, back, inverse_log_det]
        ours = [*model.forward(x), *model.inverse(z)]
    theirs = [torch.tensor(np.asarray(a)) for a in jax_model.forward(variables, x.numpy())]
    torch.testing.assert_close(theirs, ours[:2], rtol=1e-11, atol=1e-11)  # the same steps
    for found in (ours, theirs):
        for a, b in zip(found, truth, strict=False):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_row_keeps_its_accuracy_among_others() -> None:
    """One active row among quiet ones: the norm over the whole batch would dilute its error."""
    exact = continuous(scale=1.5, rtol=1e-12, atol=1e-12)
    model = continuous(scale=1.5, rtol=1e-5, atol=1e-5)
    jax_model, variables = twin(model)
    active = 3 * normal(1, 3, seed=3)
    with torch.no_grad():
        z, log_det = exact.forward(active)
        for num_rows in (1, 1024):
            rows = torch.cat([active, 0.01 * normal(num_rows - 1, 3)])
            jax_results = jax_model.forward(variables, rows.numpy())
            for found in (model.forward(rows), [torch.tensor(np.asarray(a)) for a in jax_results]):
                assert (found[0][0] - z[0]).norm() < 1e-3
                assert (found[1][0] - log_det[0]).abs() < 1e-3


def test_bad_rows_stay_alone_and_cost_nothing() -> None:
    model = continuous(context_dim=1)
    jax_model, variables = twin(model)
    x, context = normal(5, 3), normal(5, 1, seed=1)
    x[1], x[2, 0], context[3] = math.nan, math.inf, math.nan
    good = [0, 4]
    with torch.no_grad():
        clean = model.forward(x[good], context[good])
        results = model.forward(x, context)
        count = model.count_evaluations(x, context)
        assert count <= model.count_evaluations(x[good], context[good]) + 12
    jax_results = jax_model.forward(variables, x.numpy(), context.numpy())
    for result in (results, [torch.tensor(np.asarray(a)) for a in jax_results]):
        assert result[1].isnan().tolist() == [False, True, True, True, False]
        for a, b in zip(result, clean, strict=True):
            torch.testing.assert_close(a[good], b, rtol=0, atol=1e-3)


def test_failure_names_the_tolerance() -> None:
    model = continuous(max_steps=2)
    jax_model, variables = twin(model)
    x = normal(4, 3)
    message = r"did not reach rtol=1e-05, atol=1e-05 within 2 steps"
    with pytest.raises(ConvergenceError, match=message):
        model.forward(x)
    with pytest.raises(ConvergenceError, match=message):
        jax_model.forward(variables, x.numpy())
    assert np.isnan(jax.jit(jax_model.forward)(variables, x.numpy())[1]).all()


def test_missing_solver_says_what_to_install(monkeypatch) -> None:
    x = normal(2, 3)
    model = continuous()
    jax_model, variables = twin(model)
    for module, extra in (("torchdiffeq", "torch"), ("diffrax", "jax")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            ImportError, match=rf"needs {module}: pip install 'twinflows\[{extra}\]'"
        ):
            model.forward(x) if extra == "torch" else jax_model.forward(variables, x.numpy())


def test_rk4_is_of_fourth_order() -> None:
    exact = continuous(rtol=1e-12, atol=1e-12)
    x = normal(10, 3)
    with torch.no_grad():
        z = exact.forward(x)[0]
        errors = [
            (continuous(solver="rk4", num_steps=n).forward(x)[0] - z).norm().item()
            for n in (20, 40, 80)
        ]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.abs(orders - 4).max() < 0.25


def test_estimated_trace_is_unbiased() -> None:
    model = continuous(solver="rk4", num_steps=4, trace="hutchinson")
    x = normal(3, seed=4)
    with torch.no_grad():
        exact = model.forward(x)[1]
        for probe in ("rademacher", "gaussian"):
            model.train().probe = probe
            samples = model.forward(x.expand(10_000, 3))[1]
            error = samples.std() / 100
            assert (samples.mean() - exact).abs() < 4 * error
            assert 0 < error < 0.05
            other = model.forward(x.expand(10_000, 3))[1]
            assert not torch.equal(samples, other)


def test_a_shared_probe_cancels_in_the_round_trip() -> None:
    model = continuous(rtol=1e-9, atol=1e-9, trace="hutchinson")
    jax_model, variables = twin(model)
    x, noise = normal(5, 3), normal(5, 3, seed=1).sign()
    with torch.no_grad():
        z, log_det = model.forward_with_noise(x, noise)
        back, back_log_det = model.inverse_with_noise(z, noise)
        assert (log_det - model.forward(x)[1]).abs().max() > 1e-3
    torch.testing.assert_close(back, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=1e-7)
    _, twin_log_det = jax_model.forward_with_noise(variables, x.numpy(), noise.numpy())
    np.testing.assert_allclose(twin_log_det, log_det, rtol=0, atol=1e-6)


def test_penalties_of_a_linear_field() -> None:
    """dx/dt = A x: |df/dx|_F^2 is |A|_F^2; with A = 0, |f|^2 is |b|^2."""
    x = normal(4, 3)
    model = continuous(hidden_dims=(), jacobian_norm=0.3, solver="rk4")
    weight = model.network.layers[0].weight[:, :3].detach()
    log_det = model.train().forward(x)[1]
    torch.testing.assert_close(log_det, (weight.trace() - 0.3 * weight.square().sum()).expand(4))
    torch.testing.assert_close(model.eval().forward(x)[1], weight.trace().expand(4))
    model = continuous(hidden_dims=(), kinetic_energy=0.5, solver="rk4")
    model.network.layers[0].weight.data.zero_()
    log_det = model.train().forward(x)[1]
    torch.testing.assert_close(
        log_det, -0.5 * model.network.layers[0].bias.square().sum().expand(4)
    )


def test_trajectory_and_evaluations() -> None:
    model = continuous(rtol=1e-7, atol=1e-7)
    jax_model, variables = twin(model)
    x = normal(6, 3)
    path = jax_model.trajectory(variables, x.numpy(), [0.0, 0.3, 1.0])
    with torch.no_grad():
        torch_path = model.trajectory(x, [0.0, 0.3, 1.0])
        z = model.forward(x)[0]
        counts = model.count_evaluations(x), int(jax_model.count_evaluations(variables, x.numpy()))
    assert torch.equal(torch_path[0], x)
    torch.testing.assert_close(torch_path[2], z, rtol=0, atol=1e-5)
    np.testing.assert_allclose(path, torch_path, rtol=0, atol=1e-5)
    np.testing.assert_allclose(path[2], z, rtol=0, atol=1e-12)  # the same steps
    assert counts[0] == counts[1]
    for half, given in ((model, ()), (jax_model, (variables,))):
        with pytest.raises(ValueError, match="times that rise or fall throughout, got"):
            half.trajectory(*given, x if half is model else x.numpy(), [0.0, 0.5, 0.3])
        with pytest.raises(ValueError, match="times that rise or fall throughout, got 'now'"):
            half.trajectory(*given, x if half is model else x.numpy(), "now")
    assert continuous(solver="rk4", num_steps=7).count_evaluations(x) == 28
    fixed = dataclasses.replace(jax_model, solver="rk4", num_steps=7)
    assert fixed.count_evaluations(variables, x.numpy()) == 28


def test_first_and_last_step() -> None:
    """The first is about half of the others (it was an eighth), and the last is no interpolation."""
    model, x = continuous(hidden_dims=(), rtol=1e-9, atol=1e-9), normal(4, 3)
    grid = model.choose_grid(x)
    steps = np.diff(grid)[:-1]
    assert len(steps) > 3
    assert 0.4 * steps.max() < steps[0] <= steps.max()
    model = continuous(rtol=1e-7, atol=1e-7)
    fixed = continuous(grid=model.choose_grid(x))
    with torch.no_grad():
        for found, same in zip(model.forward(x), fixed.forward(x), strict=True):
            torch.testing.assert_close(found, same, rtol=1e-13, atol=1e-13)


def test_a_trajectory_is_one_solve() -> None:
    network = torch_flows.Network(torch_flows.MLP, hidden_dims=(4,), activation="tanh")
    model, x, times = continuous(dim=2, conditioner=network), normal(4, 2), np.linspace(1, 0, 41)
    exact = continuous(dim=2, conditioner=network, solver="rk4", num_steps=20)
    exact.load_state_dict(model.state_dict())
    calls = []
    hook = model.network.register_forward_hook(lambda *args: calls.append(1))
    path = model.trajectory(x, times.tolist())
    assert len(calls) < 2 * model.count_evaluations(x)
    hook.remove()
    middle = exact.trajectory(x, [1.0, times[17]])[1]
    torch.testing.assert_close(path[17], middle, rtol=0, atol=1e-4)
    weight = model.network.layers[0].weight
    (found,) = torch.autograd.grad(path[17].sum(), weight)
    (right,) = torch.autograd.grad(middle.sum(), exact.network.layers[0].weight)
    torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("quick_jax")
def test_a_grid_from_a_run() -> None:
    """One map in both halves, near that of the adaptive steps, with the error that it says."""
    bijectors = [architecture(m) for m in (torch_flows.Affine(2), *[continuous(dim=2)] * 2)]
    flow = torch_flows.build(
        {"type": "Flow", "bijector": {"type": "Chain", "bijectors": bijectors},
         "base": {"type": "StandardNormal", "dim": 2}}
    ).double()  # fmt: skip
    other, variables = twin(flow)
    x = normal(6, 2)
    log_prob = flow.log_prob(x).detach()
    fixed, error = torch_flows.fixed_grid(flow, x)
    assert 0 < error < 1e-4
    found, exact = fixed.log_prob(x).detach(), copy.deepcopy(fixed)
    for solver in list(exact.bijector)[1:]:
        solver.grid = solver.refined()["grid"]
    assert 1e-12 < (found - exact.log_prob(x)).abs().max() < 10 * error
    torch.testing.assert_close(found, log_prob, rtol=0, atol=1e-3)
    same, same_variables = twin(fixed)
    twins = jax.jit(same.log_prob)(same_variables, x.numpy())
    np.testing.assert_allclose(twins, found, rtol=1e-12)
    assert fixed.bijector[1].count_evaluations(x) == 6 * (len(fixed.bijector[1].grid) - 1)
    in_jax, in_jax_variables, error = jax_flows.fixed_grid(other, variables, x.numpy())
    assert 0 < error < 1e-4
    found = jax.jit(in_jax.log_prob)(in_jax_variables, x.numpy())
    np.testing.assert_allclose(found, log_prob, rtol=0, atol=1e-3)
    torch.func.vmap(torch.func.hessian(fixed.log_prob))(x)


@pytest.mark.parametrize("half", [torch_flows, jax_flows])
def test_what_grids_and_columns_are_refused(half) -> None:
    for grid in ((0.0, 0.5), (0.0, 0.5, 0.5, 1.0), (1.0,)):
        with pytest.raises(ValueError, match="expects a grid of times that rise from 0 to 1, got"):
            half.ContinuousBijector(2, grid=grid)
    with pytest.raises(ValueError, match="a grid with solver 'dopri5' only, not 'rk4'"):
        half.ContinuousBijector(2, solver="rk4", grid=(0.0, 1.0))
    for columns in ((2,), (0, 0)):
        with pytest.raises(ValueError, match="expects circular as some of its 2 columns, got"):
            half.ContinuousBijector(2, circular=columns)
    with pytest.raises(ValueError, match="takes time_scaling or circular columns, which have no"):
        half.ContinuousBijector(2, circular=(1,), time_scaling=True)
    inner = half.Invert(half.ContinuousBijector(2))
    cases = {"in its chain, not deeper": inner, "solver 'dopri5', and found none": half.Affine(2)}
    for sentence, bijector in cases.items():
        flow = half.Flow(bijector, half.StandardNormal(2))
        given = () if half is torch_flows else (flow.init(jax.random.key(0)),)
        x = torch.zeros(3, 2) if half is torch_flows else jnp.zeros((3, 2))
        with pytest.raises(ValueError, match=sentence):
            half.fixed_grid(flow, *given, x)
    flow = half.Flow(half.ContinuousBijector(2), half.StandardNormal(2))
    given = () if half is torch_flows else (flow.init(jax.random.key(0)),)
    for rows in (x[:0], x * math.nan):
        with pytest.raises(ValueError, match="choose_grid expects one row at least, and finite"):
            half.fixed_grid(flow, *given, rows)


@pytest.mark.parametrize("adjoint", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("quick_jax")
def test_second_derivatives(adjoint: bool) -> None:
    """A gradient penalty through the adjoint equation was 0 in PyTorch, without a word."""
    small, x = {"dim": 2, "hidden_dims": (4,)}, normal(3, 2)
    model = continuous(**small, rtol=1e-6, atol=1e-6, adjoint=adjoint)
    found = []
    for judged in (continuous(**small, solver="rk4", num_steps=20), model):
        q = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(judged.forward(q)[1].sum(), q, create_graph=True)
        penalty, wrt = slope.square().sum(), [q, *judged.parameters()]
        gradients = torch.autograd.grad(penalty, wrt, allow_unused=True)
        found.append([penalty.detach(), *(g for g in gradients if g is not None)])
    for right, value in zip(*found, strict=True):
        np.testing.assert_allclose(value, right, rtol=1e-4, atol=1e-5)
    if adjoint:  # in JAX it always could
        return
    flow, variables = twin(model)

    def penalty_of(x: jax.Array) -> jax.Array:
        slope = jax.grad(lambda x: flow.forward(variables, x)[1].sum())(x)
        return (slope * slope).sum()

    gradient = jax.jit(jax.grad(penalty_of))(x.numpy())
    np.testing.assert_allclose(gradient, found[0][1], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("quick_jax")
def test_forward_mode() -> None:
    """Right, or a sentence that says what to use."""
    model, x = continuous(dim=2, hidden_dims=(4,)), normal(2)

    def image(x: torch.Tensor) -> torch.Tensor:
        return model.forward(x)[0]

    func, vectorized = torch.func, torch.autograd.functional.jacobian
    for transform in (func.jacrev, func.jacfwd, func.hessian, func.vmap):
        with pytest.raises(NotImplementedError, match="solver 'rk4'"):
            transform(image)(x[None])
    with pytest.raises(NotImplementedError, match="solver 'rk4'"):
        vectorized(image, x, vectorize=True)
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="solver 'rk4'"):
        model.forward(forward_ad.make_dual(x, torch.ones_like(x)))
    flow, variables = twin(model)
    with pytest.raises(TypeError, match="adjoint=False"):
        jax.jacfwd(lambda x: flow.forward(variables, x)[0])(x.numpy())
    flow = dataclasses.replace(flow, adjoint=False)
    found = jax.jit(jax.jacfwd(lambda x: flow.forward(variables, x)[0]))(x.numpy())
    np.testing.assert_allclose(found, vectorized(image, x), rtol=1e-3)
