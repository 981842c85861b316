"""Captions of photos: from a text file, a metadata table, the folder's name, or the template."""

import csv
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")  # the `imagefolder` convention; if a folder has both, the first one is used
TEMPLATE = "template"


@dataclass(frozen=True)
class Caption:
    text: str
    source: str  # "text_file", "metadata", "folder" or "template"
    attributes: dict[str, Any] = field(default_factory=dict)  # the other columns of the photo's line in a metadata file


@dataclass(frozen=True)
class Row:
    """One line of a metadata file."""

    place: str  # table and line, for messages
    text: str
    attributes: dict[str, Any]


class CaptionFinder:
    """Finds the caption of a photo in the first of the sources that has one.

    Args:
        root: the folder that paths are relative to.
        files: all files in it, relative, sorted.
        sources: some of "text_file", "metadata", "folder".
        template: caption of a photo without one; `{folder}` and `{stem}` are filled in, with spaces for underscores, and `{subject:WORD}`
            with the word for what was found in the photo, or else WORD.

    Raises:
        ValueError: a metadata file with a malformed line, or a template with another field.
    """

    def __init__(self, root: Path, files: Iterable[PurePosixPath], *, sources: Sequence[str], template: str) -> None:
        _check_template(template)
        self._root = root
        self._sources = sources
        self._template = template
        self._rows: dict[str, Row] = {}
        tables = sorted((file for file in files if file.name in METADATA_NAMES), key=_nearest_last) if "metadata" in sources else []
        for table in tables:
            self._rows |= read_metadata(root, table)
        self._unused = set(self._rows)

    def find(self, relative: PurePosixPath, subject: str = "") -> Caption:
        """The caption of the photo at this path; `subject` is a word for what was found in it, if anything was.

        Raises:
            ValueError: the photo's text file is not UTF-8.
        """
        row = self._rows.get(_normal(relative))
        self._unused.discard(_normal(relative))
        attributes = row.attributes if row else {}
        for source in self._sources:
            match source:
                case "text_file":
                    text = self._text_file(relative)
                case "metadata":
                    text = row.text if row else ""
                case "folder":
                    text = _words(relative.parent.name)
                case _:
                    raise AssertionError(f"unknown caption source {source}")
            if text:
                return Caption(text, source, attributes)
        text = self._template.format(folder=_words(relative.parent.name), stem=_words(relative.stem), subject=_Subject(subject))
        return Caption(_one_line(text), TEMPLATE, attributes)

    @property
    def rows_without_photo(self) -> list[str]:
        """Lines of metadata files that name a photo that `find` was not called with: it is missing, or not an image."""
        return sorted(f"{self._rows[name].place}: {name}" for name in self._unused)

    def _text_file(self, relative: PurePosixPath) -> str:
        path = self._root / relative.with_suffix(".txt")
        if not path.is_file():
            return ""
        try:
            return _one_line(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{relative.with_suffix('.txt')} is not UTF-8 text") from error


def read_metadata(root: Path, table: PurePosixPath) -> dict[str, Row]:
    """Path of a photo, relative to `root` -> its row in this metadata.jsonl or metadata.csv.

    Raises:
        ValueError: a line that is malformed, has no `file_name`, has a `text` that is not a string, or names a photo again.
    """
    rows: dict[str, Row] = {}
    lines = _csv_lines if table.suffix == ".csv" else _jsonl_lines
    try:
        with (root / table).open(encoding="utf-8-sig", newline="") as file:
            for place, fields in lines(file):
                name = _photo_of(fields, place, table.parent)
                if name in rows:
                    raise ValueError(f"{place} names {fields['file_name']} again ({rows[name].place}); keep one line per photo")
                attributes = {key: value for key, value in fields.items() if key not in ("file_name", "text")}
                rows[name] = Row(f"{table}, {place}", _one_line(fields.get("text") or ""), attributes)
    except UnicodeDecodeError as error:
        raise ValueError(f"{root / table} is not UTF-8 text; save it as UTF-8.") from error
    except ValueError as error:
        raise ValueError(f"{root / table}: {error}.") from error
    return rows


def _photo_of(fields: Any, place: str, folder: PurePosixPath) -> str:
    if not isinstance(fields, dict):
        raise ValueError(f'{place} must be an object like {{"file_name": "a.jpg", "text": "a cat"}}, got {fields!r:.60}')
    name, text = fields.get("file_name"), fields.get("text")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{place} has no `file_name` (columns: {', '.join(fields)})")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{place}: `text` must be a string, got {text!r:.60}")
    return _normal(os.path.normpath(folder / name.replace("\\", "/")))


def _jsonl_lines(file: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line, parse_constant=_refuse_constant)
            json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair could not be written again
        except ValueError as error:
            raise ValueError(f"line {number} is not valid JSON: {error}") from error
        yield f"line {number}", fields


def _csv_lines(file: Iterable[str]) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(file, strict=True)
    try:
        for fields in reader:
            if None in fields or None in fields.values():
                columns = reader.fieldnames or []
                raise ValueError(f"line {reader.line_num} does not have {len(columns)} columns ({', '.join(columns)}); quote commas")
            yield f"line {reader.line_num}", fields
    except csv.Error as error:
        raise ValueError(f"line {reader.reader.line_num} is not valid CSV: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def without_subject(template: str) -> str:
    """The template with `{subject:cat}` as "cat", for photos in which no subject is looked for."""
    return re.sub(r"\{\{|\{subject:([^{}]+)\}", lambda found: found[1] or found[0], template)  # two braces are a brace itself


class _Subject(str):
    """The word for a subject; in a template `{subject:cat}` is "cat" if there is none."""

    def __format__(self, spec: str) -> str:
        if not spec:
            raise ValueError("{subject} needs a word for photos in which none is found, e.g. {subject:cat}")
        return str(self) or spec


def _check_template(template: str) -> None:
    try:
        template.format(folder="", stem="", subject=_Subject(""))
    except (LookupError, AttributeError, ValueError) as error:
        raise ValueError(
            f"ingest.caption_template {template!r} is invalid ({error}). Only {{folder}}, {{stem}} and {{subject:WORD}} may stand in "
            "braces; write a brace itself twice, {{ or }}."
        ) from error


def _nearest_last(table: PurePosixPath) -> tuple[int, str, int]:
    """Sort key: rows of later tables replace earlier ones. Deeper folders come later, then the first of METADATA_NAMES."""
    return len(table.parts), str(table.parent), -METADATA_NAMES.index(table.name)


def _normal(path: PurePosixPath | str) -> str:
    """The path in Unicode normal form: macOS stores `é` as two characters, tables mostly as one."""
    return unicodedata.normalize("NFC", str(path))


def _words(name: str) -> str:
    return _one_line(name.replace("_", " "))


def _one_line(text: str) -> str:
    return " ".join(text.split())
