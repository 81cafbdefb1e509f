"""Figures from outside both halves: counts, a peer's outputs, integrals, a worked example."""

from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy import special, stats

import jax_flows
import torch_flows
from flow_bridge.weights import torch_to_jax
from jax_flows.checkpoint import from_numpy
from jax_flows.networks.regularization import BatchNormalization as JaxBatchNormalization
from parity_tests.catalogue import CASES, Case, arch
from torch_flows.networks.regularization import BatchNormalization

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(("name", "count"), [("RealNVP", 71_744), ("PlanarFlow", 160)])
def test_parameter_counts(name: str, count: int) -> None:
    torch_flow = getattr(torch_flows, name)(2)
    assert sum(p.numel() for p in torch_flow.parameters()) == count
    shapes = getattr(jax_flows, name)(2).shapes()["params"]
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == count


def test_couplings_equal_those_of_a_peer() -> None:
    """Four masked affine couplings of normflows on the same weights."""
    arrays = load_file(GOLDEN / "realnvp_normflows.safetensors")
    x, z, log_det = (arrays.pop(name) for name in ("x", "z", "log_det"))
    ours = {"shift_net": "network.networks.0", "scale_net": "network.networks.1"}
    for name in list(arrays):
        peer = next(peer for peer in ours if peer in name)
        arrays[name.replace(peer, ours[peer])] = arrays.pop(name)
    couplings = [
        {"type": "AffineCoupling", "dim": 5, "hidden_dims": [7, 7], "mask": mask}
        for mask in ("even", "odd", "even", "odd")
    ]
    architecture = {"type": "Chain", "bijectors": couplings}
    torch_chain = torch_flows.build(architecture).double()
    torch_chain.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})
    with torch.no_grad():
        runs = [[a.numpy() for a in torch_chain(torch.from_numpy(x))]]
    jax_chain = jax_flows.build(architecture)
    variables = from_numpy(torch_to_jax(arrays, jax_chain.shapes()))
    runs.append([np.asarray(a) for a in jax.jit(jax_chain.forward)(variables, x)])
    for ours in runs:
        np.testing.assert_allclose(ours[0], z, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(ours[1], log_det, rtol=1e-13, atol=1e-13)


FLAT = [case for case in CASES if case.architecture["type"] in ("RealNVP", "PlanarFlow", "Flow")]
FLAT = [
    case
    for case in FLAT
    if case.inputs(1).shape == (1, 2) and case.context(1) is None and "uniform" not in case.name
]


@pytest.mark.parametrize("case", FLAT, ids=[case.name for case in FLAT])
def test_density_integrates_to_one(case) -> None:
    """On a plane of 600 x 600 cells that covers all of the mass."""
    model = case.torch_model()
    with torch.no_grad():
        samples = model.sample(20_000, generator=torch.Generator().manual_seed(0))
        low, high = samples.amin(0) - 2, samples.amax(0) + 2
        axes = [
            torch.linspace(a, b, 601, dtype=torch.float64) for a, b in zip(low, high, strict=True)
        ]
        middle = torch.cartesian_prod(*((a[1:] + a[:-1]) / 2 for a in axes))
        density = torch.cat([model.log_prob(part).exp() for part in middle.split(60_000)])
    cell = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    assert float(density.sum() * cell) == pytest.approx(1, abs=1e-3)


def test_unit_square_through_a_diagonal() -> None:
    """A uniform z on the unit square and x = diag(2, 1) z: the density of x is 1/2 on [0, 2] x [0, 1]."""
    x = np.array([[0.5, 0.5], [1.9, 0.1], [2.1, 0.5], [0.5, -0.1], [np.nan, 0.5]])
    expected = [0.5, 0.5, 0.0, 0.0, np.nan]
    log_scale = np.array([-np.log(2), 0.0])
    torch_flow = torch_flows.Flow(torch_flows.Rescale(2), torch_flows.Uniform(2)).double()
    torch_flow.load_state_dict({"bijector.log_scale": torch.from_numpy(log_scale)})
    jax_flow = jax_flows.Flow(jax_flows.Rescale(2), jax_flows.Uniform(2))
    variables = {"params": {"bijector": {"log_scale": log_scale}}}
    with torch.no_grad():
        in_torch = torch_flow.log_prob(torch.from_numpy(x)).exp().numpy()
        samples = torch_flow.sample(5000, generator=torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(in_torch, expected, rtol=1e-15)
    np.testing.assert_allclose(np.exp(jax_flow.log_prob(variables, x)), expected, rtol=1e-15)
    assert samples.min() >= 0
    np.testing.assert_allclose(samples.max(0), [2, 1], atol=2e-3)


def test_base_densities_and_samples() -> None:
    """Log-densities against torch.distributions; samples have the stated moments, noise in common."""
    generator = np.random.default_rng(0)
    z = generator.standard_normal((50, 3))
    loc, log_scale = generator.standard_normal(3), 0.5 * generator.standard_normal(3)
    normal = torch_flows.DiagonalNormal(3).double()
    normal.load_state_dict({"loc": torch.from_numpy(loc), "log_scale": torch.from_numpy(log_scale)})
    variables = {"params": {"loc": loc, "log_scale": log_scale}}
    oracle = torch.distributions.Normal(torch.from_numpy(loc), torch.from_numpy(log_scale).exp())
    expected = oracle.log_prob(torch.from_numpy(z)).sum(-1).numpy()
    with torch.no_grad():
        np.testing.assert_allclose(
            normal.log_prob(torch.from_numpy(z)).numpy(), expected, rtol=1e-13
        )
        from_torch = normal.from_noise(torch.from_numpy(z)).numpy()
        draws = normal.sample((40_000,), torch.Generator().manual_seed(0)).numpy()
    twin = jax_flows.DiagonalNormal(3)
    np.testing.assert_allclose(twin.log_prob(variables, z), expected, rtol=1e-13)
    np.testing.assert_allclose(twin.from_noise(variables, z), from_torch, rtol=1e-14)
    for samples in (draws, np.asarray(twin.sample(variables, jax.random.key(0), (40_000,)))):
        np.testing.assert_allclose(samples.mean(0), loc, atol=0.05)
        np.testing.assert_allclose(samples.std(0), np.exp(log_scale), rtol=0.03)


def planar_log_det(a: float, v: float) -> mpmath.mpf:
    """log(s sech(a)^2 + tanh(a)^2) with s = softplus(v)."""
    s = mpmath.log1p(mpmath.exp(mpmath.mpf(v)))
    return mpmath.log(s * mpmath.sech(mpmath.mpf(a)) ** 2 + mpmath.tanh(mpmath.mpf(a)) ** 2)


@pytest.mark.parametrize("half", ["torch", "jax"])
def test_planar_holds_up_against_mpmath(half: str) -> None:
    """float32 and float64 log-dets within 8 eps of the larger of 1 and their size, far from the origin."""
    from jax_flows import numerics as jax_numerics
    from jax_flows.bijectors import planar as in_jax
    from torch_flows import numerics as torch_numerics
    from torch_flows.bijectors import planar as in_torch

    generator = np.random.default_rng(0)
    a = np.concatenate(
        [generator.uniform(-4, 4, 60), generator.standard_normal(60) * 1e-3, [0, 50]]
    )
    v = np.concatenate([generator.uniform(-30, 30, 60), generator.uniform(-30, -10, 60), [-30, 80]])
    for dtype in (np.float32, np.float64):
        point, weight = a.astype(dtype), v.astype(dtype)
        if half == "torch":
            wu = torch.from_numpy(weight)
            s, log_s = torch_numerics.softplus(wu), torch_numerics.log_softplus(wu)
            found = in_torch._log_det(torch.from_numpy(point), s, log_s).numpy()
        else:
            s, log_s = jax_numerics.softplus(weight), jax_numerics.log_softplus(weight)
            found = np.asarray(in_jax._log_det(point, s, log_s))
        with mpmath.workdps(60):
            exact = [
                planar_log_det(*pair) for pair in zip(point.tolist(), weight.tolist(), strict=True)
            ]
            errors = [
                abs(f - e) / max(1, abs(e)) for f, e in zip(found.tolist(), exact, strict=True)
            ]
        assert max(errors) < 8 * np.finfo(dtype).eps


@pytest.mark.parametrize("half", ["torch", "jax"])
def test_planar_inverse_solves_its_equation(half: str) -> None:
    """The residual of a - tanh(a) + s tanh(a) = t is a few eps over 24 decades, and where it turns.

    Beyond s = 1 / eps too, where the map itself rounds x away.
    """
    from jax_flows.bijectors import planar as in_jax
    from torch_flows.bijectors import planar as in_torch

    generator = np.random.default_rng(1)
    for dtype, decades in ((np.float32, 12), (np.float64, 18)):
        s = 10 ** generator.uniform(-12, decades, 400)
        t = 10 ** generator.uniform(-12, 12, 400)
        t[:100] = abs(s[:100] + generator.uniform(-20, 20, 100))
        t[100:200] = s[100:200] * (1 + np.finfo(dtype).eps * generator.uniform(-4, 4, 100))
        t[200:220] = s[200:220] ** 1.5 * generator.uniform(0.5, 2, 20)
        s[220:230], t[220:230] = 1, [0, 1e-30, 1e-3, 0.1, 0.19, 0.2, 0.7, 1, 9, 1e4]
        t = t * generator.choice([-1, 1], t.shape)
        t_, s_ = t.astype(dtype), s.astype(dtype)
        if half == "torch":
            a = in_torch._solve(torch.from_numpy(t_), in_torch._curve(torch.from_numpy(s_))).numpy()
        else:
            a = np.asarray(in_jax._solve(t_, in_jax._curve(s_)))
        assert a.dtype == dtype
        with mpmath.workdps(60):
            for root, target, scale in zip(a.tolist(), t_.tolist(), s_.tolist(), strict=True):
                root = mpmath.mpf(root)
                slope = mpmath.tanh(root) ** 2 + scale * mpmath.sech(root) ** 2
                residual = root - mpmath.tanh(root) + scale * mpmath.tanh(root) - target
                assert abs(residual) <= 16 * np.finfo(dtype).eps * max(
                    abs(root) * slope, abs(target)
                )


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_planar_flow_inverts_at_large_weights(scale: float) -> None:
    torch.manual_seed(0)
    flow = torch_flows.Planar(4).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.copy_(scale * torch.randn_like(p))
        for size in (1e-8, 1.0, 1e3):
            z = size * torch.randn(500, 4, dtype=torch.float64)
            x, log_det = flow.inverse(z)
            again, forward_log_det = flow.forward(x)
            assert (
                float(((again - z).norm(dim=-1) / (1 + z.norm(dim=-1))).max())
                < 64 * 2.0**-52 * scale**2
            )
            assert float((log_det + forward_log_det).abs().max()) < 1e-12 * scale**2


@pytest.mark.parametrize("b", [0.05, 0.5, -3.0])
def test_planar_with_zero_weight_is_a_translation(b: float) -> None:
    flow, twin = torch_flows.Planar(3).double(), jax_flows.Planar(3)
    with torch.no_grad():
        flow.w.zero_()
        flow.b.fill_(b)
        x = torch.randn(4, 3, dtype=torch.float64)
        z, log_det = flow.forward(x)
        back, _ = flow.inverse(z)
    assert torch.equal(log_det, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(z, x + flow.u.detach() * flow.b.detach().tanh())
    torch.testing.assert_close(back, x, rtol=0, atol=4e-15)  # measured: 4e-16, in both halves
    variables = {"params": {name: p.detach().numpy() for name, p in flow.named_parameters()}}
    back, _ = twin.inverse(variables, z.numpy())
    np.testing.assert_allclose(back, x.numpy(), rtol=0, atol=4e-15)


@pytest.mark.parametrize("place", [(0, 1), (0, 0), (1, 1)])
def test_sylvester_of_slope_one_inverts(place: tuple[int, int]) -> None:
    """Where an entry of a diagonal is 0, s is exactly 1."""
    flow, twin = torch_flows.Sylvester(3, 2).double(), jax_flows.Sylvester(3, 2)
    with torch.no_grad():
        flow.b.fill_(0.05)
        flow.factors[place] = 0.0
        x = 0.03 * torch.randn(5, 3, dtype=torch.float64)
        z, log_det = flow.forward(x)
        back, log_back = flow.inverse(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-16)  # measured: 7e-18, in both halves
    torch.testing.assert_close(log_back, -log_det, rtol=0, atol=1e-15)
    variables = {"params": {name: p.detach().numpy() for name, p in flow.named_parameters()}}
    back, _ = twin.inverse(variables, z.numpy())
    np.testing.assert_allclose(back, x.numpy(), rtol=0, atol=1e-16)


@pytest.mark.parametrize("half", ["torch", "jax"])
def test_base_densities_against_scipy(half: str) -> None:
    generator = np.random.default_rng(0)
    z = generator.uniform(-0.9, 0.9, (6, 2))
    loc, log_scale, logits = (generator.standard_normal(s) for s in ((3, 2), (3, 2), 3))
    normal = stats.norm(loc, np.exp(log_scale)).logpdf(z[:, None]).sum(-1)
    rows = [
        (arch("StandardNormal", dim=2), {}, stats.norm.logpdf(z).sum(-1)),
        (arch("Uniform", dim=2, low=-1.0, high=2.0), {}, stats.uniform.logpdf(z, -1, 3).sum(-1)),
        (arch("StudentT", dim=2, df=2.5), {}, stats.t.logpdf(z, 2.5).sum(-1)),
        (
            arch("StudentT", dim=2, df=2.5, learned=True),
            {"raw_df": loc[0] * [1.0, 30.0]},
            stats.t.logpdf(z, 2.5 * np.exp(7 * np.tanh(loc[0] * [1.0, 30.0] / 7))).sum(-1),
        ),
        (
            arch("DiagonalNormal", dim=2),
            {"loc": loc[0], "log_scale": log_scale[0]},
            normal[:, 0],
        ),
        (
            arch("GaussianMixture", dim=2, num_components=3),
            {"loc": loc, "log_scale": log_scale, "logits": logits},
            special.logsumexp(normal + special.log_softmax(logits), -1),
        ),
    ]
    for description, weights, expected in rows:
        if half == "torch":
            base = torch_flows.build(description).double()
            base.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
            found = base.log_prob(torch.from_numpy(z)).detach().numpy()
        else:
            found = jax_flows.build(description).log_prob({"params": weights}, jnp.asarray(z))
        np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("half", ["torch", "jax"])
def test_batch_norm_against_torch_nn(half: str) -> None:
    """In training: z by the biased variance, running averages of the unbiased one; then evaluation."""
    generator = np.random.default_rng(0)
    x = 3 * generator.standard_normal((10, 3)) + 1
    weights = {name: generator.standard_normal(3) for name in ("log_gamma", "beta")}
    oracle = torch.nn.BatchNorm1d(3, eps=1e-3, momentum=0.3).double()
    oracle.weight.data = torch.from_numpy(weights["log_gamma"]).exp()
    oracle.bias.data = torch.from_numpy(weights["beta"])
    expected = [oracle(torch.from_numpy(x)), oracle.eval()(torch.from_numpy(x))]
    expected = [z.detach() for z in expected] + [oracle.running_mean, oracle.running_var]
    running = {"running_mean": np.zeros(3), "running_var": np.ones(3)}
    description = arch("BatchNorm", dim=3, eps=1e-3, momentum=0.3)
    if half == "torch":
        norm = torch_flows.build(description).double().train()
        norm.load_state_dict({k: torch.from_numpy(v) for k, v in (weights | running).items()})
        with torch.no_grad():
            z = norm(torch.from_numpy(x))[0]
            found = [z, norm.eval()(torch.from_numpy(x))[0], norm.running_mean, norm.running_var]
    else:
        norm = jax_flows.build(description)
        variables = from_numpy(torch_to_jax(weights | running, norm.shapes()))
        z, _, running = norm.forward_and_update(variables, jnp.asarray(x))
        after = norm.forward(variables | {"batch_stats": running}, jnp.asarray(x))[0]
        found = [z, after, running["mean"], running["var"]]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("half", ["torch", "jax"])
def test_batch_normalization_of_networks_against_torch_nn(half: str) -> None:
    """Between the layers of networks: two batches in training, of the pixels of images, then evaluation."""
    generator = np.random.default_rng(0)
    batches = 3 * generator.standard_normal((2, 3, 5, 4)) + 1
    weights = {name: generator.standard_normal(4) for name in ("weight", "bias")}
    oracle = torch.nn.BatchNorm1d(4).double()
    oracle.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    rows = torch.from_numpy(batches).flatten(1, 2)
    expected = [oracle(rows[0]), oracle(rows[1]), oracle.eval()(rows[0])]
    expected = [*expected, oracle.running_mean, oracle.running_var]
    if half == "torch":
        norm = BatchNormalization(4).double()
        norm.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
        x = torch.from_numpy(batches)
        found = [norm(x[0]), norm(x[1]), norm.eval()(x[0]), norm.running_mean, norm.running_var]
        found = [array.detach().numpy() for array in found]
    else:
        layer = JaxBatchNormalization(4)
        state = layer.init(jax.random.key(0), jnp.asarray(batches[0]))
        params = {"scale": jnp.asarray(weights["weight"]), "bias": jnp.asarray(weights["bias"])}
        found = []
        for x in batches:
            state = {"params": params, "batch_stats": state["batch_stats"]}
            z, state = layer.apply(state, jnp.asarray(x), mutable=["batch_stats"])
            found.append(z)
        running = state["batch_stats"]
        after = layer.apply({"params": params, "batch_stats": running}, jnp.asarray(batches[0]))
        found += [after, running["mean"], running["var"]]
    for ours, theirs in zip(found, expected, strict=True):
        theirs = theirs.detach().numpy()
        np.testing.assert_allclose(np.reshape(ours, theirs.shape), theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("half", ["torch", "jax"])
def test_rotation_is_a_product_of_reflections(half: str) -> None:
    """z = H_1 H_2 ... H_k x with H_i = I - 2 v_i v_i^T / |v_i|^2."""
    x = np.random.default_rng(0).standard_normal((5, 3))
    case = Case("rotation", arch("Rotation", dim=3))
    vectors = case.weights()["vectors"]
    product = np.eye(3)
    for v in vectors:
        product = product @ (np.eye(3) - 2 * np.outer(v, v) / (v @ v))
    if half == "torch":
        found = case.torch_model()(torch.from_numpy(x))[0].detach().numpy()
    else:
        rotation = jax_flows.build(case.architecture)
        found = rotation.forward({"params": {"vectors": vectors}}, jnp.asarray(x))[0]
    np.testing.assert_allclose(found, x @ product.T, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("half", ["torch", "jax"])
def test_truncated_series_of_a_diagonal(half: str) -> None:
    """tr(A) - tr(A^2) / 2 + ... of a diagonal matrix, term by term."""
    a = np.array([0.5, -0.3, 0.1])
    expected = sum(-((-1) ** k) * (a**k).sum() / k for k in range(1, 6))
    module = import_module(f"{half}_flows.bijectors.residual")
    matrix = np.diag(a)[None]
    given = torch.from_numpy(matrix) if half == "torch" else jnp.asarray(matrix)
    np.testing.assert_allclose(module._truncated_log_det(given, 5), [expected], rtol=1e-14)
