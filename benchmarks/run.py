"""Ours beside the libraries people use: ``python -m benchmarks.run realnvp-2 --ops log_prob train``.

Processor time of one thread, or with ``--device gpu`` time on the clock, medians over rounds in which the
contenders of a framework take turns in one process; imports, construction, first calls and memory are
measured in fresh processes that take turns. On a CPU the two frameworks run side by side, one core each.
"""

import argparse
import gc
import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks import report
from benchmarks.report import EVALUATIONS, OPS, OURS
from benchmarks.rows import CPU, FIRST, ROWS, Place, Row

FRAMEWORKS = ("torch", "jax")
ROUNDS_WITHIN = 20.0
"""Seconds that all rounds of one job may take; a slow one has fewer rounds."""
PARAMETERS_WITHIN = 0.1

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
PLATFORMS = {"cpu": "cpu", "gpu": "cuda"}

Times = dict[str, dict[str, list[float]]]
"""Seconds of every round, by contender and operation; one count or number of bytes where it is that."""


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


def clock(place: Place) -> Callable[[], float]:
    """What is read: a GPU's work is not in the process's time."""
    return time.process_time if place.device == "cpu" else time.perf_counter


def seconds_of(
    job: Callable[[], object], repeats: int, now: Callable[[], float], finish: Callable[[], object]
) -> float:
    """Of one call, from one block of ``repeats`` calls."""
    gc.collect()
    finish()
    start = now()
    for _ in range(repeats):
        job()
    finish()
    return (now() - start) / repeats


def measure(
    row: Row,
    framework: str,
    ops: Sequence[str],
    names: Sequence[str] | None = None,
    rounds: int = 9,
    seconds: float = 0.1,
    place: Place = CPU,
) -> tuple[dict[str, int], Times]:
    """Check every contender, then time the operations in interleaved blocks of about ``seconds``. Others that
    fail are left out.

    Returns:
        The parameter counts and the times.
    """
    module = importlib.import_module(f"benchmarks.contenders_{framework}")
    # whether a flow is one is not a question of the precision that is measured
    with module.enter(replace(place, precision="highest")):
        built = [contender(row) for contender in contenders(framework, row, names)]
    parameters = {contender.name: contender.num_parameters for contender in built}
    for contender in tuple(built):
        try:
            check(contender, parameters.get(OURS, contender.num_parameters))
        except ValueError as error:
            if contender.name == OURS:
                raise
            print(error, flush=True)
            built.remove(contender)
            del parameters[contender.name]
    entered = module.enter(place)
    counts = {contender.name: contender.evaluations() for contender in built}
    if row.products:
        with entered:
            built.append(module.Floor(row))
    timed = partial(seconds_of, now=clock(place), finish=module.finish)
    times: Times = {contender.name: {} for contender in built}
    for name, count in counts.items():
        if count is not None:
            times[name][EVALUATIONS] = [count]
    for op in module.OPS:
        if op not in ops:
            continue
        jobs: dict[str, Callable[[], object]] = {}
        repeats: dict[str, int] = {}
        lasting: dict[str, float] = {}
        for contender in built:
            try:
                jobs[contender.name] = job = contender.job(op)
                job()
            except NotImplementedError:
                jobs.pop(contender.name, None)
                continue
            once = max(timed(job, 1), 1e-6)
            repeats[contender.name] = max(1, round(seconds / once))
            lasting[contender.name] = once * repeats[contender.name]
            times[contender.name][op] = []
        for i in range(rounds):
            for name, job in jobs.items():
                if i == 0 or (i + 1) * lasting[name] < ROUNDS_WITHIN:
                    times[name][op].append(timed(job, repeats[name]))
    return parameters, times


def first_calls(row: Row, framework: str, name: str, place: Place) -> dict[str, float]:
    """Seconds from a bare interpreter to the first results of one contender."""
    now = clock(place)
    marks = [now()]
    (contender,) = contenders(framework, row, [name])
    module = importlib.import_module(f"benchmarks.contenders_{framework}")
    with module.enter(place):
        built = contender(row)
    marks.append(now())
    for op in ("log_prob", "train"):
        built.job(op)()
        module.finish()
        marks.append(now())
    return dict(zip(FIRST, (b - a for a, b in pairwise(marks)), strict=True))


def memory(row: Row, framework: str, name: str, place: Place) -> dict[str, float]:
    """Bytes at the peak of a training step: of the process above those after the imports, as Linux tells
    them, or those of a GPU."""

    def resident(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

    (contender,) = contenders(framework, row, [name])
    importlib.import_module(contender.requires)
    before = resident("VmRSS")
    module = importlib.import_module(f"benchmarks.contenders_{framework}")
    with module.enter(place):
        job = contender(row).job("train")
    job()
    if place.device == "gpu":
        return {"memory": module.peak_of_gpu(job)}
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, without that of compiling
    job()
    return {"memory": resident("VmHWM") - before}


def fresh(
    parameters: dict[str, int],
    times: Times,
    row: Row,
    framework: str,
    place: Place,
    ops: Sequence[str],
    rounds: int,
) -> None:
    """Add to the times what takes fresh processes, in rounds in which the contenders take turns."""
    for _ in range(rounds if {*FIRST} & {*ops} else 0):
        for name in parameters:
            found = isolated(place, first_calls, row, framework, name)
            for op, seconds in found.items():
                times[name].setdefault(op, []).append(seconds)
    if "memory" in ops:
        for name in parameters:
            times[name]["memory"] = [isolated(place, memory, row, framework, name)["memory"]]


def isolated(place: Place, function: Callable[..., Any], *args: Any) -> Any:
    """What a function of these arguments and the place returns in a fresh process with one thread."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, place).result()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="all rows if none is named")
    parser.add_argument("--large", action="store_true", help="the large rows if none is named")
    parser.add_argument("--ops", nargs="+", choices=OPS, help="those of each row by default")
    parser.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS)
    parser.add_argument("--contenders", nargs="+", help="names; all that are installed by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--fresh-rounds", type=int, default=3, help="of fresh processes")
    parser.add_argument("--seconds", type=float, default=0.1, help="of one block in a round")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--precision",
        choices=("highest", "tensorfloat32"),
        default="highest",
        help="of products of float32 numbers on a GPU",
    )
    parser.add_argument("--out", type=Path, help="JSON; a page and pictures are written beside it")
    args = parser.parse_args()
    place = Place(args.device, args.precision)
    if place.device == "cpu" and place != CPU:
        parser.error(f"--precision {args.precision} is for --device gpu.")
    failed = []
    writing = Lock()

    def run(framework: str) -> None:
        module = importlib.import_module(f"benchmarks.contenders_{framework}")
        for row in [ROWS[name] for name in args.rows or ROWS]:
            if not args.rows and row.large != args.large:
                continue
            if not any(hasattr(contender, row.model) for contender in module.CONTENDERS):
                continue
            ops = args.ops or row.ops
            try:
                limits = args.contenders, args.rounds, args.seconds
                found = isolated(place, measure, row, framework, ops, *limits)
                fresh(*found, row, framework, place, ops, args.fresh_rounds)
                record = report.record(row, framework, *found, place)
            except Exception as error:  # one row does not end an hour's run
                failed.append(f"{row.name} in {framework}: {type(error).__name__}: {error}")
                print(failed[-1], flush=True)
                continue
            with writing:
                print(report.table(record), flush=True)
                if args.out:
                    report.write(args.out, report.merged(report.read(args.out), record))

    os.environ.update(ONE_THREAD, JAX_PLATFORMS=PLATFORMS[place.device])
    # one core each; a GPU and a single core they would share
    side_by_side = place.device == "cpu" and (os.cpu_count() or 1) > 1
    with ThreadPoolExecutor(len(args.frameworks) if side_by_side else 1) as pool:
        for future in [pool.submit(run, framework) for framework in args.frameworks]:
            future.result()
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
