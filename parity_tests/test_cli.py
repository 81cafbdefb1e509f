"""The command line, run as a user would."""

import json

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_restore
from safetensors.numpy import load_file

import jax_flows
import torch_flows
from flow_bridge import cli
from flow_bridge.checkpoint import read_header
from torch_flows.checkpoint import to_numpy


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["twinflows", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def checkpoint(tmp_path):
    flow = torch_flows.Flow(torch_flows.Planar(2, context_dim=3), torch_flows.DiagonalNormal(2))
    torch_flows.save(flow, path := tmp_path / "planar.safetensors")
    return path


def test_inspect(run, checkpoint) -> None:
    code, out, _ = run("inspect", checkpoint)
    assert code == 0
    assert '"type": "Planar"' in out
    assert "bijector.context_weight  float32   [5, 3]" in out
    assert "model: 6 arrays, 24 values" in out
    _, out, _ = run("inspect", checkpoint, "--json")
    assert json.loads(out)["tensors"]["bijector.w"] == {"dtype": "float32", "shape": [2]}


def test_parity(run, checkpoint, tmp_path) -> None:
    code, out, _ = run("parity", checkpoint, "--rows", 5, "--html", page := tmp_path / "r.html")
    assert code == 0, out
    assert "the two are one model" in out
    html = page.read_text()
    assert "<svg" in html
    assert "src=" not in html
    assert "The two are one model" in html


def test_parity_exit_code_and_json(run, checkpoint, monkeypatch) -> None:
    from jax_flows.bijectors import residual

    original = residual._log_det
    monkeypatch.setattr(residual, "_log_det", lambda *a: -original(*a))
    code, out, _ = run("parity", checkpoint, "--rows", 5, "--json")
    assert code == 1
    assert json.loads(out)["passed"] is False


def test_convert_there_and_back(run, checkpoint, tmp_path) -> None:
    state, flax_file, again = (
        tmp_path / n for n in ("s.safetensors", "v.msgpack", "a.safetensors")
    )
    (description := tmp_path / "arch.json").write_text(
        json.dumps(json.loads(run("inspect", checkpoint, "--json")[1])["architecture"])
    )
    assert run("convert", checkpoint, state, "--to", "torch")[0] == 0
    arrays = load_file(state)
    flow = torch_flows.load(checkpoint)
    for name, array in flow.state_dict().items():
        np.testing.assert_array_equal(arrays[name], to_numpy(array))
    assert run("convert", checkpoint, flax_file, "--to", "flax")[0] == 0
    jax_flow, variables = jax_flows.load(checkpoint)
    restored = msgpack_restore(flax_file.read_bytes())
    jax.tree.map(np.testing.assert_array_equal, restored, dict(variables))
    for source, form in ((state, "torch"), (flax_file, "flax")):
        command = ("convert", source, again, "--from", form, "--to", "twinflows")
        assert run(*command, "--architecture", description)[0] == 0
        assert read_header(again) == read_header(checkpoint)
    assert jax_flow.event_shape == (2,)


def test_errors_are_one_line(run, checkpoint, tmp_path) -> None:
    (bad := tmp_path / "bad.safetensors").write_bytes(checkpoint.read_bytes()[:-1])
    for arguments in (
        ("inspect", bad),
        ("parity", bad),
        ("inspect", tmp_path / "nowhere"),
        ("convert", bad, tmp_path / "x", "--from", "torch"),
    ):
        code, out, err = run(*arguments)
        assert code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
