import numpy as np
import pytest

from darkroom.evaluation.alignment import chance_clip_score, clip_score, retrieval_accuracy


def unit(*rows):
    array = np.array(rows, dtype=np.float64)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_the_clip_score_is_a_hundred_times_the_cosine():
    images, texts = unit([1, 0], [1, 0], [1, 0]), unit([1, 0], [1, 1], [-1, 0])
    np.testing.assert_allclose(clip_score(images, texts), [100, 100 / np.sqrt(2), -100])
    np.testing.assert_allclose(clip_score(3 * images, 0.5 * texts), [100, 100 / np.sqrt(2), -100])


def test_chance_is_the_score_with_all_texts_that_differ():
    images, texts = unit([1, 0], [1, 0], [0, 1]), unit([1, 0], [1, 0], [0, 1])
    # rows 0 and 1 share a text: their only mismatch is row 2's, at cosine 0; row 2 mismatches both, at 0
    assert chance_clip_score(images, texts, ["cat", "cat", "dog"]) == 0
    assert chance_clip_score(images, texts, ["cat", "kitten", "dog"]) == pytest.approx(200 / 6)


def test_chance_is_not_a_number_when_all_texts_are_equal():
    assert np.isnan(chance_clip_score(unit([1, 0]), unit([1, 0]), ["cat"]))


def test_retrieval_counts_pictures_whose_own_text_is_nearest_with_equal_texts_as_one():
    images = unit([1, 0.1], [0.1, 1], [0.1, 1])
    texts = unit([1, 0], [0, 1], [1, 0])
    assert retrieval_accuracy(images, texts, ["a", "b", "a"]) == pytest.approx(2 / 3)
    assert retrieval_accuracy(images[[0, 1, 0]], texts, ["a", "b", "a"]) == 1
    assert retrieval_accuracy(images[:2], texts[:2], ["a", "b"]) == 1
    assert retrieval_accuracy(images[:2], texts[:2] * [[0.01], [1]], ["a", "b"]) == 1  # the angle counts, not the length
