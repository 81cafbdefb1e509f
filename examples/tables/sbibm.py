"""The table of sbibm: how well a classifier tells the posteriors of NPE and NLE from the reference.

Flows of both halves are trained once for each task and budget and serve its ten observations; the
published ones were trained anew for each. C2ST of 10,000 draws each: 0.5 is perfect, 1 is apart. Run it
with ``python examples/tables/sbibm.py``, minutes for two tasks, two observations and 2,000 draws, or with
``--full``, hours. A run goes on where an earlier one stopped. The full form writes ``docs/tables/sbibm.md``
and ``.json``.
"""

import csv
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from chains import differential_evolution
from classifier import Classifier
from halves import HALVES
from report import interval, markdown, read, show, wheel, write
from tasks import TASKS, Box, shipped

from twinflows.inference import c2st, effective_sample_size, importance_resample

# chosen on two_moons with 1,000 simulations, by the density of others; a batch is a twentieth of all
FIT = {
    "learning_rate": 5e-4,
    "max_grad_norm": 5.0,
    "num_epochs": 1000,
    "patience": 20,
    "ema": 0.99,
    "weight_decay": 0.1,
}
# chosen anew, by the density of 20,000 other simulations, where those were outside the published interval
CHANGED = {("gaussian_linear_uniform", "NPE", 10_000): {"weight_decay": 3.0}}
SEED, WALKERS = 0, 500

# C2ST of the ten observations as the authors of sbibm published it: github.com/sbi-benchmark/results,
# main_paper.csv; gaussian_mixture after its correction in sbibm 1.1.0, gaussian_mixture_rerun.csv
PUBLISHED = {
    (line["task"], line["method"], int(line["simulations"])): [
        float(line[str(i)]) for i in range(1, 11)
    ]
    for line in csv.DictReader(Path(__file__).with_name("sbibm_published.csv").open())
}


def posterior(half: Any, prior: Any, theta: np.ndarray, x: np.ndarray) -> Any:
    """Neural splines of theta given x; a box is mapped to the reals inside the flow."""
    dim = theta.shape[1]

    def make(package: Any) -> Any:
        splines = package.NeuralSplineFlow(
            dim, (50, 50), num_layers=5, num_bins=10, context_dim=x.shape[1]
        )
        if not isinstance(prior, Box):
            return splines
        bijector = package.Chain([package.Logit(0.0, event_ndim=1), splines.bijector])
        return package.Flow(bijector, splines.base)

    # rows of mean -bound and deviation 2 bound: the box becomes the unit cube
    edges = prior.bound * np.array([[-3.0], [1.0]]) if isinstance(prior, Box) else None
    scale = theta if edges is None else np.repeat(edges, dim, 1)
    return half(make, scale, x, SEED)


def likelihood(half: Any, theta: np.ndarray, x: np.ndarray) -> Any:
    """A masked autoregressive flow of x given theta."""

    def make(package: Any) -> Any:
        return package.MAF(x.shape[1], (50, 50), num_layers=5, context_dim=theta.shape[1])

    return half(make, x, theta, SEED)


def chains(flow: Any, prior: Any, observed: np.ndarray, num_draws: int) -> np.ndarray:
    """Draws of prior times likelihood for each observation, from weighted draws of the prior on."""
    generator = np.random.default_rng(SEED)

    def log_likelihood(theta: np.ndarray) -> np.ndarray:
        inside = np.clip(theta, -prior.bound, prior.bound) if isinstance(prior, Box) else theta
        x = np.broadcast_to(observed[:, None], (*theta.shape[:2], observed.shape[1]))
        return flow.log_prob(x, inside)

    candidates = prior.sample(generator, 10_000)
    log_weights = log_likelihood(np.broadcast_to(candidates, (len(observed), *candidates.shape)))
    starts = [candidates[importance_resample(tempered(row), WALKERS)] for row in log_weights]
    warm_up, thin, kept = 300, 20, -(-num_draws // WALKERS)
    walkers = differential_evolution(
        lambda theta: log_likelihood(theta) + prior.log_prob(theta),
        np.stack(starts),
        warm_up + thin * kept,
        generator,
        thin,
    )[-kept:]
    return np.moveaxis(walkers, 2, 1).reshape(-1, *np.stack(starts).shape[::2])[:num_draws]


def tempered(log_weights: np.ndarray, at_least: float = 100) -> np.ndarray:
    """The log-weights to the largest of the powers 1, 1/2, 1/4, ... that leaves that many draws."""
    while effective_sample_size(log_weights) < at_least:
        log_weights = log_weights / 2
    return log_weights


def draws(
    half: Any, name: str, method: str, budget: int, observed: np.ndarray, num_draws: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Draws for each observation, shape ``(num_draws, observations, dim)``, and how they came about."""
    task = TASKS[name]
    generator = np.random.default_rng([SEED, budget])
    theta = task.prior.sample(generator, budget)
    x = task.simulate(generator, theta)
    changed = CHANGED.get((name, method, budget), {})
    options = {**FIT, **changed, "batch_size": budget // 20, "seed": SEED}
    started = time.process_time()
    theta, x = np.float32(theta), np.float32(x)
    if method == "NPE":
        flow = posterior(half, task.prior, theta, x)
        history = flow.fit(theta, context=x, **options)
        found, _ = flow.sample_and_log_prob(num_draws, observed, SEED)
    else:
        flow = likelihood(half, theta, x)
        history = flow.fit(x, context=theta, **options)
        found = chains(flow, task.prior, observed, num_draws)
    seconds = time.process_time() - started
    return found, {"epochs": len(history.train_loss), "seconds": round(seconds, 1)}


def table(records: list[dict[str, Any]]) -> str:
    """Mean C2ST with 95 percent intervals, of the observations that were run in both halves."""
    rows = []
    for (task, method, budget), published in PUBLISHED.items():
        key = {"task": task, "method": method, "simulations": budget}
        found = [
            {
                r["observation"]: r["c2st"]
                for r in records
                if (key | {"half": half.name}).items() <= r.items()
            }
            for half in HALVES
        ]
        both = sorted(found[0].keys() & found[1].keys())
        if both:
            values = [[half[i] for i in both] for half in found]
            theirs = [published[i - 1] for i in both]
            highest = np.mean(theirs) + interval(published)[1]
            verdict = "yes" if max(np.mean(values, 1)) <= highest else "no"
            cells = [show(published), show(theirs), *map(show, values), verdict]
            rows.append([task, method, f"{budget:,}", str(len(both)), *cells])
    names = [half.name for half in HALVES]
    header = [
        "task",
        "method",
        "simulations",
        "observations",
        "published, all ten",
        "published, these",
    ]
    return markdown([*header, *names, "within the interval or better"], rows)


def main(
    full: Annotated[bool, typer.Option(help="All tasks, budgets and observations: hours.")] = False,
    tasks: Annotated[str, typer.Option(help="Names with commas between them.")] = "",
    methods: str = "NPE,NLE",
    budgets: str = "",
    observations: Annotated[int, typer.Option(help="The first so many of ten.")] = 0,
    num_draws: Annotated[int, typer.Option(help="From each posterior; 10,000 at most.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The JSON file.")] = None,
) -> None:
    out = out or Path("docs/tables/sbibm.json" if full else "outputs/tables/sbibm.json")
    num_draws = num_draws or (10_000 if full else 2000)
    observations = observations or (10 if full else 2)
    names = tasks.split(",") if tasks else list(TASKS) if full else ["two_moons", "gaussian_linear"]
    sizes = [int(size) for size in (budgets or ("1000,10000" if full else "1000")).split(",")]
    changed = [[*case, options] for case, options in CHANGED.items()]
    settings = {
        "fit": FIT,
        "changed": changed,
        "seed": SEED,
        "draws": num_draws,
        "walkers": WALKERS,
    }
    settings["classifier"] = "MLPClassifier of scikit-learn, by examples/tables/classifier.py"
    data, records = wheel("sbibm", "1.1.0"), read(out, settings)
    cases = [(n, s, m) for s in sizes for m in methods.split(",") for n in names]
    for name, budget, method in cases:
        seen = [shipped(data, name, number) for number in range(1, observations + 1)]
        observed = np.stack([part["x"] for part in seen])
        for half in HALVES:
            key = {"task": name, "method": method, "simulations": budget, "half": half.name}
            done = {r["observation"] for r in records if key.items() <= r.items()}
            if done >= set(range(1, observations + 1)):
                continue
            found, how = draws(half, name, method, budget, observed, num_draws)
            print(f"{name}, {method}, {budget}, {half.name}: {how}", flush=True)
            for i, part in enumerate(seen):
                if i + 1 in done:
                    continue
                network = Classifier((10 * found.shape[-1],) * 2, random_state=SEED)
                result = c2st(part["draws"][:num_draws], found[:, i], classifier=network).accuracy
                records.append({**key, "observation": i + 1, "c2st": round(result, 4), **how})
                print(f"  observation {i + 1}: {result:.3f}", flush=True)
                write(out, table(records), settings, records)
    print(table(records))


if __name__ == "__main__":
    typer.run(main)
