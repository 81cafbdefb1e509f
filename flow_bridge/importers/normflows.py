"""normflows 1.4 to 1.7: flows on vectors, and Glow.

Its layers go from latent to data, so the last comes first, each as its ``inverse``. Its MADE is not that of
nflows: the context enters without an activation and gates the blocks, and without residual blocks nothing
stands between the first two layers.

Reference: Stimper et al. (2023), doi:10.21105/joss.05361.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import networks, nflows, parts
from flow_bridge.importers.networks import Conditioner, Linear, Outputs
from flow_bridge.importers.parts import Arrays, Layer, Part, Reading
from flow_bridge.importers.reading import (
    activation_name,
    as_array,
    contents,
    demand,
    expect,
    float64_copy,
    framework,
    in_numpy,
    kind,
    members,
    softplus,
)

SIGMOID: Architecture = {"type": "AffineMap", "scale": "sigmoid", "bound": 1.0, "offset": 2.0}
EXP: Architecture = {"type": "AffineMap", "scale": "exp"}


def read(model: Any) -> Reading:
    """A ``NormalizingFlow`` or a ``ConditionalNormalizingFlow``, or a ``MultiscaleFlow`` of images."""
    where = f"normflows' {kind(model)}"
    if kind(model) == "MultiscaleFlow":
        return _multiscale(model, where)
    if kind(model) not in ("NormalizingFlow", "ConditionalNormalizingFlow"):
        raise UnsupportedModel(f"{where} has no counterpart: only NormalizingFlow has.")
    expect(model, where, "q0 flows p")
    return read_copy(float64_copy(model))


def read_copy(model: Any, live: bool = True) -> Reading:
    """``read`` for a model that is ours to run, or of which there are only the arrays."""
    base = _base(model.q0)
    given = contents(model.flows, "normflows' flows")
    flows = [item for flow in reversed(given) for item in _members(flow)]
    inverse = any(kind(_bare(flow)) in ("Planar", "Radial") for flow in flows)
    notes: list[str] = []
    layers = [_layer(flow, base.architecture["dim"], inverse, notes) for flow in flows]
    # its own methods add log|det| up in float32
    run = parts.composed(layers, inverse) if live else None
    return Reading(layers, base, run, notes=notes, inverse=inverse)


def _members(flow: Any) -> Iterator[Any]:
    """The flows in a ``Composite``, the last first."""
    if kind(flow) != "Composite":
        yield flow
        return
    expect(flow, "normflows' Composite", "_flows")
    for item in reversed(contents(members(flow)["_flows"], "normflows' Composite")):
        yield from _members(item)


def _bare(flow: Any) -> Any:
    return _bare(flow.flow) if kind(flow) == "Reverse" else flow


def _layer(flow: Any, dim: int, inverse: bool, notes: list[str]) -> Layer:
    def run(x: Any, context: Any) -> Any:
        step = flow.forward if inverse else flow.inverse
        return step(x) if context is None else step(x, context=context)

    return Layer(kind(flow), _transform(flow, dim, notes), in_numpy(run))


def _transform(flow: Any, dim: int, notes: list[str]) -> list[Part]:
    """The map from data to latent."""
    name = kind(flow)
    where = f"normflows' {name}"
    if name not in FLOWS:
        raise UnsupportedModel(f"{where} has no counterpart{REASONS.get(name, '')}.")
    reader, attributes = FLOWS[name]
    expect(flow, where, attributes)
    return reader(flow, dim, notes, where)


def _base(base: Any) -> Part:
    name = kind(base)
    where = f"normflows' base {name}"
    if name == "DiagGaussian":
        expect(base, where, "shape n_dim d loc log_scale temperature")
        if base.n_dim != 1:
            raise UnsupportedModel(f"{where} of images has no counterpart.")
        if base.temperature is not None:
            raise UnsupportedModel(
                f"{where} has no counterpart with a temperature: set it to None."
            )
        return parts.normal_base(as_array(base.loc)[0], as_array(base.log_scale)[0])
    if name == "GaussianMixture":
        expect(base, where, "n_modes dim loc log_scale weight_scores")
        arrays = {"loc": base.loc, "log_scale": base.log_scale, "logits": base.weight_scores}
        return parts.part(
            "GaussianMixture",
            {key: as_array(value)[0] for key, value in arrays.items()},
            dim=base.dim,
            num_components=base.n_modes,
        )
    raise UnsupportedModel(
        f"{where} has no counterpart: only DiagGaussian and GaussianMixture have."
    )


def _masked_affine(flow: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    fixed = as_array(flow.b).ravel()
    if not set(fixed.tolist()) == {0.0, 1.0}:
        raise UnsupportedModel(f"{where} has no counterpart unless its mask holds both 0 and 1.")
    given = [name for name in ("t", "s") if kind(getattr(flow, name)) == "MLP"]
    for name in {"t", "s"} - set(given):
        if getattr(getattr(flow, name), "__name__", "") != "zeros_like":  # where none was given
            label = kind(getattr(flow, name))
            raise UnsupportedModel(
                f"{where} has no counterpart with a network {label}: only nets.MLP."
            )
    if not given:
        return []
    read = {name: _mlp(getattr(flow, name), notes, where, name == "s") for name in given}
    layers, activation, bound = read["s" if "s" in given else "t"]
    if any(
        (networks.widths(n[0]), n[1]) != (networks.widths(layers), activation)
        for n in read.values()
    ):
        raise UnsupportedModel(f"{where} has no counterpart with two networks of different kinds.")
    arrays: Arrays = {}
    nets = [read[name][0] for name in given]
    if given == ["s"]:
        last = layers[-1]
        nets = [[*layers[:-1], Linear(0 * last.weight, 0 * last.bias)], layers]
    elif given == ["t"]:
        last = nets[0][-1]
        nets = [[*nets[0][:-1], Linear(-last.weight, -last.bias)]]
    for i, net in enumerate(nets):
        arrays |= networks.arrays_of(net, f"network.networks.{i}.layers")
    tanh = {"type": "AffineMap", "scale": "tanh", "bound": bound}
    map = {"type": "ShiftMap"} if given == ["t"] else tanh if bound else EXP
    order = {} if given == ["t"] else {"order": "shift_divide"}
    options = {
        "type": "SeparateMLPs",
        "hidden_dims": networks.widths(layers),
        "activation": activation,
    }
    return [networks.coupling(map | order, Conditioner(options, arrays), fixed, 0)]


def _mlp(
    net: Any, notes: list[str], where: str, is_scale: bool = False
) -> tuple[list[Linear], str, float]:
    """Layers and activation of a ``nets.MLP``, and B where it gives B tanh(a / B) of their output a."""
    expect(net, f"{where}, MLP", "net")
    modules = contents(net.net, where)
    end = max(i for i, module in enumerate(modules) if kind(module) == "Linear") + 1
    notes.extend(note for m in modules if kind(m) == "Dropout" for note in nflows.dropout(m))
    layers, activation = networks.sequence(modules[:end], where)
    tail = [kind(module) for module in modules[end:]]
    if not tail:
        return layers, activation, 0.0
    if not is_scale or [name for name in tail if name != "ConstScaleLayer"] != ["Tanh"]:
        raise UnsupportedModel(
            f"{where} has no counterpart with a network that ends in {tail[-1]}: only that of a scale may "
            "end in a function, tanh."
        )
    before, after = 1.0, 1.0
    for i, module in enumerate(modules[end:]):
        if kind(module) == "ConstScaleLayer":
            expect(module, f"{where}, ConstScaleLayer", "scale scale_cpu")
            factor = float(as_array(module.scale))
            before, after = (
                (before * factor, after) if i < tail.index("Tanh") else (before, after * factor)
            )
    if after <= 0:
        raise UnsupportedModel(f"{where} has no counterpart with an output_scale below 0.")
    last = layers[-1]
    factor = before * after
    return [*layers[:-1], Linear(last.weight * factor, last.bias * factor)], activation, after


def _coupling_block(flow: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    map, fixed, rows = _halves(flow, dim, where)
    net = flow.flows[1].param_map
    if kind(net) == "MLP":
        layers, activation, _ = _mlp(net, notes, where)
    elif kind(net) == "Sequential":
        layers, activation = networks.sequence(net, where)
    else:
        raise UnsupportedModel(
            f"{where} has no counterpart with a network {kind(net)}: only nets.MLP."
        )
    outputs = Outputs.of(rows, -1 if map["type"] == "ShiftMap" else 1)
    return [networks.coupling(map, networks.mlp(layers, activation, outputs), fixed, 0)]


def _halves(flow: Any, dim: int, where: str) -> tuple[Architecture, np.ndarray, np.ndarray]:
    """The map, what stays fixed, and where the parameters are among the outputs of the network."""
    split, affine, merge = contents(flow.flows, where)
    for module in (split, merge):
        expect(module, f"{where}, {kind(module)}", "mode")
    expect(affine, f"{where}, AffineCoupling", "param_map scale scale_map")
    position = np.arange(dim)
    masks = {
        "channel": position < (dim + 1) // 2,
        "channel_inv": position >= (dim + 1) // 2,
        "checkerboard": position % 2 == 1,
        "checkerboard_inv": position % 2 == 0,
    }
    if split.mode not in masks or merge.mode != split.mode:
        raise UnsupportedModel(f"{where} has no counterpart with split_mode={split.mode!r}.")
    fixed = masks[split.mode]
    free = np.arange(dim - fixed.sum())[:, None]
    if not affine.scale:
        return {"type": "ShiftMap"}, fixed, free
    maps: dict[str, Architecture] = {
        "exp": EXP | {"order": "shift_divide"},
        "sigmoid": SIGMOID | {"order": "shift_scale"},
        "sigmoid_inv": SIGMOID | {"order": "shift_divide"},
    }
    if affine.scale_map not in maps:
        raise UnsupportedModel(f"{where} has no counterpart with scale_map={affine.scale_map!r}.")
    # shift and scale of the first entry, of the second, ...
    return maps[affine.scale_map], fixed, 2 * free + np.arange(2)


def _constant(flow: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    return _act_norm(flow, (dim,), where)


def _act_norm(flow: Any, shape: tuple[int, ...], where: str) -> list[Part]:
    name = "Affine"
    if kind(flow) == "ActNorm":
        name = "ActNorm"
        if not float(as_array(flow.data_dep_init_done)) > 0:
            raise UnsupportedModel(
                f"{where} was never initialised: pass a batch of data through the model first."
            )
    log_scale, shift = as_array(flow.s)[0], as_array(flow.t)[0]
    if log_scale.shape != (shape[0], *[1] * (len(shape) - 1)):
        raise UnsupportedModel(f"{where} has no counterpart unless it has one scale per channel.")
    arrays = {"log_scale": log_scale.ravel(), "shift": shift.ravel()}
    dim = shape[0] if len(shape) == 1 else list(shape)
    return [parts.invert(parts.part(name, arrays, dim=dim))]


def _permute(flow: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    if flow.mode == "shuffle":
        return [parts.permutation(as_array(flow.inv_perm))]
    if flow.mode != "swap":
        raise UnsupportedModel(f"{where} with mode={flow.mode!r} has no counterpart.")
    return [parts.permutation(np.roll(np.arange(dim), -((dim + 1) // 2)))]


def _lu_permute(flow: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    expect(flow.permutation, f"{where}, permutation", "_dim _permutation")
    linear = flow.linear
    expect(
        linear,
        f"{where}, linear",
        "features bias using_cache cache eps lower_indices upper_indices diag_indices lower_entries "
        "upper_entries unconstrained_upper_diag",
    )
    nflows.without_cache(linear)
    lu = np.diag(np.log(softplus(as_array(linear.unconstrained_upper_diag)) + linear.eps))
    lu[np.tril_indices(dim, -1)] = as_array(linear.lower_entries)
    lu[np.triu_indices(dim, 1)] = as_array(linear.upper_entries)
    order = as_array(members(flow.permutation)["_permutation"])
    shift = as_array(linear.bias)
    options = {"dim": dim, "permutation": list(range(dim))}
    return [parts.permutation(order), parts.part("LULinear", {"lu": lu, "shift": shift}, **options)]


def _invertible_affine(flow: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    return [parts.matrix(_weight(flow, dim).T)]


def _weight(flow: Any, dim: int) -> np.ndarray:
    """The matrix of an ``InvertibleAffine`` or an ``Invertible1x1Conv``."""
    if not flow.use_lu:
        return as_array(flow.W)
    lower = np.tril(as_array(flow.L), -1) + np.eye(dim)
    diagonal = as_array(flow.sign_S) * np.exp(as_array(flow.log_S))
    upper = np.triu(as_array(flow.U), 1) + np.diag(diagonal)
    return as_array(flow.P) @ lower @ upper


def _planar(flow: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    if flow.act != "tanh":
        raise UnsupportedModel(f"{where} has no counterpart with act={flow.act!r}: only with tanh.")
    arrays = {"w": as_array(flow.w)[0], "u": as_array(flow.u)[0], "b": as_array(flow.b)[0]}
    return [parts.invert(parts.part("Planar", arrays, dim=dim))]


def _radial(flow: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    alpha = abs(as_array(flow.alpha)[0])
    if alpha == 0:
        raise UnsupportedModel(f"{where} has no counterpart with alpha = 0.")
    raw_alpha = alpha + np.log(-np.expm1(-alpha))  # the inverse of softplus
    arrays = {
        "center": as_array(flow.z_0)[0],
        "raw_alpha": raw_alpha,
        "raw_s": as_array(flow.beta)[0],
    }
    return [parts.invert(parts.part("Radial", arrays, dim=dim))]


def _maf(flow: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    outputs = Outputs.of(2 * np.arange(dim)[:, None] + [1, 0])  # theirs is scale, shift
    conditioner, context_dim = _made(flow.autoregressive_net, outputs, dim, notes, where)
    map = SIGMOID | {"minimum": 1e-3}
    return [parts.invert(networks.masked_autoregressive(map, conditioner, dim, context_dim))]


def _made(
    made: Any, outputs: Outputs, dim: int, notes: list[str], where: str
) -> tuple[Conditioner, int]:
    """A masked network and the width of its context."""
    where = f"{where}, MADE"
    expect(made, where, "preprocessing initial_layer context_layer blocks final_layer")
    before = getattr(made, "preprocessing", None)
    if before is not None and kind(before) not in ("Identity", "builtins.function"):
        raise UnsupportedModel(f"{where} with periodic features has no counterpart.")
    first = networks.linear(made.initial_layer, where)
    context_dim = 0
    if hasattr(made, "context_layer"):
        context = networks.linear(made.context_layer, where)
        context_dim = context.weight.shape[1]
        weight, mask = _masked(first)
        first = Linear(
            np.concatenate([weight, context.weight], 1),
            first.bias + context.bias,
            np.concatenate([mask, np.ones_like(context.weight, bool)], 1),
        )
    layers, gates, names = [first], [], set()
    is_residual = any(kind(block) == "MaskedResidualBlock" for block in made.blocks)
    for block in contents(made.blocks, where):
        notes.extend(nflows.dropout(block.dropout))
        names.add(activation_name(block.activation, where))
        if not is_residual:
            layers.append(nflows.feedforward_block(block, notes, where))
            continue
        layers += nflows.residual_block(block, "MaskedResidualBlock", notes, where)
        if context_dim:
            gates.append(networks.linear(block.context_layer, where))
    layers.append(networks.linear(made.final_layer, where))
    if len(names) > 1:
        raise UnsupportedModel(f"{where} with several activations has no counterpart.")
    name = max(names, default="relu")
    if is_residual:
        return networks.masked_residual(layers, name, outputs, dim, where, gates), context_dim
    layers = [_product(layers[1], layers[0]), *layers[2:]]  # with nothing in between
    return networks.masked_mlp(layers, name, outputs, dim, where), context_dim


def _product(above: Linear, below: Linear) -> Linear:
    """Two masked layers with nothing in between as one."""
    (second, to), (first, through) = _masked(above), _masked(below)
    return Linear(second @ first, second @ below.bias + above.bias, to @ through)


def _masked(layer: Linear) -> tuple[np.ndarray, np.ndarray]:
    """The weight with its zeros, and the mask."""
    mask = np.ones(layer.weight.shape, bool) if layer.mask is None else layer.mask
    return np.where(mask, layer.weight, 0), mask


def _one_bound(spline: Any, where: str) -> None:
    if as_array(spline.tail_bound).ndim:
        raise UnsupportedModel(f"{where} with a tail_bound for each dimension has no counterpart.")


def _autoregressive_spline(flow: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    spline = flow.mprqat
    expect(spline, where, f"{SPLINE} autoregressive_net")
    _one_bound(spline, where)
    map, outputs = nflows.spline_outputs(spline, dim, None, where)
    conditioner, context_dim = _made(spline.autoregressive_net, outputs, dim, notes, where)
    return [networks.masked_autoregressive(map, conditioner, dim, context_dim)]


def _coupled_spline(flow: Any, dim: int, notes: list[str], where: str) -> list[Part]:
    spline = flow.prqct
    known = "features identity_features transform_features transform_net unconditional_transform"
    expect(spline, where, f"{SPLINE} {known}")
    _one_bound(spline, where)
    entries = as_array(spline.identity_features)
    if len(entries) in (0, dim):
        raise UnsupportedModel(f"{where} of one dimension has no counterpart.")
    net = spline.transform_net
    hidden = net.hidden_features
    map, outputs = nflows.spline_outputs(spline, dim - len(entries), hidden, where)
    conditioner, width = nflows.coupling_network(net, outputs, notes, where)
    fixed = np.isin(np.arange(dim), entries)
    found = [networks.coupling(map, conditioner, fixed, width - len(entries))]
    if spline.unconditional_transform is not None:  # once the network has seen the fixed half
        found.append(nflows.own_spline(spline.unconditional_transform, entries, dim, where))
    return found


def _multiscale(model: Any, where: str) -> Reading:
    """The levels from the image down; what leaves at each is standardised by its base."""
    expect(model, where, "q0 num_levels flows merges transform class_cond")
    model = float64_copy(model)
    for merge in contents(model.merges, where):
        expect(merge, f"{where}, {kind(merge)}", "mode")
    if any(merge.mode != "channel" for merge in model.merges):
        raise UnsupportedModel(
            f"{where} has no counterpart unless it splits channels in two halves."
        )
    bases = [_channels_base(base) for base in model.q0]
    inner: list[Part] = []
    for i, (flows, (shape, log_scale, loc)) in enumerate(zip(model.flows, bases, strict=True)):
        flows = contents(flows, where)
        names = [kind(flow) for flow in flows]
        if names[-1:] != ["Squeeze"] or "Squeeze" in names[:-1]:
            raise UnsupportedModel(
                f"{where} has no counterpart unless each level ends in one Squeeze."
            )
        kept = shape[0] if i else 0
        event = (shape[0] + kept, *shape[1:])
        items = [parts.part("Squeeze")]
        for flow in reversed(flows[:-1]):
            items += _image_flow(flow, event)
        arrays = {"log_scale": log_scale, "shift": loc}
        arrays = {name: np.concatenate([np.zeros(kept), a]) for name, a in arrays.items()}
        items.append(parts.invert(parts.part("ActNorm", arrays, dim=list(event))))
        if i:
            below = parts.chain(inner)
            split = {"type": "Split", "bijector": below.architecture}
            items.append(Part(split, parts.prefixed("bijector", below.arrays)))
        inner = [*items, parts.invert(parts.part("Squeeze"))]
    if model.transform is not None:
        name = kind(model.transform)
        if name != "Logit":
            raise UnsupportedModel(
                f"{where} has no counterpart with the transform {name}: only Logit."
            )
        expect(model.transform, f"{where}, Logit", "alpha")
        inner.insert(0, parts.part("Logit", alpha=model.transform.alpha))

    def run(x: Any, context: Any) -> Any:
        latents, log_det = model.inverse_and_log_det(x)
        z = None
        for flows, latent, (shape, log_scale, loc) in zip(model.flows, latents, bases, strict=True):
            log_scale, loc = (x.new_tensor(a[:, None, None]) for a in (log_scale, loc))
            latent = (latent - loc) / log_scale.exp()
            log_det = log_det - log_scale.sum() * shape[1] * shape[2]
            both = latent if z is None else framework("torch").cat([z, latent], 1)
            z = flows[-1](both)[0]
        return z, log_det

    image = [event[0] // 4, 2 * event[1], 2 * event[2]]
    base = parts.part("StandardNormal", dim=image)
    return Reading([Layer(kind(model), inner, in_numpy(run))], base, in_numpy(run))


def _channels_base(base: Any) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Shape, and log-scale and location of each channel."""
    name = kind(base)
    where = f"normflows' base {name}"
    if name == "GlowBase":
        own = "loc loc_logs log_scale log_scale_logs loc_cc log_scale_cc"
        known = "shape n_dim num_pix d sum_dim num_classes class_cond logscale_factor temperature"
        expect(base, where, f"{own} {known}")
        if base.class_cond:
            raise UnsupportedModel(f"{where} has no counterpart with classes.")
        loc, loc_logs, log_scale, logs = (as_array(getattr(base, n)) for n in own.split()[:4])
        loc = loc * np.exp(loc_logs * base.logscale_factor)
        log_scale = log_scale * np.exp(logs * base.logscale_factor)
    elif name == "DiagGaussian":
        expect(base, where, "shape n_dim d loc log_scale temperature")
        loc, log_scale = as_array(base.loc), as_array(base.log_scale)
        if any((a != a[..., :1, :1]).any() for a in (loc, log_scale)):
            raise UnsupportedModel(f"{where} has no counterpart unless all pixels have one.")
    else:
        raise UnsupportedModel(f"{where} of images has no counterpart: only GlowBase has.")
    if base.temperature is not None:
        raise UnsupportedModel(f"{where} has no counterpart with a temperature: set it to None.")
    if len(base.shape) != 3:
        raise UnsupportedModel(f"{where} has no counterpart here unless of images.")
    return tuple(base.shape), log_scale[0, :, 0, 0], loc[0, :, 0, 0]


def _image_flow(flow: Any, shape: tuple[int, ...]) -> list[Part]:
    """The map from data to latent of one of Glow's steps."""
    name = kind(flow)
    where = f"normflows' {name}"
    if name == "GlowBlock":
        expect(flow, where, "flows")
        return [
            item
            for inner in reversed(contents(flow.flows, where))
            for item in _image_flow(inner, shape)
        ]
    if name == "ActNorm":
        expect(flow, where, FLOWS[name][1])
        return _act_norm(flow, shape, where)
    if name == "Invertible1x1Conv":
        expect(flow, where, FLOWS["InvertibleAffine"][1])
        linear = parts.matrix(_weight(flow, shape[0]))
        options = {k: linear.architecture[k] for k in ("permutation", "signs")}
        return [parts.part(name, linear.arrays, channels=shape[0], **options)]
    if name == "AffineCouplingBlock":
        expect(flow, where, "flows")
        return [_image_coupling(flow, shape[0], where)]
    raise UnsupportedModel(f"{where} of images has no counterpart.")


def _image_coupling(flow: Any, channels: int, where: str) -> Part:
    map, fixed, rows = _halves(flow, channels, where)
    if flow.flows[0].mode not in ("channel", "channel_inv"):
        raise UnsupportedModel(f"{where} of images has no counterpart unless it splits channels.")
    net = flow.flows[1].param_map
    if kind(net) != "ConvNet2d":
        raise UnsupportedModel(f"{where} of images has no counterpart with a network {kind(net)}.")
    expect(net, f"{where}, ConvNet2d", "net")
    modules = contents(net.net, where)
    if [kind(module) for module in modules[::2]] != ["Conv2d"] * 3 or len(modules) != 5:
        raise UnsupportedModel(f"{where} has no counterpart with a network unlike Glow's.")
    for module in modules[::2]:
        own = "in_channels out_channels weight bias output_padding _reversed_padding_repeated_twice"
        same = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "transposed": False}
        same |= {"padding_mode": "zeros", "padding": tuple(n // 2 for n in module.kernel_size)}
        expect(module, f"{where}, Conv2d", f"{own} kernel_size {' '.join(same)}")
        demand(module, f"{where}, Conv2d", **same)
    names = {activation_name(module, where) for module in modules[1::2]}
    convolutions = [
        (as_array(m.weight), np.zeros(len(m.weight)) if m.bias is None else as_array(m.bias))
        for m in modules[::2]
    ]
    if [w.shape[2:] for w, _ in convolutions] != [(3, 3), (1, 1), (3, 3)] or len(names) > 1:
        raise UnsupportedModel(
            f"{where} has no counterpart unless its kernels are 3, 1 and 3 wide."
        )
    weight, bias = convolutions[-1]
    sign = -1 if map["type"] == "ShiftMap" else 1
    convolutions[-1] = sign * weight[rows.T.ravel()], sign * bias[rows.T.ravel()]
    hidden = len(convolutions[0][1])
    options = {"type": "ConvNet", "hidden_channels": hidden, "activation": names.pop()}
    layers = [Linear(*pair) for pair in convolutions]
    conditioner = Conditioner(options, networks.arrays_of(layers))
    found = networks.coupling(map, conditioner, fixed, 0)
    return Part(found.architecture | {"dim": [channels, None, None]}, found.arrays)


SPLINE = "num_bins min_bin_width min_bin_height min_derivative tails tail_bound"

FLOWS: dict[str, tuple[Callable[[Any, int, list[str], str], list[Part]], str]] = {
    "ActNorm": (_constant, "s t n_dim batch_dims data_dep_init_done data_dep_init_done_cpu"),
    "AffineConstFlow": (_constant, "s t n_dim batch_dims"),
    "AffineCouplingBlock": (_coupling_block, "flows"),
    "AutoregressiveRationalQuadraticSpline": (_autoregressive_spline, "mprqat"),
    "CoupledRationalQuadraticSpline": (_coupled_spline, "prqct"),
    "InvertibleAffine": (_invertible_affine, "num_channels use_lu P L sign_S log_S U eye W"),
    "LULinearPermute": (_lu_permute, "permutation linear"),
    "MaskedAffineAutoregressive": (_maf, "features autoregressive_net"),
    "MaskedAffineFlow": (_masked_affine, "b b_cpu s t"),
    "Permute": (_permute, "mode num_channels perm inv_perm"),
    "Planar": (_planar, "u w b act h"),
    "Radial": (_radial, "d d_cpu beta alpha z_0"),
    "Reverse": (
        lambda flow, dim, notes, where: parts.invert_all(_transform(flow.flow, dim, notes)),
        "flow",
    ),
}
"""How each flow is read, and what is known of its attributes."""

REASONS = {
    "BatchNorm": ": its scale depends on the batch",
    "CircularAutoregressiveRationalQuadraticSpline": ": its splines are circular",
    "CircularCoupledRationalQuadraticSpline": ": its splines are circular",
    "Residual": ": its networks are normalised in another way",
}
