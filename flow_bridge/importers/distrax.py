"""distrax 0.1: masked and split couplings with affine maps and rational-quadratic splines over a normal.

Its ``Transformed`` goes from latent to data, its ``Chain`` applies the last bijector first. What a coupling
does to an entry, and its network, are functions: both are told by their values.

Reference: Babuschkin et al. (2020), https://github.com/google-deepmind/distrax.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import functions, networks, parts
from flow_bridge.importers.networks import Linear, Outputs
from flow_bridge.importers.parts import Layer, Part, Reading
from flow_bridge.importers.reading import (
    PROBE,
    as_array,
    dtype_of_tree,
    expect,
    framework,
    in_float64,
    in_numpy_jax,
    jax_call,
    kind,
    members,
    softplus,
)

COUPLINGS = {
    "MaskedCoupling": "_mask _event_mask _inner_event_ndims _event_ndims",
    "SplitCoupling": "_split_index _swap _split_axis",
}
"""What is known of their attributes."""
SHAPES = "_batch_shape _event_shape"
BASE = "_event_ndims_in _event_ndims_out _is_constant_jacobian _is_constant_log_det"


def read(distribution: Any, weights: Sequence[Any] | None = None) -> Reading:
    """A ``Transformed``.

    Args:
        distribution: the distribution, built outside of ``haiku.transform``.
        weights: those of the networks of its couplings, data to latent, where they are not the argument of a
            ``functools.partial``: dictionaries of haiku or Flax.
    """
    bijectors, base = [], distribution
    while kind(base) == "Transformed":
        expect(base, "distrax's Transformed", f"{SHAPES} _distribution _bijector _dtype")
        bijectors.append(base.bijector)
        base = base.distribution
    if not bijectors:
        raise UnsupportedModel(f"distrax's {kind(base)} has no counterpart: only Transformed has.")
    latent = _base(base)
    flat = [item for bijector in bijectors for item in _flatten(bijector, True)]
    nets = [bijector.conditioner for bijector, _ in flat if kind(bijector) in COUPLINGS]
    weights = functions.weights_for(nets, weights, "distrax's couplings")
    left = iter(weights)
    inverse = parts.mostly(back for bijector, back in flat if kind(bijector) in COUPLINGS)
    dim = latent.architecture["dim"]
    layers = [_layer(bijector, back, dim, inverse, left) for bijector, back in flat]
    normal = base.distribution if kind(base) == "Independent" else base
    dtype = dtype_of_tree([weights, normal.loc])
    run = parts.composed(layers, inverse)
    return Reading(layers, latent, run, inverse=inverse, dtype=dtype)


def _base(base: Any) -> Part:
    name = kind(base)
    if name == "MultivariateNormalDiag":
        own = "_loc _scale_diag _scale _distribution _bijector _dtype"  # all made of the first two
        expect(base, f"distrax's base {name}", f"{SHAPES} {own}")
        loc, scale = base.loc, base.scale_diag
    elif name == "Independent" and kind(base.distribution) == "Normal":
        expect(base, f"distrax's base {name}", "_distribution _reinterpreted_batch_ndims")
        expect(base.distribution, "distrax's base Normal", "_loc _scale")
        loc, scale = base.distribution.loc, base.distribution.scale
    else:
        raise UnsupportedModel(
            f"distrax's base {name} has no counterpart: only MultivariateNormalDiag and an Independent "
            "Normal have."
        )
    loc, scale = np.broadcast_arrays(as_array(loc), as_array(scale))
    if loc.ndim != 1:
        raise UnsupportedModel(f"distrax's base {name} has no counterpart unless on vectors.")
    return parts.normal_base(loc, np.log(scale))


def _flatten(bijector: Any, back: bool) -> Iterator[tuple[Any, bool]]:
    """Bijectors from data to latent, and whether each goes back, from its result to its argument."""
    name = kind(bijector)
    if name in ("Inverse", "Chain"):
        expect(bijector, f"distrax's {name}", f"{BASE} _bijector _bijectors")
    if name == "Inverse":
        yield from _flatten(bijector.bijector, not back)
    elif name == "Chain":
        for item in bijector.bijectors if back else reversed(bijector.bijectors):
            yield from _flatten(item, back)
    else:
        yield bijector, back


def _layer(bijector: Any, back: bool, dim: int, inverse: bool, weights: Iterator[Any]) -> Layer:
    name = kind(bijector)
    where = f"distrax's {name}"
    if name in COUPLINGS:
        expect(bijector, where, f"{BASE} _conditioner _bijector {COUPLINGS[name]}")
        found = _coupling(bijector, next(weights), dim, where)
    elif name == "Block":
        expect(bijector, where, f"{BASE} _bijector _ndims")
        bijector, found = _affine(bijector, dim, where)
    else:
        raise UnsupportedModel(f"{where} has no counterpart.")

    def run(x: Any, context: Any) -> Any:
        back_here = back != inverse
        return (bijector.inverse_and_log_det if back_here else bijector.forward_and_log_det)(x)

    return Layer(name, parts.invert_all(found) if back else found, in_numpy_jax(run))


def _affine(block: Any, dim: int, where: str) -> tuple[Any, list[Part]]:
    """The bijector in float64, in which its reciprocals are too, and what it becomes."""
    inner = block.bijector
    expect(inner, where, f"{BASE} _batch_shape _shift _scale _inv_scale _log_scale")
    if kind(inner) != "ScalarAffine" or block.ndims != 1:
        raise UnsupportedModel(
            f"{where} of {kind(inner)} has no counterpart: only of ScalarAffine."
        )
    shift, scale = (np.broadcast_to(as_array(v), (dim,)) for v in (inner.shift, inner.scale))
    with in_float64():
        asarray = framework("jax").numpy.asarray
        twin = type(block)(type(inner)(shift=asarray(shift), scale=asarray(scale)), 1)
    return twin, [parts.affine(scale, shift, where)]


def _coupling(bijector: Any, weights: Any, dim: int, where: str) -> list[Part]:
    fixed, seen = _fixed(bijector, dim, where)
    layers, activation = functions.network(bijector.conditioner, weights, len(seen), None, where)
    first, given = layers[0], fixed[seen]
    layers[0] = Linear(first.weight[:, given], first.bias)  # the others are shown as zeros
    shape = jax_call(bijector.conditioner, np.zeros(len(seen))).shape
    made = ~given if kind(bijector) == "MaskedCoupling" else np.ones(int((~fixed).sum()), bool)
    map, outputs = _map(bijector.bijector, shape, len(made), where)
    outputs = Outputs(outputs.rows[made], outputs.factor, outputs.offset)
    return [networks.coupling(map, networks.mlp(layers, activation, outputs), fixed, 0)]


def _fixed(bijector: Any, dim: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Which entries are fixed, and which its network gets."""
    if bijector.event_ndims_in != 1:
        raise UnsupportedModel(f"{where} has no counterpart unless of vectors.")
    if kind(bijector) == "MaskedCoupling":
        fixed = as_array(bijector.mask).astype(bool)
        own = members(bijector)
        if fixed.shape != (dim,) or own["_inner_event_ndims"] or own["_event_ndims"] != 1:
            raise UnsupportedModel(
                f"{where} has no counterpart unless its mask is that of vectors."
            )
        return fixed, np.arange(dim)
    if bijector.split_axis != -1:
        raise UnsupportedModel(f"{where} has no counterpart unless split along its last axis.")
    fixed = (np.arange(dim) < bijector.split_index) != bijector.swap
    return fixed, np.flatnonzero(fixed)


def _map(make: Any, shape: tuple[int, ...], dim: int, where: str) -> tuple[Architecture, Outputs]:
    """What happens to an entry, and which of the network's outputs its parameters are."""
    given = np.random.default_rng(1).normal(size=shape)
    name = kind(_made(make, given))
    if name == "ScalarAffine":
        return _affine_map(make, given, dim, where)
    if name == "RationalQuadraticSpline":
        return _spline_map(make, given, dim, where)
    raise UnsupportedModel(
        f"{where} of {name} has no counterpart: only of ScalarAffine and RationalQuadraticSpline."
    )


def _made(make: Any, given: np.ndarray) -> Any:
    with in_float64():
        return make(framework("jax").numpy.asarray(given))


def _affine_map(make: Any, given: np.ndarray, dim: int, where: str) -> tuple[Architecture, Outputs]:
    size = given.size

    def values(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        made = _made(make, numbers.reshape(-1, *given.shape))
        found = (made.shift, made.log_scale)
        shift, log_scale = (np.broadcast_to(as_array(v), (len(numbers), dim)) for v in found)
        return shift, log_scale

    start = given.ravel()
    moved = values(start + 0.5 * np.eye(size))
    rows = []
    for value, here in zip(moved, values(start[None]), strict=True):
        depends = value != here
        if (depends.sum(0) != 1).any():
            raise UnsupportedModel(
                f"{where} has no counterpart unless shift and scale of an entry are of one number each."
            )
        rows.append(depends.argmax(0))
    shift, log_scale = values(np.tile(PROBE[:, None], size))
    if not (shift == PROBE[:, None]).all() or (log_scale != log_scale[:, :1]).any():
        raise UnsupportedModel(
            f"{where} has no counterpart unless shifts are the network's outputs."
        )
    map, factor = _scale(log_scale[:, 0], where)
    return map, Outputs.of(np.stack(rows, 1), [1, factor])


def _scale(log_scale: np.ndarray, where: str) -> tuple[Architecture, float]:
    """The map with these log-scales at ``PROBE``, and what its raw number is multiplied by."""

    def is_as(expected: np.ndarray) -> bool:
        return bool(np.allclose(log_scale, expected, rtol=1e-11, atol=1e-13))

    if is_as(PROBE):
        return {"type": "AffineMap", "scale": "exp"}, 1.0
    least = round(float(np.median(np.exp(log_scale) - softplus(PROBE))), 12)
    if least >= 0 and is_as(np.log(softplus(PROBE) + least)):
        return {"type": "AffineMap", "scale": "softplus", "offset": 0.0, "minimum": least}, 1.0
    for times in (1.0, 0.5):
        bound = round(float(log_scale[0] / np.tanh(times * PROBE[0])), 12)
        if bound > 0 and is_as(bound * np.tanh(times * PROBE)):
            return {"type": "AffineMap", "scale": "tanh", "bound": bound}, bound * times
    raise UnsupportedModel(f"{where} has a scale that is none of those of twinflows' AffineMap.")


def _spline_map(make: Any, given: np.ndarray, dim: int, where: str) -> tuple[Architecture, Outputs]:
    made = _made(make, given)
    num_bins = int(made.num_bins)
    size = 3 * num_bins + 1
    low, high = (float(as_array(made.x_pos)[..., i].ravel()[0]) for i in (0, -1))
    if given.shape != (dim, size):
        raise UnsupportedModel(f"{where} has no counterpart unless each entry has {size} numbers.")
    extreme = np.zeros(given.shape)
    extreme[:, [0, num_bins, 2 * num_bins + 1]] = -1e4
    limits = _made(make, extreme)
    width, height = (float(np.diff(as_array(p)[0])[0]) for p in (limits.x_pos, limits.y_pos))
    slope = float(as_array(limits.knot_slopes)[0, 1])
    width, height, slope = (float(f"{value:.10g}") for value in (width, height, slope))
    span = high - low
    raw = given[:, 2 * num_bins :]
    slopes = slope + softplus(raw + np.log(np.expm1(1 - slope)))
    found = as_array(made.knot_slopes)
    one = [bool((found[:, end] == 1).all()) for end in (0, -1)]
    slopes[:, [end for end, is_one in zip((0, -1), one, strict=True) if is_one]] = 1
    expected = [_positions(given[:, :num_bins], low, high, width), slopes]
    expected.append(_positions(given[:, num_bins : 2 * num_bins], low, high, height))
    for ours, theirs in zip(expected, (made.x_pos, made.knot_slopes, made.y_pos), strict=True):
        if not np.allclose(ours, as_array(theirs), rtol=1e-9):
            raise UnsupportedModel(
                f"{where} has no counterpart with splines of this kind, circular ones say."
            )
    map = {
        "type": "SplineMap",
        "num_bins": num_bins,
        "low": low,
        "high": high,
        "boundary": "identity" if all(one) else "linear",
        "min_width": width / span,
        "min_height": height / span,
        "min_slope": slope,
    }
    factor = np.ones(size)
    factor[[2 * num_bins, -1]] = np.logical_not(one)  # a raw 0 is the slope 1
    rows = size * np.arange(dim)[:, None] + np.arange(size)
    if all(one):
        kept = np.delete(np.arange(size), [2 * num_bins, size - 1])
        return map, Outputs.of(rows[:, kept])
    return map, Outputs.of(rows, factor)


def _positions(logits: np.ndarray, low: float, high: float, least: float) -> np.ndarray:
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    sizes = least + (high - low - least * logits.shape[-1]) * shares
    return np.concatenate([np.full((len(logits), 1), low), low + sizes.cumsum(-1)], -1)
