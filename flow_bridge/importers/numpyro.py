"""numpyro: inverse autoregressive flows over a normal, as ``AutoIAFNormal`` builds them, and block neural
autoregressive flows, as ``AutoBNAFNormal`` does.

Its transforms go from latent to data. The masks of ``AutoregressiveNN`` are in no file: they follow from the
widths and from the order of the entries, which is told by who depends on whom.

Reference: Phan et al. (2019), arXiv:1912.11554.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import functions, networks, parts
from flow_bridge.importers.networks import Linear, Outputs
from flow_bridge.importers.parts import Layer, Part, Reading
from flow_bridge.importers.pyro import CLAMP_NOTE
from flow_bridge.importers.reading import (
    as_array,
    dtype_of_tree,
    expect,
    framework,
    in_numpy_jax,
    jax_call,
    kind,
)

ROWS = 64

BLOCKS = "BlockNeuralAutoregressiveTransform"
NETWORKS = {"InverseAutoregressiveTransform": "arn", BLOCKS: "bn_arn"}
"""Transforms with a network, and its attribute."""


def read(distribution: Any, weights: Sequence[Any] | None = None) -> Reading:
    """A ``TransformedDistribution``.

    Args:
        distribution: the distribution.
        weights: those of the networks of its ``InverseAutoregressiveTransform`` and
            ``BlockNeuralAutoregressiveTransform``, data to latent, where they are not the argument of a
            ``functools.partial``: what their ``init`` returned, trained.
    """
    if kind(distribution) != "TransformedDistribution":
        name = kind(distribution)
        raise UnsupportedModel(
            f"numpyro's {name} has no counterpart: only TransformedDistribution."
        )
    expect(distribution, "numpyro's TransformedDistribution", f"{SHAPES} base_dist transforms")
    base = _base(distribution.base_dist)
    flat = [item for given in reversed(distribution.transforms) for item in _flatten(given, True)]
    found = [t for t, _ in flat if kind(t) in NETWORKS]
    nets = [getattr(t, NETWORKS[kind(t)]) for t in found]
    where = "numpyro's " + (kind(found[0]) if found else "transforms")
    weights = functions.weights_for(nets, weights, where)
    left = iter(weights)
    ways = {back for t, back in flat if kind(t) == BLOCKS}
    if len(ways) == 2:
        raise UnsupportedModel(
            f"numpyro's {BLOCKS} in both directions has none in which it can be run."
        )
    inverse = max(ways) if ways else parts.mostly(back for t, back in flat if kind(t) in NETWORKS)
    dim = base.architecture["dim"]
    layers = [_layer(transform, back, dim, inverse, left) for transform, back in flat]
    clamps = any(kind(t) != BLOCKS for t in found)
    notes = [CLAMP_NOTE.replace("pyro", "numpyro")] if clamps else []
    dtype = dtype_of_tree(weights)
    run = parts.composed(layers, inverse)
    return Reading(layers, base, run, notes=notes, inverse=inverse, dtype=dtype)


SHAPES = "_batch_shape _event_shape _validate_args"
"""Of a distribution."""


def _base(base: Any) -> Part:
    while kind(base) in ("Independent", "ExpandedDistribution"):
        own = "base_dist reinterpreted_batch_ndims has_enumerate_support reparametrized_params"
        expect(
            base,
            f"numpyro's base {kind(base)}",
            f"{SHAPES} {own} _expanded_sizes _interstitial_sizes",
        )
        base = base.base_dist
    if kind(base) == "Normal" and len(base.batch_shape) == 1:
        expect(base, "numpyro's base Normal", f"{SHAPES} loc scale")
        loc, scale = np.broadcast_arrays(as_array(base.loc), as_array(base.scale))
        return parts.normal_base(loc, np.log(scale))
    raise UnsupportedModel(
        f"numpyro's base {kind(base)} has no counterpart: only a Normal with one entry per dimension has."
    )


def _flatten(transform: Any, back: bool) -> Iterator[tuple[Any, bool]]:
    """Transforms from data to latent, and whether each goes back, from its result to its argument."""
    name = kind(transform)
    if name == "_InverseTransform":
        expect(transform, "numpyro's transforms", "_inv")
        yield from _flatten(transform.inv, not back)
    elif name == "ComposeTransform":
        expect(transform, "numpyro's transforms", "_inv parts")
        for item in reversed(transform.parts) if back else transform.parts:
            yield from _flatten(item, back)
    else:
        yield transform, back


def _layer(transform: Any, back: bool, dim: int, inverse: bool, weights: Iterator[Any]) -> Layer:
    name = kind(transform)
    where = f"numpyro's {name}"
    if name == "InverseAutoregressiveTransform":
        expect(transform, where, "_inv arn log_scale_min_clip log_scale_max_clip")
        found = _autoregressive(transform, next(weights), dim, where)
    elif name == BLOCKS:
        expect(transform, where, "_inv bn_arn")
        found = _blocks(transform.bn_arn, next(weights), dim, where)
    elif name == "PermuteTransform":
        expect(transform, where, "_inv permutation")
        found = [parts.permutation(as_array(transform.permutation))]
    elif name == "AffineTransform":
        expect(transform, where, "_inv loc scale _domain")
        loc, scale = (
            np.broadcast_to(as_array(v), (dim,)) for v in (transform.loc, transform.scale)
        )
        found = [parts.affine(scale, loc, where)]
    else:
        raise UnsupportedModel(f"{where} has no counterpart.")

    def run(x: Any, context: Any) -> Any:
        if back != inverse:
            z = transform.inv(x)
            log_det = -transform.log_abs_det_jacobian(z, x)
        else:
            z = transform(x)
            log_det = transform.log_abs_det_jacobian(x, z)
        return z, log_det.sum(-1) if log_det.ndim == x.ndim else log_det

    return Layer(name, parts.invert_all(found) if back else found, in_numpy_jax(run))


def _autoregressive(transform: Any, weights: Any, dim: int, where: str) -> list[Part]:
    def both(x: Any) -> Any:
        return framework("jax").numpy.stack(transform.arn(x), -2)

    layers, activation = _network(both, weights, dim, where)
    outputs = Outputs.of(np.arange(dim)[:, None] + [0, dim])  # all means, then all log-scales
    conditioner = networks.masked_mlp(layers, activation, outputs, dim, where)
    map = {
        "type": "AffineMap",
        "scale": "clamp",
        "low": float(transform.log_scale_min_clip),
        "high": float(transform.log_scale_max_clip),
    }
    return [networks.masked_autoregressive(map, conditioner, dim, 0)]


LEAK = 0.01
"""Of numpyro's ``LeakyTanh``."""


def _blocks(function: Any, weights: Any, dim: int, where: str) -> list[Part]:
    """The network, whose closure does not tell what is between its layers and around them."""
    layers, scalars = [], []
    for item in _leaves(weights):
        if isinstance(item, tuple):
            raw, scale, bias = item
            blocks = raw.reshape(dim, len(raw) // dim, dim, -1)
            own = np.eye(dim, dtype=bool)[:, None, :, None]
            after = np.triu(np.ones((dim, dim)), 1)[:, None, :, None]
            weight = np.where(own, np.exp(np.where(own, blocks, 0)), blocks * after).reshape(
                raw.shape
            )
            weight = np.exp(scale) * weight / np.linalg.norm(weight, axis=0)
            layers.append((weight.T, bias))
        else:
            scalars.append(float(item))
    rows = np.random.default_rng(0).normal(size=(ROWS, dim)) * 3
    expected = jax_call(lambda x: function(x)[0], rows)
    h = rows
    for i, (weight, bias) in enumerate(layers):
        h = (np.tanh(h) + LEAK * h if i else h) @ weight.T + bias
    gates: list[float | None] = [*scalars] or [None, 0.0]
    for gate in gates:
        share = 1 / (1 + math.exp(-gate)) if gate is not None else 1.0
        factor = 1.0 if scalars or gate is None else 2.0
        if len(layers) > 1 and np.allclose(
            factor * (share * h + (1 - share) * rows), expected, 1e-9, 1e-9
        ):
            found = [parts.block_network(layers, dim, LEAK, where, gate=gate)]
            twice = np.full(dim, factor)
            return found if factor == 1 else [*found, parts.affine(twice, np.zeros(dim), where)]
    raise UnsupportedModel(
        f"{where} has a network that is not BlockNeuralAutoregressiveNN with LeakyTanh() between its layers: "
        "with tanh, say, it is not onto the reals."
    )


def _leaves(weights: Any) -> Iterator[Any]:
    """Weight, scale and bias of the layers, and single numbers, in nested lists."""
    if isinstance(weights, list | tuple):
        if len(weights) == 3 and [getattr(a, "ndim", 0) for a in weights] == [2, 1, 1]:
            yield tuple(as_array(a) for a in weights)
        else:
            for item in weights:
                yield from _leaves(item)
    else:
        yield as_array(weights)


def _network(function: Any, weights: Any, dim: int, where: str) -> tuple[list[Linear], str]:
    """Layers with their masks, and the activation."""
    create = framework("numpyro.nn.auto_reg_nn").create_mask
    hidden = [weight.shape[1] for weight, _ in functions.linear_layers(weights)][:-1]
    orders = [np.arange(dim), np.arange(dim)[::-1], _order(function, dim, where)]
    found: Any = None
    for order in orders:
        masks, _ = create(dim, hidden, framework("jax").numpy.asarray(order), 2)
        try:
            return functions.network(function, weights, dim, [as_array(m) for m in masks], where)
        except UnsupportedModel as error:
            found = error
    raise found


def _order(function: Any, dim: int, where: str) -> np.ndarray:
    """The order in which the entries are generated, told by what moves when one of them does."""
    start, other = np.random.default_rng(0).normal(size=(2, ROWS, 1, dim))
    one = np.eye(dim, dtype=bool)
    moved = np.where(one, other, start)  # (rows, which one, entries)
    here = jax_call(function, start)  # (rows, 1, 2, entries)
    depends = (jax_call(function, moved) != here).any((0, 2)).T
    order = networks.order_of(depends, dim, where)
    return np.arange(dim) if order is None else np.array(order)
