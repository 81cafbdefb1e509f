"""Fixed arrays that follow from constructor arguments: computed here once, in numpy, for both halves."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flow_bridge.architecture import count_entries

Mask = str | Sequence[int] | Sequence[bool]
Index = slice | np.ndarray
Order = str | Sequence[int] | None
Degrees = str | Sequence[Sequence[int]] | None

NAMED_MASKS = ("even", "odd", "first_half", "second_half")
CHECKERBOARDS = ("checkerboard_even", "checkerboard_odd")


def coupling_mask(mask: Mask, dim: int) -> np.ndarray:
    """The coupling mask as a boolean array of shape ``(dim,)``: ``True`` is fixed, ``False`` is free.

    ``"even"`` fixes dimensions 0, 2, 4, ..., ``"odd"`` the others; ``"first_half"`` and
    ``"second_half"`` fix that half (at odd ``dim`` the first half is the smaller one); a list of
    0 and 1 is taken as it is.

    Raises:
        ValueError: for an unknown name, a list of the wrong length or with other values, and for a
            mask that fixes everything or nothing (every mask does at ``dim`` 1).
    """
    count_entries(dim)
    position = np.arange(dim)
    if isinstance(mask, str):
        if mask not in NAMED_MASKS:
            raise ValueError(
                f"mask must be one of {', '.join(NAMED_MASKS)} or a list of 0 and 1, got {mask!r}."
            )
        fixed = {
            "even": position % 2 == 0,
            "odd": position % 2 == 1,
            "first_half": position < dim // 2,
            "second_half": position >= dim // 2,
        }[mask]
    else:
        if not isinstance(mask, list | tuple):
            raise ValueError(f"mask must be a name or a list of 0 and 1, got {mask!r}.")
        if len(mask) != dim or any(entry not in (0, 1) for entry in mask):
            raise ValueError(f"mask must hold {dim} entries of 0 or 1, got {list(mask)!r}.")
        fixed = np.array(mask, dtype=bool)
    if fixed.all() or not fixed.any():
        what = "everything" if fixed.all() else "nothing"
        hint = (
            "a coupling needs dim 2 or more; use an elementwise, planar or masked autoregressive "
            "bijector at dim 1"
            if dim == 1
            else "a coupling needs at least one fixed and one free dimension"
        )
        raise ValueError(f"mask {mask!r} fixes {what} at dim {dim}: {hint}.")
    return fixed


def permutation_order(permutation: str | Sequence[int], dim: int | None) -> np.ndarray:
    """A permutation as an array: entry i says which dimension of x becomes dimension i of z.

    Raises:
        ValueError: for ``"reverse"`` without ``dim``, another name, a list that is not a permutation
            of 0, 1, ..., n - 1, and a list of another length than ``dim``.
    """
    if permutation == "reverse":
        if dim is None:
            raise ValueError('permutation "reverse" needs dim.')
        count_entries(dim)
        return np.arange(dim)[::-1].copy()
    if not isinstance(permutation, list | tuple):
        raise ValueError(f'permutation must be a list or "reverse", got {permutation!r}.')
    count_entries(len(permutation))
    whole = all(isinstance(i, int) for i in permutation)
    if not permutation or not whole or sorted(permutation) != list(range(len(permutation))):
        raise ValueError(f"permutation must hold 0, 1, ..., n - 1 once each, got {permutation!r}.")
    if dim not in (None, len(permutation)):
        raise ValueError(f"permutation holds {len(permutation)} entries at dim {dim}.")
    return np.array(permutation)


def factor_rows(
    owner: str, permutation: str | Sequence[int], signs: Sequence[int] | None, dim: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Where the rows of a product L U go: which row of its reversal is row i, and with which sign.

    Returns:
        ``None`` for the reversal itself.

    Raises:
        ValueError: as ``permutation_order``, and for signs that are not ``dim`` numbers 1 and -1.
    """
    if signs is not None and (len(signs) != dim or any(sign not in (1, -1) for sign in signs)):
        raise ValueError(f"{owner} expects signs as {dim} numbers 1 or -1, got {signs!r}.")
    if permutation == "reverse" and signs is None:
        return None
    order = permutation_order(permutation, dim)
    count_entries(dim)
    return dim - 1 - order, np.ones(dim, int) if signs is None else np.array(signs)[order]


def random_permutation(dim: int, seed: int) -> np.ndarray:
    """The permutation of ``dim`` dimensions that numpy's generator draws from ``seed``."""
    count_entries(dim)
    return np.random.default_rng(seed).permutation(dim)


def as_index(positions: np.ndarray) -> Index:
    """Positions as a slice where they ascend evenly spaced (a view, not a gather)."""
    steps = np.diff(positions)
    if len(positions) == 1 or (steps[0] > 0 and (steps == steps[0]).all()):
        step = int(steps[0]) if len(positions) > 1 else 1
        return slice(int(positions[0]), int(positions[-1]) + 1, step)
    return positions


@dataclass(frozen=True)
class Partition:
    """How a coupling takes its input apart and puts it together again."""

    mask: Mask
    dim: int
    context_dim: int = 0

    @cached_property
    def fixed(self) -> np.ndarray:
        """Positions of the fixed dimensions."""
        return np.flatnonzero(coupling_mask(self.mask, self.dim))

    @cached_property
    def free(self) -> np.ndarray:
        """Positions of the free dimensions."""
        return np.flatnonzero(~coupling_mask(self.mask, self.dim))

    @cached_property
    def inputs(self) -> np.ndarray:
        """Positions of the fixed dimensions and the context in ``concatenate([x, context])``."""
        count_entries(self.dim + self.context_dim)
        return np.concatenate([self.fixed, np.arange(self.dim, self.dim + self.context_dim)])

    @property
    def fixed_leads(self) -> bool:
        """Whether dimension 0 is fixed: the fixed dimensions then come first in ``order``."""
        return bool(self.fixed[0] == 0)

    @property
    def parts(self) -> tuple[tuple[int, ...], int]:
        """The positions that go with dimension 0, and ``dim``: equal for a mask and its opposite."""
        return tuple((self.fixed if self.fixed_leads else self.free).tolist()), self.dim

    @cached_property
    def order(self) -> np.ndarray:
        """Where each dimension stands in the two parts one after the other, the leading one first."""
        parts = (self.fixed, self.free) if self.fixed_leads else (self.free, self.fixed)
        return np.argsort(np.concatenate(parts))

    @cached_property
    def layout(self) -> str:
        """``"blocks"`` (one concatenation merges), ``"alternating"`` (one stack), else ``"mixed"``."""
        position = np.arange(self.dim)
        if (self.order == position).all():
            return "blocks"
        if self.dim % 2 == 0 and (self.order == position // 2 + position % 2 * self.dim // 2).all():
            return "alternating"
        return "mixed"


def halves(mask: Mask, dim: int, columns: int | None) -> tuple[list[int], list[int]]:
    """Positions of the fixed and of the free dimensions; of nothing where no map asks for columns."""
    if columns is None:
        return [], []
    partition = Partition(mask, dim)
    return partition.fixed.tolist(), partition.free.tolist()


def autoregressive_order(order: Order, dim: int) -> np.ndarray:
    """The dimensions in the order in which they are generated, shape ``(dim,)``.

    ``None`` is 0, 1, 2, ..., ``"reverse"`` the other way round, ``"random:SEED"`` a random order that
    is the same in both backends, and a list of all dimensions is taken as it is.

    Raises:
        ValueError: for anything else.
    """
    count_entries(dim)
    if order is None:
        return np.arange(dim)
    if order == "reverse":
        return np.arange(dim)[::-1].copy()
    if isinstance(order, str) and (seed := re.fullmatch(r"random:([0-9]{1,18})", order)):
        return np.random.default_rng(int(seed[1])).permutation(dim)
    if isinstance(order, str) or not isinstance(order, Sequence):
        raise ValueError(
            f'order must be None, "reverse", "random:SEED" or a list, got {order!r:.60}.'
        )
    integers = all(type(entry) is int for entry in order)
    if not integers or sorted(order) != list(range(dim)):
        raise ValueError(
            f"order must hold each of the {dim} dimensions once, got {list(order)!r:.60}."
        )
    return np.array(order)


@dataclass(frozen=True)
class Autoregression:
    """Who sees whom in a masked network, by degrees; and in which blocks its inverse goes.

    The dimension generated k-th, counted from 0, has degree k + 1 as an input and k as an output; a
    unit sees those of the layer below whose degree is not above its own. Of ``num_features`` inputs for
    each dimension, the first of all dimensions come first, then the second of all.

    Args:
        dim, num_parameters, context_dim: of the network.
        hidden_dims: widths of the hidden layers.
        order: see ``autoregressive_order``.
        num_features: how many inputs there are for each dimension.
        given: the degrees of the hidden units. ``None``: ascending along each layer and spread evenly, from 0
            where there is a context (or one dimension only), else from 1, to dim - 1. ``"cyclic"``:
            1, 2, ..., dim - 1, 1, 2, ... Or one list for each layer, with a number from 0 to dim - 1
            for each unit.

    Raises:
        ValueError: for degrees that are none of these.

    Reference: Germain et al. (2015), MADE, arXiv:1502.03509.
    """

    dim: int
    hidden_dims: tuple[int, ...]
    num_parameters: int
    order: Order
    context_dim: int
    given: Degrees = None
    num_features: int = 1

    def __post_init__(self) -> None:
        _ = self.hidden, self.generated

    @property
    def generated(self) -> np.ndarray:
        """The dimensions in the order in which they are generated."""
        return autoregressive_order(self.order, self.dim)

    @property
    def num_inputs(self) -> int:
        """How many inputs there are without the context."""
        return self.dim * self.num_features

    @cached_property
    def hidden(self) -> list[np.ndarray]:
        """The degrees of the hidden units, layer by layer."""
        count_entries(sum(self.hidden_dims))
        if self.given == "cyclic":
            return [
                np.arange(n) % max(1, self.dim - 1) + min(1, self.dim - 1) for n in self.hidden_dims
            ]
        if self.given is not None:
            return _listed_degrees(self.given, self.hidden_dims, self.dim)
        lowest = 0 if self.context_dim or self.dim == 1 else 1
        return [lowest + np.arange(n) * (self.dim - lowest) // n for n in self.hidden_dims]

    @property
    def degrees(self) -> list[np.ndarray]:
        """The degrees of the inputs (the context last, of degree 0), hidden units and outputs.

        The ``num_parameters`` outputs of one dimension stand together.
        """
        count_entries(self.context_dim + self.dim * max(self.num_features, self.num_parameters))
        position = np.argsort(self.generated)
        seen = np.tile(position + 1, self.num_features)
        inputs = np.concatenate([seen, np.zeros(self.context_dim, int)])
        return [inputs, *self.hidden, np.repeat(position, self.num_parameters)]

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The positions of the inputs and of the outputs in the order of generation."""
        inputs = self.generated[:, None] + np.arange(self.num_features) * self.dim
        outputs = self.generated[:, None] * self.num_parameters + np.arange(self.num_parameters)
        return inputs.ravel(), outputs.ravel()

    @property
    def sorting(self) -> list[np.ndarray | None]:
        """For inputs, each hidden layer and outputs (of one parameter each), the positions in the order
        in which they can be computed; ``None`` where they stand in it."""
        inputs, outputs = self.ends
        hidden = [np.argsort(degrees, kind="stable") for degrees in self.hidden]
        layers = [inputs, *hidden, outputs]
        return [None if (order == np.arange(len(order))).all() else order for order in layers]

    def parts(self, size: float) -> tuple[int, ...]:
        """How the inverse divides the dimensions: into so many parts, each into so many, and so on.

        The last entry is the length of the smallest blocks, ``size`` times the root of ``dim``.
        """
        block = max(1, round(size * self.dim**0.5))
        count = -(-self.dim // block)
        if count <= 8:
            return count, block
        inner = -(-count // 4)
        return -(-count // inner), inner, block

    @property
    def starts(self) -> list[list[int]]:
        """For inputs, each hidden layer and outputs, counted in the order of generation: where the
        k-th dimension starts (of the hidden units, those of degree k), for k up to ``dim``."""
        steps = np.arange(self.dim + 1)
        hidden = [np.searchsorted(np.sort(degrees), steps) for degrees in self.hidden]
        ends = steps * self.num_features, *hidden, steps * self.num_parameters
        return [layer.tolist() for layer in ends]

    def blocks(self, start: int, run: int, block: int) -> list[np.ndarray]:
        """``run`` dimensions from the ``start``-th generated on, in blocks of ``block``, padded.

        Returns, for inputs, each hidden layer and outputs, positions within the run of shape
        ``(blocks, size)`` with the same sizes for every run; one past the end stands for padding.
        """
        index = []
        for layer in self.starts:
            ends = np.array(layer + [layer[-1]] * block)
            size = (ends[block:] - ends[:-block])[::block].max()
            bounds = np.minimum(np.arange(start, start + run + block, block), start + run)
            first = ends[bounds] - ends[start]
            positions = first[:-1, None] + np.arange(size)
            index.append(np.where(positions < first[1:, None], positions, first[-1]))
        return index


def _listed_degrees(
    degrees: str | Sequence[Sequence[int]], hidden_dims: Sequence[int], dim: int
) -> list[np.ndarray]:
    if isinstance(degrees, str) or len(degrees) != len(hidden_dims):
        raise ValueError(
            f'degrees must be None, "cyclic" or a list for each of the {len(hidden_dims)} hidden '
            f"layers, got {degrees!r:.60}."
        )
    for layer, width in zip(degrees, hidden_dims, strict=True):
        numbers = isinstance(layer, list | tuple) and all(type(d) is int for d in layer)
        if not numbers or len(layer) != width or not all(0 <= d < dim for d in layer):
            raise ValueError(
                f"degrees must hold {width} integers from 0 to {dim - 1} for a layer of {width} units, "
                f"got {layer!r:.60}."
            )
    return [np.array(layer, int) for layer in degrees]
