"""What a parity check found, and its verdict."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twinflows.parity.limits import MAX_FLOAT32, ORACLE_RATIO


@dataclass(frozen=True)
class Comparison:
    """One quantity in one dtype; errors are in eps of that dtype.

    Attributes:
        quantity: what was compared.
        dtype: ``"float64"`` or ``"float32"``.
        error: the largest difference between the backends, or from the truth.
        limit: what it may be.
        oracle: a run in a wider dtype that both are held against, where there is one.
        torch_error, jax_error: each backend's distance from the oracle.
        reason: what the limit is made of.
        absolute: the largest difference in the units of the quantity.
        unit: that unit, ``"nats"`` for log-densities; empty for gradients.

    Raises:
        ValueError: for errors against an oracle that is not named, or that is one of the two judged.
    """

    quantity: str
    dtype: str
    error: float
    limit: float
    oracle: str | None = None
    torch_error: float | None = None
    jax_error: float | None = None
    reason: str = ""
    absolute: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        errors = [self.torch_error, self.jax_error]
        if any((error is None) != (self.oracle is None) for error in errors):
            raise ValueError(
                f"{self.quantity}: an oracle has a name and the errors of both halves."
            )
        if self.oracle is not None and (self.dtype, self.oracle) != ("float32", "float64"):
            raise ValueError(
                f"{self.quantity}: {self.oracle} is no oracle of {self.dtype}; what is judged never "
                "judges itself."
            )

    @property
    def passed(self) -> bool:
        """Within the limit; in float32 also where both halves are as far from float64, and near it."""
        if self.error <= self.limit:
            return True
        if self.torch_error is None or self.jax_error is None:
            return False
        low, high = sorted([self.torch_error, self.jax_error])
        return high <= min(ORACLE_RATIO * low, MAX_FLOAT32)


@dataclass
class ParityReport:
    """What ``check_parity`` found: prints as a table, writes HTML and JSON.

    Attributes:
        architecture: the model.
        comparisons: one entry per quantity and dtype.
        findings: sentences; each says why the two are not one model.
        notes: sentences on what was not judged, and why.
        subject: what was judged: weights and inputs with their SHA-256, rows, range, date.
        row_errors: per quantity, the error of every row in float64, in eps.
        environment: versions and machine.
    """

    architecture: dict[str, Any]
    comparisons: list[Comparison] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    subject: dict[str, str] = field(default_factory=dict)
    row_errors: dict[str, list[float]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every comparison passed, there was at least one, and there is no finding."""
        passed = bool(self.comparisons) and all(c.passed for c in self.comparisons)
        return passed and not self.findings

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return "the two are one model" if self.passed else "THE TWO DIFFER"

    def __str__(self) -> str:
        header = ["quantity", "dtype", "torch-jax", "limit", "torch-oracle", "jax-oracle"]
        header += ["absolute", ""]
        rows = [
            [
                c.quantity,
                c.dtype,
                figure(c.error),
                figure(c.limit) + _mark(c),
                figure(c.torch_error),
                figure(c.jax_error),
                f"{figure(c.absolute)} {c.unit}",
                "ok" if c.passed else "FAILED",
            ]
            for c in self.comparisons
        ]
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in [header, ["-" * w for w in widths], *rows]
        ]
        raised = sorted({c.reason.partition(" by ")[2] for c in self.comparisons if _mark(c)})
        lines += [f"* raised by {reason}" for reason in raised]
        about = [f"{name}: {value}" for name, value in self.subject.items()]
        versions = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        return "\n".join(
            [
                f"{self.architecture['type']}: errors in eps",
                *lines,
                *about,
                versions,
                *self.notes,
                *self.findings,
                self.verdict,
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        comparisons = [asdict(c) | {"passed": c.passed} for c in self.comparisons]
        return {
            "architecture": self.architecture,
            "passed": self.passed,
            "findings": self.findings,
            "notes": self.notes,
            "subject": self.subject,
            "comparisons": comparisons,
            "environment": self.environment,
        }

    def to_json(self) -> str:
        """``to_dict`` as JSON; a figure that is not finite is null."""

        def finite(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: finite(v) for k, v in value.items()}
            if isinstance(value, list):
                return [finite(v) for v in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return json.dumps(finite(self.to_dict()), indent=2)

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained page: the verdict, of what, the figures, what the words mean."""
        from twinflows.parity.page import html_page

        Path(path).write_text(html_page(self), encoding="utf-8")


def figure(value: float | None) -> str:
    """Two digits."""
    if value is None:
        return "-"
    return f"{value:.2g}" if value < 1000 else f"{value:.1e}"


def _mark(c: Comparison) -> str:
    return "*" if c.reason.startswith("raised") else ""
