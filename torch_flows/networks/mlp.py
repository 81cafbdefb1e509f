"""Multilayer perceptrons."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_bridge import checks
from flow_bridge.masks import Mask, Partition, as_index
from flow_bridge.networks import WIDE
from torch_flows.networks.activations import ACTIVATIONS, in_place
from torch_flows.networks.regularization import BatchNormalization, Dropout
from torch_flows.numerics import at_least_float32, recomputed, takes_kernels
from torch_flows.registry import register_network

Weights = Sequence[tuple[Tensor, Tensor]]
Layer = Callable[[Tensor], Tensor]

EPS = 1e-5
"""What layer normalisation adds to a variance."""


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b, where b may be of the shape of the product."""
    if bias.ndim == 1:
        return functional.linear(x, weight, bias)
    return torch.addmm(bias.flatten(0, -2), x.flatten(0, -2), weight.T).view(bias.shape)


def apply_layers(
    activation: str,
    x: Tensor,
    weights: Weights,
    terms: Sequence[Tensor] = (),
    norms: Sequence[Layer] = (),
    drops: Sequence[Layer] = (),
) -> Tensor:
    """Linear layers with an activation between them.

    Args:
        terms: what the first layer gains.
        norms, drops: what stands in front of the activations, and what behind them.
    """
    function = in_place(activation)
    for i, (weight, bias) in enumerate(weights[:-1]):
        x = linear(x, weight, bias)
        x = x + terms[0] if terms and not i else x
        x = function(norms[i](x) if norms else x)
        x = drops[i](x) if drops else x
    return linear(x, *weights[-1])


def normalize(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer normalisation of the last axis. The third derivatives of PyTorch's own are wrong, and so are
    the second ones by forward mode."""
    wide = at_least_float32(x)
    centred = wide - wide.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return (centred * (variance + EPS).rsqrt()).to(x.dtype) * scale + shift


def beside(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x beside a narrow context, and a wide one."""
    if context is None or context.shape[-1] >= WIDE:
        return x, context
    return torch.cat([x, context], -1), None


def joined(
    x: Tensor, context: Tensor | None, weights: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """What the first layer takes, and the layers, with a context that no branch has taken.

    What a wide one adds is part of the first bias: it is not copied, and its gradient is computed only where
    somebody asks for one.
    """
    x, context = beside(x, context)
    if context is None:
        return x, weights
    (weight, bias), *others = weights
    weight, late = weight.split_with_sizes((x.shape[-1], context.shape[-1]), 1)
    return x, [(weight, functional.linear(context, late, bias)), *others]


def branch_terms(
    activation: str, branches: Sequence[nn.Linear], context: Tensor | None
) -> list[Tensor]:
    """What a context adds by branches: the first of them has an activation behind it."""
    if context is None:
        return []
    terms = [branch(context) for branch in branches]
    return [ACTIVATIONS[activation](terms[0]), *terms[1:]] if terms else []


class LayerNorm(nn.LayerNorm):
    """PyTorch's, with the derivatives of ``normalize``."""

    def forward(self, x: Tensor) -> Tensor:
        if not takes_kernels(x, self.weight, self.bias):
            return normalize(x, self.weight, self.bias)
        if torch.is_grad_enabled():
            return _LayerNorm.apply(x, self.weight, self.bias)
        return super().forward(x)


class _LayerNorm(torch.autograd.Function):
    """The kernel, whose first derivatives are right; further ones are those of ``normalize``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y, mean, root = torch.native_layer_norm(x, x.shape[-1:], scale, shift, EPS)
        ctx.save_for_backward(x, scale, shift, mean, root)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, mean, root = ctx.saved_tensors
        if torch.is_grad_enabled():
            return recomputed(ctx, normalize, (x, scale, shift), gradient)
        return torch.ops.aten.native_layer_norm_backward(
            gradient, x, x.shape[-1:], mean, root, scale, shift, list(ctx.needs_input_grad)
        )


def linear_layers(owner: str, widths: Sequence[int], initial_scale: float = 1.0) -> nn.ModuleList:
    """One linear layer from each width to the next, the last one's weights times a factor."""
    checks.non_negative_number(owner, initial_scale=initial_scale)
    layers = nn.ModuleList(nn.Linear(in_dim, out_dim) for in_dim, out_dim in pairwise(widths))
    if initial_scale != 1:
        scale_weights(layers[-1], initial_scale)
    return layers


def scale_weights(layer: nn.Module, factor: float) -> None:
    """Multiply the first weights of a layer, in place."""
    for parameter in layer.parameters():
        parameter.data = (
            parameter.data * float(factor) if factor else torch.zeros_like(parameter.data)
        )


def normalizations(normalization: str | None, widths: Sequence[int]) -> nn.ModuleList:
    """A layer or batch normalisation for each width, or none."""
    if normalization == "batch_norm":
        return nn.ModuleList(BatchNormalization(width) for width in widths)
    return nn.ModuleList(LayerNorm(width, EPS) for width in widths if normalization)


def dropouts(rate: float, count: int) -> nn.ModuleList:
    """As many dropouts, or none."""
    return nn.ModuleList(Dropout(rate) for _ in range(count) if rate)


def pairs_of(modules: Iterable[Any]) -> list[tuple[Tensor, Tensor]]:
    """The weights and biases of layers."""
    return [(module.weight, module.bias) for module in modules]


def context_layers(count: int, context_dim: int, width: int) -> nn.ModuleList:
    """Linear layers that a context goes through apart from x."""
    return nn.ModuleList(nn.Linear(context_dim, width) for _ in range(count))


@register_network
class MLP(nn.Module):
    """Linear layers with an activation between them: ``(*batch, in_dim)`` to ``(*batch, out_dim)``.

    Args:
        in_dim, out_dim: the widths of input and output.
        hidden_dims: widths of the hidden layers.
        activation: a name in ``ACTIVATIONS``.
        context: how a context enters: ``"concatenate"``, next to x; ``"branch"``, by a layer of its
            own, the first hidden layer being act(W x + b + act(V c + d)).
        context_dim: width of the context, 0 for none.
        normalization: ``"layer_norm"`` or ``"batch_norm"``, one in front of every activation, or ``None``.
            In training batch normalisation makes every row depend on the whole batch, so that the density of
            a row is one given the others.
        initial_scale: factor of the last layer's first weights; with 0 most maps start as the identity.
        dropout: the share of hidden values that each step of training sets to 0, behind every activation.
            Densities are then noisy in training.

    Raises:
        ValueError: for an unknown name, a width below 1, a branch without a hidden layer and the
            layer normalisation of a single unit.
    """

    event_ndim = 1
    layers: Sequence[nn.Linear]
    branches: Sequence[nn.Linear]
    norms: Sequence[Layer]
    drops: Sequence[Layer]

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "leaky_relu",
        context: str = "concatenate",
        context_dim: int = 0,
        normalization: str | None = None,
        initial_scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden_dims = checks.perceptron("MLP", hidden_dims, context, context_dim)
        checks.regularization("MLP", normalization, dropout, hidden_dims)
        checks.one_of("MLP", "activation", activation, ACTIVATIONS)
        self.in_dim, self.out_dim = in_dim, out_dim
        self.hidden_dims = hidden_dims
        self.activation = activation
        self.context = context
        self.context_dim = context_dim
        self.normalization = normalization
        self.initial_scale = initial_scale
        self.dropout = dropout
        branched = context == "branch" and context_dim > 0
        in_dim = in_dim if branched else in_dim + context_dim
        widths = (in_dim, *hidden_dims, out_dim)
        self.layers = linear_layers("MLP", widths, initial_scale)  # type: ignore[assignment]
        self.branches = context_layers(int(branched), context_dim, (*hidden_dims, 0)[0])  # type: ignore[assignment]
        self.norms = normalizations(normalization, hidden_dims)  # type: ignore[assignment]
        self.drops = dropouts(dropout, len(hidden_dims))  # type: ignore[assignment]

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        inputs: slice | Tensor | None = None,
        outputs: slice | Tensor | None = None,
    ) -> Tensor:
        """Args: x, and a context of its batch shape; ``inputs`` and ``outputs`` select the columns of
        the first weight that x meets and the rows of the last weight that are computed (all of them
        by default)."""
        weights = pairs_of(self.layers)
        if inputs is not None:
            weights[0] = weights[0][0][:, inputs], weights[0][1]
        if outputs is not None:
            weights[-1] = weights[-1][0][outputs], weights[-1][1][outputs]
        branched = self.context == "branch"
        terms = branch_terms(self.activation, self.branches, context) if branched else []
        h, weights = joined(x, None if terms else context, weights)
        norms = self.norms if self.normalization else ()
        drops = self.drops if self.dropout else ()
        out = apply_layers(self.activation, h, weights, terms, norms, drops)
        return out if out.dtype == x.dtype else out.to(x.dtype)


@register_network
class SeparateMLPs(nn.Module):
    """One ``MLP`` for each parameter of a coupling's map.

    Each has weights for all dimensions on both sides, of which the coupling's mask picks the ones that
    are used: the layout and the parameter count of the original RealNVP. The output is a tuple, one
    array for each parameter.

    Args:
        in_dim, out_dim: the widths of input and output.
        num_parameters, mask, context_dim: of the coupling.
        hidden_dims: widths of the hidden layers of each network.
        activation: a name in ``ACTIVATIONS``.
        initial_scale: as in ``MLP``.

    Reference: Dinh et al. (2017), RealNVP, arXiv:1605.08803.
    """

    event_ndim = 1

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_parameters: int,
        mask: Mask,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "leaky_relu",
        initial_scale: float = 1.0,
    ) -> None:
        super().__init__()
        dim = in_dim + out_dim // num_parameters
        partition = Partition(mask, dim, context_dim)
        self._slices: dict[str, slice] = {}
        for name, positions in (("inputs", partition.inputs), ("outputs", partition.free)):
            index = as_index(positions)
            if isinstance(index, slice):
                self._slices[name] = index
            else:
                self.register_buffer(name, torch.as_tensor(index), persistent=False)
        self.networks = nn.ModuleList(
            MLP(dim + context_dim, dim, hidden_dims, activation, initial_scale=initial_scale)
            for _ in range(num_parameters)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Args: the fixed dimensions, and a context of their batch shape."""
        x, context = beside(x, context)
        slices = self._slices
        inputs = slices["inputs"] if "inputs" in slices else self.get_buffer("inputs")
        outputs = slices["outputs"] if "outputs" in slices else self.get_buffer("outputs")
        return tuple([network(x, context, inputs, outputs) for network in self.networks])
