import csv
import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom.config import IngestParams
from darkroom.data.crops import square_of
from darkroom.data.shards import ImageShards, ShardReader
from darkroom.demo.toy_cats import draw_toy_cats
from darkroom.models.classifier import class_numbers
from darkroom.provenance import hash_json, read_index, write_index
from darkroom.stage import Stage
from darkroom.tracking.tracker import JsonlTracker
from stages.ingest import run
from tests.data.test_doctor import PARAMS, changed, photo, write


def ingest(raw: Path, data: Path, params: IngestParams = PARAMS) -> dict:
    """Runs the stage on `raw` as `darkroom.stage` does; returns index.json of the shards."""
    outs = {name: data / name for name in ("shards", "doctor")}
    for folder in outs.values():
        folder.mkdir(parents=True)
    stage = Stage(
        name="ingest",
        params=params,
        inputs={"raw": raw},
        outs=outs,
        indexes={},
        scratch=data / "scratch",
        tracker=JsonlTracker(data / "scratch" / "metrics.jsonl"),
        is_main=True,
    )
    run(stage)
    for name, folder in outs.items():
        write_index(folder, stage="ingest", params=params.model_dump(), inputs={}, content=stage.content.get(name, {}))
    return read_index(outs["shards"])["content"]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    for number in range(30):
        photo(folder, f"{'maine_coon' if number % 2 else 'bengal'}/{number:02d}.png", seed=number)
    write(folder, "bengal/metadata.csv", "file_name,text,age\n00.png,a Bengal cat,3\n")
    (folder / "copy.png").write_bytes((folder / "bengal/02.png").read_bytes())
    write(folder, "broken.jpg", "no picture")
    return folder


def test_shards_hold_pictures_captions_and_where_they_come_from(tmp_path, raw):
    content = ingest(raw, tmp_path / "data")
    shards = {split: ImageShards(tmp_path / "data" / "shards", split) for split in ("train", "val")}
    assert content["num_images"] == {split: len(shards[split]) for split in shards}
    assert len(shards["train"]) + len(shards["val"]) == 30
    assert all((int(key[:16], 16) < 0.2 * 2**64) == (split == "val") for split in shards for key in shards[split].keys)
    assert len(content["splits"]["train"]) == 4  # 10 or less a shard, and a power of two
    captions = shards["train"].captions + shards["val"].captions
    assert sorted(set(captions)) == ["a Bengal cat", "bengal", "maine coon"]
    key = hashlib.sha256((raw / "bengal/00.png").read_bytes()).hexdigest()
    split = "train" if key in shards["train"].keys else "val"
    reader = ShardReader(tmp_path / "data" / "shards", split)
    assert reader.json(reader.keys.index(key)) == {
        "caption": "a Bengal cat",
        "caption_source": "metadata",
        "source": "bengal/00.png",
        "width": 24,
        "height": 20,
        "attributes": {"age": "3"},
    }
    assert shards["train"].images([0, 1]).shape == (2, 16, 16, 3)


def test_the_index_counts_what_happened(tmp_path, raw):
    content = ingest(raw, tmp_path / "data")
    photos = [json.loads(line) for line in (tmp_path / "data/doctor/accepted.jsonl").read_text().splitlines()]
    assert {name: content[name] for name in content if name not in ("splits", "num_images")} == {
        "size": 16,
        "format": "png",
        "captions": {"folder": 29, "metadata": 1},
        "rejected": {"unreadable": 1},
        "num_duplicates": 1,
        "num_ignored": 0,
        "num_upscaled": 0,
        "photos": hash_json(sorted([photo["sha256"], photo["caption"]] for photo in photos)),
    }
    [metrics, artifact] = (tmp_path / "data/scratch/metrics.jsonl").read_text().splitlines()
    assert {"num_rejected": 1, "num_duplicates": 1}.items() <= json.loads(metrics).items()
    assert json.loads(artifact) == {"artifact": "report.html"}


def test_two_runs_give_the_same_bytes_whatever_folder_and_number_of_workers(tmp_path, raw):
    ingest(raw, tmp_path / "one")
    other = raw.rename(tmp_path / "elsewhere")
    ingest(other, tmp_path / "two", changed(num_workers=2))
    for name in ("shards", "doctor"):
        first, second = bytes_of(tmp_path / "one" / name), bytes_of(tmp_path / "two" / name)
        indexes = [json.loads(files.pop("index.json")) for files in (first, second)]
        assert first == second
        assert indexes[0]["content"] == indexes[1]["content"]
        assert "metrics.jsonl" not in first
    assert sorted(bytes_of(tmp_path / "one/doctor")) == [
        "accepted.jsonl",
        "duplicates.jsonl",
        "ignored.jsonl",
        "index.json",
        "rejected.jsonl",
        "report.html",
    ]


def test_another_caption_is_another_set_of_photos(tmp_path, raw):
    before = ingest(raw, tmp_path / "one")
    write(raw, "bengal/02.txt", "a spotted cat")
    assert ingest(raw, tmp_path / "two")["photos"] != before["photos"]


def test_a_new_photo_leaves_the_others_where_they_were(tmp_path, raw):
    ingest(raw, tmp_path / "one")
    photo(raw, "new.png", seed=999)
    ingest(raw, tmp_path / "two")
    one = {split: ImageShards(tmp_path / "one/shards", split).keys for split in ("train", "val")}
    two = {split: ImageShards(tmp_path / "two/shards", split).keys for split in ("train", "val")}
    assert set(one["train"]) <= set(two["train"])
    assert set(one["val"]) <= set(two["val"])
    first, second = bytes_of(tmp_path / "one/shards"), bytes_of(tmp_path / "two/shards")
    assert sum(first[name] != second[name] for name in first if name.endswith(".tar")) == 1


def test_jpeg_shards_are_read_like_png_ones(tmp_path, raw):
    ingest(raw, tmp_path / "png")
    ingest(raw, tmp_path / "jpeg", changed(format="jpeg", jpeg_quality=100))
    png, jpeg = (ImageShards(tmp_path / format / "shards", "train").images([0, 1]).astype(int) for format in ("png", "jpeg"))
    assert 0 < np.abs(png - jpeg).mean() < 3


@pytest.mark.parametrize("split", ["train", "val"])
def test_photos_are_kept_at_full_size_too(tmp_path, raw, split):
    ingest(raw, tmp_path / "data")
    photos = ImageShards(tmp_path / "data/shards", split)
    assert photos.with_full_size == list(range(len(photos)))
    full, small = photos.full_images([0, 1]).astype(float), photos.images([0, 1]).astype(float)
    assert full.shape == (2, 256, 256, 3)
    assert np.abs(full.mean(axis=(1, 2)) - small.mean(axis=(1, 2))).max() < 3  # they show the same


def test_two_photos_are_enough_and_one_is_not(tmp_path):
    photo(tmp_path / "raw", "a.png")
    with pytest.raises(ValueError, match=r"1 usable photo\(s\); required: at least 2"):
        ingest(tmp_path / "raw", tmp_path / "one")
    photo(tmp_path / "raw", "b.png")
    assert ingest(tmp_path / "raw", tmp_path / "two")["num_images"] == {"train": 1, "val": 1}


def test_too_many_broken_photos_end_the_stage(tmp_path, raw):
    with pytest.raises(ValueError, match=r"1 of 32 photos .*broken\.jpg \(not a picture of a known format\)"):
        ingest(raw, tmp_path / "data", changed(max_rejected_fraction=0.01))


def test_only_broken_photos_end_the_stage(tmp_path):
    write(tmp_path / "raw", "a.jpg", "")
    write(tmp_path / "raw", "b.jpg", "")
    with pytest.raises(ValueError, match="None of the 2 photos"):
        ingest(tmp_path / "raw", tmp_path / "data", changed(max_rejected_fraction=1.0))


def test_photos_without_any_caption_take_the_template_and_the_log_says_so(tmp_path, caplog):
    for name in ("a.png", "b.png"):
        photo(tmp_path / "raw", name)
    with caplog.at_level(logging.WARNING):
        content = ingest(tmp_path / "raw", tmp_path / "data")
    assert content["captions"] == {"template": 2}
    assert "no photo has a caption of its own (sources: text_file, metadata, folder); all use the template 'a cat'" in caplog.text


def test_real_photos_of_cats_go_through(tmp_path, shared):
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in sorted((shared / "data/cats").glob("*.jpg"))[::12]:
        (raw / path.name).symlink_to(path)
    write(raw, "metadata.jsonl", (shared / "data/cats/metadata.jsonl").read_bytes())
    content = ingest(raw, tmp_path / "data", changed(side=64))
    assert content["rejected"] == {}
    assert set(content["captions"]) == {"metadata"}
    images = ImageShards(tmp_path / "data/shards", "train").images(range(20))
    assert images.std(axis=(1, 2, 3)).min() > 10


def cats(folder: Path, shared: Path, step: int) -> Path:
    folder.mkdir()
    for path in sorted((shared / "data/cats").glob("*.jpg"))[::step]:
        (folder / path.name).symlink_to(path)
    return folder


SUBJECT = {"side": 64, "crop": "subject", "max_megapixels": 100.0}
CATS = [281, 282, 283, 284, 285]


def test_real_photos_are_cropped_to_their_subject_with_any_number_of_workers(tmp_path, shared):
    raw = cats(tmp_path / "raw", shared, 42)
    template = "a photo of a {subject:cat}"
    contents = [
        ingest(raw, tmp_path / str(num), changed(**SUBJECT, subject=CATS, num_workers=num, caption_template=template)) for num in (1, 2)
    ]
    assert contents[0] == contents[1]
    for name in ("shards", "doctor"):
        one, two = (bytes_of(tmp_path / str(num) / name) for num in (1, 2))
        del one["index.json"], two["index.json"]
        assert one == two
    assert contents[0]["subject"]["classes"] == CATS
    assert contents[0]["subject"]["num_found"] >= 9
    assert contents[0]["subject"]["num_found"] + contents[0]["subject"]["num_not_found"] == 12
    photos, reader = (make(tmp_path / "1/shards", "train") for make in (ImageShards, ShardReader))
    assert photos.with_full_size
    for i in range(len(photos)):
        fields = reader.json(i)
        if "crop" in fields:
            left, top, right, bottom = fields["crop"]
            with Image.open(raw / fields["source"]) as image:
                expected = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS, box=fields["crop"])).astype(int)
                assert image.size == (fields["width"], fields["height"])
            assert right - left == bottom - top >= min(fields["width"], fields["height"]) // 3
            assert np.abs(photos.images([i])[0] - expected).mean() < 2
            assert 0 < fields["certainty"] <= 1
            assert class_numbers([fields["subject"]], parameter="")[0] in CATS
        assert fields["caption"] == f"a photo of a {fields.get('subject', 'cat')}"
    cropped = [json.loads(line) for line in (tmp_path / "1/doctor/accepted.jsonl").read_text().splitlines()]
    assert sum("crop" in line for line in cropped) == contents[0]["subject"]["num_found"]


@pytest.mark.slow
def test_the_subject_of_real_photos_is_found_from_the_photos(tmp_path, shared, caplog):
    with caplog.at_level(logging.INFO):
        content = ingest(cats(tmp_path / "raw", shared, 10), tmp_path / "data", changed(**SUBJECT))
    assert {281, 282, 285} <= set(content["subject"]["classes"])
    assert "It calls the subject Egyptian cat, " in caplog.text
    assert content["subject"]["num_found"] >= 40


def test_photos_for_which_the_classifier_has_no_words_are_cropped_at_the_centre_and_the_log_says_so(tmp_path, caplog):
    draw_toy_cats(tmp_path / "raw", num_cats=16, size=32, seed=0)
    ingest(tmp_path / "raw", tmp_path / "centre")
    with caplog.at_level(logging.WARNING):
        content = ingest(tmp_path / "raw", tmp_path / "subject", changed(crop="subject"))
    assert "crop: subject: the classifier has no words for what the photos show, so they are cropped at the centre." in caplog.text
    assert "name them in ingest.subject" in caplog.text
    assert "subject" not in content
    for name in ("shards", "doctor"):
        one, two = (bytes_of(tmp_path / crop / name) for crop in ("centre", "subject"))
        del one["index.json"], two["index.json"]
        assert one == two


def test_photos_in_which_the_named_subject_is_not_found_are_cropped_at_the_centre(tmp_path, raw, caplog):
    ingest(raw, tmp_path / "centre")
    with caplog.at_level(logging.INFO):
        content = ingest(raw, tmp_path / "subject", changed(crop="subject", subject=["tabby"]))
    assert content["subject"] == {"classes": [281], "num_found": 0, "num_not_found": 30}
    assert "0 photos are cropped to the subject; 30, in which it was not found, at the centre" in caplog.text
    one, two = (bytes_of(tmp_path / crop / "shards") for crop in ("centre", "subject"))
    assert all(one[name] == two[name] for name in one if name.endswith(".tar"))
    page = (tmp_path / "subject/doctor/report.html").read_text()
    assert page.count("no subject found: cropped at the centre") == 30
    assert "Photos without a found subject, cropped at the centre: 30" in page


def test_training_photos_have_several_crops_and_held_out_ones_one_with_any_number_of_workers(tmp_path, raw):
    plain = ingest(raw, tmp_path / "plain")
    contents = [ingest(raw, tmp_path / str(num), changed(crops=4, num_workers=num)) for num in (1, 2)]
    assert contents[0] == contents[1]
    one, two = (bytes_of(tmp_path / str(num) / "shards") for num in (1, 2))
    del one["index.json"], two["index.json"]
    assert one == two
    assert "crops" not in plain
    assert contents[0]["crops"] == {"train": 4, "val": 1}
    before, train = (ImageShards(tmp_path / name / "shards", "train") for name in ("plain", "1"))
    assert (before.num_crops, train.num_crops) == (1, 4)
    everything = range(len(train))
    np.testing.assert_array_equal(train.images(everything), before.images(everything))
    assert before.shifts(0) == [(0, 0, 0)]
    for i in everything:
        assert train.shifts(i)[0] == (0, 0, 0)
        assert len(set(train.shifts(i))) == 4
    views = [train.images(everything, crop) for crop in range(4)]
    assert all((views[a] != views[b]).any(axis=(1, 2, 3)).all() for a in range(4) for b in range(a))
    with pytest.raises(ValueError, match=r"has no `crop4\.png` \(it has crop1\.png, crop2\.png, crop3\.png, crops\.json,"):
        train.images([0], 4)
    val = ImageShards(tmp_path / "1/shards", "val")
    assert (val.num_crops, val.shifts(0)) == (1, [(0, 0, 0)])
    for name, content in bytes_of(tmp_path / "plain/shards").items():
        assert name == "index.json" or (one[name] == content) == name.startswith("val")


def test_crops_are_cut_out_around_the_subject_as_their_labels_say(tmp_path, shared):
    raw = cats(tmp_path / "raw", shared, 42)
    ingest(raw, tmp_path / "data", changed(**SUBJECT, subject=CATS, crops=3, num_workers=2))
    photos, reader = (make(tmp_path / "data/shards", "train") for make in (ImageShards, ShardReader))
    for i in range(len(photos)):
        fields = reader.json(i)
        if "crop" not in fields:
            continue
        for number, shift in enumerate(photos.shifts(i)):
            with Image.open(raw / fields["source"]) as image:
                left, top, right, bottom = square_of(shift, fields["crop"])
                box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
                expected = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS, box=box)).astype(int)
            assert np.abs(photos.images([i], number)[0] - expected).mean() < 2


def test_photos_that_are_held_out_only_because_no_others_are_have_one_crop_too(tmp_path, raw):
    content = ingest(raw, tmp_path / "data", changed(crops=2, val_fraction=1e-9))
    assert content["num_images"] == {"train": 26, "val": 4}
    members = [sorted(sample["members"]) for shard in content["splits"]["val"] for sample in shard["samples"]]
    assert members == [["full.jpg", "json", "png"]] * 4
    assert ImageShards(tmp_path / "data/shards", "train").images(range(26), 1).std() > 0


def test_a_crop_at_the_centre_does_not_wait_for_torch():
    code = "import stages.ingest, sys; assert 'torch' not in sys.modules and 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_an_unknown_subject_ends_the_stage(tmp_path, raw):
    with pytest.raises(ValueError, match=r"ingest\.subject: ImageNet has no class 'taby'; did you mean tabby"):
        ingest(raw, tmp_path / "data", changed(crop="subject", subject=["taby"]))


def test_unusable_photos_tell_nothing_about_the_subject(tmp_path):
    write(tmp_path / "raw", "a.jpg", "")
    with pytest.raises(ValueError, match="None of the 1 photos"):
        ingest(tmp_path / "raw", tmp_path / "data", changed(crop="subject", max_rejected_fraction=1.0))


def test_odd_files_are_sorted_out_and_never_fatal(tmp_path, shared):
    odd = shared / "data/odd-images"
    content = ingest(odd, tmp_path / "data", changed(max_rejected_fraction=1.0, min_side=1, max_megapixels=100.0))
    rejected = {json.loads(line)["source"] for line in (tmp_path / "data/doctor/rejected.jsonl").read_text().splitlines()}
    ignored = {json.loads(line)["source"] for line in (tmp_path / "data/doctor/ignored.jsonl").read_text().splitlines()}
    with (odd / "manifest.csv").open(newline="") as file:
        fine = {row["file"] for row in csv.DictReader(file) if row["pillow13_outcome"] == "ok" and "err:" not in row["orientation"]}
    assert fine.isdisjoint(rejected | ignored)
    assert content["rejected"]["too_large"] >= 4
