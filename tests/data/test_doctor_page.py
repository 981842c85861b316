import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from darkroom.data.captions import Caption
from darkroom.data.doctor import Accepted, Duplicate, Findings, Rejected
from darkroom.data.doctor_page import NUM_LISTED, NUM_THUMBNAILS, short_sides, shown, write_findings
from tests.data.test_doctor import PARAMS


def accepted(number: int, width: int = 40, height: int = 30, text: str = "a cat", notes: tuple[str, ...] = ()) -> Accepted:
    return Accepted(f"{number:03d}.png", f"{number:064d}", width, height, Caption(text, "folder"), notes)


def picture(size: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), 99, np.uint8)).save(stream, "png")
    return stream.getvalue()


def write(folder: Path, findings: Findings, size: int = 16, wholes: dict[str, np.ndarray] | None = None) -> str:
    folder.mkdir()
    keys = [photo.sha256 for photo in findings.accepted]
    splits = {"train": keys[1:], "val": keys[:1]}
    write_findings(folder, findings, PARAMS, splits=splits, pictures=dict.fromkeys(keys, picture(size)), wholes=wholes)
    return (folder / "report.html").read_text(encoding="utf-8")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_photo_is_one_line_of_one_file(tmp_path):
    findings = Findings(
        accepted=[accepted(0, text="a café"), accepted(1, notes=("odd",))],
        rejected=[Rejected("r.png", "too_small", "3 x 3")],
        duplicates=[Duplicate("d.png", "000.png", "pixels")],
        ignored=["README"],
    )
    write(tmp_path / "doctor", findings)
    first, second = lines(tmp_path / "doctor" / "accepted.jsonl")
    assert first == {
        "source": "000.png",
        "sha256": "0" * 64,
        "split": "val",
        "width": 40,
        "height": 30,
        "caption": "a café",
        "caption_source": "folder",
        "notes": [],
    }
    assert (second["split"], second["notes"]) == ("train", ["odd"])
    assert lines(tmp_path / "doctor" / "rejected.jsonl") == [{"source": "r.png", "reason": "too_small", "detail": "3 x 3"}]
    assert lines(tmp_path / "doctor" / "duplicates.jsonl") == [{"source": "d.png", "same_as": "000.png", "same": "pixels"}]
    assert lines(tmp_path / "doctor" / "ignored.jsonl") == [{"source": "README"}]


class Page(HTMLParser):
    """What a browser would make of the report: its tags and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_and_captions_cannot_become_markup(tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    findings = Findings(
        accepted=[accepted(0, text=evil), accepted(1, notes=(evil,))],
        rejected=[Rejected(evil, "unreadable", evil)],
        duplicates=[Duplicate(evil, evil, "file")],
        ignored=[evil],
        rows_without_photo=[evil],
    )
    page = Page(write(tmp_path / "doctor", findings))
    assert "script" not in [tag for tag, _ in page.tags]
    assert all((attributes["src"] or "").startswith("data:image/png;base64,") for tag, attributes in page.tags if tag == "img")
    assert page.text.count(evil) == 10  # the first of ignored files and of lines is in the summary too


def test_the_page_needs_no_other_file(tmp_path):
    html = write(tmp_path / "doctor", Findings(accepted=[accepted(0), accepted(1)]))
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|https?://|@import", html)
    assert "1 in the training set, 1 held out; each is resized to 16 x 16 px" in html


def test_large_pictures_are_shown_small(tmp_path):
    page = Page(write(tmp_path / "doctor", Findings(accepted=[accepted(0), accepted(1)]), size=300))
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 2
    with Image.open(io.BytesIO(base64.b64decode((sources[0] or "").split(",")[1]))) as image:
        assert image.size == (96, 96)


def test_the_crop_is_drawn_on_the_whole_photo_and_photos_without_a_subject_are_listed(tmp_path):
    photos = [replace(accepted(0, 400, 300), crop=(200, 0, 400, 200), certainty=0.75), accepted(1)]
    wholes = {photo.sha256: np.full((227, 303, 3), 99, np.uint8) for photo in photos}
    page = Page(write(tmp_path / "doctor", Findings(accepted=photos, looked_for_subject=True), wholes=wholes))
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 4  # each photo, and its picture
    images = []
    for source in (sources[0], sources[2]):
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
            images.append(np.asarray(image.convert("RGB")).astype(int))
    assert images[0].shape == (120, 160, 3)
    red = images[0][..., 0] - images[0][..., 2] > 60
    assert abs(np.flatnonzero(red.any(axis=0))[[0, -1]] - (80, 159)).max() <= 1
    assert abs(np.flatnonzero(red.any(axis=1))[[0, -1]] - (0, 79)).max() <= 1
    assert not red[10:70, 90:150].any()
    assert (abs(images[1] - 99) < 5).all()
    assert "subject found, certainty 0.75" in page.text
    assert "no subject found: cropped at the centre" in page.text
    assert "1 photos are cropped to the subject; 1, in which it was not found, at the centre" in page.text
    assert "Photos without a found subject, cropped at the centre: 1" in page.text
    first, second = lines(tmp_path / "doctor" / "accepted.jsonl")
    assert (first["crop"], first["certainty"]) == ([200, 0, 400, 200], 0.75)
    assert "crop" not in second


def test_the_photos_that_are_shown_are_spread_over_all(tmp_path):
    findings = Findings(accepted=[accepted(number) for number in range(600)])
    assert [int(photo.source[:3]) for photo in shown(findings)] == list(range(0, 600, 600 // NUM_THUMBNAILS))
    assert shown(Findings(accepted=findings.accepted[:3])) == findings.accepted[:3]
    assert shown(Findings()) == []


def test_a_long_list_is_cut_and_says_where_the_rest_is(tmp_path):
    rejected = [Rejected(f"r{number}.png", "unreadable", "") for number in range(NUM_LISTED + 7)]
    page = Page(write(tmp_path / "doctor", Findings(accepted=[accepted(0), accepted(1)], rejected=rejected)))
    assert f"Rejected photos: {NUM_LISTED + 7}" in page.text
    assert f"r{NUM_LISTED - 1}.png" in page.text
    assert f"r{NUM_LISTED}.png" not in page.text
    assert "7 more are not shown; rejected.jsonl lists all." in page.text
    assert len(lines(tmp_path / "doctor" / "rejected.jsonl")) == NUM_LISTED + 7


def test_the_histogram_counts_short_sides():
    photos = [accepted(0, 300, 64), accepted(1, 127, 500), accepted(2, 512, 512), accepted(3, 600, 511)]
    assert short_sides(photos) == {"64-127": 2, "128-255": 0, "256-511": 1, "512-1023": 1}
    assert short_sides([accepted(0, 9000, 5000), accepted(1, 2047, 2048)]) == {"1024-2047": 1, "2048 and more": 1}
    assert short_sides([]) == {}


def test_the_same_findings_give_the_same_bytes(tmp_path):
    findings = Findings(accepted=[accepted(0), accepted(1)], rejected=[Rejected("r", "unreadable", "")])
    assert write(tmp_path / "a", findings) == write(tmp_path / "b", findings)
