"""Multilayer perceptrons."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks
from flow_bridge.masks import Index, Mask, Partition, as_index
from flow_bridge.networks import WIDE
from jax_flows.networks.activations import ACTIVATIONS
from jax_flows.networks.regularization import BatchNormalization, Dropout, regularization_shapes
from jax_flows.numerics import at_least_float32, conditioner_operands
from jax_flows.registry import register_network
from jax_flows.variables import Variables, draws, linear_shapes

Weights = Sequence[tuple[Array, Array]]

uniform = partial(jax.random.uniform, minval=-1, maxval=1)

EPS = 1e-5
"""What layer normalisation adds to a variance."""


def matmul(x: Array, kernel: Array) -> Array:
    """x W for x of shape ``(*batch, in_dim)`` and W of shape ``(in_dim, out_dim)``."""
    if kernel.shape[0] <= kernel.shape[1] or kernel.shape[1] >= 256:
        x, kernel, options = conditioner_operands(x, kernel)
        return jnp.matmul(x, kernel, **options)
    # The gradient of a tall, narrow kernel is a tall product, at which XLA is 2 to 7 times slower on a
    # CPU than at its transpose; the barrier keeps it from folding the transposition away.
    transposed = jax.lax.optimization_barrier(kernel.T)
    x, transposed, options = conditioner_operands(x, transposed)
    return jnp.einsum("...i,oi->...o", x, transposed, **options)


def apply_layers(
    activation: str,
    x: Array,
    weights: Weights,
    terms: Sequence[Array] = (),
    norms: Sequence[Any] = (),
    drops: Sequence[nn.Module] = (),
) -> Array:
    """Linear layers with an activation between them.

    Args:
        terms: what the first layer gains.
        norms, drops: what stands in front of the activations (scale and bias of a layer normalisation, or a
            module), and what behind them.
    """
    apply = _apply_layers if has_modules(norms, drops) else _apply_plain_layers
    return apply(activation, x, weights, terms, norms, drops)


def _apply_layers(
    activation: str,
    x: Array,
    weights: Weights,
    terms: Sequence[Array],
    norms: Sequence[Any],
    drops: Sequence[nn.Module],
) -> Array:
    function = ACTIVATIONS[activation]
    for i, (kernel, bias) in enumerate(weights[:-1]):
        x = matmul(x, kernel) + bias
        x = x + terms[0] if terms and not i else x
        x = function(apply_norm(norms[i], x) if norms else x)
        x = drops[i](x) if drops else x
    kernel, bias = weights[-1]
    return matmul(x, kernel) + bias


SAVED = jax.checkpoint_policies.dots_saveable
"""The backward pass keeps the products and computes the activations anew: less memory, and faster."""

_apply_plain_layers = jax.checkpoint(_apply_layers, policy=SAVED, static_argnums=0)


def has_modules(norms: Sequence[Any], drops: Sequence[nn.Module]) -> bool:
    """Whether there are layers that keep something, which they cannot inside ``jax.checkpoint``."""
    return bool(drops) or any(isinstance(norm, nn.Module) for norm in norms)


def apply_norm(norm: Any, x: Array) -> Array:
    """A module, or layer normalisation with a scale and a bias."""
    return norm(x) if isinstance(norm, nn.Module) else normalize(x, *norm)


def normalize(x: Array, scale: Array, shift: Array) -> Array:
    """Layer normalisation of the last axis."""
    wide = at_least_float32(x)  # squares of float16 overflow from 256
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + EPS)).astype(x.dtype) * scale + shift


def beside(x: Array, context: Array | None) -> tuple[Array, Array | None]:
    """x beside a narrow context, and a wide one."""
    if context is None or context.shape[-1] >= WIDE:
        return x, context
    return jnp.concatenate([x, context], -1), None


def joined(
    x: Array, context: Array | None, weights: list[tuple[Array, Array]]
) -> tuple[Array, list[tuple[Array, Array]]]:
    """What the first layer takes, and the layers, with a context that no branch has taken.

    What a wide one adds is part of the first bias: it is not copied, and its gradient is computed only where
    somebody asks for one.
    """
    x, context = beside(x, context)
    if context is None:
        return x, weights
    (kernel, bias), *others = weights
    kernel, late = jnp.split(kernel, [x.shape[-1]])
    return x, [(kernel, matmul(context, late) + bias), *others]


def branch_terms(activation: str, branches: Weights, context: Array | None) -> list[Array]:
    """What a context adds by branches: the first of them has an activation behind it."""
    if context is None:
        return []
    terms = [matmul(context, kernel) + bias for kernel, bias in branches]
    return [ACTIVATIONS[activation](terms[0]), *terms[1:]] if terms else []


def first_weights(
    module: nn.Module, dtype: Any, sizes: Sequence[tuple[int, int]], bounds: Sequence[float]
) -> list[Array | None]:
    """Kernels and biases below them, ``(in_dim + 1, out_dim)`` each, uniform within bounds, while ``module``
    is initialised, and none after that.
    """
    if not module.is_initializing():
        return [None] * len(sizes)
    shapes = [(in_dim + 1, out_dim) for in_dim, out_dim in sizes]
    parts = draws(uniform, module.make_rng("params"), shapes, dtype)
    # 0 times a negative number would be -0
    return [
        bound * part if bound else jnp.zeros_like(part)
        for bound, part in zip(bounds, parts, strict=True)
    ]


class Linear(nn.Module):
    """The weights of x W + b, or of a convolution, whose kernels have more axes."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, first: Array | None) -> tuple[Array, Array]:
        """The kernel and the bias, in the dtype of x. Args: x, and what ``first_weights`` gives."""

        def start(_: Array, shape: tuple[int, ...], rows: slice | int) -> Array:
            # with weights at hand Flax asks only for the shape
            return jnp.zeros(shape, x.dtype) if first is None else first[rows].reshape(shape)

        kernel = self.param("kernel", start, self.shape, slice(-1))
        return kernel, self.param("bias", start, self.shape[-1:], -1)


class LayerNorm(nn.Module):
    """The weights of a layer normalisation."""

    dim: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """The scale and the bias, in the dtype of x."""
        scale = self.param("scale", nn.initializers.ones, (self.dim,), x.dtype)
        return scale, self.param("bias", nn.initializers.zeros, (self.dim,), x.dtype)


def linear_layers(
    module: nn.Module,
    widths: Sequence[int],
    x: Array,
    initial_scale: float = 1.0,
    starts: Sequence[float | None] = (),
) -> list[tuple[Array, Array]]:
    """One linear layer from each width to the next, in the module that calls this.

    Args:
        module: the one that calls.
        widths: of the inputs, and of what each layer gives.
        x: what has the dtype of new weights.
        initial_scale: factor of the last layer's first weights.
        starts: bounds of the first weights, 1 / sqrt(in_dim) for ``None``, as in PyTorch's Linear.
    """
    sizes = [*pairwise(widths)]
    bounds = [in_dim**-0.5 for in_dim, _ in sizes]
    for i, start in enumerate(starts):
        bounds[i] = bounds[i] if start is None else start
    if initial_scale != 1:
        bounds[-1] = initial_scale * widths[-2] ** -0.5
    first = first_weights(module, x.dtype, sizes, bounds)
    return [
        Linear(size, name=f"layers_{i}")(x, part)
        for i, (size, part) in enumerate(zip(sizes, first, strict=True))
    ]


def normalizations(normalization: str | None, widths: Sequence[int], x: Array) -> list[Any]:
    """A layer or batch normalisation for each width, or none, in the module that calls this."""
    if normalization == "batch_norm":
        return [BatchNormalization(width, name=f"norms_{i}") for i, width in enumerate(widths)]
    widths = widths if normalization else ()
    return [LayerNorm(width, name=f"norms_{i}")(x) for i, width in enumerate(widths)]


def dropouts(rate: float, count: int) -> list[nn.Module]:
    """As many dropouts, or none, in the module that calls this."""
    return [Dropout(rate, name=f"drops_{i}") for i in range(count) if rate]


def context_layers(
    module: nn.Module, name: str, count: int, context_dim: int, width: int, x: Array
) -> list[tuple[Array, Array]]:
    """Linear layers that a context goes through apart from x, in the module that calls this."""
    size = context_dim, width
    bounds = [context_dim**-0.5 for _ in range(count)]
    first = first_weights(module, x.dtype, [size] * count, bounds)
    return [Linear(size, name=f"{name}_{i}")(x, part) for i, part in enumerate(first)]


def context_shapes(
    name: str, count: int, context_dim: int, width: int, dtype: Any
) -> dict[str, Any]:
    """The shapes of what ``context_layers`` makes."""
    return linear_shapes({f"{name}_{i}": (context_dim, width) for i in range(count)}, dtype)


def layer_shapes(widths: Sequence[int], dtype: Any) -> dict[str, Any]:
    """The shapes of what ``linear_layers`` makes."""
    pairs = {f"layers_{i}": pair for i, pair in enumerate(pairwise(widths))}
    return linear_shapes(pairs, dtype)


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

    in_dim: int
    out_dim: int
    hidden_dims: Sequence[int] = (64, 64)
    activation: str = "leaky_relu"
    context: str = "concatenate"
    context_dim: int = 0
    normalization: str | None = None
    initial_scale: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        checks.perceptron("MLP", self.hidden_dims, self.context, self.context_dim)
        checks.regularization("MLP", self.normalization, self.dropout, self.hidden_dims)
        checks.one_of("MLP", "activation", self.activation, ACTIVATIONS)
        checks.non_negative_number("MLP", initial_scale=self.initial_scale)
        super().__post_init__()

    @property
    def num_branches(self) -> int:
        """How many layers a context goes through apart from x."""
        return int(self.context == "branch" and self.context_dim > 0)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of inputs, hidden layers and outputs."""
        in_dim = self.in_dim if self.num_branches else self.in_dim + self.context_dim
        return in_dim, *self.hidden_dims, self.out_dim

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of the variables, without a trace."""
        branches = context_shapes(
            "branches", self.num_branches, self.context_dim, self.widths[1], dtype
        )
        hidden_dims = self.hidden_dims
        shapes = regularization_shapes(
            self.normalization, hidden_dims, self.dropout, len(hidden_dims), dtype
        )
        shapes["params"] |= layer_shapes(self.widths, dtype) | branches
        return shapes

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array | None = None,
        inputs: Index | None = None,
        outputs: Index | None = None,
    ) -> Array:
        """Args: x, and a context of its batch shape; ``inputs`` and ``outputs`` select the columns of
        the first weight that x meets and the rows of the last weight that are computed (all of them
        by default)."""
        weights = linear_layers(self, self.widths, x, self.initial_scale)
        apart = self.context_dim, self.widths[1]
        branches = context_layers(self, "branches", self.num_branches, *apart, x)
        if inputs is not None:
            weights[0] = weights[0][0][inputs], weights[0][1]
        if outputs is not None:
            weights[-1] = weights[-1][0][:, outputs], weights[-1][1][outputs]
        terms = branch_terms(self.activation, branches, context)
        h, weights = joined(x, None if terms else context, weights)
        norms = normalizations(self.normalization, self.hidden_dims, x)
        drops = dropouts(self.dropout, len(self.hidden_dims))
        return apply_layers(self.activation, h, weights, terms, norms, drops)


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

    in_dim: int
    out_dim: int
    num_parameters: int
    mask: Mask
    context_dim: int = 0
    hidden_dims: Sequence[int] = (64, 64)
    activation: str = "leaky_relu"
    initial_scale: float = 1.0

    def __post_init__(self) -> None:
        for _ in range(self.num_parameters):
            checks.hidden_widths("MLP", self.hidden_dims)
        checks.one_of("MLP", "activation", self.activation, ACTIVATIONS)
        checks.non_negative_number("MLP", initial_scale=self.initial_scale)
        super().__post_init__()

    def variable_shapes(self, dtype: Any) -> Variables:
        """The shapes of the variables, without a trace."""
        dim = self.in_dim + self.out_dim // self.num_parameters
        shapes = layer_shapes((dim + self.context_dim, *self.hidden_dims, dim), dtype)
        return {"params": {f"networks_{i}": shapes for i in range(self.num_parameters)}}

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> tuple[Array, ...]:
        """Args: the fixed dimensions, and a context of their batch shape."""
        x, context = beside(x, context)
        dim = self.in_dim + self.out_dim // self.num_parameters
        partition = Partition(self.mask, dim, self.context_dim)
        inputs, outputs = as_index(partition.inputs), as_index(partition.free)
        widths = dim + self.context_dim, dim, self.hidden_dims
        networks = [
            MLP(
                *widths,
                self.activation,
                initial_scale=self.initial_scale,
                name=f"networks_{i}",
            )
            for i in range(self.num_parameters)
        ]
        return tuple(network(x, context, inputs, outputs) for network in networks)
