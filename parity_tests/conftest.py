"""Settings of the whole suite: float64 in JAX, one thread per worker, quick compilation."""

import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import pytest
import torch
from jax._src import compiler

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)


def _known(option: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True


QUICK = {
    option: value
    for option, value in {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,  # gone in newer versions
    }.items()
    if _known(option, value)
}
"""What XLA leaves out so that it compiles in a fifth of the time: the same operations on the same
numbers, in slower machine code. What is marked ``optimized`` is compiled as users compile."""

_get_compile_options = compiler.get_compile_options
_quick = True


def _quick_compile_options(*args: Any, env_options_overrides: Any = None, **options: Any) -> Any:
    if _quick:
        env_options_overrides = QUICK | (env_options_overrides or {})
    return _get_compile_options(*args, env_options_overrides=env_options_overrides, **options)


compiler.get_compile_options = _quick_compile_options


@pytest.fixture(autouse=True)
def quick_jax(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile by ``QUICK``, unless the test is marked ``optimized``."""
    global _quick
    _quick = request.node.get_closest_marker("optimized") is None
    yield
    _quick = True
