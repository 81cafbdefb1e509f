"""Settings of the whole suite: float64 in JAX, one thread per worker, quick compilation."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # workers inherit it: what one has compiled the others load
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="twinflows-xla-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
import torch
from jax._src import compiler
from jax._src.interpreters import mlir

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
torch.set_num_threads(1)

_context = mlir.make_ir_context()
# registering all dialects anew takes a third of the time of a small program
mlir.make_ir_context = lambda: _context


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
        "xla_cpu_parallel_codegen_split_count": 1,  # of 32 parts each has what they share
    }.items()
    if _known(option, value)
}
"""What XLA leaves out so that it compiles in a small part of the time: the same operations on the same
numbers, in slower machine code. What is marked ``optimized`` is compiled as users compile."""

_get_compile_options = compiler.get_compile_options
_quick = True


def _quick_compile_options(*args: Any, env_options_overrides: Any = None, **options: Any) -> Any:
    if _quick:
        env_options_overrides = QUICK | (env_options_overrides or {})
    return _get_compile_options(*args, env_options_overrides=env_options_overrides, **options)


compiler.get_compile_options = _quick_compile_options


def pytest_collection_finish() -> None:
    """What is there by now stays: looking for garbage in it takes a twentieth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--dist loadgroup`` the tests of a row share what one process has traced for it."""
    for item in items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        if hasattr(case, "architecture"):
            item.add_marker(pytest.mark.xdist_group(case.name))


@pytest.fixture(autouse=True)
def same_weights_in_any_order() -> None:
    """What PyTorch draws in a test does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def quick_jax(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile by ``QUICK``, unless the test is marked ``optimized``."""
    global _quick
    _quick = request.node.get_closest_marker("optimized") is None
    yield
    _quick = True
