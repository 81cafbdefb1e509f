"""A thousand of the files that ``make fuzz`` makes by the million."""

from parity_tests import fuzz, fuzz_files


def test_mutated_files_mean_what_they_say_or_are_refused() -> None:
    found = fuzz_files.fuzz(seconds=12, seed=0, count=1000)
    assert found.failures == []
    assert found.files > 100  # on a machine that is busy with other things
    assert found.accepted > found.files // 100
    assert found.slowest < fuzz_files.MAX_SECONDS
    assert found.largest < fuzz_files.MAX_MIB


def test_every_type_of_the_library_is_in_a_file_that_is_changed() -> None:
    described = [*fuzz_files.MODELS.values(), *fuzz_files.MORE]
    missing = fuzz.types_of(object).keys() - set().union(*map(fuzz.types_in, described))
    assert not missing, f"parity_tests/mutated.json lacks {sorted(missing)}"
