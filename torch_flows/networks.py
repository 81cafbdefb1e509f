"""The networks that condition bijectors."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_bridge import checks
from flow_bridge.architecture import count_construction
from flow_bridge.lipschitz import BLOCK, POWER_STEPS, SLOPE_BOUNDS, SQUARINGS
from flow_bridge.masks import Autoregression, Order
from torch_flows.derivatives import Layers
from torch_flows.numerics import at_least_float32, softplus

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.2),
    "relu": torch.relu,
    "elu": functional.elu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "softplus": softplus,
    "tanh": torch.tanh,
}
"""Activations by name; ``leaky_relu`` has slope 0.2 and ``gelu`` is the exact one."""

# The same in place, which saves memory traffic, where the gradient needs no more than the output.
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda x: functional.leaky_relu_(x, 0.2),
    "relu": torch.relu_,
    "tanh": torch.tanh_,
}


def _mlp(activation: str, x: Tensor, weights: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    function = _IN_PLACE.get(activation, ACTIVATIONS[activation])
    for weight, bias in weights[:-1]:
        x = function(functional.linear(x, weight, bias))
    return functional.linear(x, *weights[-1])


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

    layers: Sequence[nn.Linear]

    def __init__(
        self, in_dim: int, hidden_dims: Sequence[int], out_dim: int, activation: str = "leaky_relu"
    ) -> None:
        super().__init__()
        hidden_dims = checks.hidden_widths("MLP", hidden_dims)
        checks.one_of("MLP", "activation", activation, ACTIVATIONS)
        widths = (in_dim, *hidden_dims, out_dim)
        self.activation = activation
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            nn.Linear(in_dim, out_dim) for in_dim, out_dim in pairwise(widths)
        )

    def forward(
        self, x: Tensor, inputs: slice | Tensor | None = None, outputs: slice | Tensor | None = None
    ) -> Tensor:
        """Args: x; ``inputs`` and ``outputs`` select the columns of the first weight that x meets and
        the rows of the last weight that are computed (all of them by default)."""
        weights: list[tuple[Tensor, Tensor]] = [(layer.weight, layer.bias) for layer in self.layers]
        if inputs is not None:
            weights[0] = weights[0][0][:, inputs], weights[0][1]
        if outputs is not None:
            weights[-1] = weights[-1][0][outputs], weights[-1][1][outputs]
        return _mlp(self.activation, x, weights).to(x.dtype)


class MaskedMLP(MLP):
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

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int],
        num_parameters: int,
        order: Order = None,
        activation: str = "leaky_relu",
        context_dim: int = 0,
    ) -> None:
        super().__init__(dim + context_dim, hidden_dims, dim * num_parameters, activation)
        self.plan = Autoregression(dim, tuple(hidden_dims), num_parameters, order, context_dim)
        degrees = [torch.tensor(layer) for layer in self.plan.degrees]
        for i, (below, above) in enumerate(pairwise(degrees)):
            self.register_buffer(f"mask_{i}", above[:, None] >= below, persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Args: x, and a context of its batch shape."""
        weights = [
            (torch.where(getattr(self, f"mask_{i}"), layer.weight, 0), layer.bias)
            for i, layer in enumerate(self.layers)
        ]
        h = x if context is None else torch.cat([x, context], -1)
        out = _mlp(self.activation, h, weights).to(x.dtype)
        return out.unflatten(-1, (self.plan.dim, self.plan.num_parameters))


class ConvNet(nn.Module):
    """Convolutions 3x3, 1x1, 3x3 with an activation between them, padded with zeros.

    Maps ``(*batch, in_channels, height, width)`` to ``(*batch, out_channels, height, width)``. The
    last convolution starts at zero, so that a coupling starts as the identity; the others start as
    PyTorch's Conv2d does, uniform within 1 / sqrt(fan_in), in both halves.

    On a GPU, cuDNN computes float32 convolutions in TF32 unless
    ``torch.backends.cudnn.allow_tf32`` is ``False`` (PyTorch's default is ``True``, JAX's half uses
    full float32 precision): outputs then agree to about 1e-3 only, and an inverse is as inexact.

    Args:
        in_channels, hidden_channels, out_channels: the widths.
        activation: a name in ``ACTIVATIONS``.

    Raises:
        ValueError: for an unknown activation or a width below 1.
    """

    layers: Sequence[nn.Conv2d]

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, activation: str = "relu"
    ) -> None:
        super().__init__()
        checks.positive_int(
            "ConvNet",
            in_channels=in_channels,
            hidden_channels=hidden_channels,
            out_channels=out_channels,
        )
        checks.one_of("ConvNet", "activation", activation, ACTIVATIONS)
        count_construction(3)
        self.activation = activation
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            [
                nn.Conv2d(in_channels, hidden_channels, 3, padding=1),
                nn.Conv2d(hidden_channels, hidden_channels, 1),
                nn.Conv2d(hidden_channels, out_channels, 3, padding=1),
            ]
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Args: x. Channels come last in memory inside, which is what convolutions are fast at."""
        batch, dtype = x.shape[:-3], x.dtype
        x = x.reshape(-1, *x.shape[-3:]).movedim(-3, -1).contiguous().movedim(-1, -3)
        first, second, last = self.layers
        activation = _IN_PLACE.get(self.activation, ACTIVATIONS[self.activation])
        x = last(activation(second(activation(first(x))))).contiguous().to(dtype)
        return x.reshape(*batch, *x.shape[-3:])


class LipschitzMLP(nn.Module):
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

    layers: Sequence[nn.Linear]

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int],
        activation: str = "silu",
        lipschitz: float = 0.97,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.layers = MLP(dim + context_dim, hidden_dims, dim, activation).layers
        self.activation = activation
        self.lipschitz = lipschitz
        for i, layer in enumerate(self.layers):
            weight = layer.weight[:, :dim] if i == 0 else layer.weight
            left, _, right = torch.linalg.svd(weight.detach(), full_matrices=False)
            layer.register_buffer("u", left[:, 0].clone())
            layer.register_buffer("v", right[0].clone())

    def normalized(self, context: Tensor | None, estimate: bool = False) -> Layers:
        """The layers with bounded weights and the context in the first bias.

        Args:
            context: shape ``(*batch, context_dim)``.
            estimate: move the singular vectors and use their estimate of the norms, as in training.
        """
        target = self.lipschitz ** (1 / len(self.layers))
        layers = []
        for i, layer in enumerate(self.layers):
            weight, bias = at_least_float32(layer.weight), at_least_float32(layer.bias)
            if i == 0:
                if context is not None:
                    bias = at_least_float32(context) @ weight[:, self.dim :].T + bias
                weight = weight[:, : self.dim]
            norm = self._estimate(layer, weight) if estimate else spectral_bound(weight)
            bound = target / SLOPE_BOUNDS.get(self.activation, 1.0) if i else target
            layers.append((weight * (bound / norm.clamp_min(bound)), bias))
        return layers

    def _estimate(self, layer: nn.Linear, weight: Tensor) -> Tensor:
        old_u, old_v = layer.get_buffer("u"), layer.get_buffer("v")
        u, v = power_iteration(weight.detach(), *map(at_least_float32, (old_u, old_v)))
        old_u.copy_(u)
        old_v.copy_(v)
        return u @ weight @ v


def power_iteration(weight: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A few steps of the leading singular vectors; they stay as they were if these are not finite."""
    new_u, new_v = u, v
    for _ in range(POWER_STEPS):
        new_v = _unit(new_u @ weight)
        new_u = _unit(weight @ new_v)
    finite = new_u.isfinite().all() & new_v.isfinite().all()
    return torch.where(finite, new_u, u), torch.where(finite, new_v, v)


def _unit(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x)
    return x / torch.where(norm > 0, norm, 1)


def spectral_bound(weight: Tensor) -> Tensor:
    """An upper bound of the spectral norm: |G^m|_F^(1/(2m)) of the Gram matrix G, m = 2^12.

    Smooth wherever the weight is not zero, and the same on every device; no singular value
    decomposition has both.
    """
    tiny = torch.finfo(
        weight.dtype
    ).tiny  # makes zero weights harmless, and no difference to others
    scale = weight.detach().abs().max() + tiny
    weight = weight / scale
    if weight.shape[0] > weight.shape[1]:
        weight = weight.T
    gram = weight @ weight.T
    log_norm = torch.zeros_like(scale)
    for i in range(0, SQUARINGS + 1, BLOCK):
        norm = (gram.square().sum() + tiny).sqrt()
        log_norm = log_norm + norm.log() / 2 ** (i + 1)
        gram = torch.linalg.matrix_power(gram / norm, 2**BLOCK)
    return scale * log_norm.exp()
