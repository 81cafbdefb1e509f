"""Data that do not fit in memory, several devices, several processes: the trajectory stays the same."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jax_flows
import torch_flows
from flow_bridge import sources
from flow_bridge.sources import row_batches
from flow_bridge.training_state import PROBED_STEPS
from flow_bridge.weights import jax_to_torch
from parity_tests.catalogue import Case, arch, flow
from parity_tests.test_training import HALVES, data, distance, fit_half
from twinflows.parity.limits import TRAJECTORY

# No weight in front of BatchNorm is one that it takes out again: Adam would blow up its rounding errors.
NORMED = Case("normed", flow(arch("Chain", bijectors=[
    arch("Affine", dim=2), arch("Tanh"), arch("BatchNorm", dim=2),
    arch("AffineCoupling", dim=2, hidden_dims=[4], activation="tanh"),
]), arch("StandardNormal", dim=2)))  # fmt: skip
PLAIN = Case("plain", flow(arch("Chain", bijectors=[
    arch("Affine", dim=2), arch("Tanh"), arch("BatchNorm", dim=2),
]), arch("StandardNormal", dim=2)))  # fmt: skip
CONDITIONAL = Case("conditional", flow(
    arch("AffineCoupling", dim=2, hidden_dims=[4], context_dim=1), arch("StandardNormal", dim=2),
))  # fmt: skip
OPTIONS: dict[str, Any] = {"num_epochs": 3, "learning_rate": 1e-2, "max_grad_norm": 1.0}


def pairs(rows: int) -> tuple[np.ndarray, np.ndarray]:
    context = np.random.default_rng(0).standard_normal((rows, 1))
    return data(rows) + context, context


def assert_same(result: Any, expected: Any) -> None:
    """The same weights, and the same losses at every step, up to rounding."""
    (weights, history), (reference, straight) = result, expected
    assert distance(weights, reference) < TRAJECTORY
    np.testing.assert_allclose(history.step_losses, straight.step_losses, rtol=TRAJECTORY)
    np.testing.assert_allclose(history.validation_loss, straight.validation_loss, rtol=1e-11)


@HALVES
def test_iterables_and_memory_maps_train_as_arrays_do(
    half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same batches from an array, a memory map in small reads, lists and functions of the epoch."""
    x, context = pairs(90)
    options = OPTIONS | {"num_epochs": 2, "validation": 0}
    expected = fit_half(half, CONDITIONAL, x, context=context, **options)
    batches = row_batches(90, 32, seed=0)

    def of_epoch(epoch: int) -> Iterator[Any]:
        yield from ((x[rows], context[rows]) for rows in batches(epoch))

    assert_same(fit_half(half, CONDITIONAL, of_epoch, **options), expected)
    reads = []
    take = sources.HostRows.take
    monkeypatch.setattr(sources, "MAX_BYTES_PER_CALL", 1)
    monkeypatch.setattr(
        sources.HostRows, "take", lambda s, rows: reads.append(rows.shape) or take(s, rows)
    )
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert_same(fit_half(half, CONDITIONAL, mapped, context=context, **options), expected)
    assert reads == 4 * [(1, 32)]


@HALVES
def test_a_data_loader_is_an_iterable(half: str) -> None:
    """With a short last batch, and validation data from another one."""
    x, context = pairs(90)
    tensors = [torch.from_numpy(array) for array in (x, context)]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), 32)
    batches = [(x[i : i + 32], context[i : i + 32]) for i in range(0, 90, 32)]
    options = OPTIONS | {"num_epochs": 2}
    result = fit_half(half, CONDITIONAL, loader, validation=loader, **options)
    given = {"validation": x, "validation_context": context}
    assert_same(result, fit_half(half, CONDITIONAL, batches, **given, **options))
    assert len(result[1].step_losses) == 6


@HALVES
@pytest.mark.parametrize(("source", "options", "message"), [
    (lambda x: iter([x]), {}, "fit needs 2 passes over data, and a list_iterator has one: give an "
     "iterable that starts anew each time, or a function from the epoch to one."),
    (lambda x: [x], {"validation": 0.1}, "fit cannot hold out a fraction of an iterable: give "
     "validation data, or validation=0."),
    (lambda x: [x], {"context": np.zeros((4, 1))},
     "fit takes the context of data from batches that are pairs of both."),
    (lambda x: 5, {}, "fit expects data as an array, an iterable of batches or a function from the "
     "epoch to one, got int."),
    (lambda x: [x, x * np.array([np.nan, 1])], {},
     "fit got a NaN or an infinity in row 0 of batch 1 of data."),
    (lambda x: [x, x[:, :1]], {},
     "Flow expects batch 1 of data of shape (*batch, 2), got (4, 1)."),
    (lambda x: [x[0]], {}, "fit expects batch 0 of data with one axis of rows, got shape (2,)."),
    (lambda x: [x.astype(np.float32)], {},
     "Flow has float64 weights but batch 0 of data is float32; convert one of the two, "
     'as with .astype("float64").'),
    (lambda x: [(x, x, x)], {}, "fit expects batch 0 of data as an array or as a pair of x and the "
     "weights of its rows, got ndarray, ndarray, ndarray."),
    (lambda x: [], {}, "fit got no batches of data in epoch 0."),
    (lambda x: [x], {"state_every": 0},
     "fit expects state_every to be an integer of at least 1, got 0."),
])  # fmt: skip
def test_what_is_no_data(
    half: str, source: Callable[[Any], Any], options: dict[str, Any], message: str
) -> None:
    """The same sentence in both halves."""
    options = {"num_epochs": 2, "validation": 0} | options
    with pytest.raises((ValueError, TypeError)) as info:
        fit_half(half, NORMED, source(data(4)), **options)
    assert str(info.value) == message


@HALVES
def test_a_memory_map_is_checked_where_it_is_read(half: str, tmp_path: Path) -> None:
    x = data(20)
    x[7, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with pytest.raises(ValueError, match="a NaN or an infinity in row 7 of data"):
        fit_half(half, NORMED, mapped, num_epochs=1)
    with pytest.raises(ValueError, match=r"Flow expects data of shape \(\*batch, 2\), got"):
        fit_half(half, NORMED, np.load(tmp_path / "x.npy", mmap_mode="r").reshape(10, 4))


@HALVES
@pytest.mark.parametrize("kind", ["array", "iterable"])
def test_interrupted_within_an_epoch(half: str, kind: str, tmp_path: Path) -> None:
    """Stopped in step 8, with epochs of 5 and a state every 2 steps: it goes on from step 7."""
    x, steps = data(160), []
    batches = row_batches(160, 32, seed=0)
    source = x if kind == "array" else lambda epoch: (x[rows] for rows in batches(epoch))
    options = {"num_epochs": 3, "validation": 0 if kind == "iterable" else x[:10]}

    def stop(step: int) -> float:
        steps.append(step)
        if step == 8:
            raise KeyboardInterrupt
        return 1e-2

    state = {"state_path": tmp_path / "state", "state_every": 2}
    with pytest.raises(KeyboardInterrupt):
        fit_half(half, PLAIN, source, learning_rate=stop, **state, **options)
    del steps[:]

    def go_on(step: int) -> float:
        steps.append(step)
        return 1e-2

    result = fit_half(half, PLAIN, source, learning_rate=go_on, **state, **options)
    assert steps[len(PROBED_STEPS) :] == list(range(7, 15))
    assert_same(result, fit_half(half, PLAIN, source, learning_rate=1e-2, **options))


# Jobs in processes of their own. Each reads a model and data from a folder and writes weights there.

JAX_JOB = """
import os, sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
folder, rank, count, port = sys.argv[1], *map(int, sys.argv[2:])
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
import jax_flows
from jax.sharding import Mesh
flow, variables = jax_flows.load(folder + "/model")
x = np.load(folder + "/x.npy")
mesh = Mesh(np.array(jax.devices()), ("data",))
def fit(data=x, **options):
    options = dict(%r, progress=False, batch_size=32) | options
    return jax_flows.fit(flow, variables, data, **{"mesh": mesh, **options})
def done(name, result):
    if rank == 0:
        np.save(f"{folder}/{name}.npy", result[1].step_losses)
        jax_flows.save(flow, result[0], f"{folder}/{name}")
"""
TORCH_JOB = """
import os, sys
import numpy as np, torch
import torch.distributed as dist
import torch_flows
folder, rank = sys.argv[1], int(os.environ["RANK"])
torch.set_num_threads(1)
dist.init_process_group("gloo")
x = np.load(folder + "/x.npy")
def fit(data=x, model="model", flow=None, **options):
    flow = flow or torch_flows.load(f"{folder}/{model}")
    options = dict(%r, progress=False, batch_size=32) | options
    return flow, torch_flows.fit(flow, data, **options)
def done(name, result):
    if rank == 0:
        np.save(f"{folder}/{name}.npy", result[1].step_losses)
        torch_flows.save(result[0], f"{folder}/{name}")
"""


def run(commands: list[list[str]], timeout: float = 120, **environment: str) -> list[str]:
    """Run commands side by side; what each printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    jobs = [
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        printed = [job.communicate(timeout=timeout)[0] for job in jobs]
    finally:
        for job in jobs:
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
    for job, text in zip(jobs, printed, strict=True):
        assert job.returncode == 0, text
    return printed


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def prepare(case: Case, folder: Path) -> np.ndarray:
    torch_flows.save(case.torch_model(), folder / "model")
    x = data(144)
    np.save(folder / "x.npy", x)
    return x


def outcome(folder: Path, name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    _, variables = jax_flows.load(folder / name)
    return jax_to_torch(variables), np.load(folder / f"{name}.npy")


def assert_reached(folder: Path, name: str, expected: Any) -> None:
    weights, losses = outcome(folder, name)
    assert distance(weights, expected[0]) < TRAJECTORY
    np.testing.assert_allclose(losses, expected[1].step_losses, rtol=TRAJECTORY)


TORCH_END = """
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # PyTorch's own threads may abort the interpreter's end
"""


def torchrun(folder: Path, job: str, *options: str, timeout: float = 120) -> str:
    """Run a job in 2 ranks on this machine, at a port that the launcher picks."""
    (folder / "job.py").write_text(TORCH_JOB % (OPTIONS,) + job + TORCH_END)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--monitor-interval=0.1"]
    command = [*launcher, *rendezvous, *options, str(folder / "job.py"), str(folder)]
    # With the launcher's own store, ranks that start again find the addresses of the dead ones.
    return run([command], timeout, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")[0]


def jax_job(folder: Path, job: str, count: int = 1, devices: int = 1) -> list[str]:
    """Run a job in ``count`` processes with virtual CPU devices."""
    (folder / "job.py").write_text(JAX_JOB % (OPTIONS,) + job)
    port = str(free_port())
    command = [sys.executable, str(folder / "job.py"), str(folder)]
    flags = "--xla_cpu_multi_thread_eigen=false"
    return run(
        [[*command, str(rank), str(count), port] for rank in range(count)],
        XLA_FLAGS=f"{flags} --xla_force_host_platform_device_count={devices}",
    )


def test_jax_on_eight_devices(tmp_path: Path) -> None:
    """Batch statistics, clipping and 14 validation rows on 8 devices, and on 4 of a mesh with 2 axes."""
    x = prepare(NORMED, tmp_path)
    (printed,) = jax_job(tmp_path, """
done("eight", fit())
done("two_axes", fit(mesh=jax.make_mesh((2, 4), ("model", "data"))))
try:
    fit(batch_size=30)
except ValueError as error:
    print(error)
""", devices=8)  # fmt: skip
    expected = fit_half("jax", NORMED, x, **OPTIONS)
    assert_reached(tmp_path, "eight", expected)
    assert_reached(tmp_path, "two_axes", expected)
    assert "fit on 8 devices expects batches of a multiple of 8 rows, got 30." in printed


JAX_PROCESSES = """
from pathlib import Path
state = Path(folder, f"state{rank}")
done("processes", fit(state_path=state))
assert state.exists() == (rank == 0)
def parts(epoch):
    rows = np.load(folder + "/rows.npy")[epoch]
    return (x[row[16 * rank:][:16]] for row in rows)
done("parts", fit(parts, validation=0))
try:
    fit(lambda epoch: [x[:16]] * (2 + rank), validation=0)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_jax_in_two_processes(tmp_path: Path) -> None:
    """An array that both have, and batches of which each brings a part; one process writes."""
    x = prepare(NORMED, tmp_path)
    np.save(tmp_path / "rows.npy", [row_batches(128, 32, seed=0)(epoch) for epoch in range(3)])
    printed = jax_job(tmp_path, JAX_PROCESSES, count=2)
    assert_reached(tmp_path, "processes", fit_half("jax", NORMED, x, **OPTIONS))
    assert_reached(tmp_path, "parts", fit_half("jax", NORMED, x[:128], **OPTIONS, validation=0))
    for text in printed:
        assert "fit trains in 2 processes, and one of them has another number of batches" in text


TORCH_PROCESSES = """
from pathlib import Path
torch.manual_seed(rank)
state = Path(folder, f"state{rank}")
done("processes", fit(state_path=state))
assert state.exists() == (rank == 0)
def parts(epoch):
    rows = np.load(folder + "/rows.npy")[epoch]
    return (x[row[16 * rank:][:16]] for row in rows)
done("parts", fit(parts, validation=0))
done("noise", fit(model="noisy", num_epochs=1))
from torch.distributed.fsdp import fully_shard
fit(num_epochs=1, state_path=folder + "/sharded_state")
for epochs in (2, 3):
    sharded = torch_flows.load(folder + "/model")
    for module in sharded.modules():
        if isinstance(module, torch_flows.MLP):
            fully_shard(module)
    result = fit(flow=sharded, num_epochs=epochs, state_path=folder + "/sharded_state")
    sizes = [p.to_local().numel() / p.numel() for p in sharded.parameters() if hasattr(p, "to_local")]
    assert len(sizes) > 4 and max(sizes) < 0.7
torch_flows.save(sharded, f"{folder}/sharded{rank}")
np.save(f"{folder}/sharded{rank}.npy", result[1].step_losses)
norm = torch_flows.ActNorm(2).double()
norm.initialize(torch.from_numpy(x[rank::2]))
if rank == 0:
    torch_flows.save(norm, folder + "/norm")
for data, options in ((x, {"batch_size": 31}), (lambda epoch: [x[:16]] * (2 + rank), {})):
    try:
        fit(data, validation=0, **options)
    except ValueError as error:
        print(error)
"""


SHARDED_BLOCKS = """
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch_flows.networks.attention import AttentionBlock
flow = torch_flows.load(folder + "/model")
for module in flow.modules():
    if isinstance(module, AttentionBlock):
        fully_shard(module)
        for name in ("step", "memory"):
            register_fsdp_forward_method(module, name)
result = fit(flow=flow)
sizes = [p.to_local().numel() / p.numel() for p in flow.parameters() if hasattr(p, "to_local")]
assert len(sizes) > 40 and max(sizes) < 0.7
with torch.no_grad():
    z = flow.forward(torch.from_numpy(x))[0]
    torch.testing.assert_close(flow.inverse(z)[0].numpy(), x, rtol=0, atol=1e-12)
torch_flows.save(flow, f"{folder}/blocks{rank}")
np.save(f"{folder}/blocks{rank}.npy", result[1].step_losses)
"""


@pytest.mark.slow
def test_blocks_of_transformers_in_parts(tmp_path: Path) -> None:
    """By ``fully_shard`` in two ranks: training, and the inverse; in JAX by where the kernels lie."""
    tokens = arch("TarFlow", shape=2, num_layers=2, hidden_dim=4, num_heads=2, num_blocks=2)
    case = Case("tokens", tokens | {"checkpointing": True})
    x = prepare(case, tmp_path)
    torchrun(tmp_path, SHARDED_BLOCKS)
    assert_reached(tmp_path, "blocks0", fit_half("torch", case, x, **OPTIONS))
    jax_job(tmp_path, """
from jax.sharding import Mesh, NamedSharding, PartitionSpec
flow, variables = jax_flows.load(folder + "/model")
mesh = Mesh(np.array(jax.devices()), ("data",))  # the compiler places the rest
def place(array):
    axes = [None] * (array.ndim - 1) + ["data"] if array.ndim > 1 and array.shape[-1] % 2 == 0 else []
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))
parts = jax.tree.map(place, variables)
loss = jax.jit(jax.grad(lambda variables: flow.log_prob(variables, x).mean()))
for a, b in zip(jax.tree.leaves(loss(variables)), jax.tree.leaves(loss(parts)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
z = flow.forward(variables, x)[0]
np.testing.assert_allclose(jax.jit(flow.inverse)(parts, z)[0], x, rtol=0, atol=1e-12)
""", devices=2)  # fmt: skip


def test_torch_in_two_ranks(tmp_path: Path) -> None:
    """Batch statistics, clipping, noise, parts of batches, sharded weights, ActNorm, and who writes."""
    noisy = Case("noisy", flow(
        arch("ContinuousBijector", dim=2, hidden_dims=[4], trace="hutchinson", solver="rk4", num_steps=2),
        arch("StandardNormal", dim=2),
    ))  # fmt: skip
    x = prepare(NORMED, tmp_path)
    torch_flows.save(noisy.torch_model(), tmp_path / "noisy")
    np.save(tmp_path / "rows.npy", [row_batches(128, 32, seed=0)(epoch) for epoch in range(3)])
    printed = torchrun(tmp_path, TORCH_PROCESSES)
    assert_reached(tmp_path, "processes", fit_half("torch", NORMED, x, **OPTIONS))
    assert_reached(tmp_path, "parts", fit_half("torch", NORMED, x[:128], **OPTIONS, validation=0))
    assert_reached(tmp_path, "noise", fit_half("torch", noisy, x, **OPTIONS | {"num_epochs": 1}))
    assert_reached(tmp_path, "sharded0", fit_half("torch", NORMED, x, **OPTIONS))
    norm = torch_flows.ActNorm(2).double()
    norm.initialize(torch.from_numpy(x))
    loaded = torch_flows.load(tmp_path / "norm").state_dict()
    for name, array in norm.state_dict().items():
        torch.testing.assert_close(loaded[name], array, rtol=1e-14, atol=1e-15)
    assert "fit on 2 devices expects batches of a multiple of 2 rows, got 31." in printed
    assert "fit trains in 2 processes, and one of them has another number of batches" in printed


# Rank 1, or the only process, kills itself at step 11 of 12 the first time that it gets there.
KILLED = """
import signal
def rate(step):
    if step == 11 and rank == %d and not os.path.exists(folder + "/killed"):
        open(folder + "/killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    with open(f"{folder}/steps{rank}", "a") as file:
        file.write(f"{step}\\n")
    return 1e-2
done("killed", fit(learning_rate=rate, state_path=folder + "/state", state_every=2))
"""


@pytest.mark.slow
def test_torch_with_a_killed_rank(tmp_path: Path) -> None:
    """torchrun starts both ranks again, and only the steps since the last state are done twice."""
    x = prepare(PLAIN, tmp_path)
    torchrun(tmp_path, KILLED % 1, "--max-restarts=1")
    assert_reached(tmp_path, "killed", fit_half("torch", PLAIN, x, **OPTIONS))
    steps = [int(line) for line in (tmp_path / "steps1").read_text().split()]
    assert steps == [*PROBED_STEPS, *range(11), *PROBED_STEPS, 10, 11]


@pytest.mark.slow
def test_jax_with_a_killed_process(tmp_path: Path) -> None:
    """Started again, it goes on."""
    x = prepare(PLAIN, tmp_path)
    with pytest.raises(AssertionError):
        jax_job(tmp_path, KILLED % 0)
    assert (tmp_path / "killed").exists()
    jax_job(tmp_path, KILLED % 0)
    assert_reached(tmp_path, "killed", fit_half("jax", PLAIN, x, **OPTIONS))
    steps = [int(line) for line in (tmp_path / "steps0").read_text().split()]
    assert steps == [*PROBED_STEPS, *range(11), *PROBED_STEPS, 10, 11]
