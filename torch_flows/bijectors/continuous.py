"""Continuous-time flows: the map from one end of a differential equation to the other."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from flow_bridge import checks
from flow_bridge.domains import REALS, ClosedInterval, Interval
from flow_bridge.errors import ConvergenceError
from flow_bridge.networks import Network, as_network
from flow_bridge.ode import (
    DOPRI5,
    GRID_ROWS,
    HOST_STEPS,
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
from torch_flows.bijectors.base import Bijector, Output
from torch_flows.derivatives import evaluate, jacobian, trace, trace_weight, vjp
from torch_flows.devices import own_rows
from torch_flows.inputs import check_input, check_probe
from torch_flows.networks.conditioner import build_conditioner
from torch_flows.networks.mlp import MLP
from torch_flows.networks.regularization import acts_in_training
from torch_flows.numerics import (
    advance,
    at_least_float32,
    first_step,
    full_precision,
    gaussian,
    has_tangent,
    in_float32,
    is_eager,
    rademacher,
)
from torch_flows.registry import register
from torch_flows.univariate.circular import wrapped

Weights = tuple[Any, ...]

CHUNK = 16
"""Columns of a Jacobian in one product: more leave the caches, and were 6 times slower at dim 256."""


@register
class ContinuousBijector(Bijector):
    """z = x(1), where dx/dt = f(x, t, context) from x(0) = x; log|det| is the integral of tr(df/dx).

    f is a network of (x, t, context). The inverse integrates from t = 1 to 0. It is fitted by maximum
    likelihood, which integrates for every step, or by the loss ``FlowMatching``, which does not.

    - ``solver="dopri5"``: adaptive steps (torchdiffeq), bounded by ``max_steps``. The error of every
      row is controlled by itself, and its log|det| apart from x: the norm is the largest over them,
      so that none is diluted by the others. A row with a NaN or an infinity gives NaN and takes no
      part. The steps are chosen on the host, so this solver cannot be compiled or mapped. z, x and
      log|det| are within 10 times the tolerance of the exact ones (relative, above 1), unless the
      dynamics themselves multiply errors.
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
        ImportError: without torchdiffeq, for ``"dopri5"``.

    Reference: Chen et al. (2018), arXiv:1806.07366; Grathwohl et al. (2019), FFJORD, arXiv:1810.01367;
    the penalties: Finlay et al. (2020), arXiv:2002.02798.

    Examples:
        >>> import torch, torch_flows
        >>> bijector = torch_flows.ContinuousBijector(dim=2, hidden_dims=(8,), solver="rk4", num_steps=4)
        >>> z, log_det = bijector.forward(torch.zeros(5, 2))
        >>> tuple(z.shape), tuple(log_det.shape)
        ((5, 2), (5,))
    """

    noise_step: Tensor

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        trace: str = "exact",
        solver: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        adjoint: bool = True,
        activation: str = "tanh",
        probe: str = "rademacher",
        num_steps: int = 20,
        max_steps: int = 1000,
        kinetic_energy: float = 0.0,
        jacobian_norm: float = 0.0,
        context_dim: int = 0,
        conditioner: Network | type | None = None,
        time_features: int = 0,
        time_scaling: bool = False,
        circular: Sequence[int] = (),
        grid: Sequence[float] = (),
    ) -> None:
        super().__init__()
        name = "ContinuousBijector"
        checks.positive_int(name, dim=dim, num_steps=num_steps, max_steps=max_steps)
        checks.non_negative_int(name, context_dim=context_dim, time_features=time_features)
        checks.one_of(name, "trace", trace, ("exact", "hutchinson"))
        checks.one_of(name, "solver", solver, ("dopri5", "rk4"))
        checks.one_of(name, "probe", probe, ("rademacher", "gaussian"))
        checks.open_interval(name, "rtol", rtol, 0, 1)
        checks.open_interval(name, "atol", atol, 0, 1)
        checks.boolean(name, adjoint=adjoint, time_scaling=time_scaling)
        check_spaces(name, dim, circular, time_scaling)
        check_grid(name, solver, grid)
        if solver == "dopri5" and not grid:
            _import_solver()
        checks.non_negative_number(name, kinetic_energy=kinetic_energy, jacobian_norm=jacobian_norm)
        self.dim = dim
        self.hidden_dims = tuple(hidden_dims)
        self.trace = trace
        self.solver = solver
        self.rtol = rtol
        self.atol = atol
        self.adjoint = adjoint
        self.activation = activation
        self.probe = probe
        self.num_steps = num_steps
        self.max_steps = max_steps
        self.kinetic_energy = kinetic_energy
        self.jacobian_norm = jacobian_norm
        self.context_dim = context_dim
        self.time_features = time_features
        self.time_scaling = time_scaling
        self.circular = tuple(circular)
        self.grid = tuple(grid)
        self.event_shape = (dim,)
        given = 1 + 2 * time_features + context_dim
        self.conditioner: Network | None = None
        self.context_apart = False
        seen = dim + len(self.circular)
        if conditioner is None:
            self.network: nn.Module = MLP(seen + given, dim, hidden_dims, activation)
        else:
            self.conditioner = as_network(name, conditioner, MLP)
            self.context_apart = self.conditioner.takes("context_dim")
            self.network = build_conditioner(name, self.conditioner, seen, dim, 1, given)
            kind = self.conditioner.cls.__name__
            checks.same_in_training(name, kind, acts_in_training(self.network))
        if trace == "hutchinson":
            self.register_buffer("noise_step", first_step(torch.zeros(())))

    def map_forward(self, x: Tensor, context: Tensor | None) -> Output:
        if not self.training:
            return self._run(x, context, (0.0, 1.0))
        noise = None
        if self.trace == "hutchinson":
            draw = rademacher if self.probe == "rademacher" else gaussian
            noise = own_rows(partial(draw, self.noise_step, 0), x.shape)
            advance(self.noise_step)
        field = self._field(self.kinetic_energy, self.jacobian_norm)
        return self._run(x, context, (0.0, 1.0), noise, field)

    def map_inverse(self, z: Tensor, context: Tensor | None) -> Output:
        return self._run(z, context, (1.0, 0.0))

    def map_point(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> Tensor:
        times = (1.0, 0.0) if inverse else (0.0, 1.0)
        return self._run(x, context, times, None, self._field(points=True))[0]

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

    def forward_with_noise(self, x: Tensor, noise: Tensor, context: Tensor | None = None) -> Output:
        """``forward`` in evaluation mode, with the trace estimated from a given probe.

        Args:
            x: shape ``(*batch, dim)``.
            noise: the probe, of x's shape, with independent entries of mean 0 and variance 1.
            context: as for ``forward``.
        """
        context = check_input(self, "x", x, context)
        return self._run(x, context, (0.0, 1.0), check_probe(self, noise, x))

    def inverse_with_noise(self, z: Tensor, noise: Tensor, context: Tensor | None = None) -> Output:
        """``inverse`` with the trace estimated from a given probe, see ``forward_with_noise``."""
        context = check_input(self, "z", z, context)
        return self._run(z, context, (1.0, 0.0), check_probe(self, noise, z))

    def velocity(self, x: Tensor, t: Tensor | float, context: Tensor | None = None) -> Tensor:
        """f(x, t, context), of x's shape.

        Args:
            x: shape ``(*batch, dim)``.
            t: the times, a number or of shape ``(*batch,)``.
            context: as for ``forward``.
        """
        context = check_input(self, "x", x, context)
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(x.shape[:-1])
        return self.map_velocity(x, t, context)

    def map_velocity(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """``velocity`` without its checks, t of shape ``(*batch,)``."""
        return self.field_by(self.network, x, t, context)

    def field_by(
        self,
        network: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        context: Tensor | None,
        others: Tensor | None = None,
    ) -> Tensor:
        """f by a network of the inputs that this field has; a hollow one may take ``others``, an x too."""
        given = [time_inputs(t, self.time_features), *([] if context is None else [context])]
        inputs, hidden = x, [] if others is None else [others]
        if self.time_scaling:
            slope, variance = time_scales(t.unsqueeze(-1))
            scale = variance.sqrt()
            inputs, hidden = x / scale, [y / scale for y in hidden]
        if self.circular:
            free = [i for i in range(self.dim) if i not in self.circular]
            angles = x[..., list(self.circular)]
            inputs = torch.cat([x[..., free], angles.cos(), angles.sin()], -1)
        velocity = network(*_arguments(self.context_apart, inputs, torch.cat(given, -1)), *hidden)
        return slope * x + velocity / scale if self.time_scaling else velocity

    def trajectory(
        self, x: Tensor, times: Sequence[float], context: Tensor | None = None
    ) -> Tensor:
        """The path that starts in x at ``times[0]``, at all the times: ``(len(times), *batch, dim)``.

        From data to latent the times rise from 0 to 1, from latent to data they fall from 1 to 0. With
        adaptive steps it is one solve, whose steps are interpolated, and whose gradients are those of
        the steps; ``"rk4"`` takes ``num_steps`` from each time to the next.

        Raises:
            ValueError: for times that neither rise nor fall throughout.
        """
        context = check_input(self, "x", x, context)
        times = check_times("trajectory", times)
        if self.adaptive and len(times) > 1:
            return self._path(x, context, times)
        path = [x]
        for interval in pairwise(times):
            path.append(self._run(path[-1], context, interval)[0])
        return torch.stack(path)

    def choose_grid(self, x: Tensor, context: Tensor | None = None) -> tuple[float, ...]:
        """The times between which ``forward`` takes its adaptive steps on these rows.

        Raises:
            ValueError: for no rows, and for rows or contexts that are not finite or outside the domain.
        """
        context = check_input(self, "x", x, context)
        ends: list[float] = []
        solver = _Dopri5(self.rtol, self.atol, self.max_steps, ends.append)
        with torch.no_grad():
            state, weights, given = self._start(at_least_float32(x), context, None)
            if not state.shape[0] or not bool(given.all()):
                raise ValueError(GRID_ROWS)
            field = self._field()
            solver(lambda t, y: field(t, y, weights), state, (0.0, 1.0), _row_norm)
        return grid_of(ends)

    def count_evaluations(self, x: Tensor, context: Tensor | None = None) -> int:
        """How often ``forward`` evaluates f on these rows, in evaluation mode."""
        count = 0

        def counted(*args: Any) -> Tensor:
            nonlocal count
            count += 1
            return field(*args)

        context = check_input(self, "x", x, context)
        with torch.no_grad():
            field = self._field()
            self._run(x, context, (0.0, 1.0), None, counted)
        return count

    @full_precision
    @in_float32
    def _run(
        self,
        x: Tensor,
        context: Tensor | None,
        times: tuple[float, float],
        noise: Tensor | None = None,
        field: "Field | None" = None,
    ) -> Output:
        state, weights, given = self._start(x, context, noise)
        field = field or self._field()
        if not self.adaptive or state.shape[0]:  # the first does not ask, so that it exports
            state = self._integrate(field, state, weights, times)
        state = torch.where(given, state, torch.nan)
        return self._points(state).reshape(x.shape), state[:, -1].reshape(x.shape[:-1])

    @full_precision
    def _path(self, x: Tensor, context: Tensor | None, times: tuple[float, ...]) -> Tensor:
        """The states of one adaptive solve at all the times."""
        state, weights, given = self._start(at_least_float32(x), context, None)
        path = state.expand(len(times), *state.shape)
        if state.shape[0]:
            _refuse_transforms(state)
            field = self._field()
            solver = _Dopri5(self.rtol, self.atol, self.max_steps)
            path = solver.path(lambda t, y: field(t, y, weights), state, times, _row_norm)
        path = self._points(torch.where(given, path, torch.nan))
        return path.reshape(len(times), *x.shape).to(x.dtype)

    def _start(
        self, x: Tensor, context: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Weights, Tensor]:
        """The initial state, the weights, and which rows are finite and inside the domain."""
        rows = x.reshape(-1, self.dim)
        given = rows.isfinite().all(-1, keepdim=True)
        if self.circular:
            angles = rows[:, list(self.circular)]
            given = given & (angles.abs() <= math.pi).all(-1, keepdim=True)
        if context is not None:
            context = at_least_float32(context).reshape(-1, self.context_dim)
            given = given & context.isfinite().all(-1, keepdim=True)
            context = torch.where(given, context, 0)
        if noise is not None:
            noise = at_least_float32(noise).reshape(-1, self.dim)
        state = torch.cat([torch.where(given, rows, 0), torch.zeros_like(rows[:, :1])], -1)
        return state, self._weights(context, noise), given

    def _points(self, state: Tensor) -> Tensor:
        """x of states, its angles on their circle."""
        x = state[..., :-1]
        if not self.circular:
            return x
        columns = [
            wrapped(column, -math.pi, math.pi) if i in self.circular else column
            for i, column in enumerate(x.unbind(-1))
        ]
        return torch.stack(columns, -1)

    def _field(
        self, kinetic_energy: float = 0.0, jacobian_norm: float = 0.0, points: bool = False
    ) -> "Field":
        if not self.closed_form:
            return _NetworkField(self, kinetic_energy, jacobian_norm, points)
        return _Field(self.activation, kinetic_energy, jacobian_norm, points, self.time_scaling)

    def _weights(self, context: Tensor | None, noise: Tensor | None) -> Weights:
        """What the field needs: the columns of t, what the trace needs, the probe, the layers; without
        a closed form the context, the probe, and all of the network's weights."""
        network: Any = self.network
        if not self.closed_form:
            return context, noise, *map(at_least_float32, network.parameters())
        layers: list[tuple[Tensor, Tensor]] = [
            (at_least_float32(a.weight), at_least_float32(a.bias)) for a in network.layers
        ]
        first, bias = layers[0]
        end = self.dim + 1 + 2 * self.time_features
        if context is not None:
            bias = context @ first[:, end:].T + bias
        layers[0] = first[:, : self.dim], bias
        for_trace = trace_weight(layers) if noise is None else None
        arrays = (array for layer in layers for array in layer)
        return first[:, self.dim : end], for_trace, noise, *arrays

    def _integrate(
        self, field: "Field", state: Tensor, weights: Weights, times: tuple[float, float]
    ) -> Tensor:
        if self.solver == "rk4":
            return _rk4(field, state, weights, times, self.num_steps)
        if self.grid:
            return _steps_of_grid(field, state, weights, grid_between(self.grid, times))
        _refuse_transforms(state)
        solver = _Dopri5(self.rtol, self.atol, self.max_steps)
        if self.adjoint and is_eager() and torch.is_grad_enabled():
            return _Adjoint.apply(solver, field, times, state, *weights)
        return solver(lambda t, y: field(t, y, weights), state, times, _row_norm)


@dataclass(frozen=True)
class _Field:
    """The rates of x and of log|det|, in one array ``(rows, dim + 1)``; of x alone, and 0, if ``points``."""

    activation: str
    kinetic_energy: float = 0.0
    jacobian_norm: float = 0.0
    points: bool = False
    time_scaling: bool = False

    def __call__(self, t: Tensor | float, state: Tensor, weights: Weights) -> Tensor:
        time, for_trace, noise, *arrays = weights
        layers: list[Any] = list(zip(arrays[::2], arrays[1::2], strict=True))
        layers[0] = layers[0][0], layers[0][1] + _time_term(t, time)
        x = state[:, :-1]
        scale = time_scales(t)[1] ** 0.5 if self.time_scaling else 1.0
        dx, slopes = evaluate(layers, self.activation, x / scale if self.time_scaling else x)
        dx = self._scaled(t, scale * dx if self.time_scaling else dx, x)
        if self.points:
            return torch.cat([dx, torch.zeros_like(dx[:, :1])], -1)
        if noise is None:
            rate = self._scaled(t, trace(layers, slopes, for_trace), x.shape[-1])
        else:
            pulled = self._scaled(t, vjp(layers, slopes, noise), noise)
            rate = (pulled * noise).sum(-1)
        if self.kinetic_energy:
            rate = rate - self.kinetic_energy * dx.square().sum(-1)
        if self.jacobian_norm:
            eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
            matrix = (
                pulled.unsqueeze(-2)
                if noise is not None
                else self._scaled(t, jacobian(layers, slopes), eye)
            )
            rate = rate - self.jacobian_norm * matrix.square().sum((-2, -1))
        return torch.cat([dx, rate.expand(dx.shape[:-1]).unsqueeze(-1)], -1)

    def _scaled(self, t: Tensor | float, of_network: Tensor, of_identity: Any) -> Tensor:
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

    def __call__(self, t: Tensor | float, state: Tensor, weights: Weights) -> Tensor:
        context, noise, *arrays = weights
        owner, x = self.bijector, state[:, :-1].contiguous()  # as products of compiled code need it
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(x.shape[:-1])
        named = dict(zip(dict(owner.network.named_parameters()), arrays, strict=True))

        def network(*inputs: Tensor) -> Tensor:
            return torch.func.functional_call(owner.network, named, inputs)

        def velocity(x: Tensor) -> Tensor:
            return owner.field_by(network, x, t, context)

        if self.points:
            dx = velocity(x)
            return torch.cat([dx, torch.zeros_like(dx[:, :1])], -1)
        # products from the left: PyTorch's forward mode of layer_norm has wrong gradients, and some
        # operations have none
        if getattr(owner.network, "hollow", False) and noise is None and not self.jacobian_norm:

            def alone(y: Tensor) -> Tensor:
                return owner.field_by(network, y, t, context, x)

            dx, pull, *_ = torch.func.vjp(alone, x)
            rate = pull(torch.ones_like(x))[0].sum(-1)
        else:
            dx, pull, *_ = torch.func.vjp(velocity, x)
            if noise is not None:
                (pulled,) = pull(noise)
                rate, matrix = (pulled * noise).sum(-1), pulled.unsqueeze(-2)
            else:
                eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
                chunk = CHUNK if is_eager() else None
                rows = torch.func.vmap(lambda v: pull(v.expand_as(x))[0], chunk_size=chunk)(eye)
                matrix = rows.movedim(0, -2)
                rate = matrix.diagonal(0, -2, -1).sum(-1)
        if self.kinetic_energy:
            rate = rate - self.kinetic_energy * dx.square().sum(-1)
        if self.jacobian_norm:
            rate = rate - self.jacobian_norm * matrix.square().sum((-2, -1))
        return torch.cat([dx, rate.unsqueeze(-1)], -1)


Field = _Field | _NetworkField | Callable[..., Tensor]


def time_inputs(t: Tensor, count: int) -> Tensor:
    """t, and cos(pi j t) and sin(pi j t) for j from 1 to ``count``: ``(*batch, 1 + 2 count)``."""
    if not count:
        return t.unsqueeze(-1)
    angle = t.unsqueeze(-1) * (math.pi * torch.arange(1, count + 1, dtype=t.dtype, device=t.device))
    return torch.cat([t.unsqueeze(-1), angle.cos(), angle.sin()], -1)


def time_scales(t: Any) -> tuple[Any, Any]:
    """(2 t - 1) / s^2 and s^2 = (1 - t)^2 + t^2, see ``time_scaling``."""
    variance = (1 - t) ** 2 + t**2
    return (2 * t - 1) / variance, variance


def _time_term(t: Tensor | float, weight: Tensor) -> Tensor:
    """What t adds to the first layer, by its columns ``(out, 1 + 2 count)``."""
    if weight.shape[1] == 1:
        return t * weight[:, 0]
    given = torch.as_tensor(t, dtype=weight.dtype, device=weight.device)
    return weight @ time_inputs(given, weight.shape[1] // 2)


def _arguments(apart: bool, x: Tensor, given: Tensor) -> tuple[Tensor, ...]:
    return (x, given) if apart else (torch.cat([x, given], -1),)


def _rk4(
    field: Field, state: Tensor, weights: Weights, times: tuple[float, float], num_steps: int
) -> Tensor:
    step = (times[1] - times[0]) / num_steps
    for i in range(num_steps):
        t = times[0] + i * step
        k1 = field(t, state, weights)
        k2 = field(t + step / 2, state + step / 2 * k1, weights)
        k3 = field(t + step / 2, state + step / 2 * k2, weights)
        k4 = field(t + step, state + step * k3, weights)
        state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def _steps_of_grid(field: Field, state: Tensor, weights: Weights, grid: Sequence[float]) -> Tensor:
    """One step of Dormand and Prince from each time to the next."""
    for t, end in pairwise(grid):
        step = end - t
        rates = [field(t, state, weights)]
        for node, row in DOPRI5[:-1]:
            moved = state + step * _combined(row, rates)
            rates.append(field(t + node * step, moved, weights))
        state = state + step * _combined(DOPRI5[-1][1], rates)
    return state


def _combined(row: Sequence[float], rates: Sequence[Tensor]) -> Tensor:
    total = row[0] * rates[0]
    for factor, rate in zip(row[1:], rates[1:], strict=True):
        total = total + factor * rate
    return total


def _row_norm(state: Tensor) -> Tensor:
    """The largest over rows, of the root mean square of x and the size of log|det|.

    NaN counts as infinite, so that such a step is refused.
    """
    points = state[:, :-1].square().mean(-1).amax().sqrt()
    largest = torch.maximum(points, state[:, -1].abs().amax())
    return torch.where(largest.isnan(), torch.inf, largest)


def _adjoint_norm(augmented: tuple[Tensor, ...]) -> Tensor:
    """The norm of the state and of its adjoint; the gradients of the weights only follow them."""
    return torch.maximum(_row_norm(augmented[0]), _row_norm(augmented[1]))


def _import_solver() -> None:
    """What torchdiffeq makes when it is imported must be made outside of traced programs, on the CPU."""
    with suppress(ImportError), torch.device("cpu"):
        import torchdiffeq  # noqa: F401


@dataclass(frozen=True)
class _Dopri5:
    rtol: float
    atol: float
    max_steps: int
    on_step: Callable[[float], None] | None = None

    def path(
        self, field: Callable[..., Any], state: Any, times: tuple[float, ...], norm: Callable
    ) -> Any:
        """The states at all the times."""
        try:
            from torchdiffeq import odeint
        except ImportError as error:
            raise ImportError(missing_solver("torchdiffeq", "torch")) from error
        on_step = self.on_step
        if on_step is not None:
            field.callback_accept_step = lambda t, y, dt: on_step(float(t + dt))  # type: ignore[attr-defined]
        like = state if isinstance(state, Tensor) else state[0]
        t = torch.tensor(times, dtype=like.dtype, device=like.device)
        # a last step beyond the end would be interpolated, with more of an error than steps may leave
        options = {"norm": norm, "max_num_steps": self.max_steps, "step_t": t[-1:]}
        options["first_step"] = self._first_step(field, state, times, norm)
        tolerances = {"rtol": STEP_SHARE * self.rtol, "atol": STEP_SHARE * self.atol}
        try:
            return odeint(field, state, t, **tolerances, method="dopri5", options=options)
        except AssertionError as error:
            message = solver_message(self.rtol, self.atol, self.max_steps)
            raise ConvergenceError(message) from error

    def __call__(
        self, field: Callable[..., Any], state: Any, times: tuple[float, float], norm: Callable
    ) -> Any:
        path = self.path(field, state, times, norm)
        return path[-1] if isinstance(state, Tensor) else tuple(part[-1] for part in path)

    @torch.no_grad()
    def _first_step(
        self, field: Callable[..., Any], state: Any, times: tuple[float, ...], norm: Callable
    ) -> Tensor:
        """The size of the first step; of small fields all of the way."""
        alone = isinstance(state, Tensor)
        parts = (state,) if alone else state

        def rates(t: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
            return (field(t, parts[0]),) if alone else field(t, tuple(parts))

        def size(parts: Sequence[Tensor]) -> Tensor:
            scaled = [part / scale for part, scale in zip(parts, scales, strict=True)]
            return norm(scaled[0] if alone else tuple(scaled))

        start, way = parts[0].new_tensor(times[0]), times[-1] - times[0]
        scales = [STEP_SHARE * (self.atol + self.rtol * part.abs()) for part in parts]
        rate = rates(start, parts)
        extent, speed = size(parts), size(rate)
        short = torch.where(torch.minimum(extent, speed) > 1e-5, 0.01 * extent / speed, 1e-6)
        short = math.copysign(1, way) * short.clamp(max=abs(way))
        moved = rates(start + short, [a + short * b for a, b in zip(parts, rate, strict=True)])
        change = size([(a - b) / short for a, b in zip(moved, rate, strict=True)])
        step = initial_step(speed, change)
        return torch.where(step < abs(way), step, abs(way)).clamp(min=1e-6 * abs(way))


class _Adjoint(torch.autograd.Function):
    """The solution with gradients from the adjoint equation, integrated back along the path.

    It is linear in the gradient, which is scaled to 1 so that the tolerances are relative to it. Where
    the gradient itself is to be differentiated, it comes from the steps instead.
    """

    @staticmethod
    def forward(ctx: Any, solver: _Dopri5, field: Field, times: Any, *arrays: Any) -> Tensor:
        state, *weights = arrays
        final = solver(lambda t, y: field(t, y, tuple(weights)), state, times, _row_norm)
        ctx.solver, ctx.field, ctx.times = solver, field, times
        ctx.save_for_backward(final, *arrays)
        return final

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        final, *arrays = ctx.saved_tensors
        _refuse_transforms(gradient)
        if torch.is_grad_enabled():  # create_graph=True
            return None, None, None, *_differentiate_steps(ctx, arrays, gradient)
        weights = arrays[1:]
        wanted = [i for i in range(len(weights)) if ctx.needs_input_grad[4 + i]]
        inputs: list[Any] = [None if w is None else w.detach() for w in weights]
        scale = gradient.abs().amax()
        scale = torch.where(scale > 0, scale, 1)

        def rates(t: Tensor, augmented: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                state = augmented[0].detach().requires_grad_()
                for i in wanted:
                    inputs[i].requires_grad_()
                rate = ctx.field(t, state, tuple(inputs))
                wrt = [state, *(inputs[i] for i in wanted)]
                found = torch.autograd.grad(rate, wrt, -augmented[1], allow_unused=True)
            pairs = zip(found, wrt, strict=True)
            return rate.detach(), *(torch.zeros_like(w) if g is None else g for g, w in pairs)

        zeros = [torch.zeros_like(weights[i]) for i in wanted]
        start = (final, gradient / scale, *zeros)
        _, adjoint, *found = ctx.solver(rates, start, ctx.times[::-1], _adjoint_norm)
        gradients: list[Tensor | None] = [None] * len(weights)
        for i, value in zip(wanted, found, strict=True):
            gradients[i] = value * scale
        return None, None, None, adjoint * scale, *gradients


def _differentiate_steps(
    ctx: Any, arrays: Sequence[Tensor | None], gradient: Tensor
) -> list[Tensor | None]:
    """The gradients of the state and the weights, with a graph of their own."""
    # aliases, because one weight may have been made of others
    aliases: list[Any] = [None if a is None else a.view_as(a) for a in arrays]
    state, *weights = aliases
    final = ctx.solver(lambda t, y: ctx.field(t, y, tuple(weights)), state, ctx.times, _row_norm)
    wanted = [i for i in range(len(arrays)) if ctx.needs_input_grad[3 + i]]
    wrt = [aliases[i] for i in wanted]
    found = torch.autograd.grad(final, wrt, gradient, create_graph=True, allow_unused=True)
    gradients: list[Tensor | None] = [None] * len(arrays)
    for i, value in zip(wanted, found, strict=True):
        gradients[i] = value
    return gradients


def _refuse_transforms(state: Tensor) -> None:
    """Raise ``NotImplementedError`` where the solver's steps cannot be chosen or differentiated."""
    mapped = torch._C._functorch.is_legacy_batchedtensor(state)  # is_grads_batched=True
    if has_tangent(state) or mapped or torch._C._are_functorch_transforms_active():
        raise NotImplementedError(HOST_STEPS)
