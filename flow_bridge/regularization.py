"""Numbers of the layers of networks that act otherwise in training."""

EPS = 1e-5
"""What batch normalisation in networks adds to a variance."""

MOMENTUM = 0.1
"""The share of a new batch in their running averages."""


def dropout_threshold(rate: float) -> int:
    """Below which 32 random bits drop an entry."""
    return min(round(rate * 2**32), 2**32 - 1)
