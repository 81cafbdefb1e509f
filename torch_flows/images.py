"""Images of whole numbers as data."""

import torch
from torch import Tensor

from flow_bridge import checks
from torch_flows.flows import Flow


def dequantize(
    x: Tensor,
    num_levels: int,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(x + noise) / num_levels on [0, 1): integer levels as a density can take them.

    Args:
        x: values 0, 1, ..., num_levels - 1, integer or floating point.
        num_levels: number of levels, 256 for bytes.
        noise: on [0, 1), of x's shape; drawn uniformly if not given, then in x's dtype if that is
            floating point, else in torch's default one. The result has the noise's dtype.
        generator: the source of randomness.

    Reference: Theis et al. (2016), arXiv:1511.01844.

    Examples:
        >>> import torch, torch_flows
        >>> x = torch_flows.dequantize(torch.tensor([0, 255]), 256, noise=torch.tensor([0.0, 0.5]))
        >>> torch_flows.quantize(x, 256).tolist()
        [0.0, 255.0]
    """
    checks.positive_int("dequantize", num_levels=num_levels)
    if noise is None:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        noise = torch.rand(x.shape, generator=generator, dtype=dtype, device=x.device)
    y = (x + noise) / num_levels
    # the sum may round up to num_levels
    return torch.where(y >= 1, 1 - torch.finfo(y.dtype).eps / 2, y)


def quantize(x: Tensor, num_levels: int) -> Tensor:
    """The level of x on [0, 1]: floor(x * num_levels), kept within 0 and num_levels - 1."""
    checks.positive_int("quantize", num_levels=num_levels)
    return (x * num_levels).floor().clamp(0, num_levels - 1)


def denoise(flow: Flow, x: Tensor, sigma: float, context: Tensor | None = None) -> Tensor:
    """The mean of what x was before normal noise of standard deviation sigma was added (Tweedie's formula).

    It is x + sigma^2 times the score of the density of noisy x, which a flow trained with
    ``NoisyLikelihood(sigma)`` has learned; one pass and its gradient.

    Args:
        flow: the flow.
        x: noisy data or samples, ``(*batch, *event_shape)``.
        sigma: above 0.
        context: as for ``Flow.score``.

    Raises:
        ValueError: for another sigma.

    Reference: Efron (2011), Tweedie's formula and selection bias; Zhai et al. (2024), arXiv:2412.06329.
    """
    checks.positive_number("denoise", sigma=sigma)
    return x + sigma**2 * flow.score(x, context)
