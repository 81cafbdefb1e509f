"""What both halves' ``export`` check and say."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flow_bridge import checks

OUTPUTS = {"log_prob": ("log_prob",), "forward": ("z", "log_det"), "inverse": ("x", "log_det")}
"""The methods that can be exported, with the names of what they return."""


def check_path(owner: str, path: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """The path, whose suffix says the format; ``ValueError`` for another one."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise ValueError(f"{owner} writes {' and '.join(suffixes)} files, got {path.name!r}.")
    return path


def check_method(
    owner: str, flow: Any, method: str
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """The inputs of a method, with the shape of one row of each, and the names of its outputs.

    Raises:
        ValueError: for a method that is none or that ``flow`` lacks, and for an event shape with open
            axes.
    """
    methods = [name for name in OUTPUTS if hasattr(flow, name)]
    checks.one_of(owner, "method", method, methods)
    name, shape = ("z", flow.latent_shape) if method == "inverse" else ("x", flow.event_shape)
    if None in shape:
        raise ValueError(
            f"{owner} expects a fixed event shape, got {shape}: put the bijector into a Chain with "
            "one that states its dim."
        )
    inputs = {name: shape}
    if flow.context_dim:
        inputs["context"] = (flow.context_dim,)
    return inputs, OUTPUTS[method]


def solver_message() -> str:
    """What a solver that chooses its steps on the host says."""
    return (
        "solver 'dopri5' chooses its steps on the host and cannot be exported from PyTorch: build "
        "the flow with solver='rk4' and enough num_steps and load the same weights into it, or take its "
        "steps from a run with fixed_grid(flow, x)."
    )


def field_message() -> str:
    """What a field says whose rates PyTorch's exporter does not follow."""
    return (
        "ContinuousBijector with a conditioner or circular columns differentiates a network in its rates, "
        "which torch.export does not follow: export it from JAX."
    )


def no_solver(owner: str, found: bool) -> str:
    """What ``fixed_grid`` says to a flow that it cannot change, and whether it has a solver at all."""
    if found:
        return (
            f"{owner} fixes solvers that are a flow's bijector or stand in its chain, not deeper."
        )
    return f"{owner} expects a flow with a ContinuousBijector of solver 'dopri5', and found none."


def onnx_dtype_message(dtype: str) -> str:
    """What weights say that the operators of ONNX runtimes are not made for."""
    return f"ONNX files are float32, and the weights are {dtype}: convert them with flow.float()."


def missing_onnx() -> str:
    """What a missing optional dependency says."""
    return "ONNX files need the packages onnx and onnxscript: pip install 'twinflows[deploy]'."


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place only once it is complete."""
    temporary = path.with_name(f".{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
