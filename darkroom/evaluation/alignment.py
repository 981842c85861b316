"""How well images fit their prompts: CLIP score and retrieval accuracy."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from darkroom.data.shards import ImageShards
from darkroom.evaluation.features import MAX_PHOTOS, ChosenImages, ImageSource, clip_features
from darkroom.evaluation.neighbours import Features, row_blocks, unit
from darkroom.models.clip import ClipTowers

Array = NDArray[np.float64]
EQUAL = 1e-12  # cosines that differ by less differ by rounding


def clip_unfit_because(clip: ClipTowers, prompts: Sequence[str]) -> str:
    """A sentence why `clip` cannot tell whether samples fit their prompts; "" = it can."""
    if not clip.has_image_encoder:
        return "Whether samples fit their prompts is not measured: this CLIP has no image encoder."
    if len(set(prompts)) < 2:
        return f"Whether samples fit their prompts is not measured: all of them have the prompt {prompts[0]!r}, so CLIP learned nothing."
    return ""


def clip_metrics(
    clip: ClipTowers, samples: ImageSource, prompts: Sequence[str], held_out: ImageShards, *, batch_size: int
) -> dict[str, float]:
    """CLIP score and retrieval accuracy of samples by the run's own CLIP; of the photos whose captions are the prompts; and by chance.

    The photos choose among the same texts as the samples. Of them the first `MAX_PHOTOS` count.
    Empty if `clip_unfit_because` has a reason.
    """
    if clip_unfit_because(clip, prompts):
        return {}
    wanted = set(prompts)
    rows = [row for row, caption in enumerate(held_out.captions) if caption in wanted][:MAX_PHOTOS]
    captions = [held_out.captions[row] for row in rows]
    extractor = clip_features(clip.encode_images, "")
    of_samples = extractor.of(samples, limit=None, batch_size=batch_size, desc="samples")
    of_photos = extractor.of(ChosenImages(held_out, rows), batch_size=batch_size, desc="held-out photos")
    distinct = list(dict.fromkeys(prompts))
    of_distinct = encode_texts(clip, distinct, batch_size)
    places = {text: place for place, text in enumerate(distinct)}
    of_prompt, of_caption = (np.array([places[text] for text in texts]) for texts in (prompts, captions))
    return {
        "clip_score": float(clip_score(of_samples, of_distinct, of_prompt).mean()),
        "clip_score_photos": float(clip_score(of_photos, of_distinct, of_caption).mean()),
        "clip_score_chance": chance_clip_score(of_samples, of_distinct, of_prompt),
        "retrieval_accuracy": retrieval_accuracy(of_samples, of_distinct, of_prompt),
        "retrieval_accuracy_photos": retrieval_accuracy(of_photos, of_distinct, of_caption),
        "retrieval_accuracy_chance": 1 / len(distinct),
    }


def sample_scores(clip: ClipTowers, samples: ImageSource, prompts: Sequence[str], *, batch_size: int) -> Array | None:
    """The CLIP score of each sample with its prompt, (N,); None if `clip_unfit_because` has a reason."""
    if clip_unfit_because(clip, prompts):
        return None
    of_samples = clip_features(clip.encode_images, "").of(samples, limit=None, batch_size=batch_size, desc="samples")
    places = {text: place for place, text in enumerate(dict.fromkeys(prompts))}
    return clip_score(of_samples, encode_texts(clip, list(places), batch_size), np.array([places[text] for text in prompts]))


def encode_texts(clip: ClipTowers, texts: Sequence[str], batch_size: int) -> NDArray[np.float32]:
    """Embeddings (N, E)."""
    return np.concatenate(
        [clip.encode_texts(texts[start : start + batch_size]).cpu().numpy() for start in range(0, len(texts), batch_size)]
    )


def clip_score(images: Features, texts: Features, own: NDArray[np.intp]) -> Array:
    """100 * cosine of each image (N, E) with its own text, row own[i] of the texts (T, E): (N,).

    Hessel et al. 2021 (CLIPScore) raise negative values to 0. Small encoders have many of them, and the mean should show them.
    """
    assert len(images) == len(own)
    scores = np.empty(len(images))
    for rows in _image_blocks(images, texts):
        scores[rows] = 100 * np.sum(unit(images[rows]) * unit(texts[own[rows]]), axis=1)
    return scores


def chance_clip_score(images: Features, texts: Features, own: NDArray[np.intp]) -> float:
    """The mean CLIP score of images with the texts of other images, arguments as of `clip_score`: what dealing the texts out anew gives.

    Texts count as often as they occur. So the score of a model that ignores its prompts equals this on average, however
    often each prompt occurs. Over all pairs of different images, in closed form.
    """
    assert len(images) > 1
    mean_image = sum(unit(images[rows]).sum(axis=0) for rows in _image_blocks(images, texts)) / len(images)
    mean_text = np.bincount(own, minlength=len(texts)) @ unit(texts) / len(images)
    own_score = clip_score(images, texts, own).mean()
    return float((100 * len(images) * mean_image @ mean_text - own_score) / (len(images) - 1))


def retrieval_accuracy(images: Features, texts: Features, own: NDArray[np.intp]) -> float:
    """Mean over the texts of the share of their images to which they are the nearest of all texts; arguments as of `clip_score`.

    Each text counts the same, however many images it has: otherwise always naming the most frequent one would win. So chance is
    1 / len(texts). Texts that are equally near share the hit.
    """
    hits = np.empty(len(images))
    directions = unit(texts)
    for rows in _image_blocks(images, texts):
        cosines = unit(images[rows]) @ directions.T
        best = cosines >= cosines.max(axis=1, keepdims=True) - EQUAL
        hits[rows] = best[np.arange(len(best)), own[rows]] / best.sum(axis=1)
    counts = np.bincount(own, minlength=len(texts))
    return float((np.bincount(own, weights=hits, minlength=len(texts))[counts > 0] / counts[counts > 0]).mean())


def _image_blocks(images: Features, texts: Features) -> Iterator[slice]:
    return row_blocks(slice(0, len(images)), max(texts.shape))
