"""Real data learned in one framework, carried to the other, and proven to be the same model.

A spline flow, RealNVP and a planar flow learn Two Moons and Two Circles, in JAX and in PyTorch, from the
same initial weights. Each trained model crosses to the other framework through a checkpoint file. Run it
with ``make demo``; it writes to ``outputs/two_moons``.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib as mpl
import numpy as np
import torch
from sklearn.datasets import make_circles, make_moons

import jax_flows
import torch_flows
from twinflows import check_parity

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUT = Path("outputs/two_moons")
TRAIN_ROWS, TEST_ROWS = 20_000, 10_000
BATCH_SIZE = 512


class Training(NamedTuple):
    """A named model's arguments, the epochs it trains, and its highest learning rate."""

    arguments: dict[str, Any]
    num_epochs: int
    peak: float


SPLINES = "NeuralSplineFlow"
SPLINE_ARGUMENTS = {"hidden_dims": (64, 64), "num_layers": 4, "tail_bound": 3.0}
MODELS = {
    SPLINES: Training(SPLINE_ARGUMENTS, 60, 5e-3),
    "RealNVP": Training({}, 60, 5e-3),
    "PlanarFlow": Training({}, 30, 1e-2),
}


class Data(NamedTuple):
    """A distribution, its axis-wise mean and standard deviation, and its true entropy in nats."""

    sample: Callable[[int, int], np.ndarray]
    mean: tuple[float, float]
    sd: tuple[float, float]
    entropy: float


# Entropies and deviations of the exact densities, by numerical integration.
DATA = {
    "Two Moons": Data(
        lambda rows, seed: make_moons(rows, noise=0.1, random_state=seed)[0],
        (0.5, 0.25),
        (0.8717797887, 0.5041727024),
        1.0075848351,
    ),
    "Two Circles": Data(
        lambda rows, seed: make_circles(rows, noise=0.05, factor=0.5, random_state=seed)[0],
        (0.0, 0.0),
        (0.5612486080, 0.5612486080),
        0.6060764360,
    ),
}


def schedule(num_epochs: int, peak: float) -> dict[str, Any]:
    """Options of ``fit``: the learning rate decays as a cosine over the whole training."""
    steps = num_epochs * (int(TRAIN_ROWS * 0.9) // BATCH_SIZE)
    return {
        "num_epochs": num_epochs,
        "batch_size": BATCH_SIZE,
        "learning_rate": lambda step: peak * 0.5 * (1 + math.cos(math.pi * step / steps)),
    }


def train_torch(start: Path, x: np.ndarray, options: dict[str, Any], end: Path) -> float:
    """Train in PyTorch from one checkpoint to another; the seconds it took."""
    flow = torch_flows.load(start)
    began = time.perf_counter()
    torch_flows.fit(flow, x, **options)
    seconds = time.perf_counter() - began
    torch_flows.save(flow, end)
    return seconds


def train_jax(start: Path, x: np.ndarray, options: dict[str, Any], end: Path) -> float:
    """The same in JAX, compilation included."""
    flow, variables = jax_flows.load(start)
    began = time.perf_counter()
    variables, _ = jax_flows.fit(flow, variables, x, **options)
    seconds = time.perf_counter() - began
    jax_flows.save(flow, variables, end)
    return seconds


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # models this small lose more to the threads than they gain
    rows, trained, densities = [], {}, {}
    for data_name, data in DATA.items():

        def standardise(x: np.ndarray, data: Data = data) -> np.ndarray:
            return ((x - data.mean) / data.sd).astype(np.float32)

        x = standardise(data.sample(TRAIN_ROWS, 0))
        test = standardise(data.sample(TEST_ROWS, 1))
        for model_name, (arguments, num_epochs, peak) in MODELS.items():
            stem = f"{data_name} {model_name}".lower().replace(" ", "_")
            start = OUTPUT / f"{stem}_start.safetensors"
            torch_flows.save(getattr(torch_flows, model_name)(dim=2, **arguments), start)
            for trainer, train in (("PyTorch", train_torch), ("JAX", train_jax)):
                print(f"{model_name} on {data_name}, trained in {trainer}")
                end = OUTPUT / f"{stem}_{trainer.lower()}.safetensors"
                seconds = train(start, x, schedule(num_epochs, peak), end)
                torch_flow = torch_flows.load(end)
                jax_flow, variables = jax_flows.load(end)
                with torch.no_grad():
                    in_torch = torch_flow.log_prob(torch.from_numpy(test)).numpy()
                in_jax = np.asarray(jax.jit(jax_flow.log_prob)(variables, test))
                report = check_parity(torch_flow, test[:256])
                report.to_html(OUTPUT / f"{stem}_{trainer.lower()}_parity.html")
                log_sd = float(np.log(data.sd).sum())
                rows.append({
                    "data": data_name,
                    "model": model_name,
                    "trained in": trainer,
                    "parameters": sum(p.numel() for p in torch_flow.parameters()),
                    "seconds": f"{seconds:.0f}",
                    "NLL in PyTorch": f"{log_sd - in_torch.mean():.4f}",
                    "NLL in JAX": f"{log_sd - in_jax.mean():.4f}",
                    "entropy": f"{data.entropy:.4f}",
                    "float64 parity": f"{worst(report):.1e}",
                    "one model": "yes" if report.passed else "NO",
                })  # fmt: skip
                trained[data_name, model_name, trainer] = torch_flow
                grid, _ = plane(data)
                standard = standardise(grid)
                with torch.no_grad():
                    in_torch = torch_flow.log_prob(torch.from_numpy(standard)).numpy()
                in_jax = np.asarray(jax.jit(jax_flow.log_prob)(variables, standard))
                densities[data_name, model_name, trainer] = {"PyTorch": in_torch, "JAX": in_jax}
    table = markdown(rows)
    print(f"\nTest negative log-likelihood in nats beside the true entropy of the data.\n\n{table}")
    (OUTPUT / "results.md").write_text(table)
    pairs = [(a, b) for a in ("PyTorch", "JAX") for b in dict.fromkeys((a, "PyTorch", "JAX"))]
    draw_densities(densities, {SPLINES: pairs}).savefig(OUTPUT / "densities.png", dpi=110)
    own = [pair for pair in pairs if pair[0] == pair[1]]
    seeds = {model: own for model in MODELS if model != SPLINES}
    draw_densities(densities, seeds).savefig(OUTPUT / "seeds.png", dpi=110)
    draw_samples(trained)
    draw_warping(trained)
    print(f"\nCheckpoints, parity reports and pictures are in {OUTPUT}")
    if any(row["one model"] == "NO" for row in rows):
        raise SystemExit("a model differs between the frameworks")


def worst(report: Any) -> float:
    """The largest float64 difference of outputs, log-dets and log-densities, not in eps."""
    names = ("z", "x", "log_det", "inverse log_det", "log_prob")
    errors = [c.error for c in report.comparisons if c.dtype == "float64" and c.quantity in names]
    return max(errors) * 2.0**-52


def markdown(rows: list[dict[str, Any]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    return (
        "\n".join([*lines, *("| " + " | ".join(map(str, r.values())) + " |" for r in rows)]) + "\n"
    )


def to_data(z: torch.Tensor, data: Data) -> np.ndarray:
    """Standardised coordinates to those of the data."""
    return z.detach().numpy() * data.sd + data.mean


def panels(rows: int, columns: int) -> tuple[Any, np.ndarray]:
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure, axes


def plane(data: Data) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """A grid of points around the data, and its extent."""
    points = data.sample(2000, 2)
    low, high = points.min(0) - 0.3, points.max(0) + 0.3
    axes = [np.linspace(a, b, 200) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes), -1), (low[0], high[0], low[1], high[1])


def draw_densities(densities: dict[Any, Any], models: dict[str, list[tuple[str, str]]]) -> Any:
    """Density heatmaps beside the data.

    Args:
        densities: by data, model and trainer: the log-densities on the grid, by who evaluated them.
        models: the columns: for each model, who trained it and who evaluates it.
    """
    columns = [(model, *pair) for model, pairs in models.items() for pair in pairs]
    figure, axes = panels(len(DATA), 1 + len(columns))
    for row, (data_name, data) in zip(axes, DATA.items(), strict=True):
        extent = plane(data)[1]
        row[0].scatter(*data.sample(2000, 2).T, s=1, color="#1d2433")
        row[0].set(ylabel=data_name, xlim=extent[:2], ylim=extent[2:])
        for axis, (model, trainer, evaluator) in zip(row[1:], columns, strict=True):
            density = np.exp(densities[data_name, model, trainer][evaluator])
            axis.imshow(density, origin="lower", extent=extent, aspect="auto")
    axes[0, 0].set_title("data")
    for axis, (model, trainer, evaluator) in zip(axes[0, 1:], columns, strict=True):
        where = "" if trainer == evaluator else f",\nthe same weights in {evaluator}"
        name = "" if model == SPLINES else f"{model}\n"
        axis.set_title(f"{name}trained in {trainer}{where}", fontsize=10)
    figure.tight_layout()
    return figure


def draw_samples(trained: dict[Any, Any]) -> None:
    """Samples in the data space, and where the data lie in the latent space."""
    figure, axes = panels(2 * len(DATA), 1 + len(MODELS))
    for i, (data_name, data) in enumerate(DATA.items()):
        points = data.sample(2000, 3)
        standard = torch.from_numpy(((points - data.mean) / data.sd).astype(np.float32))
        axes[2 * i, 0].scatter(*points.T, s=1, color="#1d2433")
        axes[2 * i, 0].set(ylabel="data space", title=data_name)
        axes[2 * i + 1, 0].scatter(
            *np.random.default_rng(0).normal(size=(2, 2000)), s=1, color="#1d2433"
        )
        axes[2 * i + 1, 0].set(ylabel="latent space", title="standard normal")
        for j, model in enumerate(MODELS, 1):
            flow = trained[data_name, model, "JAX"]
            with torch.no_grad():
                samples = to_data(
                    flow.sample(2000, generator=torch.Generator().manual_seed(0)), data
                )
                latent = flow.forward(standard)[0].numpy()
            axes[2 * i, j].scatter(*samples.T, s=1, color="#3467a8")
            axes[2 * i, j].set(title=f"samples of {model}",
                               xlim=axes[2 * i, 0].get_xlim(), ylim=axes[2 * i, 0].get_ylim())  # fmt: skip
            axes[2 * i + 1, j].scatter(*latent.T, s=1, color="#3467a8")
            axes[2 * i + 1, j].set(title=f"data encoded by {model}", xlim=(-4, 4), ylim=(-4, 4))
    figure.tight_layout()
    figure.savefig(OUTPUT / "samples.png", dpi=110)


def draw_warping(trained: dict[Any, Any]) -> None:
    """The Gaussian turning into the data, layer by layer."""
    stages = 7
    figure, axes = panels(len(DATA) * len(MODELS), stages)
    z = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    colour = torch.arctan2(z[:, 1], z[:, 0]).numpy()
    for row, (data_name, model) in zip(axes, ((d, m) for d in DATA for m in MODELS), strict=True):
        layers = list(reversed(trained[data_name, model, "JAX"].bijector.bijectors))
        shown = np.linspace(0, len(layers), stages).round().astype(int)
        row[0].set_ylabel(f"{model}\n{data_name}")
        x, axis = z, iter(row)
        for i in range(len(layers) + 1):
            if i in shown:
                panel = next(axis)
                panel.scatter(*x.T, s=1, c=colour, cmap="twilight")
                panel.set_title(f"after {i} layers" if i else "noise", fontsize=9)
            if i < len(layers):
                with torch.no_grad():
                    x = layers[i].inverse(x)[0]
    figure.tight_layout()
    figure.savefig(OUTPUT / "warping.png", dpi=110)


if __name__ == "__main__":
    main()
