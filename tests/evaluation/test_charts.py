import re

import numpy as np
import pytest

from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.diffusion.schedule import Schedule
from darkroom.evaluation.charts import HEIGHT, WIDTH, band_charts, curve_svg, loss_charts, read_curve


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
    svg = curve_svg({"train": [(0, 1.0), (10, 0.5)], "val <1>": [(5, 0.75), (6, 0.75)], "empty": []})
    train, val = points_of(svg)
    np.testing.assert_allclose(val[0], np.mean(train, axis=0), atol=0.1)
    assert svg.count("val &lt;1&gt;") == 2  # beside its curve, and for those who cannot see it
    assert "<1>" not in svg
    assert "empty" not in svg


def test_names_stand_above_the_curves_and_beside_each_other():
    svg = curve_svg({"train": [(0, 1.0), (10, 0.5)], "val": [(0, 0.9), (10, 0.4)], "third": [(0, 0.9), (10, 0.4)]})
    places = [(float(x), float(y)) for x, y in re.findall(r'<text class="series-\d" x="([\d.]+)" y="([\d.]+)"', svg)]
    assert len(set(places)) == 3
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    assert max(y for _, y in places[:2]) < min(y for line in points_of(svg) for _, y in line)


def test_a_curve_of_one_point_is_a_dot_and_one_value_a_line():
    assert curve_svg({"loss": [(3, 2.0)]}).count("<circle") == 1
    assert curve_svg({"loss": [(3, 0.0), (4, 0.0)]}).count("<circle") == 0
    assert points_of(curve_svg({"loss": [(3, 0.0), (4, 0.0)]}))


def test_curves_are_read_from_csv_without_the_rows_that_have_no_value(tmp_path):
    path = tmp_path / "val.csv"
    path.write_text("step,loss,psnr\n0,1.5,\n10,0.5,20\n20,nan,21\n")
    assert read_curve(path, "loss") == [(0, 1.5), (10, 0.5)]
    assert read_curve(path, "psnr") == [(10, 20), (20, 21)]
    assert read_curve(path, "none") == []
    assert read_curve(tmp_path / "missing.csv", "loss") == []


@pytest.fixture
def unet(tmp_path):
    """A folder with the curves of three quarters of time, one of them of the training set alone."""
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / "train.csv").write_text("step,loss,loss_quarter_1,loss_quarter_2,loss_quarter_4\n1,1,2,,4\n2,1,3,,4\n")
    (tmp_path / "curves" / "val.csv").write_text("step,loss,loss_quarter_1,loss_quarter_2\n1,1,2,3\n2,1,3,2\n")
    schedule = Schedule.make("flow", 8, 0.1, 0.2)
    DiffusionConfig(schedule=schedule, prediction="flow", sampler="ddim", steps=2, guidance_scale=1.0).save(tmp_path)
    return tmp_path


def test_each_noise_band_has_a_chart_of_both_splits_under_its_noise_levels(unet):
    charts = band_charts(unet)
    sigmas = Schedule.make("flow", 8, 0.1, 0.2).sigmas
    assert list(charts) == [f"Noise level {sigmas[first]:.2g} to {sigmas[last]:.2g}" for first, last in ((0, 1), (2, 3), (6, 7))]
    assert [("training set" in svg, "held-out set" in svg) for svg in charts.values()] == [(True, True), (False, True), (True, False)]


def test_a_unet_that_was_not_trained_here_has_no_chart(tmp_path):
    assert band_charts(tmp_path) == {}
    assert loss_charts({"unet": tmp_path}) == {}


def test_the_losses_of_every_trained_model_are_drawn(unet, tmp_path):
    assert list(loss_charts({"unet": unet, "clip": tmp_path / "none"})) == ["Loss of train_unet"]
