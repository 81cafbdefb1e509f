"""How arrays are named and laid out in each framework: the one table that both conversions read."""

import re
from typing import NamedTuple


class Layout(NamedTuple):
    """One kind of array: its Flax name and collection, its torch name, and the axes between them.

    ``axes`` permutes the torch array into the Flax one (``flax = torch.transpose(axes)``).
    """

    collection: str
    flax_name: str
    ndim: int
    torch_name: str
    axes: tuple[int, ...]

    @property
    def inverse_axes(self) -> tuple[int, ...]:
        return tuple(sorted(range(self.ndim), key=self.axes.__getitem__))


LAYOUTS = (
    Layout("params", "kernel", 2, "weight", (1, 0)),  # Linear (out, in) <-> Dense (in, out)
    Layout("params", "kernel", 3, "weight", (2, 1, 0)),  # Conv1d OIW <-> WIO
    Layout("params", "kernel", 4, "weight", (2, 3, 1, 0)),  # Conv2d OIHW <-> HWIO
    Layout("params", "scale", 1, "weight", (0,)),  # LayerNorm, GroupNorm
    Layout("params", "embedding", 2, "weight", (0, 1)),
    Layout("batch_stats", "mean", 1, "running_mean", (0,)),
    Layout("batch_stats", "var", 1, "running_var", (0,)),
)
"""Every other array has the same name and layout in both frameworks."""

MATRICES = tuple(layout for layout in LAYOUTS if layout.ndim > 1)


def decays(name: str, ndim: int | None = None) -> bool:
    """Whether weight decay is for an array of this name: the matrices and kernels of networks.

    Args:
        name: its own, in Flax or in torch.
        ndim: of the torch array; in Flax the name says enough.
    """
    if ndim is None:
        return any(name == layout.flax_name for layout in MATRICES)
    return any((name, ndim) == (layout.torch_name, layout.ndim) for layout in MATRICES)


_LIST_ITEM = re.compile(r"^(.+)_(\d+)$")
_STACK = re.compile(r"^(.+)_(\d+):(\d+):(\d+)$")


def find_layout(collection: str, flax_name: str, ndim: int) -> Layout:
    """The row for a Flax array, or the identity."""
    for layout in LAYOUTS:
        if (collection, flax_name, ndim) == (layout.collection, layout.flax_name, layout.ndim):
            return layout
    return Layout(collection, flax_name, ndim, flax_name, tuple(range(ndim)))


def stack_name(name: str, indices: range) -> str:
    """The key of equal layers stacked along a leading axis: ``layers[0:8:2]`` is ``layers_0:8:2``."""
    return f"{name}_{indices.start}:{indices.stop}:{indices.step}"


def part_name(name: str) -> str:
    """The key of a part that is no list item, though its name may end like one: ``part_1.``."""
    return f"{name}." if _LIST_ITEM.match(name) else name


def torch_modules(key: str) -> list[str]:
    """The torch module paths that one Flax module key stands for, more than one for a stack.

    ``layers_3`` is ``layers.3``; ``layers_0:8:2`` is ``layers.0``, ``layers.2``, ...; ``part_1.`` is
    ``part_1``.
    """
    if key.endswith("."):
        return [key[:-1]]
    if stack := _STACK.match(key):
        name, *bounds = stack.groups()
        return [f"{name}.{i}" for i in range(*map(int, bounds))]
    if item := _LIST_ITEM.match(key):
        return [f"{item[1]}.{item[2]}"]
    return [key]
