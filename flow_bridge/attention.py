"""Checks and sentences of transformers, for both halves."""

import math
from collections.abc import Sequence

from flow_bridge import checks
from flow_bridge.architecture import count_construction
from flow_bridge.masks import CHECKERBOARDS, Mask, random_permutation

EXPANSION = 4
"""How much wider than the tokens the hidden layer of a block's MLP is."""

POSITION_SCALE = 1e-2
"""Standard deviation of the first embeddings of positions."""

SWEEP_TOLERANCE = 16.0
"""By how many units in the last place of 1 + |x| a sweep may still move what is called solved."""


def check_transformer(
    owner: str, hidden_dim: int, num_blocks: int, num_heads: int, context_dim: int
) -> None:
    """Check the numbers of a stack of attention blocks."""
    checks.positive_int(owner, hidden_dim=hidden_dim, num_blocks=num_blocks, num_heads=num_heads)
    checks.non_negative_int(owner, context_dim=context_dim)
    checks.divisible(owner, num_heads, hidden_dim=hidden_dim)
    checks.regularization(owner, "layer_norm", 0.0, [hidden_dim])
    count_construction(6 * num_blocks + 2)


def num_tokens(owner: str, dim: int, token_dim: int) -> int:
    """How many tokens of a width a vector holds."""
    checks.positive_int(owner, dim=dim, token_dim=token_dim)
    checks.divisible(owner, token_dim, dim=dim)
    return dim // token_dim


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


def check_pixels(num_tokens: int, size: Sequence[int]) -> None:
    """Raise ``ValueError`` unless an image has one pixel for each token."""
    if math.prod(size) != num_tokens:
        raise ValueError(
            f"ImageTransformer of num_tokens={num_tokens} expects as many pixels, got "
            f"{' x '.join(map(str, size))}."
        )


def patch_masks(num_channels: int) -> list[Mask]:
    """Of couplings of patches: two random halves of the channels, their complements, and a checkerboard;
    then the same with the other one."""
    masks: list[Mask] = []
    for seed in range(2):
        half = random_permutation(num_channels, seed)[: num_channels // 2].tolist()
        chosen = [int(i in half) for i in range(num_channels)]
        masks += [chosen, [1 - i for i in chosen]]
    return [mask for board in CHECKERBOARDS for mask in (*masks, board)]


def sweeps_message(num_rows: int, max_sweeps: int) -> str:
    """What an inverse by sweeps that did not converge says."""
    return (
        f"the inverse of TransformerAutoregressive still moved {num_rows} of the rows after "
        f"{max_sweeps} sweeps: allow more, or None for one token after the other."
    )
