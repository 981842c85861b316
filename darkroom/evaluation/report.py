"""The evaluation report: a story on one self-contained HTML page, and the same in Markdown for the pages of MLflow and Prefect."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from darkroom.config import EvaluateParams
from darkroom.data.shards import ImageShards
from darkroom.evaluation.features import MAX_PHOTOS
from darkroom.evaluation.glossary import Metric
from darkroom.evaluation.likelihood import BOUND_TIMESTEPS, MAX_BOUND_PHOTOS
from darkroom.evaluation.story import Story
from darkroom.pages import format_number, write_page

TITLE = "Evaluation of the model"
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~])")  # what has a meaning in a line of Markdown
FINGERPRINT_CHARACTERS = 12
TRAINED = ("clip", "vae", "unet")


def write_report(folder: Path, story: Story) -> tuple[Path, Path]:
    """Write report.html and report.md, which are returned: a self-contained page without scripts, and its text; all texts are escaped."""
    charts = {
        "Training curves": {name: Markup(svg) for name, svg in story.charts.items()},
        "Loss of the U-Net by noise band: training set and held-out set": {name: Markup(svg) for name, svg in story.bands.items()},
    }
    bars = {metric.key: _bar(metric) for metric in story.metrics}
    page, text = folder / "report.html", folder / "report.md"
    write_page(page, "report.html.j2", title=TITLE, story=story, bars=bars, charts=charts, compared=compared(story))
    text.write_text("\n".join(_lines(story)) + "\n", encoding="utf-8")
    return page, text


def _bar(metric: Metric) -> tuple[float, float, float] | None:
    """Percent of the way from chance to photos of the value and of both ends of its interval; None if that is unknown."""
    error = 2 * (metric.standard_error or 0.0)
    low = metric.value - error if metric.low is None else metric.low
    high = metric.value + error if metric.high is None else metric.high
    places = [metric.place(value) for value in (metric.value, low, high)]
    value, first, last = (None if place is None else round(100 * min(max(place, 0.0), 1.0), 1) for place in places)
    return None if value is None or first is None or last is None else (value, min(first, last), max(first, last))


def _lines(story: Story) -> Iterator[str]:
    """The verdict, the numbers, the funnel and the worst prompts as Markdown without pictures."""
    yield from (f"# {TITLE}", "", f"**{_plain(story.verdict)}**", "")
    yield from (line for remark in story.remarks for line in (_plain(remark), ""))
    yield from ("## Numbers between chance and photos", "")
    yield from ("| | chance | samples | photos |", "|---|---|---|---|")
    for metric in story.metrics:
        ends = ["" if end is None else format_number(end) for end in (metric.chance, metric.photos)]
        yield f"| {_plain(metric.entry.name)} | {ends[0]} | {metric.in_words} | {ends[1]} |"
    if story.champion:
        yield from ("", f"## Beside the champion, {_plain(story.champion.name)}", "", "| | samples | champion |", "|---|---|---|")
        yield from (f"| {_plain(name)} | {ours} | {theirs} |" for name, ours, theirs in compared(story))
    if story.funnel:
        yield from ("", "## From photo to sample: what a classifier recognises", "", _plain(story.funnel.sentence), "")
        for name, *shares, num_pictures in story.funnel.steps:
            share, low, high = (f"{100 * number:.0f}" for number in shares)
            yield f"- {_plain(name)}: {share} % ({low} to {high} %) of {num_pictures}"
    if story.worst:
        yield from ("", f"## {story.worst.title}", "", *(f"- {_plain(tile.label)}" for tile in story.worst.tiles))
    yield from ("", "The pictures are in `report.html` in the same folder: one file, which works offline.")


def compared(story: Story) -> list[tuple[str, str, str]]:
    """(name, this model, champion) of each metric that both have."""
    if story.champion is None:
        return []
    theirs = story.champion.values
    return [(m.entry.name, m.in_words, format_number(theirs[m.key])) for m in story.metrics if m.key in theirs]


def _plain(text: str) -> str:
    """One line in which nothing is Markdown or HTML."""
    return MARKDOWN.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;")


def report_facts(
    params: EvaluateParams,
    identity: Mapping[str, str],  # features and eval_key, as in metrics.json
    prompts: Sequence[str],
    train: ImageShards,
    held_out: ImageShards,
    indexes: Mapping[str, Mapping[str, Any]],  # name of an input -> its index.json
) -> dict[str, dict[str, str]]:
    """Heading -> name -> value. Nothing of it changes from run to run, like the time, or the report would be another output each time."""
    return {
        "Data and measurement": measurement_facts(params, identity, prompts, train, held_out),
        "Parameters of evaluate": dict(_flat(params.model_dump())),
        "Lineage": lineage_facts(indexes),
        "Cost": cost_facts(params, train, held_out, indexes),
    }


def measurement_facts(
    params: EvaluateParams, identity: Mapping[str, str], prompts: Sequence[str], train: ImageShards, held_out: ImageShards
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


def lineage_facts(indexes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Every output that the model was made from and its fingerprint, shortened."""
    found: dict[str, str] = {}
    for name, index in indexes.items():
        found |= {**index["ancestors"], name: index["fingerprint"]}
    return {f"data/{name}": fingerprint[:FINGERPRINT_CHARACTERS] for name, fingerprint in sorted(found.items())}


def cost_facts(
    params: EvaluateParams, train: ImageShards, held_out: ImageShards, indexes: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Pictures drawn and measured, and what each model was trained for."""
    facts = {
        "Pictures drawn": f"{params.num_samples}, in {params.sampling.steps} sampling steps each",
        "Pictures measured": f"{params.num_samples + sum(min(len(split), MAX_PHOTOS) for split in (train, held_out))}",
    }
    for name in TRAINED:
        index = indexes[name]
        size = sum(entry["bytes"] for file, entry in index["files"].items() if file.endswith(".safetensors"))
        steps, batch = index["params"].get("steps", 0), index["params"].get("batch_size", 0)
        trained = f"{steps} steps of {batch}: {steps * batch / len(train):.1f} times each photo" if steps else "not trained here"
        facts[f"train_{name}"] = f"{trained}; {size / 2**20:.1f} MiB of weights"
    return facts


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)
