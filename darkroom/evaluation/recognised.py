"""recognised: the share of pictures in which a classifier sees the subject of the photos, from the photo to the sample.

The classifier names one of ImageNet's 1000 classes for each picture. The subject is a set of classes: those that training photos get
and spoilt pictures do not. Then held-out photos, their reconstructions and the samples are counted, and the step that loses most
is named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import binomtest, fisher_exact

from darkroom.data.shards import MAX_FULL, ImageShards
from darkroom.evaluation.canaries import TiledImages, mean_colour
from darkroom.evaluation.features import Images, ImageSource, MappedImages
from darkroom.evaluation.story import Funnel, FunnelStep
from darkroom.models.classifier import CHUNK, Classifier, class_names, class_numbers
from darkroom.progress import progress

Classify = Callable[[Images], NDArray[np.float32]]  # images of any size -> scores (B, 1000)
Classes = NDArray[np.int64]  # (N,), the number of the class of each picture
Features = NDArray[np.float32]  # (B, D)
See = Callable[[ImageSource, int, str], Classes]  # source, how many of its images, what they are called -> their classes

MAX_COUNTED = 1000  # pictures of a step: a share is certain to 3 % then
MAX_SPOILT = 32  # photos of which pictures without a subject are made, in each way
LEAST_SHARE, LEAST_PHOTOS = 0.02, 3  # a class of the subject has at least this share of the photos, and this number
TIMES_SPOILT = 2.0  # and at least this many times the share of spoilt pictures
CLEAR = 0.5  # the classes of the subject hold at least this share of the photos; otherwise the classifier does not know the subject
OWN_WORD = 0.25  # a class that this share of the photos gets is a word for the subject
LEVEL = 0.05  # of the test that finds a loss
NAMES_SHOWN = 4


@dataclass(frozen=True)
class Pictures:
    """What the funnel counts, and the training photos that decide on the classes."""

    train: ImageShards
    held_out: ImageShards
    reconstructions: ImageSource  # of held-out photos
    samples: ImageSource


@dataclass(frozen=True)
class Recognised:
    metrics: dict[str, float]  # empty if the funnel is
    funnel: Funnel


@dataclass
class SeenClasses:
    """Features of a classifier, for an `Extractor`; the classes of the same images are remembered and need no second pass."""

    features_and_scores: Callable[[Images], tuple[Features, NDArray[np.float32]]]
    _seen: list[Classes] = field(default_factory=list)

    def __call__(self, images: Images) -> Features:
        features, scores = self.features_and_scores(images)
        self._seen.append(scores.argmax(axis=1))
        return features

    def take(self) -> Classes:
        """The classes of all images since the last call."""
        seen, self._seen = self._seen, []
        return np.concatenate(seen)


def measure_recognised(
    classify: Classify,
    pictures: Pictures,
    classes: Sequence[int | str] = (),  # of the subject; none = found from the training photos
    *,
    batch_size: int,
    seen_held_out: Classes | None = None,  # of the held-out photos at the working side, if a pass for features has seen them
    seen_samples: Classes | None = None,
) -> Recognised:
    """`recognised` of samples and its steps, each with a 95 % interval (Clopper-Pearson); or a sentence why there is none.

    Raises:
        ValueError: `classes` names a class that ImageNet does not have.
    """

    def see(source: ImageSource, limit: int, desc: str) -> Classes:
        return classes_of(classify, source, limit=limit, batch_size=batch_size, desc=desc)

    subject, remark = class_numbers(classes, parameter="evaluate.recognised.classes"), ""
    if not subject:
        subject, held, word = look_for_subject(FullSize(pictures.train) if len(pictures.train.with_full_size) else pictures.train, see)
        if held < CLEAR:
            return Recognised({}, Funnel([], _diffuse(held)))
        remark = "" if word >= OWN_WORD else " No single class stands for it, so read the shares only beside those of the photos."
    seen = {
        f"photos at {pictures.held_out.size} px": see(pictures.held_out, MAX_COUNTED, "photos") if seen_held_out is None else seen_held_out
    }
    if len(pictures.held_out.with_full_size):
        seen = {"photos at full size": see(FullSize(pictures.held_out), MAX_FULL, "photos at full size")} | seen
    many = max(pictures.train, pictures.held_out, key=len)  # a handful of held-out photos would leave chance open
    chance = see(TiledImages(many), MAX_FULL, "shuffled photos")
    seen["reconstructions"] = see(pictures.reconstructions, MAX_COUNTED, "reconstructions")
    seen["samples"] = see(pictures.samples, MAX_COUNTED, "samples") if seen_samples is None else seen_samples
    steps = [count(name, found, subject) for name, found in seen.items()]
    return summarise(steps, count("photos of shuffled tiles", chance, subject), called(subject) + remark)


@dataclass(frozen=True)
class FullSize:
    """The photos of a split that are known at full size, as an `ImageSource`."""

    photos: ImageShards

    def __len__(self) -> int:
        return len(self.photos.with_full_size)

    def images(self, indices: Sequence[int]) -> Images:
        return self.photos.full_images([self.photos.with_full_size[index] for index in indices])


def classes_of(classify: Classify, source: ImageSource, *, limit: int, batch_size: int, desc: str) -> Classes:
    """The classes with the highest scores, (N,), of the first `limit` images."""
    num = min(len(source), limit)
    starts = progress(range(0, num, batch_size), desc=f"classes of {desc}", unit="batch")
    return np.concatenate([classify(source.images(range(start, min(start + batch_size, num)))).argmax(axis=1) for start in starts])


def look_for_subject(photos: ImageSource, see: See) -> tuple[tuple[int, ...], float, float]:
    """The subject of photos: its classes, the share of the photos that they hold, and that of the most frequent class."""
    spoilt = [see(MappedImages(photos, spoil), MAX_SPOILT, "spoilt photos") for spoil in (mean_colour, blotches, noise)]
    deciding = see(photos, MAX_FULL, "training photos")
    subject = find_subject(deciding, spoilt)
    return subject, float(np.isin(deciding, subject).mean()), float(np.mean(deciding == subject[0])) if subject else 0.0


def known_subject(classifier: Classifier, photos: ImageSource) -> tuple[int, ...]:
    """The classes of the subject of photos; none if they hold too few of the photos, or no class is a word for the subject."""

    def see(source: ImageSource, limit: int, desc: str) -> Classes:
        scores = lambda images: classifier.features_and_scores(images)[1]  # noqa: E731
        return classes_of(scores, source, limit=limit, batch_size=CHUNK, desc=desc)

    subject, held, word = look_for_subject(photos, see) if len(photos) else ((), 0.0, 0.0)
    return subject if held >= CLEAR and word >= OWN_WORD else ()


def find_subject(photos: Classes, spoilt: Sequence[Classes]) -> tuple[int, ...]:
    """The classes that photos get, and pictures in which nothing can be seen do not; the most frequent one first.

    Args:
        photos: classes of training photos.
        spoilt: classes of such pictures, one array for each way to spoil them.
    """
    numbers, counts = np.unique(photos, return_counts=True)
    frequent = counts >= max(LEAST_PHOTOS, LEAST_SHARE * len(photos))
    order = np.argsort(-counts, kind="stable")
    return tuple(
        int(numbers[i])
        for i in order
        if frequent[i] and counts[i] >= TIMES_SPOILT * len(photos) * max(float(np.mean(found == numbers[i])) for found in spoilt)
    )


def count(name: str, seen: Classes, subject: Sequence[int]) -> FunnelStep:
    """The share of pictures whose class is one of the subject, with its 95 % interval."""
    num = int(np.isin(seen, subject).sum())
    interval = binomtest(num, len(seen)).proportion_ci()
    return FunnelStep(name, num / len(seen), float(interval.low), float(interval.high), len(seen))


def summarise(steps: Sequence[FunnelStep], chance: FunnelStep, called: str) -> Recognised:
    """The metrics and the funnel of the last three or four steps; neither if photos are not recognised more often than shuffled."""
    first, photos, decoded, samples = steps[0], *steps[-3:]
    if first.low <= chance.high:
        sentence = f"Nothing is counted, because the classifier recognises {_percent(first)}, and {_percent(chance)}. {called}"
        return Recognised({}, Funnel([], sentence))
    metrics = _with_interval("recognised", samples) | _with_interval("recognised_reconstructions", decoded)
    metrics |= {"recognised_photos": photos.share, "recognised_reconstructions_photos": photos.share}
    metrics |= _with_interval("recognised_full", first) if first != photos else {}
    metrics |= {f"{key}_chance": chance.share for key in ("recognised", "recognised_full", "recognised_reconstructions") if key in metrics}
    return Recognised(metrics, Funnel(steps, f"{_greatest_loss(steps)} {called}"))


def blotches(images: Images) -> Images:
    """Each image with 4 x 4 colours left of it."""
    height, width = images.shape[1:3]
    small = [Image.fromarray(image).resize((4, 4), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in small])


def noise(images: Images) -> Images:
    """Noise of all colours for each image: the same one for the same image."""
    seeds = (int(image.sum(dtype=np.int64)) for image in images)
    return np.stack([np.random.default_rng(seed).integers(0, 256, images.shape[1:], np.uint8) for seed in seeds])


def _greatest_loss(steps: Sequence[FunnelStep]) -> str:
    """Which stage loses the largest part of what it is given; a loss is one that Fisher's exact test does not take for chance."""
    causes = {"photos at full size": f"The side of {steps[-3].name.removeprefix('photos at ')}", "reconstructions": "The U-Net"}
    losses = []
    for before, after in pairwise(steps):
        table = [[round(step.share * step.num_pictures), round((1 - step.share) * step.num_pictures)] for step in (before, after)]
        if fisher_exact(table, alternative="greater").pvalue < LEVEL / (len(steps) - 1):
            losses.append((after.share / before.share, causes.get(before.name, "The VAE"), before, after))
    if not losses:
        return f"No stage loses the subject: the classifier recognises {_percent(steps[0])} and {_percent(steps[-1])}."
    _, cause, before, after = min(losses, key=lambda loss: loss[0])
    return f"{cause} loses the subject most: the classifier recognises {_percent(before)}, and {_percent(after)}."


def _percent(step: FunnelStep) -> str:
    return f"{step.share:.0%} of {step.num_pictures} {step.name}"


def called(subject: Sequence[int]) -> str:
    names = [class_names()[number] for number in subject]
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"It calls the subject {', '.join(names[:NAMES_SHOWN])}{more}."


def _diffuse(held: float) -> str:
    return (
        f"Nothing is counted, because the classifier has no words for the photos: {held:.0%} of the training photos are in classes that "
        f"many of them share; required: {CLEAR:.0%}. If ImageNet has classes of your subject, name them in evaluate.recognised.classes."
    )


def _with_interval(key: str, step: FunnelStep) -> dict[str, float]:
    return {key: step.share, f"{key}_low": step.low, f"{key}_high": step.high}
