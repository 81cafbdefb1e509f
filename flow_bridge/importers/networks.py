"""Networks of other libraries as conditioners: arguments and arrays of ``MLP`` and the masked ones."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers.parts import Arrays, Part, prefixed
from flow_bridge.importers.reading import activation_name, as_array, contents, expect, kind
from flow_bridge.masks import Autoregression, Degrees


class Linear(NamedTuple):
    """A linear layer.

    Attributes:
        weight, bias: its arrays.
        mask: which of its weights count; ``None`` is all of them.
        norm: the batch normalisation in front of the activation before it, in a residual block.
    """

    weight: np.ndarray
    bias: np.ndarray
    mask: np.ndarray | None = None
    norm: Arrays | None = None


class Outputs(NamedTuple):
    """Where the parameters of our maps stand among a network's outputs, and what is done to them.

    Parameter p of entry i is factor[p] times output rows[i, p], plus offset[p].
    """

    rows: np.ndarray
    factor: np.ndarray
    offset: np.ndarray

    @staticmethod
    def of(rows: np.ndarray, factor: Any = 1.0, offset: Any = 0.0) -> "Outputs":
        """The same with numbers in place of arrays."""
        size = rows.shape[1:]
        return Outputs(
            rows,
            np.broadcast_to(np.float64(factor), size),
            np.broadcast_to(np.float64(offset), size),
        )

    def applied(self, values: np.ndarray) -> np.ndarray:
        """The parameters of all entries, ``(entries, parameters)``, from the outputs."""
        return values.ravel()[self.rows] * self.factor + self.offset

    def taken(self, layer: Linear, by_entry: bool) -> Linear:
        """A last layer with our outputs: all of the first entry, ... or all of the first parameter, ..."""
        rows, factor, offset = (np.broadcast_to(a, self.rows.shape) for a in self)
        index, factor, offset = ((a if by_entry else a.T).ravel() for a in (rows, factor, offset))
        mask = None if layer.mask is None else layer.mask[index]
        weight, bias = layer.weight[index], layer.bias[index]
        return Linear(weight * factor[:, None], bias * factor + offset, mask)


class Combined(NamedTuple):
    """``Outputs`` whose parameters are sums of several of the network's outputs.

    Those of entry i are matrix[i] times the outputs of entry i, which stand together, plus offset[i].
    """

    matrix: np.ndarray
    offset: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """As many of each entry as it has parameters."""
        return np.arange(self.offset.size).reshape(self.offset.shape)

    def taken(self, layer: Linear, by_entry: bool) -> Linear:
        """As ``Outputs.taken``."""
        entries, count, seen = self.matrix.shape
        weight = (self.matrix @ layer.weight.reshape(entries, seen, -1)).reshape(
            entries * count, -1
        )
        mask = None
        if layer.mask is not None:
            mask = layer.mask.reshape(entries, seen, -1).any(1).repeat(count, axis=0)
        whole = Linear(weight, self.applied(layer.bias).ravel(), mask)
        return Outputs.of(self.rows).taken(whole, by_entry)

    def applied(self, values: np.ndarray) -> np.ndarray:
        """As ``Outputs.applied``."""
        seen = values.reshape(len(self.matrix), -1, 1)
        return (self.matrix @ seen)[..., 0] + self.offset


class Conditioner(NamedTuple):
    """A network in its place: what the bijector is told about it, and its arrays."""

    architecture: Architecture
    arrays: Arrays
    order: list[int] | None = None
    notes: tuple[str, ...] = ()


def linear(module: Any, where: str) -> Linear:
    """A ``torch.nn.Linear``, or what has its attributes; ``mask`` tells which weights count."""
    expect(module, where, "in_features out_features weight bias mask degrees")
    weight = as_array(module.weight)
    bias = np.zeros(len(weight)) if module.bias is None else as_array(module.bias)
    mask = getattr(module, "mask", None)
    return Linear(weight, bias, None if mask is None else as_array(mask) != 0)


def sequence(modules: Any, where: str) -> tuple[list[Linear], str]:
    """Linear layers and the one activation between them."""
    layers: list[Linear] = []
    names: list[str] = []
    for module in contents(modules, where, "in_features out_features"):
        name = kind(module)
        if name in ("Linear", "MaskedLinear"):
            layers.append(linear(module, f"{where}, {name}"))
        elif name not in ("Dropout", "Identity"):
            if name in ("LayerNorm", "BatchNorm1d"):
                raise UnsupportedModel(
                    f"{where} has {name} in its network, which has no counterpart there: only linear "
                    "layers with one activation between them do."
                )
            names.append(activation_name(module, where))
        if len(names) not in (len(layers) - 1, len(layers)):
            break
    if len(layers) != len(names) + 1 or len(set(names)) > 1:
        raise UnsupportedModel(
            f"{where} has a network that is not linear layers with one activation between them."
        )
    return layers, names[0] if names else "relu"


def arrays_of(layers: Sequence[Linear], group: str = "network.layers") -> Arrays:
    """Weights and biases under their names."""
    arrays: Arrays = {}
    for i, layer in enumerate(layers):
        weight = layer.weight if layer.mask is None else np.where(layer.mask, layer.weight, 0)
        arrays |= {f"{group}.{i}.weight": weight, f"{group}.{i}.bias": layer.bias}
        arrays |= prefixed(f"network.norms.{i - 1}", layer.norm or {})
    return arrays


def widths(layers: Sequence[Linear]) -> list[int]:
    """Widths of the hidden layers."""
    return [len(layer.bias) for layer in layers[:-1]]


def mlp(
    layers: Sequence[Linear], activation: str, outputs: Outputs | Combined, by_entry: bool = False
) -> Conditioner:
    """``MLP`` as the conditioner of a coupling or, with ``by_entry``, of ``Elementwise``."""
    layers = [*layers[:-1], outputs.taken(layers[-1], by_entry)]
    options = {"type": "MLP", "hidden_dims": widths(layers), "activation": activation}
    return Conditioner(options, arrays_of(layers))


def residual(
    layers: Sequence[Linear],
    activation: str,
    outputs: Outputs | Combined,
    gates: Sequence[Linear] = (),
) -> Conditioner:
    """The conditioner of a coupling, ``ResidualMLP``; gates are those of its blocks.

    Args:
        layers: the first, the two of each block, the last.
        activation: its name.
        outputs: what our parameters are of the peer's outputs.
        gates: of each block, from the context.
    """
    layers = [*layers[:-1], outputs.taken(layers[-1], by_entry=False)]
    options = _residual_options("ResidualMLP", layers, activation, "gate" if gates else "")
    arrays = arrays_of(layers) | arrays_of(gates, "network.gates")
    return Conditioner(options, arrays)


def masked_mlp(
    layers: Sequence[Linear],
    activation: str,
    outputs: Outputs | Combined,
    dim: int,
    where: str,
    branch: Linear | None = None,
) -> Conditioner:
    """The conditioner of a masked map, ``MaskedMLP``, with order and degrees from the masks.

    Args:
        layers: from x and then the context to the peer's outputs.
        activation: its name.
        outputs: what our parameters are of them.
        dim: how many of the inputs are x.
        where: what a message calls its owner.
        branch: what the context passes through on its own, before the activation.
    """
    layers = [*layers[:-1], outputs.taken(layers[-1], by_entry=True)]
    seen: list[np.ndarray] = [np.eye(layers[0].weight.shape[1], dim, dtype=bool)]
    for layer in layers:
        seen.append(_passed_on(layer, seen[-1]))
    order = order_of(seen[-1], dim, where)
    degrees = [_degrees(sees, order) for sees in seen[1:-1]]
    context_dim = layers[0].weight.shape[1] - dim if branch is None else branch.weight.shape[1]
    hidden_dims = tuple(widths(layers))
    plan = partial(Autoregression, dim, hidden_dims, outputs.rows.shape[1], order, context_dim)
    options = {
        "type": "MaskedMLP",
        "hidden_dims": list(hidden_dims),
        "activation": activation,
        "degrees": stated_degrees(degrees, plan),
    }
    arrays = arrays_of(layers)
    if branch is not None:
        options["context"] = "branch"
        arrays |= arrays_of([branch], "network.branches")
    below = plan([layer.tolist() for layer in degrees]).degrees
    if branch is not None:
        below[0] = below[0][:dim]
    return Conditioner(options, arrays, order, _narrower(layers, below))


def masked_residual(
    layers: Sequence[Linear],
    activation: str,
    outputs: Outputs | Combined,
    dim: int,
    where: str,
    gates: Sequence[Linear] = (),
    branches: Sequence[Linear] = (),
    pre_activation: bool = True,
) -> Conditioner:
    """The conditioner of a masked map, ``MaskedResidualMLP``, with order and degrees from the masks.

    Args:
        layers: the first, from x and then the context; the two of each block; the last.
        activation, outputs, dim, where: as for ``masked_mlp``.
        gates: of each block, from the context.
        branches: what the context passes through on its own, of the first layer and of each block.
        pre_activation: whether blocks begin with an activation.
    """
    layers = [*layers[:-1], outputs.taken(layers[-1], by_entry=True)]
    width = len(layers[0].bias)
    if any(layer.weight.shape != (width, width) for layer in layers[1:-1]):
        raise UnsupportedModel(
            f"{where} has residual blocks of different widths, which has no counterpart."
        )
    seen: Any = _passed_on(layers[0], np.eye(layers[0].weight.shape[1], dim, dtype=bool))
    for first, second in zip(layers[1:-1:2], layers[2:-1:2], strict=True):
        seen = seen | _passed_on(second, _passed_on(first, seen))
    order = order_of(_passed_on(layers[-1], seen), dim, where)
    degrees = _degrees(seen, order)
    for layer in layers[1:-1]:
        if layer.mask is None or (layer.mask & (degrees[:, None] < degrees)).any():
            raise UnsupportedModel(
                f"{where} has residual blocks whose units see more than those they are added to, "
                "which has no counterpart."
            )
    context_dim = branches[0].weight.shape[1] if branches else layers[0].weight.shape[1] - dim
    hidden_dims = (width,) * (len(layers) - 1)
    plan = partial(Autoregression, dim, hidden_dims, outputs.rows.shape[1], order, context_dim)
    stated = stated_degrees([degrees] * len(hidden_dims), plan)
    context = "gate" if gates else "branch" if branches else ""
    options = _residual_options("MaskedResidualMLP", layers, activation, context)
    options["degrees"] = stated if stated is None or isinstance(stated, str) else stated[0]
    if not pre_activation:
        options["pre_activation"] = False
    arrays = arrays_of(layers) | arrays_of(gates, "network.gates")
    arrays |= arrays_of(branches, "network.branches")
    below = plan([degrees.tolist()] * len(hidden_dims)).degrees
    if branches:
        below[0] = below[0][:dim]
    return Conditioner(options, arrays, order, _narrower(layers, below))


def _residual_options(
    name: str, layers: Sequence[Linear], activation: str, context: str
) -> Architecture:
    options = {
        "type": name,
        "hidden_dim": len(layers[0].bias),
        "num_blocks": (len(layers) - 2) // 2,
        "activation": activation,
    }
    normalized = {layer.norm is not None for layer in layers[1:-1]}
    if len(normalized) > 1:
        raise UnsupportedModel(
            "batch normalisation in some residual blocks of a network and not in others has no counterpart."
        )
    if normalized == {True}:
        options["normalization"] = "batch_norm"
    return options | ({"context": context} if context else {})


def order_of(depends: np.ndarray, dim: int, where: str) -> list[int] | None:
    """An order in which the dimensions can be generated, ``None`` for 0, 1, 2, ...

    Args:
        depends: which x each output depends on, ``(dim * num_parameters, dim)``.
        dim: number of dimensions.
        where: what a message calls the owner.
    """
    needs: Any = depends.reshape(dim, -1, dim).any(1)
    missing = needs.sum(1)
    order: list[int] = []
    left = np.ones(dim, bool)
    while left.any():
        ready = np.flatnonzero(left & (missing == 0))
        if not len(ready):
            raise UnsupportedModel(
                f"{where} is not autoregressive: by its masks some dimensions depend on each other."
            )
        order.append(int(ready[0]))
        left[ready[0]] = False
        missing = missing - needs[:, ready[0]]
    return None if order == list(range(dim)) else order


def stated_degrees(
    degrees: Sequence[np.ndarray], plan: Callable[[Degrees], Autoregression]
) -> Degrees:
    """Degrees as ``MaskedMLP`` takes them: by name where they have one."""
    names: tuple[Degrees, ...] = (None, "cyclic")
    for given in names:
        named = plan(given).hidden
        if all((a == b).all() for a, b in zip(named, degrees, strict=True)):
            return given
    return [layer.tolist() for layer in degrees]


def _passed_on(layer: Linear, seen: np.ndarray) -> Any:
    """Which x the units of a layer depend on, from which x those below do."""
    mask = np.ones(layer.weight.shape) if layer.mask is None else layer.mask
    return mask.astype(np.float64) @ seen.astype(np.float64) > 0


def _degrees(seen: np.ndarray, order: list[int] | None) -> np.ndarray:
    """One more than the last position in the order that each unit sees, 0 for none.

    A unit that sees all of them reaches no output, so that it may as well see one less.
    """
    dim = seen.shape[1]
    position = np.argsort(np.arange(dim) if order is None else order)
    return np.minimum(np.where(seen, position + 1, 0).max(1), dim - 1)


def _narrower(layers: Sequence[Linear], degrees: Sequence[np.ndarray]) -> tuple[str, ...]:
    """A note if masks are narrower than degrees can say."""
    count = 0
    for layer, (below, above) in zip(layers, pairwise(degrees), strict=True):
        if layer.mask is not None:
            count += int(((above[:, None] >= below) & ~layer.mask).sum())
    if not count:
        return ()
    return (f"{count} weights that the masks forbid are zeros, which training may change.",)


def context_nets(modules: Iterable[Any], where: str) -> list[Part]:
    """Networks for standardisations (as parts), linear layers and activations in turn.

    Linear layers with one activation between them become one ``MLP``, and what follows another one; an
    activation at the end of one is followed by a linear layer that is the identity.
    """
    nets: list[Part] = []
    layers: list[Linear] = []
    name = ""  # of the activation behind each of the layers so far, the last one included

    def close() -> None:
        nonlocal name
        if name:
            size = len(layers[-1].bias)
            layers.append(Linear(np.eye(size), np.zeros(size)))
        if layers:
            sizes = {"in_dim": layers[0].weight.shape[1], "out_dim": len(layers[-1].bias)}
            options = {"hidden_dims": widths(layers), "activation": name or "relu"}
            arrays = arrays_of(layers, "layers")
            nets.append(Part({"type": "MLP", **sizes, **options}, arrays))
        layers.clear()
        name = ""

    pending = list(modules)
    while pending:
        module = pending.pop(0)
        if isinstance(module, Part):
            close()
            nets.append(module)
            continue
        if kind(module) != "Linear":
            raise UnsupportedModel(
                f"{where} is not linear layers with an activation behind each: {kind(module)}."
            )
        layer = linear(module, f"{where}, Linear")
        behind = pending[0] if pending and not isinstance(pending[0], Part) else None
        if behind is None or kind(behind) == "Linear":
            layers.append(layer)
            name = ""
            close()
            continue
        found = activation_name(pending.pop(0), where)
        if name and found != name:
            close()
        layers.append(layer)
        name = found
    close()
    return nets


def masked_autoregressive(
    map: Architecture, conditioner: Conditioner, dim: int, context_dim: int
) -> Part:
    """``MaskedAutoregressive`` with a network that was read."""
    return Part(
        {
            "type": "MaskedAutoregressive",
            "dim": dim,
            "map": map,
            "conditioner": conditioner.architecture,
            "order": conditioner.order,
            "context_dim": context_dim,
        },
        conditioner.arrays,
    )


def elementwise(map: Architecture, conditioner: Conditioner, dim: int, context_dim: int) -> Part:
    """``Elementwise`` with a network of the context that was read."""
    options = {"dim": dim, "map": map, "context_dim": context_dim}
    options["conditioner"] = conditioner.architecture
    return Part({"type": "Elementwise", **options}, conditioner.arrays)


def coupling(
    map: Architecture, conditioner: Conditioner, mask: np.ndarray, context_dim: int
) -> Part:
    """``Coupling`` with a network that was read; ``True`` is fixed."""
    if len(set(np.asarray(mask, bool))) < 2:
        raise UnsupportedModel("a coupling that fixes everything or nothing has no counterpart.")
    return Part(
        {
            "type": "Coupling",
            "dim": len(mask),
            "map": map,
            "conditioner": conditioner.architecture,
            "mask": [int(fixed) for fixed in mask],
            "context_dim": context_dim,
        },
        conditioner.arrays,
    )


def constant_coupling(map: Architecture, raw: np.ndarray, fixed: np.ndarray) -> Part:
    """A ``Coupling`` whose free entries have the parameters ``raw``, whatever the fixed ones are."""
    own = raw.T.ravel()
    weights = arrays_of([Linear(np.zeros((len(own), int(fixed.sum()))), own)])
    return coupling(map, Conditioner({"type": "MLP", "hidden_dims": []}, weights), fixed, 0)
