import io
import json
import sys
from collections.abc import Iterator

import pytest

from darkroom import progress as module
from darkroom.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its first entry is the time."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line.removeprefix("::progress ")) for line in text.splitlines()]


def test_a_pipe_gets_a_line_every_five_seconds_with_the_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(10), desc="work"):
        clock[0] += 2
    assert lines(capsys.readouterr().out) == [
        {"desc": "work", "step": 3, "total": 10, "seconds_left": 14},
        {"desc": "work", "step": 6, "total": 10, "seconds_left": 8},
        {"desc": "work", "step": 9, "total": 10, "seconds_left": 2},
        {"desc": "work", "step": 10, "total": 10, "seconds_left": 0},
    ]


def test_short_work_is_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(4), desc="work"):
        clock[0] += 1
    assert capsys.readouterr().out == ""


def test_work_that_goes_on_counts_from_where_it_was(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(90, 100), desc="work", initial=90):
        clock[0] += 5
    first, *_, last = lines(capsys.readouterr().out)
    assert first == {"desc": "work", "step": 91, "total": 100, "seconds_left": 45}
    assert last["step"] == 100


def test_work_of_unknown_length_has_no_total_unless_it_is_given(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    def endless() -> Iterator[int]:
        for item in range(2):
            clock[0] += 5
            yield item

    list(progress(endless(), desc="work"))
    list(progress(endless(), desc="work", total=2))
    without, _, with_total, _ = lines(capsys.readouterr().out)
    assert without == {"desc": "work", "step": 1}
    assert (with_total["step"], with_total["total"]) == (1, 2)


def test_what_goes_in_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress("abc", desc="work")) == ["a", "b", "c"]
    assert list(progress([], desc="work")) == []


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(range(3), desc="work", unit="cat")) == [0, 1, 2]
    assert "work" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert capsys.readouterr().out == ""
