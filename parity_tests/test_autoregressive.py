"""Masked autoregressive maps: the stated order, the fast inverse and its derivatives, a peer."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import jax_flows
import torch_flows
from flow_bridge.architecture import architecture
from flow_bridge.errors import CheckpointError
from flow_bridge.masks import Autoregression, autoregressive_order
from flow_bridge.weights import torch_to_jax
from jax_flows.bijectors import autoregressive
from parity_tests.catalogue import Case, arch, masked
from parity_tests.files import packed

# one for each way in which the inverse divides the dimensions: one by one, in blocks, scanned blocks
SHAPES = (
    masked(dim=4, hidden_dims=[6], order=[2, 0, 3, 1], context_dim=1),
    masked(dim=11, hidden_dims=[9, 5], order="reverse"),
    masked(dim=18, hidden_dims=[7, 30], order="random:3"),
    masked("MaskedSplineAutoregressive", dim=3, hidden_dims=[5], num_bins=3),
)
shapes = pytest.mark.parametrize("architecture", SHAPES, ids=lambda a: f"{a['type']}-{a['dim']}")


def models(architecture: dict[str, Any]) -> tuple[Case, Any, Any, dict[str, Any]]:
    """The case, the torch and the JAX bijector, and the latter's variables, with one set of weights."""
    case = Case("", architecture, scale=1.0)
    bijector = jax_flows.build(architecture)
    variables = jax.tree.map(jnp.asarray, torch_to_jax(case.weights(), bijector.shapes()))
    return case, case.torch_model(), bijector, variables


def test_block_networks_return() -> None:
    """From 1e6, with weights 3 times as wide as drawn; the log-slopes are those of autodiff."""
    _, model, bijector, variables = models(
        arch("BlockAutoregressive", dim=3, hidden_dims=[3, 2], gate=True, leak=0.05)
    )
    variables = jax.tree.map(lambda a: 3 * a, variables)
    model.load_state_dict({name: 3 * a for name, a in model.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((6, 3)) * 10.0 ** np.arange(1, 7)[:, None]
    given = torch.from_numpy(x)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: model(row)[0]))(given).detach()
    assert (jacobian.triu(1) == 0).all()
    exact = jacobian.diagonal(0, 1, 2).log().sum(-1).numpy()
    with torch.no_grad():
        z, log_det = model(given)
        found = [(log_det.numpy(), model.inverse(z)[0].numpy())]
    z, log_det = jax.jit(bijector.forward)(variables, x)
    found.append((log_det, jax.jit(bijector.inverse)(variables, z)[0]))
    # what rounding of a sum over all dimensions does to x
    lost = 1e-13 * abs(x).max(1, keepdims=True)
    for log_det, back in found:
        np.testing.assert_allclose(log_det, exact, rtol=1e-12)
        assert (abs(back - x) <= 1e-12 * abs(x) + lost).all()


def naive_inverse(model: Any, z: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
    """One pass of the whole network for each dimension, as other libraries do it."""
    x = torch.zeros_like(z)
    for i in autoregressive_order(model.order, model.dim):
        solved = model.map.inverse(z, model.network(x, context))[0]
        x = torch.where(torch.arange(model.dim) == int(i), solved, x)
    return x


@shapes
def test_jacobian_is_triangular_in_the_stated_order(architecture: dict[str, Any]) -> None:
    case, model, bijector, variables = models(architecture)
    x, context = case.inputs(), case.context()
    given = None if context is None else torch.from_numpy(context)
    jacobians = [
        torch.func.jacrev(lambda x: model(x, given)[0])(torch.from_numpy(x)).detach().numpy(),
        jax.jit(jax.jacfwd(lambda x: bijector.forward(variables, x, context)[0]))(x),
    ]
    order = autoregressive_order(model.order, model.dim)
    for jacobian in jacobians:
        ordered = np.asarray(jacobian)[order][:, order]
        assert (np.triu(ordered, 1) == 0).all()
        assert (np.diag(ordered) > 0).all()
        assert np.count_nonzero(np.tril(ordered, -1)) > 0.8 * model.dim * (model.dim - 1) / 2


@shapes
def test_fast_inverse_equals_one_pass_per_dimension(architecture: dict[str, Any]) -> None:
    case, model, bijector, variables = models(architecture)
    z, context = case.inputs(5), case.context(5)
    given = None if context is None else torch.from_numpy(context)
    expected = naive_inverse(model, torch.from_numpy(z), given).detach().numpy()
    fast = model.inverse(torch.from_numpy(z), given)[0].detach().numpy()
    np.testing.assert_allclose(fast, expected, rtol=1e-12, atol=1e-12)
    fast = jax.jit(bijector.inverse)(variables, z, context)[0]
    np.testing.assert_allclose(fast, expected, rtol=1e-12, atol=1e-12)


@shapes
def test_gradients_of_the_inverse(architecture: dict[str, Any]) -> None:
    case, model, bijector, variables = models(architecture)
    z, context = case.inputs(3), case.context(3)
    given = None if context is None else torch.from_numpy(context).requires_grad_()
    leaf = torch.from_numpy(z).requires_grad_()
    leaves = [leaf, *([given] if given is not None else []), *model.parameters()]
    cotangent = torch.linspace(-1, 1, z.size, dtype=torch.float64).reshape(z.shape)

    def gradients(x: torch.Tensor) -> list[np.ndarray]:
        loss = (x * cotangent).sum() - model(x, given)[1].sum()
        return [g.numpy() for g in torch.autograd.grad(loss, leaves)]

    naive, fast = (
        gradients(naive_inverse(model, leaf, given)),
        gradients(model.inverse(leaf, given)[0]),
    )
    for a, b in zip(fast, naive, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)

    def loss(variables: Any, z: jax.Array, context: Any) -> jax.Array:
        x, log_det = bijector.inverse(variables, z, context)
        return (x * cotangent.numpy()).sum() + log_det.sum()

    argnums = (1, 2) if context is not None else (1,)
    by_variables, *rest = jax.jit(jax.grad(loss, (0, *argnums)))(variables, z, context)
    names = [name for name, _ in model.named_parameters()]
    expected = dict(zip(names, naive[len(rest) :], strict=True))
    converted = torch_to_jax(expected, bijector.shapes())
    for a, b in zip(rest, naive, strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
        by_variables["params"],
        converted["params"],
    )


def test_second_derivatives_of_the_inverse() -> None:
    case, model, bijector, variables = models(
        masked(dim=3, hidden_dims=[4], order="reverse", context_dim=1)
    )
    z, context = case.inputs(), case.context()
    inputs = [torch.from_numpy(a).requires_grad_() for a in (z, context)]
    names = [name for name, _ in model.named_parameters()]

    def inverse(z: torch.Tensor, context: torch.Tensor, *weights: torch.Tensor) -> Any:
        state = dict(zip(names, weights, strict=True))
        wrapped = torch.func.functional_call(_Inverse(model), _prefixed(state), (z, context))
        return tuple(wrapped)

    weights = [p.detach().requires_grad_() for p in model.parameters()]
    assert gradcheck(inverse, (*inputs, *weights))
    assert gradgradcheck(inverse, (*inputs, *weights))

    # in JAX the rule is written by hand: its Hessian against that of the recursion itself
    def loss(solve: Any, arguments: Any) -> jax.Array:
        x, log_det = solve(*arguments)
        return jnp.sin(x).sum() + log_det.sum()

    for solve in (bijector.inverse, bijector.explicit_inverse):
        hessian = jax.jit(jax.hessian(lambda a, solve=solve: loss(solve, a)))
        flat = jax.tree.leaves(hessian((variables, jnp.asarray(z), jnp.asarray(context))))
        if solve == bijector.inverse:
            by_rule = flat
    for a, b in zip(by_rule, flat, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


class _Inverse(torch.nn.Module):
    def __init__(self, bijector: Any) -> None:
        super().__init__()
        self.bijector = bijector

    def forward(self, z: torch.Tensor, context: torch.Tensor) -> Any:
        return self.bijector.inverse(z, context)


def _prefixed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"bijector.{name}": array for name, array in state.items()}


def test_masked_network_equals_nflows() -> None:
    golden = dict(np.load(Path(__file__).with_name("golden") / "nflows_made.npz"))
    x, expected = golden.pop("x"), golden.pop("parameters")
    weights = {f"network.{name}": array for name, array in golden.items()}
    description = masked(dim=5, hidden_dims=[12, 12, 12])
    model = torch_flows.build(description).double()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    out = model.network(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-13)
    bijector = jax_flows.build(description)
    variables = torch_to_jax(weights, bijector.shapes())
    network = {"params": variables["params"]["network"]}
    out = bijector.network.apply(network, jnp.asarray(x))
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-13)
    mu, a = expected[..., 0], expected[..., 1]
    z = model(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(z, (x - mu) * np.exp(-2 * np.tanh(a / 2)), rtol=1e-12)


def test_iaf_is_maf_with_the_directions_exchanged() -> None:
    maf, iaf = torch_flows.MAF(3, (5,), 2), torch_flows.IAF(3, (5,), 2)
    weights = maf.state_dict()
    iaf.load_state_dict({f"bijector.{name}": array for name, array in weights.items()})
    x = torch.randn(6, 3)
    assert all(torch.equal(a, b) for a, b in zip(iaf(x), maf.inverse(x), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(iaf.inverse(x), maf(x), strict=True))


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_five_layers_at_dim_64(scale: float) -> None:
    """Networks whose outputs are of the given scale: round trip at scale 1, no NaN at 10."""
    torch.manual_seed(0)
    flow = torch_flows.MAF(64, (64, 64)).double()
    x = torch.randn(50, 64, dtype=torch.float64)
    with torch.no_grad():
        for layer in flow.bijector.bijectors:
            for linear in layer.network.layers:
                linear.weight.normal_(0, linear.in_features**-0.5)
                linear.bias.normal_()
            size = scale / layer.network(x).std()
            layer.network.layers[-1].weight.mul_(size)
            layer.network.layers[-1].bias.mul_(size)
        z, log_det = flow(x)
        back, log_det_back = flow.inverse(z)
        draws, _ = flow.inverse(x)
    assert z.isfinite().all()
    assert back.isfinite().all()
    assert draws.isfinite().all()
    if scale == 1:
        assert (back - x).abs().max() < 1e-10
        assert (log_det + log_det_back).abs().max() < 1e-10


@pytest.mark.parametrize(("dim", "hidden_dims"), [(1, (3,)), (2, (1,)), (7, (3, 20)), (40, (13,))])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_degrees(dim: int, hidden_dims: tuple[int, ...], context_dim: int) -> None:
    plan = Autoregression(dim, hidden_dims, 3, "random:1", context_dim)
    for degrees, width in zip(plan.hidden, hidden_dims, strict=True):
        assert len(degrees) == width
        assert (np.diff(degrees) >= 0).all()
        assert degrees[0] == (0 if context_dim or dim == 1 else 1)
        assert degrees[-1] < dim
    for start in range(0, dim, 4):  # blocks cover a run in order, whatever the padding
        run = min(4, dim - start)
        for layer, index in zip(plan.starts, plan.blocks(start, run, 2), strict=True):
            count = layer[start + run] - layer[start]
            assert index[index < count].tolist() == list(range(count))


def test_orders_are_the_same_in_both_halves_and_by_seed() -> None:
    assert autoregressive_order("reverse", 3).tolist() == [2, 1, 0]
    assert autoregressive_order([1, 0], 2).tolist() == [1, 0]
    random = autoregressive_order("random:5", 50)
    assert (random == autoregressive_order("random:5", 50)).all()
    assert (random != autoregressive_order("random:6", 50)).any()
    assert sorted(random) == list(range(50))


@pytest.mark.parametrize("package", [torch_flows, jax_flows])
@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("backwards", 'order must be None, "reverse", "random:SEED" or a list'),
        ("random:-1", 'order must be None, "reverse", "random:SEED" or a list'),
        ([0, 0, 1], "order must hold each of the 3 dimensions once"),
        ([0.5, 1.0, 2.0], "expects order as a string, a list of integers or None"),
        ([0, 1], "order must hold each of the 3 dimensions once"),
        (7, "expects order as a string, a list of integers or None"),
    ],
)
def test_bad_orders(package: Any, order: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        package.MaskedAffineAutoregressive(3, order=order)


@pytest.mark.parametrize("package", [torch_flows, jax_flows])
def test_a_tiny_file_cannot_ask_for_a_huge_network(package: Any) -> None:
    """2^20 units in two layers are 4 TB of weights: refused before anything is allocated."""
    huge = masked(dim=3, hidden_dims=[1 << 20, 1 << 20], order=None, context_dim=0)
    with pytest.raises(CheckpointError, match=r"missing|larger masks"):
        package.load(packed(huge, {"x": np.zeros(1)}))
    deep = masked(dim=3, hidden_dims=[1] * 5000)
    with pytest.raises(CheckpointError, match="more layers"):
        package.load(packed(deep, {"x": np.zeros(1)}))


def test_compiles_without_a_graph_break_and_maps() -> None:
    case = Case("", arch("MAF", dim=3, hidden_dims=[6], num_layers=2))
    model, z = case.torch_model(), torch.from_numpy(case.inputs(4))
    compiled = torch.compile(model.inverse, backend="eager", fullgraph=True)
    x, log_det = model.inverse(z)
    assert torch.allclose(compiled(z)[0], x, rtol=0, atol=1e-13)
    mapped, log_dets = torch.func.vmap(model.inverse)(z)
    assert torch.allclose(mapped, x, rtol=0, atol=1e-13)
    assert torch.allclose(log_dets, log_det, rtol=0, atol=1e-13)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: model.inverse(z)[0]))(z)
    assert torch.allclose(torch.linalg.slogdet(jacobian)[1], log_det, atol=1e-12)


@pytest.mark.parametrize("context_dim", [0, 2])
def test_many_rows_in_jax_are_solved_in_turns(
    context_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bijector = jax_flows.MaskedAffineAutoregressive(3, (4,), context_dim=context_dim)
    variables = bijector.init(jax.random.key(0), jnp.float64)
    z, context = np.random.default_rng(0).normal(size=(2, 7, 3))
    given = jnp.asarray(z), jnp.asarray(context[:, :context_dim]) if context_dim else None
    expected = bijector.explicit_inverse(variables, *given)
    monkeypatch.setattr(autoregressive, "ROWS", 2)
    inverse = jax.jit(lambda z, context: bijector.explicit_inverse(variables, z, context))
    assert "platform_index" in str(jax.make_jaxpr(inverse)(*given))
    for a, b in zip(inverse(*given), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_what_is_compiled_in_jax_does_not_grow_with_the_dimension() -> None:
    def size(dim: int) -> int:
        bijector = jax_flows.MaskedAffineAutoregressive(dim, (dim,))
        z = jax.ShapeDtypeStruct((2, dim), jnp.float64)
        inverse = bijector.explicit_inverse
        return len(str(jax.make_jaxpr(inverse)(bijector.shapes(), z, None)).splitlines())

    assert size(400) < 1.2 * size(100)


def test_architecture_round_trip() -> None:
    for description in SHAPES:
        assert architecture(torch_flows.build(description)) == architecture(
            jax_flows.build(description)
        )
