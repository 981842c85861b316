"""The crops of a photo: its first one, and further ones, moved and scaled a little by chance, with what tells them from the first."""

import hashlib
import math
from collections.abc import Iterator, Sequence

from darkroom.data.decoding import Box

Crop = tuple[int, int, int, int]  # left, top, right, bottom of a square, px of the upright photo at its own size
CROPS_MEMBER = "crops.json"  # of a sample in a shard: the shift of each crop
MOST_MOVED = 0.08  # of the side of the first crop, to each side
SMALLER, LARGER = -0.12, 0.18  # range of the logarithm of the scale: sides of 0.89 to 1.20 times that of the first crop
DECIMALS = 6  # of a label: far below a pixel, and equal on every machine

Shift = tuple[float, float, float]
"""How a crop lies beside the first one: its middle is further right and further down, in sides of the first; log of the scale."""
UNMOVED: Shift = (0.0, 0.0, 0.0)
Label = tuple[float, float, float, float]
"""Of a view: the shift as the view shows it, and 1.0 if it is mirrored, else 0.0."""
LABEL_UNITS: Label = (MOST_MOVED, MOST_MOVED, 0.15, 1.0)  # a label over these is about as large as 1


def crop_side(crop: Crop | None, whole: tuple[int, int]) -> int:
    """Side of the square that was cut out of a photo, px; that of the middle one if there is no `crop`.

    `whole` is (height, width) of the upright photo, px.
    """
    return crop[2] - crop[0] if crop else min(whole)


def square(crop: Crop | None, whole: tuple[int, int]) -> Box:
    """The square that was cut out of a photo, exactly: the middle one, whose corners may be halves of pixels, if there is no `crop`."""
    (height, width), side = whole, min(whole)
    left, top = (width - side) / 2, (height - side) / 2
    return crop or (left, top, left + side, top + side)


def further_crops(first: Box, whole: tuple[int, int], *, digest: str, num: int) -> Iterator[tuple[Shift, Box]]:
    """The crops 1 .. num - 1 of a photo beside its `first` one; all lie inside the photo.

    Their scale and place are uniform over what the photo has room for: a photo that is a square itself has smaller crops only. Crop
    k depends on the photo and on k alone.

    Args:
        first: left, top, right, bottom in px of the upright photo.
        whole: (height, width) of the photo, px.
        digest: content hash of the photo.
    """
    left, top, right, bottom = first
    side, middle = right - left, ((left + right) / 2, (top + bottom) / 2)
    for number in range(1, num):
        across, down, size = _fractions(f"{digest}/crop/{number}")
        largest = min(LARGER, math.log(min(whole) / side))
        log_scale = round(SMALLER + size * (largest - SMALLER), DECIMALS)
        half = side * math.exp(log_scale) / 2
        x, y = (
            _within(share, (half - at) / side, (length - half - at) / side)
            for share, at, length in zip((across, down), middle, whole[::-1], strict=True)
        )
        yield (x, y, log_scale), square_of((x, y, log_scale), first)


def square_of(shift: Shift, first: Box) -> Box:
    """The crop that lies so beside the `first` one; in px, as that is."""
    left, top, right, bottom = first
    side, half = right - left, (right - left) * math.exp(shift[2]) / 2
    x, y = (left + right) / 2 + shift[0] * side, (top + bottom) / 2 + shift[1] * side
    return x - half, y - half, x + half, y + half


def crop_member(number: int, first: str) -> str:
    """Member of a sample in a shard: a crop, if `first` is that of the first one, whose number is 0."""
    return f"crop{number}.{first}" if number else first


def further_members(num: int, first: str) -> set[str]:
    """All that a photo of `num` crops has in a shard beyond what one with a single crop has."""
    return {CROPS_MEMBER, *(crop_member(number, first) for number in range(1, num))}


def view_labels(shifts: Sequence[Shift], *, flip: bool) -> list[Label]:
    """The labels of all views of a photo: each crop as it is and, with `flip`, mirrored after it, where right is left."""
    return [
        (0.0 - x if mirrored else x, y, log_scale, float(mirrored))  # 0.0 - x: never -0.0
        for x, y, log_scale in shifts
        for mirrored in ((False, True) if flip else (False,))
    ]


def _fractions(text: str) -> list[float]:
    """Three numbers in [0, 1)."""
    digest = hashlib.sha256(text.encode()).digest()
    return [int.from_bytes(digest[start : start + 6], "big") / 2**48 for start in (0, 6, 12)]


def _within(share: float, least: float, most: float) -> float:
    """A number at `share` of the way between -MOST_MOVED and MOST_MOVED, both first moved between `least` and `most`."""
    low, high = (min(max(end, least), most) for end in (-MOST_MOVED, MOST_MOVED))
    return round(low + share * (high - low), DECIMALS) + 0.0  # + 0.0: never -0.0
