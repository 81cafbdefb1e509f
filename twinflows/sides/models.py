"""A flow of either half behind one face of numpy arrays."""

import os
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.checkpoint import read_header
from flow_bridge.training import History
from flow_bridge.weights import jax_to_torch

BACKENDS = {"torch": "torch", "jax": "jax"}
"""The packages that the halves need."""

INITIAL_ROWS = 4096
"""Rows of data that ``ActNorm`` is initialised from."""


class Model(Protocol):
    """A flow with its weights. Contexts are ``None`` or ``(rows, context_dim)``."""

    flow: Any

    def standardize(self, x: np.ndarray, context: np.ndarray | None) -> None:
        """Make the scaling of data and context part of the flow, see ``standardized`` of each half."""

    def fit(self, x: np.ndarray, context: np.ndarray | None, **options: Any) -> History:
        """Initialise from data, then fit by maximum likelihood; options as of ``fit``."""

    def log_prob(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """The log-density of every row."""

    def from_noise(self, noise: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """Samples from noise as the base distribution takes it, the same in both halves."""

    def arrays(self) -> Mapping[str, np.ndarray]:
        """The weights under their names in PyTorch."""


class TorchModel:
    """A ``torch_flows.Flow``."""

    def __init__(self, flow: Any) -> None:
        self.flow = flow

    @classmethod
    def build(cls, architecture: Architecture, dtype: str, seed: int) -> "TorchModel":
        import torch

        import torch_flows

        torch.manual_seed(seed)
        return cls(torch_flows.build(architecture).to(getattr(torch, dtype)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TorchModel":
        import torch_flows

        return cls(torch_flows.load(path))

    def standardize(self, x: np.ndarray, context: np.ndarray | None) -> None:
        import torch_flows

        self.flow = torch_flows.standardized(self.flow, x, context)

    def fit(self, x: np.ndarray, context: np.ndarray | None, **options: Any) -> History:
        import torch_flows

        self.flow.initialize(*self._arrays(x[:INITIAL_ROWS], _first(context, INITIAL_ROWS)))
        return torch_flows.fit(self.flow, x, context=context, **options)

    def log_prob(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        import torch

        with torch.no_grad():
            return self.flow.log_prob(*self._arrays(x, context)).double().cpu().numpy()

    def from_noise(self, noise: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        import torch

        noise_tensor, context_tensor = self._arrays(noise, context)
        with torch.no_grad():
            z = self.flow.base.from_noise(noise_tensor)
            return self.flow.inverse(z, context_tensor)[0].double().cpu().numpy()

    def arrays(self) -> Mapping[str, np.ndarray]:
        from torch_flows.checkpoint import to_numpy

        return {name: to_numpy(array) for name, array in self.flow.state_dict().items()}

    def _arrays(self, *arrays: np.ndarray | None) -> list[Any]:
        import torch

        like = self.flow.base.device_anchor
        return [
            None if a is None else torch.as_tensor(a, dtype=like.dtype, device=like.device)
            for a in arrays
        ]


class JaxModel:
    """A ``jax_flows.Flow`` and its variables."""

    def __init__(self, flow: Any, variables: Mapping[str, Any]) -> None:
        self.flow, self.variables = flow, variables

    @cached_property
    def _compiled(self) -> tuple[Any, Any]:
        import jax

        return jax.jit(self.flow.log_prob), jax.jit(self.flow.inverse)

    @classmethod
    def build(cls, architecture: Architecture, dtype: str, seed: int) -> "JaxModel":
        import jax

        import jax_flows

        if dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        flow = jax_flows.build(architecture)
        return cls(flow, flow.init(jax.random.key(seed), dtype))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "JaxModel":
        import jax

        import jax_flows

        if any(tensor.dtype == "float64" for tensor in read_header(path).tensors.values()):
            jax.config.update("jax_enable_x64", True)
        return cls(*jax_flows.load(path))

    def standardize(self, x: np.ndarray, context: np.ndarray | None) -> None:
        import jax_flows

        self.flow, self.variables = jax_flows.standardized(self.flow, self.variables, x, context)

    def fit(self, x: np.ndarray, context: np.ndarray | None, **options: Any) -> History:
        import jax_flows

        self.variables = self.flow.initialize(
            self.variables, *self._arrays(x[:INITIAL_ROWS], _first(context, INITIAL_ROWS))
        )
        self.variables, history = jax_flows.fit(
            self.flow, self.variables, x, context=context, **options
        )
        return history

    def log_prob(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        log_prob, _ = self._compiled
        return np.asarray(log_prob(self.variables, *self._arrays(x, context)), np.float64)

    def from_noise(self, noise: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        base = {name: tree.get("base", {}) for name, tree in self.variables.items()}
        noise_array, context_array = self._arrays(noise, context)
        z = self.flow.base.from_noise(base, noise_array)
        _, inverse = self._compiled
        x, _ = inverse(self.variables, z, context_array)
        return np.asarray(x, np.float64)

    def arrays(self) -> Mapping[str, np.ndarray]:
        return jax_to_torch(self.variables)

    def _arrays(self, *arrays: np.ndarray | None) -> list[Any]:
        import jax.numpy as jnp

        from jax_flows.variables import weight_dtype

        dtype = weight_dtype(self.variables)
        return [None if a is None else jnp.asarray(a, dtype) for a in arrays]


def half(backend: str | None) -> type[TorchModel] | type[JaxModel]:
    """The class of the named backend's models, or of the one that is installed."""
    if backend is None:
        backend = next((b for b, package in BACKENDS.items() if find_spec(package)), "torch")
    return TorchModel if backend == "torch" else JaxModel


def _first(array: np.ndarray | None, rows: int) -> np.ndarray | None:
    return None if array is None else array[:rows]
