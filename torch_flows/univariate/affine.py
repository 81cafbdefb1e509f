"""Affine maps of one variable."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flow_bridge.univariate import check_affine
from torch_flows.numerics import absolute, log_softplus, softplus
from torch_flows.registry import register
from torch_flows.univariate.base import Output, UnivariateMap, unstack


@register
@dataclass(frozen=True)
class ShiftMap(UnivariateMap):
    """z = x + t; log|dz/dx| = 0, exactly. One parameter: t."""

    separable = True

    @property
    def num_parameters(self) -> int:
        return 1

    def forward(self, x: Tensor, parameters: Any) -> Output:
        return x + unstack(parameters)[0], torch.zeros_like(x)

    def inverse(self, z: Tensor, parameters: Any) -> Output:
        return z - unstack(parameters)[0], torch.zeros_like(z)


@register
@dataclass(frozen=True)
class AffineMap(UnivariateMap):
    """A scale s and a shift t, in one of three orders. Two parameters: t, and a raw number a for s.

    Args:
        scale: what s is of a. ``"exp"``: exp(a). With |log s| below ``bound`` and slope 1 at 0:
            ``"tanh"``, log s = bound tanh(a / bound); ``"softclip"``, log s = a / (1 + |a| / bound);
            ``"arctan"``, log s = (2 bound / pi) arctan(pi a / (2 bound)). ``"clamp"``: log s is a,
            or the nearest number from ``low`` to ``high``, where its gradient is 0. ``"softplus"``:
            log(1 + exp(a + offset)) + minimum. ``"sigmoid"``: bound / (1 + exp(-a - offset)) +
            minimum.
        bound: as stated there.
        offset: as stated there; ``None`` for the one that makes zeros the identity.
        minimum: as stated there.
        order: ``"scale_shift"``, z = s x + t; ``"shift_scale"``, z = s (x - t); ``"shift_divide"``,
            z = (x - t) / s, whose inverse is a scale and then a shift.
        low, high: as stated there.
        clip: bounds the raw number that ``"softplus"`` and ``"sigmoid"`` take to clip tanh(a / clip), so that
            their scales stay away from 0, and softplus's from infinity; ``None`` for a itself.

    Raises:
        ValueError: for an unknown name, and numbers out of range.

    Examples:
        >>> import torch, torch_flows
        >>> map = torch_flows.AffineMap("softplus", minimum=1e-3)
        >>> z, log_slope = map.forward(torch.ones(5), torch.zeros(5, map.num_parameters))
        >>> bool((z - 1).abs().max() < 1e-6)
        True
    """

    separable = True

    scale: str = "exp"
    bound: float = 2.0
    offset: float | None = None
    minimum: float = 0.0
    order: str = "scale_shift"
    low: float = -5.0
    high: float = 3.0
    clip: float | None = None

    def __post_init__(self) -> None:
        given = (self.scale, self.bound, self.offset, self.minimum, self.order)
        offset = check_affine("AffineMap", *given, self.low, self.high, self.clip)
        object.__setattr__(self, "offset", offset)

    @property
    def num_parameters(self) -> int:
        return 2

    def forward(self, x: Tensor, parameters: Any) -> Output:
        shift, raw = unstack(parameters)
        scale, log_scale = self._scale(raw, self.order == "shift_divide")
        if self.order == "scale_shift":
            return torch.addcmul(shift, x, scale), log_scale
        return (x - shift) * scale, log_scale

    def inverse(self, z: Tensor, parameters: Any) -> Output:
        shift, raw = unstack(parameters)
        scale, log_scale = self._scale(raw, self.order != "shift_divide")
        if self.order == "scale_shift":
            return (z - shift) * scale, log_scale
        return torch.addcmul(shift, z, scale), log_scale

    def _scale(self, raw: Tensor, inverted: bool) -> tuple[Tensor, Tensor]:
        """The scale or, ``inverted``, one over it; and its log."""
        if self.minimum:  # known itself, so that who needs no log pays for none
            scale = self._above_minimum(raw)
            return (1 / scale, -scale.log()) if inverted else (scale, scale.log())
        log_scale = -self._log_scale(raw) if inverted else self._log_scale(raw)
        return log_scale.exp(), log_scale

    def _log_scale(self, raw: Tensor) -> Tensor:
        bound = self.bound
        if self.scale == "exp":
            return raw
        if self.scale == "tanh":
            return raw.tanh() if bound == 1 else bound * (raw / bound).tanh()
        if self.scale == "softclip":
            return raw / (1 + absolute(raw) / bound)
        if self.scale == "arctan":
            steepness = math.pi / (2 * bound)
            return (steepness * raw).arctan() / steepness
        if self.scale == "clamp":
            return raw.clamp(self.low, self.high)
        raw = self._moved(raw)
        if self.scale == "softplus":
            return log_softplus(raw)
        return math.log(bound) - softplus(-raw)

    def _moved(self, raw: Tensor) -> Tensor:
        """The raw number clipped, and with the offset."""
        raw = raw if self.clip is None else self.clip * (raw / self.clip).tanh()
        return raw + self.offset if self.offset else raw

    def _above_minimum(self, raw: Tensor) -> Tensor:
        """The scale where a minimum is added to it."""
        raw = self._moved(raw)
        scale = softplus(raw) if self.scale == "softplus" else self.bound * raw.sigmoid()
        return scale + self.minimum
