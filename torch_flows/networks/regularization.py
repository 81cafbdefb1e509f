"""What acts otherwise in training: batch normalisation and dropout between the layers of networks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.regularization import EPS, MOMENTUM, dropout_threshold
from torch_flows.devices import mean_over_ranks, num_ranks, own_rows
from torch_flows.numerics import advance, at_least_float32, first_step, random_bits


def moments(rows: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the first axis of the rows of all ranks, which may count differently."""
    if weights is None:
        mean = mean_over_ranks(rows.mean(0))
        return mean, mean_over_ranks((rows - mean).square().mean(0))
    share = (weights / mean_over_ranks(weights.mean()))[:, None]
    mean = mean_over_ranks((share * rows).mean(0))
    return mean, mean_over_ranks((share * (rows - mean).square()).mean(0))


def unbiased(var: Tensor, owner: str, num_rows: int) -> Tensor:
    """The unbiased variance, from the biased one of as many rows on each rank."""
    num_rows = num_rows * num_ranks()
    checks.enough_rows(owner, num_rows)
    return var * (num_rows / (num_rows - 1))


def store(running: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """Replace running averages in place, unless something new is NaN or infinite."""
    finite = torch.stack([array.isfinite().all() for array in new]).all()
    for old, array in zip(running, new, strict=True):
        old.copy_(torch.where(finite, array.to(old.dtype), old))


class BatchNormalization(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias, for each entry of the last axis.

    In training with the mean and the biased variance of the batch, on all ranks, and the running averages
    move towards its mean and unbiased variance; in evaluation with these. A batch with a NaN or an infinity
    leaves them as they were. Inside ``new_statistics`` they become those of the batch.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.weights_of_rows: tuple[Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        running = self.running_mean, self.running_var
        if self.weights_of_rows is None and not self.training:
            return self._normalize(x, *running)
        rows = at_least_float32(x).reshape(-1, x.shape[-1])
        if self.weights_of_rows is not None:
            (weights,) = self.weights_of_rows
            if weights is not None:  # of the pixels of an image, all the same
                weights = weights.reshape(-1, 1).expand(-1, len(rows) // weights.numel()).flatten()
            store(running, moments(rows, weights))
            return self._normalize(x, *running)
        mean, var = moments(rows)
        of_batch = mean.detach(), unbiased(var.detach(), "BatchNormalization", len(rows))
        pairs = zip(running, of_batch, strict=True)
        store(running, [old + MOMENTUM * (new - old) for old, new in pairs])
        return self._normalize(x, mean, var)

    def _normalize(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        factor = self.weight * (var + EPS).rsqrt()
        return ((x - mean) * factor + self.bias).to(x.dtype)

    def line(self) -> tuple[Tensor, Tensor, Tensor]:
        """In evaluation the map is (x - mean) * factor + bias: these three."""
        return self.running_mean, self.weight * (self.running_var + EPS).rsqrt(), self.bias


class Dropout(nn.Module):
    """In training, x / (1 - rate) with a share of the entries, drawn anew in each step, set to 0.

    Which ones follows from the counter ``noise_step``, which is part of the weights' state: the same in both
    frameworks.
    """

    noise_step: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.threshold = dropout_threshold(rate)
        self.register_buffer("noise_step", first_step(torch.zeros(())))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        bits = own_rows(partial(random_bits, self.noise_step, 0), x.shape)
        advance(self.noise_step)
        return torch.where(bits < self.threshold, 0, x / (1 - self.rate))


def has_batch_statistics(network: nn.Module) -> bool:
    """Whether a network normalises with statistics of the batch in training."""
    return any(isinstance(part, BatchNormalization) for part in network.modules())


def acts_in_training(network: nn.Module) -> bool:
    """Whether a network is another one in training."""
    return any(isinstance(part, BatchNormalization | Dropout) for part in network.modules())


@contextmanager
def new_statistics(network: nn.Module, weights: Tensor | None) -> Iterator[None]:
    """Inside, batch normalisations take the statistics of what they get, and keep them.

    Args:
        weights: how much each row counts, ``None`` for all the same.
    """
    norms = [part for part in network.modules() if isinstance(part, BatchNormalization)]
    try:
        for norm in norms:
            norm.weights_of_rows = (weights,)
        yield
    finally:
        for norm in norms:
            norm.weights_of_rows = None
