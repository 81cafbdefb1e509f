"""What the command line and the estimators do with models: describe, open, draw."""

import inspect
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flow_bridge.architecture import Architecture, architecture, construction_budget
from flow_bridge.arguments import plain
from flow_bridge.checkpoint import MODEL, Header, TensorInfo, check_model
from flow_bridge.checks import positive_int
from flow_bridge.errors import ArchitectureError
from flow_bridge.weights import torch_shapes
from twinflows.sides.base import Side, half
from twinflows.sides.bounds import (
    FREE,
    Bounds,
    bound_arrays,
    check_inside,
    held_inside,
    stated_bounds,
    to_line,
    with_bounds,
)

BLOCK_ROWS = 4096
MAX_LAYERS, MAX_ENTRIES = 10_000, 1 << 27
"""What a model may have of layers and of entries of masks, before its size is known."""
ALIASES = {"nsf": "neuralsplineflow"}
BASE_DEFAULTS: dict[str, Architecture] = {
    "GaussianMixture": {"num_components": 8},
    "StudentT": {"df": 4.0},
}
"""Of the arguments that a constructor leaves open."""


def open_model(path: str | os.PathLike[str], backend: str | None) -> Side:
    """The flow in a checkpoint, in the named backend or in the one that is installed.

    Raises:
        CheckpointError: whatever is wrong with the file.
        ArchitectureError: if it holds something that has no density.
    """
    model: Side = half(backend).load(path)
    if not hasattr(model.flow, "base"):
        name = type(model.flow).__name__
        raise ArchitectureError(f"{os.fspath(path)} holds a {name}, which is no flow.")
    return model


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Arguments given as ``"NAME=JSON"``.

    Raises:
        ValueError: for options of another form.
    """
    result = {}
    for option in options:
        name, _, text = option.partition("=")
        try:
            result[name] = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"--set expects NAME=JSON, got {option[:40]!r}.") from error
    return result


def describe(
    model: str,
    backend: str | None,
    event_shape: tuple[int, ...],
    context_dim: int,
    options: Mapping[str, Any],
    base: str | None = None,
    columns: Sequence[str] | None = None,
    context_columns: Sequence[str] | None = None,
) -> Architecture:
    """The architecture of a flow like a named model, for events of a shape.

    Args:
        model: its name, in any case, or one of ``ALIASES``.
        options: further arguments by name; those of the base are named ``"base.NAME"``.
        base: the name of another base distribution, in any case.
        columns, context_columns: the names of the entries.

    Raises:
        ValueError: for an unknown name, and for options that follow from the data.
    """
    package = _package(backend)
    types = package.registry.registry.types
    flows = {n: c for n, c in types.items() if c is not package.Flow and _is_a(c, package.Flow)}
    cls = _named("model", model, flows)
    size = _size(cls, event_shape)
    described: Architecture = {"type": cls.__name__, **size}
    if event_shape == (1,) and "autoregressive" in inspect.signature(cls).parameters:
        described["autoregressive"] = True  # one number has nothing to couple with
    if context_dim:
        described["context_dim"] = context_dim
    base_options: Architecture = {}
    for name, value in options.items():
        if name in (*size, "type", "context_dim"):
            raise ValueError(f"{name!r} cannot be set: that follows from the data.")
        if name.startswith("base."):
            base_options[name.removeprefix("base.")] = value
        else:
            described[name] = value
    with construction_budget(layers=MAX_LAYERS, entries=MAX_ENTRIES):
        named = _outline(described, backend)
    described_base = architecture(named.base)
    if base is not None:
        bases = {n: c for n, c in types.items() if _is_a(c, package.Distribution)}
        kind = _named("base distribution", base, bases).__name__
        described_base = {"type": kind, "dim": described_base["dim"], **BASE_DEFAULTS.get(kind, {})}
    return {
        "type": "Flow",
        "bijector": architecture(named.bijector),
        "base": described_base | base_options,
        "columns": columns,
        "context_columns": context_columns,
    }


def new_model(architecture: Architecture, backend: str | None, dtype: str, seed: int) -> Side:
    """A flow with initial weights.

    Raises:
        ValueError: if the machine's memory cannot hold it.
    """
    num_values = sum(math.prod(shape) for shape in expected_shapes(architecture).values())
    check_memory(f"training {num_values:,} weights", 4 * num_values * np.dtype(dtype).itemsize)
    return half(backend).build(architecture, dtype, seed)


def weight_dtype(model: Side) -> str:
    """Of the weights, and of what the model computes."""
    return next(iter(model.arrays().values())).dtype.name


def rebuild(
    backend: str, described: Architecture, arrays: Mapping[str, np.ndarray], dtype: str
) -> Side:
    """A model of plain data, as files and pickles hold it."""
    if backend == "jax" and dtype == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)
    return half(backend).holding(_package(backend).build(described), arrays, dtype)


def scaled(
    model: Side,
    x: np.ndarray,
    context: np.ndarray | None,
    dtype: str,
    robust: bool = False,
    bounds: Sequence[Bounds] | None = None,
    standardize: bool = True,
) -> Side:
    """A model of standardised data as one of a table as it is: columns with bounds, any units.

    Args:
        model: it is changed.
        x, context: the table, shapes ``(rows, columns)``.
        robust: scale by median and interquartile range.
        bounds: of the columns of x, see ``check_bounds``.
    """
    if bounds is not None:
        check_inside(x, bounds, dtype, model.flow.columns)
        x = to_line(x, bounds)
    if standardize:
        model.standardize(x, context, robust)
    if bounds is None or all(pair == FREE for pair in bounds):
        return model
    described = with_bounds(architecture(model.flow), bounds)
    return rebuild(model.backend, described, bound_arrays(model.arrays(), bounds, dtype), dtype)


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays, in PyTorch's layout, from whichever half is installed."""
    flow = _outline(architecture, None)
    if half(None).backend == "torch":
        return {name: tuple(array.shape) for name, array in flow.state_dict().items()}
    return torch_shapes(flow.shapes())


def _outline(architecture: Architecture, backend: str | None) -> Any:
    """The flow without its weights."""
    if half(backend).backend == "torch":
        import torch

        import torch_flows  # says what is missing where there is no torch

        with torch.device("meta"):
            return torch_flows.build(architecture)
    import jax_flows

    return jax_flows.build(architecture)


def check_storable(architecture: Architecture, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ``TwinflowsError`` unless a checkpoint may hold these: before they are trained or made."""
    tensors = {name: TensorInfo(a.dtype.name, a.shape) for name, a in arrays.items()}
    num_bytes = sum(array.nbytes for array in arrays.values())
    header = Header(MODEL, architecture, tensors, "", num_bytes)
    check_model(header, expected_shapes, writing=True)


def check_memory(what: str, num_bytes: int) -> None:
    """Raise ``ValueError`` where the machine has less memory than something needs."""
    try:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not known on this system
        return
    if num_bytes > available:
        raise ValueError(
            f"{what} needs {num_bytes / 2**30:,.0f} GiB, this machine has {available / 2**30:,.0f}."
        )


def draw(
    model: Side, num_samples: int, generator: np.random.Generator, context: np.ndarray | None
) -> np.ndarray:
    """Samples, the same in both halves; any size where an event has none of its own is 1.

    Raises:
        ValueError: if the machine's memory cannot hold them.
    """
    base, shape = model.flow.base, noise_shape(model, num_samples)
    noise = generator.random(shape) if base.noise == "uniform" else generator.normal(size=shape)
    return images(model, noise, context)


def images(model: Side, noise: np.ndarray, context: np.ndarray | None) -> np.ndarray:
    """What the model makes of noise, inside the bounds of its columns."""
    samples = in_blocks(model.from_noise, noise, context)
    arrays = model.arrays()
    bounds = stated_bounds(architecture(model.flow), arrays)
    if bounds is None:
        return samples
    return held_inside(samples, bounds, weight_dtype(model))


def draw_context(model: Side, rows: int, generator: np.random.Generator) -> np.ndarray | None:
    """Contexts such as the model was trained on, as far as it knows: normal, in their own units."""
    flow = model.flow
    if not flow.context_dim:
        return None
    context = generator.standard_normal((rows, flow.context_dim))
    if flow.context_net is not None and type(flow.context_net[0]).__name__ == "Standardize":
        loc, scale = (model.arrays()[f"context_net.0.{name}"] for name in ("loc", "scale"))
        context = loc + scale * context
    return context


def noise_shape(model: Side, num_samples: int) -> tuple[int, ...]:
    """The shape of the noise for samples, where the machine's memory can hold them.

    Raises:
        ValueError: where it cannot, and for a number below 1.
    """
    num_samples = plain("sampling", "the number of samples", int, num_samples)
    positive_int("sampling", **{"the number of samples": num_samples})
    shape = num_samples, *(1 if size is None else size for size in model.flow.base.noise_shape)
    check_memory(f"drawing {num_samples:,} samples", 16 * math.prod(shape))
    return shape


def in_blocks(
    function: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
    rows: np.ndarray,
    context: np.ndarray | None,
) -> np.ndarray:
    """``function`` on a few thousand rows at a time; the last block is filled up, so that all have
    one shape."""
    results = []
    for start in range(0, len(rows), BLOCK_ROWS):
        index = np.arange(start, start + min(BLOCK_ROWS, len(rows))) % len(rows)
        block = None if context is None else context[index]
        results.append(function(rows[index], block)[: len(rows) - start])
    return np.concatenate(results)


def _package(backend: str | None) -> Any:
    if half(backend).backend == "torch":
        import torch_flows

        return torch_flows
    import jax_flows

    return jax_flows


def _is_a(cls: Any, base: type) -> bool:
    return isinstance(cls, type) and issubclass(cls, base)


def _named(what: str, name: str, types: dict[str, type]) -> type:
    known = {n.lower(): cls for n, cls in types.items()}
    name = ALIASES.get(name.lower(), name)
    if name.lower() not in known:
        raise ValueError(f"there is no {what} {name!r}; there are {', '.join(sorted(known))}.")
    return known[name.lower()]


def _size(cls: type, event_shape: tuple[int, ...]) -> Architecture:
    if "shape" in inspect.signature(cls).parameters:
        return {"shape": list(event_shape)}
    if len(event_shape) == 1:
        return {"dim": event_shape[0]}
    raise ValueError(f"{cls.__name__} expects rows of numbers, got events of {event_shape}.")
