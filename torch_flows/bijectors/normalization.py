"""Normalisation with statistics of the data."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flow_bridge import checks
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.devices import mean_over_ranks
from torch_flows.networks.regularization import moments, store, unbiased
from torch_flows.registry import register


@register
class BatchNorm(Bijector):
    """z = (x - mean) / sqrt(var + eps) * exp(log_gamma) + beta.

    log|det| = sum(log_gamma - log(var + eps) / 2). In training mode ``forward`` uses the mean and
    the biased variance of the batch and moves the running averages towards the mean and the unbiased
    variance; in evaluation mode, in which it is built, it uses the running averages, as ``inverse``
    always does. A batch with a NaN or an infinity leaves the running averages as they were. They lag
    behind the weights: ``fit`` sets them to the mean and the biased variance of the training data where
    an epoch ends, and ``set_statistics`` does so for a loop of one's own. In a process group the batch
    is that of all ranks, so in training mode all of them must call ``forward``, with equally many rows.

    Args:
        dim: number of dimensions.
        eps: added to the variance, between 0 and 1.
        momentum: share of the new batch in the running averages, above 0 and at most 1.

    Shapes: x and z ``(*batch, dim)``, at least 2 rows in training mode.

    Raises:
        ValueError: in training mode with fewer than 2 rows.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803, appendix E.
    """

    has_batch_statistics = True
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        checks.positive_int("BatchNorm", dim=dim)
        checks.open_interval("BatchNorm", "eps", eps, 0, 1)
        checks.momentum("BatchNorm", momentum)
        self.dim = dim
        self.eps = eps
        self.momentum = momentum
        self.event_shape = (dim,)
        self.log_gamma = nn.Parameter(torch.zeros(dim))
        self.beta = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        running = self.running_mean, self.running_var
        if not self.training:
            return self._normalize(x, *running)
        rows = x.reshape(-1, self.dim)
        mean, var = moments(rows)
        of_batch = mean.detach(), unbiased(var.detach(), "BatchNorm", len(rows))
        pairs = zip(running, of_batch, strict=True)
        store(running, [old + self.momentum * (new - old) for old, new in pairs])
        return self._normalize(x, mean, var)

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        mean, var = self.running_mean, self.running_var
        log_scale = (var + self.eps).log() / 2 - self.log_gamma
        x = torch.addcmul(mean, z - self.beta, log_scale.exp())
        return x, log_scale.sum().expand(z.shape[:-1])

    def map_and_set_statistics(
        self, x: Tensor, context: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        weights_of_rows = None if weights is None else weights.reshape(-1)
        of_data = moments(x.reshape(-1, self.dim), weights_of_rows)
        store((self.running_mean, self.running_var), of_data)
        return super().map_and_set_statistics(x, context, weights)

    def _normalize(self, x: Tensor, mean: Tensor, var: Tensor) -> Output:
        log_scale = torch.sub(self.log_gamma, (var + self.eps).log(), alpha=0.5)
        z = torch.addcmul(self.beta, x - mean, log_scale.exp())
        return z, log_scale.sum().expand(x.shape[:-1])


@register
class ActNorm(Bijector):
    """z = x * exp(log_scale) + shift, for images with one scale and shift per channel.

    log|det| = sum(log_scale) (times height * width). The identity until ``initialize(x)``, called once
    before training, sets scale and shift so that z has mean 0 and (biased) standard deviation 1 in
    every dimension or channel of x; a dimension that is constant up to rounding keeps a finite scale.
    From then on both are weights like any other, and nothing depends on a batch. In a process group x
    is the rows of all ranks: each passes as many.

    Args:
        dim: number of dimensions, or ``(channels, height, width)``.

    Shapes: x and z ``(*batch, dim)`` or ``(*batch, channels, height, width)``.

    Reference: Kingma and Dhariwal (2018), Glow, arXiv:1807.03039.

    Examples:
        >>> import torch, torch_flows
        >>> bijector = torch_flows.ActNorm(dim=3)
        >>> z, log_det = bijector.forward(torch.zeros(5, 3))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 3), (5,))
    """

    def __init__(self, dim: int | Sequence[int]) -> None:
        super().__init__()
        self.dim = dim if isinstance(dim, int) else tuple(dim)
        shape = checks.vector_or_image("ActNorm", dim)
        self.event_shape = shape
        self.num_pixels = math.prod(shape[1:])
        self.log_scale = nn.Parameter(torch.zeros(shape[0]))
        self.shift = nn.Parameter(torch.zeros(shape[0]))

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        log_scale, shift = self._weights()
        return torch.addcmul(shift, x, log_scale.exp()), self._log_det(x)

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        log_scale, shift = self._weights()
        return (z - shift) * (-log_scale).exp(), -self._log_det(z)

    def map_and_initialize(
        self, x: Tensor, context: Tensor | None, inverse: bool = False
    ) -> Tensor:
        channels = x.reshape(-1, len(self.shift), self.num_pixels).movedim(1, 0).flatten(1)
        mean = mean_over_ranks(channels.mean(1))
        mean = mean + mean_over_ranks((channels - mean[:, None]).mean(1))
        sd = mean_over_ranks((channels - mean[:, None]).square().mean(1)).sqrt()
        eps = torch.finfo(x.dtype).eps
        log_sd = torch.maximum(sd, 4 * eps * mean.abs()).clamp_min(max(1e-6, eps)).log()
        self.log_scale.copy_(log_sd if inverse else -log_sd)
        self.shift.copy_(mean if inverse else -mean * (-log_sd).exp())
        return super().map_and_initialize(x, context, inverse)

    def _weights(self) -> tuple[Tensor, Tensor]:
        ones = (1,) * (len(self.event_shape) - 1)
        return self.log_scale.reshape(-1, *ones), self.shift.reshape(-1, *ones)

    def _log_det(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - len(self.event_shape)]
        return (self.log_scale.sum() * self.num_pixels).expand(batch)


@register
class Standardize(Bijector):
    """z = (x - loc) / scale with fixed arrays, for images with one of each per channel.

    log|det| = -sum(log|scale|) (times height * width). The identity until ``standardized`` sets
    ``loc`` and ``scale`` from data. They are no weights: training and ``initialize`` leave them alone.

    Args:
        dim: number of dimensions, or ``(channels, height, width)``.

    Shapes: x and z ``(*batch, dim)`` or ``(*batch, channels, height, width)``.

    Examples:
        >>> import torch, torch_flows
        >>> bijector = torch_flows.Standardize(dim=3)
        >>> z, log_det = bijector.forward(torch.zeros(5, 3))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 3), (5,))
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int | Sequence[int]) -> None:
        super().__init__()
        self.dim = dim if isinstance(dim, int) else tuple(dim)
        shape = checks.vector_or_image("Standardize", dim)
        self.event_shape = shape
        self.num_pixels = math.prod(shape[1:])
        self.register_buffer("loc", torch.zeros(shape[0]))
        self.register_buffer("scale", torch.ones(shape[0]))

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        loc, scale = self._arrays()
        return (x - loc) / scale, -self._log_det(x)

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        loc, scale = self._arrays()
        return torch.addcmul(loc, z, scale), self._log_det(z)

    def _arrays(self) -> tuple[Tensor, Tensor]:
        ones = (1,) * (len(self.event_shape) - 1)
        return self.loc.reshape(-1, *ones), self.scale.reshape(-1, *ones)

    def _log_det(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - len(self.event_shape)]
        return (self.scale.abs().log().sum() * self.num_pixels).expand(batch)
