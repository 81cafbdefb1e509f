"""The parity contract, generated from the catalogue: PyTorch, JAX and an oracle on random weights."""

import copy
import pickle

import jax
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge.architecture import architecture, to_json
from flow_bridge.weights import DTYPES, jax_to_torch, torch_to_jax
from jax_flows.checkpoint import from_numpy as jax_arrays
from parity_tests.catalogue import Case, cases
from torch_flows.checkpoint import to_numpy
from twinflows.parity.compare import compare
from twinflows.parity.errors import EPS
from twinflows.parity.limits import GATES

MAX_ARRAYS_SECOND_ORDER = 12  # deep stacks repeat what their parts already showed
BATCHES = [(), (1,), (7,), (3, 5), (0,)]


def assert_close(a: np.ndarray, b: np.ndarray, limit: float) -> None:
    """Row-normalised closeness in eps, with equal shapes, dtypes and non-finite places."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
    scale = np.maximum(1, np.abs(b).max(initial=0))
    assert np.abs(a - b).max(initial=0) <= limit * EPS[a.dtype.name] * scale


def tensors(*arrays: np.ndarray | None) -> list[torch.Tensor | None]:
    return [None if a is None else torch.from_numpy(a.copy()) for a in arrays]


def assert_one_model(case: Case) -> None:
    report = compare(
        torch_flows.build(case.architecture),
        jax_flows.build(case.architecture),
        case.weights(),
        case.inputs(7),
        case.context(7),
    )
    assert report.passed, str(report)
    assert len(report.comparisons) >= 18
    assert max(c.limit for c in report.comparisons) < 1e9, str(report)  # 2e-7
    assert report.architecture == architecture(jax_flows.build(case.architecture))


@cases()
def test_backends_agree(case: Case) -> None:
    assert_one_model(case)


OPTIMIZED = (
    "Planar",
    "SplineCoupling",
    "MaskedAffineAutoregressive",
    "InvertibleResidual",
    "Logit",
)


@pytest.mark.optimized
@cases(lambda case: case.name in OPTIMIZED)
def test_backends_agree_as_users_compile(case: Case) -> None:
    assert_one_model(case)


@pytest.mark.slow
@pytest.mark.optimized
@cases(lambda case: case.name not in OPTIMIZED)
def test_all_backends_agree_as_users_compile(case: Case) -> None:
    assert_one_model(case)


@cases()
def test_batch_shapes(case: Case) -> None:
    """Every batch shape gives the rows of the flat batch, in both halves, eager and compiled."""
    torch_model, jax_model = case.torch_model(), jax_flows.build(case.architecture)
    variables = jax_arrays(torch_to_jax(case.weights(), jax_model.shapes()))
    x, context = case.inputs(15), case.context(15)
    with torch.no_grad():
        flat_z, flat_log_det = (a.numpy() for a in torch_model.forward(*tensors(x, context)))
    limit = GATES["outputs"].limit(64)
    forward = jax.jit(jax_model.forward)
    for batch in BATCHES:
        size = int(np.prod(batch))
        part_x = x[:size].reshape(*batch, *x.shape[1:])
        part_context = (
            None if context is None else context[:size].reshape(*batch, *context.shape[1:])
        )
        z = flat_z[:size].reshape(*batch, *flat_z.shape[1:])
        log_det = flat_log_det[:size].reshape(batch)
        with torch.no_grad():
            runs = [torch_model.forward(*tensors(part_x, part_context))]
            back = torch_model.inverse(torch.from_numpy(z.copy()), *tensors(part_context))
        assert back[0].shape == part_x.shape
        assert back[1].shape == batch
        shapes = jax.eval_shape(jax_model.inverse, variables, z, part_context)
        assert [s.shape for s in shapes] == [part_x.shape, batch]
        if batch in ((), (3, 5)):
            runs.append(forward(variables, part_x, part_context))
        if batch == (1,):
            runs.append(jax_model.forward(variables, part_x, part_context))
        for run in runs:
            assert_close(run[0], z, limit)
            assert_close(run[1], log_det, limit)
    if context is not None:  # one context for all rows
        with torch.no_grad():
            one = torch_model.forward(*tensors(x, context[0]))[0].numpy()
            many = torch_model.forward(*tensors(x, np.broadcast_to(context[0], context.shape)))[0]
        assert_close(one, many.numpy(), limit)


@cases()
def test_conversion_is_bit_identical(case: Case) -> None:
    like = jax_flows.build(case.architecture).shapes()
    for dtype in DTYPES.values():
        state = {name: array.astype(dtype) for name, array in case.weights().items()}
        variables = torch_to_jax(state, like)
        back = jax_to_torch(variables)
        assert back.keys() == state.keys()
        for name, array in state.items():
            assert back[name].dtype == dtype
            assert back[name].tobytes() == array.tobytes(), name
            assert not np.shares_memory(back[name], array)
        again = torch_to_jax(back, like)
        jax.tree.map(np.testing.assert_array_equal, again, variables)


@cases()
def test_checkpoint_crosses_frameworks(case: Case, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    torch_model = case.torch_model("float32")
    torch_flows.save(torch_model, path)
    jax_model, variables = jax_flows.load(path)
    assert architecture(jax_model) == architecture(torch_model)
    jax_flows.save(jax_model, variables, path)
    again = torch_flows.load(path)
    assert architecture(again) == architecture(torch_model)
    assert not again.training
    state = torch_model.state_dict()
    assert again.state_dict().keys() == state.keys()
    for name, array in again.state_dict().items():
        assert to_numpy(array).tobytes() == to_numpy(state[name]).tobytes(), name
    trainable = {name for name, p in torch_model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in again.named_parameters() if p.requires_grad}


@cases()
def test_architecture_is_plain_data(case: Case) -> None:
    torch_model, jax_model = (half.build(case.architecture) for half in (torch_flows, jax_flows))
    description = architecture(torch_model)
    assert description == architecture(jax_model)
    assert to_json(architecture(torch_flows.build(description))) == to_json(description)
    twin = jax_flows.build(description)
    assert twin == jax_model
    assert hash(twin) == hash(jax_model)
    assert pickle.loads(pickle.dumps(jax_model)) == jax_model
    assert type(jax_model).__name__ in repr(jax_model)
    num_torch = sum(p.numel() for p in torch_model.parameters())
    leaves = jax.tree.leaves(jax_model.shapes()["params"])
    assert num_torch == sum(int(np.prod(leaf.shape)) for leaf in leaves)
    again = pickle.loads(pickle.dumps(copy.deepcopy(torch_model)))
    assert architecture(again) == description


@cases()
def test_torch_gradients(case: Case) -> None:
    """gradcheck in float64 of both directions, in inputs and weights, and of the gradients."""
    model = case.torch_model()
    names = [name for name, _ in model.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]
    context = tensors(case.context(3))[0]
    x = torch.from_numpy(case.inputs(3)).requires_grad_()
    z = model.forward(x, context)[0].detach().requires_grad_()

    for point, direction in ((x, "forward"), (z, "inverse")):

        def run(
            value: torch.Tensor, *parameters: torch.Tensor, direction: str = direction
        ) -> tuple[torch.Tensor, ...]:
            wrapped = _Direction(model, direction)
            state = {f"model.{n}": p for n, p in zip(names, parameters, strict=True)}
            return torch.func.functional_call(wrapped, state, (value, context))

        assert torch.autograd.gradcheck(run, (point, *weights), fast_mode=True)
        if case.smooth and len(weights) <= MAX_ARRAYS_SECOND_ORDER:
            assert torch.autograd.gradgradcheck(run, (point, *weights), fast_mode=True)


class _Direction(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, direction: str) -> None:
        super().__init__()
        self.model, self.direction = model, direction

    def forward(self, x: torch.Tensor, context: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        return getattr(self.model, self.direction)(x, context)


@cases()
def test_compiles_and_maps(case: Case) -> None:
    """fullgraph compilation and torch.func.vmap give the eager results; so does jax.vmap."""
    model = case.torch_model()
    x, context = tensors(case.inputs(4), case.context(4))
    arguments = [a for a in (x, context) if a is not None]
    for direction in ("forward", "inverse"):
        function = getattr(model, direction)
        with torch.no_grad():
            expected = function(*arguments)
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="eager")(*arguments)
        mapped = torch.func.vmap(function)(*arguments)
        for result in (compiled, mapped):
            for a, b in zip(result, expected, strict=True):
                assert_close(a.detach().numpy(), b.numpy(), GATES["outputs"].limit(64))
        x = arguments[0] = expected[0]
    jax_model = jax_flows.build(case.architecture)
    ensemble = jax.eval_shape(jax.vmap(jax_model.init), jax.random.split(jax.random.key(0), 3))
    arrays = [np.asarray(a) for a in arguments]
    in_axes = (0, *(None for _ in arrays))
    mapped = jax.eval_shape(
        jax.vmap(jax_model.forward, in_axes=in_axes, axis_size=3), ensemble, *arrays
    )
    assert mapped[1].shape == (3, 4)


@cases()
def test_a_bad_row_stays_alone(case: Case) -> None:
    """A NaN row gives NaN in that row; the others do not change."""
    model = case.torch_model()
    x, context = case.inputs(5), case.context(5)
    poisoned = x.copy()
    poisoned[2] = np.nan
    with torch.no_grad():
        clean = model.forward(*tensors(x, context))
        dirty = model.forward(*tensors(poisoned, context))
    others = [0, 1, 3, 4]
    for a, b in zip(dirty, clean, strict=True):
        assert_close(a[others].numpy(), b[others].numpy(), 16)
    assert dirty[0][2].isnan().any()


@cases()
def test_gradients_are_finite_far_out(case: Case) -> None:
    """No NaN gradient beside a finite value, at inputs of 1e3."""
    model = case.torch_model()
    x, context = tensors(1e3 * case.inputs(4), case.context(4))
    x.requires_grad_()
    z, log_det = model.forward(x, context)
    if z.isfinite().all() and log_det.isfinite().all():
        (z.sum() + log_det.sum()).backward()
        for name, p in [("x", x), *model.named_parameters()]:
            assert p.grad is None or p.grad.isfinite().all(), name
