"""Packages that are imported where they are used."""

import importlib
from typing import Any


def host(owner: str, module: str, package: str, extra: str = "hosts") -> Any:
    """Import a module of an optional package, or raise ``ImportError`` that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{owner} needs {package}: pip install 'twinflows[{extra}]'.", name=module
        ) from error
