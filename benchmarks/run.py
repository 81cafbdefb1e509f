"""Ours beside the libraries people use: ``python -m benchmarks.run realnvp-2 --ops log_prob train``.

Processor time of one thread, medians over rounds in which the contenders of a framework take turns in
one process; ``compile`` is measured in fresh processes that take turns.
"""

import argparse
import gc
import importlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.rows import ROWS, Row

OURS = "twinflows"
FRAMEWORKS = ("torch", "jax")
OPS = {
    "log_prob": "log_prob",
    "train": "training step",
    "train_default": "the same, others with default Adam",
    "sample": "sampling",
    "forward": "one pass over as many rows",
    "inverse": "inverse",
}
FIRST_CALLS = {
    "build": "construction",
    "first_log_prob": "first log_prob",
    "first_train": "first step",
}
EVALUATIONS = "evaluations"
PARAMETERS_WITHIN = 0.1

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
}

Times = dict[str, dict[str, list[float]]]
"""Seconds of every round, by contender and operation, and under ``EVALUATIONS`` a count."""


def contenders(framework: str, row: Row, names: Sequence[str] | None = None) -> list[Any]:
    """The contender classes that can build the row, are installed and are asked for."""
    module = importlib.import_module(f"benchmarks.contenders_{framework}")
    return [
        contender
        for contender in module.CONTENDERS
        if hasattr(contender, row.model)
        and (names is None or contender.name in names)
        and importlib.util.find_spec(contender.requires)
    ]


def check(contender: Any, num_parameters: int) -> None:
    """Raise unless a contender is a proper flow of about the size of ours."""
    checked = contender
    if contender.row.check_dim:
        checked = type(contender)(replace(contender.row, dim=contender.row.check_dim))
    round_trip, density = checked.check()
    if not max(round_trip, density) < contender.row.tolerance:
        raise ValueError(
            f"{contender.name} is no proper flow on {contender.row.name}: its round trip is off by "
            f"{round_trip:.1e} and its log-density by {density:.1e}."
        )
    own_sizes = contender.row.options.get("own_sizes", False)
    if not own_sizes and abs(contender.num_parameters / num_parameters - 1) > PARAMETERS_WITHIN:
        raise ValueError(
            f"{contender.name} has {contender.num_parameters} parameters on {contender.row.name}, "
            f"{OURS} {num_parameters}."
        )


def processor_time(job: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, from one block of ``repeats`` calls."""
    gc.collect()
    start = time.process_time()
    for _ in range(repeats):
        job()
    return (time.process_time() - start) / repeats


def measure(
    row: Row,
    framework: str,
    ops: Sequence[str],
    names: Sequence[str] | None = None,
    rounds: int = 9,
    seconds: float = 0.1,
) -> tuple[dict[str, int], Times]:
    """Check every contender, then time the operations in interleaved blocks of about ``seconds``.

    Returns:
        The parameter counts and the times.
    """
    module = importlib.import_module(f"benchmarks.contenders_{framework}")
    built = [contender(row) for contender in contenders(framework, row, names)]
    parameters = {contender.name: contender.num_parameters for contender in built}
    for contender in built:
        check(contender, parameters.get(OURS, contender.num_parameters))
    counts = {contender.name: contender.evaluations() for contender in built}
    if row.products:
        built.append(module.Floor(row))
    times: Times = {contender.name: {} for contender in built}
    for name, count in counts.items():
        if count is not None:
            times[name][EVALUATIONS] = [count]
    for op in module.OPS:
        if op not in ops:
            continue
        jobs, repeats = {}, {}
        for contender in built:
            try:
                jobs[contender.name] = job = contender.job(op)
                job()
            except NotImplementedError:
                jobs.pop(contender.name, None)
                continue
            repeats[contender.name] = max(1, round(seconds / max(processor_time(job, 3), 1e-6)))
            times[contender.name][op] = []
        for _ in range(rounds):
            for name, job in jobs.items():
                times[name][op].append(processor_time(job, repeats[name]))
    return parameters, times


def first_calls(row: Row, framework: str, name: str) -> dict[str, float]:
    """Seconds from nothing but the framework's import to the first results of one contender."""
    (contender,) = contenders(framework, row, [name])
    importlib.import_module(contender.requires)
    marks = [time.process_time()]
    built = contender(row)
    for op in (None, "log_prob", "train"):
        if op is not None:
            built.job(op)()
        marks.append(time.process_time())
    return dict(zip(FIRST_CALLS, (b - a for a, b in pairwise(marks)), strict=True))


def isolated(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a call in a fresh process with one thread."""
    os.environ.update(ONE_THREAD)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def cell(times: Times, name: str, op: str, unit: float) -> str:
    """A median time and, for others than ours, the median of its ratios to ours round by round."""
    if op not in times[name]:
        return "-"
    own = times[name][op]
    if op == EVALUATIONS:
        return str(own[0])
    text = f"{statistics.median(own) * unit:.2f}"
    if name == OURS or op not in times.get(OURS, {}):
        return text
    ratios = [a / b for a, b in zip(own, times[OURS][op], strict=True)]
    return f"{text} ({statistics.median(ratios):.2f}x)"


def table(row: Row, framework: str, parameters: dict[str, int], times: Times) -> str:
    """The markdown table of one row in one framework."""
    columns = [(op, f"{label} (ms)", 1000.0) for op, label in OPS.items()]
    columns += [(op, f"{label} (s)", 1.0) for op, label in FIRST_CALLS.items()]
    columns.append((EVALUATIONS, "network evaluations of a log_prob", 1.0))
    columns = [column for column in columns if any(column[0] in t for t in times.values())]
    lines = [
        f"### {row.name} in {framework}",
        "",
        f"dim {row.dim}, hidden {' x '.join(map(str, row.hidden_dims))}, {row.layers} layers, "
        f"batch {row.batch}",
        "",
        "| | parameters | " + " | ".join(label for _, label, _ in columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name in times:
        count = f"{parameters[name]:,}" if name in parameters else "-"
        cells = [cell(times, name, op, unit) for op, _, unit in columns]
        lines.append(f"| {name} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="all rows if none is named")
    parser.add_argument("--ops", nargs="+", choices=[*OPS, "compile"], default=[*OPS, "compile"])
    parser.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS)
    parser.add_argument("--contenders", nargs="+", help="names; all that are installed by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile-rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.1, help="of one block in a round")
    parser.add_argument("--out", type=Path, help="a markdown file for the tables")
    args = parser.parse_args()
    ops = [op for op in args.ops if op != "compile"]
    tables = []
    for name in args.rows or ROWS:
        row = ROWS[name]
        for framework in args.frameworks:
            module = importlib.import_module(f"benchmarks.contenders_{framework}")
            if not any(hasattr(contender, row.model) for contender in module.CONTENDERS):
                continue
            parameters, times = isolated(
                measure, row, framework, ops, args.contenders, args.rounds, args.seconds
            )
            if "compile" in args.ops:
                for _ in range(args.compile_rounds):
                    for contender in parameters:
                        result = isolated(first_calls, row, framework, contender)
                        for op, seconds in result.items():
                            times[contender].setdefault(op, []).append(seconds)
            tables.append(table(row, framework, parameters, times))
            print(tables[-1], flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(tables))


if __name__ == "__main__":
    main()
