from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from darkroom.evaluation.alignment import chance_clip_score, clip_metrics, clip_score, clip_unfit_because, retrieval_accuracy, sample_scores
from darkroom.evaluation.features import ArrayImages

random = np.random.default_rng(0)


def unit(*rows):
    array = np.array(rows, dtype=np.float64)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_the_clip_score_is_a_hundred_times_the_cosine():
    images, texts, own = unit([1, 0], [1, 0], [1, 0]), unit([1, 0], [1, 1], [-1, 0]), np.arange(3)
    np.testing.assert_allclose(clip_score(images, texts, own), [100, 100 / np.sqrt(2), -100])
    np.testing.assert_allclose(clip_score(3 * images, 0.5 * texts, own), [100, 100 / np.sqrt(2), -100])
    np.testing.assert_allclose(clip_score(images, texts, own[::-1]), [-100, 100 / np.sqrt(2), 100])


def scores_by_loops(images, texts, own):
    """All cosines (N, T), chance over all pairs of different images, and the balanced accuracy."""
    cosines = unit(*images) @ unit(*texts).T
    chance = np.mean([100 * cosines[i, own[j]] for i in range(len(own)) for j in range(len(own)) if i != j])
    hits = cosines.argmax(axis=1) == own
    return chance, np.mean([hits[own == text].mean() for text in range(len(texts)) if (own == text).any()])


@pytest.mark.parametrize("block_bytes", [1, 500, 2**25])
def test_chance_and_retrieval_are_those_of_all_pairs_whatever_the_block(monkeypatch, block_bytes):
    monkeypatch.setattr("darkroom.evaluation.neighbours.BLOCK_BYTES", block_bytes)
    images, texts, own = random.normal(size=(30, 5)), random.normal(size=(7, 5)), random.integers(0, 6, 30)  # no image has text 6
    images += texts[own]
    chance, accuracy = scores_by_loops(images, texts, own)
    assert chance_clip_score(images, texts, own) == pytest.approx(chance)
    assert retrieval_accuracy(images, texts, own) == pytest.approx(accuracy)


def test_images_that_ignore_their_texts_have_the_chance_of_both_measures_however_often_a_text_occurs():
    texts = random.normal(size=(4, 6)) + 1
    gaps, accuracies = [], []
    for _ in range(300):
        own = random.choice(4, size=40, p=[0.7, 0.2, 0.06, 0.04])
        images = random.normal(size=(40, 6)) + texts[0]  # always like the most frequent text
        gaps.append(clip_score(images, texts, own).mean() - chance_clip_score(images, texts, own))
        accuracies.append(retrieval_accuracy(images, texts, own) - 1 / np.unique(own).size * retrieval_of_all(images, texts, own))
    for errors in (gaps, accuracies):
        assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(len(errors))


def retrieval_of_all(images, texts, own):
    """How often one of the texts that occur is named: 1 if all of them do."""
    nearest = (unit(*images) @ unit(*texts).T).argmax(axis=1)
    return np.isin(nearest, own).mean()


def test_texts_that_are_equally_near_share_the_hit():
    images, texts = np.tile(unit([1, 0.5]), (6, 1)), np.tile(unit([1, 0]), (3, 1))
    assert retrieval_accuracy(images, texts, np.array([0, 0, 0, 0, 1, 2])) == pytest.approx(1 / 3)


def test_retrieval_counts_images_whose_own_text_is_nearest():
    images, texts = unit([1, 0.1], [0.1, 1], [0.1, 1]), unit([1, 0], [0, 1])
    assert retrieval_accuracy(images, texts, np.array([0, 1, 0])) == pytest.approx((0.5 + 1) / 2)
    assert retrieval_accuracy(images[[0, 1, 0]], texts, np.array([0, 1, 0])) == 1
    assert retrieval_accuracy(images, texts * [[0.01], [1]], np.array([0, 1, 1])) == 1  # the angle counts, not the length


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourClip:
    """Images and names of colours have the colour as embedding."""

    has_image_encoder = True

    def encode_images(self, images):
        return F.normalize(torch.as_tensor(images).float().mean(dim=(1, 2)), dim=1)

    def encode_texts(self, texts):
        return F.normalize(torch.tensor([COLOURS[text] for text in texts]).float(), dim=1)


def painted(names):
    return ArrayImages(np.stack([np.full((4, 4, 3), COLOURS[name], np.uint8) for name in names]))


def held_out(captions):
    return SimpleNamespace(captions=captions, images=painted(captions).images)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_samples_stand_between_photos_of_the_same_prompts_and_chance(batch_size):
    prompts = ["red", "green", "red", "green"]
    found = clip_metrics(ColourClip(), painted(["red", "red", "red", "green"]), prompts, held_out([*COLOURS] * 30), batch_size=batch_size)
    assert found == pytest.approx(
        {
            "clip_score": 75,
            "clip_score_photos": 100,
            "clip_score_chance": 100 * (1 + 2 + 1 + 1) / 12,  # how many of the other rows' prompts each sample fits
            "retrieval_accuracy": 0.75,
            "retrieval_accuracy_photos": 1,
            "retrieval_accuracy_chance": 1 / 2,
        }
    )


def test_each_sample_has_the_score_of_its_own_prompt_in_any_batch():
    prompts, samples = ["red", "green", "red", "green"], painted(["red", "red", "blue", "green"])
    for batch_size in (1, 3):
        np.testing.assert_allclose(sample_scores(ColourClip(), samples, prompts, batch_size=batch_size), [100, 0, 0, 100], atol=1e-5)
    assert sample_scores(ColourClip(), samples, ["red"] * 4, batch_size=2) is None


def test_one_prompt_for_all_or_no_image_encoder_give_a_sentence_and_no_numbers():
    clip, text_encoder = ColourClip(), SimpleNamespace(has_image_encoder=False)
    assert clip_unfit_because(clip, ["red", "green"]) == ""
    assert "all of them have the prompt 'red'" in clip_unfit_because(clip, ["red", "red"])
    assert "no image encoder" in clip_unfit_because(text_encoder, ["red", "green"])
    assert clip_metrics(clip, painted(["red", "red"]), ["red", "red"], held_out(["red"]), batch_size=2) == {}
    assert clip_metrics(text_encoder, painted(["red", "green"]), ["red", "green"], held_out(["red"]), batch_size=2) == {}
