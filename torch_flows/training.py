"""Training: a loss, maximum likelihood unless another is given, on data or on what it draws itself."""

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from flow_bridge import checks, layouts, sources, training
from flow_bridge.architecture import architecture
from flow_bridge.checkpoint import TensorInfo
from flow_bridge.errors import CheckpointError
from flow_bridge.sources import Arrays, Chunk, Expected, Part, Rows, Source
from flow_bridge.training import History, LearningRate
from flow_bridge.training_state import (
    Group,
    fingerprints,
    probe_energy,
    probe_rate,
    run_settings,
    weight_groups,
)
from torch_flows.checkpoint import from_numpy, to_numpy
from torch_flows.dequantization import DequantizationBound, Dequantized
from torch_flows.devices import (
    gather,
    is_sharded,
    local,
    mean_over_ranks,
    num_ranks,
    rank,
    sharded_like,
)
from torch_flows.flows import Flow
from torch_flows.inputs import dtype_name
from torch_flows.losses import Loss, NegativeLogLikelihood, ReverseKL, as_loss, draws

MakeOptimizer = Callable[[Iterable[Tensor]], Any]
"""From the parameters, or groups of them, to an optimiser, or to a pair of one and its scheduler."""
Data = Tensor | np.ndarray | Iterable[Any] | Callable[[int], Iterable[Any]]
LossFunction = Callable[..., Tensor]
"""From the flow, x and its context to one number for each row; a ``Loss`` may also draw noise."""


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    flow: Flow,
    data: Data | None,
    *,
    context: Tensor | np.ndarray | None = None,
    validation: float | Data = 0.1,
    validation_context: Tensor | np.ndarray | None = None,
    num_epochs: int = 100,
    batch_size: int = 256,
    learning_rate: LearningRate | None = None,
    optimizer: MakeOptimizer | None = None,
    max_grad_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    progress: bool = True,
    state_path: str | os.PathLike[str] | None = None,
    state_every: int | None = None,
    loss: LossFunction | None = None,
    weights: Tensor | np.ndarray | None = None,
    validation_weights: Tensor | np.ndarray | None = None,
    num_steps: int | None = None,
    ema: float | None = None,
    weight_decay: float | None = None,
    accumulate: int = 1,
    callback: Callable[[History, Flow], object] | None = None,
    frozen: str | Sequence[str] = (),
    compile: bool = False,
) -> History:
    """Fit a flow: minimise the mean of a loss, -log_prob unless another is given, over minibatches.

    The flow is trained in place, keeps the weights of the best validation loss, and is left in
    evaluation mode, also where an exception ends training: with the best weights so far, or without
    validation data those of the last completed call of up to 200 steps.

    What normalises with batch statistics (``BatchNorm``) is evaluated with those of the training data,
    taken anew where an epoch ends: of all rows, or of 32,768 evenly spread ones (of fewer where those
    are over 64 MiB), or of the first batches that an iterable gives in an epoch. Batches of one row have no
    batch statistics, and are left out.

    Where ``torch.distributed`` is initialised, its ranks train one model together, from the weights of
    rank 0 and on the trajectory of one process; ``DistributedDataParallel`` averages the gradients.
    Each is given the same array and takes its part of each batch, or an iterable of its own part of the
    batches. Rank 0 writes the state, all read it.

    Args:
        flow: the flow.
        data: shape ``(num_rows, *event_shape)``, of the weights' dtype: an array, a table with
            ``to_numpy`` or nested lists; a ``numpy.memmap`` is read batch by batch. Or an iterable of
            batches, or a function from the epoch (from 0) to one: each an array, or a tuple of x, its
            context if the flow takes one, and its weights if rows have them. ``None`` for a loss that
            needs none (``ReverseKL``).
        context: shape ``(num_rows, context_dim)``, for a conditional flow; without data one context
            ``(context_dim,)``.
        validation: the fraction of rows held out, or the validation data; 0 for none. An iterable is not
            split.
        validation_context: the context of the validation data, where those are given as an array.
        num_epochs: passes over the data.
        batch_size: rows per step, of all ranks together; at most all of them. An iterable has its own.
        learning_rate: of Adam, 1e-3 if not given; a number, or a function from the step (from 0) to one.
        optimizer: makes another optimiser from the parameters, in place of Adam and its rate, or a pair of
            one and its scheduler, which takes a step with it; ``ReduceLROnPlateau`` takes one after every
            epoch, with the validation loss. An optimiser that evaluates the loss itself (``LBFGS``) gets
            a closure.
        max_grad_norm: gradients of a larger global norm are scaled down to it.
        patience: stop after this many epochs without a better validation loss.
        seed: decides the split and the batches of an array, which are the same in both backends.
        progress: show a progress bar.
        state_path: a file that holds the state after every epoch. If it exists, training goes on
            from there and ends with the same weights as an uninterrupted run.
        state_every: write the state also within an epoch, after this many steps.
        loss: a ``Loss`` such as ``ReverseKL(energy)``, or a function of the flow, x and the context
            (``None`` without one), to one number for each row, ``(rows,)``.
        weights: shape ``(num_rows,)``, at least 0: the loss is sum(weights * loss) / sum(weights) over all
            rows; of a batch the mean of weights * loss, the weights divided by their mean over all rows.
            Those in an iterable count as they are. Batch statistics are of all rows alike.
        validation_weights: of the rows of validation data that are given as an array.
        num_steps: without data, the number of steps, which ``History`` counts in epochs of 200.
        ema: keep moving averages of the weights with this decay d, 0.999 for one, and validate, keep and save
            those: after step t (from 0) they come nearer to the trained weights by the share
            1 - min(d, (1 + t) / (10 + t)) of the difference.
        weight_decay: with each step of Adam the matrices and kernels of networks shrink by the learning
            rate times this; biases, scales and what makes up linear maps do not (decoupled: Loshchilov and
            Hutter, 2019, arXiv:1711.05101).
        accumulate: evaluate each batch in this many equal parts, whose gradients are added up: the same
            step with less memory. Batch statistics are of the parts.
        callback: called after every epoch with the ``History`` so far and the flow, in evaluation mode;
            training stops where it returns what is true.
        frozen: names of weights, or of modules that hold them, as files have them
            (``"bijector.bijectors.0"``): these stay as they are.
        compile: ``torch.compile`` the loss and its gradient, which takes half a minute or more, and on a CPU
            a C++ compiler, and then about 0.6 of the time of a step that is made of small operations.

    Returns:
        The losses.

    Raises:
        ValueError: for data that are empty, masked, not finite, or of a wrong shape, for arguments that
            make no sense, and for batches that do not split evenly over the ranks.
        TypeError: for data of another dtype than the weights.
        NonFiniteError: if the loss becomes NaN or infinite.
        CheckpointError: if ``state_path`` holds the state of another run.
    """
    (
        seed,
        learning_rate,
        max_grad_norm,
        num_epochs,
        batch_size,
        patience,
        state_every,
        num_steps,
        accumulate,
    ) = training.check_options(
        "fit",
        optimizer,
        seed=seed,
        learning_rate=learning_rate,
        max_grad_norm=max_grad_norm,
        state_path=state_path,
        num_epochs=num_epochs,
        batch_size=batch_size,
        patience=patience,
        state_every=state_every,
        num_steps=num_steps,
        accumulate=accumulate,
    )
    ema, weight_decay = training.check_manners(optimizer, ema, weight_decay, callback)
    checks.boolean("fit", compile=compile)
    flow = _trainable("fit", flow)
    if loss is None and isinstance(flow, Dequantized):
        loss = DequantizationBound()
    loss = as_loss(loss)
    checks.instances(type(loss).__name__, "flow", [flow], loss.models)
    loss.check(flow)
    training.check_data(type(loss).__name__, loss.needs_data, data is not None, num_steps)
    draw, match = draws(loss, flow)
    source, held_out, constant = None, None, None
    if data is not None:
        source = _source(flow, "data", data, context, weights, num_epochs)
        if sources.is_fraction(validation, validation_context, validation_weights):
            source, held_out = sources.split(source, validation, seed)
        else:
            held_out = _source(
                flow, "validation", validation, validation_context, validation_weights, num_epochs
            )
        if flow.has_batch_statistics:
            source = sources.with_statistics(source, batch_size, own_part())
        source, held_out = (
            sources.prepared(given, flow.context_dim > 0, match is not None, _host)
            for given in (source, held_out)
        )
    else:
        sources.check_no_rows(
            validation,
            weights=weights,
            validation_context=validation_context,
            validation_weights=validation_weights,
        )
        constant = _context(flow, context)
    objective = _Objective(flow, loss, constant)
    if compile:
        objective.compile()
    engine = _Engine(
        flow,
        objective,
        source,
        held_out,
        optimizer or partial(adam, weight_decay=weight_decay),
        max_grad_norm,
        sets_rate=optimizer is None,
        weight_decay=weight_decay,
        accumulate=accumulate,
        frozen=frozen,
        averages=ema is not None,
    )
    num_epochs, chunks, blocks = sources.plan(
        source,
        held_out,
        draw,
        match,
        num_epochs=num_epochs,
        num_steps=num_steps,
        batch_size=batch_size,
        seed=seed,
        part=engine.part,
        max_steps=sources.steps_per_call(state_every),
    )
    return engine.train(
        chunks,
        num_epochs,
        blocks,
        learning_rate=learning_rate,
        patience=patience,
        progress=progress,
        state_path=state_path,
        state_every=state_every,
        settings=run_settings(
            "torch_flows",
            architecture(flow),
            seed,
            max_grad_norm,
            state_path,
            sources.sizes(source, batch_size),
            ema=lambda: ema,
            weight_decay=lambda: weight_decay,
            accumulate=lambda: accumulate if accumulate > 1 else None,
            frozen=lambda: sorted(engine.frozen) or None,
            loss=loss.describe,
            energy=lambda: _probe_energy(flow, loss, batch_size),
            constant_context=lambda: None if constant is None else _host(constant).tolist(),
            **fingerprints(source, held_out, flow.context_dim > 0, _host),
            optimizer=engine.describe_optimizer,
            learning_rate=lambda: probe_rate(learning_rate) if engine.sets_rate else None,
        ),
        event_shape=flow.event_shape if isinstance(loss, NegativeLogLikelihood) else (),
        epoch_length=sources.MAX_STEPS_PER_CALL if source is None else None,
        ema=ema,
        callback=callback,
    )


@torch.inference_mode(False)
@torch.enable_grad()
def fit_to_energy(
    flow: Flow,
    energy: Callable[[Tensor], Tensor],
    *,
    context: Tensor | np.ndarray | None = None,
    num_steps: int = 1000,
    batch_size: int = 256,
    learning_rate: LearningRate | None = None,
    optimizer: MakeOptimizer | None = None,
    max_grad_norm: float | None = None,
    seed: int = 0,
    progress: bool = True,
    state_path: str | os.PathLike[str] | None = None,
    state_every: int | None = None,
) -> History:
    """Fit a flow to an unnormalised density exp(-energy) by reverse KL.

    Minimises E[log q(x) + energy(x)] over samples x of the flow, which is KL(q || p) minus the log of
    the target's normaliser: ``fit`` without data, with the loss ``ReverseKL(energy)``. Arguments not
    listed, results and errors as there.

    Args:
        energy: from x ``(batch_size, *event_shape)`` to ``(batch_size,)``, differentiable; of one
            written for one event, its ``torch.func.vmap``.
        context: one context ``(context_dim,)``, for a conditional flow.
        num_steps: gradient steps, each on ``batch_size`` fresh samples.
    """
    return fit(
        flow,
        None,
        context=context,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        max_grad_norm=max_grad_norm,
        seed=seed,
        progress=progress,
        state_path=state_path,
        state_every=state_every,
        loss=ReverseKL(energy),
        num_steps=num_steps,
    )


def _trainable(owner: str, flow: Flow) -> Flow:
    flow = getattr(flow, "_orig_mod", flow)  # of what torch.compile returns
    if not isinstance(flow, Dequantized):
        checks.instances(owner, "flow", [flow], Flow)
    trained = [p for p in flow.parameters() if p.requires_grad]
    training.check_weights(owner, type(flow).__name__, len(trained))
    if any(array.is_inference() for array in flow.state_dict().values()):
        raise ValueError(
            f"{owner} cannot train weights that were made in torch.inference_mode: build or load the "
            "flow outside of it."
        )
    return flow


def _source(
    flow: Flow, name: str, data: Any, context: Any, weights: Any, num_epochs: int
) -> Source:
    weight = next(flow.parameters())
    dtype = dtype_name(weight.dtype)
    expected = Expected(type(flow).__name__, flow.event_shape, flow.context_dim, dtype)

    def host(label: str, array: Any) -> np.ndarray:
        is_tensor = isinstance(array, Tensor)
        return to_numpy(array) if is_tensor else sources.host_array(label, array, dtype)

    is_mapped = isinstance(data, np.memmap)
    if not (is_mapped or sources.is_array(data)):
        return sources.stream(expected, name, data, context, weights, num_epochs, host)
    labels = [name, f"{name}'s context", f"{name}'s weights"]
    given = [(k, a) for k, a in zip(labels, (data, context, weights), strict=True) if a is not None]
    arrays = [
        array if isinstance(array, Tensor | np.memmap) else host(label, array)
        for label, array in given
    ]
    labels = [label for label, _ in given]
    if is_mapped:
        return sources.host_rows(expected, labels, tuple(map(_host, arrays)))
    expected.check(labels, [(tuple(array.shape), _dtype_name(array)) for array in arrays])
    tensors = [_tensor(array).to(weight.device) for array in arrays]
    for label, tensor in zip(labels, tensors, strict=True):
        finite = tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else tensor.isfinite()
        sources.check_rows(label, len(tensors[0]), finite.cpu().numpy())
    return Rows(tuple(tensors))


def _host(array: Any) -> np.ndarray:
    return to_numpy(array) if isinstance(array, Tensor) else np.asarray(array)


def _probe_energy(flow: Flow, loss: Loss, num_rows: int) -> list[float] | None:
    """Values by which the energies of two runs are compared."""
    energy = getattr(loss, "energy", None)
    if energy is None:
        return None
    weight = next(flow.parameters())
    points = np.random.default_rng(0).standard_normal((num_rows, *flow.base.event_shape))
    shape = (num_rows, *(size or 1 for size in flow.event_shape))
    x = from_numpy(points.reshape(shape)).to(weight.device, weight.dtype)
    return probe_energy(lambda x: to_numpy(energy(x).double()), x)


def _context(flow: Flow, context: Any) -> Tensor | None:
    if context is None:
        return None
    weight = next(flow.parameters())
    if not isinstance(context, Tensor):
        context = sources.host_array("context", context, dtype_name(weight.dtype))
    return _tensor(context).to(weight.device)


def _tensor(array: Tensor | np.ndarray) -> Tensor:
    """A tensor without a graph, without a copy where it can be."""
    if isinstance(array, Tensor):
        return array.clone() if array.is_inference() else array.detach()
    shareable = array.flags.writeable and array.dtype.isbuiltin
    return torch.from_numpy(array) if shareable else from_numpy(array)


def _dtype_name(array: Tensor | np.ndarray) -> str:
    return dtype_name(array.dtype) if isinstance(array, Tensor) else array.dtype.name


class _Objective(nn.Module):
    """The loss of every row of a batch, times its weight."""

    def __init__(self, flow: Flow, loss: Loss, context: Tensor | None) -> None:
        super().__init__()
        self.flow, self.loss, self.context = flow, loss, context

    def forward(self, rows: list[Tensor], noise: list[Tensor]) -> Tensor:
        return self.values(rows, noise).mean()

    def values(self, rows: list[Tensor], noise: list[Tensor]) -> Tensor:
        x, context, weights = sources.columns(rows, self.flow.context_dim > 0)
        values = self.loss(self.flow, x, context if rows else self.context, *noise)
        training.check_loss(len((rows or noise)[0]), getattr(values, "shape", None))
        return values if weights is None else weights * values


def _group_of(trained: tuple[str, Tensor]) -> tuple[bool, bool]:
    name, parameter = trained
    return is_sharded(parameter), not layouts.decays(name.rsplit(".", 1)[-1], parameter.ndim)


class _Engine:
    """Steps of an optimiser on a flow's parameters; the flow trains in place."""

    def __init__(
        self,
        flow: Flow,
        objective: _Objective,
        data: Source | None,
        validation: Source | None,
        optimizer: MakeOptimizer,
        max_grad_norm: float | None,
        *,
        sets_rate: bool,
        weight_decay: float | None,
        accumulate: int,
        frozen: str | Sequence[str],
        averages: bool,
    ) -> None:
        self.flow, self.max_grad_norm = flow.eval(), max_grad_norm
        self.objective, self.data, self.validation = objective, data, validation
        trained = [(name, p) for name, p in flow.named_parameters() if p.requires_grad]
        self.frozen = training.frozen_names(frozen, [name for name, _ in trained])
        self.held = [p for name, p in trained if name in self.frozen]
        trained = [(name, p) for name, p in trained if name not in self.frozen]
        training.check_weights("fit", type(flow).__name__, len(trained))
        # Sharded ones last, in groups of their own: no kernel takes both kinds at once.
        trained.sort(
            key=_group_of if weight_decay is not None else lambda item: is_sharded(item[1])
        )
        self.names, self.parameters = [name for name, _ in trained], [p for _, p in trained]
        self.sharded = any(map(is_sharded, self.parameters))
        self.sets_rate, self.accumulate, self.weight_decay = sets_rate, accumulate, weight_decay
        self.others = [p.detach().clone() for p in self.parameters] if averages else []
        training.check_callable("fit", "optimizer", optimizer)
        made = optimizer(self._groups(trained))
        self.optimizer, self.scheduler = made if isinstance(made, tuple) else (made, None)
        self.num_followed = [0, 0]  # steps and epochs
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        self.needs_closure = closure is not None and closure.default is closure.empty
        self.part = own_part()
        self.is_main = self.part.index == 0
        self.skips_non_finite = False

    def train(self, *args: Any, **options: Any) -> History:
        for p in self.held:
            p.requires_grad_(False)
        try:
            alone = self.part.count == 1
            self.loss = self.objective if alone else distributed(self.objective, self.sharded)
            return training.train(self, *args, **options)
        finally:
            for p in self.held:
                p.requires_grad_(True)

    def _groups(self, trained: list[tuple[str, nn.Parameter]]) -> Any:
        """The parameters; for Adam with weight decay, and where some are sharded, in groups."""
        decays = self.sets_rate and self.weight_decay is not None
        groups: dict[tuple[bool, ...], Any] = {}
        for name, p in trained:
            kind = _group_of((name, p))[: 1 + decays]
            groups.setdefault(kind, {"params": []})["params"].append(p)
            if decays:
                groups[kind]["weight_decay"] = 0.0 if kind[1] else self.weight_decay
        return list(groups.values()) if self.sharded or decays else self.parameters

    def gather(self, values: Sequence[int]) -> np.ndarray:
        return gather(values, self.parameters[0].device).cpu().numpy()

    def run(
        self, chunk: Chunk, rates: np.ndarray, shares: np.ndarray | None
    ) -> tuple[np.ndarray, bool]:
        self.flow.train()
        self._swap()
        losses = []
        try:
            rows, noise = map(self._to_device, chunk)
            for i, rate in enumerate(rates):
                losses.append(self._step([a[i] for a in rows], [a[i] for a in noise], float(rate)))
                if shares is not None:
                    move_averages(self.others, self.parameters, float(shares[i]))
        finally:
            self.flow.eval()
            self._swap()
        finite = torch.stack([local(p).isfinite().all() for p in self.parameters]).all()
        finite = mean_over_ranks(finite.double()) == 1
        return mean_over_ranks(torch.stack(losses).double()).cpu().numpy(), bool(finite)

    def _swap(self) -> None:
        """Exchange trained weights and their averages; the flow has the averages but within ``run``."""
        for p, other in zip(self.parameters, self.others, strict=False):
            kept = p.detach().clone()
            p.data.copy_(other)
            other.copy_(kept)

    def follow(self, history: History) -> None:
        losses = history.validation_loss or history.train_loss
        steps, epochs = self.num_followed
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            if self._follows_losses():
                for loss in losses[epochs:]:
                    self.scheduler.step(loss)
            elif self.scheduler is not None:
                for _ in history.step_losses[steps:]:  # of the run that is taken up
                    self.scheduler.step()
        self.num_followed = [len(history.step_losses), len(losses)]

    def _follows_losses(self) -> bool:
        return isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)

    def weights(self) -> Flow:
        return self.flow

    def _step(self, batch: list[Tensor], noise: list[Tensor], rate: float) -> Tensor:
        if self.sets_rate:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        parts, losses = self._parts(self._rows(self.data, batch), noise), []

        def evaluate() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            values = []
            for part in parts:
                value = self.loss(*part)
                value = value if len(parts) == 1 else value / len(parts)
                value.backward()
                values.append(value.detach())
            if self.sharded:
                self._average_gradients()
            if self.max_grad_norm is not None:
                clip_by_global_norm([p.grad for p in self.parameters], self.max_grad_norm)
            losses.append(sum(values[1:], values[0]))
            return losses[-1]

        if self.needs_closure:
            self.optimizer.step(evaluate)
        else:
            evaluate()
            self.optimizer.step()
        if self.scheduler is not None and not self._follows_losses():
            self.scheduler.step()
            self.num_followed[0] += 1
        torch.clear_autocast_cache()  # fit under torch.autocast would keep the old weights
        return losses[0]

    def _parts(
        self, rows: list[Tensor], noise: list[Tensor]
    ) -> list[tuple[list[Tensor], list[Tensor]]]:
        count = self.accumulate
        if count == 1:
            return [(rows, noise)]
        training.check_parts(len((rows or noise)[0]), count)
        parts = [[a.chunk(count) for a in arrays] for arrays in (rows, noise)]
        return [([a[i] for a in parts[0]], [a[i] for a in parts[1]]) for i in range(count)]

    def _average_gradients(self) -> None:
        """Of the weights that are not sharded, whose own hooks do it."""
        for p in self.parameters:
            if p.grad is not None and not is_sharded(p):
                p.grad = mean_over_ranks(p.grad)

    @torch.no_grad()
    def evaluate(self, block: Chunk, is_part: bool) -> float:
        rows, noise = map(self._to_device, block)
        values = self.objective.values(self._rows(self.validation, rows), noise)
        total = values.double().sum()
        return float(mean_over_ranks(total) * self.part.count if is_part else total)

    def set_statistics(self) -> None:
        if self.data is not None and self.flow.has_batch_statistics:
            block, _ = sources.statistics_rows(self.data)
            rows = self._rows(self.data, self._to_device(block))
            self.flow.set_statistics(*sources.columns(rows, self.flow.context_dim > 0)[:2])

    def _to_device(self, chunk: Arrays) -> list[Tensor]:
        weight = self.parameters[0]
        tensors = [from_numpy(array).to(weight.device) for array in chunk]
        return [t.to(weight.dtype) if t.is_floating_point() else t for t in tensors]

    @staticmethod
    def _rows(source: Source | None, batch: list[Tensor]) -> list[Tensor]:
        return [array[batch[0]] for array in source.arrays] if isinstance(source, Rows) else batch

    def snapshot(self) -> dict[str, Tensor]:
        return {name: array.detach().clone() for name, array in self.flow.state_dict().items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        self.flow.load_state_dict(snapshot)

    def describe_optimizer(self) -> list[Any]:
        """The optimiser's type and its options, by group of parameters."""

        def plain(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [plain(item) for item in value]
            if isinstance(value, Tensor):
                return float(value)
            known = value is None or isinstance(value, bool | int | float | str)
            return value if known else type(value).__name__

        hidden = {"params", "lr"} if self.sets_rate else {"params"}
        groups: list[Any] = []
        for group in self.optimizer.param_groups:
            options = {k: plain(v) for k, v in group.items() if k not in hidden}
            if options not in groups:  # sharded and other parameters have groups of their own
                groups.append(options)
        return [type(self.optimizer).__name__, *groups]

    def state_arrays(self, best: dict[str, Tensor] | None) -> dict[str, np.ndarray]:
        groups: dict[str, dict[str, Any]] = {
            "weights": self.flow.state_dict(),
            "best": best or {},
            "trained": dict(zip(self.names, self.others, strict=False)),
        }
        slots = {}
        for i, group in self.optimizer.state_dict()["state"].items():
            for name, value in group.items():
                slots[f"{self.names[i]}.{name}"] = self._slot(name, value)
        groups["optimizer"] = slots
        return {f"{g}.{name}": to_numpy(a) for g, t in groups.items() for name, a in t.items()}

    def _slot(self, name: str, value: Any) -> Tensor:
        if isinstance(value, Tensor | bool | int | float):
            return torch.as_tensor(value)
        raise CheckpointError(
            f"{type(self.optimizer).__name__} keeps a {type(value).__name__} as {name!r}, which the "
            "state of a training run cannot hold: train without state_path."
        )

    def state_groups(self) -> list[Group]:
        weights = {
            name: TensorInfo(dtype_name(array.dtype), tuple(array.shape))
            for name, array in self.flow.state_dict().items()
        }
        groups = weight_groups(weights, [n for n, _ in zip(self.names, self.others, strict=False)])
        try:
            slots = self._expected_slots()
        except Exception:  # an optimiser of the user's own, run where it may not run
            return [*groups, Group(None)]
        for i, group in slots.items():
            infos = {
                f"optimizer.{self.names[i]}.{name}": TensorInfo(
                    dtype_name(value.dtype), tuple(value.shape)
                )
                for name, value in group.items()
            }
            groups.append(Group(infos, optional=True))
        return groups

    def _expected_slots(self) -> dict[int, dict[str, Tensor]]:
        """What the optimiser keeps after a step, found out with parameters that hold nothing."""
        stand_ins: dict[int, Any] = {}
        for p in self.parameters:
            stand_in = torch.empty(p.shape, dtype=p.dtype, device="meta")
            stand_ins[id(p)] = nn.Parameter(stand_in)
            stand_ins[id(p)].grad = torch.empty_like(stand_in)
        optimizer = copy.deepcopy(self.optimizer, stand_ins)
        vars(optimizer).pop("step", None)  # what a scheduler puts there steps the original
        for group in optimizer.param_groups:
            group.update({name: False for name in ("fused", "foreach") if name in group})
        optimizer.step()
        return {
            i: {name: self._slot(name, value) for name, value in group.items()}
            for i, group in optimizer.state_dict()["state"].items()
        }

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor] | None:
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "trained": {}}
        slots: dict[int, dict[str, Tensor]] = {}
        for path, array in arrays.items():
            group, name = path.split(".", 1)
            if group == "optimizer":
                owner, name = name.rsplit(".", 1)
                slots.setdefault(self.names.index(owner), {})[name] = from_numpy(array)
            else:
                groups[group][name] = from_numpy(array)
        like = self.flow.state_dict()
        for found in groups.values():
            found.update({name: sharded_like(a, like[name]) for name, a in found.items()})
        for i, slot in slots.items():
            slot.update({name: sharded_like(a, self.parameters[i]) for name, a in slot.items()})
        self.restore(groups["weights"])
        for name, other in zip(self.names, self.others, strict=False):
            other.copy_(groups["trained"][name])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": slots})
        return groups["best"] or None


def own_part() -> Part:
    """The part of every batch that is this rank's."""
    return Part(rank(), num_ranks(), num_ranks())


def distributed(loss: nn.Module, sharded: bool) -> nn.Module:
    """The loss of one rank's rows, from rank 0's weights, whose gradients are averaged over the ranks.

    Where weights are sharded already (``fully_shard``), these are left to their own hooks.
    """
    for array in loss.state_dict().values():
        if not is_sharded(array):
            dist.broadcast(array, 0)
    if sharded:
        return loss
    from torch.nn.parallel import DistributedDataParallel

    # From here on buffers agree: what goes into them is synchronised, or the same everywhere.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(loss, broadcast_buffers=False, static_graph=True)


def adam(parameters: Any, weight_decay: float | None = None) -> torch.optim.Optimizer:
    """PyTorch's Adam in one fused kernel; ``fit`` sets its learning rate at every step.

    Args:
        parameters: or groups of them, with the weight decay of each.
        weight_decay: ``None`` for none.
    """
    if weight_decay is None:
        return torch.optim.Adam(parameters, fused=True)
    return torch.optim.AdamW(parameters, fused=True)


@torch.no_grad()
def move_averages(averages: Sequence[Tensor], weights: Sequence[Tensor], share: float) -> None:
    """averages + share * (weights - averages), in place, rounded after each operation as in JAX."""
    own = [local(average) for average in averages]
    moves = torch._foreach_sub([local(weight) for weight in weights], own)
    torch._foreach_mul_(moves, share)
    torch._foreach_add_(own, moves)


def clip_by_global_norm(gradients: Iterable[Tensor | None], max_norm: float) -> None:
    """Scale all gradients, in place, by max_norm / max(norm, max_norm), norm that of all of them."""
    present = [g for g in gradients if g is not None]
    parts = [local(g) for g in present]
    norms = torch.stack(torch._foreach_norm(parts))
    if any(is_sharded(g) for g in present):
        sharded = torch.tensor([is_sharded(g) for g in present], device=norms.device)
        everywhere = (mean_over_ranks(norms.square()) * num_ranks()).sqrt()
        norms = torch.where(sharded, everywhere, norms)
    norm = torch.linalg.vector_norm(norms)
    torch._foreach_mul_(parts, max_norm / norm.clamp_min(max_norm))
