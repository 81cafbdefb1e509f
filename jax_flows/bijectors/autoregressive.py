"""Masked autoregressive maps: each dimension is transformed given those generated before it."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import checks
from flow_bridge.masks import Order
from jax_flows.bijectors.base import Bijector, Output, Variables, child, gather
from jax_flows.networks import ACTIVATIONS, MaskedMLP
from jax_flows.numerics import matmul_precision
from jax_flows.registry import register

SCALE_BOUND = 2.0


class MaskedAutoregressive(Bijector):
    """What masked autoregressive maps share: z_i = f(x_i; parameters_i(x_<i)), in both directions.

    ``forward`` is one pass of the network. ``inverse`` finds one dimension after another, but a
    hidden unit of degree m follows from the first m of them, so that outside of small blocks each is
    computed only once: the arithmetic is that of about one pass too. The blocks are padded to one
    size, so that what is compiled does not grow with the dimension.
    """

    dim: int
    hidden_dims: tuple[int, ...]
    order: Order
    activation: str

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        checks.positive_int(name, dim=self.dim)
        checks.non_negative_int(name, context_dim=self.context_dim)
        checks.hidden_widths(name, self.hidden_dims)
        _ = self.network

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """How many parameters each dimension gets from the network."""

    @cached_property
    def network(self) -> MaskedMLP:
        """The conditioner."""
        return MaskedMLP(
            self.dim,
            self.hidden_dims,
            self.num_parameters,
            self.order,
            self.activation,
            self.context_dim,
            parent=None,
        )

    def _init(self, key: Array, dtype: Any) -> Variables:
        inputs = [jnp.zeros(n, dtype) for n in (self.dim, self.context_dim) if n]
        return gather({"network": self.network.init(key, *inputs)})

    def _forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        parameters = self.network.apply(child(variables, "network"), x, context)
        z, log_det = self._transform(x, jnp.asarray(parameters))
        return z, log_det.sum(-1)

    def _inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        return _implicit_inverse(self, variables, z, context)

    def _explicit_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        index = self.network.plan.sorted
        num_inputs = len(index[0]) - self.context_dim
        rows = _take(z.reshape(-1, self.dim).T, index[0][:num_inputs])
        weights, sums = [], []
        for i, (below, above) in enumerate(pairwise(self.network.plan.degrees)):
            layer = variables["params"]["network"][f"layers_{i}"]
            weight = jnp.where(jnp.asarray(above) >= jnp.asarray(below)[:, None], layer["kernel"], 0)
            weights.append(_take(_take(weight, index[i]).T, index[i + 1]))
            bias = _take(layer["bias"], index[i + 1])
            sums.append(jnp.broadcast_to(bias[:, None], (len(bias), rows.shape[1])))
        if context is not None:
            flat = context.reshape(-1, self.context_dim)
            sums[0] = _add_product(sums[0], weights[0][:, num_inputs:], flat.T)
            weights[0] = weights[0][:, :num_inputs]
        solved, log_det = self._solve(self.network.plan.parts, rows, weights, sums)
        position = index[0].argsort()[: self.dim]
        x = solved[0][position].T.reshape(z.shape)
        return x, log_det[position].sum(0).reshape(z.shape[:-1])

    def _solve(
        self,
        parts: Sequence[int],
        z: Array,
        weights: Sequence[Array],
        sums: Sequence[Array],
        unrolled: bool = True,
    ) -> tuple[list[Array], Array]:
        """Solve for a run of dimensions, everything generated before it being known.

        What the first parts of the run contribute to a later one is one product per layer; only what
        a part contributes to itself is left to the recursion.

        Args:
            parts: how to divide the run, see ``flow_bridge.masks.Autoregression``.
            z: shape ``(run, batch)``: features lead, so that a part is a contiguous slice.
            weights: per layer, from the units of the run to the units of the run.
            sums: per layer, bias and contributions of everything before the run, ``(units, batch)``.
            unrolled: whether to loop over the parts in Python (there are few) or by a scan.

        Returns:
            x and the values of each hidden layer, in the layout of z; and log|dx/dz| per dimension.
        """
        if len(parts) == 1:
            return self._solve_block(z, weights, sums)
        count, batch = parts[0], z.shape[1]
        sizes = [weight.shape[1] // count for weight in weights]
        by_part = (
            z.reshape(count, -1, batch),
            [weight.reshape(count, -1, weight.shape[1]) for weight in weights],
            [total.reshape(count, -1, batch) for total in sums],
        )

        def own(weight: Array, k: int | Array, size: int) -> Array:
            return jax.lax.dynamic_slice_in_dim(weight, k * size, size, 1)

        if unrolled:
            solved: list[list[Array]] = []
            log_dets = []
            for k in range(count):
                z_part, rows, totals = jax.tree.map(lambda array, k=k: array[k], by_part)
                if k:
                    known = [jnp.concatenate(values) for values in zip(*solved, strict=True)]
                    columns = [w[:, : len(v)] for w, v in zip(rows, known, strict=True)]
                    totals = jax.tree.map(_add_product, totals, columns, known)
                diagonal = [own(w, k, size) for w, size in zip(rows, sizes, strict=True)]
                values, log_det = self._solve(parts[1:], z_part, diagonal, totals, False)
                solved.append(values)
                log_dets.append(log_det)
            joined = [jnp.concatenate(values) for values in zip(*solved, strict=True)]
            return joined, jnp.concatenate(log_dets)

        def step(known: list[Array], part: Any) -> tuple[list[Array], Array]:
            k, (z_part, rows, totals) = part
            totals = jax.tree.map(_add_product, totals, rows, known)  # what is unknown is still 0
            diagonal = [own(w, k, size) for w, size in zip(rows, sizes, strict=True)]
            values, log_det = self._solve(parts[1:], z_part, diagonal, totals, False)
            known = [
                jax.lax.dynamic_update_slice_in_dim(array, value, k * size, 0)
                for array, value, size in zip(known, values, sizes, strict=True)
            ]
            return known, log_det

        nothing = [jnp.zeros((weight.shape[1], batch), z.dtype) for weight in weights]
        known, log_dets = jax.lax.scan(step, nothing, (jnp.arange(count), by_part))
        return known, log_dets.reshape(z.shape)

    def _solve_block(
        self, z: Array, weights: Sequence[Array], sums: Sequence[Array]
    ) -> tuple[list[Array], Array]:
        """``_solve`` one dimension after another: what a unit still misses meets zero weights."""
        size, batch = z.shape
        activation = ACTIVATIONS[self.activation]

        def step(solved: list[Array], row: Any) -> tuple[list[Array], Array]:
            k, z_row, last_weight, last_sum = row
            values = solved[:1]
            for weight, total in zip(weights[:-1], sums[:-1], strict=True):
                values.append(activation(_add_product(total, weight, values[-1])))
            parameters = _add_product(last_sum, last_weight, values[-1])
            x_row, log_det = self._inverse_transform(z_row, parameters.T)
            return [values[0].at[k].set(x_row), *values[1:]], log_det

        rows = (
            jnp.arange(size),
            z,
            weights[-1].reshape(size, -1, weights[-1].shape[1]),
            sums[-1].reshape(size, -1, batch),
        )
        nothing = [jnp.zeros((weight.shape[1], batch), z.dtype) for weight in weights]
        if size == 1:
            solved, log_det = step(nothing, jax.tree.map(lambda array: array[0], rows))
            return solved, log_det[None]
        return jax.lax.scan(step, nothing, rows)

    @abstractmethod
    def _transform(self, x: Array, parameters: Array) -> Output:
        """From x ``(...)`` and parameters ``(..., num_parameters)`` to z and log|dz/dx|, ``(...)``."""

    @abstractmethod
    def _inverse_transform(self, z: Array, parameters: Array) -> Output:
        """From z to x and log|dx/dz|, as ``_transform``."""


def _take(array: Array, index: Any) -> Array:
    """Rows by position; one past the end is a row of zeros."""
    padded = jnp.concatenate([array, jnp.zeros_like(array[:1])])
    return padded[index]


def _add_product(total: Array, weight: Array, known: Array) -> Array:
    return total + jnp.matmul(weight, known, precision=matmul_precision())


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def _implicit_inverse(
    bijector: MaskedAutoregressive, variables: Variables, z: Array, context: Array | None
) -> Output:
    return bijector._explicit_inverse(variables, z, context)


@_implicit_inverse.defjvp
def _implicit_inverse_jvp(
    bijector: MaskedAutoregressive, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Output, Output]:
    """z = f(x, weights) gives dx = (df/dx)^-1 (dz - df/dweights dweights): weights and context enter
    by one pass at the solution, and only the linear solve goes through the recursion."""
    variables, z, context = primals
    d_variables, dz, d_context = tangents
    (x, log_det), solve = jax.linearize(
        lambda z: bijector._explicit_inverse(variables, z, context), z
    )
    _, (dz_weights, d_log_det) = jax.jvp(
        lambda variables, context: bijector._forward(variables, x, context),
        (variables, context),
        (d_variables, d_context),
    )
    dx, dx_log_det = solve(dz - dz_weights)
    return (x, log_det), (dx, dx_log_det - d_log_det)


@register
@dataclass(frozen=True)
class MaskedAffineAutoregressive(MaskedAutoregressive):
    """z_i = (x_i - mu_i) * exp(-alpha_i), (mu_i, a_i) from a masked network of x_<i.

    alpha_i = 2 tanh(a_i / 2) stays within 2 of 0: with a_i in its place, five layers in 64 dimensions
    overflow once the network's outputs are of scale 1. log|det| = -sum(alpha).

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the network's hidden layers, any number of them.
        order: which dimension is generated when: ``None`` (0, 1, 2, ...), ``"reverse"``,
            ``"random:SEED"``, or a list of the dimensions.
        activation: a name in ``networks.ACTIVATIONS``.
        context_dim: width of the context, which all dimensions see; 0 for none.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ValueError: for an order that is not one.

    Reference: Papamakarios et al. (2017), MAF, arXiv:1705.07057.
    """

    dim: int
    hidden_dims: tuple[int, ...] = (64, 64)
    order: Order = None
    activation: str = "leaky_relu"
    context_dim: int = 0

    @property
    def num_parameters(self) -> int:
        return 2

    def _transform(self, x: Array, parameters: Array) -> Output:
        mu, a = parameters[..., 0], parameters[..., 1]
        alpha = SCALE_BOUND * jnp.tanh(a / SCALE_BOUND)
        return (x - mu) * jnp.exp(-alpha), -alpha

    def _inverse_transform(self, z: Array, parameters: Array) -> Output:
        mu, a = parameters[..., 0], parameters[..., 1]
        alpha = SCALE_BOUND * jnp.tanh(a / SCALE_BOUND)
        return z * jnp.exp(alpha) + mu, alpha
