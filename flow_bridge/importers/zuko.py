"""zuko (1.0 to 1.6): masked autoregressive flows and couplings with affine maps and splines.

Reference: Rozet et al., https://zuko.readthedocs.io.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import networks, parts
from flow_bridge.importers.parts import Layer, Part, Reading
from flow_bridge.importers.reading import (
    as_array,
    expect,
    field,
    float64_copy,
    in_numpy,
    kind,
)


def read(flow: Any, slope: float | None = None) -> Reading:
    """A zuko ``Flow``.

    Args:
        flow: the flow.
        slope: of all its transformations, where the weights come from a version with another one:
            1e-3 up to 1.0.0 and from 1.5.0 on, 1e-4 in between. No file holds it.
    """
    flow = float64_copy(flow)
    expect(flow, "zuko's Flow", "transform base")
    base = _base(field(flow, "base", "zuko's Flow"))
    dim = base.architecture["dim"]
    layers = [
        _layer(name, module, dim, slope)
        for name, module in _flatten("transform", field(flow, "transform", "zuko's Flow"))
    ]

    def run(x: Any, context: Any) -> Any:
        return _call(flow(context).transform, x)

    return Reading(layers, base, in_numpy(run))


def _call(transform: Any, x: Any) -> Any:
    z, log_det = transform.call_and_ladj(x)
    return z, log_det.sum(-1) if log_det.ndim == x.ndim else log_det


def _base(base: Any) -> Part:
    name = kind(base)
    if name in ("UnconditionalDistribution", "Unconditional"):
        distribution = base()  # whatever its version calls its arguments
        if kind(distribution) == "DiagNormal":
            normal = distribution.base_dist
            return parts.normal_base(as_array(normal.loc), np.log(as_array(normal.scale)))
        name = kind(distribution)
    raise UnsupportedModel(
        f"zuko's base {name} has no counterpart: only UnconditionalDistribution(DiagNormal, ...) has."
    )


def _flatten(name: str, module: Any, inverse: bool = False) -> Iterator[tuple[str, Any]]:
    """Transformations one after another with their names, without what contains them."""
    if kind(module) == "LazyComposedTransform":
        expect(module, "zuko's LazyComposedTransform", "transforms")
        for i, item in enumerate(module.transforms):
            yield from _flatten(f"{name}.transforms.{i}", item)
    else:
        yield name, module


def _layer(name: str, module: Any, dim: int, slope: float | None) -> Layer:
    def run(x: Any, context: Any) -> Any:
        return _call(module(context), x)

    label = f"{name} ({kind(module)})"
    return Layer(label, _transform(module, dim, slope), in_numpy(run))


def _transform(module: Any, dim: int, slope: float | None) -> list[Part]:
    name = kind(module)
    where = f"zuko's {name}"
    if name == "LazyComposedTransform":
        found = [_transform(item, dim, slope) for item in module.transforms]
        return [item for items in found for item in items]
    if name == "LazyInverse":
        expect(module, where, "transform")
        return parts.invert_all(_transform(module.transform, dim, slope))
    if name in ("UnconditionalTransform", "Unconditional"):
        return [_unconditional(module(), dim)]
    if name == "MaskedAutoregressiveTransform":
        expect(module, where, "univariate shapes total order passes hyper")
        map, outputs = _map(module, np.arange(dim), slope)
        layers, activation = networks.sequence(module.hyper, where)
        conditioner = networks.masked_mlp(layers, activation, outputs, dim, where)
        context_dim = layers[0].weight.shape[1] - dim
        return [networks.masked_autoregressive(map, conditioner, dim, context_dim)]
    if name == "GeneralCouplingTransform":
        expect(module, where, "univariate shapes total mask hyper")
        mask = as_array(module.mask)
        map, outputs = _map(module, np.arange(dim - mask.sum()), slope)
        layers, activation = networks.sequence(module.hyper, where)
        conditioner = networks.mlp(layers, activation, outputs)
        context_dim = layers[0].weight.shape[1] - int(mask.sum())
        return [networks.coupling(map, conditioner, mask, context_dim)]
    raise UnsupportedModel(f"{where} has no counterpart.")


def _map(module: Any, entries: np.ndarray, slope: float | None) -> tuple[Architecture, Any]:
    """The univariate map of a transformation, and where its parameters stand in the network's outputs."""
    constructor = module.univariate
    given: dict[str, Any] = {}
    while isinstance(constructor, partial):
        given = {**constructor.keywords, **given}
        if constructor.args:
            raise UnsupportedModel("zuko's univariate has positional arguments: name them.")
        constructor = constructor.func
    name = getattr(constructor, "__name__", kind(constructor))
    where = f"zuko's univariate {name}"
    shapes = [tuple(shape) for shape in module.shapes]
    size = sum(math.prod(shape) for shape in shapes)
    outputs = networks.Outputs.of(entries[:, None] * size + np.arange(size))
    if name == "MonotonicAffineTransform":
        slope = _option(constructor, given, "slope", where) if slope is None else slope
        _no_more(given, "slope", where)
        bound = -math.log(slope)
        return {"type": "AffineMap", "scale": "softclip", "bound": bound}, outputs
    raise UnsupportedModel(f"{where} has no counterpart.")


def _option(constructor: Any, given: dict[str, Any], name: str, where: str) -> float:
    """What a keyword argument is, or by default would be."""
    parameters = inspect.signature(constructor).parameters
    if name not in parameters:
        raise UnsupportedModel(f"{where} has no argument {name!r} in this version of zuko.")
    return float(given.get(name, parameters[name].default))


def _no_more(given: dict[str, Any], names: str, where: str) -> None:
    if unknown := given.keys() - set(names.split()):
        raise UnsupportedModel(
            f"{where} has an argument {min(unknown)!r}, which has no counterpart."
        )


def _unconditional(transform: Any, dim: int) -> Part:
    name = kind(transform)
    where = f"zuko's UnconditionalTransform({name})"
    if name == "PermutationTransform":
        return parts.permutation(as_array(transform.order))
    if name == "AffineTransform":
        scale, loc = (
            np.broadcast_to(as_array(a), (dim,)) for a in (transform.scale, transform.loc)
        )
        return parts.standardize(-loc / scale, 1 / scale, where)
    raise UnsupportedModel(f"{where} has no counterpart.")


HINTS: Sequence[str] = ("slope",)
