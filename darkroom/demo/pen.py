"""A pen that draws filled vector shapes with outlines, and the shapes: ellipses, splines, limbs."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = NDArray[np.float64]  # (N, 2): x to the right, y down, in units of the drawing


def mix(a: Sequence[int], b: Sequence[int], share: float) -> Colour:
    """The colour between `a` (share 0) and `b` (share 1)."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


class Pen:
    """Draws shapes in cat units on a square picture."""

    def __init__(self, side: int, *, details: bool) -> None:
        self.image = Image.new("RGB", (side, side))
        self.details = details  # whiskers and other lines that would look like dirt in a small picture
        self._side = side
        self._draw = ImageDraw.Draw(self.image)
        self._matrix, self._offset, self._scale = np.eye(2), np.zeros(2), 1.0

    def place(self, *, x: float, y: float, scale: float, tilt: float, mirrored: bool) -> None:
        """Set the cat units: their origin at (x, y) of the unit square, turned by `tilt` radians."""
        rotation = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])  # row vectors
        self._matrix = np.diag([-1.0 if mirrored else 1.0, 1.0]) @ rotation * scale
        self._offset, self._scale = np.array([x, y]), scale

    def shapes(self, outlines: Sequence[Points], fill: Colour, line: Colour | None = None, width: float = 0.024) -> None:
        """Draw shapes as one body: with a `line` around all of them and none between them."""
        polygons = [[(float(x), float(y)) for x, y in (points @ self._matrix + self._offset) * self._side] for points in outlines]
        stroke = max(1, round(2 * width * self._scale * self._side))  # px; half of it disappears under the fill
        if line:
            for polygon in polygons:
                self._draw.line([*polygon, *polygon[:2]], fill=line, width=stroke, joint="curve")
        for polygon in polygons:
            self._draw.polygon(polygon, fill=fill)

    def gradient(self, top: Colour, bottom: Colour) -> None:
        column = np.linspace(np.array(top), np.array(bottom), self._side).round().astype(np.uint8)
        self.image.paste(Image.fromarray(np.repeat(column[:, None], self._side, axis=1)), (0, 0))


def rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0) -> Points:
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    points = np.stack([rx * np.cos(angle), ry * np.sin(angle)], axis=1)
    turn = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
    return points @ turn + (x, y)


def smooth(*knots: tuple[float, float], closed: bool = True) -> Points:
    """The Catmull-Rom spline through `knots`."""
    p = np.array(knots)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, 1, 10, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate([*pieces, p[-2:-1]])


def tube(*knots: tuple[float, float], start: float, end: float) -> Points:
    """A round-ended limb along the spline through `knots`, its radius going from `start` to `end`."""
    spine = smooth(*knots, closed=False)
    along = np.gradient(spine, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    radius = np.linspace(start, end, len(spine))[:, None]
    tip = np.arctan2(*along[-1, ::-1]) + np.linspace(math.pi / 2, -math.pi / 2, 12)
    cap = spine[-1] + end * np.stack([np.cos(tip), np.sin(tip)], axis=1)
    return np.concatenate([spine + normal * radius, cap, (spine - normal * radius)[::-1]])
