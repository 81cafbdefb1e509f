"""Networks of bounded Lipschitz constant."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flow_bridge.lipschitz import BLOCK, POWER_STEPS, SLOPE_BOUNDS, SQUARINGS
from torch_flows.derivatives import Layers
from torch_flows.networks.mlp import MLP
from torch_flows.numerics import at_least_float32


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
        self.layers = MLP(dim + context_dim, dim, hidden_dims, activation).layers
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
