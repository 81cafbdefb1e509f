"""The networks that condition bijectors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks
from flow_bridge.architecture import count_construction
from flow_bridge.lipschitz import BLOCK, POWER_STEPS, SLOPE_BOUNDS, SQUARINGS
from flow_bridge.masks import Autoregression, Index, Order
from jax_flows.derivatives import Layers
from jax_flows.numerics import (
    at_least_float32,
    conditioner_operands,
    matmul_precision,
    softplus,
)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "leaky_relu": lambda x: jnp.where(x > 0, x, 0.2 * x),
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "softplus": softplus,
    "tanh": jnp.tanh,
}
"""Activations by name; ``leaky_relu`` has slope 0.2 and ``gelu`` is the exact one."""


def matmul(x: Array, kernel: Array) -> Array:
    """x W for x of shape ``(*batch, in_dim)`` and W of shape ``(in_dim, out_dim)``."""
    if kernel.shape[0] <= kernel.shape[1]:
        x, kernel, options = conditioner_operands(x, kernel)
        return jnp.matmul(x, kernel, **options)
    # The gradient of a tall kernel is a tall product, at which XLA is 2 to 7 times slower on a CPU
    # than at its transpose; the barrier keeps it from folding the transposition away.
    transposed = jax.lax.optimization_barrier(kernel.T)
    x, transposed, options = conditioner_operands(x, transposed)
    return jnp.einsum("...i,oi->...o", x, transposed, **options)


# The backward pass keeps the products and computes the activations anew: less memory, and faster.
@partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable, static_argnums=0)
def _mlp(activation: str, x: Array, weights: list[tuple[Array, Array]]) -> Array:
    for kernel, bias in weights[:-1]:
        x = ACTIVATIONS[activation](matmul(x, kernel) + bias)
    kernel, bias = weights[-1]
    return matmul(x, kernel) + bias


class Linear(nn.Module):
    """The weights of x W + b, initialised as PyTorch's Linear: uniform within 1 / sqrt(in_dim)."""

    in_dim: int
    out_dim: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """The kernel and the bias, in the dtype of x."""
        bound = self.in_dim**-0.5

        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, x.dtype, -bound, bound)

        kernel = self.param("kernel", uniform, (self.in_dim, self.out_dim))
        return kernel, self.param("bias", uniform, (self.out_dim,))


class MLP(nn.Module):
    """Linear layers with an activation between them: ``(*batch, in_dim)`` to ``(*batch, out_dim)``.

    Args:
        in_dim: width of the input.
        hidden_dims: widths of the hidden layers.
        out_dim: width of the output.
        activation: a name in ``ACTIVATIONS``.

    Raises:
        ValueError: for an unknown activation or a width below 1.
    """

    in_dim: int
    hidden_dims: tuple[int, ...]
    out_dim: int
    activation: str = "leaky_relu"

    def __post_init__(self) -> None:
        checks.hidden_widths("MLP", self.hidden_dims)
        checks.one_of("MLP", "activation", self.activation, ACTIVATIONS)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Array, inputs: Index | None = None, outputs: Index | None = None
    ) -> Array:
        """Args: x; ``inputs`` and ``outputs`` select the columns of the first weight that x meets and
        the rows of the last weight that are computed (all of them by default)."""
        widths = (self.in_dim, *self.hidden_dims, self.out_dim)
        weights = [
            Linear(in_dim, out_dim, name=f"layers_{i}")(x)
            for i, (in_dim, out_dim) in enumerate(pairwise(widths))
        ]
        if inputs is not None:
            weights[0] = weights[0][0][inputs], weights[0][1]
        if outputs is not None:
            weights[-1] = weights[-1][0][:, outputs], weights[-1][1][outputs]
        return _mlp(self.activation, x, weights)


class MaskedMLP(nn.Module):
    """A network whose parameters for one dimension see only the dimensions generated before it.

    From ``(*batch, dim)`` to ``(*batch, dim, num_parameters)``. Who sees whom is stated in
    ``flow_bridge.masks.Autoregression``.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the hidden layers.
        num_parameters: how many parameters each dimension gets.
        order: which dimension is generated when, see ``flow_bridge.masks.autoregressive_order``.
        activation: a name in ``ACTIVATIONS``.
        context_dim: width of the context, which every unit sees; 0 for none.

    Raises:
        ValueError: for an unknown order or activation, or a width below 1.

    Reference: Germain et al. (2015), MADE, arXiv:1502.03509.
    """

    dim: int
    hidden_dims: tuple[int, ...]
    num_parameters: int
    order: Order = None
    activation: str = "leaky_relu"
    context_dim: int = 0

    def __post_init__(self) -> None:
        checks.hidden_widths("MLP", self.hidden_dims)
        checks.one_of("MLP", "activation", self.activation, ACTIVATIONS)
        _ = self.plan.generated
        super().__post_init__()

    @property
    def plan(self) -> Autoregression:
        """Who sees whom."""
        return Autoregression(
            self.dim, self.hidden_dims, self.num_parameters, self.order, self.context_dim
        )

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """Args: x, and a context of its batch shape."""
        widths = (self.dim + self.context_dim, *self.hidden_dims, self.dim * self.num_parameters)
        weights = [
            Linear(in_dim, out_dim, name=f"layers_{i}")(x)
            for i, (in_dim, out_dim) in enumerate(pairwise(widths))
        ]
        # initialisation is about shapes: a checkpoint of unknown origin may ask for any size there
        if not self.is_initializing():
            degrees = [jnp.asarray(layer) for layer in self.plan.degrees]
            weights = [
                (jnp.where(above >= below[:, None], kernel, 0), bias)
                for (kernel, bias), (below, above) in zip(weights, pairwise(degrees), strict=True)
            ]
        h = x if context is None else jnp.concatenate([x, context], -1)
        return _mlp(self.activation, h, weights).reshape(*x.shape, self.num_parameters)


def conv(x: Array, kernel: Array, bias: Array) -> Array:
    """A convolution of images ``(in_dim, n, height, width)``, channels first of all, padded with zeros.

    It is a product of matrices (a gather of the neighbours before it or a sum over them after it,
    whichever is narrower), because XLA on a CPU runs the gradient of a convolution inside a scan 10
    times slower.

    Args:
        x: the images.
        kernel: shape (size, size, in_dim, out_dim), size odd.
        bias: shape (out_dim,).
    """
    size, _, in_dim, out_dim = kernel.shape
    edge = size // 2
    offsets = [(i - edge, j - edge) for i in range(size) for j in range(size)]
    bias = bias[:, None, None, None]
    if in_dim <= out_dim:
        columns = jnp.concatenate([_shift(x, *offset) for offset in offsets])
        columns = columns.reshape(size**2 * in_dim, -1)
        rows, columns, options = conditioner_operands(kernel.reshape(-1, out_dim).T, columns)
        out = jnp.matmul(rows, columns, **options)
        return out.reshape(out_dim, *x.shape[1:]) + bias
    rows = kernel.transpose(0, 1, 3, 2).reshape(-1, in_dim)
    rows, columns, options = conditioner_operands(rows, x.reshape(in_dim, -1))
    out = jnp.matmul(rows, columns, **options)
    parts = jnp.split(out.reshape(len(rows), *x.shape[1:]), size**2)
    return sum((_shift(p, *offset) for p, offset in zip(parts, offsets, strict=True)), start=bias)


def _shift(x: Array, down: int, right: int) -> Array:
    """y[..., h, w] = x[..., h + down, w + right], 0 beyond the edges."""
    config = [(0, 0, 0)] * (x.ndim - 2) + [(-down, down, 0), (-right, right, 0)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


@partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable, static_argnums=0)
def _conv_net(activation: str, x: Array, weights: list[tuple[Array, Array]]) -> Array:
    for kernel, bias in weights[:-1]:
        x = ACTIVATIONS[activation](conv(x, kernel, bias))
    return conv(x, *weights[-1])


class Conv(nn.Module):
    """The weights of a convolution, initialised as PyTorch's Conv2d (or at zero)."""

    in_dim: int
    out_dim: int
    size: int
    zero: bool = False

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """The kernel and the bias, in the dtype of x."""
        shape = (self.size, self.size, self.in_dim, self.out_dim)
        bound = (self.in_dim * self.size**2) ** -0.5

        def start(key: Array, shape: tuple[int, ...]) -> Array:
            if self.zero:
                return jnp.zeros(shape, x.dtype)
            return jax.random.uniform(key, shape, x.dtype, -bound, bound)

        return self.param("kernel", start, shape), self.param("bias", start, (self.out_dim,))


class ConvNet(nn.Module):
    """Convolutions 3x3, 1x1, 3x3 with an activation between them, padded with zeros.

    Maps ``(*batch, in_channels, height, width)`` to ``(*batch, out_channels, height, width)``. The
    last convolution starts at zero, so that a coupling starts as the identity; the others start as
    PyTorch's Conv2d does, uniform within 1 / sqrt(fan_in), in both halves.

    On a GPU, PyTorch's half computes float32 convolutions in TF32 unless
    ``torch.backends.cudnn.allow_tf32`` is ``False`` (PyTorch's default is ``True``, this half uses
    full float32 precision): outputs then agree to about 1e-3 only, and an inverse is as inexact.

    Args:
        in_channels, hidden_channels, out_channels: the widths.
        activation: a name in ``ACTIVATIONS``.

    Raises:
        ValueError: for an unknown activation or a width below 1.
    """

    in_channels: int
    hidden_channels: int
    out_channels: int
    activation: str = "relu"

    def __post_init__(self) -> None:
        checks.positive_int(
            "ConvNet",
            in_channels=self.in_channels,
            hidden_channels=self.hidden_channels,
            out_channels=self.out_channels,
        )
        checks.one_of("ConvNet", "activation", self.activation, ACTIVATIONS)
        count_construction(3)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Args: x. Channels come first of all inside, so that each convolution is one product."""
        batch, hidden = x.shape[:-3], self.hidden_channels
        weights = [
            Conv(self.in_channels, hidden, 3, name="layers_0")(x),
            Conv(hidden, hidden, 1, name="layers_1")(x),
            Conv(hidden, self.out_channels, 3, zero=True, name="layers_2")(x),
        ]
        x = jnp.moveaxis(x.reshape(-1, *x.shape[-3:]), 1, 0)
        x = _conv_net(self.activation, x, weights)
        return jnp.moveaxis(x, 0, 1).reshape(*batch, self.out_channels, *x.shape[-2:])


@dataclass(frozen=True)
class LipschitzMLP:
    """A network from ``(*batch, dim)`` to itself whose Lipschitz constant is at most ``lipschitz``.

    Each of its n weights is divided by its spectral norm wherever that is above lipschitz^(1/n)
    (less by the largest slope of the activation, for those that come after one). In training mode
    the norm is u^T W v, with singular vectors u and v that take a few power iterations a step;
    otherwise it is a certified upper bound, so that the constant holds whatever the vectors are.

    Args:
        dim: width of the input and of the output.
        hidden_dims: widths of the hidden layers.
        activation: a name in ``ACTIVATIONS``.
        lipschitz: the constant, between 0 and 1.
        context_dim: width of a context that enters next to x, without any constraint.

    Reference: Miyato et al. (2018), arXiv:1802.05957; Behrmann et al. (2019), arXiv:1811.00995.
    """

    dim: int
    hidden_dims: tuple[int, ...]
    activation: str = "silu"
    lipschitz: float = 0.97
    context_dim: int = 0

    @property
    def mlp(self) -> MLP:
        """The network without its bounds."""
        widths = (self.dim + self.context_dim, self.hidden_dims, self.dim)
        return MLP(*widths, self.activation, parent=None)

    def init(self, key: Array, dtype: Any) -> dict[str, Any]:
        """Fresh weights, and their leading singular vectors in ``batch_stats``."""
        variables = dict(self.mlp.init(key, jnp.zeros(self.dim + self.context_dim, dtype)))
        batch_stats = {}
        for name, layer in variables["params"].items():
            kernel = layer["kernel"][: self.dim] if name == "layers_0" else layer["kernel"]
            exact = jnp.promote_types(dtype, jnp.float32)
            left, _, right = jnp.linalg.svd(kernel.T.astype(exact), full_matrices=False)
            batch_stats[name] = {"u": left[:, 0].astype(dtype), "v": right[0].astype(dtype)}
        return {**variables, "batch_stats": batch_stats}

    def normalized(
        self, variables: Mapping[str, Any], context: Array | None, estimate: bool = False
    ) -> tuple[Layers, dict[str, Any]]:
        """The layers with bounded weights and the context in the first bias; the ``batch_stats``.

        Args:
            variables: as ``init`` makes them.
            context: shape ``(*batch, context_dim)``.
            estimate: move the singular vectors and use their estimate of the norms, as in training.
        """
        target = self.lipschitz ** (1 / (len(self.hidden_dims) + 1))
        layers, batch_stats = [], {}
        for i in range(len(self.hidden_dims) + 1):
            name = f"layers_{i}"
            layer = variables["params"][name]
            kernel, bias = at_least_float32(layer["kernel"]), at_least_float32(layer["bias"])
            if i == 0:
                if context is not None:
                    weight = kernel[self.dim :]
                    context = at_least_float32(context)
                    bias = jnp.matmul(context, weight, precision=matmul_precision()) + bias
                kernel = kernel[: self.dim]
            if estimate:
                old = variables["batch_stats"][name]
                norm, batch_stats[name] = self._estimate(old, kernel)
            else:
                norm = spectral_bound(kernel)
            bound = target / SLOPE_BOUNDS.get(self.activation, 1.0) if i else target
            layers.append((kernel * (bound / jnp.where(norm > bound, norm, bound)), bias))
        return layers, batch_stats

    def _estimate(self, old: Mapping[str, Array], kernel: Array) -> tuple[Array, dict[str, Array]]:
        old_u, old_v = at_least_float32(old["u"]), at_least_float32(old["v"])
        u, v = power_iteration(jax.lax.stop_gradient(kernel).T, old_u, old_v)
        image = jnp.matmul(kernel.T, v, precision=matmul_precision())
        new = {"u": u.astype(old["u"].dtype), "v": v.astype(old["v"].dtype)}
        return jnp.matmul(image, u, precision=matmul_precision()), new


def power_iteration(weight: Array, u: Array, v: Array) -> tuple[Array, Array]:
    """A few steps of the leading singular vectors; they stay as they were if these are not finite."""
    new_u, new_v = u, v
    for _ in range(POWER_STEPS):
        new_v = _unit(jnp.matmul(new_u, weight, precision=matmul_precision()))
        new_u = _unit(jnp.matmul(weight, new_v, precision=matmul_precision()))
    finite = jnp.isfinite(new_u).all() & jnp.isfinite(new_v).all()
    return jnp.where(finite, new_u, u), jnp.where(finite, new_v, v)


def _unit(x: Array) -> Array:
    norm = jnp.linalg.norm(x)
    return x / jnp.where(norm > 0, norm, 1)


def spectral_bound(weight: Array) -> Array:
    """An upper bound of the spectral norm: |G^m|_F^(1/(2m)) of the Gram matrix G, m = 2^12.

    Smooth wherever the weight is not zero, and the same on every device; no singular value
    decomposition has both.
    """
    tiny = jnp.finfo(weight.dtype).tiny  # makes zero weights harmless, and no difference to others
    scale = jax.lax.stop_gradient(jnp.abs(weight)).max() + tiny
    weight = weight / scale
    if weight.shape[0] > weight.shape[1]:
        weight = weight.T
    gram = jnp.matmul(weight, weight.T, precision=matmul_precision())

    def square_up(carry: tuple[Array, Array], share: Array) -> tuple[tuple[Array, Array], None]:
        gram, log_norm = carry
        norm = jnp.sqrt(jnp.square(gram).sum() + tiny)
        gram = gram / norm
        for _ in range(BLOCK):
            gram = jnp.matmul(gram, gram, precision=matmul_precision())
        return (gram, log_norm + share * jnp.log(norm)), None

    shares = 0.5 ** jnp.arange(1, SQUARINGS + 2, BLOCK, dtype=weight.dtype)
    (_, log_norm), _ = jax.lax.scan(square_up, (gram, jnp.zeros_like(scale)), shares)
    return scale * jnp.exp(log_norm)
