"""Flows as files that run without this package: ONNX and ``torch.export`` programs."""

import copy
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flow_bridge import deployment as bridge
from torch_flows.bijectors.base import Bijector, Output, evaluation
from torch_flows.bijectors.continuous import ContinuousBijector
from torch_flows.bijectors.structure import Chain
from torch_flows.flows import Flow
from torch_flows.inputs import check_input

aten = torch.ops.aten


def export(flow: nn.Module, path: str | os.PathLike[str], method: str = "log_prob") -> None:
    """Write one method of a flow or bijector, with its weights, as a program for other processes.

    The program is that of evaluation mode, for one leading batch axis of any size, in the weights'
    dtype. Its arguments are x (``"inverse"``: z) of shape ``(batch, *event_shape)`` and, if the flow
    takes one, a context ``(batch, context_dim)``; it does not check their values.

    Args:
        flow: the flow or bijector; it is not changed.
        path: ``.onnx`` for ONNX, whose inputs are named x or z and context, and whose outputs are
            log_prob, or z or x and log_det; ``.pt2`` for ``torch.export.load``, differentiable.
        method: ``"log_prob"``, ``"forward"`` or ``"inverse"``.

    Raises:
        ValueError: for another suffix or method, for an event shape with open axes, for weights
            that are not float32 (ONNX only: its runtimes lack float64 operators), and for a
            continuous bijector with solver ``"dopri5"``, whose steps are chosen on the host, unless
            they are fixed, see ``fixed_grid``; for one with a conditioner or circular columns.
        ImportError: for ONNX, without the packages ``onnx`` and ``onnxscript``.
    """
    path = bridge.check_path("torch_flows.export", path, (".onnx", ".pt2"))
    inputs, outputs = bridge.check_method("torch_flows.export", flow, method)
    for module in flow.modules():
        if getattr(module, "adaptive", False):
            raise ValueError(bridge.solver_message())
        if not getattr(module, "closed_form", True):
            raise ValueError(bridge.field_message())
    dtype = _like(flow).dtype
    if path.suffix == ".onnx" and dtype != torch.float32:
        raise ValueError(bridge.onnx_dtype_message(str(dtype).removeprefix("torch.")))
    modes = {module: module.training for module in flow.modules()}
    try:
        flow.eval()
        with bridge.replacing(path) as file:
            if path.suffix == ".pt2":
                torch.export.save(_trace(flow, method, inputs), file)
            else:
                with torch.no_grad():
                    program = _trace(flow, method, inputs)
                _write_onnx(program, file, list(inputs), list(outputs))
    finally:
        for module, mode in modes.items():
            module.training = mode


def fixed_grid(flow: Flow, x: Tensor, context: Tensor | None = None) -> tuple[Flow, float]:
    """The flow with the steps that its adaptive solvers take on these rows, as fixed ones, and their error.

    Its steps depend on no row any more: it can be exported, compiled, mapped and differentiated in every
    mode, costs the same for all rows, and is the same map in both backends. What it leaves out is the control
    of the error, which is measured here, on these rows: the largest difference of z, of x = inverse(z) and of
    the two log-dets from those of a grid 8 times finer, relative where they are above 1.

    Args:
        flow: shares nothing with the result.
        x: rows as those to come, shape ``(*batch, *event_shape)``.
        context: as in ``flow.forward``.

    Raises:
        ValueError: for a flow without an adaptive solver, or with one inside another bijector than a chain;
            for no rows, and for rows that are not finite.
        ConvergenceError: where the solver fails.

    Examples:
        >>> import torch, torch_flows
        >>> flow = torch_flows.NeuralODE(dim=2, hidden_dims=(8,))
        >>> x = torch.randn(100, 2)
        >>> fixed, error = torch_flows.fixed_grid(flow, x)
        >>> error < 1e-4 and bool(torch.allclose(fixed.log_prob(x), flow.log_prob(x), atol=1e-3))
        True
    """
    with torch.no_grad(), evaluation(flow):
        given = check_input(flow, "x", x, context)
        condition = flow.embed(given) if given is not None and flow.bijector.context_dim else None
        bijector = _fixed(flow.bijector, x, condition)
        if any(getattr(module, "adaptive", False) for module in bijector.modules()):
            raise ValueError(bridge.no_solver("fixed_grid", True))
        finer = copy.deepcopy(bijector)
        solvers = [m for m in finer.modules() if isinstance(m, ContinuousBijector) and m.grid]
        if not solvers:
            raise ValueError(bridge.no_solver("fixed_grid", False))
        for solver in solvers:
            solver.grid = solver.refined()["grid"]
        error = _error(bijector, finer, x, condition)
    nets = None if flow.context_net is None else copy.deepcopy(list(flow.context_net))
    base = copy.deepcopy(flow.base)
    result = Flow(bijector, base, nets, flow.columns, flow.context_columns)
    return result.train(flow.training), error


def _fixed(bijector: Bijector, x: Tensor, context: Tensor | None) -> Bijector:
    """A copy whose solvers take the steps that they take for x."""
    if type(bijector) is Chain:
        members = []
        for member in bijector:
            given = context if member.context_dim else None
            members.append(_fixed(member, x, given))
            x = member.map_forward(x, given)[0]
        return Chain(members)
    result = copy.deepcopy(bijector)
    if isinstance(result, ContinuousBijector) and result.adaptive:
        result.grid = result.choose_grid(x, context)
    return result


def _error(bijector: Bijector, finer: Bijector, x: Tensor, context: Tensor | None) -> float:
    """How far a map and its inverse are from finer ones."""
    z, log_det = finer.map_forward(x, context)
    pairs = [
        *zip(bijector.map_forward(x, context), (z, log_det), strict=True),
        *zip(bijector.map_inverse(z, context), finer.map_inverse(z, context), strict=True),
    ]
    found = [(a - b).abs() / b.abs().clamp(min=1) for a, b in pairs]
    return float(torch.stack([value.max() for value in found]).max())


class _Method(nn.Module):
    def __init__(self, flow: nn.Module, method: str) -> None:
        super().__init__()
        self.flow = flow
        self.method = method

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor | Output:
        return getattr(self.flow, self.method)(x, context)


def _like(flow: nn.Module) -> Tensor:
    arrays = (*flow.parameters(), *flow.buffers())
    return next((a for a in arrays if a.is_floating_point()), torch.zeros(()))


def _trace(
    flow: nn.Module, method: str, inputs: dict[str, tuple[int, ...]]
) -> torch.export.ExportedProgram:
    # two rows, so that the batch axis is not taken for one that broadcasts
    arguments = tuple(_like(flow).new_zeros(2, *shape) for shape in inputs.values())
    batch = torch.export.Dim("batch", min=0)
    axes = [{0: batch} for _ in arguments]
    return torch.export.export(_Method(flow, method), arguments, dynamic_shapes=axes)


def _write_onnx(
    program: torch.export.ExportedProgram, path: Path, inputs: list[str], outputs: list[str]
) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(bridge.missing_onnx()) from error
    program = program.run_decompositions(_DECOMPOSITIONS)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of operators of torchvision, which no flow has
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=[{0: "batch"}, *[None] * (len(inputs) - 1)],  # the others share its name
            verbose=False,
        )
    finally:
        logger.setLevel(level)
    assert converted is not None
    converted.save(path)


def _solve_triangular(
    a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """``torch.linalg.solve_triangular``, one row after the other."""
    if not left:
        return _solve_triangular(a.mT, b.mT, upper=not upper, unitriangular=unitriangular).mT
    size = a.shape[-1]
    rows: list[Tensor] = []
    for i in reversed(range(size)) if upper else range(size):
        row = b[..., i : i + 1, :]
        if rows:
            known = slice(i + 1, size) if upper else slice(i)
            row = row - a[..., i : i + 1, known] @ torch.cat(rows, -2)
        if not unitriangular:
            row = row / a[..., i : i + 1, i : i + 1]
        rows = [row, *rows] if upper else [*rows, row]
    return torch.cat(rows, -2)


def _eliminate(matrix: Tensor) -> tuple[list[Tensor], Tensor]:
    """Gaussian elimination of ``(..., n, m)`` with row pivots: the n rows, each from its diagonal on,
    and the sign of the row exchanges."""
    rows, sign = [], torch.ones_like(matrix[..., 0, 0])
    for _ in range(matrix.shape[-2]):
        largest = matrix[..., :1].abs().argmax(-2, keepdim=True)
        row = matrix.gather(-2, largest.expand(*largest.shape[:-1], matrix.shape[-1]))
        rows.append(row)
        # the first row takes the pivot row's place, and then leaves
        places = torch.arange(matrix.shape[-2], device=matrix.device).unsqueeze(-1)
        matrix = torch.where(places == largest, matrix[..., :1, :], matrix)
        matrix = matrix[..., 1:, 1:] - matrix[..., 1:, :1] / row[..., :1] * row[..., 1:]
        sign = torch.where(largest[..., 0, 0] == 0, sign, -sign)
    return rows, sign


def _slogdet(a: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.linalg.slogdet``."""
    rows, sign = _eliminate(a)
    diagonal = torch.stack([row[..., 0, 0] for row in rows], -1)
    return sign * diagonal.sign().prod(-1), diagonal.abs().log().sum(-1)


def _solve_ex(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.linalg.solve_ex``; it does not notice a singular matrix, the result is then not finite."""
    size = a.shape[-1]
    rows, _ = _eliminate(torch.cat([a, b], -1))
    solved: list[Tensor] = []
    for i, row in reversed(list(enumerate(rows))):
        value = row[..., size - i :]
        if solved:
            value = value - row[..., 1 : size - i] @ torch.cat(solved, -2)
        solved = [value / row[..., :1], *solved]
    return torch.cat(solved, -2), torch.zeros_like(a[..., 0, 0], dtype=torch.int32)


def _copysign(a: Tensor, b: Tensor) -> Tensor:
    """``torch.copysign``; -0 counts as 0."""
    return torch.where(b < 0, -a.abs(), a.abs())


_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.linalg_solve_triangular.default: _solve_triangular,
    aten.linalg_slogdet.default: _slogdet,
    aten.linalg_solve_ex.default: _solve_ex,
    aten.copysign.Tensor: _copysign,
}
"""What ONNX has no operator for, in operators that it has."""
