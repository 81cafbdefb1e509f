"""Measure every row of the parity catalogue and write the table of docs/identical.md.

``python -m docs.measure_parity`` in the repository's root writes ``docs/parity_table.md``; it takes
some minutes. Weights are random, as in the tests, and so are the 256 rows of inputs.
"""

from pathlib import Path

from tqdm import tqdm

import jax_flows
import torch_flows
from parity_tests import conftest  # noqa: F401  (float64 in JAX, one thread)
from parity_tests.catalogue import CASES, Case
from twinflows.parity.compare import compare
from twinflows.parity.limits import GATES
from twinflows.parity.report import Comparison, ParityReport

TABLE = Path(__file__).parent / "parity_table.md"
NUM_ROWS = 256
COLUMNS = {
    "outputs": ("z",),
    "inverses": ("x",),
    "log-dets": ("log_det", "inverse log_det", "log_prob"),
    "gradients": ("gradients", "inverse gradients"),
    "round trips": tuple(
        f"round trip {a} to {b}" for a in ("torch", "jax") for b in ("torch", "jax")
    ),
    "against autodiff": ("torch log_det, autodiff", "jax log_det, autodiff"),
}


def measure(case: Case) -> ParityReport:
    """The comparison that the tests make, on more rows."""
    return compare(
        torch_flows.build(case.architecture),
        jax_flows.build(case.architecture),
        case.weights(),
        case.inputs(NUM_ROWS),
        case.context(NUM_ROWS),
    )


def worst(report: ParityReport, quantities: tuple[str, ...]) -> Comparison | None:
    """The float64 comparison that comes closest to its limit, in the whole or in a layer."""
    named = [c for c in report.comparisons if c.quantity.rpartition(": ")[2] in quantities]
    found = [c for c in named if c.dtype == "float64"]
    return max(found, key=lambda c: c.error / c.limit, default=None)


def figure(value: float) -> str:
    """Two digits, without an exponent where it is short."""
    return f"{value:.2g}" if value < 100 else f"{value:.0f}" if value < 1e5 else f"{value:.1e}"


def table(reports: dict[str, ParityReport]) -> str:
    """The page's part: a summary over all rows, and the rows."""
    environment = next(iter(reports.values())).environment
    versions = ", ".join(
        f"{name} {environment[name]}" for name in ("torch", "jax", "numpy", "machine")
    )
    entries = {
        name: [worst(report, quantities) for quantities in COLUMNS.values()]
        for name, report in reports.items()
    }
    passed = sum(report.passed for report in reports.values())
    lines = [
        f"{passed} of {len(reports)} cases are one model, in float64 and in float32 ({versions}; "
        f"{NUM_ROWS} random rows each).",
        "",
        "| | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    found = [[row[i] for row in entries.values() if row[i]] for i in range(len(COLUMNS))]
    for label, share in (("median", 0.5), ("nine in ten are below", 0.9)):
        errors = [sorted(c.error for c in column) for column in found]
        lines.append(_line(label, [figure(e[round(share * (len(e) - 1))]) for e in errors]))
    shares = [max(c.error / c.limit for c in column) for column in found]
    lines.append(_line("largest part of its limit", [f"{share:.0%}" for share in shares]))
    gates = ("outputs", "outputs", "log_det", "gradients", "round_trip", "jacobian")
    lines.append(_line("limit of one bijector", [figure(GATES[gate].base) for gate in gates]))
    lines += ["", "| case | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in entries.items():
        cells = [_cell(c) for c in row]
        lines.append(_line(name, cells))
    return "\n".join(lines) + "\n"


def _cell(c: Comparison | None) -> str:
    if c is None:
        return ""
    return f"{figure(c.error)} / {figure(c.limit)}"


def _line(label: str, cells: list[str]) -> str:
    return f"| {label} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, write, and say what did not pass."""
    reports = {case.name: measure(case) for case in tqdm(CASES)}
    TABLE.write_text(table(reports), encoding="utf-8")
    if failed := [name for name, report in reports.items() if not report.passed]:
        raise SystemExit(f"not one model: {', '.join(failed)}")


if __name__ == "__main__":
    main()
