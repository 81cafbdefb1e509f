"""Models with parts that solve in steps: those parts apart from the others, and with finer steps.

A solver misses the exact inverse and the exact determinant by what its steps leave. How much is
measured, against the same solver with finer steps, and excuses nothing but that solver's own layer.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Part(NamedTuple):
    """A run of layers without a solver, or one layer with one; in both halves, with its weights."""

    label: str
    torch_model: Any
    jax_model: Any
    weights: dict[str, np.ndarray]
    solves: bool


def solvers(torch_model: Any) -> list[Any]:
    """The parts of a model that solve in steps."""
    from torch_flows import Bijector

    return [m for m in torch_model.modules() if isinstance(m, Bijector) and m.refined()]


def tolerance(torch_model: Any) -> float:
    """What adaptive solvers promise, ten of their tolerances, in eps of float64."""
    adaptive = [solver for solver in solvers(torch_model) if solver.adaptive]
    return sum(10 * max(s.rtol, s.atol) for s in adaptive) / 2.0**-52


def refined_torch(model: Any) -> Any:
    """A copy that shares nothing with the model, with finer steps."""
    model = copy.deepcopy(model)
    for solver in solvers(model):
        for name, value in solver.refined().items():
            setattr(solver, name, value)
    return model


def refined_jax(value: Any) -> Any:
    """The same bijector with finer steps, at whatever depth they are."""
    from jax_flows import Bijector

    if isinstance(value, tuple):
        return tuple(refined_jax(item) for item in value)
    if not isinstance(value, Bijector):
        return value
    names = [f.name for f in dataclasses.fields(value) if f.init]  # type: ignore[arg-type]
    inner = {name: refined_jax(getattr(value, name)) for name in names}
    return dataclasses.replace(value, **(inner | value.refined()))  # type: ignore[type-var]


def split(torch_model: Any, jax_model: Any, weights: Mapping[str, np.ndarray]) -> list[Part]:
    """The layers in order, solvers each alone, those between them together."""
    import jax_flows
    import torch_flows

    layers = _layers(torch_model, jax_model, "")
    parts: list[Part] = []
    start = 0
    while start < len(layers):
        stop, solves = start + 1, bool(solvers(layers[start][0]))
        while not solves and stop < len(layers) and not solvers(layers[stop][0]):
            stop += 1
        run = layers[start:stop]
        own = {
            f"bijectors.{i}.{name.removeprefix(prefix)}": array
            for i, (_, _, prefix) in enumerate(run)
            for name, array in weights.items()
            if name.startswith(prefix)
        }
        in_torch = torch_flows.Chain([copy.deepcopy(layer[0]) for layer in run])
        in_jax = jax_flows.Chain(tuple(layer[1] for layer in run))
        place = f"layer {start}" if len(run) == 1 else f"layers {start} to {stop - 1}"
        parts.append(Part(place, in_torch, in_jax, own, solves))
        start = stop
    return parts


def _layers(torch_model: Any, jax_model: Any, prefix: str) -> list[tuple[Any, Any, str]]:
    import jax_flows
    import torch_flows

    if isinstance(torch_model, torch_flows.Flow):
        return _layers(torch_model.bijector, jax_model.bijector, f"{prefix}bijector.")
    if type(torch_model) is not torch_flows.Chain or type(jax_model) is not jax_flows.Chain:
        return [(torch_model, jax_model, prefix)]
    pairs = zip(torch_model.bijectors, jax_model.bijectors, strict=True)
    return [
        layer
        for i, (in_torch, in_jax) in enumerate(pairs)
        for layer in _layers(in_torch, in_jax, f"{prefix}bijectors.{i}.")
    ]
