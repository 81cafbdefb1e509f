"""Training: maximum likelihood on data, and reverse KL to an energy."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from flow_bridge import checks, training
from flow_bridge.architecture import architecture
from flow_bridge.errors import NonFiniteError
from flow_bridge.training import History, LearningRate
from flow_bridge.weights import jax_to_torch, torch_to_jax
from jax_flows.bijectors.base import Variables, check_input, weight_dtype
from jax_flows.checkpoint import from_numpy
from jax_flows.flows import Flow

_VALIDATION_ROWS = 4096


def fit(
    flow: Flow,
    variables: Variables,
    data: Array | np.ndarray,
    *,
    context: Array | np.ndarray | None = None,
    validation: float | Array | np.ndarray = 0.1,
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
) -> tuple[dict[str, Any], History]:
    """Fit a flow by maximum likelihood: minimise the mean of -log_prob over minibatches.

    Up to 200 steps run in one compiled call, without a round trip to the host.

    Args:
        flow: the flow.
        variables: where to start; left as they are.
        data: shape ``(num_rows, *event_shape)``, of the weights' dtype.
        context: shape ``(num_rows, context_dim)``, for a conditional flow.
        validation: the fraction of rows held out, or the validation data; 0 for none.
        validation_context: the context of the validation data, where those are given.
        num_epochs: passes over the data.
        batch_size: rows per step; at most all of them.
        learning_rate: of Adam; a number, or a function from the step (from 0) to one.
        optimizer: another Optax optimiser, in place of Adam and its rate.
        max_grad_norm: gradients of a larger global norm are scaled down to it.
        patience: stop after this many epochs without a better validation loss.
        seed: decides the split and the batches, which are the same in both backends.
        progress: show a progress bar.
        state_path: a file that holds the state after every epoch. If it exists, training goes on
            from there and ends with the same weights as an uninterrupted run.

    Returns:
        The variables of the best validation loss (the last ones without validation), and the losses.

    Raises:
        ValueError: for data that are empty, not finite, or of a wrong shape.
        TypeError: for data of another dtype than the weights.
        NonFiniteError: if the loss becomes NaN or infinite; its ``variables`` are the last good ones.
        CheckpointError: if ``state_path`` holds the state of another run.
    """
    checks.positive_int("fit", num_epochs=num_epochs, batch_size=batch_size)
    rows = _rows(flow, variables, "data", data, context)
    if isinstance(validation, int | float):
        kept, held_out = training.split_rows(len(rows[0]), validation, seed)
        validation_rows = [array[held_out] for array in rows]
        rows = [array[kept] for array in rows]
    else:
        validation_rows = _rows(flow, variables, "validation", validation, validation_context)

    def validation_loss(variables: Variables) -> float | None:
        num_rows = len(validation_rows[0])
        total = sum(
            _sum_nll(flow, variables, [a[i : i + _VALIDATION_ROWS] for a in validation_rows])
            for i in range(0, num_rows, _VALIDATION_ROWS)
        )
        return float(total) / num_rows if num_rows else None

    engine = _Engine(
        flow,
        variables,
        _NegativeLogLikelihood(flow),
        rows,
        validation_loss,
        optimizer,
        max_grad_norm,
    )
    return engine.train(
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
    given = [] if context is None else [jnp.asarray(context)]
    num_epochs, batches = training.noise_batches(
        flow.base.noise, num_steps, (batch_size, *flow.base.noise_shape), seed
    )
    engine = _Engine(
        flow, variables, _ReverseKL(flow, energy), given, lambda _: None, optimizer, max_grad_norm
    )
    return engine.train(
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


def _rows(flow: Flow, variables: Variables, name: str, data: Any, context: Any) -> list[Array]:
    check_input(flow, variables, name, data, context)
    arrays = [jnp.asarray(a) for a in (data, context) if a is not None]
    for label, array in zip((name, f"{name}'s context"), arrays, strict=False):
        finite = np.asarray(jnp.isfinite(array).all(tuple(range(1, array.ndim))))
        training.check_rows(label, len(arrays[0]), finite)
    return arrays


@dataclass(frozen=True)
class _NegativeLogLikelihood:
    flow: Flow

    def __call__(
        self, variables: Variables, batch: Array, rows: list[Array]
    ) -> tuple[Array, Variables]:
        log_prob, stats = self.flow.log_prob_and_update(
            variables, *(array[batch] for array in rows)
        )
        return -log_prob.mean(), stats


@dataclass(frozen=True)
class _ReverseKL:
    flow: Flow
    energy: Callable[[Array], Array]

    def __call__(
        self, variables: Variables, noise: Array, context: list[Array]
    ) -> tuple[Array, Variables]:
        base = {name: tree.get("base", {}) for name, tree in variables.items()}
        z = self.flow.base.from_noise(base, noise)
        x, log_det = self.flow.inverse(variables, z, *context)
        loss = (self.flow.base.log_prob(base, z) - log_det + self.energy(x)).mean()
        return loss, variables["batch_stats"]


@partial(jax.jit, static_argnums=0)
def _sum_nll(flow: Flow, variables: Variables, rows: list[Array]) -> Array:
    return -flow.log_prob(variables, *rows).sum()


class _Engine:
    """Steps of an optimiser on a flow's variables."""

    def __init__(
        self,
        flow: Flow,
        variables: Variables,
        loss: Callable[[Variables, Array, list[Array]], tuple[Array, Variables]],
        data: list[Array],
        validation_loss: Callable[[Variables], float | None],
        optimizer: optax.GradientTransformation | None,
        max_grad_norm: float | None,
    ) -> None:
        self.flow, self.loss, self.data, self.validation_loss = flow, loss, data, validation_loss
        self.max_grad_norm, self.sets_rate = max_grad_norm, optimizer is None
        self.optimizer = optimizer or adam()
        self.variables: dict[str, Any] = {"params": {}, "batch_stats": {}, **variables}
        self.optimizer_state = self.optimizer.init(self.variables["params"])

    def train(self, *args: Any, **options: Any) -> tuple[dict[str, Any], History]:
        try:
            history = training.train(self, *args, **options)
        except NonFiniteError as error:
            error.variables = self.variables
            raise
        return self.variables, history

    def run(self, batches: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, bool]:
        dtype = weight_dtype(self.variables)
        is_noise = np.issubdtype(batches.dtype, np.floating)
        self.variables, self.optimizer_state, losses, finite = _run_steps(
            self.loss,
            self.optimizer,
            self.max_grad_norm,
            self.variables,
            self.optimizer_state,
            jnp.asarray(batches, dtype if is_noise else None),
            jnp.asarray(-rates if self.sets_rate else np.ones_like(rates), dtype),
            self.data,
        )
        return np.asarray(losses, np.float64), bool(finite)

    def validate(self) -> float | None:
        return self.validation_loss(self.variables)

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
        like = self.flow.shapes()
        leaves, structure = jax.tree.flatten(self.optimizer_state)
        slots = [jnp.array(groups["optimizer"][f"p{i}"]) for i in range(len(leaves))]
        self.optimizer_state = jax.tree.unflatten(structure, slots)
        self.restore(from_numpy(torch_to_jax(groups["weights"], like)))
        return from_numpy(torch_to_jax(groups["best"], like)) if groups["best"] else None


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run_steps(
    loss: Callable[[Variables, Array, list[Array]], tuple[Array, Variables]],
    optimizer: optax.GradientTransformation,
    max_grad_norm: float | None,
    variables: dict[str, Any],
    optimizer_state: Any,
    batches: Array,
    rates: Array,
    data: list[Array],
) -> tuple[dict[str, Any], Any, Array, Array]:
    def objective(
        params: Variables, batch_stats: Variables, batch: Array
    ) -> tuple[Array, Variables]:
        return loss({"params": params, "batch_stats": batch_stats}, batch, data)

    def step(carry: Any, inputs: tuple[Array, Array]) -> tuple[Any, Array]:
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


@cache
def adam() -> optax.GradientTransformation:
    """Adam without its learning rate, which ``fit`` sets at every step."""
    return optax.scale_by_adam()


def clip_by_global_norm(gradients: Any, max_norm: float) -> Any:
    """Scale all gradients by max_norm / max(norm, max_norm), norm that of all of them."""
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(gradients)))
    scale = max_norm / jnp.maximum(norm, max_norm)
    return jax.tree.map(lambda g: g * scale, gradients)
