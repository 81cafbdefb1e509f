"""The README's code runs as it stands, in order."""

import re
from pathlib import Path

import jax
import torch

README = Path(__file__).parent.parent / "README.md"


def test_readme_code(tmp_path, monkeypatch, capsys) -> None:
    """Every python block, in float32 as a user has it, with one epoch in place of twenty."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    with jax.enable_x64(False):
        for block in blocks:
            exec(compile(block.replace("num_epochs=20", "num_epochs=1"), str(README), "exec"), {})
    assert "the two are one model" in capsys.readouterr().out
    assert {"moons.safetensors", "parity.html"} <= {p.name for p in tmp_path.iterdir()}
