"""evaluate: samples from held-out captions, compared with held-out photos.

Reads data/shards, data/vae, data/clip, data/unet. Writes data/report: metrics.json, report.html (one file, works offline)
and pictures/. Distances are in the features of a named extractor; docs/evaluate.md explains each metric.
"""

import math
from collections.abc import Sequence

import numpy as np

from darkroom.config import EvaluateParams
from darkroom.data.shards import ImageShards
from darkroom.demo.adherence import measure_adherence
from darkroom.evaluation.alignment import clip_metrics
from darkroom.evaluation.charts import band_charts, loss_charts
from darkroom.evaluation.distribution import distance_metrics
from darkroom.evaluation.extractors import make_extractor
from darkroom.evaluation.features import ArrayImages, FeatureSets
from darkroom.evaluation.galleries import nearest_gallery, reconstruction_gallery, sample_gallery, worst_gallery, write_gallery
from darkroom.evaluation.glossary import explain
from darkroom.evaluation.likelihood import PhotoModel, PixelLikelihood, denoisers_of, likelihood_metrics
from darkroom.evaluation.neighbours import memorization, nearest
from darkroom.evaluation.photo_losses import measure_photo_losses, photo_loss_galleries, write_photo_losses
from darkroom.evaluation.reconstruction import reconstruct, reconstruction_metrics
from darkroom.evaluation.report import report_facts, write_report
from darkroom.evaluation.story import Story, tell_verdict
from darkroom.provenance import hash_json, write_json
from darkroom.sampling.text_to_image import TextToImage
from darkroom.stage import Contract, Stage


def run(stage: Stage[EvaluateParams]) -> None:
    params, out = stage.params, stage.outs["report"]
    train, held_out = (ImageShards(stage.inputs["shards"], split) for split in ("train", "val"))
    model = TextToImage.load(stage.inputs["unet"].parent)
    extractor = make_extractor(params.features, model.clip, stage.indexes["clip"]["fingerprint"], model.device)
    sources = choose_sources(held_out.captions, set(train.captions), params.num_samples)
    prompts = [held_out.captions[row] for row in sources]
    seeds = [params.seed + index for index in range(params.num_samples)]
    sampling, batch_size = params.sampling.model_dump(), params.batch_size
    samples = model.sample(prompts, seeds=seeds, **sampling, batch_size=batch_size, show_progress=True)
    rows = np.array(sources)
    features = FeatureSets.extract(extractor, ArrayImages(samples), held_out, train, batch_size=batch_size)
    copies = memorization(features.samples, features.train, features.held_out, rows)
    photos, decoded = reconstruct(model.vae, held_out, batch_size=batch_size, device=model.device)
    demo = measure_adherence(prompts, samples, held_out.captions[: len(photos)], photos)
    measured = {
        **distance_metrics(features, sources=rows, num_neighbours=params.num_neighbours),
        **clip_metrics(model.clip, samples, prompts, held_out, batch_size=batch_size),
        **bound_likelihood(model, PixelLikelihood.load(stage.inputs["vae"]), held_out, params),
        **{f"reconstruction_{name}": value for name, value in reconstruction_metrics(photos, decoded).items()},
        "copied_fraction": copies.copied_fraction,
    }
    metrics = [*demo.metrics, *explain(measured)]
    setting = {"photos": held_out.keys, "size": held_out.size, "prompts": prompts, "seeds": seeds, "features": extractor.name}
    identity = {"eval_key": hash_json(setting | sampling), "features": extractor.name}
    numbers = {key: value for metric in metrics for key, value in metric.numbers.items()}
    write_json(out / "metrics.json", numbers | identity | {"num_samples": params.num_samples})
    stage.content["report"] = identity
    stage.tracker.log_metrics({metric.key: metric.value for metric in metrics}, step=0)
    denoisers = denoisers_of(model.unet, model.clip, model.config)
    losses = measure_photo_losses(model.vae, denoisers, train, seed=params.seed, batch_size=batch_size, device=model.device)
    write_photo_losses(out / "photo_losses.csv", losses, train)
    pairs = max(1, params.num_grid // 2)
    closest = train.images([int(copies.nearest_photo[index]) for index in copies.closest(pairs)])
    galleries = {
        "samples": sample_gallery(ArrayImages(samples), prompts, params.num_grid),
        "worst": worst_gallery(
            ArrayImages(samples), prompts, -nearest(features.samples, features.held_out)[1], "nearness to the photos (minus the distance)"
        ),
        "nearest": nearest_gallery(samples, prompts, closest, copies),
        "reconstructions": reconstruction_gallery(photos, decoded, pairs),
        **demo.galleries,
        **photo_loss_galleries(losses, train),
    }
    for name, gallery in galleries.items():
        stage.tracker.log_image(name, write_gallery(out / "pictures" / f"{name}.png", gallery))
    story = Story(
        verdict=tell_verdict(metrics, unfit_because=""),
        samples=galleries.pop("samples"),
        worst=galleries.pop("worst"),
        metrics=metrics,
        galleries=list(galleries.values()),
        facts=report_facts(params, identity, prompts, train, held_out, stage.indexes),
        charts=loss_charts({name: stage.inputs[name] for name in ("clip", "vae", "unet")}),
        bands=band_charts(stage.inputs["unet"]),
    )
    page, text = write_report(out, story)
    stage.tracker.log_artifact(page)
    stage.tracker.describe(text.read_text(encoding="utf-8"))


def choose_sources(held_out: Sequence[str], train: set[str], num: int) -> list[int]:
    """Rows of held-out captions, starting with captions that no training photo has; rows repeat if `num` is larger."""
    ordered = sorted(range(len(held_out)), key=lambda row: held_out[row] in train)
    return [ordered[index % len(ordered)] for index in range(num)]


def bound_likelihood(model: TextToImage, pixels: PixelLikelihood, held_out: ImageShards, params: EvaluateParams) -> dict[str, float]:
    """Bounds on the likelihood of held-out photos given their captions, without guidance."""
    photo_model, denoisers = PhotoModel(model.vae, pixels, model.config.schedule), denoisers_of(model.unet, model.clip, model.config)
    dims, batch_size, device = math.prod(model.latent_shape), params.batch_size, model.device
    return likelihood_metrics(photo_model, denoisers, held_out, latent_dims=dims, seed=params.seed, batch_size=batch_size, device=device)


STAGE = Contract("evaluate", run, reads=("shards", "vae", "clip", "unet"), writes=("report",))

if __name__ == "__main__":
    STAGE.main()
