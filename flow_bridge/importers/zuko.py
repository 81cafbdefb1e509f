"""zuko (1.0 to 1.6): masked autoregressive flows and couplings with affine maps, splines, sums of squares and
monotone networks, and Gaussianization flows.

Reference: Rozet et al., https://zuko.readthedocs.io.
"""

import inspect
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import networks, parts
from flow_bridge.importers.parts import Layer, Part, Reading, composed
from flow_bridge.importers.reading import (
    Run,
    activation_name,
    as_array,
    contents,
    demand,
    expect,
    field,
    float64_copy,
    framework,
    in_numpy,
    kind,
    version,
)
from flow_bridge.univariate import MAX_DEGREE, slope_offset, spread, square_starts


def read(flow: Any, slope: float | None = None) -> Reading:
    """A zuko ``Flow``.

    Args:
        flow: the flow.
        slope: of all its transformations, where the weights come from a version with another one:
            1e-3 up to 1.0.0 and from 1.5.0 on, 1e-4 in between. No file holds it.
    """
    return read_copy(float64_copy(flow), slope)


def read_copy(flow: Any, slope: float | None, live: bool = True) -> Reading:
    """``read`` for a flow that is ours to change and, if it is ``live``, to run."""
    expect(flow, "zuko's Flow", "transform base")
    base = _base(field(flow, "base", "zuko's Flow"))
    dim = base.architecture["dim"]
    transform = field(flow, "transform", "zuko's Flow")
    notes: list[str] = []
    if slope is None and live:
        notes.append(
            f"its slope is that of zuko {version('zuko')}, and no file of weights holds it: for weights "
            "of zuko 1.0.1 to 1.4.1 import with slope=1e-4."
        )
    elif slope is not None:
        check_slope(slope)
        for owner in flow.modules():
            if hasattr(owner, "univariate") and not hasattr(owner.univariate, "modules"):
                owner.univariate = partial(owner.univariate, slope=slope)
    layers = [layer(name, module, dim, notes) for name, module in flatten("transform", transform)]

    def run(x: Any, context: Any) -> Any:
        return call(transform(context), x)

    whole = in_numpy(run)
    if any(is_clipped(layer) for layer in layers):
        if is_clipped(layers[-1]):
            layers = [*layers[:-1], *_normalized(layers[-1], base, notes)]
        whole = composed(layers)
    notes = list(dict.fromkeys(notes))
    return Reading(layers, base, whole if live else None, notes=notes)


def check_slope(slope: float) -> None:
    """Raise ``ValueError`` unless a slope is a number between 0 and 1."""
    if isinstance(slope, bool) or not isinstance(slope, int | float) or not 0 < slope < 1:
        raise ValueError(f"import_flow expects slope between 0 and 1, got {slope!r}.")


def call(transform: Any, x: Any) -> Any:
    """z and log|det| of a transformation."""
    z, log_det = transform.call_and_ladj(x)
    return z, log_det.sum(-1) if log_det.ndim == x.ndim else log_det


def _base(base: Any) -> Part:
    name = kind(base)
    if name in ("UnconditionalDistribution", "Unconditional"):
        distribution = _called(base, "zuko's base")
        if kind(distribution) == "DiagNormal":
            own = "base_dist reinterpreted_batch_ndims"
            expect(distribution, "zuko's DiagNormal", f"{SHAPES} {own}")
            demand(distribution, "zuko's DiagNormal", reinterpreted_batch_ndims=1)
            normal = distribution.base_dist
            expect(normal, "zuko's DiagNormal", f"{SHAPES} loc scale")
            return parts.normal_base(as_array(normal.loc), np.log(as_array(normal.scale)))
        name = kind(distribution)
    raise UnsupportedModel(
        f"zuko's base {name} has no counterpart: only UnconditionalDistribution(DiagNormal, ...) has."
    )


SHAPES = "_batch_shape _event_shape _validate_args"
"""Of a distribution of torch."""


def _called(module: Any, where: str) -> Any:
    """What a module makes of its arguments, whatever its version calls them."""
    given = " ".join(
        key for name in ("_parameters", "_buffers") for key in vars(module).get(name, {})
    )
    expect(module, where, f"f meta args kwargs _keys _nargs bound {given}")
    return module()


def flatten(name: str, module: Any) -> Iterator[tuple[str, Any]]:
    """Transformations one after another with their names, without what contains them."""
    if kind(module) == "LazyComposedTransform":
        expect(module, "zuko's LazyComposedTransform", "transforms")
        for i, item in enumerate(contents(module.transforms, name)):
            yield from flatten(f"{name}.transforms.{i}", item)
    else:
        yield name, module


def layer(name: str, module: Any, dim: int, notes: list[str]) -> Layer:
    """One transformation, read."""

    def run(x: Any, context: Any) -> Any:
        return call(module(context), x)

    label = f"{name} ({kind(module)})"
    found = Layer(label, _transform(module, dim, notes), in_numpy(run))
    return Layer(label, found.parts, _where_sure(found.run)) if is_clipped(found) else found


SHARE, SURE = 1e-6, 3.0
"""Of a normal, what zuko's Gaussianization leaves out; and up to where its z, made of 1 - erf, has the digits
to compare with."""


def is_clipped(layer: Layer) -> bool:
    """Whether a layer ends with zuko's Gaussianization."""
    return any(item.architecture["type"] == "NormalClip" for item in layer.parts[-1:])


def _where_sure(run: Run) -> Run:
    """A Gaussianization of zuko, NaN where its z is too uncertain."""

    def sure(x: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        z, log_det = run(x, context)
        return np.where(abs(z) < SURE, z, math.nan), log_det

    return sure


def _normalized(last: Layer, base: Part, notes: list[str]) -> list[Layer]:
    """The last layer without the end that leaves out a share of the base."""
    if base.architecture["type"] != "StandardNormal":
        raise UnsupportedModel(
            "zuko's GaussianizationTransform before another base than a standard normal has no counterpart: "
            "its density does not integrate to 1."
        )
    notes.append(
        f"the density of zuko's Gaussianization integrates to 1 - {SHARE:g} for each dimension, and here "
        "to 1: all log-densities are higher by that."
    )

    def run(z: Any, context: Any) -> Any:
        torch = framework("torch")
        share = torch.erf(z / math.sqrt(2)) / (1 - SHARE)
        whole = torch.erfinv(share) * math.sqrt(2)
        return whole, ((whole - z) * (whole + z) / 2 - math.log1p(-SHARE)).sum(-1)

    name = last.name.replace("transform", "the end of transform", 1)
    return [Layer(last.name, last.parts[:-1], last.run), Layer(name, [], in_numpy(run))]


def _transform(module: Any, dim: int, notes: list[str]) -> list[Part]:
    name = kind(module)
    where = f"zuko's {name}"
    if name == "LazyComposedTransform":
        expect(module, where, "transforms")
        found = [_transform(item, dim, notes) for item in contents(module.transforms, where)]
        return [item for items in found for item in items]
    if name == "LazyInverse":
        expect(module, where, "transform")
        return parts.invert_all(_transform(module.transform, dim, notes))
    if name in ("UnconditionalTransform", "Unconditional"):
        return [_unconditional(_called(module, where), dim, notes)]
    if name == "MaskedAutoregressiveTransform":
        expect(module, where, "univariate shapes total order passes hyper")
        map, outputs = _map(module, np.arange(dim), notes)
        conditioner, in_dim = _hyper(module.hyper, outputs, dim, where)
        notes.extend(conditioner.notes)
        return [networks.masked_autoregressive(map, conditioner, dim, in_dim - dim)]
    if name == "GeneralCouplingTransform":
        expect(module, where, "univariate shapes total mask hyper")
        mask = as_array(module.mask)
        map, outputs = _map(module, np.arange(dim - mask.sum()), notes)
        layers, activation = networks.sequence(module.hyper, where)
        conditioner = networks.mlp(layers, activation, outputs)
        context_dim = layers[0].weight.shape[1] - int(mask.sum())
        return [networks.coupling(map, conditioner, mask, context_dim)]
    if name == "ElementWiseTransform":
        expect(module, where, "univariate shapes total hyper phi")
        map, outputs = _map(module, np.arange(dim), notes)
        clips = [parts.part("NormalClip", share=SHARE)] if map["type"] == "NormalMixtureMap" else []
        if hasattr(module, "hyper"):
            layers, activation = networks.sequence(module.hyper, where)
            conditioner = networks.mlp(layers, activation, outputs, by_entry=True)
            return [networks.elementwise(map, conditioner, dim, layers[0].weight.shape[1]), *clips]
        phi = contents(module.phi, where, "_size")
        own = np.concatenate([as_array(value).reshape(dim, -1) for value in phi], 1)
        arrays = {"raw_parameters": outputs.applied(own)}
        return [parts.part("Elementwise", arrays, dim=dim, map=map), *clips]
    if name in UNIVARIATE:
        raise UnsupportedModel(f"{where} has no counterpart: {UNIVARIATE[name]}.")
    raise UnsupportedModel(f"{where} has no counterpart.")


def _hyper(
    hyper: Any, outputs: networks.Outputs | networks.Combined, dim: int, where: str
) -> tuple[networks.Conditioner, int]:
    """A masked network, and the width of its input."""
    modules = contents(hyper, where, "in_features out_features")
    if not any(kind(module) == "Residual" for module in modules):
        layers, activation = networks.sequence(hyper, where)
        conditioner = networks.masked_mlp(layers, activation, outputs, dim, where)
        return conditioner, layers[0].weight.shape[1]
    blocks = modules[1:-1]
    if any(kind(block) != "Residual" for block in blocks):
        raise UnsupportedModel(
            f"{where} has residual=True and hidden layers of different widths, which has no counterpart."
        )
    layers = [networks.linear(modules[0], where)]
    names = set()
    for block in blocks:
        first, activation, second = contents(block, where)
        layers += [networks.linear(first, where), networks.linear(second, where)]
        names.add(activation_name(activation, where))
    layers.append(networks.linear(modules[-1], where))
    if len(names) > 1:
        raise UnsupportedModel(f"{where} has different activations, which has no counterpart.")
    conditioner = networks.masked_residual(
        layers, names.pop(), outputs, dim, where, pre_activation=False
    )
    return conditioner, layers[0].weight.shape[1]


UNIVARIATE = {
    "CircularRQSTransform": "its network sees angles as they are, that of twinflows their cosine and sine",
    "BernsteinTransform": "the Bernstein polynomials of twinflows have a least slope",
    "BoundedBernsteinTransform": "its z jumps by 1e-5 at both ends of its interval",
    "SOSPolynomialTransform": "only with its shift, as ShiftedSOSPTransform, does it",
    "UMNN": "its log|det| is not that of its z, which a quadrature makes",
    "FreeFormJacobianTransform": "its solver would differ",
    "FFJTransform": "its solver would differ",
}
"""Why what zuko has besides has no counterpart."""


def _map(
    module: Any, entries: np.ndarray, notes: list[str]
) -> tuple[Architecture, networks.Outputs | networks.Combined]:
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
    if name in UNIVARIATE:
        raise UnsupportedModel(f"{where} has no counterpart: {UNIVARIATE[name]}.")
    if name == "MNN" and len(shapes) == 1:
        notes.append(
            "the weights of its monotone networks are outputs here, which training may make functions of "
            "what the conditioner sees."
        )
        return _monotone(constructor, len(entries), size, where)
    if name == "MonotonicAffineTransform" and shapes == [(), ()]:
        _no_more(given, "slope", where)
        slope = _option(constructor, given, "slope", where)
        return {"type": "AffineMap", "scale": "softclip", "bound": -math.log(slope)}, outputs
    if name == "ShiftedSOSPTransform" and len(shapes) == 2 and len(shapes[0]) == 2:
        _no_more(given, "slope", where)
        slope = _option(constructor, given, "slope", where)
        return _squares(*shapes[0], slope, entries, where)
    if name == "GaussianizationTransform" and len(shapes) == 2 and shapes[0] == shapes[1]:
        _no_more(given, "", where)
        if kind(module) != "ElementWiseTransform":
            raise UnsupportedModel(f"{where} has no counterpart outside an ElementWiseTransform.")
        notes.append(
            "what its Gaussianization does not reach has no inverse: samples from there are NaN, and at the "
            "end of a window in zuko."
        )
        count = size // 2
        start = [1 - (2 * j + 1) / count for j in range(count)]  # where ours begin
        offset = np.append(np.negative(start), np.zeros(count))
        map = {"type": "NormalMixtureMap", "num_components": count, "bound": None}
        return map, networks.Outputs.of(outputs.rows, 1.0, offset)
    num_bins = (size + 1) // 3
    if name != "MonotonicRQSTransform":
        raise UnsupportedModel(f"{where} has no counterpart.")
    _no_more(given, "slope bound", where)
    if shapes != [(num_bins,), (num_bins,), (num_bins - 1,)]:
        raise UnsupportedModel(f"{where} with shapes {shapes} has no counterpart.")
    slope = _option(constructor, given, "slope", where)
    bound = _option(constructor, given, "bound", where)
    map = {"type": "SplineMap", "num_bins": num_bins, "low": -bound, "high": bound}
    return map | {"min_width": 0.0, "min_height": 0.0, "squash": slope}, outputs


SQUARES_BOUND = 10.0
"""By which zuko divides what its polynomials are of."""


def _squares(
    count: int, terms: int, slope: float, entries: np.ndarray, where: str
) -> tuple[Architecture, networks.Outputs]:
    """The mean of the squares of 1 + p_k, integrated by a quadrature that is exact for them."""
    degree = terms - 1
    if not 1 <= degree <= MAX_DEGREE or count > terms or not 1e-6 <= slope < 1:
        raise UnsupportedModel(
            f"{where} of {count} polynomials of degree {degree} and slope {slope:g} has no counterpart: "
            f"twinflows has degrees from 1 to {MAX_DEGREE}, no more polynomials than coefficients, and "
            "slopes from 1e-6 on."
        )
    map = {
        "type": "SumOfSquaresMap",
        "degree": degree,
        "num_squares": count,
        "bound": SQUARES_BOUND,
    }
    map |= {"min_slope": slope, "outside": "polynomial"}
    offset = np.zeros((count, terms))
    offset[:, 0] = 1 / math.sqrt(count)
    offset -= square_starts(degree, count, slope).T
    size = count * terms
    rows = entries[:, None] * (size + 1) + np.append(size, np.arange(size))
    factor = np.append(1.0, np.full(size, 1 / math.sqrt(count)))
    return map, networks.Outputs.of(rows, factor, np.append(0.0, offset))


def _monotone(
    network: Any, count: int, size: int, where: str
) -> tuple[Architecture, networks.Combined]:
    """A network of x and the outputs of the conditioner, its signal, that enters the first biases."""
    expect(network, where, "network")
    items = contents(network.network, where, "in_features out_features")
    linears, between = items[::2], items[1::2]
    if any(kind(item) != "MonotonicLinear" for item in linears) or not between:
        raise UnsupportedModel(f"{where} is not linear layers with TwoWayELU between them.")
    for item in between:
        expect(item, f"{where}, {kind(item)}", "alpha inplace")
        if kind(item) != "TwoWayELU" or item.alpha != 1:
            raise UnsupportedModel(f"{where} is not linear layers with TwoWayELU between them.")
    widths = [item.out_features for item in linears[:-1]]
    matrix, offset = [], []
    for i, item in enumerate(linears):
        expect(item, where, "in_features out_features weight bias")
        weight = abs(as_array(item.weight))
        weight = np.broadcast_to(weight, (count, *weight.shape[-2:]))
        bias = np.zeros(weight.shape[-2]) if item.bias is None else as_array(item.bias)
        signal = weight[:, :, 1:] if not i else np.zeros((*weight.shape[:2], size))
        weight = weight if i else weight[:, :, :1]
        shift = slope_offset(1 - 1 / weight.shape[2])
        # the softplus of which is the weight
        raw = weight + np.log(-np.expm1(-np.maximum(weight, 1e-300))) - shift
        offset += [
            raw.reshape(count, -1),
            np.broadcast_to(bias, weight.shape[:2]) - spread(weight.shape[1]),
        ]
        matrix += [np.zeros((count, weight[0].size, size)), signal]
    map = {"type": "MonotoneNetworkMap", "hidden_dims": widths}
    return map, networks.Combined(np.concatenate(matrix, 1), np.concatenate(offset, 1))


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


TRANSFORM = "_cache_size _inv _cached_x_y"
"""Of a transform of torch."""


def _unconditional(transform: Any, dim: int, notes: list[str]) -> Part:
    name = kind(transform)
    where = f"zuko's UnconditionalTransform({name})"
    if name == "PermutationTransform":
        expect(transform, where, f"{TRANSFORM} order inverse")
        return parts.permutation(as_array(transform.order))
    if name == "AffineTransform":
        expect(transform, where, f"{TRANSFORM} loc scale _event_dim")
        scale, loc = (
            np.broadcast_to(as_array(a), (dim,)) for a in (transform.scale, transform.loc)
        )
        return parts.standardize(-loc / scale, 1 / scale, where)
    if name == "SoftclipTransform":
        expect(transform, where, f"{TRANSFORM} bound domain codomain")
        notes.append(
            "what its softclip does not reach has no inverse: samples from there are NaN, and at the "
            "end of a window in zuko."
        )
        return parts.part("Softclip", bound=float(transform.bound))
    if name == "RotationTransform":
        expect(transform, where, f"{TRANSFORM} R")
        return parts.rotation(as_array(transform.R))
    raise UnsupportedModel(f"{where} has no counterpart.")
