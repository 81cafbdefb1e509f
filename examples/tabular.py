"""Density estimation on the real tables that scikit-learn ships: MAF and autoregressive splines.

Each is trained in JAX on five random splits and set beside a Gaussian and a Gaussian mixture, with the
mean test log-likelihood and its standard error over the splits. Columns are dequantised by noise as
wide as their resolution, then standardised by the training rows. Run it with
``python examples/tabular.py``; it writes to ``outputs/tabular``.
"""

import time
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
import optax
from sklearn import datasets
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture

import jax_flows

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUT = Path("outputs/tabular")
NUM_SPLITS = 5
COMPONENTS = (1, 2, 3, 4, 6, 8)
NUM_EPOCHS, BATCH_SIZE, PATIENCE = 400, 64, 60
OPTIMIZER = optax.adamw(1e-3, weight_decay=1e-2)


def tables() -> dict[str, np.ndarray]:
    """The tables, without the one binary column (sex, in diabetes)."""
    diabetes = datasets.load_diabetes(scaled=False).data
    return {
        "iris": datasets.load_iris().data,
        "diabetes": np.delete(diabetes, 1, axis=1),
        "wine": datasets.load_wine().data,
        "breast cancer": datasets.load_breast_cancer().data,
    }


def dequantise(table: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Uniform noise as wide as the smallest step of each column: what was rounded has a density."""
    steps = np.array([np.diff(np.unique(column)).min() for column in table.T])
    return table + steps * generator.uniform(-0.5, 0.5, table.shape)


def split(table: np.ndarray, seed: int) -> list[np.ndarray]:
    """Train, validation and test rows (70, 15 and 15 percent), standardised by the first."""
    generator = np.random.default_rng(seed)
    rows = dequantise(table, generator)[generator.permutation(len(table))]
    ends = [round(0.7 * len(rows)), round(0.85 * len(rows))]
    train, validation, test = np.split(rows, ends)
    mean, sd = train.mean(0), train.std(0)
    return [((part - mean) / sd).astype(np.float32) for part in (train, validation, test)]


def gaussian(train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> float:
    """A full Gaussian, its covariance shrunk as Ledoit and Wolf (2004) do."""
    model = LedoitWolf().fit(train)
    centred = test - model.location_
    _, log_det = np.linalg.slogdet(model.covariance_)
    squares = (centred @ model.precision_ * centred).sum(-1)
    return float(-(squares + log_det + test.shape[1] * np.log(2 * np.pi)).mean() / 2)


def mixture(train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> float:
    """A mixture of full Gaussians; the validation rows choose how many and how regular."""
    models = [
        GaussianMixture(count, reg_covar=reg, random_state=0).fit(train.astype(np.float64))
        for count in COMPONENTS
        for reg in (1e-3, 1e-2, 1e-1)
    ]
    return float(max(models, key=lambda model: model.score(validation)).score(test))


def flow_score(flow: Any, train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> float:
    """A flow with weight decay, stopped where the validation loss is best."""
    variables, _ = jax_flows.fit(
        flow,
        flow.init(jax.random.key(0)),
        train,
        validation=validation,
        num_epochs=NUM_EPOCHS,
        batch_size=BATCH_SIZE,
        optimizer=OPTIMIZER,
        patience=PATIENCE,
        progress=False,
    )
    return float(flow.log_prob(variables, test).mean())


def models(dim: int) -> dict[str, Any]:
    """From train, validation and test rows to the test log-likelihood."""
    maf = jax_flows.MAF(dim, (64, 64))
    splines = jax_flows.NeuralSplineFlow(dim, (64, 64), 3, autoregressive=True)
    return {
        "Gaussian": gaussian,
        "Gaussian mixture": mixture,
        "MAF": lambda *parts: flow_score(maf, *parts),
        "autoregressive splines": lambda *parts: flow_score(splines, *parts),
    }


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    names = list(models(1))
    lines = [
        "| table | rows | dim | " + " | ".join(names) + " |",
        "|" + " --- |" * (3 + len(names)),
    ]
    figure, axes = plt.subplots(1, len(tables()), figsize=(14, 3.6))
    for panel, (title, table) in zip(axes, tables().items(), strict=True):
        means, errors = [], []
        for name, score in models(table.shape[1]).items():
            began = time.perf_counter()
            scores = [score(*split(table, seed)) for seed in range(NUM_SPLITS)]
            means.append(np.mean(scores))
            errors.append(np.std(scores, ddof=1) / np.sqrt(NUM_SPLITS))
            seconds = time.perf_counter() - began
            print(
                f"{title}, {name}: {means[-1]:.2f} ± {errors[-1]:.2f}, {seconds:.0f} s", flush=True
            )
        cells = " | ".join(f"{m:.2f} ± {e:.2f}" for m, e in zip(means, errors, strict=True))
        lines.append(f"| {title} | {len(table)} | {table.shape[1]} | {cells} |")
        panel.errorbar(range(len(names)), means, errors, fmt="o", capsize=4)
        panel.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=8)
        panel.set(title=f"{title} ({len(table)} x {table.shape[1]})", xlim=(-0.5, len(names) - 0.5))
    axes[0].set_ylabel("test log-likelihood (nats)")
    figure.tight_layout()
    figure.savefig(OUTPUT / "log_likelihood.png", dpi=110)
    text = "\n".join(lines) + "\n"
    (OUTPUT / "results.md").write_text(text)
    print(f"\nMean test log-likelihood in nats, standard error over {NUM_SPLITS} splits\n\n{text}")
    print(f"Table and picture are in {OUTPUT}")


if __name__ == "__main__":
    main()
