"""Training: maximum likelihood on data, and reverse KL to an energy."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flow_bridge import checks, training
from flow_bridge.architecture import architecture
from flow_bridge.training import History, LearningRate
from torch_flows.bijectors.base import check_input
from torch_flows.checkpoint import from_numpy, to_numpy
from torch_flows.flows import Flow

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

_VALIDATION_ROWS = 4096


def fit(
    flow: Flow,
    data: Tensor | np.ndarray,
    *,
    context: Tensor | np.ndarray | None = None,
    validation: float | Tensor | np.ndarray = 0.1,
    validation_context: Tensor | np.ndarray | None = None,
    num_epochs: int = 100,
    batch_size: int = 256,
    learning_rate: LearningRate = 1e-3,
    optimizer: MakeOptimizer | None = None,
    max_grad_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    progress: bool = True,
    state_path: str | os.PathLike[str] | None = None,
) -> History:
    """Fit a flow by maximum likelihood: minimise the mean of -log_prob over minibatches.

    The flow is trained in place, keeps the weights of the best validation loss, and is left in
    evaluation mode.

    Args:
        flow: the flow.
        data: shape ``(num_rows, *event_shape)``, of the weights' dtype.
        context: shape ``(num_rows, context_dim)``, for a conditional flow.
        validation: the fraction of rows held out, or the validation data; 0 for none.
        validation_context: the context of the validation data, where those are given.
        num_epochs: passes over the data.
        batch_size: rows per step; at most all of them.
        learning_rate: of Adam; a number, or a function from the step (from 0) to one.
        optimizer: makes another optimiser from the parameters, in place of Adam and its rate.
        max_grad_norm: gradients of a larger global norm are scaled down to it.
        patience: stop after this many epochs without a better validation loss.
        seed: decides the split and the batches, which are the same in both backends.
        progress: show a progress bar.
        state_path: a file that holds the state after every epoch. If it exists, training goes on
            from there and ends with the same weights as an uninterrupted run.

    Returns:
        The losses.

    Raises:
        ValueError: for data that are empty, not finite, or of a wrong shape.
        TypeError: for data of another dtype than the weights.
        NonFiniteError: if the loss becomes NaN or infinite; the flow keeps the last good weights.
        CheckpointError: if ``state_path`` holds the state of another run.
    """
    checks.positive_int("fit", num_epochs=num_epochs, batch_size=batch_size)
    weight = next(flow.parameters())
    rows = _rows(flow, "data", data, context)
    if isinstance(validation, int | float):
        kept, held_out = training.split_rows(len(rows[0]), validation, seed)
        validation_rows = [array[held_out] for array in rows]
        rows = [array[kept] for array in rows]
    else:
        validation_rows = _rows(flow, "validation", validation, validation_context)

    def loss(batch: Tensor) -> Tensor:
        return -flow.log_prob(*(array[batch] for array in rows)).mean()

    def validation_loss() -> float | None:
        blocks = zip(*(array.split(_VALIDATION_ROWS) for array in validation_rows), strict=True)
        total = sum(-flow.log_prob(*block).double().sum() for block in blocks)
        return float(total) / len(validation_rows[0]) if len(validation_rows[0]) else None

    return training.train(
        _Engine(flow, loss, validation_loss, optimizer, max_grad_norm, weight.device, None),
        training.row_batches(len(rows[0]), batch_size, seed),
        num_epochs,
        learning_rate=learning_rate,
        patience=patience,
        progress=progress,
        state_path=state_path,
        settings={
            "architecture": architecture(flow),
            "rows": len(rows[0]),
            "batch_size": batch_size,
            "seed": seed,
        },
    )


def fit_to_energy(
    flow: Flow,
    energy: Callable[[Tensor], Tensor],
    *,
    context: Tensor | np.ndarray | None = None,
    num_steps: int = 1000,
    batch_size: int = 256,
    learning_rate: LearningRate = 1e-3,
    optimizer: MakeOptimizer | None = None,
    max_grad_norm: float | None = None,
    seed: int = 0,
    progress: bool = True,
    state_path: str | os.PathLike[str] | None = None,
) -> History:
    """Fit a flow to an unnormalised density exp(-energy) by reverse KL.

    Minimises E[log q(x) + energy(x)] over samples x of the flow, which is KL(q || p) minus the log of
    the target's normaliser. Arguments not listed, results and errors as in ``fit``.

    Args:
        energy: from x ``(batch_size, *event_shape)`` to ``(batch_size,)``, differentiable.
        context: one context ``(context_dim,)``, for a conditional flow.
        num_steps: gradient steps, each on ``batch_size`` fresh samples.
    """
    checks.positive_int("fit_to_energy", num_steps=num_steps, batch_size=batch_size)
    checks.reparameterized("fit_to_energy", type(flow.base).__name__, flow.base.reparameterized)
    weight = next(flow.parameters())
    given = None if context is None else torch.as_tensor(context, device=weight.device)

    def loss(noise: Tensor) -> Tensor:
        z = flow.base.from_noise(noise)
        x, log_det = flow.inverse(z, given)
        return (flow.base.log_prob(z) - log_det + energy(x)).mean()

    num_epochs, batches = training.noise_batches(
        flow.base.noise, num_steps, (batch_size, *flow.base.noise_shape), seed
    )
    return training.train(
        _Engine(flow, loss, lambda: None, optimizer, max_grad_norm, weight.device, weight.dtype),
        batches,
        num_epochs,
        learning_rate=learning_rate,
        patience=None,
        progress=progress,
        state_path=state_path,
        settings={
            "architecture": architecture(flow),
            "num_steps": num_steps,
            "batch_size": batch_size,
            "seed": seed,
        },
    )


def _rows(flow: Flow, name: str, data: Any, context: Any) -> list[Tensor]:
    device = next(flow.parameters()).device
    arrays = [torch.as_tensor(a, device=device) for a in (data, context) if a is not None]
    check_input(flow, name, arrays[0], arrays[1] if len(arrays) > 1 else None)
    for label, array in zip((name, f"{name}'s context"), arrays, strict=False):
        finite = array.isfinite().flatten(1).all(1).cpu().numpy()
        training.check_rows(label, len(arrays[0]), finite)
    return arrays


class _Engine:
    """Steps of an optimiser on a flow's parameters; the flow trains in place."""

    def __init__(
        self,
        flow: Flow,
        loss: Callable[[Tensor], Tensor],
        validation_loss: Callable[[], float | None],
        optimizer: MakeOptimizer | None,
        max_grad_norm: float | None,
        device: torch.device,
        batch_dtype: torch.dtype | None,
    ) -> None:
        self.flow, self.loss, self.validation_loss = flow, loss, validation_loss
        self.max_grad_norm, self.device, self.batch_dtype = max_grad_norm, device, batch_dtype
        self.parameters = [p for p in flow.parameters() if p.requires_grad]
        self.sets_rate = optimizer is None
        self.optimizer = (optimizer or adam)(self.parameters)

    def run(self, batches: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, bool]:
        self.flow.train()
        losses = []
        for batch, rate in zip(
            torch.as_tensor(batches, device=self.device, dtype=self.batch_dtype), rates, strict=True
        ):
            if self.sets_rate:
                self.optimizer.param_groups[0]["lr"] = float(rate)
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss(batch)
            loss.backward()
            if self.max_grad_norm is not None:
                clip_by_global_norm([p.grad for p in self.parameters], self.max_grad_norm)
            self.optimizer.step()
            torch.clear_autocast_cache()  # fit under torch.autocast would keep the old weights
            losses.append(loss.detach())
        self.flow.eval()
        finite = torch.stack([p.isfinite().all() for p in self.parameters]).all()
        return torch.stack(losses).double().cpu().numpy(), bool(finite)

    @torch.no_grad()
    def validate(self) -> float | None:
        return self.validation_loss()

    def snapshot(self) -> dict[str, Tensor]:
        return {name: array.detach().clone() for name, array in self.flow.state_dict().items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        self.flow.load_state_dict(snapshot)

    def state_arrays(self, best: dict[str, Tensor] | None) -> dict[str, np.ndarray]:
        groups = {"weights": self.flow.state_dict(), "best": best or {}}
        for i, slots in self.optimizer.state_dict()["state"].items():
            groups[f"optimizer.p{i}"] = {k: v for k, v in slots.items() if isinstance(v, Tensor)}
        return {f"{g}.{name}": to_numpy(a) for g, t in groups.items() for name, a in t.items()}

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor] | None:
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}}
        slots: dict[int, dict[str, Tensor]] = {}
        for path, array in arrays.items():
            group, name = path.split(".", 1)
            if group == "optimizer":
                index, name = name.split(".", 1)
                slots.setdefault(int(index[1:]), {})[name] = from_numpy(array)
            else:
                groups[group][name] = from_numpy(array)
        self.restore(groups["weights"])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": slots})
        return groups["best"] or None


def adam(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """PyTorch's Adam in one fused kernel; ``fit`` sets its learning rate at every step."""
    return torch.optim.Adam(parameters, fused=True)


def clip_by_global_norm(gradients: Iterable[Tensor | None], max_norm: float) -> None:
    """Scale all gradients, in place, by max_norm / max(norm, max_norm), norm that of all of them."""
    present = [g for g in gradients if g is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(present)))
    torch._foreach_mul_(present, max_norm / norm.clamp_min(max_norm))
