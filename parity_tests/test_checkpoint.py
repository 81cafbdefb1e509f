"""Files that nobody vouches for: every malformed one is refused with CheckpointError, and quickly."""

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jax_flows
import torch_flows
from flow_bridge.checkpoint import read_header, write_checkpoint
from flow_bridge.errors import CheckpointError
from torch_flows.checkpoint import expected_shapes, to_numpy

HALVES = pytest.mark.parametrize("load", [torch_flows.load, jax_flows.load], ids=["torch", "jax"])


def good_file(path: Path) -> bytes:
    torch.manual_seed(0)
    torch_flows.save(torch_flows.RealNVP(2, hidden_dim=3, num_layers=2), path)
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
    "terabytes wide": edit(lambda h: describe(h, type="RealNVP", dim=2, hidden_dim=10**9)),
    "terabytes wide, within the integers": edit(
        lambda h: describe(h, type="RealNVP", dim=2, hidden_dim=2**20)
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
    torch_flows.save(flow, path := tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor 'b' holds a NaN or an infinity\."):
        load(path)
    load(path, allow_non_finite=True)


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
