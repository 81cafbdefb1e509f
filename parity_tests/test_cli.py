"""The command line, run as a user would."""

import json
import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pandas
import pytest
import torch
from flax.serialization import msgpack_restore
from safetensors.numpy import load_file

import jax_flows
import torch_flows
from flow_bridge.checkpoint import read_header
from torch_flows.checkpoint import to_numpy
from twinflows.command import cli


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
    from jax_flows.bijectors import planar

    original = planar._log_det
    monkeypatch.setattr(planar, "_log_det", lambda *a: -original(*a))
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


@pytest.fixture
def table(tmp_path):
    generator = np.random.default_rng(0)
    c = generator.normal(size=(400, 1))
    x = generator.normal(size=(400, 2)) * (2, 30) + (50, 7) + c
    frame = pandas.DataFrame(np.hstack([x, c]), columns=["length", "width", "age"])
    frame.to_csv(tmp_path / "table.csv", index=False)
    frame.to_parquet(tmp_path / "table.parquet", index=False)
    np.save(tmp_path / "table.npy", frame.to_numpy())
    return tmp_path / "table.csv"


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_train_sample_and_log_prob(run, table, backend, tmp_path) -> None:
    model = tmp_path / "model.safetensors"
    command = ("train", table, "--out", model, "--model", "PlanarFlow", "--set", "num_layers=2")
    options = ("--backend", backend, "--context-columns", 1, "--epochs", 6, "--no-progress")
    rates = ("--learning-rate", 0.02, "--batch-size", 64, "--json")
    code, out, err = run(*command, *options, *rates)
    assert code == 0, err
    summary = json.loads(out)
    assert len(summary["train_loss"]) == summary["epochs"] == 6
    assert summary["train_loss"][-1] < summary["train_loss"][0]
    assert (tmp_path / "model.png").stat().st_size > 1000

    rows = np.loadtxt(table, delimiter=",", skiprows=1)
    flow = torch_flows.load(model)
    x, context = (torch.tensor(a, dtype=torch.float32) for a in (rows[:, :2], rows[:, 2:]))
    expected = flow.log_prob(x, context).detach().numpy()
    for kind, half in ((".csv", "torch"), (".npy", "jax"), (".parquet", "jax")):
        found = json.loads(
            run("log-prob", model, table.with_suffix(kind), "--json", "--backend", half)[1]
        )
        np.testing.assert_allclose(found["log_prob"], expected, atol=1e-4)
        assert found["mean"] == pytest.approx(np.mean(found["log_prob"]))
    losses = summary["train_loss"] + summary["validation_loss"]  # in the units of the data
    assert min(losses) - 0.5 < -expected.mean() < max(losses) + 0.5

    samples = [
        np.loadtxt(
            run("sample", model, "--num", 5, "--context", "0.5", "--backend", half)[1].splitlines(),
            delimiter=",",
        )
        for half in ("torch", "jax")
    ]
    np.testing.assert_allclose(*samples, rtol=1e-4)
    assert run("sample", model, "--num", 7, "--context", 1, "--out", tmp_path / "s.parquet")[0] == 0
    assert pandas.read_parquet(tmp_path / "s.parquet").shape == (7, 2)


def test_training_goes_on_from_its_state(run, table, tmp_path) -> None:
    data, state = table.with_suffix(".npy"), tmp_path / "state"
    for out, options in (
        ("whole", ("--epochs", 4)),
        ("part", ("--epochs", 2, "--state", state)),
        ("part", ("--epochs", 4, "--state", state, "--force")),
    ):
        options = (
            *options,
            "--set",
            "hidden_dims=[8]",
            "--set",
            "num_layers=1",
            "--dtype",
            "float64",
        )
        command = ("train", data, "--out", tmp_path / f"{out}.safetensors", "--backend", "torch")
        assert run(*command, *options, "--no-progress")[0] == 0
    whole, part = (read_header(tmp_path / f"{name}.safetensors") for name in ("whole", "part"))
    assert whole == part


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--model", "nothing"), "there is no model 'nothing'; there are ffjord, glow,"),
        (("--set", "num_layers"), "--set expects NAME=JSON, got 'num_layers'."),
        (("--set", "depth=2"), "MAF has no argument 'depth'"),
        (("--context-columns", 3), "more than 3 columns"),
        (("--validation", 1.5), "a fraction in [0, 1), got 1.5"),
    ],
)
def test_train_refuses(run, table, arguments, reason, tmp_path) -> None:
    code, out, err = run("train", table, "--out", tmp_path / "m.safetensors", *arguments)
    assert (code, out) == (2, "")
    assert reason in err
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("a,b\n1,2\n3,\n4,5\n", "has a missing value, a NaN or an infinity in row 1."),
        ("a,b\n1,red\n3,blue\n", "has a column that is not of numbers: 'b'."),
        ("1,2\n3,2\n4,2\n", "column 1 of the data is constant"),
        ("1e8,2\n1e8,3\n100000001,4\n", "too little for float32"),
    ],
)
def test_bad_tables(run, rows, reason, tmp_path) -> None:
    (data := tmp_path / "data.csv").write_text(rows)
    code, out, err = run("train", data, "--out", tmp_path / "m.safetensors", "--backend", "jax")
    assert (code, out) == (2, "")
    assert reason in err


def test_training_that_diverges_exits_with_1(run, table, tmp_path) -> None:
    command = ("train", table, "--out", out := tmp_path / "m.safetensors", "--backend", "jax")
    options = ("--learning-rate", 1e30, "--set", "num_layers=1", "--no-progress", "--epochs", 3)
    code, _, err = run(*command, *options)
    assert code == 1
    assert "is not finite at step" in err
    assert not out.exists()


def test_files_are_not_replaced(run, table, checkpoint) -> None:
    before = checkpoint.read_bytes()
    code, _, err = run("train", table, "--out", checkpoint)
    assert code == 2
    assert "exists: choose another name, or --force to replace it." in err
    assert checkpoint.read_bytes() == before


def test_sample_needs_its_context(run, checkpoint) -> None:
    for given in ((), ("--context", "1,2"), ("--context", "a,b,c")):
        code, _, err = run("sample", checkpoint, *given)
        assert code == 2
        assert "numbers" in err


def test_the_commands_of_the_documentation(run, tmp_path, monkeypatch) -> None:
    page = (Path(__file__).parents[1] / "docs/command-line.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    count = 0
    for language, block in re.findall(r"^```(python|sh)\n(.*?)^```", page, re.M | re.S):
        if language == "python":
            exec(compile(block, "docs/command-line.md", "exec"), {})
            continue
        for line in block.splitlines():
            code, _, err = run(*shlex.split(line)[1:])
            assert code == 0, f"{line}: {err}"
            count += 1
    assert count == 13
    assert read_header(tmp_path / "again.safetensors") == read_header(tmp_path / "iris.safetensors")


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
