import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom.config import IngestParams
from darkroom.data.doctor import Accepted, Duplicate, Findings, Rejected, check_usable, examine, list_files, remarks, some_photos, summary
from darkroom.data.picture import Picture
from darkroom.data.shards import is_below

PARAMS = IngestParams(
    side=16,
    captions=["text_file", "metadata", "folder"],
    caption_template="a cat",
    max_caption_characters=100,
    min_side=8,
    max_megapixels=1,
    max_rejected_fraction=0.5,
    background="white",
    val_fraction=0.2,
    samples_per_shard=10,
    format="png",
    jpeg_quality=95,
    num_workers=1,
)


def photo(folder: Path, name: str, seed: int | None = None, size: tuple[int, int] = (24, 20), format: str = "PNG") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(name.encode()) if seed is None else seed
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(path, format)
    return path


def write(folder: Path, name: str, text: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def changed(**changes) -> IngestParams:
    return PARAMS.model_copy(update=changes)


def sources(findings: Findings) -> list[str]:
    return [accepted.source for accepted in findings.accepted]


# ---- which files


def test_photos_are_found_in_any_tree_sorted_by_path(tmp_path):
    for name in ("b.png", "a/z.PNG", "a/deep/er/c.png", "B.png"):
        photo(tmp_path, name)
    assert sources(examine(tmp_path, PARAMS)) == ["B.png", "a/deep/er/c.png", "a/z.PNG", "b.png"]


def test_hidden_files_and_folders_are_not_seen(tmp_path):
    for name in ("a.png", ".hidden.png", "._a.png", ".cache/b.png", "sub/.trash/c.png"):
        photo(tmp_path, name)
    findings = examine(tmp_path, PARAMS)
    assert sources(findings) == ["a.png"]
    assert findings.ignored == []


def test_links_are_followed_but_not_in_circles(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    photo(elsewhere, "a.png")
    root = tmp_path / "raw"
    photo(root, "b.png")
    (root / "linked").symlink_to(elsewhere)
    (root / "c.png").symlink_to(elsewhere / "a.png")
    (root / "self").symlink_to(root)
    (root / "broken.png").symlink_to(root / "nowhere")
    assert [str(file) for file in list_files(root)] == ["b.png", "broken.png", "c.png", "linked/a.png"]
    findings = examine(root, PARAMS)
    assert sources(findings) == ["b.png", "c.png"]
    assert findings.duplicates == [Duplicate("linked/a.png", "c.png", "file")]
    assert findings.ignored == ["broken.png"]


def test_other_files_are_ignored_and_captions_are_not_listed(tmp_path):
    photo(tmp_path, "a.png")
    photo(tmp_path, "noext", format="JPEG")
    for name in ("a.txt", "orphan.txt", "metadata.jsonl", "sub/metadata.csv", "README", "notes.md", "movie.mp4"):
        write(tmp_path, name, "")
    findings = examine(tmp_path, PARAMS)
    assert sources(findings) == ["a.png", "noext"]
    assert findings.ignored == ["README", "movie.mp4", "notes.md", "orphan.txt"]
    assert "a.txt" in examine(tmp_path, changed(captions=["metadata"])).ignored
    assert "metadata.jsonl" in examine(tmp_path, changed(captions=["text_file"])).ignored


def test_a_pipe_is_ignored_rather_than_read(tmp_path):
    photo(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert examine(tmp_path, PARAMS).ignored == ["b.png"]


def test_a_text_file_is_never_taken_for_a_photo(tmp_path):
    photo(tmp_path, "a.png")
    photo(tmp_path, "b.txt", format="PPM")
    assert examine(tmp_path, PARAMS).ignored == ["b.txt"]


# ---- what becomes of them


def test_what_cannot_be_used_is_listed_with_its_reason_and_left_alone(tmp_path):
    photo(tmp_path, "good.png")
    photo(tmp_path, "small.png", size=(30, 7))
    photo(tmp_path, "large.png", size=(1001, 1000))
    write(tmp_path, "broken.JPG", "no picture")
    write(tmp_path, "broken.txt", "x" * 101)
    write(tmp_path, "phone.heic", "")
    photo(tmp_path, "wordy.png")
    write(tmp_path, "wordy.txt", "x" * 101)
    photo(tmp_path, "latin.png")
    write(tmp_path, "latin.txt", b"caf\xe9")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    findings = examine(tmp_path, PARAMS)
    assert sources(findings) == ["good.png"]
    assert findings.rejected == [
        Rejected("broken.JPG", "unreadable", "not a picture of a known format"),
        Rejected("large.png", "too_large", "Image size (1001000 pixels) is more than ingest.max_megapixels (1)"),
        Rejected("latin.png", "caption_unreadable", "latin.txt is not UTF-8 text"),
        Rejected("phone.heic", "unsupported", "HEIF pictures cannot be read; export them as JPEG"),
        Rejected("small.png", "too_small", "30 x 7 px; ingest.min_side is 8"),
        Rejected("wordy.png", "caption_too_long", "101 characters; ingest.max_caption_characters is 100"),
    ]
    assert findings.reasons()["too_small"] == 1
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_caption_of_the_longest_allowed_length_is_accepted(tmp_path):
    photo(tmp_path, "a.png")
    write(tmp_path, "a.txt", "x" * 100)
    assert examine(tmp_path, PARAMS).accepted[0].caption.text == "x" * 100


def test_a_name_that_is_not_utf8_rejects_its_photo(tmp_path):
    photo(tmp_path, "good.png")
    bad = os.fsdecode(b"caf\xe9.png")
    photo(tmp_path, "tmp.png").rename(tmp_path / bad)
    findings = examine(tmp_path, PARAMS)
    assert sources(findings) == ["good.png"]
    assert findings.rejected == [Rejected(r"caf\xe9.png", "file_name", "the file's name is not UTF-8; rename it")]


def test_the_same_file_or_the_same_pixels_are_used_once(tmp_path):
    first = photo(tmp_path, "b.png")
    (tmp_path / "copy.png").write_bytes(first.read_bytes())
    Image.open(first).save(tmp_path / "same.bmp")
    photo(tmp_path, "other.png", seed=5)
    findings = examine(tmp_path, PARAMS)
    assert sources(findings) == ["b.png", "other.png"]
    assert findings.duplicates == [Duplicate("copy.png", "b.png", "file"), Duplicate("same.bmp", "b.png", "pixels")]
    assert findings.rejected == []
    assert findings.num_photos == 4


def test_a_photo_takes_the_place_of_its_rejected_twin(tmp_path):
    first = photo(tmp_path, "a.png")
    write(tmp_path, "a.txt", "x" * 101)
    (tmp_path / "b.png").write_bytes(first.read_bytes())
    findings = examine(tmp_path, PARAMS)
    assert sources(findings) == ["b.png"]
    assert findings.duplicates == []


def test_photos_smaller_than_the_pictures_are_told(tmp_path):
    for name, size in (("a.png", (16, 16)), ("b.png", (15, 40)), ("c.png", (40, 15))):
        photo(tmp_path, name, size=size)
    assert [accepted.source for accepted in examine(tmp_path, PARAMS).upscaled(16)] == ["b.png", "c.png"]


def test_accepted_photos_are_handed_over_with_their_pictures(tmp_path):
    photo(tmp_path, "cats/a.png", size=(30, 20))
    kept: list[tuple[Accepted, Picture]] = []
    findings = examine(tmp_path, PARAMS, keep=lambda accepted, picture: kept.append((accepted, picture)))
    [(accepted, picture)] = kept
    assert [accepted] == findings.accepted
    assert (accepted.width, accepted.height, accepted.caption.text, accepted.notes) == (30, 20, "cats", ())
    assert picture.encoded.startswith(b"\x89PNG")


def test_some_photos_of_each_split_are_handed_over_at_full_size(tmp_path, monkeypatch):
    for number in range(40):
        photo(tmp_path, f"{number}.png", seed=number)
    hashes = sorted(accepted.sha256 for accepted in examine(tmp_path, PARAMS).accepted)
    num_val = sum(is_below(digest, PARAMS.val_fraction) for digest in hashes)

    def full_ones(num_workers: int = 1) -> list[str]:
        kept: list[tuple[Accepted, Picture]] = []
        examine(tmp_path, changed(num_workers=num_workers), keep=lambda accepted, picture: kept.append((accepted, picture)))
        return sorted(accepted.sha256 for accepted, picture in kept if picture.full is not None)

    assert full_ones() == full_ones(num_workers=2) == hashes  # there are few
    monkeypatch.setattr("darkroom.data.doctor.MAX_FULL", 4)
    full = full_ones()
    num_full = sum(is_below(digest, PARAMS.val_fraction) for digest in full)
    assert full == hashes[:num_full] + hashes[num_val : num_val + len(full) - num_full]  # the lowest hashes of each split
    assert full == [digest for digest in hashes if is_below(digest, 0.1) or (is_below(digest, 0.3) and not is_below(digest, 0.2))]


def test_the_number_of_workers_does_not_change_the_findings(tmp_path):
    for number in range(12):
        photo(tmp_path, f"{number}.png", seed=number // 2)
    write(tmp_path, "broken.png", "no picture")
    assert examine(tmp_path, changed(num_workers=2)) == examine(tmp_path, PARAMS)


def test_metadata_lines_without_photo_are_found(tmp_path):
    photo(tmp_path, "a.png")
    write(tmp_path, "metadata.csv", "file_name,text\na.png,a cat\ngone.png,a dog\n")
    assert examine(tmp_path, PARAMS).rows_without_photo == ["metadata.csv, line 3: gone.png"]


# ---- what ends the run


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, lambda path: write(path, "README.md", "")])
def test_a_folder_without_photos_is_an_error_that_says_what_to_do(tmp_path, make):
    make(tmp_path / "raw")
    with pytest.raises(ValueError, match=rf"no photos in {tmp_path}/raw. Put yours there .*`darkroom demo-data {tmp_path}/raw`"):
        examine(tmp_path / "raw", PARAMS)


def test_parameters_that_mean_nothing_end_the_run_before_it_reads(tmp_path):
    with pytest.raises(ValueError, match=r"ingest\.background"):
        examine(tmp_path, changed(background="wite"))
    photo(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r"ingest\.caption_template"):
        examine(tmp_path, changed(caption_template="{breed}"))


def rejected(number: int) -> list[Rejected]:
    return [Rejected(f"{i}.jpg", "unreadable", "bad") for i in range(number)]


def test_too_many_rejected_photos_are_an_error_that_names_the_first_and_the_limit(tmp_path):
    photo(tmp_path, "a.png")
    findings = examine(tmp_path, PARAMS)
    findings.duplicates = [Duplicate("b.png", "a.png", "file")] * 5
    findings.rejected = rejected(6)
    check_usable(findings, tmp_path, max_rejected_fraction=0.5)
    with pytest.raises(ValueError, match=r"6 of 12 photos .* \(50%; ingest.max_rejected_fraction is 0.4\): 0.jpg \(bad\); 1.jpg.*doctor"):
        check_usable(findings, tmp_path, max_rejected_fraction=0.4)


def test_no_usable_photo_at_all_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"None of the 4 photos in .* can be used: 0.jpg \(bad\); .*darkroom doctor"):
        check_usable(Findings(rejected=rejected(4)), tmp_path, max_rejected_fraction=1)


# ---- what is said


def test_the_summary_says_what_was_found(tmp_path):
    photo(tmp_path, "one/a.png", seed=1)
    photo(tmp_path, "one/b.png", seed=1)
    photo(tmp_path, "c.png", size=(12, 40))
    write(tmp_path, "broken.png", "")
    write(tmp_path, "notes.md", "")
    write(tmp_path, "metadata.csv", "file_name,text\ngone.png,a cat\n")
    findings = examine(tmp_path, PARAMS)
    assert summary(findings, PARAMS) == [
        "2 of 4 photos can be used",
        "1 rejected: 1 unreadable",
        "1 left out as duplicates of other photos",
        "1 other files ignored, e.g. notes.md",
        "captions: 1 folder, 1 template",
        "1 photos are smaller than 16 px and were enlarged, e.g. c.png",
        "1 metadata lines name a photo that does not exist, e.g. metadata.csv, line 2: gone.png",
    ]


@pytest.mark.parametrize(("number", "remarked"), [(9, False), (10, True)])
def test_a_caption_of_more_than_nine_photos_in_ten_is_remarked_with_its_share(tmp_path, number, remarked):
    photo(tmp_path, "other.png", 1000)
    (tmp_path / "other.txt").write_text("a red dog")
    for index in range(number):
        photo(tmp_path, f"{index}.png", index)
    found = [line for line in remarks(examine(tmp_path, PARAMS), PARAMS) if "have the caption" in line]
    share = "10 of 11 photos (90.9%) have the caption 'a cat': other prompts will steer little, or nothing if it is all of them"
    assert found == ([share] if remarked else [])


def test_the_summary_says_when_no_photo_has_a_caption(tmp_path):
    photo(tmp_path, "a.png")
    assert "no photo has a caption of its own (sources: text_file, metadata, folder); all use the template 'a cat'" in summary(
        examine(tmp_path, PARAMS), PARAMS
    )


# ---- subject


def left_half(image: np.ndarray) -> tuple[tuple[float, float, float, float], float, str] | None:
    """In the place of a classifier: finds something in the left half of dark pictures."""
    return ((0.0, 0.0, 0.5, 0.5), 0.6, "tabby") if image.mean() < 128 else None


def test_photos_are_cropped_to_what_is_found_and_counted(tmp_path):
    for name, grey in (("dark", 20), ("bright", 220)):
        Image.new("RGB", (80, 60), (grey, grey, grey)).save(tmp_path / f"{name}.png")
    for num_workers in (1, 2):
        params = changed(num_workers=num_workers, crop="subject", caption_template="a {subject:cat}")
        findings = examine(tmp_path, params, find=left_half)
        assert {photo.source: photo.caption.text for photo in findings.accepted} == {"bright.png": "a cat", "dark.png": "a tabby"}
        assert {photo.source: (photo.crop, photo.certainty) for photo in findings.accepted} == {
            "bright.png": (None, None),
            "dark.png": ((0, 0, 40, 40), 0.6),
        }
        assert [photo.source for photo in findings.without_subject()] == ["bright.png"]
        assert "1 photos are cropped to the subject; 1, in which it was not found, at the centre" in summary(findings, PARAMS)
    assert [photo.source for photo in findings.upscaled(50)] == ["dark.png"]
    unsearched = examine(tmp_path, PARAMS)
    assert unsearched.without_subject() == []
    assert not any("subject" in line for line in summary(unsearched, PARAMS))


def test_some_photos_are_middle_squares_spread_over_all_that_can_be_used(tmp_path):
    for number in range(10):
        Image.new("RGB", (30, 20), (10 * number,) * 3).save(tmp_path / f"{number}.png")
    write(tmp_path, "0.png", "broken")
    assert some_photos(tmp_path, PARAMS, num=5, side=32)[:, 0, 0, 0].tolist() == [20, 40, 60, 80]
    assert some_photos(tmp_path, changed(format="jpeg", num_workers=2), num=50, side=32).shape == (9, 32, 32, 3)
    assert some_photos(tmp_path / "..", changed(min_side=1000), num=5, side=32).shape == (0, 32, 32, 3)


def test_further_crops_are_made_only_for_who_keeps_them(tmp_path, monkeypatch):
    photo(tmp_path, "a.png")
    kept: list[Picture] = []
    examine(tmp_path, changed(crops=3), keep=lambda _, picture: kept.append(picture))
    assert [len(picture.further) for picture in kept] == [2]
    asked: list[int] = []
    monkeypatch.setattr("darkroom.data.picture.further_crops", lambda *_, num, **__: asked.append(num) or ())
    examine(tmp_path, changed(crops=3))
    some_photos(tmp_path, changed(crops=3), num=1, side=32)
    assert asked == [1, 1]
