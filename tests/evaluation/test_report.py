import base64
import io
import re

import numpy as np
from PIL import Image

from darkroom.evaluation.galleries import Gallery, Tile
from darkroom.evaluation.glossary import Entry, explain
from darkroom.evaluation.report import curve_svg, read_curve, write_report
from darkroom.pixels import picture_grid

random = np.random.default_rng(0)


def noise(count, size=16):
    return random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def report(folder, **changes):
    content = {
        "title": "A report",
        "metrics": explain({"kid": 0.01234}, {"kid": Entry("KID", "Smaller is better.", "Blur.", "lower")}),
        "facts": {"seed": "0"},
        "galleries": [Gallery("Samples", "Drawn.", [Tile(noise(1), "a cat")]), Gallery("Pairs", "Two.", [Tile(noise(2), "both")])],
        "charts": {"U-Net": curve_svg({"loss": [(0, 1.0), (10, 0.5)]})},
    }
    write_report(folder / "report.html", **content | changes)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_report_needs_nothing_but_itself(tmp_path):
    html = report(tmp_path)
    outside_pictures = re.sub(r"base64,[^\"]*", "base64,", html)
    assert not re.search(r"https?:|//\w|<script|<link|@import|url\(", outside_pictures)
    assert set(re.findall(r'src="([^,"]*)', html)) == {"data:image/png;base64"}


def test_the_report_shows_every_metric_picture_curve_and_fact(tmp_path):
    html = report(tmp_path)
    for text in ("KID", "0.0123", "Smaller is better.", "a cat", "both", "U-Net", "<polyline", "seed", "A report"):
        assert text in html
    assert html.count("<img") == 2


def test_pictures_in_the_report_are_the_pictures(tmp_path):
    images = noise(2)
    html = report(tmp_path, galleries=[Gallery("Pairs", "", [Tile(images, "both")])])
    png = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), picture_grid(images, 2))


def test_captions_are_escaped(tmp_path):
    html = report(tmp_path, galleries=[Gallery("Samples", "", [Tile(noise(1), '"><script>alert(1)</script>')])])
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_report_without_curves_has_no_heading_for_them(tmp_path):
    assert "Training curves" not in report(tmp_path, charts={})


def points_of(svg):
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in re.findall(r'points="([^"]*)"', svg)]


def test_a_curve_runs_from_corner_to_corner_and_keeps_its_proportions():
    (line,) = points_of(curve_svg({"loss": [(0, 4.0), (50, 3.0), (100, 2.0)]}))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x0 < x1 < x2
    assert y0 < y1 < y2  # svg counts downwards
    np.testing.assert_allclose([x1, y1], [(x0 + x2) / 2, (y0 + y2) / 2], atol=0.1)


def test_values_over_a_factor_of_ten_get_a_logarithmic_axis():
    (line,) = points_of(curve_svg({"loss": [(0, 100.0), (50, 10.0), (100, 1.0)]}))
    np.testing.assert_allclose(line[1][1], (line[0][1] + line[2][1]) / 2, atol=0.1)


def test_two_curves_share_one_axis_and_are_named():
    svg = curve_svg({"train": [(0, 1.0), (10, 0.5)], "val <1>": [(5, 0.75)], "empty": []})
    train, val = points_of(svg)
    np.testing.assert_allclose(val[0], np.mean(train, axis=0), atol=0.1)
    assert svg.count("val &lt;1&gt;") == 2  # beside its curve, and for those who cannot see it
    assert "<1>" not in svg
    assert "empty" not in svg


def test_a_curve_of_one_point_or_one_value_is_drawn():
    assert points_of(curve_svg({"loss": [(3, 2.0)]}))
    assert points_of(curve_svg({"loss": [(3, 0.0), (4, 0.0)]}))


def test_curves_are_read_from_csv_without_the_rows_that_have_no_value(tmp_path):
    path = tmp_path / "val.csv"
    path.write_text("step,loss,psnr\n0,1.5,\n10,0.5,20\n20,nan,21\n")
    assert read_curve(path, "loss") == [(0, 1.5), (10, 0.5)]
    assert read_curve(path, "psnr") == [(10, 20), (20, 21)]
    assert read_curve(path, "none") == []
    assert read_curve(tmp_path / "missing.csv", "loss") == []
