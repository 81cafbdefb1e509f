"""Free-form flows: FFJORD and ResidualFlow on four toy densities, and samples on their way.

Both are trained in JAX by maximum likelihood on the same rows. The pictures show their densities and
samples beside the data, and how many evaluations of its network FFJORD's solver needs as it learns;
an animation carries samples from the Gaussian to the data along the solutions of FFJORD's equation.
Run it with ``python examples/ffjord.py``; it writes to ``outputs/ffjord``.
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
from matplotlib.animation import FuncAnimation, PillowWriter

OUTPUT = Path("outputs/ffjord")
DATA = ("8 Gaussians", "checkerboard", "spirals", "rings")
TRAIN_ROWS, TEST_ROWS, SHOWN_ROWS = 20_000, 10_000, 4_000
ROUNDS, EPOCHS, BATCH_SIZE = 12, 4, 512
NUM_FRAMES, PAUSE_FRAMES = 40, 10
MODELS: dict[str, tuple[Any, float]] = {  # with learning rates
    "FFJORD": (jax_flows.FFJORD(2, (96, 96)), 5e-3),
    "ResidualFlow": (jax_flows.ResidualFlow(2, (64, 64), num_blocks=10), 5e-3),
}


def learning_rate(peak: float, round_: int) -> Callable[[int], float]:
    """Cosine decay over the whole training, of which a round is one part."""
    steps = EPOCHS * (TRAIN_ROWS // BATCH_SIZE)
    return lambda step: (
        peak * 0.5 * (1 + math.cos(math.pi * (round_ * steps + step) / (ROUNDS * steps)))
    )


def train(name: str, data: np.ndarray) -> tuple[dict[str, Any], list[int]]:
    """The variables after all rounds, and the function evaluations after each."""
    flow, rate = MODELS[name]
    variables = flow.init(jax.random.key(0))
    evaluations = []
    for round_ in range(ROUNDS):
        variables, _ = jax_flows.fit(
            flow,
            variables,
            data,
            num_epochs=EPOCHS,
            batch_size=BATCH_SIZE,
            learning_rate=learning_rate(rate, round_),
            validation=0.0,
            seed=round_,
            progress=False,
        )
        if name == "FFJORD":
            part = {name: tree.get("bijector", {}) for name, tree in variables.items()}
            evaluations.append(int(flow.bijector.count_evaluations(part, data[:BATCH_SIZE])))
    return variables, evaluations


def animate(paths: dict[str, np.ndarray], limits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write the paths ``(frames, rows, 2)`` side by side as a GIF, without a display."""
    figure, axes = plt.subplots(1, len(paths), figsize=(3 * len(paths), 3.2))
    dots = []
    for axis, (name, path) in zip(axes, paths.items(), strict=True):
        (low_x, low_y), (high_x, high_y) = limits[name]
        axis.set(xlim=(low_x, high_x), ylim=(low_y, high_y), xticks=[], yticks=[], title=name)
        dots.append((axis.plot(*path[0].T, ".", markersize=1.5, color="tab:blue")[0], path))
    figure.tight_layout()

    def draw(frame: int) -> list[Any]:
        for line, path in dots:
            line.set_data(*path[min(frame, NUM_FRAMES)].T)
        return [line for line, _ in dots]

    animation = FuncAnimation(figure, draw, NUM_FRAMES + 1 + PAUSE_FRAMES)
    animation.save(OUTPUT / "trajectories.gif", PillowWriter(fps=15), dpi=80)
    plt.close(figure)


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    columns = 1 + 2 * len(MODELS)
    figure, axes = plt.subplots(len(DATA), columns, figsize=(2.7 * columns, 2.9 * len(DATA)))
    solver, solver_axis = plt.subplots(figsize=(6, 4))
    paths, limits = {}, {}
    lines = ["| data | FFJORD | ResidualFlow | entropy | evaluations |", "|" + " --- |" * 5]
    for row, name in zip(axes, DATA, strict=True):
        rows = SAMPLERS[name](np.random.default_rng(0), TRAIN_ROWS)
        test = SAMPLERS[name](np.random.default_rng(1), TEST_ROWS)
        mean, sd = rows.mean(0), rows.std(0)
        low, high = rows.min(0) - 0.3, rows.max(0) + 0.3
        extent = (low[0], high[0], low[1], high[1])
        axis_x, axis_y = (np.linspace(a, b, 200) for a, b in zip(low, high, strict=True))
        grid = np.stack(np.meshgrid(axis_x, axis_y), -1)
        row[0].plot(*test[:SHOWN_ROWS].T, ".", markersize=1, color="black")
        row[0].set(ylabel=name, title=f"data, entropy {ENTROPY[name]:.3f}")
        scores = []
        for panels, (model_name, (flow, _)) in zip(
            (row[1:3], row[3:5]), MODELS.items(), strict=True
        ):
            began = time.perf_counter()
            variables, evaluations = train(model_name, ((rows - mean) / sd).astype(np.float32))
            seconds = time.perf_counter() - began
            log_prob, in_data = jax.jit(flow.log_prob), float(np.log(sd).sum())
            test_log_prob = log_prob(variables, ((test - mean) / sd).astype(np.float32))
            scores.append(in_data - float(test_log_prob.mean()))
            density = np.exp(log_prob(variables, ((grid - mean) / sd).astype(np.float32)) - in_data)
            panels[0].imshow(density, origin="lower", extent=extent, aspect="auto")
            panels[0].set_title(f"{model_name}, NLL {scores[-1]:.3f}")
            samples = mean + sd * flow.sample(variables, jax.random.key(1), SHOWN_ROWS)
            panels[1].plot(*np.asarray(samples).T, ".", markersize=1, color="tab:blue")
            panels[1].set_title("samples")
            print(f"{name}, {model_name}: {scores[-1]:.3f} nats after {seconds:.0f} s", flush=True)
            if model_name == "FFJORD":
                solver_axis.plot(np.arange(1, ROUNDS + 1) * EPOCHS, evaluations, label=name)
                bijector = {part: tree.get("bijector", {}) for part, tree in variables.items()}
                z = jax.random.normal(jax.random.key(2), (SHOWN_ROWS, 2))
                times = np.linspace(1, 0, NUM_FRAMES + 1).tolist()
                path = flow.bijector.trajectory(bijector, z, times)
                paths[name], limits[name] = mean + sd * np.asarray(path), (low, high)
                last = evaluations[-1]
        figures = f"{scores[0]:.3f} | {scores[1]:.3f} | {ENTROPY[name]:.3f} | {last}"
        lines.append(f"| {name} | {figures} |")
        for panel in row:
            panel.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(OUTPUT / "densities.png", dpi=100)
    solver_axis.set(xlabel="epoch", ylabel="function evaluations", title="FFJORD, dopri5 at 1e-5")
    solver_axis.legend()
    solver.tight_layout()
    solver.savefig(OUTPUT / "evaluations.png", dpi=100)
    animate(paths, limits)
    table = "\n".join(lines) + "\n"
    (OUTPUT / "results.md").write_text(table)
    print(f"\nTest negative log-likelihood in nats beside the entropy of the data\n\n{table}")
    print(f"Table, pictures and the animation are in {OUTPUT}")


if __name__ == "__main__":
    main()
