"""The benchmarks run: our own contenders are proper flows, are timed, and appear in the table."""

from multiprocessing import Pipe
from pathlib import Path

import pytest

from benchmarks import compare, report, run
from benchmarks.rows import ROWS, Place


@pytest.mark.parametrize("framework", run.FRAMEWORKS)
def test_own_contenders_make_a_table(framework: str) -> None:
    row = ROWS["realnvp-2"]
    parameters, times = run.measure(row, framework, ["train"], [run.OURS], rounds=1, seconds=0.0)
    assert parameters == {run.OURS: 2064}
    assert all(times[name]["train"][0] > 0 for name in (run.OURS, "floor"))
    lines = report.table(report.record(row, framework, parameters, times)).splitlines()
    assert lines[4] == "| | parameters | training step (ms) |"
    assert [line.split(" | ")[0] for line in lines[6:]] == [f"| {run.OURS}", "| floor"]


def test_a_run_keeps_what_it_does_not_measure(tmp_path: Path) -> None:
    row, path = ROWS["realnvp-2"], tmp_path / "found.json"
    runs = [
        {run.OURS: {"train": [2.0, 4.0]}, "other": {"train": [1.0, 6.0]}},
        {run.OURS: {"sample": [1.0]}, "other": {"sample": [3.0]}, "floor": {"sample": [0.5]}},
    ]
    for times in runs:
        found = report.record(row, "jax", {run.OURS: 7, "other": 8}, times)
        report.write(path, report.merged(report.read(path), found))
    lines = path.with_suffix(".md").read_text().splitlines()
    assert lines[2].endswith(
        "Of 2 figures ours is first in 1, level (within 5%) in 1, behind in 0."
    )
    assert "| realnvp-2 | jax | 1.00 other | 3.00 other |" in lines
    assert "| other | 8 | 3500.00 (1.00x) | 3000.00 (3.00x) |" in lines
    assert path.with_suffix(".svg").exists()


def test_records_stand_in_the_order_of_the_rows() -> None:
    records: list[report.Record] = []
    for name, framework in (("spline-8", "torch"), ("realnvp-2", "jax"), ("realnvp-2", "torch")):
        times = {run.OURS: {"train": [1.0]}}
        record = report.record(ROWS[name], framework, {run.OURS: 7}, times)
        records = report.merged(records, record)
    found = [(record["row"], record["framework"]) for record in records]
    assert found == [("realnvp-2", "torch"), ("realnvp-2", "jax"), ("spline-8", "torch")]


def test_the_page_is_that_of_its_results() -> None:
    folder = Path(report.__file__).parent
    names = ("results.svg", "results-growth.svg")
    pictures = [name for name in names if (folder / name).exists()]
    notes = (folder / "notes.md").read_text()
    notes += report.before_and_after(folder / "before.json")
    expected = report.page(report.read(folder / "results.json"), pictures, notes)
    assert (folder / "README.md").read_text() == expected


def test_a_contender_that_is_no_flow_is_refused() -> None:
    from benchmarks.contenders_torch import Twinflows

    class Broken(Twinflows):
        def inverse(self, z):
            return super().inverse(z) + 1

    with pytest.raises(ValueError, match="no proper flow"):
        run.check(Broken(ROWS["realnvp-2"]), 2064)


def test_what_is_no_flow_is_left_out_of_its_row(monkeypatch, capsys) -> None:
    from benchmarks.contenders_torch import Twinflows

    class Broken(Twinflows):
        name = "broken"

        def inverse(self, z):
            return super().inverse(z) + 1

    def measured(*found: type) -> list[str]:
        monkeypatch.setattr(run, "contenders", lambda *_: found)
        parameters, times = run.measure(
            ROWS["realnvp-2"], "torch", ["log_prob"], rounds=1, seconds=0.0
        )
        assert times.keys() - {"floor"} == parameters.keys()
        return list(parameters)

    assert measured(Broken, Twinflows) == [run.OURS]
    assert "broken is no proper flow on realnvp-2" in capsys.readouterr().out
    monkeypatch.setattr(Broken, "name", run.OURS)
    with pytest.raises(ValueError, match="no proper flow"):
        measured(Broken)


def test_what_was_measured_on_a_gpu_says_so(tmp_path: Path) -> None:
    row, path = ROWS["realnvp-2"], tmp_path / "found.json"
    found = {run.OURS: {"train": [2.0]}}
    record = report.record(row, "jax", {run.OURS: 7}, found, Place("gpu", "tensorfloat32"))
    report.write(path, [record])
    assert (
        "layers, batch 512, GPU, float32 products tensorfloat32"
        in path.with_suffix(".md").read_text()
    )


def test_checkouts_take_turns(tmp_path: Path) -> None:
    root = Path(report.__file__).resolve().parents[1]
    times = compare.compare([root, root], "torch", "realnvp-2", ["log_prob"], 2, 0.0)
    assert [len(turn) for turn in times["log_prob"]] == [2, 2]
    assert all(seconds > 0 for turn in times["log_prob"] for seconds in turn)
    with pytest.raises(ValueError, match="was imported before"):
        compare.work(Pipe()[0], tmp_path, "torch", "realnvp-2", 0.0)
