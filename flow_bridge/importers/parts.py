"""What importers build: architectures of twinflows with their arrays, in float64."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.errors import UnsupportedModel
from flow_bridge.importers.reading import Run

Arrays = dict[str, np.ndarray]


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
        coarse: the error that functions of its framework have far out; few rows may show it.
    """

    layers: Sequence[Layer]
    base: Part
    run: Run | None
    context_net: Sequence[Part] = ()
    embed: Any = None
    notes: Sequence[str] = ()
    inverse: bool = False
    coarse: float = 0.0


def part(type: str, arrays: Mapping[str, Any] | None = None, **options: Any) -> Part:
    """A ``Part`` from the arguments of its class."""
    given = {k: np.array(v, np.float64, order="C") for k, v in (arrays or {}).items()}
    return Part({"type": type, **options}, given)


def prefixed(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays of something inside something else."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def context_dim(item: Part) -> int:
    """The width of the context that a bijector takes, 0 for none."""
    architecture = item.architecture
    while "bijector" in architecture:
        architecture = architecture["bijector"]
    return int(architecture.get("context_dim", 0))


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
    return Part(
        {"type": "Invert", "bijector": item.architecture}, prefixed("bijector", item.arrays)
    )


def invert_all(parts: Sequence[Part]) -> list[Part]:
    """The inverse of bijectors one after another."""
    return [invert(item) for item in reversed(parts)]


def permutation(order: Sequence[int] | np.ndarray) -> Part:
    """z_i = x_order[i]."""
    return part("Permutation", permutation=[int(i) for i in order])


def standardize(mean: np.ndarray, sd: np.ndarray, where: str) -> Part:
    """z = (x - mean) / sd."""
    if not (sd > 0).all():
        raise UnsupportedModel(f"{where} with a scale that is not above 0 has no counterpart.")
    return part("Standardize", {"loc": mean, "scale": sd}, dim=len(mean))


def linear(weight: np.ndarray, shift: np.ndarray | None, where: str) -> Part:
    """z = W x + shift for any invertible W, as P S L U."""
    count = len(weight)
    a, rows = weight.copy(), np.arange(count)
    for j in range(count):
        pivot = j + int(np.abs(a[j:, j]).argmax())
        a[[j, pivot]], rows[[j, pivot]] = a[[pivot, j]], rows[[pivot, j]]
        if a[j, j] == 0:
            raise UnsupportedModel(f"{where} has a matrix that cannot be inverted.")
        a[j + 1 :, j] /= a[j, j]
        a[j + 1 :, j + 1 :] -= np.outer(a[j + 1 :, j], a[j, j + 1 :])
    signs = np.sign(np.diag(a))
    lu = np.tril(signs[:, None] * a * signs, -1) + np.triu(signs[:, None] * a, 1)
    lu += np.diag(np.log(np.abs(np.diag(a))))
    options: dict[str, Any] = {"dim": count, "bias": shift is not None}
    options["permutation"] = np.argsort(rows).tolist()
    if (signs < 0).any():
        options["signs"] = [int(sign) for sign in signs]
    return part("LULinear", {"lu": lu} | ({} if shift is None else {"shift": shift}), **options)


def normal_base(loc: np.ndarray, log_scale: np.ndarray) -> Part:
    """A normal distribution with independent entries."""
    if not loc.any() and not log_scale.any():
        return part("StandardNormal", dim=len(loc))
    return part("DiagonalNormal", {"loc": loc, "log_scale": log_scale}, dim=len(loc))


def flow(reading: Reading) -> Part:
    """A reading as the ``Flow`` that it is."""
    bijector = chain([item for layer in reading.layers for item in layer.parts])
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
    return Part(architecture, arrays)
