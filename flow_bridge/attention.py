"""Checks and sentences of transformers, for both halves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from flow_bridge import checks
from flow_bridge.architecture import count_construction, count_entries
from flow_bridge.masks import CHECKERBOARDS, Mask, random_permutation

EXPANSION = 4
"""How much wider than the tokens the hidden layer of a block's MLP is."""

POSITION_SCALE = 1e-2
"""Standard deviation of the first embeddings of positions."""

SWEEP_TOLERANCE = 16.0
"""By how many units in the last place of 1 + |x| a sweep may still move what is called solved."""


ROTARY_BASE = 1e4
"""By how much slower the last pair of rotary positions turns than the first."""

CONTEXTS = ("add", "prefix", "cross")
"""How a context enters a transformer."""


@dataclass(frozen=True)
class Blocks:
    """The arguments that all transformers have, of these names."""

    hidden_dim: int
    num_blocks: int
    num_heads: int
    activation: str = "gelu"
    context_dim: int = 0
    initial_scale: float = 0.0
    rotary: bool = False
    qk_norm: bool = False
    gated: bool = False
    context: str = "add"
    context_tokens: int = 1
    checkpointing: bool = False

    @classmethod
    def of(cls, owner: Any) -> "Blocks":
        """Those of an object with such attributes."""
        return cls(**{field.name: getattr(owner, field.name) for field in fields(cls)})

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_dim // self.num_heads

    @property
    def crosses(self) -> bool:
        """Whether the tokens attend to the context apart from each other."""
        return self.context_dim > 0 and self.context == "cross"

    @property
    def num_prefix(self) -> int:
        """How many tokens of the context stand before the others."""
        return self.context_tokens if self.context_dim and self.context == "prefix" else 0

    def check(self, owner: str, activations: Any, num_tokens: int) -> None:
        """Raise ``ValueError`` for what makes no transformer."""
        sizes = {name: getattr(self, name) for name in ("hidden_dim", "num_blocks", "num_heads")}
        checks.positive_int(owner, **sizes, context_tokens=self.context_tokens)
        checks.non_negative_int(owner, context_dim=self.context_dim)
        checks.divisible(owner, self.num_heads, hidden_dim=self.hidden_dim)
        checks.regularization(owner, "layer_norm", 0.0, [self.hidden_dim])
        checks.one_of(owner, "activation", self.activation, activations)
        checks.non_negative_number(owner, initial_scale=self.initial_scale)
        flags = ("rotary", "qk_norm", "gated", "checkpointing")
        checks.boolean(owner, **{name: getattr(self, name) for name in flags})
        checks.one_of(owner, "context", self.context, CONTEXTS)
        checks.divisible(owner, self.context_tokens, context_dim=self.context_dim)
        if self.context == "add" and self.context_tokens > 1:
            raise ValueError(f"{owner} adds a context of one token, got {self.context_tokens}.")
        if self.rotary and self.head_dim % 2:
            raise ValueError(
                f"{owner} turns pairs: rotary needs heads of even width, got {self.head_dim}."
            )
        count_construction((6 + 4 * self.crosses) * self.num_blocks + 2)
        if self.rotary:
            count_entries((self.num_prefix + num_tokens) * self.head_dim)

    def turns(self, num_tokens: int) -> np.ndarray:
        """The cosines and sines of the places of all tokens and pairs, ``(2, places, head_dim / 2)``."""
        places, pairs = self.num_prefix + num_tokens, self.head_dim // 2
        angles = np.arange(places)[:, None] * ROTARY_BASE ** (-np.arange(pairs) / pairs)
        return np.stack([np.cos(angles), np.sin(angles)])


Guidance = float | tuple[float, float] | None


def guidance_weights(
    owner: str, guidance: Guidance, num_tokens: int, context_dim: int
) -> list[float] | None:
    """The weight of every token, in the order of generation."""
    if guidance is None:
        return None
    ends = [guidance] * 2 if isinstance(guidance, int | float) else list(guidance)
    if len(ends) != 2:
        raise ValueError(f"{owner} expects guidance as a weight or as two, got {guidance!r}.")
    checks.non_negative_number(owner, guidance=ends[0])
    checks.non_negative_number(owner, guidance=ends[1])
    if not context_dim or context_dim % 2:
        raise ValueError(
            f"{owner} with guidance takes two contexts side by side: context_dim must be even, "
            f"got {context_dim}."
        )
    count_entries(num_tokens)
    return np.linspace(ends[0], ends[1], num_tokens).tolist()


def guided_architecture(owner: str, architecture: Any, guidance: Guidance) -> Any:
    """An architecture whose transformers are guided, and in which a chain's context is two."""
    guided = 0

    def change(part: Any) -> Any:
        nonlocal guided
        if isinstance(part, list | tuple):
            return [change(item) for item in part]
        if not isinstance(part, dict):
            return part
        part = {name: change(value) for name, value in part.items()}
        if part["type"] in ("TransformerAutoregressive", "TarFlow"):
            guided += 1
            if part["guidance"] is not None or not part["context_dim"]:
                raise ValueError(
                    f"{owner} expects transformers with a context and without guidance."
                )
            part |= {"guidance": guidance, "context_dim": 2 * part["context_dim"]}
        return part

    changed = change(architecture)
    if not guided:
        raise ValueError(f"{owner} expects a flow of transformers with a context.")
    return changed


def num_tokens(owner: str, dim: int, token_dim: int) -> int:
    """How many tokens of a width a vector holds."""
    checks.positive_int(owner, dim=dim, token_dim=token_dim)
    checks.divisible(owner, token_dim, dim=dim)
    return dim // token_dim


def depths(owner: str, num_blocks: int | Sequence[int], num_layers: int) -> list[int]:
    """How many blocks each transformer has."""
    if isinstance(num_blocks, int):
        return [num_blocks] * num_layers
    if len(num_blocks) != num_layers:
        raise ValueError(
            f"{owner} expects num_blocks as a number or as {num_layers} numbers, one for each layer, "
            f"got {len(num_blocks)}."
        )
    return list(num_blocks)


def shape_of(owner: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    """The event shape of vectors or of images."""
    event = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(event) not in (1, 3):
        raise ValueError(
            f"{owner} expects shape as a number or as (channels, height, width), got {shape!r}."
        )
    return event


def tokens_of(
    owner: str, shape: int | Sequence[int], patch_size: int
) -> tuple[int, int, tuple[int, ...] | None]:
    """How many numbers an event has and how many one token, and the shape of an image."""
    checks.positive_int(owner, patch_size=patch_size)
    event = shape_of(owner, shape)
    if len(event) == 1:
        num_tokens(owner, event[0], patch_size)
        return event[0], patch_size, None
    image = checks.image_shape(owner, event, patch_size)
    return math.prod(image), image[0] * patch_size**2, image


def check_pixels(num_tokens: int, size: Sequence[int | None]) -> None:
    """Raise ``ValueError`` if an image of a known size has not one pixel for each token."""
    known = [side for side in size if side is not None]
    if len(known) == len(size) and math.prod(known) != num_tokens:
        raise ValueError(
            f"ImageTransformer of num_tokens={num_tokens} expects as many pixels, got "
            f"{' x '.join(map(str, size))}."
        )


def patch_masks(num_channels: int) -> list[Mask]:
    """Of couplings of patches: two random halves of the channels, their complements, and a checkerboard;
    then the same with the other one."""
    masks: list[Mask] = []
    for seed in range(2):
        half = set(random_permutation(num_channels, seed)[: num_channels // 2].tolist())
        chosen = [int(i in half) for i in range(num_channels)]
        masks += [chosen, [1 - i for i in chosen]]
    return [mask for board in CHECKERBOARDS for mask in (*masks, board)]


def check_sweeps(owner: str, max_sweeps: int | None, sweep_size: int | None) -> None:
    """Raise ``ValueError`` for numbers of sweeps and sizes of their blocks that are none."""
    if max_sweeps is not None:
        checks.positive_int(owner, max_sweeps=max_sweeps)
    if sweep_size is not None:
        checks.positive_int(owner, sweep_size=sweep_size)
        if max_sweeps is None:
            raise ValueError(f"{owner} with sweep_size expects max_sweeps, those of each block.")


def sweep_size(given: int | None, num_tokens: int) -> int:
    """How many tokens are found together by sweeps."""
    return num_tokens if given is None else min(given, num_tokens)


def sweeps_message(num_rows: int, max_sweeps: int) -> str:
    """What an inverse by sweeps that did not converge says."""
    return (
        f"the inverse of TransformerAutoregressive still moved {num_rows} of the rows after "
        f"{max_sweeps} sweeps: allow more, or None for one token after the other."
    )
