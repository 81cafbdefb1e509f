"""A new user's first minutes: a virtual environment made by the README's own install line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests.test_docs import README, ROOT, blocks


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "block"), [("torch", 0), ("jax", 1), ("all", 2)])
def test_readme_runs_after_its_install_line(extra: str, block: int, tmp_path) -> None:
    line = "pip install '.[all]'"
    assert line in README.read_text(encoding="utf-8")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    # the versions that are tested; without them a plain torch would bring CUDA
    pins = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    done = run(python, "-m", "pip", "install", "-q", f".[{extra}]", cwd=ROOT, **pins)
    assert done.returncode == 0, done.stderr
    source = "\n".join(s for _, s in blocks(README)[0 if extra == "all" else block : block + 1])
    source = source.replace("num_epochs=20", "num_epochs=1")
    done = run(python, "-c", source, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    version = run(python, "-m", "twinflows", "--version", cwd=tmp_path)
    assert version.returncode == 0, version.stderr
