"""The parity check: is the model in PyTorch the model in JAX?

Both halves run on the same weights and inputs, in float64 and in float32, and a third, independent
figure judges them: the float64 run for float32, the rows themselves for round trips, the autodiff
Jacobian for log-dets. Weights and inputs are first rounded to float32, so that every run starts from
the same numbers.
"""

import math
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from flow_bridge.architecture import architecture, to_json
from flow_bridge.checkpoint import digest
from flow_bridge.networks import Network
from flow_bridge.weights import jax_to_torch
from twinflows.parity import attempts
from twinflows.parity.errors import (
    EPS,
    KINDS,
    UNITS,
    absolute,
    cast,
    error,
    has_dtype,
    row_errors,
)
from twinflows.parity.given import (
    describe_rows,
    differences,
    rows,
    summary,
    weight_differences,
)
from twinflows.parity.limits import (
    BY_CONDITIONING,
    BY_MOVING,
    BY_SOLVER,
    MAX_FLOAT32,
    MOVE,
    ORACLE_RATIO,
    gate,
)
from twinflows.parity.report import Comparison, ParityReport
from twinflows.parity.solvers import refined_torch, solvers
from twinflows.parity.truth import Judged, check_parts, check_truth, conditioning
from twinflows.sides.base import Results

DTYPES = ("float64", "float32")


def check_parity(
    flow: Any,
    x: Any,
    *,
    variables: Mapping[str, Any] | None = None,
    context: Any = None,
    twin: Any = None,
    source: str = "given",
) -> ParityReport:
    """Compare a model in the two frameworks: with its own twin, or two models that were given.

    Without ``twin`` the model is built in the other framework and its weights are converted. With
    ``twin`` the report first says whether architectures or weights differ, and where.

    Args:
        flow: a flow or bijector of either half.
        x: data, shape ``(*batch, *event_shape)``.
        variables: the weights of the JAX model, of ``flow`` or ``twin``.
        context: shape ``(*batch, context_dim)``, for a conditional model.
        twin: a second model of either half, or a pair of a JAX model and its variables. Of two models
            of one half the second (for two JAX ones the first) is converted to the other.
        source: where x comes from, for the report.

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

    second, own = twin if isinstance(twin, tuple) else (twin, None)
    # _orig_mod: of what torch.compile returns
    flow, second = (getattr(model, "_orig_mod", model) for model in (flow, second))
    for model in (flow, second):
        if isinstance(model, torch_flows.Dequantized | jax_flows.Dequantized):
            raise TypeError(
                "check_parity takes what has a density, where Dequantized has bounds: check its flow "
                "and its noise."
            )
    one_owner = _is_jax(flow) and second is not None and _is_jax(second) and own is None
    if one_owner or (own is None and variables is None and (_is_jax(flow) or _is_jax(second))):
        raise ValueError(
            "check_parity needs the variables of a JAX flow; give a second one as twin=(flow, variables)."
        )
    first_arrays = _arrays(flow, variables)
    if second is None:
        torch_model = torch_flows.build(architecture(flow)) if _is_jax(flow) else flow
        jax_model = flow if _is_jax(flow) else jax_flows.build(architecture(flow))
        report = compare(
            torch_model, jax_model, first_arrays, x, context, thorough=True, source=source
        )
        report.subject = _subject(report.subject, model=(flow, first_arrays))
        return report
    second_arrays = _arrays(second, variables if own is None else own)
    pair = [architecture(flow), architecture(second)]
    found = summary("The architectures", list(differences(pair[0], pair[1])))
    found += summary("The weights", weight_differences(first_arrays, second_arrays))
    if (flow.event_shape, flow.context_dim) == (second.event_shape, second.context_dim):
        if not _is_jax(flow):
            models = flow, second if _is_jax(second) else jax_flows.build(pair[1])
            arrays = first_arrays, second_arrays
        elif _is_jax(second):
            models, arrays = (torch_flows.build(pair[0]), second), (first_arrays, second_arrays)
        else:
            models, arrays = (second, flow), (second_arrays, first_arrays)
        report = compare(
            *models, arrays[0], x, context, jax_arrays=arrays[1], thorough=True, source=source
        )
    else:
        report = ParityReport(pair[0], environment=_environment())
    report.findings = found + [text for text in report.findings if "argument" not in text]
    report.subject = _subject(
        report.subject, first=(flow, first_arrays), second=(second, second_arrays)
    )
    return report


def check_bijector(
    torch_bijector: Any, jax_bijector: Any, x: Any = None, *, context: Any = None, seed: int = 0
) -> ParityReport:
    """Compare a bijector that you wrote in both frameworks, on random weights.

    Args:
        torch_bijector: the PyTorch one; its weights plus noise are used, so that zeros hide nothing.
        jax_bijector: the JAX one, of the same parameter names.
        x: data, shape ``(*batch, *event_shape)``; 64 rows in the domain by default.
        context: shape ``(*batch, context_dim)``, drawn by default where one is needed.
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
    generator = np.random.default_rng(seed)
    event_shape = torch_bijector.event_shape
    source = "given"
    if x is None:
        if None in event_shape:
            raise ValueError("check_bijector needs x where event_shape leaves a length open.")
        x = attempts.typical(torch_bijector.domain, (64, *event_shape), generator)
        source = f"drawn with seed {seed}"
    batch = np.shape(x)[: np.ndim(x) - len(event_shape)]
    if context is None and torch_bijector.context_dim:
        context = generator.standard_normal((*batch, torch_bijector.context_dim))
    arrays = _arrays(torch_bijector, None)
    trainable = {name for name, _ in torch_bijector.named_parameters()}
    for name in sorted(trainable & arrays.keys()):
        noise = 0.2 * generator.standard_normal(arrays[name].shape)
        arrays[name] = np.asarray(arrays[name] + noise, np.float32)
    report = compare(torch_bijector, jax_bijector, arrays, x, context, thorough=True, source=source)
    report.subject = _subject(report.subject, model=(torch_bijector, arrays))
    return report


def check_network(
    torch_network: Network | type,
    jax_network: Network | type,
    in_dim: int,
    out_dim: int,
    *,
    context_dim: int = 0,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
) -> ParityReport:
    """Compare a network that you wrote in both frameworks, on random weights.

    It is put where it will be used: into a coupling z = x + network(fixed), which is then compared as
    ``check_bijector`` does, gradients, conversion of weights and both precisions included.

    Args:
        torch_network: the PyTorch one, ``Network(CLASS, ...)`` or a class.
        jax_network: the JAX one, of the same options and parameter names.
        in_dim, out_dim: widths to build it with; numbers of channels for networks of images.
        context_dim: width of a context, 0 for none.
        image_size: height and width for networks of images.
        seed: of the weights and the data.

    Raises:
        ArchitectureError: if one of them is not registered.
        ConversionError: if the two have different names or shapes of parameters.

    Examples:
        >>> import jax_flows, torch_flows
        >>> from twinflows import check_network
        >>> check_network(torch_flows.MLP, jax_flows.MLP, in_dim=2, out_dim=3).passed
        True
    """
    import jax_flows
    import torch_flows

    size = in_dim + out_dim
    shape = size if image_size is None else (size, *image_size)
    mask = [1] * in_dim + [0] * out_dim
    pair = [
        half.Coupling(shape, half.ShiftMap(), network, mask, context_dim)
        for half, network in ((torch_flows, torch_network), (jax_flows, jax_network))
    ]
    return check_bijector(*pair, seed=seed)


def compare(
    torch_model: Any,
    jax_model: Any,
    arrays: Mapping[str, np.ndarray],
    x: Any,
    context: Any,
    *,
    jax_arrays: Mapping[str, np.ndarray] | None = None,
    thorough: bool = False,
    dtypes: Sequence[str] = DTYPES,
    source: str = "given",
) -> ParityReport:
    """Run two models on the same weights and inputs and compare everything they compute.

    Args:
        torch_model: the one in PyTorch; it is copied.
        jax_model: the one in JAX.
        arrays: the weights by torch name, in PyTorch's layout.
        x, context: the data.
        jax_arrays: the weights of ``jax_model``, where they are others.
        thorough: also compare batch shapes and training mode, for which JAX compiles more programs.
        dtypes: float64, and float32 where it is wanted.
        source: of the data, in words.
    """
    import jax

    from twinflows.sides.jax_side import JaxSide
    from twinflows.sides.torch_side import TorchSide

    report = ParityReport(architecture(torch_model), environment=_environment())
    report.findings += check_names(torch_model, jax_model)
    single, context32 = rows("check_parity", torch_model, x, context)
    report.subject = describe_rows(single, context32, source)
    weights = cast(dict(arrays), "float32")
    twin_weights = weights if jax_arrays is None else cast(dict(jax_arrays), "float32")
    num_layers = count_layers(torch_model)
    x64, context64 = cast(single, "float64"), cast(context32, "float64")
    with jax.enable_x64(True):
        torch_sides = {d: TorchSide.holding(torch_model, weights, d) for d in DTYPES}
        exact = torch_sides["float64"]
        sides = {d: (torch_sides[d], JaxSide.holding(jax_model, twin_weights, d)) for d in dtypes}
        before = attempts.state(exact.flow)
        first = exact.forward(x64, context64)
        z = cast(first["z"], "float32")

        def run(side: Any, dtype: str) -> Results:
            rows_, context_, z_ = (cast(a, dtype) for a in (single, context32, z))
            return side.forward(rows_, context_) | side.inverse(z_, context_)

        runs = {d: [run(side, d) for side in pair] for d, pair in sides.items()}
        oracle = runs["float64"][0]
        report.findings += attempts.check_repeats(exact, x64, context64, first, thorough)
        rough = runs["float32"] if "float32" in runs else [run(torch_sides["float32"], "float32")]
        noise = {
            name: max(error(name, found[name], oracle[name], "float32") for found in rough)
            for name in oracle
        }
        z64 = cast(z, "float64")
        steps = _steps(exact, weights, x64, z64, context64, oracle)
        moved = _moved(torch_model, weights, x64, z64, context64, oracle)
        for dtype, (torch_run, jax_run) in runs.items():
            for name in oracle:
                found = error(name, torch_run[name], jax_run[name], dtype)
                for half, result in (("torch", torch_run), ("jax", jax_run)):
                    if not has_dtype(result[name], dtype):
                        found = math.inf
                        report.findings.append(f"{name} is not {dtype} in {half}, as the input is.")
                limit = gate(KINDS[name], num_layers)
                limit = limit.raised(steps.get(name, 0) / EPS[dtype], BY_SOLVER)
                to_oracle: dict[str, Any] = {}
                if dtype == "float32":
                    # at a kink, where the slope jumps, gradients of float32 may be anything
                    most = math.inf if KINDS[name] == "gradients" else MAX_FLOAT32
                    limit = limit.raised(min(moved[name], most), BY_MOVING)
                    to_oracle = {
                        "oracle": "float64",
                        "torch_error": error(name, torch_run[name], oracle[name], dtype),
                        "jax_error": error(name, jax_run[name], oracle[name], dtype),
                    }
                else:
                    # in units of eps float32 is as noisy as float64, so it shows the conditioning
                    limit = limit.raised(conditioning(noise[name]), BY_CONDITIONING)
                    if KINDS[name] != "gradients":
                        errors = row_errors(torch_run[name], jax_run[name])
                        report.row_errors[name] = (errors / EPS[dtype]).ravel().tolist()
                report.comparisons.append(
                    Comparison(
                        name,
                        dtype,
                        found,
                        limit.value,
                        **to_oracle,
                        reason=limit.reason,
                        absolute=absolute(name, torch_run[name], jax_run[name]),
                        unit=UNITS[KINDS[name]].format(name),
                    )
                )
        pair = sides["float64"]
        if solvers(torch_model):
            report.comparisons += check_parts(pair, weights, x64, context64, count_layers)
        else:
            judged = Judged(pair, torch_sides["float32"], num_layers)
            report.comparisons += check_truth(judged, x64, context64)
        trial = attempts.Trial(
            pair, torch_sides["float32"], num_layers, steps, noise, x64, context64
        )
        attempts.try_all(trial, runs["float64"], report, thorough)
        report.findings += attempts.check_state(before, attempts.state(exact.flow), exact.flow)
    return report


def _steps(
    side: Any,
    weights: Mapping[str, np.ndarray],
    x: np.ndarray,
    z: np.ndarray,
    context: np.ndarray | None,
    oracle: Results,
) -> dict[str, float]:
    """By how much results move when solvers that choose their steps by themselves choose finer ones.

    Two such solvers may differ by the errors of both. Fixed steps are the same in both halves.
    """
    if not any(solver.adaptive for solver in solvers(side.flow)):
        return {}
    fine = type(side).holding(refined_torch(side.flow), weights, "float64")
    results = fine.forward(x, context) | fine.inverse(z, context)
    return {
        name: ORACLE_RATIO * EPS["float64"] * error(name, results[name], oracle[name], "float64")
        for name in oracle
    }


def _moved(
    model: Any,
    weights: Mapping[str, np.ndarray],
    x: np.ndarray,
    z: np.ndarray,
    context: np.ndarray | None,
    oracle: Results,
) -> dict[str, float]:
    """How far results move, in eps of float32, when weights and inputs move by a few of them.

    No float32 run can be told from another below that, least of all gradients at the kinks of
    piecewise linear activations, where a rounding error decides which of two slopes is taken.
    """
    from twinflows.sides.torch_side import TorchSide

    generator = np.random.default_rng(0)

    def move(array: np.ndarray) -> np.ndarray:
        noise = generator.standard_normal(array.shape)
        return np.asarray(array * (1 + MOVE * EPS["float32"] * noise), np.float64)

    moved = {name: move(array) for name, array in weights.items()}
    side = TorchSide.holding(model, moved, "float64")
    near = None if context is None else move(context)
    results = side.forward(move(x), near) | side.inverse(move(z), near)
    return {name: error(name, results[name], oracle[name], "float32") for name in oracle}


def check_names(torch_model: Any, jax_model: Any) -> list[str]:
    """What would keep the files of one half from being read by the other."""
    import jax_flows
    import torch_flows

    names = type(torch_model).__name__, type(jax_model).__name__
    if names[0] != names[1]:
        return [
            f"The classes have different names, {names[0]} and {names[1]}: a file names its type, so "
            "the other half could not read it."
        ]
    known = [names[0] in half.registry.registry.types for half in (torch_flows, jax_flows)]
    found = []
    if known[0] != known[1]:
        missing = "jax_flows" if known[0] else "torch_flows"
        found.append(
            f"{names[0]} is registered in one half only: {missing} has no type of that name."
        )
    own = [architecture(model) for model in (torch_model, jax_model)]
    return found + summary("The constructors' arguments", list(differences(own[0], own[1])))


def count_layers(model: Any) -> int:
    """How many bijectors, not counting those made of others."""
    from torch_flows import Bijector

    return sum(
        isinstance(module, Bijector) and not any(isinstance(m, Bijector) for m in module.children())
        for module in model.modules()
        if type(module).__name__ not in ("Chain", "Invert")
    )


def _is_jax(model: Any) -> bool:
    return hasattr(model, "shapes")


def _arrays(model: Any, variables: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    if _is_jax(model):
        return jax_to_torch(variables or {})
    from torch_flows.checkpoint import to_numpy

    return {name: to_numpy(array) for name, array in model.state_dict().items()}


def _subject(
    inputs: dict[str, str], **models: tuple[Any, Mapping[str, np.ndarray]]
) -> dict[str, str]:
    """What was judged, and when."""
    digests = {
        f"sha256 of the {role}": digest("model", to_json(architecture(model)), arrays)
        for role, (model, arrays) in models.items()
    }
    return {**digests, **inputs, "date": datetime.now(UTC).isoformat(timespec="seconds")}


def _environment() -> dict[str, str]:
    packages = ("twinflows", "torch", "jax", "flax", "numpy")
    return {name: version(name) for name in packages} | {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
