"""The doctor: examines every file in a folder of photos and reports which can be used, and why the others cannot."""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from darkroom.config import IngestParams
from darkroom.data.captions import METADATA_NAMES, TEMPLATE, Caption, CaptionFinder
from darkroom.data.colours import background_colour
from darkroom.data.crops import Crop, crop_side
from darkroom.data.picture import Find, Picture, PictureStyle, Reason, Rejection, develop, image_suffixes, looks_like_image
from darkroom.data.shards import MAX_FULL
from darkroom.data.workers import in_order
from darkroom.progress import progress

# Files that are never opened to see whether they are photos.
TEXT_SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".rst", ".html", ".xml", ".yaml", ".yml", ".toml", ".py", ".sh")
LARGE_SHARE = 0.9  # of the photos; a caption with more is remarked on
NAMED_IN_ERRORS = 3  # examples that a message gives


@dataclass(frozen=True)
class Accepted:
    source: str  # path below the examined folder
    sha256: str  # of the file
    width: int  # px, of the upright photo
    height: int
    caption: Caption
    notes: tuple[str, ...]  # problems that do not keep the photo from being used
    crop: Crop | None = None  # the square around the subject; None = none was found, or looked for
    certainty: float | None = None  # that the subject is there, 0 to 1


@dataclass(frozen=True)
class Rejected:
    source: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Duplicate:
    source: str
    same_as: str  # the accepted photo
    same: str  # "file" or "pixels" (of the finished picture)


@dataclass
class Findings:
    """The result of `examine`; every list is in the order of the paths."""

    accepted: list[Accepted] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)  # neither photo nor caption
    rows_without_photo: list[str] = field(default_factory=list)  # lines of metadata files that name no photo
    looked_for_subject: bool = False

    @property
    def num_photos(self) -> int:
        return len(self.accepted) + len(self.rejected) + len(self.duplicates)

    def caption_sources(self) -> dict[str, int]:
        return dict(sorted(Counter(photo.caption.source for photo in self.accepted).items()))

    def reasons(self) -> dict[str, int]:
        return dict(sorted(Counter(str(photo.reason) for photo in self.rejected).items()))

    def upscaled(self, size: int) -> list[Accepted]:
        return [photo for photo in self.accepted if crop_side(photo.crop, (photo.height, photo.width)) < size]

    def without_subject(self) -> list[Accepted]:
        """Photos in which the subject was looked for and not found; they are cropped at the centre."""
        return [photo for photo in self.accepted if photo.crop is None] if self.looked_for_subject else []

    def subject_counts(self) -> dict[str, int]:
        num_without = len(self.without_subject())
        return {"num_found": len(self.accepted) - num_without, "num_not_found": num_without}


def examine(
    folder: Path, params: IngestParams, *, keep: Callable[[Accepted, Picture], None] | None = None, find: Find | None = None
) -> Findings:
    """Read every photo below `folder`, in `num_workers` processes; nothing there is changed.

    Args:
        folder: any tree of images and captions.
        params: section `ingest` of params.yaml.
        keep: called with every accepted photo and its finished picture, which is not kept in memory. About `MAX_FULL` photos of
            each split, those with the lowest hashes, then have a picture at full size too.
        find: finds the subject to which photos are cropped; other processes get a pickled copy. None = all are cropped at the centre.

    Raises:
        ValueError: no photos, a malformed metadata file, an invalid colour or caption template.
    """
    background_colour(params.background)
    files = list_files(folder)
    photos, others = sort_files(folder, files)
    if not photos:
        raise ValueError(_no_photos(folder))
    captions = CaptionFinder(folder, files, sources=params.captions, template=params.caption_template)
    ignored = [printable(file) for file in _ignored(others, photos, params.captions)]
    findings = Findings(ignored=ignored, looked_for_subject=find is not None)
    style = PictureStyle.of(params) if keep else replace(PictureStyle.of(params), crops=1)
    seen: dict[str, str] = {}  # sha256 of file or pixels -> the accepted photo
    paths = (folder / photo for photo in photos)
    val, share = params.val_fraction, MAX_FULL / len(photos)
    full = [(0.0, min(val, share)), (val, val + share)] if keep else []
    with closing(in_order(partial(develop, style=style, full=full, find=find), paths, num_workers=params.num_workers)) as pictures:
        for photo, picture in progress(zip(photos, pictures, strict=True), desc="ingest", total=len(photos), unit="photo"):
            subject = picture.subject if isinstance(picture, Picture) else ""
            caption = _caption(photo, captions, params.max_caption_characters, subject)
            _enter(findings, seen, photo, caption, picture, keep)
    findings.rows_without_photo = captions.rows_without_photo
    return findings


def some_photos(folder: Path, params: IngestParams, *, num: int, side: int) -> np.ndarray:
    """Middle squares of up to `num` photos, spread evenly over the sorted paths, uint8 (N, side, side, 3); unusable photos are left out.

    Raises:
        ValueError: the folder is missing.
    """
    photos, _ = sort_files(folder, list_files(folder))
    chosen = [folder / photos[i * len(photos) // min(num, len(photos))] for i in range(min(num, len(photos)))]
    style = replace(PictureStyle.of(params), side=side, format="png", crops=1)
    with closing(in_order(partial(develop, style=style), chosen, num_workers=params.num_workers)) as pictures:
        encoded = [picture.encoded for picture in progress(pictures, desc="look at photos", total=len(chosen), unit="photo")
                   if isinstance(picture, Picture)]  # fmt: skip
    images = np.empty((len(encoded), side, side, 3), np.uint8)
    for row, png in enumerate(encoded):
        with Image.open(io.BytesIO(png)) as image:
            images[row] = np.asarray(image)
    return images


def list_files(folder: Path) -> list[PurePosixPath]:
    """Files below `folder`, relative and sorted. Links are followed; hidden files and folders are left out.

    Raises:
        ValueError: the folder is missing.
    """
    if not folder.is_dir():
        raise ValueError(_no_photos(folder))
    return sorted(PurePosixPath(path.relative_to(folder).as_posix()) for path in _walk(folder, frozenset()))


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    here = folder.resolve()
    if here in above:  # a link to a folder that contains it
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, above | {here})
        else:
            yield path


def sort_files(folder: Path, files: list[PurePosixPath]) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """Photos, recognised by their suffix or, if it is unknown, by their first bytes; and the other files."""
    photos: list[PurePosixPath] = []
    others: list[PurePosixPath] = []
    for file in files:
        suffix, path = file.suffix.lower(), folder / file
        is_photo = path.is_file() and (suffix in image_suffixes() or (suffix not in TEXT_SUFFIXES and looks_like_image(path)))
        (photos if is_photo else others).append(file)
    return photos, others


def _ignored(others: list[PurePosixPath], photos: list[PurePosixPath], sources: Sequence[str]) -> Iterator[PurePosixPath]:
    captioned = {photo.with_suffix(".txt") for photo in photos} if "text_file" in sources else set()
    for file in others:
        if file not in captioned and not (file.name in METADATA_NAMES and "metadata" in sources):
            yield file


def _caption(photo: PurePosixPath, captions: CaptionFinder, max_characters: int, subject: str) -> Caption | Rejection:
    try:
        str(photo).encode()
    except UnicodeEncodeError:
        return Rejection("file_name", "the file's name is not UTF-8; rename it")
    try:
        caption = captions.find(photo, subject)
    except ValueError:  # its text is for people, and this one is part of an output
        return Rejection("caption_unreadable", f"{photo.with_suffix('.txt')} is not UTF-8 text")
    if len(caption.text) > max_characters:
        return Rejection("caption_too_long", f"{len(caption.text)} characters; ingest.max_caption_characters is {max_characters}")
    return caption


def _enter(
    findings: Findings,
    seen: dict[str, str],
    photo: PurePosixPath,
    caption: Caption | Rejection,
    picture: Picture | Rejection,
    keep: Callable[[Accepted, Picture], None] | None,
) -> None:
    source = printable(photo)
    for outcome in (picture, caption):
        if isinstance(outcome, Rejection):
            findings.rejected.append(Rejected(source, outcome.reason, outcome.detail))
            return
    assert isinstance(picture, Picture)
    assert isinstance(caption, Caption)
    for same, digest in (("file", picture.sha256), ("pixels", picture.pixels_sha256)):
        if digest in seen:
            findings.duplicates.append(Duplicate(source, seen[digest], same))
            return
    seen |= {picture.sha256: source, picture.pixels_sha256: source}
    accepted = Accepted(source, picture.sha256, picture.width, picture.height, caption, picture.notes, picture.crop, picture.certainty)
    findings.accepted.append(accepted)
    if keep:
        keep(accepted, picture)


def check_usable(findings: Findings, folder: Path, *, max_rejected_fraction: float) -> None:
    """Refuse a folder with too few usable photos.

    Raises:
        ValueError: no photo can be used, or the share of rejected photos is above `max_rejected_fraction`.
    """
    num_rejected = len(findings.rejected)
    examples = "; ".join(f"{photo.source} ({photo.detail})" for photo in findings.rejected[:NAMED_IN_ERRORS])
    if not findings.accepted:
        raise ValueError(f"None of the {num_rejected} photos in {folder} can be used: {examples}. `darkroom doctor {folder}` lists all.")
    fraction = num_rejected / findings.num_photos
    if fraction > max_rejected_fraction:
        raise ValueError(
            f"{num_rejected} of {findings.num_photos} photos in {folder} cannot be used ({fraction:.0%}; "
            f"ingest.max_rejected_fraction is {max_rejected_fraction:g}): {examples}. "
            f"`darkroom doctor {folder}` lists all. Remove or repair them, or raise the limit."
        )


def summary(findings: Findings, params: IngestParams) -> list[str]:
    """A few lines for a terminal or a page."""
    return [*facts(findings), *remarks(findings, params)]


def facts(findings: Findings) -> list[str]:
    lines = [f"{len(findings.accepted)} of {findings.num_photos} photos can be used"]
    if findings.rejected:
        lines.append(f"{len(findings.rejected)} rejected: " + _counts(findings.reasons()))
    if findings.duplicates:
        lines.append(f"{len(findings.duplicates)} left out as duplicates of other photos")
    if findings.ignored:
        lines.append(f"{len(findings.ignored)} other files ignored, e.g. {', '.join(findings.ignored[:NAMED_IN_ERRORS])}")
    if findings.accepted:
        lines.append("captions: " + _counts(findings.caption_sources()))
    if findings.looked_for_subject:
        found, not_found = findings.subject_counts().values()
        lines.append(f"{found} photos are cropped to the subject; {not_found}, in which it was not found, at the centre")
    return lines


def remarks(findings: Findings, params: IngestParams) -> list[str]:
    """Warnings: findings that are probably a mistake in the folder or in the parameters."""
    lines = []
    if findings.accepted and set(findings.caption_sources()) == {TEMPLATE}:
        sources = ", ".join(params.captions) or "none"
        lines.append(f"no photo has a caption of its own (sources: {sources}); all use the template {params.caption_template!r}")
    if findings.accepted:
        (caption, number), *_ = Counter(photo.caption.text for photo in findings.accepted).most_common(1)
        if number > LARGE_SHARE * len(findings.accepted):
            share = f"{number} of {len(findings.accepted)} photos ({number / len(findings.accepted):.1%})"
            lines.append(f"{share} have the caption {caption!r}: other prompts will steer little, or nothing if it is all of them")
    if upscaled := findings.upscaled(params.side):
        lines.append(f"{len(upscaled)} photos are smaller than {params.side} px and were enlarged, e.g. {upscaled[0].source}")
    if rows := findings.rows_without_photo:
        lines.append(f"{len(rows)} metadata lines name a photo that does not exist, e.g. {rows[0]}")
    return lines


def printable(path: PurePosixPath) -> str:
    """The path as text that is valid UTF-8 even if the file's name is not."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _counts(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in numbers.items())


def _no_photos(folder: Path) -> str:
    return (
        f"There are no photos in {folder}. Put yours there (JPEG, PNG, WebP, ...; sub-folders are fine), "
        f"or draw a set of cats with `darkroom demo-data {folder}`."
    )
