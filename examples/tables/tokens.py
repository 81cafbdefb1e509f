"""Posteriors of two_moons by transformers beside splines: TarFlow on vectors, one token per parameter.

Flows of theta given x, the box of the prior mapped to the reals inside of each, at about equal numbers of
parameters and trained on the same simulations in both halves. Judged by the density of parameters of other
simulations, in nats, and by C2ST against exact draws from the posteriors of three observations.
Run it with ``python examples/tables/tokens.py``, minutes. A run goes on where an earlier one stopped; it
writes ``outputs/tables/tokens.md`` and ``.json``.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from halves import HALVES
from report import interval, markdown, read, write
from tasks import TASKS, Box

from twinflows.inference import c2st

TASK, SEED = TASKS["two_moons"], 0
FIT = {"learning_rate": 2e-3, "max_grad_norm": 5.0, "batch_size": 100, "ema": 0.99, "seed": SEED}


def make(name: str) -> Any:
    """What makes the flow of a name from the package of a half."""

    def flow(package: Any) -> Any:
        if name == "NeuralSplineFlow":
            plain = package.NeuralSplineFlow(2, (50, 50), num_layers=5, num_bins=8, context_dim=2)
        else:
            spline = name == "TarFlow, splines"
            map = package.SplineMap(num_bins=8) if spline else None
            plain = package.TarFlow(
                2, num_layers=4, hidden_dim=20, num_blocks=1, num_heads=2, context_dim=2, map=map
            )
        bijector = package.Chain([package.Logit(0.0, event_ndim=1), plain.bijector])
        return package.Flow(bijector, plain.base)

    return flow


NAMES = ("NeuralSplineFlow", "TarFlow", "TarFlow, splines")


def simulations(num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng([SEED, seed])
    theta = TASK.prior.sample(generator, num_rows)
    return np.float32(theta), np.float32(TASK.simulate(generator, theta))


def posterior(x: np.ndarray, num_draws: int, seed: int) -> np.ndarray:
    """Exact draws: x less a moon is (-|sum|, difference) / sqrt(2) of parameters, those of the box are kept.

    The change of variables has the Jacobian 1, and the prior is flat.
    """
    generator = np.random.default_rng([SEED, seed])
    moon = TASK.simulate(generator, np.zeros((40 * num_draws, 2)))
    rest = np.sqrt(2) * (x - moon)
    total = rest[:, 0] * generator.choice([-1.0, 1.0], len(moon))
    theta = np.stack([total - rest[:, 1], total + rest[:, 1]], -1) / 2
    assert isinstance(TASK.prior, Box)
    inside = (rest[:, 0] < 0) & (np.abs(theta) < TASK.prior.bound).all(-1)
    return theta[inside][:num_draws]


def table(records: list[dict[str, Any]]) -> str:
    """One line for each flow that was run in both halves."""
    rows = []
    for name in NAMES:
        found = {r["half"]: r for r in records if r["flow"] == name}
        if len(found) == len(HALVES):
            both = [found[half.name] for half in HALVES]
            cells = [f"{r['nats']:.3f} ± {r['error']:.3f}" for r in both]
            cells += [f"{np.mean(r['c2st']):.3f}" for r in both]
            cells += [f"{r['seconds']:.0f} s" for r in both]
            rows.append([name, f"{both[0]['parameters']:,}", *cells])
    labels = [f"{what}, {half.name}" for what in ("nats", "C2ST", "training") for half in HALVES]
    return markdown(["flow", "parameters", *labels], rows)


def main(
    num_simulations: int = 2000,
    num_epochs: int = 60,
    num_draws: Annotated[int, typer.Option(help="From each posterior.")] = 1000,
    out: Annotated[Path, typer.Option(help="The JSON file.")] = Path("outputs/tables/tokens.json"),
) -> None:
    theta, x = simulations(num_simulations, 1)
    unseen_theta, unseen_x = simulations(5000, 2)
    settings = {
        "fit": FIT,
        "epochs": num_epochs,
        "simulations": num_simulations,
        "draws": num_draws,
    }
    # rows of mean -bound and deviation 2 bound: the box becomes the unit cube
    edges = np.repeat([[-3.0], [1.0]], 2, 1)
    records = read(out, settings)
    for name in NAMES:
        for half in HALVES:
            if any((r["flow"], r["half"]) == (name, half.name) for r in records):
                continue
            flow = half(make(name), edges, x, SEED)
            started = time.perf_counter()
            flow.fit(theta, context=x, num_epochs=num_epochs, **FIT)
            seconds = time.perf_counter() - started
            log_prob = flow.log_prob(unseen_theta, unseen_x)
            observed = unseen_x[:3]
            found, _ = flow.sample_and_log_prob(num_draws, observed, SEED)
            accuracies = [
                c2st(posterior(row, num_draws, 3 + i), found[:, i]).accuracy
                for i, row in enumerate(observed)
            ]
            record = {
                "flow": name,
                "half": half.name,
                "parameters": sum(p.numel() for p in make(name)(HALVES[0].package).parameters()),
                "nats": float(log_prob.mean()),
                "error": interval(log_prob)[1],
                "c2st": [round(a, 4) for a in accuracies],
                "seconds": round(seconds, 1),
            }
            records.append(record)
            print(record, flush=True)
            write(out, table(records), settings, records)
    print(table(records))


if __name__ == "__main__":
    typer.run(main)
