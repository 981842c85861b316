"""Charts of the training curves as SVG, drawn so small that their text stays readable on a phone."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from darkroom.diffusion.diffusion_config import DiffusionConfig

Curve = Sequence[tuple[float, float]]  # (step, value), steps rising

SPLITS = {"training set": "train", "held-out set": "val"}  # name of a curve -> its file
BAND = "loss_quarter_"  # column of curves/*.csv, and a number from 1 on: the loss of a quarter of time
NUM_BANDS = 4
WIDTH, HEIGHT = 320, 210  # CSS px, about the size at which a phone shows it
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 40  # margins
NUM_COLOURS = 4  # --series-1 to --series-4 of templates/base.html.j2
IN_A_ROW = 2  # names of curves


def loss_charts(models: Mapping[str, Path]) -> dict[str, str]:
    """Title -> SVG of the loss of each model that was trained; `models` is name -> folder."""
    return {f"Loss of train_{name}": svg for name, folder in models.items() if (svg := _chart(folder, "loss"))}


def band_charts(unet: Path) -> dict[str, str]:
    """Title -> SVG of the U-Net's loss in each quarter of time; empty if it was not trained here.

    Raises:
        ValueError: the folder has such curves and no diffusion.json.
    """
    numbers = [number for number in range(1, NUM_BANDS + 1) if _read_splits(unet, f"{BAND}{number}")]
    if not numbers:
        return {}
    sigmas = DiffusionConfig.load(unet).schedule.sigmas
    borders = [len(sigmas) * number // NUM_BANDS for number in range(NUM_BANDS + 1)]
    titles = [f"Noise level {sigmas[borders[number - 1]]:.2g} to {sigmas[borders[number] - 1]:.2g}" for number in numbers]
    return {title: _chart(unet, f"{BAND}{number}") for title, number in zip(titles, numbers, strict=True)}


def _chart(folder: Path, column: str) -> str:
    curves = _read_splits(folder, column)
    return curve_svg(curves) if curves else ""


def _read_splits(folder: Path, column: str) -> dict[str, Curve]:
    """The curves of both splits that have a value."""
    curves = {name: read_curve(folder / "curves" / f"{split}.csv", column) for name, split in SPLITS.items()}
    return {name: curve for name, curve in curves.items() if curve}


def read_curve(path: Path, column: str) -> list[tuple[float, float]]:
    """(step, value) of a curves/*.csv; rows without a finite value in `column` are skipped. Empty if the file is missing."""
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
    for share in (0, 1 / 3, 2 / 3, 1):
        value = 10 ** (low + share * span_y) if logarithmic else low + share * span_y
        parts += _level(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), f"{value:.3g}")
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        step = min(steps) + share * span_x
        parts.append(f'<text x="{x(step)}" y="{HEIGHT - BOTTOM + 17}" text-anchor="{anchor}">{step:.0f}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">step</text>')
    for index, (name, curve) in enumerate(curves.items()):
        parts += _line(index, name, curve, x, y)
    return "".join([*parts, "</svg>"])


def _level(height: float, label: str) -> list[str]:
    """A horizontal line with its value."""
    line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
    return [line, f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{label}</text>']


def _line(index: int, name: str, curve: Curve, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    """A curve, and its name above the chart; a curve of one point is a dot."""
    colour = f"series-{index % NUM_COLOURS + 1}"
    points = " ".join(f"{x(step)},{y(value)}" for step, value in curve)
    left, top = LEFT + index % IN_A_ROW * (WIDTH - LEFT) // IN_A_ROW, 16 + 15 * (index // IN_A_ROW)
    dots = [f'<circle class="{colour}" cx="{x(step)}" cy="{y(value)}" r="3"/>' for step, value in curve if len(curve) == 1]
    return [
        f'<polyline class="{colour}" points="{points}"/>',
        *dots,
        f'<text class="{colour}" x="{left}" y="{top}">{escape(name)}</text>',
    ]
