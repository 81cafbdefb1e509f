"""The benchmarks run: our own contenders are proper flows, are timed, and appear in the table."""

import pytest

from benchmarks import run
from benchmarks.rows import ROWS


@pytest.mark.parametrize("framework", run.FRAMEWORKS)
def test_own_contenders_make_a_table(framework: str) -> None:
    row = ROWS["realnvp-2"]
    parameters, times = run.measure(row, framework, ["train"], [run.OURS], rounds=1, seconds=0.0)
    assert parameters == {run.OURS: 2064}
    assert all(times[name]["train"][0] > 0 for name in (run.OURS, "floor"))
    lines = run.table(row, framework, parameters, times).splitlines()
    assert lines[4] == "| | parameters | training step (ms) |"
    assert [line.split(" | ")[0] for line in lines[6:]] == [f"| {run.OURS}", "| floor"]


def test_a_contender_that_is_no_flow_is_refused() -> None:
    from benchmarks.contenders_torch import Twinflows

    class Broken(Twinflows):
        def inverse(self, z):
            return super().inverse(z) + 1

    with pytest.raises(ValueError, match="no proper flow"):
        run.check(Broken(ROWS["realnvp-2"]), 2064)
