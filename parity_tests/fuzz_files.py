"""Mutated files through both loaders: each is refused with ``CheckpointError``, or means what it says.

    python -m parity_tests.fuzz_files --seconds 60 --seed 0

Files of good models and of training states are changed: bits, lengths, the header, names, shapes and dtypes
of tensors, and values, keys and nesting of the architecture, with the hash made right again where it would
hide what comes after it. Both halves must come to the same verdict within 2 seconds and 200 MiB, and what
they accept must hold the bytes and arguments that the file states. All of it happens in memory.
"""

import argparse
import copy
import gc
import inspect
import io
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import torch

import jax_flows
import torch_flows
from flow_bridge import architecture, jax_to_torch
from flow_bridge.checkpoint import STATE, read_arrays
from flow_bridge.errors import CheckpointError
from flow_bridge.training_state import Group, load_state, weight_groups
from parity_tests.files import packed
from parity_tests.golden.make_files import MODELS
from torch_flows.checkpoint import to_numpy
from torch_flows.models.base import Model

MAX_SECONDS, MAX_MIB = 2.0, 200.0
MAX_BYTES = 1 << 20
PROGRESS = 50_000

Description = dict[str, Any]
Arrays = dict[str, np.ndarray]

MORE: list[Description] = json.loads(Path(__file__).with_name("mutated.json").read_text())
"""What ``golden/files_v1`` lacks: with it, every type of the library is in one of the files."""
NUMBERS: list[Any] = [
    0, 1, 2, 3, 7, -1, 64, 999, 1000, 2**20, 2**31, 2**53, 2**63, 10**30, 0.5, 1.0, 1e-300, 1e300, -0.0,
]  # fmt: skip
WORDS = [
    "",
    "even",
    "reverse",
    "random:3",
    "tanh",
    "series",
    "dopri5",
    "__import__",
    "x" * 300,
    "\ud800",
]


@dataclass
class Good:
    """A file to be changed, and what it holds."""

    data: bytes
    kind: str
    description: Description
    arrays: Arrays


@dataclass
class Found:
    """What a number of files came to."""

    files: int = 0
    accepted: int = 0
    slowest: float = 0.0
    largest: float = 0.0
    mutations: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Found") -> None:
        """Take another's files in."""
        self.files += other.files
        self.accepted += other.accepted
        self.slowest = max(self.slowest, other.slowest)
        self.largest = max(self.largest, other.largest)
        self.mutations += other.mutations
        self.failures += other.failures


def good_files() -> list[Good]:
    """One file for each model, and the state of a run of each half."""
    files = []
    for i, described in enumerate([*MODELS.values(), *MORE]):
        torch.manual_seed(i)
        torch_flows.save(torch_flows.build(described).eval(), file := io.BytesIO())
        files.append(file.getvalue())
    options: dict[str, Any] = {"num_epochs": 1, "batch_size": 8, "progress": False}
    x = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        flow = torch_flows.Flow(torch_flows.Planar(2), torch_flows.StandardNormal(2))
        torch_flows.fit(flow, x, state_path=path, **options)
        files.append(path.read_bytes())
        path.unlink()
        twin = jax_flows.Flow(jax_flows.Planar(2), jax_flows.StandardNormal(2))
        jax_flows.fit(twin, twin.init(jax.random.key(0), "float32"), x, state_path=path, **options)
        files.append(path.read_bytes())
    return [Good(data, *unpacked(data)) for data in files]


def unpacked(data: bytes) -> tuple[str, Description, Arrays]:
    """What a file says, read by another library."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    description = json.loads(metadata["twinflows.description"])
    return metadata["twinflows.kind"], description, dict(safetensors.numpy.load(data))


# What is done to a file. Those of the first list are refused before anything is built.


def flip(rng: random.Random, good: Good) -> bytes:
    data = bytearray(good.data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(rng: random.Random, good: Good) -> bytes:
    data = good.data
    i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    kept = [data[:i], data[i:], data[:i] + data[j:], data[:j] + data[i:], data + data[i:j]]
    return rng.choice(kept)


def lengths(rng: random.Random, good: Good) -> bytes:
    length = rng.choice([0, 1, rng.randrange(len(good.data)), 2 ** rng.randrange(64) - 1])
    return length.to_bytes(8, "little") + good.data[8:]


def header(rng: random.Random, good: Good) -> bytes:
    """Change what the header says of a tensor, or a piece of metadata; the hash stays."""
    length = int.from_bytes(good.data[:8], "little")
    fields, body = json.loads(good.data[8 : 8 + length]), good.data[8 + length :]
    name = rng.choice(list(fields))
    entry = fields[name]
    key = rng.choice(list(entry))
    if rng.random() < 0.3:
        fields[rng.choice([name + ".x", "", "../x", "a b", name.upper()])] = fields.pop(name)
    elif key == "data_offsets":
        entry[key] = rng.choice(
            [[0, 0], [0, len(body)], entry[key][::-1], [-4, 4], [1e3, 2], "x", None]
        )
    elif key == "shape":
        entry[key] = rng.choice(
            [[*entry[key], 1], entry[key][::-1], [2**62, 4], [-1], [True], [0.5], {}]
        )
    elif key == "dtype":
        entry[key] = rng.choice(
            ["F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "C64", "", 3]
        )
    elif rng.random() < 0.5:
        entry[key] = _other(rng, entry[key])
    else:
        del entry[key]
    raw = json.dumps(fields).encode()
    if rng.random() < 0.1:  # one name twice
        raw = raw[:-1] + b"," + json.dumps({name: entry}).encode()[1:]
    return len(raw).to_bytes(8, "little") + raw + body


def tensors(rng: random.Random, good: Good) -> bytes:
    """Change the tensors themselves, and make the hash right again."""
    arrays = dict(good.arrays)
    if not arrays:
        arrays["w"] = np.zeros(rng.choice([0, 1, 3]), np.float32)
        return packed(good.description, arrays, good.kind)
    name = rng.choice(list(arrays))
    array = arrays[name]
    change = rng.randrange(8)
    if change == 0:
        del arrays[name]
    elif change == 1:
        arrays[rng.choice([f"{name}.x", "w", f"bijector.{name}", "optimizer.p99"])] = arrays.pop(
            name
        )
    elif change == 2:
        arrays[rng.choice([f"{name}_2", "base.w", "optimizer.p99"])] = array
    elif change == 3:
        arrays[name] = array[None] if rng.random() < 0.5 else array.ravel()
    elif change == 4:
        arrays[name] = np.ascontiguousarray(array.T)
    elif change == 5:
        with np.errstate(all="ignore"):
            arrays[name] = array.astype(
                rng.choice(["float64", "float16", "int64", "bool", "uint8"])
            )
    elif change == 6:
        arrays[name] = np.full_like(
            array, rng.choice([0, 1]) if array.dtype.kind in "iub" else np.nan
        )
    else:
        arrays[name] = np.zeros(rng.choice([0, 1, 5, 1000]), array.dtype)
    return packed(good.description, arrays, good.kind)


def arguments(rng: random.Random, good: Good) -> bytes:
    """Change the description, and make the hash right again."""
    description = copy.deepcopy(good.description)
    for _ in range(rng.choice([1, 1, 1, 2])):
        _change(rng, description)
    return packed(description, good.arrays, good.kind)


def asks(rng: random.Random, good: Good) -> bytes:
    """Ask for much: repeated layers, huge sizes, deep nesting, long lists."""
    description = copy.deepcopy(good.description)
    flow = description["settings"]["architecture"] if good.kind == STATE else description
    change = rng.randrange(4)
    if change == 0:
        part = flow.get("bijector", {"type": "Tanh"})
        part = part if isinstance(part, dict) else {"type": "Tanh"}
        count = rng.choice([2, 100, 1000, 20_000]) if len(json.dumps(part)) < 50 else 100
        flow["bijector"] = {"type": "Chain", "bijectors": [part] * count}
    elif change == 1:
        inner = flow.get("bijector", {"type": "Tanh"})
        for _ in range(rng.choice([3, 30, 120, 400])):
            inner = {"type": rng.choice(["Invert", "Split"]), "bijector": inner}
        flow["bijector"] = inner
    elif change == 2:
        length = rng.choice([10, 1000, 100_000])
        name = rng.choice(["mask", "order", "permutation", "hidden_dims", "dim", "shape"])
        flow[name] = rng.choice([list(range(length)), [0, 1] * (length // 2), [1] * length])
        flow["dim"] = rng.choice([length, flow.get("dim", 2)])
    else:
        for owner, key in _places(flow):
            if type(owner[key]) is int:
                owner[key] = rng.choice([2**20, 2**16, 2**40, owner[key], owner[key]])
    try:
        data = packed(description, good.arrays, good.kind)
    except RecursionError:
        return good.data[:-1]
    return data if len(data) < MAX_BYTES else good.data[:-1]


QUICK: list[Callable[[random.Random, Good], bytes]] = [flip, cut, lengths, header]
DEEP: list[Callable[[random.Random, Good], bytes]] = [tensors, arguments, asks]
SHARES = {"quick": 0.75, "asks": 0.02}


def mutate(rng: random.Random, good: Good) -> tuple[str, bytes]:
    """A changed file, and how it was changed."""
    draw = rng.random()
    if draw < SHARES["quick"]:
        change = rng.choice(QUICK)
    else:
        change = asks if draw > 1 - SHARES["asks"] else rng.choice(DEEP[:2])
    return change.__name__, change(rng, good)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in plain data."""
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else []
    )
    found = [(value, key) for key in keys]
    for key in keys:
        found += _places(value[key])
    return found


def _change(rng: random.Random, description: Description) -> None:
    places = _places(description)
    if not places:
        description["type"] = "Tanh"
        return
    owner, key = rng.choice(places)
    change = rng.random()
    if change < 0.1 and isinstance(owner, dict):
        owner[rng.choice([f"_{key}", f"{key}s", "dim", "type"])] = owner.pop(key)
    elif change < 0.2 and isinstance(owner, dict):
        del owner[key]
    elif change < 0.25 and isinstance(owner, dict):
        owner[rng.choice(["extra", "hidden_dims", "context_dim", "activation"])] = _value(rng)
    elif change < 0.35 and isinstance(owner, list):
        owner.insert(key, copy.deepcopy(owner[key]))
    elif change < 0.45:
        other, other_key = rng.choice(places)
        owner[key] = copy.deepcopy(other[other_key])
    elif isinstance(owner, dict) and key == "type" and rng.random() < 0.7:
        owner[key] = rng.choice(sorted(torch_flows.registry.registry.types))
    else:
        owner[key] = _other(rng, owner[key])


def _other(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice([not value, int(value)])
    if isinstance(value, int | float) and rng.random() < 0.5:
        return rng.choice([value + 1, value - 1, 2 * value, -value, value / 2])
    return _value(rng)


def _value(rng: random.Random) -> Any:
    return rng.choice(
        [
            rng.choice(NUMBERS),
            rng.choice(NUMBERS),
            rng.choice(WORDS),
            rng.choice([True, False, None]),
            [rng.choice(NUMBERS[:5]) for _ in range(rng.choice([0, 1, 3]))],
            [[1], [[2]]],
            {},
            {"type": "Tanh"},
            {"type": "Affine", "dim": 2},
        ]
    )


# What comes of it.


def check(data: bytes, good: Good) -> tuple[bool, float]:
    """Whether a file is accepted by both halves, and the seconds of the slower one.

    Raises:
        AssertionError: with what is wrong.
    """
    verdicts, slowest = [], 0.0
    loaders: list[Callable[[], tuple[Any, Mapping[str, np.ndarray]]]] = [
        lambda: _torch(data),
        lambda: _jax(data),
    ]
    if good.kind == STATE:
        loaders.append(lambda: _state(data, good))
    for load in loaders:
        start, memory = time.process_time(), _memory()
        try:
            loaded: Any = load()
        except CheckpointError as error:
            loaded = error
        seconds, mib = time.process_time() - start, _memory() - memory
        slowest = max(slowest, seconds)
        assert seconds < MAX_SECONDS, f"took {seconds:.1f} s"
        assert mib < MAX_MIB, f"took {mib:.0f} MiB"
        if not isinstance(loaded, CheckpointError):
            _same_meaning(*loaded, data)
        verdicts.append(loaded)
    refused = [isinstance(verdict, CheckpointError) for verdict in verdicts[:2]]
    assert refused[0] == refused[1], f"one half refuses it: {[str(v)[:300] for v in verdicts[:2]]}"
    return not refused[0], slowest


def _torch(data: bytes) -> tuple[Any, Mapping[str, np.ndarray]]:
    flow = torch_flows.load(data)
    return architecture(flow), {name: to_numpy(array) for name, array in flow.state_dict().items()}


def _jax(data: bytes) -> tuple[Any, Mapping[str, np.ndarray]]:
    flow, variables = jax_flows.load(data)
    return architecture(flow), jax_to_torch(variables)


def _state(data: bytes, good: Good) -> tuple[Any, Mapping[str, np.ndarray]]:
    groups = {"weights": {}, "optimizer": {}}  # type: dict[str, Any]
    header, _ = read_arrays(good.data, STATE)
    for name, info in header.tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest if group == "weights" else name] = info._replace(start=0)
    expected = [*weight_groups(groups["weights"]), Group(groups["optimizer"])]
    progress, arrays = load_state(data, good.description["settings"], expected)  # type: ignore[arg-type]
    losses = {name: np.array(progress.pop(name)) for name in list(progress) if "loss" in name}
    return {"settings": good.description["settings"], **progress}, {**arrays, **losses}


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 if sys.platform == "darwin" else 1024
    )


def _same_meaning(found: Any, arrays: Mapping[str, np.ndarray], data: bytes) -> None:
    kind, description, stored = unpacked(data)
    if kind == STATE and "settings" not in found:
        description = description["settings"]["architecture"]
        group = "best." if any(name.startswith("best.") for name in stored) else "weights."
        stored = {k.removeprefix(group): a for k, a in stored.items() if k.startswith(group)}
    assert _says(description, found), f"says {description}, is {found}"
    assert arrays.keys() == stored.keys(), "other arrays than in the file"
    for name, array in stored.items():
        other = arrays[name]
        assert other.shape == array.shape, f"array {name!r} has another shape"
        assert other.dtype == array.dtype, f"array {name!r} has another dtype"
        assert other.tobytes() == array.tobytes(), f"array {name!r} has other values"


def _says(said: Any, found: Any) -> bool:
    """Whether an object's arguments are all that a file says, which may leave defaults out."""
    if isinstance(said, dict) and isinstance(found, dict):
        build = torch_flows.registry.registry.types.get(said.get("type"))
        if build is not None and not isinstance(build, type):  # another name for some arguments
            said = architecture(build(**{k: v for k, v in said.items() if k != "type"}))
        if isinstance(build, type):  # None where that is the default leaves the argument out
            parameters = inspect.signature(build).parameters.items()
            empty = {name for name, parameter in parameters if parameter.default is None}
            empty |= {"base"} if issubclass(build, Model) else set()
            said = {k: v for k, v in said.items() if v is not None or k not in empty}
        return all(key in found and _says(value, found[key]) for key, value in said.items())
    if said == [] and found is None:  # no parts
        return True
    if isinstance(said, dict) and isinstance(found, list):  # one network is a list of one
        said = [said]
    if isinstance(said, list) and isinstance(found, list):
        return len(said) == len(found) and all(map(_says, said, found))
    return isinstance(said, bool) == isinstance(found, bool) and bool(said == found)


def fuzz(seconds: float, seed: int, count: int) -> Found:
    """Check so many files, or as many as there is time for."""
    torch.set_num_threads(1)
    jax.config.update("jax_enable_x64", True)  # or it would refuse what is right in PyTorch
    found, files = Found(), good_files()
    for good in files:
        accepted, _ = check(good.data, good)
        assert accepted
    # a collection of what the process held before is no file's time
    gc.collect()
    gc.freeze()
    memory, end = _memory(), time.monotonic() + seconds
    for i in range(count):
        if time.monotonic() > end:
            break
        rng = random.Random(f"{seed} {i}")
        number = rng.randrange(len(files))
        good = files[number]
        name, data = mutate(rng, good)
        found.files += 1
        found.mutations[name] += 1
        try:
            accepted, slowest = check(data, good)
            found.accepted += accepted
            found.slowest = max(found.slowest, slowest)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            text = f"{name} of file {number}, seed {seed}, number {i}: {text[:600]}"
            found.failures.append(text)
            print(text, flush=True)
        if i % PROGRESS == PROGRESS - 1:
            print(f"{i + 1:,} files, {len(found.failures)} failures", flush=True)
    gc.unfreeze()
    found.largest = _memory() - memory
    return found


def main(
    seconds: float = 60, seed: int = 0, count: int | None = None, workers: int | None = None
) -> int:
    """Check files in all processes, print what came of it, and return how many failed.

    Args:
        seconds: when to stop.
        seed: another one makes other files.
        count: at most so many, in all processes together.
        workers: processes, one for each processor if not given.
    """
    workers = workers or os.cpu_count() or 1
    share = sys.maxsize if count is None else -(-count // workers)
    start = time.monotonic()
    found = Found()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        jobs = [pool.submit(fuzz, seconds, seed * 1000 + i, share) for i in range(workers)]
        for job in jobs:
            found.add(job.result())
    taken = time.monotonic() - start
    print(f"{found.files:,} files in {taken:.0f} s, {found.accepted:,} accepted by both halves")
    print(f"the slowest took {found.slowest:.2f} s, memory grew by {found.largest:.0f} MiB at most")
    print(", ".join(f"{name} {number:,}" for name, number in sorted(found.mutations.items())))
    print(f"{len(found.failures):,} failures")
    return len(found.failures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--workers", type=int, default=None)
    given = parser.parse_args()
    sys.exit(bool(main(given.seconds, given.seed, given.count, given.workers)))
