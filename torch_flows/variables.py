"""What owns arrays: modules with an architecture."""

from dataclasses import is_dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from flow_bridge.architecture import Architecture, argument_names
from flow_bridge.arguments import PlainArguments, arguments_of
from flow_bridge.checks import shared_part
from flow_bridge.errors import ArchitectureError
from torch_flows.registry import build, registry

T = TypeVar("T")


class _BuiltInEvaluation(PlainArguments):
    def __call__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        module: Any = super().__call__(*args, **kwargs)  # type: ignore[misc]
        _evaluate(module)
        _refuse_shared(module)
        return module


class HasVariables(nn.Module, metaclass=_BuiltInEvaluation):
    """What has weights and an architecture; it is built in evaluation mode."""

    is_architecture = True

    def extra_repr(self) -> str:
        own = [(n, v) for n, v in arguments_of(self) if not isinstance(v, nn.Module)]
        return ", ".join(f"{name}={value!r}" for name, value in own)

    def confirm(self, architecture: Architecture) -> Architecture:
        """The architecture, if it builds a module like this one.

        Raises:
            ArchitectureError: naming what differs, a layer that was replaced for instance, or a part
                that came to be there twice.
        """
        self.compare(architecture, type(self))
        return architecture

    def compare(self, architecture: Architecture, cls: type) -> None:
        """Raise ``ArchitectureError`` unless this is what an architecture builds, taken as a ``cls``."""
        _refuse_shared(self, ArchitectureError)
        if registry.knows(architecture):
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                expected = build(architecture)
            if changed := difference(self, expected, type(self).__name__, cls):
                raise ArchitectureError(f"{changed}: it was changed after it was built.")


def _evaluate(module: nn.Module) -> None:
    """Evaluation mode for what a constructor made; parts that it was given keep their own."""
    module.training = False
    for child in module.children():
        if not isinstance(child, HasVariables):
            _evaluate(child)


def _refuse_shared(owner: nn.Module, error: type[Exception] = ValueError) -> None:
    """Refuse a part with weights that is there twice."""
    names: dict[nn.Module, str] = {}
    for name, part in owner.named_modules(remove_duplicate=False):
        first = names.setdefault(part, name)
        if first != name and part.state_dict():
            raise error(shared_part(type(owner).__name__, type(part).__name__, first, name))


def difference(module: nn.Module, expected: nn.Module, name: str, cls: type | None = None) -> str:
    """What of a module's structure, arguments and shapes is not as expected, "" if nothing.

    Args:
        module, expected: the one and the other.
        name: of the module, for what is returned.
        cls: what to take the module for, its own class if not given.
    """
    if cls is None or cls is type(module):
        # fully_shard puts a class of its own before the module's
        mro = type(module).__mro__
        cls = next(c for c in mro if not c.__module__.startswith("torch.distributed"))
    if cls is not type(expected):
        return f"{name} is a {cls.__name__}, where its arguments make a {type(expected).__name__}"
    for argument in argument_names(cls):
        found, value = (getattr(m, argument, None) for m in (module, expected))
        if _is_plain(found) and _is_plain(value) and found != value:
            return f"{name}.{argument} is {found!r:.60}, where its arguments make it {value!r:.60}"
    for kind in ("_parameters", "_buffers"):
        found, value = (_shapes(getattr(m, kind)) for m in (module, expected))
        if found != value:
            return f"{name} has {_words(found, value)}, where its arguments make {_words(value, found)}"
    parts, like = module._modules, expected._modules
    if parts.keys() != like.keys():
        return f"{name} has parts {', '.join(parts)}, where its arguments make {', '.join(like)}"
    for key, part in parts.items():
        twin = like[key]
        if part is None or twin is None:
            if part is not twin:
                return f"{name}.{key} is {part}, where its arguments make it {twin}"
        elif changed := difference(part, twin, f"{name}.{key}"):
            return changed
    return ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    # univariate maps and networks to be built are dataclasses; so are named models, which are modules
    plain = value is None or isinstance(value, bool | int | float | str)
    return plain or (is_dataclass(value) and not isinstance(value, nn.Module))


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple[int, ...] | None]:
    return {k: None if a is None else tuple(a.shape) for k, a in arrays.items()}


def _words(shapes: dict[str, Any], other: dict[str, Any]) -> str:
    own = [f"{k} {v}" for k, v in shapes.items() if k not in other or other[k] != v]
    return ", ".join(own) or "none"
