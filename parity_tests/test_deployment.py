"""Flows as files: compiled, exported, and run by processes that have not this package."""

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from jax.experimental import serialize_executable
from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext
from torch._inductor.decomposition import select_decomp_table

import jax_flows
import torch_flows
from flow_bridge.weights import torch_to_jax
from parity_tests.catalogue import Case, arch, flow
from torch_flows.export import _DECOMPOSITIONS, _trace, _write_onnx

aten = torch.ops.aten

SMALL = {"dim": 3, "hidden_dims": [6], "num_layers": 2}
SPLINES = {**SMALL, "num_bins": 3}
ODE = {"dim": 3, "hidden_dims": [5], "solver": "rk4", "num_steps": 3}
MODELS = {
    "NICE": arch("NICE", **SMALL),
    "RealNVP": arch("RealNVP", dim=3, hidden_dims=[6, 6], num_layers=2, context_dim=2),
    "NeuralSplineFlow": arch("NeuralSplineFlow", **SPLINES, context_dim=2),
    "NeuralSplineFlow-autoregressive": arch("NeuralSplineFlow", **SPLINES, autoregressive=True),
    "MAF": arch("MAF", **SMALL, context_dim=2),
    "IAF": arch("IAF", **SMALL),
    "Glow": arch("Glow", shape=[1, 4, 4], num_levels=2, num_steps=1, hidden_channels=4, context_dim=2),
    "TarFlow": arch("TarFlow", shape=[1, 4, 4], patch_size=2, num_layers=2, hidden_dim=4, num_heads=2,
                    context_dim=2),
    "Jet": arch("Jet", shape=[1, 4, 4], num_layers=5, hidden_dim=4, num_heads=2, num_blocks=1,
                context_dim=2),
    "PlanarFlow": arch("PlanarFlow", dim=3, num_layers=2, context_dim=2),
    "RadialFlow": arch("RadialFlow", dim=3, num_layers=2, context_dim=2),
    "SylvesterFlow": arch("SylvesterFlow", dim=3, num_layers=2, rank=2),
    "ResidualFlow": arch("ResidualFlow", dim=2, hidden_dims=[5], num_blocks=1, lipschitz=0.9),
    "ResidualFlow-dim3": arch("ResidualFlow", dim=3, hidden_dims=[5], num_blocks=1, lipschitz=0.7,
                              context_dim=2),
    "NeuralODE": arch("NeuralODE", **ODE, context_dim=2),
    "FFJORD": arch("FFJORD", **ODE),
    "conditional base": flow(arch("Affine", dim=2), arch("GaussianMixture", dim=2, num_components=2,
                                                         context_dim=2)),
}  # fmt: skip
"""Every model: the table in docs/deployment.md is about these."""

METHODS = ("log_prob", "inverse")
TOLERANCE = {np.dtype("float32"): 1e-4, np.dtype("float64"): 1e-11}

every_model = pytest.mark.parametrize("name", MODELS)
a_few_models = pytest.mark.parametrize("name", ["RealNVP", "NeuralSplineFlow", "MAF", "FFJORD"])
every_method = pytest.mark.parametrize("method", METHODS)
exactly = pytest.mark.parametrize("dtype", ["float32", "float64"])

REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {refused!r}:
            raise ImportError(f'{{name}} is refused')
sys.meta_path.insert(0, Refuse())
import numpy as np
inputs = dict(np.load('inputs.npz'))
"""
PACKAGE = ("torch_flows", "jax_flows", "flow_bridge")


def elsewhere(folder: Path, refused: tuple[str, ...], code: str, **environment: str) -> np.ndarray:
    """What code saves as ``outputs.npy`` in a process without our packages and without ``refused``."""
    script = REFUSE.format(refused=(*PACKAGE, *refused)) + code
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        capture_output=True, text=True, timeout=600, cwd=folder, env={**kept, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.load(folder / "outputs.npy")


def arguments(name: str, dtype: str = "float32", rows: int = 7) -> list[np.ndarray]:
    """Inputs of a model, one row of them with a NaN, and a context if it takes one."""
    case = Case(name, MODELS[name])
    x, context = case.inputs(rows), case.context(rows)
    x[rows // 2] = np.nan
    return [a.astype(dtype) for a in (x, context) if a is not None]


def eager(model: Any, method: str, inputs: list[np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = getattr(model, method)(*map(torch.from_numpy, inputs))
    return [a.numpy() for a in (outputs if isinstance(outputs, tuple) else (outputs,))]


def assert_equal(outputs: Any, expected: Any) -> None:
    """Equal to rounding, and non-finite in the same places."""
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    assert len(outputs) == len(expected)
    for a, b in zip(outputs, expected, strict=True):
        a, b = (x.detach() if isinstance(x, torch.Tensor) else x for x in (a, b))
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        limit = TOLERANCE[b.dtype]
        np.testing.assert_allclose(a, b, rtol=limit, atol=limit)


def jax_model(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    case, flow = Case(name, MODELS[name]), jax_flows.build(MODELS[name])
    weights = {key: array.astype(dtype) for key, array in case.weights().items()}
    return flow, jax.tree.map(jnp.asarray, torch_to_jax(weights, flow.shapes()))


def check_onnx(name: str, method: str, path: Path) -> None:
    model = Case(name, MODELS[name]).torch_model("float32")
    torch_flows.export(model, path, method)
    session = onnxruntime.InferenceSession(path)
    names = [a.name for a in session.get_inputs()], [a.name for a in session.get_outputs()]
    first, outputs = ("z", ["x", "log_det"]) if method == "inverse" else ("x", ["log_prob"])
    assert names == ([first, "context"][: len(names[0])], outputs)
    assert session.get_inputs()[0].shape[0] == "batch"
    for rows in (7, 1, 0):
        inputs = [a[:rows] for a in arguments(name)]
        results = session.run(None, dict(zip(names[0], inputs, strict=True)))
        assert_equal(results, eager(model, method, inputs))


def check_torch_export(name: str, method: str, path: Path, dtype: str) -> None:
    model = Case(name, MODELS[name]).torch_model(dtype)
    torch_flows.export(model, path, method)
    program = torch.export.load(path).module()
    for rows in (7, 1, 0):
        inputs = [a[:rows] for a in arguments(name, dtype)]
        assert_equal(program(*map(torch.from_numpy, inputs)), eager(model, method, inputs))
    x, *context = (torch.from_numpy(a[:3]).requires_grad_() for a in arguments(name, dtype))
    totals = (f(x, *context) for f in (program, getattr(model, method)))
    totals = [(t if isinstance(t, torch.Tensor) else t[0] + t[1][(...,) + (None,) * (x.ndim - 1)])
              for t in totals]  # fmt: skip
    assert_equal(*([torch.autograd.grad(t.sum(), x)[0]] for t in totals))


def check_jax_export(name: str, method: str, path: Path, dtype: str) -> None:
    flow, variables = jax_model(name, dtype)
    jax_flows.export(flow, variables, path, method)
    program = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    for rows in (7, 1):
        inputs = [a[:rows] for a in arguments(name, dtype)]
        expected = jax.tree.leaves(getattr(flow, method)(variables, *inputs))
        assert_equal(program(*inputs), expected)


@pytest.mark.slow
@every_model
@every_method
def test_onnx_of_every_model(name: str, method: str, tmp_path) -> None:
    check_onnx(name, method, tmp_path / "model.onnx")


def test_torch_export(tmp_path) -> None:
    check_torch_export("FFJORD", "log_prob", tmp_path / "model.pt2", "float64")


@pytest.mark.slow
@every_model
@every_method
@exactly
def test_torch_export_of_every_model(name: str, method: str, dtype: str, tmp_path) -> None:
    check_torch_export(name, method, tmp_path / "model.pt2", dtype)


def test_jax_export(tmp_path) -> None:
    check_jax_export("FFJORD", "inverse", tmp_path / "model.jax", "float64")


@pytest.mark.slow
@every_model
@every_method
@exactly
def test_jax_export_of_every_model(name: str, method: str, dtype: str, tmp_path) -> None:
    check_jax_export(name, method, tmp_path / "model.jax", dtype)


@every_model
def test_jax_export_lowers_for_every_platform(name: str, tmp_path) -> None:
    """One file for CPU, GPU and TPU; nothing is compiled here."""
    flow, variables = jax_model(name)
    platforms = ("cpu", "cuda", "tpu")
    for method in METHODS:
        jax_flows.export(flow, variables, tmp_path / "model.jax", method, platforms)
        exported = jax.export.deserialize(bytearray((tmp_path / "model.jax").read_bytes()))
        assert exported.platforms == platforms


@pytest.mark.slow
@a_few_models
@every_method
def test_inductor(name: str, method: str) -> None:
    model = Case(name, MODELS[name]).torch_model("float32")
    torch._dynamo.reset()
    inputs = arguments(name)
    compiled = torch.compile(getattr(model, method), fullgraph=True)
    assert_equal(compiled(*map(torch.from_numpy, inputs)), eager(model, method, inputs))


def cells(x: torch.Tensor) -> set[tuple[int, int]]:
    """Where in memory the entries are."""
    within = torch.arange(x.storage_offset(), x.untyped_storage().nbytes() // x.element_size())
    places = within.as_strided(x.shape, x.stride())
    return {(x.untyped_storage().data_ptr(), place) for place in places.flatten().tolist()}


def kept_twice(function: Callable[..., Any], *inputs: torch.Tensor) -> list[torch.Size]:
    """The shapes of what a compiled backward pass may overwrite though it has the memory twice."""
    found: list[torch.Size] = []

    def forward(graph: Any, _: Any) -> Any:
        return make_boxed_func(graph.forward)

    def backward(graph: Any, _: Any) -> Any:
        donated = TracingContext.get().fw_metadata.bw_donated_idxs or []

        def run(*kept: Any) -> Any:
            places = [cells(x) if isinstance(x, torch.Tensor) else set() for x in kept]
            for i in donated:
                if any(places[i] & other for j, other in enumerate(places) if j != i):
                    found.append(kept[i].shape)
            return graph(*kept)

        return make_boxed_func(run)

    torch._dynamo.reset()
    backend = aot_autograd(
        fw_compiler=forward,
        bw_compiler=backward,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    outputs = torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    sum(output.sum() for output in outputs).backward()
    return found


def test_memory_kept_twice_is_found() -> None:
    weight = torch.randn(4, 3, requires_grad=True)

    def twice(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = (x @ weight).unsqueeze(1)
        return (rows.unbind(1)[0] * y).sum(-1), (rows.square().sum(-1) * rows.sum(-1)).tanh()

    assert kept_twice(twice, torch.randn(5, 4), torch.randn(5, 3, requires_grad=True))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "PlanarFlow" else pytest.mark.slow) for n in MODELS]
)
def test_a_compiled_backward_pass_overwrites_nothing_that_it_reads(name: str) -> None:
    """PyTorch 2.13 takes what ``unbind`` returns for memory of its own."""
    model = Case(name, MODELS[name]).torch_model("float32")
    inputs = [torch.from_numpy(array).requires_grad_() for array in arguments(name)]
    for method in ("forward", "inverse"):
        assert not kept_twice(getattr(model, method), *inputs)


def test_a_bad_row_stays_bad_in_compiled_code() -> None:
    """The inverse of a residual map runs all of its steps there, which must not lose the NaN."""
    model = Case("ResidualFlow", MODELS["ResidualFlow"]).torch_model("float32")
    inputs = arguments("ResidualFlow")
    torch._dynamo.reset()
    compiled = torch.compile(model.inverse, fullgraph=True, backend="eager")
    outputs = compiled(*map(torch.from_numpy, inputs))
    assert outputs[0][3].isnan().all()
    assert_equal(outputs, eager(model, "inverse", inputs))


RUN_ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession('model.onnx')
(output,) = session.run(['log_prob'], inputs)
assert 'torch' not in sys.modules
np.save('outputs.npy', output)
"""
RUN_TORCH = """
import torch
log_prob = torch.export.load('model.pt2').module()
x = torch.from_numpy(inputs['x']).requires_grad_()
output = log_prob(x, torch.from_numpy(inputs['context']))
output.sum().backward()
assert x.grad.shape == x.shape
np.save('outputs.npy', output.detach().numpy())
"""
RUN_JAX = """
import jax
with open('model.jax', 'rb') as file:
    log_prob = jax.export.deserialize(bytearray(file.read())).call
gradient = jax.grad(lambda x: log_prob(x, inputs['context']).sum())(inputs['x'])
assert gradient.shape == inputs['x'].shape
np.save('outputs.npy', jax.jit(log_prob)(inputs['x'], inputs['context']))
"""
RUN_PACKAGE = """
import torch
log_prob = torch._inductor.aoti_load_package('model.aoti.pt2')
output = log_prob(*(torch.from_numpy(inputs[name]) for name in ('x', 'context')))
np.save('outputs.npy', output.numpy())
"""
RUN_EXECUTABLE = """
import pickle
from jax.experimental import serialize_executable
with open('model.bin', 'rb') as file:
    log_prob = serialize_executable.deserialize_and_load(*pickle.load(file))
np.save('outputs.npy', log_prob(inputs['x'], inputs['context']))
"""


@pytest.fixture
def deployed(tmp_path) -> tuple[Any, Any, Any, list[np.ndarray], Any]:
    """A model in both halves, its inputs, also in a file, and its log-density."""
    model = Case("RealNVP", MODELS["RealNVP"]).torch_model("float32")
    inputs = arguments("RealNVP")
    np.savez(tmp_path / "inputs.npz", x=inputs[0], context=inputs[1])
    return model, *jax_model("RealNVP"), inputs, eager(model, "log_prob", inputs)


def test_onnx_without_this_package_and_torch(deployed, tmp_path) -> None:
    model, *_, expected = deployed
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append  # type: ignore[method-assign]
    logging.getLogger("torch.onnx").addHandler(handler)
    torch_flows.export(model, tmp_path / "model.onnx")
    logging.getLogger("torch.onnx").removeHandler(handler)
    assert not said
    assert_equal(elsewhere(tmp_path, ("torch", "jax"), RUN_ONNX), expected)


def test_torch_export_without_this_package(deployed, tmp_path) -> None:
    model, *_, expected = deployed
    torch_flows.export(model, tmp_path / "model.pt2")
    assert_equal(elsewhere(tmp_path, ("jax",), RUN_TORCH), expected)


def test_jax_export_without_this_package(deployed, tmp_path) -> None:
    _, flow, variables, _, expected = deployed
    jax_flows.export(flow, variables, tmp_path / "model.jax", vjp_order=1)
    assert_equal(elsewhere(tmp_path, ("torch", "flax"), RUN_JAX), expected)


@pytest.mark.slow
def test_compiled_package_without_this_package(deployed, tmp_path) -> None:
    model, *_, expected = deployed
    torch_flows.export(model, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    package = str(tmp_path / "model.aoti.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=package)
    assert_equal(elsewhere(tmp_path, ("jax",), RUN_PACKAGE), expected)


@pytest.mark.slow
def test_compiled_executable_without_this_package(deployed, tmp_path) -> None:
    _, flow, variables, inputs, expected = deployed
    lowered = jax.jit(lambda x, context: flow.log_prob(variables, x, context)).lower(*inputs)
    with open(tmp_path / "model.bin", "wb") as file:
        pickle.dump(serialize_executable.serialize(lowered.compile()), file)
    code = elsewhere(tmp_path, ("torch", "flax"), RUN_EXECUTABLE, JAX_ENABLE_X64="1")
    assert_equal(code, expected)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (2, 3, 5, 5), (0, 3, 3)])
def test_decompositions_for_onnx(shape: tuple[int, ...]) -> None:
    """What ONNX lacks, against LAPACK, for matrices that need their rows exchanged."""
    generator = np.random.default_rng(0)
    a = torch.from_numpy(generator.standard_normal(shape))
    a[..., 0, 0] *= 0 if shape[-1] > 1 else 1
    b = torch.from_numpy(generator.standard_normal((*shape[:-1], 2)))
    sign, logabsdet = _DECOMPOSITIONS[aten.linalg_slogdet.default](a)
    assert_equal([sign, logabsdet], list(torch.linalg.slogdet(a)))
    assert_equal(_DECOMPOSITIONS[aten.linalg_solve_ex.default](a, b)[0], [torch.linalg.solve(a, b)])
    solve = _DECOMPOSITIONS[aten.linalg_solve_triangular.default]
    a = a + 2 * torch.eye(shape[-1])
    for upper in (True, False):
        for unit in (True, False):
            for left in (True, False):
                options = {"upper": upper, "unitriangular": unit, "left": left}
                right = b if left else b.mT
                expected = torch.linalg.solve_triangular(a, right, **options)
                assert_equal(solve(a, right, **options), [expected])


def test_export_says_what_it_cannot_do(tmp_path) -> None:
    flow, twin = torch_flows.PlanarFlow(2, num_layers=1), jax_flows.PlanarFlow(2, num_layers=1)
    tanh = arch("Tanh")

    def messages(path: str, description: dict[str, Any] | None, method: str) -> list[str]:
        said = []
        for half, model in ((torch_flows, flow), (jax_flows, twin)):
            model = half.build(description) if description else model
            values = () if half is torch_flows else ({"params": {}},)
            suffix = {"": "", "good": ".pt2" if half is torch_flows else ".jax"}[path]
            with pytest.raises(ValueError, match="export") as error:
                half.export(model, *values, tmp_path / f"model{suffix}", method)
            said.append(str(error.value).removeprefix(f"{half.__name__}.export "))
        return said

    assert messages("", None, "log_prob") == [
        "writes .onnx and .pt2 files, got 'model'.", "writes .jax files, got 'model'.",
    ]  # fmt: skip
    for description, method in ((None, "sample"), (tanh, "log_prob"), (tanh, "inverse")):
        torch_message, jax_message = messages("good", description, method)
        assert torch_message == jax_message
    assert list(tmp_path.iterdir()) == []


def test_export_changes_nothing(tmp_path) -> None:
    flow = torch_flows.FFJORD(2, (3,), solver="rk4", num_steps=1).train()
    flow.bijector.network.eval()
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    modes = [module.training for module in flow.modules()]
    torch_flows.export(flow, tmp_path / "model.pt2", "inverse")
    assert modes == [module.training for module in flow.modules()]
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_adaptive_solver_cannot_be_exported_from_torch(tmp_path) -> None:
    """Listed in the documentation: fails when it is no longer so."""
    flow = torch_flows.NeuralODE(2, (3,)).eval()
    with pytest.raises(ValueError, match="solver='rk4'"):
        torch_flows.export(flow, tmp_path / "model.pt2")
    with pytest.raises(Exception, match=r"(?i)dynamic|data|host|specializ|attribute|guard"):
        _trace(flow, "log_prob", {"x": (2,)})
    assert (
        flow.log_prob(torch.zeros(3, 2)).isfinite().all()
    )  # nothing of the trace stays in the solver


def test_what_is_exported_of_solvers_with_fixed_steps(tmp_path) -> None:
    x, base = torch.randn(7, 2), torch_flows.StandardNormal(2)
    fixed = torch_flows.Flow(torch_flows.ContinuousBijector(2, (3,), grid=(0.0, 0.4, 1.0)), base)
    program = _trace(fixed, "log_prob", {"x": (2,)}).module()
    torch.testing.assert_close(program(x), fixed.log_prob(x))
    bijector = jax_flows.ContinuousBijector(2, (3,), grid=(0.0, 0.4, 1.0))
    twin = jax_flows.Flow(bijector, jax_flows.StandardNormal(2))
    variables = twin.init(jax.random.key(0), jnp.float32)
    jax_flows.export(twin, variables, tmp_path / "model.jax")
    program = jax.export.deserialize(bytearray((tmp_path / "model.jax").read_bytes())).call
    assert_equal(program(x.numpy()), [jax.jit(twin.log_prob)(variables, x.numpy())])
    flow = torch_flows.NeuralODE(2, conditioner=torch_flows.MLP, solver="rk4", num_steps=1)
    with pytest.raises(ValueError, match="does not follow: export it from JAX"):
        torch_flows.export(flow, tmp_path / "model.pt2")
    with pytest.raises(Exception, match="functorch"):  # fails when it is no longer so
        _trace(flow, "log_prob", {"x": (2,)})


@pytest.mark.slow
def test_adaptive_solver_is_exported_from_jax(tmp_path) -> None:
    twin = jax_flows.NeuralODE(2, (3,))
    variables = twin.init(jax.random.key(0), jnp.float32)
    jax_flows.export(twin, variables, tmp_path / "model.jax")
    program = jax.export.deserialize(bytearray((tmp_path / "model.jax").read_bytes())).call
    x = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    assert_equal(program(x), [twin.log_prob(variables, x)])


def test_onnx_takes_float32_only(tmp_path) -> None:
    flow = torch_flows.NICE(2, (3,), num_layers=1)
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(ValueError, match="ONNX files are float32"):
            torch_flows.export(flow.to(dtype), tmp_path / "model.onnx")


@pytest.mark.slow
def test_onnxruntime_lacks_float64(tmp_path) -> None:
    """Listed in the documentation: fails when it is no longer so."""
    program = _trace(
        torch_flows.NICE(2, (3,), num_layers=1).double().eval(), "log_prob", {"x": (2,)}
    )
    _write_onnx(program, tmp_path / "model.onnx", ["x"], ["log_prob"])
    with pytest.raises(Exception, match="LeakyRelu"):
        onnxruntime.InferenceSession(tmp_path / "model.onnx")
