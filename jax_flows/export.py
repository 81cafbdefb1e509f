"""Flows as files that run without this package: serialised ``jax.export`` programs (StableHLO)."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from flow_bridge import deployment as bridge
from jax_flows.bijectors.base import Bijector
from jax_flows.bijectors.continuous import ContinuousBijector
from jax_flows.bijectors.structure import Chain
from jax_flows.flows import Flow
from jax_flows.inputs import check_input
from jax_flows.variables import AnyArray, HasVariables, Output, Variables, weight_dtype


def export(
    flow: HasVariables,
    variables: Variables,
    path: str | os.PathLike[str],
    method: str = "log_prob",
    platforms: Sequence[str] | None = None,
    vjp_order: int = 0,
) -> None:
    """Write one method of a flow or bijector, with its weights, as a program for other processes.

    The program is that of evaluation mode, for one leading batch axis of any size from 1, in the
    weights' dtype. Its arguments are x (``"inverse"``: z) of shape ``(batch, *event_shape)`` and, if
    the flow takes one, a context ``(batch, context_dim)``; it does not check their values.

    Args:
        flow: the flow or bijector.
        variables: its arrays.
        path: ``.jax``, for ``jax.export.deserialize(...).call``.
        method: ``"log_prob"``, ``"forward"`` or ``"inverse"``.
        platforms: where the program is to run, such as ``("cpu", "cuda", "tpu")``; by default where
            JAX runs now.
        vjp_order: how many times the program can be differentiated in its arguments.

    Raises:
        ValueError: for another suffix or method, and for an event shape with open axes.
    """
    path = bridge.check_path("jax_flows.export", path, (".jax",))
    inputs, _ = bridge.check_method("jax_flows.export", flow, method)
    variables = dict(variables)

    def program(x: Array, context: Array | None = None) -> Array | Output:
        return getattr(flow, method)(variables, x, context)

    (batch,) = jax.export.symbolic_shape("batch")
    dtype = weight_dtype(variables) or jnp.result_type(float)
    arguments = [jax.ShapeDtypeStruct((batch, *shape), dtype) for shape in inputs.values()]
    exported = jax.export.export(jax.jit(program), platforms=platforms)(*arguments)
    with bridge.replacing(path) as file:
        file.write_bytes(exported.serialize(vjp_order=vjp_order))


def fixed_grid(
    flow: Flow, variables: Variables, x: AnyArray, context: AnyArray | None = None
) -> tuple[Flow, dict[str, Any], float]:
    """The flow with the steps that its adaptive solvers take on these rows, as fixed ones, and their error.

    Its steps depend on no row any more: it can be exported, compiled, mapped and differentiated in every
    mode, costs the same for all rows, and is the same map in both backends. What it leaves out is the control
    of the error, which is measured here, on these rows: the largest difference of z, of x = inverse(z) and of
    the two log-dets from those of a grid 8 times finer, relative where they are above 1.

    Args:
        flow: shares nothing with the result.
        variables: its arrays.
        x: rows as those to come, shape ``(*batch, *event_shape)``.
        context: as in ``flow.forward``.

    Raises:
        ValueError: for a flow without an adaptive solver, or with one inside another bijector than a chain;
            for no rows, and for rows that are not finite.
        ConvergenceError: where the solver fails.

    Examples:
        >>> import jax, jax_flows
        >>> flow = jax_flows.NeuralODE(dim=2, hidden_dims=(8,))
        >>> variables = flow.init(jax.random.key(0))
        >>> x = jax.random.normal(jax.random.key(1), (100, 2))
        >>> fixed, variables, error = jax_flows.fixed_grid(flow, variables, x)
        >>> error < 1e-4
        True
    """
    x, given = check_input(flow, variables, "x", x, context)
    condition = None
    if given is not None and flow.bijector.context_dim:
        condition = flow.embed(variables, given)
    parts = flow.split(variables)
    bijector, own = _fixed(flow.bijector, parts["bijector"], x, condition)
    if any(part.adaptive for part in _bijectors(bijector)):
        raise ValueError(bridge.no_solver("fixed_grid", True))
    if not any(isinstance(part, ContinuousBijector) and part.grid for part in _bijectors(bijector)):
        raise ValueError(bridge.no_solver("fixed_grid", False))
    finer, finer_own = _finer(bijector, own)
    error = _error((bijector, own), (finer, finer_own), x, condition)
    result = Flow(bijector, flow.base, flow.context_net, flow.columns, flow.context_columns)
    return result, result.join({**parts, "bijector": own}), error


def _bijectors(value: Any) -> Iterator[Any]:
    """A bijector and those in its arguments, at any depth."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from _bijectors(item)
    elif isinstance(value, Bijector):
        yield value
        for field in fields(value):  # type: ignore[arg-type]
            yield from _bijectors(getattr(value, field.name))


def _fixed(
    bijector: Bijector, variables: Variables, x: Array, context: Array | None
) -> tuple[Bijector, Variables]:
    """The bijector whose solvers take the steps that they take for x, and its variables."""
    if type(bijector) is Chain:
        members, arrays = [], []
        for member, own in zip(bijector, bijector.split(variables), strict=True):
            given = context if member.context_dim else None
            fixed, fixed_own = _fixed(member, own, x, given)
            members.append(fixed)
            arrays.append(fixed_own)
            x = member.map_forward(own, x, given)[0]
        chain = Chain(members)
        return chain, chain.join(arrays)
    if isinstance(bijector, ContinuousBijector) and bijector.adaptive:
        return replace(bijector, grid=bijector.choose_grid(variables, x, context)), variables
    return bijector, variables


def _finer(bijector: Bijector, variables: Variables) -> tuple[Bijector, Variables]:
    """The bijector with finer grids, and its variables."""
    if type(bijector) is Chain:
        pairs = zip(bijector, bijector.split(variables), strict=True)
        members, arrays = zip(*(_finer(*pair) for pair in pairs), strict=True)
        chain = Chain(members)
        return chain, chain.join(arrays)
    if isinstance(bijector, ContinuousBijector) and bijector.grid:
        return replace(bijector, **bijector.refined()), variables
    return bijector, variables


def _error(
    given: tuple[Bijector, Variables],
    finer: tuple[Bijector, Variables],
    x: Array,
    context: Array | None,
) -> float:
    """How far a map and its inverse are from finer ones."""
    maps = [bijector for bijector, _ in (given, finer)]

    def largest(variables: list[Variables], x: Array, context: Array | None) -> Array:
        z, _ = maps[1].map_forward(variables[1], x, context)
        pairs = list(zip(maps, variables, strict=True))
        coarse, fine = (
            (*map.map_forward(own, x, context), *map.map_inverse(own, z, context))
            for map, own in pairs
        )
        found = [
            (jnp.abs(a - b) / jnp.maximum(jnp.abs(b), 1)).max(initial=0)
            for a, b in zip(coarse, fine, strict=True)
        ]
        return jnp.stack(found).max()

    return float(jax.jit(largest)([own for _, own in (given, finer)], x, context))
