"""The doctor's findings as files: one JSON line per photo, and a page."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from darkroom.config import IngestParams
from darkroom.data.doctor import Accepted, Findings, summary
from darkroom.pages import data_uri, write_page
from darkroom.provenance import canonical_json

NUM_THUMBNAILS = 60
THUMBNAIL_SIDE = 96  # px
WHOLE_SIDE = 160  # px, the longer side of a whole photo with its crop
CROP_COLOUR = (255, 60, 0)
NUM_LISTED = 500  # rows of a table on the page; the .jsonl has all
SIDES = (64, 128, 256, 512, 1024, 2048)  # px, borders of the histogram's bins


def write_findings(
    folder: Path,
    findings: Findings,
    params: IngestParams,
    *,
    splits: Mapping[str, Sequence[str]],  # train and val -> sha256 of the photos
    pictures: Mapping[str, bytes],  # sha256 of the photos that the page shows -> finished picture
    wholes: Mapping[str, np.ndarray] | None = None,  # the same, if a subject was looked for -> whole photo, uint8 (H, W, 3) of any size
) -> None:
    """Write accepted.jsonl, rejected.jsonl, duplicates.jsonl, ignored.jsonl and report.html; the same findings give the same bytes."""
    split_of = {sha256: split for split, hashes in splits.items() for sha256 in hashes}
    _write_lines(folder / "accepted.jsonl", (accepted_fields(photo, split_of[photo.sha256]) for photo in findings.accepted))
    _write_lines(folder / "rejected.jsonl", (asdict(photo) for photo in findings.rejected))
    _write_lines(folder / "duplicates.jsonl", (asdict(photo) for photo in findings.duplicates))
    _write_lines(folder / "ignored.jsonl", ({"source": source} for source in findings.ignored))
    _write_report(folder / "report.html", findings, params, split_of, pictures, wholes or {})


def accepted_fields(photo: Accepted, split: str) -> dict[str, Any]:
    found = {"crop": photo.crop, "certainty": photo.certainty} if photo.crop else {}
    return {
        "source": photo.source,
        "sha256": photo.sha256,
        "split": split,
        "width": photo.width,
        "height": photo.height,
        "caption": photo.caption.text,
        "caption_source": photo.caption.source,
        "notes": photo.notes,
    } | found


def shown(findings: Findings) -> list[Accepted]:
    """The photos whose thumbnails the page shows: evenly spread over all photos, so that every folder has its share."""
    num_photos = len(findings.accepted)
    num_shown = min(num_photos, NUM_THUMBNAILS)
    return [findings.accepted[i * num_photos // num_shown] for i in range(num_shown)]


def _write_report(
    path: Path,
    findings: Findings,
    params: IngestParams,
    split_of: Mapping[str, str],
    pictures: Mapping[str, bytes],
    wholes: Mapping[str, np.ndarray],
) -> None:
    count = Counter(split_of.values())
    write_page(
        path,
        "doctor.html.j2",
        title="Your photos",
        summary=[
            *summary(findings, params),
            f"{count['train']} in the training set, {count['val']} held out; each is resized to {params.side} x {params.side} px",
        ],
        bars=[
            ("Where the captions come from", _bars(findings.caption_sources())),
            ("Shorter side of the photos, px", _bars(short_sides(findings.accepted))),
            ("Reasons for rejection", _bars(findings.reasons())),
        ],
        thumbnails=[(photo, split_of[photo.sha256], _thumbnail(pictures[photo.sha256])) for photo in shown(findings)],
        wholes={photo.sha256: _whole(photo, wholes[photo.sha256]) for photo in shown(findings) if photo.sha256 in wholes},
        tables=_tables(findings),
        num_listed=NUM_LISTED,
    )


def _tables(findings: Findings) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]], str]]:
    """(title, column heads, rows, file with all rows)"""
    rejected = [(photo.source, photo.reason, photo.detail) for photo in findings.rejected]
    duplicates = [(photo.source, photo.same, photo.same_as) for photo in findings.duplicates]
    notes = [(photo.source, "; ".join(photo.notes)) for photo in findings.accepted if photo.notes]
    without = [(photo.source, f"{photo.width} x {photo.height}") for photo in findings.without_subject()]
    return [
        ("Photos without a found subject, cropped at the centre", ("photo", "px"), list(without), ""),
        ("Rejected photos", ("photo", "reason", "detail"), list(rejected), "rejected.jsonl"),
        ("Duplicates, left out", ("photo", "same", "as"), list(duplicates), "duplicates.jsonl"),
        ("Accepted photos with a note", ("photo", "note"), list(notes), "accepted.jsonl"),
        ("Metadata lines without a photo", ("line",), [(row,) for row in findings.rows_without_photo], ""),
        ("Ignored files: neither photo nor caption", ("file",), [(source,) for source in findings.ignored], "ignored.jsonl"),
    ]


def short_sides(photos: Iterable[Accepted]) -> dict[str, int]:
    """Histogram: "256-511" -> number of photos whose shorter side is that long, in px; empty bins at the ends are left out."""
    borders = (0, *SIDES)
    labels = [f"{low}-{high - 1}" for low, high in zip(borders, SIDES, strict=False)] + [f"{SIDES[-1]} and more"]
    places = [sum(min(photo.width, photo.height) >= side for side in SIDES) for photo in photos]
    if not places:
        return {}
    return {labels[place]: places.count(place) for place in range(min(places), max(places) + 1)}


def _bars(numbers: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """(label, number, percent of the longest bar)"""
    longest = max(numbers.values(), default=1)
    return [(label, number, round(100 * number / longest, 1)) for label, number in numbers.items()]


def _thumbnail(picture: bytes) -> str:
    """A `src` for <img>."""
    with Image.open(io.BytesIO(picture)) as image:
        if image.width <= THUMBNAIL_SIDE:
            return data_uri(picture, "png" if image.format == "PNG" else "jpeg")
        stream = io.BytesIO()
        image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS).save(stream, "jpeg", quality=85)
    return data_uri(stream.getvalue(), "jpeg")


def _whole(photo: Accepted, pixels: np.ndarray) -> str:
    """A `src` for <img>: the whole photo, small, with its crop drawn on it."""
    image = Image.fromarray(pixels)
    image.thumbnail((WHOLE_SIDE, WHOLE_SIDE), Image.Resampling.LANCZOS)
    if photo.crop:
        across, down = image.width / photo.width, image.height / photo.height
        left, top, right, bottom = photo.crop
        box = (round(left * across), round(top * down), round(right * across) - 1, round(bottom * down) - 1)
        ImageDraw.Draw(image).rectangle(box, outline=CROP_COLOUR, width=2)
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=80, subsampling=0)  # the line keeps its colour
    return data_uri(stream.getvalue(), "jpeg")


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(canonical_json(row) + "\n" for row in rows)
