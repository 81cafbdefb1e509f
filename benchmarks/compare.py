"""Two checkouts beside each other: ``python -m benchmarks.compare ../before maf-8 --ops log_prob train``.

Our own contender of this checkout's rows is built from the packages of either; the two take turns, in a
process each, so that a busy machine slows both alike. Printed are medians of processor time, one thread.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.report import OPS, versions
from benchmarks.rows import CPU, ROWS
from benchmarks.run import FRAMEWORKS, ONE_THREAD, PLATFORMS, clock, seconds_of

PACKAGES = {"torch": "torch_flows", "jax": "jax_flows"}


def work(connection: Connection, checkout: Path, framework: str, name: str, seconds: float) -> None:
    """Time the operations that are asked for, until none is."""
    module = importlib.import_module(f"benchmarks.contenders_{framework}")  # of this checkout
    sys.path.insert(0, str(checkout))
    package = importlib.import_module(PACKAGES[framework])
    if checkout not in Path(str(package.__file__)).resolve().parents:
        raise ValueError(f"{PACKAGES[framework]} was imported before that of {checkout}.")
    with module.enter(CPU):
        contender = module.Twinflows(ROWS[name])
        jobs: dict[str, Any] = {}
        while op := connection.recv():
            if op not in jobs:
                job = contender.job(op)
                job()
                once = seconds_of(job, 1, clock(CPU), module.finish)
                jobs[op] = job, max(1, round(seconds / max(once, 1e-6)))
            connection.send(seconds_of(*jobs[op], clock(CPU), module.finish))


def compare(
    checkouts: Sequence[Path],
    framework: str,
    name: str,
    ops: Sequence[str],
    rounds: int,
    seconds: float,
) -> dict[str, list[tuple[float, ...]]]:
    """The seconds of every round, one number for each checkout."""
    context = get_context("spawn")
    ends = []
    for checkout in checkouts:
        here, there = context.Pipe()
        given = there, checkout, framework, name, seconds
        context.Process(target=work, args=given, daemon=True).start()
        there.close()
        ends.append(here)

    def turn(op: str) -> tuple[float, ...]:
        found = []
        for end in ends:
            end.send(op)
            found.append(end.recv())
        return tuple(found)

    times = {op: [turn(op) for _ in range(rounds + 1)][1:] for op in ops}  # the first one warms up
    for end in ends:
        end.send("")
    return times


def entries(
    row: str, framework: str, times: dict[str, list[tuple[float, ...]]]
) -> list[dict[str, Any]]:
    """Medians of the two and of their ratio, and the quartiles of it."""
    found = []
    for op, turns in times.items():
        there, here = (median(column) for column in zip(*turns, strict=True))
        low, ratio, high = quantiles([b / a for a, b in turns], method="inclusive")
        names = {"row": row, "framework": framework, "op": op, "rounds": len(turns)}
        found.append(
            names | {"there": there, "here": here, "ratio": ratio, "low": low, "high": high}
        )
    return found


def commit(checkout: Path) -> str:
    """The last one of a checkout, in short."""
    command = ["git", "-C", str(checkout), "log", "-1", "--format=%h of %cs"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="the root of the other one")
    parser.add_argument("rows", nargs="+", choices=ROWS)
    parser.add_argument("--ops", nargs="+", choices=OPS, help="those of each row by default")
    parser.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS)
    parser.add_argument(
        "--processes", type=int, default=3, help="pairs, as memory lies in another way in each"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each pair")
    parser.add_argument("--seconds", type=float, default=0.1, help="of one block in a round")
    parser.add_argument("--out", type=Path, help="JSON; rows that it has are measured anew")
    args = parser.parse_args()
    os.environ.update(ONE_THREAD, JAX_PLATFORMS=PLATFORMS["cpu"])
    checkouts = args.checkout.resolve(), Path(__file__).resolve().parents[1]
    there, here = map(commit, checkouts)
    known = json.loads(args.out.read_text())["records"] if args.out and args.out.exists() else []
    for name in args.rows:
        for framework in args.frameworks:
            known_ops = importlib.import_module(f"benchmarks.contenders_{framework}").OPS
            ops = [op for op in args.ops or ROWS[name].ops if op in known_ops]
            sizes = args.rounds, args.seconds
            times: dict[str, list[tuple[float, ...]]] = {op: [] for op in ops}
            for _ in range(args.processes):
                for op, turns in compare(checkouts, framework, name, ops, *sizes).items():
                    times[op] += turns
            found = entries(name, framework, times)
            for entry in found:
                print(*(f"{k}: {v:.3g}" if isinstance(v, float) else v for k, v in entry.items()))
            new = [(name, framework, op) for op in ops]
            known = [e for e in known if (e["row"], e["framework"], e["op"]) not in new] + found
            if args.out:
                lines = ",\n".join(map(json.dumps, known))
                heads = (
                    f'"there": "{there}", "here": "{here}", "versions": {json.dumps(versions())}'
                )
                args.out.write_text(f'{{{heads}, "records": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
