"""The options of a drawing: one list for Python, the command line, the served model and the docs."""

import runpy
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from darkroom.config import SamplerParams
from darkroom.sampling.request import HINTS, OPTIONS, Options, Request

DEFAULTS: dict[str, Any] = {"steps": 7, "sampler": "euler", "spacing": "karras", "guidance_scale": 2.5}
ROOT = Path(__file__).parents[2]


def test_keyword_arguments_are_the_fields_of_the_request() -> None:
    hints = get_type_hints(Options)
    assert list(hints) == [field.name for field in fields(Request)] == list(OPTIONS)
    for name, hint in hints.items():
        kind, _ = HINTS[name]
        assert set(get_args(hint)) == (set(get_args(kind)) if type(None) in get_args(kind) else {kind, type(None)})


def test_the_model_has_the_defaults_of_those_that_have_none() -> None:
    assert {field.name for field in fields(Request) if field.default is MISSING} == set(SamplerParams.model_fields)


def test_none_and_what_is_missing_are_the_default() -> None:
    request = Request.make("sample", DEFAULTS, {"steps": None, "spacing": "leading", "strength": None})
    assert (request.steps, request.spacing, request.sampler, request.strength) == (7, "leading", "euler", 1.0)


@pytest.mark.parametrize("act", ["invert", "edit"])
def test_inversion_has_no_choice_of_sampler(act: Any) -> None:
    with pytest.raises(ValueError, match=f"`sampler` is not an option of `{act}`"):
        Request.make(act, DEFAULTS, {"sampler": "ddim"})


@pytest.mark.parametrize("name", ["strength", "clip_guidance_scale"])
def test_interpolation_has_no_image_and_no_clip_guidance(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is not an option of `interpolate`"):
        Request.make("interpolate", DEFAULTS, {name: 0.5})


def test_a_number_that_is_none_is_out_of_range() -> None:
    with pytest.raises(ValueError, match="strength is nan; must be at least 0 and at most 1"):
        Request.make("sample", DEFAULTS, {"strength": float("nan")})


def test_a_sampler_that_takes_one_image_at_a_time_gets_one() -> None:
    assert [rows.stop - rows.start for rows in Request(**DEFAULTS, batch_size=2).batches(3)] == [2, 2]
    assert len(Request(**DEFAULTS | {"sampler": "ode_adaptive"}, batch_size=2).batches(3)) == 3


def test_the_page_about_drawing_has_the_table_of_the_request() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "write_drawing_options.py"))
    page = script["PAGE"].read_text(encoding="utf-8")
    assert page == script["with_table"](page), "run `python docs/write_drawing_options.py`"


def test_defaults_in_words_are_those_of_the_fields() -> None:
    for field in fields(Request):
        words, value = OPTIONS[field.name].default, field.default
        if words.isdigit():
            assert float(words) == value
        else:
            assert (words == "the model's") is (value is MISSING)


def test_an_option_stands_in_at_most_four_files() -> None:
    """`steps`, `strength` and the like are words of other things too."""
    texts = {path: path.read_text(encoding="utf-8") for room in ("darkroom", "stages") for path in (ROOT / room).rglob("*.py")}
    for name in ("guidance_rescale", "guidance_interval", "clip_guidance_scale", "negative_prompt"):
        places = [str(path.relative_to(ROOT)) for path, text in texts.items() if name in text]
        assert len(places) <= 4, f"{name}: {places}"
