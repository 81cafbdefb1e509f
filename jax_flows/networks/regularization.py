"""What acts otherwise in training: batch normalisation and dropout between the layers of networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flow_bridge import checks
from flow_bridge.regularization import EPS, MOMENTUM, dropout_threshold
from jax_flows.numerics import at_least_float32, first_step, next_step, random_bits
from jax_flows.variables import Variables, child


def moments(rows: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Mean and biased variance over the first axis of rows, which may count differently."""
    if weights is None:
        mean = rows.mean(0)
        return mean, jnp.square(rows - mean).mean(0)
    share = (weights / weights.mean())[:, None]
    mean = (share * rows).mean(0)
    return mean, (share * jnp.square(rows - mean)).mean(0)


def unbiased(var: Array, owner: str, num_rows: int) -> Array:
    """The unbiased variance, from the biased one of as many rows."""
    checks.enough_rows(owner, num_rows)
    return var * (num_rows / (num_rows - 1))


def store(running: Sequence[Array], new: Sequence[Array]) -> list[Array]:
    """New running averages, the old ones where something new is NaN or infinite."""
    finite = jnp.stack([jnp.isfinite(array).all() for array in new]).all()
    return [
        jnp.where(finite, array.astype(old.dtype), old)
        for old, array in zip(running, new, strict=True)
    ]


class Updates(dict[str, Any]):
    """The new ``batch_stats`` of networks by their names, where these run in training mode.

    Among the variables of a bijector as ``"updates"``, it asks for that mode.

    Attributes:
        weights: with them, batch normalisations take the statistics of what they get, and keep them: how
            much each row counts, a scalar for all the same.
    """

    weights: Array | None = None


def run_network(
    network: nn.Module, variables: Variables, name: str, updates: Updates | None, *arguments: Array
) -> Any:
    """The output of a network, whose variables have a name, in training mode if updates are asked for."""
    own = child(variables, name)
    if updates is None or not own.get("batch_stats"):
        return network.apply(own, *arguments)
    if updates.weights is not None:
        own["weights_of_rows"] = _spread(own["batch_stats"], updates.weights)
    out, state = network.apply(own, *arguments, mutable=["batch_stats"])
    updates[name] = state["batch_stats"]
    return out


def _spread(tree: Mapping[str, Any], weights: Array) -> dict[str, Any]:
    """The weights for every layer that has a state."""
    inner = {k: _spread(v, weights) for k, v in tree.items() if isinstance(v, Mapping)}
    return inner if len(inner) == len(tree) else {**inner, "weights": weights}


def _is_trained(layer: nn.Module) -> bool:
    return layer.is_mutable_collection("batch_stats") and not layer.is_initializing()


class BatchNormalization(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias, for each entry of the last axis.

    In training with the mean and the biased variance of the batch, and the running averages move towards its
    mean and unbiased variance; in evaluation with these. A batch with a NaN or an infinity leaves them as
    they were. With weights of rows they become those of the batch.
    """

    dim: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (self.dim,), x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.dim,), x.dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.dim,), x.dtype)
        var = self.variable("batch_stats", "var", jnp.ones, (self.dim,), x.dtype)

        def normalized(mean: Array, var: Array) -> Array:
            factor = scale * jax.lax.rsqrt(var + EPS)
            return ((x - mean) * factor + bias).astype(x.dtype)

        if not _is_trained(self):
            return normalized(mean.value, var.value)
        rows = at_least_float32(x).reshape(-1, self.dim)
        running = mean.value, var.value
        if self.has_variable("weights_of_rows", "weights"):
            weights: Any = self.get_variable("weights_of_rows", "weights")
            # of the pixels of an image, all the same
            weights = weights.repeat(len(rows) // weights.size) if weights.ndim else None
            mean.value, var.value = store(running, moments(rows, weights))
            return normalized(mean.value, var.value)
        of_batch = moments(rows)
        new = of_batch[0], unbiased(of_batch[1], "BatchNormalization", len(rows))
        moved = [old + MOMENTUM * (n - old) for old, n in zip(running, new, strict=True)]
        mean.value, var.value = store(running, jax.lax.stop_gradient(moved))
        return normalized(*of_batch)


class Dropout(nn.Module):
    """In training, x / (1 - rate) with a share of the entries, drawn anew in each step, set to 0.

    Which ones follows from the counter ``noise_step``, which is part of the weights' state: the same in both
    frameworks.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def start() -> Array:
            return first_step(self.make_rng("params"), x.dtype)

        step = self.variable("batch_stats", "noise_step", start)
        if not _is_trained(self) or self.has_variable("weights_of_rows", "weights"):
            return x
        dropped = random_bits(step.value, 0, x.shape) < jnp.uint32(dropout_threshold(self.rate))
        step.value = next_step(step.value)
        return jnp.where(dropped, 0, x / (1 - self.rate))


def regularization_shapes(
    normalization: str | None, widths: Sequence[int], dropout: float, num_dropouts: int, dtype: Any
) -> dict[str, dict[str, Any]]:
    """The shapes of what normalisations and dropouts of a network have."""
    shapes: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
    for i, width in enumerate(widths if normalization else ()):
        array = jax.ShapeDtypeStruct((width,), dtype)
        shapes["params"][f"norms_{i}"] = {"scale": array, "bias": array}
        if normalization == "batch_norm":
            shapes["batch_stats"][f"norms_{i}"] = {"mean": array, "var": array}
    for i in range(num_dropouts if dropout else 0):
        shapes["batch_stats"][f"drops_{i}"] = {"noise_step": jax.ShapeDtypeStruct((), dtype)}
    return shapes


def has_batch_statistics(shapes: Mapping[str, Any]) -> bool:
    """Whether a network with variables of these shapes has batch normalisation."""
    return "var" in shapes or any(
        has_batch_statistics(tree) for tree in shapes.values() if isinstance(tree, Mapping)
    )


def acts_in_training(network: Any) -> bool:
    """Whether a network is another one in training."""
    known = hasattr(network, "variable_shapes")
    return known and bool(network.variable_shapes(jnp.dtype("float32")).get("batch_stats"))
