"""The verdict cannot be talked round: each of these was once called one model."""

import html
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge.checkpoint import read_header
from flow_bridge.weights import torch_to_jax
from jax_flows.bijectors import continuous as jax_continuous
from jax_flows.checkpoint import from_numpy as jax_arrays
from parity_tests.catalogue import Case, arch, continuous, flow
from torch_flows.bijectors import continuous as torch_continuous
from twinflows import check_bijector, check_parity
from twinflows.parity.compare import check_names, compare
from twinflows.parity.limits import MAX_CONDITIONING
from twinflows.parity.report import Comparison, ParityReport
from twinflows.parity.truth import conditioning

SOLVER = flow(
    arch("Chain", bijectors=[arch("Affine", dim=2), continuous(dim=2, hidden_dims=[4])]),
    arch("StandardNormal", dim=2),
)


@pytest.fixture
def fresh_traces():
    """JAX keeps traces by function; a mutant's must not outlive it."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def run(architecture: dict[str, Any], rows: int = 5) -> ParityReport:
    case = Case("verdict", architecture)
    models = torch_flows.build(architecture), jax_flows.build(architecture)
    dtypes = ("float64",)
    return compare(*models, case.weights(), case.inputs(rows), case.context(rows), dtypes=dtypes)


def wrong_trace(patch: pytest.MonkeyPatch) -> None:
    for module in (torch_continuous, jax_continuous):
        original = module.trace
        patch.setattr(module, "trace", lambda *a, f=original: -f(*a))


def half_an_interval(patch: pytest.MonkeyPatch) -> None:
    for module in (torch_continuous, jax_continuous):
        cls = module.ContinuousBijector
        original = cls._run

        def shortened(*args: Any, f: Callable[..., Any] = original) -> Any:
            return f(*[(1.0, 0.5) if type(a) is tuple and a == (1.0, 0.0) else a for a in args])

        patch.setattr(cls, "_run", shortened)


def wrong_neighbour(patch: pytest.MonkeyPatch) -> None:
    """A log-det that is off by a millionth, far below what the solver beside it leaves."""
    for cls in (torch_flows.Affine, jax_flows.Affine):
        original = cls.map_forward

        def wrong(*args: Any, f: Callable[..., Any] = original) -> Any:
            z, log_det = f(*args)
            return z, log_det + 1e-6

        patch.setattr(cls, "map_forward", wrong)


@pytest.mark.usefixtures("fresh_traces")
@pytest.mark.parametrize(
    ("mutate", "part"),
    [(wrong_trace, "layer 1"), (half_an_interval, "layer 1"), (wrong_neighbour, "layer 0")],
)
def test_a_solver_excuses_no_formula(mutate: Any, part: str, monkeypatch) -> None:
    mutate(monkeypatch)
    report = run(SOLVER)
    failed = [c.quantity for c in report.comparisons if not c.passed]
    assert failed
    assert all(name.startswith(part) for name in failed), str(report)


@pytest.mark.slow
def test_an_adaptive_solver_is_judged_by_its_own_error() -> None:
    """Both halves choose their steps; with finer ones each is at the truth, far below its tolerance."""
    case = Case("adaptive", arch("NeuralODE", dim=1, hidden_dims=[2]))
    models = torch_flows.build(case.architecture), jax_flows.build(case.architecture)
    report = compare(*models, case.weights(), case.inputs(3), None, dtypes=("float64",))
    assert report.passed, str(report)
    limits = {c.quantity: c.limit * 2.0**-52 for c in report.comparisons}
    assert 1e-9 < limits["z"] < 1e-3
    assert limits["round trip torch to jax"] < 1e-6


def test_what_is_judged_never_judges_itself() -> None:
    with pytest.raises(ValueError, match="has a name"):
        Comparison("z", "float64", 9.0, 1.0, torch_error=9.0, jax_error=9.0)
    for oracle in ("torch", "float64"):
        with pytest.raises(ValueError, match="never judges itself"):
            Comparison("z", "float64", 9.0, 1.0, oracle, 9.0, 9.0)


def pair(torch_change: Any = None, jax_change: Any = None, names: tuple[str, str] = ("Mine",) * 2):
    """Two affine maps, each with a change of its forward: a function of (z, log_det, x, module)."""

    class InTorch(torch_flows.Affine):
        def map_forward(self, x: Any, context: Any) -> Any:
            z, log_det = super().map_forward(x, context)
            return torch_change(z, log_det, x, self) if torch_change else (z, log_det)

    class InJax(jax_flows.Affine):
        def map_forward(self, variables: Any, x: Any, context: Any) -> Any:
            z, log_det = super().map_forward(variables, x, context)
            return jax_change(z, log_det, x, self) if jax_change else (z, log_det)

    InTorch.__name__, InJax.__name__ = names
    return InTorch(2).eval(), InJax(2)


def jax_only(change: Any) -> dict[str, Any]:
    return {"jax_change": change}


def far(np_like: Any, bound: float) -> Any:
    return lambda z, d, x, _: (np_like.where(abs(x) > bound, z + 1e-6, z), d)


def far_log_det(np_like: Any) -> Any:
    return lambda z, d, x, _: (z, np_like.where(abs(x[..., 0]) > 8, d + 1e-6, d))


def counting(z: Any, log_det: Any, x: Any, module: Any) -> Any:
    module.calls = getattr(module, "calls", 0) + 1
    return z, log_det


HIDDEN: dict[str, tuple[dict[str, Any], str]] = {
    "beyond 4": (jax_only(far(jnp, 4)), "z, probes"),
    "beyond 8": (jax_only(far(jnp, 8)), "z, probes"),
    "beyond 20": (jax_only(far(jnp, 20)), "z, probes"),
    "at zero": (jax_only(lambda z, d, x, _: (jnp.where(x == 0, z + 1e-6, z), d)), "z, probes"),
    "beyond 8 in both": (
        {"torch_change": far_log_det(torch), "jax_change": far_log_det(jnp)},
        "torch log_det, autodiff, probes",
    ),
    "batches of seven": (
        jax_only(lambda z, d, x, _: (z + 1e-6 * (x.shape[0] == 7), d)),
        "batch of shape (7,)",
    ),
    "a NaN row spreads": (
        jax_only(lambda z, d, x, _: (z + 0 * x.sum(), d)),
        "z beside a NaN row",
    ),
    "training mode": (
        {"torch_change": lambda z, d, x, m: (z + 1e-6 * m.training, d)},
        "training z",
    ),
    "log-det detached in both": (
        {
            "torch_change": lambda z, d, x, _: (z, d.detach()),
            "jax_change": lambda z, d, x, _: (z, jax.lax.stop_gradient(d)),
        },
        "torch gradients, finite differences",
    ),
    "detached in both": (
        {
            "torch_change": lambda z, d, x, _: (z.detach(), d),
            "jax_change": lambda z, d, x, _: (jax.lax.stop_gradient(z), d),
        },
        "torch log_det, autodiff",
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_the_check_finds_what_is_hidden(name: str) -> None:
    changes, quantity = HIDDEN[name]
    x = None if "seven" not in name else np.random.default_rng(0).normal(size=(8, 2))
    report = check_bijector(*pair(**changes), x)
    assert not report.passed
    assert quantity in [c.quantity for c in report.comparisons if not c.passed], str(report)


SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "names": ({"names": ("TM", "TMOther")}, "different names, TM and TMOther"),
    "registered": ({"names": ("Mine", "Mine")}, ""),
    "random": (
        {"torch_change": lambda z, d, x, _: (z + 1e-9 * torch.rand(()), d)},
        "other values when it is called again",
    ),
    "state": ({"torch_change": counting}, "change 'calls' of Mine"),
    "dtype": (
        {"torch_change": lambda z, d, x, _: (z, d.double() if d.dtype == torch.float32 else d)},
        "log_det is not float32 in torch",
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_sentence_says_what_is_wrong(name: str) -> None:
    changes, sentence = SENTENCES[name]
    report = check_bijector(*pair(**changes), np.random.default_rng(0).normal(size=(3, 2)))
    assert report.passed == (not sentence), str(report)
    assert not sentence or any(sentence in text for text in report.findings), report.findings
    assert all(text in str(report) for text in report.findings)


def test_arguments_are_compared() -> None:
    report = check_bijector(
        torch_flows.LeakyReLU(0.1, 1), jax_flows.LeakyReLU(0.2, 1), np.ones((2, 2))
    )
    assert any("negative_slope: 0.1 against 0.2" in text for text in report.findings)


def test_rows_of_any_batch_shape() -> None:
    """C11: two batch axes, tensors that ask for gradients, and sentences for what cannot be judged."""
    flow = torch_flows.Affine(2)
    x = np.random.default_rng(0).normal(size=(2, 2, 2))
    assert check_parity(flow, x).passed
    assert check_parity(flow, torch.ones(2, requires_grad=True)).passed
    for bad, sentence in (
        (np.zeros((0, 2)), r"at least one row, got x of shape \(0, 2\)"),
        (np.zeros((3, 4)), r"x of shape \(\*batch, 2\), got \(3, 4\)"),
        (np.array([[np.nan, 0.0]]), "x to be finite"),
    ):
        with pytest.raises(ValueError, match=sentence):
            check_parity(flow, bad)
    with pytest.raises(TypeError, match="x of numbers"):
        check_parity(flow, [["a", "b"]])
    with pytest.raises(ValueError, match="takes none"):
        check_parity(flow, x, context=x)


def test_two_given_models() -> None:
    x = np.random.default_rng(0).normal(size=(3, 2))
    flow = torch_flows.Affine(2)
    flow.shift.data += 0.5
    arrays = {name: array.numpy() for name, array in flow.state_dict().items()}
    twin = jax_flows.Affine(2)
    variables = jax_arrays(torch_to_jax(arrays, twin.shapes()))
    assert check_parity(flow, x, twin=twin, variables=variables).passed
    assert check_parity(twin, x, twin=flow, variables=variables).passed
    assert check_parity(twin, x, variables=variables, twin=(twin, variables)).passed
    other = torch_flows.Affine(2)
    report = check_parity(flow, x, twin=other)
    assert report.findings == ["The weights differ at shift: up to 0.5 apart."]
    assert not report.passed
    report = check_parity(torch_flows.Affine(3), np.zeros((2, 3)), twin=twin, variables=variables)
    assert "The architectures differ at dim: 3 against 2." in report.findings
    assert not report.comparisons
    assert not report.passed
    with pytest.raises(ValueError, match="needs the variables"):
        check_parity(flow, x, twin=twin)


def test_the_report_says_what_it_judged(tmp_path) -> None:
    """E1, E5, E6: bound to weights and inputs; limits say why; the page has what the text has."""
    flow = torch_flows.Flow(torch_flows.Planar(2), torch_flows.StandardNormal(2))
    flow.bijector.w.data += 1
    flow.bijector.u.data += 2
    x = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    report = check_parity(flow, x)
    torch_flows.save(flow, tmp_path / "m.safetensors")
    assert report.subject["sha256 of the model"] == read_header(tmp_path / "m.safetensors").sha256
    assert report.subject["inputs"].startswith(f"3 rows of 2, from {x.min():.6g} to {x.max():.6g}")
    assert report.subject["date"].startswith("20")
    raised = [c for c in report.comparisons if c.reason.startswith("raised")]
    assert raised
    assert all("by" in c.reason for c in raised)
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for value in [*report.subject.values(), raised[0].reason, "nats", "viewport", "round trip"]:
        assert html.escape(value) in page
        assert value in str(report) or value in (raised[0].reason, "viewport")
    assert set(report.to_dict()["subject"]) == set(report.subject)
    report.comparisons.append(Comparison("z", "float64", math.inf, 64))
    assert (
        json.loads(report.to_json(), parse_constant=pytest.fail)["comparisons"][-1]["error"] is None
    )


def test_a_slope_that_a_float32_row_hides_is_not_excused() -> None:
    """Neither half may be far from float64, however equal they are."""
    assert Comparison("z", "float32", 1e3, 64, "float64", 2e3, 2e3).passed
    assert not Comparison("z", "float32", 1e3, 64, "float64", 2e6, 2e6).passed
    assert conditioning(1e12) == MAX_CONDITIONING


def test_a_kink_beside_a_row_is_no_difference() -> None:
    """Differences that cross it are not the gradient: smaller steps are."""
    flow = torch_flows.Flow(torch_flows.LeakyReLU(0.1), torch_flows.StandardNormal(1))
    report = check_parity(flow, np.array([[1e-8], [2e-8], [1.0]], np.float32))
    assert report.passed, report


def test_a_type_that_one_half_does_not_know(monkeypatch) -> None:
    models = pair()
    assert not check_names(*models)
    monkeypatch.setitem(torch_flows.registry.registry.types, "Mine", type(models[0]))
    assert check_names(*models) == [
        "Mine is registered in one half only: jax_flows has no type of that name."
    ]


def test_compiled_flows_are_judged_as_what_they_are() -> None:
    first, second = (torch.compile(torch_flows.Affine(dim), backend="eager") for dim in (2, 1))
    report = check_parity(first, np.zeros((1, 2)), twin=second)
    assert report.architecture == {"type": "Affine", "dim": 2}
    assert "dim" in report.findings[0]
