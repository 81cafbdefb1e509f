"""pyro 1.9: distributions of vectors transformed by couplings, autoregressive maps, splines and flows.

Its transforms go from latent to data. A conditional network has the context in front of the entries.

Reference: Bingham et al. (2019), arXiv:1810.09538.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import networks, parts
from flow_bridge.importers.networks import Linear, Outputs
from flow_bridge.importers.parts import Layer, Part, Reading
from flow_bridge.importers.reading import (
    activation_name,
    as_array,
    contents,
    dtype_of,
    expect,
    float64_copy,
    framework,
    in_numpy,
    kind,
    members,
)

MIN_SLOPE = 1e-3
"""Of pyro's splines, whose slope at both ends is 1 - MIN_SLOPE."""
GAMMA_FLOOR = 1e-6
"""What ``BatchNorm`` adds to its factors."""
CLAMP_NOTE = (
    "pyro passes gradients through the bounds of log-scales; here they are 0 beyond the bounds, where the "
    "function is the same."
)


def read(distribution: Any) -> Reading:
    """A ``TransformedDistribution`` or a ``ConditionalTransformedDistribution`` over a normal."""
    where = f"pyro's {kind(distribution)}"
    if kind(distribution) not in ("TransformedDistribution", "ConditionalTransformedDistribution"):
        raise UnsupportedModel(f"{where} has no counterpart: only TransformedDistribution has.")
    expect(distribution, where, f"{SHAPES} base_dist transforms")
    base = _base(distribution.base_dist)
    dim = base.architecture["dim"]
    flat = [item for given in reversed(distribution.transforms) for item in _flatten(given, True)]
    one_way = {back for transform, back in flat if kind(transform) in ("Planar", "Radial")}
    if len(one_way) == 2:
        raise UnsupportedModel(
            f"{where} with planar maps in both directions cannot be run in either."
        )
    inverse = max(one_way) if one_way else parts.mostly(b for t, b in flat if kind(t) in NETWORKS)
    layers = [_layer(transform, back, dim, inverse) for transform, back in flat]
    notes = [CLAMP_NOTE] if any(hasattr(t, "log_scale_min_clip") for t, _ in flat) else []
    dtype = next((dtype_of(t) for t, _ in flat if [*getattr(t, "parameters", list)()]), "float32")
    return Reading(
        layers,
        base,
        parts.composed(layers, inverse),
        notes=notes,
        inverse=inverse,
        dtype=dtype,
    )


def _base(base: Any) -> Part:
    while kind(base) in ("Independent", "ConstantConditionalDistribution"):
        expect(base, "pyro's base", f"{SHAPES} base_dist reinterpreted_batch_ndims")
        base = base.base_dist
    if kind(base) == "Normal" and len(base.batch_shape) == 1:
        expect(base, "pyro's base", f"{SHAPES} loc scale")
        scale = as_array(base.scale)
        return parts.normal_base(as_array(base.loc), np.log(scale))
    raise UnsupportedModel(
        f"pyro's base {kind(base)} has no counterpart: only a Normal with one entry per dimension has."
    )


SHAPES = "_batch_shape _event_shape _validate_args"
"""Of a distribution of torch."""


def _flatten(transform: Any, back: bool) -> Iterator[tuple[Any, bool]]:
    """Transforms from data to latent, and whether each goes back, from its result to its argument."""
    name = kind(transform)
    if name in ("_InverseTransform", "Inverse"):  # as zuko calls torch's class once it is imported
        expect(transform, "pyro's transforms", CACHES)
        yield from _flatten(transform.inv, not back)
    elif name == "ConstantConditionalTransform":
        expect(transform, "pyro's transforms", "transform")
        yield from _flatten(transform.transform, back)
    elif name in ("ComposeTransform", "ComposeTransformModule"):
        expect(transform, "pyro's transforms", f"{CACHES} parts")
        for item in reversed(transform.parts) if back else transform.parts:
            yield from _flatten(item, back)
    else:
        yield transform, back


def _layer(transform: Any, back: bool, dim: int, inverse: bool) -> Layer:
    twin = _float64(transform)
    found = _transform(twin, dim)

    def run(x: Any, context: Any) -> Any:
        step = twin.condition(context) if hasattr(twin, "condition") else twin
        torch = framework("torch")
        default = torch.get_default_dtype()
        torch.set_default_dtype(x.dtype)  # in which pyro makes zeros
        try:
            if back != inverse:
                z = step.inv(x)
                return z, -_log_det(step, z, x)
            z = step(x)
            return z, _log_det(step, x, z)
        finally:
            torch.set_default_dtype(default)

    return Layer(kind(transform), parts.invert_all(found) if back else found, in_numpy(run))


def _log_det(transform: Any, x: Any, y: Any) -> Any:
    log_det = transform.log_abs_det_jacobian(x, y)
    return log_det if transform.domain.event_dim else log_det.expand(x.shape).sum(-1)


def _float64(transform: Any) -> Any:
    """A copy in float64, without the caches, which may hold the original."""
    if hasattr(transform, "modules"):
        twin = float64_copy(transform)
        made_of = list(twin.modules())
    else:
        twin = copy.copy(transform)
        made_of = [twin]
        for name, value in members(twin).items():
            if hasattr(value, "is_floating_point") and value.is_floating_point():
                setattr(twin, name, value.detach().cpu().double())
    for item in made_of:
        for name, empty in (("_inv", None), ("_cached_x_y", (None, None))):
            if hasattr(item, name):
                setattr(item, name, empty)
    return twin


def _transform(transform: Any, dim: int) -> list[Part]:
    """The map from latent to data."""
    name = kind(transform)
    where = f"pyro's {name}"
    if name not in TRANSFORMS:
        raise UnsupportedModel(f"{where} has no counterpart{REASONS.get(name, '')}.")
    reader, attributes = TRANSFORMS[name]
    expect(transform, where, f"{CACHES} {attributes}")
    return reader(transform, dim, where)


def _dense(net: Any, where: str) -> tuple[list[Linear], str, int]:
    """Layers from the entries and then the context, their activation, and the width of the context."""
    if kind(net) not in (
        "DenseNN",
        "ConditionalDenseNN",
        "AutoRegressiveNN",
        "ConditionalAutoRegressiveNN",
    ):
        raise UnsupportedModel(f"{where} has no counterpart with a network {kind(net)}.")
    where = f"{where}, {kind(net)}"
    expect(
        net,
        where,
        "input_dim context_dim hidden_dims param_dims count_params output_multiplier all_ones param_slices "
        "permutation masks mask_skip layers skip_layer f",
    )
    if getattr(net, "skip_layer", None) is not None:
        raise UnsupportedModel(f"{where} has no counterpart with skip_connections=True.")
    layers = [networks.linear(layer, where) for layer in contents(net.layers, where)]
    context_dim = int(net.context_dim) if kind(net).startswith("Conditional") else 0
    turned = np.roll(np.arange(layers[0].weight.shape[1]), -context_dim)
    first = layers[0]
    mask = None if first.mask is None else first.mask[:, turned]
    layers[0] = Linear(first.weight[:, turned], first.bias, mask)
    return layers, activation_name(net.f, where), context_dim


def _clamp(options: Any) -> Architecture:
    low, high = (
        float(options.get(f"log_scale_{end}_clip", default))
        for end, default in (("min", -5.0), ("max", 3.0))
    )
    return {"type": "AffineMap", "scale": "clamp", "low": low, "high": high}


def _options(transform: Any, known: str, where: str) -> dict[str, Any]:
    """What a transform or, if it is conditional, the one that it makes was given."""
    given = transform.kwargs if hasattr(transform, "kwargs") else vars(transform)
    if hasattr(transform, "kwargs") and (unknown := given.keys() - set(known.split())):
        raise UnsupportedModel(
            f"{where} has an argument {min(unknown)!r}, which has no counterpart."
        )
    return dict(given)


def _coupling(transform: Any, dim: int, where: str) -> list[Part]:
    options = _options(transform, "dim log_scale_min_clip log_scale_max_clip", where)
    if options.get("dim", -1) != -1:
        raise UnsupportedModel(f"{where} has no counterpart with dim={options['dim']}: only -1.")
    layers, activation, context_dim = _dense(transform.nn, where)
    fixed = np.arange(dim) < transform.split_dim
    free = dim - transform.split_dim
    outputs = Outputs.of(np.arange(free)[:, None] + [0, free])  # all means, then all log-scales
    conditioner = networks.mlp(layers, activation, outputs)
    return [networks.coupling(_clamp(options), conditioner, fixed, context_dim)]


def _autoregressive(transform: Any, dim: int, where: str) -> list[Part]:
    known = "log_scale_min_clip log_scale_max_clip sigmoid_bias stable"
    options = _options(transform, known, where)
    if options.get("stable"):
        raise UnsupportedModel(f"{where} has no counterpart with stable=True.")
    net = transform.nn if hasattr(transform, "nn") else transform.arn
    layers, activation, context_dim = _dense(net, where)
    outputs = Outputs.of(np.arange(dim)[:, None] + [0, dim])
    conditioner = networks.masked_mlp(layers, activation, outputs, dim, where)
    return [networks.masked_autoregressive(_clamp(options), conditioner, dim, context_dim)]


def spline_map(
    num_bins: int, bound: float, order: str, where: str
) -> tuple[Architecture, np.ndarray]:
    """The map, and what is added to each raw parameter."""
    if order not in ("linear", "quadratic"):
        raise UnsupportedModel(f"{where} has no counterpart with order={order!r}.")
    map = {
        "type": "SplineMap" if order == "quadratic" else "LinearRationalSplineMap",
        "num_bins": num_bins,
        "low": -float(bound),
        "high": float(bound),
        "edge_slope": 1 - MIN_SLOPE,
    }
    size = sum(_sizes(num_bins, order))
    offset = np.zeros(size)
    offset[2 * num_bins : 3 * num_bins - 1] = -np.log(np.expm1(1 - MIN_SLOPE))
    return map, offset


def _sizes(num_bins: int, order: str) -> list[int]:
    """How many widths, heights, slopes and, of linear order, shares a spline has."""
    return [num_bins, num_bins, num_bins - 1] + ([num_bins] if order == "linear" else [])


def _spline_rows(sizes: Sequence[int], count: int) -> np.ndarray:
    """Of each entry the positions in all widths, all heights, all slopes, all shares."""
    entries = np.arange(count)[:, None]
    starts = count * np.cumsum([0, *sizes[:-1]])
    return np.concatenate(
        [start + entries * n + np.arange(n) for start, n in zip(starts, sizes, strict=True)], 1
    )


def _spline(spline: Any, dim: int, where: str) -> list[Part]:
    map, offset = spline_map(spline.count_bins, spline.bound, spline.order, where)
    own = ["unnormalized_widths", "unnormalized_heights", "unnormalized_derivatives"]
    own += ["unnormalized_lambdas"] if spline.order == "linear" else []
    raw = np.concatenate([as_array(getattr(spline, name)) for name in own], -1)
    return [parts.part("Elementwise", {"raw_parameters": raw + offset}, dim=dim, map=map)]


def _conditional_spline(spline: Any, dim: int, where: str) -> list[Part]:
    map, offset = spline_map(spline.count_bins, spline.bound, spline.order, where)
    layers, activation, _ = _dense(spline.nn, where)
    outputs = Outputs.of(_spline_rows(_sizes(spline.count_bins, spline.order), dim), 1, offset)
    context_dim = layers[0].weight.shape[1]
    layers[-1] = outputs.taken(layers[-1], by_entry=True)
    net = {"type": "MLP", "hidden_dims": networks.widths(layers), "activation": activation}
    options = {"dim": dim, "map": map, "context_dim": context_dim, "conditioner": net}
    return [parts.part("Elementwise", networks.arrays_of(layers), **options)]


def _spline_coupling(transform: Any, dim: int, where: str) -> list[Part]:
    upper, split = transform.upper_spline, transform.split_dim
    expect(upper, where, "nn input_dim count_bins bound order")
    map, offset = spline_map(upper.count_bins, upper.bound, upper.order, where)
    layers, activation, _ = _dense(upper.nn, where)
    outputs = Outputs.of(
        _spline_rows(_sizes(upper.count_bins, upper.order), dim - split), 1, offset
    )
    conditioner = networks.mlp(layers, activation, outputs)
    fixed = np.arange(dim) < split
    found = [networks.coupling(map, conditioner, fixed, 0)]
    if not transform.identity:  # the fixed entries too, once the network has seen them
        alone = _transform(transform.lower_spline, split)[0]
        raw = alone.arrays["raw_parameters"]
        found.append(networks.constant_coupling(alone.architecture["map"], raw, ~fixed))
    return found


def _spline_autoregressive(transform: Any, dim: int, where: str) -> list[Part]:
    if hasattr(transform, "spline"):
        expect(transform.spline, where, "nn input_dim count_bins bound order")
        options, net = vars(transform.spline), transform.arn
    else:
        options = _options(transform, "count_bins bound order", where)
        net = transform.nn
    num_bins = options.get("count_bins", 8)
    map, offset = spline_map(
        num_bins, options.get("bound", 3.0), options.get("order", "linear"), where
    )
    layers, activation, context_dim = _dense(net, where)
    outputs = Outputs.of(np.arange(dim)[:, None] + dim * np.arange(len(offset)), 1, offset)
    conditioner = networks.masked_mlp(layers, activation, outputs, dim, where)
    return [networks.masked_autoregressive(map, conditioner, dim, context_dim)]


def _planar(transform: Any, dim: int, where: str) -> list[Part]:
    arrays = {
        "w": as_array(transform.w),
        "u": as_array(transform.u),
        "b": as_array(transform.bias)[0],
    }
    return [parts.part("Planar", arrays, dim=dim)]


def _radial(transform: Any, dim: int, where: str) -> list[Part]:
    arrays = {
        "center": as_array(transform.x0),
        "raw_alpha": as_array(transform.alpha_prime)[0],
        "raw_s": as_array(transform.beta_prime)[0],
    }
    return [parts.part("Radial", arrays, dim=dim)]


def _permute(transform: Any, dim: int, where: str) -> list[Part]:
    if transform.dim != -1:
        raise UnsupportedModel(f"{where} has no counterpart with dim={transform.dim}: only -1.")
    return [parts.permutation(as_array(transform.permutation))]


def _batch_norm(transform: Any, dim: int, where: str) -> list[Part]:
    arrays = {
        "log_gamma": np.log(np.maximum(as_array(transform.gamma), 0) + GAMMA_FLOOR),
        "beta": as_array(transform.beta),
        "running_mean": as_array(transform.moving_mean),
        "running_var": as_array(transform.moving_variance),
    }
    options = {"dim": dim, "eps": transform.epsilon, "momentum": transform.momentum}
    return [parts.invert(parts.part("BatchNorm", arrays, **options))]


def _affine(transform: Any, dim: int, where: str) -> list[Part]:
    loc, scale = (
        np.broadcast_to(as_array(value), (dim,)) for value in (transform.loc, transform.scale)
    )
    return [parts.affine(scale, loc, where)]


CACHES = "_cache_size _inv _cached_x_y _cached_log_scale _cached_logDetJ _cache_log_detJ"
OWN_SPLINE = (
    "input_dim count_bins bound order _params unnormalized_widths unnormalized_heights "
    "unnormalized_derivatives unnormalized_lambdas"
)
CLIPS = "log_scale_min_clip log_scale_max_clip"

TRANSFORMS: dict[str, tuple[Callable[[Any, int, str], list[Part]], str]] = {
    "AffineAutoregressive": (
        _autoregressive,
        f"arn {CLIPS} sigmoid logsigmoid sigmoid_bias stable _call _inverse",
    ),
    "AffineCoupling": (_coupling, f"split_dim nn dim {CLIPS}"),
    "AffineTransform": (_affine, "loc scale _event_dim"),
    "BatchNorm": (_batch_norm, "input_dim gamma beta momentum epsilon moving_mean moving_variance"),
    "ConditionalAffineAutoregressive": (_autoregressive, "nn kwargs"),
    "ConditionalAffineCoupling": (_coupling, "split_dim nn kwargs"),
    "ConditionalSpline": (_conditional_spline, "nn input_dim count_bins bound order"),
    "ConditionalSplineAutoregressive": (_spline_autoregressive, "input_dim nn kwargs"),
    "Permute": (_permute, "permutation dim inv_permutation"),
    "Planar": (_planar, "bias u w input_dim _params"),
    "Radial": (_radial, "x0 alpha_prime beta_prime input_dim _params"),
    "Spline": (_spline, OWN_SPLINE),
    "SplineAutoregressive": (_spline_autoregressive, "arn spline"),
    "SplineCoupling": (_spline_coupling, "lower_spline upper_spline split_dim identity"),
}
"""How each transform is read, and what is known of its attributes."""

NETWORKS = [name for name in TRANSFORMS if "Spline" in name or "Autoregressive" in name]
"""Transforms that are run better from their argument to their result."""

REASONS = {
    "BlockAutoregressive": ": of block neural autoregressive flows only flowjax's and numpyro's are read",
    "NeuralAutoregressive": ": of networks of monotonic units only zuko's NAF is read",
    "Sylvester": ": what pyro gives as its log|det| is not that of its map",
}
