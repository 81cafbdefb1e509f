"""Block autoregressive networks: the bijector is the network."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from flow_bridge import checks
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.numerics import at_least_float32, full_precision, log_sech2, softplus
from torch_flows.registry import register
from torch_flows.univariate.roots import FARTHEST, bracket, invert

Layer = tuple[Tensor, Tensor, Tensor]

FLOOR = 1e-30
"""The least weight of a diagonal block, which keeps logarithms finite."""


@register
class BlockAutoregressive(Bijector):
    """A network from x to z with a block of hidden units for each dimension, that see those before.

    Each layer is W h + b with block lower triangular W, whose diagonal blocks are exp(raw) > 0, and
    a(u) = tanh(u) + leak u between: z_i is an increasing function of x_i, onto the reals, given
    x_1, ..., x_(i-1). dz_i/dx_i is an entry of a product of the diagonal blocks and a'(u), all above 0,
    which is taken in logarithms. With a gate z = g f(x) + (1 - g) x for such a network f, g in (0, 1).

    The inverse searches one x_i after the other, between 0 and the first of 1, 2, 4, ... that is beyond
    it, and has the gradients of the exact solution.

    Args:
        dim: number of dimensions.
        hidden_dims: units of each dimension in each hidden layer, one layer at least.
        context_dim: width of the context, 0 for none; it enters the first layer.
        gate: whether the network is mixed with the identity.
        leak: the least slope of a, between 0 and 1.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for no hidden layers, and for numbers out of range.

    Reference: De Cao et al. (2019), arXiv:1904.04676, whose a is tanh, which is not onto.

    Examples:
        >>> import torch, torch_flows
        >>> bijector = torch_flows.BlockAutoregressive(dim=3)
        >>> z, log_det = bijector.forward(torch.zeros(5, 3))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 3), (5,))
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (8,),
        context_dim: int = 0,
        gate: bool = False,
        leak: float = 0.01,
    ) -> None:
        super().__init__()
        checks.positive_int("BlockAutoregressive", dim=dim)
        checks.non_negative_int("BlockAutoregressive", context_dim=context_dim)
        checks.boolean("BlockAutoregressive", gate=gate)
        checks.open_interval("BlockAutoregressive", "leak", leak, 0, 1)
        self.dim = dim
        self.hidden_dims = checks.some_hidden_widths("BlockAutoregressive", hidden_dims)
        self.context_dim = context_dim
        self.gate = gate
        self.leak = leak
        self.event_shape = (dim,)
        for i, (inputs, width) in enumerate(pairwise((1, *self.hidden_dims, 1))):
            last = i == len(self.hidden_dims)
            raw = 0.1 * torch.randn(dim, width, inputs) - math.log(inputs)
            weight = torch.randn(dim * width, dim * inputs).mul_(0.1 / math.sqrt(dim * inputs))
            bias = torch.zeros(dim) if last else torch.randn(dim * width)
            self.register_parameter(f"diagonal_{i}", nn.Parameter(raw))
            self.register_parameter(f"weight_{i}", nn.Parameter(weight))
            self.register_parameter(f"bias_{i}", nn.Parameter(bias))
        if context_dim:
            width = dim * self.hidden_dims[0]
            self.context_weight = nn.Parameter(torch.zeros(width, context_dim))
        if gate:
            self.raw_gate = nn.Parameter(torch.zeros(()))

    @full_precision
    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        h = at_least_float32(x).unsqueeze(-1)
        first, log_slope = h, torch.zeros_like(h)
        for i, (diagonal, below, bias) in enumerate(self._layers(context)):
            if i:
                h, log_slope = self._activated(h, log_slope)
            own = _product(diagonal, h) + bias
            offset = h.flatten(-2) @ below.flatten(-2).flatten(0, 1).T
            h, log_slope = own + offset.reshape(own.shape), _through(diagonal, log_slope)
        z, log_slope = _gated(first, h, log_slope, *self._gate())
        return z.squeeze(-1).to(x.dtype), log_slope.sum((-2, -1)).to(x.dtype)

    @full_precision
    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        wide = at_least_float32(z)
        near = wide.clamp(-FARTHEST, FARTHEST)
        layers = self._layers(context)
        gate = self._gate()
        known: list[list[Tensor]] = [[] for _ in layers]
        found, log_slopes = [], []
        for j in range(self.dim):
            given = []
            for (diagonal, below, bias), before in zip(layers, known, strict=True):
                own = bias[..., j, :]
                if before:
                    seen = torch.stack(before, -2).flatten(-2)
                    own = own + seen @ below[j, :, :j].flatten(-2).T
                given += [diagonal[j], own]
            ends = bracket(self._entry, near[..., j], given + gate)
            x, log_slope = invert(self._entry, near[..., j], given + gate, *ends)
            x = x + (wide[..., j] - near[..., j]) * log_slope.exp()
            for before, h in zip(known, self._units(x, *given), strict=True):
                before.append(h)
            found.append(x)
            log_slopes.append(log_slope)
        log_det = torch.stack(log_slopes, -1).sum(-1)
        return torch.stack(found, -1).to(z.dtype), log_det.to(z.dtype)

    def _layers(self, context: Tensor | None) -> list[Layer]:
        """Of each layer the diagonal blocks ``(dim, units, inputs)``, those below
        ``(dim, units, dim, inputs)``, and the biases ``(*batch, dim, units)``."""
        layers = []
        for i, (inputs, width) in enumerate(pairwise((1, *self.hidden_dims, 1))):
            names = (f"diagonal_{i}", f"weight_{i}", f"bias_{i}")
            raw, weight, bias = (at_least_float32(getattr(self, name)) for name in names)
            if context is not None and not i:
                bias = bias + at_least_float32(context) @ at_least_float32(self.context_weight).T
            blocks = weight.reshape(self.dim, width, self.dim, inputs)
            before = torch.ones(self.dim, self.dim, dtype=weight.dtype, device=weight.device).tril(
                -1
            )
            below = blocks * before.reshape(self.dim, 1, self.dim, 1)
            layers.append((raw.exp() + FLOOR, below, bias.unflatten(-1, (self.dim, width))))
        return layers

    def _activated(self, u: Tensor, log_slope: Tensor) -> Output:
        """a(u), and the log of the slope with that of a."""
        floor = torch.full_like(u, math.log(self.leak))
        return u.tanh() + self.leak * u, log_slope + torch.logaddexp(log_sech2(u), floor)

    def _gate(self) -> list[Tensor]:
        return [at_least_float32(self.raw_gate)] if self.gate else []

    def _entry(self, x: Tensor, *given: Tensor) -> Output:
        """z of one dimension, given the diagonal blocks, what the layers get from those before, and the
        gate."""
        h = first = x.unsqueeze(-1)
        log_slope, stop = torch.zeros_like(h), 2 * len(self.hidden_dims) + 2
        for i, (diagonal, own) in enumerate(zip(given[:stop:2], given[1:stop:2], strict=True)):
            if i:
                h, log_slope = self._activated(h, log_slope)
            h, log_slope = _product(diagonal, h) + own, _through(diagonal, log_slope)
        z, log_slope = _gated(first, h, log_slope, *given[stop:])
        return z.squeeze(-1), log_slope.squeeze(-1)

    def _units(self, x: Tensor, *given: Tensor) -> list[Tensor]:
        """The inputs of each layer that belong to one dimension."""
        h = x.unsqueeze(-1)
        found = [h]
        for diagonal, own in zip(given[:-2:2], given[1:-2:2], strict=True):
            u = _product(diagonal, h) + own
            h = u.tanh() + self.leak * u
            found.append(h)
        return found


def _gated(x: Tensor, f: Tensor, log_slope: Tensor, *gate: Tensor) -> Output:
    """What a network and its slope become with a gate, where there is one."""
    if not gate:
        return f, log_slope
    (raw,) = gate
    log_rest = -softplus(raw).expand(log_slope.shape)
    z = raw.sigmoid() * f + (-raw).sigmoid() * x
    return z, torch.logaddexp(log_slope - softplus(-raw), log_rest)


def _product(diagonal: Tensor, h: Tensor) -> Tensor:
    return torch.einsum("...ui,...i->...u", diagonal, h)


def _through(diagonal: Tensor, log_slope: Tensor) -> Tensor:
    """log(diagonal exp(log_slope))."""
    largest = log_slope.detach().amax(-1, keepdim=True)
    return largest + _product(diagonal, (log_slope - largest).exp()).log()
