"""Training: maximum likelihood on data, and reverse KL to an energy."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flow_bridge import checks, sources, training
from flow_bridge.architecture import architecture
from flow_bridge.errors import NonFiniteError
from flow_bridge.sources import Chunk, Expected, Part, Rows, Source
from flow_bridge.training import History, LearningRate
from flow_bridge.weights import jax_to_torch, torch_to_jax
from jax_flows.checkpoint import from_numpy
from jax_flows.flows import Flow
from jax_flows.inputs import check_input
from jax_flows.variables import Variables, own_variables, weight_dtype

Data = Array | np.ndarray | Iterable[Any] | Callable[[int], Iterable[Any]]


def fit(
    flow: Flow,
    variables: Variables,
    data: Data,
    *,
    context: Array | np.ndarray | None = None,
    validation: float | Data = 0.1,
    validation_context: Array | np.ndarray | None = None,
    num_epochs: int = 100,
    batch_size: int = 256,
    learning_rate: LearningRate = 1e-3,
    optimizer: optax.GradientTransformation | None = None,
    max_grad_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    progress: bool = True,
    state_path: str | os.PathLike[str] | None = None,
    state_every: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[dict[str, Any], History]:
    """Fit a flow by maximum likelihood: minimise the mean of -log_prob over minibatches.

    Up to 200 steps run in one compiled call, without a round trip to the host; batches of another
    length compile once more.

    With a ``mesh`` its devices train one model together, from the variables of process 0 and on the
    trajectory of one device: the rows of every batch are sharded over the mesh's axis ``"data"``, or its
    first one, and the variables replicated. Where the mesh spans several processes
    (``jax.distributed``), each is given the same array and takes its part of each batch, or an iterable
    of its own part of the batches. The first process writes the state, all read it.

    Args:
        flow: the flow.
        variables: where to start; left as they are.
        data: shape ``(num_rows, *event_shape)``, of the weights' dtype; a ``numpy.memmap`` is read batch
            by batch. Or an iterable of batches, or a function from the epoch (from 0) to one: each an
            array, or a pair of x and its context.
        context: shape ``(num_rows, context_dim)``, for a conditional flow.
        validation: the fraction of rows held out, or the validation data; 0 for none. An iterable is not
            split.
        validation_context: the context of the validation data, where those are given as an array.
        num_epochs: passes over the data.
        batch_size: rows per step, of all devices together; at most all of them. An iterable has its own.
        learning_rate: of Adam; a number, or a function from the step (from 0) to one.
        optimizer: another Optax optimiser, in place of Adam and its rate.
        max_grad_norm: gradients of a larger global norm are scaled down to it.
        patience: stop after this many epochs without a better validation loss.
        seed: decides the split and the batches of an array, which are the same in both backends.
        progress: show a progress bar.
        state_path: a file that holds the state after every epoch. If it exists, training goes on
            from there and ends with the same weights as an uninterrupted run.
        state_every: write the state also within an epoch, after this many steps.
        mesh: the devices to train on; the default device if not given.

    Returns:
        The variables of the best validation loss (the last ones without validation), and the losses.

    Raises:
        ValueError: for data that are empty, not finite, or of a wrong shape, and for batches that do not
            split evenly over the devices.
        TypeError: for data of another dtype than the weights.
        NonFiniteError: if the loss becomes NaN or infinite; its ``variables`` are the last good ones.
        CheckpointError: if ``state_path`` holds the state of another run.
    """
    checks.positive_int("fit", num_epochs=num_epochs, batch_size=batch_size)
    variables = own_variables(flow, variables)
    source, held_out = _source(flow, variables, "data", data, context, num_epochs), None
    if isinstance(validation, int | float):
        source, held_out = sources.split(source, validation, seed)
    else:
        held_out = _source(
            flow, variables, "validation", validation, validation_context, num_epochs
        )
    loss = _NegativeLogLikelihood(flow)
    engine = _Engine(flow, variables, loss, source, held_out, optimizer, max_grad_norm, mesh)
    return engine.train(
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
        settings={
            "architecture": architecture(flow),
            **sources.sizes(source, batch_size),
            "seed": seed,
        },
    )


def fit_to_energy(
    flow: Flow,
    variables: Variables,
    energy: Callable[[Array], Array],
    *,
    context: Array | np.ndarray | None = None,
    num_steps: int = 1000,
    batch_size: int = 256,
    learning_rate: LearningRate = 1e-3,
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
    the target's normaliser. Arguments not listed, results and errors as in ``fit``.

    Args:
        energy: from x ``(batch_size, *event_shape)`` to ``(batch_size,)``, differentiable.
        context: one context ``(context_dim,)``, for a conditional flow.
        num_steps: gradient steps, each on ``batch_size`` fresh samples.
    """
    checks.positive_int("fit_to_energy", num_steps=num_steps, batch_size=batch_size)
    checks.reparameterized("fit_to_energy", type(flow.base).__name__, flow.base.reparameterized)
    variables = own_variables(flow, variables)
    num_epochs, batches = sources.noise_batches(
        flow.base.noise, num_steps, (batch_size, *flow.base.noise_shape), seed
    )
    given = None if context is None else Rows((jnp.asarray(context),))
    loss = _ReverseKL(flow, energy)
    engine = _Engine(flow, variables, loss, given, None, optimizer, max_grad_norm, mesh)
    return engine.train(
        sources.array_chunks(batches, engine.part, sources.steps_per_call(state_every)),
        num_epochs,
        None,
        learning_rate=learning_rate,
        patience=None,
        progress=progress,
        state_path=state_path,
        state_every=state_every,
        settings={
            "architecture": architecture(flow),
            "num_steps": num_steps,
            "batch_size": batch_size,
            "seed": seed,
        },
    )


def _source(
    flow: Flow, variables: Variables, name: str, data: Any, context: Any, num_epochs: int
) -> Source:
    dtype = weight_dtype(variables)
    expected = Expected(
        type(flow).__name__,
        flow.event_shape,
        flow.context_dim,
        None if dtype is None else dtype.name,
    )
    if isinstance(data, np.memmap):
        return sources.host_rows(
            expected, name, data, None if context is None else np.asarray(context)
        )
    if not sources.is_array(data):
        return sources.stream(expected, name, data, context, num_epochs, np.asarray)
    check_input(flow, variables, name, data, context)
    arrays = [jnp.asarray(a) for a in (data, context) if a is not None]
    for label, array in zip((name, f"{name}'s context"), arrays, strict=False):
        finite = np.asarray(jnp.isfinite(array).all(tuple(range(1, array.ndim))))
        sources.check_rows(label, len(arrays[0]), finite)
    return Rows(tuple(arrays))


@dataclass(frozen=True)
class _NegativeLogLikelihood:
    flow: Flow

    def __call__(
        self, variables: Variables, batch: list[Array], data: list[Array]
    ) -> tuple[Array, Variables]:
        log_prob, stats = self.flow.log_prob_and_update(variables, *_rows(data, batch))
        return -log_prob.mean(), stats


@dataclass(frozen=True)
class _ReverseKL:
    flow: Flow
    energy: Callable[[Array], Array]

    def __call__(
        self, variables: Variables, batch: list[Array], context: list[Array]
    ) -> tuple[Array, Variables]:
        base = {name: tree.get("base", {}) for name, tree in variables.items()}
        z = self.flow.base.from_noise(base, *batch)
        x, log_det = self.flow.inverse(variables, z, *context)
        loss = (self.flow.base.log_prob(base, z) - log_det + self.energy(x)).mean()
        return loss, variables["batch_stats"]


@partial(jax.jit, static_argnums=0)
def _sum_nll(flow: Flow, variables: Variables, batch: list[Array], data: list[Array]) -> Array:
    return -flow.log_prob(variables, *_rows(data, batch)).sum()


def _rows(data: list[Array], batch: list[Array]) -> list[Array]:
    """The rows of a batch, which holds their numbers where the data are on the device."""
    return [array[batch[0]] for array in data] if data else batch


class _Engine:
    """Steps of an optimiser on a flow's variables."""

    def __init__(
        self,
        flow: Flow,
        variables: Variables,
        loss: Callable[[Variables, list[Array], list[Array]], tuple[Array, Variables]],
        data: Source | None,
        validation: Source | None,
        optimizer: optax.GradientTransformation | None,
        max_grad_norm: float | None,
        mesh: Mesh | None,
    ) -> None:
        self.flow, self.loss, self.max_grad_norm = flow, loss, max_grad_norm
        self.sets_rate = optimizer is None
        self.optimizer = optimizer or adam()
        self.devices = Devices(mesh)
        self.part, self.is_main = self.devices.part, self.devices.is_main
        self.data, self.validation = (
            self.devices.replicate(list(source.arrays)) if isinstance(source, Rows) else []
            for source in (data, validation)
        )
        optimizer_state = self.optimizer.init(variables["params"])
        self.variables, self.optimizer_state = self.devices.replicate(
            self.devices.of_first((variables, optimizer_state))
        )

    def train(self, *args: Any, **options: Any) -> tuple[dict[str, Any], History]:
        try:
            history = training.train(self, *args, **options)
        except NonFiniteError as error:
            error.variables = self.devices.own(self.variables)
            raise
        return self.devices.own(self.variables), history

    def gather(self, values: Sequence[int]) -> np.ndarray:
        return self.devices.gather(values)

    def run(self, chunk: Chunk, rates: np.ndarray) -> tuple[np.ndarray, bool]:
        dtype = weight_dtype(self.variables)
        rates = rates if self.sets_rate else -np.ones_like(rates)
        self.variables, self.optimizer_state, losses, finite = self.devices.keep_replicated(
            _run_steps(
                self.loss,
                self.optimizer,
                self.max_grad_norm,
                self.variables,
                self.optimizer_state,
                [self.devices.shard(array, 1, dtype) for array in chunk],
                self.devices.replicate(jnp.asarray(-rates, dtype)),
                self.data,
            )
        )
        return np.asarray(losses, np.float64), bool(finite)

    def evaluate(self, block: Chunk, is_part: bool) -> float:
        dtype = weight_dtype(self.variables)
        if is_part:
            batch = [self.devices.shard(array, 0, dtype) for array in block]
        else:
            batch = self.devices.replicate(list(block))
        return float(_sum_nll(self.flow, self.variables, batch, self.validation))

    def snapshot(self) -> dict[str, Any]:
        return self.variables

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.variables = snapshot

    def state_arrays(self, best: dict[str, Any] | None) -> dict[str, np.ndarray]:
        groups = {
            "weights": jax_to_torch(self.variables),
            "best": jax_to_torch(best or {}),
            "optimizer": {
                f"p{i}": np.asarray(leaf)
                for i, leaf in enumerate(jax.tree.leaves(self.optimizer_state))
            },
        }
        return {f"{g}.{name}": array for g, tree in groups.items() for name, array in tree.items()}

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
        groups: dict[str, dict[str, np.ndarray]] = {"weights": {}, "best": {}, "optimizer": {}}
        for path, array in arrays.items():
            group, name = path.split(".", 1)
            groups[group][name] = array
        leaves, structure = jax.tree.flatten(self.optimizer_state)
        slots = [jnp.array(groups["optimizer"][f"p{i}"]) for i in range(len(leaves))]
        self.optimizer_state = self.devices.replicate(jax.tree.unflatten(structure, slots))
        self.restore(self._weights(groups["weights"]))
        return self._weights(groups["best"]) if groups["best"] else None

    def _weights(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return self.devices.replicate(from_numpy(torch_to_jax(arrays, self.flow.shapes())))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run_steps(
    loss: Callable[[Variables, list[Array], list[Array]], tuple[Array, Variables]],
    optimizer: optax.GradientTransformation,
    max_grad_norm: float | None,
    variables: dict[str, Any],
    optimizer_state: Any,
    batches: list[Array],
    rates: Array,
    data: list[Array],
) -> tuple[dict[str, Any], Any, Array, Array]:
    def objective(
        params: Variables, batch_stats: Variables, batch: list[Array]
    ) -> tuple[Array, Variables]:
        return loss({"params": params, "batch_stats": batch_stats}, batch, data)

    def step(carry: Any, inputs: tuple[list[Array], Array]) -> tuple[Any, Array]:
        params, batch_stats, state = carry
        batch, rate = inputs
        gradient = jax.value_and_grad(objective, has_aux=True)
        (value, batch_stats), gradients = gradient(params, batch_stats, batch)
        if max_grad_norm is not None:
            gradients = clip_by_global_norm(gradients, max_grad_norm)
        updates, state = optimizer.update(gradients, state, params)
        params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
        return (params, batch_stats, state), value

    carry = variables["params"], variables["batch_stats"], optimizer_state
    (params, batch_stats, optimizer_state), losses = jax.lax.scan(step, carry, (batches, rates))
    finite = jnp.stack([jnp.isfinite(p).all() for p in jax.tree.leaves(params)]).all()
    return {"params": params, "batch_stats": batch_stats}, optimizer_state, losses, finite


class Devices:
    """The devices of a mesh, or the default one, and where arrays lie on them."""

    def __init__(self, mesh: Mesh | None) -> None:
        self.mesh, self.part, self.is_main, self.num_processes = mesh, Part(), True, 1
        if mesh is None:
            return
        self.axis = "data" if "data" in mesh.axis_names else mesh.axis_names[0]
        # Sharding is left to the compiler, whatever types the mesh's axes have.
        self.mesh = Mesh(mesh.devices, mesh.axis_names)
        rows = np.moveaxis(mesh.devices, mesh.axis_names.index(self.axis), 0)
        rows = rows.reshape(len(rows), -1)
        owners = [{device.process_index for device in row} for row in rows]
        own = [i for i, processes in enumerate(owners) if jax.process_index() in processes]
        if not own:
            raise ValueError("fit got a mesh without a device of this process.")
        count = len(owners) // len(own)
        if own != list(range(own[0], own[-1] + 1)) or own[0] % len(own) or len(owners) % len(own):
            raise ValueError(
                "fit expects the devices of each process side by side along the mesh's axis "
                f"{self.axis!r}, and equally many of them."
            )
        self.part = Part(own[0] // len(own), count, len(owners))
        everyone = set().union(*owners)
        self.num_processes, self.is_main = len(everyone), jax.process_index() == min(everyone)

    def shard(self, array: np.ndarray, axis: int, dtype: Any) -> Array:
        """This process's part of rows, along ``axis``, as part of an array on all devices."""
        array = array.astype(dtype) if np.issubdtype(array.dtype, np.floating) else array
        if self.mesh is None:
            return jnp.asarray(array)
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, self.axis))
        shape = list(array.shape)
        shape[axis] *= self.part.count
        return jax.make_array_from_process_local_data(sharding, array, tuple(shape))

    def replicate(self, tree: Any) -> Any:
        """Arrays that this and every other process has, on all devices."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        sharding = NamedSharding(self.mesh, PartitionSpec())

        def put(array: Any) -> Array:
            array = np.asarray(array)
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree.map(put, tree)

    def keep_replicated(self, tree: Any) -> Any:
        """Results of a step; the compiler may have left some of them in parts."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def own(self, tree: Any) -> Any:
        """Replicated arrays as arrays of this process alone."""
        return tree if self.mesh is None else jax.tree.map(lambda a: jnp.array(np.asarray(a)), tree)

    def of_first(self, tree: Any) -> Any:
        """The arrays that the first process has."""
        if self.num_processes == 1:
            return tree
        return multihost_utils.broadcast_one_to_all(tree, is_source=self.is_main)

    def gather(self, values: Sequence[int]) -> np.ndarray:
        """The values of every process, ``(processes, values)``."""
        if self.num_processes == 1:
            return np.array([values])
        return multihost_utils.process_allgather(np.array(values, np.int32))


@cache
def adam() -> optax.GradientTransformation:
    """Adam without its learning rate, which ``fit`` sets at every step."""
    return optax.scale_by_adam()


def clip_by_global_norm(gradients: Any, max_norm: float) -> Any:
    """Scale all gradients by max_norm / max(norm, max_norm), norm that of all of them."""
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(gradients)))
    scale = max_norm / jnp.maximum(norm, max_norm)
    return jax.tree.map(lambda g: g * scale, gradients)
