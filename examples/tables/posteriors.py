"""Posteriors with known moments and normalisers, by reverse KL, path gradients and NeuTra, in both halves.

RealNVP is trained on the density alone. Errors are of means, in standard deviations of the reference, and
of standard deviations, in percent, the largest of all quantities; ESS is that of importance sampling from
the flow, in percent of the draws. NeuTra samples the density that ``pullback`` makes of the path gradient's
flow, by Hamiltonian Monte Carlo in its latent space. Run it with ``python examples/tables/posteriors.py``,
minutes for three posteriors, or with ``--full``, 40 minutes, which writes ``docs/tables/posteriors.md`` and
``.json``.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import targets
import typer
from chains import hamiltonian
from halves import HALVES
from report import markdown, read, wheel, write
from targets import Target

from twinflows.inference import effective_sample_size, log_evidence

MODEL = {"hidden_dims": (64, 64), "num_layers": 8}
BATCH_SIZE, RATE, SEED = 256, 2e-3, 0


def inference_gym(make: Callable[..., Target], *options: Any) -> Target:
    return make(wheel("inference-gym", "0.0.5"), *options)


TARGETS: dict[str, Callable[[], Target]] = {
    "linear regression": targets.regression,
    "eight schools": lambda: inference_gym(targets.eight_schools),
    "logistic regression": targets.logistic,
    "Brownian motion": lambda: inference_gym(targets.brownian, True),
    "Brownian motion, unknown scales": lambda: inference_gym(targets.brownian, False),
    "banana": targets.banana,
    "funnel": targets.funnel,
    "quartic measurement": targets.quartic,
}
SMALL = ("linear regression", "eight schools", "banana")


def trained(half: Any, target: Target, path_gradient: bool, num_steps: int) -> Any:
    """A flow of standard normal size, fitted to the density; the step falls as a cosine does."""
    log_density = target.log_density(half.numpy)
    # the first samples are about as wide as the prior, a standard normal, or the banana
    wide = target.deviation.max() if target.quantities(np.zeros(target.dim)).size == 2 else 1.0
    start = np.repeat([[-wide], [wide]], target.dim, 1)
    flow = half(lambda package: package.RealNVP(target.dim, **MODEL), start, seed=SEED)
    flow.fit(
        None,
        loss=half.package.ReverseKL(lambda x: -log_density(x), path_gradient),
        validation=0,
        num_steps=num_steps,
        batch_size=BATCH_SIZE,
        learning_rate=lambda step: RATE * (1 + math.cos(math.pi * step / num_steps)) / 2,
        max_grad_norm=10.0,
        seed=SEED,
    )
    return flow


def errors(target: Target, draws: np.ndarray, weights: Any = None) -> dict[str, float]:
    """Of means in standard deviations, and of standard deviations as a share; the largest of each."""
    values = target.quantities(draws).reshape(-1, len(target.mean))
    mean = np.average(values, 0, weights)
    deviation = np.sqrt(np.average((values - mean) ** 2, 0, weights))
    return {
        "mean": float(np.abs((mean - target.mean) / target.deviation).max()),
        "deviation": float(np.abs(deviation / target.deviation - 1).max()),
    }


def of_flow(half: Any, target: Target, flow: Any, num_draws: int) -> dict[str, float]:
    x, log_prob = flow.sample_and_log_prob(num_draws, seed=SEED)
    density = target.log_density(half.numpy)(half.numpy.asarray(np.float32(x)))
    log_weights = np.asarray(density, np.float64) - log_prob
    evidence = log_evidence(log_weights)
    return errors(target, x) | {
        "ess": float(effective_sample_size(log_weights)) / num_draws,
        "log_z": float(evidence.value),
        "log_z_error": float(evidence.standard_error),
    }


def neutra(half: Any, target: Target, flow: Any, num_steps: int) -> dict[str, float]:
    value_and_gradient, to_data = flow.pullback(target.log_density(half.numpy))
    generator = np.random.default_rng(SEED)
    start = generator.standard_normal((64, target.dim))
    z, acceptance = hamiltonian(value_and_gradient, start, num_steps, generator)
    x = to_data(z.reshape(-1, target.dim))
    return errors(target, x) | {"acceptance": acceptance}


def table(records: list[dict[str, Any]]) -> str:
    header = [
        "posterior",
        "dim",
        "half",
        "method",
        "mean",
        "deviation",
        "ESS",
        "log Z",
        "true log Z",
    ]
    rows = []
    for r in records:
        deviation = f"{100 * r['deviation']:.1f} %"
        ess = f"{100 * r['ess']:.1f} %" if "ess" in r else ""
        found = f"{r['log_z']:.3f} ± {1.96 * r['log_z_error']:.3f}" if "log_z" in r else ""
        true = f"{r['true_log_z']:.3f}" if r["true_log_z"] is not None else "not known"
        cells = [r["posterior"], str(r["dim"]), r["half"], r["method"], f"{r['mean']:.3f}"]
        rows.append([*cells, deviation, ess, found, true])
    return markdown(header, rows)


def main(
    full: Annotated[bool, typer.Option(help="All eight, 3,000 steps: 40 minutes.")] = False,
    names: Annotated[str, typer.Option(help="Of posteriors, with semicolons between.")] = "",
    num_steps: Annotated[int, typer.Option(help="Of training.")] = 0,
    num_draws: int = 20_000,
    chain_length: int = 0,
    out: Annotated[Path | None, typer.Option(help="The JSON file.")] = None,
) -> None:
    out = out or Path("docs/tables/posteriors.json" if full else "outputs/tables/posteriors.json")
    num_steps = num_steps or (3000 if full else 600)
    chain_length = chain_length or (300 if full else 60)
    settings = {"model": MODEL, "batch_size": BATCH_SIZE, "learning_rate": RATE, "seed": SEED}
    settings |= {"steps": num_steps, "draws": num_draws, "chains": 64, "chain_length": chain_length}
    records = read(out, settings)
    for name in names.split(";") if names else TARGETS if full else SMALL:
        if sum(r["posterior"] == name for r in records) == 3 * len(HALVES):
            continue
        records = [r for r in records if r["posterior"] != name]
        target = TARGETS[name]()
        key = {"posterior": name, "dim": target.dim, "source": target.source}
        key["true_log_z"] = target.log_z
        for half in HALVES:
            for path_gradient in (False, True):
                started = time.perf_counter()
                flow = trained(half, target, path_gradient, num_steps)
                method = "path gradient" if path_gradient else "reverse KL"
                result = of_flow(half, target, flow, num_draws)
                records.append({**key, "half": half.name, "method": method, **result})
                print(name, half.name, method, f"{time.perf_counter() - started:.0f} s", flush=True)
            result = neutra(half, target, flow, chain_length)
            records.append({**key, "half": half.name, "method": "NeuTra", **result})
        write(out, table(records), settings, records)
    print(table(records))


if __name__ == "__main__":
    typer.run(main)
