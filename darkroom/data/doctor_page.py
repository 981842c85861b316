"""The findings of `ingest` as files: one JSON line a photo, and a page to look at."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from darkroom.config import IngestParams
from darkroom.data.doctor import Accepted, Findings, summary
from darkroom.provenance import canonical_json

NUM_THUMBNAILS = 60
THUMBNAIL_SIDE = 96  # px
NUM_LISTED = 500  # rows of a table on the page; the .jsonl has all
SIDES = (64, 128, 256, 512, 1024, 2048)  # px, borders of the histogram


def write_findings(
    folder: Path,
    findings: Findings,
    params: IngestParams,
    *,
    splits: Mapping[str, Sequence[str]],  # train and val -> sha256 of the photos
    pictures: Mapping[str, bytes],  # sha256 of some of the photos -> finished picture, to be shown
) -> None:
    """Writes accepted.jsonl, rejected.jsonl, duplicates.jsonl, ignored.jsonl and report.html; the same findings give the same bytes."""
    split_of = {sha256: split for split, hashes in splits.items() for sha256 in hashes}
    _write_lines(folder / "accepted.jsonl", (accepted_fields(photo, split_of[photo.sha256]) for photo in findings.accepted))
    _write_lines(folder / "rejected.jsonl", (asdict(photo) for photo in findings.rejected))
    _write_lines(folder / "duplicates.jsonl", (asdict(photo) for photo in findings.duplicates))
    _write_lines(folder / "ignored.jsonl", ({"source": source} for source in findings.ignored))
    (folder / "report.html").write_text(report(findings, params, split_of, pictures), encoding="utf-8")


def accepted_fields(photo: Accepted, split: str) -> dict[str, Any]:
    return {
        "source": photo.source,
        "sha256": photo.sha256,
        "split": split,
        "width": photo.width,
        "height": photo.height,
        "caption": photo.caption.text,
        "caption_source": photo.caption.source,
        "notes": photo.notes,
    }


def shown(findings: Findings) -> list[Accepted]:
    """The photos whose thumbnails the page shows: evenly spread over all of them, so that every folder has its share."""
    num_photos = len(findings.accepted)
    num_shown = min(num_photos, NUM_THUMBNAILS)
    return [findings.accepted[i * num_photos // num_shown] for i in range(num_shown)]


def report(findings: Findings, params: IngestParams, split_of: Mapping[str, str], pictures: Mapping[str, bytes]) -> str:
    """One HTML page with everything in it; whatever came from a file or its name is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(
        summary=summary(findings, params),
        num_train=sum(split == "train" for split in split_of.values()),
        num_val=sum(split == "val" for split in split_of.values()),
        params=params,
        bars=[
            ("Captions", _bars(findings.caption_sources())),
            ("Short side of the photos, px", _bars(short_sides(findings.accepted))),
            ("Reasons of rejection", _bars(findings.reasons())),
        ],
        thumbnails=[(photo, split_of[photo.sha256], _data_uri(pictures[photo.sha256])) for photo in shown(findings)],
        tables=_tables(findings),
        num_listed=NUM_LISTED,
    )


def _tables(findings: Findings) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]], str]]:
    """(title, heads, rows, file with all rows)"""
    rejected = [(photo.source, photo.reason, photo.detail) for photo in findings.rejected]
    duplicates = [(photo.source, photo.same, photo.same_as) for photo in findings.duplicates]
    remarks = [(photo.source, "; ".join(photo.notes)) for photo in findings.accepted if photo.notes]
    return [
        ("Rejected", ("photo", "reason", "in detail"), list(rejected), "rejected.jsonl"),
        ("Left out, the same as another", ("photo", "same", "as"), list(duplicates), "duplicates.jsonl"),
        ("Used, with a remark", ("photo", "remark"), list(remarks), "accepted.jsonl"),
        ("Lines of metadata that name no photo", ("line",), [(row,) for row in findings.rows_without_photo], ""),
        ("Ignored: neither photo nor caption", ("file",), [(source,) for source in findings.ignored], "ignored.jsonl"),
    ]


def short_sides(photos: Iterable[Accepted]) -> dict[str, int]:
    """Histogram: "256-511" -> number of photos whose shorter side is that long, in px; empty ends are left out."""
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


def _data_uri(picture: bytes) -> str:
    with Image.open(io.BytesIO(picture)) as image:
        kind = "png" if image.format == "PNG" else "jpeg"
        if image.width <= THUMBNAIL_SIDE:
            return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
        stream = io.BytesIO()
        image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS).save(stream, "jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(canonical_json(row) + "\n" for row in rows)


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Your photos</title>
<style>
  :root { color-scheme: light dark; --line: light-dark(#ddd, #444); --faint: light-dark(#666, #aaa); --bar: light-dark(#c8643c, #e08a64); }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
  h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
  table { border-collapse: collapse; width: 100%; }
  th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); }
  td, figcaption { vertical-align: top; overflow-wrap: anywhere; }
  td:not(:first-child):not(:last-child) { white-space: nowrap; }
  .bars { display: grid; grid-template-columns: max-content max-content 1fr; gap: .25rem .8rem; align-items: center; max-width: 40rem; }
  .bars b { text-align: right; font-weight: normal; }
  .bars i { display: block; height: .9rem; background: var(--bar); border-radius: 2px; }
  .photos { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: 1rem; }
  figure { margin: 0; }
  figure img { width: 100%; aspect-ratio: 1; border-radius: 4px; }
  figcaption { font-size: .8rem; line-height: 1.3; }
  small { color: var(--faint); }
</style>
<h1>Your photos</h1>
<ul>
{% for line in summary %}
  <li>{{ line }}</li>
{% endfor %}
  <li>{{ num_train }} to train on, {{ num_val }} held out; pictures of {{ params.side }} px</li>
</ul>
{% for title, rows in bars if rows %}
<h2>{{ title }}</h2>
<div class="bars">
{% for label, number, percent in rows %}
  <span>{{ label | replace("_", " ") }}</span><b>{{ number }}</b><i style="width: {{ percent }}%"></i>
{% endfor %}
</div>
{% endfor %}
{% if thumbnails %}
<h2>{{ thumbnails | length }} of them, as the model will see them</h2>
<div class="photos">
{% for photo, split, uri in thumbnails %}
  <figure>
    <img src="{{ uri }}" alt="">
    <figcaption>{{ photo.caption.text }} <small>({{ photo.caption.source }})<br>
      {{ photo.source }}, {{ photo.width }} × {{ photo.height }} px, {{ split }}</small></figcaption>
  </figure>
{% endfor %}
</div>
{% endif %}
{% for title, heads, rows, file in tables if rows %}
<h2>{{ title }}: {{ rows | length }}</h2>
<table>
  <tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in rows[:num_listed] %}
  <tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% if rows | length > num_listed %}
<p>and {{ rows | length - num_listed }} more{% if file %}, all of them in {{ file }}{% endif %}</p>
{% endif %}
{% endfor %}
</html>
"""
