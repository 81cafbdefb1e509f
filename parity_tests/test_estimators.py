"""Refusals of what zuko, nflows, sbi and their arrays have without a counterpart, and errors planted in
their importers; where these libraries are installed (``make test-importers``)."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch_flows
from flow_bridge import ConversionError, UnsupportedModel
from flow_bridge.importers import import_flow, import_state, networks, nflows, zuko
from parity_tests.peers import LIBRARIES, perturbed

pytest.importorskip("sbi", reason="needs the environment of make test-importers")

pytestmark = pytest.mark.filterwarnings("ignore")


def from_zuko(name: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        from zuko import flows

        return getattr(flows, name)(3, transforms=1, hidden_features=(4, 5), **options)

    return make


def from_nflows(make: Callable[[Any], Any], **options: Any) -> Callable[[], Any]:
    def model() -> Any:
        from nflows import distributions, flows, transforms

        base = options.get("base") or distributions.StandardNormal([3])
        return flows.Flow(make(transforms), base, options.get("net"))

    return model


def embedded(*modules: Any) -> Callable[[], Any]:
    net = torch.nn.Sequential(*modules)
    return from_nflows(
        lambda t: t.MaskedAffineAutoregressiveTransform(3, 4, context_features=2), net=net
    )


class Convolution(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv1d(1, 1, 1)


def hooked() -> Any:
    model = from_zuko("MAF")()
    model.transform.register_forward_hook(lambda *given: None)
    return model


def unknown() -> Any:
    model = from_zuko("MAF")()
    model.temperature = 2.0
    return model


def circular() -> Any:
    from zuko.flows.spline import CircularRQSTransform

    shapes = [(4,), (4,), (3,)]
    return from_zuko("MAF", univariate=CircularRQSTransform, shapes=shapes)()


def masked_gaussianization() -> Any:
    from zuko.transforms import GaussianizationTransform

    return from_zuko("MAF", univariate=GaussianizationTransform, shapes=[(4,), (4,)])()


def wider_base() -> Any:
    model = from_zuko("GF")()
    model.base = from_zuko("MAF")().base
    for value in model.base.buffers():
        value.mul_(2).add_(1)
    return model


def turned() -> Any:
    model = from_nflows(lambda t: t.PointwiseAffineTransform(torch.ones(3), torch.ones(3)))()
    model._transform._scale.neg_()
    return model


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (from_zuko("NCSF"), "zuko's base BoxUniform has no counterpart"),
    (circular, "its network sees angles as they are"),
    (from_zuko("BPF"), "its z jumps by 1e-5 at both ends of its interval"),
    (masked_gaussianization, "has no counterpart outside an ElementWiseTransform"),
    (wider_base, "before another base than a standard normal has no counterpart"),
    (from_zuko("SOSPF", degree=1), "no more polynomials than coefficients"),
    (from_zuko("UNAF"), "its log|det| is not that of its z"),
    (from_zuko("MAF", residual=True), "hidden layers of different widths"),
    (from_zuko("NICE", normalize=True), "has LayerNorm in its network"),
    (hooked, "has forward hooks"),
    (unknown, "has an attribute 'temperature', which twinflows does not know"),
    (from_nflows(lambda t: t.Sigmoid()), "nflows' Sigmoid has no counterpart"),
    (
        from_nflows(lambda t: t.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(3, 4)),
        "with tails=None has no counterpart: only tails='linear' has",
    ),
    (
        from_nflows(lambda t: t.MaskedPiecewiseCubicAutoregressiveTransform(4, 3, 4)),
        "with tails=None has no counterpart",
    ),
    (turned, "a scale that is not above 0"),
    (embedded(Convolution()), "keep it, and import with embedding='outside'"),
    (embedded(torch.nn.Tanh(), torch.nn.Linear(2, 2)), "an activation behind each"),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSED, ids=[s[:40] for _, s in REFUSED])
def test_refused(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(UnsupportedModel) as error:
        import_flow(make())
    assert sentence in str(error.value)


def test_refusals_of_sbi() -> None:
    class Posterior:
        posterior_estimator = None

    Posterior.__module__ = "sbi.inference"
    with pytest.raises(UnsupportedModel, match="also truncates to the prior"):
        import_flow(Posterior())
    estimator = LIBRARIES["sbi"]()["nsf"].make()
    with pytest.raises(UnsupportedModel, match="which has no slope"):
        import_flow(estimator, slope=1e-3)
    with pytest.raises(TypeError, match="takes no hint 'tail_bound' for sbi"):
        import_flow(estimator, tail_bound=3.0)
    with pytest.raises(ValueError, match="expects embedding as 'native' or 'outside'"):
        import_flow(estimator, embedding="inside")
    with pytest.raises(ValueError, match="expects slope between 0 and 1"):
        import_flow(from_zuko("MAF")(), slope=2.0)
    with pytest.raises(UnsupportedModel, match="is no model of"):
        import_flow(torch.nn.Linear(2, 2))


def test_an_embedding_that_stays_outside() -> None:
    """The context of the import is then the output of the embedding network."""
    peer = LIBRARIES["sbi"]()["maf_embedded"]
    torch.manual_seed(0)
    estimator = perturbed(peer.make()).double()
    flow = torch_flows.import_flow(estimator, embedding="outside")
    theta, x = torch.randn(4, 2).double(), torch.randn(4, 3).double()
    with torch.no_grad():
        found = flow.log_prob(theta, estimator.embedding_net(x))
        expected = torch_flows.import_flow(estimator).log_prob(theta, x)
    torch.testing.assert_close(found, expected)


def test_notes_about_tied_weights() -> None:
    from sbi.neural_nets import posterior_nn

    torch.manual_seed(0)
    options = {"hidden_layers_spline_context": 2, "hidden_features": 4, "num_transforms": 1}
    estimator = posterior_nn("nsf", **options)(torch.randn(9, 1), torch.randn(9, 2))
    with pytest.warns(UserWarning, match="have weights of their own"):
        torch_flows.import_flow(perturbed(estimator))


def test_refusals_of_states() -> None:
    peers = {name: LIBRARIES[name]() for name in ("nflows", "sbi", "zuko")}
    nsf, maf = (peers["sbi"][name].make().state_dict() for name in ("nsf", "maf_embedded"))
    of_zuko = peers["zuko"]["maf"].make().state_dict()
    of_nflows = peers["nflows"]["linear"].make().state_dict()
    for library, state, hints, sentence in (
        ("sbi", nsf, {"model": "nsf"}, "state tail_bound"),
        ("sbi", nsf, {}, "state which of sbi's models"),
        ("sbi", maf, {"model": "maf"}, "state embedding_activation"),
        ("zuko", of_zuko, {}, "state the slope: no file holds it"),
        ("zuko", nsf, {"slope": 1e-3}, "a flow of zuko has no arrays"),
        ("nflows", of_zuko, {}, "this is a state of something else"),
        ("nflows", of_nflows, {}, "is not known: pass the live object"),
    ):
        with pytest.raises(UnsupportedModel, match=sentence):
            import_state(library, state, **hints)


of, spline_map = networks.Outputs.of, nflows.spline_map


def swapped(rows: np.ndarray, *given: Any) -> networks.Outputs:
    """Scale and shift the wrong way round."""
    return of(rows[:, ::-1] if rows.shape[1] == 2 else rows, *given)


def unscaled(rows: np.ndarray, factor: Any = 1.0, offset: Any = 0.0) -> networks.Outputs:
    """Without the root of the width."""
    return of(rows, 1.0, offset)


def without_offset(*given: Any) -> Any:
    spline = spline_map(*given)
    return spline._replace(offset=0 * spline.offset)


def with_edge(*given: Any) -> Any:
    spline = spline_map(*given)
    return spline._replace(map=spline.map | {"edge_slope": 0.999})


def natural(*given: Any) -> None:
    return None


MUTANTS = {
    "scale and shift swapped": (networks.Outputs, "of", staticmethod(swapped), "sbi_maf"),
    "scale and shift swapped in zuko": (networks.Outputs, "of", staticmethod(swapped), "zuko_nice"),
    "square root forgotten": (networks.Outputs, "of", staticmethod(unscaled), "sbi_nsf"),
    "offset of slopes dropped": (nflows, "spline_map", without_offset, "sbi_maf_rqs"),
    "edge slope 0.999": (nflows, "spline_map", with_edge, "sbi_nsf"),
    "offset of cubic splines dropped": (nflows, "spline_map", without_offset, "nflows_splines"),
    "the 2 of the sigmoid dropped": (
        nflows,
        "SIGMOID",
        nflows.SIGMOID | {"offset": 0.0},
        "nflows_realnvp_flow",
    ),
    "natural order": (networks, "order_of", natural, "zuko_maf"),
    "another slope": (zuko, "_option", lambda *given: 1e-4, "zuko_maf"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_errors_in_the_importers_are_found(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, value, peer = MUTANTS[mutant]
    library, _, model = peer.partition("_")
    torch.manual_seed(0)
    made = perturbed(LIBRARIES[library]()[model].make())
    monkeypatch.setattr(owner, name, value)
    with pytest.raises(ConversionError, match=r"The first layer that differs is|order"):
        torch_flows.import_flow(made)


def test_wild_weights_are_no_excuse() -> None:
    """Far beyond 20, where PyTorch's softplus is off by more than the comparison allows: the import is
    not refused for it, and an error below that is found."""
    from nflows import distributions, flows, transforms

    torch.manual_seed(0)
    layers: list[Any] = []
    for _ in range(5):
        layers += [
            transforms.MaskedAffineAutoregressiveTransform(
                5, 50, use_residual_blocks=False, activation=torch.tanh
            ),
            transforms.RandomPermutation(5),
        ]
    base = distributions.StandardNormal([5])
    for seed in range(3):
        model = perturbed(flows.Flow(transforms.CompositeTransform(layers), base), seed, 1.0)
        imported = import_flow(model)
        torch_flows.import_flow(imported)
        imported.reading.layers[0].parts[0].architecture["map"]["minimum"] += 1e-9
        with pytest.raises(ConversionError, match=r"is _transform\.0 "):
            torch_flows.import_flow(imported)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_dimensions_and_odd_widths(dim: int, context_dim: int) -> None:
    from nflows import distributions, flows, transforms
    from zuko.flows import MAF, NSF

    torch.manual_seed(dim)
    given = {"context_features": context_dim or None}
    layers = [
        transforms.MaskedAffineAutoregressiveTransform(dim, 7, use_residual_blocks=False, **given),
        transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            dim, 7, num_bins=3, tails="linear", tail_bound=2.0, **given
        ),
    ]
    base = distributions.StandardNormal([dim])
    for model in (
        flows.Flow(transforms.CompositeTransform(layers), base),
        MAF(dim, context_dim, transforms=2, hidden_features=(7, 5)),
        NSF(dim, context_dim, transforms=2, bins=3, hidden_features=(7,)),
    ):
        flow = torch_flows.import_flow(perturbed(model, dim))
        assert (flow.event_shape, flow.context_dim) == ((dim,), context_dim)


def test_a_trained_posterior() -> None:
    """What sbi's trainer returns: inside the prior's support, its density before it is normalised."""
    from sbi.inference import NPE
    from sbi.utils import BoxUniform

    torch.manual_seed(0)
    prior = BoxUniform(torch.full((2,), -2.0), torch.full((2,), 2.0))
    theta = prior.sample((200,))
    x = theta + 0.3 * torch.randn(200, 2)
    trainer = NPE(prior, density_estimator="nsf", show_progress_bars=False)
    trainer.append_simulations(theta, x).train(max_num_epochs=2)
    posterior = trainer.build_posterior()
    flow = torch_flows.import_flow(posterior.posterior_estimator)
    observation = torch.tensor([[0.5, -0.5]])
    points = prior.sample((20,)) / 2
    expected = posterior.set_default_x(observation).log_prob(points, norm_posterior=False)
    with torch.no_grad():
        found = flow.log_prob(points, observation.expand(20, 2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained by sbi, imported, sampled by NUTS, exported; in little."""
    pytest.importorskip("onnxruntime")
    path = Path(__file__).parent.parent / "examples" / "imported_posterior.py"
    example = runpy.run_path(str(path))
    monkeypatch.chdir(tmp_path)
    measured = example["main"](1000, max_num_epochs=20, num_observations=1, num_samples=200)
    assert measured["onnx"] < 1e-4
    assert measured["mean"] < 2
