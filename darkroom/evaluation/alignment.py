"""Does a picture show what its prompt says? CLIP similarity, retrieval, and the coat colour of toy cats."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Features = NDArray[np.floating]  # (N, E), of any length: cosines are compared


def clip_score(image_features: Features, text_features: Features) -> NDArray[np.float64]:
    """100 * cosine of each picture with its own text, (N,).

    Hessel et al. 2021 (CLIPScore) raise negative values to 0; small towers have many, and the mean should show them.
    """
    assert image_features.shape == text_features.shape
    return 100 * np.sum(_unit(image_features) * _unit(text_features), axis=1)


def chance_clip_score(image_features: Features, text_features: Features, texts: Sequence[str]) -> float:
    """Mean CLIP score of pictures with texts that are not theirs: over all pairs of rows whose texts differ.

    nan when all texts are equal, so that there is no such pair.
    """
    scores = 100 * _unit(image_features) @ _unit(text_features).T
    mismatched = ~_equal(texts)
    return float(scores[mismatched].mean()) if mismatched.any() else float("nan")


def retrieval_accuracy(image_features: Features, text_features: Features, texts: Sequence[str]) -> float:
    """Share of pictures whose own text is the nearest of all texts of the set (chance: 1 / number of distinct texts)."""
    nearest = (_unit(image_features) @ _unit(text_features).T).argmax(axis=1)
    return float(_equal(texts)[np.arange(len(nearest)), nearest].mean())


def _unit(features: Features) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def _equal(texts: Sequence[str]) -> NDArray[np.bool_]:
    column = np.array(texts)
    return column[:, None] == column[None, :]


def coat_colour(
    images: NDArray[np.uint8],  # (B, H, W, 3)
    coats: Mapping[str, Colour],
    others: Sequence[Colour],  # what else is painted: backgrounds, accessories, eyes; these pixels do not vote
    *,
    max_distance: float = 60.0,  # a pixel votes only for a colour that is nearer, in units of 0..255
    min_share: float = 0.1,  # of the vote; below this the answer is None
) -> list[str | None]:
    """Which coat the animal in the middle of each picture has.

    Every pixel votes for the nearest palette colour (RGB), pixels in the middle with more weight (a Gaussian). A colour
    that also fills both upper corners is background: the smaller of its two corner shares is taken off its vote.
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


def prompt_adherence(seen: Sequence[str | None], asked: Sequence[str]) -> float:
    """Share of pictures in which what is seen is what was asked for; unrecognisable counts as wrong."""
    assert len(seen) == len(asked) > 0
    return sum(a == b for a, b in zip(seen, asked, strict=True)) / len(asked)
