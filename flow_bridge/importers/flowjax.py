"""flowjax 18 and 19: couplings and masked autoregressive flows with affine maps and splines, planar,
triangular spline and block neural autoregressive flows.

Its distributions go from latent to data. Where the transformer of a coupling or a masked map starts is in a
closure and in no file: it is read from the live object and added to the last biases.

Reference: Ward (2024), https://github.com/danielward27/flowjax.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import networks, parts
from flow_bridge.importers.networks import Linear, Outputs
from flow_bridge.importers.parts import Layer, Part, Reading
from flow_bridge.importers.reading import (
    PROBE,
    activation_name,
    as_array,
    demand,
    dtype_of_tree,
    expect,
    float64_tree,
    framework,
    in_numpy_jax,
    jax_call,
    kind,
    softplus,
)

NETWORKS = ("Coupling", "MaskedAutoregressive")
"""Bijections that are run better from their argument to their result."""

ONE_WAY = ("Planar", "BlockAutoregressiveNetwork")
"""Those that can be run that way only, or are searched for the other way."""


def read(distribution: Any) -> Reading:
    """A ``Transformed`` over a normal."""
    bijections, base = [], float64_tree(distribution)
    while kind(base) == "Transformed":
        expect(base, "flowjax's Transformed", "base_dist bijection")
        bijections.append(base.bijection)
        base = base.base_dist
    if not bijections:
        raise UnsupportedModel(f"flowjax's {kind(base)} has no counterpart: only Transformed has.")
    flat = [item for bijection in bijections for item in _flatten(bijection, True)]
    dim = base.shape[-1] if len(base.shape) == 1 else 0
    if not dim:
        raise UnsupportedModel("flowjax's distributions have no counterpart unless on vectors.")
    one_way = {back for bijection, back in flat if kind(bijection) in ONE_WAY}
    if len(one_way) == 2:
        raise UnsupportedModel(
            f"flowjax's {' and '.join(ONE_WAY)} in both directions have none in which they can be run."
        )
    inverse = max(one_way) if one_way else parts.mostly(b for f, b in flat if kind(f) in NETWORKS)
    layers = [_layer(bijection, back, dim, inverse) for bijection, back in flat]
    run, dtype = parts.composed(layers, inverse), dtype_of_tree(distribution)
    return Reading(layers, _base(base), run, inverse=inverse, dtype=dtype)


def _base(base: Any) -> Part:
    name = kind(base)
    if name == "StandardNormal":
        expect(base, "flowjax's StandardNormal", "shape")
        return parts.part("StandardNormal", dim=base.shape[0])
    if name == "Normal":
        expect(base, "flowjax's Normal", "base_dist bijection")
        if kind(base.base_dist) != "StandardNormal":
            raise UnsupportedModel("flowjax's Normal has no counterpart over another distribution.")
        expect(base.base_dist, "flowjax's Normal", "shape")
        affine = base.bijection
        expect(affine, "flowjax's Normal", "shape cond_shape loc scale")
        scale = _unwrapped(affine.scale)
        loc = np.broadcast_to(_unwrapped(affine.loc), scale.shape)
        return parts.normal_base(loc, np.log(scale))
    raise UnsupportedModel(
        f"flowjax's base {name} has no counterpart: only StandardNormal and Normal have."
    )


def _flatten(bijection: Any, back: bool) -> Iterator[tuple[Any, bool]]:
    """Bijections from data to latent, and whether each goes back, from its result to its argument."""
    name = kind(bijection)
    known = {
        "NonTrainable": "tree",
        "Invert": "shape cond_shape bijection",
        "Scan": "shape cond_shape bijection",
        "Chain": "shape cond_shape bijections",
        "Sandwich": "shape cond_shape inner outer",
        "NumericalInverse": "shape cond_shape bijection inverter",
    }
    if name in known:
        expect(bijection, f"flowjax's {name}", known[name])
    if name == "NumericalInverse":
        if kind(bijection.inverter) == "filter_custom_jvp":  # however it is found
            expect(bijection.inverter, "flowjax's NumericalInverse", "fn")
        yield from _flatten(bijection.bijection, back)
    elif name == "NonTrainable":
        yield from _flatten(bijection.tree, back)
    elif name == "Invert":
        yield from _flatten(bijection.bijection, not back)
    elif name == "Sandwich":
        yield from _flatten(bijection.outer, False)
        yield from _flatten(bijection.inner, back)
        yield from _flatten(bijection.outer, True)
    elif name in ("Chain", "Scan"):
        given = _slices(bijection.bijection) if name == "Scan" else bijection.bijections
        for item in reversed(given) if back else given:
            yield from _flatten(item, back)
    else:
        yield bijection, back


def _slices(stacked: Any) -> list[Any]:
    """The layers whose arrays are stacked."""
    is_array, jax = framework("equinox").is_array, framework("jax")
    arrays = [leaf for leaf in jax.tree_util.tree_leaves(stacked) if is_array(leaf)]
    return [
        jax.tree_util.tree_map(lambda leaf, i=i: leaf[i] if is_array(leaf) else leaf, stacked)
        for i in range(len(arrays[0]))
    ]


def _layer(bijection: Any, back: bool, dim: int, inverse: bool) -> Layer:
    found = _transform(bijection, dim)
    reverse = back != inverse

    def run(x: Any, context: Any) -> Any:
        return _compiled()(bijection, reverse, x, context)

    name = kind(bijection)
    return Layer(name, parts.invert_all(found) if back else found, in_numpy_jax(run))


@cache
def _compiled() -> Callable[..., Any]:
    jax, unwrap = framework("jax"), framework("paramax").unwrap

    @framework("equinox").filter_jit
    def run(bijection: Any, reverse: bool, x: Any, context: Any) -> Any:
        bijection = unwrap(bijection)
        step = bijection.inverse_and_log_det if reverse else bijection.transform_and_log_det
        return jax.vmap(step)(x) if context is None else jax.vmap(step)(x, context)

    return run


def _unwrapped(tree: Any) -> np.ndarray:
    with_wrappers = framework("paramax").unwrap
    return jax_call(lambda _: with_wrappers(tree), PROBE)


def _transform(bijection: Any, dim: int) -> list[Part]:
    name = kind(bijection)
    where = f"flowjax's {name}"
    if name not in BIJECTIONS:
        raise UnsupportedModel(f"{where} has no counterpart.")
    reader, attributes = BIJECTIONS[name]
    expect(bijection, where, f"shape cond_shape {attributes}")
    return reader(bijection, dim, where)


def _context_dim(bijection: Any) -> int:
    return bijection.cond_shape[0] if bijection.cond_shape else 0


def _mlp(net: Any, where: str) -> tuple[list[Linear], str]:
    """Layers and activation of an ``equinox.nn.MLP``."""
    if kind(net) != "MLP":
        raise UnsupportedModel(f"{where} has no counterpart with a network {kind(net)}.")
    known = "layers activation final_activation use_bias use_final_bias in_size out_size width_size depth"
    expect(net, f"{where}, MLP", f"{known} scan")
    if getattr(net, "scan", False):
        raise UnsupportedModel(f"{where} has no counterpart with scan=True in its network.")
    if not np.array_equal(jax_call(net.final_activation, PROBE), PROBE):
        raise UnsupportedModel(
            f"{where} has no counterpart with a final activation in its network."
        )
    layers = []
    for layer in net.layers:
        expect(layer, f"{where}, {kind(layer)}", "weight bias in_features out_features use_bias")
        weight, mask = layer.weight, None
        if kind(weight) == "Parameterize":  # jnp.where(mask, weight, 0)
            expect(weight, where, "fn args kwargs")
            mask, weight, _ = weight.args
            if not np.array_equal(_unwrapped(layer.weight), np.where(mask, weight, 0)):
                raise UnsupportedModel(
                    f"{where} has weights of a form that twinflows does not know."
                )
            mask = as_array(mask).astype(bool)
        weight = _unwrapped(weight)
        bias = np.zeros(len(weight)) if layer.bias is None else _unwrapped(layer.bias)
        layers.append(Linear(weight, bias, mask))
    activation = activation_name(net.activation, where, jax_call) if len(layers) > 1 else "relu"
    return layers, activation


def _map(bijection: Any, size: int, where: str) -> tuple[Architecture, np.ndarray, list[int]]:
    """The univariate map of a transformer, what its parameters start from, and their order."""
    transformer = _at_start(bijection.transformer_constructor, size)
    name = kind(transformer)
    if name == "Affine":
        start, least = _positive(transformer.scale, where)
        map = {"type": "AffineMap", "scale": "softplus", "offset": float(start), "minimum": least}
        return map, np.array([float(as_array(transformer.loc)), 0.0]), [0, 1]
    if name == "RationalQuadraticSpline":
        map, start = _spline(transformer, where)
        return map, start, list(range(size))
    raise UnsupportedModel(
        f"{where} has no counterpart with the transformer {name}: only Affine and RationalQuadraticSpline."
    )


def _at_start(constructor: Callable[..., Any], size: int) -> Any:
    found: list[Any] = []

    def build(parameters: Any) -> Any:
        found.append(constructor(parameters))
        return parameters

    jax_call(build, np.zeros(size))
    return found[0]


def _positive(parameterized: Any, where: str) -> tuple[np.ndarray, float]:
    """Raw values, and m of softplus(raw) + m."""
    if kind(parameterized) == "Parameterize" and len(parameterized.args) == 1:
        expect(parameterized, where, "fn args kwargs")
        above = jax_call(parameterized.fn, PROBE) - softplus(PROBE)
        least = round(float(np.median(above)), 12)
        if (
            np.allclose(above, least, rtol=0, atol=1e-12)
            and least >= 0
            and not parameterized.kwargs
        ):
            return as_array(parameterized.args[0]), least
    raise UnsupportedModel(
        f"{where} has no counterpart unless its scales are softplus and a constant."
    )


def _spline(spline: Any, where: str) -> tuple[Architecture, np.ndarray]:
    """The map of a spline, and its raw parameters."""
    expect(spline, where, "shape knots interval x_pos y_pos derivatives")
    slopes, least = _positive(spline.derivatives, where)
    positions = []
    for knots in (spline.x_pos, spline.y_pos):
        if kind(knots) != "RealToIncreasingOnInterval" or knots.include_endpoints != "both":
            raise UnsupportedModel(
                f"{where} has splines of another version of flowjax than 18 and 19."
            )
        expect(knots, where, "arr interval min_width include_endpoints softmax_adjust")
        positions.append(as_array(knots.arr))
    low, high = (float(end) for end in spline.interval)
    if not (tuple(spline.x_pos.interval) == tuple(spline.y_pos.interval) == tuple(spline.interval)):
        raise UnsupportedModel(f"{where} has no counterpart with two intervals.")
    map = {
        "type": "SplineMap",
        "num_bins": int(spline.knots) + 1,
        "low": low,
        "high": high,
        "boundary": "kinked",
        "min_width": spline.x_pos.min_width / (high - low),
        "min_height": spline.y_pos.min_width / (high - low),
        "min_slope": least,
    }
    return map, np.concatenate([*positions, slopes - np.log(np.expm1(1 - least))], -1)


def _coupling(bijection: Any, dim: int, where: str) -> list[Part]:
    layers, activation = _mlp(bijection.conditioner, where)
    fixed = np.arange(dim) < bijection.untransformed_dim
    free = dim - int(fixed.sum())
    size = len(layers[-1].bias) // free
    map, start, order = _map(bijection, size, where)
    outputs = Outputs.of(size * np.arange(free)[:, None] + order, 1, start)
    conditioner = networks.mlp(layers, activation, outputs)
    return [networks.coupling(map, conditioner, fixed, _context_dim(bijection))]


def _masked(bijection: Any, dim: int, where: str) -> list[Part]:
    layers, activation = _mlp(bijection.masked_autoregressive_mlp, where)
    size = len(layers[-1].bias) // dim
    map, start, order = _map(bijection, size, where)
    outputs = Outputs.of(size * np.arange(dim)[:, None] + order, 1, start)
    conditioner = networks.masked_mlp(layers, activation, outputs, dim, where)
    return [networks.masked_autoregressive(map, conditioner, dim, _context_dim(bijection))]


def _planar(bijection: Any, dim: int, where: str) -> list[Part]:
    if bijection.negative_slope is not None:
        raise UnsupportedModel(f"{where} has no counterpart with negative_slope: only tanh.")
    if bijection.params is None:
        raise UnsupportedModel(
            f"{where} has no counterpart with a condition: its weights come from an MLP."
        )
    given = _unwrapped(bijection.params)
    w, u, b = given[:dim], given[dim:-1], given[-1]
    # 1 + w.u_hat is log(1 + softplus(w.u)) in theirs and softplus(w.u) in ours
    slope = np.log1p(softplus(w @ u))
    wu = slope + np.log(-np.expm1(-slope))
    arrays = {"w": w, "u": u + (wu - w @ u) / (w @ w) * w, "b": b}
    return [parts.part("Planar", arrays, dim=dim)]


def _affine(bijection: Any, dim: int, where: str) -> list[Part]:
    scale, loc = (
        np.broadcast_to(_unwrapped(getattr(bijection, name, default)), (dim,))
        for name, default in (("scale", np.ones(())), ("loc", np.zeros(())))
    )
    return [parts.affine(scale, loc, where)]


def _permute(bijection: Any, dim: int, where: str) -> list[Part]:
    return [parts.permutation(as_array(bijection.permutation[0]))]


def _flip(bijection: Any, dim: int, where: str) -> list[Part]:
    return [parts.permutation(np.arange(dim)[::-1])]


def _triangular(bijection: Any, dim: int, where: str) -> list[Part]:
    if kind(bijection.triangular) == "WeightNormalization":
        expect(bijection.triangular, f"{where}, WeightNormalization", "weight scale")
    weight = _unwrapped(bijection.triangular)
    if not np.array_equal(weight, np.tril(weight) if bijection.lower else np.triu(weight)):
        raise UnsupportedModel(f"{where} has no counterpart unless its matrix is triangular.")
    return [parts.matrix(weight, _unwrapped(bijection.loc))]


def _leaky_tanh(bijection: Any, dim: int, where: str) -> list[Part]:
    bound = float(bijection.max_val)
    slope = math.cosh(bound) ** -2
    if not 0 < bound < 8 or not np.allclose(
        [bijection.linear_grad, bijection.intercept], [slope, math.tanh(bound) - slope * bound]
    ):
        raise UnsupportedModel(f"{where} with max_val {bound:g} has no counterpart.")
    return [parts.part("LeakyTanh", bound=bound)]


def _splines(bijection: Any, dim: int, where: str) -> list[Part]:
    spline, (own, of_input, of_condition) = bijection.bijection, bijection.in_axes
    if kind(own) == "if_array":
        expect(own, where, "axis")
        own = own.axis
    if kind(spline) != "RationalQuadraticSpline" or (own, of_input, of_condition) != (0, 0, None):
        raise UnsupportedModel(f"{where} of {kind(spline)} has no counterpart.")
    map, raw = _spline(spline, where)
    if raw.shape != (dim, 3 * map["num_bins"] + 1):
        raise UnsupportedModel(f"{where} has no counterpart unless each entry has its own spline.")
    return [parts.part("Elementwise", {"raw_parameters": raw}, dim=dim, map=map)]


def _blocks(bijection: Any, dim: int, where: str) -> list[Part]:
    activation, layers = bijection.activation, []
    if kind(activation) != "_LeakyTanh" or not bijection.depth:
        raise UnsupportedModel(
            f"{where} has no counterpart unless between its layers, two at least, is the default, which is "
            "tanh(u) + c u."
        )
    expect(activation, f"{where}, _LeakyTanh", "min_grad shape cond_shape")
    known = "weight bias in_features out_features use_bias"
    for layer, _ in bijection.layers:
        expect(layer, f"{where}, Linear", known)
        if kind(layer.weight) == "WeightNormalization":
            expect(layer.weight, f"{where}, WeightNormalization", "weight scale")
            for inner in (layer.weight.weight, layer.weight.scale):
                if kind(inner) == "Parameterize":
                    expect(inner, f"{where}, {kind(inner)}", "fn args kwargs")
        bias = np.zeros(layer.out_features) if layer.bias is None else _unwrapped(layer.bias)
        layers.append((_unwrapped(layer.weight), bias))
    context_weight = None
    if bijection.cond_linear is not None:
        expect(bijection.cond_linear, f"{where}, Linear", known)
        demand(bijection.cond_linear, where, bias=None)
        context_weight = _unwrapped(bijection.cond_linear.weight)
    leak = float(activation.min_grad)
    return [parts.block_network(layers, dim, leak, where, context_weight)]


def _additive(bijection: Any, dim: int, where: str) -> list[Part]:
    layer = bijection.module
    if kind(layer) != "Linear":
        raise UnsupportedModel(f"{where} has no counterpart unless it is a linear layer.")
    expect(layer, f"{where}, Linear", "weight bias in_features out_features use_bias")
    weight = _unwrapped(layer.weight)
    bias = np.zeros(len(weight)) if layer.bias is None else _unwrapped(layer.bias)
    outputs = Outputs.of(np.arange(dim)[:, None])
    conditioner = networks.mlp([Linear(weight, bias)], "relu", outputs, by_entry=True)
    return [networks.elementwise({"type": "ShiftMap"}, conditioner, dim, weight.shape[1])]


BIJECTIONS: dict[str, tuple[Callable[[Any, int, str], list[Part]], str]] = {
    "Affine": (_affine, "loc scale"),
    "AdditiveCondition": (_additive, "module"),
    "BlockAutoregressiveNetwork": (_blocks, "depth layers cond_linear block_dim activation"),
    "Coupling": (_coupling, "untransformed_dim dim transformer_constructor conditioner"),
    "Flip": (_flip, ""),
    "LeakyTanh": (_leaky_tanh, "max_val intercept linear_grad"),
    "Loc": (_affine, "loc"),
    "MaskedAutoregressive": (_masked, "transformer_constructor masked_autoregressive_mlp"),
    "Permute": (_permute, "permutation inverse_permutation"),
    "Planar": (_planar, "conditioner params negative_slope"),
    "Scale": (_affine, "scale"),
    "TriangularAffine": (_triangular, "loc triangular lower"),
    "Vmap": (_splines, "bijection in_axes axis_size"),
}
"""How each bijection is read, and what is known of its attributes."""
