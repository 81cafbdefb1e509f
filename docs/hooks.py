"""Makes the reference: one page for each file that both halves have, with no entry by hand."""

import ast
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
FLOORS = {"flow_bridge": "What both halves stand on.", "twinflows": "What stands on both halves."}


def on_config(config: MkDocsConfig) -> None:
    """Put the made pages into the navigation."""
    pages = [{_title(path): _page(path)} for path in _shared_files()]
    floors = [{name: f"reference/{name}.md"} for name in FLOORS]
    section: list[Any] = ["reference/index.md", *pages, *floors]
    assert config.nav is not None
    config.nav[-1] = {"Reference": section}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the made pages, and the pictures of the benchmarks."""
    contents = {_page(path): _both_halves(path) for path in _shared_files()}
    for floor, sentence in FLOORS.items():
        lines = [f"# {floor}", "", sentence, ""]
        for path in sorted((ROOT / floor).rglob("*.py")):
            if path.name != "__init__.py" and _public(path):
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                lines += [f"::: {module}", "    options:", "        heading_level: 2", ""]
        contents[f"reference/{floor}.md"] = "\n".join(lines)
    for uri, content in contents.items():
        files.append(File.generated(config, uri, content=content))
    for path in sorted((ROOT / "benchmarks").glob("*.svg")):
        files.append(File.generated(config, path.name, abs_src_path=str(path)))


def _shared_files() -> list[Path]:
    """Files of both halves, relative to them: ``flows.py``, ``bijectors/coupling.py``, ..."""
    halves = [
        {path.relative_to(ROOT / half) for path in (ROOT / half).rglob("*.py")}
        for half in ("torch_flows", "jax_flows")
    ]
    shared = halves[0] & halves[1]
    return sorted(path for path in shared if path.name not in ("__init__.py", "registry.py"))


def _title(path: Path) -> str:
    return path.with_suffix("").as_posix()


def _page(path: Path) -> str:
    return f"reference/{_title(path)}.md"


def _public(path: Path) -> list[str]:
    """The names of a file's public classes and functions, in its order."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [n.name for n in body if isinstance(n, kinds) and not n.name.startswith("_")]


def _both_halves(path: Path) -> str:
    """A page with two columns: each name once, PyTorch on the left and JAX on the right."""
    lines = ["---", "hide: [toc]", "---", f"# {_title(path)}", ""]
    module = ".".join(path.with_suffix("").parts)
    documentation = ast.get_docstring(
        ast.parse((ROOT / "torch_flows" / path).read_text(encoding="utf-8"))
    )
    lines += [documentation or "", ""]
    names = {half: _public(ROOT / half / path) for half in ("torch_flows", "jax_flows")}
    order = names["torch_flows"] + [n for n in names["jax_flows"] if n not in names["torch_flows"]]
    for name in order:
        cells = [f"::: {half}.{module}.{name}" if name in names[half] else "" for half in names]
        lines += [*_columns(*cells), ""]
    return "\n".join(lines)


def _columns(left: str, right: str) -> list[str]:
    cells = [["<div markdown>", "", cell, "", "</div>"] for cell in (left, right)]
    return ['<div class="twins" markdown>', *cells[0], *cells[1], "</div>"]
