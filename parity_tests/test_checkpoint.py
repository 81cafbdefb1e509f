"""Files that nobody vouches for: every malformed one is refused with CheckpointError, and quickly."""

import io
import json
import os
import pickle
import re
import struct
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
from flax.serialization import to_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jax_flows
import torch_flows
from flow_bridge.architecture import architecture, construction_budget
from flow_bridge.checkpoint import read_header, write_checkpoint
from flow_bridge.errors import CheckpointError
from jax_flows import checkpoint as jax_checkpoint
from parity_tests.catalogue import CASES
from parity_tests.files import packed
from parity_tests.golden.make_files import MODELS, inputs
from torch_flows.checkpoint import expected_shapes, to_numpy

HALVES = pytest.mark.parametrize("load", [torch_flows.load, jax_flows.load], ids=["torch", "jax"])


def good_file(path: Path) -> bytes:
    torch.manual_seed(0)
    torch_flows.save(torch_flows.RealNVP(2, hidden_dims=(3, 3), num_layers=2), path)
    return path.read_bytes()


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def pack(header: dict[str, Any] | bytes, body: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def edit(change: Any) -> Any:
    """A malformed file made by changing the header of a good one."""

    def make(data: bytes) -> bytes:
        header, body = parts(data)
        return pack(change(header) or header, body)

    return make


def first(header: dict[str, Any]) -> dict[str, Any]:
    return header[next(name for name in header if name != "__metadata__")]


def describe(header: dict[str, Any], **arguments: Any) -> None:
    header["__metadata__"]["twinflows.description"] = json.dumps(arguments)


def duplicate_name(data: bytes) -> bytes:
    header, body = parts(data)
    raw = json.dumps(header)
    name = next(name for name in header if name != "__metadata__")
    return pack((raw[:-1] + f', "{name}": {json.dumps(header[name])}}}').encode(), body)


def many_empty_tensors(data: bytes) -> bytes:
    header, body = parts(data)
    end = len(body)
    for i in range(200_000):
        header[f"t{i}"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    return pack(header, body)


def non_finite(data: bytes) -> bytes:
    header, body = parts(data)
    return pack(header, np.float32(np.nan).tobytes() + body[4:])


CORPUS = {
    "empty": lambda d: b"",
    "seven bytes": lambda d: d[:7],
    "header cut": lambda d: d[:40],
    "body cut": lambda d: d[:-1],
    "trailing byte": lambda d: d + b"\0",
    "header longer than file": lambda d: struct.pack("<Q", len(d)) + d[8:],
    "header of 2^64 - 1": lambda d: b"\xff" * 8 + d[8:],
    "not JSON": lambda d: pack(b"{hello", b""),
    "JSON array": lambda d: pack(b"[]", b""),
    "invalid UTF-8": lambda d: pack(b'{"\xff": 1}', b""),
    "deep nesting": lambda d: pack(b'{"a":' * 200_000, b""),
    "leading space": lambda d: pack(b" " + json.dumps(parts(d)[0]).encode(), parts(d)[1]),
    "NaN constant": lambda d: pack(b'{"__metadata__": NaN}', b""),
    "huge integer": lambda d: pack(b'{"a": ' + b"9" * 10_000 + b"}", b""),
    "pickle": lambda d: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix",
    "no metadata": edit(lambda h: h.pop("__metadata__") and None),
    "null metadata": edit(lambda h: h.update(__metadata__=None)),
    "extra metadata": edit(lambda h: h["__metadata__"].update(code="x")),
    "number in metadata": edit(lambda h: h["__metadata__"].update(format=1)),
    "other version": edit(lambda h: h["__metadata__"].update({"twinflows.format_version": "99"})),
    "other kind": edit(lambda h: h["__metadata__"].update({"twinflows.kind": "training state"})),
    "huge metadata": edit(
        lambda h: h["__metadata__"].update({"twinflows.description": " " * (3 << 20)})
    ),
    "duplicate tensor": duplicate_name,
    "200,000 tensors": many_empty_tensors,
    "empty name": edit(lambda h: h.update({"": first(h)})),
    "path as name": edit(lambda h: h.update({"../../etc/passwd": first(h)})),
    "NUL in name": edit(lambda h: h.update({"a\0b": first(h)})),
    "extra field": edit(lambda h: first(h).update(code=1)),
    "missing field": edit(lambda h: first(h).pop("dtype") and None),
    "unknown dtype": edit(lambda h: first(h).update(dtype="F99")),
    "integer dtype": edit(lambda h: first(h).update(dtype="I32")),
    "bool dtype": edit(lambda h: first(h).update(dtype="BOOL")),
    "dtype not a string": edit(lambda h: first(h).update(dtype=[])),
    "float in shape": edit(lambda h: first(h).update(shape=[1.0])),
    "negative shape": edit(lambda h: first(h).update(shape=[-2])),
    "shape of 2^62": edit(lambda h: first(h).update(shape=[0, 2**62])),
    "70 dimensions": edit(lambda h: first(h).update(shape=[1] * 70)),
    "other shape": edit(lambda h: first(h).update(shape=[*first(h)["shape"][::-1], 1])),
    "reversed offsets": edit(lambda h: first(h).update(data_offsets=first(h)["data_offsets"][::-1])),
    "offsets past the end": edit(lambda h: first(h).update(data_offsets=[10**6, 10**6 + 8])),
    "overlap": edit(lambda h: [v.update(data_offsets=[0, 8]) for k, v in h.items() if k[0] != "_"] and None),
    "renamed tensor": edit(lambda h: h.update(other=h.pop(next(k for k in h if k[0] != "_")))),
    "missing tensor": lambda d: pack({k: v for k, v in parts(d)[0].items() if k == "__metadata__"}, b""),
    "NaN weight": non_finite,
    "flipped weight": lambda d: d[:-4] + bytes([d[-4] ^ 1]) + d[-3:],
    "architecture not JSON": edit(
        lambda h: h["__metadata__"].update({"twinflows.description": "{"})
    ),
    "architecture duplicate key": edit(
        lambda h: h["__metadata__"].update({"twinflows.description": '{"type": "Planar", "type": "A"}'})
    ),
    "no type": edit(lambda h: describe(h, dim=2)),
    "unknown type": edit(lambda h: describe(h, type="os.system", command="true")),
    "unknown argument": edit(lambda h: describe(h, type="RealNVP", dim=2, code="x")),
    "argument of a wrong type": edit(lambda h: describe(h, type="RealNVP", dim="two")),
    "list for a number": edit(lambda h: describe(h, type="RealNVP", dim=[2])),
    "mask that fixes nothing": edit(lambda h: describe(h, type="AffineCoupling", dim=2, mask=[0, 0])),
    "mask of a wrong type": edit(lambda h: describe(h, type="AffineCoupling", dim=2, mask=5)),
    "activation with code": edit(
        lambda h: describe(h, type="AffineCoupling", dim=2, activation="__import__")
    ),
    "list of a non-bijector": edit(lambda h: describe(h, type="Chain", bijectors=[1, "x"])),
    "no bijectors": edit(lambda h: describe(h, type="Chain", bijectors=[])),
    "flow of a base": edit(
        lambda h: describe(
            h,
            type="Flow",
            bijector={"type": "StandardNormal", "dim": 2},
            base={"type": "StandardNormal", "dim": 2},
        )
    ),
    "terabytes wide": edit(lambda h: describe(h, type="RealNVP", dim=2, hidden_dims=[10**9, 10**9])),
    "terabytes wide, within the integers": edit(
        lambda h: describe(h, type="RealNVP", dim=2, hidden_dims=[2**20, 2**20])
    ),
    "a billion layers": edit(lambda h: describe(h, type="PlanarFlow", dim=2, num_layers=10**9)),
    "a million layers": edit(lambda h: describe(h, type="PlanarFlow", dim=2, num_layers=2**20)),
    "a million dimensions": edit(lambda h: describe(h, type="Planar", dim=2**20)),
    "a hundred thousand hidden layers": edit(
        lambda h: describe(h, type="AffineCoupling", dim=2, hidden_dims=[1] * 100_000)
    ),
    "nested 40 deep": edit(
        lambda h: describe(h, **_nested({"type": "Planar", "dim": 2}, 40))
    ),
    "nested 900 deep": edit(
        lambda h: describe(h, **_nested({"type": "Planar", "dim": 2}, 900))
    ),
}  # fmt: skip


def _nested(inner: dict[str, Any], depth: int) -> dict[str, Any]:
    for _ in range(depth):
        inner = {"type": "Invert", "bijector": inner}
    return inner


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    return good_file(tmp_path_factory.mktemp("good") / "good.safetensors")


@HALVES
@pytest.mark.parametrize("name", CORPUS)
def test_malformed_files_are_refused(name, load, good, tmp_path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(CORPUS[name](good))
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: \S.*\S"):
        load(path)
    assert time.process_time() - start < 10  # what is refused only after the fact takes minutes


@HALVES
def test_non_finite_weights_only_on_request(load, tmp_path) -> None:
    flow = torch_flows.Planar(2)
    with torch.no_grad():
        flow.b.fill_(float("nan"))
    path = tmp_path / "nan.safetensors"
    in_jax = jax_flows.Planar(2)
    variables = in_jax.init(jax.random.key(0), "float32")
    variables["params"]["b"] = jax.numpy.float32(jax.numpy.inf)
    for save in (partial(torch_flows.save, flow), partial(jax_flows.save, in_jax, variables)):
        with pytest.raises(CheckpointError, match=r"tensor 'b' holds a NaN or an infinity\."):
            save(path)
        assert not path.exists()
        save(path, allow_non_finite=True)
        with pytest.raises(CheckpointError, match=r"tensor 'b' holds a NaN or an infinity\."):
            load(path)
        load(path, allow_non_finite=True)
        path.unlink()


@HALVES
def test_places_and_devices_that_are_none(load, tmp_path) -> None:
    flow, in_jax = torch_flows.Planar(2), jax_flows.Planar(2)
    variables = in_jax.init(jax.random.key(0), "float32")
    for save in (partial(torch_flows.save, flow), partial(jax_flows.save, in_jax, variables)):
        with pytest.raises(
            TypeError, match="is written to a path or to an open binary file, got int"
        ):
            save(5)
        with (
            (tmp_path / "text").open("w") as file,
            pytest.raises(CheckpointError, match="mode, 'wb'"),
        ):
            save(file)
    for wrong in (5, None):
        with pytest.raises(
            TypeError, match="from a path, from bytes or from an open binary file, got"
        ):
            load(wrong)
    torch_flows.save(flow, path := tmp_path / "flow")
    for device in ("nope", "cuda:77", 3.5):
        with pytest.raises(
            ValueError, match=r"^load expects device as a device of this machine, got "
        ):
            load(path, device=device)


def same_state(a: Any, b: Any) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@settings(max_examples=150, deadline=2000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_load_equal_or_raise(data, good, tmp_path_factory) -> None:
    """Flip bytes and truncate: the same model, or CheckpointError, never anything else."""
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(damaged))))
    path = tmp_path_factory.mktemp("fuzz") / "damaged.safetensors"
    path.write_bytes(bytes(damaged[:cut]))
    try:
        flow = torch_flows.load(path)
    except CheckpointError:
        return
    path.write_bytes(good)
    assert same_state(flow, torch_flows.load(path))


def test_writing_is_atomic(tmp_path, monkeypatch) -> None:
    """A write that fails leaves the old file, and no other."""
    path = tmp_path / "model.safetensors"
    old = good_file(path)
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        torch_flows.save(torch_flows.Planar(2), path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_non_contiguous_arrays_survive(tmp_path) -> None:
    """safetensors 0.8.0 scrambles arrays that are not C-contiguous; ours must not."""
    jax_flow = jax_flows.AffineCoupling(5, (4,), separate_networks=False)
    variables = jax_flow.init(jax.random.key(0))
    kernel = np.asarray(variables["params"]["network"]["layers_0"]["kernel"])
    jax_flows.save(jax_flow, variables, path := tmp_path / "m.safetensors")
    weight = to_numpy(torch_flows.load(path).network.layers[0].weight)
    np.testing.assert_array_equal(weight, kernel.T)
    assert not kernel.T.flags.c_contiguous


def test_refuses_mixed_and_integer_dtypes(tmp_path) -> None:
    arrays = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float64)}
    for bad in (arrays, {"a": np.zeros(2, np.int64)}):
        with pytest.raises(CheckpointError, match="one float dtype"):
            write_checkpoint(
                tmp_path / "m.safetensors", {"type": "Planar", "dim": 2}, bad, expected_shapes
            )
    assert os.listdir(tmp_path) == []


@HALVES
def test_dtype_on_request(load, tmp_path) -> None:
    torch_flows.save(torch_flows.Planar(2).double(), path := tmp_path / "m.safetensors")
    assert read_header(path).tensors["w"].dtype == "float64"
    loaded = load(path, dtype="bfloat16")
    w = loaded.w if load is torch_flows.load else loaded[1]["params"]["w"]
    assert "bfloat16" in str(w.dtype)
    with pytest.raises(ValueError, match="expects dtype to be one of"):
        load(path, dtype="int8")


def test_float64_is_never_truncated(tmp_path) -> None:
    torch_flows.save(torch_flows.Planar(2).double(), path := tmp_path / "m.safetensors")
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match="JAX would truncate"):
            jax_flows.load(path)
        assert jax_flows.load(path, dtype="float32")[1]["params"]["w"].dtype == np.float32


def test_loading_leaves_the_random_state_alone(tmp_path) -> None:
    good_file(path := tmp_path / "m.safetensors")
    before = torch.random.get_rng_state()
    torch_flows.load(path)
    assert torch.equal(before, torch.random.get_rng_state())


@HALVES
def test_a_missing_file_is_a_missing_file(load, tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere.safetensors")


def test_weights_of_another_flow_are_refused(tmp_path) -> None:
    flow, other = jax_flows.Planar(2), jax_flows.Planar(3)
    with pytest.raises(ValueError, match=r"array 'u' has shape \(3,\), expected \(2,\)"):
        jax_flows.save(flow, other.init(jax.random.key(0)), tmp_path / "m.safetensors")


def chain(*bijectors: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Chain", "bijectors": list(bijectors)}


def roulette(**arguments: Any) -> dict[str, Any]:
    return {"type": "InvertibleResidual", "dim": 2, "log_det": "series", **arguments}


HUGE = 2**20
ASKS_FOR_MUCH: dict[str, dict[str, Any]] = {
    "30 nested inversions": _nested({"type": "Affine", "dim": 2}, 30),
    "1,000 random permutations": chain(
        *({"type": "RandomPermutation", "dim": HUGE, "seed": i} for i in range(1000))
    ),
    "1,000 reversals": chain(
        *[{"type": "Permutation", "permutation": "reverse", "dim": HUGE}] * 1000
    ),
    "1,000 couplings": chain(*[{"type": "AffineCoupling", "dim": HUGE}] * 1000),
    "1,000 masked maps": chain(*[{"type": "MaskedAffineAutoregressive", "dim": HUGE}] * 1000),
    "a roulette that stops at 1e-8": roulette(stop_probability=1e-8),
    "a roulette that stops at 1e-10": roulette(stop_probability=1e-10),
    "a roulette near 1": roulette(lipschitz=1 - 1e-9),
    "999 bins": {"type": "MaskedSplineAutoregressive", "dim": HUGE, "num_bins": 999},
    "499 planar maps": {"type": "PlanarFlow", "dim": HUGE, "num_layers": 499},
    "a long mask": {"type": "AffineCoupling", "dim": 300_000, "mask": [0, 1] * 150_000},
    "a long order": {
        "type": "MaskedAffineAutoregressive",
        "dim": 100_000,
        "order": list(range(100_000)),
    },
    "2,000 elementwise maps": chain(*({"type": "ELU", "alpha": 1 + i / 1000} for i in range(2000))),
    "a million levels": {"type": "Glow", "shape": [3, 8, 8], "num_levels": HUGE},
    "20,000 hidden layers": {"type": "AffineCoupling", "dim": 2, "hidden_dims": [3] * 20_000},
    "a dimension of 2^70": {"type": "Affine", "dim": 2**70},
    "a dimension of 2^40": {"type": "LULinear", "dim": 2**40},
    "a flow of 2^40 dimensions": {"type": "FFJORD", "dim": 2**40, "hidden_dims": [3]},
    "distributions of many axes": {"type": "DiagonalNormal", "dim": [1] * 100_000},
    "halves of 16,000 channels": {"type": "Jet", "shape": [16_000, 2, 2], "num_layers": 2},
    "lists in lists": {
        "type": "AffineCoupling",
        "dim": 2,
        "mask": json.loads("[" * 300 + "]" * 300),
    },
    "events of many axes": {"type": "Tanh", "event_ndim": 10**9},
    "permutations of many axes": {
        "type": "RandomPermutation",
        "dim": 2,
        "seed": 0,
        "event_ndim": 10**9,
    },
}
"""Architectures in files of a few hundred bytes to 600 KB without an array."""


@HALVES
@pytest.mark.parametrize("name", ASKS_FOR_MUCH)
def test_what_a_file_asks_for_is_looked_at_before_it_is_built(name: str, load: Any) -> None:
    data = packed(ASKS_FOR_MUCH[name])
    start = time.process_time()
    with pytest.raises(CheckpointError):
        load(data)
    assert time.process_time() - start < 3  # 0.1 to 1 on a quiet machine


CHEAP: dict[str, dict[str, Any]] = {
    "42 nested inversions": _nested({"type": "Tanh"}, 42),
    "500 elementwise maps": chain(*({"type": "ELU", "alpha": 1 + i / 1000} for i in range(500))),
    "a long permutation": {"type": "Permutation", "permutation": list(range(50_000))},
    "a large seed": {"type": "RandomPermutation", "dim": 3, "seed": 10**30},
}


@HALVES
@pytest.mark.parametrize("name", CHEAP)
def test_what_is_cheap_is_read(name: str, load: Any) -> None:
    start = time.process_time()
    load(packed(CHEAP[name]))
    assert time.process_time() - start < 3


EDITED: dict[str, tuple[dict[str, Any], str]] = {
    "momentum": (
        {"type": "BatchNorm", "dim": 2, "momentum": 2.0},
        "momentum above 0 and at most 1",
    ),
    "large momentum": (
        {"type": "BatchNorm", "dim": 2, "momentum": 1024},
        "momentum above 0 and at most 1",
    ),
    "eps": ({"type": "BatchNorm", "dim": 2, "eps": 5.0}, "eps between 0 and 1"),
    "atol": ({"type": "ContinuousBijector", "dim": 2, "atol": 1.0}, "atol between 0 and 1"),
    "0 for false": ({"type": "LULinear", "dim": 2, "bias": 0}, "bias as True or False"),
    "1 for true": (
        {"type": "ContinuousBijector", "dim": 2, "adjoint": 1},
        "adjoint as True or False",
    ),
    "renamed": (
        {"type": "ContinuousBijector", "dim": 2, "ad_joint": True},
        "ContinuousBijector has no argument 'ad_joint'",
    ),
    "renamed in a model": (
        {"type": "FFJORD", "dim": 2, "_adjoint": True},
        "FFJORD has no argument '_adjoint'",
    ),
    "infinity": ({"type": "Uniform", "dim": 2, "high": 1e999}, None),
}  # type: ignore[dict-item]


@pytest.mark.parametrize("name", EDITED)
def test_edited_arguments_are_refused_with_one_sentence(name: str) -> None:
    edited, sentence = EDITED[name]
    data = packed({"type": "Tanh"})
    header, body = parts(data)
    header["__metadata__"]["twinflows.description"] = json.dumps(edited).replace(
        "Infinity", "1e999"
    )
    said = []
    for load in (torch_flows.load, jax_flows.load):
        with pytest.raises(CheckpointError, match=sentence or "not a finite number") as info:
            load(pack(header, body))
        said.append(str(info.value).split(" has no argument")[0])
    assert said[0] == said[1]


class Half(NamedTuple):
    """``save`` and ``load`` of a half, from an architecture and to one."""

    package: Any

    def save(self, build: Any, target: Any) -> None:
        made = build(self.package)
        if self.package is torch_flows:
            torch_flows.save(made, target)
        else:
            jax_flows.save(made, made.init(jax.random.key(0)), target)

    def load(self, source: Any) -> Any:
        loaded = self.package.load(source)
        return loaded if self.package is torch_flows else loaded[0]


BOTH = pytest.mark.parametrize("half", [Half(torch_flows), Half(jax_flows)], ids=["torch", "jax"])


@BOTH
@pytest.mark.parametrize(
    "build",
    [
        lambda f: f.Flow(f.Affine(2), f.StudentT(2, 10**7)),
        lambda f: f.Flow(f.Affine(2), f.Uniform(2, -2_000_000, 2_000_000)),
        lambda f: f.ContinuousBijector(2, (3,), max_steps=10**7),
        lambda f: f.Chain([f.Tanh() for _ in range(500)]),
        lambda f: nested_chains(f, 20),
    ],
    ids=["df", "bounds", "max_steps", "500 maps", "20 nested chains"],
)
def test_what_is_saved_is_read(build: Any, half: Half, tmp_path: Path) -> None:
    half.save(build, path := tmp_path / "m.safetensors")
    for other in (Half(torch_flows), Half(jax_flows)):
        assert architecture(other.load(path)) == architecture(build(other.package))


def nested_chains(package: Any, depth: int) -> Any:
    bijector = package.Tanh()
    for _ in range(depth):
        bijector = package.Invert(package.Chain([bijector]))
    return bijector


@BOTH
@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda f: f.Chain([f.Tanh() for _ in range(1500)]), "asks for more layers"),
        (lambda f: nested_chains(f, 60), "nested deeper than 128"),
        (lambda f: f.Chain([f.RandomPermutation(400_000, i) for i in range(3)]), "larger masks"),
    ],
    ids=["1,500 maps", "60 nested chains", "large permutations"],
)
def test_what_would_not_be_read_is_not_saved(
    build: Any, sentence: str, half: Half, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match=sentence):
        half.save(build, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


@BOTH
def test_bytes_and_files(half: Half, tmp_path: Path) -> None:
    half.save(lambda f: f.Planar(2), path := tmp_path / "m.safetensors")
    with (tmp_path / "n.safetensors").open("wb") as file:
        half.save(lambda f: f.Planar(2), file)
    data = path.read_bytes()
    half.save(lambda f: f.Planar(2), buffer := io.BytesIO())
    assert len(buffer.getvalue()) == len(data)
    for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), str(path)):
        assert half.load(source).dim == 2
    with (tmp_path / "n.safetensors").open("rb") as file:
        assert half.load(file).dim == 2
    with (tmp_path / "n.safetensors").open("rb") as file:
        file.seek(5)
        with pytest.raises(
            CheckpointError, match=r"n\.safetensors: this is not a safetensors file"
        ):
            half.load(file)
    with pytest.raises(CheckpointError, match="the given bytes: tensor 'w' does not fit"):
        half.load(data[:-3])
    with pytest.raises(CheckpointError, match="open it in binary mode"):
        half.load(io.StringIO("text"))
    with pytest.raises(CheckpointError, match="there is no folder"):
        half.save(lambda f: f.Planar(2), tmp_path / "nowhere" / "m.safetensors")
    for act in (half.load, lambda path: half.save(lambda f: f.Planar(2), path)):
        with pytest.raises(CheckpointError, match="this is a folder"):
            act(tmp_path)


def zipped() -> bytes:
    torch.save({"w": torch.zeros(2)}, file := io.BytesIO())
    return file.getvalue()


def of_numpy() -> bytes:
    np.save(file := io.BytesIO(), np.zeros(2))
    return file.getvalue()


@HALVES
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (pickle.dumps({"w": np.zeros(2)}), "this is a pickle, not a safetensors file"),
        (zipped(), "this is a zip archive, as torch.save"),
        (of_numpy(), "this is a NumPy file"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "this is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "this is a Git LFS pointer"),
        (b'{"type": "RealNVP", "dim": 2}', "this is JSON"),
        (to_bytes({"params": {"w": np.zeros(2)}}), "this is a msgpack file, as Flax"),
        (b"\x1f\x8b\x08" + b"\0" * 40, "this is a gzip archive"),
        (b"a,b,c\n1,2,3\n" * 9, "this is not a safetensors file"),
        (b"", "this is not a safetensors file"),
    ],
)
def test_files_of_other_kinds_are_named(data: bytes, what: str, load: Any) -> None:
    with pytest.raises(CheckpointError, match=what):
        load(data)


def test_devices_of_what_is_loaded(tmp_path: Path) -> None:
    """``meta`` stands for a GPU: what is not there would stay behind."""
    path = tmp_path / "m.safetensors"
    torch_flows.save(torch_flows.ResidualFlow(2, (3,), 1, log_det="series"), path)

    def devices(flow: Any) -> set[str]:
        return {t.device.type for t in (*flow.parameters(), *flow.buffers())}

    assert devices(torch_flows.load(path, device="meta")) == {"meta"}
    with torch.device("meta"):
        assert devices(torch_flows.load(path)) == {"meta"}
        assert devices(torch_flows.load(path, device="cpu")) == {"cpu"}
    assert devices(torch_flows.load(path)) == {"cpu"}
    device = jax.devices()[0]
    _, variables = jax_flows.load(path, device=device)
    assert {leaf.device for leaf in jax.tree.leaves(variables)} == {device}


GOLDEN = Path(__file__).parent / "golden" / "files_v1"


@pytest.mark.parametrize("name", MODELS)
def test_files_of_format_version_1(name: str) -> None:
    """Written by release 0.1 of both halves: every later release reads them, with these densities."""
    expected = np.load(GOLDEN / "log_prob.npz")[name]
    for half in ("torch", "jax"):
        path = GOLDEN / f"{name}_{half}.safetensors"
        flow = torch_flows.load(path)
        x, context = inputs(flow)
        given = None if context is None else torch.from_numpy(context)
        with torch.no_grad():
            found = flow.log_prob(torch.from_numpy(x), given).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        twin, variables = jax_flows.load(path)
        found = jax.jit(twin.log_prob)(variables, x, context)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_shapes_without_a_trace_are_those_of_a_trace() -> None:
    """For every kind of bijector, and of network in it."""
    seen = set()
    for case in CASES:
        flow = jax_flows.build(case.architecture)
        kinds = re.findall(r"'type': '(\w+)'", str(case.architecture)), flow.context_dim > 0
        if str(kinds) in seen:
            continue
        seen.add(str(kinds))
        found, expected = flow.shapes(), jax.eval_shape(flow.init, jax.random.key(0))
        assert jax.tree.structure(found) == jax.tree.structure(expected), case.name
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), case.name


def test_many_layers_of_different_shapes_load_in_time() -> None:
    """No program is compiled for a shape: 80 couplings took 4 seconds and 350 MiB."""
    bijectors = [torch_flows.AffineCoupling(2, (5 + i,)) for i in range(80)]
    torch_flows.save(torch_flows.Chain(bijectors), file := io.BytesIO())
    start = time.process_time()
    jax_flows.load(file.getvalue())
    assert time.process_time() - start < 2


def test_both_halves_ask_for_as_much() -> None:
    """So that what one writes the other reads: the same layers, and at most 3 times the entries."""
    for case in CASES:
        asked = []
        for expected_shapes_of in (expected_shapes, jax_checkpoint.expected_shapes):
            with construction_budget(layers=10**6, entries=10**9) as budget:
                expected_shapes_of(case.architecture)
            asked.append((budget.layers, 10**9 - budget.entries))
        (layers, entries), (other_layers, other_entries) = asked
        assert layers == other_layers, case.name
        assert other_entries <= 3 * entries, case.name
        assert entries <= 3 * other_entries, case.name


def test_half_a_surrogate_pair_is_no_text() -> None:
    """Python's JSON takes it, that of safetensors does not."""
    stream = io.BytesIO()
    torch_flows.save(torch_flows.Planar(2), stream)
    data = stream.getvalue()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["note"] = "\ud800"
    text = json.dumps(header).encode()
    changed = len(text).to_bytes(8, "little") + text + data[8 + length :]
    for half in (torch_flows, jax_flows):
        with pytest.raises(CheckpointError, match="the header is not valid JSON"):
            half.load(changed)
