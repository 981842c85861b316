"""Any image file to an upright square sRGB image, or to the reason for its rejection."""

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from darkroom.data.colours import flatten, to_srgb
from darkroom.data.shards import FULL_SIDE, is_below
from darkroom.provenance import hash_file

# The formats that Pillow may decode. Excluded: EPS (it would start ghostscript), WMF, and formats without images.
# fmt: off
FORMATS = ("AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "GBR", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MSP",
           "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TIFF", "WEBP")
# fmt: on
TGA_SUFFIXES = (".tga", ".icb", ".vda", ".vst")  # TGA has no signature, and other files look like TGA: only the suffix decides
UNSUPPORTED = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF pictures cannot be read; export them as JPEG"),
    **dict.fromkeys(
        (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"), "camera raw cannot be read; export it as JPEG"
    ),
    **dict.fromkeys((".eps", ".ps", ".wmf", ".emf", ".svg"), "drawings cannot be read; export them as PNG"),
}
DRAFT_GAP = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that leaves at least twice the required side
REDUCING_GAP = 3.0  # other large photos are averaged down to three times the size before the exact filter; not visible
MAX_MEGAPIXELS = 500  # of a photo given by name; decoded, it takes up to 4 bytes per pixel
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> operation that makes the photo upright
ROTATED = 5  # the first EXIF orientation that swaps width and height
FULL_QUALITY = 95  # JPEG quality of a picture at full size
Reason = Literal["unreadable", "unsupported", "too_large", "too_small", "caption_too_long", "caption_unreadable", "file_name"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class PictureStyle:
    """The settings of `develop`; the fields are those of `IngestParams`."""

    side: int
    min_side: int
    max_megapixels: float
    background: str
    format: str
    jpeg_quality: int


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


@dataclass(frozen=True)
class Rejection:
    reason: Reason
    detail: str


class _Refused(Exception):  # noqa: N818 - not an error: it becomes a Rejection
    def __init__(self, reason: Reason, detail: str) -> None:
        self.rejection = Rejection(reason, detail)


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


def develop(path: Path, style: PictureStyle, full: Sequence[tuple[float, float]] = ()) -> Picture | Rejection:
    """Centre-crop and resize a photo. A photo that cannot be used becomes a Rejection, never an error of the run.

    Photos whose hash, as a fraction of the largest hash, lies in a range of `full` (from, below) also get a picture at full size.
    """
    limit = f"ingest.max_megapixels ({style.max_megapixels:g})"
    return _guarded(path, lambda: _develop(path, style, full), style.max_megapixels, limit)


def read_upright(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """One photo as in `develop`, but with any `size` (height, width): uint8 (H, W, 3), and the size of the whole upright photo.

    Raises:
        ValueError: it cannot be read.
    """

    def read_middle() -> tuple[np.ndarray, tuple[int, int]]:
        with _decoded(path, DRAFT_GAP * max(size), []) as decoded:
            return decoded.middle(size, "white", []), decoded.whole

    read = _guarded(path, read_middle, MAX_MEGAPIXELS, f"{MAX_MEGAPIXELS} megapixels")
    if isinstance(read, Rejection):
        raise ValueError(f"{path} is {read.reason.replace('_', ' ')}: {read.detail}.")
    return read


def _guarded(path: Path, read: Callable[[], Result], max_megapixels: float, limit: str) -> Result | Rejection:
    if path.suffix.lower() in UNSUPPORTED:
        return Rejection("unsupported", UNSUPPORTED[path.suffix.lower()])
    try:
        with _pixel_limit(max_megapixels):
            return read()
    except _Refused as refused:
        return refused.rejection
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


def _develop(path: Path, style: PictureStyle, full: Sequence[tuple[float, float]]) -> Picture:
    notes: list[str] = []
    digest = hash_file(path)
    with _decoded(path, DRAFT_GAP * style.side, notes, style.min_side) as decoded:
        pixels = decoded.middle((style.side, style.side), style.background, notes)
        chosen = any(is_below(digest, high) and not is_below(digest, low) for low, high in full)
        is_larger = min(FULL_SIDE, *decoded.whole) > style.side
        encoded_full = _full(path, decoded, style.background) if chosen and is_larger else None
    return Picture(
        sha256=digest,
        pixels_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
        width=decoded.whole[1],
        height=decoded.whole[0],
        encoded=encode(pixels, style.format, style.jpeg_quality),
        notes=tuple(notes),
        full=encoded_full,
    )


def _full(path: Path, decoded: "_Decoded", background: str) -> bytes:
    """The JPEG of the middle square at `FULL_SIDE` or the photo's own side; `decoded` serves if it has the pixels."""
    side = min(FULL_SIDE, *decoded.whole)
    if min(decoded.area) >= side:
        return encode(decoded.middle((side, side), background, []), "jpeg", FULL_QUALITY)
    with _decoded(path, side, []) as larger:
        return encode(larger.middle((side, side), background, []), "jpeg", FULL_QUALITY)


@dataclass(frozen=True)
class _Decoded:
    """A photo as its file stores it, perhaps at a part of its size."""

    image: Image.Image
    area: tuple[float, float]  # (width, height) of the photo in `image`, px
    whole: tuple[int, int]  # (height, width) of the upright photo at its own size, px
    orientation: int  # EXIF's
    profile: bytes | None

    def middle(self, size: tuple[int, int], background: str, notes: list[str]) -> np.ndarray:
        """The middle of the upright photo in sRGB, uint8 (*size, 3)."""
        stored = size if self.orientation >= ROTATED else size[::-1]
        fitted = _middle(self.image, self.area, stored)
        if self.orientation in TRANSPOSE:
            fitted = fitted.transpose(TRANSPOSE[self.orientation])
        return np.asarray(flatten(to_srgb(fitted, self.profile, notes), background))


@contextmanager
def _decoded(path: Path, side: int, notes: list[str], min_side: int = 1) -> Iterator[_Decoded]:
    """Decode a photo; a JPEG at 1/2, 1/4 or 1/8 of its size if that leaves `side` px or more."""
    formats = ("TGA",) if path.suffix.lower() in TGA_SUFFIXES else FORMATS
    with Image.open(path, formats=formats) as image:
        width, height = image.size
        if min(width, height) < min_side:
            raise _Refused("too_small", f"{width} x {height} px; ingest.min_side is {min_side}")
        reduced = image.draft(None, (side, side))
        image.load()  # the first frame of an animation; Pillow turns TIFF upright here and drops the orientation
        area = reduced[1][2:] if reduced else image.size  # px, float, of the decoded photo
        width, height = (width, height) if reduced else image.size
        orientation = _orientation(image, notes)
        profile = None if image.mode == "LAB" else image.info.get("icc_profile")  # Pillow itself converts LAB to sRGB
        whole = (width, height) if orientation >= ROTATED else (height, width)
        yield _Decoded(_to_8_bit(image), area, whole, orientation, profile)


def encode(pixels: np.ndarray, kind: str, jpeg_quality: int) -> bytes:
    """PNG or JPEG of uint8 (H, W, 3), without metadata."""
    stream = io.BytesIO()
    if kind == "jpeg":
        Image.fromarray(pixels).save(stream, "jpeg", quality=jpeg_quality, subsampling=0)  # thin coloured lines stay coloured
    else:
        Image.fromarray(pixels).save(stream, "png", compress_level=3)  # twice as fast as the default, 5 % larger
    return stream.getvalue()


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # broken EXIF raises any error, and the photo can be used without it
        notes.append(f"EXIF cannot be read ({type(error).__name__}): taken as upright")
        return 1
    return orientation if orientation in TRANSPOSE else 1


def _middle(image: Image.Image, area: tuple[float, float], size: tuple[int, int]) -> Image.Image:
    """The largest centre crop of `area` with the shape of `size`, resized to `size` by Lanczos; colours are weighted by their alpha.

    Both are (width, height).
    """
    if area[0] * size[1] <= area[1] * size[0]:
        width, height = area[0], area[0] * size[1] / size[0]
    else:
        width, height = area[1] * size[0] / size[1], area[1]
    left, top = (area[0] - width) / 2, (area[1] - height) / 2
    box = (left, top, min(left + width, area[0]), min(top + height, area[1]))  # no rounding error beyond the edge
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """The same picture in a mode that can be resized: L, LA, RGB, RGBA or CMYK."""
    if image.mode.startswith(("I", "F")):
        return _scale_to_8_bit(image)
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
    return image if image.mode in ("L", "CMYK") else image.convert("RGB")


def _scale_to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit or float grey; white is 65535, or 1 in floats, as in every format that states it."""
    values = np.asarray(image).astype(np.float32)  # exact for 16 bits
    white = 1.0 if image.mode.startswith("F") else 65535.0
    if not (values.min() >= 0 and values.max() <= white):  # nor NaN
        raise _Refused("unreadable", f"grey values ({image.mode}) outside 0 to {white:g}: what is white is not known")
    values *= 255 / white
    grey = Image.fromarray(np.rint(values, out=values).astype(np.uint8))
    if isinstance(key := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)))
    return grey
