"""Bijectors that act on each entry alone."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor, nn

from flow_bridge import checks, images
from flow_bridge.domains import POSITIVE, Interval
from flow_bridge.networks import Network, as_network
from torch_flows.bijectors.base import (
    Bijector,
    Conditioned,
    Output,
    evaluation,
    overrides,
    score_of_entries,
)
from torch_flows.networks.conditioner import build_conditioner
from torch_flows.networks.mlp import MLP
from torch_flows.numerics import (
    absolute,
    at_least_float32,
    check_constants,
    log1p,
    log_sech2,
    softplus,
    split_sign,
    sum_event,
    tanh,
)
from torch_flows.registry import register
from torch_flows.univariate.base import UnivariateMap
from torch_flows.univariate.tails import log_tail, tail_quantile


class Pointwise(Bijector):
    """z_i = f(x_i) for every entry. log|det| = the sum of log f'(x_i) over the event."""

    def __init__(self, event_ndim: int = 1) -> None:
        super().__init__()
        checks.event_axes(type(self).__name__, event_ndim)
        self.event_ndim = event_ndim
        self.event_shape = (None,) * event_ndim

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        z, log_slope = self.map_entries(x)
        return z, sum_event(log_slope, self.event_ndim)

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        x, log_slope = self.map_entries_inverse(z)
        return x, sum_event(log_slope, self.event_ndim)

    def map_score(
        self,
        x: Tensor,
        score: Tensor,
        context: Tensor | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if overrides(self, Pointwise):
            return super().map_score(x, score, context, inverse, differentiable)
        step = self.map_entries_inverse if inverse else self.map_entries
        z, log_slope, score = score_of_entries(step, x, score, differentiable)
        return z, sum_event(log_slope, self.event_ndim), score

    @abstractmethod
    def map_entries(self, x: Tensor) -> Output: ...

    @abstractmethod
    def map_entries_inverse(self, z: Tensor) -> Output: ...


def _nan_or_zero(x: Tensor) -> Tensor:
    """0, or NaN where x is NaN."""
    return torch.where(x.isnan(), x, 0)


@register
class LeakyReLU(Pointwise):
    """z = x for x >= 0 and negative_slope * x below; the derivative at 0 is 1.

    Each direction takes the side by the sign of its own input, the same for x and its z. Where a layer
    before it rounds an entry to the other side of 0, log|det| changes by log(negative_slope).

    Args:
        negative_slope: above 0.
        event_ndim: number of axes of one event, 3 for images.
    """

    def __init__(self, negative_slope: float = 0.01, event_ndim: int = 1) -> None:
        super().__init__(event_ndim)
        checks.positive_number("LeakyReLU", negative_slope=negative_slope)
        self.negative_slope = negative_slope

    def map_entries(self, x: Tensor) -> Output:
        log_slope = torch.where(x < 0, math.log(self.negative_slope), _nan_or_zero(x))
        return torch.where(x < 0, self.negative_slope * x, x), log_slope

    def map_entries_inverse(self, z: Tensor) -> Output:
        log_slope = torch.where(z < 0, -math.log(self.negative_slope), _nan_or_zero(z))
        return torch.where(z < 0, z / self.negative_slope, z), log_slope


@register
class ELU(Pointwise):
    """z = x for x >= 0 and alpha * (exp(x) - 1) below; the derivative at 0 is 1. Codomain (-alpha, inf).

    Far below 0 the map is flat: of x = -10 the inverse can recover 3 digits in float32. Each direction
    takes the side by the sign of its own input, as ``LeakyReLU`` does.

    Args:
        alpha: above 0.
        event_ndim: number of axes of one event, 3 for images.

    Reference: Clevert et al. (2016), arXiv:1511.07289.
    """

    def __init__(self, alpha: float = 1.0, event_ndim: int = 1) -> None:
        super().__init__(event_ndim)
        checks.positive_number("ELU", alpha=alpha)
        self.alpha = alpha
        self.codomain = Interval(-alpha, math.inf)

    def map_entries(self, x: Tensor) -> Output:
        check_constants(self, x, alpha=self.alpha)
        low = x < 0
        z = torch.where(low, self.alpha * torch.where(low, x, 0).expm1(), x)
        return z, torch.where(low, x + math.log(self.alpha), _nan_or_zero(x))

    def map_entries_inverse(self, z: Tensor) -> Output:
        check_constants(self, z, alpha=self.alpha)
        low, near = z < 0, z > -self.alpha / 4
        # next to -alpha the sum is exact, where z / alpha would round
        log_sum = (torch.where(near, self.alpha, z + self.alpha) / self.alpha).log()
        log_ratio = torch.where(low & near, z / self.alpha, 0).log1p()
        x = torch.where(low, torch.where(near, log_ratio, log_sum), z)
        return x, torch.where(low, -x - math.log(self.alpha), _nan_or_zero(z))


@register
class Softplus(Pointwise):
    """z = log(1 + e^x). Codomain (0, inf).

    Args:
        event_ndim: number of axes of one event, 3 for images.
    """

    codomain = POSITIVE

    def map_entries(self, x: Tensor) -> Output:
        return softplus(x), -softplus(-x)

    def map_entries_inverse(self, z: Tensor) -> Output:
        log_slope = -(-(-z).expm1()).log()
        return z - log_slope, log_slope


@register
class Exp(Pointwise):
    """z = e^x. Codomain (0, inf).

    Args:
        event_ndim: number of axes of one event, 3 for images.
    """

    codomain = POSITIVE

    def map_entries(self, x: Tensor) -> Output:
        return x.exp(), x

    def map_entries_inverse(self, z: Tensor) -> Output:
        x = z.log()
        return x, -x


@register
class Sigmoid(Pointwise):
    """z = 1 / (1 + e^-x). Codomain (0, 1).

    Past x = 17 (float32) or 37 (float64) z rounds to 1, whose inverse is infinity.

    Args:
        event_ndim: number of axes of one event, 3 for images.

    Examples:
        >>> import torch, torch_flows
        >>> bijector = torch_flows.Sigmoid()
        >>> z, log_det = bijector.forward(torch.zeros(5, 2))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 2), (5,))
    """

    codomain = Interval(0.0, 1.0)

    def map_entries(self, x: Tensor) -> Output:
        return x.sigmoid(), -softplus(x) - softplus(-x)

    def map_entries_inverse(self, z: Tensor) -> Output:
        log_z, log_rest = z.log(), log1p(-z)
        return log_z - log_rest, -log_z - log_rest


@register
class Tanh(Pointwise):
    """z = tanh(x). Codomain (-1, 1).

    Past |x| = 9 (float32) or 19 (float64) z rounds to 1 or -1, whose inverse is infinite.

    Args:
        event_ndim: number of axes of one event, 3 for images.
    """

    codomain = Interval(-1.0, 1.0)

    def map_entries(self, x: Tensor) -> Output:
        z, near = tanh(x), x.abs() < 0.3
        log_near = log1p(-torch.where(near, z, 0).square())
        return z, torch.where(near, log_near, log_sech2(x))

    def map_entries_inverse(self, z: Tensor) -> Output:
        above, below, near = log1p(z), log1p(-z), z.abs() < 0.3
        log_near = log1p(-torch.where(near, z, 0).square())
        return (above - below) / 2, torch.where(near, -log_near, -above - below)


@register
class Softclip(Pointwise):
    """z = x / (1 + |x| / bound), with slope 1 at 0. Codomain (-bound, bound).

    Its slope falls as 1 / x^2, where that of ``Tanh`` falls as e^(-2 |x|).

    Args:
        bound: above 0.
        event_ndim: number of axes of one event, 3 for images.
    """

    def __init__(self, bound: float = 1.0, event_ndim: int = 1) -> None:
        super().__init__(event_ndim)
        checks.positive_number("Softclip", bound=bound)
        self.bound = bound
        self.codomain = Interval(-bound, bound)

    def map_entries(self, x: Tensor) -> Output:
        check_constants(self, x, bound=self.bound)
        share = absolute(x) / self.bound
        # a large x over a small bound overflows
        far = share.isinf()
        log_far = torch.where(far, x.abs(), 1).log() - math.log(self.bound)
        log_slope = -2 * torch.where(far, log_far, share.log1p())
        return self.bound * (x / (self.bound + absolute(x))), log_slope

    def map_entries_inverse(self, z: Tensor) -> Output:
        check_constants(self, z, bound=self.bound)
        rest = (self.bound - absolute(z)) / self.bound
        rest = torch.where(rest < 0, math.nan, rest)
        return z / rest, -2 * rest.log()


@register
class NormalClip(Pointwise):
    """Phi(z) = (1 - share) Phi(x) + share / 2: near the identity, onto the quantiles of a standard normal
    from share / 2 up to 1 - share / 2, the codomain.

    Args:
        share: of a standard normal, what z leaves out; between 1e-300 and 1.
        event_ndim: number of axes of one event, 3 for images.

    Raises:
        ValueError: for a share out of range.
    """

    def __init__(self, share: float = 1e-6, event_ndim: int = 1) -> None:
        super().__init__(event_ndim)
        checks.open_interval("NormalClip", "share", share, 1e-300, 1)
        self.share = share
        end = NormalDist().inv_cdf(share / 2)
        self.codomain = Interval(end, -end)

    def map_entries(self, x: Tensor) -> Output:
        log_rest = math.log1p(-self.share)
        sign, t = split_sign(at_least_float32(x))
        log_ends = torch.full_like(t, math.log(self.share / 2))
        clipped = tail_quantile(torch.logaddexp(log_rest + log_tail(t), log_ends))
        log_slope = log_rest + (clipped - t) * (clipped + t) / 2
        return (sign * clipped).to(x.dtype), log_slope.to(x.dtype)

    def map_entries_inverse(self, z: Tensor) -> Output:
        log_rest = math.log1p(-self.share)
        sign, t = split_sign(at_least_float32(z))
        log_share = log_tail(t)
        gap = math.log(self.share / 2) - log_share
        inside = torch.where(gap < 0, gap, math.nan)
        whole = tail_quantile(log_share + log1p(-inside.exp()) - log_rest)
        whole = torch.where(gap == 0, math.inf, whole)
        log_slope = (whole - t) * (whole + t) / 2 - log_rest
        return (sign * whole).to(z.dtype), log_slope.to(z.dtype)


@register
class LeakyTanh(Pointwise):
    """tanh(x) for |x| <= bound, and its tangents beyond: onto the reals, once continuously differentiable.

    Args:
        bound: where the tangents begin, between 0 and 8.
        event_ndim: number of axes of one event, 3 for images.

    Raises:
        ValueError: for a bound out of range.
    """

    def __init__(self, bound: float = 3.0, event_ndim: int = 1) -> None:
        super().__init__(event_ndim)
        checks.open_interval("LeakyTanh", "bound", bound, 0, 8)
        self.bound = bound

    def map_entries(self, x: Tensor) -> Output:
        near = torch.where(x.abs() > self.bound, x.sign() * self.bound, x)
        rest = (x - near) * math.cosh(self.bound) ** -2
        return tanh(near) + rest, log_sech2(near) + _nan_or_zero(x)

    def map_entries_inverse(self, z: Tensor) -> Output:
        edge = math.tanh(self.bound)
        far = z.abs() > edge
        near = torch.where(far, 0, z)
        inside = (log1p(near) - log1p(-near)) / 2
        beyond = z.sign() * self.bound + (z - z.sign() * edge) * math.cosh(self.bound) ** 2
        log_near = -log1p(near) - log1p(-near)
        log_slope = torch.where(far, 2 * math.log(math.cosh(self.bound)), log_near)
        return torch.where(far, beyond, inside), log_slope + _nan_or_zero(z)


@register
class LOFT(Pointwise):
    """z = x for |x| <= start, and start + log(1 + |x| - start) with the sign of x beyond.

    Flows in many dimensions whose samples run away stay in range with it behind them, as
    ``Invert(LOFT())``. Onto the reals, and once continuously differentiable;
    log|det| = -sum(log(1 + max(|x| - start, 0))).

    Args:
        start: where the logarithm begins, above 0.
        event_ndim: number of axes of one event, 3 for images.

    Reference: Andrade (2024), arXiv:2402.16408.
    """

    def __init__(self, start: float = 100.0, event_ndim: int = 1) -> None:
        super().__init__(event_ndim)
        checks.positive_number("LOFT", start=start)
        self.start = start

    def map_entries(self, x: Tensor) -> Output:
        check_constants(self, x, start=self.start)
        far = x.abs() > self.start
        growth = torch.where(far, absolute(x) - self.start, 0).log1p()
        z = torch.where(far, x.sign() * (self.start + growth), x)
        return z, _nan_or_zero(x) - growth

    def map_entries_inverse(self, z: Tensor) -> Output:
        check_constants(self, z, start=self.start)
        far = z.abs() > self.start
        growth = torch.where(far, absolute(z) - self.start, 0)
        x = torch.where(far, z.sign() * (self.start + growth.expm1()), z)
        return x, _nan_or_zero(z) + growth


@register
class Rescale(Bijector):
    """z = x * exp(log_scale): NICE's diagonal scaling. log|det| = sum(log_scale).

    Args:
        dim: number of dimensions.

    Shapes: x and z ``(*batch, dim)``. Reference: Dinh et al. (2015), NICE, arXiv:1410.8516.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        checks.positive_int("Rescale", dim=dim)
        self.dim = dim
        self.event_shape = (dim,)
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(x.shape[:-1])

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        return z * (-self.log_scale).exp(), -self.log_scale.sum().expand(z.shape[:-1])


@register
class Affine(Bijector):
    """z = x * exp(log_scale) + shift. log|det| = sum(log_scale).

    Args:
        dim: number of dimensions.

    Shapes: x and z ``(*batch, dim)``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        checks.positive_int("Affine", dim=dim)
        self.dim = dim
        self.event_shape = (dim,)
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        return x * self.log_scale.exp() + self.shift, self.log_scale.sum().expand(x.shape[:-1])

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        x = (z - self.shift) * (-self.log_scale).exp()
        return x, -self.log_scale.sum().expand(z.shape[:-1])


@register
class Logit(Pointwise):
    """z = log(y / (1 - y)) with y = alpha + (1 - 2 alpha) x: images on [0, 1) to the real line.

    alpha > 0 keeps z finite at the ends of [0, 1]; the domain then reaches beyond them by
    alpha / (1 - 2 alpha). log|det| = sum(log(1 - 2 alpha) - log(y) - log(1 - y)).

    Args:
        alpha: at least 0, below 1/2.
        event_ndim: number of axes of one event, 3 for images.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803, section 4.1.
    """

    def __init__(self, alpha: float = 0.05, event_ndim: int = 3) -> None:
        super().__init__(event_ndim)
        checks.logit_alpha("Logit", alpha)
        self.alpha = alpha
        margin = alpha / (1 - 2 * alpha)
        self.domain = Interval(-margin, 1 + margin)
        self.log_slope = images.log_slope(alpha)

    def map_entries(self, x: Tensor) -> Output:
        y, rest = (self.alpha + (1 - 2 * self.alpha) * part for part in (x, 1 - x))
        log_y, log_rest = y.log(), rest.log()
        return log_y - log_rest, self.log_slope - log_y - log_rest

    def map_entries_inverse(self, z: Tensor) -> Output:
        x = (z.sigmoid() - self.alpha) / (1 - 2 * self.alpha)
        return x, -softplus(z) - softplus(-z) - self.log_slope


@register
class Elementwise(Conditioned):
    """z_i = map(x_i; parameters_i) for every entry; log|det| is the sum of the logs of the map's slopes.

    The parameters are weights of their own, which start at zero, or come from the context.

    Args:
        dim: number of dimensions, or an event shape.
        map: what happens to an entry, given its parameters.
        context_dim: width of the context, 0 for none.
        conditioner: with a context, the network from it to the parameters, ``Network(CLASS, ...)`` or
            a class; ``MLP`` if not given.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for a conditioner without a context.

    Examples:
        >>> import torch, torch_flows
        >>> bijector = torch_flows.Elementwise(3, torch_flows.SplineMap(num_bins=4))
        >>> z, log_det = bijector.forward(torch.zeros(5, 3))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 3), (5,))
    """

    def __init__(
        self,
        dim: int | Sequence[int],
        map: UnivariateMap,
        context_dim: int = 0,
        conditioner: Network | type | None = None,
    ) -> None:
        super().__init__()
        shape = checks.event_shape_of("Elementwise", dim)
        checks.instances("Elementwise", "map", [map], UnivariateMap)
        checks.map_of("Elementwise", map, shape)
        checks.non_negative_int("Elementwise", context_dim=context_dim)
        checks.no_conditioner("Elementwise", conditioner, context_dim)
        self.dim = dim if isinstance(dim, int) else tuple(dim)
        self.map = map
        self.context_dim = context_dim
        self.event_shape = shape
        self.domain, self.codomain = map.domain, map.codomain
        self.conditioner = as_network("Elementwise", conditioner, MLP) if context_dim else None
        if self.conditioner is None:
            self.raw_parameters = nn.Parameter(torch.zeros(*shape, map.num_parameters))
        else:
            out_dim = math.prod(shape) * map.num_parameters
            num_parameters = map.num_parameters
            self.network = build_conditioner(
                "Elementwise", self.conditioner, context_dim, out_dim, 1, 0,
                num_parameters=num_parameters,
            )  # fmt: skip

    def intervals(self, inverse: bool = False) -> list[Interval]:
        return self.map.intervals(inverse)

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        z, log_slope = self.map.forward(x, self._parameters_for(x, context))
        return z, sum_event(log_slope, len(self.event_shape))

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        if self.is_trained:
            with evaluation(self):
                return self.map_inverse(z, context)
        x, log_slope = self.map.inverse(z, self._parameters_for(z, context))
        return x, sum_event(log_slope, len(self.event_shape))

    def map_score(
        self,
        x: Tensor,
        score: Tensor,
        context: Tensor | None,
        inverse: bool = False,
        differentiable: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.is_trained or overrides(self, Elementwise):
            return super().map_score(x, score, context, inverse, differentiable)
        step = self.map.inverse if inverse else self.map.forward
        parameters = self._parameters_for(x, context)
        z, log_slope, score = score_of_entries(
            lambda x: step(x, parameters), x, score, differentiable
        )
        return z, sum_event(log_slope, len(self.event_shape)), score

    def _parameters_for(self, x: Tensor, context: Tensor | None) -> Tensor:
        shape = *x.shape, self.map.num_parameters
        if context is None:
            raw = self.raw_parameters
            if self.map.broadcasts:
                return raw.reshape(*[1] * (x.ndim + 1 - raw.ndim), *raw.shape)
            return raw.expand(shape)
        return self.network(context).to(x.dtype).reshape(shape)
