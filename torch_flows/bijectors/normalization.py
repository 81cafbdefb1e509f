"""Normalisation with statistics of the data."""

import torch
from torch import Tensor, nn

from flow_bridge import checks
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.registry import register


@register
class BatchNorm(Bijector):
    """z = (x - mean) / sqrt(var + eps) * exp(log_gamma) + beta.

    log|det| = sum(log_gamma - log(var + eps) / 2). In training mode ``forward`` uses the mean and
    the biased variance of the batch and moves the running averages towards the mean and the unbiased
    variance; otherwise it uses the running averages, as ``inverse`` always does. A batch with a NaN
    or an infinity leaves the running averages as they were.

    Args:
        dim: number of dimensions.
        eps: added to the variance.
        momentum: share of the new batch in the running averages.

    Shapes: x and z ``(*batch, dim)``, at least 2 rows in training mode.

    Raises:
        ValueError: in training mode with fewer than 2 rows.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803, appendix E.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        checks.positive_int("BatchNorm", dim=dim)
        checks.positive_number("BatchNorm", eps=eps, momentum=momentum)
        self.dim = dim
        self.eps = eps
        self.momentum = momentum
        self.event_shape = (dim,)
        self.log_gamma = nn.Parameter(torch.zeros(dim))
        self.beta = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def _forward(self, x: Tensor, context: Tensor | None) -> Output:
        if not self.training:
            return self._normalize(x, self.running_mean, self.running_var)
        rows = x.reshape(-1, self.dim)
        checks.enough_rows("BatchNorm", rows.shape[0])
        mean = rows.mean(0)
        var = (rows - mean).square().mean(0)
        self._update(mean.detach(), var.detach() * (rows.shape[0] / (rows.shape[0] - 1)))
        return self._normalize(x, mean, var)

    def _inverse(self, z: Tensor, context: Tensor | None) -> Output:
        log_scale = self.log_gamma - (self.running_var + self.eps).log() / 2
        x = (z - self.beta) * (-log_scale).exp() + self.running_mean
        return x, -log_scale.sum().expand(z.shape[:-1])

    def _normalize(self, x: Tensor, mean: Tensor, var: Tensor) -> Output:
        log_scale = self.log_gamma - (var + self.eps).log() / 2
        z = (x - mean) * log_scale.exp() + self.beta
        return z, log_scale.sum().expand(x.shape[:-1])

    def _update(self, mean: Tensor, var: Tensor) -> None:
        finite = mean.isfinite().all() & var.isfinite().all()
        for running, new in ((self.running_mean, mean), (self.running_var, var)):
            running.copy_(torch.where(finite, running + self.momentum * (new - running), running))
