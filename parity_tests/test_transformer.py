"""Transformer flows: PyTorch's own block, causality, the inverse by steps and by sweeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge import attention as bridge
from flow_bridge.errors import ConvergenceError
from flow_bridge.masks import autoregressive_order
from flow_bridge.weights import torch_to_jax
from jax_flows.networks import attention as jax_attention
from parity_tests import fuzz
from parity_tests.catalogue import Case, arch
from torch_flows.networks import attention as torch_attention

HALVES = {"torch": torch_flows, "jax": jax_flows}
halves = pytest.mark.parametrize("half", ["torch", "jax"])
FLOW = arch(
    "TransformerAutoregressive", dim=8, token_dim=2, map=arch("AffineMap", scale="softclip"),
    hidden_dim=6, num_blocks=2, num_heads=2, order="reverse", context_dim=2,
)  # fmt: skip


@halves
def test_a_block_is_that_of_pytorch(half: str) -> None:
    """``TransformerEncoderLayer`` with the normalisation first, of two heads and a causal mask."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        6, 2, 24, 0.0, "gelu", batch_first=True, norm_first=True
    )
    layer = layer.double().eval()
    for parameter in layer.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    layer.self_attn.in_proj_bias.data.zero_()
    block = torch_attention.AttentionBlock(bridge.Blocks(6, 1, 2)).double()
    pairs = {
        "attention_norm": layer.norm1,
        "projection": layer.self_attn.out_proj,
        "mlp_norm": layer.norm2,
        "expand": layer.linear1,
        "contract": layer.linear2,
    }
    state = {f"{name}.{k}": v for name, own in pairs.items() for k, v in own.state_dict().items()}
    state["qkv.weight"] = layer.self_attn.in_proj_weight.detach()
    h, mask = torch.randn(3, 5, 6).double(), torch.ones(5, 5, dtype=torch.bool).tril()
    if half == "torch":
        block.load_state_dict(state)
        found = block(h, mask, None, None).detach().numpy()
    else:
        own = jax_attention.AttentionBlock(bridge.Blocks(6, 1, 2))
        shapes = {"params": own.shapes(jnp.float64)}
        arrays = {name: value.numpy() for name, value in state.items()}
        params = torch_to_jax(arrays, shapes)["params"]
        found = own(params, h.numpy(), mask.numpy(), None, None)
    expected = layer(h, ~mask).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_the_options_of_a_block_in_plain_pytorch() -> None:
    """Rotary places as factors of modulus 1, normalised queries and keys, a gate, and a context crossed."""
    torch.manual_seed(0)
    options = bridge.Blocks(8, 1, 2, "silu", 4, 0.0, True, True, True, "cross", 2)
    block = torch_attention.AttentionBlock(options).double()
    for parameter in block.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    h, context = torch.randn(3, 5, 8).double(), torch.randn(3, 2, 8).double()
    functional, heads = torch.nn.functional, lambda x: x.unflatten(-1, (2, 4)).transpose(1, 2)
    angles = torch.outer(torch.arange(5).double(), torch.tensor([1, 0.01], dtype=torch.float64))
    turns = torch.polar(torch.ones_like(angles), angles)

    def turned(x: Any, norm: Any) -> Any:
        x = functional.rms_norm(x, (4,), norm.weight, 1e-5)
        x = torch.complex(x[..., :2], x[..., 2:]) * turns
        return torch.cat([x.real, x.imag], -1)

    def joined(q: Any, k: Any, v: Any, causal: bool) -> Any:
        found = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return found.transpose(1, 2).flatten(2)

    q, k, v = map(heads, block.qkv(block.attention_norm(h)).chunk(3, -1))
    q, k = turned(q, block.q_norm), turned(k, block.k_norm)
    expected = h + block.projection(joined(q, k, v, True))
    k, v = map(heads, block.cross_kv(context).chunk(2, -1))
    q = heads(block.cross_q(block.cross_norm(expected)))
    expected = expected + block.cross_projection(joined(q, k, v, False))
    gate, wide = block.expand(block.mlp_norm(expected)).chunk(2, -1)
    expected = expected + block.contract(functional.silu(gate) * wide)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    found = block(h, mask, torch.as_tensor(options.turns(5)), context)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


NOISE = 4, 4, 16
"""Rounding errors in eps of values, first and third derivatives, relative to the largest: 0.8, 1.2 and 5.3
were measured."""


@pytest.mark.parametrize("seen", ["all", "by a mask", "causal"])
def test_kernels_are_the_plain_form(seen: str) -> None:
    """float32 and bfloat16 take PyTorch's kernels for first derivatives; higher ones are the plain form's."""
    torch.manual_seed(0)
    rows = torch.randn(3, 2, 2, 5, 4).bfloat16()  # numbers that every dtype has
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    given = {"all": (), "by a mask": (mask,), "causal": (None, True)}[seen]
    norm = torch_attention.LayerNorm(4, torch_attention.EPS)
    norm.weight.data, norm.bias.data = torch.randn(2, 4).bfloat16()
    functions = {
        "attention": lambda x, kind: (torch_attention.attend(*x, *given), []),
        "normalisation": lambda x, kind: (norm.to(kind)(x), [norm.weight, norm.bias]),
    }
    if seen == "causal":
        exact = rows.double()
        plain = [torch_attention.attend(*exact, *masks) for masks in (given, (mask,))]
        torch.testing.assert_close(*plain, rtol=0, atol=0)  # the same operations: measured 0
    for function in functions.values():
        found = {}
        for kind in (torch.float64, torch.float32, torch.bfloat16):
            x = rows.to(kind, copy=True).requires_grad_()
            with torch.no_grad():
                values = [function(x, kind)[0]]
            value, weights = function(x, kind)
            values.append(value.detach())
            value = value.sin().sum()
            inputs = [x, *weights]
            first = [torch.autograd.grad(value, inputs, retain_graph=True) for _ in range(2)]
            batched = torch.autograd.grad(
                torch.stack([value, 2 * value]), x, torch.eye(2, dtype=kind),
                is_grads_batched=True, retain_graph=True,
            )  # fmt: skip
            for _ in range(2):
                (moved,) = torch.autograd.grad(value, x, create_graph=True)
                value = moved.square().sum()
            third = torch.autograd.grad(value, x)
            found[kind] = values, [*first[0], *first[1], *batched], third
        for kind, own in found.items():
            for order, parts in enumerate(zip(own, found[torch.float64], strict=True)):
                for part, exact in zip(*parts, strict=True):
                    error = (part.double() - exact).abs().max() / exact.abs().max()
                    assert error < NOISE[order] * torch.finfo(kind).eps


OPTIONS = {
    "prefix": {"rotary": True, "qk_norm": True, "gated": True, "activation": "silu", "context": "prefix",
               "context_dim": 4, "context_tokens": 2},
    "cross": {"rotary": True, "context": "cross", "context_dim": 4, "context_tokens": 2, "num_blocks": 1,
              "checkpointing": True},
    "guided": {"context": "cross", "context_dim": 4, "guidance": [0.5, 2.0]},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str) -> None:
    """Both halves against each other, Jacobians; and the cache against passes of the whole network."""
    flow = FLOW | {"dim": 6, "hidden_dim": 4} | OPTIONS[name]
    fuzz.check(flow, (6,), 0, scale=0.4, gradients=name == "cross")
    case = Case("", flow)
    model = case.torch_model()
    z, context = torch.from_numpy(case.inputs(3)), torch.from_numpy(case.context(3))
    with torch.no_grad():
        found = model.inverse(z, context)[0]
        for size in (None, 2):
            expected = model.inverse_by_sweeps(z, 3, context, size).x
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "sweeps", [{}, pytest.param({"max_sweeps": 5, "sweep_size": 2}, marks=pytest.mark.slow)]
)
def test_compiled_programs_do_not_grow_with_the_number_of_tokens(sweeps: dict[str, int]) -> None:
    """Without gradients the steps, and the sweeps of blocks, are one loop, which gives what they give."""
    sizes = []

    def backend(graph: Any, inputs: Any) -> Any:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    for dim in (6, 14):
        options = {"dim": dim, "hidden_dim": 4, "rotary": True} | OPTIONS["guided"] | sweeps
        case = Case("", FLOW | options)
        model = case.torch_model()
        z, context = torch.from_numpy(case.inputs(3)), torch.from_numpy(case.context(3))
        torch._dynamo.reset()
        with torch.no_grad():
            found = torch.compile(model.inverse, fullgraph=True, backend=backend)(z, context)
            expected = model.inverse(z, context)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert sizes[0] == sizes[1]


def test_one_row_is_inverted_by_the_compiled_loop() -> None:
    """Whose token is contiguous, whatever its strides."""
    model = Case("", FLOW | {"dim": 4, "hidden_dim": 2, "num_blocks": 1}).torch_model()
    z, context = torch.zeros(1, 4).double(), torch.zeros(1, 2).double()
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(model.inverse, fullgraph=True, backend="eager")(z, context)
        torch.testing.assert_close(found, model.inverse(z, context), rtol=1e-12, atol=1e-13)


@halves
def test_guidance(half: str) -> None:
    """Its weight 0 changes nothing; two equal contexts neither; weights are those of places in a row."""
    plain = arch("TarFlow", shape=6, patch_size=2, num_layers=2, hidden_dim=4, num_heads=2, num_blocks=[1, 2],
                 context_dim=2)  # fmt: skip
    case, package = Case("", plain), HALVES[half]
    x, c = case.inputs(3), case.context(3)
    two, twice = np.concatenate([c, 0 * c], 1), np.concatenate([c, c], 1)
    flow = case.torch_model() if half == "torch" else jax_flows.build(plain)
    guided = {w: package.guided(flow, w) for w in (0.0, 1.5, (0.0, 1.0))}
    runs = [(flow, c), (guided[0.0], two), (guided[1.5], twice), (guided[1.5], two)]
    if half == "torch":
        found = [f.log_prob(torch.from_numpy(x), torch.from_numpy(c)).detach() for f, c in runs]
    else:
        variables = torch_to_jax(case.weights(), flow.shapes())
        found = jax.jit(lambda x: [flow.log_prob(variables, x, c) for flow, c in runs])(x)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-12)
    assert (abs(found[3] - found[0]) > 1e-3).all()
    assert guided[0.0, 1.0].bijector.bijectors[0].weights == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="without guidance"):
        package.guided(guided[1.5], 1.0)
    with pytest.raises(ValueError, match="expects a flow of transformers"):
        package.guided(package.RealNVP(2), 1.0)


@halves
def test_tokens_see_those_before_them(half: str) -> None:
    case = Case("", FLOW)
    x, context = case.inputs(), case.context()
    if half == "torch":
        model, given = case.torch_model(), torch.from_numpy(context)
        forward = lambda x: model(x, given)  # noqa: E731
        jacobian = torch.func.jacrev(lambda x: forward(x)[0])(torch.from_numpy(x)).detach().numpy()
        log_det = forward(torch.from_numpy(x))[1].detach().numpy()
    else:
        bijector = jax_flows.build(FLOW)
        variables = torch_to_jax(case.weights(), bijector.shapes())
        jacobian = jax.jit(jax.jacfwd(lambda x: bijector.forward(variables, x, context)[0]))(x)
        log_det = bijector.forward(variables, x, context)[1]
    blocks = np.asarray(jacobian).reshape(4, 2, 4, 2)
    order = autoregressive_order("reverse", 4)
    blocks = blocks.transpose(0, 2, 1, 3)[order][:, order]
    for t in range(4):
        assert (blocks[t, t + 1 :] == 0).all()
        assert (blocks[t, :t] != 0).all()
        assert (blocks[t, t][~np.eye(2, dtype=bool)] == 0).all()
    slopes = np.log(blocks.diagonal().diagonal())
    np.testing.assert_allclose(slopes.sum(), log_det, rtol=1e-12)


def naive_inverse(model: Any, z: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """One pass of the whole network for each token, as code without a cache does it."""
    tokens = z.unflatten(-1, (-1, model.token_dim)).flip(-2)
    x = torch.zeros_like(tokens)
    for t in range(model.num_tokens):
        parameters = model.network(x, context).unflatten(-1, (model.token_dim, -1))
        x[..., t, :] = model.map.inverse(tokens, parameters)[0][..., t, :]
    return x.flip(-2).flatten(-2)


def test_the_cache_changes_nothing() -> None:
    case = Case("", FLOW)
    model = case.torch_model()
    z, context = torch.from_numpy(case.inputs(5)), torch.from_numpy(case.context(5))
    with torch.no_grad():
        expected = naive_inverse(model, z, context).numpy()
        in_place = model.inverse(z, context)[0].numpy()
        sweeps = [model.inverse_by_sweeps(z, 9, context, size) for size in (None, 1, 3)]
    growing = model.inverse(z, context)[0].detach().numpy()
    bijector = jax_flows.build(FLOW)
    variables = torch_to_jax(case.weights(), bijector.shapes())
    by_scan = jax.jit(bijector.inverse)(variables, z.numpy(), context.numpy())[0]
    by_loop = jax.jit(bijector.inverse_by_sweeps, static_argnums=(2, 4))
    loops = [by_loop(variables, z.numpy(), 9, context.numpy(), size) for size in (None, 3)]
    for found in (in_place, growing, by_scan, *(found.x for found in (*sweeps, *loops))):
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)
    log_det = -model(torch.from_numpy(expected), context)[1].detach()
    for found in (*sweeps, *loops):
        np.testing.assert_allclose(found.log_det, log_det, rtol=1e-12)
    for found in (sweeps[1], sweeps[2], loops[1]):
        assert np.asarray(found.change).max() < 1e-14
    counts = [int(found.num_sweeps) for found in (*sweeps, *loops)]
    assert counts[:2] == [4, 4]
    assert counts[2] == counts[4] == 4  # three of the first block, one of the last
    assert counts[3] == 4


def test_gradients_are_those_of_the_weights_of_the_call() -> None:
    """Also where ``functional_call`` has put others into the module, and of the second order."""
    case = Case("", FLOW)
    model = case.torch_model()
    z, context = torch.from_numpy(case.inputs(2)), torch.from_numpy(case.context(2))
    others = {k: (0.9 * v.detach()).requires_grad_() for k, v in model.named_parameters()}
    x, log_det = torch.func.functional_call(_Inverse(model), _named(others), (z, context))
    found = torch.autograd.grad(x.square().sum() + log_det.sum(), [*others.values()])
    model.load_state_dict({k: v.detach() for k, v in others.items()})
    x, log_det = torch.func.vmap(model.inverse)(z, context)  # by the steps themselves
    expected = torch.autograd.grad(x.square().sum() + log_det.sum(), [*model.parameters()])
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)
    row = z[:1].requires_grad_()
    torch.autograd.gradgradcheck(lambda z: model.inverse(z, context[:1]), row)


def test_gradients_through_the_inverse_of_shifts() -> None:
    """Their log-det is a constant."""
    model = torch_flows.TransformerAutoregressive(
        3, torch_flows.ShiftMap(), hidden_dim=4, num_heads=1, initial_scale=1.0
    ).double()
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model.inverse, z)


def test_gradients_in_a_context_that_several_layers_see() -> None:
    flow = arch(
        "TarFlow", shape=4, num_layers=2, hidden_dim=4, num_heads=2, num_blocks=1, context_dim=2
    )
    case = Case("", flow)
    model = case.torch_model()
    z = torch.from_numpy(case.inputs(2))
    context = torch.from_numpy(case.context(2)).requires_grad_()
    found, expected = (
        torch.autograd.grad(inverse(z, context)[0].square().sum(), context)[0]
        for inverse in (model.inverse, torch.func.vmap(model.inverse))
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.autograd.gradgradcheck(
        lambda c: model.inverse(z[:1], c), context.detach()[:1].requires_grad_()
    )


class _Inverse(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        return self.model.inverse(*inputs)


def _named(weights: dict[str, Any]) -> dict[str, Any]:
    return {f"model.{name}": weight for name, weight in weights.items()}


@pytest.mark.parametrize("size", [None, 3])
@halves
def test_too_few_sweeps_are_an_error(half: str, size: int | None) -> None:
    """In compiled code NaN, in those rows alone; gradients are those of the steps."""
    sweeps = {"max_sweeps": 2, "sweep_size": size}
    case = Case("", FLOW | {"context_dim": 0, "num_blocks": 1} | sweeps, scale=1.0)
    z = case.inputs(3)
    z[0] = np.nan
    sentence = "still moved 2 of the rows after 2 sweeps"
    if half == "torch":
        model, rows = case.torch_model(), torch.from_numpy(z)
        with torch.no_grad(), pytest.raises(ConvergenceError, match=sentence):
            model.inverse(rows)
        with torch.no_grad():
            found = torch.func.vmap(model.inverse)(rows)[0]
        with pytest.raises(ConvergenceError, match=sentence):
            model.inverse(rows)
    else:
        bijector = jax_flows.build(case.architecture)
        variables = torch_to_jax(case.weights(), bijector.shapes())
        with pytest.raises(ConvergenceError, match=sentence):
            bijector.inverse(variables, z)
        found = jax.jit(bijector.inverse)(variables, z)[0]
        gradient = jax.jit(jax.grad(lambda z: bijector.inverse(variables, z)[0].sum()))(z[1])
        assert jnp.isfinite(gradient).all()
    assert np.isnan(np.asarray(found)).all()


@halves
def test_an_overflow_on_the_way_of_sweeps_does_no_harm(half: str) -> None:
    """The first sweep makes an infinity of the last token, the fourth what the steps make."""
    wild = arch("TransformerAutoregressive", dim=4, map=arch("AffineMap"), hidden_dim=6, num_blocks=1,
                num_heads=2)  # fmt: skip
    case = Case("", wild, scale=2.0)
    model, z = case.torch_model(seed=4), 1e3 * case.inputs(1, seed=4)
    with torch.no_grad():
        expected = model.inverse(torch.from_numpy(z))[0]
        first, last = (model.inverse_by_sweeps(torch.from_numpy(z), n).x for n in (1, 4))
    assert first.isinf().any()
    if half == "jax":
        bijector = jax_flows.build(wild)
        variables = torch_to_jax(case.weights(4), bijector.shapes())
        last = jax.jit(bijector.inverse_by_sweeps, static_argnums=2)(variables, z, 4).x
    np.testing.assert_allclose(last, expected, rtol=1e-9)


def test_jax_programs_do_not_grow_with_depth() -> None:
    def size(num_blocks: int) -> int:
        bijector = jax_flows.build(FLOW | {"num_blocks": num_blocks})
        variables = jax.eval_shape(lambda: bijector.init(jax.random.key(0)))
        z, context = jnp.zeros((2, 8)), jnp.zeros((2, 2))
        total = 0
        for method in (bijector.forward, bijector.inverse):
            total += str(jax.make_jaxpr(method)(variables, z, context)).count("dot_general")
        return total

    assert size(2) == size(9)


@pytest.mark.parametrize("name", ["vectors", "images"])
def test_couplings_of_tokens(name: str) -> None:
    """Both halves against each other, round trips and Jacobians; masks of channels and of patches."""
    small = {"hidden_dim": 4, "num_heads": 2}
    if name == "images":
        jet = arch("Jet", shape=[1, 4, 4], num_layers=6, num_blocks=2, context_dim=2, qk_norm=True,
                   context="prefix", **small)  # fmt: skip
        fuzz.check(jet, (1, 4, 4), 0, scale=0.4)
    else:
        network = arch("Transformer", num_tokens=4, **small)
        vectors = {"dim": 8, "map": arch("SplineMap", num_bins=2), "mask": [1, 0] * 4}
        fuzz.check(
            arch("Coupling", **vectors, conditioner=network, context_dim=2), (8,), 0, scale=0.4
        )


@halves
def test_patches(half: str) -> None:
    """Each token is one patch; the places of the latent's pixels are those of the image's."""
    image = np.arange(48.0).reshape(2, 4, 6)
    bijector = HALVES[half].Patches((2, 4, 6), 2)
    arguments = (torch.from_numpy(image),) if half == "torch" else ({}, image)
    z = np.asarray(bijector.map_forward(*arguments, None)[0])
    np.testing.assert_array_equal(z.reshape(6, 2, 2, 2)[4], image[:, 2:, 2:4])


def test_flows_of_patches_start_as_the_identity() -> None:
    x = torch.randn(3, 1, 4, 4).double()
    for model in (torch_flows.TarFlow((1, 4, 4), 2, 8), torch_flows.Jet((1, 4, 4), 2, 20)):
        z, log_det = model.double()(x)
        torch.testing.assert_close(z, x, rtol=0, atol=1e-12)
        assert log_det.abs().max() < 1e-12
    for model in (jax_flows.TarFlow((1, 4, 4), 2, 8), jax_flows.Jet((1, 4, 4), 2, 20)):
        assert len(model.bijector.segments) == 3  # scanned over
    variables = jax_flows.TarFlow(4, num_layers=1, num_blocks=2).init(jax.random.key(0))
    network = variables["params"]["bijector"]["bijectors_0"]["network"]
    assert not network["read"]["kernel"].any()
    assert network["blocks_0:2:1"]["contract"]["kernel"].all()


def test_what_is_refused() -> None:
    map = arch("AffineMap")
    tokens = arch("TransformerAutoregressive", dim=4, map=map)
    wrong = [
        (arch("TransformerAutoregressive", dim=5, token_dim=2, map=map), "dim divisible by 2, got 5"),
        (arch("TransformerAutoregressive", dim=4, map=map, num_heads=5), "Autoregressive expects hidden_dim"),
        (arch("TransformerAutoregressive", dim=4, map=map, max_sweeps=0), "max_sweeps"),
        (arch("TarFlow", shape=[1, 2, 2], map=arch("Tanh")), "map of type UnivariateMap, got Tanh"),
        (tokens | {"sweep_size": 2}, "expects max_sweeps"),
        (arch("TransformerAutoregressive", dim=4, map=map, order=[0, 1]), "order must hold"),
        (tokens | {"num_heads": 4, "hidden_dim": 4, "rotary": True}, "even width"),
        (tokens | {"context_dim": 3, "context": "cross", "context_tokens": 2}, "context_dim divisible by 2"),
        (tokens | {"context_dim": 2, "context_tokens": 2}, "of one token"),
        (tokens | {"context_dim": 3, "guidance": 1.0}, "must be even, got 3"),
        (tokens | {"context_dim": 2, "guidance": -1.0}, "guidance"),
        (tokens | {"context_dim": 2, "guidance": [1, 2, 3]}, "as a weight or as two"),
        (arch("TarFlow", shape=4, num_layers=3, num_blocks=[1, 2]), "3 numbers, one for each layer, got 2"),
        (arch("Jet", shape=[1, 4, 4], context="gate"), "context to be one of"),
        (arch("TarFlow", shape=[4, 4]), "shape as a number or as"),
        (arch("Glow", shape=[1, 4, 2], num_levels=1,
              conditioner=arch("ImageTransformer", num_tokens=8)), "got 2 x 1"),
        (arch("TarFlow", shape=[1, 4, 6], patch_size=4), "width divisible by 4, got 6"),
        (arch("TarFlow", shape=5, patch_size=2), "dim divisible by 2"),
        (arch("Jet", shape=[1, 4, 4], patch_size=1), "fixes (nothing|everything)"),
        (arch("Jet", shape=4), "shape as a list"),
        (arch("Transformer", in_dim=6, out_dim=8, num_tokens=4), "in_dim divisible by 4, got 6"),
        (arch("Transformer", in_dim=8, out_dim=8, num_tokens=4, num_parameters=3), "divisible by 12"),
        (arch("Transformer", in_dim=8, out_dim=8, num_tokens=4, activation="best"), "activation"),
    ]  # fmt: skip
    for architecture, sentence in wrong:
        messages = []
        for package in (torch_flows, jax_flows):
            with pytest.raises(ValueError, match=sentence) as caught:
                package.build(architecture)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
