"""Everything that `evaluate` measures: samples beside photos, networks on photos. Each part has a module of its own in this room."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from darkroom.config import EvaluateParams
from darkroom.data.doctor import LARGE_SHARE
from darkroom.data.shards import ImageShards
from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.evaluation.alignment import clip_metrics, clip_unfit_because, sample_scores
from darkroom.evaluation.canaries import Fitness, check_extractor, mean_colour, too_few_references
from darkroom.evaluation.copies import Copies, find_copies
from darkroom.evaluation.distribution import distance_metrics
from darkroom.evaluation.features import MAX_PHOTOS, ArrayImages, Extractor, FeatureSets, Images, ImageSource, eval_key
from darkroom.evaluation.galleries import (
    Gallery,
    comparison_gallery,
    nearest_gallery,
    reconstruction_gallery,
    sample_gallery,
    worst_samples,
)
from darkroom.evaluation.likelihood import PhotoModel, PixelLikelihood, denoisers_of, likelihood_metrics
from darkroom.evaluation.neighbours import Groups, nearest
from darkroom.evaluation.photo_losses import PhotoLosses, measure_photo_losses, photo_loss_galleries
from darkroom.evaluation.recognised import Pictures, SeenClasses, measure_recognised
from darkroom.evaluation.reconstruction import reconstruct, reconstruction_metrics
from darkroom.evaluation.story import Champion, Funnel
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.classifier import Classifier
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel
from darkroom.pixels import map_pictures

ONE_CAPTION = "The model was trained with one caption, so prompts steer nothing, and whether samples fit them is not measured."


def choose_sources(held_out: Sequence[str], train: set[str], num: int) -> list[int]:
    """Rows of held-out captions, starting with captions that no training photo has; rows repeat if `num` is larger."""
    ordered = sorted(range(len(held_out)), key=lambda row: held_out[row] in train)
    return [ordered[index % len(ordered)] for index in range(num)]


@dataclass(frozen=True)
class Comparison:
    """Samples, and the photos with which they are compared."""

    samples: ImageSource
    prompts: Sequence[str]  # one per sample
    sources: Groups  # (N,), for each sample the row of the held-out photo whose caption was its prompt
    train: ImageShards
    held_out: ImageShards


@dataclass(frozen=True)
class Networks:
    """The model that drew the samples."""

    vae: Autoencoder
    pixels: PixelLikelihood  # of its decoder
    unet: UNet2DConditionModel
    clip: ClipTowers
    config: DiffusionConfig

    @property
    def latent_dims(self) -> int:
        side = self.unet.config.sample_size
        assert side is not None, "train_unet writes it"
        return self.unet.config.in_channels * side**2

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device


@dataclass(frozen=True)
class Measured:
    """What was found, as numbers and as the pictures that show it."""

    values: dict[str, float]  # key of metrics.json -> value
    unfit_because: str  # why no gate may decide on these values; "" = it may
    remarks: list[str]  # sentences on what was not measured
    features: FeatureSets
    fitness: Fitness  # of the feature extractor
    funnel: Funnel
    copies: Copies
    losses: PhotoLosses
    photos: Images  # held-out ones, (M, H, W, 3)
    decoded: Images  # their reconstructions
    scores: NDArray[np.float64] | None  # (N,), CLIP score of each sample; None = CLIP cannot tell
    distances: NDArray[np.float64] | None  # (N,), from each sample to the nearest held-out photo; None = the extractor is unfit


def measure(compared: Comparison, networks: Networks, extractor: Extractor, params: EvaluateParams) -> Measured:
    """Measure all that the glossary names, but what the extractor, the captions or the photos do not allow.

    Raises:
        ValueError: too few photos or samples for a metric, or parameters that do not fit.
    """
    batch_size, device = params.batch_size, networks.device
    samples, train, held_out = compared.samples, compared.train, compared.held_out
    classifier = Classifier.shipped(device)
    watch = SeenClasses(classifier.features_and_scores)
    shipped = extractor.kind == "squeezenet"
    watched = replace(extractor, extract=watch) if shipped else extractor
    features = FeatureSets.extract(watched, samples, held_out, train, batch_size=batch_size)
    classes = np.split(watch.take(), [len(samples), len(samples) + len(features.held_out)]) if shipped else [None, None]
    fitness = check_extractor(extractor, held_out, features.held_out, features.train, batch_size=batch_size)
    no_clip = ONE_CAPTION if networks.config.only_caption is not None else clip_unfit_because(networks.clip, compared.prompts)
    if extractor.kind == "clip" and no_clip:
        fitness = replace(fitness, unfit_because=no_clip)
    copies = find_copies(samples, train, held_out, decode=_decode(networks, batch_size), sources=compared.sources, batch_size=batch_size)
    photos, decoded = reconstruct(networks.vae, held_out, batch_size=batch_size, device=device)
    recognised = measure_recognised(
        lambda images: classifier.features_and_scores(images)[1],
        Pictures(train, held_out, ArrayImages(decoded), samples),
        params.recognised.classes,
        batch_size=batch_size,
        seen_samples=classes[0],
        seen_held_out=classes[1],
    )
    denoisers = denoisers_of(networks.unet, networks.clip, networks.config)
    measured = {} if no_clip else clip_metrics(networks.clip, samples, compared.prompts, held_out, batch_size=batch_size)
    measured |= recognised.metrics | copies.metrics
    measured |= {f"reconstruction_{name}": value for name, value in reconstruction_metrics(photos, decoded).items()}
    measured |= {f"reconstruction_{name}_chance": value for name, value in reconstruction_metrics(photos, mean_colour(photos)).items()}
    measured |= likelihood_metrics(
        PhotoModel(networks.vae, networks.pixels, networks.config.schedule),
        denoisers,
        held_out,
        latent_dims=networks.latent_dims,
        seed=params.seed,
        batch_size=batch_size,
        device=device,
    )
    if not fitness.unfit_because:
        measured |= distances(features, fitness, compared, extractor, params)
    return Measured(
        values=measured,
        unfit_because=" ".join(filter(None, (fitness.unfit_because, too_few_references(len(held_out))))),
        remarks=_remarks(no_clip, compared.prompts),
        features=features,
        fitness=fitness,
        funnel=recognised.funnel,
        copies=copies,
        losses=measure_photo_losses(networks.vae, denoisers, train, seed=params.seed, batch_size=batch_size, device=device),
        photos=photos,
        decoded=decoded,
        scores=None if no_clip else sample_scores(networks.clip, samples, compared.prompts, batch_size=batch_size),
        distances=None if fitness.unfit_because else nearest(features.samples, features.held_out)[1],
    )


def comparison_key(
    compared: Comparison, extractor: Extractor, *, seeds: Sequence[int], params: EvaluateParams, code: Mapping[str, str]
) -> str:
    """The `eval_key` of the report; `code` as of `eval_key`."""
    return eval_key(
        compared.held_out,
        extractor,
        prompts=compared.prompts,
        seeds=seeds,
        sampling=params.sampling.model_dump(),
        settings=params.model_dump(include={"num_neighbours", "recognised"}) | {"num_train": min(len(compared.train), MAX_PHOTOS)},
        code=code,
    )


def measure_champion(
    name: str, samples: ImageSource, compared: Comparison, measured: Measured, extractor: Extractor, params: EvaluateParams
) -> Champion:
    """The distances of another model's `samples`, drawn with the same prompts and seeds; none if the extractor is unfit."""
    values: dict[str, float] = {}
    if not measured.fitness.unfit_because:
        features = replace(measured.features, samples=extractor.of(samples, limit=None, batch_size=params.batch_size, desc=name))
        values = distances(features, measured.fitness, compared, extractor, params)
    return Champion(name, values, comparison_gallery(compared.samples, samples, compared.prompts, max(1, params.num_grid // 2)))


def distances(
    features: FeatureSets, fitness: Fitness, compared: Comparison, extractor: Extractor, params: EvaluateParams
) -> dict[str, float]:
    num_neighbours, kernel = params.num_neighbours, extractor.kernel
    return distance_metrics(features, fitness.mean_colours, sources=compared.sources, num_neighbours=num_neighbours, kernel=kernel)


def galleries(compared: Comparison, measured: Measured, num: int) -> dict[str, Gallery]:
    """File name without suffix -> gallery, of at most `num` images each; `samples` is the first."""
    samples, prompts, pairs = compared.samples, compared.prompts, max(1, num // 2)
    found = {"samples": sample_gallery(samples, prompts, num)}
    if worst := worst_samples(samples, prompts, measured.scores, measured.distances):
        found["worst"] = worst
    return found | {
        "nearest": nearest_gallery(samples, prompts, compared.train, compared.held_out, measured.copies, pairs),
        "reconstructions": reconstruction_gallery(measured.photos, measured.decoded, pairs),
        **photo_loss_galleries(measured.losses, compared.train),
    }


def _remarks(no_clip: str, prompts: Sequence[str]) -> list[str]:
    """Why scores of CLIP are missing, and whether nearly all prompts are alike."""
    caption, count = Counter(prompts).most_common(1)[0]
    share = count / len(prompts)
    common = f"{share:.0%} of the prompts are {caption!r}: there is little that prompts can steer." if 1 > share > LARGE_SHARE else ""
    return [remark for remark in (no_clip, common) if remark]


def _decode(networks: Networks, batch_size: int) -> Callable[[Images], Images]:
    """Photos -> their reconstructions, any number at a time."""
    return partial(map_pictures, networks.vae.reconstruct, batch_size=batch_size, device=networks.device)
