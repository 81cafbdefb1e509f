"""A few thousand of the files that ``make fuzz`` makes by the million."""

from parity_tests import fuzz_files


def test_mutated_files_mean_what_they_say_or_are_refused() -> None:
    found = fuzz_files.fuzz(seconds=12, seed=0, count=2000)
    assert found.failures == []
    assert found.files > 100  # on a machine that is busy with other things
    assert found.accepted > found.files // 100
    assert found.slowest < fuzz_files.MAX_SECONDS
    assert found.largest < fuzz_files.MAX_MIB
