"""Conditioners in bfloat16 with float32 weights: only conditioners, in both halves, and how exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge.weights import torch_to_jax
from parity_tests.catalogue import CASES, Case, arch, cases

CONDITIONED = {
    "NeuralSplineFlow": arch("NeuralSplineFlow", dim=3, hidden_dims=[64, 64], num_layers=2,
                             num_bins=3, context_dim=2),
    "MAF": arch("MAF", dim=3, hidden_dims=[64, 64], num_layers=2),
    "Glow": arch("Glow", shape=[1, 4, 4], num_levels=2, num_steps=1, hidden_channels=8),
    "TarFlow": arch("TarFlow", shape=4, num_layers=2, hidden_dim=16, num_blocks=1, num_heads=2, rotary=True,
                    qk_norm=True),
}  # fmt: skip
"""Models with an MLP, a masked network, convolutions beside linear maps, and attention."""

MEAN_ERRORS = (1e-4, 0.05)
"""Between these is the mean error in nats; measured: 2e-3 to 2e-2 (float32: 1e-6)."""

WITHOUT = {"PlanarFlow", "RadialFlow-context", "SylvesterFlow", "ResidualFlow", "NeuralODE"}


def lower(half: str):
    if half == "torch":
        return torch.autocast("cpu", torch.bfloat16)
    return jax.default_matmul_precision("bfloat16")


def float32(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array.astype(np.float32)


def tensors(*arrays: np.ndarray | None) -> list[torch.Tensor]:
    return [torch.from_numpy(a) for a in arrays if a is not None]


@pytest.mark.parametrize("name", CONDITIONED)
def test_errors_in_nats(name: str) -> None:
    """Against float64 in PyTorch; outputs stay float32, and a coupling's inverse stays exact."""
    case = Case(name, CONDITIONED[name], scale=0.5)
    x, context = case.inputs(100), case.context(100)
    with torch.no_grad():
        exact = case.torch_model().log_prob(*tensors(x, context)).numpy()
    inputs = [a for a in (float32(x), float32(context)) if a is not None]
    model, flow = case.torch_model("float32"), jax_flows.build(case.architecture)
    variables = torch_to_jax({k: float32(w) for k, w in case.weights().items()}, flow.shapes())
    with torch.no_grad(), lower("torch"):
        results = [model.log_prob(*tensors(*inputs)).numpy()]
        z, log_det = model.forward(*tensors(*inputs))
        back = model.inverse(z, *tensors(*inputs[1:]))[0].numpy()
    log_prob = jax.jit(flow.log_prob)
    with lower("jax"):
        results.append(np.asarray(log_prob(variables, *inputs)))
    assert z.dtype == log_det.dtype == torch.float32
    for result in results:
        assert result.dtype == np.float32
        low, high = MEAN_ERRORS
        assert low < np.abs(result - exact).mean() < high
    if name not in ("MAF", "TarFlow"):  # whose inverses are in full precision
        np.testing.assert_allclose(back, inputs[0], atol=1e-4)


@cases(
    lambda case: (
        case.name in WITHOUT or case.name.startswith(("LULinear", "Rotation", "Invertible1"))
    )
)
def test_other_maps_stay_as_they_are(case: Case) -> None:
    """Where there is no conditioner, autocast changes no bit, and JAX's program has no bfloat16."""
    model, inputs = case.torch_model("float32"), [case.inputs(5), case.context(5)]
    inputs = [a.astype(np.float32) for a in inputs if a is not None]
    for method in ("forward", "inverse"):
        with torch.no_grad():
            expected = getattr(model, method)(*tensors(*inputs))
            with lower("torch"):
                outputs = getattr(model, method)(*tensors(*inputs))
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
        assert "bf16" not in program(case, method, inputs)


def program(case: Case, method: str, inputs: list[np.ndarray]) -> str:
    flow = jax_flows.build(case.architecture)
    variables = jax.eval_shape(lambda key: flow.init(key, jnp.float32), jax.random.key(0))
    with lower("jax"):
        return str(jax.make_jaxpr(getattr(flow, method))(variables, *inputs))


def test_wanted_models_are_in_the_catalogue() -> None:
    assert {case.name for case in CASES} >= WITHOUT


@cases(lambda case: case.name in {"NeuralSplineFlow", "MAF"})
def test_conditioners_are_lowered(case: Case) -> None:
    """In both halves, compiled in one graph too."""
    x = case.inputs(5).astype(np.float32)
    assert "bf16" in program(case, "log_prob", [x])
    model = case.torch_model("float32")
    torch._dynamo.reset()
    compiled = torch.compile(model.log_prob, fullgraph=True, backend="eager")
    with torch.no_grad():
        plain = model.log_prob(torch.from_numpy(x))
        with lower("torch"):
            low, low_compiled = model.log_prob(torch.from_numpy(x)), compiled(torch.from_numpy(x))
    assert not torch.equal(low, plain)
    torch.testing.assert_close(low_compiled, low)


def test_training() -> None:
    """Weights stay float32, and the loss comes out as in float32 to about a hundredth of a nat."""
    data = np.random.default_rng(0).standard_normal((400, 2)).astype(np.float32)
    data[:, 1] += data[:, 0] ** 2
    arguments = {"num_epochs": 8, "batch_size": 50, "progress": False, "validation": 0}
    model = arch("NICE", dim=2, hidden_dims=[16, 16])
    losses = {}
    for kind in ("float32", "bfloat16"):
        torch.manual_seed(0)
        flow = torch_flows.build(model)
        twin = jax_flows.build(model)
        weights = {k: v.numpy().copy() for k, v in flow.state_dict().items()}
        variables = torch_to_jax(weights, twin.shapes())
        variables = jax.tree.map(jnp.asarray, variables)
        enabled = kind == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            torch_flows.fit(flow, data, **arguments)
        with jax.default_matmul_precision("bfloat16" if enabled else "float32"):
            variables, _ = jax_flows.fit(twin, variables, data, **arguments)
        assert {p.dtype for p in flow.parameters()} == {torch.float32}
        assert {p.dtype for p in jax.tree.leaves(variables)} == {np.dtype("float32")}
        with torch.no_grad():
            loss = -flow.log_prob(torch.from_numpy(data)).mean().item()
        losses[kind] = loss, -float(twin.log_prob(variables, data).mean())
    start = 0.5 * np.square(data).sum(1).mean() + np.log(2 * np.pi)
    for kind, pair in losses.items():
        assert max(pair) < start - 0.3, kind
    assert np.ptp([*losses["float32"], *losses["bfloat16"]]) < 0.03, losses


def run_everywhere(case: Case, device: str, *methods: str) -> list[torch.Tensor]:
    model, inputs = case.torch_model(), tensors(case.inputs(4), case.context(4))
    model, (x, *context) = model.to(device), [a.to(device) for a in inputs]
    outputs = []
    for method in methods:
        with torch.no_grad():
            outputs += getattr(model, method)(x, *context)
        if method == "forward":
            x = outputs[0]
    return outputs


@pytest.mark.slow
@cases()
def test_everything_stays_on_the_device(case: Case, monkeypatch) -> None:
    """PyTorch refuses to mix the meta device with another; its arrays have no values to look at."""
    for module in (
        "bijectors.residual",
        "bijectors.continuous",
        "bijectors.transformer",
        "univariate.roots",
    ):
        monkeypatch.setattr(f"torch_flows.{module}.is_eager", lambda: False)
    outputs = run_everywhere(case, "meta", "forward", "inverse")
    assert {a.device.type for a in outputs} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@cases(lambda case: torch.cuda.is_available() or case is CASES[0])
def test_gpu(case: Case) -> None:
    """Both directions in float64 on a GPU are those of the CPU."""
    expected = run_everywhere(case, "cpu", "forward", "inverse")
    for a, b in zip(run_everywhere(case, "cuda", "forward", "inverse"), expected, strict=True):
        assert a.device.type == "cuda"
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-9)
