"""What importers build: architectures of twinflows with their arrays, in float64."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers.reading import Run

Arrays = dict[str, np.ndarray]

OPPOSITE = {"scale_shift": "shift_divide", "shift_divide": "scale_shift"}
"""Of an order of ``AffineMap``, that of the inverse."""


@dataclass(frozen=True)
class Part:
    """An object of twinflows that is still to be built, and its arrays under their torch names."""

    architecture: Architecture
    arrays: Arrays = field(default_factory=dict)


class Layer(NamedTuple):
    """What one layer of the peer became.

    Attributes:
        name: what its library calls it.
        parts: bijectors, data to latent; none for the identity.
        run: the peer's layer alone, data to latent, given what its network sees of the context.
    """

    name: str
    parts: list[Part]
    run: Run


@dataclass(frozen=True)
class Reading:
    """A model of another library, read.

    Attributes:
        layers: data to latent.
        base: the distribution of the latent.
        run: the peer itself, data to latent; with ``inverse``, latent to data, as its layers then are.
            ``None`` if there are only its arrays.
        context_net: what the context passes through first.
        embed: the same in the peer, ``None`` for nothing.
        notes: sentences about what does not come with it.
        inverse: whether the peer has only the way from latent to data.
        dtype: of the peer, where its parameters do not tell.
    """

    layers: Sequence[Layer]
    base: Part
    run: Run | None
    context_net: Sequence[Part] = ()
    embed: Any = None
    notes: Sequence[str] = ()
    inverse: bool = False
    dtype: str | None = None


def part(type: str, arrays: Mapping[str, Any] | None = None, **options: Any) -> Part:
    """A ``Part`` from the arguments of its class."""
    given = {k: np.array(v, np.float64, order="C") for k, v in (arrays or {}).items()}
    return Part({"type": type, **options}, given)


def prefixed(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays of something inside something else."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def context_dim(item: Part) -> int:
    """The width of the context that a bijector takes, 0 for none."""
    return int(innermost(item).get("context_dim", 0))


def innermost(item: Part) -> Architecture:
    """The architecture of a bijector without the inversions around it."""
    architecture = item.architecture
    while "bijector" in architecture:
        architecture = architecture["bijector"]
    return architecture


def chain(parts: Sequence[Part]) -> Part:
    """The parts one after another."""
    arrays: Arrays = {}
    for i, item in enumerate(parts):
        arrays |= prefixed(f"bijectors.{i}", item.arrays)
    return Part({"type": "Chain", "bijectors": [item.architecture for item in parts]}, arrays)


def invert(item: Part) -> Part:
    """The inverse of a bijector."""
    kind = item.architecture["type"]
    if kind == "Invert":
        inner = {k.removeprefix("bijector."): v for k, v in item.arrays.items()}
        return Part(item.architecture["bijector"], inner)
    if kind == "Permutation":
        return permutation(np.argsort(item.architecture["permutation"]))
    map = item.architecture.get("map", {})
    order = map.get("order", "scale_shift")
    if kind == "Coupling" and map["type"] == "AffineMap" and order in OPPOSITE:
        return Part(item.architecture | {"map": map | {"order": OPPOSITE[order]}}, item.arrays)
    return Part(
        {"type": "Invert", "bijector": item.architecture}, prefixed("bijector", item.arrays)
    )


def invert_all(parts: Sequence[Part]) -> list[Part]:
    """The inverse of bijectors one after another."""
    return [invert(item) for item in reversed(parts)]


def permutation(order: Iterable[int]) -> Part:
    """z_i = x_order[i]."""
    return part("Permutation", permutation=[int(i) for i in order])


def standardize(mean: np.ndarray, sd: np.ndarray, where: str) -> Part:
    """z = (x - mean) / sd."""
    if not (sd > 0).all():
        raise UnsupportedModel(f"{where} with a scale that is not above 0 has no counterpart.")
    return part("Standardize", {"loc": mean, "scale": sd}, dim=len(mean))


def matrix(weight: np.ndarray, shift: np.ndarray | None = None) -> Part:
    """z = W x + b for any W that is invertible: P S L U by elimination with pivots."""
    dim = len(weight)
    a, order = weight.copy(), np.arange(dim)
    for j in range(dim):
        pivot = j + int(np.abs(a[j:, j]).argmax())
        a[[j, pivot]], order[[j, pivot]] = a[[pivot, j]], order[[pivot, j]]
        if a[j, j] == 0:
            raise UnsupportedModel("a matrix that cannot be inverted has no counterpart.")
        a[j + 1 :, j] /= a[j, j]
        a[j + 1 :, j + 1 :] -= np.outer(a[j + 1 :, j], a[j, j + 1 :])
    signs = np.sign(np.diag(a))
    lower = np.tril(a, -1) * signs[:, None] * signs
    upper = np.triu(a) * signs[:, None]
    lu = lower + np.triu(upper, 1) + np.diag(np.log(np.diag(upper)))
    arrays = {"lu": lu} | ({} if shift is None else {"shift": shift})
    options = {"bias": shift is not None, "permutation": np.argsort(order).tolist()}
    options["signs"] = [int(sign) for sign in signs] if (signs < 0).any() else None
    return part("LULinear", arrays, dim=dim, **options)


def rotation(weight: np.ndarray) -> Part:
    """z = W x for an orthogonal W of determinant 1, by reflections that make its columns those of 1."""
    dim, rest, found = len(weight), weight.copy(), []
    for j in range(dim):
        v = np.where(np.arange(dim) < j, 0, rest[:, j])
        v[j] -= 1
        if rest[j, j] > 0:  # not the difference of two numbers near 1
            v[j] = -(v[j + 1 :] @ v[j + 1 :]) / (1 + rest[j, j])
        if v.any():
            found.append(v)
            rest = rest - 2 * np.outer(v, v @ rest) / (v @ v)
    vectors = np.zeros((max(2, dim - dim % 2), dim))
    vectors[: len(found)] = found[: len(vectors)] or vectors[:0]
    return part("Rotation", {"vectors": vectors}, dim=dim)


def block_network(
    layers: Sequence[tuple[np.ndarray, np.ndarray]],
    dim: int,
    leak: float,
    where: str,
    context_weight: np.ndarray | None = None,
    gate: float | None = None,
) -> Part:
    """``BlockAutoregressive`` of weights ``(out, in)``, whose blocks are lower triangular, and biases."""
    arrays: dict[str, Any] = {}
    widths = []
    for i, (weight, bias) in enumerate(layers):
        blocks = weight.reshape(dim, len(bias) // dim, dim, -1)
        own = np.stack([blocks[j, :, j] for j in range(dim)])
        above = np.triu(np.ones((dim, dim), bool), 1)
        if not (own > 0).all() or blocks.swapaxes(1, 2)[above].any():
            raise UnsupportedModel(
                f"{where} has no counterpart unless its blocks are lower triangular and above 0 on the "
                "diagonal."
            )
        arrays |= {f"diagonal_{i}": np.log(own), f"weight_{i}": weight, f"bias_{i}": bias}
        widths.append(len(bias) // dim)
    options = {"dim": dim, "hidden_dims": widths[:-1], "leak": leak, "gate": gate is not None}
    if context_weight is not None:
        arrays["context_weight"] = context_weight
        options["context_dim"] = context_weight.shape[1]
    if gate is not None:
        arrays["raw_gate"] = np.array(gate)
    return part("BlockAutoregressive", arrays, **options)


def affine(scale: np.ndarray, shift: np.ndarray, where: str) -> Part:
    """z = scale x + shift."""
    if not (scale > 0).all():
        raise UnsupportedModel(f"{where} with a scale that is not above 0 has no counterpart.")
    return part("Affine", {"log_scale": np.log(scale), "shift": shift}, dim=len(scale))


def normal_base(loc: np.ndarray, log_scale: np.ndarray) -> Part:
    """A normal distribution with independent entries."""
    if not loc.any() and not log_scale.any():
        return part("StandardNormal", dim=len(loc))
    return part("DiagonalNormal", {"loc": loc, "log_scale": log_scale}, dim=len(loc))


def flow(reading: Reading) -> Part:
    """A reading as the ``Flow`` that it is."""
    items = [item for layer in reading.layers for item in layer.parts]
    bijector = chain(items or [permutation(range(reading.base.architecture["dim"]))])
    arrays = prefixed("bijector", bijector.arrays) | prefixed("base", reading.base.arrays)
    for i, net in enumerate(reading.context_net):
        arrays |= prefixed(f"context_net.{i}", net.arrays)
    nets = [net.architecture for net in reading.context_net]
    architecture = {
        "type": "Flow",
        "bijector": bijector.architecture,
        "base": reading.base.architecture,
        "context_net": nets or None,
    }
    # safetensors writes what lies in memory, whatever its strides
    return Part(architecture, {name: np.array(a, order="C") for name, a in arrays.items()})


def composed(layers: Sequence[Layer], inverse: bool = False) -> Run:
    """The peer's layers one after another, with log|det| in float64."""

    def run(x: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        total = np.zeros(len(x))
        for layer in reversed(layers) if inverse else layers:
            x, log_det = layer.run(x, context)
            total = total + log_det
        return x, total

    return run


def mostly(back: Iterable[bool]) -> bool:
    """Whether most layers go from data to latent by their inverse, so that the peer is run the other way."""
    given = list(back)
    return 2 * sum(given) > len(given)
