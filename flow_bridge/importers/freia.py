"""FrEIA 0.2 and its later development: sequences of couplings on vectors, data to latent.

Its models have no distribution of the latent; it is the standard normal, as in FrEIA's own loss.

Reference: Ardizzone et al. (2018-2022), https://github.com/vislearn/FrEIA.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from operator import methodcaller
from typing import Any

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import networks, nflows, parts
from flow_bridge.importers.networks import Conditioner, Linear, Outputs
from flow_bridge.importers.parts import Arrays, Layer, Part, Reading
from flow_bridge.importers.reading import (
    PROBE,
    as_array,
    contents,
    expect,
    float64_copy,
    in_numpy,
    kind,
    torch_call,
)

SHRINK = 0.1
"""What ``AllInOneBlock`` multiplies the outputs of its network by."""
STEEPNESS = 0.636
"""FrEIA's 2 / pi."""


def read(model: Any) -> Reading:
    """A ``SequenceINN``, or a ``GraphINN`` that is one chain."""
    name = kind(model)
    where = f"FrEIA's {name}"
    if name not in ("SequenceINN", "GraphINN", "ReversibleGraphNet"):
        raise UnsupportedModel(f"{where} has no counterpart: only SequenceINN and GraphINN have.")
    model = float64_copy(model)
    given = [*(_sequence if name == "SequenceINN" else _graph)(model, where)]
    shape = model.dims_in[0]
    if len(shape) != 1:
        raise UnsupportedModel(f"{where} of images or other arrays has no counterpart.")
    layers, corrections = [], 0.0
    notes = []
    for module, conditional in given:
        found = _transform(module, shape[0])
        claimed = _missing_log_det(found)
        corrections += abs(claimed)
        layers.append(Layer(kind(module), found, in_numpy(_step(module, conditional, claimed))))
    if corrections > 1e-14:
        notes.append(
            "FrEIA takes log|det| of its fixed rotations, which are stored in float32, for 0; here it is "
            f"what it is, {corrections:.0e} away."
        )
    for module in model.modules():
        if kind(module) == "Dropout":
            notes += nflows.dropout(module)
    base = parts.part("StandardNormal", dim=shape[0])
    return Reading(layers, base, parts.composed(layers), notes=notes)


def _sequence(model: Any, where: str) -> Iterator[tuple[Any, bool]]:
    """Modules, and whether each gets the condition."""
    expect(model, where, "dims_in dims_c shapes conditions module_list force_tuple_output")
    if len({index for index in model.conditions if index is not None}) > 1:
        raise UnsupportedModel(
            f"{where} has no counterpart with several conditions: make them one."
        )
    modules = contents(model.module_list, where)
    for module, index in zip(modules, model.conditions, strict=True):
        if kind(module) == "SequenceINN":
            raise UnsupportedModel(f"{where} has no counterpart with another in it.")
        yield module, index is not None


def _graph(model: Any, where: str) -> Iterator[tuple[Any, bool]]:
    expect(
        model,
        where,
        "dims_in dims_c node_list node_list_fwd node_list_rev in_nodes condition_nodes out_nodes ff_nodes "
        "global_out_shapes force_tuple_output module_list",
    )
    if getattr(model, "ff_nodes", None):
        raise UnsupportedModel(f"{where} has no counterpart with feed-forward nodes.")
    if len(model.condition_nodes) > 1:
        raise UnsupportedModel(
            f"{where} has no counterpart with several conditions: make them one."
        )
    ends = [*model.in_nodes, *model.out_nodes, *model.condition_nodes]
    for node in [*model.node_list, *model.condition_nodes]:
        own = " ".join(f"out{i}" for i in range(max(1, len(node.inputs))))
        expect(node, f"{where}, node", f"{NODE} {own}")
    given = model.node_list_fwd if hasattr(model, "node_list_fwd") else model.node_list
    nodes = [node for node in given if not any(node is end for end in ends)]
    contents(model.module_list, where)
    previous = model.in_nodes[0]
    for node in [*nodes, model.out_nodes[0]]:
        if len(model.in_nodes) != 1 or len(model.out_nodes) != 1 or len(node.inputs) != 1:
            raise UnsupportedModel(f"{where} has no counterpart unless it is one chain of nodes.")
        if node.inputs[0][0] is not previous:
            raise UnsupportedModel(f"{where} has no counterpart unless it is one chain of nodes.")
        previous = node
        if node is not model.out_nodes[0]:
            yield node.module, len(node.conditions) > 0


NODE = (
    "conditions condition_dims dims input_dims inputs module module_args module_type name output_dims "
    "outputs"
)
"""Of a graph, whose modules were made of it."""


def _step(module: Any, conditional: bool, claimed: float) -> Callable[[Any, Any], Any]:
    def run(x: Any, context: Any) -> Any:
        given = {"c": [context]} if conditional else {}
        (z,), log_det = module([x], **given)
        return z, x.new_zeros(len(x)) + log_det + claimed

    return run


def _missing_log_det(found: list[Part]) -> float:
    """log|det| of matrices that FrEIA takes for rotations."""
    return sum(
        float(np.trace(p.arrays["lu"])) for p in found if p.architecture["type"] == "LULinear"
    )


def _transform(module: Any, dim: int) -> list[Part]:
    name = kind(module)
    where = f"FrEIA's {name}"
    if name not in MODULES:
        raise UnsupportedModel(f"{where} has no counterpart{REASONS.get(name, '')}.")
    reader, attributes = MODULES[name]
    expect(module, where, f"dims_in dims_c {attributes}")
    return reader(module, dim, where)


def _subnet(
    net: Any, map: Architecture, outputs: Outputs, fixed: np.ndarray, context_dim: int, where: str
) -> Part:
    """A coupling with one network, of the fixed entries and the condition."""
    conditioner = networks.mlp(*_layers(net, where), outputs)
    return networks.coupling(map, conditioner, fixed, context_dim)


def _layers(net: Any, where: str) -> tuple[list[Linear], str]:
    if kind(net) != "Sequential":
        raise UnsupportedModel(
            f"{where} has no counterpart with a subnet {kind(net)}: only Sequential."
        )
    return networks.sequence(net, where)


def _scale(module: Any, where: str) -> tuple[Architecture, float]:
    """The map of a coupling, and what its raw scales are multiplied by."""
    clamp = float(module.clamp)
    values = torch_call(module.f_clamp, PROBE)
    if np.allclose(values, STEEPNESS * np.arctan(PROBE), rtol=1e-12):
        size = STEEPNESS * clamp
        return {"type": "AffineMap", "scale": "arctan", "bound": size * math.pi / 2}, size
    for factor in (1, 0.5):  # "TANH", "SIGMOID"
        if np.allclose(values, np.tanh(factor * PROBE), rtol=1e-12):
            return {"type": "AffineMap", "scale": "tanh", "bound": clamp}, factor * clamp
    raise UnsupportedModel(f"{where} has no counterpart with a clamp_activation of your own.")


def _affine_outputs(size: int, factor: float, shrink: float = 1.0) -> Outputs:
    """From all scales and then all shifts to shift and scale of each entry."""
    return Outputs.of(np.arange(size)[:, None] + [size, 0], [shrink, shrink * factor])


def _halves(module: Any, dim: int, where: str) -> tuple[np.ndarray, int]:
    """Which entries are the first half, and how many they are."""
    size = module.split_len1
    if not 0 < size < dim:
        raise UnsupportedModel(f"{where} has no counterpart with a half that is empty.")
    return np.arange(dim) < size, size


def _glow(module: Any, dim: int, where: str) -> list[Part]:
    first, size = _halves(module, dim, where)
    map, factor = _scale(module, where)
    width = module.condition_length
    return [
        _subnet(module.subnet2, map, _affine_outputs(size, factor), ~first, width, where),
        _subnet(module.subnet1, map, _affine_outputs(dim - size, factor), first, width, where),
    ]


def _one_sided(module: Any, dim: int, where: str) -> list[Part]:
    first, size = _halves(module, dim, where)
    map, factor = _scale(module, where)
    outputs = _affine_outputs(dim - size, factor)
    return [_subnet(module.subnet, map, outputs, first, module.condition_length, where)]


def _nice(module: Any, dim: int, where: str) -> list[Part]:
    first, size = _halves(module, dim, where)
    width, shift = module.condition_length, {"type": "ShiftMap"}
    return [
        _subnet(module.F, shift, Outputs.of(np.arange(size)[:, None]), ~first, width, where),
        _subnet(module.G, shift, Outputs.of(np.arange(dim - size)[:, None]), first, width, where),
    ]


def _rnvp(module: Any, dim: int, where: str) -> list[Part]:
    first, _ = _halves(module, dim, where)
    map, factor = _scale(module, where)
    width = module.condition_length
    return [
        _separate(module.subnet_t2, module.subnet_s2, map, factor, ~first, width, where),
        _separate(module.subnet_t1, module.subnet_s1, map, factor, first, width, where),
    ]


def _separate(
    shift: Any,
    scale: Any,
    map: Architecture,
    factor: float,
    fixed: np.ndarray,
    context_dim: int,
    where: str,
) -> Part:
    """A coupling with two networks, padded with zeros to ``SeparateMLPs``."""
    arrays: Arrays = {}
    kinds = []
    seen = np.flatnonzero(np.append(fixed, np.ones(context_dim, bool)))
    for i, (net, times) in enumerate(((shift, 1.0), (scale, factor))):
        layers, activation = _layers(net, where)
        kinds.append({"hidden_dims": networks.widths(layers), "activation": activation})
        last = layers[-1]
        weight = np.zeros((len(fixed), last.weight.shape[1]))
        bias = np.zeros(len(fixed))
        weight[~fixed], bias[~fixed] = times * last.weight, times * last.bias
        layers[-1] = Linear(weight, bias)
        below = np.zeros((len(layers[0].weight), len(fixed) + context_dim))
        below[:, seen] = layers[0].weight
        layers[0] = Linear(below, layers[0].bias)
        arrays |= networks.arrays_of(layers, f"network.networks.{i}.layers")
    if kinds[0] != kinds[1]:
        raise UnsupportedModel(f"{where} has no counterpart with two subnets of different kinds.")
    conditioner = Conditioner({"type": "SeparateMLPs", **kinds[0]}, arrays)
    return networks.coupling(map, conditioner, fixed, context_dim)


def _conditional_affine(module: Any, dim: int, where: str) -> list[Part]:
    map, factor = _scale(module, where)
    layers, activation = _layers(module.subnet, where)
    layers[-1] = _affine_outputs(dim, factor).taken(layers[-1], by_entry=True)
    net = {"type": "MLP", "hidden_dims": networks.widths(layers), "activation": activation}
    options = {"dim": dim, "map": map, "context_dim": module.condition_length, "conditioner": net}
    return [parts.part("Elementwise", networks.arrays_of(layers), **options)]


def _all_in_one(module: Any, dim: int, where: str) -> list[Part]:
    if module.GIN:
        raise UnsupportedModel(f"{where} has no counterpart with gin_block=True.")
    if module.input_rank:
        raise UnsupportedModel(f"{where} of images has no counterpart.")
    if dim < 2:
        raise UnsupportedModel(f"{where} of one dimension has no counterpart.")
    size, clamp = module.splits[1], float(module.clamp)
    probe = np.full((1, 2 * size), 7.0)
    affine = partial(methodcaller, "_affine")
    got = torch_call(lambda a: affine(a.new_zeros(1, size), a)(module)[1] / size, probe)[0]
    factors = {clamp: math.tanh(0.7), 1.0: math.tanh(0.7 / clamp)}  # of 0.2 and of later versions
    known = [f for f, value in factors.items() if math.isclose(got, clamp * value, rel_tol=1e-12)]
    if not known:
        raise UnsupportedModel(f"{where} scales as no version of FrEIA that twinflows knows.")
    map = {"type": "AffineMap", "scale": "tanh", "bound": clamp}
    outputs = _affine_outputs(size, known[0], SHRINK)
    fixed = np.arange(dim) < dim - size
    found = [_subnet(module.subnet, map, outputs, fixed, module.condition_channels, where)]
    scale = as_array(module.global_scale_activation(module.global_scale)).ravel()
    arrays = {"log_scale": np.log(scale), "shift": as_array(module.global_offset).ravel()}
    found.append(parts.part("Affine", arrays, dim=dim))
    if module.householder:
        weight = as_array(methodcaller("_construct_householder_permutation")(module))
        back = weight.T
    else:
        weight, back = as_array(module.w_perm), as_array(module.w_perm_inv)
    found.append(_rotation(weight))
    return [_rotation(back), *found] if module.reverse_pre_permute else found


def _rotation(weight: np.ndarray) -> Part:
    """z = W x, a permutation where it is one or given as one."""
    if weight.ndim == 1:
        return parts.permutation(weight)
    is_one = weight == 1
    if ((weight == 0) | is_one).all() and (is_one.sum(0) == 1).all() and (is_one.sum(1) == 1).all():
        return parts.permutation(is_one.argmax(1))
    return parts.matrix(weight)


def _act_norm(module: Any, dim: int, where: str) -> list[Part]:
    old = hasattr(module, "init_on_next_batch")
    done = not module.init_on_next_batch if old else bool(module.is_initialized)
    if not done:
        raise UnsupportedModel(
            f"{where} was never initialised: pass a batch of data through the model first."
        )
    names = ("scale", "bias") if old else ("log_scale", "loc")
    log_scale, shift = (as_array(getattr(module, name)).ravel() for name in names)
    norm = parts.part("ActNorm", {"log_scale": log_scale, "shift": shift}, dim=dim)
    return [norm if old else parts.invert(norm)]


def _inverse(module: Any, dim: int, where: str) -> list[Part]:
    return parts.invert_all(_transform(module.module, dim))


def _permute(module: Any, dim: int, where: str) -> list[Part]:
    return [parts.permutation(as_array(module.perm))]


HALVES = (
    "channels ndims split_len1 split_len2 clamp conditional condition_length f_clamp "
    "subnet subnet1 subnet2 subnet_s1 subnet_t1 subnet_s2 subnet_t2 F G"
)

MODULES: dict[str, tuple[Callable[[Any, int, str], list[Part]], str]] = {
    "ActNorm": (_act_norm, "scale bias init_on_next_batch log_scale loc is_initialized"),
    "AffineCouplingOneSided": (_one_sided, HALVES),
    "AllInOneBlock": (
        _all_in_one,
        "input_rank sum_dims conditional condition_channels splits permute_function in_channels clamp GIN "
        "reverse_pre_permute householder softplus global_scale_activation global_scale global_offset "
        "vk_householder w_perm w_perm_inv w_0 subnet last_jac",
    ),
    "ConditionalAffineTransform": (_conditional_affine, HALVES),
    "GLOWCouplingBlock": (_glow, HALVES),
    "Inverse": (_inverse, "module"),
    "NICECouplingBlock": (_nice, HALVES),
    "PermuteRandom": (_permute, "in_channels perm perm_inv"),
    "RNVPCouplingBlock": (_rnvp, HALVES),
}
"""How each module is read, and what is known of its attributes."""

REASONS = {"GINCouplingBlock": ": no coupling of twinflows subtracts the mean of its log-scales"}
