"""The command line: ``twinflows train | sample | log-prob | inspect | parity | convert``.

Exit codes: 0 for success, 1 where a parity check fails or training diverges, 2 for bad input.
Results go to stdout, progress and errors to stderr.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from flow_bridge import checks
from flow_bridge.errors import ConvergenceError, NonFiniteError, TwinflowsError

app = typer.Typer(
    help="One model in two frameworks: train it, use it, check it, carry it over.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Backend(StrEnum):
    """The half that computes."""

    TORCH = "torch"
    JAX = "jax"


class Form(StrEnum):
    """What ``convert`` reads and writes."""

    TWINFLOWS = "twinflows"
    TORCH = "torch"
    FLAX = "flax"


class Dtype(StrEnum):
    """Of the weights and the computation."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


File = Annotated[Path, typer.Argument(help="A checkpoint written by either half.")]
Data = Annotated[Path, typer.Argument(help="Rows of numbers: .npy, .csv or .parquet.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Half = Annotated[
    Backend | None, typer.Option(help="The half that computes; by default what is installed.")
]
Result = Annotated[
    Path | None, typer.Option(help="Write to a .npy, .csv or .parquet file, not to stdout.")
]


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="The checkpoint to write.")],
    model: Annotated[str, typer.Option(help="A named model, such as maf or realnvp.")] = "maf",
    backend: Half = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="An argument of the model, as NAME=JSON; may be repeated."),
    ] = None,
    context_columns: Annotated[
        int, typer.Option(min=0, help="How many of the last columns the density is conditioned on.")
    ] = 0,
    standardize: Annotated[
        bool, typer.Option(help="Begin with a map to mean 0 and standard deviation 1.")
    ] = True,
    validation: Annotated[float, typer.Option(help="The fraction of rows held out.")] = 0.1,
    epochs: Annotated[int, typer.Option(min=1)] = 100,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    max_grad_norm: Annotated[
        float | None, typer.Option(help="Scale larger gradients down to this norm.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without a better one.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, split and batches.")] = 0,
    dtype: Dtype = Dtype.FLOAT32,
    state: Annotated[
        Path | None, typer.Option(help="Keep the state here after every epoch, and go on from it.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw losses and samples; OUT with .png if not given.")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar on stderr.")] = True,
    force: Annotated[bool, typer.Option(help="Replace OUT if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a model to data by maximum likelihood and write it as a checkpoint."""
    from flow_bridge.checkpoint import write_checkpoint
    from twinflows.command.convert import expected_shapes
    from twinflows.command.pictures import draw_training
    from twinflows.command.tables import read_table
    from twinflows.sides.models import describe, draw, new_model, standardized

    if out.exists() and not force:
        raise ValueError(f"{out} exists: choose another name, or --force to replace it.")
    checks.host("train", "matplotlib.figure", "matplotlib", "tables")
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent} is no folder to write {out.name} to.")
    x, context = _split(read_table(data), context_columns)
    architecture = describe(model, backend, x.shape[1:], context_columns, options or [])
    built = new_model(architecture, backend, dtype.value, seed)
    scaling = standardized(x, dtype.value) if standardize and x.ndim == 2 else None
    rows = (x if scaling is None else (x - scaling.mean) / scaling.sd).astype(dtype.value)
    history = built.fit(
        rows,
        None if context is None else context.astype(dtype.value),
        validation=validation,
        num_epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_grad_norm=max_grad_norm,
        patience=patience,
        seed=seed,
        progress=progress,
        state_path=state,
    )
    arrays, offset = built.arrays(), 0.0
    if scaling is not None:
        architecture, arrays = scaling.prepend(built.parts(), arrays)
        offset = float(np.log(scaling.sd).sum())
    for losses in (history.train_loss, history.validation_loss):
        losses[:] = [loss + offset for loss in losses]
    write_checkpoint(out, architecture, arrays, expected_shapes)
    picture = picture or out.with_suffix(".png")
    samples = draw(built, min(len(x), 4000), np.random.default_rng(seed), context)
    if scaling is not None:
        samples = scaling.mean + scaling.sd * samples
    draw_training(picture, history, x, samples)
    best = history.best_epoch
    kept = len(history.train_loss) - 1 if best is None else best
    summary = {
        "model": str(out),
        "picture": str(picture),
        "type": model,
        "values": sum(a.size for a in arrays.values()),
        "epochs": len(history.train_loss),
        "best_epoch": best,
        "stopped_early": history.stopped_early,
        "train_loss": history.train_loss,
        "validation_loss": history.validation_loss,
    }
    if as_json:
        print(json.dumps(summary))
        return
    print(f"{summary['epochs']} epochs, weights kept of epoch {kept + 1}")
    print(f"training loss    {history.train_loss[kept]:.4f} nats")
    if history.validation_loss:
        print(f"validation loss  {history.validation_loss[kept]:.4f} nats")
    print(f"{out}: {summary['values']:,} values; {picture}")


@app.command()
def sample(
    file: File,
    num: Annotated[int, typer.Option(min=1, help="How many.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same samples in both halves.")] = 0,
    context: Annotated[
        str | None, typer.Option(help="One context for all, as numbers with commas.")
    ] = None,
    out: Result = None,
    backend: Half = None,
    as_json: AsJson = False,
) -> None:
    """Draw samples from a checkpoint's model."""
    from twinflows.sides.models import draw, open_model

    model = open_model(file, backend)
    given = _one_context(context, model.flow.context_dim, num)
    samples = draw(model, num, np.random.default_rng(seed), given)
    names = [f"x{i}" for i in range(samples[0].size)]
    _emit(samples, names, out, {"samples": samples.tolist()} if as_json else None)


@app.command("log-prob")
def log_prob(
    file: File,
    data: Data,
    out: Result = None,
    backend: Half = None,
    as_json: AsJson = False,
) -> None:
    """The log-density of rows in nats; a conditional model takes the last columns as context."""
    from twinflows.command.tables import read_table
    from twinflows.sides.models import in_blocks, open_model

    model = open_model(file, backend)
    x, context = _split(read_table(data), model.flow.context_dim)
    values = in_blocks(model.log_prob, x, context)
    summary = {"mean": float(values.mean()), "log_prob": values.tolist()}
    _emit(values[:, None], ["log_prob"], out, summary if as_json else None)


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
    from twinflows.parity.compare import check_parity
    from twinflows.sides.models import TorchModel, draw

    model = TorchModel.load(file)
    generator = np.random.default_rng(seed)
    width = model.flow.context_dim
    context = generator.standard_normal((rows, width)) if width else None
    x = draw(model, rows, generator, context)
    report = check_parity(model.flow, x, context=context)
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
    from twinflows.command.convert import convert_file

    convert_file(source, read.value, target, write.value, architecture)
    print(f"{target}: {write.value}")


def _split(table: np.ndarray, context_dim: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows, and the last columns as their contexts."""
    if len(table) == 0:
        raise ValueError("the data have no rows.")
    if context_dim == 0:
        return table, None
    if table.ndim != 2 or table.shape[1] <= context_dim:
        raise ValueError(
            f"the data are expected to have more than {context_dim} columns, the last "
            f"{context_dim} of them the context; their shape is {table.shape}."
        )
    return table[:, :-context_dim], np.asarray(table[:, -context_dim:])


def _one_context(text: str | None, context_dim: int, rows: int) -> np.ndarray | None:
    try:
        values = [float(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise ValueError(f"--context is expected as numbers with commas, got {text!r}.") from error
    if len(values) != context_dim:
        raise ValueError(
            f"the model expects a context of {context_dim} numbers, got {len(values)}."
        )
    return np.tile(values, (rows, 1)) if values else None


def _emit(rows: np.ndarray, names: list[str], out: Path | None, summary: Any) -> None:
    """Rows to a file or, as text, to stdout; or a summary to stdout."""
    from twinflows.command.tables import write_table

    if out is not None:
        write_table(out, rows, names)
    if summary is not None:
        print(json.dumps(summary))
    elif out is not None:
        print(f"{out}: {len(rows)} rows")
    else:
        np.savetxt(sys.stdout, rows.reshape(len(rows), -1), fmt="%.9g", delimiter=",")


def main() -> None:
    """The entry point: errors a user can act on go to stderr in one line."""
    try:
        app()
    except (NonFiniteError, ConvergenceError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (TwinflowsError, OSError, ValueError, TypeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
