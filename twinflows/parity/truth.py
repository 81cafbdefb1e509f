"""Both halves against the truth: x comes back, and log-dets are those of the autodiff Jacobian.

These comparisons would find a formula that is wrong in both halves.
"""

from typing import Any, NamedTuple

import numpy as np

from twinflows.parity.errors import absolute, cast, error, row_errors
from twinflows.parity.limits import (
    BY_CONDITIONING,
    BY_DETERMINANT,
    BY_MOVING,
    BY_SOLVER,
    MAX_CONDITIONING,
    MOVE,
    ORACLE_RATIO,
    REFINED_RATIO,
    Limit,
    gate,
)
from twinflows.parity.report import Comparison
from twinflows.parity.solvers import refined_jax, refined_torch, split, tolerance
from twinflows.sides.base import Side

MAX_JACOBIAN_SIZE = 64
NAMES = ("torch", "jax")
NUDGE = 2.0**-36
"""What inputs and weights are moved by, relative, to see how far float64 results move."""


class Judged(NamedTuple):
    """A model to be held against the truth.

    Attributes:
        sides: both halves in float64, with finer steps where they solve.
        rough: the PyTorch half in float32; its round trip shows the conditioning.
        num_layers: of the model.
        given: the PyTorch half in float64 with its own steps, where it solves.
        label: precedes the names of the quantities.
        whole: whether the sides have computed gradients already, so that their programs are there.
    """

    sides: tuple[Any, Any]
    rough: Side
    num_layers: int
    given: Side | None = None
    label: str = ""
    whole: bool = True


def conditioning(noise: float) -> float:
    """What an ill-conditioned case may differ by, given its noise in float32."""
    return min(ORACLE_RATIO * noise, MAX_CONDITIONING) if np.isfinite(noise) else 0.0


def check_truth(judged: Judged, x: np.ndarray, context: np.ndarray | None) -> list[Comparison]:
    """The four round trips, and the log-dets of both halves. x is float64."""
    found = _round_trips(judged, x, context)
    return found + (_log_dets(judged, x, context) if x[0].size <= MAX_JACOBIAN_SIZE else [])


def _round_trips(judged: Judged, x: np.ndarray, context: np.ndarray | None) -> list[Comparison]:
    sides, rough, num_layers, given, label, whole = judged
    latents = [side.forward(x, context)["z"] for side in sides]

    def back(target: Any, z: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        return target.inverse(z, context, gradients=whole)["x"]

    single = cast(x, "float32"), cast(context, "float32")
    rough_z = rough.forward(*single, gradients=False)["z"]
    noise = error("x", back(rough, rough_z, single[1]), x, "float32")
    limit = gate("round_trip", num_layers).raised(conditioning(noise), BY_CONDITIONING)
    moved = back(nudged_side(sides[0]), nudged(latents[0]), context)
    movement = MOVE / NUDGE * float(row_errors(moved, back(sides[0], latents[0], context)).max())
    limit = limit.raised(min(movement, MAX_CONDITIONING), BY_MOVING)
    if given is not None:
        own = back(given, given.forward(x, context, gradients=False)["z"], context)
        steps = error("x", own, back(sides[0], latents[0], context), "float64") / REFINED_RATIO
        limit = limit.raised(max(steps, tolerance(sides[0].flow)), BY_SOLVER)
    found = []
    for source, z in zip(NAMES, latents, strict=True):
        for target, side in zip(NAMES, sides, strict=True):
            again = back(side, z, context)
            found.append(
                comparison(f"{label}round trip {source} to {target}", "x", again, x, limit)
            )
    return found


def _log_dets(judged: Judged, x: np.ndarray, context: np.ndarray | None) -> list[Comparison]:
    sides, rough, num_layers, given, label, _ = judged
    exact, conditions = zip(*(determinant(side, x, context) for side in sides), strict=True)
    limit = gate("jacobian", num_layers)
    worst = max(float(np.nanmax(c, initial=0)) for c in conditions)
    limit = limit.raised(min(ORACLE_RATIO * worst, MAX_CONDITIONING), BY_DETERMINANT)
    single = determinant(rough, cast(x, "float32"), cast(context, "float32"))[0]
    noise = conditioning(error("log_det", single, exact[0], "float32"))
    limit = limit.raised(noise, BY_CONDITIONING)
    log_dets = [side.forward(x, context)["log_det"] for side in sides]
    if given is not None:
        own = given.forward(x, context, gradients=False)["log_det"]
        steps = error("log_det", own, log_dets[0], "float64")
        steps += error("log_det", determinant(given, x, context)[0], exact[0], "float64")
        limit = limit.raised(max(steps / REFINED_RATIO, tolerance(sides[0].flow)), BY_SOLVER)
    return [
        comparison(f"{label}{name} log_det, autodiff", "log_det", log_det, truth, limit)
        for name, log_det, truth in zip(NAMES, log_dets, exact, strict=True)
    ]


def determinant(
    side: Side, x: np.ndarray, context: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """log|det| of the autodiff Jacobian of every row, and its condition number, which slogdet loses."""
    jacobian = side.jacobian(x, context)
    finite = np.isfinite(jacobian).all((-2, -1))
    safe = np.where(finite[:, None, None], jacobian, np.eye(jacobian.shape[-1]))
    exact = np.where(finite, np.linalg.slogdet(safe)[1], np.nan)
    return exact, np.where(finite, np.linalg.cond(safe), np.inf)


def nudged(array: np.ndarray) -> np.ndarray:
    """Every entry moved a little, zeros too: an inverse of 0 that is minus infinity then shows it."""
    return np.asarray(array * (1 + NUDGE) + np.finfo(array.dtype).tiny)


def nudged_side(side: Any) -> Any:
    """The side with every weight moved a little, each by an amount of its own."""
    generator = np.random.default_rng(0)
    weights = {
        name: np.asarray(array * (1 + NUDGE * generator.standard_normal(array.shape)))
        for name, array in side.arrays().items()
    }
    return side.with_weights(weights)


def comparison(
    quantity: str, name: str, found: np.ndarray, truth: np.ndarray, limit: Limit
) -> Comparison:
    """A float64 figure against the truth."""
    return Comparison(
        quantity,
        "float64",
        error(name, found, truth, "float64"),
        limit.value,
        reason=limit.reason,
        absolute=absolute(name, found, truth),
        unit="nats" if name == "log_det" else "of x",
    )


def check_parts(
    sides: tuple[Any, Any], arrays: Any, x: np.ndarray, context: np.ndarray | None, count: Any
) -> list[Comparison]:
    """``check_truth`` of each solver with finer steps, and of the layers between them as they are.

    Args:
        sides: both halves in float64.
        arrays: the weights.
        x, context: float64.
        count: counts the layers of a PyTorch model.
    """
    import torch

    from twinflows.sides.jax_side import JaxSide
    from twinflows.sides.torch_side import TorchSide

    found: list[Comparison] = []
    parts = split(sides[0].flow, sides[1].flow, arrays)
    if context is not None and getattr(sides[0].flow, "context_net", None) is not None:
        context = sides[0].flow.embed(torch.from_numpy(context)).detach().numpy()
    for part in parts:
        own_context = context if part.torch_model.context_dim else None
        given = TorchSide.holding(part.torch_model, part.weights, "float64")
        fine = (
            TorchSide.holding(refined_torch(part.torch_model), part.weights, "float64"),
            JaxSide.holding(refined_jax(part.jax_model), part.weights, "float64"),
        )
        judged = Judged(
            fine,
            TorchSide.holding(part.torch_model, part.weights, "float32"),
            count(part.torch_model),
            given if part.solves else None,
            f"{part.label}: " if len(parts) > 1 else "",
            whole=False,
        )
        found += check_truth(judged, x, own_context)
        x = given.forward(x, own_context, gradients=False)["z"]
    return found
