"""nflows (0.11 to 0.14): flows of vectors, data to latent.

Reference: Durkan et al. (2020), nflows: normalizing flows in PyTorch, doi:10.5281/zenodo.4296287.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import networks, parts
from flow_bridge.importers.networks import Conditioner, Linear, Outputs
from flow_bridge.importers.parts import Arrays, Layer, Part, Reading
from flow_bridge.importers.reading import (
    StandIn,
    activation_name,
    as_array,
    contents,
    demand,
    expect,
    field,
    float64_copy,
    in_numpy,
    kind,
    sigmoid,
    softplus,
    torch_call,
)
from flow_bridge.regularization import EPS
from flow_bridge.univariate import slope_offset

BLIND = (
    "the dimension that each masked autoregressive layer generates first does not see the context, as in "
    "nflows."
)
FOLDED = "batch normalisation inside networks is folded into their weights, and trains no more."
NORMALIZED = (
    "batch normalisation inside networks trains on with 1e-5 added to variances; by how much more was added "
    "is part of its running variances."
)


def read(flow: Any, embedding: str = "native") -> Reading:
    """An nflows ``Flow``.

    Args:
        flow: the flow.
        embedding: ``"outside"`` to leave the network of the context with the user: the context of the
            result is then its output.
    """
    return read_copy(float64_copy(flow), embedding, "nflows' embedding network")


def read_copy(flow: Any, embedding: str, where: str, live: bool = True) -> Reading:
    """``read`` for a flow that is ours to run or, if it is not ``live``, that cannot be run."""
    expect(flow, "nflows' Flow", "_transform _distribution _embedding_net")
    transform = field(flow, "_transform", "nflows' Flow")
    net = getattr(flow, "_embedding_net", None)
    outside = is_outside(embedding)
    base = _base(field(flow, "_distribution", "nflows' Flow"))
    notes: list[str] = []
    dim = base.architecture["dim"]
    layers = [layer(name, item, dim, notes) for name, item in flatten("_transform", transform)]
    width = max((parts.context_dim(item) for each in layers for item in each.parts), default=0)
    nets = [] if outside else embedding_parts(net, width, where, notes)

    def run(x: Any, context: Any) -> Any:
        return transform(x, context=context if outside or net is None else net(context))

    return Reading(
        layers,
        base,
        in_numpy(run) if live else None,
        nets,
        embed_with(net) if nets else None,
        notes,
    )


def is_outside(embedding: str) -> bool:
    """Whether the network of the context stays with the user."""
    if embedding not in ("native", "outside"):
        raise ValueError(
            f"import_flow expects embedding as 'native' or 'outside', got {embedding!r}."
        )
    return embedding == "outside"


def embed_with(net: Any) -> Any:
    """An embedding network on numpy arrays."""
    return lambda context: torch_call(net, context)


def embedding_parts(net: Any, width: int, where: str, notes: list[str]) -> list[Part]:
    """The networks that the context passes through, to the given width."""
    found = list(_embedding_modules(net, where, notes))
    for i in reversed(range(len(found))):
        if isinstance(found[i], tuple):
            mean, sd = (np.broadcast_to(a.ravel(), (width,)) for a in found[i])
            found[i] = parts.standardize(mean, sd, where)
        elif kind(found[i]) == "Linear":
            width = as_array(found[i].weight).shape[1]
    return networks.context_nets(found, where)


def _embedding_modules(net: Any, where: str, notes: list[str]) -> Iterator[Any]:
    """Linear layers and activations in turn; standardisations as pairs of mean and deviation."""
    name = "Identity" if net is None else kind(net)
    if name == "Identity":
        return
    if name == "Dropout":
        notes.extend(dropout(net))
    elif name == "Standardize":
        expect(net, f"{where}, Standardize", "mean std _mean _std")
        mean, sd = (as_array(field(net, key, where)) for key in ("_mean", "_std"))
        yield mean, sd
    elif name == "FCEmbedding":
        expect(net, f"{where}, FCEmbedding", "net")
        yield from _embedding_modules(net.net, where, notes)
    elif name == "Sequential":
        for item in contents(net, where):
            yield from _embedding_modules(item, where, notes)
    elif name == "Linear" or not list(_children(net)):
        yield net
    else:
        raise UnsupportedModel(
            f"{where} {name} has no counterpart: keep it, and import with embedding='outside'; the "
            "context of the flow is then its output."
        )


def _children(module: Any) -> Iterator[Any]:
    return iter(module.children()) if hasattr(module, "children") else iter(())


def dropout(module: Any) -> list[str]:
    """The note about a dropout."""
    expect(module, "Dropout", "p inplace")
    return [f"dropout {module.p:g} acts in training only and is left out."] if module.p else []


def _base(base: Any) -> Part:
    name = kind(base)
    where = f"nflows' {name}"
    if name in ("StandardNormal", "DiagonalNormal"):
        expect(base, where, "_shape _log_z mean_ log_std_ _context_encoder")
        shape = tuple(field(base, "_shape", where))
        if len(shape) == 1 and name == "StandardNormal":
            return parts.normal_base(np.zeros(shape), np.zeros(shape))
        if len(shape) == 1:
            return parts.normal_base(as_array(base.mean_)[0], as_array(base.log_std_)[0])
    raise UnsupportedModel(
        f"nflows' base {name} has no counterpart: only StandardNormal and DiagonalNormal of vectors have."
    )


def flatten(name: str, transform: Any) -> Iterator[tuple[str, Any]]:
    """Transforms one after another with their names, without what contains them."""
    if kind(transform) in ("CompositeTransform", "CompositeCDFTransform"):
        expect(transform, "nflows' CompositeTransform", "_transforms")
        for i, item in enumerate(contents(field(transform, "_transforms", name), name)):
            yield from flatten(f"{name}.{i}", item)
    else:
        yield name, transform


def layer(name: str, transform: Any, dim: int, notes: list[str]) -> Layer:
    """One transform, read."""

    def run(x: Any, context: Any) -> Any:
        return transform(x, context=context)

    label = f"{name} ({kind(transform)})"
    return Layer(label, _transform(transform, dim, notes), in_numpy(run))


def _transform(t: Any, dim: int, notes: list[str]) -> list[Part]:
    name = kind(t)
    where = f"nflows' {name}"
    if name in ("CompositeTransform", "InverseTransform"):
        expect(t, where, "_transforms _transform")
        if name == "InverseTransform":
            return parts.invert_all(_transform(field(t, "_transform", where), dim, notes))
        inner = contents(field(t, "_transforms", where), where)
        items = [_transform(item, dim, notes) for item in inner]
        return [part for item in items for part in item]
    if name in _READERS:
        return _READERS[name](t, dim, notes, where)
    raise UnsupportedModel(f"{where} has no counterpart.")


def _identity(t: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    expect(t, where, "")
    return []


def _pointwise(t: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    expect(t, where, "_scale _shift")
    scale, shift = (
        np.broadcast_to(as_array(field(t, key, where)), (dim,)) for key in ("_scale", "_shift")
    )
    return [parts.standardize(-shift / scale, 1 / scale, where)]


def _permutation(t: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    expect(t, where, "_dim _permutation")
    if field(t, "_dim", where) != 1:
        raise UnsupportedModel(f"{where} of another axis than the first has no counterpart.")
    return [parts.permutation(as_array(field(t, "_permutation", where)))]


_LINEAR = "features bias using_cache cache"


def without_cache(linear: Any) -> None:
    """Of a copy in float64, which has it in the old dtype."""
    if hasattr(linear, "cache"):
        expect(linear.cache, "the cache of a linear map", "weight inverse logabsdet")
        linear.using_cache = False


def _lu(t: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    own = "eps lower_entries upper_entries unconstrained_upper_diag"
    expect(t, where, f"{_LINEAR} {own} lower_indices upper_indices diag_indices")
    without_cache(t)
    lu = np.diag(np.log(softplus(as_array(t.unconstrained_upper_diag)) + t.eps))
    lu[np.tril_indices(dim, -1)] = as_array(t.lower_entries)
    lu[np.triu_indices(dim, 1)] = as_array(t.upper_entries)
    arrays = {"lu": lu, "shift": as_array(t.bias)}
    return [parts.part("LULinear", arrays, dim=dim, permutation=list(range(dim)))]


def _matrix(t: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    own = "_weight upper_indices diag_indices upper_entries log_upper_diag orthogonal"
    svd = "eps orthogonal_1 orthogonal_2 unconstrained_diagonal identity_init"
    expect(t, where, f"{_LINEAR} {own} {svd}")
    without_cache(t)
    for name in (name for name in svd.split() if name.startswith("orthogonal")):
        if hasattr(t, name):
            expect(getattr(t, name), f"{where}, {name}", "features num_transforms q_vectors")
    return [parts.matrix(as_array(t.weight()), as_array(t.bias))]


def _act_norm(t: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    expect(t, where, "initialized log_scale shift")
    if not bool(as_array(field(t, "initialized", where))):
        notes.append("ActNorm was never initialised from data in nflows, and is not here.")
    arrays = {"log_scale": as_array(t.log_scale), "shift": as_array(t.shift)}
    return [parts.part("ActNorm", arrays, dim=dim)]


def _batch_norm(t: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    expect(t, where, "momentum eps unconstrained_weight bias running_mean running_var")
    arrays = {
        "log_gamma": np.log(softplus(as_array(t.unconstrained_weight)) + t.eps),
        "beta": as_array(t.bias),
        "running_mean": as_array(t.running_mean),
        "running_var": as_array(t.running_var),
    }
    return [parts.part("BatchNorm", arrays, dim=dim, eps=t.eps, momentum=t.momentum)]


def _autoregressive_affine(t: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    expect(t, where, "features _epsilon autoregressive_net")
    rows = np.arange(dim)[:, None] * 2 + np.array([1, 0])  # theirs is [scale, shift]
    map = {"type": "AffineMap", "scale": "softplus", "offset": 0.0}
    map["minimum"] = float(field(t, "_epsilon", where))
    return [_autoregressive(t, map, Outputs.of(rows), dim, notes, where)]


_SPLINE = "num_bins min_bin_width min_bin_height min_derivative tails tail_bound"


def _autoregressive_spline(t: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    expect(t, where, f"features {_SPLINE} autoregressive_net")
    hidden = getattr(field(t, "autoregressive_net", where), "hidden_features", None)
    map, outputs = spline_outputs(t, dim, hidden, where)
    return [_autoregressive(t, map, outputs, dim, notes, where)]


class Spline(NamedTuple):
    """A spline, as parameters of it are read from nflows' raw numbers.

    Attributes:
        map: its architecture.
        offset: what is added to each number; there are as many.
        sizes: how many of the first numbers nflows divides by the root of the width of a coupling's network.
    """

    map: Architecture
    offset: np.ndarray
    sizes: int


def spline_outputs(
    t: Any, count: int, hidden: int | None, where: str
) -> tuple[Architecture, Outputs]:
    """The spline of a transform, and its parameters among the outputs of a network."""
    spline = spline_map(t, kind(t), where)
    size = len(spline.offset)
    factor = np.ones(size)
    if hidden is not None:
        factor[: spline.sizes] = 1 / math.sqrt(hidden)
    rows = np.arange(count)[:, None] * size + np.arange(size)
    return spline.map, Outputs.of(rows, factor, spline.offset)


def spline_map(t: Any, name: str, where: str) -> Spline:
    """The spline of what has nflows' options, and a name that says which one it is."""
    tails = getattr(t, "tails", None)
    if tails != "linear":
        raise UnsupportedModel(
            f"{where} with tails={tails!r} has no counterpart: only tails='linear' has."
        )
    num_bins, bound = int(t.num_bins), float(t.tail_bound)
    box = {"num_bins": num_bins, "low": -bound, "high": bound}
    if "Linear" in name:
        return Spline({"type": "LinearSplineMap", **box, "min_height": 0.0}, np.zeros(num_bins), 0)
    if "Cubic" in name:
        offset = np.zeros(2 * num_bins + 2)
        offset[2 * num_bins :] = math.log(2)
        least = {"min_width": float(t.min_bin_width), "min_height": float(t.min_bin_height)}
        return Spline({"type": "CubicSplineMap", **box, **least}, offset, 2 * num_bins)
    if "PiecewiseQuadratic" in name:
        least = {"min_width": float(t.min_bin_width), "min_slope": float(t.min_bin_height)}
        map = {"type": "QuadraticSplineMap", **box, **least, "edge_share": 0.25}
        return Spline(map, np.zeros(2 * num_bins - 1), 2 * num_bins - 1)
    offset = np.zeros(3 * num_bins - 1)
    offset[2 * num_bins :] = -slope_offset(t.min_derivative)
    least = {
        "min_width": float(t.min_bin_width),
        "min_height": float(t.min_bin_height),
        "min_slope": float(t.min_derivative),
    }
    return Spline({"type": "SplineMap", **box, **least}, offset, 2 * num_bins)


def _autoregressive(
    t: Any, map: Architecture, outputs: Outputs, dim: int, notes: list[str], where: str
) -> Part:
    conditioner, context_dim = _made(t.autoregressive_net, outputs, dim, notes, where)
    notes.extend(conditioner.notes)
    return networks.masked_autoregressive(map, conditioner, dim, context_dim)


def _made(
    made: Any, outputs: Outputs, dim: int, notes: list[str], where: str
) -> tuple[Conditioner, int]:
    """A ``MADE``: its conditioner and the width of its context."""
    where = f"{where}, {kind(made)}"
    if kind(made) != "MADE":
        raise UnsupportedModel(f"{where} has no counterpart: only MADE has.")
    own = "initial_layer context_layer use_residual_blocks activation blocks final_layer"
    expect(made, where, f"{own} hidden_features")
    blocks = contents(made.blocks, where)
    is_residual = bool(made.use_residual_blocks)
    first, last = (
        networks.linear(layer, where) for layer in (made.initial_layer, made.final_layer)
    )
    activations = {activation_name(owner.activation, where) for owner in (made, *blocks)}
    context = getattr(made, "context_layer", None)
    branches = [] if context is None else [networks.linear(context, where)]
    context_dim = branches[0].weight.shape[1] if branches else 0
    if branches:
        notes.append(BLIND)
    layers = [first]
    for block in blocks:
        notes.extend(dropout(block.dropout))
        if is_residual:
            layers += residual_block(block, "MaskedResidualBlock", notes, where)
            if branches:
                branches.append(networks.linear(block.context_layer, where))
        else:
            layers.append(feedforward_block(block, notes, where))
    layers.append(last)
    if len(activations) > 1:
        raise UnsupportedModel(f"{where} has different activations, which has no counterpart.")
    name = activations.pop()
    if not is_residual:
        branch = branches[0] if branches else None
        return networks.masked_mlp(layers, name, outputs, dim, where, branch), context_dim
    if not blocks:
        raise UnsupportedModel(f"{where} has no blocks, which has no counterpart.")
    conditioner = networks.masked_residual(layers, name, outputs, dim, where, branches=branches)
    return conditioner, context_dim


def residual_block(block: Any, name: str, notes: list[str], where: str) -> list[Linear]:
    """The two layers of a residual block."""
    if kind(block) != name:
        raise UnsupportedModel(f"{where} has a {kind(block)}, which has no counterpart.")
    known = (
        "context_layer use_batch_norm batch_norm_layers linear_layers degrees activation dropout"
    )
    expect(block, f"{where}, {name}", known)
    if getattr(block.activation, "inplace", False):  # then it changes what the block is added to
        raise UnsupportedModel(
            f"{where} has an activation in place in residual blocks, which has no counterpart."
        )
    layers = [networks.linear(layer, where) for layer in contents(block.linear_layers, where)]
    if not block.use_batch_norm:
        return layers
    notes.append(NORMALIZED)
    norms = contents(field(block, "batch_norm_layers", where), where)
    return [
        Linear(*layer[:3], norm=batch_normalization(norm, where))
        for layer, norm in zip(layers, norms, strict=True)
    ]


def batch_normalization(norm: Any, where: str) -> Arrays:
    """The arrays of a ``BatchNorm1d``, as if it added to the variance what ours adds."""
    own = (
        "num_features eps momentum affine track_running_stats weight bias running_mean running_var"
    )
    where = f"{where}, BatchNorm1d"
    expect(norm, where, f"{own} num_batches_tracked")
    demand(norm, where, affine=True, track_running_stats=True)
    names = ("weight", "bias", "running_mean", "running_var")
    arrays = {name: as_array(getattr(norm, name)) for name in names}
    arrays["running_var"] = arrays["running_var"] + (norm.eps - EPS)
    if (arrays["running_var"] < 0).any():
        raise UnsupportedModel(
            f"{where} with eps={norm.eps} has no counterpart: only with {EPS} and more."
        )
    return arrays


def feedforward_block(block: Any, notes: list[str], where: str) -> Linear:
    """The layer of a feedforward block, with the batch normalisation before it."""
    if kind(block) != "MaskedFeedforwardBlock":
        raise UnsupportedModel(f"{where} has a {kind(block)}, which has no counterpart.")
    expect(block, where, "batch_norm linear degrees activation dropout")
    layer = networks.linear(block.linear, where)
    norm = getattr(block, "batch_norm", None)
    if norm is None:
        return layer
    notes.append(FOLDED)
    arrays = batch_normalization(norm, where)
    factor = arrays["weight"] / np.sqrt(arrays["running_var"] + EPS)
    shift = arrays["bias"] - arrays["running_mean"] * factor
    weight = layer.weight if layer.mask is None else np.where(layer.mask, layer.weight, 0)
    return Linear(weight * factor, layer.bias + weight @ shift, layer.mask)


_COUPLING = "features identity_features transform_features transform_net unconditional_transform"


def _coupling(t: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    name = kind(t)
    fixed, free = as_array(t.identity_features), as_array(t.transform_features)
    count = len(free)
    net = t.transform_net
    if name.startswith("Piecewise"):
        expect(t, where, f"{_COUPLING} {_SPLINE}")
        map, outputs = spline_outputs(t, count, getattr(net, "hidden_features", None), where)
    elif name == "AdditiveCouplingTransform":
        expect(t, where, _COUPLING)
        map, outputs = {"type": "ShiftMap"}, Outputs.of(np.arange(count)[:, None])
    else:
        expect(t, where, f"{_COUPLING} scale_activation")
        map = _scale(t, count, where)
        outputs = Outputs.of(np.arange(count)[:, None] + np.array([0, count]))
    if not len(fixed):
        return [_without_fixed(map, net, outputs, dim, notes, where)]
    conditioner, in_dim = coupling_network(net, outputs, notes, where)
    mask = np.isin(np.arange(dim), fixed)
    found = [networks.coupling(map, conditioner, mask, in_dim - len(fixed))]
    if t.unconditional_transform is not None:
        found.append(_unconditional(t.unconditional_transform, fixed, dim, where))
    return found


def coupling_network(
    net: Any, outputs: Outputs, notes: list[str], where: str
) -> tuple[Conditioner, int]:
    """The conditioner of a coupling, and the width of its input, the context's included."""
    name = kind(net)
    where = f"{where}, {name}"
    if name == "ResidualNet":
        known = "hidden_features context_features preprocessing initial_layer blocks final_layer"
        expect(net, where, known)
        if getattr(net, "preprocessing", None) is not None:
            raise UnsupportedModel(f"{where} with periodic features has no counterpart.")
        blocks = contents(net.blocks, where)
        if not blocks:
            raise UnsupportedModel(f"{where} has no blocks, which has no counterpart.")
        layers = [networks.linear(net.initial_layer, where)]
        names = set()
        gates = []
        for block in blocks:
            layers += residual_block(block, "ResidualBlock", notes, where)
            notes.extend(dropout(block.dropout))
            names.add(activation_name(block.activation, where))
            if net.context_features is not None:
                gates.append(networks.linear(block.context_layer, where))
        layers.append(networks.linear(net.final_layer, where))
        if len(names) > 1:
            raise UnsupportedModel(f"{where} has different activations, which has no counterpart.")
        conditioner = networks.residual(layers, names.pop(), outputs, gates)
        return conditioner, layers[0].weight.shape[1]
    if name == "MLP":
        known = "_in_shape _out_shape _hidden_sizes _activation _activate_output"
        expect(net, where, f"{known} _input_layer _hidden_layers _output_layer")
        inner = (field(net, key, where) for key in ("_input_layer", "_output_layer"))
        first, last = (networks.linear(module, where) for module in inner)
        inside = contents(field(net, "_hidden_layers", where), where)
        hidden = [networks.linear(m, where) for m in inside]
        if field(net, "_activate_output", where):
            raise UnsupportedModel(f"{where} ends in an activation, which has no counterpart.")
        activation = activation_name(field(net, "_activation", where), where)
        layers = [first, *hidden, last]
        return networks.mlp(layers, activation, outputs), first.weight.shape[1]
    layers, activation = networks.sequence(plain_sequence(net, notes, where), where)
    return networks.mlp(layers, activation, outputs), layers[0].weight.shape[1]


def plain_sequence(net: Any, notes: list[str], where: str) -> list[Any]:
    """The modules of a ``Sequential``, or of a module that is nothing but one."""
    if kind(net) != "Sequential":
        inner = list(_children(net))
        if len(inner) != 1 or kind(inner[0]) != "Sequential":
            raise UnsupportedModel(f"{where} is a network that has no counterpart.")
        net = inner[0]
    found = []
    for module in contents(net, where):
        if kind(module) == "Dropout":
            notes.extend(dropout(module))
        else:
            found.append(module)
    return found


def _without_fixed(
    map: Architecture, net: Any, outputs: Outputs, dim: int, notes: list[str], where: str
) -> Part:
    """sbi's coupling of one dimension: the context alone decides."""
    if kind(net) != "ContextSplineMap":
        raise UnsupportedModel(f"{where} that fixes nothing has no counterpart.")
    expect(net, f"{where}, ContextSplineMap", "hidden_features spline_predictor")
    modules = [
        module for module in contents(net.spline_predictor, where) if kind(module) == "Linear"
    ]
    if len({id(module) for module in modules}) < len(modules):
        notes.append("hidden layers that share their weights in sbi have weights of their own.")
    layers, activation = networks.sequence(net.spline_predictor, where)
    conditioner = networks.mlp(layers, activation, outputs, by_entry=True)
    context_dim = layers[0].weight.shape[1]
    return networks.elementwise(map, conditioner, dim, context_dim)


def _scale(t: Any, count: int, where: str) -> Architecture:
    """How a coupling makes scales, from its values: later versions let the user choose."""
    if isinstance(t, StandIn):  # what version 0.14 has
        return {"type": "AffineMap", **SIGMOID, "minimum": 1e-3}
    raw = np.linspace(-4, 4, 33)
    given = np.concatenate([np.zeros((33, count)), np.repeat(raw[:, None], count, 1)], 1)
    scale = torch_call(lambda a: field(t, "_scale_and_shift", where)(a)[0], given)[:, 0]
    for value, options in (
        (sigmoid(raw + 2) + 1e-3, SIGMOID),
        (softplus(raw) + 1e-3, {"scale": "softplus", "offset": 0.0}),
    ):
        if np.allclose(scale, value, rtol=1e-13, atol=0):
            return {"type": "AffineMap", **options, "minimum": 1e-3}
    if np.allclose(scale, np.exp(raw), rtol=1e-13, atol=0):
        return {"type": "AffineMap", "scale": "exp"}
    raise UnsupportedModel(f"{where} has a scale_activation that is none of twinflows'.")


SIGMOID = {"scale": "sigmoid", "bound": 1.0, "offset": 2.0}


def _unconditional(u: Any, fixed: np.ndarray, dim: int, where: str) -> Part:
    """Splines of the fixed dimensions, the identity of the others."""
    where = f"{where}, {kind(u)}"
    if kind(u) not in CDF_ARRAYS:
        raise UnsupportedModel(f"{where} has no counterpart.")
    return own_spline(u, fixed, dim, where)


CDF_ARRAYS = {
    "PiecewiseLinearCDF": "unnormalized_pdf",
    "PiecewiseQuadraticCDF": "unnormalized_widths unnormalized_heights",
    "PiecewiseCubicCDF": (
        "unnormalized_widths unnormalized_heights unnorm_derivatives_left unnorm_derivatives_right"
    ),
    "PiecewiseRationalQuadraticCDF": (
        "unnormalized_widths unnormalized_heights unnormalized_derivatives"
    ),
}
"""The raw numbers of splines that have no network."""


def own_spline(u: Any, entries: np.ndarray, dim: int, where: str) -> Part:
    """Splines with parameters of their own for some entries, the identity for the others."""
    own = CDF_ARRAYS[kind(u)]
    expect(u, where, f"{own} min_bin_width min_bin_height min_derivative tails tail_bound")
    raw = [as_array(field(u, name, where)) for name in own.split()]
    spline = spline_map(_Options(u, raw[0].shape[-1]), kind(u), where)
    own_raw = np.concatenate(raw, -1) + spline.offset
    if "edge_share" in spline.map and len(entries) < dim:  # no parameters make it the identity
        return networks.constant_coupling(spline.map, own_raw, ~np.isin(np.arange(dim), entries))
    parameters = np.zeros((dim, len(spline.offset)))
    parameters[entries] = own_raw
    return parts.part("Elementwise", {"raw_parameters": parameters}, dim=dim, map=spline.map)


class _Options:
    """Options of a spline that does not keep its number of bins."""

    def __init__(self, owner: Any, num_bins: int) -> None:
        self.num_bins = num_bins
        self.owner = owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.owner, name)


def _elementwise_spline(t: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    return [own_spline(t, np.arange(dim), dim, where)]


_READERS = {
    "IdentityTransform": _identity,
    "PointwiseAffineTransform": _pointwise,
    "AffineTransform": _pointwise,
    "AffineScalarTransform": _pointwise,
    "Permutation": _permutation,
    "RandomPermutation": _permutation,
    "ReversePermutation": _permutation,
    "LULinear": _lu,
    "NaiveLinear": _matrix,
    "QRLinear": _matrix,
    "SVDLinear": _matrix,
    "ActNorm": _act_norm,
    "BatchNorm": _batch_norm,
    "MaskedAffineAutoregressiveTransform": _autoregressive_affine,
    "MaskedPiecewiseLinearAutoregressiveTransform": _autoregressive_spline,
    "MaskedPiecewiseQuadraticAutoregressiveTransform": _autoregressive_spline,
    "MaskedPiecewiseCubicAutoregressiveTransform": _autoregressive_spline,
    "MaskedPiecewiseRationalQuadraticAutoregressiveTransform": _autoregressive_spline,
    "AffineCouplingTransform": _coupling,
    "AdditiveCouplingTransform": _coupling,
    "PiecewiseLinearCouplingTransform": _coupling,
    "PiecewiseQuadraticCouplingTransform": _coupling,
    "PiecewiseCubicCouplingTransform": _coupling,
    "PiecewiseRationalQuadraticCouplingTransform": _coupling,
    **dict.fromkeys(CDF_ARRAYS, _elementwise_spline),
}
