"""What a user touches: arrays, variables, modes, and the parts of a flow."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import torch

import flow_bridge
import jax_flows
import torch_flows
from flow_bridge.weights import jax_to_torch
from jax_flows.variables import child, gather
from parity_tests.catalogue import CASES, Case

pytestmark = pytest.mark.usefixtures("quick_jax")

KEY = jax.random.key(0)
ROWS = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("x", "in_torch", "in_jax"),
    [
        (ROWS, "a torch.Tensor, got ndarray: torch.from_numpy(x).", None),
        (ROWS.tolist(), "got list: torch.tensor(x).", "an array, got list: jax.numpy.array(x)."),
        (pd.DataFrame(ROWS), "torch.from_numpy(x.to_numpy()).", "got DataFrame: x.to_numpy()."),
        (np.ma.MaskedArray(ROWS), "torch.from_numpy(x.filled()).", "got MaskedArray: x.filled()."),
        (torch.zeros(3, 2), None, "got Tensor: x.numpy()."),
        (jnp.zeros((3, 2), jnp.float32), "torch.from_numpy(numpy.array(x)).", None),
        (None, "expects x as a torch.Tensor, got NoneType.", "as an array, got NoneType."),
    ],
)
def test_what_is_no_array_is_told_how_to_become_one(x: Any, in_torch: Any, in_jax: Any) -> None:
    twin = jax_flows.Affine(2)
    variables = twin.init(KEY, "float32")
    for call, message in (
        (lambda: torch_flows.Affine(2).forward(x), in_torch),
        (lambda: twin.forward(variables, x), in_jax),
    ):
        if message is None:
            call()
        else:
            with pytest.raises(TypeError) as info:
                call()
            assert str(info.value).endswith(message)


def test_float64_is_not_rounded_behind_the_back() -> None:
    for owner in (jax_flows.Exp(), jax_flows.StandardNormal(2)):
        method = owner.log_prob if hasattr(owner, "log_prob") else owner.forward
        with jax.enable_x64(False), pytest.raises(TypeError, match="float64, which JAX rounds"):
            method({}, np.zeros((3, 2)))


def test_initial_weights_have_the_dtype_that_was_asked_for() -> None:
    planar = jax_flows.Planar(2)
    with jax.enable_x64(False):
        with pytest.raises(TypeError, match="Planar cannot have float64 weights, which JAX rounds"):
            planar.init(KEY, "float64")
        assert planar.init(KEY)["params"]["w"].dtype == np.float32
    assert planar.init(KEY, jnp.bfloat16)["params"]["w"].dtype == jnp.bfloat16
    with pytest.raises(
        ValueError, match=r"Planar expects dtype to be one of bfloat16, .* got 'int32'"
    ):
        planar.init(KEY, "int32")


def test_numpy_arrays_of_any_layout() -> None:
    flow = jax_flows.Flow(jax_flows.Planar(2, 1), jax_flows.StandardNormal(2))
    variables = flow.init(KEY, "float32")
    x = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    expected = flow.log_prob(variables, x, x[:, :1])
    other = flow.log_prob(variables, x[::-1].astype(">f4"), x[::-1, :1].astype(">f4"))
    np.testing.assert_array_equal(other, expected[::-1])
    bijector = jax_flows.Sylvester(2, 2)
    variables = jax.tree.map(
        np.asarray, bijector.init(KEY, "float32")
    )  # as torch_to_jax gives them
    back, _ = bijector.inverse(variables, bijector.forward(variables, x)[0])
    np.testing.assert_allclose(back, x, atol=1e-5)


def test_parts_of_several_dtypes_are_refused() -> None:
    chain = torch_flows.Chain([torch_flows.Affine(2), torch_flows.Affine(2).double()])
    with pytest.raises(TypeError, match="Chain has weights of several dtypes: float32 and float64"):
        chain.forward(torch.zeros(3, 2))
    flow = torch_flows.Flow(torch_flows.Affine(2), torch_flows.DiagonalNormal(2).double())
    with pytest.raises(TypeError, match="DiagonalNormal has float64 weights but z is float32"):
        flow.log_prob(torch.zeros(3, 2))


def test_a_chain_honours_what_a_subclass_overrides() -> None:
    class Shifted(torch_flows.Coupling):
        def map_forward(self, x: Any, context: Any) -> Any:
            z, log_det = super().map_forward(x, context)
            return z + 1, log_det

        def map_inverse(self, z: Any, context: Any) -> Any:
            return super().map_inverse(z - 1, context)

    class JaxShifted(jax_flows.Coupling):
        def map_forward(self, variables: Any, x: Any, context: Any) -> Any:
            z, log_det = super().map_forward(variables, x, context)
            return z + 1, log_det

    x = torch.randn(3, 2)
    coupling = Shifted(2, torch_flows.AffineMap())
    chain = torch_flows.Chain([coupling])
    assert torch.equal(coupling.forward(x)[0], chain.forward(x)[0])
    assert torch.equal(coupling.inverse(x)[0], chain.inverse(x)[0])
    twin = JaxShifted(2, jax_flows.AffineMap())
    variables = twin.init(KEY, "float32")
    inside = jax_flows.Chain([twin]).forward(
        {"params": {"bijectors_0": variables["params"]}}, x.numpy()
    )
    np.testing.assert_array_equal(inside[0], twin.forward(variables, x.numpy())[0])


def test_public_methods_are_not_for_overriding() -> None:
    for half in (torch_flows, jax_flows):
        with pytest.raises(TypeError, match=r"writes forward, .* write map_forward, which chains"):
            type("Mine", (half.Affine,), {"forward": None})


def test_one_module_in_two_places_is_refused() -> None:
    planar = torch_flows.Planar(2)
    for parts in (
        [planar] * 2,
        [planar, torch_flows.Invert(planar)],
        [planar, torch_flows.Chain([torch_flows.Tanh(), planar])],
    ):
        with pytest.raises(ValueError, match="Chain got one Planar as"):
            torch_flows.Chain(parts)
    torch_flows.Chain([torch_flows.Tanh()] * 2)  # nothing to tie
    flow = torch_flows.MAF(2, (4,), num_layers=1, context_dim=2)
    for part in (torch_flows.MLP(2, 2, (4,)), torch_flows.Affine(2)):
        with pytest.raises(
            ValueError, match=f"Flow got one {type(part).__name__} as 'context_net.0'"
        ):
            torch_flows.Flow(flow.bijector, flow.base, context_net=[part, part])


def test_flows_are_built_in_evaluation_mode() -> None:
    flow = torch_flows.RealNVP(2, (4, 4), num_layers=2)
    assert not any(module.training for module in flow.modules())
    x, log_prob = flow.sample_and_log_prob(500)
    torch.testing.assert_close(flow.log_prob(x), log_prob)
    norm = torch_flows.BatchNorm(2).train()
    torch_flows.Chain([norm])
    assert norm.training  # a part keeps the mode that its owner gave it


def test_how_many_samples() -> None:
    flow = torch_flows.Flow(torch_flows.Affine(2), torch_flows.StandardNormal(2))
    twin = jax_flows.Flow(jax_flows.Affine(2), jax_flows.StandardNormal(2))
    variables = twin.init(KEY, "float32")
    for size, shape in (
        (np.int64(3), (3, 2)),
        ([np.int32(2), 3], (2, 3, 2)),
        (0, (0, 2)),
        ((), (2,)),
    ):
        assert flow.sample(size).shape == twin.sample(variables, KEY, size).shape == shape  # type: ignore[arg-type]
    assert flow.sample().shape == twin.sample(variables, KEY).shape == (2,)
    with pytest.raises(
        ValueError, match=r"num_samples as an integer .* got a traced value: jax.jit"
    ):
        jax.jit(twin.sample)(variables, KEY, 3)


def small(**arguments: Any) -> Any:
    return jax_flows.MAF(2, hidden_dims=(4,), num_layers=1, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: {"params": v["params"]},
            "whole variables, .*: 'batch_stats' is missing, got 'par",
        ),
        (lambda v: v["params"], "whole variables, .*: 'batch_stats' is missing, got 'bijector'"),
        (lambda v: None, "expects variables as init, fit and load return them, .* got NoneType"),
        (lambda v: {**v, "params": 3.0}, "what is no array|'params' is missing"),
        (
            lambda v: small().init(KEY, "float32"),
            "not the variables of this RealNVP: array .* missing",
        ),
        (
            lambda v: jax_flows.RealNVP(2, (8, 8), num_layers=1).init(KEY, "float32"),
            r"not the variables of this RealNVP: array 'bijector.*' has shape \(8,\), expected \(4,\)",
        ),
        (
            lambda v: jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), v),
            r"the variables of RealNVP have additional axes \(3,\): use them under jax.vmap",
        ),
    ],
)
def test_other_variables_are_named(change: Any, message: str) -> None:
    flow = jax_flows.RealNVP(2, (4, 4), num_layers=1)
    variables = change(flow.init(KEY, "float32"))
    for call in (
        lambda: flow.log_prob(variables, ROWS),
        lambda: jax.jit(flow.log_prob)(variables, ROWS),
        lambda: flow.sample(variables, KEY, 3),
        lambda: jax_flows.fit(flow, variables, ROWS, num_epochs=1, progress=False),
    ):
        with pytest.raises(flow_bridge.ConversionError, match=message):
            call()


def test_variables_that_broadcast_are_not_taken() -> None:
    variables = jax_flows.Affine(1).init(KEY, "float32")
    with pytest.raises(flow_bridge.ConversionError, match="not the variables of this Affine"):
        jax_flows.Affine(2).forward(variables, ROWS)


def test_variables_of_several_dtypes_are_refused() -> None:
    chain = jax_flows.Chain([jax_flows.Affine(2), jax_flows.Planar(2)])
    params = chain.init(KEY, "float32")["params"]
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params["bijectors_1"])
    with pytest.raises(TypeError, match="Chain has weights of several dtypes: float16 and float32"):
        chain.forward({"params": params | {"bijectors_1": half}}, ROWS)


def test_frozen_variables_are_variables() -> None:
    flow = jax_flows.RealNVP(2, (4, 4), num_layers=1)
    variables = flow.init(KEY, "float32")
    frozen = flax.core.freeze(variables)
    x = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
    np.testing.assert_array_equal(flow.log_prob(frozen, x), flow.log_prob(variables, x))
    quick = {"num_epochs": 1, "batch_size": 4, "progress": False}
    trained = [jax_flows.fit(flow, given, x, **quick)[1] for given in (frozen, variables)]
    assert trained[0].train_loss == trained[1].train_loss


def test_a_distribution_made_under_vmap() -> None:
    pytest.importorskip("numpyro")
    flow = small(context_dim=3)
    variables = flow.init(KEY, "float32")
    made = jax.vmap(lambda row: flow.distribution(variables, row))(jnp.zeros((4, 3), jnp.float32))
    with pytest.raises(flow_bridge.ConversionError, match="use them under"):
        made.log_prob(ROWS[0])
    assert jax.vmap(lambda d: d.log_prob(ROWS[0]))(made).shape == (4,)


def test_an_equal_flow_is_not_traced_again() -> None:
    traces = []

    class Counting(jax_flows.Affine):
        def map_forward(self, variables: Any, x: Any, context: Any) -> Any:
            traces.append(self)
            return super().map_forward(variables, x, context)

    variables = Counting(2).init(KEY, "float32")
    for _ in range(3):
        flow = jax_flows.Flow(Counting(2), jax_flows.StandardNormal(2))
        jax.jit(flow.log_prob)({"params": {"bijector": variables["params"]}}, ROWS)
        jax.jit(flow.bijector.forward)(variables, ROWS)
    assert len(traces) == 2
    assert jax_flows.Flow.log_prob.__doc__


def deep(half: Any) -> Any:
    """Members that are stacked, members that are not, and one with a context."""
    pair = [lambda: half.AffineCoupling(2, (3,)), lambda: half.AffineCoupling(2, (3,), "odd")]
    layers = [make() for make in pair * 3]
    last = [half.Planar(2, context_dim=1), half.Chain([half.LeakyReLU(), half.Affine(2)])]
    return half.Flow(half.Chain([*layers, *last]), half.StandardNormal(2))


def test_the_members_of_a_chain() -> None:
    for half in (torch_flows, jax_flows):
        chain = deep(half).bijector
        assert len(chain) == 8
        assert list(chain)[-1] is chain[-1] is chain[7]
        assert isinstance(chain[2:6], half.Chain)
        assert [*chain[2:4]] == [chain[2], chain[3]]
        with pytest.raises(IndexError):
            chain[8]


@pytest.mark.parametrize("name", ["Planar", "Radial", "Sylvester"])
def test_a_chain_of_equal_layers_is_one_after_the_other(name: str) -> None:
    cls = getattr(torch_flows, name)

    class Shifted(cls):  # type: ignore[misc, valid-type]
        def map_forward(self, x: Any, context: Any) -> Any:
            z, log_det = super().map_forward(x, context)
            return z + 1, log_det

    rank = {"rank": 2} if name == "Sylvester" else {}
    plain = [cls(3, **rank, context_dim=c).double() for c in (0, 0, 0, 2, 2, 0, 0)]
    chain = torch_flows.Chain([*plain[:5], Shifted(3, **rank).double(), *plain[5:]])
    for p in chain.parameters():
        p.data += 0.3 * torch.randn_like(p)
    for shape, context_shape in (((5,), (5,)), ((3, 2), (2,)), ((3, 2), ()), ((), ()), ((0,), ())):
        x, context = torch.randn(*shape, 3).double(), torch.randn(*context_shape, 2).double()
        z, log_det = chain.forward(x, context)
        steps = chain.steps(x, context)
        torch.testing.assert_close(z, steps[-1][0])
        torch.testing.assert_close(log_det, sum(step for _, step in steps))
        back, back_log_det = chain[:5].inverse(steps[4][0], context)
        torch.testing.assert_close(back, x)
        torch.testing.assert_close(back_log_det, -sum(step for _, step in steps[:5]))


@dataclass(frozen=True)
class Moved(jax_flows.Coupling):
    """Maps in another way than couplings do, and takes x whole."""

    def map_forward(self, variables: Any, x: Any, context: Any) -> Any:
        z, log_det = super().map_forward(variables, x, context)
        return z + jnp.arange(z.shape[-1]), log_det


class Turned(jax_flows.MaskedAutoregressive):
    """Maps by its order in a way of its own."""

    def map_forward(self, variables: Any, x: Any, context: Any) -> Any:
        z, log_det = super().map_forward(variables, x, context)
        return z + self.network.plan.generated, log_det


class OwnMasks(jax_flows.MaskedMLP):
    """A network of one's own, which may take its order from ``plan`` alone."""


def orders_in_a_row() -> dict[str, list[Any]]:
    orders = [None, (2, 0, 1, 4, 3), "random:1", "reverse"]
    map = jax_flows.AffineMap("tanh", bound=1.0)
    norm = jax_flows.Network(jax_flows.MLP, hidden_dims=(4,), normalization="batch_norm")
    circular = jax_flows.SplineMap(2, boundary="circular")

    def layer(
        order: Any, cls: Any = jax_flows.MaskedAutoregressive, map: Any = map, **own: Any
    ) -> Any:
        return cls(5, map, order=order, **own)

    def tokens(order: Any) -> Any:
        options = {"hidden_dim": 4, "num_blocks": 1, "num_heads": 2, "initial_scale": 1.0}
        return jax_flows.TransformerAutoregressive(5, map, order=order, context_dim=2, **options)

    def nested(first: Any, second: Any, seed: int) -> Any:
        last = jax_flows.RandomPermutation(5, seed)
        inner = jax_flows.Chain([layer(None), layer("reverse")])
        apart = jax_flows.Blockwise([inner], [[4, 2, 0, 1, 3]])
        return jax_flows.Chain([layer(first), jax_flows.Invert(layer(second)), apart, last])

    return {
        "other orders": [layer(order, context_dim=2) for order in orders[1:]],
        "other orders and statistics": [layer(order, conditioner=norm) for order in orders[:2]],
        "several features": [layer(order, map=circular) for order in orders[1:3]],
        "orders of tokens": [tokens(order) for order in orders[1:3]],
        "chains of other orders": [
            nested(*pair) for pair in [(None, "reverse", 0), ("random:1", None, 1)]
        ],
        "permutations": [
            part
            for seed in range(3)
            for part in (jax_flows.RandomPermutation(5, seed), jax_flows.Affine(5))
        ],
        "orders of a subclass": [layer(order, Turned) for order in orders[:2]],
        "orders of a network": [layer(order, conditioner=OwnMasks) for order in orders[:2]],
    }


def couplings_in_a_row() -> dict[str, list[Any]]:
    network = jax_flows.Network(jax_flows.MLP, hidden_dims=(4,), normalization="batch_norm")

    def layer(mask: Any, cls: Any = jax_flows.Coupling, dim: Any = 5, **options: Any) -> Any:
        return cls(dim, jax_flows.AffineMap("tanh", bound=1.0), mask=mask, **options)

    pair = [layer("even"), layer("odd")]
    given = [layer("even", context_dim=2), layer("odd", context_dim=2)]
    images = [layer(mask, dim=(4, 2, 2)) for mask in ("even", "odd", "checkerboard_even") * 2]
    mixed = [layer((1, 0, 0, 1, 1)), layer((0, 1, 1, 0, 0))] * 2
    rows = {
        "equal parts": [*given[::-1] * 2, *pair],
        "other parts after them": [*pair * 2, *mixed, layer("even")],
        "another map between": [*pair * 2, layer("even", Moved), *pair * 2],
        "all in another way": [layer("even", Moved), layer("odd", Moved)] * 2,
        "other layers between": [*pair, jax_flows.BatchNorm(5), jax_flows.Rotation(5)] * 2,
        "statistics": [layer("even", conditioner=network), layer("odd", conditioner=network)] * 2,
    }
    return rows | {"images": images}


IN_A_ROW = couplings_in_a_row() | orders_in_a_row()
NOT_SCANNED = ("orders of a subclass", "orders of a network")
SCORED = ("other orders", "permutations")


@pytest.mark.parametrize("name", IN_A_ROW)
def test_a_chain_maps_as_its_members_one_by_one(name: str) -> None:
    """Couplings hand on their parts, and layers of several orders are scanned over."""
    row = IN_A_ROW[name]
    shape = row[0].event_shape
    chain = jax_flows.Chain(row)
    rng = np.random.default_rng(0)
    variables = chain.init(jax.random.key(0), "float64")
    moved = jax.tree.map(lambda w: w + 0.1 * rng.standard_normal(w.shape), variables["params"])
    variables = dict(variables) | {"params": moved}
    x = jnp.asarray(rng.standard_normal((7, *shape)))
    context = jnp.asarray(rng.standard_normal((7, 2))) if chain.context_dim else None
    if name in orders_in_a_row():
        assert len(chain.segments) == (len(row) if name in NOT_SCANNED else 1)
    directions = (False, True) if name in SCORED else ()

    @jax.jit
    def at_once(variables: Any) -> Any:
        z, _, statistics = chain.forward_and_update(variables, x, context)
        both = chain.forward(variables, x, context), chain.inverse(variables, x, context)
        score = [chain.map_score(variables, x, x, context, inverse)[2] for inverse in directions]
        return *both, score, (z, statistics)

    @jax.jit
    def one_by_one(variables: Any) -> Any:
        results, scores = [], []
        members = [
            (bijector, own, context if bijector.context_dim else None)
            for bijector, own in zip(chain, chain.split(variables), strict=True)
        ]
        for inverse in (False, True):
            steps = chain.steps(variables, x, context, inverse)
            results.append((steps[-1][0], sum(log_det for _, log_det in steps)))
        for inverse in directions:
            point = score = x
            for bijector, own, given in members[:: -1 if inverse else 1]:
                point, _, score = bijector.map_score(own, point, score, given, inverse)
            scores.append(score)
        layers, z = [], x
        for bijector, own, given in members:
            z, _, statistics = bijector.forward_and_update(own, z, given)
            layers.append(own | {"batch_stats": statistics})
        return *results, scores, (z, chain.join(layers)["batch_stats"])

    found, expected = at_once(variables), one_by_one(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    # measured: 9e-16
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-14, atol=1e-14), found, expected)


def test_every_step_and_every_part() -> None:
    flow, twin = deep(torch_flows), deep(jax_flows)
    arrays = {name: array.numpy() for name, array in flow.state_dict().items()}
    variables = flow_bridge.torch_to_jax(arrays, twin.shapes())
    x = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    context = np.ones((5, 1), np.float32)
    for inverse in (False, True):
        with torch.no_grad():
            steps = flow.steps(torch.from_numpy(x), torch.from_numpy(context), inverse)
            method = flow.inverse if inverse else flow.forward
            whole = method(torch.from_numpy(x), torch.from_numpy(context))
        assert len(steps) == 8
        torch.testing.assert_close(steps[-1][0], whole[0])
        torch.testing.assert_close(torch.stack([d for _, d in steps]).sum(0), whole[1])
        in_jax = jax.jit(twin.steps, static_argnums=3)(variables, x, context, inverse)
        for (z, log_det), (twin_z, twin_log_det) in zip(steps, in_jax, strict=True):
            np.testing.assert_allclose(twin_z, z, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(twin_log_det, log_det, rtol=1e-4, atol=1e-5)
    parts = twin.split(variables)
    layers = twin.bijector.split(parts["bijector"])
    z, _ = twin.bijector[3].forward(layers[3], x)
    np.testing.assert_allclose(z, flow.bijector[3](torch.from_numpy(x))[0].detach(), rtol=1e-4)
    again = twin.join(parts | {"bijector": twin.bijector.join(layers)})
    jax.tree.map(np.testing.assert_array_equal, again, dict(variables))
    middle = twin.bijector[1:5]
    np.testing.assert_allclose(
        middle.forward(middle.join(layers[1:5]), x)[0],
        flow.bijector[1:5](torch.from_numpy(x))[0].detach(),
        rtol=1e-4,
    )


def test_usual_mistakes_with_variables_have_a_sentence() -> None:
    flow = jax_flows.RealNVP(2, (4,), 2)
    variables, chain = flow.init(KEY), flow.bijector
    parts = flow.split(variables)
    layers = chain.split(parts["bijector"])
    mistakes: dict[str, Any] = {
        "RealNVP needs its whole variables": lambda: flow.split(variables["params"]),
        "not the variables of this Chain": lambda: chain.split(variables),
        r"of the variables of \['bijector', 'base'\], got \['base'\]": lambda: flow.join(
            {"base": parts["base"]}
        ),
        "not the variables of this RealNVP": lambda: flow.join(parts | {"bijector": layers[0]}),
        "of the variables of 4 bijectors, got 2": lambda: chain.join(layers[:2]),
        "not the variables of this Coupling": lambda: chain.join(layers[::-1]),
    }
    for sentence, mistake in mistakes.items():
        with pytest.raises(flow_bridge.ConversionError, match=sentence):
            mistake()
    keyless: list[Any] = [
        lambda: flow.sample(variables, 3),
        lambda: flow.base.sample(parts["base"], 3, 5),
        lambda: flow.init(0),
    ]
    for mistake in keyless:
        with pytest.raises(TypeError, match=r"expects key as .* jax.random.key\(0\), got int"):
            mistake()
    raw = flow.sample(variables, jax.random.PRNGKey(0), 3)
    np.testing.assert_array_equal(raw, flow.sample(variables, KEY, 3))


def test_a_part_can_be_frozen() -> None:
    x = np.random.default_rng(0).standard_normal((32, 2)).astype(np.float32)
    quick = {"num_epochs": 1, "batch_size": 8, "progress": False}
    flow, twin = (
        half.Flow(half.Chain([half.Affine(2), half.Planar(2)]), half.StandardNormal(2))
        for half in (torch_flows, jax_flows)
    )
    flow.bijector[0].requires_grad_(False)
    before = {name: array.clone() for name, array in flow.state_dict().items()}
    torch_flows.fit(flow, x, **quick)
    for name, array in flow.state_dict().items():
        assert torch.equal(array, before[name]) == name.startswith("bijector.bijectors.0.")
    optimizer = optax.multi_transform(
        {"trained": optax.adam(1e-3), "frozen": optax.set_to_zero()},
        {"bijector": {"bijectors_0": "frozen", "bijectors_1": "trained"}},
    )
    start = twin.init(KEY, "float32")
    trained, _ = jax_flows.fit(twin, start, x, optimizer=optimizer, **quick)
    old, new = (v["params"]["bijector"] for v in (start, trained))
    jax.tree.map(np.testing.assert_array_equal, new["bijectors_0"], old["bijectors_0"])
    assert not np.array_equal(new["bijectors_1"]["w"], old["bijectors_1"]["w"])


class TorchTwoParts(torch_flows.Bijector):
    def __init__(self) -> None:
        super().__init__()
        self.part_0, self.part_1 = torch_flows.Affine(2), torch_flows.Planar(2)

    def map_forward(self, x: Any, context: Any) -> Any:
        x, first = self.part_0.map_forward(x, None)
        z, second = self.part_1.map_forward(x, None)
        return z, first + second

    def map_inverse(self, z: Any, context: Any) -> Any:
        raise NotImplementedError


class JaxTwoParts(jax_flows.Bijector):
    def init_variables(self, key: Any, dtype: Any) -> Any:
        parts = {"part_0": jax_flows.Affine(2), "part_1": jax_flows.Planar(2)}
        return gather({name: part.init_variables(key, dtype) for name, part in parts.items()})

    def map_forward(self, variables: Any, x: Any, context: Any) -> Any:
        x, first = jax_flows.Affine(2).map_forward(child(variables, "part_0"), x, None)
        z, second = jax_flows.Planar(2).map_forward(child(variables, "part_1"), x, None)
        return z, first + second

    def map_inverse(self, variables: Any, z: Any, context: Any) -> Any:
        raise NotImplementedError


def test_a_part_whose_name_ends_in_a_digit_is_converted() -> None:
    chain, twin = torch_flows.Chain([TorchTwoParts()]), jax_flows.Chain([JaxTwoParts()])
    arrays = {name: array.numpy() for name, array in chain.state_dict().items()}
    variables = flow_bridge.torch_to_jax(arrays, twin.shapes())
    assert flow_bridge.jax_to_torch(variables).keys() == arrays.keys()
    x = np.ones((3, 2), np.float32)
    z, log_det = chain(torch.from_numpy(x))
    twin_z, twin_log_det = twin.forward(variables, x)
    np.testing.assert_allclose(twin_z, z.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(twin_log_det, log_det.detach(), rtol=1e-5, atol=1e-6)


def test_a_flow_shows_what_it_is() -> None:
    shown = str(deep(torch_flows))
    for part in ("mask='odd'", "context_dim=1", "(base): StandardNormal(dim=2)"):
        assert part in shown


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_modules_are_built_on_the_default_device(case: Case) -> None:
    with torch.device("meta"):  # stands for any that is not the CPU
        model = torch_flows.build(case.architecture)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert {name for name, tensor in tensors if not tensor.is_meta} == set()


@pytest.mark.parametrize("name", ["NICE", "MAF", "NeuralSplineFlow"])
def test_models_start_as_the_identity_where_asked(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    half: Any
    for half in (torch_flows, jax_flows):
        residual = half.Network(half.ResidualMLP, hidden_dim=4, initial_scale=0)
        for options in ({"initial_scale": 0}, {"conditioner": residual}):
            flow = getattr(half, name)(3, num_layers=2, **options)
            given = (
                (torch.from_numpy(x),) if half is torch_flows else (flow.init(KEY, "float32"), x)
            )
            with torch.no_grad():
                z, log_det = (np.asarray(output) for output in flow.forward(*given))
            np.testing.assert_allclose(z, x, atol=1e-6)
            np.testing.assert_allclose(log_det, 0, atol=1e-5)
        getattr(half, name)(3, num_layers=1, initial_scale=10**30)  # beyond PyTorch's integers
        with pytest.raises(ValueError, match=f"{name} got an initial_scale and a conditioner"):
            getattr(half, name)(3, initial_scale=2, conditioner=half.MLP)


STARTS = (
    "RealNVP", "Masked-residual-gate-cyclic", "Masked-residual-branch", "Coupling-branches",
    "Glow", "Glow-options", "Flow-context-net", "TarFlow", "BNAF", "Planar", "Radial", "Sylvester",
)  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_first_weights_are_drawn_alike(name: str) -> None:
    """In both halves, weight by weight, over seeds; in JAX all are cut out of one draw, none twice."""
    (case,) = (case for case in CASES if case.name == name)
    found: list[dict[str, list[np.ndarray]]] = [{}, {}]
    twin = jax_flows.build(case.architecture)
    for seed in range(60):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            own = dict(torch_flows.build(case.architecture).named_parameters())
        variables = twin.init(jax.random.key(seed), "float64")
        both = own, {n: a for n, a in jax_to_torch(variables).items() if n in own}
        assert both[0].keys() == both[1].keys()
        for half, arrays in zip(found, both, strict=True):
            for key, array in arrays.items():
                half.setdefault(key, []).append(np.asarray(getattr(array, "data", array)).ravel())
    for key, values in found[0].items():
        a, b = (np.concatenate(draws).astype(np.float64) for draws in (values, found[1][key]))
        noise = 5 / len(a) ** 0.5 * a.std()
        assert abs(a.mean() - b.mean()) < 2**0.5 * noise + 1e-6, key
        assert abs(a.std() - b.std()) < 2 * noise + 1e-6, key
        if not a.any():
            assert not b.any(), key
            assert not np.signbit(b).any(), key
    drawn = np.concatenate([v[0] for v in found[1].values() if np.std(np.stack(v), 0).all()])
    assert len(np.unique(drawn)) == len(drawn)


def test_glow_starts_as_far_from_the_identity_as_asked() -> None:
    half: Any
    for half in (torch_flows, jax_flows):
        flow = half.Glow((1, 4, 4), 1, 1, 8, initial_scale=0.1)
        if half is torch_flows:
            network = flow.bijector[3].network
            weights = [layer.weight.detach().numpy() for layer in network.layers]
        else:
            own = flow.bijector.split(flow.split(flow.init(KEY, "float32"))["bijector"])[3]
            network = own["params"]["network"]
            weights = [network[f"layers_{i}"]["kernel"] for i in (0, 1, 2)]
        bound = 0.1 * (9 * 8) ** -0.5
        assert 0.8 * bound < np.abs(weights[-1]).max() <= bound
        with pytest.raises(ValueError, match="Glow got an initial_scale and a conditioner"):
            half.Glow((1, 4, 4), 1, initial_scale=1.0, conditioner=half.ConvNet)
