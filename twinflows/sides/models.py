"""A flow of either half behind one face of numpy arrays: what the command line works with."""

import inspect
import json
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np

from flow_bridge.architecture import Architecture, architecture
from flow_bridge.checkpoint import read_header
from flow_bridge.errors import ArchitectureError
from flow_bridge.training import History
from flow_bridge.weights import jax_to_torch

BACKENDS = {"torch": "torch", "jax": "jax"}
"""The packages that the halves need."""

BLOCK_ROWS = 4096
INITIAL_ROWS = 4096
"""Rows of data that ``ActNorm`` is initialised from."""


class Model(Protocol):
    """A flow with its weights. Contexts are ``None`` or ``(rows, context_dim)``."""

    flow: Any

    def fit(self, x: np.ndarray, context: np.ndarray | None, **options: Any) -> History:
        """Initialise from data, then fit by maximum likelihood; options as of ``fit``."""

    def log_prob(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """The log-density of every row."""

    def from_noise(self, noise: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """Samples from noise as the base distribution takes it, the same in both halves."""

    def parts(self) -> tuple[Architecture, Architecture]:
        """The architectures of the bijector and of the base."""

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

    def parts(self) -> tuple[Architecture, Architecture]:
        return _parts(self.flow)

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

    def parts(self) -> tuple[Architecture, Architecture]:
        return _parts(self.flow)

    def arrays(self) -> Mapping[str, np.ndarray]:
        return jax_to_torch(self.variables)

    def _arrays(self, *arrays: np.ndarray | None) -> list[Any]:
        import jax.numpy as jnp

        from jax_flows.variables import weight_dtype

        dtype = weight_dtype(self.variables)
        return [None if a is None else jnp.asarray(a, dtype) for a in arrays]


def open_model(path: str | os.PathLike[str], backend: str | None) -> Model:
    """The flow in a checkpoint, in the named backend or in the one that is installed.

    Raises:
        CheckpointError: whatever is wrong with the file.
        ArchitectureError: if it holds something that has no density.
    """
    model: Model = _half(backend).load(path)
    if not hasattr(model.flow, "base"):
        name = type(model.flow).__name__
        raise ArchitectureError(f"{os.fspath(path)} holds a {name}, which is no flow.")
    return model


def describe(
    model: str,
    backend: str | None,
    event_shape: tuple[int, ...],
    context_dim: int,
    options: list[str],
) -> Architecture:
    """The architecture of a named model for events of a shape.

    Args:
        model: its name, in any case.
        options: further arguments, each ``"NAME=JSON"``.

    Raises:
        ValueError: for an unknown name and for options of another form.
    """
    types = {name.lower(): cls for name, cls in flow_types(backend).items()}
    if model.lower() not in types:
        raise ValueError(f"there is no model {model!r}; there are {', '.join(sorted(types))}.")
    cls = types[model.lower()]
    described: Architecture = {"type": cls.__name__}
    if "shape" in inspect.signature(cls).parameters:
        described["shape"] = list(event_shape)
    elif len(event_shape) == 1:
        described["dim"] = event_shape[0]
    else:
        raise ValueError(f"{cls.__name__} expects rows of numbers, got events of {event_shape}.")
    if context_dim:
        described["context_dim"] = context_dim
    for option in options:
        name, _, text = option.partition("=")
        try:
            described[name] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"--set expects NAME=JSON, got {option!r}.") from error
    return described


class Scaling(NamedTuple):
    """Mean and standard deviation of every column."""

    mean: np.ndarray
    sd: np.ndarray

    def prepend(
        self, parts: tuple[Architecture, Architecture], arrays: Mapping[str, np.ndarray]
    ) -> tuple[Architecture, dict[str, np.ndarray]]:
        """Architecture and weights of the flow that standardises first."""
        bijector, base = parts
        affine = {"type": "Affine", "dim": len(self.mean)}
        chain = {"type": "Chain", "bijectors": [affine, bijector]}
        dtype = next(iter(arrays.values())).dtype
        own = {"log_scale": -np.log(self.sd), "shift": -self.mean / self.sd}
        named = {f"bijector.bijectors.0.{name}": a.astype(dtype) for name, a in own.items()}
        for name, array in arrays.items():
            part, _, rest = name.partition(".")
            named[f"bijector.bijectors.1.{rest}" if part == "bijector" else name] = array
        return {"type": "Flow", "bijector": chain, "base": base}, named


def standardized(x: np.ndarray, dtype: str) -> Scaling:
    """The scaling of data ``(rows, columns)``.

    Raises:
        ValueError: for a column that is constant, or that ``dtype`` cannot tell from a constant.
    """
    mean, sd = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    if not (sd > 0).all():
        raise ValueError(f"column {int(np.argmin(sd))} of the data is constant: it has no density.")
    far = np.abs(mean) * np.finfo(dtype).eps > 1e-3 * sd
    if far.any():
        raise ValueError(
            f"column {int(np.argmax(far))} of the data has a mean of {mean[far][0]:.3g} and a "
            f"standard deviation of {sd[far][0]:.3g}, too little for {dtype}: subtract a constant "
            "first, or take float64."
        )
    return Scaling(mean, sd)


def new_model(architecture: Architecture, backend: str | None, dtype: str, seed: int) -> Model:
    """A flow with initial weights."""
    return _half(backend).build(architecture, dtype, seed)


def flow_types(backend: str | None) -> dict[str, type]:
    """The named models of a backend."""
    half: Any
    if _half(backend) is TorchModel:
        import torch_flows as half
    else:
        import jax_flows as half
    return {
        name: cls
        for name, cls in half.registry.registry.types.items()
        if isinstance(cls, type) and issubclass(cls, half.Flow) and cls is not half.Flow
    }


def in_blocks(
    function: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
    rows: np.ndarray,
    context: np.ndarray | None,
) -> np.ndarray:
    """``function`` on a few thousand rows at a time; the last block is filled up, so that all have
    one shape."""
    results = []
    for start in range(0, len(rows), BLOCK_ROWS):
        index = np.arange(start, start + min(BLOCK_ROWS, len(rows))) % len(rows)
        block = None if context is None else context[index]
        results.append(function(rows[index], block)[: len(rows) - start])
    return np.concatenate(results)


def draw(
    model: Model, num_samples: int, generator: np.random.Generator, context: np.ndarray | None
) -> np.ndarray:
    """Samples, the same in both halves; any size where an event has none of its own is 1."""
    base = model.flow.base
    shape = num_samples, *(1 if size is None else size for size in base.noise_shape)
    noise = generator.random(shape) if base.noise == "uniform" else generator.normal(size=shape)
    return in_blocks(model.from_noise, noise, context)


def _half(backend: str | None) -> type[TorchModel] | type[JaxModel]:
    if backend is None:
        backend = next((b for b, package in BACKENDS.items() if find_spec(package)), "torch")
    return TorchModel if backend == "torch" else JaxModel


def _parts(flow: Any) -> tuple[Architecture, Architecture]:
    return architecture(flow.bijector), architecture(flow.base)


def _first(array: np.ndarray | None, rows: int) -> np.ndarray | None:
    return None if array is None else array[:rows]
