"""Further crops of a photo: where they may lie, and that their labels are the truth."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from darkroom.data.crops import LARGER, MOST_MOVED, SMALLER, UNMOVED, further_crops, square_of, view_labels
from darkroom.data.picture import Picture, PictureStyle, develop
from tests.data.test_picture import STYLE, found_at, save, smooth

ROOMY, WHOLE = (400.0, 300.0, 600.0, 500.0), (900, 1000)  # a square with room on all sides; height and width of its photo


def crops(square: tuple[float, float, float, float] = ROOMY, whole: tuple[int, int] = WHOLE, num: int = 400, digest: str = "a"):
    return list(further_crops(square, whole, digest=digest, num=num))


def test_there_is_one_crop_less_than_asked_for_because_the_first_one_is_not_moved():
    assert crops(num=1) == []
    assert len(crops(num=5)) == 4


def test_a_crop_depends_on_the_photo_and_on_its_number_alone():
    assert crops(num=3) == crops(num=9)[:2]
    assert crops(num=3, digest="b") != crops(num=3)
    assert len(set(crops())) == 399


def test_with_room_on_all_sides_place_and_scale_are_uniform_and_independent():
    shifts = np.array([shift for shift, _ in crops(num=4000)])
    ends = np.array([(-MOST_MOVED, -MOST_MOVED, SMALLER), (MOST_MOVED, MOST_MOVED, LARGER)])
    assert (shifts >= ends[0]).all()
    assert (shifts <= ends[1]).all()
    shares = np.sort((shifts - ends[0]) / (ends[1] - ends[0]), axis=0)
    assert np.abs(shares - np.linspace(0, 1, len(shares))[:, None]).max() < 0.03  # Kolmogorov and Smirnov: p = 0.001
    assert np.abs(np.corrcoef(shifts.T) - np.eye(3)).max() < 0.05


@pytest.mark.parametrize(
    ("square", "whole"),
    [
        ((0.0, 0.0, 200.0, 200.0), (500, 400)),  # in a corner
        ((300.0, 200.0, 400.0, 300.0), (300, 400)),  # in the opposite one
        ((50.5, 0.0, 450.5, 400.0), (400, 501)),  # in the middle, of full height
        ((0.0, 50.5, 400.0, 450.5), (501, 400)),
        ((0.0, 0.0, 64.0, 64.0), (64, 64)),  # all there is
        ((100.0, 0.0, 103.0, 3.0), (3, 2000)),
    ],
)
def test_crops_lie_inside_the_photo_and_none_is_the_first_one_again(square, whole):
    found = crops(square, whole)
    boxes = np.array([box for _, box in found])
    size = square[2] - square[0]
    assert boxes[:, :2].min() > -1e-5 * size
    assert boxes[:, 2].max() < whole[1] + 1e-5 * size
    assert boxes[:, 3].max() < whole[0] + 1e-5 * size
    np.testing.assert_allclose(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1], rtol=1e-9)
    assert len({shift for shift, _ in found} - {UNMOVED}) == len(found)


def test_a_photo_that_is_all_in_its_first_crop_has_smaller_crops_and_no_larger_ones():
    scales = np.array([shift[2] for shift, _ in crops((0.0, 0.0, 64.0, 64.0), (64, 64))])
    assert SMALLER <= scales.min() < SMALLER + 0.01
    assert -0.01 < scales.max() <= 0


def test_a_shift_says_where_the_square_is():
    np.testing.assert_allclose(square_of((0.05, -0.02, math.log(1.1)), (100, 100, 200, 200)), (100, 93, 210, 203))
    assert square_of(UNMOVED, (100, 50, 200, 150)) == (100, 50, 200, 150)


def test_in_a_mirrored_view_right_is_left():
    shifts = [UNMOVED, (0.03, 0.02, -0.1)]
    assert view_labels(shifts, flip=False) == [(0, 0, 0, 0), (0.03, 0.02, -0.1, 0)]
    assert view_labels(shifts, flip=True) == [(0, 0, 0, 0), (0, 0, 0, 1), (0.03, 0.02, -0.1, 0), (-0.03, 0.02, -0.1, 1)]
    assert "-0.0," not in json.dumps(view_labels(shifts, flip=True)).replace("-0.03,", "")


# ---- cut out of photos


def developed(path: Path, box: tuple[float, float, float, float] | None = None, **changes) -> Picture:
    picture = develop(path, PictureStyle(**{**STYLE, "side": 32, "crops": 6, **changes}), find=found_at(box) if box else None)
    assert isinstance(picture, Picture), picture
    return picture


def decode(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded))).astype(int)


def check_pixels(picture: Picture, upright: Image.Image, *, mean: float) -> None:
    """Each crop is what its label says of the first one, to `mean` grey levels."""
    width, height = upright.size
    short = min(width, height)
    first = picture.crop or ((width - short) / 2, (height - short) / 2, (width + short) / 2, (height + short) / 2)
    assert len(picture.further) == 5
    for (x, y, log_scale), encoded in picture.further:
        side = (first[2] - first[0]) * math.exp(log_scale)
        left = (first[0] + first[2]) / 2 + x * (first[2] - first[0]) - side / 2
        top = (first[1] + first[3]) / 2 + y * (first[2] - first[0]) - side / 2
        box = (max(left, 0), max(top, 0), min(left + side, width), min(top + side, height))
        expected = np.asarray(upright.resize((32, 32), Image.Resampling.LANCZOS, box=box)).astype(int)
        assert np.abs(decode(encoded) - expected).mean() <= mean
        assert np.abs(decode(encoded) - decode(picture.encoded)).mean() > mean  # and is not the first one


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("box", [None, (0.25, 0.2, 0.65, 0.7), (0.8, 0.7, 1.0, 1.0)], ids=["centre", "subject", "in a corner"])
def test_the_label_of_a_crop_is_where_it_was_cut_out(tmp_path, suffix, box):
    path = save(smooth(400, 300), tmp_path / f"a.{suffix}", **({"quality": 98} if suffix == "jpg" else {}))
    with Image.open(path) as image:
        check_pixels(developed(path, box), image, mean=0.5)


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_the_label_is_that_of_the_upright_photo(tmp_path, orientation):
    upright = smooth(400, 300)
    undo = {3: 3, 6: 2, 7: 6}
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(upright.transpose(Image.Transpose(undo[orientation])), tmp_path / "a.png", exif=exif)
    check_pixels(developed(path), upright, mean=0.5)


def test_further_crops_change_nothing_of_the_first_one(tmp_path):
    path = save(smooth(2000, 1500), tmp_path / "a.jpg", quality=90)
    several, one = developed(path, (0.3, 0.3, 0.5, 0.5)), developed(path, (0.3, 0.3, 0.5, 0.5), crops=1)
    assert one.further == ()
    assert several.encoded == one.encoded
    assert (several.crop, several.sha256, several.pixels_sha256) == (one.crop, one.sha256, one.pixels_sha256)


def test_transparent_pixels_of_further_crops_show_the_background(tmp_path):
    path = save(Image.new("RGBA", (60, 40), (0, 0, 0, 0)), tmp_path / "a.png")
    assert all((decode(encoded) == (0, 0, 255)).all() for _, encoded in developed(path, background="blue").further)


def test_the_files_of_a_picture_have_the_names_and_shifts_of_its_crops(tmp_path):
    path = save(smooth(400, 300), tmp_path / "a.png")
    picture = developed(path, format="jpeg", crops=3)
    files = picture.members("jpg")
    assert sorted(files) == ["crop1.jpg", "crop2.jpg", "crops.json", "jpg"]
    assert json.loads(files["crops.json"]) == [[0, 0, 0], *(list(shift) for shift, _ in picture.further)]
    assert [files["crop1.jpg"], files["crop2.jpg"]] == [encoded for _, encoded in picture.further]
    assert list(developed(path, crops=1).members("png")) == ["png"]
