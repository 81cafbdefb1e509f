"""A JAX model with its weights, from numpy to numpy, compiled."""

import copy
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_flows
from flow_bridge.architecture import Architecture
from flow_bridge.checkpoint import read_header
from flow_bridge.training import History
from flow_bridge.weights import jax_to_torch, torch_to_jax
from jax_flows.checkpoint import from_numpy
from jax_flows.variables import weight_dtype
from twinflows.sides.base import INITIAL_ROWS, Results, cotangents, first


class JaxSide:
    """A flow or bijector of ``jax_flows`` and its variables; see ``Side``.

    Every method has one program for each dtype and shape, made when it is first needed.
    """

    backend = "jax"

    def __init__(self, flow: Any, variables: Mapping[str, Any]) -> None:
        self.flow, self.variables = flow, variables

    @classmethod
    def build(cls, architecture: Architecture, dtype: str, seed: int) -> "JaxSide":
        if dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        flow = jax_flows.build(architecture)
        return cls(flow, flow.init(jax.random.key(seed), dtype))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "JaxSide":
        if any(tensor.dtype == "float64" for tensor in read_header(path).tensors.values()):
            jax.config.update("jax_enable_x64", True)
        return cls(*jax_flows.load(path))

    @classmethod
    def holding(cls, flow: Any, arrays: Mapping[str, np.ndarray], dtype: str) -> "JaxSide":
        cast = {name: array.astype(dtype) for name, array in arrays.items()}
        return cls(flow, from_numpy(torch_to_jax(cast, flow.shapes())))

    def with_weights(self, arrays: Mapping[str, np.ndarray]) -> "JaxSide":
        moved = copy.copy(self)
        moved.variables = from_numpy(torch_to_jax(arrays, self.flow.shapes()))
        return moved

    def standardize(self, x: np.ndarray, context: np.ndarray | None, robust: bool) -> None:
        self.flow, self.variables = jax_flows.standardized(
            self.flow, self.variables, x, context, robust
        )

    def fit(self, x: np.ndarray, context: np.ndarray | None, **options: Any) -> History:
        self.variables = self.flow.initialize(
            self.variables, *self._like_weights(x[:INITIAL_ROWS], first(context, INITIAL_ROWS))
        )
        self.variables, history = jax_flows.fit(
            self.flow, self.variables, x, context=context, **options
        )
        return history

    def log_prob(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        found = self._log_prob(self.variables, *self._like_weights(x, context))
        return np.asarray(found, np.float64)

    def from_noise(self, noise: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        found = self._sample(self.variables, *self._like_weights(noise, context))
        return np.asarray(found, np.float64)

    def arrays(self) -> Mapping[str, np.ndarray]:
        return jax_to_torch(self.variables)

    def forward(self, x: np.ndarray, context: np.ndarray | None, gradients: bool = True) -> Results:
        if not gradients:
            return _numpy(self._forward(self.variables, x, context))
        found = self._pull_forward(
            *self._split, x, context, self._cotangents("forward", x, context)
        )
        return self._named(found, "gradients")

    def inverse(self, z: np.ndarray, context: np.ndarray | None, gradients: bool = True) -> Results:
        if not gradients:
            return _numpy(self._inverse(self.variables, z, context))
        found = self._pull_inverse(
            *self._split, z, context, self._cotangents("inverse", z, context)
        )
        return self._named(found, "inverse gradients")

    def jacobian(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        given = {k: np.zeros_like(c) for k, c in self._cotangents("forward", x, context).items()}
        rows = []
        for i in range(given["z"][0].size):
            given["z"] = np.zeros_like(given["z"])
            given["z"].reshape(len(x), -1)[:, i] = 1
            rows.append(self._pull_forward(*self._split, x, context, given)[1][1])
        return np.stack(rows, 1).reshape(len(x), len(rows), -1)

    def values(self, x: np.ndarray, z: np.ndarray, context: np.ndarray | None) -> Results:
        return _numpy(self._values(self.variables, x, z, context))

    def train(self, x: np.ndarray, context: np.ndarray | None) -> Results:
        z, log_det, stats = self._train(self.variables, x, context)
        arrays = jax_to_torch({"batch_stats": stats})
        parts = [arrays[name].ravel() for name in sorted(arrays)]
        return {
            "z": np.asarray(z),
            "log_det": np.asarray(log_det),
            "batch statistics": np.concatenate([np.zeros(0, x.dtype), *parts]),
        }

    @cached_property
    def _log_prob(self) -> Any:
        return jax.jit(self.flow.log_prob)

    @cached_property
    def _sample(self) -> Any:
        return jax.jit(lambda *args: self.flow.from_noise(*args)[0])

    @cached_property
    def _train(self) -> Any:
        return jax.jit(self.flow.forward_and_update)

    @cached_property
    def _forward(self) -> Any:
        return jax.jit(self._outputs)

    @cached_property
    def _inverse(self) -> Any:
        return jax.jit(self._inverse_outputs)

    @cached_property
    def _values(self) -> Any:
        def run(variables: Any, x: Any, z: Any, context: Any) -> dict[str, Any]:
            found = self._outputs(variables, x, context)
            return found | self._inverse_outputs(variables, z, context)

        return jax.jit(run)

    @cached_property
    def _pull_forward(self) -> Any:
        return jax.jit(_pullback(self._outputs))

    @cached_property
    def _pull_inverse(self) -> Any:
        return jax.jit(_pullback(self._inverse_outputs))

    @property
    def _split(self) -> tuple[Any, Any]:
        return self.variables.get("params", {}), self.variables.get("batch_stats", {})

    def _outputs(self, variables: Any, x: Any, context: Any) -> dict[str, Any]:
        z, log_det = self.flow.forward(variables, x, context)
        result = {"z": z, "log_det": log_det}
        if hasattr(self.flow, "base"):
            base = {name: tree.get("base", {}) for name, tree in variables.items()}
            conditional = self.flow.base.context_dim
            condition = self.flow.embed(variables, context) if conditional else None
            result["log_prob"] = self.flow.base.log_prob(base, z, condition) + log_det
        return result

    def _inverse_outputs(self, variables: Any, z: Any, context: Any) -> dict[str, Any]:
        x, log_det = self.flow.inverse(variables, z, context)
        return {"x": x, "inverse log_det": log_det}

    def _cotangents(self, direction: str, x: Any, context: Any) -> Results:
        function = self._outputs if direction == "forward" else self._inverse_outputs
        key = direction, x.shape, x.dtype.name
        if key not in self._shapes:
            self._shapes[key] = jax.eval_shape(function, self.variables, x, context)
        return cotangents(self._shapes[key])

    @cached_property
    def _shapes(self) -> dict[Any, Any]:
        return {}

    def _named(self, found: Any, name: str) -> Results:
        outputs, (weights, point) = found
        gradients = {"input": np.asarray(point), **jax_to_torch({"params": weights})}
        return _numpy(outputs) | {name: gradients}

    def _like_weights(self, *arrays: np.ndarray | None) -> list[Any]:
        dtype = weight_dtype(self.variables)
        return [None if a is None else jnp.asarray(a, dtype) for a in arrays]


def _pullback(function: Any) -> Any:
    """Outputs, and the gradients in weights and input of a linear form of them."""

    def run(params: Any, stats: Any, x: Any, context: Any, form: Any) -> Any:
        def total(params: Any, x: Any) -> Any:
            outputs = function({"params": params, "batch_stats": stats}, x, context)
            return sum((outputs[key] * c).sum() for key, c in form.items()), outputs

        gradients, outputs = jax.grad(total, argnums=(0, 1), has_aux=True)(params, x)
        return outputs, gradients

    return run


def _numpy(outputs: Mapping[str, Any]) -> Results:
    return {key: np.asarray(value) for key, value in outputs.items()}
