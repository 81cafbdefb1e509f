"""Every python block of the README and of docs/ runs as it stands, page by page, in order; so does
every example in a docstring."""

import builtins
import doctest
import importlib
import inspect
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import griffe
import jax
import pytest
import torch

import jax_flows.registry
import torch_flows.registry
from docs.signatures import Signatures
from flow_bridge.networks import FLAX
from twinflows.command import cli

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
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("flow_bridge", "torch_flows", "jax_flows", "twinflows")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "    >>> " in path.read_text(encoding="utf-8")
]
RUN_ELSEWHERE = {
    "command-line.md": "test_cli.py",
    "distributions.md": "test_interop.py",
    "hierarchical.md": "test_hierarchical.py",
    "sbi.md": "test_sbi.py",
}
"""Pages whose own tests run them, with shell commands in between or to judge their numbers."""
PAGES = [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if path.name not in RUN_ELSEWHERE and blocks(path)
]
SLOW_PAGES = ("circles", "conditional", "density", "training")


@pytest.fixture(autouse=True)
def as_a_user(tmp_path, monkeypatch) -> Iterator[None]:
    """An empty folder, float32 in JAX; what is registered is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    for registry in (torch_flows.registry.registry, jax_flows.registry.registry):
        monkeypatch.setattr(registry, "types", dict(registry.types))
    torch.manual_seed(0)
    with jax.enable_x64(False):
        yield


def run(page: Path, replaced: str = "", by: str = "") -> None:
    """Run a page. A block in a tab sees what its tab and the page defined, others see everything."""
    defined: dict[str, object] = {}
    in_tabs: dict[str, dict[str, object]] = {}
    for tab, source in blocks(page):
        own = in_tabs.setdefault(tab, {}) if tab else {}
        names = {"__name__": "page", "__builtins__": builtins, **defined, **own}
        before = dict(names)
        exec(compile(source.replace(replaced, by), page, "exec"), names)
        changed = {k: v for k, v in names.items() if k not in before or before[k] is not v}
        own.update(changed)
        defined.update(changed)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            path,
            id=path.relative_to(ROOT).as_posix(),
            marks=pytest.mark.slow if path.stem in SLOW_PAGES else (),
        )
        for path in PAGES
    ],
)
def test_page_runs(page) -> None:
    run(page)


def test_readme_runs(capsys, monkeypatch) -> None:
    """With one epoch in place of twenty; its commands in the folder that its Python leaves behind."""
    assert len(blocks(README)) == 3
    run(README, "num_epochs=20", "num_epochs=1")
    assert "the two are one model" in capsys.readouterr().out
    assert {"moons.safetensors", "parity.html"} <= {path.name for path in Path.cwd().iterdir()}
    commands = re.findall(r"^twinflows .*", README.read_text(encoding="utf-8"), re.M)
    assert len(commands) == 3
    for command in commands:
        monkeypatch.setattr("sys.argv", shlex.split(command, comments=True))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code, command


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "tour.md"], ids=["README", "tour"])
def test_first_pages_need_what_their_install_line_brings(page) -> None:
    imported = {
        name.split(".")[0]
        for _, source in blocks(page)
        for name in re.findall(r"^ *(?:import|from) ([\w.]+)", source, re.M)
    }
    standard = {"dataclasses", "math", "typing"}
    brought = {
        "jax",
        "numpy",
        "optax",
        "torch",
        "torch_flows",
        "jax_flows",
        "flow_bridge",
        "twinflows",
    }
    assert imported <= brought | standard


@pytest.mark.parametrize("half", ["torch_flows", "jax_flows"])
def test_reference_shows_the_real_constructors(half) -> None:
    extensions = griffe.load_extensions(Signatures)
    shown = griffe.load(half, extensions=extensions, search_paths=[ROOT])
    for cls in importlib.import_module(half).registry.registry.types.values():
        if not cls.__module__.startswith(f"{half}."):
            continue  # of a test
        parameters = shown[f"{cls.__module__}.{cls.__name__}".removeprefix(f"{half}.")].parameters
        names = [p.name for p in parameters if p.name != "self"]
        given = [name for name in inspect.signature(cls).parameters if name not in FLAX]
        assert names == given, cls.__name__


def test_site_opens_from_disk() -> None:
    """Links name files, and the search does not ask a server."""
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "use_directory_urls: false" in config
    assert "- offline" in config
