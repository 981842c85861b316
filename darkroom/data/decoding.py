"""An image file decoded, and any part of it as upright sRGB pixels of any size."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image

from darkroom.data.colours import flatten, to_srgb

# The formats that Pillow may decode. Excluded: EPS (it would start ghostscript), WMF, and formats without images.
# fmt: off
FORMATS = ("AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "GBR", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MSP",
           "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TIFF", "WEBP")
# fmt: on
TGA_SUFFIXES = (".tga", ".icb", ".vda", ".vst")  # TGA has no signature, and other files look like TGA: only the suffix decides
REDUCING_GAP = 3.0  # large photos are averaged down to three times the size before the exact filter; not visible
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

Box = tuple[float, float, float, float]  # left, top, right, bottom

STORED: dict[int, Callable[[float, float, float, float], Box]] = {
    2: lambda left, top, right, bottom: (1 - right, top, 1 - left, bottom),
    3: lambda left, top, right, bottom: (1 - right, 1 - bottom, 1 - left, 1 - top),
    4: lambda left, top, right, bottom: (left, 1 - bottom, right, 1 - top),
    5: lambda left, top, right, bottom: (top, left, bottom, right),
    6: lambda left, top, right, bottom: (top, 1 - right, bottom, 1 - left),
    7: lambda left, top, right, bottom: (1 - bottom, 1 - right, 1 - top, 1 - left),
    8: lambda left, top, right, bottom: (1 - bottom, left, 1 - top, right),
}  # EXIF orientation -> where a part of the upright photo lies in the file, both as shares of the sides


class Refused(Exception):  # noqa: N818 - not an error of the run: the photo is rejected
    def __init__(self, reason: Literal["unreadable", "too_small"], detail: str) -> None:
        self.reason: Literal["unreadable", "too_small"] = reason
        self.detail = detail


@dataclass(frozen=True)
class Decoded:
    """A photo as its file stores it, perhaps at a part of its size."""

    image: Image.Image
    area: tuple[float, float]  # (width, height) of the photo in `image`, px
    whole: tuple[int, int]  # (height, width) of the upright photo at its own size, px
    orientation: int  # EXIF's
    profile: bytes | None

    def middle(self, size: tuple[int, int], background: str, notes: list[str]) -> np.ndarray:
        """The middle of the upright photo in sRGB, uint8 (*size, 3)."""
        return self._resized(_middle(self.area, self._stored(size)), size, background, notes)

    def part(self, box: Box, size: tuple[int, int], background: str, notes: list[str]) -> np.ndarray:
        """A part of the upright photo in sRGB, uint8 (*size, 3); `box` in px of the photo at its own size."""
        height, width = self.whole
        shares = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        left, top, right, bottom = STORED[self.orientation](*shares) if self.orientation in TRANSPOSE else shares
        across, down = self.area
        inside = (max(left, 0.0) * across, max(top, 0.0) * down, min(right, 1.0) * across, min(bottom, 1.0) * down)
        return self._resized(inside, size, background, notes)

    def _stored(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the upright photo -> (width, height) in the file."""
        return size if self.orientation >= ROTATED else size[::-1]

    def _resized(self, box: Box, size: tuple[int, int], background: str, notes: list[str]) -> np.ndarray:
        """`box` of the stored image by Lanczos, upright, in sRGB; colours are weighted by their alpha."""
        fitted = self.image.resize(self._stored(size), Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP)
        if self.orientation in TRANSPOSE:
            fitted = fitted.transpose(TRANSPOSE[self.orientation])
        return np.asarray(flatten(to_srgb(fitted, self.profile, notes), background))


@contextmanager
def decoded(path: Path, side: int, notes: list[str], min_side: int = 1) -> Iterator[Decoded]:
    """Decode a photo; a JPEG at 1/2, 1/4 or 1/8 of its size if that leaves `side` px or more.

    Raises:
        Refused: it is too small, or its grey values cannot be told.
        Exception: any, from a decoder of Pillow.
    """
    formats = ("TGA",) if path.suffix.lower() in TGA_SUFFIXES else FORMATS
    with Image.open(path, formats=formats) as image:
        width, height = image.size
        if min(width, height) < min_side:
            raise Refused("too_small", f"{width} x {height} px; ingest.min_side is {min_side}")
        reduced = image.draft(None, (side, side))
        image.load()  # the first frame of an animation; Pillow turns TIFF upright here and drops the orientation
        area = reduced[1][2:] if reduced else image.size  # px, float, of the decoded photo
        width, height = (width, height) if reduced else image.size
        orientation = _orientation(image, notes)
        profile = None if image.mode == "LAB" else image.info.get("icc_profile")  # Pillow itself converts LAB to sRGB
        whole = (width, height) if orientation >= ROTATED else (height, width)
        yield Decoded(_to_8_bit(image), area, whole, orientation, profile)


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # broken EXIF raises any error, and the photo can be used without it
        notes.append(f"EXIF cannot be read ({type(error).__name__}): taken as upright")
        return 1
    return orientation if orientation in TRANSPOSE else 1


def _middle(area: tuple[float, float], size: tuple[int, int]) -> Box:
    """The largest part in the middle of `area` with the shape of `size`; both are (width, height)."""
    if area[0] * size[1] <= area[1] * size[0]:
        width, height = area[0], area[0] * size[1] / size[0]
    else:
        width, height = area[1] * size[0] / size[1], area[1]
    left, top = (area[0] - width) / 2, (area[1] - height) / 2
    return left, top, min(left + width, area[0]), min(top + height, area[1])  # no rounding error beyond the edge


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
        raise Refused("unreadable", f"grey values ({image.mode}) outside 0 to {white:g}: what is white is not known")
    values *= 255 / white
    grey = Image.fromarray(np.rint(values, out=values).astype(np.uint8))
    if isinstance(key := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)))
    return grey
