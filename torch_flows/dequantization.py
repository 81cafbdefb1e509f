"""Flows of whole numbers: noise that a second flow learns, and bounds of their probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flow_bridge import checks
from flow_bridge.dequantization import noise_shape_of
from flow_bridge.sources import base_noise
from torch_flows.flows import Flow
from torch_flows.images import dequantize, quantize
from torch_flows.inputs import check_array, check_input
from torch_flows.losses import Loss
from torch_flows.registry import register
from torch_flows.variables import HasVariables


@register
class Dequantized(HasVariables):
    """Whole numbers x whose probability P(x) is the integral of a flow's density over the cell [x, x + 1).

    ``sample`` draws from P. There is no ``log_prob``: the integral is not known but by bounds, with noise
    u_k on (0, 1) from a second flow q, its context x and then the context of the first,

        log mean_k p(x + u_k) / q(u_k | x),  k of num_draws,

    whose mean lies below log P(x) and rises to it with the number of draws. ``fit`` trains both flows by
    it, unless told otherwise with ``DequantizationBound(1)``; ``save``, ``load`` and conversion keep both.
    Noise that is uniform where it starts, as that of a bounded ``SplineMap`` is, can only get better.

    Args:
        flow: the flow p of x + u.
        noise: the flow q, of the shape of u, on (0, 1); uniform noise if not given. Its ``context_dim`` is
            the number of entries of x plus that of the flow's context.
        num_levels: x is one of 0, 1, ..., num_levels - 1, as grey levels of images are, and p, like the
            context of q, has x / num_levels and u / num_levels in place of x and u, see ``dequantize``. The
            end cells get what p has beyond them. If not given, x may be any whole number.
        integers: the positions of whole numbers in a vector, all of them if not given. Noise is for these
            alone, and P(x) a density in the others. Categories are whole numbers here.

    Raises:
        ValueError: for parts that do not fit together, and with batch statistics.

    Reference: Ho et al. (2019), Flow++, arXiv:1902.00275; Burda et al. (2016), arXiv:1509.00519, for
    several draws.

    Examples:
        >>> import torch, torch_flows
        >>> map = torch_flows.SplineMap(num_bins=4, low=0.0, high=1.0, boundary="bounded")
        >>> noise = torch_flows.Flow(torch_flows.Elementwise(2, map, 2), torch_flows.Uniform(2))
        >>> model = torch_flows.Dequantized(torch_flows.MAF(dim=2, num_layers=2), noise)
        >>> tuple(model.log_prob_bound(torch.zeros(5, 2), num_draws=3).shape)
        (5,)
    """

    def __init__(
        self,
        flow: Flow,
        noise: Flow | None = None,
        num_levels: int | None = None,
        integers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        checks.instances("Dequantized", "flow", [flow], Flow)
        checks.instances("Dequantized", "noise", [] if noise is None else [noise], Flow)
        self.u_shape = noise_shape_of(flow, noise, num_levels, integers)
        self.event_shape, self.context_dim = flow.event_shape, flow.context_dim
        self.flow = flow
        self.noise = noise
        self.num_levels = num_levels
        self.integers = None if integers is None else tuple(integers)

    has_batch_statistics = False

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of one event of what ``bound_from_noise`` takes."""
        return self.u_shape if self.noise is None else self.noise.base.noise_shape

    def log_prob_bound(
        self,
        x: Tensor,
        context: Tensor | None = None,
        num_draws: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A draw of the bound of log P(x) in nats, shape ``(*batch,)``; -inf for what is no whole number.

        ``bits_per_dimension`` of it (``num_levels`` 1 there, the cells are counted already) bounds the bits
        from above.

        Args:
            x: shape ``(*batch, *event_shape)``, floating point, of the weights' dtype.
            context: shape ``(*batch, context_dim)`` or broadcastable to it.
            num_draws: of the noise, each with a density of its own.
            generator: the source of randomness.

        Raises:
            ValueError: for a wrong shape, and for a context that is missing or unexpected.
            TypeError: for a wrong dtype.
        """
        checks.positive_int("Dequantized", num_draws=num_draws)
        context = check_input(self, "x", x, context)
        x, outside = self._inside(x)
        if self.noise is None:
            shape = num_draws, *outside.shape, *self.u_shape
            u = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
            return self._bound(x, u, None, context, outside)
        given = self._noise_context(x, context)
        u, log_q = self.noise.sample_and_log_prob(num_draws, given, generator)
        return self._bound(x, u, log_q, context, outside)

    def bound_from_noise(self, x: Tensor, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """``log_prob_bound`` from given noise of q's base, or uniform noise where there is no q.

        Its shape is ``(num_draws, *batch, *noise_shape)``. Other arguments and errors as there.
        """
        context = check_input(self, "x", x, context)
        check_array(self, "noise", noise, self.noise_shape)
        x, outside = self._inside(x)
        if self.noise is None:
            return self._bound(x, noise, None, context, outside)
        given = self._noise_context(x, context)
        u, log_q = self.noise.from_noise(noise, given)
        return self._bound(x, u, log_q, context, outside)

    def sample(
        self,
        num_samples: int | Sequence[int] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Whole numbers from P, exactly: the cells of samples of the flow. Arguments as ``Flow.sample``."""
        x = self.flow.sample(num_samples, context, generator)
        if self.num_levels is not None:
            return quantize(x, self.num_levels)
        if self.integers is None:
            return x.floor()
        return torch.where(self._whole(x), x.floor(), x)

    def _inside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x, with 0 in the entries that have no probability, and which events have such entries."""
        whole = (x == x.floor()) & (x.abs() < math.inf)
        if self.num_levels is not None:
            whole = whole & (x >= 0) & (x < self.num_levels)
        if self.integers is not None:
            whole = whole | ~self._whole(x)
        wrong = ~(whole | x.isnan())
        return torch.where(wrong, 0, x), wrong.flatten(x.ndim - len(self.event_shape)).any(-1)

    def _whole(self, x: Tensor) -> Tensor:
        """Which columns are whole numbers."""
        integers = self.integers or ()
        return torch.tensor([i in integers for i in range(x.shape[-1])], device=x.device)

    def _noise_context(self, x: Tensor, context: Tensor | None) -> Tensor:
        flat = x.flatten(x.ndim - len(self.event_shape))
        if self.num_levels is not None:
            flat = flat / self.num_levels
        return flat if context is None else torch.cat([flat, context], -1)

    def _bound(
        self,
        x: Tensor,
        u: Tensor,
        log_q: Tensor | None,
        context: Tensor | None,
        outside: Tensor,
    ) -> Tensor:
        if self.integers is not None:
            # column i of x gets what stands at its place, the others 0
            places = [
                self.integers.index(i) if i in self.integers else len(self.integers)
                for i in range(x.shape[-1])
            ]
            u = torch.cat([u, torch.zeros_like(u[..., :1])], -1)[..., places]
        y = x + u if self.num_levels is None else dequantize(x, self.num_levels, u)
        log_ratio = self.flow.log_prob(y, context)
        if self.num_levels is not None:
            log_ratio = log_ratio - math.prod(self.u_shape) * math.log(self.num_levels)
        if log_q is not None:
            log_ratio = log_ratio - log_q
        one = len(u) == 1
        bound = log_ratio[0] if one else log_ratio.logsumexp(0) - math.log(len(u))
        return torch.where(outside, -math.inf, bound)


@dataclass(frozen=True)
class DequantizationBound(Loss):
    """-``Dequantized.log_prob_bound`` with noise that is new in every step: both flows learn.

    With several draws the bound is tighter, and a row costs as many densities.

    Args:
        num_draws: of the noise of each row.

    Raises:
        ValueError: for another number; in ``fit``, for noise whose samples have no gradients.

    Reference: Ho et al. (2019), Flow++, arXiv:1902.00275.
    """

    models = Dequantized
    num_draws: int = 1

    def __post_init__(self) -> None:
        checks.positive_int("DequantizationBound", num_draws=self.num_draws)

    def check(self, flow: Any) -> None:
        if flow.noise is not None:
            base = flow.noise.base
            checks.reparameterized("DequantizationBound", type(base).__name__, base.reparameterized)

    def draw(
        self, flow: Any, generator: np.random.Generator, num_rows: int
    ) -> tuple[np.ndarray, ...]:
        kind = "uniform" if flow.noise is None else flow.noise.base.noise
        return (base_noise(generator, kind, (num_rows, self.num_draws, *flow.noise_shape)),)

    def __call__(self, flow: Any, x: Any, context: Tensor | None, *noise: Tensor) -> Tensor:
        return -flow.bound_from_noise(x, noise[0].movedim(1, 0), context)
