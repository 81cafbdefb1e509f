"""What volume preservation costs: NICE, RealNVP and a neural spline flow on five toy densities.

All three are trained in JAX by maximum likelihood on the same rows and drawn side by side, with the
test negative log-likelihood beside the true entropy of the data. Run it with
``python examples/nice_vs_realnvp.py``; it writes to ``outputs/nice_vs_realnvp``.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
from data import ENTROPY, SAMPLERS

import jax_flows

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUT = Path("outputs/nice_vs_realnvp")
TRAIN_ROWS, TEST_ROWS = 20_000, 20_000
NUM_EPOCHS, BATCH_SIZE = 70, 512
MODELS: dict[str, tuple[Any, float]] = {  # with learning rates
    "NICE": (jax_flows.NICE(2, (64, 64), num_layers=8), 3e-3),
    "RealNVP": (jax_flows.RealNVP(2), 5e-3),
    "NeuralSplineFlow": (
        jax_flows.NeuralSplineFlow(2, (64, 64), num_layers=4, num_bins=16, tail_bound=3.0),
        3e-3,
    ),
}


def learning_rate(peak: float) -> Callable[[int], float]:
    """Cosine decay over the whole training."""
    steps = NUM_EPOCHS * (int(TRAIN_ROWS * 0.9) // BATCH_SIZE)
    return lambda step: peak * 0.5 * (1 + math.cos(math.pi * step / steps))


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    columns = 1 + len(MODELS)
    figure, axes = plt.subplots(len(SAMPLERS), columns, figsize=(2.7 * columns, 14.5))
    lines = [
        "| data | " + " | ".join(MODELS) + " | entropy |",
        "|" + " --- |" * (len(MODELS) + 2),
    ]
    for row, (data_name, sampler) in zip(axes, SAMPLERS.items(), strict=True):
        train, test = (
            sampler(np.random.default_rng(0), TRAIN_ROWS),
            sampler(np.random.default_rng(1), TEST_ROWS),
        )
        mean, sd = train.mean(0), train.std(0)
        low, high = train.min(0) - 0.2, train.max(0) + 0.2
        extent = (low[0], high[0], low[1], high[1])
        row[0].hist2d(*test.T, bins=120, range=((low[0], high[0]), (low[1], high[1])))
        row[0].set(ylabel=data_name, title=f"data, entropy {ENTROPY[data_name]:.3f}")
        axis_x, axis_y = (np.linspace(a, b, 220) for a, b in zip(low, high, strict=True))
        grid = np.stack(np.meshgrid(axis_x, axis_y), -1)
        scores = []
        for panel, (model_name, (flow, rate)) in zip(row[1:], MODELS.items(), strict=True):
            began = time.perf_counter()
            variables, _ = jax_flows.fit(
                flow,
                flow.init(jax.random.key(0)),
                ((train - mean) / sd).astype(np.float32),
                num_epochs=NUM_EPOCHS,
                batch_size=BATCH_SIZE,
                learning_rate=learning_rate(rate),
                progress=False,
            )
            seconds = time.perf_counter() - began
            log_prob = jax.jit(flow.log_prob)
            in_data = float(np.log(sd).sum())
            test_log_prob = log_prob(variables, ((test - mean) / sd).astype(np.float32))
            scores.append(in_data - float(test_log_prob.mean()))
            density = np.exp(log_prob(variables, ((grid - mean) / sd).astype(np.float32)) - in_data)
            panel.imshow(density, origin="lower", extent=extent, aspect="auto")
            panel.set_title(f"{model_name}, NLL {scores[-1]:.3f}")
            print(f"{data_name}, {model_name}: {scores[-1]:.3f} nats after {seconds:.0f} s")
        figures = " | ".join(f"{score:.3f}" for score in scores)
        lines.append(f"| {data_name} | {figures} | {ENTROPY[data_name]:.3f} |")
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(OUTPUT / "densities.png", dpi=110)
    table = "\n".join(lines) + "\n"
    (OUTPUT / "results.md").write_text(table)
    print(f"\nTest negative log-likelihood in nats beside the entropy of the data\n\n{table}")
    print(f"Table and picture are in {OUTPUT}")


if __name__ == "__main__":
    main()
