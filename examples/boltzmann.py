"""Flows trained on energies by annealed samples (FAB, arXiv:2208.01893): 40 modes in the plane, many wells.

Each iteration moves samples of the flow towards p^2 / q by Hamiltonian Monte Carlo, puts them into a replay
buffer and takes eight gradient steps on rows of it. What is printed: the effective sample size of
importance sampling from the flow, and log Z from it and from annealing beside the true one. Run it with
``python examples/boltzmann.py modes`` (or ``wells``), in PyTorch with ``--half torch``.
"""

import argparse
import time
from typing import Any

import jax
import numpy as np
import optax
import torch
from tqdm import trange

import jax_flows
import torch_flows
from twinflows.inference import effective_sample_size, log_evidence

BATCH_SIZE, STEPS, NUM_SAMPLES, FIRST = 256, 8, 10_000, 10
TARGETS: dict[str, dict[str, Any]] = {
    "modes": {
        "energy": ("NormalModes", {"num_modes": 40}),
        "flow": ("RealNVP", {"dim": 2, "num_layers": 16, "hidden_dims": (64, 64)}),
        "spread": 25.0,
        "sampling": {"num_temperatures": 1, "step_size": 1.0, "num_leapfrog": 5},
        "iterations": 2000,
        "learning_rate": 5e-4,
    },
    "wells": {
        "energy": ("ManyWell", {"dim": 32}),
        "flow": ("RealNVP", {"dim": 32, "num_layers": 10, "hidden_dims": (96, 96)}),
        "spread": 1.5,
        "sampling": {"num_temperatures": 4, "step_size": 0.2, "num_leapfrog": 5},
        "iterations": 1500,
        "learning_rate": 5e-4,
    },
}


def build(package: Any, target: dict[str, Any]) -> tuple[Any, Any, np.ndarray]:
    """The energy, the flow, and rows as wide as its first samples should be."""
    name, options = target["energy"]
    model, arguments = target["flow"]
    rows = np.random.default_rng(0).standard_normal((1000, arguments["dim"]))
    energy = getattr(package.energies, name)(**options)
    return energy, getattr(package, model)(**arguments), target["spread"] * rows


def in_torch(target: dict[str, Any], iterations: int) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    energy, flow, rows = build(torch_flows, target)
    flow = torch_flows.standardized(flow, rows)
    sampling = torch_flows.AnnealedImportanceSampling(energy, power=2, **target["sampling"])
    buffer = torch_flows.ReplayBuffer(100 * BATCH_SIZE)
    optimizer = torch.optim.Adam(flow.parameters(), target["learning_rate"])
    bar = trange(iterations)
    for i in bar:
        annealed = sampling.sample(flow, BATCH_SIZE, seed=i)
        buffer.add(annealed.x, annealed.log_weight, annealed.log_prob)
        for _ in range(STEPS if i >= FIRST else 0):
            drawn = buffer.draw(BATCH_SIZE)
            log_prob = flow.log_prob(torch.from_numpy(drawn.x))
            factors = torch.from_numpy(buffer.correct(drawn.rows, log_prob)).to(log_prob)
            optimizer.zero_grad()
            (-(factors * log_prob).mean()).backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
            optimizer.step()
        bar.set_postfix(acceptance=float(annealed.acceptance.mean()))
    with torch.no_grad():
        x, log_prob = flow.sample_and_log_prob(NUM_SAMPLES)
    annealed = torch_flows.AnnealedImportanceSampling(energy, **target["sampling"])
    return energy, -energy(x) - log_prob, annealed.sample(flow, NUM_SAMPLES, seed=1).log_weight


def in_jax(target: dict[str, Any], iterations: int) -> tuple[Any, Any, Any]:
    energy, flow, rows = build(jax_flows, target)
    flow, variables = jax_flows.standardized(flow, flow.init(jax.random.key(0)), rows)
    sampling = jax_flows.AnnealedImportanceSampling(energy, power=2, **target["sampling"])
    buffer = jax_flows.ReplayBuffer(100 * BATCH_SIZE)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(target["learning_rate"]))
    state = optimizer.init(variables["params"])
    log_prob = jax.jit(flow.log_prob)

    @jax.jit
    def step(variables: Any, state: Any, x: Any, factors: Any) -> Any:
        def loss(params: Any) -> Any:
            return -(factors * flow.log_prob(variables | {"params": params}, x)).mean()

        updates, state = optimizer.update(jax.grad(loss)(variables["params"]), state)
        return variables | {"params": optax.apply_updates(variables["params"], updates)}, state

    bar = trange(iterations)
    for i in bar:
        annealed = sampling.sample(flow, variables, BATCH_SIZE, seed=i)
        buffer.add(annealed.x, annealed.log_weight, annealed.log_prob)
        for _ in range(STEPS if i >= FIRST else 0):
            drawn = buffer.draw(BATCH_SIZE)
            factors = buffer.correct(drawn.rows, log_prob(variables, drawn.x))
            variables, state = step(variables, state, drawn.x, factors)
        bar.set_postfix(acceptance=float(annealed.acceptance.mean()))
    x, density = flow.sample_and_log_prob(variables, jax.random.key(1), NUM_SAMPLES)
    annealed = jax_flows.AnnealedImportanceSampling(energy, **target["sampling"])
    draws = annealed.sample(flow, variables, NUM_SAMPLES, seed=1)
    return energy, -energy(x) - density, draws.log_weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--half", choices=("jax", "torch"), default="jax")
    parser.add_argument("--iterations", type=int)
    given = parser.parse_args()
    target = TARGETS[given.target]
    start = time.perf_counter()
    run = in_torch if given.half == "torch" else in_jax
    energy, log_weight, annealed = run(target, given.iterations or target["iterations"])
    print(f"{given.target} in {given.half}, {time.perf_counter() - start:.0f} s")
    print(f"effective sample size {effective_sample_size(log_weight) / NUM_SAMPLES:.3f} of a draw")
    for name, weights in (("the flow", log_weight), ("annealing", annealed)):
        estimate = log_evidence(weights)
        print(f"log Z from {name}: {estimate.value:.3f} +- {estimate.standard_error:.3f}")
    print(f"log Z: {energy.log_normalizer:.3f}")


if __name__ == "__main__":
    main()
