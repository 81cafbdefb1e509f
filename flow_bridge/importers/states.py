"""Stand-ins for models of which there are only the arrays: objects that readers take for the originals.

Names and shapes of arrays tell classes and widths; what they do not tell are hints, and where it cannot be
told at all the live object is asked for.
"""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

from flow_bridge import checks
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers import nflows, normflows, sbi, zuko
from flow_bridge.importers.parts import Reading
from flow_bridge.importers.reading import as_array, stand_in

Tree = dict[str, Any]

LIVE = "pass the live object to import_flow"


def tree_of(state: Mapping[str, Any]) -> Tree:
    """Arrays by dotted names as nested dictionaries."""
    tree: Tree = {}
    for name, value in state.items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise UnsupportedModel(f"the array {name!r} lies inside another one.")
        node[last] = as_array(value)
    return tree


def items(node: Tree, where: str) -> list[Any]:
    """The members of a list, which must all have arrays."""
    if sorted(node) != sorted(str(i) for i in range(len(node))):
        raise UnsupportedModel(
            f"{where} has members without arrays, which the arrays do not tell: {LIVE}."
        )
    return [node[str(i)] for i in range(len(node))]


def linear(node: Tree) -> Any:
    """A linear layer, with a mask or without."""
    return stand_in("MaskedLinear" if "mask" in node else "Linear", **({"bias": None} | node))


def alternating(node: Tree, activation: str, where: str) -> list[Any]:
    """Linear layers with an activation between them, which has no arrays."""
    modules: list[Any] = []
    for name in sorted(node, key=lambda name: int(name) if name.isdigit() else -1):
        if not name.isdigit() or not isinstance(node[name], dict) or "weight" not in node[name]:
            raise UnsupportedModel(f"{where} is not linear layers: {LIVE}.")
        modules += [activation] if modules else []
        modules.append(linear(node[name]))
    return modules


def read_nflows(
    state: Mapping[str, Any],
    activation: str = "relu",
    tail_bound: float | None = None,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    linear_eps: float = 1e-3,
    batch_norm_eps: float = 1e-5,
    batch_norm_momentum: float = 0.1,
    embedding: str = "native",
    embedding_activation: str | None = None,
    spline: str | None = None,
) -> Reading:
    """A flow of nflows from its arrays.

    Args:
        state: the arrays by name.
        activation: of all networks.
        tail_bound: of splines, which are taken to have linear tails.
        min_bin_width, min_bin_height, min_derivative: of splines.
        linear_eps: of ``LULinear``.
        batch_norm_eps, batch_norm_momentum: of ``BatchNorm``.
        embedding: as in ``nflows.read``.
        embedding_activation: of an embedding network that is sbi's ``FCEmbedding``.
        spline: which splines its couplings and autoregressive transforms have, ``"linear"``,
            ``"quadratic"``, ``"cubic"`` or ``"rational_quadratic"``; ``None`` for none.
    """
    if spline is not None:
        checks.one_of("import_state", "spline", spline, SPLINES)
    tree = tree_of(state)
    if unknown := tree.keys() - {"_transform", "_distribution", "_embedding_net"}:
        raise UnsupportedModel(
            f"a flow of nflows has no array {min(unknown)!r}: this is a state of something else."
        )
    options = {
        "kind": spline,
        "min_bin_width": min_bin_width,
        "min_bin_height": min_bin_height,
        "min_derivative": min_derivative,
        "tail_bound": tail_bound,
    }
    build = partial(
        _nflows_transform,
        activation=activation,
        spline=options,
        eps=(linear_eps, batch_norm_eps, batch_norm_momentum),
    )
    transform = build(tree.get("_transform", {}))
    dim = _dim(tree.get("_transform", {}))
    distribution = tree.get("_distribution", {})
    if "mean_" in distribution:
        base = stand_in("DiagonalNormal", _shape=(dim,), **distribution)
    else:
        base = stand_in("StandardNormal", _shape=(dim,), **distribution)
    net = tree.get("_embedding_net", {})
    outside = nflows.is_outside(embedding)
    embedder = None if outside else embedding_of(net, embedding_activation)
    flow = stand_in("Flow", _transform=transform, _distribution=base, _embedding_net=embedder)
    return nflows.read_copy(flow, embedding, "nflows' embedding network", live=False)


def embedding_of(node: Tree, activation: str | None) -> Any:
    """An embedding network: standardisation and sbi's ``FCEmbedding``."""
    if not node:
        return None
    if "_mean" in node:
        return stand_in("Standardize", **node)
    if set(node) == {"net"}:
        if activation is None:
            raise UnsupportedModel(
                "the activation of FCEmbedding is in no file: state embedding_activation, which is "
                "'relu' unless you chose another."
            )
        modules = alternating(node["net"], activation, "FCEmbedding")
        return stand_in("FCEmbedding", net=_sequence([*modules, activation]))
    inner = items(node, "the embedding network")
    if any(not isinstance(item, dict) or "weight" in item for item in inner):
        raise UnsupportedModel(
            f"the activations of the embedding network are in no file: {LIVE}, or import with "
            "embedding='outside'."
        )
    return _sequence([embedding_of(item, activation) for item in inner])


class _Sequence(list[Any]):
    """Stands for a ``Sequential``."""


_Sequence.__name__ = "Sequential"
_sequence: Callable[[list[Any]], Any] = _Sequence


def _dim(node: Tree) -> int:
    """The number of dimensions that the arrays of a transform tell."""
    for key, size in (
        ("_permutation", len),
        ("lower_entries", lambda a: len(node["bias"])),
        ("running_mean", len),
        ("log_scale", len),
    ):
        if key in node:
            return int(size(node[key]))
    if "autoregressive_net" in node:
        return int(node["autoregressive_net"]["initial_layer"]["weight"].shape[1])
    if "identity_features" in node:
        return len(node["identity_features"]) + len(node["transform_features"])
    found = [_dim(item) for item in node.values() if isinstance(item, dict)]
    return max(found, default=0)


def _nflows_transform(
    node: Tree, activation: str, spline: Mapping[str, Any], eps: tuple[float, float, float]
) -> Any:
    def again(inner: Tree) -> Any:
        return _nflows_transform(inner, activation, spline, eps)

    keys = set(node)
    if keys == {"_transforms"}:
        inner = items(node["_transforms"], "a composite transform")
        return stand_in("CompositeTransform", _transforms=[again(item) for item in inner])
    if keys == {"_transform"}:
        return stand_in("InverseTransform", _transform=again(node["_transform"]))
    if keys == {"_scale", "_shift"}:
        return stand_in("PointwiseAffineTransform", **node)
    if keys == {"_permutation"}:
        return stand_in("Permutation", _dim=1, **node)
    if "lower_entries" in keys:
        return stand_in("LULinear", eps=eps[0], **node)
    if keys == {"_weight", "bias"}:
        return stand_in("NaiveLinear", weight=lambda: node["_weight"], **node)
    if "unconstrained_weight" in keys:
        return stand_in("BatchNorm", eps=eps[1], momentum=eps[2], **node)
    if keys == {"initialized", "log_scale", "shift"}:
        return stand_in("ActNorm", **node)
    if any(name.startswith("unnorm") for name in keys):
        return _own_spline(node, spline)
    if keys == {"autoregressive_net"}:
        return _autoregressive(node["autoregressive_net"], activation, spline)
    if "identity_features" in keys:
        return _coupling(node, activation, spline)
    raise UnsupportedModel(f"a transform with the arrays {sorted(keys)} is not known: {LIVE}.")


SPLINES = {
    "linear": ("PiecewiseLinear", 1, 0),
    "quadratic": ("PiecewiseQuadratic", 2, -1),
    "cubic": ("PiecewiseCubic", 2, 2),
    "rational_quadratic": ("PiecewiseRationalQuadratic", 3, -1),
}
"""What nflows calls a spline, and its parameters with linear tails: a for each bin, and b."""


def _spline(size: int, spline: Mapping[str, Any]) -> tuple[str, int, dict[str, Any]]:
    """Name, number of bins and options of the spline with so many parameters for a dimension."""
    if spline["kind"] is None:
        raise UnsupportedModel(
            f"{size} parameters for a dimension are those of a spline: state spline, which is one of "
            f"{', '.join(SPLINES)}, some of them with equal arrays."
        )
    name, each, more = SPLINES[spline["kind"]]
    if (size - more) % each or size <= more:
        raise UnsupportedModel(
            f"{size} parameters for a dimension belong to no {spline['kind']} spline that has a counterpart."
        )
    if spline["tail_bound"] is None:
        raise UnsupportedModel(
            "state tail_bound: no file holds it, and that the splines have linear tails."
        )
    options = {key: value for key, value in spline.items() if key != "kind"}
    return name, (size - more) // each, {"tails": "linear", **options}


def _own_spline(node: Tree, spline: Mapping[str, Any]) -> Any:
    """Splines with parameters of their own, whose names tell which they are."""
    for kind, (start, _, _) in SPLINES.items():
        if set(node) == set(nflows.CDF_ARRAYS[f"{start}CDF"].split()):
            size = sum(array.shape[-1] for array in node.values())
            name, _, options = _spline(size, {**spline, "kind": kind})
            return stand_in(f"{name}CDF", **options, **node)
    raise UnsupportedModel(f"a transform with the arrays {sorted(node)} is not known: {LIVE}.")


def _is_affine(size: int, spline: Mapping[str, Any]) -> bool:
    """Whether so many parameters for a dimension are a shift, or a scale and a shift."""
    _, each, more = SPLINES.get(spline["kind"], ("", size + 1, 0))
    if size <= 2 and (size - more) % each == 0:
        raise UnsupportedModel(
            f"{size} parameters for a dimension are those of an affine transform or of a {spline['kind']} "
            f"spline, which the arrays do not tell: {LIVE}."
        )
    return size <= 2


def _autoregressive(made: Tree, activation: str, spline: Mapping[str, Any]) -> Any:
    where = "nflows' MADE"
    blocks = [_block(block, activation) for block in items(made.get("blocks", {}), where)]
    known = {"initial_layer", "context_layer", "blocks", "final_layer"}
    layers = {name: linear(made[name]) for name in made if name in known - {"blocks"}}
    other = {name: made[name] for name in made if name not in known}
    is_residual = any(hasattr(block, "linear_layers") for block in blocks)
    net = stand_in(
        "MADE",
        blocks=blocks,
        activation=activation,
        use_residual_blocks=is_residual,
        **layers,
        **other,
    )
    size = len(made["final_layer"]["bias"]) // made["initial_layer"]["weight"].shape[1]
    if size == 2 and _is_affine(size, spline):
        return stand_in(
            "MaskedAffineAutoregressiveTransform", autoregressive_net=net, _epsilon=1e-3
        )
    name, num_bins, options = _spline(size, spline)
    if spline["kind"] in ("linear", "cubic"):
        raise UnsupportedModel(
            f"nflows' Masked{name}AutoregressiveTransform has no tails, and no counterpart."
        )
    return stand_in(
        f"Masked{name}AutoregressiveTransform", autoregressive_net=net, num_bins=num_bins, **options
    )


def _block(node: Tree, activation: str) -> Any:
    common = {"activation": activation, "dropout": stand_in("Dropout", p=0.0)}
    if "linear" in node:
        norm = node.get("batch_norm")
        batch_norm = norm and stand_in("BatchNorm1d", eps=1e-3, **norm)
        rest = {k: v for k, v in node.items() if k not in ("linear", "batch_norm")}
        return stand_in(
            "MaskedFeedforwardBlock",
            linear=linear(node["linear"]),
            batch_norm=batch_norm,
            **common,
            **rest,
        )
    layers = [linear(layer) for layer in items(node["linear_layers"], "a residual block")]
    own = ("linear_layers", "context_layer", "batch_norm_layers")
    rest = {k: v for k, v in node.items() if k not in own}
    if "batch_norm_layers" in node:
        norms = items(node["batch_norm_layers"], "a residual block")
        rest["batch_norm_layers"] = [stand_in("BatchNorm1d", eps=1e-3, **norm) for norm in norms]
    if "context_layer" in node:
        rest["context_layer"] = linear(node["context_layer"])
    return stand_in(
        "MaskedResidualBlock" if hasattr(layers[0], "mask") else "ResidualBlock",
        linear_layers=layers,
        use_batch_norm="batch_norm_layers" in node,
        **common,
        **rest,
    )


def _coupling(node: Tree, activation: str, spline: Mapping[str, Any]) -> Any:
    count = len(node["transform_features"])
    net = node["transform_net"]
    where = "the network of nflows' coupling"
    if "initial_layer" in net:
        blocks = [_block(block, activation) for block in items(net["blocks"], where)]
        context = getattr(blocks[0], "context_layer", None)
        other = {
            k: v for k, v in net.items() if k not in ("initial_layer", "blocks", "final_layer")
        }
        last = net["final_layer"]
        built = stand_in(
            "ResidualNet",
            initial_layer=linear(net["initial_layer"]),
            blocks=blocks,
            final_layer=linear(last),
            context_features=None if context is None else context.weight.shape[1],
            hidden_features=len(net["initial_layer"]["bias"]),
            **other,
        )
    elif set(net) == {"spline_predictor"}:
        modules = alternating(net["spline_predictor"], "relu", where)
        last = net["spline_predictor"][max(net["spline_predictor"], key=int)]
        built = stand_in(
            "ContextSplineMap",
            hidden_features=modules[0].weight.shape[0],
            spline_predictor=_sequence(modules),
        )
    else:
        raise UnsupportedModel(f"{where} is none that its arrays tell: {LIVE}.")
    unconditional = node.get("unconditional_transform")
    size = len(last["bias"]) // count
    given: dict[str, Any] = {k: v for k, v in node.items() if k not in ("transform_net",)}
    given["unconditional_transform"] = None
    if unconditional is not None:
        given["unconditional_transform"] = _own_spline(unconditional, spline)
    if _is_affine(size, spline):
        name = "AdditiveCouplingTransform" if size == 1 else "AffineCouplingTransform"
        return stand_in(name, transform_net=built, **given)
    name, num_bins, options = _spline(size, spline)
    return stand_in(
        f"{name}CouplingTransform", transform_net=built, num_bins=num_bins, **options, **given
    )


def read_normflows(
    state: Mapping[str, Any],
    activation: str = "relu",
    output_fn: str | None = None,
    scale: bool = True,
    scale_map: str = "exp",
    split_mode: str = "channel",
    tail_bound: float | None = None,
) -> Reading:
    """A ``NormalizingFlow`` of normflows on vectors from its arrays.

    Args:
        state: the arrays by name.
        activation: of all networks, ``"leaky_relu:0.01"`` for instance where ``leaky=0.01`` was given.
        output_fn: of the scale networks of ``MaskedAffineFlow``, ``None`` or ``"tanh"``.
        scale, scale_map, split_mode: of ``AffineCouplingBlock``.
        tail_bound: of splines.
    """
    tree = tree_of(state)
    base = tree.get("q0", {})
    if tree.keys() != {"q0", "flows"} or not {"loc", "log_scale"} <= base.keys():
        raise UnsupportedModel(f"a flow of normflows has no arrays {sorted(tree)}: {LIVE}.")
    options = {
        "output_fn": output_fn,
        "coupling": {"scale": scale, "scale_map": scale_map},
        "split_mode": split_mode,
        "spline": {
            "kind": "rational_quadratic",
            "tail_bound": tail_bound,
            **dict.fromkeys(_LEAST, 1e-3),
        },
    }
    if "weight_scores" in base:
        _, count, dim = base["loc"].shape
        q0 = stand_in("GaussianMixture", n_modes=count, dim=dim, **base)
    else:
        shape = base["loc"].shape[1:]
        given = {"shape": shape, "n_dim": len(shape), "temperature": None}
        q0 = stand_in("DiagGaussian", **given, **base)
    flows = items(tree["flows"], "normflows' NormalizingFlow")
    model = stand_in(
        "NormalizingFlow", q0=q0, flows=[_normflows(node, activation, options) for node in flows]
    )
    return normflows.read_copy(model, live=False)


_LEAST = ("min_bin_width", "min_bin_height", "min_derivative")


def _normflows(node: Tree, activation: str, options: Mapping[str, Any]) -> Any:
    keys = frozenset(node)

    def mlp(inner: Tree, *after: Any) -> Any:
        return stand_in("MLP", net=[*alternating(inner["net"], activation, "nets.MLP"), *after])

    if "b" in keys and keys <= {"b", "s", "t"}:
        end = [] if options["output_fn"] is None else [stand_in(options["output_fn"].capitalize())]
        nets = {name: mlp(node[name], *(end if name == "s" else [])) for name in keys - {"b"}}
        nothing = dict.fromkeys({"s", "t"} - keys, zeros_like)
        return stand_in("MaskedAffineFlow", b=node["b"], **nets, **nothing)
    if keys == {"flows"}:
        inner = items({"0": node["flows"].get("1", {})}, "an AffineCouplingBlock")[0]
        split = stand_in("Split", mode=options["split_mode"])
        affine = stand_in(
            "AffineCoupling", param_map=mlp(inner["param_map"]), **options["coupling"]
        )
        return stand_in("AffineCouplingBlock", flows=[split, affine, split])
    if keys in ({"perm", "inv_perm"}, {"u", "w", "b"}):
        name, given = (
            ("Permute", {"mode": "shuffle"}) if "perm" in keys else ("Planar", {"act": "tanh"})
        )
        return stand_in(name, **given, **node)
    if keys == {"permutation", "linear"}:
        order = stand_in("_RandomPermutation", _dim=1, **node["permutation"])
        return stand_in(
            "LULinearPermute",
            permutation=order,
            linear=stand_in("_LULinear", eps=1e-3, **node["linear"]),
        )
    if keys == {"W"} or "sign_S" in keys:
        return stand_in("InvertibleAffine", use_lu="W" not in keys, **node)
    for name, own in _NORMFLOWS.items():
        if keys == set(own.split()):
            return stand_in(name, **node)
    if keys in ({"flow"}, {"_flows"}):
        if "flow" in keys:
            return stand_in("Reverse", flow=_normflows(node["flow"], activation, options))
        inner = items(node["_flows"], "a Composite")
        return stand_in("Composite", _flows=[_normflows(i, activation, options) for i in inner])
    if keys == {"autoregressive_net"}:
        net, _ = _normflows_made(node["autoregressive_net"], activation)
        return stand_in("MaskedAffineAutoregressive", autoregressive_net=net)
    if keys == {"mprqat"}:
        net, size = _normflows_made(node["mprqat"]["autoregressive_net"], activation)
        _, num_bins, given = _spline(size, options["spline"])
        spline = stand_in("Spline", autoregressive_net=net, num_bins=num_bins, **given)
        return stand_in("AutoregressiveRationalQuadraticSpline", mprqat=spline)
    if keys == {"prqct"}:
        spline = _coupling(node["prqct"], activation, options["spline"])
        return stand_in("CoupledRationalQuadraticSpline", prqct=spline)
    raise UnsupportedModel(f"a flow with the arrays {sorted(keys)} is not known: {LIVE}.")


_NORMFLOWS = {
    "ActNorm": "s t data_dep_init_done",
    "AffineConstFlow": "s t",
    "Radial": "d beta alpha z_0",
}
"""Flows that their arrays tell."""


def zeros_like(x: Any) -> None:
    """Stands for torch's function of this name."""


def _normflows_made(made: Tree, activation: str) -> tuple[Any, int]:
    """A ``MADE``, and how many outputs it has for a dimension."""
    layers = {name: linear(node) for name, node in made.items() if name != "blocks"}
    blocks = [_block(block, activation) for block in items(made.get("blocks", {}), "MADE")]
    size = len(layers["final_layer"].bias) // layers["initial_layer"].weight.shape[1]
    return stand_in("MADE", blocks=blocks, **layers), size


def MonotonicAffineTransform(shift: Any, scale: Any, slope: float) -> None:
    """Stands for zuko's class of this name."""


def MonotonicRQSTransform(
    widths: Any, heights: Any, slopes: Any, bound: float, slope: float
) -> None:
    """Stands for zuko's class of this name."""


def read_zuko(
    state: Mapping[str, Any],
    slope: float | None = None,
    activation: str = "relu",
    bound: float = 5.0,
    univariate: str = "MonotonicAffineTransform",
) -> Reading:
    """A flow of zuko from its arrays: affine transformations, or splines.

    Args:
        state: the arrays by name.
        slope: of the transformations; see ``zuko.read``.
        activation: of all networks.
        bound: of splines.
        univariate: what its transformations are made of, ``"MonotonicAffineTransform"`` (``MAF``,
            ``NICE``) or ``"MonotonicRQSTransform"`` (``NSF``).
    """
    checks.one_of("import_state", "univariate", univariate, UNIVARIATE)
    if slope is None:
        raise UnsupportedModel(
            "state the slope: no file holds it, and it is 1e-4 in zuko 1.0.1 to 1.4.1 and 1e-3 in others."
        )
    zuko.check_slope(slope)
    own = partial(_univariate, univariate=univariate, slope=slope, bound=bound)
    tree = tree_of(state)
    transform = tree.get("transform", {})
    transforms = tree.get("transforms") or transform.get("transforms", {"0": transform})
    base = tree.get("base", {})
    names = sorted(base)
    if names not in (["loc", "scale"], ["_0", "_1"]) or tree.keys() - {
        "transform",
        "transforms",
        "base",
    }:
        raise UnsupportedModel(f"a flow of zuko has no arrays {sorted(tree)}: {LIVE}.")
    loc, scale = (base[name] for name in names)
    normal = stand_in("Normal", loc=loc, scale=scale)
    distribution = stand_in("DiagNormal", base_dist=normal)
    flow = stand_in(
        "Flow",
        base=stand_in("UnconditionalDistribution", __call__=lambda self: distribution),
        transform=stand_in(
            "LazyComposedTransform",
            transforms=[
                _zuko_transform(node, len(loc), activation, own)
                for node in items(transforms, "zuko's composed transform")
            ],
        ),
    )
    return zuko.read_copy(flow, None, live=False)


def _zuko_transform(
    node: Tree, dim: int, activation: str, univariate: Callable[[int], dict[str, Any]]
) -> Any:
    keys = set(node)
    if keys in ({"loc", "scale"}, {"_0", "_1"}):
        loc, scale = (node[name] for name in sorted(keys))
        affine = stand_in("AffineTransform", loc=loc, scale=scale)
        return stand_in("UnconditionalTransform", __call__=lambda self: affine)
    if keys == {"phi"}:
        phi = items(node["phi"], "zuko's ElementWiseTransform")
        given = univariate(sum(array[0].size for array in phi))
        return stand_in("ElementWiseTransform", phi=phi, **given)
    if "hyper" not in keys or keys - {"hyper", "order", "mask"}:
        raise UnsupportedModel(f"a transform with the arrays {sorted(keys)} is not known: {LIVE}.")
    hyper = node["hyper"]
    modules = _zuko_network(hyper, activation)
    outputs = len(modules[-1].bias)
    masked = hasattr(modules[-1], "mask")
    if "mask" in keys:
        given = univariate(outputs // int((node["mask"] == 0).sum()))
        return stand_in("GeneralCouplingTransform", hyper=modules, mask=node["mask"], **given)
    given = univariate(outputs // dim)
    if not masked:
        return stand_in("ElementWiseTransform", hyper=modules, **given)
    order = node.get("order")
    return stand_in(
        "MaskedAutoregressiveTransform", hyper=modules, order=order, passes=None, **given
    )


def _zuko_network(node: Tree, activation: str) -> list[Any]:
    """The modules of a network, residual or not."""
    if all(not name.isdigit() or "weight" in node[name] for name in node):
        return alternating(node, activation, "zuko's network")
    names = sorted(node, key=int)
    modules: list[Any] = []
    for name in names:
        if "weight" in node[name]:
            modules.append(linear(node[name]))
        else:
            block = _Residual(alternating(node[name], activation, "zuko's residual block"))
            modules.append(block)
    return modules


class _Residual(list[Any]):
    """Stands for zuko's class ``Residual``."""


_Residual.__name__ = "Residual"


UNIVARIATE: dict[str, Callable[..., None]] = {
    "MonotonicAffineTransform": MonotonicAffineTransform,
    "MonotonicRQSTransform": MonotonicRQSTransform,
}
"""What zuko's transformations may be made of."""


def _univariate(size: int, univariate: str, slope: float, bound: float) -> dict[str, Any]:
    """zuko's options with so many parameters for a dimension."""
    is_affine = univariate == "MonotonicAffineTransform"
    if size != 2 if is_affine else (size + 1) % 3 or size < 2:
        count = "2" if is_affine else "2, 5, 8, ..."
        raise UnsupportedModel(
            f"a transformation of zuko has {size} parameters for a dimension, and {univariate} has {count}: "
            f"state univariate, one of {', '.join(UNIVARIATE)}, of which no file says which it is."
        )
    constructor = UNIVARIATE[univariate]
    if is_affine:
        affine = partial(constructor, slope=slope)
        return {"univariate": affine, "shapes": [(), ()], "total": 2}
    num_bins = (size + 1) // 3
    shapes = [(num_bins,), (num_bins,), (num_bins - 1,)]
    spline = partial(constructor, slope=slope, bound=float(bound))
    return {"univariate": spline, "shapes": shapes, "total": size}


SBI = {
    "maf": {"activation": "tanh"},
    "maf_rqs": {"activation": "tanh", "spline": "rational_quadratic"},
    "nsf": {"activation": "relu", "spline": "rational_quadratic"},
    "zuko_maf": {},
    "zuko_nsf": {"univariate": "MonotonicRQSTransform"},
    "zuko_nice": {},
}
"""What the models of sbi say of their networks and maps."""


def read_sbi(state: Mapping[str, Any], model: str | None = None, **hints: Any) -> Reading:
    """A density estimator of sbi from its arrays.

    Args:
        state: the arrays by name.
        model: as sbi calls it: ``"maf"``, ``"maf_rqs"``, ``"nsf"``, ``"zuko_maf"``, ``"zuko_nsf"`` or
            ``"zuko_nice"``.
        hints: as in ``read_nflows`` and ``read_zuko``.
    """
    if model not in SBI:
        raise UnsupportedModel(f"state which of sbi's models it is: {', '.join(SBI)}.")
    if not model.startswith("zuko"):
        state = {name.removeprefix("net."): value for name, value in state.items()}
        return read_nflows(state, **SBI[model] | hints)
    embedding = hints.pop("embedding", "native")
    activation = hints.pop("embedding_activation", None)
    outside = nflows.is_outside(embedding)
    start = "_embedding_net."
    inner = {k.removeprefix("net."): v for k, v in state.items() if not k.startswith(start)}
    reading = read_zuko(inner, **SBI[model] | hints)
    if outside:
        return reading
    nodes = tree_of({k: v for k, v in state.items() if k.startswith(start)})
    net = embedding_of(nodes.get("_embedding_net", {}), activation)
    return sbi.embedded(reading, net, None)


def hints_of(library: str, model: str | None) -> list[str]:
    """The hints that a library's model takes."""
    if library == "normflows":
        return [*signature(read_normflows).parameters][1:]
    on_zuko = library == "zuko" or str(model).startswith("zuko")
    names = [*signature(read_zuko if on_zuko else read_nflows).parameters][1:]
    return names + (["embedding", "embedding_activation"] if on_zuko and library == "sbi" else [])
