"""The command line, run as a user would."""

import hashlib
import json
import pickle
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pandas
import pytest
import safetensors.numpy
import torch
from flax.serialization import msgpack_restore, msgpack_serialize
from safetensors.numpy import load_file, save_file

import jax_flows
import torch_flows
import twinflows
from flow_bridge.checkpoint import read_checkpoint, read_header, write_arrays
from parity_tests.peers import GOLDEN
from torch_flows.checkpoint import to_numpy
from twinflows.command import cli
from twinflows.command.tables import read_table
from twinflows.sides.models import expected_shapes


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
    """Of a flow of data and contexts far from 0: its contexts are drawn in units of their own."""
    generator = np.random.default_rng(0)
    x, context = generator.normal(2e3, 2, (50, 2)), generator.normal(5e4, 20, (50, 3))
    flow = torch_flows.standardized(torch_flows.load(checkpoint), x, context)
    torch_flows.save(flow, model := tmp_path / "far.safetensors")
    code, out, _ = run("parity", model, "--rows", 5, "--html", page := tmp_path / "r.html")
    assert code == 0, out
    assert "the two are one model" in out
    assert re.search(r"context: 3 columns, from (49|50)\d\d\d", out)
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


def test_parity_of_two_files(run, tmp_path) -> None:
    flow = torch_flows.Flow(torch_flows.Affine(1), torch_flows.StandardNormal(1))
    torch_flows.save(flow, first := tmp_path / "a.safetensors")
    flow.bijector.shift.data += 1
    torch_flows.save(flow, second := tmp_path / "b.safetensors")
    code, out, _ = run("parity", first, second, "--rows", 2, "--json")
    assert code == 1
    report = json.loads(out)
    assert report["findings"] == ["The weights differ at bijector.shift: up to 1 apart."]
    digest = hashlib.sha256(second.read_bytes()).hexdigest()
    assert report["subject"]["second file"] == f"{second}, sha256 {digest}"
    assert "seed 0" in report["subject"]["inputs"]
    assert report["subject"]["command"].startswith("twinflows ")


def test_convert_there_and_back(run, checkpoint, tmp_path) -> None:
    state, flax_file, again = (
        tmp_path / n for n in ("s.safetensors", "v.msgpack", "a.safetensors")
    )
    (description := tmp_path / "arch.json").write_text(run("inspect", checkpoint, "--json")[1])
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
        command = ("convert", source, again, "--from", form, "--to", "twinflows", "--force")
        for carrier in (description, checkpoint):
            assert run(*command, "--architecture", carrier)[0] == 0
        assert read_header(again) == read_header(checkpoint)
    assert jax_flow.event_shape == (2,)


def test_convert_refuses_other_contents(run, checkpoint, tmp_path) -> None:
    (numbers := tmp_path / "v.msgpack").write_bytes(msgpack_serialize({"params": {"bijector": 1}}))
    (outline := tmp_path / "a.json").write_text('{"architecture": 3}')
    command = ("convert", numbers, tmp_path / "m", "--from", "flax", "--to", "twinflows")
    for architecture, reason in (
        (checkpoint, "array 'bijector' is of type int, which is no array."),
        (outline, "a.json is no JSON of an architecture."),
    ):
        code, _, err = run(*command, "--architecture", architecture)
        assert code == 2
        assert reason in err


def test_import(run, tmp_path) -> None:
    """Arrays of another library's model become a checkpoint, and nothing in a file is run."""
    with np.load(GOLDEN / "sbi_nsf.npz") as file:
        state = safetensors.numpy.load(file["arrays"].tobytes())
        x, context, z = (torch.from_numpy(file[name]) for name in ("x", "context", "z"))
    save_file(state, numbers := tmp_path / "state.safetensors")
    torch.save({k: torch.from_numpy(v) for k, v in state.items()}, weights := tmp_path / "state.pt")
    (pickled := tmp_path / "posterior.pt").write_bytes(pickle.dumps(Path()))
    torch.save({"epoch": 3}, other := tmp_path / "other.pt")
    command = ("--as", "sbi:nsf", "--set", "tail_bound=3")
    for source in (numbers, weights):
        target = tmp_path / f"{source.suffix[1:]}.safetensors"
        code, out, err = run("import", source, *command, "--out", target, "--dtype", "float64")
        assert code == 0, err
        assert "values of sbi nsf" in out
        assert "warning: sbi nsf: " in err
        with torch.no_grad():
            found = torch_flows.load(target).forward(x, context)[0]
        torch.testing.assert_close(found, z, rtol=1e-12, atol=1e-12)
    new = tmp_path / "new.safetensors"
    for source, model, options, sentence in (
        (numbers, "sbi:nsf", (), "state tail_bound"),
        (numbers, "sbi", (), "state which of sbi's models"),
        (numbers, "keras", (), "library"),
        (numbers, "zuko", ("--set", "slope=1e-3"), "zuko"),
        (numbers, "sbi:nsf", ("--set", "slope=1e-3"), "takes no hint 'slope'"),
        (numbers, "sbi:nsf", ("--set", "tail_bound"), "--set expects NAME=VALUE"),
        (pickled, "sbi:nsf", (), "holds objects and not arrays alone"),
        (other, "sbi:nsf", (), "of type int, where"),
    ):
        code, _, err = run("import", source, "--as", model, *options, "--out", new)
        assert code == 2, sentence
        assert sentence in err
        assert not new.exists()
    assert run("import", numbers, *command, "--out", numbers)[0] == 2


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
            skiprows=1,
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
        (
            ("--model", "nothing"),
            "there is no model 'nothing'; there are bnaf, ffjord, gaussianizationflow, glow,",
        ),
        (("--set", "num_layers"), "--set expects NAME=JSON, got 'num_layers'."),
        (("--set", "depth=2"), "MAF has no argument 'depth'"),
        (("--context-columns", 3), "more than 3 columns"),
        (("--context", "age", "--context-columns", 1), "say the same: give one of them"),
        (("--context", "size"), "no column 'size'; it has 'length', 'width', 'age'."),
        (("--context", "age,age"), "column 'age' is named twice."),
        (("--base", "cauchy"), "there is no base distribution 'cauchy'; there are diagonalnormal,"),
        (
            ("--model", "realnvp", "--set", "hidden_dims=[1000000, 1000000]"),
            "GiB, this machine has",
        ),
        (("--set", "hidden_dims=[100000000000]"), "asks for larger masks, orders or tables"),
        (
            ("--set", f"hidden_dims={'[' * 100_000}"),
            "--set expects NAME=JSON, got 'hidden_dims=[[[",
        ),
        (
            ("--model", "realnvp", "--batch-size", 1),
            "at least 2 rows in a batch, here they have 1.",
        ),
        (("--set", "dim=2"), "'dim' cannot be set: that follows from the data."),
        (("--set", 'type="IAF"'), "'type' cannot be set"),
        (("--set", "context_dim=1"), "'context_dim' cannot be set"),
        (("--epochs", 0), "'--epochs': "),
        (("--epoch", 1), "--epoch"),
        (("--backend", "numpy"), "'--backend': "),
        (("--picture", "m.xyz"), "m.xyz is expected to end in .png, .pdf, .svg, .jpg."),
        (
            ("--picture", "m.png", "--no-picture"),
            "--picture and --no-picture contradict each other",
        ),
        (("--validation", 1.5), "a fraction in [0, 1), got 1.5"),
    ],
)
def test_train_refuses(run, table, arguments, reason, tmp_path) -> None:
    code, out, err = run("train", table, "--out", tmp_path / "m.safetensors", *arguments)
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert not (tmp_path / "m.safetensors").exists()


def test_train_refuses_endless_layers(run, table, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("twinflows.sides.models.MAX_LAYERS", 1000)
    arguments = "--set", "num_layers=100000000000000000000"
    code, out, err = run("train", table, "--out", tmp_path / "m.safetensors", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "asks for more layers" in err


TABLES = {
    "a,b\n1,2\n\n3,\n4,5\n": "has a missing value in column 'b', line 4.",
    "a,b\n1,2\n3,nan\n4,5\n": "has a missing value or a NaN in column 'b', line 3.",
    "a,b\n1,2\n1e400,3\n": "has an infinity in column 'a', line 3.",
    'a\n1\n""\n3\n': "has a missing value in column 'a', line 3.",
    '"a\nb",c\n1,2\n3,\n': "has a missing value in column 'c', line 4.",
    "1,2\n3,NA\n4,2\n": "has a missing value in column 1, line 2.",
    "a,b\n1,red\n3,blue\n": "has a column that is not of numbers: column 'b' holds 'red' in line 2.",
    "1,red\n3,blue\n": "has a column that is not of numbers: column 1 holds 'red' in line 1.",
    "a,b\nTrue,1\nFalse,2\n": "is not of numbers: column 'a' holds 'True' in line 2.",
    "a,b\n1_0,2\n3,4\n": "is not of numbers: column 'a' holds '1_0' in line 2.",
    "1,2\n3,2\n4,2\n": "column 1 of the data is constant",
    "a,b\n1,2\n3,2\n4,2\n": "column 'b' of the data is constant",
    "1e8,2\n1e8,3\n100000001,4\n": "too little for float32",
    "a,b\n1e200,2\n2e200,3\n3e200,4\n": "column 'a' of the data has values of 3e+200, too large",
    "age;income\n1;2\n": "seems to be separated by ';': write it with commas.",
    "1,5;2,3\n1,6;2,4\n": "seems to be separated by ';': write it with commas.",
    "age\tincome\n1\t2\n": r"seems to be separated by '\t': write it with commas.",
    "age,income\n": "has no rows.",
    "": "is empty.",
    "a,b\n1,2\n3,4,5\n": "has 3 values in line 3, 2 in the first line.",
    "a,b\n1,2\n3\n": "has 1 values in line 3, 2 in the first line.",
    "a,b\n1,2,3\n4,5,6\n": "has 3 values in line 2, 2 in the first line.",
    "a,a\n1,2\n": "has two columns of the name 'a'.",
    "\xff\xfe": "is not text in UTF-8.",
}


@pytest.mark.parametrize(("rows", "reason"), TABLES.items())
def test_bad_tables(run, rows, reason, tmp_path) -> None:
    (data := tmp_path / "data.csv").write_text(rows, encoding="latin1")
    code, out, err = run("train", data, "--out", tmp_path / "m.safetensors", "--backend", "torch")
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


def test_bad_files_of_other_kinds(run, checkpoint, tmp_path) -> None:
    def refused(name: str, reason: str) -> None:
        code, out, err = run("log-prob", checkpoint, tmp_path / name)
        assert (code, out) == (2, "")
        assert reason in err
        assert err.count("\n") == 1

    np.savez(tmp_path / "a.npz", a=np.ones((3, 2)))
    refused("a.npz", "is no table of numbers: save it as .npy or .csv or .parquet.")
    (tmp_path / "a.npz").rename(tmp_path / "z.npy")
    refused("z.npy", "is an .npz file of several arrays: save one as .npy.")
    np.save(tmp_path / "object.npy", np.array([[{}, 1]], object), allow_pickle=True)
    refused("object.npy", "holds Python objects, which are never unpickled")
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(np.ones((3, 2))))
    refused("pickle.npy", "holds Python objects, which are never unpickled")
    (tmp_path / "empty.npy").write_bytes(b"")
    refused("empty.npy", "is no .npy file that can be read")
    for name, array in (
        ("flat", np.ones(5)),
        ("complex", np.ones((5, 5), complex)),
        ("text", np.array([["a"] * 5])),
        ("fields", np.zeros((5, 5), [("a", "f8")])),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        refused(f"{name}.npy", "is expected to hold rows of numbers, got shape")
    np.save(tmp_path / "none.npy", np.ones((5, 0)))
    refused("none.npy", "has no columns.")
    (tmp_path / "a.parquet").write_text("no")
    refused("a.parquet", "is no Parquet file that can be read.")
    refused("nowhere.parquet", "No such file")
    refused("nowhere.csv", "No such file or directory.")
    frame = pandas.DataFrame({c: [1.0, 2, 3] for c in "abcde"})
    frame.assign(b=pandas.array([1, None, 3], dtype="Int64")).to_parquet(tmp_path / "null.parquet")
    refused("null.parquet", "has a missing value or a NaN in column 'b', row 1 (the first is 0).")
    frame.assign(b=[1.0, 2, None]).to_parquet(tmp_path / "nan.parquet")
    refused("nan.parquet", "has a missing value or a NaN in column 'b', row 2 (the first is 0).")
    frame.assign(c=["x", "y", "z"]).to_parquet(tmp_path / "text.parquet")
    refused("text.parquet", "is not of numbers: column 'c' is of")
    pandas.DataFrame({"": [0, 1, 2]}).to_parquet(tmp_path / "index.parquet")
    refused("index.parquet", "has no columns but an index.")


def test_a_byte_order_mark_and_an_index(tmp_path) -> None:
    (data := tmp_path / "data.csv").write_bytes(b"\xef\xbb\xbfa, b\r\n1, 2\r\n\r\n3,4\r\n")
    table = read_table(data)
    assert table.names == ("a", "b")
    np.testing.assert_array_equal(table.values, [[1, 2], [3, 4]])
    data.write_text(',"a, x"\n0,"1"\n1,2\n')
    table = read_table(data)
    assert table.names == ("a, x",)
    np.testing.assert_array_equal(table.values, [[1], [2]])
    assert "has no name: it is left out as an index of the rows." in table.warnings[0]
    for text, reason in (
        (",a\n0,1\n0,2\n", "has no name and is no index of the rows: give it a name."),
        (",a\n0.5,1\n1,2\n", "has no name and is no index of the rows: give it a name."),
        ("a,,b\n1,2,3\n", "column 1 of .* has no name: give it one."),
    ):
        data.write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_table(data)
    data.write_text("1,2\n3,4\n")
    assert read_table(data).names is None
    data.write_text('"a\nx",b\n1,2\n')
    table = read_table(data)
    assert table.names == ("a\nx", "b")
    np.testing.assert_array_equal(table.values, [[1, 2]])


TINY = ("--set", "hidden_dims=[4]", "--set", "num_layers=1", "--epochs", 1, "--no-progress")


@pytest.fixture
def named(run, table):
    """A model of length and width given age, the columns of the file in another order."""
    pandas.read_csv(table)[["age", "width", "length"]].to_csv(table, index=False)
    model = table.with_name("named.safetensors")
    command = ("train", table, "--out", model, "--context", "age", "--no-picture")
    code, _, err = run(*command, *TINY, "--backend", "torch")
    assert code == 0, err
    return model


def test_columns_are_matched_by_name(run, table, named) -> None:
    frame = pandas.read_csv(table)
    x, context = (
        torch.tensor(frame[c].to_numpy(), dtype=torch.float32)
        for c in (["width", "length"], ["age"])
    )
    expected = torch_flows.load(named).log_prob(x, context).tolist()
    other = table.with_name("other.csv")
    for order in (["length", "width", "age"], ["age", "width", "length"]):
        frame[order].to_csv(other, index=False)
        code, out, err = run("log-prob", named, other, "--json", "--backend", "torch")
        assert (code, err) == (0, "")
        np.testing.assert_allclose(json.loads(out)["log_prob"], expected, rtol=1e-5)
    for changed, reason in (
        (frame.rename(columns={"age": "years"}), "other.csv has no column 'age'; it has"),
        (frame.assign(id=1.0), "a column 'id' that the model does not know; it knows 'width',"),
    ):
        changed.to_csv(other, index=False)
        code, out, err = run("log-prob", named, other)
        assert (code, out) == (2, "")
        assert reason in err
    np.save(array := table.with_suffix(".npy"), frame[["width", "length", "age"]].to_numpy())
    _, out, err = run("log-prob", named, array, "--json", "--backend", "torch")
    np.testing.assert_allclose(json.loads(out)["log_prob"], expected, rtol=1e-5)
    assert "has no names: its columns are taken as 'width', 'length', 'age', in this order." in err
    np.save(array, np.ones((3, 2)))
    assert "has 2 columns, the model 'width', 'length', 'age'." in run("log-prob", named, array)[2]


def test_names_are_in_what_is_written(run, named, tmp_path) -> None:
    for name, read in (("s.csv", pandas.read_csv), ("s.parquet", pandas.read_parquet)):
        command = ("sample", named, "--num", 5, "--context", "age=0.5", "--backend", "torch")
        assert run(*command, "--out", tmp_path / name)[0] == 0
        assert list(read(tmp_path / name).columns) == ["width", "length"]
    assert run(*command)[1] == (tmp_path / "s.csv").read_text()
    assert run("sample", named, "--num", 5, "--context", "0.5")[1].startswith("width,length\n")
    for given, reason in (
        ("size=1", "--context has no column 'age'; it has 'size'."),
        ("age=1,size=2", "the model's context has no column 'size'"),
        ("age=x", "as NAME=NUMBER, got 'age=x'"),
        ("inf", "as NAME=NUMBER, got 'inf'"),
        ("1,2", "a context of 1 numbers ('age'), got 2."),
    ):
        code, _, err = run("sample", named, "--context", given)
        assert code == 2
        assert reason in err


def test_inspect_shows_columns_and_their_scaling(run, table, named) -> None:
    frame = pandas.read_csv(table)
    _, out, _ = run("inspect", named)
    assert f"width   {frame.width.mean():.6g} ± " in out
    shown = json.loads(run("inspect", named, "--json")[1])
    for title, names in (("columns", ["width", "length"]), ("context_columns", ["age"])):
        assert [column["name"] for column in shown[title]] == names
        for column in shown[title]:
            values = frame[column["name"]]
            assert column["loc"] == pytest.approx(values.mean(), rel=1e-6)
            assert column["scale"] == pytest.approx(values.std(ddof=0), rel=1e-6)


def test_robust_scaling_is_not_moved_by_outliers(run, table, tmp_path) -> None:
    frame = pandas.read_csv(table)
    frame.loc[0, "width"] = 1e6
    frame.to_csv(table, index=False)
    command = ("train", table, "--out", out := tmp_path / "m.safetensors", "--no-picture", *TINY)
    assert run(*command, "--robust")[0] == 0
    shown = {c["name"]: c for c in json.loads(run("inspect", out, "--json")[1])["columns"]}
    first, median, third = frame.width.quantile([0.25, 0.5, 0.75])
    assert shown["width"]["loc"] == pytest.approx(median, rel=1e-6)
    assert shown["width"]["scale"] == pytest.approx((third - first) / 1.3489795, rel=1e-6)
    code, _, err = run(*command, "--robust", "--no-standardize", "--force")
    assert code == 2
    assert "--robust and --no-standardize contradict each other" in err


def test_inspect_believes_nothing(run, named, tmp_path) -> None:
    description, arrays = read_checkpoint(named, expected_shapes)
    for number, changes in enumerate(
        (
            {"columns": [1, "\x1b[2J"]},
            {"columns": {"a": 1}},
            {"columns": ["a"]},
            {"bijector": {"bijectors": [{"type": "Standardize"}]}, "columns": 3},
            {"bijector": {"bijectors": ["x"]}, "context_net": 5},
        )
    ):
        path, kept = tmp_path / f"{number}", {k: a for k, a in arrays.items() if "loc" not in k}
        write_arrays(path, "model", description | changes, arrays if number < 3 else kept)
        for options in ((), ("--json",)):
            code, out, err = run("inspect", path, *options)
            assert (code, err) == (0, "")
            assert "\x1b" not in out


def test_what_could_not_be_saved_is_not_trained(run, table, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch_flows, "fit", lambda *args, **options: pytest.fail("it is trained"))
    monkeypatch.setattr("flow_bridge.checkpoint.BASE_LAYERS", 3)
    command = ("train", table, "--out", tmp_path / "m", "--no-picture", "--backend", "torch")
    code, _, err = run(*command, *TINY)
    assert code == 2
    assert "asks for more layers" in err


def test_the_context_is_standardized(run, table, tmp_path) -> None:
    frame = pandas.read_csv(table)
    frame.assign(age=1e4 + 1e5 * frame.age).to_csv(tmp_path / "far.csv", index=False)
    losses = []
    for data in (table, tmp_path / "far.csv"):
        out = tmp_path / f"{data.stem}.safetensors"
        command = ("train", data, "--out", out, "--context", "age", "--no-picture", "--json")
        summary = json.loads(run(*command, *TINY, "--dtype", "float64")[1])
        losses.append(summary["validation_loss"])
    np.testing.assert_allclose(*losses, rtol=1e-9)


def test_warnings_of_columns(run, table, tmp_path) -> None:
    frame = pandas.read_csv(table)
    frame.insert(0, "", range(len(frame)))
    frame.assign(kids=np.arange(len(frame)) % 7).to_csv(table, index=False)
    command = ("train", table, "--out", tmp_path / "m.safetensors", "--no-picture")
    code, _, err = run(*command, *TINY, "--backend", "torch")
    assert code == 0
    assert "table.csv has no name: it is left out" in err
    assert "warning: column 'kids' has 7 values" in err
    assert err.count("\n") == 2


def test_another_base(run, table, tmp_path) -> None:
    for number, (options, df) in enumerate((((), 4.0), (("--set", "base.df=2.5"), 2.5))):
        command = ("train", table, "--out", out := tmp_path / f"{number}", "--no-picture")
        code, _, err = run(*command, *TINY, "--base", "StudentT", *options, "--backend", "torch")
        assert code == 0, err
        base = {"type": "StudentT", "dim": 3, "df": df, "learned": False}
        assert read_header(out).description["base"] == base


def test_bounds_heavy_tails_anomalies_quantiles_and_pairs(run, table, tmp_path) -> None:
    model, picture = tmp_path / "bounded.safetensors", tmp_path / "pairs.png"
    command = ("train", table, "--out", model, "--no-picture", "--heavy-tails", *TINY)
    code, _, err = run(
        *command, "--bounds", "length=0:100", "--bounds", "2=-9:", "--backend", "torch"
    )
    assert code == 0, err
    assert read_header(model).description["base"]["type"] == "StudentT"
    rows = pandas.read_csv(table)
    _, out, _ = run("log-prob", model, table, "--anomaly", "--json", "--backend", "torch")
    scores = json.loads(out)
    order = np.argsort(scores["log_prob"])[::-1]
    assert (np.diff(np.array(scores["anomaly"])[order]) >= 0).all()
    _, out, _ = run("quantiles", model, "--levels", "0.001,0.999", "--json", "--backend", "torch")
    low, high = json.loads(out)["quantiles"]
    assert 0 < low[0] < high[0] < 100
    assert low[2] > -9
    code, out, err = run("pairs", model, "--data", table, "--out", picture, "--backend", "torch")
    assert (code, out) == (0, f"{picture}: 2000 samples beside {len(rows)} rows\n"), err
    assert picture.stat().st_size > 1000
    for options, reason in (
        (("--bounds", "length=0"), "--bounds expects COLUMN=LOW:HIGH, got 'length=0'."),
        (("--bounds", "height=0:1"), "bounds are stated of column 'height'; there are"),
        (("--bounds", "width=1:0"), "of column 'width' are expected as (low, high)"),
        (("--bounds", "width=90:99"), "which is not inside its bounds (90, 99)"),
        (("--base", "uniform"), "--heavy-tails and --base contradict each other"),
    ):
        code, _, err = run(*command, "--force", *options, "--backend", "torch")
        assert (code, reason in err) == (2, True), err
    assert "--levels expects numbers" in run("quantiles", model, "--levels", "a")[2]
    assert "between 0 and 1" in run("quantiles", model, "--levels", "2", "--backend", "torch")[2]


def test_training_without_matplotlib(run, table, monkeypatch, tmp_path) -> None:
    find = cli.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    command = ("train", table, "--backend", "torch", *TINY, "--out")
    code, _, err = run(*command, tmp_path / "m.safetensors")
    assert code == 0
    assert "no picture: matplotlib is missing (pip install 'twinflows[tables]')." in err
    assert not (tmp_path / "m.png").exists()
    code, _, err = run(*command, tmp_path / "n.safetensors", "--picture", tmp_path / "n.png")
    assert code == 2
    assert "error: this needs matplotlib: pip install 'twinflows[tables]'." in err


def test_training_that_diverges_exits_with_1(run, table, tmp_path) -> None:
    command = ("train", table, "--out", out := tmp_path / "m.safetensors", "--backend", "jax")
    options = ("--learning-rate", 1e30, "--set", "num_layers=1", "--no-progress", "--epochs", 3)
    code, _, err = run(*command, *options)
    assert code == 1
    assert "is not finite at step" in err
    assert not out.exists()
    code, _, err = run(*command, *options[:-2], "--epochs", 1, "--batch-size", 400)
    assert code == 1
    assert "error: no validation loss is a number" in err
    assert not out.exists()


def test_no_output_takes_the_place_of_a_file(run, table, checkpoint, tmp_path) -> None:
    (taken := tmp_path / "taken.csv").write_text("precious")
    (link := tmp_path / "link.npy").symlink_to(table)
    (hard := tmp_path / "hard.safetensors").hardlink_to(checkpoint)
    (page := tmp_path / "p.html").write_text("precious")
    (tmp_path / "m.png").write_text("precious")
    contents = {path: path.read_bytes() for path in (table, checkpoint, taken, page)}
    sample = ("sample", checkpoint, "--context", "1,2,3", "--out")
    log_prob = ("log-prob", checkpoint, table, "--out")
    exists, read = "exists: choose another name, or --force", "is what the command reads"
    for command, reason in (
        (("train", table, "--out", checkpoint), exists),
        (("train", table, "--out", tmp_path / "m.safetensors"), f"m.png {exists}"),
        (("train", table, "--out", table, "--force"), read),
        (("train", table, "--out", tmp_path / "a", "--picture", table, "--force"), read),
        (("train", table, "--out", tmp_path / "a", "--state", table, "--no-picture"), read),
        (("train", table, "--out", tmp_path / "a.png"), "is to be written twice"),
        ((*sample, taken), exists),
        ((*sample, checkpoint, "--force"), read),
        ((*sample, tmp_path / "no" / "s.csv"), "no is no folder to write s.csv to."),
        ((*sample, tmp_path), "is a folder: choose a name in it."),
        ((*log_prob, taken), exists),
        ((*log_prob, table, "--force"), read),
        ((*log_prob, link, "--force"), read),
        (("parity", checkpoint, "--html", page), exists),
        (("parity", checkpoint, "--html", hard, "--force"), read),
        (("convert", checkpoint, taken), exists),
        (("convert", checkpoint, hard, "--force"), read),
    ):
        code, out, err = run(*command)
        assert (code, out) == (2, "")
        assert reason in err
        assert err.count("\n") == 1
    assert contents == {path: path.read_bytes() for path in contents}
    assert run(*sample, taken, "--num", 2, "--force")[0] == 0
    assert taken.read_text().startswith("x0,x1\n")


def test_what_fails_leaves_no_file(run, checkpoint, tmp_path, monkeypatch) -> None:
    before = sorted(tmp_path.iterdir())

    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "s.csv")

    monkeypatch.setattr(np, "savetxt", fail)
    command = ("sample", checkpoint, "--context", "1,2,3", "--out", tmp_path / "s.csv")
    assert run(*command)[::2] == (2, "error: s.csv: No space left on device.\n")
    monkeypatch.setattr(Path, "write_bytes", fail)
    assert run("convert", checkpoint, tmp_path / "s.safetensors")[0] == 2
    assert sorted(tmp_path.iterdir()) == before


def test_sample_needs_its_context(run, checkpoint) -> None:
    for given in ((), ("--context", "1,2"), ("--context", "a,b,c")):
        code, _, err = run("sample", checkpoint, *given)
        assert code == 2
        assert "numbers" in err


def test_the_commands_of_the_documentation(run, tmp_path, monkeypatch) -> None:
    page = (Path(__file__).parents[1] / "docs/command-line.md").read_text()
    monkeypatch.chdir(tmp_path)
    count = 0
    for language, block in re.findall(r"^```(python|sh)\n(.*?)^```", page, re.M | re.S):
        if language == "python":
            exec(compile(block, "docs/command-line.md", "exec"), {})
            continue
        for line in block.splitlines():
            code, _, err = run(*shlex.split(line)[1:])
            assert code == 0, f"{line}: {err}"
            count += 1
    assert count == 16
    assert read_header(tmp_path / "again.safetensors") == read_header(tmp_path / "iris.safetensors")


def test_errors_are_one_line(run, checkpoint, tmp_path) -> None:
    (bad := tmp_path / "bad.safetensors").write_bytes(checkpoint.read_bytes()[:-1])
    torch_flows.save(torch_flows.Affine(2), bijector := tmp_path / "bijector.safetensors")
    (deep := tmp_path / "deep.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    nested = '{"type":"Invert","bijector":' * 300 + '{"type":"Tanh"}' + "}" * 300
    (nested_file := tmp_path / "nested.json").write_text(nested)
    from_torch = ("--from", "torch", "--to", "twinflows", "--architecture")
    for arguments in (
        ("inspect", bad),
        ("parity", bad),
        ("parity", bijector),
        ("sample", bijector),
        ("log-prob", bijector, bijector),
        ("inspect", tmp_path / "nowhere"),
        ("convert", bad, tmp_path / "x", "--from", "torch"),
        ("convert", bijector, tmp_path / "x", *from_torch, deep),
        ("convert", bijector, tmp_path / "x", *from_torch, nested_file),
        ("sample", checkpoint, "--num", 10**12, "--context", "1,2,3"),
        ("parity", checkpoint, "--rows", 10**12),
        ("parse", checkpoint),
        ("sample",),
    ):
        code, out, err = run(*arguments)
        assert code == 2, (arguments, err)
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyError("w"), 1, "KeyError: 'w' This is a defect of twinflows: please report it"),
        (MemoryError(), 1, "there is not enough memory for this."),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            1,
            "not enough memory",
        ),
        (RecursionError(), 2, "an architecture is nested too deeply."),
        (ModuleNotFoundError("", name="torch"), 2, "PyTorch: pip install 'twinflows[torch]'."),
        (ModuleNotFoundError("", name="flax.linen"), 2, "JAX: pip install 'twinflows[jax]'."),
        (ValueError("two\nlines"), 2, "two lines"),
    ],
)
def test_no_traceback(run, checkpoint, monkeypatch, error, code, sentence) -> None:
    def fail(*args: object) -> None:
        np.log(np.zeros(1))
        raise error

    monkeypatch.setattr("twinflows.command.scaling.read_scaling", fail)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found, out, err = run("inspect", checkpoint)
    assert not seen
    assert (found, out) == (code, "")
    assert sentence in err
    assert err.count("\n") == 1
    monkeypatch.setenv(cli.DEBUG, "1")
    with pytest.warns(RuntimeWarning, match="divide by zero"):
        assert "Traceback" in run("inspect", checkpoint)[2]


def test_densities_of_zero_are_null_in_json(run, tmp_path) -> None:
    flow = torch_flows.Flow(torch_flows.Standardize(1), torch_flows.Uniform(1))
    torch_flows.save(flow, model := tmp_path / "uniform.safetensors")
    np.save(data := tmp_path / "x.npy", np.array([[0.5], [3.0]]))
    _, out, _ = run("log-prob", model, data, "--json", "--backend", "torch")
    assert json.loads(out) == {"mean": None, "log_prob": [0.0, None]}


def test_version_and_what_is_missing() -> None:
    """Where neither framework is there: the version, a reason, and how to get them."""
    program = """
import sys
for name in ("torch", "jax", "flax", "optax", "matplotlib", "pandas"):
    sys.modules[name] = None
import importlib.util, runpy
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if sys.modules.get(name, 0) is None else find(name)
for arguments in (["--version"], ["sample", "nowhere"]):
    sys.argv = ["twinflows", *arguments]
    try:
        runpy.run_module("twinflows", run_name="__main__")
    except SystemExit as stop:
        print(stop.code)
for half in ("torch_flows", "jax_flows"):
    try:
        __import__(half)
    except ImportError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        f"twinflows {torch_flows.__version__}",
        "0",
        "2",
        "torch_flows needs PyTorch: pip install 'twinflows[torch]'.",
        "jax_flows needs JAX: pip install 'twinflows[jax]'.",
    ]
    assert result.stderr == "error: this needs PyTorch: pip install 'twinflows[torch]'.\n"
    assert twinflows.__version__ == torch_flows.__version__ == jax_flows.__version__
