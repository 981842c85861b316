"""evaluate: samples from held-out captions, compared with held-out photos.

Reads data/shards, data/vae, data/clip, data/unet. Writes data/report: metrics.json, report.html (one file, works offline)
and pictures/. Distances are in the features of a named extractor; docs/evaluate.md explains each metric.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from darkroom.config import EvaluateParams
from darkroom.data.shards import ImageShards
from darkroom.demo.adherence import measure_adherence
from darkroom.diffusion.denoiser import Denoise, make_denoiser
from darkroom.diffusion.guidance import classifier_free
from darkroom.evaluation.alignment import clip_metrics
from darkroom.evaluation.copies import find_copies
from darkroom.evaluation.distribution import distance_metrics
from darkroom.evaluation.features import ArrayImages, FeatureSets, make_extractor
from darkroom.evaluation.galleries import report_galleries, write_gallery
from darkroom.evaluation.glossary import explain
from darkroom.evaluation.likelihood import PhotoModel, PixelLikelihood, likelihood_metrics
from darkroom.evaluation.reconstruction import reconstruct, reconstruction_metrics
from darkroom.evaluation.report import loss_charts, report_facts, write_report
from darkroom.pixels import map_pictures
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
    features = FeatureSets.extract(extractor, samples, held_out, train, batch_size=batch_size)
    decode = partial(map_pictures, model.vae.reconstruct, batch_size=batch_size, device=model.device)
    copies = find_copies(ArrayImages(samples), train, held_out, decode=decode, sources=rows, batch_size=batch_size)
    photos, decoded = reconstruct(model.vae, held_out, batch_size=batch_size, device=model.device)
    demo = measure_adherence(prompts, samples, held_out.captions[: len(photos)], photos)
    measured = {
        **distance_metrics(features, sources=rows, num_neighbours=params.num_neighbours),
        **clip_metrics(model.clip, samples, prompts, held_out, batch_size=batch_size),
        **bound_likelihood(model, PixelLikelihood.load(stage.inputs["vae"]), held_out, params),
        **{f"reconstruction_{name}": value for name, value in reconstruction_metrics(photos, decoded).items()},
        **copies.metrics,
    }
    metrics = [*demo.metrics, *explain(measured)]
    values = {key: value for key, value in measured.items() if math.isfinite(value)} | {metric.key: metric.value for metric in metrics}
    setting = {"photos": held_out.keys, "size": held_out.size, "prompts": prompts, "seeds": seeds, "features": extractor.name}
    identity = {"eval_key": hash_json(setting | sampling), "features": extractor.name}
    write_json(out / "metrics.json", values | identity | {"num_samples": params.num_samples, "unfit_because": ""})
    stage.content["report"] = identity
    stage.tracker.log_metrics(values, step=0)

    (out / "pictures").mkdir()
    galleries = report_galleries(samples, prompts, copies, train, held_out, photos, decoded, params.num_grid) | demo.galleries
    for name, gallery in galleries.items():
        stage.tracker.log_image(name, write_gallery(out / "pictures" / f"{name}.png", gallery))
    write_report(
        out / "report.html",
        title="Evaluation of the model",
        metrics=metrics,
        facts=report_facts(params, identity, prompts, train, held_out),
        galleries=list(galleries.values()),
        charts=loss_charts({name: stage.inputs[name] for name in ("clip", "vae", "unet")}),
    )
    stage.tracker.log_artifact(out / "report.html")


def choose_sources(held_out: Sequence[str], train: set[str], num: int) -> list[int]:
    """Rows of held-out captions, starting with captions that no training photo has; rows repeat if `num` is larger."""
    ordered = sorted(range(len(held_out)), key=lambda row: held_out[row] in train)
    return [ordered[index % len(ordered)] for index in range(num)]


def bound_likelihood(model: TextToImage, pixels: PixelLikelihood, held_out: ImageShards, params: EvaluateParams) -> dict[str, float]:
    """Bounds on the likelihood of held-out photos given their captions, without guidance."""

    def denoiser_for(captions: Sequence[str]) -> Denoise:
        context = model.clip.encode_tokens(model.clip.tokenize(captions).to(model.device))
        net = classifier_free(model.unet, context, context, scale=1)
        return make_denoiser(net, model.config.schedule, model.config.prediction)

    return likelihood_metrics(
        PhotoModel(model.vae, pixels, model.config.schedule),
        denoiser_for,
        held_out,
        latent_dims=math.prod(model.latent_shape),
        seed=params.seed,
        batch_size=params.batch_size,
        device=model.device,
    )


STAGE = Contract("evaluate", run, reads=("shards", "vae", "clip", "unet"), writes=("report",))

if __name__ == "__main__":
    STAGE.main()
