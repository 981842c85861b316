import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darkroom.data.latents import LatentShards, caption_key, prepared_by, write_captions, write_latents
from darkroom.data.shards import ShardReader
from darkroom.provenance import write_index

LATENT_SHAPE = (4, 3, 5)  # C, h, w: all different, so that a wrong axis shows
CONTEXT_SHAPE = (7, 6)
CAPTIONS = ["a black cat", "", "a white cat"]


def moments(number: int, views: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((views, 2, *LATENT_SHAPE), np.float32)


def tokens(caption: str) -> np.ndarray:
    return np.random.default_rng(len(caption)).standard_normal(CONTEXT_SHAPE, np.float32)


def key_of(number: int) -> str:
    return f"photo{number:02d}"


def labels(number: int, views: int) -> list[tuple[float, float, float, float]]:
    return [(number / 100, view / 100, -0.5, view % 2.0) for view in range(views)]


def write(folder: Path, *, views: int = 2, captions: Iterable[str] = CAPTIONS, latent_shape: tuple[int, ...] = LATENT_SHAPE) -> Path:
    """Ten photos; number n has the caption of n modulo two: "a black cat" or "a white cat"."""
    folder.mkdir()
    photos = [(key_of(n), CAPTIONS[n % 2 * 2], labels(n, views), moments(n, views)) for n in range(10)]
    splits = {
        "train": write_latents(folder, split="train", samples=photos, samples_per_shard=3),
        "captions": write_captions(folder, [(text, tokens(text)) for text in captions], samples_per_shard=100),
    }
    content = {
        "splits": splits,
        "latent_shape": latent_shape,
        "context_shape": CONTEXT_SHAPE,
        "views": {"train": views},
        "empty_caption_key": caption_key(""),
    }
    write_index(folder, stage="cache_latents", params={}, inputs={}, content=content)
    return folder


def shards(crop: str, classes: list[int] | None, captions: dict[str, int], template: str = "{stem}, a {subject:cat}") -> dict[str, Any]:
    """The index of data/shards, as far as it matters here."""
    subject = {} if classes is None else {"subject": {"classes": classes}}
    return {"params": {"crop": crop, "caption_template": template, "subject": ["tabby"]}, "content": {"captions": captions, **subject}}


def test_other_photos_are_prepared_as_these_were_in_fact():
    of_template, of_table = {"metadata": 3, "template": 1}, {"metadata": 4}
    centre = {"crop": "centre", "subject": []}
    subject = {"crop": "subject", "subject": [281, 285]}
    assert prepared_by(shards("centre", None, of_table)) == centre
    assert prepared_by(shards("centre", None, of_template, "a cat")) == centre | {"caption_template": "a cat"}
    assert prepared_by(shards("subject", [281, 285], of_table)) == subject
    assert prepared_by(shards("subject", [281, 285], of_template)) == subject | {"caption_template": "{stem}, a {subject:cat}"}
    assert prepared_by(shards("subject", [], of_template)) == centre | {"caption_template": "{stem}, a cat"}  # it had no class


def test_moments_come_back_as_they_were_rounded_to_half(tmp_path):
    shards = LatentShards(write(tmp_path / "latents"), "train")
    expected = np.stack([moments(8, 2)[0], moments(1, 2)[1], moments(8, 2)[1]]).astype(np.float16).astype(np.float32)
    found = shards.moments([8, 1, 8], [0, 1, 1])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert shards.keys == [key_of(n) for n in range(10)]
    assert len(shards) == 10
    assert shards.latent_shape == LATENT_SHAPE


def test_context_is_the_caption_or_where_dropped_the_empty_prompt(tmp_path):
    shards = LatentShards(write(tmp_path / "latents"), "train")
    expected = np.stack([tokens("a black cat"), tokens("a white cat"), tokens("")]).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(shards.context([4, 3, 3], [False, False, True]), expected)
    np.testing.assert_array_equal(shards.empty_context, expected[2])
    assert shards.captions == ["a black cat", "a white cat"] * 5


def test_plain_numpy_reads_the_members(tmp_path):
    reader = ShardReader(write(tmp_path / "latents"), "train")
    array = np.load(io.BytesIO(reader.member(2, "moments.npy")), allow_pickle=False)
    assert array.dtype == np.float16
    np.testing.assert_array_equal(array, moments(2, 2).astype(np.float16))


def test_the_same_latents_give_the_same_bytes(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert [path.read_bytes() for path in sorted(first.iterdir())] == [path.read_bytes() for path in sorted(second.iterdir())]


def test_any_view_is_read_and_with_its_label(tmp_path):
    shards = LatentShards(write(tmp_path / "latents", views=6), "train")
    assert shards.num_views == 6
    found = shards.moments([2, 2, 7], [5, 0, 3])
    np.testing.assert_array_equal(found, np.stack([moments(2, 6)[5], moments(2, 6)[0], moments(7, 6)[3]]).astype(np.float16))
    expected = np.array([labels(2, 6)[5], labels(2, 6)[0], labels(7, 6)[3]], np.float32)
    assert shards.labels([2, 2, 7], [5, 0, 3]).dtype == np.float32
    np.testing.assert_array_equal(shards.labels([2, 2, 7], [5, 0, 3]), expected)


def test_a_view_that_is_not_cached_is_refused(tmp_path):
    shards = LatentShards(write(tmp_path / "latents", views=1), "train")
    np.testing.assert_array_equal(shards.moments([2], [0])[0], moments(2, 1)[0].astype(np.float16))
    with pytest.raises(ValueError, match=r"has 1 view\(s\) of each photo of this split, so none with the number 1"):
        shards.moments([2, 3], [0, 1])


@pytest.mark.parametrize("bad", [70000.0, -70000.0, np.inf, np.nan])
def test_latents_beyond_float16_are_an_error_that_names_the_photo(tmp_path, bad):
    array = moments(0, 1)
    array[0, 0, 1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"latents of photo photo00 \(val\) reach .*kl_weight"):
        write_latents(tmp_path, split="val", samples=[(key_of(0), "", labels(0, 1), array)], samples_per_shard=3)


def test_embeddings_beyond_float16_are_an_error_that_names_the_caption(tmp_path):
    with pytest.raises(ValueError, match="token embeddings of 'a cat' reach 100000"):
        write_captions(tmp_path, [("a cat", np.full(CONTEXT_SHAPE, 1e5, np.float32))], samples_per_shard=3)


def test_arrays_of_another_shape_than_the_index_states_are_refused(tmp_path):
    folder = write(tmp_path / "latents", latent_shape=(5, 3, 4))
    with pytest.raises(ValueError, match=r"moments.npy of photo00 .* is not float16 \(2, 2, 5, 3, 4\)"):
        LatentShards(folder, "train")


@pytest.mark.parametrize("content", [{}, {"latent_shape": LATENT_SHAPE, "flip": True}], ids=["no latents", "of an older version"])
def test_a_folder_of_something_else_is_refused(tmp_path, content):
    table = write_captions(tmp_path, [("", tokens(""))], samples_per_shard=3)
    write_index(tmp_path, stage="ingest", params={}, inputs={}, content={"splits": {"train": table}, **content})
    with pytest.raises(ValueError, match="does not hold latents: it was not written by the stage cache_latents of this version"):
        LatentShards(tmp_path, "train")
