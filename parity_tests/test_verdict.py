"""The verdict cannot be talked round: each of these was once called one model."""

from collections.abc import Callable
from typing import Any

import jax
import pytest

import jax_flows
import torch_flows
from jax_flows.bijectors import continuous as jax_continuous
from parity_tests.catalogue import Case, arch, continuous, flow
from torch_flows.bijectors import continuous as torch_continuous
from twinflows.parity.compare import Comparison, ParityReport, compare

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
    return compare(*models, case.weights(), case.inputs(rows), case.context(rows))


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


def test_what_is_judged_never_judges_itself() -> None:
    with pytest.raises(ValueError, match="has a name"):
        Comparison("z", "float64", 9.0, 1.0, torch_error=9.0, jax_error=9.0)
    for oracle in ("torch", "float64"):
        with pytest.raises(ValueError, match="never judges itself"):
            Comparison("z", "float64", 9.0, 1.0, oracle, 9.0, 9.0)
