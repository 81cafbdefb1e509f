"""The command line: ``twinflows inspect``, ``twinflows parity``, ``twinflows convert``.

Exit codes: 0 for success, 1 where a parity check fails, 2 for bad input.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from flow_bridge.errors import TwinflowsError

app = typer.Typer(
    help="One model in two frameworks: look at it, check it, carry it over.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(help="A checkpoint written by either half.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class Form(StrEnum):
    """What ``convert`` reads and writes."""

    TWINFLOWS = "twinflows"
    TORCH = "torch"
    FLAX = "flax"


@app.command()
def inspect(file: File, as_json: AsJson = False) -> None:
    """Show a checkpoint's architecture and arrays, without loading either framework."""
    from flow_bridge.checkpoint import read_header

    header = read_header(file)
    if as_json:
        tensors = {n: {"dtype": t.dtype, "shape": t.shape} for n, t in header.tensors.items()}
        contents = {"kind": header.kind, "architecture": header.description, "tensors": tensors}
        print(
            json.dumps(contents | {"values": header.num_values, "sha256": header.sha256}, indent=2)
        )
        return
    print(json.dumps(header.description, indent=2))
    width = max((len(name) for name in header.tensors), default=0)
    for name in sorted(header.tensors):
        info = header.tensors[name]
        print(f"{name.ljust(width)}  {info.dtype:8}  {list(info.shape)}")
    print(f"{header.kind}: {len(header.tensors)} arrays, {header.num_values:,} values")
    print(f"sha256 {header.sha256}")


@app.command()
def parity(
    file: File,
    rows: Annotated[
        int, typer.Option(min=1, help="Rows to compare on, drawn from the model.")
    ] = 256,
    seed: Annotated[int, typer.Option(help="Of the drawn rows.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Also write the report as a page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Load a checkpoint into both frameworks and compare everything that they compute."""
    import torch

    import torch_flows
    from flow_bridge.parity import check_parity

    flow = torch_flows.load(file)
    context, x = _draw(flow, rows, np.random.default_rng(seed), torch)
    report = check_parity(flow, x, context=context)
    if html is not None:
        report.to_html(html)
    print(report.to_json() if as_json else report)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="The file to read.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    read: Annotated[Form, typer.Option("--from", help="What the source is.")] = Form.TWINFLOWS,
    write: Annotated[Form, typer.Option("--to", help="What the target becomes.")] = Form.TORCH,
    architecture: Annotated[
        Path | None,
        typer.Option(help="JSON of the architecture, for a source that does not carry it."),
    ] = None,
) -> None:
    """Convert between a checkpoint, a bare torch state_dict (safetensors) and Flax variables."""
    from flow_bridge.convert import convert_file

    convert_file(source, read.value, target, write.value, architecture)
    print(f"{target}: {write.value}")


def _draw(flow: Any, rows: int, generator: np.random.Generator, torch: Any) -> tuple[Any, Any]:
    """Rows of the model itself: noise through its inverse; normal contexts."""
    shape = tuple(1 if d is None else d for d in flow.event_shape)
    noise = generator.standard_normal((rows, *shape))
    if getattr(getattr(flow, "base", None), "noise", "normal") == "uniform":
        noise = generator.random((rows, *shape))
    context = generator.standard_normal((rows, flow.context_dim)) if flow.context_dim else None
    with torch.no_grad():
        like = next(iter(flow.state_dict().values()), torch.zeros(()))
        arrays = [
            None if a is None else torch.as_tensor(a, dtype=like.dtype) for a in (noise, context)
        ]
        z = flow.base.from_noise(arrays[0]) if hasattr(flow, "base") else arrays[0]
        return context, flow.inverse(z, arrays[1])[0].double().numpy()


def main() -> None:
    """The entry point: errors a user can act on go to stderr in one line."""
    try:
        app()
    except (TwinflowsError, OSError, ValueError, TypeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
