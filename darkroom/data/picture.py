"""Any image file to an upright square sRGB image, or to the reason for its rejection."""

import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from darkroom.config import IngestParams
from darkroom.data.crops import CROPS_MEMBER, UNMOVED, Crop, Shift, crop_member, crop_side, further_crops, square
from darkroom.data.decoding import FORMATS, TGA_SUFFIXES, Box, Decoded, Refused, decoded
from darkroom.data.shards import FULL_MEMBER, FULL_SIDE, is_below
from darkroom.provenance import canonical_json, hash_file

UNSUPPORTED = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF pictures cannot be read; export them as JPEG"),
    **dict.fromkeys(
        (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"), "camera raw cannot be read; export it as JPEG"
    ),
    **dict.fromkeys((".eps", ".ps", ".wmf", ".emf", ".svg"), "drawings cannot be read; export them as PNG"),
}
DRAFT_GAP = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that leaves at least twice the required side
MAX_MEGAPIXELS = 500  # of a photo given by name; decoded, it takes up to 4 bytes per pixel
FULL_QUALITY = 95  # JPEG quality of a picture at full size
Reason = Literal["unreadable", "unsupported", "too_large", "too_small", "caption_too_long", "caption_unreadable", "file_name"]
Result = TypeVar("Result")

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
Seen = tuple[Box, float, str]  # where the subject of a picture is, as shares of its sides; how certain that is, 0 to 1; a word for it
Find = Callable[[np.ndarray], Seen | None]
"""uint8 (H, W, 3) -> the subject of a picture; None = it is not there."""
LOOK_SIDE = 227  # px, the shorter side of what `Find` sees: that of SqueezeNet
LOOK_LENGTH = 2 * LOOK_SIDE  # px, the longest longer side; longer photos are shown smaller
LOOK_LEAST = 64  # px, the least shorter side: nothing is looked for in a strip, more than 7 times as long as it is wide


@dataclass(frozen=True)
class PictureStyle:
    """The settings of `develop`; the fields are those of `IngestParams`."""

    side: int
    min_side: int
    max_megapixels: float
    background: str
    format: str
    jpeg_quality: int
    crops: int = 1

    @classmethod
    def of(cls, params: IngestParams) -> "PictureStyle":
        return cls(**{name: getattr(params, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Picture:
    """An accepted photo."""

    sha256: str  # of the file
    pixels_sha256: str  # of the square image
    width: int  # px, of the upright photo
    height: int
    encoded: bytes  # PNG or JPEG, without any metadata
    notes: tuple[str, ...]  # harmless defects
    full: bytes | None = None  # JPEG of the same square at full size, if one was asked for and that is larger
    crop: Crop | None = None  # the square around the subject; None = that in the middle
    certainty: float | None = None  # that the subject is there, 0 to 1
    subject: str = ""  # a word for it
    further: tuple[tuple[Shift, bytes], ...] = ()  # the crops after the first one: how they lie beside it, PNG or JPEG

    def members(self, name: str) -> dict[str, bytes]:
        """Its files in a shard; `name` is that of the first crop."""
        files = {name: self.encoded} | ({FULL_MEMBER: self.full} if self.full else {})
        if self.further:
            files[CROPS_MEMBER] = canonical_json([UNMOVED, *(shift for shift, _ in self.further)]).encode()
        return files | {crop_member(number, name): encoded for number, (_, encoded) in enumerate(self.further, start=1)}


@dataclass(frozen=True)
class Rejection:
    reason: Reason
    detail: str


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes of image files, including formats that cannot be read."""
    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
    return frozenset(readable | {*TGA_SUFFIXES} | UNSUPPORTED.keys())


def looks_like_image(path: Path) -> bool:
    """Whether the first bytes are those of an image, for files with an unknown suffix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=FORMATS):
                return True
        except UnidentifiedImageError:
            return False
        except Exception:  # a known format, but broken or of an absurd size: `develop` reports it
            return True


def develop(path: Path, style: PictureStyle, full: Sequence[tuple[float, float]] = (), find: Find | None = None) -> Picture | Rejection:
    """Crop and resize a photo: to the square around what `find` finds in the whole photo, else to the one in the middle.

    A photo that cannot be used becomes a Rejection, never an error of the run; an error of `find` is one. Photos whose hash, as a
    fraction of the largest hash, lies in a range of `full` (from, below) also get a picture at full size.
    """
    limit = f"ingest.max_megapixels ({style.max_megapixels:g})"
    found: Seen | None = None
    if find:
        look = _guarded(path, lambda: _read_whole(path, style.background, style.min_side), style.max_megapixels, limit)
        if isinstance(look, Rejection):
            return look
        found = find(look) if min(look.shape[:2]) >= LOOK_LEAST else None
    return _guarded(path, lambda: _develop(path, style, full, found), style.max_megapixels, limit)


def read_whole(path: Path, max_megapixels: float) -> np.ndarray:
    """What `find` of `develop` sees of a photo: all of it, upright, uint8 (H, W, 3) with a shorter side of about `LOOK_SIDE`.

    Raises:
        ValueError: it cannot be read.
    """
    return _read(path, lambda: _read_whole(path, "white"), max_megapixels)


def read_upright(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """One photo as in `develop`, but with any `size` (height, width): uint8 (H, W, 3), and the size of the whole upright photo.

    Raises:
        ValueError: it cannot be read.
    """

    def read_middle() -> tuple[np.ndarray, tuple[int, int]]:
        with decoded(path, DRAFT_GAP * max(size), []) as photo:
            return photo.middle(size, "white", []), photo.whole

    return _read(path, read_middle, MAX_MEGAPIXELS)


def _read(path: Path, read: Callable[[], Result], max_megapixels: float) -> Result:
    result = _guarded(path, read, max_megapixels, f"{max_megapixels:g} megapixels")
    if isinstance(result, Rejection):
        raise ValueError(f"{path} is {result.reason.replace('_', ' ')}: {result.detail}.")
    return result


def _read_whole(path: Path, background: str, min_side: int = 1) -> np.ndarray:
    with decoded(path, LOOK_SIDE, [], min_side) as photo:
        height, width = photo.whole
        scale = min(LOOK_SIDE / min(photo.whole), LOOK_LENGTH / max(photo.whole))
        return photo.part((0, 0, width, height), (max(1, round(scale * height)), max(1, round(scale * width))), background, [])


def _guarded(path: Path, read: Callable[[], Result], max_megapixels: float, limit: str) -> Result | Rejection:
    if path.suffix.lower() in UNSUPPORTED:
        return Rejection("unsupported", UNSUPPORTED[path.suffix.lower()])
    try:
        with _pixel_limit(max_megapixels):
            return read()
    except Refused as refused:
        return Rejection(refused.reason, refused.detail)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = str(error).split(" exceeds")[0]
        return Rejection("too_large", f"{size} is more than {limit}")
    except UnidentifiedImageError:
        return Rejection("unreadable", "not a picture of a known format" if path.stat().st_size else "the file is empty")
    except Exception as error:  # decoders raise anything on broken files
        return Rejection("unreadable", _describe(error, path))


@contextmanager
def _pixel_limit(megapixels: float) -> Iterator[None]:
    """Set the limit of Pillow's own check, which acts before decoding and also on images inside files (ICO, ICNS)."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max(1, int(megapixels * 1e6))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _describe(error: Exception, path: Path) -> str:
    """The error as text that is equal on every machine: without folders and addresses."""
    text = re.sub(r" at 0x[0-9a-f]+", "", str(error).replace(str(path), path.name))
    return f"{type(error).__name__}: {text}"[:300]


def _develop(path: Path, style: PictureStyle, full: Sequence[tuple[float, float]], found: Seen | None) -> Picture:
    notes: list[str] = []
    digest = hash_file(path)
    with decoded(path, _needed(DRAFT_GAP * style.side, found[0] if found else WHOLE), notes, style.min_side) as photo:
        crop = square_around(found[0], photo.whole, least=style.side) if found else None
        pixels = _cut(photo, crop, style.side, style.background, notes)
        chosen = any(is_below(digest, high) and not is_below(digest, low) for low, high in full)
        is_larger = min(FULL_SIDE, crop_side(crop, photo.whole)) > style.side
        encoded_full = _full(path, photo, crop, style.background) if chosen and is_larger else None
        further = tuple(_further(photo, crop, style, digest))
    return Picture(
        sha256=digest,
        pixels_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
        width=photo.whole[1],
        height=photo.whole[0],
        encoded=encode(pixels, style.format, style.jpeg_quality),
        notes=tuple(notes),
        full=encoded_full,
        crop=crop,
        certainty=found[1] if found else None,
        subject=found[2] if found else "",
        further=further,
    )


def square_around(box: Box, whole: tuple[int, int], *, least: int) -> Crop:
    """The square with the middle and the longer side of `box`, moved into the photo; it has `least` px a side if the photo has them.

    Args:
        box: shares of the sides of the upright photo.
        whole: (height, width) of the photo, px.
    """
    height, width = whole
    side = min(max(round(max((box[2] - box[0]) * width, (box[3] - box[1]) * height)), least), *whole)
    left = min(max(round((box[0] + box[2]) * width / 2 - side / 2), 0), width - side)
    top = min(max(round((box[1] + box[3]) * height / 2 - side / 2), 0), height - side)
    return left, top, left + side, top + side


def _needed(side: int, box: Box) -> int:
    """The shorter side of a photo, px, of which a square with the sides of `box` (shares) has `side` px."""
    return math.ceil(side / max(box[2] - box[0], box[3] - box[1]))


def _cut(photo: Decoded, crop: Crop | None, side: int, background: str, notes: list[str]) -> np.ndarray:
    return photo.part(crop, (side, side), background, notes) if crop else photo.middle((side, side), background, notes)


def _further(photo: Decoded, crop: Crop | None, style: PictureStyle, digest: str) -> Iterator[tuple[Shift, bytes]]:
    """The crops after the first one, from the same pixels."""
    for shift, box in further_crops(square(crop, photo.whole), photo.whole, digest=digest, num=style.crops):
        pixels = photo.part(box, (style.side, style.side), style.background, [])
        yield shift, encode(pixels, style.format, style.jpeg_quality)


def _full(path: Path, photo: Decoded, crop: Crop | None, background: str) -> bytes:
    """The JPEG of the square at `FULL_SIDE` or its own side; `photo` serves if it has the pixels."""
    own = crop_side(crop, photo.whole)
    side = min(FULL_SIDE, own)
    needed = math.ceil(side * min(photo.whole) / own)
    if min(photo.area) >= needed:
        return encode(_cut(photo, crop, side, background, []), "jpeg", FULL_QUALITY)
    with decoded(path, needed, []) as larger:
        return encode(_cut(larger, crop, side, background, []), "jpeg", FULL_QUALITY)


def encode(pixels: np.ndarray, kind: str, jpeg_quality: int) -> bytes:
    """PNG or JPEG of uint8 (H, W, 3), without metadata."""
    stream = io.BytesIO()
    if kind == "jpeg":
        Image.fromarray(pixels).save(stream, "jpeg", quality=jpeg_quality, subsampling=0)  # thin coloured lines stay coloured
    else:
        Image.fromarray(pixels).save(stream, "png", compress_level=3)  # twice as fast as the default, 5 % larger
    return stream.getvalue()
