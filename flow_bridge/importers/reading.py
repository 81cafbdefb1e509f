"""How objects of other libraries are read: attribute by attribute, and nothing is passed over.

No library is imported here, and no framework: whoever has an object has imported what it is made of.
"""

import copy
import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from flow_bridge.errors import UnsupportedModel

Run = Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray]]
"""z and log|det dz/dx| from x and a context, all in float64."""

PROBE = np.concatenate([np.linspace(-6, 6, 41), [-1e-3, 1e-3], [-100, -25, -8, 8, 25, 100]])
ERF = np.vectorize(math.erf)
SELU = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def framework(name: str) -> Any:
    """A module that the owner of an object has imported."""
    return sys.modules[name]


class StandIn:
    """Stands for an object of another library of which there are only the arrays."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def stand_in(name: str, **attributes: Any) -> StandIn:
    """An object whose class has a name, and which has these attributes and no others."""
    special = {k: attributes.pop(k) for k in list(attributes) if k.startswith("__")}
    cls: type[StandIn] = type(name, (StandIn,), special)
    return cls(**attributes)


def kind(obj: Any) -> str:
    """The name of an object's class, with its module where that is the user's own."""
    cls = type(obj)
    module = cls.__module__.split(".")[0]
    return (
        f"{cls.__module__}.{cls.__name__}" if module in ("__main__", "builtins") else cls.__name__
    )


def version(library: str) -> str:
    """The version that a library states of itself."""
    return str(getattr(sys.modules.get(library), "__version__", "")).strip()


def members(obj: Any) -> dict[str, Any]:
    """All that an object holds; of a torch module its parameters, buffers and parts too."""
    own = dict(vars(obj))
    if "_modules" not in own:
        return own
    of_every_module = vars(framework("torch").nn.Module())
    groups = [own[group] for group in ("_parameters", "_buffers", "_modules")]
    own = {name: value for name, value in own.items() if name not in of_every_module}
    for group in groups:
        own |= group
    return own


def expect(obj: Any, where: str, known: str) -> None:
    """Raise ``UnsupportedModel`` if an object holds what its reader does not know, or has hooks.

    Args:
        obj: of another library.
        where: what the message calls it.
        known: the attributes that the reader uses or that do not change what it computes, with spaces.
    """
    unknown = members(obj).keys() - set(known.split())
    if unknown:
        raise UnsupportedModel(
            f"{where} has an attribute {min(unknown)!r}, which twinflows does not know: it was read from "
            "another version of its library."
        )
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        if getattr(obj, hooks, None):
            raise UnsupportedModel(
                f"{where} has forward hooks, which may change anything: remove them."
            )


def contents(container: Any, where: str, known: str = "") -> list[Any]:
    """What a list of modules holds, which has no other attributes than ``known``."""
    if not isinstance(container, list | tuple):
        numbers = " ".join(str(i) for i in range(len(container)))
        expect(container, f"{where}, {kind(container)}", f"{numbers} {known}")
    return list(container)


def demand(obj: Any, where: str, **needed: Any) -> None:
    """Raise ``UnsupportedModel`` unless attributes have these values, in an object that has them."""
    for name, value in needed.items():
        found = getattr(obj, name, value)
        if found != value:
            raise UnsupportedModel(f"{where} has no counterpart with {name}={found!r}.")


def field(obj: Any, name: str, where: str) -> Any:
    """An attribute that the reader needs."""
    if not hasattr(obj, name):
        raise UnsupportedModel(
            f"{where} has no attribute {name!r}, as it has in the versions that twinflows reads."
        )
    return getattr(obj, name)


def as_array(value: Any) -> np.ndarray:
    """A tensor or an array as a numpy array of its own: float64, or integers."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double().numpy() if value.is_floating_point() else value.numpy()
    value = np.asarray(value)
    return np.array(value, value.dtype if value.dtype.kind in "biu" else np.float64, order="C")


def float64_copy(module: Any) -> Any:
    """A torch module in float64, on the CPU, in evaluation mode; the original stays as it is."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            for item in _held(value):
                if not getattr(item, "is_leaf", True):  # a cache, which deepcopy refuses
                    memo[id(item)] = item.detach().clone()
    twin = copy.deepcopy(module, memo).cpu().double().eval()
    for part in twin.modules():
        for name, value in list(vars(part).items()):  # tensors that are no buffers
            if hasattr(value, "is_floating_point") and value.is_floating_point():
                setattr(part, name, value.detach().cpu().double())
    return twin


def _held(value: Any) -> list[Any]:
    """A value, or what a list or a plain object of it holds."""
    if isinstance(value, tuple | list):
        return list(value)
    if hasattr(value, "__dict__") and not hasattr(value, "parameters"):
        return [value, *vars(value).values()]
    return [value]


def dtype_of(module: Any) -> str:
    """The dtype of a torch module's parameters or, if it has none, buffers."""
    for group in (module.parameters(), module.buffers()):
        for value in group:
            if value.is_floating_point():
                return str(value.dtype).removeprefix("torch.")
    return "float32"


@cache
def _exact() -> type[Any]:
    """A context in which ``torch.nn.functional.softplus`` is exact: beyond 20 it leaves out e^-x, 2e-9."""
    torch = framework("torch")

    class Exact(torch.overrides.TorchFunctionMode):  # type: ignore[name-defined]
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.nn.functional.softplus:
                return self.softplus(func, *args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))

        def softplus(
            self, func: Any, input: Any, beta: float = 1.0, threshold: float = 20.0
        ) -> Any:
            if threshold < 20:  # another function
                return func(input, beta, threshold)
            return torch.logaddexp(beta * input, torch.zeros_like(input)) / beta

    return Exact


def in_numpy(function: Callable[..., Any]) -> Run:
    """A torch function of x and a context as one of numpy arrays, computed with the exact softplus.

    So what softplus leaves out is known for what it is, and excuses nothing else.
    """

    def run(x: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        torch = framework("torch")
        given = [None if a is None else torch.tensor(np.ascontiguousarray(a)) for a in (x, context)]
        with torch.no_grad(), _exact()():
            z, log_det = function(*given)
        return as_array(z), np.broadcast_to(as_array(log_det), x.shape[:1]).copy()

    return run


def torch_call(function: Callable[..., Any], value: np.ndarray) -> np.ndarray:
    """A torch function of one array, on numpy arrays."""
    torch = framework("torch")
    with torch.no_grad():
        return as_array(function(torch.tensor(value)))


def activation_name(
    function: Any, where: str, call: Callable[[Any, np.ndarray], np.ndarray] = torch_call
) -> str:
    """The name in ``ACTIVATIONS`` of a function, told by its values: a function, a module or a name.

    Args:
        function: what is called, or the name itself.
        where: what the message calls its owner.
        call: how it is called on an array.
    """
    if isinstance(function, str):
        return function
    values = call(function, PROBE)
    for name, reference in ACTIVATIONS.items():
        expected = reference(PROBE)
        if values.shape == PROBE.shape and np.allclose(values, expected, rtol=1e-12, atol=1e-14):
            return name
    slope = float(values[0] / PROBE[0]) if values.shape == PROBE.shape else 1.0
    leaky = np.where(PROBE > 0, PROBE, slope * PROBE)
    if 0 <= slope < 1 and np.allclose(values, leaky, rtol=1e-12, atol=1e-14):
        return f"leaky_relu:{slope!r}"
    label = getattr(function, "__name__", None) or kind(function)
    raise UnsupportedModel(f"{where} has the activation {label}, which is none of twinflows'.")


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-softplus(-x))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: 0.5 * x * (1 + ERF(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "leaky_relu:0.01": lambda x: np.where(x > 0, x, 0.01 * x),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "selu": lambda x: SELU[0] * np.where(x > 0, x, SELU[1] * np.expm1(np.minimum(x, 0))),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "sin": np.sin,
    "softplus": softplus,
}
"""twinflows' activations."""


def in_float64() -> Any:
    """A context in which JAX computes in float64."""
    jax = framework("jax")
    return (jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64)(True)


def float64_tree(tree: Any) -> Any:
    """A pytree of JAX with its floating-point arrays in float64."""
    jax = framework("jax")

    def convert(leaf: Any) -> Any:
        return jax.numpy.asarray(leaf, "float64") if _is_float(leaf) else leaf

    with in_float64():
        return jax.tree_util.tree_map(convert, tree)


def dtype_of_tree(tree: Any) -> str:
    """The dtype of the first floating-point array of a pytree."""
    leaves = framework("jax").tree_util.tree_leaves(tree)
    return next((str(leaf.dtype) for leaf in leaves if _is_float(leaf)), "float32")


def _is_float(leaf: Any) -> bool:
    return (
        hasattr(leaf, "dtype")
        and getattr(leaf.dtype, "kind", "") in "fV"
        and leaf.dtype.itemsize > 1
    )


def jax_call(function: Callable[..., Any], value: np.ndarray) -> np.ndarray:
    """A function of one array of JAX, on numpy arrays."""
    with in_float64():
        return as_array(function(framework("jax").numpy.asarray(value)))


def in_numpy_jax(function: Callable[..., Any]) -> Run:
    """A function of x and a context in JAX as one of numpy arrays."""

    def run(x: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        asarray = framework("jax").numpy.asarray
        with in_float64():
            z, log_det = function(*(None if a is None else asarray(a) for a in (x, context)))
            return as_array(z), np.broadcast_to(as_array(log_det), x.shape[:1]).copy()

    return run
