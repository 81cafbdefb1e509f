"""Settings of the whole suite: float64 in JAX, one thread per worker."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import torch

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)
