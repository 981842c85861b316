"""The evaluation report: one self-contained HTML page with samples, metrics and training curves."""

import csv
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from markupsafe import Markup

from darkroom.config import EvaluateParams
from darkroom.data.shards import ImageShards
from darkroom.evaluation.features import MAX_PHOTOS
from darkroom.evaluation.galleries import Gallery
from darkroom.evaluation.glossary import Metric
from darkroom.evaluation.likelihood import BOUND_TIMESTEPS, MAX_BOUND_PHOTOS
from darkroom.pages import write_page

Curve = Sequence[tuple[float, float]]  # (step, value), steps rising

SPLITS = {"training set": "train", "held-out set": "val"}  # name of a curve -> its file
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 14, 40  # margins
NUM_COLOURS = 4  # --series-1 to --series-4 of templates/base.html.j2


def write_report(
    path: Path,
    *,
    title: str,
    metrics: Sequence[Metric],
    facts: Mapping[str, str],  # how the metrics were measured
    galleries: Sequence[Gallery],
    charts: Mapping[str, str],  # title -> SVG
) -> None:
    """Write a self-contained page without scripts, for any screen; all texts are escaped."""
    charts = {name: Markup(svg) for name, svg in charts.items()}
    write_page(path, "report.html.j2", title=title, metrics=metrics, facts=facts, galleries=galleries, charts=charts)


def report_facts(
    params: EvaluateParams,
    identity: Mapping[str, str],  # features and eval_key, as in metrics.json
    prompts: Sequence[str],
    train: ImageShards,
    held_out: ImageShards,
) -> dict[str, str]:
    """How the metrics were measured, in words."""
    captions, sampling = set(train.captions), params.sampling
    unseen = sum(prompt not in captions for prompt in prompts)
    num_bounded = min(len(held_out), MAX_BOUND_PHOTOS)
    return {
        "Samples": f"{len(prompts)}, of {len(set(prompts))} captions of held-out photos; {unseen} have a prompt that no training photo has",
        "Photos": f"{len(held_out)} held out, {len(train)} in the training set, {held_out.size} px; at most {MAX_PHOTOS} of each are used",
        "Features": f"{identity['features']} (kind and hash of the weights)",
        "Sampler": sampling.in_words,
        "Seeds": f"{params.seed} to {params.seed + len(prompts) - 1}",
        "Neighbours": f"{params.num_neighbours}, for precision, recall, density and coverage",
        "Bits": f"of {num_bounded} held-out photos, each at {BOUND_TIMESTEPS} noise levels and the lowest one",
        "Comparison key": f"{identity['eval_key'][:12]}; reports with another key were measured differently and are not comparable",
    }


def loss_charts(models: Mapping[str, Path]) -> dict[str, str]:
    """Title -> SVG of the loss of each model that was trained; `models` is name -> folder."""
    charts = {}
    for name, folder in models.items():
        curves = {label: read_curve(folder / "curves" / f"{split}.csv", "loss") for label, split in SPLITS.items()}
        if any(curves.values()):
            charts[f"Loss of train_{name}"] = curve_svg(curves)
    return charts


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
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = 10 ** (low + share * span_y) if logarithmic else low + share * span_y
        height = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4}" text-anchor="end">{value:.3g}</text>')
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        step = min(steps) + share * span_x
        parts.append(f'<text x="{x(step)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{anchor}">{step:.0f}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    for index, (name, curve) in enumerate(curves.items()):
        colour, points = f"series-{index % NUM_COLOURS + 1}", " ".join(f"{x(step)},{y(value)}" for step, value in curve)
        parts.append(f'<polyline class="{colour}" points="{points}"/>')
        place = f'x="{WIDTH - RIGHT - 6}" y="{TOP + 16 + 18 * index}"'
        parts.append(f'<text class="{colour}" {place} text-anchor="end">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])
