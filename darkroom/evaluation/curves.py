"""Training curves as inline SVG: sharp on every screen, a few kilobytes, nothing to load."""

import csv
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Curve = Sequence[tuple[float, float]]  # (step, value), steps rising

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 14, 40  # margins
COLOURS = ("#3b7dd8", "#e0733a", "#4a9c5d", "#9a5fc0")


def read_curve(path: Path, column: str) -> list[tuple[float, float]]:
    """(step, value) of a curves/*.csv; rows without a finite value in `column` are skipped. Empty if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        points = [(float(row["step"]), float(row.get(column) or "nan")) for row in csv.DictReader(file)]
    return [(step, value) for step, value in points if math.isfinite(value)]


def curve_svg(curves: Mapping[str, Curve]) -> str:
    """One chart of named curves over the step. The axis is logarithmic where all values are positive and span a factor of 10."""
    curves = {name: curve for name, curve in curves.items() if curve}
    assert curves
    steps = [step for curve in curves.values() for step, _ in curve]
    values = [value for curve in curves.values() for _, value in curve]
    logarithmic = min(values) > 0 and max(values) > 10 * min(values)
    scale = math.log10 if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    span_x, span_y = (max(steps) - min(steps)) or 1, (high - low) or 1

    def x(step: float) -> float:
        return round(LEFT + (step - min(steps)) / span_x * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (scale(value) - low) / span_y * (HEIGHT - TOP - BOTTOM), 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(" and ".join(curves), quote=True)}">']
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = 10 ** (low + share * span_y) if logarithmic else low + share * span_y
        height = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4}" text-anchor="end">{value:.3g}</text>')
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        step = min(steps) + share * span_x
        parts.append(f'<text x="{x(step)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{anchor}">{step:.0f}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    for index, (name, curve) in enumerate(curves.items()):
        colour, points = COLOURS[index % len(COLOURS)], " ".join(f"{x(step)},{y(value)}" for step, value in curve)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        place = f'x="{WIDTH - RIGHT - 6}" y="{TOP + 16 + 18 * index}"'
        parts.append(f'<text {place} text-anchor="end" style="fill:{colour}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])
