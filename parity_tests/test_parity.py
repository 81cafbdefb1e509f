"""The parity contract, generated from the catalogue: PyTorch, JAX and an oracle on random weights."""

import copy
import math
import pickle
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge.architecture import architecture, to_json
from flow_bridge.weights import DTYPES, jax_to_torch, torch_to_jax
from jax_flows.checkpoint import from_numpy as jax_arrays
from parity_tests import primitives
from parity_tests.catalogue import CASES, Case, cases
from torch_flows.checkpoint import to_numpy
from twinflows.parity.compare import compare
from twinflows.parity.errors import EPS
from twinflows.parity.limits import GATES

MAX_ARRAYS_SECOND_ORDER = 12  # deep stacks repeat what their parts already showed
BATCHES = [(), (1,), (7,), (3, 5), (0,)]
BATCHES_IN_JAX = [(), (3, 5)]  # the others are checked by their shapes
GATED = ("float64", "float32")


def assert_close(a: np.ndarray, b: np.ndarray, limit: float, slack: float = 0) -> None:
    """Row-normalised closeness in eps and within slack, with equal shapes, dtypes and non-finite places."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
    scale = np.maximum(1, np.abs(b).max(initial=0))
    assert np.abs(a - b).max(initial=0) <= limit * EPS[a.dtype.name] * scale + slack


def tensors(*arrays: np.ndarray | None) -> list[torch.Tensor | None]:
    return [None if a is None else torch.from_numpy(a.copy()) for a in arrays]


def assert_one_model(case: Case, dtypes: Sequence[str] = tuple(GATED)) -> None:
    report = compare(
        torch_flows.build(case.architecture),
        jax_flows.build(case.architecture),
        case.weights(),
        case.inputs(7),
        case.context(7),
        dtypes=dtypes,
    )
    assert report.passed, str(report)
    assert len(report.comparisons) >= 6 + 6 * len(dtypes)
    assert {c.dtype for c in report.comparisons} == set(dtypes)
    assert max(c.limit for c in report.comparisons) < 1e9, str(report)  # 2e-7
    assert report.architecture == architecture(jax_flows.build(case.architecture))


@cases()
def test_backends_agree(case: Case) -> None:
    """Named models and variants in float64 only: in float32 the plain rows of their layers are compared,
    and all in ``make test-slow``, by ``test_all_backends_agree_as_users_compile``."""
    assert_one_model(case, GATED[:1] if case.is_named_model or case.is_variant else GATED)


OPTIMIZED = ("Planar", "SplineCoupling", "MaskedAffineAutoregressive")


@pytest.mark.optimized
@cases(lambda case: case.name in OPTIMIZED)
def test_backends_agree_as_users_compile(case: Case) -> None:
    assert_one_model(case)


@pytest.mark.slow
@pytest.mark.optimized
@cases(lambda case: case.name not in OPTIMIZED)
def test_all_backends_agree_as_users_compile(case: Case) -> None:
    assert_one_model(case)


@cases(variants=False)
def test_batch_shapes_and_ensembles(case: Case) -> None:
    """JAX computes one of the two shapes, one row this and the next row that."""
    assert_batch_shapes(case, BATCHES_IN_JAX[CASES.index(case) % 2 :][:1])


@pytest.mark.slow
@cases()
def test_all_batch_shapes_and_ensembles(case: Case) -> None:
    assert_batch_shapes(case, BATCHES_IN_JAX)


def assert_batch_shapes(case: Case, in_jax: Sequence[tuple[int, ...]]) -> None:
    """Every batch shape gives the rows of the flat batch, in both directions and halves; so does
    JAX's map over the weights of several models, of one trace for all of them."""
    models = [case.torch_model(seed=seed) for seed in (0, 1)]
    jax_model = jax_flows.build(case.architecture)
    like = jax_model.shapes()
    members = [jax_arrays(torch_to_jax(case.weights(seed), like)) for seed in (0, 1)]
    x, context = case.inputs(15), case.context(15)
    with torch.no_grad():
        flat = [[a.numpy() for a in model.forward(*tensors(x, context))] for model in models]
        flat_back = [
            [a.numpy() for a in model.inverse(*tensors(z, context))]
            for model, (z, _) in zip(models, flat, strict=True)
        ]
        # what the rounding of z alone makes of its inverse
        near = [
            [a.numpy() for a in model.inverse(*tensors(np.nextafter(z, np.inf), context))]
            for model, (z, _) in zip(models, flat, strict=True)
        ]
    slack = [0.0, 0.0]
    for nudged, back in zip(zip(*near, strict=True), zip(*flat_back, strict=True), strict=True):
        moved = np.abs(np.array(nudged) - np.array(back))
        slack.append(4 * float(np.nanmax(moved, initial=0)))
    limit = GATES["outputs"].limit(64)

    def shaped(array: np.ndarray | None, batch: tuple[int, ...]) -> np.ndarray | None:
        size = int(np.prod(batch))
        return None if array is None else array[:size].reshape((*batch, *array.shape[1:]))

    def both_ways(variables, x, z, context):
        return *jax_model.forward(variables, x, context), *jax_model.inverse(variables, z, context)

    for batch in BATCHES:
        given = shaped(context, batch)
        expected = [
            [shaped(array, batch) for array in (*there, *back)]
            for there, back in zip(flat, flat_back, strict=True)
        ]
        part_x, z = shaped(x, batch), expected[0][0]
        with torch.no_grad():
            outputs = (
                *models[0].forward(*tensors(part_x, given)),
                *models[0].inverse(*tensors(z, given)),
            )
        runs = [(outputs, expected[0])]
        if batch in in_jax:
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
            zs = np.stack([member[0] for member in expected])
            mapped = jax.vmap(both_ways, (0, None, 0, None), axis_size=2)
            found = primitives.run(mapped, stacked, part_x, zs, given)
            runs += [([a[i] for a in found], expected[i]) for i in (0, 1)]
        else:
            shapes = jax.eval_shape(both_ways, members[0], part_x, z, given)
            assert [s.shape for s in shapes] == [array.shape for array in expected[0]]
        for found, wanted in runs:
            for a, b, extra in zip(found, wanted, slack, strict=True):
                assert_close(a, b, limit, extra)
    if context is not None:  # one context for all rows
        with torch.no_grad():
            one = models[0].forward(*tensors(x, context[0]))[0].numpy()
            many = models[0].forward(*tensors(x, np.broadcast_to(context[0], context.shape)))[0]
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
        ) -> torch.Tensor:
            wrapped = Direction(model, direction)
            state = {f"model.{n}": p for n, p in zip(names, parameters, strict=True)}
            outputs = torch.func.functional_call(wrapped, state, (value, context))
            # in one array: gradcheck passes over outputs that need no gradient
            return torch.cat([output.flatten() for output in outputs])

        assert torch.autograd.gradcheck(run, (point, *weights), fast_mode=True)
        if case.smooth and len(weights) <= MAX_ARRAYS_SECOND_ORDER:
            assert torch.autograd.gradgradcheck(run, (point, *weights), fast_mode=True)


@cases()
def test_forward_mode_without_gradients(case: Case) -> None:
    """Its tangents are those of two passes of reverse mode."""
    model = case.torch_model()
    x, context = tensors(case.inputs(3), case.context(3))
    with torch.no_grad():
        z = model.forward(x, context)[0]
    for point, run in ((x, model.forward), (z, model.inverse)):

        def both(value: torch.Tensor, run: Any = run) -> Any:
            return run(value, context)

        given = point, torch.ones_like(point)
        try:
            with torch.no_grad():
                found = torch.func.jvp(both, given[:1], given[1:])[1]
        except NotImplementedError:  # adaptive solvers refuse
            continue
        _, expected = torch.autograd.functional.jvp(both, *given)
        for a, b in zip(found, expected, strict=True):
            assert_close(a.numpy(), b.numpy(), 1e4)


class Direction(torch.nn.Module):
    """A method of a model as a module's call, for ``functional_call``."""

    def __init__(self, model: torch.nn.Module, direction: str) -> None:
        super().__init__()
        self.model, self.direction = model, direction

    def forward(self, x: torch.Tensor, context: torch.Tensor | None) -> Any:
        return getattr(self.model, self.direction)(x, context)


@cases(variants=False)
def test_compiles_and_maps(case: Case) -> None:
    """fullgraph compilation and torch.func.vmap give the eager results."""
    model = case.torch_model()
    x, context = tensors(case.inputs(4), case.context(4))
    arguments = [a for a in (x, context) if a is not None]

    def both_ways(x: torch.Tensor, *context: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z, log_det = model.forward(x, *context)
        return z, log_det, *model.inverse(z, *context)

    with torch.no_grad():
        expected = both_ways(*arguments)
    torch._dynamo.reset()
    compiled = torch.compile(both_ways, fullgraph=True, backend="eager")(*arguments)
    mapped = torch.func.vmap(both_ways)(*arguments)
    for result in (compiled, mapped):
        for a, b in zip(result, expected, strict=True):
            assert_close(a.detach().numpy(), b.numpy(), GATES["outputs"].limit(64))


SECOND_ORDER = (
    "Planar", "Radial", "Sylvester", "SplineCoupling", "AffineCoupling", "MaskedAffineAutoregressive",
    "InvertibleResidual", "Continuous", "Tanh", "LULinear",
)  # fmt: skip


@cases(lambda case: case.name in SECOND_ORDER)
def test_second_derivatives_in_jax(case: Case) -> None:
    """The gradient of a gradient, in inputs and weights and in both directions, is PyTorch's."""
    model, jax_model = case.torch_model(), jax_flows.build(case.architecture)
    variables = jax_arrays(torch_to_jax(case.weights(), jax_model.shapes()))
    x = case.inputs(3)
    v = np.random.default_rng(0).standard_normal(x.shape)
    with torch.no_grad():
        z = model(torch.from_numpy(x))[0].numpy()
    for direction, rows in (("forward", x), ("inverse", z)):
        point = torch.from_numpy(rows.copy()).requires_grad_()
        out, log_det = getattr(model, direction)(point)
        total = out.sin().sum() + log_det.sum()
        (slope,) = torch.autograd.grad(total, point, create_graph=True)
        weights = dict(model.named_parameters())
        wrt = [point, *weights.values()]
        along = (slope * torch.from_numpy(v)).sum()
        if not along.requires_grad:
            continue
        found = torch.autograd.grad(along, wrt, allow_unused=True)

        def total_in_jax(rows, params, direction=direction):
            given = variables | {"params": params}
            out, log_det = getattr(jax_model, direction)(given, rows)
            return jnp.sin(out).sum() + log_det.sum()

        def along_in_jax(rows, params, total=total_in_jax):
            return (jax.grad(total)(rows, params) * v).sum()

        second = primitives.run(jax.grad(along_in_jax, argnums=(0, 1)), rows, variables["params"])
        arrays = jax_to_torch({"params": second[1]})
        for name, ours in zip(["input", *weights], found, strict=True):
            theirs = np.asarray(second[0]) if name == "input" else arrays[name]
            ours = np.zeros(theirs.shape) if ours is None else ours.numpy()
            scale = max(1.0, float(np.abs(ours).max(initial=0)))
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-9 * scale, err_msg=name)


@cases(lambda case: case.context(1) is not None)
def test_the_context_matters(case: Case) -> None:
    """Every layer that takes it depends on it: alone, another context moves z."""
    layers = [m for m in case.torch_model().modules() if isinstance(m, torch_flows.Bijector)]
    for layer in layers:
        if layer.context_dim and not any(
            isinstance(m, torch_flows.Bijector) for m in layer.children()
        ):
            shape = tuple(case.dim or 2 if d is None else d for d in layer.event_shape)
            x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, *shape)))
            first, second = (torch.full((3, layer.context_dim), c).double() for c in (0.5, -0.5))
            with torch.no_grad():
                assert not torch.equal(layer(x, first)[0], layer(x, second)[0]), layer


@cases()
def test_gradients_are_finite_far_out(case: Case) -> None:
    """No NaN gradient beside a finite value, as far out as there is one; of JAX, see ``compare``."""
    model = case.torch_model()
    x, context = tensors(case.inputs(4), case.context(4))
    bijector = getattr(model, "bijector", model)
    low, high = bijector.domain
    if math.isfinite(low):  # next to the ends
        eps = 2.0**-40
        ends = torch.tensor([low + eps, high - eps], dtype=x.dtype)
        points = [ends[(x > (low + high) / 2).long()]]
    else:
        bounded = bijector.is_bounded()  # in some of its columns
        points = [size * x for size in ((1.0,) if bounded else (1e3, 30.0))]
    for point in points:
        point = point.clone().requires_grad_()
        outputs = model.forward(point, context)
        if all(output.isfinite().all() for output in outputs):
            break
    else:
        raise AssertionError("nothing is finite that far out")
    sum(output.sum() for output in outputs).backward()
    for name, p in [("x", point), *model.named_parameters()]:
        assert p.grad is None or p.grad.isfinite().all(), name
