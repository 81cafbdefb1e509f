"""What owns arrays: modules with an architecture."""

from typing import Any, TypeVar

from torch import nn

from flow_bridge.arguments import PlainArguments, plain_arguments
from flow_bridge.checks import shared_part

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
        return ", ".join(f"{name}={value!r}" for name, value in plain_arguments(self))


def _evaluate(module: nn.Module) -> None:
    """Evaluation mode for what a constructor made; parts that it was given keep their own."""
    module.training = False
    for child in module.children():
        if not isinstance(child, HasVariables):
            _evaluate(child)


def _refuse_shared(owner: nn.Module) -> None:
    """Refuse a part with weights that is there twice."""
    names: dict[nn.Module, str] = {}
    for name, part in owner.named_modules(remove_duplicate=False):
        if isinstance(part, HasVariables):
            first = names.setdefault(part, name)
            if first != name and part.state_dict():
                raise ValueError(
                    shared_part(type(owner).__name__, type(part).__name__, first, name)
                )
