"""The check tries to find a difference: where maps tend to break, and how else they may be called."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from flow_bridge.domains import Interval
from flow_bridge.errors import ConvergenceError
from twinflows.parity.errors import EPS, KINDS, UNITS, absolute, cast, error, row_errors
from twinflows.parity.limits import (
    BY_CONDITIONING,
    BY_MOVING,
    BY_SOLVER,
    DIFFERENCE_STEPS,
    DIFFERENCES,
    GATES,
    MAX_CONDITIONING,
    MOVE,
    ORACLE_RATIO,
    Limit,
    gate,
)
from twinflows.parity.probes import SHAPES, Probes, probes
from twinflows.parity.report import Comparison, ParityReport
from twinflows.parity.solvers import solvers
from twinflows.parity.truth import (
    MAX_JACOBIAN_SIZE,
    NAMES,
    NUDGE,
    conditioning,
    determinant,
    nudged,
    nudged_side,
)
from twinflows.sides.base import Results, cotangents

REPEATS = 50
_WHOLE = {"gradient in x": "gradients", "gradient in z": "inverse gradients"}


class Trial(NamedTuple):
    """Two sides in float64 and what is known of them.

    Attributes:
        sides: both halves.
        rough: the PyTorch half in float32.
        num_layers: of the model.
        steps: what adaptive steps may make of a quantity, relative.
        noise: what float32 makes of it, in its eps: the conditioning.
        x, context: the given rows.
    """

    sides: tuple[Any, Any]
    rough: Any
    num_layers: int
    steps: dict[str, float]
    noise: dict[str, float]
    x: np.ndarray
    context: np.ndarray | None

    def limit(self, kind: str, name: str) -> Limit:
        """What a quantity may differ by on the given rows."""
        limit = gate(kind, self.num_layers)
        limit = limit.raised(conditioning(self.noise.get(name, 0.0)), BY_CONDITIONING)
        return limit.raised(self.steps.get(name, 0.0) / EPS["float64"], BY_SOLVER)


def try_all(trial: Trial, runs: list[Results], report: ParityReport, thorough: bool) -> None:
    """Add to a report: probes, a NaN row, training mode and, if thorough, batch shapes."""
    _try_probes(trial, report)
    _try_nan(trial, runs, report)
    if thorough or trial.sides[1].variables.get("batch_stats"):
        _try_training(trial, report)
    if thorough:
        _try_shapes(trial, runs, report)
        _try_derivatives(trial, runs, report)


def typical(domain: Interval, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Rows in the middle of a domain: normal ones, where it is all reals."""
    drawn = generator.standard_normal(shape)
    if domain.low == -math.inf and domain.high == math.inf:
        return drawn
    u = 1 / (1 + np.exp(-drawn))
    if math.isinf(domain.high):
        return domain.low + u / (1 - u)
    return (
        domain.high - u / (1 - u)
        if math.isinf(domain.low)
        else (domain.low + (domain.high - domain.low) * u)
    )


def state(model: Any) -> dict[str, Any]:
    """Everything a PyTorch model remembers: weights, buffers, plain attributes of its modules."""
    found: dict[str, Any] = {n: a.detach().clone() for n, a in model.state_dict().items()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, bool | int | float | str | type(None)):
                found[f"{path}.{name}".lstrip(".")] = value
    return found


def check_state(before: dict[str, Any], after: dict[str, Any], model: Any) -> list[str]:
    """A sentence, if calls in evaluation mode changed what a model remembers."""
    changed = [
        name
        for name in {**before, **after}
        if name not in before or name not in after or not _equal(before[name], after[name])
    ]
    if not changed:
        return []
    return [
        f"Calls in evaluation mode change {changed[0]!r} of {type(model).__name__}: its results may "
        "depend on how often it was called."
    ]


def _equal(a: Any, b: Any) -> bool:
    if hasattr(a, "equal") and hasattr(b, "equal"):
        return np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point())
    return type(a) is type(b) and a == b


def check_repeats(
    side: Any, x: np.ndarray, context: np.ndarray | None, expected: Results, thorough: bool
) -> list[str]:
    """A sentence, if the same call gives other values."""
    for _ in range(REPEATS if thorough else 1):
        again = side.forward(x, context, gradients=False)
        if any(
            not error(n, again[n], expected[n], "float64") < GATES["outputs"].base for n in again
        ):
            return [
                f"{type(side.flow).__name__}.forward gives other values when it is called again: it is "
                "random, or it keeps state. Evaluation has to be a function of its arguments."
            ]
    return []


def _try_probes(trial: Trial, report: ParityReport) -> None:
    """Zeros, other seeds, far tails and ends of the domain: half against half, and against the truth."""
    sides = trial.sides
    model = sides[0].flow
    domain = getattr(model, "bijector", model).domain
    found = probes(cast(trial.x, "float32"), cast(trial.context, "float32"), domain)
    x, context = cast(found.x, "float64"), cast(found.context, "float64")
    size = len(trial.x)
    try:
        runs = [_run(side, x, context, None, size) for side in sides]
        z = cast(cast(runs[0]["z"], "float32"), "float64")
        runs = [
            run | _run(side, None, context, z, size) for side, run in zip(sides, runs, strict=True)
        ]
        near = None if context is None else nudged(context)
        moved = _run(nudged_side(sides[0]), nudged(x), near, nudged(z), size)
        rough = _run(trial.rough, found.x, found.context, cast(z, "float32"), size)
    except ConvergenceError as raised:
        report.notes.append(f"Rows beside the given ones were not judged: {raised}")
        return
    for half, run in zip(NAMES, runs, strict=True):
        for gradient, values in (
            ("gradient in x", ("z", "log_det")),
            ("gradient in z", ("x", "inverse log_det")),
        ):
            finite, sloped = (
                np.logical_and.reduce(
                    [np.isfinite(run[name].reshape(len(x), -1)).all(-1) for name in names]
                )
                for names in (values, (gradient,))
            )
            if (bad := finite & ~sloped & found.regular).any():
                row = int(np.argmax(bad))
                report.findings.append(
                    f"The {gradient} of {half} is not finite where its values are, at "
                    f"{found.x[row].ravel()[:8].tolist()}."
                )
    allowed, judged = {}, {}
    for name in runs[0]:
        with np.errstate(invalid="ignore", over="ignore"):
            movement = MOVE / NUDGE * row_errors(moved[name], runs[0][name])
        noise = ORACLE_RATIO / EPS["float32"] * row_errors(rough[name], runs[0][name])
        noise = np.where(np.isfinite(noise), np.minimum(noise, MAX_CONDITIONING), 0)
        finite = np.isfinite(runs[0][name].reshape(len(x), -1)).all(-1)
        allowed[name] = np.maximum(np.where(np.isfinite(movement), movement, 0), noise)
        steps = trial.steps.get(_WHOLE.get(name, name), 0) / EPS["float64"]
        allowed[name] = np.maximum(allowed[name], steps)
        judged[name] = ~finite | (np.isfinite(movement) & (movement <= MAX_CONDITIONING))
        if name not in KINDS:
            judged[name] &= found.regular
        limit = gate(KINDS.get(name, "gradients"), trial.num_layers)
        report.comparisons += _worst(
            f"{name}, probes",
            name,
            runs[0][name],
            runs[1][name],
            limit,
            allowed[name],
            judged[name],
        )
    if not solvers(model):
        _probe_truth(trial, found, runs, allowed, judged, report)
    left = len(x) - int(np.sum(np.logical_and.reduce([judged[n] for n in judged if n in KINDS])))
    if left:
        report.notes.append(
            f"{left} of {len(x)} probes are too ill-conditioned for some quantity to be judged."
        )


def _probe_truth(
    trial: Trial,
    found: Probes,
    runs: list[Results],
    allowed: dict[str, np.ndarray],
    judged: dict[str, np.ndarray],
    report: ParityReport,
) -> None:
    x, context = cast(found.x, "float64"), cast(found.context, "float64")
    size = len(trial.x)
    square = x[0].size <= MAX_JACOBIAN_SIZE
    beside = nudged_side(trial.sides[0])
    rough = _determinants(trial.rough, found.x, found.context, size)[0] if square else None
    for name, side, run in zip(NAMES, trial.sides, runs, strict=True):
        regular = found.regular & np.isfinite(run["z"].reshape(len(x), -1)).all(-1)
        z = np.where(np.isfinite(run["z"]), run["z"], 0)
        again = _run(side, None, context, z, size)["x"]
        moved = _run(beside, None, context, nudged(z), size)["x"]
        movement = MOVE / NUDGE * row_errors(moved, again)
        exact, condition = _determinants(side, x, context, size) if square else (None, 0)
        report.comparisons += _worst(
            f"round trip {name} to {name}, probes",
            "x",
            again,
            x,
            gate("round_trip", trial.num_layers),
            # as in the table, 8 times one direction; 1.1 times was measured on a trained RealNVP
            np.maximum(np.minimum(ORACLE_RATIO * movement, MAX_CONDITIONING), allowed["x"]),
            # where a slope is below any number, different x have one z
            regular
            & judged["z"]
            & (movement <= MAX_CONDITIONING)
            & (condition < 1 / EPS["float64"]),
        )
        if rough is None or exact is None:
            continue
        noise = ORACLE_RATIO / EPS["float32"] * row_errors(rough, exact)
        loss = np.maximum(ORACLE_RATIO * condition, noise)
        report.comparisons += _worst(
            f"{name} log_det, autodiff, probes",
            "log_det",
            run["log_det"],
            exact,
            gate("jacobian", trial.num_layers),
            np.maximum(allowed["log_det"], loss),
            regular & judged["log_det"] & (loss <= MAX_CONDITIONING),
        )


def _determinants(
    side: Any, x: np.ndarray, context: np.ndarray | None, size: int
) -> tuple[np.ndarray, np.ndarray]:
    parts = [
        determinant(side, x[index], None if context is None else context[index])
        for index in _indices(len(x), size)
    ]
    exact, condition = (np.concatenate(a)[: len(x)] for a in zip(*parts, strict=True))
    return exact, condition


def _worst(
    quantity: str,
    name: str,
    a: np.ndarray,
    b: np.ndarray,
    limit: Limit,
    allowed: np.ndarray,
    rows: np.ndarray,
    why: str = BY_MOVING,
) -> list[Comparison]:
    """The row that comes closest to its own limit, of those that are judged."""
    if not rows.any():
        return []
    errors = np.broadcast_to(row_errors(a, b) / EPS["float64"], len(rows))
    limits = np.where(rows, np.maximum(limit.value, allowed), 1)
    worst = int(np.argmax(np.where(rows, errors / limits, -1)))
    own = limit.raised(float(limits[worst]), why)
    return [
        Comparison(
            quantity,
            "float64",
            float(errors[worst]),
            own.value,
            reason=own.reason,
            absolute=absolute(name, a[worst : worst + 1], b[worst : worst + 1]),
            unit=UNITS[KINDS.get(name, "gradients")].format(name),
        )
    ]


def _run(
    side: Any,
    x: np.ndarray | None,
    context: np.ndarray | None,
    z: np.ndarray | None,
    size: int,
) -> Results:
    """Values and gradients in the input of every row, by programs for ``size`` rows."""
    found: list[Results] = []
    rows = x if z is None or x is not None else z
    assert rows is not None
    for index in _indices(len(rows), size):
        own = None if context is None else context[index]
        part: Results = {}
        if x is not None:
            part |= side.forward(x[index], own)
            part["gradient in x"] = part.pop("gradients")["input"].reshape(len(index), -1)
        if z is not None:
            part |= side.inverse(z[index], own)
            part["gradient in z"] = part.pop("inverse gradients")["input"].reshape(len(index), -1)
        found.append(part)
    return {name: np.concatenate([p[name] for p in found])[: len(rows)] for name in found[0]}


def _indices(rows: int, size: int) -> Iterator[np.ndarray]:
    """Rows in blocks of one size; the last is filled up with the first rows."""
    for start in range(0, rows, size):
        yield np.arange(start, start + size) % rows


def _try_nan(trial: Trial, runs: list[Results], report: ParityReport) -> None:
    """A NaN row gives NaN in that row, in both halves; the others stay as they are."""
    size = len(trial.x)
    if size < 2:
        return
    bad, others = size // 2, np.arange(size) != size // 2
    for direction, name in (("forward", "z"), ("inverse", "x")):
        worst, gap = 0.0, 0.0
        for half, side, clean in zip(NAMES, trial.sides, runs, strict=True):
            rows = (
                trial.x
                if direction == "forward"
                else cast(cast(runs[0]["z"], "float32"), "float64")
            )
            poisoned = rows.copy()
            poisoned[bad] = np.nan
            dirty = getattr(side, direction)(poisoned, trial.context)[name]
            if dirty.shape != clean[name].shape:
                worst = math.inf
                continue
            worst = max(worst, error(name, dirty[others], clean[name][others], "float64"))
            gap = max(gap, absolute(name, dirty[others], clean[name][others]))
            if not np.isnan(dirty[bad]).any():
                report.findings.append(
                    f"A row of NaN goes through {direction} without NaN in {half}."
                )
        limit = gate("outputs", trial.num_layers)
        limit = limit.raised(trial.steps.get(name, 0) / EPS["float64"], BY_SOLVER)
        report.comparisons.append(
            Comparison(
                f"{name} beside a NaN row",
                "float64",
                worst,
                limit.value,
                reason=limit.reason,
                absolute=gap,
                unit=UNITS["outputs"].format(name),
            )
        )


def _try_training(trial: Trial, report: ParityReport) -> None:
    """Outputs of training mode, and the running averages after it."""
    if len(trial.x) < 2:
        report.notes.append("Training mode was not compared: it takes 2 rows or more.")
        return
    runs = [side.train(trial.x, trial.context) for side in trial.sides]
    for name in ("z", "log_det", "batch statistics"):
        own = trial.limit("log_det", name)
        report.comparisons.append(
            Comparison(
                f"training {name}",
                "float64",
                error(name, runs[0][name], runs[1][name], "float64"),
                own.value,
                reason=own.reason,
                absolute=absolute(name, runs[0][name], runs[1][name]),
                unit={"z": "of z", "log_det": "nats"}.get(name, ""),
            )
        )


def _try_shapes(trial: Trial, runs: list[Results], report: ParityReport) -> None:
    """Every batch shape gives the rows of the flat batch, in both halves and directions."""
    size = len(trial.x)
    z = cast(cast(runs[0]["z"], "float32"), "float64")
    for batch in SHAPES:
        index = np.arange(math.prod(batch)) % size
        own = (
            None
            if trial.context is None
            else trial.context[index].reshape(*batch, trial.context.shape[1])
        )
        worst, limit, gap = (0.0, "z"), trial.limit("outputs", "z"), 0.0
        for half, side, flat in zip(NAMES, trial.sides, runs, strict=True):
            x = trial.x[index].reshape(*batch, *trial.x.shape[1:])
            latent = z[index].reshape(*batch, *z.shape[1:])
            found = side.values(x, latent, own)
            for name, value in found.items():
                expected = flat[name][index]
                if value.shape != (*batch, *expected.shape[1:]):
                    report.findings.append(
                        f"A batch of shape {batch} gives {name} of shape {value.shape} in {half}."
                    )
                    continue
                value = value.reshape(expected.shape)
                share = error(name, value, expected, "float64")
                own_limit = trial.limit("outputs", name)
                if share / own_limit.value > worst[0] / limit.value:
                    worst, limit = (share, name), own_limit
                    gap = absolute(name, value, expected)
        report.comparisons.append(
            Comparison(
                f"batch of shape {batch}",
                "float64",
                worst[0],
                limit.value,
                reason=limit.reason,
                absolute=gap,
                unit=UNITS[KINDS[worst[1]]].format(worst[1]),
            )
        )


def _try_derivatives(trial: Trial, runs: list[Results], report: ParityReport) -> None:
    """Gradients, along a random direction, against finite differences of what they are gradients of."""
    if trial.steps:
        report.notes.append("Gradients were not held against differences: a solver's steps jump.")
        return
    z = cast(cast(runs[0]["z"], "float32"), "float64")
    for half, side, run in zip(NAMES, trial.sides, runs, strict=True):
        for name, rows in (("gradients", trial.x), ("inverse gradients", z)):
            generator = np.random.default_rng(1)
            way = {key: generator.standard_normal(g.shape) for key, g in run[name].items()}
            parts = [float((run[name][key] * v).sum()) for key, v in way.items()]
            scale = float(np.linalg.norm(parts))
            error_, limit = math.inf, 0.0
            for step in DIFFERENCE_STEPS:
                high, size = _linear_form(side, name, rows, trial.context, way, step)
                low, _ = _linear_form(side, name, rows, trial.context, way, -step)
                gap = abs((high - low) / (2 * step) - sum(parts))
                rounding = MOVE * EPS["float64"] * size / step
                if gap <= error_:
                    error_, limit = gap, DIFFERENCES * scale + rounding
                if error_ <= limit:
                    break
            if not (math.isfinite(scale) and math.isfinite(size)):
                continue
            report.comparisons.append(
                Comparison(
                    f"{half} {name}, finite differences",
                    "float64",
                    error_ / max(scale, 1e-300) / EPS["float64"],
                    limit / max(scale, 1e-300) / EPS["float64"],
                    reason=f"{DIFFERENCES:g} of the derivative, and rounding: what differences can tell",
                    absolute=error_,
                )
            )


def _linear_form(
    side: Any,
    name: str,
    rows: np.ndarray,
    context: np.ndarray | None,
    way: dict[str, np.ndarray],
    step: float,
) -> tuple[float, float]:
    """The form whose gradients are compared, a step along the way, and the sum of its terms' sizes."""
    arrays = {key: np.asarray(a + step * way.get(key, 0.0)) for key, a in side.arrays().items()}
    moved = side.with_weights(arrays)
    run = moved.forward if name == "gradients" else moved.inverse
    found = run(rows + step * way["input"], context, gradients=side.backend == "jax")
    values = {key: value for key, value in found.items() if key != name}
    terms = np.concatenate([(c * values[k]).ravel() for k, c in cotangents(values).items()])
    return float(terms.sum()), float(np.abs(terms).sum())
