"""Prompt adherence of toy cats: does the cat have the coat colour that the prompt names? The one hook of the demo into `evaluate`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from darkroom.demo.pen import Colour
from darkroom.demo.toy_cats import COATS, OTHER_COLOURS, parse_caption
from darkroom.evaluation.features import ImageSource
from darkroom.evaluation.galleries import Gallery, Tile
from darkroom.evaluation.glossary import Entry, Metric, explain

Images = NDArray[np.uint8]  # (B, H, W, 3)
IN_A_ROW = 8  # images of one coat
AT_A_TIME = 64  # images in memory
ADHERENCE = {  # key in metrics.json -> what is known of it
    "prompt_adherence": Entry(
        "Prompt adherence", "Share of the samples whose cat has the coat colour that the prompt names.",
        "Only the colour in the middle counts: a blot of the right colour is enough.", "higher", chance=1 / len(COATS)),
}  # fmt: skip


@dataclass(frozen=True)
class Adherence:
    metrics: list[Metric] = field(default_factory=list)
    galleries: dict[str, Gallery] = field(default_factory=dict)  # file name without suffix -> gallery


def measure_adherence(prompts: Sequence[str], samples: ImageSource, captions: Sequence[str], photos: ImageSource) -> Adherence:
    """Metrics and a gallery of coat colours; nothing if the prompts are not captions of toy cats.

    Args:
        prompts: one per sample.
        samples: they are read a few at a time.
        captions: one per photo.
        photos: held-out photos, on which the measure itself is checked.
    """
    coats, coats_of_photos = coats_of(prompts), coats_of(captions)
    if coats is None:
        return Adherence()
    found = _coats_of_images(samples)
    galleries = {"coats": coat_gallery(samples, coats, found, list(COATS))}
    if coats_of_photos is None:
        return Adherence(galleries=galleries)
    metrics = {
        "prompt_adherence": prompt_adherence(found, coats),
        "prompt_adherence_photos": prompt_adherence(_coats_of_images(photos), coats_of_photos),
    }
    return Adherence(explain(metrics, ADHERENCE), galleries)


def coats_of(captions: Sequence[str]) -> list[str] | None:
    """The coat that each caption names; None if one of them is not the caption of a toy cat."""
    parsed = [parse_caption(caption) for caption in captions]
    return [attributes["coat"] for attributes in parsed if attributes] if all(parsed) else None


def _coats_of_images(source: ImageSource) -> list[str | None]:
    starts = range(0, len(source), AT_A_TIME)
    batches = (source.images(range(start, min(start + AT_A_TIME, len(source)))) for start in starts)
    return [coat for images in batches for coat in coat_colour(images, COATS, OTHER_COLOURS)]


def coat_colour(
    images: Images,
    coats: Mapping[str, Colour],
    others: Sequence[Colour],  # colours of everything else: backgrounds, accessories, eyes; these pixels do not vote
    *,
    max_distance: float = 60.0,  # a pixel votes only for a colour that is nearer, in units of 0..255
    min_share: float = 0.1,  # of the vote; below this the answer is None
) -> list[str | None]:
    """The coat of the animal in the middle of each image.

    Every pixel votes for the nearest palette colour (RGB), pixels in the middle with more weight (a Gaussian). A colour
    that also fills both upper corners is background: the smaller of its two corner shares is subtracted from its vote.
    """
    height, width = images.shape[1:3]
    y, x = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None, :] + 0.5) / width
    middle = np.exp(-((x - 0.5) ** 2 + (y - 0.58) ** 2) / (2 * 0.22**2))
    upper = y < 0.2
    left, right = upper & (x < 0.12), upper & (x > 0.88)
    palette = np.array([*coats.values(), *others], dtype=np.float32)
    names = list(coats)
    answers: list[str | None] = []
    for image in images:
        distance = np.square(image[:, :, None, :].astype(np.float32) - palette).sum(axis=-1)
        nearest = distance.argmin(axis=-1)[..., None] == np.arange(len(names))
        votes = nearest & (distance[..., : len(names)] < max_distance**2)  # (H, W, coats)
        vote, in_left, in_right = (np.average(votes.reshape(-1, len(names)), axis=0, weights=w.ravel()) for w in (middle, left, right))
        share = vote - np.minimum(in_left, in_right)
        best = int(share.argmax())
        answers.append(names[best] if share[best] >= min_share else None)
    return answers


def prompt_adherence(found: Sequence[str | None], named: Sequence[str]) -> float:
    """Share of images with the coat that the prompt names; an image without a recognised coat counts as wrong."""
    assert len(found) == len(named) > 0
    return sum(a == b for a, b in zip(found, named, strict=True)) / len(named)


def coat_gallery(samples: ImageSource, named: Sequence[str], found: Sequence[str | None], coats: Sequence[str]) -> Gallery:
    """A row for each coat that prompts name."""
    tiles = []
    for coat in coats:
        rows = [index for index, name in enumerate(named) if name == coat]
        if rows:
            right = sum(found[index] == coat for index in rows)
            tiles.append(Tile(samples.images(rows[:IN_A_ROW]), f"{coat}: {right} of {len(rows)} are {coat}"))
    return Gallery("Coats", "Samples by the coat colour that their prompts name.", tiles)
