"""What every side can do, and the one place that picks a half by name."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from flow_bridge.architecture import Architecture
from flow_bridge.training import History

BACKENDS = {"torch": "torch", "jax": "jax"}
"""The packages that the halves need."""

INITIAL_ROWS = 4096
"""Rows of data that ``ActNorm`` is initialised from."""

Results = dict[str, Any]


class Side(Protocol):
    """A model of either half with its weights.

    Arrays are numpy's, contexts ``None`` or ``(rows, context_dim)``, weights have their torch names.
    """

    flow: Any
    backend: str

    @classmethod
    def build(cls, architecture: Architecture, dtype: str, seed: int) -> "Side":
        """A model with initial weights."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Side":
        """What a checkpoint holds."""

    @classmethod
    def holding(cls, flow: Any, arrays: Mapping[str, np.ndarray], dtype: str) -> "Side":
        """A copy of a model with given weights in a dtype, on the CPU, in evaluation mode."""

    def with_weights(self, arrays: Mapping[str, np.ndarray]) -> "Side":
        """The same model with other float64 weights; what has been compiled stays compiled."""

    def standardize(self, x: np.ndarray, context: np.ndarray | None, robust: bool) -> None:
        """Make the scaling of data and context part of the flow, see ``standardized`` of each half."""

    def fit(self, x: np.ndarray, context: np.ndarray | None, **options: Any) -> History:
        """Initialise from data, then fit by maximum likelihood; options as of ``fit``."""

    def log_prob(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """The log-density of every row."""

    def from_noise(self, noise: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """Samples from noise as the base distribution takes it, the same in both halves."""

    def arrays(self) -> Mapping[str, np.ndarray]:
        """The weights."""

    def forward(self, x: np.ndarray, context: np.ndarray | None, gradients: bool = True) -> Results:
        """``z``, ``log_det``, a flow's ``log_prob``; gradients of a random linear form of them."""

    def inverse(self, z: np.ndarray, context: np.ndarray | None, gradients: bool = True) -> Results:
        """``x`` and ``inverse log_det``; gradients of a random linear form of them."""

    def jacobian(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """dz/dx of every row by reverse mode, one pass for each entry of z: ``(rows, size, size)``."""

    def values(self, x: np.ndarray, z: np.ndarray, context: np.ndarray | None) -> Results:
        """``forward`` and ``inverse`` without gradients, for any batch shape."""

    def train(self, x: np.ndarray, context: np.ndarray | None) -> Results:
        """``z``, ``log_det`` and the new ``batch statistics`` in training mode; changes nothing."""


def half(backend: str | None) -> type[Side]:
    """The class of the named half, or of the one that is installed."""
    if backend is None:
        backend = next((b for b, package in BACKENDS.items() if find_spec(package)), "torch")
    if backend == "torch":
        from twinflows.sides.torch_side import TorchSide

        return TorchSide
    from twinflows.sides.jax_side import JaxSide

    return JaxSide


def cotangents(outputs: Mapping[str, Any]) -> Results:
    """The random linear form whose gradients are compared."""
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(np.shape(outputs[name])).astype(outputs[name].dtype)
        for name in sorted(outputs)
    }


def first(array: np.ndarray | None, rows: int) -> np.ndarray | None:
    """The first rows."""
    return None if array is None else array[:rows]
