"""evaluate: pictures of held-out captions, and honest numbers on them.

Reads data/shards, data/vae, data/clip, data/unet. Writes data/report: metrics.json, report.html (one file, works offline)
and pictures/. Distances are to held-out photos, in the features of a named extractor; docs/evaluate.md explains each.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from darkroom.config import EvaluateParams, FeatureParams
from darkroom.data.shards import ImageShards
from darkroom.data.toy_cats import COATS, OTHER_COLOURS, parse_caption
from darkroom.diffusion.denoiser import make_denoiser
from darkroom.diffusion.guidance import classifier_free
from darkroom.evaluation.alignment import chance_clip_score, clip_score, coat_colour, prompt_adherence, retrieval_accuracy
from darkroom.evaluation.curves import curve_svg, read_curve
from darkroom.evaluation.distribution import frechet_distance, kernel_distance, precision_recall
from darkroom.evaluation.features import Extractor, clip_features, torchvision_features
from darkroom.evaluation.galleries import coat_gallery, nearest_gallery, reconstruction_gallery, sample_gallery, write_picture
from darkroom.evaluation.glossary import explain
from darkroom.evaluation.memorization import Memorization, memorization
from darkroom.evaluation.reconstruction import psnr, ssim
from darkroom.evaluation.report import Gallery, write_report
from darkroom.pixels import map_pictures, to_float
from darkroom.provenance import hash_json, write_json
from darkroom.sampling.text_to_image import TextToImage
from darkroom.stage import Stage, main
from darkroom.training.likelihood import PhotoModel, PixelLikelihood, bound_numbers, photo_bounds

MAX_PHOTOS = 10_000  # of each split that distances are measured to: the first in the order of their keys, which are hashes
MAX_RECONSTRUCTIONS = 1024  # held-out photos that the VAE gives back
MAX_BOUND_PHOTOS = 128  # held-out photos whose likelihood is bounded
BOUND_TIMESTEPS = 3  # noise levels of the chain at which each of them is looked at; the photos' levels differ
SPLITS = {"training": "train", "held-out photos": "val"}  # name of a curve -> its file


@dataclass(frozen=True)
class Drawn:
    sources: np.ndarray  # (N,): rows of the held-out photos whose captions the prompts are
    prompts: list[str]
    images: np.ndarray  # uint8 (N, H, W, 3)

    def read(self, rows: range) -> np.ndarray:
        return self.images[rows]


@dataclass(frozen=True)
class Features:
    """(N, D) each, of one extractor."""

    samples: np.ndarray
    held_out: np.ndarray
    train: np.ndarray


def run(stage: Stage[EvaluateParams]) -> None:
    params, out = stage.params, stage.outs["report"]
    train, held_out = (ImageShards(stage.inputs["shards"], split) for split in ("train", "val"))
    artist = TextToImage.load(stage.inputs["unet"].parent)
    extractor = make_extractor(params.features, artist, stage.indexes["clip"]["fingerprint"])
    sources = choose_sources(held_out.captions, set(train.captions), params.num_samples)
    prompts = [held_out.captions[row] for row in sources]
    seeds = [params.seed + index for index in range(params.num_samples)]
    sampling = params.sampling.model_dump()
    images = artist.sample(prompts, seeds=seeds, **sampling, batch_size=params.batch_size, show_progress=True)
    drawn = Drawn(np.array(sources), prompts, images)

    features = extract(extractor, drawn, held_out, train, params.batch_size)
    copies = memorization(features.samples, features.train, features.held_out, drawn.sources)
    originals = held_out.images(range(min(len(held_out), MAX_RECONSTRUCTIONS)))
    decoded = map_pictures(artist.vae.reconstruct, originals, batch_size=params.batch_size, device=artist.device)
    measured = {
        **distances(features, drawn.sources, params.num_neighbours),
        **alignment(artist, drawn, held_out, params.batch_size),
        **adherence(drawn, originals, held_out.captions[: len(originals)]),
        **bounds(artist, held_out, PixelLikelihood.load(stage.inputs["vae"]), params),
        "copied_fraction": copies.copied_fraction,
        "reconstruction_psnr": float(psnr(originals, decoded).mean()),
        "reconstruction_ssim": float(ssim(originals, decoded).mean()),
    }
    numbers = {name: value for name, value in measured.items() if math.isfinite(value)}  # JSON has no nan
    setting = {"photos": held_out.keys, "size": held_out.size, "prompts": prompts, "seeds": seeds, "features": extractor.name}
    eval_key = hash_json(setting | sampling)
    write_json(out / "metrics.json", numbers | {"num_samples": params.num_samples, "features": extractor.name, "eval_key": eval_key})

    galleries = make_galleries(drawn, copies, train, originals, decoded, params.num_grid)
    (out / "pictures").mkdir()
    for name, gallery in galleries.items():
        write_picture(out / "pictures" / f"{name}.png", gallery)
    write_report(
        out / "report.html",
        title="What the model draws",
        numbers=explain(numbers),
        facts=facts(params, extractor.name, eval_key, prompts, train, held_out),
        galleries=list(galleries.values()),
        charts=charts({name: stage.inputs[name] for name in ("clip", "vae", "unet")}),
    )
    stage.content["report"] = {"eval_key": eval_key, "features": extractor.name}
    stage.tracker.log_metrics(numbers, step=0)
    for name in galleries:
        stage.tracker.log_image(name, np.asarray(Image.open(out / "pictures" / f"{name}.png")))
    stage.tracker.log_artifact(out / "report.html")


def choose_sources(held_out: Sequence[str], train: set[str], num: int) -> list[int]:
    """Rows of held-out captions, first those that training never saw; from the start again when they are too few."""
    ordered = sorted(range(len(held_out)), key=lambda row: held_out[row] in train)
    return [ordered[index % len(ordered)] for index in range(num)]


# ---- numbers


def make_extractor(params: FeatureParams, artist: TextToImage, clip_fingerprint: str) -> Extractor:
    if params.kind == "clip":
        artist.clip.check_image_tower()
        return clip_features(artist.clip.encode_images, clip_fingerprint)
    return torchvision_features(
        params.arch,
        Path(params.weights),
        size=params.side,
        channels=params.channels,
        scale=params.scale,
        mean=params.mean,
        std=params.std,
        device=artist.device,
    )


def extract(extractor: Extractor, drawn: Drawn, held_out: ImageShards, train: ImageShards, batch_size: int) -> Features:
    return Features(
        samples=extractor(drawn.read, len(drawn.prompts), batch_size=batch_size, desc="samples"),
        held_out=extractor(held_out.images, min(len(held_out), MAX_PHOTOS), batch_size=batch_size, desc="held-out photos"),
        train=extractor(train.images, min(len(train), MAX_PHOTOS), batch_size=batch_size, desc="training photos"),
    )


def distances(features: Features, sources: np.ndarray, num_neighbours: int) -> dict[str, float]:
    """Distances to the held-out photos, never between a sample and the photo whose caption it was drawn from."""
    photos = np.arange(len(features.held_out))
    kid, error = kernel_distance(features.samples, features.held_out, sources, photos)
    manifolds = precision_recall(features.held_out, features.samples, num_neighbours, photos, sources)
    # a covariance cannot leave pairs out: samples from the captions of one half are compared with the photos of the other
    crossed = [(features.samples[sources % 2 == half], features.held_out[photos % 2 != half]) for half in (0, 1)]
    num_a, num_b = (min(len(part), len(features.train) // 2) for part in crossed[0])
    floor = frechet_distance(features.train[:num_a], features.train[num_a : num_a + num_b])
    return {
        "frechet_distance": sum(frechet_distance(*pair) for pair in crossed) / 2,
        "frechet_distance_floor": floor,
        "kid": kid,
        "kid_standard_error": error,
        **asdict(manifolds),
    }


def alignment(artist: TextToImage, drawn: Drawn, held_out: ImageShards, batch_size: int) -> dict[str, float]:
    """CLIP scores by the run's own CLIP: of samples with their prompts and with others, and of photos with their captions.

    {} if that CLIP has no image tower, as that of an imported Stable Diffusion.
    """
    if not artist.clip.has_image_tower:
        return {}
    embed = clip_features(artist.clip.encode_images, "")
    captions = held_out.captions[:MAX_PHOTOS]
    samples = embed(drawn.read, len(drawn.prompts), batch_size=batch_size, desc="samples")
    photos = embed(held_out.images, len(captions), batch_size=batch_size, desc="held-out photos")
    sample_texts, photo_texts = (encode_texts(artist, texts, batch_size) for texts in (drawn.prompts, captions))
    return {
        "clip_score": float(clip_score(samples, sample_texts).mean()),
        "clip_score_photos": float(clip_score(photos, photo_texts).mean()),
        "clip_score_chance": chance_clip_score(samples, sample_texts, drawn.prompts),
        "retrieval_accuracy": retrieval_accuracy(samples, sample_texts, drawn.prompts),
        "retrieval_accuracy_photos": retrieval_accuracy(photos, photo_texts, captions),
    }


def encode_texts(artist: TextToImage, texts: Sequence[str], batch_size: int) -> np.ndarray:
    """(N, E); equal texts are encoded once, so that they have equal rows."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    distinct = list(rows)
    parts = [artist.clip.encode_texts(distinct[start : start + batch_size]).cpu().numpy() for start in range(0, len(distinct), batch_size)]
    return np.concatenate(parts)[[rows[text] for text in texts]]


def adherence(drawn: Drawn, photos: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    """Toy cats only: how often the coat has the colour that the prompt asks for; of photos, how often the measure is right."""
    asked, captioned = asked_coats(drawn.prompts), asked_coats(captions)
    if asked is None or captioned is None:
        return {}
    return {
        "prompt_adherence": prompt_adherence(coat_colour(drawn.images, COATS, OTHER_COLOURS), asked),
        "prompt_adherence_photos": prompt_adherence(coat_colour(photos, COATS, OTHER_COLOURS), captioned),
    }


@torch.no_grad()
def bounds(artist: TextToImage, held_out: ImageShards, pixels: PixelLikelihood, params: EvaluateParams) -> dict[str, float]:
    """How well VAE and U-Net know the first held-out photos, given their captions and without guidance."""
    num, size = min(len(held_out), MAX_BOUND_PHOTOS), params.batch_size
    model = PhotoModel(artist.vae, pixels, artist.config.schedule)
    parts = []
    for rows in (range(start, min(start + size, num)) for start in range(0, num, size)):
        context = artist.clip.encode_tokens(artist.clip.tokenize(held_out.captions[rows.start : rows.stop]).to(artist.device))
        net = classifier_free(artist.unet, context, context, guidance_scale=1)
        denoise = make_denoiser(net, artist.config.schedule, artist.config.prediction)
        images = to_float(held_out.images(rows)).to(artist.device)
        parts.append(
            photo_bounds(model, denoise, images, seed=params.seed, positions=rows, num_positions=num, num_timesteps=BOUND_TIMESTEPS)
        )
    return bound_numbers(model, parts, pixel_dims=3 * held_out.size**2, latent_dims=math.prod(artist.latent_shape))


def asked_coats(captions: Sequence[str]) -> list[str] | None:
    """The coat that each caption names; None if one is not a toy cat's."""
    parsed = [parse_caption(caption) for caption in captions]
    return [found["coat"] for found in parsed if found] if all(parsed) else None


# ---- the report


def make_galleries(
    drawn: Drawn, copies: Memorization, train: ImageShards, originals: np.ndarray, decoded: np.ndarray, num: int
) -> dict[str, Gallery]:
    """Name of the picture file -> what it shows, at most `num` pictures each (coats: a row a coat)."""
    pairs = max(1, num // 2)
    nearest = train.images([int(copies.nearest_photo[index]) for index in copies.closest(pairs)])
    galleries = {
        "samples": sample_gallery(drawn.images, drawn.prompts, num),
        "nearest": nearest_gallery(drawn.images, drawn.prompts, nearest, copies),
        "reconstructions": reconstruction_gallery(originals, decoded, pairs),
    }
    asked = asked_coats(drawn.prompts)
    if asked is not None:
        galleries["coats"] = coat_gallery(drawn.images, asked, coat_colour(drawn.images, COATS, OTHER_COLOURS), list(COATS))
    return galleries


def facts(
    params: EvaluateParams, features: str, eval_key: str, prompts: Sequence[str], train: ImageShards, held_out: ImageShards
) -> dict[str, str]:
    seen_in_training = set(train.captions)
    unseen = sum(prompt not in seen_in_training for prompt in prompts)
    sampling = params.sampling
    return {
        "Samples": f"{len(prompts)}, of {len(set(prompts))} captions of held-out photos; the captions of {unseen} are not in training",
        "Photos": f"{len(held_out)} held out, {len(train)} for training, {held_out.size} px; at most {MAX_PHOTOS} of each are used",
        "Features": f"{features} (kind and hash of its weights)",
        "Sampler": f"{sampling.sampler}, {sampling.steps} {sampling.spacing} steps, guidance scale {sampling.guidance_scale:g}",
        "Seeds": f"{params.seed} to {params.seed + len(prompts) - 1}",
        "Neighbours": f"{params.num_neighbours}, for precision, recall, density and coverage",
        "Bits": f"of {min(len(held_out), MAX_BOUND_PHOTOS)} held-out photos, each at {BOUND_TIMESTEPS} noise levels and the least one",
        "Comparison key": f"{eval_key[:12]}: reports with another key were measured differently and do not compare",
    }


def charts(folders: dict[str, Path]) -> dict[str, str]:
    """Title -> SVG of the loss of each model that was trained."""
    found = {}
    for name, folder in folders.items():
        curves = {label: read_curve(folder / "curves" / f"{split}.csv", "loss") for label, split in SPLITS.items()}
        if any(curves.values()):
            found[f"Loss of train_{name}"] = curve_svg(curves)
    return found


if __name__ == "__main__":
    main("evaluate", run, reads=("shards", "vae", "clip", "unet"), writes=("report",))
