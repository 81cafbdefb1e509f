"""Residual maps: roots against mpmath, Lipschitz bounds against singular values, unbiased estimates."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge import lipschitz
from flow_bridge.architecture import architecture
from flow_bridge.errors import ConvergenceError
from flow_bridge.weights import torch_to_jax
from jax_flows.bijectors import planar as jax_planar
from jax_flows.checkpoint import from_numpy
from jax_flows.networks.lipschitz import spectral_bound as jax_spectral_bound
from torch_flows.bijectors import planar
from torch_flows.checkpoint import to_numpy
from torch_flows.networks.lipschitz import spectral_bound
from torch_flows.numerics import rademacher, random_bits

ACTIVATIONS = (
    "elu", "gelu", "gelu_tanh", "leaky_relu", "leaky_relu:0.6", "mish", "relu", "selu", "sigmoid",
    "silu", "sin", "softplus", "tanh",
)  # fmt: skip


def randomised(model, scale: float = 1.0, seed: int = 0):
    """The model in float64 with normal weights and state."""
    generator = np.random.default_rng(seed)
    model = model.double().eval()
    state = {
        k: torch.tensor(scale * generator.normal(size=v.shape))
        for k, v in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


def twin(model):
    """The JAX half of a torch model."""
    jax_model = jax_flows.build(architecture(model))
    state = {name: to_numpy(array) for name, array in model.state_dict().items()}
    return jax_model, from_numpy(torch_to_jax(state, jax_model.shapes()))


def hard_block(bound: float, seed: int = 0) -> torch_flows.InvertibleResidual:
    """A block whose slope reaches -bound, with one narrow step: Newton's steps overshoot."""
    model = torch_flows.InvertibleResidual(2, (1,), bound, activation="tanh").double().eval()
    direction = torch.tensor(np.random.default_rng(seed).normal(size=2))
    with torch.no_grad():
        first, last = model.network.layers
        first.weight.copy_(50 * direction.unsqueeze(0))
        last.weight.copy_(-50 * direction.unsqueeze(1))
        first.bias.fill_(0.3)
    return model


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_radial_root_against_mpmath(dtype: str) -> None:
    generator = np.random.default_rng(0)
    alpha, s, rho = np.exp(generator.uniform(-12, 12, (3, 300))).astype(dtype)
    alpha[:20], rho[20:40] = 1e-20, s[20:40]
    with mpmath.workdps(60):
        exact = []
        for a, b, c in zip(alpha, s, rho, strict=True):
            a, b, c = mpmath.mpf(float(a)), mpmath.mpf(float(b)), mpmath.mpf(float(c))
            p = b - c
            exact.append(float((mpmath.sqrt(p * p + 4 * a * c) - p) / 2))
    roots = [
        planar._positive_root(*map(torch.from_numpy, (rho, alpha, s))).numpy(),
        np.asarray(jax_planar._positive_root(*map(jnp.asarray, (rho, alpha, s)))),
    ]
    for root in roots:
        assert root.dtype == dtype
        error = np.abs(root.astype(np.float64) / np.array(exact) - 1)
        assert error.max() <= 8 * np.finfo(dtype).eps


def test_radial_at_its_center() -> None:
    model = randomised(torch_flows.Radial(3))
    x = model.center.detach().clone().requires_grad_()
    alpha, s = (torch.nn.functional.softplus(p.detach()) for p in (model.raw_alpha, model.raw_s))
    slope = torch.autograd.functional.jacobian(lambda x: model.forward(x)[0], x)
    torch.testing.assert_close(slope, torch.eye(3, dtype=torch.float64) * s / alpha)
    log_det = model.forward(x)[1]
    torch.testing.assert_close(log_det, 3 * (s / alpha).log())
    gradients = torch.autograd.grad(log_det, [x, *model.parameters()])
    assert all(g.isfinite().all() for g in gradients)


def test_sylvester_columns_are_orthonormal() -> None:
    generator = np.random.default_rng(0)
    for scale in (1e-30, 1.0, 100.0):
        vectors = (scale * generator.normal(size=(5, 7))).astype(np.float32)
        vectors[2] = 0
        vectors[4] = 3 * vectors[0]
        columns = [
            planar._orthonormal(torch.from_numpy(vectors)).numpy(),
            np.asarray(jax_planar._orthonormal(jnp.asarray(vectors))),
        ]
        product = np.eye(7)
        for v in vectors.astype(np.float64):
            if v.any():
                product = product @ (np.eye(7) - 2 * np.outer(v, v) / (v @ v))
        for q in columns:
            np.testing.assert_allclose(q.T @ q, np.eye(5), atol=1e-6)
            np.testing.assert_allclose(q, product[:, :5], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sylvester_inverse_at_large_weights(dtype: torch.dtype) -> None:
    """The residual is rounding at the size of the factors, at every weight and input."""
    for seed in range(6):
        model = randomised(torch_flows.Sylvester(4, 4), 10.0, seed).to(dtype)
        outer, inner, *_ = planar._sylvester_parameters([model], None)
        outer, inner = outer[0], inner[0]
        size = 1 + torch.linalg.matrix_norm(outer) * torch.linalg.matrix_norm(inner)
        for scale in (1.0, 1e3):
            z = torch.tensor(scale * np.random.default_rng(seed).normal(size=(200, 4)), dtype=dtype)
            with torch.no_grad():
                x, log_det = model.inverse(z)
                again, forward_log_det = model.forward(x)
            error = ((again - z).norm(dim=-1) / (1 + z.norm(dim=-1))).max()
            assert error <= 64 * torch.finfo(dtype).eps * size
            both = (log_det + forward_log_det).abs() / (1 + log_det.abs())
            assert both.max() <= 64 * torch.finfo(dtype).eps * size


def test_sylvester_is_invertible_at_saturated_diagonals() -> None:
    model = torch_flows.Sylvester(1, 1).double()
    for p, q in ((40.0, -40.0), (-60.0, 60.0), (0.0, -80.0)):
        model.factors.data = torch.tensor([[q, p]], dtype=torch.float64)
        model.b.data.zero_()
        log_det = model.forward(torch.zeros(1, 1, dtype=torch.float64))[1]
        with mpmath.workdps(100):
            exact = mpmath.log(1 + mpmath.tanh(p) * mpmath.tanh(q))
        assert math.isclose(log_det.item(), float(exact), rel_tol=1e-14, abs_tol=1e-14)


def test_sylvester_refuses_a_large_rank() -> None:
    for half in (torch_flows, jax_flows):
        with pytest.raises(ValueError, match="rank to be at most dim 2, got 3"):
            half.Sylvester(2, 3)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 9), (40, 40)])
def test_spectral_bound(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for scale in (1.0, 1e-30, 1e30):
        weight = scale * generator.normal(size=shape)
        exact = np.linalg.norm(weight, 2)
        for bound in (spectral_bound(torch.tensor(weight)), jax_spectral_bound(weight)):
            assert exact * (1 - 1e-13) <= float(bound) <= exact * (1 + 1e-3)
    orthogonal = np.linalg.qr(generator.normal(size=(40, 40)))[0]  # every singular value alike
    for bound in (spectral_bound(torch.tensor(orthogonal)), jax_spectral_bound(orthogonal)):
        assert 1 - 1e-13 <= float(bound) <= 1 + 3e-4
    zeros = torch.zeros(shape, requires_grad=True)
    bound = spectral_bound(zeros)
    assert bound <= 1e-30
    assert torch.autograd.grad(bound, zeros)[0].isfinite().all()
    bound, slope = jax.jit(jax.value_and_grad(jax_spectral_bound))(jnp.zeros(shape))
    assert bound <= 1e-30
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_lipschitz_bound_holds_for_every_weight(activation: str) -> None:
    """By singular values of the layers, and by the Jacobian at random points; vectors are random."""
    context = torch.zeros(2, dtype=torch.float64)
    for scale in (0.01, 1.0, 100.0):
        model = torch_flows.InvertibleResidual(3, (8, 6), 0.9, activation=activation, context_dim=2)
        model = randomised(model, scale)
        product = lipschitz.SLOPE_BOUNDS.get(activation, 1.0) ** 2
        for weight, _ in model.network.normalized(context):
            product *= np.linalg.norm(weight.detach().numpy(), 2)
        assert product <= 0.9 * (1 + 1e-12)
        x = torch.tensor(np.random.default_rng(0).normal(size=(20, 3)))
        slopes = torch.func.vmap(torch.func.jacrev(lambda x, m=model: m.forward(x, context)[0]))(x)
        slopes = slopes - torch.eye(3, dtype=torch.float64)
        assert torch.linalg.matrix_norm(slopes, 2).max() <= 0.9 * (1 + 1e-12)


def test_slope_bounds_are_right() -> None:
    from torch_flows.derivatives import VALUE_AND_SLOPE

    x = torch.linspace(-10, 10, 100_001, dtype=torch.float64)
    for name in ACTIVATIONS:
        largest = VALUE_AND_SLOPE[name](x)[1].abs().max().item()
        bound = lipschitz.SLOPE_BOUNDS.get(name, 1.0)
        assert bound - 2e-4 <= largest <= bound
        autodiff = torch.func.vmap(
            torch.func.grad(torch_flows.networks.activations.ACTIVATIONS[name])
        )(x + 1e-9)
        torch.testing.assert_close(VALUE_AND_SLOPE[name](x + 1e-9)[1], autodiff)


def test_power_iteration_starts_converged_and_follows() -> None:
    torch.manual_seed(0)
    model = torch_flows.InvertibleResidual(2, (32, 32)).double()
    jax_model = jax_flows.InvertibleResidual(2, (32, 32))
    state = jax_model.init(jax.random.key(0))
    for i, layer in enumerate(model.network.layers):
        exact = torch.linalg.matrix_norm(layer.weight, 2)
        torch.testing.assert_close(layer.u @ layer.weight @ layer.v, exact, rtol=1e-5, atol=0)
        params, stats = (state[c]["network"][f"layers_{i}"] for c in ("params", "batch_stats"))
        estimate = float(stats["u"] @ params["kernel"].T @ stats["v"])
        assert math.isclose(estimate, np.linalg.norm(params["kernel"], 2), rel_tol=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(64, 2, dtype=torch.float64)
    model.train()
    for _ in range(20):
        z, log_det = model.forward(x)
        optimizer.zero_grad()
        (z.square().sum(-1) / 2 - log_det).mean().backward()
        optimizer.step()
    with torch.no_grad():
        trained = model.forward(x)[1]
        exact = model.eval().forward(x)[1]
    torch.testing.assert_close(trained, exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("bound", [0.97, 0.9999])
def test_inverse_of_hard_blocks(bound: float) -> None:
    scales = np.geomspace(0.01, 1e3, 100)[:, None]
    for seed in range(3):
        model = hard_block(bound, seed)
        z = np.random.default_rng(seed).normal(size=(100, 2)) * scales
        with torch.no_grad():
            x = model.inverse(torch.from_numpy(z))[0]
            again = model.forward(x)[0].numpy()
        np.testing.assert_allclose(again, z, rtol=1e-12, atol=1e-12)
    jax_model, variables = twin(model)
    twin_x = jax.jit(jax_model.inverse)(variables, z)[0]
    np.testing.assert_allclose(twin_x, x, rtol=1e-14 / (1 - bound), atol=1e-14 / (1 - bound))


def test_inverse_that_does_not_converge_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(lipschitz, "newton_steps", lambda bound: 1)
    model = hard_block(0.9999)
    jax_model, variables = twin(model)
    z = np.array([[0.3, 0.2], [-3.0, 1.0], [np.nan, 0.0]])
    for run in (
        lambda: model.inverse(torch.from_numpy(z)),
        lambda: jax_model.inverse(variables, jnp.asarray(z)),
    ):
        with pytest.raises(ConvergenceError, match=r"tolerance 1\.1e-13 within 1 steps in \d of"):
            run()
    x, log_det = jax.jit(jax_model.inverse)(variables, z)
    assert np.isnan(x).all(-1).tolist() == np.isnan(log_det).tolist()
    assert np.isnan(log_det).any()
    mapped = torch.func.vmap(model.inverse)(torch.from_numpy(z))
    assert mapped[0].isnan().all(-1).tolist() == np.isnan(x).all(-1).tolist()


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_inverse_of_what_is_not_finite_is_nan(activation: str) -> None:
    model = randomised(torch_flows.InvertibleResidual(2, (5,), activation=activation))
    z = torch.tensor([[0.5, 1.0], [math.nan, 0.0], [math.inf, 0.0]], dtype=torch.float64)
    x, log_det = model.inverse(z)
    torch.testing.assert_close(model.forward(x[:1])[0], z[:1])
    jax_model, variables = twin(model)
    for point, change in ((x, log_det), jax_model.inverse(variables, z.numpy())):
        assert np.isnan(point.tolist()).tolist() == [[False] * 2, [True] * 2, [True] * 2]
        assert np.isnan(change.tolist()).tolist() == [False, True, True]


def estimates(model, x: torch.Tensor, num_draws: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Estimates of the log-det at one x, and of its gradient in x."""
    generator = np.random.default_rng(seed)
    stop = lipschitz.stop_probability("", model.stop_probability, model.lipschitz)
    lengths = model.exact_terms + generator.geometric(stop, num_draws) - 1
    values, gradients = [], []
    for length in np.unique(lengths):
        rows = int((lengths == length).sum())
        noise = torch.from_numpy(generator.choice([-1.0, 1.0], (rows, len(x))))
        many = x.expand(rows, -1).clone().requires_grad_()
        log_det = model.forward_with_noise(many, noise, int(length))[1]
        gradients.append(torch.autograd.grad(log_det.sum(), many)[0])
        values.append(log_det.detach())
    return torch.cat(values), torch.cat(gradients)


def assert_mean(samples: torch.Tensor, exact: torch.Tensor) -> None:
    """The mean is within 4 standard errors, and those are small enough to tell something."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - exact).abs() <= 4 * error).all()
    assert (error < 0.05).all()


def test_series_is_unbiased() -> None:
    model = torch_flows.InvertibleResidual(
        3, (3,), 0.9, log_det="series", exact_terms=2, activation="tanh"
    )
    model = randomised(model, 0.3)
    with torch.no_grad():  # slopes close to the bound, so that the higher terms matter
        first, last = model.network.layers
        first.weight += 2 * torch.eye(3, dtype=torch.float64)
        last.weight -= 2 * torch.eye(3, dtype=torch.float64)
    x = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    exact = model.forward(x)[1]
    gradient = torch.autograd.grad(exact, x)[0]
    values, gradients = estimates(model, x.detach(), 10_000, seed=1)
    assert_mean(values, exact.detach())
    assert_mean(gradients, gradient)
    first_terms = model.forward_with_noise(
        x.detach().expand(10_000, 3), rademacher(model.noise_step, 0, (10_000, 3)), 2
    )[1]
    assert (first_terms.mean() - exact).abs() > 4 * first_terms.std() / 100  # the test can fail


def test_training_draws_the_stated_laws() -> None:
    step = torch.tensor(3.0, dtype=torch.float64)
    signs = torch.cat([rademacher(step + i, 0, (100, 100)).flatten() for i in range(20)])
    assert signs.mean().abs() < 4 / math.sqrt(len(signs))
    assert (signs[1:] * signs[:-1]).mean().abs() < 4 / math.sqrt(len(signs))
    assert (signs[10_000:] * signs[:-10_000]).mean().abs() < 4 / math.sqrt(len(signs))
    thresholds = torch.from_numpy(lipschitz.roulette_thresholds(0.2))
    lengths = torch.stack([(random_bits(step + i, 1, ()) < thresholds).sum() for i in range(4000)])
    for j in (1, 3, 8):
        exact = 0.8**j
        share = (lengths >= j).double().mean().item()
        assert abs(share - exact) < 4 * math.sqrt(exact * (1 - exact) / 4000)
    assert lipschitz.roulette_thresholds(0.2)[-1] <= 1


def test_truncated_series_keeps_its_bound() -> None:
    for terms in (1, 4, 9, 30):
        model = torch_flows.InvertibleResidual(3, (8, 8), 0.9, log_det="series", eval_terms=terms)
        randomised(model, 3.0)
        x = torch.tensor(np.random.default_rng(0).normal(size=(50, 3)))
        cut, again = model.forward(x)[1], model.forward(x)[1]
        assert torch.equal(cut, again)
        model.eval_terms = None
        error = (model.forward(x)[1] - cut).abs().max().item()
        assert 0 < error <= lipschitz.truncation_bound(3, 0.9, terms)


def test_infinite_variance_is_refused() -> None:
    for half in (torch_flows, jax_flows):
        with pytest.raises(ValueError, match=r"1 - lipschitz\^2 = 0\.19, .*infinite variance"):
            half.InvertibleResidual(2, lipschitz=0.9, log_det="series", stop_probability=0.19)
        for value in (0.0, 1.0, 1.5):
            with pytest.raises(ValueError, match="lipschitz between 0 and 1"):
                half.InvertibleResidual(2, lipschitz=value)


def test_estimates_agree_across_backends() -> None:
    model = randomised(torch_flows.InvertibleResidual(4, (6, 5), log_det="series"), 2.0)
    jax_model, variables = twin(model)
    generator = np.random.default_rng(0)
    x, noise = generator.normal(size=(2, 9, 4))
    z, log_det = model.forward_with_noise(torch.from_numpy(x), torch.from_numpy(noise), 17)
    twin_z, twin_log_det = jax.jit(jax_model.forward_with_noise)(variables, x, noise, 17)
    np.testing.assert_allclose(twin_z, z.detach(), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(twin_log_det, log_det.detach(), rtol=1e-13, atol=1e-13)


def test_fit_with_the_series_is_the_same_in_both() -> None:
    """Signs and lengths come from converted state, so that whole runs agree."""
    torch.manual_seed(0)
    block = torch_flows.InvertibleResidual(2, (5,), log_det="series", activation="tanh")
    flow = torch_flows.Flow(block, torch_flows.StandardNormal(2)).double()
    jax_flow, variables = twin(flow)
    data = np.random.default_rng(0).normal(size=(60, 2))
    settings = {"num_epochs": 5, "batch_size": 20, "validation": 0.0, "progress": False}
    torch_history = torch_flows.fit(flow, data, **settings)
    variables, history = jax_flows.fit(jax_flow, variables, data, **settings)
    np.testing.assert_allclose(history.train_loss, torch_history.train_loss, rtol=1e-12)
    assert dataclasses.asdict(jax_flow.bijector)["log_det"] == "series"
    np.testing.assert_allclose(
        variables["params"]["bijector"]["network"]["layers_0"]["kernel"].T,
        block.network.layers[0].weight.detach(),
        rtol=1e-10,
    )
    assert float(variables["batch_stats"]["bijector"]["noise_step"]) == block.noise_step.item()


def test_residual_flow_round_trip() -> None:
    flow = randomised(torch_flows.ResidualFlow(2, num_blocks=4), 0.5)
    x = torch.tensor(np.random.default_rng(0).normal(size=(200, 2)))
    with torch.no_grad():
        assert (flow.inverse(flow.forward(x)[0])[0] - x).abs().max() < 1e-10


@pytest.mark.parametrize(("activation", "hidden_dims"), [("gelu", (8,)), ("softplus", ())])
def test_compiled_inverse_behind_a_linear_map(
    activation: str, hidden_dims: tuple[int, ...]
) -> None:
    """In JAX most rows were NaN: XLA rounded two copies of the residual differently."""
    block = jax_flows.InvertibleResidual(1, hidden_dims, 0.97, activation=activation)
    chain = jax_flows.Chain((block, jax_flows.Affine(1)))
    inverse, start = jax.jit(chain.inverse), chain.init(jax.random.key(0), "float32")
    for seed in range(20):
        generator = np.random.default_rng(seed)
        variables = jax.tree.map(
            lambda a: np.float32(0.5 * generator.normal(size=a.shape)),  # noqa: B023
            start,
        )
        z = generator.normal(size=(16, 1)).astype(np.float32)
        x, log_det = inverse(variables, z)
        back, forward_log_det = chain.forward(variables, x)
        np.testing.assert_allclose(back, z, atol=1e-5)
        np.testing.assert_allclose(log_det, -forward_log_det, atol=1e-4)
