"""Univariate maps, structures and conditioners as arguments: what the rows of the catalogue do not show."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen
from scipy import stats

import jax_flows
import torch_flows
from flow_bridge import lipschitz
from flow_bridge.architecture import architecture
from flow_bridge.errors import ArchitectureError
from flow_bridge.networks import WIDE
from flow_bridge.weights import torch_to_jax
from jax_flows.derivatives import VALUE_AND_SLOPE as JAX_SLOPES
from jax_flows.networks.activations import ACTIVATIONS as JAX_ACTIVATIONS
from jax_flows.networks.mlp import normalize as jax_normalize
from jax_flows.networks.regularization import Dropout as JaxDropout
from parity_tests.catalogue import MAPS, Case, arch, rows_of_map
from parity_tests.test_parity import assert_one_model
from torch_flows import Network
from torch_flows.derivatives import VALUE_AND_SLOPE
from torch_flows.networks.activations import ACTIVATIONS
from torch_flows.networks.mlp import normalizations
from torch_flows.networks.regularization import Dropout

HALVES = (torch_flows, jax_flows)

RECIPE = dict(
    re.findall(
        r'```python title="(\S+)"\n(.*?)```',
        (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
)


@pytest.mark.parametrize("structure", ["elementwise", "coupling", "masked", "images"])
def test_a_map_is_added_in_three_places(structure: str, monkeypatch) -> None:
    """CONTRIBUTING's recipe as it stands: two classes in their files and an entry are rows that pass."""
    for half in ("torch_flows", "jax_flows"):
        registry = importlib.import_module(f"{half}.registry").registry
        monkeypatch.setattr(registry, "types", dict(registry.types))
        file = importlib.import_module(f"{half}.univariate.smooth")
        exec(RECIPE[f"{half}/univariate/smooth.py"], dict(vars(file)))
    ((name, map),) = eval("{" + RECIPE["parity_tests/catalogue.py"] + "}").items()
    assert name not in MAPS
    (case,) = [row for row in rows_of_map(name, map) if row.name == f"{name}-{structure}"]
    assert_one_model(case, ["float64"])


STARTS = {
    "LogisticMixtureMap": 0.17,
    "DenseSigmoidMap": 0.3,
    "NormalMixtureMap": 0.25,
    "MoebiusMap": 0.01,
    "SumOfSquaresMap": 0.01,
}
"""How far from the identity zeros may be, where the class says so."""


@pytest.mark.parametrize(
    "name", [name for name in MAPS if name not in ("TailMap", "MonotoneNetworkMap")]
)
def test_zeros_are_the_identity(name: str) -> None:
    for half, library in ((torch_flows, torch), (jax_flows, jnp)):
        map = half.build(MAPS[name])
        x = library.linspace(-0.9, 1.9, 29)
        zeros = library.zeros((29, map.num_parameters))
        for step in (map.forward, map.inverse):
            y, log_slope = step(x, zeros)
            start = STARTS.get(name, 1e-6)
            np.testing.assert_allclose(np.asarray(y), np.asarray(x), atol=start)
            np.testing.assert_allclose(np.asarray(log_slope), 0, atol=2 * start)


def test_tails_start_as_they_say() -> None:
    """With zeros both tail indices are 0.1, and the slope at 0 is 1."""
    x = np.array([-40.0, -3.0, 0.0, 0.5, 7.0])
    tail = (1 + 0.1 * abs(x) / np.sqrt(np.pi / 2)) ** -10.0 / 2
    for half, array in ((torch_flows, torch.tensor), (jax_flows, jnp.array)):
        z, log_slope = half.TailMap().forward(array(x), array(np.zeros((5, 4))))
        expected = np.sign(x) * stats.norm.isf(tail)
        # at 0 there is what log(1/2) is rounded by: 1.7e-16 was measured
        np.testing.assert_allclose(np.asarray(z), expected, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(np.asarray(log_slope)[2], 0, atol=1e-12)


def test_the_circle_has_no_seam() -> None:
    map = torch_flows.SplineMap(3, -1.0, 2.0, boundary="circular")
    parameters = torch.randn(
        map.num_parameters, generator=torch.Generator().manual_seed(0)
    ).double()
    ends = torch.tensor([-1.0, 2.0, 2.0 - 1e-13], dtype=torch.float64)
    z, log_slope = map.forward(ends, parameters.expand(3, -1))
    assert z[0] == z[1]
    torch.testing.assert_close(log_slope, log_slope[:1].expand(3), rtol=0, atol=1e-7)
    angle = 2 * np.pi * (z - z[0]) / 3
    torch.testing.assert_close(angle.cos(), torch.ones(3).double())
    seen = map.features(ends[:2], -1)
    torch.testing.assert_close(seen[[0, 2]], seen[[1, 3]])


def _on_both(map: dict[str, Any], x: np.ndarray, parameters: np.ndarray) -> list[np.ndarray]:
    """z and the logs of the slopes of both halves, one after the other."""
    ours = torch_flows.build(map).forward(torch.from_numpy(x), torch.from_numpy(parameters))
    theirs = jax_flows.build(map).forward(jnp.asarray(x), jnp.asarray(parameters))
    return [np.asarray(result) for result in (*ours, *theirs)]


def test_splines_in_other_words() -> None:
    """A squash and a fixed slope at the ends are the plain spline of other parameters."""
    generator = np.random.default_rng(0)
    num_bins, parameters = 4, generator.standard_normal((60, 11))
    x = generator.uniform(-4, 4, 60)
    box = {"type": "SplineMap", "num_bins": num_bins, "low": -3.0, "high": 3.0}

    def raw(slope: Any) -> Any:
        return np.log(np.expm1(slope - 1e-3)) - np.log(np.expm1(1 - 1e-3))

    def compare(one: dict[str, Any], plain: dict[str, Any], others: np.ndarray) -> None:
        for a, b in zip(_on_both(one, x, parameters), _on_both(plain, x, others), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)

    share = 1 / -np.log(0.05)
    logits, slopes = np.split(parameters, [2 * num_bins], 1)
    squashed = (
        logits / (1 + 2 * share * abs(logits)),
        raw(np.exp(slopes / (1 + share * abs(slopes)))),
    )
    compare({**box, "squash": 0.05}, box, np.concatenate(squashed, 1))
    for more, ends in (({"edge_slope": 0.4}, 0.4), ({"edge_slope": 2.5, "squash": 0.05}, 2.5)):
        ends = np.full((60, 1), raw(ends))
        if "squash" in more:
            own = np.concatenate([squashed[0], ends, squashed[1], ends], 1)
        else:
            own = np.concatenate([logits, ends, slopes, ends], 1)
        compare({**box, **more}, {**box, "boundary": "kinked"}, own)


def test_a_clamped_scale() -> None:
    """Its gradient is that of the nearest number: 1 inside and at the ends, 0 beyond."""
    raw, x = np.array([-2.0, -1.0, 0.3, 0.5, 0.7, np.nan]), np.full(6, 1.5)
    map = {"type": "AffineMap", "scale": "clamp", "low": -1.0, "high": 0.5}
    parameters = np.stack([np.full(6, 0.2), raw], -1)
    for z, log_slope in np.reshape(_on_both(map, x, parameters), (2, 2, 6)):
        np.testing.assert_array_equal(log_slope, np.clip(raw, -1.0, 0.5))
        np.testing.assert_allclose(z, 1.5 * np.exp(log_slope) + 0.2, rtol=1e-15)
    tensor = torch.from_numpy(parameters).requires_grad_()
    torch_flows.build(map).forward(torch.from_numpy(x), tensor)[1].sum().backward()
    theirs = jax.grad(lambda p: jax_flows.build(map).forward(jnp.asarray(x), p)[1].sum())(
        parameters
    )
    for gradient in (tensor.grad, theirs):
        np.testing.assert_array_equal(np.asarray(gradient)[:5, 1], [0, 1, 1, 1, 0])


def test_a_clipped_scale() -> None:
    """The softplus of a raw number within 3 of its offset: 1 at 0, and bounded both ways."""
    raw, offset = np.array([0.0, -2.0, 1.0, -1e3, 1e3]), np.log(np.expm1(1))
    map = {"type": "AffineMap", "scale": "softplus", "order": "shift_divide", "clip": 3.0}
    expected = np.log1p(np.exp(3 * np.tanh(raw / 3) + offset))
    parameters = np.stack([np.full(5, 0.2), raw], -1)
    for z, log_slope in np.reshape(_on_both(map, np.full(5, 1.5), parameters), (2, 2, 5)):
        np.testing.assert_allclose(log_slope, -np.log(expected), rtol=1e-14, atol=1e-15)
        np.testing.assert_allclose(z, 1.3 / expected, rtol=1e-14)
    for package in (torch_flows, jax_flows):
        with pytest.raises(ValueError, match="offset, minimum and clip with softplus and sigmoid"):
            package.AffineMap("exp", clip=3.0)


def test_a_cubic_map_far_out() -> None:
    map, parameters = torch_flows.CubicMap(), torch.tensor([20.0, 3.0])
    for x in (1e5, 1e30, -3e38):
        point = torch.tensor(x, requires_grad=True)
        z, log_slope = map.forward(point, parameters)
        assert abs(z.item() - x) <= 1e-6 * abs(x)
        assert abs(log_slope.item()) < 1e-6
        assert torch.autograd.grad(z, point)[0].item() == pytest.approx(1.0, abs=1e-5)


def test_checkerboards_keep_their_pixels() -> None:
    x = torch.randn(2, 3, 4, 5)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij")
    for parity, mask in enumerate(("checkerboard_even", "checkerboard_odd")):
        coupling = torch_flows.Coupling((3, None, None), torch_flows.ShiftMap(), mask=mask)
        torch.nn.init.normal_(coupling.network.layers[-1].bias)
        moved = (coupling.forward(x)[0] != x).all(1).all(0)
        assert torch.equal(moved, (rows + columns) % 2 != parity)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda h: h.Coupling(4, h.AffineMap(), h.ConvNet), "expects a conditioner of vectors, got ConvNet"),
        (lambda h: h.Coupling((4, 2, 2), h.AffineMap(), h.MLP), "expects a conditioner of images, got MLP"),
        (lambda h: h.Coupling(1, h.AffineMap()), "a coupling needs dim 2 or more"),
        (lambda h: h.Coupling(4, h.AffineMap(), 7), r"conditioner as Network\(CLASS, ...\)"),
        (lambda h: h.Network(h.MLP, widths=(3,)), "MLP has no argument 'widths' to choose"),
        (lambda h: h.Network(h.MLP, hidden_dims=object()), "hidden_dims as a list of integers"),
        (lambda h: h.MaskedAutoregressive(2, h.AffineMap(), h.ConvNet), "needs a conditioner with masks"),
        (lambda h: h.MaskedAutoregressive(3, h.AffineMap(), h.Network(
            h.MaskedMLP, hidden_dims=(2,), degrees=((0, 3),))), "2 integers from 0 to 2"),
        (lambda h: h.Elementwise(2, h.AffineMap(), conditioner=h.MLP), "only with a context"),
        (lambda h: h.MaskedAutoregressive(3, h.AffineMap(), h.Network(
            h.MaskedResidualMLP, hidden_dim=2, degrees=(0, 3))), "2 integers from 0 to 2"),
        (lambda h: h.Coupling(2, h.AffineMap(), h.Network(h.MLP, hidden_dims=(), context="branch")),
         'context "branch" needs a hidden layer'),
        (lambda h: h.Coupling(2, h.AffineMap(), h.Network(h.MLP, context="gate")),
         "context to be one of"),
        (lambda h: h.Coupling(2, h.AffineMap(), h.Network(h.MLP, normalization="group_norm")),
         "normalization to be one of batch_norm, layer_norm"),
        (lambda h: h.Coupling(2, h.AffineMap(), h.Network(h.ResidualMLP, dropout=1.0)),
         "ResidualMLP expects dropout of at least 0 and below 1, got 1.0"),
        (lambda h: h.Coupling((2, 2, 2), h.AffineMap(), h.Network(h.ConvNet, dropout=float("nan"))),
         "ConvNet expects dropout of at least 0 and below 1, got nan"),
        (lambda h: h.DiagonalNormal(2, 3, h.Network(h.MLP, dropout=0.1)),
         "DiagonalNormal takes no network with batch normalisation or dropout, got MLP"),
        (lambda h: h.ContinuousBijector(2, conditioner=h.Network(h.MLP, normalization="batch_norm")),
         "ContinuousBijector takes no network with batch normalisation or dropout, got MLP"),
        (lambda h: h.Coupling(2, h.AffineMap(), h.Network(
            h.ResidualMLP, hidden_dim=1, normalization="layer_norm")), "of 2 units or more"),
        (lambda h: h.MaskedAutoregressive(2, h.AffineMap(), h.Network(
            h.MLP, normalization="layer_norm")), "would let every unit see all dimensions"),
        (lambda h: h.DeepSet(5, 2, element_dim=2), "a multiple of element_dim, got 5 and 2"),
        (lambda h: h.DeepSet(4, 2, padded=True), "an element_dim of 2 or more"),
        (lambda h: h.ConvEmbedding(12, 2, (1, 4, 4)), "with in_dim entries in all"),
        (lambda h: h.ConvEmbedding(12, 2, (3, 2, 2)), "multiples of 4, got 2 and 2"),
        (lambda h: h.AffineMap("softplus", minimum=1.5), "choose an offset"),
        (lambda h: h.AffineMap("exp", minimum=0.5), "with softplus and sigmoid only"),
        (lambda h: h.SplineMap(2, 1.0, 0.0), "low < high"),
        (lambda h: h.SplineMap(20, min_width=0.1), "num_bins below 10, got 20"),
        (lambda h: h.SplineMap(squash=1.0), "squash below 1, got 1.0"),
        (lambda h: h.SplineMap(squash=0.0), "squash"),
        (lambda h: h.SplineMap(squash=0.1, edge_slope=10.0), "edge_slope between 0.1 and 10, got 10.0"),
        (lambda h: h.SplineMap(edge_slope=1e-3), "edge_slope between 0.001 and inf"),
        (lambda h: h.SplineMap(boundary="linear", edge_slope=0.9), "with the boundary identity only"),
        (lambda h: h.LogisticMixtureMap(0), "num_components to be an integer of at least 1"),
        (lambda h: h.LogisticMixtureMap(output="probit"), "output to be one of logistic, normal"),
        (lambda h: h.LogisticMixtureMap(bound=10.0), "bound between 0 and 10"),
        (lambda h: h.CubicRationalMap(bound=10.0), "bound between 0 and 10"),
        (lambda h: h.SinhMap(bound=0), "bound between 0 and 1000"),
        (lambda h: h.BernsteinMap(61), "degree up to 60, got 61"),
        (lambda h: h.BernsteinMap(low=1.0, high=1.0), "low < high"),
        (lambda h: h.BernsteinMap(min_slope=1e-7), "min_slope from 1e-6 to below 1"),
        (lambda h: h.SumOfSquaresMap(2, 4), r"num_squares up to degree \+ 1 = 3, got 4"),
        (lambda h: h.SumOfSquaresMap(outside="linear"), "outside to be one of polynomial, tangent"),
        (lambda h: h.ConvolutionExponential(2, 4), "expects kernel_size to be odd, got 4"),
        (lambda h: h.Glow((1, 8, 8), map=h.ShiftMap(), bound=2.0), "got a map and a scale, bound or offset"),
        (lambda h: h.BlockAutoregressive(2, ()), "expects hidden_dims of one layer at least"),
        (lambda h: h.MonotoneNetworkMap((3, 1)), r"hidden_dims from 2 on, one at least, got \(3, 1\)"),
        (lambda h: h.MonotoneNetworkMap(()), "hidden_dims from 2 on"),
        (lambda h: h.NAF(2, dense_dims=()), "expects hidden_dims of one layer at least"),
        (lambda h: h.DenseSigmoidMap(bound=10.0), "bound between 0 and 10"),
        (lambda h: h.StudentT(2, 0.5, learned=True), "df from 1 to 1000 where it is learned, got 0.5"),
        (lambda h: h.LeakyTanh(8.0), "bound between 0 and 8"),
        (lambda h: h.CubicSplineMap(boundary="linear"), "boundary"),
        (lambda h: h.LinearSplineMap(10, min_height=0.1), "num_bins below 10, got 10"),
        (lambda h: h.QuadraticSplineMap(min_slope=1.0), "min_slope between 0 and 1"),
        (lambda h: h.LinearRationalSplineMap(min_share=0.5), "min_share between 0 and 0.5"),
        (lambda h: h.AffineMap("clamp", low=1.0, high=-1.0), "low < high"),
        (lambda h: h.Blockwise([h.Exp(), h.Exp()], [[0], [0]]), "once each"),
        (lambda h: h.Blockwise([h.Affine(2)], [[0]]), "for 1 columns"),
        (lambda h: h.RealNVP(2, permutation="shuffle"), "permutation to be one of"),
        (lambda h: h.MAF(2, order="both"), "order to be one of alternate, random"),
    ],
)  # fmt: skip
def test_refusals_are_the_same(build: Any, message: str) -> None:
    said = []
    for half in HALVES:
        with pytest.raises((ValueError, TypeError, ArchitectureError), match=message) as error:
            build(half)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_models_take_options() -> None:
    def flows(half: Any) -> list[Any]:
        network = half.Network(half.ResidualMLP, hidden_dim=4, num_blocks=1)
        return [
            half.RealNVP(3, (4,), 2, permutation="lu", normalization="act_norm", scale="softclip",
                         conditioner=network, base=half.DiagonalNormal(3)),
            half.NICE(3, (4,), 2, activation="tanh", base=half.StudentT(3, 4.0)),
            half.MAF(3, (4,), 2, order="random", normalization="batch_norm", conditioner=network),
            half.IAF(3, (4,), 2, scale="arctan"),
            half.NAF(3, (4,), 2, num_components=2, base=half.StudentT(3, 4.0)),
            half.NeuralSplineFlow(3, (4,), 2, permutation="rotation", conditioner=half.MLP),
        ]  # fmt: skip

    for flow, twin in zip(flows(torch_flows), flows(jax_flows), strict=True):
        assert architecture(flow) == architecture(twin)
        assert architecture(torch_flows.build(architecture(twin))) == architecture(flow)
        assert flow.log_prob(torch.zeros(2, 3)).isfinite().all()


def test_a_network_that_is_not_registered_works_in_its_half(tmp_path: Any) -> None:
    class Own(torch.nn.Module):
        def __init__(self, in_dim: int, out_dim: int, width: int = 3) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(in_dim, out_dim)

        def forward(self, x: Any) -> Any:
            return self.layer(x)

    class Twin(linen.Module):
        in_dim: int
        out_dim: int
        width: int = 3

        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(self.out_dim)(x)

    own = torch_flows.Coupling(3, torch_flows.AffineMap(), Network(Own, width=2), context_dim=1)
    assert own.forward(torch.zeros(2, 3), torch.zeros(2, 1))[0].shape == (2, 3)
    with pytest.raises(
        ArchitectureError, match="Own is not registered: put register_network above"
    ):
        torch_flows.save(own, tmp_path / "own.safetensors")
    twin = jax_flows.Coupling(3, jax_flows.AffineMap(), Twin, context_dim=1)
    variables = twin.init(jax.random.key(0), "float16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float16"}
    with pytest.raises(ArchitectureError, match="Twin is not registered"):
        jax_flows.save(twin, variables, tmp_path / "twin.safetensors")


def test_activations_agree() -> None:
    """Both halves with each other, and what PyTorch has with PyTorch."""
    x = np.linspace(-6, 6, 101)
    functional = torch.nn.functional
    known = {
        "leaky_relu:0.01": functional.leaky_relu,
        "mish": functional.mish,
        "selu": functional.selu,
    }
    points, jax_points = torch.from_numpy(x), jnp.asarray(x)
    for name in (*ACTIVATIONS, "leaky_relu:0.01"):
        value, slope = VALUE_AND_SLOPE[name](points)
        jax_value, jax_slope = JAX_SLOPES[name](jax_points)
        others = [value, jax_value, JAX_ACTIVATIONS[name](jax_points)]
        if name in known:
            others.append(known[name](points))
        for other in others:
            np.testing.assert_allclose(np.asarray(other), ACTIVATIONS[name](points), atol=1e-14)
        np.testing.assert_allclose(np.asarray(jax_slope), slope, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "sin"])
def test_slopes_of_activations_far_out(name: str) -> None:
    """Where squares and cubes overflow, the slope is still that of the asymptote."""
    points = torch.tensor([-1e200, 1e200], dtype=torch.float64)
    _, slope = VALUE_AND_SLOPE[name](points)
    expected = ACTIVATIONS[name](points) / points  # a straight line through the origin, to rounding
    for found in (slope, JAX_SLOPES[name](jnp.asarray(points.numpy()))[1]):
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", ["leaky_relu:0.01", "leaky_relu", "mish", "selu"])
def test_activations_compile(name: str) -> None:
    """Through the table, in one graph, in place where that is done."""
    network = torch_flows.MLP(2, 2, (3,), name)
    x = torch.randn(4, 2)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), network(x))


@pytest.fixture
def forgotten_activations() -> Iterator[None]:
    tables = (ACTIVATIONS, JAX_ACTIVATIONS, VALUE_AND_SLOPE, JAX_SLOPES, lipschitz.SLOPE_BOUNDS)
    before: list[Any] = [dict(table) for table in tables]
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


@pytest.mark.usefixtures("forgotten_activations")
def test_activations_of_ones_own() -> None:
    torch_flows.register_activation(
        "third", lambda x: x / 3, lambda x: torch.full_like(x, 1 / 3), 0.34
    )
    jax_flows.register_activation("third", lambda x: x / 3, lambda x: jnp.full_like(x, 1 / 3), 0.34)
    for half in HALVES:
        half.InvertibleResidual(2, (3,), activation="third")
        with pytest.raises(ValueError, match="expects a new name, got 'third'"):
            half.register_activation("third", abs)
    torch_flows.register_activation("size", abs)
    with pytest.raises(ValueError, match="'size' was registered without its slope"):
        torch_flows.InvertibleResidual(2, (3,), activation="size").forward(torch.zeros(1, 2))


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "branch": ("MLP", {"hidden_dims": (4, 3), "context": "branch"}),
    "beside": ("MLP", {"hidden_dims": (4, 3), "context": "concatenate"}),
    "residual": ("ResidualMLP", {"context": "concatenate"}),
    "gate": ("ResidualMLP", {"context": "gate"}),
    "residual-branch": ("ResidualMLP", {"context": "branch"}),
    "post": ("ResidualMLP", {"context": "branch", "pre_activation": False}),
}
NORMALIZED = {
    "normalized": ("MLP", {**NETWORKS["branch"][1], "normalization": "layer_norm"}),
    "residual-normalized": ("ResidualMLP", {"context": "gate", "normalization": "layer_norm"}),
}
BATCH_NORM = {"normalization": "batch_norm", "dropout": 0.3}
BATCH_NORMALIZED = {
    "batch-normalized": ("MLP", {**NETWORKS["branch"][1], **BATCH_NORM}),
    "residual-batch-normalized": ("ResidualMLP", {"context": "gate", **BATCH_NORM}),
}


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("name", NETWORKS | BATCH_NORMALIZED)
def test_networks_are_their_formulas(name: str, masked: bool) -> None:
    for half in ("torch", "jax"):
        check_formula(half, name, masked)


@pytest.mark.parametrize("name", NORMALIZED)
def test_normalized_networks_are_their_formulas(name: str) -> None:
    for half in ("torch", "jax"):
        check_formula(half, name, False)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("name", ["beside", "residual", "gate"])
def test_a_wide_context_is_a_term(name: str, masked: bool) -> None:
    for half in ("torch", "jax"):
        check_formula(half, name, masked, WIDE)


WIDE_CONTEXTS = {
    "no hidden layer": arch("Coupling", dim=3, map=arch("AffineMap"), context_dim=WIDE,
                            conditioner=arch("MLP", hidden_dims=[])),
    "SeparateMLPs": arch("Coupling", dim=5, map=arch("AffineMap"), context_dim=WIDE,
                         conditioner=arch("SeparateMLPs", hidden_dims=[4])),
    "masked": arch("MaskedAutoregressive", dim=3, map=arch("AffineMap"), context_dim=WIDE,
                   conditioner=arch("MLP", hidden_dims=[]), order="reverse"),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE_CONTEXTS)
def test_models_of_wide_contexts(name: str) -> None:
    assert_one_model(Case(name, WIDE_CONTEXTS[name], scale=0.1), ["float64"])


def test_layer_normalisation_in_float16() -> None:
    """The squares of 300 are beyond it."""
    x = np.array([[300.0, -500.0, 100.0, 40.0]], np.float16)
    wide = x.astype(float)
    expected = (wide - wide.mean()) / wide.std()
    ones, zeros = np.ones(4, np.float16), np.zeros(4, np.float16)
    (layer,) = normalizations("layer_norm", [4]).half()
    in_torch = layer(torch.from_numpy(x)).detach()
    in_jax = jax_normalize(*map(jnp.asarray, (x, ones, zeros)))
    np.testing.assert_allclose(in_torch, expected, atol=2e-3)
    np.testing.assert_allclose(in_jax, expected, atol=2e-3)
    assert in_jax.dtype == x.dtype


def check_formula(half: str, name: str, masked: bool, context_dim: int = 2) -> None:
    """A network of x and c in numpy, its masks written out, against what a half makes of it."""
    kind, options = (NETWORKS | NORMALIZED | BATCH_NORMALIZED)[name]
    residual = kind == "ResidualMLP"
    options = {"activation": "tanh", **options, **({"hidden_dim": 6} if residual else {})}
    degrees = (1, 2, 0, 2, 1, 2) if residual else ((2, 1, 2, 0), (1, 2, 2))
    given: dict[str, Any] = {"dim": 4, "mask": (1, 1, 1, 0)}
    if masked:
        kind, options, given = (
            f"Masked{kind}",
            options | {"degrees": degrees},
            {"dim": 3, "order": (2, 0, 1)},
        )
    structure = "MaskedAutoregressive" if masked else "Coupling"
    network = arch(kind, **options)
    options_of_structure = given | {"map": arch("AffineMap"), "context_dim": context_dim}
    case = Case(name, arch(structure, **options_of_structure, conditioner=network))
    weights = case.weights()
    rows = np.random.default_rng(0).standard_normal((7, 3 + context_dim))
    x, c = rows[:, :3], rows[:, 3:]
    if half == "torch":
        model = case.torch_model()
        with torch.no_grad():
            out = model.network(torch.from_numpy(x), torch.from_numpy(c)).numpy()
    else:
        model = jax_flows.build(case.architecture)
        variables = torch_to_jax(weights, model.shapes())
        network = {kind: tree.get("network", {}) for kind, tree in variables.items()}
        out = model.network.apply(network, jnp.asarray(x), jnp.asarray(c))

    def layer(path: str, h: np.ndarray, above: Any = (), below: Any = ()) -> np.ndarray:
        weight = weights[f"network.{path}.weight"]
        if masked and above:
            weight = weight * (np.array(above)[:, None] >= np.array(below))
        return h @ weight.T + weights[f"network.{path}.bias"]

    def norm(index: int, h: np.ndarray) -> np.ndarray:
        if "normalization" not in options:
            return h
        own = {k: w for k, w in weights.items() if k.startswith(f"network.norms.{index}.")}
        scale, bias, *running = own.values()
        if running:
            return (h - running[0]) / np.sqrt(running[1] + 1e-5) * scale + bias
        h = h - h.mean(-1, keepdims=True)
        return h / np.sqrt(np.square(h).mean(-1, keepdims=True) + 1e-5) * scale + bias

    seen, outs, context = [2, 3, 1], [1, 1, 2, 2, 0, 0], options["context"]
    inputs, seen = (x, seen) if context == "branch" else (rows, seen + [0] * context_dim)
    h = layer("layers.0", inputs, degrees if residual else degrees[0], seen)
    if context == "branch":
        h = h + np.tanh(layer("branches.0", c))
    if not residual:
        h = norm(1, layer("layers.1", np.tanh(norm(0, h)), *degrees[::-1]))
        h = np.tanh(h)
        expected = layer("layers.2", h, outs, degrees[1])
    else:
        for k in range(2):
            start = norm(2 * k, h)
            start = np.tanh(start) if options.get("pre_activation", True) else start
            step = layer(f"layers.{2 * k + 1}", start, degrees, degrees)
            step = step + layer(f"branches.{k + 1}", c) if context == "branch" else step
            step = np.tanh(norm(2 * k + 1, step))
            step = layer(f"layers.{2 * k + 2}", step, degrees, degrees)
            step = step / (1 + np.exp(-layer(f"gates.{k}", c))) if context == "gate" else step
            h = h + step
        expected = layer("layers.5", h, outs, degrees)
    np.testing.assert_allclose(np.reshape(out, expected.shape), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("half", ["torch", "jax"])
def test_dropout_drops_its_share_and_keeps_the_mean(half: str) -> None:
    ones = np.ones((400, 50))
    if half == "torch":
        layer = Dropout(0.3).double()
        first, second = layer(torch.from_numpy(ones)).numpy(), layer(torch.from_numpy(ones)).numpy()
    else:
        layer = JaxDropout(0.3)
        x, state = jnp.asarray(ones), layer.init(jax.random.key(0), ones)
        first, state = layer.apply(state, x, mutable=["batch_stats"])
        second, _ = layer.apply(state, x, mutable=["batch_stats"])
    for out in (first, second):
        assert set(np.unique(out)) == {0.0, 1 / 0.7}
        assert abs((np.asarray(out) == 0).mean() - 0.3) < 0.015  # 4.6 standard deviations
    assert abs(((first == 0) & (second == 0)).mean() - 0.09) < 0.01


def test_convolutions_normalize_the_channels_of_a_pixel() -> None:
    """Of a single pixel, with padding, a convolution is a linear layer."""
    net = {
        "type": "ConvNet",
        "hidden_channels": 4,
        "activation": "tanh",
        "normalization": "layer_norm",
    }
    case = Case("", arch("Coupling", dim=(3, 1, 1), map=arch("ShiftMap"), conditioner=net))
    weights, x = case.weights(), case.inputs(5)
    model, twin = case.torch_model(), jax_flows.build(case.architecture)
    with torch.no_grad():
        z, _ = model.forward(torch.from_numpy(x))
        fixed, free = (
            part.flatten(1).numpy() for part in model.partition.split(torch.from_numpy(x))
        )
    h = fixed
    for i in range(3):
        weight = weights[f"network.layers.{i}.weight"]
        middle = weight.shape[-1] // 2
        h = h @ weight[:, :, middle, middle].T + weights[f"network.layers.{i}.bias"]
        if i < 2:
            h = h - h.mean(-1, keepdims=True)
            h = h / np.sqrt(np.square(h).mean(-1, keepdims=True) + 1e-5)
            h = np.tanh(
                h * weights[f"network.norms.{i}.weight"] + weights[f"network.norms.{i}.bias"]
            )
    moved = model.partition.split(z)[1].flatten(1).numpy() - free
    np.testing.assert_allclose(moved, h, rtol=1e-12, atol=1e-13)
    variables = torch_to_jax(weights, twin.shapes())
    np.testing.assert_allclose(
        twin.forward(variables, jnp.asarray(x))[0], z, rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("half", HALVES)
def test_a_set_has_no_order_and_no_padding(half: Any) -> None:
    """Against its formula on the elements that count, whatever stands in the others."""
    options = {
        "element_dim": 3,
        "set_dim": 4,
        "hidden_dims": (5,),
        "activation": "tanh",
        "padded": True,
    }
    generator = np.random.default_rng(0)
    x = generator.standard_normal((6, 4, 3))
    x[..., 0] = np.array([1, 1, 0, 1]) * np.array([1, 1, 1, 1, 1, 0])[:, None]
    x[:, 2, 1:] = np.nan
    context_net = half.DeepSet(12, 2, **options)
    flow = half.Flow(half.Planar(2, context_dim=2), half.StandardNormal(2), context_net)
    assert flow.context_dim == 12
    arrays = {
        name: generator.standard_normal(array.shape)
        for name, array in torch_flows.DeepSet(12, 2, **options).state_dict().items()
    }
    if half is torch_flows:
        net = context_net.double()
        net.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        run = lambda rows: net(torch.from_numpy(rows)).detach().numpy()  # noqa: E731
    else:
        named = {"params": {"phi": {}, "rho": {}}}
        for name, array in arrays.items():
            part, layers, i, kind = name.split(".")
            layer = named["params"][part].setdefault(f"{layers}_{i}", {})
            layer["kernel" if kind == "weight" else kind] = array.T
        run = lambda rows: np.asarray(context_net.apply(named, jnp.asarray(rows)))  # noqa: E731

    def mlp(part: str, h: np.ndarray) -> np.ndarray:
        layers = [[arrays[f"{part}.layers.{i}.{k}"] for k in ("weight", "bias")] for i in range(2)]
        (first, shift), (last, bias) = layers
        return np.tanh(h @ first.T + shift) @ last.T + bias

    means = mlp("phi", x[:, [0, 1, 3], 1:]).mean(1)
    means[5] = 0
    expected = mlp("rho", means)
    np.testing.assert_allclose(run(x.reshape(6, 12)), expected, rtol=1e-12, atol=1e-13)
    shuffled = x[:, [3, 2, 0, 1]].reshape(6, 12)
    np.testing.assert_allclose(run(shuffled), expected, rtol=1e-12, atol=1e-13)


def test_compiles_without_a_graph_break() -> None:
    network = Network(torch_flows.MaskedResidualMLP, hidden_dim=6, context="gate", degrees="cyclic")
    branched = Network(torch_flows.ResidualMLP, hidden_dim=6, context="branch")
    chain = torch_flows.Chain(
        [
            torch_flows.Coupling(
                4, torch_flows.SplineMap(3, boundary="linear"), branched, context_dim=2
            ),
            torch_flows.MaskedAutoregressive(4, torch_flows.CubicMap(), network, "reverse", 2),
        ]
    )
    x, context = torch.randn(3, 4), torch.randn(3, 2)
    for step in (chain.forward, chain.inverse):
        compiled = torch.compile(step, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, context), step(x, context))


def test_outside_an_interval_is_nan() -> None:
    """A point that an earlier layer moved off the circle has no preimage: it is not wrapped."""
    for boundary in ("bounded", "circular"):
        map = torch_flows.SplineMap(3, -1.0, 2.0, boundary=boundary)
        parameters = torch.randn(4, map.num_parameters)
        for step in (map.forward, map.inverse):
            for value in step(torch.tensor([-1.1, -1.0, 2.0, 2.1]), parameters):
                assert value.isnan().tolist() == [True, False, False, True]


@pytest.mark.parametrize("half", [torch_flows, jax_flows])
def test_a_bijector_is_no_conditioner(half) -> None:
    """PyTorch's modules take such a field out of the way of its value: it would be passed over."""
    with pytest.raises(TypeError, match="NICE expects its conditioner as Network"):
        half.NICE(3, conditioner=half.Affine(2))


def test_what_a_map_makes_of_fixed_pixels_does_not_matter() -> None:
    """They are far out, where the inverse of the tails overflows."""
    z = np.array([[[1000.0, 0.3], [0.2, -1000.0]]])
    coupling = torch_flows.Coupling((1, 2, 2), torch_flows.TailMap(), mask="checkerboard_even")
    point = torch.tensor(z, requires_grad=True)
    x, log_det = coupling.double().inverse(point)
    (gradient,) = torch.autograd.grad(x.sum() + log_det, point)
    twin = jax_flows.Coupling((1, 2, 2), jax_flows.TailMap(), mask="checkerboard_even")
    variables = twin.init(jax.random.key(0), "float64")
    in_jax = jax.grad(lambda z: sum(out.sum() for out in twin.inverse(variables, z)))(z)
    assert np.isfinite(gradient.numpy()).all()
    assert np.isfinite(in_jax).all()
