"""Arrays apart from what uses them: Flax-style nested dicts."""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from types import MethodType
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.arguments import PlainArguments
from flow_bridge.errors import ConversionError
from flow_bridge.layouts import part_name
from flow_bridge.weights import check_found

Variables = Mapping[str, Any]

AnyArray = Array | np.ndarray


Output = tuple[Array, Array]

Method = TypeVar("Method", bound=Callable[..., Any])


class _Kept:
    """A method whose bound form is one object for all equal owners."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, owner: Any, cls: type | None = None) -> Callable[..., Any]:
        return self.function if owner is None else _bind(self.function, owner)


@lru_cache(maxsize=1024)
def _bind(function: Callable[..., Any], owner: Any) -> Callable[..., Any]:
    return MethodType(function, owner)


def kept(method: Method) -> Method:
    """Decorator: ``jax.jit(flow.log_prob)``, written anew, finds what it compiled for an equal flow."""
    return cast(Method, _Kept(method))


class HasVariables(metaclass=PlainArguments):
    """What owns arrays: its ``init`` makes them, its other methods take them as ``variables``."""

    is_architecture = True

    @kept
    def init(self, key: Array, dtype: Any = None) -> dict[str, Any]:
        """Fresh variables from a PRNG key, in ``dtype`` (JAX's default float type if not given).

        Raises:
            ValueError: for a dtype that is not floating point.
            TypeError: for float64 while JAX would round it, and for a key that is none.
        """
        check_key(self, key)
        dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
        checks.one_of(type(self).__name__, "dtype", dtype.name, checks.FLOAT_DTYPES)
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise TypeError(checks.no_float64_weights(type(self).__name__))
        return _init(self, key, dtype)

    def shapes(self) -> dict[str, Any]:
        """The variables' shapes and types, without computing anything."""
        dtype = jnp.dtype(jnp.result_type(float))
        return {"params": {}, "batch_stats": {}, **self.variable_shapes(dtype)}

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of what ``init_variables`` makes. What has parts puts them together from theirs:
        a trace of the whole takes seconds for some hundred parts."""
        return jax.eval_shape(partial(self.init_variables, dtype=dtype), _key_shape())

    @abstractmethod
    def init_variables(self, key: Array, dtype: Any) -> Variables: ...


@cache
def _key_shape() -> Any:
    return jax.eval_shape(jax.random.key, 0)


@partial(jax.jit, static_argnums=(0, 2))
def _init(owner: HasVariables, key: Array, dtype: Any) -> dict[str, Any]:
    return {"params": {}, "batch_stats": {}, **owner.init_variables(key, dtype)}


def check_variables(owner: HasVariables, variables: Variables) -> None:
    """Raise ``ConversionError`` unless the variables are those of their owner, of one float dtype.

    What was checked once is remembered by its shapes, so that a call in a loop costs nothing.
    """
    leaves, tree = jax.tree.flatten(variables)
    try:
        described = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    except AttributeError:  # no array
        described = ()
    _check_variables(owner, tree, described)


@lru_cache(maxsize=1024)
def _check_variables(owner: HasVariables, tree: Any, described: Any) -> None:
    label, num_leaves = type(owner).__name__, tree.num_leaves
    if len(described) != num_leaves:
        raise ConversionError(checks.no_variables(label, "what is no array"))
    variables = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*leaf) for leaf in described])
    if not isinstance(variables, Mapping):
        raise ConversionError(checks.no_variables(label, type(variables).__name__))
    check_found(label, variables, owner.shapes())


def check_key(owner: HasVariables, key: Any) -> None:
    """Raise ``TypeError`` for what is no key of ``jax.random``, a raw one included."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
        raise TypeError(checks.no_key(type(owner).__name__, type(key).__name__))


def own_variables(owner: HasVariables, variables: Variables) -> dict[str, Any]:
    """Variables that are right for their owner as plain dicts, whatever mappings they came in."""
    check_variables(owner, variables)
    return {"params": {}, "batch_stats": {}, **_plain(variables)}


def _plain(tree: Any) -> Any:
    return {k: _plain(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def freeze_lists(instance: Any) -> None:
    """Turn list-valued fields of a frozen dataclass into tuples, so that it can be hashed."""
    for field in dataclasses.fields(instance):
        if field.init and isinstance(value := getattr(instance, field.name), list):
            object.__setattr__(instance, field.name, tuple(value))


def child(variables: Variables, name: str) -> dict[str, Any]:
    """The variables of one part."""
    key = part_name(name)
    return {
        collection: tree[name] if name in tree else tree.get(key, {})
        for collection, tree in variables.items()
    }


def gather(children: Mapping[str, Variables], lists: bool = False) -> dict[str, Any]:
    """The variables of a whole from those of its parts; parts without any leave no trace.

    With ``lists``, a part ``layers_3`` is item 3 of a list ``layers``; otherwise that is its name.
    """
    keys = {name: name if lists else part_name(name) for name in children}
    return {
        collection: {keys[name]: v[collection] for name, v in children.items() if v.get(collection)}
        for collection in ("params", "batch_stats")
    }


def joined(module: Any, parts: Mapping[str, Variables], expected: Sequence[str]) -> dict[str, Any]:
    """The variables of a module from those of its parts, which must be the expected ones."""
    if set(parts) != set(expected):
        raise ConversionError(checks.parts_of(type(module).__name__, list(parts), expected))
    variables = gather(parts, lists=True)
    check_variables(module, variables)
    return variables


def network_shapes(network: Any, in_shape: tuple[int, ...], dtype: Any) -> Variables:
    """The shapes of the variables of a Flax network that takes inputs of a shape."""
    if hasattr(network, "variable_shapes"):
        return network.variable_shapes(dtype)
    x = jax.ShapeDtypeStruct(in_shape, dtype)
    return jax.eval_shape(network.init, _key_shape(), x)


def draws(
    draw: Callable[..., Array], key: Array, shapes: Sequence[tuple[int, ...]], dtype: Any
) -> list[Array]:
    """Numbers of several shapes by one call of ``draw``: each takes XLA some 50 ms to compile on a CPU."""
    if not shapes:
        return []
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = jnp.split(draw(key, (int(ends[-1]),), dtype), ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def linear_shapes(widths: Mapping[str, tuple[int, int]], dtype: Any) -> dict[str, Any]:
    """The shapes of linear layers: by name the widths of input and output."""
    return {
        name: {
            "kernel": jax.ShapeDtypeStruct((in_dim, out_dim), dtype),
            "bias": jax.ShapeDtypeStruct((out_dim,), dtype),
        }
        for name, (in_dim, out_dim) in widths.items()
    }


def stacked_shapes(shapes: Variables, count: int) -> Variables:
    """The shapes of the variables of ``count`` equal parts, stacked along a leading axis."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct((count, *s.shape), s.dtype), dict(shapes))


def weight_dtype(variables: Variables) -> Any:
    """The dtype of the trainable weights, or ``None`` if there are none."""
    leaves = jax.tree.leaves(variables.get("params", {}))
    return leaves[0].dtype if leaves else None
