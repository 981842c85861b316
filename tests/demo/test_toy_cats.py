import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom.demo.adherence import coat_colour, prompt_adherence
from darkroom.demo.toy_cats import (
    ACCESSORIES,
    BACKGROUNDS,
    COATS,
    EYES,
    OTHER_COLOURS,
    POSES,
    caption_of,
    draw_toy_cats,
    parse_caption,
    toy_cat,
)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def cats(count: int, size: int, seed: int = 3) -> tuple[np.ndarray, list[dict[str, str]]]:
    drawn = [toy_cat(index, size=size, seed=seed) for index in range(count)]
    return np.stack([pixels(png) for png, _ in drawn]), [attributes for _, attributes in drawn]


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        draw_toy_cats(tmp_path / name, num_cats=5, size=32, seed=1)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_picture_does_not_depend_on_how_many_there_are_but_on_the_seed(tmp_path):
    for name, num_cats, seed in (("few", 3, 1), ("many", 6, 1), ("other", 3, 2)):
        draw_toy_cats(tmp_path / name, num_cats=num_cats, size=32, seed=seed)
    few, many, other = (files_of(tmp_path / name) for name in ("few", "many", "other"))
    assert all(many[name] == content for name, content in few.items() if name.endswith(".png"))
    assert all(other[name] != content for name, content in few.items())


@pytest.mark.parametrize("size", [16, 33, 256])
def test_a_set_is_pictures_of_the_size_and_a_line_of_metadata_each(tmp_path, size):
    draw_toy_cats(tmp_path / "new" / "folder", num_cats=3, size=size, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "new" / "folder" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        with Image.open(tmp_path / "new" / "folder" / row["file_name"]) as image:
            assert (image.size, image.mode, image.format) == ((size, size), "RGB", "PNG")
        attributes = {key: value for key, value in row.items() if key not in ("file_name", "text")}
        assert set(attributes) == {"coat", "eyes", "pose", "accessory", "background"}
        assert parse_caption(row["text"]) == attributes


def test_every_caption_parses_back_to_its_attributes_and_fits_twenty_tokens():
    from open_clip import SimpleTokenizer

    encode = SimpleTokenizer().encode
    for pose in POSES:
        for coat in COATS:
            for eyes in EYES:
                for accessory in ACCESSORIES:
                    for background in BACKGROUNDS:
                        attributes = {"pose": pose, "coat": coat, "eyes": eyes, "accessory": accessory, "background": background}
                        text = caption_of(attributes)
                        assert parse_caption(text) == attributes
                        assert len(encode(text)) <= 20


@pytest.mark.parametrize(
    "text",
    ["", "a photo of a cat", "a sitting green cat with green eyes, in a room", "A sitting pink cat with green eyes, in a room"],
)
def test_any_other_text_does_not_parse(text):
    assert parse_caption(text) is None


def test_all_attributes_are_drawn_about_equally_often():
    drawn = [toy_cat(index, size=16, seed=0)[1] for index in range(400)]
    for name, values in {"coat": COATS, "eyes": EYES, "pose": POSES, "accessory": ACCESSORIES, "background": BACKGROUNDS}.items():
        counts = Counter(attributes[name] for attributes in drawn)
        assert set(counts) == set(values)
        assert min(counts.values()) > 0.6 * 400 / len(values)


def test_two_cats_with_the_same_caption_are_not_the_same_picture():
    images, attributes = cats(300, size=16)
    by_caption: dict[str, list[np.ndarray]] = {}
    for image, found in zip(images, attributes, strict=True):
        by_caption.setdefault(caption_of(found), []).append(image.astype(float))
    twins = [group for group in by_caption.values() if len(group) > 1]
    assert len(twins) > 5
    assert all(np.abs(group[0] - group[1]).mean() > 3 for group in twins)


def test_the_coat_is_seen_in_99_percent_of_the_drawn_cats():
    images, attributes = cats(400, size=32)
    assert prompt_adherence(coat_colour(images, COATS, OTHER_COLOURS), [found["coat"] for found in attributes]) >= 0.99


def test_a_small_picture_shows_the_same_cat_as_a_large_one():
    large, _ = cats(8, size=256)
    small, _ = cats(8, size=32)
    reduced = large.reshape(8, 32, 8, 32, 8, 3).mean(axis=(2, 4))
    assert np.abs(reduced - small).mean() < 8


def test_drawing_the_same_set_again_changes_nothing_and_completes_what_is_missing(tmp_path):
    draw_toy_cats(tmp_path, num_cats=4, size=16, seed=0)
    before = files_of(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "cat-000002.png").unlink()
    (tmp_path / ".gitignore").write_text("hidden files do not count")
    draw_toy_cats(tmp_path, num_cats=4, size=16, seed=0)
    assert files_of(tmp_path) == before | {".gitignore": b"hidden files do not count"}
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items() if path.name != "cat-000002.png")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"num_cats": 3}, "'cat-000003.png', which does not belong"),
        ({"num_cats": 5}, "metadata.jsonl of another set"),
        ({"seed": 1}, "metadata.jsonl of another set"),
        ({"size": 24}, "a different cat-000000.png"),
    ],
)
def test_another_set_in_the_same_folder_is_refused_and_left_alone(tmp_path, request_, message):
    asked = {"num_cats": 4, "size": 16, "seed": 0}
    draw_toy_cats(tmp_path, **asked)
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=message):
        draw_toy_cats(tmp_path, **asked | request_)
    assert files_of(tmp_path) == before


def test_a_folder_with_photos_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mimi.jpg").write_bytes(b"photo")
    with pytest.raises(ValueError, match=r"already contains 'mimi\.jpg'.*Nothing was changed: name another folder"):
        draw_toy_cats(tmp_path, num_cats=2, size=16, seed=0)
    assert files_of(tmp_path) == {"mimi.jpg": b"photo"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "raw").write_text("")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        draw_toy_cats(tmp_path / "raw", num_cats=2, size=16, seed=0)


@pytest.mark.parametrize("bad", [{"num_cats": 0, "size": 32}, {"num_cats": 1, "size": 15}])
def test_too_few_or_too_small_cats_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="at least 1 cat of at least 16 px"):
        draw_toy_cats(tmp_path / "raw", **bad, seed=0)
    assert not (tmp_path / "raw").exists()
