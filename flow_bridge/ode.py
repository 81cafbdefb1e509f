"""What both halves say and share about differential equations."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from flow_bridge import checks

REFINEMENT = 8
"""How many times the steps of a solver that is judged against itself."""

STEP_SHARE = 1 / 4
"""The part of the tolerance that one adaptive step may leave; their sum is then within 10 tolerances."""

DOPRI5: tuple[tuple[float, tuple[float, ...]], ...] = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
"""The method of Dormand and Prince (1980): each stage's node and weights of the rates before; the step's."""

INITIAL_STEP = 0.8 * (97 / 120000) ** -0.2
"""Its two results differ by 97 (h a)^5 / 120000 where y' = a y; a little less than what that allows."""

HOST_STEPS = (
    "ContinuousBijector with solver 'dopri5' chooses its steps on the host, which no transform of "
    "torch.func and no forward-mode derivative can follow: use torch.autograd, or solver 'rk4'."
)
"""What PyTorch's half says where its adaptive solver cannot run."""

NO_FORWARD_MODE = (
    "ContinuousBijector with adjoint=True has no forward-mode derivative (jvp, jacfwd, hessian): use "
    "jacrev, adjoint=False, or solver 'rk4'."
)
"""What JAX's half says where its adjoint equation cannot run."""


def initial_step(speed: Any, acceleration: Any) -> Any:
    """The first step of ``DOPRI5``, with the sizes of y' and y'' in units of what a step may leave.

    It is right for y' = A y, of which |A| = |y''| / |y'|.
    """
    return INITIAL_STEP * speed**-0.2 * (speed / acceleration) ** 0.8


def refine(tolerance: float) -> float:
    """A tolerance that takes about so many times the steps of a method of fifth order."""
    return max(1e-4 * tolerance, min(tolerance, 1e-13))


def missing_solver(package: str, extra: str) -> str:
    """What a missing optional dependency says."""
    return (
        f"ContinuousBijector with solver 'dopri5' needs {package}: "
        f"pip install 'twinflows[{extra}]', or use solver 'rk4'."
    )


def solver_message(rtol: float, atol: float, max_steps: int) -> str:
    """What a solver that failed says."""
    return (
        f"the solver did not reach rtol={rtol:g}, atol={atol:g} within {max_steps} steps, or met a "
        "value that is not finite; loosen the tolerance, raise max_steps or use float64."
    )


GRID_ROWS = "choose_grid expects one row at least, and finite ones of the domain and contexts only."


def check_spaces(owner: str, dim: int, circular: Sequence[int], time_scaling: bool) -> None:
    """Raise ``ValueError`` for circular columns that are none, and for ones that would be scaled."""
    for column in circular:
        checks.non_negative_int(owner, circular=column)
    if len(set(circular)) < len(circular) or any(column >= dim for column in circular):
        raise ValueError(
            f"{owner} expects circular as some of its {dim} columns, got {circular!r}."
        )
    if circular and time_scaling:
        raise ValueError(f"{owner} takes time_scaling or circular columns, which have no scale.")


def check_grid(owner: str, solver: str, grid: Sequence[float]) -> None:
    """Raise ``ValueError`` unless a grid rises from 0 to 1, or there is none."""
    if not grid:
        return
    if solver != "dopri5":
        raise ValueError(f"{owner} takes a grid with solver 'dopri5' only, not {solver!r}.")
    rises = all(a < b for a, b in pairwise(grid))
    if len(grid) < 2 or grid[0] != 0 or grid[-1] != 1 or not rises:
        raise ValueError(
            f"{owner} expects a grid of times that rise from 0 to 1, got {grid!r:.60}."
        )


def check_times(owner: str, times: Sequence[float]) -> tuple[float, ...]:
    """Times as numbers; ``ValueError`` unless they are finite and rise or fall throughout."""
    try:
        found = tuple([float(t) for t in times])
    except (TypeError, ValueError):
        found = ()
    pairs = list(pairwise(found))
    rises_or_falls = all(a < b for a, b in pairs) or all(a > b for a, b in pairs)
    if not found or not rises_or_falls or not all(map(math.isfinite, found)):
        raise ValueError(f"{owner} expects times that rise or fall throughout, got {times!r:.60}.")
    return found


def grid_of(ends: Sequence[float]) -> tuple[float, ...]:
    """The grid of a run from 0 to 1, whose steps end at these times; the last may lie beyond."""
    return 0.0, *(end for end in ends if end < 1), 1.0


def grid_between(grid: Sequence[float], times: tuple[float, float]) -> tuple[float, ...]:
    """The part of a grid from one time to another, in either direction."""
    low, high = sorted(times)
    inner = [t for t in grid if low < t < high]
    return (low, *inner, high) if times[0] < times[1] else (high, *inner[::-1], low)


def finer_grid(grid: Sequence[float]) -> tuple[float, ...]:
    """A grid with ``REFINEMENT`` steps for each."""
    parts = range(REFINEMENT)
    return *(a + (b - a) * i / REFINEMENT for a, b in pairwise(grid) for i in parts), 1.0
