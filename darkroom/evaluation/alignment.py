"""How well images fit their prompts: CLIP score and retrieval accuracy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from darkroom.data.shards import ImageShards
from darkroom.evaluation.features import ArrayImages, clip_features
from darkroom.models.clip import ClipTowers

Images = NDArray[np.uint8]  # (B, H, W, 3)
Features = NDArray[np.floating]  # (N, E), of any length: cosines are compared


def clip_metrics(clip: ClipTowers, samples: Images, prompts: Sequence[str], held_out: ImageShards, *, batch_size: int) -> dict[str, float]:
    """CLIP scores by the run's own CLIP: of samples with their prompts and with others, and of photos with their captions.

    Empty if this CLIP has no image encoder, like that of an imported Stable Diffusion.
    """
    if not clip.has_image_encoder:
        return {}
    extractor = clip_features(clip.encode_images, "")
    of_samples = extractor.of(ArrayImages(samples), limit=None, batch_size=batch_size, desc="samples")
    of_photos = extractor.of(held_out, batch_size=batch_size, desc="held-out photos")
    captions = held_out.captions[: len(of_photos)]
    of_prompts, of_captions = (encode_texts(clip, texts, batch_size) for texts in (prompts, captions))
    return {
        "clip_score": float(clip_score(of_samples, of_prompts).mean()),
        "clip_score_photos": float(clip_score(of_photos, of_captions).mean()),
        "clip_score_chance": chance_clip_score(of_samples, of_prompts, prompts),
        "retrieval_accuracy": retrieval_accuracy(of_samples, of_prompts, prompts),
        "retrieval_accuracy_photos": retrieval_accuracy(of_photos, of_captions, captions),
    }


def encode_texts(clip: ClipTowers, texts: Sequence[str], batch_size: int) -> NDArray[np.float32]:
    """Embeddings (N, E); equal texts are encoded once, so that their rows are equal."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    distinct = list(rows)
    parts = [clip.encode_texts(distinct[start : start + batch_size]).cpu().numpy() for start in range(0, len(distinct), batch_size)]
    return np.concatenate(parts)[[rows[text] for text in texts]]


def clip_score(image_features: Features, text_features: Features) -> NDArray[np.float64]:
    """100 * cosine of each image with its own text, (N,).

    Hessel et al. 2021 (CLIPScore) raise negative values to 0. Small encoders have many of them, and the mean should show them.
    """
    assert image_features.shape == text_features.shape
    return 100 * np.sum(_unit(image_features) * _unit(text_features), axis=1)


def chance_clip_score(image_features: Features, text_features: Features, texts: Sequence[str]) -> float:
    """Mean CLIP score of images with the texts of others: over all pairs of rows whose texts differ; nan if all texts are equal."""
    scores = 100 * _unit(image_features) @ _unit(text_features).T
    mismatched = ~_equal(texts)
    return float(scores[mismatched].mean()) if mismatched.any() else float("nan")


def retrieval_accuracy(image_features: Features, text_features: Features, texts: Sequence[str]) -> float:
    """Share of images whose own text is the nearest of all texts of the set (chance: 1 / number of distinct texts)."""
    nearest = (_unit(image_features) @ _unit(text_features).T).argmax(axis=1)
    return float(_equal(texts)[np.arange(len(nearest)), nearest].mean())


def _unit(features: Features) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def _equal(texts: Sequence[str]) -> NDArray[np.bool_]:
    column = np.array(texts)
    return column[:, None] == column[None, :]
