"""The constructors of dataclasses as they are: a field that a subclass takes out is no argument of it."""

import importlib
import inspect
from typing import Any

import griffe

from flow_bridge.networks import FLAX


class Signatures(griffe.Extension):
    """Writes the ``__init__`` of every dataclass and Linen network from its real signature."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        if pkg.path == "jax_flows":
            for module in _modules(pkg):
                for found in module.classes.values():
                    if not found.is_alias and any(
                        word in str(d.value)
                        for d in found.decorators
                        for word in ("dataclass", "register_network")
                    ):
                        _write(found)


def _modules(module: griffe.Module) -> list[griffe.Module]:
    inner = [m for m in module.modules.values() if not m.is_alias]
    return [module, *(m for child in inner for m in _modules(child))]


def _write(found: griffe.Class) -> None:
    actual = getattr(importlib.import_module(found.module.path), found.name)
    parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    for name, parameter in inspect.signature(actual).parameters.items():
        if name in FLAX:
            continue
        attribute = next(c.members[name] for c in (found, *found.mro()) if name in c.members)
        default = None if parameter.default is parameter.empty else attribute.value
        parameters.append(
            griffe.Parameter(
                name,
                annotation=attribute.annotation,
                kind=griffe.ParameterKind.positional_or_keyword,
                default=default,
            )
        )
    init = griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=found)
    found.set_member("__init__", init)
