"""Training: a loss, maximum likelihood unless another is given, on data or on what it draws itself."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, lru_cache, partial
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from flow_bridge import checks, layouts, sources, training
from flow_bridge.architecture import architecture
from flow_bridge.checkpoint import TensorInfo
from flow_bridge.sources import Arrays, Chunk, Expected, Rows, Source
from flow_bridge.training import History, LearningRate
from flow_bridge.training_state import (
    Group,
    fingerprints,
    probe_energy,
    probe_rate,
    run_settings,
    weight_groups,
)
from flow_bridge.weights import jax_to_torch, torch_shapes, torch_to_jax
from jax_flows.checkpoint import from_numpy
from jax_flows.dequantization import DequantizationBound, Dequantized
from jax_flows.devices import Devices
from jax_flows.flows import Flow
from jax_flows.losses import Loss, NegativeLogLikelihood, ReverseKL, as_loss, draws
from jax_flows.variables import Variables, own_variables, weight_dtype

Data = Array | np.ndarray | Iterable[Any] | Callable[[int], Iterable[Any]]
LossFunction = Callable[..., Array]
"""From the flow, its variables, x and its context to one number for each row; a ``Loss`` may also draw
noise, and update batch statistics."""

NUM_PROGRAMS = 16
"""Of each kind of compiled program, how many are kept."""


def fit(
    flow: Flow,
    variables: Variables,
    data: Data | None,
    *,
    context: Array | np.ndarray | None = None,
    validation: float | Data = 0.1,
    validation_context: Array | np.ndarray | None = None,
    num_epochs: int = 100,
    batch_size: int = 256,
    learning_rate: LearningRate | None = None,
    optimizer: optax.GradientTransformation | None = None,
    max_grad_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    progress: bool = True,
    state_path: str | os.PathLike[str] | None = None,
    state_every: int | None = None,
    mesh: Mesh | None = None,
    loss: LossFunction | None = None,
    weights: Array | np.ndarray | None = None,
    validation_weights: Array | np.ndarray | None = None,
    num_steps: int | None = None,
    ema: float | None = None,
    weight_decay: float | None = None,
    accumulate: int = 1,
    callback: Callable[[History, dict[str, Any]], object] | None = None,
    frozen: str | Sequence[str] = (),
) -> tuple[dict[str, Any], History]:
    """Fit a flow: minimise the mean of a loss, -log_prob unless another is given, over minibatches.

    Up to 200 steps run in one compiled call, without a round trip to the host. Its program serves
    numbers of steps and rows up to the next power of two, above 4,096 rows up to an eighth more; batches
    of another length compile once more. The programs of the last 16 flows, optimisers and energies are
    kept.

    An exception that ends training (``KeyboardInterrupt``, what an iterable raises) has the attribute
    ``variables``: the best ones so far, or without validation data those of the last completed call.

    What normalises with batch statistics (``BatchNorm``) is evaluated with those of the training data,
    taken anew where an epoch ends: of all rows, or of 32,768 evenly spread ones (of fewer where those
    are over 64 MiB), or of the first batches that an iterable gives in an epoch. Batches of one row have no
    batch statistics, and are left out.

    With a ``mesh`` its devices train one model together, from the variables of process 0 and on the
    trajectory of one device: the rows of every batch are sharded over the mesh's axis ``"data"``, or its
    first one, and the variables replicated. Where the mesh spans several processes
    (``jax.distributed``), each is given the same array and takes its part of each batch, or an iterable
    of its own part of the batches. The first process writes the state, all read it.

    Args:
        flow: the flow.
        variables: where to start; left as they are.
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
        batch_size: rows per step, of all devices together; at most all of them. An iterable has its own.
        learning_rate: of Adam, 1e-3 if not given; a number, or a function from the step (from 0) to one.
        optimizer: another Optax optimiser, in place of Adam and its rate. One with extra arguments
            (``reduce_on_plateau``, ``lbfgs``) gets ``value``, ``grad`` and ``value_fn``.
        max_grad_norm: gradients of a larger global norm are scaled down to it.
        patience: stop after this many epochs without a better validation loss.
        seed: decides the split and the batches of an array, which are the same in both backends.
        progress: show a progress bar.
        state_path: a file that holds the state after every epoch. If it exists, training goes on
            from there and ends with the same weights as an uninterrupted run.
        state_every: write the state also within an epoch, after this many steps.
        mesh: the devices to train on; the default device if not given.
        loss: a ``Loss`` such as ``ReverseKL(energy)``, or a function of the flow, its variables, x and the
            context (``None`` without one), to one number for each row, ``(rows,)``, or to a pair of these
            and the new ``batch_stats``, as ``log_prob_and_update`` gives them.
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
        callback: called after every epoch with the ``History`` so far and the variables;
            training stops where it returns what is true.
        frozen: names of weights, or of modules that hold them, as files have them
            (``"bijector.bijectors.0"``): these stay as they are.

    Returns:
        The variables of the best validation loss (the last ones without validation), and the losses.

    Raises:
        ValueError: for data that are empty, masked, not finite, or of a wrong shape, for arguments that
            make no sense, and for batches that do not split evenly over the devices.
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
    variables = _trainable("fit", flow, variables, data, context, weights)
    devices = Devices(mesh)
    if loss is None and isinstance(flow, Dequantized):
        loss = DequantizationBound()
    loss = as_loss(loss)
    checks.instances(type(loss).__name__, "flow", [flow], loss.models)
    loss.check(flow)
    training.check_data(type(loss).__name__, loss.needs_data, data is not None, num_steps)
    draw, match = draws(loss, flow)
    source, held_out, constant = None, None, None
    if data is not None:
        source = _source(flow, variables, "data", data, context, weights, num_epochs)
        if sources.is_fraction(validation, validation_context, validation_weights):
            source, held_out = sources.split(source, validation, seed)
        else:
            held_out = _source(
                flow,
                variables,
                "validation",
                validation,
                validation_context,
                validation_weights,
                num_epochs,
            )
        if flow.has_batch_statistics:
            source = sources.with_statistics(source, batch_size, devices.part)
        source, held_out = (
            sources.prepared(given, flow.context_dim > 0, match is not None, np.asarray)
            for given in (source, held_out)
        )
    else:
        sources.check_no_rows(
            validation,
            weights=weights,
            validation_context=validation_context,
            validation_weights=validation_weights,
        )
        if context is not None:
            constant = sources.host_array("context", context, weight_dtype(variables).name)
    objective = _Objective(flow, Static(loss))
    engine = _Engine(
        objective,
        variables,
        source,
        held_out,
        constant,
        adam(weight_decay) if optimizer is None else optimizer,
        max_grad_norm,
        devices,
        sets_rate=optimizer is None,
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
            "jax_flows",
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
            energy=lambda: _probe_energy(flow, variables, loss, batch_size),
            constant_context=lambda: None if constant is None else constant.tolist(),
            **fingerprints(source, held_out, flow.context_dim > 0, np.asarray),
            optimizer=engine.describe_optimizer,
            learning_rate=lambda: probe_rate(learning_rate) if engine.sets_rate else None,
        ),
        event_shape=flow.event_shape if isinstance(loss, NegativeLogLikelihood) else (),
        epoch_length=sources.MAX_STEPS_PER_CALL if source is None else None,
        ema=ema,
        callback=callback,
    )


def fit_to_energy(
    flow: Flow,
    variables: Variables,
    energy: Callable[[Array], Array],
    *,
    context: Array | np.ndarray | None = None,
    num_steps: int = 1000,
    batch_size: int = 256,
    learning_rate: LearningRate | None = None,
    optimizer: optax.GradientTransformation | None = None,
    max_grad_norm: float | None = None,
    seed: int = 0,
    progress: bool = True,
    state_path: str | os.PathLike[str] | None = None,
    state_every: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[dict[str, Any], History]:
    """Fit a flow to an unnormalised density exp(-energy) by reverse KL.

    Minimises E[log q(x) + energy(x)] over samples x of the flow, which is KL(q || p) minus the log of
    the target's normaliser: ``fit`` without data, with the loss ``ReverseKL(energy)``. Arguments not
    listed, results and errors as there.

    Args:
        energy: from x ``(batch_size, *event_shape)`` to ``(batch_size,)``, differentiable; of one
            written for one event, its ``jax.vmap``.
        context: one context ``(context_dim,)``, for a conditional flow.
        num_steps: gradient steps, each on ``batch_size`` fresh samples.
    """
    return fit(
        flow,
        variables,
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
        mesh=mesh,
        loss=ReverseKL(energy),
        num_steps=num_steps,
    )


def _trainable(owner: str, flow: Flow, variables: Variables, *arrays: Any) -> dict[str, Any]:
    if not isinstance(flow, Dequantized):
        checks.instances(owner, "flow", [flow], Flow)
    leaves = [*jax.tree.leaves(variables), *arrays]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        raise TypeError(
            f"{owner} reads its losses and cannot run inside jax.vmap, jax.jit or jax.grad: call it for "
            f"one set of variables after the other, {owner}(flow, jax.tree.map(lambda leaf: leaf[i], "
            "variables), ...), which all share one program."
        )
    own = own_variables(flow, variables)
    training.check_weights(owner, type(flow).__name__, len(jax.tree.leaves(own["params"])))
    return own


def _probe_energy(
    flow: Flow, variables: Variables, loss: Loss, num_rows: int
) -> list[float] | None:
    """Values by which the energies of two runs are compared."""
    energy = getattr(loss, "energy", None)
    if energy is None:
        return None
    points = np.random.default_rng(0).standard_normal((num_rows, *flow.base.event_shape))
    shape = (num_rows, *(size or 1 for size in flow.event_shape))
    return probe_energy(
        jax.jit(energy), jnp.asarray(points.reshape(shape), weight_dtype(variables))
    )


def _source(
    flow: Flow,
    variables: Variables,
    name: str,
    data: Any,
    context: Any,
    weights: Any,
    num_epochs: int,
) -> Source:
    dtype = weight_dtype(variables).name
    expected = Expected(type(flow).__name__, flow.event_shape, flow.context_dim, dtype)

    def host(label: str, array: Any) -> np.ndarray:
        return sources.host_array(label, array, dtype)

    is_mapped = isinstance(data, np.memmap)
    if not (is_mapped or sources.is_array(data)):
        return sources.stream(expected, name, data, context, weights, num_epochs, host)
    labels = [name, f"{name}'s context", f"{name}'s weights"]
    given = [(k, a) for k, a in zip(labels, (data, context, weights), strict=True) if a is not None]
    arrays = [
        array if isinstance(array, np.memmap) else host(label, array) for label, array in given
    ]
    labels = [label for label, _ in given]
    if is_mapped:
        return sources.host_rows(expected, labels, tuple(arrays))
    expected.check(labels, sources.described(arrays))
    for label, array in zip(labels, arrays, strict=True):
        sources.check_rows(label, len(arrays[0]), sources.finite_rows(array))
    return Rows(tuple(arrays))


class Static:
    """A value that a program is made for: equal to another one where their programs are the same.

    Optax makes its functions anew at every call; they are told by their code and what they close over,
    everything else by being the same object.
    """

    def __init__(self, value: Any) -> None:
        self.value, self.key = value, _key(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class _Same:
    """Equal to what holds the same object, which therefore lives as long."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _key(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return type(value), value
    if isinstance(value, tuple):
        return type(value), *map(_key, value)
    if isinstance(value, Loss) and is_dataclass(value):
        return type(value), *(_key(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, FunctionType) and str(value.__module__).startswith("optax."):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = value.__defaults__ or (), tuple((value.__kwdefaults__ or {}).items())
        return value.__code__, _key(defaults), *map(_key, cells)
    return _Same(value)


@dataclass(frozen=True)
class _Objective:
    """The loss of every row of a batch, times its weight."""

    flow: Flow
    loss: Static

    def mean_and_update(
        self, variables: Variables, rows: list[Array], noise: list[Array], context: Array | None
    ) -> tuple[Array, Variables]:
        x, context, weights = self._columns(rows, context)
        values, stats = self.loss.value.call_and_update(self.flow, variables, x, context, *noise)
        return self._weighted(values, weights, rows or noise).mean(), stats

    def values(self, variables: Variables, rows: list[Array], noise: list[Array]) -> Array:
        x, context, weights = self._columns(rows, None)
        values = self.loss.value(self.flow, variables, x, context, *noise)
        return self._weighted(values, weights, rows)

    def _columns(self, rows: list[Array], context: Array | None) -> tuple[Any, Any, Any]:
        columns = sources.columns(rows, self.flow.context_dim > 0)
        return columns if rows else (None, context, None)

    @staticmethod
    def _weighted(values: Any, weights: Array | None, batch: list[Array]) -> Array:
        training.check_loss(len(batch[0]), getattr(values, "shape", None))
        return values if weights is None else weights * values


@lru_cache(NUM_PROGRAMS)
def _sum_loss(objective: _Objective) -> Callable[..., Array]:
    @jax.jit
    def sum_loss(
        variables: Variables,
        batch: list[Array],
        noise: list[Array],
        data: list[Array],
        counts: Array,
    ) -> Array:
        values = objective.values(variables, _rows(data, batch), noise)
        dtype = jnp.promote_types(values.dtype, jnp.float32)
        return jnp.where(counts, values, 0).sum(dtype=dtype)

    return sum_loss


@lru_cache(NUM_PROGRAMS)
def _set_statistics(flow: Flow) -> Callable[..., dict[str, Any]]:
    @jax.jit
    def set_statistics(
        variables: Variables, batch: list[Array], data: list[Array], counts: Array
    ) -> dict[str, Any]:
        x, context, _ = sources.columns(_rows(data, batch), flow.context_dim > 0)
        return flow.set_statistics(variables, x, context, counts.astype(x.dtype))

    return set_statistics


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    """The array with its first row repeated at its end."""
    missing = length - len(array)
    return np.concatenate([array, np.repeat(array[:1], missing, 0)]) if missing else array


def _round_up(length: int) -> int:
    """To the next power of two, above 4096 by an eighth or less: few programs for all lengths."""
    bits = max(0, length - 1).bit_length()
    step = 1 << (bits if bits <= 12 else bits - 4)
    return -(-length // step) * step


def _rows(data: list[Array], batch: list[Array]) -> list[Array]:
    """The rows of a batch, which holds their numbers where the data are on the device."""
    return [array[batch[0]] for array in data] if data else batch


class _Engine:
    """Steps of an optimiser on a flow's variables."""

    def __init__(
        self,
        objective: _Objective,
        variables: Variables,
        data: Source | None,
        validation: Source | None,
        context: np.ndarray | None,
        optimizer: optax.GradientTransformation,
        max_grad_norm: float | None,
        devices: Devices,
        *,
        sets_rate: bool,
        accumulate: int,
        frozen: str | Sequence[str],
        averages: bool,
    ) -> None:
        self.flow, self.objective, self.source = objective.flow, objective, data
        self.max_grad_norm = max_grad_norm
        self.context = None if context is None else devices.replicate(context)
        self.sets_rate, self.accumulate = sets_rate, accumulate
        self.optimizer = Static(_transformation(optimizer))
        shapes = torch_shapes({"params": variables["params"]})
        self.frozen = training.frozen_names(frozen, shapes)
        training.check_weights("fit", type(self.flow).__name__, len(shapes) - len(self.frozen))
        self.trains = None
        if self.frozen:
            trains = {k: np.full(shape, k not in self.frozen, "f4") for k, shape in shapes.items()}
            params = torch_to_jax(trains, {"params": variables["params"]})["params"]
            self.trains = devices.replicate(jax.tree.map(lambda a: a > 0, params))
        self.devices, self.part, self.is_main = devices, devices.part, devices.is_main
        self.data, self.validation = (
            devices.replicate([_padded(a, _round_up(len(a))) for a in source.arrays])
            if isinstance(source, Rows)
            else []
            for source in (data, validation)
        )
        optimizer_state = self.optimizer.value.init(variables["params"])
        self.variables, self.optimizer_state = self.devices.replicate(
            self.devices.of_first((variables, optimizer_state))
        )
        self.trained = self.variables["params"] if averages else None  # the others are averages
        names = _type_names(self.optimizer_state)
        self.skips_non_finite = "ApplyIfFiniteState" in names

    def train(self, *args: Any, **options: Any) -> tuple[dict[str, Any], History]:
        start = self.variables
        try:
            history = training.train(self, *args, **options)
        except BaseException as error:
            error.variables = self.devices.own(self.variables)  # type: ignore[attr-defined]
            if self.variables is not start:
                error.add_note(
                    "The weights so far are the attribute `variables` of this exception."
                )
            raise
        return self.devices.own(self.variables), history

    def gather(self, values: Sequence[int]) -> np.ndarray:
        return self.devices.gather(values)

    def run(
        self, chunk: Chunk, rates: np.ndarray, shares: np.ndarray | None
    ) -> tuple[np.ndarray, bool]:
        dtype = weight_dtype(self.variables)
        rates = rates if self.sets_rate else -np.ones_like(rates)
        num_steps, length = len(rates), min(_round_up(len(rates)), sources.MAX_STEPS_PER_CALL)
        training.check_parts(chunk.first.shape[1], self.accumulate)
        run_steps = _run_steps(self.objective, self.optimizer, self.max_grad_norm, self.accumulate)
        if shares is not None:
            shares = self.devices.replicate(_padded(shares, length).astype(dtype))
        state, losses, finite = self.devices.keep_replicated(
            run_steps(
                (self.variables, self.trained, self.optimizer_state),
                *(
                    [self.devices.shard(_padded(array, length), 1, dtype) for array in arrays]
                    for arrays in chunk
                ),
                self.devices.replicate(_padded(-rates, length).astype(dtype)),
                shares,
                self.data,
                self.context,
                self.trains,
                num_steps,
            )
        )
        self.variables, self.trained, self.optimizer_state = state
        return np.asarray(losses, np.float64)[:num_steps], bool(finite)

    def follow(self, history: History) -> None:
        pass

    def weights(self) -> dict[str, Any]:
        return self.devices.own(self.variables)

    def evaluate(self, block: Chunk, is_part: bool) -> float:
        batch, counts = self._block((*block.rows, *block.noise), is_part)
        rows, noise = batch[: len(block.rows)], batch[len(block.rows) :]
        sum_loss = _sum_loss(self.objective)
        return float(sum_loss(self.variables, rows, noise, self.validation, counts))

    def set_statistics(self) -> None:
        if self.source is not None and self.flow.has_batch_statistics:
            batch, counts = self._block(*sources.statistics_rows(self.source))
            set_statistics = _set_statistics(self.flow)
            self.variables = self.devices.keep_replicated(
                set_statistics(self.variables, batch, self.data, counts)
            )

    def _block(self, block: Arrays, is_part: bool) -> tuple[list[Array], Array]:
        """Rows on the devices, more of them than there are, and which of them count."""
        dtype = weight_dtype(self.variables)
        unit = self.part.devices // self.part.count if is_part else 1
        length = _round_up(len(block[0]) // unit) * unit
        arrays = [*(_padded(array, length) for array in block), np.arange(length) < len(block[0])]
        if is_part:
            *batch, counts = [self.devices.shard(array, 0, dtype) for array in arrays]
        else:
            *batch, counts = self.devices.replicate(arrays)
        return batch, counts

    def snapshot(self) -> dict[str, Any]:
        return self.variables

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.variables = snapshot

    def describe_optimizer(self) -> list[Any]:
        """The types of the optimiser's state, and what it makes of some gradients."""
        return [_type_names(self.optimizer_state), _probe_optimizer(self.optimizer.value)]

    def state_arrays(self, best: dict[str, Any] | None) -> dict[str, np.ndarray]:
        groups = {
            "weights": jax_to_torch(self.variables),
            "best": jax_to_torch(best or {}),
            "trained": jax_to_torch({"params": self.trained or {}}),
            "optimizer": {
                name: np.asarray(_key_data(leaf))
                for name, leaf in _named_leaves(self.optimizer_state).items()
            },
        }
        return {f"{g}.{name}": array for g, tree in groups.items() for name, array in tree.items()}

    def state_groups(self) -> list[Group]:
        weights = {
            name: TensorInfo(array.dtype.name, array.shape)
            for name, array in jax_to_torch(self.variables).items()
        }
        leaves = {
            f"optimizer.{name}": TensorInfo(_key_data(leaf).dtype.name, _key_data(leaf).shape)
            for name, leaf in _named_leaves(self.optimizer_state).items()
        }
        averaged = torch_shapes({"params": self.trained or {}})
        return [*weight_groups(weights, averaged), Group(leaves)]

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
        groups: dict[str, dict[str, np.ndarray]] = {
            name: {} for name in ("weights", "best", "trained", "optimizer")
        }
        for path, array in arrays.items():
            group, name = path.split(".", 1)
            groups[group][name] = array
        structure = jax.tree.structure(self.optimizer_state)
        slots = [
            _like_key(jnp.array(groups["optimizer"][name]), leaf)
            for name, leaf in _named_leaves(self.optimizer_state).items()
        ]
        self.optimizer_state = self.devices.replicate(jax.tree.unflatten(structure, slots))
        self.restore(self._weights(groups["weights"]))
        if self.trained is not None:
            like = {"params": self.trained}
            trained = from_numpy(torch_to_jax(groups["trained"], like))
            self.trained = self.devices.replicate(trained)["params"]
        return self._weights(groups["best"]) if groups["best"] else None

    def _weights(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return self.devices.replicate(from_numpy(torch_to_jax(arrays, self.flow.shapes())))


def _named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their number and their place in it."""
    leaves = {}
    for i, (path, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(tree)[0]):
        place = re.sub(
            r"[^A-Za-z0-9_.]", "_", jax.tree_util.keystr(path, simple=True, separator=".")
        )
        leaves[f"p{i}.{place}"[:400]] = leaf
    return leaves


def _key_data(leaf: Any) -> Any:
    """A leaf as an array: of a random key what it is made of."""
    is_key = jax.dtypes.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else jnp.asarray(leaf)


def _like_key(array: Array, leaf: Any) -> Array:
    """The reverse of ``_key_data``, for a leaf like the given one."""
    is_key = jax.dtypes.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if is_key else array


def _type_names(state: Any) -> str:
    """``"(ScaleByAdamState(*, *, *), EmptyState())"``: the types that a state is made of."""
    if isinstance(state, tuple):
        name = type(state).__name__ if hasattr(state, "_fields") else ""
        return f"{name}({', '.join(map(_type_names, state))})"
    return "*" if isinstance(state, Mapping) or hasattr(state, "shape") else type(state).__name__


def _probe_optimizer(optimizer: optax.GradientTransformation) -> list[float] | None:
    """The updates that an optimiser makes of two gradients; ``None`` if it needs a model of its own."""
    parameters = {"w": jnp.array([0.5, -2.0])}
    extended = optax.with_extra_args_support(optimizer)
    updates = []
    try:
        state = extended.init(parameters)
        for scale in (1.0, 0.3):
            gradient = jax.tree.map(lambda w, scale=scale: scale * w, parameters)
            update, state = extended.update(
                gradient, state, parameters, value=jnp.array(scale), grad=gradient
            )
            updates += np.asarray(update["w"], np.float64).tolist()
    except Exception:  # one that is made for the parameters of this flow alone
        return None
    return updates


@lru_cache(NUM_PROGRAMS)
def _run_steps(
    objective: _Objective, optimizer: Static, max_grad_norm: float | None, accumulate: int
) -> Callable[..., tuple[Any, Array, Array]]:
    """A program of its own, freed with this function: JAX keeps those of static arguments for ever."""
    update = optimizer.value.update

    @jax.jit
    def run_steps(
        state: tuple[dict[str, Any], Any, Any],
        batches: list[Array],
        noise: list[Array],
        rates: Array,
        shares: Array | None,
        data: list[Array],
        context: Array | None,
        trains: Any,
        num_steps: Array,
    ) -> tuple[Any, Array, Array]:
        def step(i: Array, carry: Any) -> Any:
            params, averages, batch_stats, state, losses = carry
            rows = _rows(data, [array[i] for array in batches])
            drawn, rate = [array[i] for array in noise], rates[i]

            def loss(
                params: Variables, stats: Variables, rows: list[Array], drawn: list[Array]
            ) -> tuple[Array, Variables]:
                own = {"params": params, "batch_stats": stats}
                return objective.mean_and_update(own, rows, drawn, context)

            def over_parts(function: Callable[..., Any], start: Any) -> Any:
                """The mean of a function of the parts of the batch, which pass their statistics on."""
                if accumulate == 1:
                    return function(batch_stats, rows, drawn)
                parts = [
                    [a.reshape(accumulate, -1, *a.shape[1:]) for a in arrays]
                    for arrays in (rows, drawn)
                ]

                def part(carry: Any, arrays: Any) -> Any:
                    sums, stats = carry
                    values, stats = function(stats, *arrays)
                    return (jax.tree.map(jnp.add, sums, values), stats), None

                (sums, stats), _ = jax.lax.scan(part, (start, batch_stats), parts)
                return jax.tree.map(lambda total: total / accumulate, sums), stats

            def value_and_gradients(*part: Any) -> Any:
                gradient = jax.value_and_grad(loss, has_aux=True)
                (value, stats), gradients = gradient(params, *part)
                return (value, gradients), stats

            zero = jnp.zeros((), rates.dtype), jax.tree.map(jnp.zeros_like, params)
            (value, gradients), stats = over_parts(value_and_gradients, zero)
            if trains is not None:
                gradients = jax.tree.map(lambda t, g: jnp.where(t, g, 0), trains, gradients)
            if max_grad_norm is not None:
                gradients = clip_by_global_norm(gradients, max_grad_norm)
            updates, state = update(
                gradients,
                state,
                params,
                value=value,
                grad=gradients,
                value_fn=lambda params: over_parts(partial(loss, params), zero[0])[0],
            )
            moved = jax.tree.map(lambda p, u: p + rate * u, params, updates)
            if trains is not None:
                moved = jax.tree.map(jnp.where, trains, moved, params)
            if shares is not None:
                averages = move_averages(averages, moved, shares[i])
            return moved, averages, stats, state, losses.at[i].set(value.astype(losses.dtype))

        variables, trained, optimizer_state = state
        params, averages = variables["params"], None
        if shares is not None:
            params, averages = trained, params
        carry = params, averages, variables["batch_stats"], optimizer_state, jnp.zeros_like(rates)
        carry = jax.lax.fori_loop(0, num_steps, step, carry)
        params, averages, stats, optimizer_state, losses = carry
        finite = jnp.stack([jnp.isfinite(p).all() for p in jax.tree.leaves(params)]).all()
        if shares is not None:
            params, averages = averages, params
        variables = {"params": params, "batch_stats": stats}
        return (variables, averages, optimizer_state), losses, finite

    return run_steps


def _transformation(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"fit expects optimizer as an Optax transformation, got {type(optimizer).__name__}."
        )
    return optax.with_extra_args_support(optimizer)


@cache
def adam(weight_decay: float | None = None) -> optax.GradientTransformation:
    """Adam without its learning rate, which ``fit`` sets at every step.

    Args:
        weight_decay: ``None`` for none.
    """
    if weight_decay is None:
        return optax.scale_by_adam()
    return optax.chain(
        optax.scale_by_adam(), optax.add_decayed_weights(weight_decay, mask=_decaying)
    )


def _decaying(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: layouts.decays(path[-1].key), params)


def move_averages(averages: Any, weights: Any, share: Array) -> Any:
    """averages + share * (weights - averages), rounded after each operation as in PyTorch."""

    def moved(average: Array, weight: Array) -> Array:
        move = share.astype(average.dtype) * (weight - average)
        # No compiler knows that these bits stay: it cannot join product and sum into one rounding.
        bits = jax.lax.bitcast_convert_type(move, f"uint{8 * move.dtype.itemsize}")
        bits = bits ^ (share < 0).astype(bits.dtype)
        return average + jax.lax.bitcast_convert_type(bits, move.dtype)

    return jax.tree.map(moved, averages, weights)


def clip_by_global_norm(gradients: Any, max_norm: float) -> Any:
    """Scale all gradients by max_norm / max(norm, max_norm), norm that of all of them."""
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(gradients)))
    scale = max_norm / jnp.maximum(norm, max_norm)
    return jax.tree.map(lambda g: g * scale, gradients)
