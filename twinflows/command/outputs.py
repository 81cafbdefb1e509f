"""The one guard of every file that a command writes."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def check_outputs(
    outputs: Sequence[Path | None], inputs: Sequence[Path | None], force: bool
) -> None:
    """Raise ``ValueError`` unless every output may be written; called before any work is done.

    Never onto an input, also not through a link, nor onto another output; onto another file that
    exists only with ``force``.
    """
    given = [path for path in outputs if path is not None]
    for i, path in enumerate(given):
        if any(_same(path, source) for source in inputs if source is not None):
            raise ValueError(f"{path} is what the command reads: choose another name to write to.")
        if any(_same(path, other) for other in given[:i]):
            raise ValueError(f"{path} is to be written twice: choose another name.")
        if path.is_dir():
            raise ValueError(f"{path} is a folder: choose a name in it.")
        if not force and (path.exists() or path.is_symlink()):
            raise ValueError(f"{path} exists: choose another name, or --force to replace it.")
        if not path.parent.is_dir():
            raise ValueError(f"{path.parent} is no folder to write {path.name} to.")
        if not os.access(path.parent, os.W_OK):
            raise ValueError(f"{path.parent} is not a folder that you may write to.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, which takes its place if all goes well."""
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return a.resolve() == b.resolve()
