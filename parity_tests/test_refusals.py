"""Models with something that has no counterpart, and what the refusals say, where the libraries are
installed (``make test-importers``)."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flow_bridge import UnsupportedModel
from flow_bridge.importers import import_flow, import_state
from parity_tests.test_peers import made

pytest.importorskip("normflows", reason="needs the environment of make test-importers")

pytestmark = pytest.mark.filterwarnings("ignore")

Spoil = Callable[[Any], Any]
"""Changes a model, or gives what is imported in its place."""


def setting(path: str, value: Any) -> Spoil:
    """An attribute or a member, by a path with dots, gets a value."""

    def spoil(model: Any) -> None:
        *way, last = path.split(".")
        owner = model
        for key in way:
            owner = owner[int(key)] if key.lstrip("-").isdigit() else getattr(owner, key)
        if last.isdigit():
            owner[int(last)] = value
        elif isinstance(owner, nn.Module):
            setattr(owner, last, value)
        else:
            object.__setattr__(owner, last, value)  # dataclasses too

    return spoil


def filling(path: str, value: float) -> Spoil:
    """All numbers of a tensor become one."""

    def spoil(model: Any) -> None:
        owner = model
        for key in path.split("."):
            owner = owner[int(key)] if key.isdigit() else getattr(owner, key)
        owner.data.fill_(value)

    return spoil


def overriding(path: str, name: str, method: Any) -> Spoil:
    """An object becomes one of a class that differs in one method."""

    def spoil(model: Any) -> None:
        owner = model
        for key in path.split("."):
            owner = owner[int(key)] if key.isdigit() else getattr(owner, key)
        owner.__class__ = type(type(owner).__name__, (type(owner),), {name: method})

    return spoil


def all_of(*spoils: Spoil) -> Spoil:
    def spoil(model: Any) -> None:
        for each in spoils:
            each(model)

    return spoil


def block(activation: Any) -> Any:
    found = nn.Identity()
    found.activation, found.dropout = activation, nn.Dropout(0.0)
    return found


def univariate(*given: Any, **options: Any) -> Spoil:
    def spoil(model: Any) -> None:
        transform = model.transform.transforms[0]
        transform.univariate = functools.partial(transform.univariate, *given, **options)

    return spoil


def MonotonicAffineTransform(shift: Any, scale: Any) -> None:
    """Without a slope."""


def unconditional(model: Any) -> None:
    from zuko.lazy import UnconditionalTransform

    given = UnconditionalTransform(torch.distributions.ExpTransform)
    model.transform.transforms[0] = given


def cnf(model: Any) -> Any:
    from zuko.flows import CNF

    return CNF(3)


def everything(model: Any) -> None:
    for module in model.transform.transforms[0].hyper:
        if hasattr(module, "mask"):
            module.mask.fill_(True)


ZUKO: list[tuple[str, Spoil, str]] = [
    ("maf", setting("transform.transforms.0", nn.Identity()), "zuko's Identity has no counterpart"),
    ("maf", cnf, "its solver would differ"),
    ("maf", unconditional, "UnconditionalTransform(ExpTransform) has no counterpart"),
    (
        "maf_residual",
        setting("transform.transforms.0.hyper.1.1", nn.Tanh()),
        "different activations",
    ),
    ("maf", setting("transform.transforms.0.univariate", nn.Identity), "univariate Identity"),
    ("nsf", setting("transform.transforms.0.shapes", [(5,)] * 3), "with shapes [(5,), (5,), (5,)]"),
    (
        "maf",
        setting("transform.transforms.0.univariate", MonotonicAffineTransform),
        "has no argument 'slope' in this version of zuko",
    ),
    ("maf", univariate(eps=1.0), "has an argument 'eps'"),
    ("maf", univariate(1.0), "positional arguments: name them"),
    ("maf", everything, "not autoregressive: by its masks some dimensions depend on each other"),
    ("nice", filling("transform.transforms.0.mask", 1), "fixes everything or nothing"),
    (
        "naf",
        setting("transform.transforms.0.univariate.network.1", nn.Tanh()),
        "is not linear layers with TwoWayELU between them",
    ),
    (
        "maf",
        all_of(*(setting(f"transform.transforms.0.hyper.{i}", nn.Hardtanh()) for i in (1, 3))),
        "has the activation Hardtanh, which is none of twinflows'",
    ),
    (
        "maf",
        all_of(*(setting(f"transform.transforms.0.hyper.{i}", nn.ReLU6()) for i in (1, 3))),
        "has the activation ReLU6",
    ),
    (
        "maf",
        all_of(*(setting(f"transform.transforms.0.hyper.{i}", nn.Softplus(1, 7)) for i in (1, 3))),
        "has the activation Softplus",
    ),
]


def without_base(model: Any) -> None:
    del model._modules["_distribution"]


def mlp_with_an_activation(model: Any) -> None:
    from nflows.nn.nets import MLP

    model._transform._transforms[0].transform_net = MLP([2], [4], [5], activate_output=True)


def narrowed(model: Any) -> None:
    """A unit inside a block, in the place of one that sees the first dimension, sees the second."""
    net = model._transform._transforms[0].autoregressive_net
    inner = net.blocks[0].linear_layers
    for layer in (net.initial_layer, *inner, net.final_layer):
        layer.mask.fill_(0)
    net.initial_layer.mask[0, 0] = net.initial_layer.mask[1, 1] = 1
    inner[0].mask[0, 1] = inner[1].mask[1, 0] = 1


NET, MADE = "_transform._transforms.0.transform_net", "_transform._transforms.0.autoregressive_net"
COUPLING = "_transform._transforms.0"
NFLOWS: list[tuple[str, Spoil, str]] = [
    ("maf", setting("_distribution", nn.Identity()), "nflows' base Identity has no counterpart"),
    ("maf", without_base, "has no attribute '_distribution', as it has in the versions"),
    ("maf", setting("_transform._transforms.1._dim", 2), "of another axis than the first"),
    ("maf", setting(MADE, nn.Identity()), "only MADE has"),
    ("maf", setting(f"{MADE}.activation", torch.tanh), "different activations"),
    ("maf", setting(f"{MADE}.blocks.0", block(torch.relu)), "has a Identity"),
    ("maf_residual", setting(f"{MADE}.blocks", nn.ModuleList()), "has no blocks"),
    ("maf_residual", setting(f"{MADE}.blocks.0", block(torch.relu)), "has a Identity"),
    (
        "maf_residual",
        setting(f"{MADE}.blocks.0.linear_layers.0.weight", nn.Parameter(torch.zeros(3, 7))),
        "residual blocks of different widths",
    ),
    (
        "maf_residual",
        narrowed,
        "units see more than those they are added to",
    ),
    (
        "affine_coupling",
        all_of(
            setting(f"{COUPLING}.identity_features", torch.arange(0)),
            setting(f"{COUPLING}.transform_features", torch.arange(4)),
        ),
        "that fixes nothing has no counterpart",
    ),
    (
        "rq_coupling",
        setting(f"{COUPLING}.unconditional_transform", nn.Identity()),
        "Identity has no counterpart",
    ),
    ("affine_coupling", setting(f"{NET}.preprocessing", nn.Identity()), "periodic features"),
    ("affine_coupling", setting(f"{NET}.blocks", nn.ModuleList()), "has no blocks"),
    ("affine_coupling", setting(f"{NET}.blocks.0.activation", torch.tanh), "different activations"),
    ("affine_coupling", mlp_with_an_activation, "ends in an activation"),
    ("affine_coupling", setting(NET, nn.Identity()), "is a network that has no counterpart"),
    (
        "affine_coupling",
        overriding(COUPLING, "_scale_and_shift", lambda self, p: (p**2 + 3, p)),
        "scale_activation that is none of twinflows'",
    ),
    (
        "linear",
        filling("_transform._transforms.1._weight", 0.0),
        "a matrix that cannot be inverted",
    ),
    (
        "maf_batch_norm",
        setting(f"{MADE}.blocks.0.batch_norm.track_running_stats", False),
        "BatchNorm1d has no counterpart with track_running_stats=False",
    ),
    (
        "batch_norm_context",
        all_of(
            setting(f"{MADE}.blocks.0.batch_norm_layers.1.eps", 1e-9),
            filling(f"{MADE}.blocks.0.batch_norm_layers.1.running_var", 0.0),
        ),
        "BatchNorm1d with eps=1e-09 has no counterpart: only with 1e-05 and more",
    ),
    (
        "batch_norm_context",
        setting(f"{MADE}.blocks.1.use_batch_norm", False),
        "in some residual blocks of a network and not in others",
    ),
]


def part(index: int) -> Spoil:
    return lambda model: model.flows[index]


def base_of_pixels(model: Any) -> None:
    from normflows.distributions import DiagGaussian

    model.q0[1] = DiagGaussian((2, 2, 2))
    model.q0[1].loc.data.normal_()


def without_squeeze(model: Any) -> None:
    model.flows[0] = nn.ModuleList(model.flows[0][:-1])


def negative_output(model: Any) -> None:
    layers = [m for m in model.flows[2].s.net if type(m).__name__ == "ConstScaleLayer"]
    layers[-1].scale.fill_(-1.0)


GLOW = "flows.0.0.flows.0.flows"
NORMFLOWS: list[tuple[str, Spoil, str]] = [
    ("blocks", part(0), "only NormalizingFlow has"),
    ("blocks", setting("q0", nn.Identity()), "only DiagGaussian and GaussianMixture have"),
    ("blocks", setting("q0.n_dim", 2), "of images has no counterpart"),
    ("blocks", setting("q0.temperature", 0.5), "with a temperature: set it to None"),
    ("masked_affine", filling("flows.0.b", 1.0), "unless its mask holds both 0 and 1"),
    ("masked_affine", setting("flows.0.s", nn.Identity()), "a network Identity: only nets.MLP"),
    ("masked_affine", negative_output, "an output_scale below 0"),
    ("blocks", setting("flows.0.flows.1.param_map", nn.Identity()), "only nets.MLP"),
    ("blocks", setting("flows.0.flows.0.mode", "rows"), "with split_mode='rows'"),
    ("blocks", setting("flows.0.flows.1.scale_map", "cube"), "with scale_map='cube'"),
    (
        "blocks",
        setting("flows.5.s", nn.Parameter(torch.zeros(1, 4, 1))),
        "unless it has one scale per channel",
    ),
    ("blocks", setting("flows.1.mode", "rows"), "with mode='rows'"),
    ("planar", filling("flows.1.alpha", 0.0), "with alpha = 0"),
    (
        "maf",
        setting("flows.0.autoregressive_net.preprocessing", nn.ReLU()),
        "with periodic features",
    ),
    (
        "feedforward",
        setting("flows.0.autoregressive_net.blocks.0.activation", torch.relu),
        "with several activations",
    ),
    ("maf", setting("flows.2.mprqat.tail_bound", torch.ones(3)), "a tail_bound for each dimension"),
    (
        "coupled_spline",
        setting("flows.0.prqct.identity_features", torch.arange(0)),
        "of one dimension has no counterpart",
    ),
    ("glow", setting("merges.0.mode", "checkerboard"), "unless it splits channels in two halves"),
    ("glow", without_squeeze, "unless each level ends in one Squeeze"),
    ("glow", setting("transform", nn.Identity()), "the transform Identity: only Logit"),
    ("glow", setting("q0.0.class_cond", True), "with classes"),
    ("glow", base_of_pixels, "unless all pixels have one"),
    ("glow", setting("q0.0", nn.Identity()), "of images has no counterpart: only GlowBase has"),
    ("glow", setting("q0.0.temperature", 0.5), "with a temperature: set it to None"),
    ("glow", setting("q0.0.shape", (8,)), "unless of images"),
    ("glow", setting("flows.0.0", nn.Identity()), "normflows' Identity of images"),
    (
        "glow",
        all_of(*(setting(f"{GLOW}.{i}.mode", "checkerboard") for i in (0, 2))),
        "of images has no counterpart unless it splits channels",
    ),
    ("glow", setting(f"{GLOW}.1.param_map", nn.Identity()), "with a network Identity"),
    (
        "glow",
        setting(f"{GLOW}.1.param_map.net", nn.Sequential(nn.Conv2d(4, 8, 3))),
        "a network unlike Glow's",
    ),
    (
        "glow",
        setting(f"{GLOW}.1.param_map.net.2", nn.Conv2d(3, 3, 3, padding=1)),
        "unless its kernels are 3, 1 and 3 wide",
    ),
    (
        "glow",
        setting(f"{GLOW}.1.param_map.net.0.padding_mode", "circular"),
        "Conv2d has no counterpart with padding_mode='circular'",
    ),
]


def another_sequence(model: Any) -> None:
    from FrEIA.framework import SequenceINN

    model.module_list[0] = SequenceINN(5)


def second_node(model: Any) -> None:
    model.out_nodes[0].inputs[0] = (model.in_nodes[0], 0)


FREIA: list[tuple[str, Spoil, str]] = [
    ("couplings", lambda m: m.module_list[0], "only SequenceINN and GraphINN have"),
    ("couplings", setting("dims_in", [(3, 4, 4)]), "of images or other arrays"),
    ("couplings", setting("conditions.0", 1), "with several conditions: make them one"),
    ("couplings", another_sequence, "with another in it"),
    ("graph", setting("ff_nodes", [1]), "with feed-forward nodes"),
    ("graph", lambda m: m.condition_nodes.append(m.condition_nodes[0]), "several conditions"),
    ("graph", lambda m: m.in_nodes.append(m.in_nodes[0]), "unless it is one chain of nodes"),
    ("graph", second_node, "unless it is one chain of nodes"),
    ("all_in_one", setting("module_list.0.subnet", nn.Identity()), "a subnet Identity"),
    (
        "all_in_one",
        setting("module_list.0.subnet", nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4))),
        "not linear layers with one activation between them",
    ),
    (
        "couplings",
        setting("module_list.1.subnet_t1", nn.Sequential(nn.Linear(4, 3))),
        "two subnets of different kinds",
    ),
    ("all_in_one", setting("module_list.0.input_rank", 2), "of images has no counterpart"),
    ("all_in_one", setting("dims_in", [(1,)]), "of one dimension has no counterpart"),
    (
        "all_in_one",
        overriding("module_list.0", "_affine", lambda self, x, a, rev=False: (x, 3 * a.sum(1))),
        "scales as no version of FrEIA that twinflows knows",
    ),
]


def masked_base(model: Any) -> None:
    model.base_dist = model.base_dist.mask(False)


PYRO: list[tuple[str, Spoil, str]] = [
    ("planar", lambda m: m.base_dist, "only TransformedDistribution has"),
    ("planar", masked_base, "pyro's base MaskedDistribution has no counterpart"),
    ("planar", lambda m: m.transforms.append(m.transforms[0].inv), "planar maps in both"),
    ("couplings", setting("transforms.0.nn", nn.Identity()), "with a network Identity"),
    ("conditional", setting("transforms.0.kwargs", {"clip": 1.0}), "has an argument 'clip'"),
    ("couplings", setting("transforms.0.dim", -2), "with dim=-2: only -1"),
    ("spline", setting("transforms.0.order", "cubic"), "with order='cubic'"),
    ("spline", setting("transforms.1.dim", -2), "with dim=-2: only -1"),
]


def flowjax(make: Callable[[Any, Any, Any], Any]) -> Spoil:
    """A Transformed from its bijections, distributions and flows."""

    def model(_: Any) -> Any:
        from flowjax import bijections, distributions, flows

        return make(bijections, distributions, flows)

    return model


def transformed(make: Callable[[Any], Any], *shape: int) -> Spoil:
    return flowjax(
        lambda b, d, f: d.Transformed(d.StandardNormal(shape or (3,)), make(b)),
    )


def with_transformer(make: Callable[[Any], Any]) -> Spoil:
    import jax

    def build(b: Any, d: Any, f: Any) -> Any:
        base = d.StandardNormal((3,))
        return f.coupling_flow(jax.random.key(0), base_dist=base, transformer=make(b))

    return flowjax(build)


def planar(b: Any) -> Any:
    import jax

    return b.Planar(jax.random.key(0), dim=3)


def both_ways(b: Any) -> Any:
    return b.Chain([planar(b), b.Invert(planar(b))])


def exponential(b: Any) -> Any:
    import jax
    from paramax import Parameterize

    affine = b.Affine()
    object.__setattr__(affine, "scale", Parameterize(jax.numpy.exp, jax.numpy.zeros(())))
    return affine


def spline(**options: Any) -> Callable[[Any], Any]:
    def make(b: Any) -> Any:
        found = b.RationalQuadraticSpline(knots=3, interval=2)
        for name, value in options.items():
            object.__setattr__(found.x_pos, name, value)
        return found

    return make


def logistic(b: Any, d: Any, f: Any) -> Any:
    return d.Transformed(d.Logistic(np.zeros(3), np.ones(3)), b.Affine(np.zeros(3)))


def shifted(b: Any, d: Any, f: Any) -> Any:
    found = d.Transformed(d.Normal(np.zeros(3)), b.Affine(np.zeros(3)))
    setting("base_dist.base_dist", d.LogNormal(np.zeros(3)))(found)
    return found


SPLINES = "bijection.bijection.bijection.bijections.0.inner"
MASKED = "bijection.bijection.bijection.bijections.0"


def blocks(b: Any) -> Any:
    import jax

    return b.BlockAutoregressiveNetwork(
        jax.random.key(0), dim=3, depth=1, block_dim=2, activation=b.Tanh()
    )


FLOWJAX: list[tuple[str, Spoil, str]] = [
    ("masked", flowjax(logistic), "only StandardNormal and Normal have"),
    ("masked", transformed(lambda b: b.Affine(np.zeros((3, 2))), 3, 2), "unless on vectors"),
    ("masked", transformed(blocks), "is the default, which is tanh(u) + c u"),
    ("masked", transformed(both_ways), "in both directions have none"),
    ("masked", with_transformer(lambda b: b.Scale(np.ones(()))), "with the transformer Scale"),
    ("masked", with_transformer(exponential), "unless its scales are softplus and a constant"),
    ("masked", with_transformer(spline(interval=(-1, 1))), "with two intervals"),
    ("masked", with_transformer(spline(include_endpoints="lower")), "another version of flowjax"),
    (
        "coupling",
        setting(f"{MASKED}.conditioner.final_activation", abs),
        "a final activation in its network",
    ),
    ("coupling", setting(f"{MASKED}.conditioner.scan", True), "scan=True in its network"),
    ("coupling", setting(f"{MASKED}.conditioner", abs), "with a network builtin"),
    (
        "masked",
        setting(
            f"{MASKED}.masked_autoregressive_mlp.layers.0.weight.fn", lambda mask, w, zero: 2 * w
        ),
        "weights of a form that twinflows does not know",
    ),
    ("triangular_spline", setting(f"{SPLINES}.in_axes", (0, 0, 0)), "of RationalQuadraticSpline"),
    (
        "triangular_spline",
        setting("bijection.bijection.bijection.bijections.2.module", abs),
        "unless it is a linear layer",
    ),
    ("scaled", setting("bijection.bijections.0.lower", False), "unless its matrix is triangular"),
    (
        "scaled",
        flowjax(shifted),
        "over another distribution",
    ),
]


def distrax(make: Callable[[Any, Any], Any], base: Any = None) -> Spoil:
    """A Transformed over a normal, from distrax and jax.numpy."""

    def model(_: Any) -> Any:
        import distrax as library
        from jax import numpy as jnp

        normal = library.MultivariateNormalDiag(jnp.zeros(3), jnp.ones(3))
        latent = normal if base is None else base(library, jnp)
        return library.Transformed(latent, make(library, jnp))

    return model


def coupling(make: Callable[[Any, Any, Any], Any], conditioner: Any = None) -> Spoil:
    """A masked coupling with this bijector."""

    def build(library: Any, jnp: Any) -> Any:
        weights = {"linear": {"w": jnp.arange(90.0).reshape(3, 30) / 50, "b": jnp.ones(30)}}

        def net(given: Any, x: Any) -> Any:
            found = x @ given["linear"]["w"] + given["linear"]["b"]
            return found.reshape(*x.shape[:-1], 3, 10)

        apply = functools.partial(conditioner or net, weights)
        mask = jnp.array([True, False, True])
        return library.MaskedCoupling(mask, apply, lambda p: make(library, jnp, p))

    return distrax(build)


def gamma(d: Any, jnp: Any) -> Any:
    return d.Independent(d.Gamma(jnp.ones(3), jnp.ones(3)), 1)


def matrices(d: Any, jnp: Any) -> Any:
    return d.MultivariateNormalDiag(jnp.zeros((2, 3)), jnp.ones((2, 3)))


def squared(given: Any, x: Any) -> Any:
    found = (x @ given["linear"]["w"]) ** 2
    return found.reshape(*x.shape[:-1], 3, 10)


def affine(shift: Callable[[Any, Any], Any], log_scale: Callable[[Any, Any], Any]) -> Spoil:
    return coupling(
        lambda d, jnp, p: d.ScalarAffine(shift(jnp, p), log_scale=log_scale(jnp, p)),
    )


def first(jnp: Any, p: Any) -> Any:
    return p[..., 0]


def second(jnp: Any, p: Any) -> Any:
    return p[..., 1]


DISTRAX: list[tuple[str, Spoil, str]] = [
    ("split", lambda m: m.distribution, "distrax's Independent has no counterpart: only Tran"),
    ("split", distrax(lambda d, jnp: d.DiagLinear(jnp.ones(3)), matrices), "unless on vectors"),
    ("split", distrax(lambda d, jnp: d.DiagLinear(jnp.ones(3)), gamma), "base Independent has no"),
    ("split", distrax(lambda d, jnp: d.DiagLinear(jnp.ones(3))), "distrax's DiagLinear has no"),
    ("split", distrax(lambda d, jnp: d.Block(d.Tanh(), 1)), "of Tanh has no counterpart: only"),
    ("split", setting("bijector._bijectors.0._event_ndims_in", 2), "unless of vectors"),
    ("split", setting("bijector._bijectors.0._split_axis", -2), "split along its last axis"),
    ("affine", setting("bijector._bijectors.0._inner_event_ndims", 1), "unless its mask is that"),
    ("split", coupling(lambda d, jnp, p: d.Tanh()), "of Tanh has no counterpart"),
    ("split", affine(lambda jnp, p: p[..., 0] + p[..., 2], second), "are of one number each"),
    ("split", affine(lambda jnp, p: jnp.tanh(p[..., 0]), second), "shifts are the network's out"),
    ("split", affine(first, lambda jnp, p: jnp.sin(p[..., 1])), "a scale that is none of those"),
    (
        "split",
        coupling(lambda d, jnp, p: d.RationalQuadraticSpline(p[..., :7], -2.0, 3.0)),
        "unless each entry has 7 numbers",
    ),
    (
        "split",
        coupling(
            lambda d, jnp, p: d.RationalQuadraticSpline(p, -2.0, 3.0, boundary_slopes="circular")
        ),
        "with splines of this kind, circular ones say",
    ),
    (
        "split",
        coupling(lambda d, jnp, p: d.ScalarAffine(p[..., 0]), squared),
        "with one of twinflows' activations between them",
    ),
]


def exponentiated(model: Any) -> None:
    from numpyro.distributions.transforms import ExpTransform

    model.transforms.append(ExpTransform())


def scalar(model: Any) -> None:
    from numpyro.distributions import Normal

    model.base_dist = Normal(0, 1)


def bounded(model: Any) -> Any:
    import jax
    from numpyro.distributions.flows import BlockNeuralAutoregressiveTransform
    from numpyro.nn.block_neural_arn import BlockNeuralAutoregressiveNN, Tanh

    init, apply = BlockNeuralAutoregressiveNN(2, [3], activation=Tanh())
    weights = init(jax.random.key(0), (2,))[1]
    model.transforms[0] = BlockNeuralAutoregressiveTransform(functools.partial(apply, weights))


def both_directions(model: Any) -> None:
    model.transforms[0] = model.transforms[0].inv


NUMPYRO: list[tuple[str, Spoil, str]] = [
    ("iaf", lambda m: m.base_dist, "only TransformedDistribution"),
    ("iaf", exponentiated, "numpyro's ExpTransform has no counterpart"),
    ("bnaf", bounded, "with tanh, say, it is not onto the reals"),
    ("bnaf", both_directions, "in both directions has none in which it can be run"),
    ("iaf", scalar, "only a Normal with one entry per dimension has"),
]


def alone(model: Any) -> Any:
    return model._embedding_net if hasattr(model, "_embedding_net") else model


def embedding(model: Any) -> Any:
    from sbi.neural_nets.embedding_nets import FCEmbedding

    return FCEmbedding(3)


SBI: list[tuple[str, Spoil, str]] = [
    ("maf", embedding, "is no flow: only NFlowsFlow, ZukoFlow and ZukoUnconditionalFlow are"),
    ("maf", setting("_input_shape", torch.Size([2, 2])), "samples that are no vectors"),
    ("maf", setting("_condition_shape", torch.Size([2, 2])), "embed them yourself"),
]

SPOILT = [
    (f"{library}_{name}", spoil, sentence)
    for library, rows in {
        "zuko": ZUKO,
        "nflows": NFLOWS,
        "normflows": NORMFLOWS,
        "freia": FREIA,
        "pyro": PYRO,
        "flowjax": FLOWJAX,
        "distrax": DISTRAX,
        "numpyro": NUMPYRO,
        "sbi": SBI,
    }.items()
    for name, spoil, sentence in rows
]


@pytest.mark.parametrize(
    ("name", "spoil", "sentence"), SPOILT, ids=[f"{name}-{s[:50]}" for name, _, s in SPOILT]
)
def test_refused(name: str, spoil: Spoil, sentence: str) -> None:
    _, model = made(name)
    with pytest.raises(UnsupportedModel) as error:
        import_flow(spoil(model) or model)
    assert sentence in str(error.value)


def test_weights_of_another_number() -> None:
    _, model = made("distrax_affine")
    with pytest.raises(UnsupportedModel, match="has 2 of them, and 0 weights were given"):
        import_flow(model, weights=[])


ONE = np.ones((1, 1))
LAYER = {"weight": np.ones((4, 1)), "bias": np.ones(4), "mask": np.ones((4, 1))}
LAST = {"weight": np.ones((3, 4)), "bias": np.ones(3), "mask": np.ones((3, 4))}
OF_MADE = {
    f"_transform.autoregressive_net.{name}.{key}": array
    for name, layer in (("initial_layer", LAYER), ("final_layer", LAST))
    for key, array in layer.items()
}
FINAL = "_transform.autoregressive_net.final_layer"
BASE = {"q0.loc": ONE, "q0.log_scale": ONE}
HYPER = "transform.transforms.0.hyper.0"
NORMAL = {"base.loc": ONE[0], "base.scale": ONE[0]}
STATES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("nflows", {"_transform.a": ONE, "_transform.a.b": ONE}, {}, "lies inside another one"),
    ("nflows", {"_transform._transforms.1._scale": ONE}, {}, "has members without arrays"),
    (
        "nflows",
        {"_transform._scale": ONE, "_transform._shift": ONE, "_embedding_net.0.weight": ONE},
        {},
        "the activations of the embedding network are in no file",
    ),
    ("nflows", OF_MADE, {}, "3 parameters for a dimension are those of a spline: state spline"),
    ("nflows", OF_MADE, {"spline": "cubic"}, "3 parameters for a dimension belong to no cubic"),
    ("nflows", OF_MADE, {"spline": "linear"}, "state tail_bound"),
    ("nflows", OF_MADE, {"spline": "linear", "tail_bound": 3.0}, "has no tails, and no counter"),
    (
        "nflows",
        OF_MADE | {f"{FINAL}.{key}": array[:2] for key, array in LAST.items()},
        {"spline": "rational_quadratic"},
        "those of an affine transform or of a rational_quadratic spline",
    ),
    (
        "nflows",
        {"_transform.unnormalized_heights": ONE},
        {"tail_bound": 3.0},
        "a transform with the arrays ['unnormalized_heights'] is not known",
    ),
    (
        "nflows",
        {
            "_transform.identity_features": np.arange(1),
            "_transform.transform_features": np.arange(1, 2),
            "_transform.transform_net.weight": ONE,
        },
        {},
        "is none that its arrays tell",
    ),
    ("normflows", {"q0.loc": ONE}, {}, "a flow of normflows has no arrays"),
    ("normflows", BASE | {"flows.0.a": ONE}, {}, "a flow with the arrays ['a'] is not known"),
    (
        "zuko",
        NORMAL | {"transform.transforms.0.a": ONE},
        {"slope": 1e-3},
        "a transform with the arrays ['a'] is not known",
    ),
    (
        "zuko",
        NORMAL | {"transform.transforms.0.hyper.0.bias": ONE},
        {"slope": 1e-3},
        "is not linear layers",
    ),
    (
        "zuko",
        NORMAL | {f"{HYPER}.weight": np.ones((17, 1)), f"{HYPER}.bias": np.ones(17)},  # of a BPF
        {"slope": 1e-3},
        "has 17 parameters for a dimension, and MonotonicAffineTransform has 2: state univariate",
    ),
]


@pytest.mark.parametrize(
    ("library", "state", "hints", "sentence"), STATES, ids=[row[3][:40] for row in STATES]
)
def test_refused_states(library: str, state: Any, hints: Any, sentence: str) -> None:
    with pytest.raises(UnsupportedModel) as error:
        import_state(library, state, **hints)
    assert sentence in str(error.value)
