"""Reverse KL to the four energies of Rezende and Mohamed (2015), arXiv:1505.05770, table 1.

Planar flows of 2, 8 and 32 layers, an inverse autoregressive flow and RealNVP are trained in JAX on
samples of their own, and drawn beside the targets with their KL divergence from them. U2, U3 and U4
have no normaliser on the plane: a half-Gaussian wall at |z1| = 4 is added to them. Run it with
``python examples/variational_inference.py``; it writes to ``outputs/variational_inference``.
"""

import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from jax import Array

import jax_flows

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUT = Path("outputs/variational_inference")
NUM_STEPS, BATCH_SIZE, NUM_SAMPLES = 4000, 512, 100_000
LIMIT, GRID = 5.0, 200


def _normal(x: Array, width: float) -> Array:
    return -0.5 * (x / width) ** 2


def _parts(z: Array) -> tuple[Array, Array, Array, Array]:
    """z2 - w1, w2, w3 and the wall."""
    z1, z2 = z[..., 0], z[..., 1]
    w2 = 3 * jnp.exp(_normal(z1 - 1, 0.6))
    w3 = 3 * jax.nn.sigmoid((z1 - 1) / 0.3)
    wall = -_normal(jnp.maximum(jnp.abs(z1) - 4, 0), 0.4)
    return z2 - jnp.sin(math.pi * z1 / 2), w2, w3, wall


def u1(z: Array) -> Array:
    """A ring with two heavy sides."""
    radius = jnp.sqrt(jnp.square(z).sum(-1) + 1e-12)
    sides = jnp.logaddexp(_normal(z[..., 0] - 2, 0.6), _normal(z[..., 0] + 2, 0.6))
    return -_normal(radius - 2, 0.4) - sides


def u2(z: Array) -> Array:
    """A wave."""
    offset, _, _, wall = _parts(z)
    return wall - _normal(offset, 0.4)


def u3(z: Array) -> Array:
    """A wave that splits and meets again."""
    offset, w2, _, wall = _parts(z)
    return wall - jnp.logaddexp(_normal(offset, 0.35), _normal(offset + w2, 0.35))


def u4(z: Array) -> Array:
    """A wave that splits."""
    offset, _, w3, wall = _parts(z)
    return wall - jnp.logaddexp(_normal(offset, 0.4), _normal(offset + w3, 0.35))


ENERGIES = {"U1": u1, "U2": u2, "U3": u3, "U4": u4}
LOG_Z = {  # by numerical integration of exp(-U), the wall included
    "U1": 1.877501626109655,
    "U2": 2.2001669252672276,
    "U3": 2.7597827132026502,
    "U4": 2.828775584689602,
}


def planar(num_layers: int) -> Any:
    """The planar maps from latent to data, as in the paper: sampling is the explicit direction."""
    maps = jax_flows.Chain([jax_flows.Planar(2) for _ in range(num_layers)])
    return jax_flows.Flow(jax_flows.Invert(maps), jax_flows.StandardNormal(2))


MODELS: dict[str, tuple[Any, float]] = {  # with learning rates
    "planar, K = 2": (planar(2), 1e-2),
    "planar, K = 8": (planar(8), 1e-2),
    "planar, K = 32": (planar(32), 5e-3),
    "IAF": (jax_flows.IAF(2, (64, 64), num_layers=5), 2e-3),
    "RealNVP": (jax_flows.RealNVP(2, hidden_dims=(32, 32)), 2e-3),
}


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    columns = 1 + len(MODELS)
    figure, axes = plt.subplots(len(ENERGIES), columns, figsize=(2.5 * columns, 10.5))
    axis = np.linspace(-LIMIT, LIMIT, GRID, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1)
    lines = ["| target | " + " | ".join(MODELS) + " |", "|" + " --- |" * columns]
    for row, (target, energy) in zip(axes, ENERGIES.items(), strict=True):
        densities, titles = [np.exp(-energy(grid) - LOG_Z[target])], [target]
        cells = []
        for name, (flow, rate) in MODELS.items():
            began = time.perf_counter()
            variables, _ = jax_flows.fit_to_energy(
                flow,
                flow.init(jax.random.key(0)),
                energy,
                num_steps=NUM_STEPS,
                batch_size=BATCH_SIZE,
                learning_rate=lambda step, rate=rate: (
                    rate * 0.5 * (1 + math.cos(math.pi * step / NUM_STEPS))
                ),
                max_grad_norm=10.0,
                progress=False,
            )
            sample = jax.jit(
                lambda v, key, flow=flow: flow.sample_and_log_prob(v, key, NUM_SAMPLES)
            )
            z, log_prob = sample(variables, jax.random.key(1))
            terms = np.asarray(log_prob + energy(z), np.float64)
            gap, error = terms.mean() + LOG_Z[target], terms.std() / math.sqrt(NUM_SAMPLES)
            densities.append(np.exp(jax.jit(flow.log_prob)(variables, grid)))
            titles.append(f"{name}: {gap:.3f}")
            cells.append(f"{gap:.3f} ± {error:.3f}")
            seconds = time.perf_counter() - began
            print(f"{target}, {name}: KL {cells[-1]} nats after {seconds:.0f} s", flush=True)
        for panel, density, title in zip(row, densities, titles, strict=True):
            panel.imshow(density, origin="lower", vmax=densities[0].max())
            panel.set_title(title, fontsize=10)
            panel.set(xticks=[], yticks=[])
        lines.append(f"| {target} | " + " | ".join(cells) + " |")
    figure.suptitle("Targets (U2, U3, U4 with a wall at |z1| = 4) and KL(q || p) in nats", y=0.995)
    figure.tight_layout()
    figure.savefig(OUTPUT / "densities.png", dpi=100)
    table = "\n".join(lines) + "\n"
    (OUTPUT / "results.md").write_text(table)
    print(f"\nKL(q || p) in nats, U2 to U4 with a half-Gaussian wall at |z1| = 4\n\n{table}")
    print(f"Table and picture are in {OUTPUT}")


if __name__ == "__main__":
    main()
