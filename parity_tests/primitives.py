"""A JAX function run operation by operation, in few compiled programs.

JAX compiles an operation once for each shape, which is most of what drawn architectures cost. Here the
function is traced, as ``jax.jit`` does, and its operations are run one after the other: XLA computes
each, but on arrays padded to a few sizes, and numpy moves what is only moved.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import core

LEAST = 64
"""Elements are padded to this number times a power of 8."""
ELEMENTWISE = frozenset([
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp", "convert_element_type", "cos", "cosh",
    "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt",
    "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul",
    "ne", "neg", "nextafter", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "sub",
    "tan", "tanh", "xor",
])  # fmt: skip
IDENTITY = ("copy", "copy_p", "optimization_barrier", "stop_gradient", "sharding_constraint")


def run(function: Callable[..., Any], *inputs: Any) -> Any:
    """What ``function`` returns, as numpy arrays."""
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*inputs)
    outputs = evaluate(traced, [np.asarray(leaf) for leaf in jax.tree.leaves(inputs)])
    return jax.tree.unflatten(jax.tree.structure(shapes), [np.asarray(o) for o in outputs])


def evaluate(closed: Any, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, its operations one after the other."""
    jaxpr, constants = closed, ()
    if isinstance(closed, core.ClosedJaxpr):
        jaxpr, constants = closed.jaxpr, closed.consts
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, map(_plain, constants), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        if isinstance(atom, core.Literal):
            return np.asarray(atom.val, atom.aval.dtype)
        return known[atom]

    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        known.update(zip(equation.outvars, _apply(equation, values), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _plain(value: Any) -> Any:
    """A numpy array, but for random keys."""
    keys = jnp.issubdtype(getattr(value, "dtype", np.float64), jax.dtypes.extended)
    return value if keys else np.asarray(value)


def _apply(equation: Any, values: list[Any]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    if name in ELEMENTWISE:
        return [_elementwise(equation, values)]
    if name in MOVES:
        return MOVES[name](params, *values)
    if name in IDENTITY:
        return values
    if name in NESTED:
        return NESTED[name](params, values)
    if name in REDUCTIONS and all(a.dtype.kind in "bf" for a in values):
        return [_reduce(equation.primitive, values[0], params)]
    if name == "dot_general":
        return [_dot(equation.primitive, *values, params)]
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if inner is not None:
        return evaluate(inner, values)
    return [_plain(a) for a in _program(equation.primitive, _hashable(params))(*values)]


def _hashable(params: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


@lru_cache(None)
def _program(primitive: Any, params: tuple[tuple[str, Any], ...]) -> Any:
    def bind(*values: Any) -> list[Any]:
        found = primitive.bind(*values, **dict(params))
        return list(found) if primitive.multiple_results else [found]

    return jax.jit(bind)


def _padded(array: np.ndarray, shape: tuple[int, ...], value: Any = 1) -> np.ndarray:
    if array.shape == shape:
        return array
    padded = np.full(shape, value, array.dtype)
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded


def _size(number: int, least: int = 2, factor: int = 2) -> int:
    size = least
    while size < number:
        size *= factor
    return size


def _elementwise(equation: Any, values: list[Any]) -> np.ndarray:
    shape = equation.outvars[0].aval.shape
    number = math.prod(shape)
    size = (_size(number, LEAST, 8),)
    flat = [
        _padded(np.broadcast_to(np.asarray(value), shape).reshape(-1), size) for value in values
    ]
    found = _program(equation.primitive, _hashable(equation.params))(*flat)[0]
    return np.asarray(found)[:number].reshape(shape)


REDUCTIONS = {
    "reduce_sum": 0,
    "reduce_prod": 1,
    "reduce_max": -np.inf,
    "reduce_min": np.inf,
    "reduce_and": True,
    "reduce_or": False,
    "cumsum": 0,
}
"""Each with what it may be padded with."""


def _reduce(primitive: Any, array: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """Over the last axes of a matrix."""
    cumulative = "axis" in params
    axes = (params["axis"],) if cumulative else tuple(params["axes"])
    rest = [i for i in range(array.ndim) if i not in axes]
    moved = np.transpose(array, [*rest, *axes])
    kept = moved.shape[: len(rest)]
    matrix = moved.reshape(math.prod(kept), -1) if array.size else moved.reshape(math.prod(kept), 0)
    sizes = _size(len(matrix), 16, 8), _size(matrix.shape[1], 4, 4)
    own = params | ({"axis": 1} if cumulative else {"axes": (1,)})
    padded = _padded(matrix, sizes, REDUCTIONS[primitive.name])
    found = np.asarray(_program(primitive, _hashable(own))(padded)[0])
    if not cumulative:
        return found[: len(matrix)].reshape(kept)
    found = found[: len(matrix), : matrix.shape[1]].reshape(moved.shape)
    return np.transpose(found, np.argsort([*rest, *axes]))


def _dot(primitive: Any, a: np.ndarray, b: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """As a batch of products of matrices, padded by zeros."""
    (a_sum, b_sum), (a_batch, b_batch) = params["dimension_numbers"]

    def matrices(array: np.ndarray, batch: Any, summed: Any) -> tuple[np.ndarray, tuple[int, ...]]:
        rest = [i for i in range(array.ndim) if i not in (*batch, *summed)]
        moved = np.transpose(array, [*batch, *rest, *summed])
        free = tuple(array.shape[i] for i in rest)
        sizes = [[array.shape[i] for i in part] for part in (batch, rest, summed)]
        return moved.reshape([math.prod(part) for part in sizes]), free

    left, left_free = matrices(a, a_batch, a_sum)
    right, right_free = matrices(b, b_batch, b_sum)
    batch = tuple(a.shape[i] for i in a_batch)
    number = 1 if len(left) == 1 else _size(len(left), 8, 4)
    depth = _size(left.shape[2], 4, 4)
    given = [
        _padded(matrix, (number, _size(matrix.shape[1], 4, 4), depth), 0)
        for matrix in (left, right)
    ]
    own = params | {"dimension_numbers": (((2,), (2,)), ((0,), (0,)))}
    found = np.asarray(_program(primitive, _hashable(own))(*given)[0])
    found = found[: len(left), : left.shape[1], : right.shape[1]]
    return found.reshape(batch + left_free + right_free)


def _broadcast(params: dict[str, Any], array: Any, *_: Any) -> list[np.ndarray]:
    shape = params["shape"]
    aligned = [1] * len(shape)
    for i, size in zip(params["broadcast_dimensions"], array.shape, strict=True):
        aligned[i] = size
    return [np.broadcast_to(np.asarray(array).reshape(aligned), shape)]


def _iota(params: dict[str, Any]) -> list[np.ndarray]:
    shape, axis = params["shape"], params["dimension"]
    aligned = [-1 if i == axis else 1 for i in range(len(shape))]
    numbers = np.arange(shape[axis]).astype(params["dtype"])
    return [np.broadcast_to(numbers.reshape(aligned), shape)]


def _slice(params: dict[str, Any], array: Any) -> list[np.ndarray]:
    strides = params["strides"] or [1] * array.ndim
    limits = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return [array[tuple(slice(*limit) for limit in limits)]]


def _window(starts: Sequence[Any], shape: Sequence[int], sizes: Sequence[int]) -> tuple[Any, ...]:
    first = [min(max(int(s), 0), n - size) for s, n, size in zip(starts, shape, sizes, strict=True)]
    return tuple(slice(i, i + size) for i, size in zip(first, sizes, strict=True))


def _update(params: dict[str, Any], array: Any, part: Any, *starts: Any) -> list[np.ndarray]:
    array = np.array(array)
    array[_window(starts, array.shape, part.shape)] = part
    return [array]


def _pad(params: dict[str, Any], array: Any, value: Any) -> list[np.ndarray]:
    shape, source, target = [], [], []
    for size, (low, high, inner) in zip(array.shape, params["padding_config"], strict=True):
        spread = max(0, size + (size - 1) * inner)
        shape.append(low + spread + high)
        places = low + np.arange(size) * (inner + 1)
        inside = (places >= 0) & (places < shape[-1])
        source.append(np.flatnonzero(inside))
        target.append(places[inside])
    padded = np.full(shape, value, array.dtype)
    padded[np.ix_(*target)] = array[np.ix_(*source)]
    return [padded]


def _split(params: dict[str, Any], array: Any) -> list[np.ndarray]:
    return np.split(array, np.cumsum(params["sizes"])[:-1], params["axis"])


MOVES: dict[str, Callable[..., Sequence[Any]]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda params, *arrays: [np.concatenate(arrays, params["dimension"])],
    "dynamic_slice": lambda params, array, *starts: [
        array[_window(starts, array.shape, params["slice_sizes"])]
    ],
    "dynamic_update_slice": _update,
    "iota": _iota,
    "pad": _pad,
    "reshape": lambda params, array: [np.reshape(array, params["new_sizes"])],
    "rev": lambda params, array: [np.flip(array, params["dimensions"])],
    "slice": _slice,
    "split": _split,
    "squeeze": lambda params, array: [np.squeeze(array, tuple(params["dimensions"]))],
    "stack": lambda params, *arrays: [np.stack(arrays, params["axis"])],
    "transpose": lambda params, array: [np.transpose(array, params["permutation"])],
}


def _scan(params: dict[str, Any], values: list[Any]) -> list[Any]:
    consts, carry = params["num_consts"], params["num_carry"]
    fixed, state = values[:consts], values[consts : consts + carry]
    moving, found = values[consts + carry :], []
    steps = range(params["length"])
    for i in reversed(steps) if params["reverse"] else steps:
        outputs = evaluate(params["jaxpr"], [*fixed, *state, *(array[i] for array in moving)])
        state = outputs[:carry]
        found.append(outputs[carry:])
    if params["reverse"]:
        found.reverse()
    shapes = params["jaxpr"].out_avals[carry:]
    stacked = [
        np.stack([np.asarray(step[k]) for step in found])
        if found
        else np.zeros((0, *aval.shape), aval.dtype)
        for k, aval in enumerate(shapes)
    ]
    return [*state, *stacked]


def _while(params: dict[str, Any], values: list[Any]) -> list[Any]:
    first, second = params["cond_nconsts"], params["body_nconsts"]
    tested, fixed = values[:first], values[first : first + second]
    state = values[first + second :]
    while (going := np.asarray(evaluate(params["cond_jaxpr"], [*tested, *state])[0])).any():
        old, state = state, evaluate(params["body_jaxpr"], [*fixed, *state])
        if going.ndim:  # one loop for each element of a batch
            state = [
                np.where(going.reshape(*going.shape, *[1] * (np.ndim(new) - going.ndim)), new, kept)
                for new, kept in zip(state, old, strict=True)
            ]
    return state


def _cond(params: dict[str, Any], values: list[Any]) -> list[Any]:
    branches = params["branches"]
    chosen = min(max(int(values[0]), 0), len(branches) - 1)
    return evaluate(branches[chosen], values[1:])


def _platform(params: dict[str, Any], values: list[Any]) -> list[Any]:
    platforms = params["platforms"]
    return [
        np.int32(next(i for i, names in enumerate(platforms) if names is None or "cpu" in names))
    ]


NESTED: dict[str, Callable[[dict[str, Any], list[Any]], list[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "platform_index": _platform,
}
