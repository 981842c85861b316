import pytest

from flows import words


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Stage 'bake' didn't change, skipping", "Cached"),
        ("'data/raw.dvc' didn't change, skipping", None),
        ("Stage 'bake' is cached - skipping run, checking out outputs", "Restored"),
        ("Stage 'bake_more' didn't change, skipping", None),
        ("Running stage 'bake':", None),
    ],
)
def test_dvcs_words_about_a_stage_name_its_state(line: str, expected: str | None) -> None:
    assert words.verdict("bake", line) == expected


def test_a_data_source_is_understood_too() -> None:
    assert words.verdict("data/raw.dvc", "'data/raw.dvc' didn't change, skipping") == "Cached"


def test_a_progress_line_gives_its_fields() -> None:
    fields = words.progress('::progress {"desc": "bake", "step": 30, "total": 120}')
    assert fields == {"desc": "bake", "step": 30, "total": 120}
    assert words.percent(fields) == 25.0


def test_progress_without_a_total_has_no_percent_and_never_exceeds_100() -> None:
    assert words.percent({"step": 3}) is None
    assert words.percent({"step": 3, "total": 0}) is None
    assert words.percent({"step": 9, "total": 6}) == 100.0


@pytest.mark.parametrize(
    "line", ["::progress", "::progress {", "::progress [1]", '::progress {"step": "3"}', "100%|#| 3/3", ' ::progress {"step": 1}']
)
def test_a_line_that_only_resembles_progress_is_an_ordinary_line(line: str) -> None:
    assert words.progress(line) is None


def test_the_error_is_what_the_stage_said_not_what_dvc_wrapped_around_it() -> None:
    lines = ["Running stage 'bake':", "> python bake.py", "bake: the oven is cold", "ERROR: failed to reproduce 'bake': exited with 1"]
    assert words.error(lines) == "bake: the oven is cold"


def test_a_silent_failure_is_told_in_dvcs_words() -> None:
    lines = ["Running stage 'bake':", "> false", "ERROR: failed to reproduce 'bake': exited with 1"]
    assert words.error(lines) == "ERROR: failed to reproduce 'bake': exited with 1"


def test_a_long_error_is_cut_to_its_end() -> None:
    assert words.error([str(number) for number in range(100)]).splitlines() == [str(number) for number in range(88, 100)]
