"""Weights across frameworks, in both directions, from the one table in ``layouts``.

PyTorch: a flat dict of dotted names. JAX: ``{"params": {...}, "batch_stats": {...}}``, nested by the
same module names, with equal layers of a deep stack stacked along a leading axis. Arrays are numpy
here and always copies, so that writing to one side never changes the other.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from flow_bridge import checks
from flow_bridge.errors import ConversionError
from flow_bridge.layouts import Layout, find_layout, torch_modules

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class _Leaf(NamedTuple):
    path: tuple[str, ...]  # the Flax path, the collection first
    torch_names: list[str]  # one per stacked layer
    stack_shape: tuple[int, ...]
    layout: Layout
    value: Any  # anything with a shape

    @property
    def torch_shape(self) -> tuple[int, ...]:
        shape = self.value.shape[len(self.stack_shape) :]
        return tuple(shape[axis] for axis in self.layout.inverse_axes)


def _leaves(variables: Mapping[str, Any]) -> Iterator[_Leaf]:
    for collection, tree in variables.items():
        for path, value in _flatten(tree, ()):
            *modules, name = path
            groups = [torch_modules(key) for key in modules]
            stack_shape = tuple(len(group) for group in groups if len(group) > 1)
            layout = find_layout(collection, name, len(value.shape) - len(stack_shape))
            names = [".".join([*parts, layout.torch_name]) for parts in product(*groups)]
            yield _Leaf((collection, *path), names, stack_shape, layout, value)


def _flatten(
    tree: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key in sorted(tree):
        if isinstance(tree[key], Mapping):
            yield from _flatten(tree[key], (*path, key))
        elif tree[key] is not None:
            if not hasattr(tree[key], "shape"):
                name, kind = ".".join((*path, key)), type(tree[key]).__name__
                raise ConversionError(f"array {name!r} is of type {kind}, which is no array.")
            yield (*path, key), tree[key]


def torch_shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The torch names and shapes of JAX variables (or of anything that has their shapes)."""
    return {name: leaf.torch_shape for leaf in _leaves(variables) for name in leaf.torch_names}


def jax_to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """JAX variables as a torch state: dotted names, PyTorch layouts, one entry per layer.

    Args:
        variables: nested mappings of arrays, ``{"params": ..., "batch_stats": ...}``.

    Raises:
        ConversionError: for an array that is not floating point.

    Examples:
        >>> import jax, jax_flows
        >>> from flow_bridge import jax_to_torch
        >>> sorted(jax_to_torch(jax_flows.Affine(2).init(jax.random.key(0))))
        ['log_scale', 'shift']
    """
    state = {}
    for leaf in _leaves(variables):
        array = np.asarray(leaf.value)
        _check_dtype(".".join(leaf.path), array)
        layers = array.reshape(len(leaf.torch_names), *array.shape[len(leaf.stack_shape) :])
        for name, layer in zip(leaf.torch_names, layers, strict=True):
            state[name] = np.array(layer.transpose(leaf.layout.inverse_axes), order="C")
    return state


def torch_to_jax(state: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Any]:
    """A torch state as JAX variables of numpy arrays.

    Args:
        state: dotted names to numpy arrays in PyTorch's layout.
        like: variables of the same flow, or just their shapes (``flow.shapes()``).

    Raises:
        ConversionError: for a missing, unexpected or misshaped array, or one that is not floating
            point. Nothing is ever left at a random value.

    Examples:
        >>> import jax_flows, torch_flows
        >>> from flow_bridge import torch_to_jax
        >>> state = {k: v.numpy() for k, v in torch_flows.Affine(2).state_dict().items()}
        >>> sorted(torch_to_jax(state, like=jax_flows.Affine(2).shapes())["params"])
        ['log_scale', 'shift']
    """
    leaves = list(_leaves(like))
    check_table(
        {name: array.shape for name, array in state.items()},
        {name: leaf.torch_shape for leaf in leaves for name in leaf.torch_names},
    )
    variables: dict[str, Any] = {collection: {} for collection in like}
    for leaf in leaves:
        layers = []
        for name in leaf.torch_names:
            _check_dtype(name, state[name])
            layers.append(state[name].transpose(leaf.layout.axes))
        *modules, last = leaf.path
        node = variables
        for key in modules:
            node = node.setdefault(key, {})
        node[last] = np.stack(layers).reshape(leaf.value.shape)
    return variables


def check_table(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise ``ConversionError`` unless both tables have the same names and shapes."""
    if missing := sorted(expected.keys() - found.keys()):
        raise ConversionError(f"array {missing[0]!r} is missing{_more(missing)}.")
    if unexpected := sorted(found.keys() - expected.keys()):
        raise ConversionError(f"array {unexpected[0]!r} is unexpected{_more(unexpected)}.")
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            raise ConversionError(
                f"array {name!r} has shape {tuple(found[name])}, expected {tuple(shape)}."
            )


def check_found(owner: str, variables: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ``ConversionError`` unless JAX variables have the names and shapes that are expected of
    their owner, and one dtype."""
    for collection, tree in sorted(expected.items()):
        if tree and not isinstance(variables.get(collection), Mapping):
            given = " and ".join(repr(key) for key in variables) or "nothing"
            raise ConversionError(
                f"{owner} needs its whole variables, as init, fit and load return them: {collection!r} "
                f"is missing, got {given}."
            )
    found = {collection: variables.get(collection, {}) for collection in expected}
    leaves, table = dict(_flatten(found, ())), dict(_flatten(expected, ()))
    if leaves.keys() == table.keys():
        shapes = [(tuple(leaves[path].shape), tuple(table[path].shape)) for path in table]
        axes = {shape[: len(shape) - len(own)] for shape, own in shapes}
        if len(axes) == 1 and axes != {()} and all(s[len(s) - len(o) :] == o for s, o in shapes):
            raise ConversionError(
                f"the variables of {owner} have additional axes {axes.pop()}: use them under jax.vmap, "
                "as they were made."
            )
    try:
        check_table(torch_shapes(found), torch_shapes(expected))
    except ConversionError as error:
        raise ConversionError(f"these are not the variables of this {owner}: {error}") from None
    checks.one_dtype(
        owner, {leaf.dtype.name for path, leaf in leaves.items() if path[0] == "params"}
    )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_dtype(name: str, array: np.ndarray) -> None:
    if array.dtype not in DTYPES.values():
        raise ConversionError(f"array {name!r} is {array.dtype}, expected floating point.")
