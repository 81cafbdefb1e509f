"""Training: maximum likelihood on data, and reverse KL to an energy."""

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from flow_bridge import checks, sources, training
from flow_bridge.architecture import architecture
from flow_bridge.checkpoint import TensorInfo
from flow_bridge.errors import CheckpointError
from flow_bridge.sources import Chunk, Expected, Part, Rows, Source
from flow_bridge.training import History, LearningRate
from flow_bridge.training_state import (
    Group,
    fingerprint,
    probe_energy,
    probe_rate,
    run_settings,
    weight_groups,
)
from torch_flows.checkpoint import from_numpy, to_numpy
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

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Data = Tensor | np.ndarray | Iterable[Any] | Callable[[int], Iterable[Any]]


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    flow: Flow,
    data: Data,
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
) -> History:
    """Fit a flow by maximum likelihood: minimise the mean of -log_prob over minibatches.

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
            batches, or a function from the epoch (from 0) to one: each an array, or a pair of x and its
            context.
        context: shape ``(num_rows, context_dim)``, for a conditional flow.
        validation: the fraction of rows held out, or the validation data; 0 for none. An iterable is not
            split.
        validation_context: the context of the validation data, where those are given as an array.
        num_epochs: passes over the data.
        batch_size: rows per step, of all ranks together; at most all of them. An iterable has its own.
        learning_rate: of Adam, 1e-3 if not given; a number, or a function from the step (from 0) to one.
        optimizer: makes another optimiser from the parameters, in place of Adam and its rate. One that
            evaluates the loss itself (``LBFGS``) gets a closure.
        max_grad_norm: gradients of a larger global norm are scaled down to it.
        patience: stop after this many epochs without a better validation loss.
        seed: decides the split and the batches of an array, which are the same in both backends.
        progress: show a progress bar.
        state_path: a file that holds the state after every epoch. If it exists, training goes on
            from there and ends with the same weights as an uninterrupted run.
        state_every: write the state also within an epoch, after this many steps.

    Returns:
        The losses.

    Raises:
        ValueError: for data that are empty, masked, not finite, or of a wrong shape, for arguments that
            make no sense, and for batches that do not split evenly over the ranks.
        TypeError: for data of another dtype than the weights.
        NonFiniteError: if the loss becomes NaN or infinite.
        CheckpointError: if ``state_path`` holds the state of another run.
    """
    seed, learning_rate, max_grad_norm, num_epochs, batch_size, patience, state_every = (
        training.check_options(
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
        )
    )
    flow = _trainable("fit", flow)
    source = _source(flow, "data", data, context, num_epochs)
    if sources.is_fraction(validation, validation_context):
        source, held_out = sources.split(source, validation, seed)
    else:
        held_out = _source(flow, "validation", validation, validation_context, num_epochs)
    if flow.bijector.has_batch_statistics:
        source = sources.with_statistics(source, batch_size, own_part())
    engine = _Engine(flow, _NegativeLogLikelihood(flow), source, held_out, optimizer, max_grad_norm)
    return training.train(
        engine,
        sources.source_chunks(
            source, batch_size, seed, engine.part, sources.steps_per_call(state_every)
        ),
        num_epochs,
        held_out,
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
            loss=lambda: "negative log-likelihood",
            data=lambda: fingerprint(source, 0, _host),
            context=lambda: fingerprint(source, 1, _host),
            validation_data=lambda: fingerprint(held_out, 0, _host),
            validation_context=lambda: fingerprint(held_out, 1, _host),
            optimizer=engine.describe_optimizer,
            learning_rate=lambda: probe_rate(learning_rate) if engine.sets_rate else None,
        ),
        event_shape=flow.event_shape,
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
    the target's normaliser. Arguments not listed, results and errors as in ``fit``.

    Args:
        energy: from x ``(batch_size, *event_shape)`` to ``(batch_size,)``, differentiable; of one
            written for one event, its ``torch.func.vmap``.
        context: one context ``(context_dim,)``, for a conditional flow.
        num_steps: gradient steps, each on ``batch_size`` fresh samples.
    """
    seed, learning_rate, max_grad_norm, num_steps, batch_size, state_every = training.check_options(
        "fit_to_energy",
        optimizer,
        seed=seed,
        learning_rate=learning_rate,
        max_grad_norm=max_grad_norm,
        state_path=state_path,
        num_steps=num_steps,
        batch_size=batch_size,
        state_every=state_every,
    )
    flow = _trainable("fit_to_energy", flow)
    training.check_callable("fit_to_energy", "energy", energy)
    checks.reparameterized("fit_to_energy", type(flow.base).__name__, flow.base.reparameterized)
    num_epochs, batches = sources.noise_batches(
        flow.base.noise, num_steps, (batch_size, *flow.base.noise_shape), seed
    )
    loss = _ReverseKL(flow, energy, _context(flow, context))
    engine = _Engine(flow, loss, None, None, optimizer, max_grad_norm)
    return training.train(
        engine,
        sources.array_chunks(batches, engine.part, sources.steps_per_call(state_every)),
        num_epochs,
        None,
        learning_rate=learning_rate,
        patience=None,
        progress=progress,
        state_path=state_path,
        state_every=state_every,
        settings=run_settings(
            "torch_flows",
            architecture(flow),
            seed,
            max_grad_norm,
            state_path,
            {"batch_size": batch_size},
            loss=lambda: "reverse KL",
            energy=lambda: probe_energy(
                lambda x: to_numpy(energy(x).double()), _points(flow, batch_size)
            ),
            context=lambda: None if loss.context is None else _host(loss.context).tolist(),
            optimizer=engine.describe_optimizer,
            learning_rate=lambda: probe_rate(learning_rate) if engine.sets_rate else None,
        ),
        epoch_length=sources.MAX_STEPS_PER_CALL,
    )


def _trainable(owner: str, flow: Flow) -> Flow:
    flow = getattr(flow, "_orig_mod", flow)  # of what torch.compile returns
    checks.instances(owner, "flow", [flow], Flow)
    trained = [p for p in flow.parameters() if p.requires_grad]
    training.check_weights(owner, type(flow).__name__, len(trained))
    if any(array.is_inference() for array in flow.state_dict().values()):
        raise ValueError(
            f"{owner} cannot train weights that were made in torch.inference_mode: build or load the "
            "flow outside of it."
        )
    return flow


def _source(flow: Flow, name: str, data: Any, context: Any, num_epochs: int) -> Source:
    weight = next(flow.parameters())
    dtype = dtype_name(weight.dtype)
    expected = Expected(type(flow).__name__, flow.event_shape, flow.context_dim, dtype)

    def host(label: str, array: Any) -> np.ndarray:
        is_tensor = isinstance(array, Tensor)
        return to_numpy(array) if is_tensor else sources.host_array(label, array, dtype)

    labels = name, f"{name}'s context"
    if isinstance(data, np.memmap):
        given = None if context is None else host(labels[1], context)
        return sources.host_rows(expected, name, data, given)
    if not sources.is_array(data):
        return sources.stream(expected, name, data, context, num_epochs, host)
    arrays = [
        array if isinstance(array, Tensor) else host(label, array)
        for label, array in zip(labels, (data, context), strict=True)
        if array is not None
    ]
    expected.check(name, [(tuple(array.shape), _dtype_name(array)) for array in arrays])
    tensors = [_tensor(array).to(weight.device) for array in arrays]
    for label, tensor in zip(labels, tensors, strict=False):
        finite = tensor.isfinite().flatten(1).all(1).cpu().numpy()
        sources.check_rows(label, len(tensors[0]), finite)
    return Rows(tuple(tensors))


def _host(array: Any) -> np.ndarray:
    return to_numpy(array) if isinstance(array, Tensor) else np.asarray(array)


def _points(flow: Flow, num_rows: int) -> Tensor:
    """Where the energies of two runs are compared."""
    weight = next(flow.parameters())
    points = np.random.default_rng(0).standard_normal((num_rows, *flow.base.event_shape))
    shape = (num_rows, *(size or 1 for size in flow.event_shape))
    return from_numpy(points.reshape(shape)).to(weight.device, weight.dtype)


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


class _NegativeLogLikelihood(nn.Module):
    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, *batch: Tensor) -> Tensor:
        return -self.flow.log_prob(*batch).mean()


class _ReverseKL(nn.Module):
    def __init__(
        self, flow: Flow, energy: Callable[[Tensor], Tensor], context: Tensor | None
    ) -> None:
        super().__init__()
        self.flow, self.energy, self.context = flow, energy, context

    def forward(self, noise: Tensor) -> Tensor:
        x, log_prob = self.flow.from_noise(noise, self.context)
        energy = self.energy(x)
        training.check_energy(tuple(x.shape), getattr(energy, "shape", None))
        return (log_prob + energy).mean()


class _Engine:
    """Steps of an optimiser on a flow's parameters; the flow trains in place."""

    def __init__(
        self,
        flow: Flow,
        loss: nn.Module,
        data: Source | None,
        validation: Source | None,
        optimizer: MakeOptimizer | None,
        max_grad_norm: float | None,
    ) -> None:
        self.flow, self.max_grad_norm = flow.eval(), max_grad_norm
        self.data, self.validation = data, validation
        trained = [(name, p) for name, p in flow.named_parameters() if p.requires_grad]
        # Sharded ones last, in a group of their own: no kernel takes both kinds at once.
        trained.sort(key=lambda item: is_sharded(item[1]))
        self.names, self.parameters = [name for name, _ in trained], [p for _, p in trained]
        self.sharded = any(map(is_sharded, self.parameters))
        self.sets_rate = optimizer is None
        training.check_callable("fit", "optimizer", optimizer or adam)
        self.optimizer = (optimizer or adam)(self._groups())
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        self.needs_closure = closure is not None and closure.default is closure.empty
        self.part = own_part()
        self.is_main = self.part.index == 0
        self.loss = loss if self.part.count == 1 else distributed(loss, self.sharded)

    def _groups(self) -> Any:
        if not self.sharded:
            return self.parameters
        kinds = [[p for p in self.parameters if is_sharded(p) == kind] for kind in (False, True)]
        return [{"params": parameters} for parameters in kinds if parameters]

    def gather(self, values: Sequence[int]) -> np.ndarray:
        return gather(values, self.parameters[0].device).cpu().numpy()

    def run(self, chunk: Chunk, rates: np.ndarray) -> tuple[np.ndarray, bool]:
        self.flow.train()
        try:
            steps = zip(*self._to_device(chunk), rates, strict=True)
            losses = [self._step(batch, float(rate)) for *batch, rate in steps]
        finally:
            self.flow.eval()
        finite = torch.stack([local(p).isfinite().all() for p in self.parameters]).all()
        finite = mean_over_ranks(finite.double()) == 1
        return mean_over_ranks(torch.stack(losses).double()).cpu().numpy(), bool(finite)

    def _step(self, batch: list[Tensor], rate: float) -> Tensor:
        if self.sets_rate:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        rows, losses = self._rows(self.data, batch), []

        def evaluate() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss(*rows)
            loss.backward()
            if self.sharded:
                self._average_gradients()
            if self.max_grad_norm is not None:
                clip_by_global_norm([p.grad for p in self.parameters], self.max_grad_norm)
            losses.append(loss.detach())
            return loss

        if self.needs_closure:
            self.optimizer.step(evaluate)  # type: ignore[arg-type]
        else:
            evaluate()
            self.optimizer.step()
        torch.clear_autocast_cache()  # fit under torch.autocast would keep the old weights
        return losses[0]

    def _average_gradients(self) -> None:
        """Of the weights that are not sharded, whose own hooks do it."""
        for p in self.parameters:
            if p.grad is not None and not is_sharded(p):
                p.grad = mean_over_ranks(p.grad)

    @torch.no_grad()
    def evaluate(self, block: Chunk, is_part: bool) -> float:
        batch = self._rows(self.validation, self._to_device(block))
        total = -self.flow.log_prob(*batch).double().sum()
        return float(mean_over_ranks(total) * self.part.count if is_part else total)

    def set_statistics(self) -> None:
        if self.data is not None and self.flow.bijector.has_batch_statistics:
            block, _ = sources.statistics_rows(self.data)
            self.flow.set_statistics(*self._rows(self.data, self._to_device(block)))

    def _to_device(self, chunk: Chunk) -> list[Tensor]:
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
        groups = {"weights": self.flow.state_dict(), "best": best or {}}
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
        groups = weight_groups(weights)
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
        for group in optimizer.param_groups:
            group.update({name: False for name in ("fused", "foreach") if name in group})
        optimizer.step()
        return {
            i: {name: self._slot(name, value) for name, value in group.items()}
            for i, group in optimizer.state_dict()["state"].items()
        }

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor] | None:
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}}
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


def adam(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """PyTorch's Adam in one fused kernel; ``fit`` sets its learning rate at every step."""
    return torch.optim.Adam(parameters, fused=True)


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
