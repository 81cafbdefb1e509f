"""The parity check: is the model in PyTorch the model in JAX?

Both halves run on the same weights and inputs, in float64 and in float32, and a third, independent
figure judges them: the float64 run for float32, the autodiff Jacobian for log-dets. Weights and
inputs are first rounded to float32, so that every run starts from the same numbers.
"""

import copy
import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from flow_bridge.architecture import architecture
from flow_bridge.weights import jax_to_torch, torch_to_jax
from twinflows.parity.limits import GATES, ORACLE_RATIO, REFINED_RATIO, SMALL_GRADIENT
from twinflows.parity.solvers import refined_jax, refined_torch, solvers, split

Results = dict[str, Any]

MAX_JACOBIAN_SIZE = 64
_JACOBIAN_ROWS = 4


@dataclass(frozen=True)
class Comparison:
    """One quantity in one dtype; errors are in eps of that dtype.

    Attributes:
        quantity: what was compared.
        dtype: ``"float64"`` or ``"float32"``.
        error: the largest difference between the backends.
        limit: what it may be.
        oracle: a run in a wider dtype that both are held against, where there is one.
        torch_error, jax_error: each backend's distance from the oracle.
        reason: what the limit is made of.

    Raises:
        ValueError: for errors against an oracle that is not named, or that is one of the two judged.
    """

    quantity: str
    dtype: str
    error: float
    limit: float
    oracle: str | None = None
    torch_error: float | None = None
    jax_error: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        errors = [self.torch_error, self.jax_error]
        if any((error is None) != (self.oracle is None) for error in errors):
            raise ValueError(
                f"{self.quantity}: an oracle has a name and the errors of both halves."
            )
        if self.oracle is not None and (self.dtype, self.oracle) != ("float32", "float64"):
            raise ValueError(
                f"{self.quantity}: {self.oracle} is no oracle of {self.dtype}; what is judged never "
                "judges itself."
            )

    @property
    def passed(self) -> bool:
        """Within the limit, or as far from the oracle as the other backend is."""
        if self.error <= self.limit:
            return True
        if self.torch_error is None or self.jax_error is None:
            return False
        low, high = sorted([self.torch_error, self.jax_error])
        return math.isfinite(high) and high <= ORACLE_RATIO * low


@dataclass
class ParityReport:
    """What ``check_parity`` found: prints as a table, writes HTML and JSON.

    Attributes:
        architecture: the model.
        comparisons: one entry per quantity and dtype.
        row_errors: per quantity, the error of every row in float64, in eps.
        environment: versions and machine.
    """

    architecture: dict[str, Any]
    comparisons: list[Comparison] = field(default_factory=list)
    row_errors: dict[str, list[float]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every comparison passed, and there was at least one."""
        return bool(self.comparisons) and all(c.passed for c in self.comparisons)

    def __str__(self) -> str:
        header = ["quantity", "dtype", "torch-jax", "limit", "torch-oracle", "jax-oracle", ""]
        rows = [
            [
                c.quantity,
                c.dtype,
                _figure(c.error),
                _figure(c.limit),
                _figure(c.torch_error),
                _figure(c.jax_error),
                "ok" if c.passed else "FAILED",
            ]
            for c in self.comparisons
        ]
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in [header, ["-" * w for w in widths], *rows]
        ]
        verdict = "the two are one model" if self.passed else "THE TWO DIFFER"
        return "\n".join([f"{self.architecture['type']}: errors in eps", *lines, verdict])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        comparisons = [asdict(c) | {"passed": c.passed} for c in self.comparisons]
        return {
            "architecture": self.architecture,
            "passed": self.passed,
            "comparisons": comparisons,
            "environment": self.environment,
        }

    def to_json(self) -> str:
        """``to_dict`` as JSON; a figure that is not finite is null."""

        def finite(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: finite(v) for k, v in value.items()}
            if isinstance(value, list):
                return [finite(v) for v in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return json.dumps(finite(self.to_dict()), indent=2)

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained page: the table, the errors against their limits, per-row errors."""
        from twinflows.parity.report import html_page

        Path(path).write_text(html_page(self), encoding="utf-8")


def check_parity(
    flow: Any,
    x: Any,
    *,
    variables: Mapping[str, Any] | None = None,
    context: Any = None,
) -> ParityReport:
    """Build a model's twin in the other framework, convert the weights, and compare the two.

    Args:
        flow: a flow or bijector of either half.
        x: data, shape ``(rows, *event_shape)``.
        variables: the weights, if ``flow`` is a JAX one.
        context: shape ``(rows, context_dim)``, for a conditional model.

    Returns:
        The report; ``report.passed`` is the verdict.

    Raises:
        ArchitectureError: if the other half has no type of that name.
        ValueError: if a JAX flow comes without its variables, or for data of a wrong shape.

    Examples:
        >>> import numpy as np, torch_flows
        >>> from twinflows import check_parity
        >>> check_parity(torch_flows.Affine(2), np.zeros((5, 2))).passed
        True
    """
    import jax_flows
    import torch_flows
    from torch_flows.checkpoint import to_numpy

    if variables is None and hasattr(flow, "shapes"):
        raise ValueError("check_parity needs the variables of a JAX flow.")
    if variables is None:
        arrays = {name: to_numpy(array) for name, array in flow.state_dict().items()}
        return compare(copy.deepcopy(flow), jax_flows.build(architecture(flow)), arrays, x, context)
    return compare(torch_flows.build(architecture(flow)), flow, jax_to_torch(variables), x, context)


def check_bijector(
    torch_bijector: Any, jax_bijector: Any, x: Any = None, *, context: Any = None, seed: int = 0
) -> ParityReport:
    """Compare a bijector that you wrote in both frameworks, on random weights.

    Args:
        torch_bijector: the PyTorch one; its weights plus noise are used, so that zeros hide nothing.
        jax_bijector: the JAX one, of the same parameter names.
        x: data, shape ``(rows, *event_shape)``; 64 normal rows by default.
        context: shape ``(rows, context_dim)``, drawn by default where one is needed.
        seed: of the noise and the drawn data.

    Raises:
        ConversionError: if the two have different names or shapes of parameters.
        ValueError: if ``event_shape`` leaves a length open and no x is given.

    Examples:
        >>> import jax_flows, torch_flows
        >>> from twinflows import check_bijector
        >>> check_bijector(torch_flows.Affine(2), jax_flows.Affine(2)).passed
        True
    """
    from torch_flows.checkpoint import to_numpy

    generator = np.random.default_rng(seed)
    event_shape = torch_bijector.event_shape
    if x is None:
        if None in event_shape:
            raise ValueError("check_bijector needs x where event_shape leaves a length open.")
        x = generator.standard_normal((64, *event_shape))
    if context is None and torch_bijector.context_dim:
        context = generator.standard_normal((len(x), torch_bijector.context_dim))
    arrays = {name: to_numpy(array) for name, array in torch_bijector.state_dict().items()}
    trainable = {name for name, _ in torch_bijector.named_parameters()}
    for name in trainable & arrays.keys():
        noise = 0.2 * generator.standard_normal(arrays[name].shape)
        arrays[name] = np.asarray(arrays[name] + noise, np.float32)
    return compare(copy.deepcopy(torch_bijector), jax_bijector, arrays, x, context)


def compare(
    torch_model: Any, jax_model: Any, arrays: Mapping[str, np.ndarray], x: Any, context: Any
) -> ParityReport:
    """Run two models on the same weights and inputs and compare everything they compute.

    Args:
        torch_model: changed to hold ``arrays``.
        jax_model: its twin.
        arrays: the weights by torch name, in PyTorch's layout.
        x, context: the data.
    """
    import jax

    num_layers = _count_layers(torch_model)
    solving = bool(solvers(torch_model))
    single = {
        "x": np.asarray(x, np.float32),
        "context": None if context is None else np.asarray(context, np.float32),
        "weights": {name: array.astype(np.float32) for name, array in arrays.items()},
    }
    report = ParityReport(architecture(torch_model), environment=_environment())
    with jax.enable_x64(True):
        sides = {
            dtype: (
                _TorchSide(copy.deepcopy(torch_model), _cast(single["weights"], dtype)),
                _JaxSide(jax_model, _cast(single["weights"], dtype)),
            )
            for dtype in ("float64", "float32")
        }
        x64, context64 = _cast(single["x"], "float64"), _cast(single["context"], "float64")
        z = sides["float64"][0].forward(x64, context64)["z"].astype(np.float32)
        runs = {
            dtype: [
                side.forward(_cast(single["x"], dtype), _cast(single["context"], dtype))
                | side.inverse(_cast(z, dtype), _cast(single["context"], dtype))
                for side in pair
            ]
            for dtype, pair in sides.items()
        }
        oracle = runs["float64"][0]
        noise = {
            name: max(_error(name, run[name], oracle[name], "float32") for run in runs["float32"])
            for name in oracle
        }
        steps = _steps(sides["float64"][0], x64, z.astype(np.float64), context64, oracle)
        wobble = _perturbed(sides["float64"][0], x64, z.astype(np.float64), context64, oracle)
        for dtype, (torch_run, jax_run) in runs.items():
            for name in oracle:
                error = _error(name, torch_run[name], jax_run[name], dtype)
                if not _has_dtype(torch_run[name], dtype) or not _has_dtype(jax_run[name], dtype):
                    error = math.inf
                limit = max(GATES[_KINDS[name]].limit(num_layers), steps.get(name, 0) / EPS[dtype])
                to_oracle: list[Any] = []
                if dtype == "float32":
                    limit = max(limit, wobble[name])
                    to_oracle = ["float64"] + [
                        _error(name, r[name], oracle[name], dtype) for r in (torch_run, jax_run)
                    ]
                else:
                    # in units of eps float32 is as noisy as float64, so it shows the conditioning
                    limit = max(limit, _allowance(noise[name]))
                    if _KINDS[name] != "gradients":
                        rows = _row_errors(name, torch_run[name], jax_run[name])
                        report.row_errors[name] = (rows / EPS[dtype]).ravel().tolist()
                report.comparisons.append(Comparison(name, dtype, error, limit, *to_oracle))
        if solving:
            report.comparisons += _check_parts(sides["float64"], x64, context64)
        else:
            rough = sides["float32"][0]
            report.comparisons += _truth(sides["float64"], rough, x64, context64, num_layers)
        report.comparisons += _check_training(sides["float64"], x64, context64, num_layers)
    return report


EPS = {"float64": 2.0**-52, "float32": 2.0**-23}
_NAMES = ("torch", "jax")
_KINDS = {
    "z": "outputs",
    "log_det": "log_det",
    "log_prob": "log_det",
    "gradients": "gradients",
    "x": "outputs",
    "inverse log_det": "log_det",
    "inverse gradients": "gradients",
}


def _cast(value: Any, dtype: str) -> Any:
    if isinstance(value, dict):
        return {name: array.astype(dtype) for name, array in value.items()}
    return None if value is None else value.astype(dtype)


def _has_dtype(value: Any, dtype: str) -> bool:
    arrays = value.values() if isinstance(value, dict) else [value]
    return all(array.dtype.name == dtype for array in arrays)


def _perturbed(
    side: "_TorchSide", x: np.ndarray, z: np.ndarray, context: np.ndarray | None, oracle: Results
) -> dict[str, float]:
    """How far results move, in eps of float32, when weights and inputs move by 64 of them.

    No float32 run can be told from another below that, least of all gradients at the kinks of
    piecewise linear activations, where a rounding error decides which of two slopes is taken.
    """
    generator = np.random.default_rng(0)

    def move(array: np.ndarray) -> np.ndarray:
        return np.asarray(
            array * (1 + 64 * EPS["float32"] * generator.standard_normal(array.shape))
        )

    moved = _TorchSide(
        copy.deepcopy(side.model), {name: move(array) for name, array in side.weights.items()}
    )
    results = moved.forward(move(x), context) | moved.inverse(move(z), context)
    errors = {name: _error(name, results[name], oracle[name], "float32") for name in oracle}
    return {name: error if math.isfinite(error) else 0.0 for name, error in errors.items()}


def _allowance(noise: float) -> float:
    """What an ill-conditioned case may differ by, given its noise; none where that is not finite."""
    return ORACLE_RATIO * noise if math.isfinite(noise) else 0.0


def _row_errors(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The error of every row: relative to the row's norm, or absolute where that is below 1."""
    if a.shape != b.shape:
        return np.full(max(1, len(a)), np.inf)
    if _KINDS[name] == "outputs":
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    else:
        a, b = a.reshape(-1, 1), b.reshape(-1, 1)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0, np.abs(a.astype(np.float64) - b))
        scale = np.maximum(1, np.linalg.norm(np.where(np.isfinite(b), b, 0), axis=-1))
        errors = np.linalg.norm(difference, axis=-1) / scale
    return np.where(np.isnan(errors), np.inf, errors)


def _error(name: str, a: Any, b: Any, dtype: str) -> float:
    """The largest error in eps: over rows, or over arrays of gradients (relative L2)."""
    if _KINDS[name] != "gradients":
        return float(_row_errors(name, a, b).max(initial=0) / EPS[dtype])
    total = math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in b.values()))
    worst = 0.0
    for key, array in b.items():
        scale = max(float(np.linalg.norm(array)), SMALL_GRADIENT * total, 1e-300)
        error = float(np.linalg.norm(a[key].astype(np.float64) - array)) / scale
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst / EPS[dtype]


def _steps(
    side: "_TorchSide", x: np.ndarray, z: np.ndarray, context: np.ndarray | None, oracle: Results
) -> dict[str, float]:
    """By how much results move when solvers that choose their steps by themselves choose finer ones.

    Two such solvers may differ by the errors of both. Fixed steps are the same in both halves.
    """
    if not any(solver.adaptive for solver in solvers(side.model)):
        return {}
    fine = _TorchSide(refined_torch(side.model), side.weights)
    results = fine.forward(x, context) | fine.inverse(z, context)
    return {
        name: ORACLE_RATIO * EPS["float64"] * _error(name, results[name], oracle[name], "float64")
        for name in oracle
    }


def _truth(
    sides: tuple[Any, Any],
    rough: "_TorchSide",
    x: np.ndarray,
    context: np.ndarray | None,
    num_layers: int,
    label: str = "",
    given: "_TorchSide | None" = None,
) -> list[Comparison]:
    """Round trips against x, log-dets against the determinant of each half's own autodiff Jacobian.

    Args:
        sides: both halves in float64, with finer steps where they solve.
        rough: the torch half in float32; its round trip shows the conditioning.
        x, context: float64.
        num_layers: of the model.
        label: precedes the names of the quantities.
        given: the torch half in float64 with its own steps, where it solves.
    """

    def round_trip(source: Any, target: Any, x: np.ndarray, context: np.ndarray | None) -> Any:
        return target.inverse(source.forward(x, context)["z"], context)["x"]

    back = {(a, b): round_trip(sides[a], sides[b], x, context) for a in range(2) for b in range(2)}
    single = _cast(x, "float32"), _cast(context, "float32")
    noise = _error("x", round_trip(rough, rough, *single), x, "float32")
    limit = max(GATES["round_trip"].limit(num_layers), _allowance(noise))
    if given is not None:
        own = round_trip(given, given, x, context)
        limit = max(limit, _error("x", own, back[0, 0], "float64") / REFINED_RATIO)
    found = [
        Comparison(
            f"{label}round trip {_NAMES[a]} to {_NAMES[b]}",
            "float64",
            _error("x", x_again, x, "float64"),
            limit,
        )
        for (a, b), x_again in back.items()
    ]
    if len(x) == 0 or x[0].size > MAX_JACOBIAN_SIZE:
        return found
    x, context = x[:_JACOBIAN_ROWS], None if context is None else context[:_JACOBIAN_ROWS]
    exact, conditions = zip(*(_log_det(side, x, context) for side in sides), strict=True)
    limit = max(GATES["jacobian"].limit(num_layers), *(ORACLE_RATIO * c for c in conditions))
    log_dets = [side.forward(x, context)["log_det"] for side in sides]
    if given is not None:
        own_log_det = given.forward(x, context)["log_det"]
        steps = _error("log_det", own_log_det, log_dets[0], "float64")
        steps += _error("log_det", _log_det(given, x, context)[0], exact[0], "float64")
        limit = max(limit, steps / REFINED_RATIO)
    found += [
        Comparison(
            f"{label}{name} log_det, autodiff",
            "float64",
            _error("log_det", log_det, truth, "float64"),
            limit,
        )
        for name, log_det, truth in zip(_NAMES, log_dets, exact, strict=True)
    ]
    return found


def _log_det(side: Any, x: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, float]:
    """The log|det| of the autodiff Jacobian, and its condition number: what slogdet itself loses."""
    jacobian = side.jacobian(x, context).reshape(len(x), x[0].size, x[0].size)
    with np.errstate(invalid="ignore"):
        exact = np.linalg.slogdet(jacobian)[1]
    condition = float(np.linalg.cond(jacobian).max()) if np.isfinite(jacobian).all() else 0.0
    return exact, condition


def _check_parts(
    sides: tuple[Any, Any], x: np.ndarray, context: np.ndarray | None
) -> list[Comparison]:
    """``_truth`` of each solver with finer steps, and of the layers between them as they are."""
    import torch

    found: list[Comparison] = []
    parts = split(sides[0].model, sides[1].model, sides[0].weights)
    if context is not None and hasattr(sides[0].model, "embed"):
        context = sides[0].model.embed(torch.from_numpy(context)).detach().numpy()
    for part in parts:
        label = f"{part.label}: " if len(parts) > 1 else ""
        own_context = context if part.torch_model.context_dim else None
        given = _TorchSide(part.torch_model, part.weights)
        rough = _TorchSide(copy.deepcopy(part.torch_model), _cast(part.weights, "float32"))
        fine = (
            _TorchSide(refined_torch(part.torch_model), part.weights),
            _JaxSide(refined_jax(part.jax_model), part.weights, gradients=False),
        )
        num_layers = _count_layers(part.torch_model)
        steps = given if part.solves else None
        found += _truth(fine, rough, x, own_context, num_layers, label, steps)
        x = given.forward(x, own_context)["z"]
    return found


def _check_training(
    sides: tuple[Any, Any], x: np.ndarray, context: np.ndarray | None, num_layers: int
) -> list[Comparison]:
    """Batch statistics in training mode: the outputs, and the running averages after it."""
    if len(x) < 2 or not sides[1].variables["batch_stats"]:
        return []
    runs = [side.train(x, context) for side in sides]
    limit = GATES["log_det"].limit(num_layers)
    return [
        Comparison(
            f"training {name}",
            "float64",
            _error("log_det", runs[0][name], runs[1][name], "float64"),
            limit,
        )
        for name in ("log_det", "batch statistics")
    ]


def _cotangents(outputs: Results) -> Results:
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(np.shape(outputs[name])).astype(outputs[name].dtype)
        for name in sorted(outputs)
    }


class _TorchSide:
    """A torch model with given weights, from numpy to numpy."""

    def __init__(self, model: Any, weights: Mapping[str, np.ndarray]) -> None:
        import torch

        from torch_flows.checkpoint import from_numpy

        dtype = next(iter(weights.values())).dtype.name if weights else "float64"
        self.weights = weights
        self.model = model.to(getattr(torch, dtype)).to("cpu").eval()
        state = {name: from_numpy(array) for name, array in weights.items()}
        self.model.load_state_dict(state)
        for parameter in self.model.parameters():
            parameter.requires_grad_()

    def forward(self, x: np.ndarray, context: np.ndarray | None) -> Results:
        def outputs(x: Any, context: Any) -> dict[str, Any]:
            z, log_det = self.model.forward(x, context)
            result = {"z": z, "log_det": log_det}
            if hasattr(self.model, "base"):
                result["log_prob"] = self.model.base.log_prob(z) + log_det
            return result

        return self._run(outputs, x, context, "gradients")

    def inverse(self, z: np.ndarray, context: np.ndarray | None) -> Results:
        def outputs(z: Any, context: Any) -> dict[str, Any]:
            x, log_det = self.model.inverse(z, context)
            return {"x": x, "inverse log_det": log_det}

        return self._run(outputs, z, context, "inverse gradients")

    def _run(self, function: Any, x: np.ndarray, context: np.ndarray | None, name: str) -> Results:
        import torch

        point = torch.from_numpy(x.copy()).requires_grad_()
        given = None if context is None else torch.from_numpy(context.copy())
        outputs = function(point, given)
        values = {key: value.detach().numpy() for key, value in outputs.items()}
        weights = dict(self.model.named_parameters())
        wrt = {"input": point, **weights}
        total = sum(
            (outputs[key] * torch.from_numpy(c)).sum() for key, c in _cotangents(values).items()
        )
        found = torch.autograd.grad(total, list(wrt.values()), allow_unused=True)
        gradients = {
            key: (torch.zeros_like(w) if g is None else g).numpy()
            for (key, w), g in zip(wrt.items(), found, strict=True)
        }
        return values | {name: gradients}

    def jacobian(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        import torch

        def z(x: Any, context: Any = None) -> Any:
            return self.model.forward(x, context)[0]

        arrays = [torch.from_numpy(a.copy()) for a in (x, context) if a is not None]
        if any(
            s.adaptive for s in solvers(self.model)
        ):  # steps chosen on the host cannot be mapped
            rows = [torch.func.jacrev(z)(*row) for row in zip(*arrays, strict=True)]
            return torch.stack(rows).detach().numpy()
        return torch.func.vmap(torch.func.jacrev(z))(*arrays).detach().numpy()

    def train(self, x: np.ndarray, context: np.ndarray | None) -> Results:
        import torch

        model = copy.deepcopy(self.model).train()
        given = None if context is None else torch.from_numpy(context)
        log_det = model.forward(torch.from_numpy(x), given)[1].detach().numpy()
        weights = dict(model.named_parameters())
        stats = [
            a.numpy().ravel()
            for name, a in sorted(model.state_dict().items())
            if name not in weights
        ]
        return {"log_det": log_det, "batch statistics": np.concatenate(stats)}


class _JaxSide:
    """A JAX model with given weights, from numpy to numpy, compiled."""

    def __init__(
        self, model: Any, weights: Mapping[str, np.ndarray], gradients: bool = True
    ) -> None:
        import jax

        from jax_flows.checkpoint import from_numpy

        self.model = model
        self.variables = from_numpy(torch_to_jax(weights, model.shapes()))
        run = self._with_gradients if gradients else self._without_gradients
        self._forward = jax.jit(run(self._forward_outputs))
        self._inverse = jax.jit(run(self._inverse_outputs))

    def _forward_outputs(self, variables: Any, x: Any, context: Any) -> dict[str, Any]:
        z, log_det = self.model.forward(variables, x, context)
        result = {"z": z, "log_det": log_det}
        if hasattr(self.model, "base"):
            base = {name: tree.get("base", {}) for name, tree in variables.items()}
            result["log_prob"] = self.model.base.log_prob(base, z) + log_det
        return result

    def _inverse_outputs(self, variables: Any, z: Any, context: Any) -> dict[str, Any]:
        x, log_det = self.model.inverse(variables, z, context)
        return {"x": x, "inverse log_det": log_det}

    def _with_gradients(self, function: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
        import jax

        def run(params: Any, stats: Any, x: Any, context: Any) -> Any:
            def total(params: Any, x: Any) -> Any:
                outputs = function({"params": params, "batch_stats": stats}, x, context)
                cotangents = _cotangents(outputs)
                return sum((outputs[key] * c).sum() for key, c in cotangents.items()), outputs

            gradients, outputs = jax.grad(total, argnums=(0, 1), has_aux=True)(params, x)
            return outputs, gradients

        return run

    def _without_gradients(self, function: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
        def run(params: Any, stats: Any, x: Any, context: Any) -> Any:
            return function({"params": params, "batch_stats": stats}, x, context), None

        return run

    def _run(self, function: Any, x: np.ndarray, context: np.ndarray | None, name: str) -> Results:
        params, stats = self.variables["params"], self.variables["batch_stats"]
        outputs, gradients = function(params, stats, x, context)
        results: Results = {key: np.asarray(value) for key, value in outputs.items()}
        if gradients is not None:
            weights, point = gradients
            results[name] = {"input": np.asarray(point), **jax_to_torch({"params": weights})}
        return results

    def forward(self, x: np.ndarray, context: np.ndarray | None) -> Results:
        return self._run(self._forward, x, context, "gradients")

    def inverse(self, z: np.ndarray, context: np.ndarray | None) -> Results:
        return self._run(self._inverse, z, context, "inverse gradients")

    def jacobian(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        import jax

        def z(x: Any, context: Any = None) -> Any:
            return self.model.forward(self.variables, x, context)[0]

        arrays = [a for a in (x, context) if a is not None]
        return np.asarray(jax.jit(jax.vmap(jax.jacrev(z)))(*arrays))

    def train(self, x: np.ndarray, context: np.ndarray | None) -> Results:
        import jax

        update = jax.jit(self.model.forward_and_update)
        _, log_det, stats = update(self.variables, x, context)
        arrays = jax_to_torch({"batch_stats": stats})
        return {
            "log_det": np.asarray(log_det),
            "batch statistics": np.concatenate([arrays[name].ravel() for name in sorted(arrays)]),
        }


def _count_layers(model: Any) -> int:
    """How many bijectors, not counting those made of others."""
    from torch_flows import Bijector

    return sum(
        isinstance(module, Bijector) and not any(isinstance(m, Bijector) for m in module.children())
        for module in model.modules()
        if type(module).__name__ not in ("Chain", "Invert")
    )


def _environment() -> dict[str, str]:
    packages = ("twinflows", "torch", "jax", "flax", "numpy")
    return {name: version(name) for name in packages} | {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2g}" if value < 1000 else f"{value:.1e}"
