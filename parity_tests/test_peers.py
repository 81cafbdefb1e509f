"""Models of other libraries themselves, where these are installed (``make test-importers``).

What is imported agrees with its peer, an attribute that is changed is used or refused, and errors planted in
the importers are found by the comparison.
"""

import functools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge import ConversionError, UnsupportedModel, importers
from flow_bridge.importers import (
    flowjax,
    freia,
    import_flow,
    import_state,
    networks,
    nflows,
    normflows,
    parts,
    pyro,
    reading,
)
from parity_tests.peers import GOLDEN, LIBRARIES, perturbed, shaken

pytest.importorskip("normflows", reason="needs the environment of make test-importers")

NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
MODULES = {"freia": "FrEIA"}

pytestmark = pytest.mark.filterwarnings("ignore")


def made(name: str, seed: int = 1) -> Any:
    """The peer of a golden file, with weights of another seed."""
    library, _, model = name.partition("_")
    pytest.importorskip(MODULES.get(library, library))
    torch.manual_seed(seed)
    np.random.seed(seed)
    peer = LIBRARIES[library]()[model]
    found = peer.make()
    if isinstance(found, torch.nn.Module) and model != "glow":
        found = perturbed(found, seed)
    return peer, found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [2, *(pytest.param(s, marks=pytest.mark.slow) for s in (3, 4))])
def test_halves_compute_what_the_peer_computes(name: str, seed: int) -> None:
    """Each is compared with the peer, by ``check=True``."""
    peer, model = made(name, seed)
    flow = torch_flows.import_flow(model, dtype="float64", **peer.hints)
    jax_flows.import_flow(model, dtype="float64", **peer.hints)
    assert not flow.training


def objects_of(value: Any, found: dict[int, Any]) -> dict[int, Any]:
    """All that a model is made of: modules, transforms, dataclasses, and what is in partials and lists."""
    root = type(value).__module__.split(".")[0]
    if isinstance(value, str | type | np.ndarray | torch.Tensor) or id(value) in found:
        return found
    if isinstance(value, list | tuple):
        inner = [*value]
    elif isinstance(value, Mapping):
        inner = [*value.values()]
    elif isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif root in ROOTS and not isinstance(value, FunctionType | MethodType):
        found[id(value)] = value
        derived = type(value).__name__ in DERIVED
        inner = [] if derived else [*reading.members(value).values()]
    else:
        return found
    for item in inner:
        objects_of(item, found)
    return found


ROOTS = {*importers.LIBRARIES, "equinox", "paramax", "torch"}
DERIVED = ("MultivariateNormalDiag",)
"""What they hold is made of their arguments, which are read."""


@pytest.mark.parametrize("name", NAMES)
def test_every_attribute_is_accounted_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each object of the model has come to ``expect``, which refuses an attribute that it does not know."""
    peer, model = made(name)
    known: dict[type, set[str]] = {}

    def expect(obj: Any, where: str, names: str) -> None:
        known.setdefault(type(obj), set()).update(names.split())
        reading_expect(obj, where, names)

    reading_expect = reading.expect
    for module in vars(importers).values():
        if getattr(module, "expect", None) is reading_expect:
            monkeypatch.setattr(module, "expect", expect)
    monkeypatch.setattr(reading, "expect", expect)
    monkeypatch.setattr(networks, "expect", expect)
    import_flow(model, **peer.hints)
    for found in objects_of(model, {}).values():
        if not type(found).__module__.startswith("torch.nn.modules.activation"):  # told by values
            unknown = reading.members(found).keys() - known.get(type(found), set())
            assert not unknown, (type(found), unknown)


def changed(value: Any) -> Iterator[Any]:
    """Other values that an option of its kind may have."""
    if value is None:
        yield 0.5
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, float):
        yield 0.6 * value + 0.05
    elif isinstance(value, str):
        yield "exp"
        yield "tanh"


@pytest.mark.parametrize("name", NAMES)
def test_no_option_of_the_peer_is_passed_over(name: str) -> None:
    """With an attribute changed, the import agrees with the peer that has it, or is refused."""
    peer, model = made(name)
    passed_over = []
    of_torch = vars(torch.nn.Module())
    for holder in objects_of(model, {}).values():
        for key, value in list(vars(holder).items()):
            for other in changed(value) if key not in of_torch else ():
                object.__setattr__(holder, key, other)  # dataclasses too
                try:
                    torch_flows.import_flow(model, **peer.hints)
                except UnsupportedModel:
                    pass
                except ConversionError as error:
                    if "differs from it" not in str(error):
                        continue
                    passed_over.append(f"{type(holder).__name__}.{key} = {other!r}: {error}")
                except Exception:  # the peer is not whole with it
                    pass
                finally:
                    object.__setattr__(holder, key, value)
    assert not passed_over


def refused() -> Iterator[tuple[str, Any, str]]:
    """A library, what makes a model of it that has no counterpart, and what the refusal says."""

    def normflows_(make: Any) -> Any:
        def model() -> Any:
            import normflows

            base = normflows.distributions.DiagGaussian(3)
            return normflows.NormalizingFlow(base, [make(normflows.flows, normflows.nets)])

        return model

    for make, sentence in (
        (
            lambda f, n: f.BatchNorm(),
            "BatchNorm has no counterpart: its scale depends on the batch",
        ),
        (lambda f, n: f.ActNorm(3), "ActNorm was never initialised"),
        (lambda f, n: f.Planar((3,), act="leaky_relu"), "act='leaky_relu'"),
        (lambda f, n: f.Residual(n.LipschitzMLP([3, 4, 3])), "Residual has no counterpart"),
        (
            lambda f, n: f.CircularAutoregressiveRationalQuadraticSpline(3, 1, 4, [0]),
            "its splines are circular",
        ),
        (
            lambda f, n: f.MaskedAffineFlow(
                torch.tensor([1.0, 0.0, 1.0]), n.MLP([3, 4, 3]), n.MLP([3, 5, 3])
            ),
            "two networks of different kinds",
        ),
        (
            lambda f, n: f.AffineCouplingBlock(n.MLP([2, 4, 2], output_fn="sigmoid")),
            "ends in Sigmoid",
        ),
        (
            lambda f, n: f.AutoregressiveRationalQuadraticSpline(
                3, 1, 4, activation=lambda: torch.nn.ReLU(inplace=True)
            ),
            "in place",
        ),
    ):
        yield "normflows", normflows_(make), sentence

    def freia_(name: str, **options: Any) -> Any:
        def model() -> Any:
            from FrEIA import framework, modules

            def subnet(below: int, above: int) -> Any:
                return torch.nn.Sequential(torch.nn.Linear(below, above))

            flow = framework.SequenceINN(4)
            given = {} if name == "ActNorm" else {"subnet_constructor": subnet}
            flow.append(getattr(modules, name), **given, **options)
            return flow

        return model

    yield "FrEIA", freia_("ActNorm"), "ActNorm was never initialised"
    yield "FrEIA", freia_("GINCouplingBlock"), "subtracts the mean of its log-scales"
    yield "FrEIA", freia_("AllInOneBlock", gin_block=True), "gin_block=True"
    yield "FrEIA", freia_("GLOWCouplingBlock", clamp_activation=torch.erf), "clamp_activation"
    yield "FrEIA", freia_("GLOWCouplingBlock", split_len=0), "a half that is empty"

    def pyro_(make: Any) -> Any:
        def model() -> Any:
            from pyro import distributions, nn

            base = distributions.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
            return distributions.TransformedDistribution(base, [make(distributions.transforms, nn)])

        return model

    for make, sentence in (
        (lambda t, n: t.affine_autoregressive(3, stable=True), "stable=True"),
        (
            lambda t, n: t.AffineAutoregressive(n.AutoRegressiveNN(3, [4], skip_connections=True)),
            "skip_connections=True",
        ),
        (lambda t, n: t.sylvester(3), "is not that of its map"),
        (
            lambda t, n: t.neural_autoregressive(3),
            "of networks of monotonic units only zuko's NAF is read",
        ),
        (lambda t, n: t.block_autoregressive(3), "only flowjax's and numpyro's are read"),
        (lambda t, n: t.AffineTransform(0.0, -1.0), "a scale that is not above 0"),
    ):
        yield "pyro", pyro_(make), sentence

    def flowjax_(make: Any) -> Any:
        def model() -> Any:
            import jax
            from flowjax import distributions, flows

            return make(flows, jax.random.key(0), distributions.StandardNormal((3,)))

        return model

    for make, sentence in (
        (
            lambda f, k, b: f.planar_flow(k, base_dist=b, flow_layers=1, negative_slope=0.1),
            "negative_slope",
        ),
        (
            lambda f, k, b: f.planar_flow(
                k, base_dist=b, flow_layers=1, cond_dim=2, width_size=3, depth=1
            ),
            "with a condition: its weights come from an MLP",
        ),
        (
            lambda f, k, b: f.triangular_spline_flow(k, base_dist=b, flow_layers=1, tanh_max_val=9),
            "with max_val 9 has no counterpart",
        ),
        (lambda f, k, b: b, "only Transformed has"),
    ):
        yield "flowjax", flowjax_(make), sentence

    def distrax_(make: Any, conditioner: Any) -> Any:
        def model() -> Any:
            import distrax
            from jax import numpy as jnp

            mask = jnp.array([True, False, True])
            layer = distrax.MaskedCoupling(mask, conditioner, lambda p: make(distrax, p))
            base = distrax.MultivariateNormalDiag(jnp.zeros(3), jnp.ones(3))
            return distrax.Transformed(base, layer)

        return model

    yield (
        "distrax",
        distrax_(lambda d, p: d.ScalarAffine(p[..., 0], log_scale=p[..., 1]), lambda x: x),
        "whose weights cannot be seen",
    )


REFUSED = list(refused())


@pytest.mark.parametrize(
    ("library", "make", "sentence"),
    REFUSED,
    ids=[f"{library}-{s[:40]}" for library, _, s in REFUSED],
)
def test_refused(library: str, make: Any, sentence: str) -> None:
    pytest.importorskip(library)
    with pytest.raises(UnsupportedModel) as error:
        import_flow(make())
    assert sentence in str(error.value)
    assert library in str(error.value)


Outputs = networks.Outputs
of, invert, spline_map = Outputs.of, parts.invert, pyro.spline_map


def swapped(rows: np.ndarray, *given: Any) -> Outputs:
    """Scale and shift the wrong way round."""
    return of(rows[:, ::-1] if rows.shape[1] == 2 else rows, *given)


def in_blocks(rows: np.ndarray, *given: Any) -> Outputs:
    """Outputs of one parameter together instead of those of one entry."""
    return of(np.sort(rows.ravel()).reshape(rows.shape[::-1]).T, *given)


def not_inverted(item: Any) -> Any:
    return invert(item) if item.architecture["type"] == "Permutation" else item


def without_edges(*given: Any) -> Any:
    map, offset = spline_map(*given)
    return {key: value for key, value in map.items() if key != "edge_slope"}, offset


def unscaled(rows: np.ndarray, factor: Any = 1.0, offset: Any = 0.0) -> Outputs:
    """Without the root of the width."""
    return of(rows, 1.0, offset)


flowjax_spline = flowjax._spline


def without_ends(*given: Any) -> Any:
    map, start = flowjax_spline(*given)
    return map, np.concatenate([start[:-1], [0.3]])


def without_start(*given: Any) -> Any:
    map, offset = spline_map(*given)
    return map, 0 * offset


MUTANTS = {
    "scale and shift swapped": (Outputs, "of", staticmethod(swapped), "normflows_blocks"),
    "scale and shift swapped in MAF": (Outputs, "of", staticmethod(swapped), "normflows_maf"),
    "scale and shift swapped in FrEIA": (Outputs, "of", staticmethod(swapped), "freia_graph"),
    "scale and shift swapped in pyro": (Outputs, "of", staticmethod(swapped), "pyro_couplings"),
    "scale and shift swapped in flowjax": (Outputs, "of", staticmethod(swapped), "flowjax_masked"),
    "scale and shift swapped in numpyro": (Outputs, "of", staticmethod(swapped), "numpyro_iaf"),
    "scale and shift swapped in distrax": (
        Outputs,
        "of",
        staticmethod(swapped),
        "distrax_affine",
    ),
    "square root forgotten in normflows": (
        Outputs,
        "of",
        staticmethod(unscaled),
        "normflows_coupled_spline",
    ),
    "slopes at the ends of flowjax forgotten": (
        flowjax,
        "_spline",
        without_ends,
        "flowjax_masked_spline",
    ),
    "blocks for interleaved outputs": (Outputs, "of", staticmethod(in_blocks), "normflows_blocks"),
    "spline outputs in blocks": (Outputs, "of", staticmethod(in_blocks), "distrax_spline"),
    "not inverted": (parts, "invert", not_inverted, "normflows_planar"),
    "not inverted in pyro": (parts, "invert", not_inverted, "pyro_spline"),
    "not inverted in distrax": (parts, "invert", not_inverted, "distrax_affine"),
    "edge slope 1": (pyro, "spline_map", without_edges, "pyro_spline"),
    "slopes without their offset": (pyro, "spline_map", without_start, "pyro_autoregressive"),
    "sigmoid without its 2": (
        normflows,
        "SIGMOID",
        normflows.SIGMOID | {"offset": 0.0},
        "normflows_maf",
    ),
    "variances as they are": (nflows, "EPS", 1e-3, "nflows_batch_norm_context"),
    "outputs not shrunk": (freia, "SHRINK", 1.0, "freia_all_in_one"),
    "2 / pi for 0.636": (freia, "STEEPNESS", 2 / np.pi, "freia_graph"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_errors_in_the_importers_are_found(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, value, peer = MUTANTS[mutant]
    _, model = made(peer)
    monkeypatch.setattr(owner, name, value)
    with pytest.raises(ConversionError):
        torch_flows.import_flow(model)


@pytest.mark.parametrize("spline", ["Linear", "Quadratic", "Cubic", "RationalQuadratic"])
def test_states_tell_splines_once_their_kind_is_stated(spline: str) -> None:
    transforms = pytest.importorskip("nflows.transforms")
    from nflows import distributions, flows
    from nflows.nn.nets import ResidualNet

    box = {"num_bins": 5, "tails": "linear", "tail_bound": 2.5}
    start = f"Piecewise{spline}"
    net = functools.partial(ResidualNet, hidden_features=5, num_blocks=1)
    given = {"apply_unconditional_transform": True, **box}
    layers = [
        getattr(transforms, f"{start}CouplingTransform")(torch.tensor([1, 0, 1]), net, **given),
        getattr(transforms, f"{start}CDF")([3], **box),
    ]
    if "Quadratic" in spline:
        made = getattr(transforms, f"Masked{start}AutoregressiveTransform")
        layers.append(made(features=3, hidden_features=5, **box))
    base = distributions.StandardNormal([3])
    model = perturbed(flows.Flow(transforms.CompositeTransform(layers), base))
    kind = {"RationalQuadratic": "rational_quadratic"}.get(spline, spline.lower())
    found = import_state("nflows", model.state_dict(), spline=kind, tail_bound=2.5)
    expected = import_flow(model)
    assert found.architecture == expected.architecture
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, name)


def of_zuko(dim: int, context_dim: int) -> Iterator[Any]:
    from zuko import flows

    yield flows.MAF(dim, context_dim, transforms=2, hidden_features=(7, 5))
    yield flows.NSF(dim, context_dim, bins=3, transforms=1, hidden_features=(7,))
    if dim > 1:
        yield flows.NICE(dim, context_dim, transforms=2, hidden_features=(7,))


def of_nflows(dim: int, context_dim: int) -> Iterator[Any]:
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet

    given = {"context_features": context_dim or None}
    net = functools.partial(ResidualNet, hidden_features=7, **given)
    affine, box = transforms.MaskedAffineAutoregressiveTransform, {"num_bins": 3, "tails": "linear"}
    layers = [affine(dim, 7, use_residual_blocks=plain, **given) for plain in (False, True)]
    layers.append(transforms.LULinear(dim))
    if dim > 1:
        mask = torch.arange(dim) % 2
        layers.append(transforms.PiecewiseRationalQuadraticCouplingTransform(mask, net, **box))
    base = distributions.StandardNormal([dim])
    yield flows.Flow(transforms.CompositeTransform(layers), base)


def of_sbi(dim: int, context_dim: int) -> Iterator[Any]:
    from sbi.neural_nets import posterior_nn
    from sbi.neural_nets.net_builders.flow import build_zuko_unconditional_flow

    options = {"hidden_features": 7, "num_transforms": 1}
    theta, x = torch.randn(50, dim) * 2 + 3, torch.randn(50, context_dim) - 1
    if not context_dim:
        yield build_zuko_unconditional_flow("MAF", theta, "independent", **options)
        return
    for model in ("maf", "maf_rqs", "nsf", "zuko_maf", "zuko_nsf"):
        yield posterior_nn(model, **options)(theta, x)


def of_normflows(dim: int, context_dim: int) -> Iterator[Any]:
    from normflows import ConditionalNormalizingFlow, NormalizingFlow, distributions, flows

    given = {"context_features": context_dim or None}
    spline = flows.AutoregressiveRationalQuadraticSpline
    layers = [
        flows.MaskedAffineAutoregressive(dim, 7, use_residual_blocks=bool(context_dim), **given),
        flows.LULinearPermute(dim),
        spline(dim, 1, 7, num_context_channels=context_dim or None, num_bins=4),
        flows.Permute(dim, "swap"),
    ]
    cls = ConditionalNormalizingFlow if context_dim else NormalizingFlow
    yield cls(distributions.DiagGaussian(dim), layers)


def of_freia(dim: int, context_dim: int) -> Iterator[Any]:
    from FrEIA import framework, modules

    def subnet(below: int, above: int) -> Any:
        linear = torch.nn.Linear
        return torch.nn.Sequential(linear(below, 7), torch.nn.ReLU(), linear(7, above))

    condition = {"cond": 0, "cond_shape": (context_dim,)} if context_dim else {}
    flow = framework.SequenceINN(dim)
    for name in ("AllInOneBlock", "GLOWCouplingBlock", "AffineCouplingOneSided"):
        if dim > 1:
            flow.append(getattr(modules, name), subnet_constructor=subnet, **condition)
    if context_dim:
        flow.append(modules.ConditionalAffineTransform, subnet_constructor=subnet, **condition)
    flow.append(modules.ActNorm)
    flow(torch.randn(20, dim), c=[torch.randn(20, context_dim)])
    yield flow


def of_pyro(dim: int, context_dim: int) -> Iterator[Any]:
    from pyro import distributions
    from pyro.distributions import transforms

    base = distributions.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)
    if context_dim:
        given, cls = (dim, context_dim), distributions.ConditionalTransformedDistribution
        layers = [transforms.conditional_affine_autoregressive(*given, hidden_dims=[7])]
        layers.append(transforms.conditional_spline(*given, hidden_dims=[7], count_bins=3))
    else:
        cls = distributions.TransformedDistribution
        layers = [transforms.affine_autoregressive(dim, hidden_dims=[7]), transforms.planar(dim)]
    yield cls(base, [perturbed(t) for t in layers])


def of_flowjax(dim: int, context_dim: int) -> Iterator[Any]:
    import jax
    from flowjax import distributions, flows

    base, options = distributions.StandardNormal((dim,)), {"flow_layers": 1, "nn_width": 7}
    makes = [flows.masked_autoregressive_flow, *([flows.coupling_flow] if dim > 1 else [])]
    for make in makes:
        yield make(jax.random.key(0), base_dist=base, cond_dim=context_dim or None, **options)


def of_distrax(dim: int, context_dim: int) -> Iterator[Any]:
    import distrax
    import haiku
    import jax
    from jax import numpy as jnp

    def net(x: Any) -> Any:
        return haiku.nets.MLP([7, 2 * dim])(x).reshape(*x.shape[:-1], dim, 2)

    def affine(p: Any) -> Any:
        return distrax.ScalarAffine(shift=p[..., 0], log_scale=p[..., 1])

    shift = jnp.arange(1.0, dim + 1)
    layers: list[Any] = [distrax.Block(distrax.ScalarAffine(shift, scale=0.5 * shift), 1)]
    if dim > 1:
        network = haiku.without_apply_rng(haiku.transform(net))
        weights = shaken(network.init(jax.random.key(0), jnp.zeros(dim)))
        apply = functools.partial(network.apply, weights)
        layers.append(distrax.MaskedCoupling(jnp.arange(dim) % 2 == 0, apply, affine))
    base = distrax.MultivariateNormalDiag(jnp.zeros(dim), jnp.ones(dim))
    yield distrax.Transformed(base, distrax.Chain(layers))


def of_numpyro(dim: int, context_dim: int) -> Iterator[Any]:
    import jax
    from jax import numpy as jnp
    from numpyro.distributions import Normal, TransformedDistribution
    from numpyro.distributions.flows import InverseAutoregressiveTransform
    from numpyro.nn import AutoregressiveNN

    init, apply = AutoregressiveNN(dim, [7], permutation=jnp.arange(dim)[::-1])
    weights = shaken(init(jax.random.key(0), (dim,))[1])
    layer = InverseAutoregressiveTransform(functools.partial(apply, weights))
    yield TransformedDistribution(Normal(jnp.zeros(dim), 1).to_event(1), [layer])


SIZED = {
    "zuko": of_zuko,
    "nflows": of_nflows,
    "sbi": of_sbi,
    "normflows": of_normflows,
    "FrEIA": of_freia,
    "pyro": of_pyro,
    "flowjax": of_flowjax,
    "distrax": of_distrax,
    "numpyro": of_numpyro,
}
WITHOUT_CONTEXT = ("distrax", "numpyro")


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("library", SIZED)
def test_dimensions_and_odd_widths(library: str, dim: int) -> None:
    """Without a context and with one of width 3, as far as the library has them."""
    pytest.importorskip(library)
    for context_dim in (0,) if library in WITHOUT_CONTEXT else (0, 3):
        torch.manual_seed(dim)
        np.random.seed(dim)
        for model in SIZED[library](dim, context_dim):
            noisy = perturbed if isinstance(model, torch.nn.Module) else shaken
            flow = torch_flows.import_flow(noisy(model))
            assert flow.event_shape == (dim,)
            assert flow.context_dim == context_dim


def test_later_versions_of_freia() -> None:
    """Stand-ins with what changed after 0.2: the scale, permutations as indices, ActNorm."""
    modules = pytest.importorskip("FrEIA.modules")
    from FrEIA.framework import SequenceINN

    class AllInOneBlock(modules.AllInOneBlock):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            self.w_perm = torch.nn.Parameter(self.w_perm.argmax(1), requires_grad=False)
            self.w_perm_inv = torch.nn.Parameter(self.w_perm.argsort(), requires_grad=False)
            self.permute_function = lambda x, order: x[:, order]

        def _affine(self, x: Any, a: Any, rev: bool = False) -> Any:
            a, size = 0.1 * a, x.shape[1]
            log_scale = self.clamp * torch.tanh(a[:, :size] / self.clamp)
            return x * log_scale.exp() + a[:, size:], log_scale.sum(1)

    class ActNorm(torch.nn.Module):
        def __init__(self, dims_in: Any) -> None:
            super().__init__()
            self.dims_in, self.dims_c = dims_in, []
            self.register_buffer("is_initialized", torch.tensor(True))
            self.log_scale, self.loc = (torch.nn.Parameter(torch.randn(1, 5)) for _ in range(2))

        def output_dims(self, dims: Any) -> Any:
            return dims

        def forward(self, x: Any, rev: bool = False, jac: bool = True) -> Any:
            return ((x[0] - self.loc) / self.log_scale.exp(),), -self.log_scale.sum()

    def subnet(below: int, above: int) -> Any:
        return torch.nn.Sequential(
            torch.nn.Linear(below, 6), torch.nn.ReLU(), torch.nn.Linear(6, above)
        )

    torch.manual_seed(0)
    flow = SequenceINN(5)
    flow.append(AllInOneBlock, subnet_constructor=subnet, reverse_permutation=True)
    flow.append(ActNorm)
    torch_flows.import_flow(perturbed(flow))
    flow[1].is_initialized.fill_(False)
    with pytest.raises(UnsupportedModel, match="ActNorm was never initialised"):
        torch_flows.import_flow(flow)
