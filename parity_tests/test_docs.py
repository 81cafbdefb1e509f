"""Every python block of the README and of docs/ runs as it stands, page by page, in order."""

import builtins
import re
import textwrap
from pathlib import Path

import jax
import pytest
import torch

import jax_flows.registry
import torch_flows.registry

ROOT = Path(__file__).parent.parent
TAB = re.compile(r'^=== "(?P<label>.+)"$')
FENCE = re.compile(r"^(?P<indent> *)```python(?P<options>.*)$")
NOT_RUN = re.compile(r'title="not run: .+"')


def blocks(path: Path) -> list[tuple[str | None, str]]:
    """The python blocks of a page in order, each with the label of the tab that it stands in."""
    found = []
    tab: str | None = None
    lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        if line and not line.startswith(" "):
            tab = match["label"] if (match := TAB.match(line)) else None
        if match := FENCE.match(line):
            end = f"{match['indent']}```"
            code = []
            for _, inner in lines:
                if inner == end:
                    break
                code.append(inner)
            # empty lines in front, so that a traceback names the line of the page
            source = "\n" * number + textwrap.dedent("\n".join(code))
            if not NOT_RUN.search(match["options"]):
                found.append((tab, source))
    return found


README = ROOT / "README.md"
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if blocks(path)]


@pytest.fixture
def own_registries(monkeypatch) -> None:
    """What a page registers is forgotten after it."""
    for registry in (torch_flows.registry.registry, jax_flows.registry.registry):
        monkeypatch.setattr(registry, "types", dict(registry.types))


def run(page: Path, folder: Path, monkeypatch, shorter: tuple[str, str] = ("", "")) -> None:
    """Run a page in float32, as a user has it, in an empty folder.

    A block in a tab sees what its tab and the page defined; one outside tabs sees everything.
    """
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    defined: dict[str, object] = {}
    in_tabs: dict[str, dict[str, object]] = {}
    with jax.enable_x64(False):
        for tab, source in blocks(page):
            own = in_tabs.setdefault(tab, {}) if tab else {}
            names = {"__name__": "page", "__builtins__": builtins, **defined, **own}
            before = dict(names)
            exec(compile(source.replace(*shorter), page, "exec"), names)
            changed = {k: v for k, v in names.items() if k not in before or before[k] is not v}
            own.update(changed)
            defined.update(changed)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_page_runs(page, tmp_path, monkeypatch, own_registries) -> None:
    run(page, tmp_path, monkeypatch)


def test_readme_runs(tmp_path, monkeypatch, capsys, own_registries) -> None:
    """With one epoch in place of twenty."""
    assert len(blocks(README)) == 3
    run(README, tmp_path, monkeypatch)
    assert "the two are one model" in capsys.readouterr().out
    assert {"moons.safetensors", "parity.html"} <= {p.name for p in tmp_path.iterdir()}
