"""A posterior trained by sbi, imported: sampled by NUTS in JAX, and written as ONNX.

The posterior of one observation is trained once; that of several is then proportional to the product of
theirs over the prior to one power less, which no flow samples and NUTS does; with many observations the
product takes a flow whose tails are right, too. The model is linear and normal, so that the exact answer
stands beside it. Needs ``pip install 'twinflows[all,deploy,sbi]'
numpyro``. Run it with ``python examples/imported_posterior.py``; it writes to
``outputs/imported_posterior``.
"""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import torch
from jax import Array
from numpyro.infer import MCMC, NUTS
from sbi.inference import NPE
from torch.distributions import Independent, Normal

import jax_flows
import torch_flows

OUTPUT = Path("outputs/imported_posterior")
DIM, NOISE = 3, 0.8
MIXING = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5], [0.5, 0.0, 1.0]])


def trained(num_simulations: int, max_num_epochs: int) -> Any:
    """sbi's posterior of theta ~ N(0, 1) given x = M theta + noise."""
    prior = Independent(Normal(torch.zeros(DIM), torch.ones(DIM)), 1)
    theta = prior.sample((num_simulations,))
    x = theta @ MIXING.T + NOISE * torch.randn(num_simulations, DIM)
    trainer = NPE(prior, density_estimator="maf", show_progress_bars=False)
    trainer.append_simulations(theta, x).train(max_num_epochs=max_num_epochs)
    return trainer.build_posterior()


def exact(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the exact posterior of all observations."""
    mixing = MIXING.double().numpy()
    precision = np.eye(DIM) + len(observations) * mixing.T @ mixing / NOISE**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ mixing.T @ observations.sum(0) / NOISE**2
    return mean, np.sqrt(np.diag(covariance))


def nuts(log_density: Any, num_samples: int) -> np.ndarray:
    """Samples of a log-density that needs no normaliser."""
    sampler = MCMC(
        NUTS(potential_fn=lambda theta: -log_density(theta)),
        num_warmup=500,
        num_samples=num_samples,
        progress_bar=False,
    )
    sampler.run(jax.random.key(0), init_params=jnp.zeros(DIM))
    return np.asarray(sampler.get_samples())


def main(
    num_simulations: int = 10_000,
    max_num_epochs: int = 100,
    num_observations: int = 2,
    num_samples: int = 2000,
) -> dict[str, float]:
    """Train, import, sample, export; the distance of the means in deviations, and that of the export."""
    torch.manual_seed(0)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    posterior = trained(num_simulations, max_num_epochs)

    flow = torch_flows.import_flow(posterior.posterior_estimator)
    torch_flows.save(flow, OUTPUT / "posterior.safetensors")
    twin, variables = jax_flows.load(OUTPUT / "posterior.safetensors")
    observations = torch.randn(DIM) @ MIXING.T + NOISE * torch.randn(num_observations, DIM)
    x = jnp.asarray(observations.numpy())

    def log_density(theta: Array) -> Array:
        """log of the product of q(theta | x_i) over p(theta)^(n - 1)."""
        theta = theta.astype(x.dtype)
        each = twin.log_prob(variables, jnp.broadcast_to(theta, x.shape), x)
        return each.sum() + (num_observations - 1) * jnp.square(theta).sum() / 2

    start = time.perf_counter()
    samples = nuts(log_density, num_samples)
    print(f"NUTS: {num_samples} samples in {time.perf_counter() - start:.1f} s, compiling included")
    mean, deviation = exact(observations.double().numpy())
    for i in range(DIM):
        print(
            f"theta_{i}: NUTS {samples[:, i].mean():+.3f} +- {samples[:, i].std():.3f}, "
            f"exact {mean[i]:+.3f} +- {deviation[i]:.3f}"
        )

    torch_flows.export(flow, OUTPUT / "posterior.onnx")
    session = onnxruntime.InferenceSession(OUTPUT / "posterior.onnx")
    theta = torch.randn(64, DIM)
    context = observations[:1].repeat(64, 1)
    (found,) = session.run(None, {"x": theta.numpy(), "context": context.numpy()})
    expected = posterior.log_prob(theta, observations[:1], norm_posterior=False).numpy()
    apart = float(abs(found - expected).max())
    size = (OUTPUT / "posterior.onnx").stat().st_size / 1000
    print(f"ONNX: {size:.0f} kB, log_prob within {apart:.1e} of sbi's own")
    return {"mean": float(abs((samples.mean(0) - mean) / deviation).max()), "onnx": apart}


if __name__ == "__main__":
    main()
