"""A PyTorch model with its weights, from numpy to numpy."""

import copy
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

import torch_flows
from flow_bridge.architecture import Architecture
from flow_bridge.training import History
from torch_flows.checkpoint import from_numpy, to_numpy
from twinflows.sides.base import INITIAL_ROWS, Results, cotangents, first


class TorchSide:
    """A flow or bijector of ``torch_flows``; see ``Side``."""

    backend = "torch"

    def __init__(self, flow: Any) -> None:
        self.flow = flow

    @classmethod
    def build(cls, architecture: Architecture, dtype: str, seed: int) -> "TorchSide":
        torch.manual_seed(seed)
        return cls(torch_flows.build(architecture).to(getattr(torch, dtype)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TorchSide":
        return cls(torch_flows.load(path))

    @classmethod
    def holding(cls, flow: Any, arrays: Mapping[str, np.ndarray], dtype: str) -> "TorchSide":
        flow = copy.deepcopy(flow).to("cpu", getattr(torch, dtype)).eval()
        flow.load_state_dict({name: from_numpy(a.astype(dtype)) for name, a in arrays.items()})
        for parameter in flow.parameters():
            parameter.requires_grad_()
        return cls(flow)

    def with_weights(self, arrays: Mapping[str, np.ndarray]) -> "TorchSide":
        return self.holding(self.flow, arrays, "float64")

    def standardize(self, x: np.ndarray, context: np.ndarray | None, robust: bool) -> None:
        self.flow = torch_flows.standardized(self.flow, x, context, robust)

    def fit(self, x: np.ndarray, context: np.ndarray | None, **options: Any) -> History:
        self.flow.initialize(*self._like_base(x[:INITIAL_ROWS], first(context, INITIAL_ROWS)))
        return torch_flows.fit(self.flow, x, context=context, **options)

    def log_prob(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        with torch.no_grad():
            return self.flow.log_prob(*self._like_base(x, context)).double().cpu().numpy()

    def from_noise(self, noise: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        noise_tensor, context_tensor = self._like_base(noise, context)
        with torch.no_grad():
            return self.flow.from_noise(noise_tensor, context_tensor)[0].double().cpu().numpy()

    def arrays(self) -> Mapping[str, np.ndarray]:
        return {name: to_numpy(array) for name, array in self.flow.state_dict().items()}

    def forward(self, x: np.ndarray, context: np.ndarray | None, gradients: bool = True) -> Results:
        return self._run(self._forward, x, context, "gradients" if gradients else None)

    def inverse(self, z: np.ndarray, context: np.ndarray | None, gradients: bool = True) -> Results:
        return self._run(self._inverse, z, context, "inverse gradients" if gradients else None)

    def jacobian(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        point = torch.from_numpy(x.copy()).requires_grad_()
        z = self._forward(point, _tensor(context))["z"].reshape(len(x), -1)
        if not z.requires_grad:
            return np.zeros((len(x), z.shape[1], x[0].size), x.dtype)
        rows = [
            torch.autograd.grad(column.sum(), point, retain_graph=True, materialize_grads=True)[0]
            for column in z.unbind(-1)
        ]
        return torch.stack(rows, 1).reshape(len(x), z.shape[1], -1).numpy()

    def values(self, x: np.ndarray, z: np.ndarray, context: np.ndarray | None) -> Results:
        return self.forward(x, context, False) | self.inverse(z, context, False)

    def train(self, x: np.ndarray, context: np.ndarray | None) -> Results:
        flow = copy.deepcopy(self.flow).train()
        with torch.no_grad():
            z, log_det = flow.forward(torch.from_numpy(x.copy()), _tensor(context))
        weights = dict(flow.named_parameters())
        state = sorted(flow.state_dict().items())
        stats = [array.numpy().ravel() for name, array in state if name not in weights]
        return {
            "z": z.numpy(),
            "log_det": log_det.numpy(),
            "batch statistics": np.concatenate([np.zeros(0, x.dtype), *stats]),
        }

    def _forward(self, x: Tensor, context: Tensor | None) -> dict[str, Tensor]:
        z, log_det = self.flow.forward(x, context)
        result = {"z": z, "log_det": log_det}
        if hasattr(self.flow, "base"):
            condition = self.flow.embed(context) if self.flow.base.context_dim else None
            result["log_prob"] = self.flow.base.log_prob(z, condition) + log_det
        return result

    def _inverse(self, z: Tensor, context: Tensor | None) -> dict[str, Tensor]:
        x, log_det = self.flow.inverse(z, context)
        return {"x": x, "inverse log_det": log_det}

    def _run(
        self,
        function: Callable[..., dict[str, Tensor]],
        x: np.ndarray,
        context: np.ndarray | None,
        gradients: str | None,
    ) -> Results:
        point = torch.from_numpy(x.copy()).requires_grad_(gradients is not None)
        with torch.set_grad_enabled(gradients is not None):
            outputs = function(point, _tensor(context))
        values: Results = {key: value.detach().numpy() for key, value in outputs.items()}
        if gradients is None:
            return values
        wrt = {"input": point, **self._weights}
        total: Any = sum(
            (outputs[key] * torch.from_numpy(c)).sum() for key, c in cotangents(values).items()
        )
        if not total.requires_grad:
            return values | {
                gradients: {key: torch.zeros_like(w).numpy() for key, w in wrt.items()}
            }
        found = torch.autograd.grad(total, list(wrt.values()), materialize_grads=True)
        named = {key: gradient.numpy() for key, gradient in zip(wrt, found, strict=True)}
        return values | {gradients: named}

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        return dict(self.flow.named_parameters())

    def _like_base(self, *arrays: np.ndarray | None) -> list[Any]:
        like = self.flow.base.device_anchor
        return [
            None if a is None else torch.as_tensor(a, dtype=like.dtype, device=like.device)
            for a in arrays
        ]


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array.copy())
