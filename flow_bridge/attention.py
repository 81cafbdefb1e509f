"""Checks and sentences of transformers, for both halves."""

from flow_bridge import checks
from flow_bridge.architecture import count_construction

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


def sweeps_message(num_rows: int, max_sweeps: int) -> str:
    """What an inverse by sweeps that did not converge says."""
    return (
        f"the inverse of TransformerAutoregressive still moved {num_rows} of the rows after "
        f"{max_sweeps} sweeps: allow more, or None for one token after the other."
    )
