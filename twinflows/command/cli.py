"""The command line: ``twinflows train | sample | log-prob | quantiles | pairs | inspect | ...``.

Exit codes: 0 for success, 1 where a parity check fails, training diverges or something is wrong inside,
2 for bad input. Results go to stdout, progress, warnings and errors to stderr.
"""

import hashlib
import json
import math
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterable
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from flow_bridge import __version__
from flow_bridge.errors import ConvergenceError, NonFiniteError, TwinflowsError

DEBUG = "TWINFLOWS_DEBUG"
"""The environment variable that asks for tracebacks."""

EXTRAS = {
    "torch": ("PyTorch", "torch"),
    "jax": ("JAX", "jax"),
    "flax": ("JAX", "jax"),
    "pandas": ("pandas", "tables"),
    "pyarrow": ("pyarrow", "tables"),
    "matplotlib": ("matplotlib", "tables"),
}
"""What brings a package that is missing."""

MAX_SEED = 2**32 - 1

app = typer.Typer(
    help="One model in two frameworks: train it, use it, check it, carry it over.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"twinflows {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None: ...


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
OneContext = Annotated[
    str | None,
    typer.Option(
        "--context", help="One context for all, as numbers with commas or as NAME=NUMBER."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="The checkpoint to write.")],
    model: Annotated[str, typer.Option(help="A named model, such as maf or realnvp.")] = "maf",
    base: Annotated[
        str | None, typer.Option(help="Another base distribution: studentt for heavy tails.")
    ] = None,
    backend: Half = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="An argument of the model, as NAME=JSON; may be repeated."),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(help="Names of the columns that the density is conditioned on, with commas."),
    ] = None,
    context_columns: Annotated[
        int, typer.Option(min=0, help="How many of the last columns it is conditioned on.")
    ] = 0,
    standardize: Annotated[
        bool, typer.Option(help="Begin with a map to mean 0 and standard deviation 1.")
    ] = True,
    robust: Annotated[
        bool, typer.Option("--robust", help="Standardize by median and interquartile range.")
    ] = False,
    bounds: Annotated[
        list[str] | None,
        typer.Option(
            help="Bounds of a column, as COLUMN=LOW:HIGH or COLUMN=LOW:; may be repeated."
        ),
    ] = None,
    heavy_tails: Annotated[
        bool, typer.Option("--heavy-tails", help="The same as --base studentt --robust.")
    ] = False,
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
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of weights, split and batches.")
    ] = 0,
    dtype: Dtype = Dtype.FLOAT32,
    state: Annotated[
        Path | None, typer.Option(help="Keep the state here after every epoch, and go on from it.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw losses and samples; OUT with .png if not given.")
    ] = None,
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Draw nothing.")] = False,
    progress: Annotated[bool, typer.Option(help="Show a progress bar on stderr.")] = True,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Fit a model to data by maximum likelihood and write it as a checkpoint."""
    from flow_bridge.architecture import architecture
    from flow_bridge.checkpoint import write_checkpoint
    from flow_bridge.standardization import location_and_scale
    from twinflows.command.columns import choose, column_bounds, take
    from twinflows.command.outputs import check_outputs
    from twinflows.command.pictures import check_picture, draw_training
    from twinflows.command.tables import read_table
    from twinflows.sides.models import (
        check_storable,
        describe,
        draw,
        expected_shapes,
        new_model,
        parse_options,
        scaled,
    )

    if no_picture and picture is not None:
        raise ValueError("--picture and --no-picture contradict each other: give one of them.")
    if heavy_tails and base is not None:
        raise ValueError("--heavy-tails and --base contradict each other: give one of them.")
    robust = robust or heavy_tails
    base = "studentt" if heavy_tails else base
    if robust and not standardize:
        raise ValueError("--robust and --no-standardize contradict each other: give one of them.")
    drawing = None if no_picture else picture or out.with_suffix(".png")
    if drawing is not None and find_spec("matplotlib") is None:
        if picture is not None:
            raise ModuleNotFoundError("", name="matplotlib")
        _warn(["no picture: matplotlib is missing (pip install 'twinflows[tables]')."])
        drawing = None
    check_outputs([out, drawing], [data, state], force)
    check_outputs([state], [data], force=True)
    if drawing is not None:
        check_picture(drawing)
    table = read_table(data)
    chosen, given = choose(table, context, context_columns)
    x, contexts = take(table, chosen, given)
    names, context_names = (
        None if table.names is None else [table.names[i] for i in part] for part in (chosen, given)
    )
    flat = x.ndim == 2
    if bounds and not flat:
        raise ValueError(f"--bounds are of columns, {data} holds events of {x.shape[1:]}.")
    limits = column_bounds(bounds or [], names, x.shape[1])
    _warn([*table.warnings, *(table.few_values(chosen) if flat else ())])
    if x.ndim in (2, 4):
        location_and_scale(x, dtype.value, "data", names, robust)
        if given:
            location_and_scale(contexts, dtype.value, "context", context_names, robust)
    described = describe(
        model,
        backend,
        x.shape[1:],
        len(given),
        parse_options(options or []),
        base,
        names,
        context_names if given else None,
    )
    built = new_model(described, backend, dtype.value, seed)
    _check_batches(built.arrays(), len(x), validation, batch_size)
    scaling = standardize and x.ndim in (2, 4)
    built = scaled(built, x, contexts if given else None, dtype.value, robust, limits, scaling)
    check_storable(architecture(built.flow), built.arrays())
    contexts_cast = contexts.astype(dtype.value, copy=False) if given else None
    history = built.fit(
        x.astype(dtype.value, copy=False),
        contexts_cast,
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
    best = history.best_epoch
    kept = len(history.train_loss) - 1 if best is None else best
    if not math.isfinite(history.train_loss[kept]):
        raise NonFiniteError(f"training ended with a loss of {history.train_loss[kept]}.")
    if history.validation_loss and best is None:
        raise NonFiniteError("no validation loss is a number: a lower learning rate often helps.")
    arrays = built.arrays()
    write_checkpoint(out, architecture(built.flow), arrays, expected_shapes)
    if drawing is not None:
        samples = draw(built, min(len(x), 4000), np.random.default_rng(seed), contexts_cast)
        draw_training(drawing, history, x, samples, names)
    summary = {
        "model": str(out),
        "picture": None if drawing is None else str(drawing),
        "type": model,
        "columns": names,
        "context_columns": context_names if given else None,
        "values": sum(a.size for a in arrays.values()),
        "epochs": len(history.train_loss),
        "best_epoch": best,
        "stopped_early": history.stopped_early,
        "train_loss": history.train_loss,
        "validation_loss": history.validation_loss,
    }
    if as_json:
        _print_json(summary)
        return
    print(f"{summary['epochs']} epochs, weights kept of epoch {kept + 1}")
    print(f"training loss    {history.train_loss[kept]:.4f} nats")
    if history.validation_loss:
        print(f"validation loss  {history.validation_loss[kept]:.4f} nats")
    print(f"{out}: {summary['values']:,} values" + (f"; {drawing}" if drawing else ""))


@app.command()
def sample(
    file: File,
    num: Annotated[int, typer.Option(min=1, help="How many.")] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="The same samples in both halves.")
    ] = 0,
    context: OneContext = None,
    out: Result = None,
    backend: Half = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Draw samples from a checkpoint's model."""
    from twinflows.command.columns import one_context
    from twinflows.command.outputs import check_outputs
    from twinflows.sides.models import draw, open_model

    check_outputs([out], [file], force)
    model = open_model(file, backend)
    given = one_context(context, model.flow.context_columns, model.flow.context_dim)
    contexts = None if given is None else np.broadcast_to(given, (num, len(given)))
    samples = draw(model, num, np.random.default_rng(seed), contexts)
    names = model.flow.columns or [f"x{i}" for i in range(samples[0].size)]
    summary = {"columns": model.flow.columns, "samples": samples.tolist()} if as_json else None
    _emit(samples, names, out, summary, _digits(file))


@app.command("log-prob")
def log_prob(
    file: File,
    data: Data,
    out: Result = None,
    anomaly: Annotated[
        bool,
        typer.Option("--anomaly", help="Also the share of the density above that of each row."),
    ] = False,
    num: Annotated[int, typer.Option(min=1, help="Draws that --anomaly is counted of.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of these draws.")] = 0,
    backend: Half = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """The log-density of rows in nats. Columns are matched by name, or the context comes last."""
    from twinflows.command.columns import match, take
    from twinflows.command.outputs import check_outputs
    from twinflows.command.tables import read_table
    from twinflows.sides.models import in_blocks, open_model

    check_outputs([out], [file, data], force)
    table = read_table(data)
    model = open_model(file, backend)
    flow = model.flow
    columns, given, notes = match(table, flow.columns, flow.context_columns, flow.context_dim)
    _warn([*table.warnings, *notes])
    x, contexts = take(table, columns, given)
    context = contexts if given else None
    values = in_blocks(model.log_prob, x, context)
    summary = {"mean": float(values.mean()), "log_prob": values.tolist()}
    written = {"log_prob": values}
    if anomaly:
        from twinflows.inference.predictive import model_anomaly_scores

        generator = np.random.default_rng(seed)
        written["anomaly"] = model_anomaly_scores(model, x, context, num, generator)
        summary["anomaly"] = written["anomaly"].tolist()
    rows = np.stack([*written.values()], 1)
    _emit(rows, [*written], out, summary if as_json else None, _digits(file))


@app.command()
def quantiles(
    file: File,
    levels: Annotated[str, typer.Option(help="With commas, between 0 and 1.")] = "0.05,0.5,0.95",
    num: Annotated[int, typer.Option(min=2, help="Draws that they are taken of.")] = 10_000,
    context: OneContext = None,
    out: Result = None,
    backend: Half = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Quantiles of every column; exact for one column with a normal base, else of draws."""
    from twinflows.command.columns import one_context
    from twinflows.command.outputs import check_outputs
    from twinflows.inference.predictive import model_quantiles
    from twinflows.sides.models import open_model

    check_outputs([out], [file], force)
    try:
        given = [float(level) for level in levels.split(",")]
    except ValueError as error:
        raise ValueError(f"--levels expects numbers with commas, got {levels!r}.") from error
    model = open_model(file, backend)
    if len(model.flow.event_shape) != 1:
        raise ValueError(
            f"quantiles are of columns, {file} has events of {model.flow.event_shape}."
        )
    condition = one_context(context, model.flow.context_columns, model.flow.context_dim)
    found = model_quantiles(model, given, None if condition is None else condition[None], num)[:, 0]
    names = model.flow.columns or [f"x{i}" for i in range(found.shape[1])]
    summary = {"levels": given, "columns": model.flow.columns, "quantiles": found.tolist()}
    rows = np.column_stack([given, found])
    _emit(rows, ["level", *names], out, summary if as_json else None, _digits(file))


@app.command()
def pairs(
    file: File,
    out: Annotated[Path, typer.Option(help="The picture: .png, .pdf, .svg or .jpg.")],
    data: Annotated[
        Path | None, typer.Option(help="Rows to draw beside the samples: .npy, .csv or .parquet.")
    ] = None,
    context: OneContext = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the samples.")] = 0,
    backend: Half = None,
    force: Force = False,
) -> None:
    """Draw the marginals of a checkpoint's model, and its columns pair by pair.

    Of a conditional model it takes one context, or the contexts of the rows of --data.
    """
    from twinflows.command.columns import match, one_context, take
    from twinflows.command.outputs import check_outputs, replacing
    from twinflows.command.pictures import check_picture
    from twinflows.command.tables import read_table
    from twinflows.inference.pictures import MAX_ROWS, draw_pairs
    from twinflows.sides.models import draw, open_model

    check_outputs([out], [file, data], force)
    check_picture(out)
    model = open_model(file, backend)
    flow = model.flow
    if len(flow.event_shape) != 1:
        raise ValueError(f"pairs are of columns, {file} has events of {flow.event_shape}.")
    rows = contexts = None
    if data is not None:
        if context is not None:
            raise ValueError("--data and --context contradict each other: give one of them.")
        table = read_table(data)
        columns, given, notes = match(table, flow.columns, flow.context_columns, flow.context_dim)
        _warn([*table.warnings, *notes])
        rows, contexts = (part[:MAX_ROWS] for part in take(table, columns, given))
    if data is None:
        condition = one_context(context, flow.context_columns, flow.context_dim)
        contexts = None if condition is None else np.tile(condition, (MAX_ROWS, 1))
    elif not flow.context_dim:
        contexts = None
    num = MAX_ROWS if contexts is None else len(contexts)
    samples = draw(model, num, np.random.default_rng(seed), contexts)
    figure = draw_pairs(samples, rows, flow.columns)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=100)
    print(f"{out}: {num} samples" + ("" if rows is None else f" beside {len(rows)} rows"))


@app.command()
def inspect(file: File, as_json: AsJson = False) -> None:
    """Show a checkpoint's architecture, columns and arrays, without loading either framework."""
    from flow_bridge.checkpoint import read_header
    from twinflows.command.scaling import read_scaling

    header = read_header(file)
    scaling = read_scaling(file, header)
    if as_json:
        tensors = {n: {"dtype": t.dtype, "shape": t.shape} for n, t in header.tensors.items()}
        contents: dict[str, Any] = {"kind": header.kind, "architecture": header.description}
        contents |= scaling | {
            "tensors": tensors,
            "values": header.num_values,
            "sha256": header.sha256,
        }
        _print_json(contents, indent=2)
        return
    print(json.dumps(header.description, indent=2))
    for title, columns in scaling.items():
        print(f"{title}:")
        width = max(len(_printable(c["name"])) for c in columns)
        for column in columns:
            scaled = (
                "" if column["loc"] is None else f"  {column['loc']:.6g} ± {column['scale']:.6g}"
            )
            print(f"  {_printable(column['name']).ljust(width)}{scaled}")
    width = max((len(name) for name in header.tensors), default=0)
    for name in sorted(header.tensors):
        info = header.tensors[name]
        print(f"{name.ljust(width)}  {info.dtype:8}  {list(info.shape)}")
    print(f"{header.kind}: {len(header.tensors)} arrays, {header.num_values:,} values")
    print(f"sha256 {header.sha256}")


@app.command()
def parity(
    file: File,
    second: Annotated[
        Path | None,
        typer.Argument(help="Another checkpoint: is it the same model? It is opened in JAX."),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, help="Rows to compare on, drawn from the model.")
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the drawn rows.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Also write the report as a page.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Compare everything that a checkpoint computes in both frameworks, or two checkpoints."""
    from twinflows.command.outputs import check_outputs, replacing
    from twinflows.parity.compare import check_parity
    from twinflows.sides.models import draw, draw_context, noise_shape, open_model

    check_outputs([html], [file, second], force)
    model = open_model(file, "torch")
    twin: Any = None if second is None else open_model(second, "jax")
    noise_shape(model, rows)
    generator = np.random.default_rng(seed)
    context = draw_context(model, rows, generator)
    x = draw(model, rows, generator, context)
    report = check_parity(
        model.flow,
        x,
        context=context,
        twin=None if twin is None else (twin.flow, twin.variables),
        source=f"drawn from the model with seed {seed}",
    )
    files = {"file": file} if second is None else {"first file": file, "second file": second}
    report.subject = (
        {name: f"{path}, sha256 {_sha256(path)}" for name, path in files.items()}
        | report.subject
        | {"command": shlex.join(["twinflows", *sys.argv[1:]])}
    )
    if html is not None:
        with replacing(html) as temporary:
            report.to_html(temporary)
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
        typer.Option(
            help="For a source without one: JSON of the architecture, or a checkpoint that has it."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Convert between a checkpoint, a bare torch state_dict (safetensors) and Flax variables."""
    from twinflows.command.convert import convert_file
    from twinflows.command.outputs import check_outputs

    check_outputs([target], [source, architecture], force)
    convert_file(source, read.value, target, write.value, architecture)
    print(f"{target}: {write.value}")


@app.command("import")
def import_weights(
    source: Annotated[
        Path, typer.Argument(help="A state_dict: safetensors, or of torch.save. Nothing is run.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--as", help="What it is of: sbi:maf, sbi:nsf, sbi:zuko_maf, ..., nflows or zuko."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The checkpoint to write.")],
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="What no file holds, as NAME=VALUE; may be repeated."),
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="That of the file by default.")] = None,
    force: Force = False,
) -> None:
    """Turn trained weights of another library into a checkpoint: the same function, or refused."""
    from twinflows.command.importing import import_file
    from twinflows.command.outputs import check_outputs

    check_outputs([out], [source], force)
    imported = import_file(source, model, options or [], out, dtype and dtype.value)
    _warn([f"{imported.source}: {note}" for note in imported.notes])
    values = sum(array.size for array in imported.arrays.values())
    print(f"{out}: {values:,} values of {imported.source}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_batches(arrays: Any, rows: int, validation: float, batch_size: int) -> None:
    """Raise ``ValueError`` where batch statistics would meet batches of one row."""
    held_out = max(1, round(rows * validation)) if 0 < validation < 1 else 0
    size = min(batch_size, rows - held_out)
    if size < 2 and any(name.endswith("running_var") for name in arrays):
        raise ValueError(
            f"a model with batch statistics needs at least 2 rows in a batch, here they have {size}."
        )


def _emit(rows: np.ndarray, names: Any, out: Path | None, summary: Any, digits: int) -> None:
    """Rows to a file or, as text, to stdout; or a summary to stdout."""
    from twinflows.command.tables import write_csv, write_table

    if out is not None:
        write_table(out, rows, names, digits)
    if summary is not None:
        _print_json(summary)
    elif out is not None:
        print(f"{out}: {len(rows)} rows")
    else:
        write_csv(sys.stdout, rows, names, digits)


def _digits(file: Path) -> int:
    """How many digits tell the numbers of a model apart."""
    from flow_bridge.checkpoint import read_header

    tensors = read_header(file).model().tensors.values()
    return 17 if any(tensor.dtype == "float64" for tensor in tensors) else 9


def _print_json(value: Any, indent: int | None = None) -> None:
    """JSON on stdout; numbers that are not finite, which JSON does not have, are null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    print(json.dumps(finite(value), indent=indent))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _warn(messages: Iterable[str]) -> None:
    for message in messages:
        print(f"warning: {message}", file=sys.stderr)


def main() -> None:
    """The entry point: whatever goes wrong is one line on stderr."""
    try:
        with warnings.catch_warnings():
            if not os.environ.get(DEBUG):  # those of libraries are for programmers
                warnings.simplefilter("ignore")
            code = app(standalone_mode=False)
            sys.stdout.flush()
            sys.exit(code)
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        if isinstance(error, BrokenPipeError):  # of who reads stdout, which nobody does any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        sentence, code = _explain(error)
        print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
        sys.exit(code)


def _explain(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code for an exception."""
    if hasattr(error, "format_message"):  # of typer, for arguments that it does not take
        context = getattr(error, "ctx", None)
        help_of = "twinflows" if context is None else context.command_path
        return f"{error.format_message()} See {help_of} --help.", 2
    if isinstance(error, typer.Abort):
        return "interrupted.", 130
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in EXTRAS:
        package, extra = EXTRAS[str(error.name).partition(".")[0]]
        return f"this needs {package}: pip install 'twinflows[{extra}]'.", 2
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "there is not enough memory for this.", 1
    if isinstance(error, RecursionError):
        return "an architecture is nested too deeply.", 2
    if isinstance(error, NonFiniteError | ConvergenceError):
        return str(error), 1
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fspath(error.filename)}: {error.strerror}.", 2
    if isinstance(error, TwinflowsError | OSError | ValueError | TypeError | ImportError):
        return str(error) or type(error).__name__, 2
    return (
        f"{type(error).__name__}: {error} This is a defect of twinflows: please report it, with the "
        f"command and with what {DEBUG}=1 shows of it."
    ), 1
