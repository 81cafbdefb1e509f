"""One flow in either half behind the same calls, with numpy arrays at the border."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jax_flows
import torch_flows

Make = Callable[[Any], Any]
"""From the package of a half to a flow."""


class Torch:
    """A flow in PyTorch, in units of data.

    Args:
        make: what makes the flow.
        x, context: what it is standardised by, see ``standardized``.
        seed: of the first weights.
    """

    name, package, numpy = "PyTorch", torch_flows, torch

    def __init__(
        self, make: Make, x: np.ndarray, context: np.ndarray | None = None, seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.flow = torch_flows.standardized(make(torch_flows), x, context)

    def fit(self, data: np.ndarray | None, **options: Any) -> Any:
        return torch_flows.fit(self.flow, data, progress=False, **options)

    @torch.no_grad()
    def log_prob(self, x: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
        given = None if context is None else _tensor(context)
        return self.flow.log_prob(_tensor(x), given).double().numpy()

    @torch.no_grad()
    def sample_and_log_prob(
        self, num_samples: int, context: np.ndarray | None = None, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        given = None if context is None else _tensor(context)
        generator = torch.Generator().manual_seed(seed)
        x, log_prob = self.flow.sample_and_log_prob(num_samples, given, generator)
        return x.double().numpy(), log_prob.double().numpy()

    def pullback(self, log_density: Any) -> tuple[Any, Any]:
        """Value and gradient of the latent's log-density, and what maps latents to data."""
        pulled = torch_flows.pullback(self.flow, log_density)

        def value_and_gradient(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            point = _tensor(z).requires_grad_()
            value = pulled(point)
            (gradient,) = torch.autograd.grad(value.sum(), point)
            return value.detach().double().numpy(), gradient.double().numpy()

        @torch.no_grad()
        def to_data(z: np.ndarray) -> np.ndarray:
            return self.flow.inverse(_tensor(z))[0].double().numpy()

        return value_and_gradient, to_data


class Jax:
    """The same in JAX."""

    name, package, numpy = "JAX", jax_flows, jnp

    def __init__(
        self, make: Make, x: np.ndarray, context: np.ndarray | None = None, seed: int = 0
    ) -> None:
        flow = make(jax_flows)
        variables = flow.init(jax.random.key(seed))
        self.flow, self.variables = jax_flows.standardized(flow, variables, x, context)

    def fit(self, data: np.ndarray | None, **options: Any) -> Any:
        self.variables, history = jax_flows.fit(
            self.flow, self.variables, data, progress=False, **options
        )
        return history

    def log_prob(self, x: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
        given = None if context is None else np.float32(context)
        log_prob = jax.jit(self.flow.log_prob)(self.variables, np.float32(x), given)
        return np.asarray(log_prob, np.float64)

    def sample_and_log_prob(
        self, num_samples: int, context: np.ndarray | None = None, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        given = None if context is None else np.float32(context)
        sample = jax.jit(self.flow.sample_and_log_prob, static_argnums=2)
        x, log_prob = sample(self.variables, jax.random.key(seed), num_samples, given)
        return np.asarray(x, np.float64), np.asarray(log_prob, np.float64)

    def pullback(self, log_density: Any) -> tuple[Any, Any]:
        """Value and gradient of the latent's log-density, and what maps latents to data."""
        pulled = jax_flows.pullback(self.flow, self.variables, log_density)

        @jax.jit
        def both(z: jax.Array) -> tuple[jax.Array, jax.Array]:
            value, pull = jax.vjp(pulled, z)
            return value, pull(jnp.ones_like(value))[0]

        def value_and_gradient(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            value, gradient = both(np.float32(z))
            return np.asarray(value, np.float64), np.asarray(gradient, np.float64)

        def to_data(z: np.ndarray) -> np.ndarray:
            x, _ = jax.jit(self.flow.inverse)(self.variables, np.float32(z))
            return np.asarray(x, np.float64)

        return value_and_gradient, to_data


HALVES: tuple[Any, ...] = (Torch, Jax)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.float32(array))
