"""evaluate: samples from held-out captions, compared with held-out photos.

Reads data/shards, data/vae, data/clip, data/unet. Writes data/report: metrics.json, report.html (one file, works offline), report.md,
photo_losses.csv and pictures/. Distances are in the features of a named extractor; docs/evaluate.md explains each metric.
"""

from collections.abc import Sequence

import numpy as np

from darkroom.config import EvaluateParams
from darkroom.data.shards import ImageShards
from darkroom.demo.adherence import measure_adherence
from darkroom.evaluation.charts import band_charts, loss_charts
from darkroom.evaluation.drawn import DrawnSamples, draw_samples
from darkroom.evaluation.extractors import make_extractor
from darkroom.evaluation.galleries import write_gallery
from darkroom.evaluation.glossary import explain
from darkroom.evaluation.likelihood import PixelLikelihood
from darkroom.evaluation.measure import Comparison, Networks, choose_sources, comparison_key, galleries, measure, measure_champion
from darkroom.evaluation.photo_losses import write_photo_losses
from darkroom.evaluation.report import report_facts, write_report
from darkroom.evaluation.story import Story, tell_verdict
from darkroom.open_model import find_model
from darkroom.provenance import hash_json, write_json
from darkroom.sampling.text_to_image import TextToImage
from darkroom.source_code import code_identity
from darkroom.stage import Contract, Stage
from darkroom.training.launch import place


def run(stage: Stage[EvaluateParams]) -> None:
    params, out = stage.params, stage.outs["report"]
    train, held_out = (ImageShards(stage.inputs["shards"], split) for split in ("train", "val"))
    model = TextToImage.load(stage.inputs["unet"].parent)
    extractor = make_extractor(params.features, model.clip, stage.indexes["clip"]["fingerprint"], model.device)
    sources = choose_sources(held_out.captions, set(train.captions), params.num_samples)
    prompts, seeds = [held_out.captions[row] for row in sources], list(range(params.seed, params.seed + params.num_samples))
    samples = draw(stage, model, prompts, seeds, "samples")
    champion = draw_champion(stage, model.size, prompts, seeds)
    if not stage.is_main:
        return
    compared = Comparison(samples, prompts, np.array(sources), train, held_out)
    networks = Networks(model.vae, PixelLikelihood.load(stage.inputs["vae"]), model.unet, model.clip, model.config)
    measured = measure(compared, networks, extractor, params)
    demo = measure_adherence(prompts, samples, held_out.captions, held_out)
    metrics = [*demo.metrics, *explain(measured.values)]
    values = {key: value for metric in metrics for key, value in metric.numbers.items()}
    key = comparison_key(compared, extractor, seeds=seeds, params=params, code=code_identity(stage.name))
    identity = {"eval_key": key, "features": extractor.name, "unfit_because": measured.unfit_because}
    write_json(out / "metrics.json", values | identity | {"num_samples": params.num_samples})
    stage.content["report"] = identity
    stage.tracker.log_metrics({metric.key: metric.value for metric in metrics}, step=0)
    write_photo_losses(out / "photo_losses.csv", measured.losses, train)
    shown = galleries(compared, measured, params.num_grid) | demo.galleries
    for name, gallery in shown.items():
        stage.tracker.log_image(name, write_gallery(out / "pictures" / f"{name}.png", gallery))
    story = Story(
        verdict=tell_verdict(metrics, unfit_because=measured.unfit_because),
        remarks=measured.remarks,
        samples=shown.pop("samples"),
        worst=shown.pop("worst", None),
        metrics=metrics,
        funnel=measured.funnel,
        galleries=list(shown.values()),
        canaries=measured.fitness.canaries,
        facts=report_facts(params, identity, prompts, train, held_out, stage.indexes),
        charts=loss_charts({name: stage.inputs[name] for name in ("clip", "vae", "unet")}),
        bands=band_charts(stage.inputs["unet"]),
        champion=measure_champion(*champion, compared, measured, extractor, params) if champion else None,
    )
    page, text = write_report(out, story)
    stage.tracker.log_artifact(page)
    stage.tracker.describe(text.read_text(encoding="utf-8"))


def draw(stage: Stage[EvaluateParams], model: TextToImage, prompts: Sequence[str], seeds: Sequence[int], name: str) -> DrawnSamples:
    """One sample for each prompt, drawn by all processes into a file beside the checkpoints, where they survive a kill."""

    def sample(some: Sequence[str], their_seeds: Sequence[int]) -> np.ndarray:
        return model.sample(some, seeds=their_seeds, **stage.params.sampling.model_dump(), batch_size=stage.params.batch_size)

    rank, world = place(stage.name, stage.params.num_processes)
    path, batch_size = stage.scratch / name, stage.params.batch_size
    return draw_samples(sample, prompts, seeds, path, size=model.size, batch_size=batch_size, rank=rank, world=world)


def draw_champion(
    stage: Stage[EvaluateParams], size: tuple[int, int], prompts: Sequence[str], seeds: Sequence[int]
) -> tuple[str, DrawnSamples] | None:
    """The version and the samples of `evaluate.champion`; None if it names none.

    Raises:
        ValueError: there is no such model, or it draws images of another size.
    """
    if not stage.params.champion:
        return None
    folder, version = find_model(stage.params.champion)
    model = TextToImage.load(folder)
    if model.size != size:
        raise ValueError(
            f"evaluate.champion: {version} draws {model.size[1]} x {model.size[0]} px, this model {size[1]} x {size[0]} px; leave it empty."
        )
    return version, draw(stage, model, prompts, seeds, f"champion-{hash_json(version)[:12]}")


STAGE = Contract("evaluate", run, reads=("shards", "vae", "clip", "unet"), writes=("report",))

if __name__ == "__main__":
    STAGE.main()
