"""Glow on handwritten digits: trained in JAX, judged and sampled in PyTorch, one checkpoint between.

scikit-learn's 8 x 8 digits of 17 grey levels, spread over [0, 1) by uniform noise. Glow is conditional
on the label; the density of an image without its label is the mean over the ten labels. Run it with
``python examples/digits.py`` (a few minutes on two cores); it writes to ``outputs/digits``.
"""

import math
import time
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
import torch
from sklearn.datasets import load_digits

import jax_flows
import torch_flows
from twinflows.parity.compare import check_parity

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUT = Path("outputs/digits")
LEVELS, LABELS, SHAPE = 17, 10, (1, 8, 8)
NOISE_COPIES = 16  # each training image, with as many draws of the noise
NUM_EPOCHS, BATCH_SIZE, PEAK_RATE = 6, 128, 2e-3

# Held-out bits per dimension of classical densities on the same split.
BASELINES = {
    "uniform": 4.0875,
    "independent normals": 3.3675,
    "one normal, full covariance": 3.0108,
    "10 normals, full covariances": 2.7122,
}


def dataset() -> list[tuple[np.ndarray, np.ndarray]]:
    """Levels and one-hot labels of 1347 digits to train on, 200 to validate, 250 to test."""
    images, labels = load_digits(return_X_y=True)
    images, labels = images.reshape(-1, *SHAPE), np.eye(LABELS, dtype=np.float32)[labels]
    order = np.random.default_rng(0).permutation(len(images))
    return [(images[part], labels[part]) for part in np.split(order, [1347, 1547])]


def spread(data: tuple[np.ndarray, np.ndarray], copies: int, seed: int) -> tuple[np.ndarray, ...]:
    """Dequantised copies of images, and their labels."""
    images, labels = (np.repeat(array, copies, 0) for array in data)
    noise = np.random.default_rng(seed).uniform(size=images.shape)
    x = torch_flows.dequantize(torch.from_numpy(images), LEVELS, torch.from_numpy(noise))
    return x.numpy().astype(np.float32), labels


def train(train_data: tuple[np.ndarray, ...], validation_data: tuple[np.ndarray, ...]) -> Path:
    """Train in JAX; the checkpoint."""
    x, labels = spread(train_data, NOISE_COPIES, 1)
    validation, validation_labels = spread(validation_data, 4, 2)
    glow = jax_flows.Glow(SHAPE, num_levels=2, num_steps=8, hidden_channels=32, context_dim=LABELS)
    flow = jax_flows.Flow(jax_flows.Chain([jax_flows.Logit(), glow.bijector]), glow.base)
    variables = flow.init(jax.random.key(0))
    variables = flow.initialize(variables, x[::NOISE_COPIES], labels[::NOISE_COPIES])
    steps = NUM_EPOCHS * (len(x) // BATCH_SIZE)

    def learning_rate(step: int) -> float:
        return PEAK_RATE * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))

    variables, _ = jax_flows.fit(
        flow,
        variables,
        x,
        context=labels,
        validation=validation,
        validation_context=validation_labels,
        num_epochs=NUM_EPOCHS,
        batch_size=BATCH_SIZE,
        learning_rate=learning_rate,
        max_grad_norm=50.0,
    )
    path = OUTPUT / "glow.safetensors"
    jax_flows.save(flow, variables, path)
    return path


@torch.no_grad()
def log_probs(flow: torch_flows.Flow, x: torch.Tensor) -> torch.Tensor:
    """The log-density of every image under each label, shape ``(images, labels)``."""
    return torch.stack([flow.log_prob(x, label) for label in torch.eye(LABELS)], -1)


def bits(log_prob: torch.Tensor) -> float:
    """Mean bits per dimension."""
    return float(torch_flows.bits_per_dimension(log_prob.mean(), SHAPE, LEVELS))


@torch.no_grad()
def draw_samples(flow: torch_flows.Flow, test: tuple[np.ndarray, np.ndarray]) -> None:
    """Real digits over samples, one column a label; lower rows from a base narrowed to 0.7."""
    images, labels = test
    real = [np.stack([images[labels[:, i] == 1][row] for i in range(LABELS)]) for row in range(3)]
    noise = torch.randn(4, LABELS, *SHAPE, generator=torch.Generator().manual_seed(0))
    rows = [*real]
    for temperature in (1.0, 0.7):
        z = flow.base.from_noise(temperature * noise)
        x = flow.inverse(z, torch.eye(LABELS))[0]
        rows += [row.numpy() for row in torch_flows.quantize(x, LEVELS)]
    titles = {0: "held out", 3: "samples", 7: "samples, 0.7"}
    sheet(np.stack(rows), titles, OUTPUT / "samples.png")


@torch.no_grad()
def draw_interpolation(flow: torch_flows.Flow, test: tuple[np.ndarray, np.ndarray]) -> None:
    """Great circles in latent space from one held-out digit to another, the label going along."""
    x, labels = map(torch.from_numpy, spread(test, 1, 3))
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]
    t = torch.linspace(0, 1, 11)[:, None]
    rows = []
    for a, b in pairs:
        ends = flow.forward(x[[a, b]], labels[[a, b]])[0].flatten(1)
        angle = t * math.pi / 2
        z = angle.cos() * ends[0] + angle.sin() * ends[1]
        context = (1 - t) * labels[a] + t * labels[b]
        between = flow.inverse(z.reshape(-1, *SHAPE), context)[0]
        rows.append(torch_flows.quantize(between, LEVELS).numpy())
    sheet(np.stack(rows), {}, OUTPUT / "interpolation.png")


def sheet(images: np.ndarray, titles: dict[int, str], path: Path) -> None:
    """Images of shape ``(rows, columns, 1, height, width)`` as one picture."""
    rows, columns = images.shape[:2]
    figure, axes = plt.subplots(rows, columns, figsize=(0.7 * columns, 0.7 * rows))
    for (row, column), axis in np.ndenumerate(axes):
        axis.imshow(images[row, column, 0], cmap="gray_r", vmin=0, vmax=LEVELS - 1)
        axis.set(xticks=[], yticks=[])
        if column == 0 and row in titles:
            axis.set_ylabel(titles[row], rotation=0, ha="right", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    train_data, validation_data, test_data = dataset()
    began = time.perf_counter()
    path = train(train_data, validation_data)
    print(f"trained in JAX in {time.perf_counter() - began:.0f} s; from here on in PyTorch")

    flow = torch_flows.load(path)
    x, labels = map(torch.from_numpy, spread(test_data, 8, 4))
    log_prob = log_probs(flow, x)
    marginal = log_prob.logsumexp(-1) - math.log(LABELS)
    mine = bits(marginal)
    given = bits((log_prob * labels).sum(-1))
    guessed = log_prob.reshape(-1, 8, LABELS).logsumexp(1).argmax(-1).numpy()
    accuracy = float((guessed == test_data[1].argmax(-1)).mean())
    report = check_parity(flow, x[:64], context=labels[:64])
    report.to_html(OUTPUT / "parity.html")

    rows = {**BASELINES, "Glow": mine, "Glow, given the label": given}
    table = "| density | bits per dimension |\n| --- | --- |\n"
    table += "".join(f"| {name} | {value:.3f} |\n" for name, value in rows.items())
    print(f"\nHeld-out bits per dimension, {len(test_data[0])} digits.\n\n{table}")
    print(f"The most probable label is the right one for {accuracy:.1%} of them.")
    print(f"PyTorch and JAX are {'' if report.passed else 'NOT '}one model (parity.html).")
    (OUTPUT / "results.md").write_text(table)
    draw_samples(flow, test_data)
    draw_interpolation(flow, test_data)
    print(f"Checkpoint, samples.png and interpolation.png are in {OUTPUT}")
    if not report.passed or mine > BASELINES["10 normals, full covariances"]:
        raise SystemExit("Glow does not hold up")


if __name__ == "__main__":
    main()
