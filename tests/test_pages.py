import base64
import io
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from darkroom.pages import TEMPLATES, data_uri, format_number, png_uri, write_page


def test_a_page_is_its_template_around_the_values_each_of_them_escaped(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "base.html.j2", title='<b>"cats" & dogs</b>')
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert html.count("&lt;b&gt;&#34;cats&#34; &amp; dogs&lt;/b&gt;") == 2  # the window's title and the page's
    assert "<b>" not in html


def test_a_value_that_is_missing_is_an_error_and_leaves_no_page(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        write_page(tmp_path / "page.html", "base.html.j2")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*.j2")), ids=lambda path: path.name)
def test_every_template_is_a_page_on_the_one_base_and_takes_its_colours_from_it(template: Path) -> None:
    text = template.read_text(encoding="utf-8")
    if template.name != "base.html.j2":
        assert text.startswith('{% extends "base.html.j2" %}')
        assert "#" not in text.replace("{#", "")  # no colour but those of the palette


def test_pixels_in_a_page_are_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    kind, encoded = png_uri(pixels).split(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))), pixels)
    assert data_uri(b"abc", "jpeg") == "data:image/jpeg;base64,YWJj"


def test_numbers_have_three_digits() -> None:
    values = {1234.6: "1235", 28.55: "28.6", 0.5: "0.500", 0.00012345: "0.000123", -0.02: "-0.0200", 1: "1.00", 0: "0.00"}
    assert {value: format_number(value) for value in values} == values
