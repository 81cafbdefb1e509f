"""Settings of the whole suite: float64 in JAX, one thread per worker."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import pytest
import torch

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)


@pytest.fixture
def quick_jax() -> Iterator[None]:
    """Compile without optimisation, in half the time: for tests that do not count eps."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
