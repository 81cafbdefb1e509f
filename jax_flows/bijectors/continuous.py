"""Continuous-time flows: the map from one end of a differential equation to the other."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flow_bridge import checks
from flow_bridge.domains import REALS, ClosedInterval, Interval
from flow_bridge.errors import ConvergenceError
from flow_bridge.networks import Network, as_network
from flow_bridge.ode import (
    DOPRI5,
    GRID_ROWS,
    NO_FORWARD_MODE,
    REFINEMENT,
    STEP_SHARE,
    check_grid,
    check_spaces,
    check_times,
    finer_grid,
    grid_between,
    grid_of,
    initial_step,
    missing_solver,
    refine,
    solver_message,
)
from jax_flows.bijectors.base import Bijector
from jax_flows.derivatives import evaluate, jacobian, trace, trace_weight, vjp
from jax_flows.inputs import check_input, check_probe
from jax_flows.networks.conditioner import build_conditioner, conditioner_shapes
from jax_flows.networks.mlp import MLP
from jax_flows.networks.regularization import acts_in_training
from jax_flows.numerics import (
    at_least_float32,
    first_step,
    gaussian,
    in_float32,
    is_eager,
    matmul_precision,
    next_step,
    rademacher,
)
from jax_flows.registry import register
from jax_flows.univariate.circular import wrapped
from jax_flows.variables import AnyArray, Output, Variables, child, gather

Weights = tuple[Any, ...]


@register
@dataclass(frozen=True)
class ContinuousBijector(Bijector):
    """z = x(1), where dx/dt = f(x, t, context) from x(0) = x; log|det| is the integral of tr(df/dx).

    f is a network of (x, t, context). The inverse integrates from t = 1 to 0. It is fitted by maximum
    likelihood, which integrates for every step, or by the loss ``FlowMatching``, which does not.

    - ``solver="dopri5"``: adaptive steps (diffrax), bounded by ``max_steps``. The error of every
      row is controlled by itself, and its log|det| apart from x: the norm is the largest over them,
      so that none is diluted by the others. A row with a NaN or an infinity gives NaN and takes no
      part. z, x and log|det| are within 10 times the tolerance of the exact ones (relative, above 1),
      unless the dynamics themselves multiply errors.
      With a ``grid`` its steps are those between the grid's times, the same in both backends and for
      all rows; ``fixed_grid`` takes them from a run, and says what error they leave.
    - ``solver="rk4"``: ``num_steps`` equal steps of the classical method, the same in both backends.
    - ``trace="exact"``: in closed form; for one or two hidden layers at the cost of one more product,
      for others of ``dim`` network passes, as for a ``conditioner``, whose products are batched; for
      ``HollowMLP`` of one pass.
    - ``trace="hutchinson"``: e^T (df/dx) e in training mode, with one random probe e for every row
      and solve, which follows from the counter ``noise_step`` in the weights' state and so is the same
      in both backends; evaluation and the inverse take the exact trace. ``forward_with_noise`` and
      ``inverse_with_noise`` take the probe as an argument.

    Two penalties keep the dynamics easy to solve: in training mode the log_det is lowered by
    ``kinetic_energy`` times the integral of |f|^2 and ``jacobian_norm`` times that of |df/dx|_F^2 (with
    a probe, of its estimate |df/dx e|^2), so that the mean of -log_prob is the regularised loss.

    Args:
        dim: number of dimensions.
        hidden_dims: widths of the hidden layers of f.
        trace: ``"exact"`` or ``"hutchinson"``.
        solver: ``"dopri5"`` or ``"rk4"``.
        rtol, atol: tolerances of ``"dopri5"``, between 0 and 1.
        adjoint: gradients of ``"dopri5"`` by the adjoint equation, with the same tolerances in relation
            to the size of the gradient, in constant memory, in reverse mode only; ``False``: through its
            steps. ``"rk4"`` always differentiates its steps.
        activation: a name in ``networks.activations.ACTIVATIONS``.
        probe: ``"rademacher"`` or ``"gaussian"``.
        num_steps: steps of ``"rk4"``.
        max_steps: the most steps of ``"dopri5"``.
        kinetic_energy, jacobian_norm: weights of the penalties.
        context_dim: width of the context, 0 for none.
        conditioner: another network f, ``Network(CLASS, ...)`` or a class, in place of the one that
            ``hidden_dims`` and ``activation`` say. It gets x and, as its context, t and the context: if
            its class names ``context_dim`` the two apart.
        time_features: beside t the network sees cos(pi j t) and sin(pi j t) for j = 1 to this number.
        time_scaling: f = ((2 t - 1) x + s N(x / s, t, context)) / s^2 with s^2 = (1 - t)^2 + t^2 and the
            network N. Of data with mean 0 and variance 1 (``standardized``) that are normal, the
            rectified path of ``FlowMatching`` has the field of N = 0, which maps x to itself; the
            network learns what is left, from inputs and to targets of variance about 1 at all times.
        circular: columns that are angles, in [-pi, pi], whose ends are one point. f sees them as their
            cosines and sines, after the other columns.
        grid: times from 0 to 1, for ``"dopri5"``.

    Shapes: x and z ``(*batch, dim)``, context ``(*batch, context_dim)``.

    Raises:
        ConvergenceError: if the solver fails, outside compiled code; the message names the tolerance.
        ImportError: without diffrax, for ``"dopri5"``.

    Reference: Chen et al. (2018), arXiv:1806.07366; Grathwohl et al. (2019), FFJORD, arXiv:1810.01367;
    the penalties: Finlay et al. (2020), arXiv:2002.02798.

    Examples:
        >>> import jax, jax_flows
        >>> bijector = jax_flows.ContinuousBijector(dim=2, hidden_dims=(8,), solver="rk4", num_steps=4)
        >>> variables = bijector.init(jax.random.key(0))
        >>> z, log_det = jax.jit(bijector.forward)(variables, jax.numpy.zeros((5, 2)))
        >>> z.shape, log_det.shape
        ((5, 2), (5,))
    """

    dim: int
    hidden_dims: Sequence[int] = (64, 64)
    trace: str = "exact"
    solver: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    adjoint: bool = True
    activation: str = "tanh"
    probe: str = "rademacher"
    num_steps: int = 20
    max_steps: int = 1000
    kinetic_energy: float = 0.0
    jacobian_norm: float = 0.0
    context_dim: int = 0
    conditioner: Network | type | None = None
    time_features: int = 0
    time_scaling: bool = False
    circular: Sequence[int] = ()
    grid: Sequence[float] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "ContinuousBijector"
        sizes = {"dim": self.dim, "num_steps": self.num_steps, "max_steps": self.max_steps}
        checks.positive_int(name, **sizes)
        sizes = {"context_dim": self.context_dim, "time_features": self.time_features}
        checks.non_negative_int(name, **sizes)
        checks.one_of(name, "trace", self.trace, ("exact", "hutchinson"))
        checks.one_of(name, "solver", self.solver, ("dopri5", "rk4"))
        checks.one_of(name, "probe", self.probe, ("rademacher", "gaussian"))
        checks.open_interval(name, "rtol", self.rtol, 0, 1)
        checks.open_interval(name, "atol", self.atol, 0, 1)
        checks.boolean(name, adjoint=self.adjoint, time_scaling=self.time_scaling)
        check_spaces(name, self.dim, self.circular, self.time_scaling)
        check_grid(name, self.solver, self.grid)
        penalties = {"kinetic_energy": self.kinetic_energy, "jacobian_norm": self.jacobian_norm}
        checks.non_negative_number(name, **penalties)
        if self.conditioner is not None:
            object.__setattr__(self, "conditioner", as_network(name, self.conditioner, MLP))
        _ = self.network

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def context_apart(self) -> bool:
        """Whether f is called with x and (t, context) apart."""
        return isinstance(self.conditioner, Network) and self.conditioner.takes("context_dim")

    @cached_property
    def network(self) -> Any:
        """The network f of (x, t, context)."""
        dim, given = self.dim, 1 + 2 * self.time_features + self.context_dim
        seen = dim + len(self.circular)
        if self.conditioner is None:
            hidden_dims = tuple(self.hidden_dims)
            return MLP(seen + given, dim, hidden_dims, self.activation, parent=None)
        conditioner = as_network("ContinuousBijector", self.conditioner, MLP)
        network = build_conditioner("ContinuousBijector", conditioner, seen, dim, 1, given)
        kind = conditioner.cls.__name__
        checks.same_in_training("ContinuousBijector", kind, acts_in_training(network))
        return network

    def init_variables(self, key: Array, dtype: Any) -> Variables:
        network_key, step_key = jax.random.split(key)
        given = jnp.zeros(1 + 2 * self.time_features + self.context_dim, dtype)
        seen = jnp.zeros(self.dim + len(self.circular), dtype)
        inputs = _arguments(self.context_apart, seen, given)
        network = self.network.init(network_key, *inputs)
        variables = gather({"network": jax.tree.map(lambda array: array.astype(dtype), network)})
        if self.trace == "hutchinson":
            variables["batch_stats"]["noise_step"] = first_step(step_key, dtype)
        return variables

    def variable_shapes(self, dtype: Any) -> Variables:
        known = conditioner_shapes(self, dtype)
        if known is None:
            return super().variable_shapes(dtype)
        variables = dict(known)
        if self.trace == "hutchinson":
            variables["batch_stats"]["noise_step"] = jax.ShapeDtypeStruct((), dtype)
        return variables

    def map_forward(self, variables: Variables, x: Array, context: Array | None) -> Output:
        return self._run(variables, x, context, (0.0, 1.0))

    def map_forward_and_update(
        self, variables: Variables, x: Array, context: Array | None
    ) -> tuple[Array, Array, Variables]:
        noise, batch_stats = None, variables.get("batch_stats", {})
        if self.trace == "hutchinson":
            draw = rademacher if self.probe == "rademacher" else gaussian
            step = batch_stats["noise_step"]
            noise, batch_stats = draw(step, 0, x.shape), {"noise_step": next_step(step)}
        field = self._field(self.kinetic_energy, self.jacobian_norm)
        return *self._run(variables, x, context, (0.0, 1.0), noise, field), batch_stats

    def map_inverse(self, variables: Variables, z: Array, context: Array | None) -> Output:
        return self._run(variables, z, context, (1.0, 0.0))

    def map_point(
        self, variables: Variables, x: Array, context: Array | None, inverse: bool = False
    ) -> Array:
        times = (1.0, 0.0) if inverse else (0.0, 1.0)
        return self._run(variables, x, context, times, None, self._field(points=True))[0]

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        return self.solver == "dopri5" and not self.grid

    @property
    def closed_form(self) -> bool:
        """Whether the rates need no derivative of a network by automatic differentiation."""
        return self.conditioner is None and not self.circular

    def refined(self) -> dict[str, Any]:
        if self.solver == "rk4":
            return {"num_steps": REFINEMENT * self.num_steps}
        if self.grid:
            return {"grid": finer_grid(self.grid)}
        tolerances = {"rtol": refine(self.rtol), "atol": refine(self.atol)}
        return tolerances | {"max_steps": REFINEMENT * self.max_steps}

    def intervals(self, inverse: bool = False) -> list[Interval]:
        if not self.circular:
            return [REALS]
        angle = ClosedInterval(-math.pi, math.pi)
        return [angle if i in self.circular else REALS for i in range(self.dim)]

    def forward_with_noise(
        self, variables: Variables, x: AnyArray, noise: AnyArray, context: AnyArray | None = None
    ) -> Output:
        """``forward`` in evaluation mode, with the trace estimated from a given probe.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            x: shape ``(*batch, dim)``.
            noise: the probe, of x's shape, with independent entries of mean 0 and variance 1.
            context: as for ``forward``.
        """
        x, context = check_input(self, variables, "x", x, context)
        noise = check_probe(self, variables, noise, x)
        return self._run(variables, x, context, (0.0, 1.0), noise)

    def inverse_with_noise(
        self, variables: Variables, z: AnyArray, noise: AnyArray, context: AnyArray | None = None
    ) -> Output:
        """``inverse`` with the trace estimated from a given probe, see ``forward_with_noise``."""
        z, context = check_input(self, variables, "z", z, context)
        noise = check_probe(self, variables, noise, z)
        return self._run(variables, z, context, (1.0, 0.0), noise)

    def velocity(
        self, variables: Variables, x: AnyArray, t: Array | float, context: AnyArray | None = None
    ) -> Array:
        """f(x, t, context), of x's shape.

        Args:
            variables: the arrays, from ``init``, ``fit`` or ``load``.
            x: shape ``(*batch, dim)``.
            t: the times, a number or of shape ``(*batch,)``.
            context: as for ``forward``.
        """
        x, context = check_input(self, variables, "x", x, context)
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:-1])
        return self.map_velocity(variables, x, t, context)

    def map_velocity(
        self, variables: Variables, x: Array, t: Array, context: Array | None
    ) -> Array:
        """``velocity`` without its checks, t of shape ``(*batch,)``."""

        def network(*inputs: Array) -> Array:
            return jnp.asarray(self.network.apply(child(variables, "network"), *inputs))

        return self.field_by(network, x, t, context)

    def field_by(
        self,
        network: Callable[..., Array],
        x: Array,
        t: Array,
        context: Array | None,
        others: Array | None = None,
    ) -> Array:
        """f by a network of the inputs that this field has; a hollow one may take ``others``, an x too."""
        given = [time_inputs(t, self.time_features), *([] if context is None else [context])]
        inputs, hidden = x, [] if others is None else [others]
        if self.time_scaling:
            slope, variance = time_scales(t[..., None])
            scale = jnp.sqrt(variance)
            inputs, hidden = x / scale, [y / scale for y in hidden]
        if self.circular:
            free = [i for i in range(self.dim) if i not in self.circular]
            angles = x[..., np.array(self.circular)]
            parts = [x[..., np.array(free, int)], jnp.cos(angles), jnp.sin(angles)]
            inputs = jnp.concatenate(parts, -1)
        arguments = _arguments(self.context_apart, inputs, jnp.concatenate(given, -1))
        velocity = network(*arguments, *hidden)
        return slope * x + velocity / scale if self.time_scaling else velocity

    def trajectory(
        self,
        variables: Variables,
        x: AnyArray,
        times: Sequence[float],
        context: AnyArray | None = None,
    ) -> Array:
        """The path that starts in x at ``times[0]``, at all the times: ``(len(times), *batch, dim)``.

        From data to latent the times rise from 0 to 1, from latent to data they fall from 1 to 0. With
        adaptive steps it is one solve, whose steps are interpolated, and whose gradients are those of
        the steps; ``"rk4"`` takes ``num_steps`` from each time to the next.

        Raises:
            ValueError: for times that neither rise nor fall throughout.
        """
        x, context = check_input(self, variables, "x", x, context)
        times = check_times("trajectory", times)
        if self.adaptive and len(times) > 1:
            return self._path(variables, x, context, times)
        path = [x]
        for interval in pairwise(times):
            path.append(self._run(variables, path[-1], context, interval)[0])
        return jnp.stack(path)

    def choose_grid(
        self, variables: Variables, x: AnyArray, context: AnyArray | None = None
    ) -> tuple[float, ...]:
        """The times between which ``forward`` takes its adaptive steps on these rows.

        Raises:
            ValueError: for no rows, and for rows or contexts that are not finite or outside the domain.
        """
        x, context = check_input(self, variables, "x", x, context)
        state, weights, given = self._start(variables, at_least_float32(x), context, None)
        if not state.shape[0] or not bool(given.all()):
            raise ValueError(GRID_ROWS)
        solver = _Dopri5(self.rtol, self.atol, self.max_steps, saves="steps")
        solution = solver.solve(self._field(), state, weights, (0.0, 1.0), _row_norm)
        if not solver.succeeded(solution):
            raise ConvergenceError(solver_message(self.rtol, self.atol, self.max_steps))
        return grid_of([float(t) for t in solution.ts])

    def count_evaluations(
        self, variables: Variables, x: AnyArray, context: AnyArray | None = None
    ) -> int | Array:
        """How often ``forward`` evaluates f on these rows, in evaluation mode."""
        x, context = check_input(self, variables, "x", x, context)
        if self.solver == "rk4":
            return 4 * self.num_steps
        if self.grid:
            return 6 * (len(self.grid) - 1)
        state, weights, _ = self._start(variables, at_least_float32(x), context, None)
        solver, field = _Dopri5(self.rtol, self.atol, self.max_steps), self._field()
        num_steps = solver.solve(field, state, weights, (0.0, 1.0), _row_norm).stats["num_steps"]
        return 3 + 6 * num_steps  # two to choose the first step, one to start, six a step

    @in_float32
    def _run(
        self,
        variables: Variables,
        x: Array,
        context: Array | None,
        times: tuple[float, float],
        noise: Array | None = None,
        field: "Field | None" = None,
    ) -> Output:
        state, weights, given = self._start(variables, x, context, noise)
        field = field or self._field()
        if not self.adaptive or state.shape[0]:  # the first does not ask, so that it exports
            state = self._integrate(field, state, weights, times)
        state = jnp.where(given, state, math.nan)
        return self._points(state).reshape(x.shape), state[:, -1].reshape(x.shape[:-1])

    def _path(
        self, variables: Variables, x: Array, context: Array | None, times: tuple[float, ...]
    ) -> Array:
        """The states of one adaptive solve at all the times."""
        state, weights, given = self._start(variables, at_least_float32(x), context, None)
        path = jnp.broadcast_to(state, (len(times), *state.shape))
        if state.shape[0]:
            solver = _Dopri5(self.rtol, self.atol, self.max_steps, not self.adjoint, "times")
            path = solver.path(self._field(), state, weights, times, _row_norm)
            if is_eager(path) and not jnp.isfinite(path).all():
                raise ConvergenceError(solver_message(self.rtol, self.atol, self.max_steps))
        path = self._points(jnp.where(given, path, math.nan))
        return path.reshape(len(times), *x.shape).astype(x.dtype)

    def _start(
        self, variables: Variables, x: Array, context: Array | None, noise: Array | None
    ) -> tuple[Array, Weights, Array]:
        """The initial state, the weights, and which rows are finite and inside the domain."""
        rows = x.reshape(-1, self.dim)
        given = jnp.isfinite(rows).all(-1, keepdims=True)
        if self.circular:
            angles = rows[:, np.array(self.circular)]
            given = given & (jnp.abs(angles) <= math.pi).all(-1, keepdims=True)
        if context is not None:
            context = at_least_float32(context).reshape(-1, self.context_dim)
            given = given & jnp.isfinite(context).all(-1, keepdims=True)
            context = jnp.where(given, context, 0)
        if noise is not None:
            noise = at_least_float32(noise).reshape(-1, self.dim)
        state = jnp.concatenate([jnp.where(given, rows, 0), jnp.zeros_like(rows[:, :1])], -1)
        return state, self._weights(variables, context, noise), given

    def _points(self, state: Array) -> Array:
        """x of states, its angles on their circle."""
        x = state[..., :-1]
        if not self.circular:
            return x
        columns = [
            wrapped(x[..., i], -math.pi, math.pi) if i in self.circular else x[..., i]
            for i in range(self.dim)
        ]
        return jnp.stack(columns, -1)

    def _field(
        self, kinetic_energy: float = 0.0, jacobian_norm: float = 0.0, points: bool = False
    ) -> "Field":
        if not self.closed_form:
            return _NetworkField(self, kinetic_energy, jacobian_norm, points)
        return _Field(self.activation, kinetic_energy, jacobian_norm, points, self.time_scaling)

    def _weights(self, variables: Variables, context: Array | None, noise: Array | None) -> Weights:
        """What the field needs: the rows of t, what the trace needs, the probe, the layers; without
        a closed form the context, the probe, and all of the network's weights."""
        if not self.closed_form:
            network = {"params": {"network": variables["params"]["network"]}}
            return context, noise, jax.tree.map(at_least_float32, network)
        network = variables["params"]["network"]
        names = [f"layers_{i}" for i in range(len(self.hidden_dims) + 1)]
        network = jax.tree.map(at_least_float32, network)
        layers = [(network[name]["kernel"], network[name]["bias"]) for name in names]
        first, bias = layers[0]
        end = self.dim + 1 + 2 * self.time_features
        if context is not None:
            weight = first[end:]
            bias = jnp.matmul(context, weight, precision=matmul_precision()) + bias
        layers[0] = first[: self.dim], bias
        for_trace = trace_weight(layers) if noise is None else None
        arrays = (array for layer in layers for array in layer)
        return first[self.dim : end], for_trace, noise, *arrays

    def _integrate(
        self, field: "Field", state: Array, weights: Weights, times: tuple[float, float]
    ) -> Array:
        if self.solver == "rk4":
            return _rk4(field, state, weights, times, self.num_steps)
        if self.grid:
            return _steps_of_grid(field, state, weights, grid_between(self.grid, times))
        solver = _Dopri5(self.rtol, self.atol, self.max_steps, direct=not self.adjoint)
        if self.adjoint:
            final = _differentiable(solver, field, times, state, weights)
        else:
            final = solver(field, state, weights, times, _row_norm)
        if is_eager(final) and not jnp.isfinite(final).all():
            raise ConvergenceError(solver_message(self.rtol, self.atol, self.max_steps))
        return final


@dataclass(frozen=True)
class _Field:
    """The rates of x and of log|det|, in one array ``(rows, dim + 1)``; of x alone, and 0, if ``points``."""

    activation: str
    kinetic_energy: float = 0.0
    jacobian_norm: float = 0.0
    points: bool = False
    time_scaling: bool = False

    def __call__(self, t: Array | float, state: Array, weights: Weights) -> Array:
        time, for_trace, noise, *arrays = weights
        layers: list[Any] = list(zip(arrays[::2], arrays[1::2], strict=True))
        layers[0] = layers[0][0], layers[0][1] + _time_term(t, time)
        x = state[:, :-1]
        scale = time_scales(t)[1] ** 0.5 if self.time_scaling else 1.0
        dx, slopes = evaluate(layers, self.activation, x / scale if self.time_scaling else x)
        dx = self._scaled(t, scale * dx if self.time_scaling else dx, x)
        if self.points:
            return jnp.concatenate([dx, jnp.zeros_like(dx[:, :1])], -1)
        if noise is None:
            rate = self._scaled(t, trace(layers, slopes, for_trace), x.shape[-1])
        else:
            pulled = self._scaled(t, vjp(layers, slopes, noise), noise)
            rate = (pulled * noise).sum(-1)
        if self.kinetic_energy:
            rate = rate - self.kinetic_energy * jnp.square(dx).sum(-1)
        if self.jacobian_norm:
            eye = jnp.eye(x.shape[-1], dtype=x.dtype)
            matrix = (
                pulled[..., None, :]
                if noise is not None
                else self._scaled(t, jacobian(layers, slopes), eye)
            )
            rate = rate - self.jacobian_norm * jnp.square(matrix).sum((-2, -1))
        return jnp.concatenate([dx, jnp.broadcast_to(rate, dx.shape[:-1])[..., None]], -1)

    def _scaled(self, t: Array | float, of_network: Array, of_identity: Any) -> Array:
        """What is linear in f, from what it is of the network at x / s and of the identity."""
        if not self.time_scaling:
            return of_network
        slope, variance = time_scales(t)
        return slope * of_identity + of_network / variance


@dataclass(frozen=True)
class _NetworkField:
    """The rates of ``_Field`` for any network, by batched products with its Jacobian."""

    bijector: Any
    kinetic_energy: float = 0.0
    jacobian_norm: float = 0.0
    points: bool = False

    def __call__(self, t: Array | float, state: Array, weights: Weights) -> Array:
        context, noise, variables = weights
        owner, x = self.bijector, state[:, :-1]
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:-1])

        def network(*inputs: Array) -> Array:
            return jnp.asarray(owner.network.apply(child(variables, "network"), *inputs))

        def velocity(x: Array) -> Array:
            return owner.field_by(network, x, t, context)

        if self.points:
            dx = velocity(x)
            return jnp.concatenate([dx, jnp.zeros_like(dx[:, :1])], -1)
        if getattr(owner.network, "hollow", False) and noise is None and not self.jacobian_norm:

            def alone(y: Array) -> Array:
                return owner.field_by(network, y, t, context, x)

            dx, pull = jax.vjp(alone, x)
            rate = pull(jnp.ones_like(x))[0].sum(-1)
        else:
            dx, pull = jax.vjp(velocity, x)
            if noise is not None:
                (pulled,) = pull(noise)
                rate, matrix = (pulled * noise).sum(-1), pulled[..., None, :]
            else:
                eye = jnp.eye(x.shape[-1], dtype=x.dtype)
                rows = jax.vmap(lambda v: pull(jnp.broadcast_to(v, x.shape))[0])(eye)
                matrix = jnp.moveaxis(rows, 0, -2)
                rate = jnp.trace(matrix, axis1=-2, axis2=-1)
        if self.kinetic_energy:
            rate = rate - self.kinetic_energy * jnp.square(dx).sum(-1)
        if self.jacobian_norm:
            rate = rate - self.jacobian_norm * jnp.square(matrix).sum((-2, -1))
        return jnp.concatenate([dx, rate[..., None]], -1)


Field = _Field | _NetworkField


def time_inputs(t: Array, count: int) -> Array:
    """t, and cos(pi j t) and sin(pi j t) for j from 1 to ``count``: ``(*batch, 1 + 2 count)``."""
    if not count:
        return t[..., None]
    angle = t[..., None] * (math.pi * jnp.arange(1, count + 1, dtype=t.dtype))
    return jnp.concatenate([t[..., None], jnp.cos(angle), jnp.sin(angle)], -1)


def time_scales(t: Any) -> tuple[Any, Any]:
    """(2 t - 1) / s^2 and s^2 = (1 - t)^2 + t^2, see ``time_scaling``."""
    variance = (1 - t) ** 2 + t**2
    return (2 * t - 1) / variance, variance


def _time_term(t: Array | float, weight: Array) -> Array:
    """What t adds to the first layer, by its rows ``(1 + 2 count, out)``."""
    if len(weight) == 1:
        return t * weight[0]
    given = time_inputs(jnp.asarray(t, weight.dtype), len(weight) // 2)
    return jnp.matmul(given, weight, precision=matmul_precision())


def _arguments(apart: bool, x: Array, given: Array) -> tuple[Array, ...]:
    return (x, given) if apart else (jnp.concatenate([x, given], -1),)


def _rk4(
    field: Field, state: Array, weights: Weights, times: tuple[float, float], num_steps: int
) -> Array:
    step = (times[1] - times[0]) / num_steps

    def advance(state: Array, i: Array) -> tuple[Array, None]:
        t = times[0] + i * step
        k1 = field(t, state, weights)
        k2 = field(t + step / 2, state + step / 2 * k1, weights)
        k3 = field(t + step / 2, state + step / 2 * k2, weights)
        k4 = field(t + step, state + step * k3, weights)
        return state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return jax.lax.scan(advance, state, jnp.arange(num_steps, dtype=state.dtype))[0]


def _steps_of_grid(field: Field, state: Array, weights: Weights, grid: Sequence[float]) -> Array:
    """One step of Dormand and Prince from each time to the next."""

    def advance(state: Array, times: tuple[Array, Array]) -> tuple[Array, None]:
        t, step = times
        rates = [field(t, state, weights)]
        for node, row in DOPRI5[:-1]:
            moved = state + step * _combined(row, rates)
            rates.append(field(t + node * step, moved, weights))
        return state + step * _combined(DOPRI5[-1][1], rates), None

    steps = [end - t for t, end in pairwise(grid)]
    times = jnp.asarray(grid[:-1], state.dtype), jnp.asarray(steps, state.dtype)
    return jax.lax.scan(advance, state, times)[0]


def _combined(row: Sequence[float], rates: Sequence[Array]) -> Array:
    total = row[0] * rates[0]
    for factor, rate in zip(row[1:], rates[1:], strict=True):
        total = total + factor * rate
    return total


def _row_norm(state: Array) -> Array:
    """The largest over rows, of the root mean square of x and the size of log|det|.

    NaN counts as infinite, so that such a step is refused.
    """
    state = jax.lax.stop_gradient(state)
    points = jnp.sqrt(jnp.square(state[:, :-1]).mean(-1).max())
    largest = jnp.maximum(points, jnp.abs(state[:, -1]).max())
    return jnp.where(jnp.isnan(largest), math.inf, largest)


def _adjoint_norm(augmented: tuple[Array, ...]) -> Array:
    """The norm of the state and of its adjoint; the gradients of the weights only follow them."""
    return jnp.maximum(_row_norm(augmented[0]), _row_norm(augmented[1]))


@dataclass(frozen=True)
class _Dopri5:
    rtol: float
    atol: float
    max_steps: int
    direct: bool = False  # whether derivatives are those of the steps, in every mode and order
    saves: str = "end"  # or the states at all "times", or the times of all "steps"

    def solve(
        self,
        field: Callable[..., Any],
        state: Any,
        weights: Weights,
        times: tuple[float, ...],
        norm: Callable[[Any], Array],
    ) -> Any:
        try:
            import diffrax
        except ImportError as error:
            raise ImportError(missing_solver("diffrax", "jax")) from error
        dtype = jax.tree.leaves(state)[0].dtype
        saved = diffrax.SaveAt(t1=True)
        if self.saves == "times":
            saved = diffrax.SaveAt(ts=jnp.asarray(times, dtype))
        elif self.saves == "steps":
            saved = diffrax.SaveAt(steps=True, fn=lambda t, y, args: None)
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            *(jnp.asarray(t, dtype) for t in (times[0], times[-1])),
            dt0=None,
            y0=state,
            args=weights,
            stepsize_controller=_controller()(
                STEP_SHARE * self.rtol,
                STEP_SHARE * self.atol,
                norm=norm,
                first=self._first_step(field, state, weights, times, norm),
            ),
            saveat=saved,
            max_steps=self.max_steps,
            throw=False,
            adjoint=diffrax.DirectAdjoint()
            if self.direct
            else diffrax.RecursiveCheckpointAdjoint(),
        )

    def succeeded(self, solution: Any) -> Array:
        """Whether a solution is one."""
        import diffrax

        return jnp.asarray(solution.result == diffrax.RESULTS.successful)

    def path(self, *args: Any) -> Any:
        """The states that the solution holds."""
        solution = self.solve(*args)
        succeeded = self.succeeded(solution)
        return jax.tree.map(lambda y: jnp.where(succeeded, y, math.nan), solution.ys)

    def __call__(self, *args: Any) -> Any:
        return jax.tree.map(lambda y: y[-1], self.path(*args))

    def _first_step(
        self,
        field: Callable[..., Any],
        state: Any,
        weights: Weights,
        times: tuple[float, ...],
        norm: Callable[[Any], Array],
    ) -> Array:
        """The size of the first step; of small fields all of the way."""
        parts, weights = jax.lax.stop_gradient((state, weights))

        def rates(t: Array, parts: Any) -> Any:
            return field(t, parts, weights)

        def size(parts: Any) -> Array:
            return norm(jax.tree.map(lambda part, scale: part / scale, parts, scales))

        start, way = jnp.asarray(times[0], jax.tree.leaves(parts)[0].dtype), times[-1] - times[0]
        scales = jax.tree.map(lambda a: STEP_SHARE * (self.atol + self.rtol * jnp.abs(a)), parts)
        rate = rates(start, parts)
        extent, speed = size(parts), size(rate)
        short = jnp.where(jnp.minimum(extent, speed) > 1e-5, 0.01 * extent / speed, 1e-6)
        short = math.copysign(1, way) * jnp.minimum(short, abs(way))
        moved = rates(start + short, jax.tree.map(lambda a, b: a + short * b, parts, rate))
        change = size(jax.tree.map(lambda a, b: (a - b) / short, moved, rate))
        step = initial_step(speed, change)
        return jnp.maximum(jnp.where(step < abs(way), step, abs(way)), 1e-6 * abs(way))


@cache
def _controller() -> Any:
    """diffrax's, with a first step of its own: one given to ``diffeqsolve`` is checked on the host."""
    import diffrax

    class Controller(diffrax.PIDController):
        first: Any = None

        def init(self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: Any, *given: Any) -> Any:
            return super().init(terms, t0, t1, y0, self.first, *given)

    return Controller


def _differentiable(*args: Any) -> Array:
    """``_adjoint``, or ``TypeError`` in forward mode; in compiled code JAX's own one."""
    try:
        return _adjoint(*args)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(NO_FORWARD_MODE) from error


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _adjoint(
    solver: _Dopri5, field: Field, times: tuple[float, float], state: Array, weights: Weights
) -> Array:
    """The solution with gradients from the adjoint equation, integrated back along the path.

    It is linear in the gradient, which is scaled to 1 so that the tolerances are relative to it.
    """
    return solver(field, state, weights, times, _row_norm)


def _adjoint_forward(
    solver: _Dopri5, field: Field, times: tuple[float, float], state: Array, weights: Weights
) -> tuple[Array, Any]:
    final = solver(field, state, weights, times, _row_norm)
    return final, (final, weights)


@dataclass(frozen=True)
class _Augmented:
    """The rates of the state, of its adjoint and of the gradients of the weights."""

    field: Field

    def __call__(self, t: Array, augmented: tuple[Any, ...], weights: Weights) -> tuple[Any, ...]:
        state, adjoint, _ = augmented
        rate, pull = jax.vjp(lambda *args: self.field(t, *args), state, weights)
        return rate, *pull(-adjoint)


def _adjoint_backward(
    solver: _Dopri5, field: Field, times: tuple[float, float], saved: Any, gradient: Array
) -> tuple[Array, Weights]:
    final, weights = saved
    scale = jnp.abs(gradient).max()
    scale = jnp.where(scale > 0, scale, 1)
    start = final, gradient / scale, jax.tree.map(jnp.zeros_like, weights)
    _, adjoint, found = solver(_Augmented(field), start, weights, times[::-1], _adjoint_norm)
    return adjoint * scale, jax.tree.map(lambda g: g * scale, found)


_adjoint.defvjp(_adjoint_forward, _adjoint_backward)
