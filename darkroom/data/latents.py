"""Cached latents: the posterior's mean and standard deviation of every photo, the token embeddings of every caption.

Layout of `data/latents`, all of it WebDataset shards (`darkroom.data.shards`):

- `{train,val}-*.tar`: `<photo's key>.moments.npy`, float16 (V, 2, C, h, w): [mean, standard deviation] of the raw latents of each
  view: each crop of the photo and, with `flip`, after each crop its mirror image. View 0 is the first crop as it is.
  `<key>.json`: {"caption", "caption_key", "views"}, with the label of each view (`darkroom.data.crops`).
- `captions-*.tar`: one sample per distinct caption, including the empty prompt, with the sha256 of its text as key:
  `<caption_key>.tokens.npy`, float16 (L, D), and `<caption_key>.json`: {"caption"}.

Each caption is stored once, because its 77 x 768 numbers are 14 times as large as the latents of a 256 px photo.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from darkroom.data.captions import TEMPLATE, without_subject
from darkroom.data.crops import Label
from darkroom.data.shards import Sample, ShardReader, write_shards
from darkroom.provenance import canonical_json

MOMENTS = "moments.npy"
TOKENS = "tokens.npy"
HALF_MAX = float(np.finfo(np.float16).max)


def prepared_by(shards: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of `ingest` by which other photos get crops and captions like those of these shards.

    They say what was done: photos whose subject has no class were cropped at the centre; a template that no photo needed says nothing.

    Args:
        shards: the index of data/shards.
    """
    params, content = shards["params"], shards["content"]
    classes = content.get("subject", {}).get("classes", [])
    found: dict[str, Any] = {"crop": "subject" if classes else "centre", "subject": classes}
    if TEMPLATE in content["captions"]:
        found["caption_template"] = params["caption_template"] if classes else without_subject(params["caption_template"])
    return found


def caption_key(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()


def write_latents(
    folder: Path,
    *,
    split: str,
    samples: Iterable[tuple[str, str, Sequence[Label], np.ndarray]],  # (photo's key, caption, V labels, moments float32 (V, 2, C, h, w))
    samples_per_shard: int,
) -> list[dict[str, Any]]:
    """Write one split and return its table for index.json, see `write_shards`.

    Raises:
        ValueError: moments that float16 cannot hold.
    """

    def encoded() -> Iterator[Sample]:
        for key, caption, views, moments in samples:
            assert moments.ndim == 5, f"moments must be (V, 2, C, h, w), not {moments.shape}"
            assert moments.shape[:2] == (len(views), 2), f"moments of {len(views)} views must be (V, 2, C, h, w), not {moments.shape}"
            fields = {"caption": caption, "caption_key": caption_key(caption), "views": views}
            array = _to_half(moments, f"The latents of photo {key} ({split})", "Train the VAE again with a larger train_vae.kl_weight.")
            yield {"__key__": key, MOMENTS: _npy(array), "json": canonical_json(fields).encode()}

    return write_shards(folder, split, encoded(), samples_per_shard=samples_per_shard)


def write_captions(
    folder: Path,
    captions: Iterable[tuple[str, np.ndarray]],  # (caption, token embeddings float32 (L, D)), each caption once
    *,
    samples_per_shard: int,
) -> list[dict[str, Any]]:
    """Write the split `captions` and return its table for index.json, see `write_shards`.

    Raises:
        ValueError: embeddings that float16 cannot hold.
    """

    def encoded() -> Iterator[Sample]:
        for caption, tokens in captions:
            assert tokens.ndim == 2, f"token embeddings must be (L, D), not {tokens.shape}"
            array = _to_half(tokens, f"The token embeddings of {caption[:80]!r}", "Check the CLIP model of stage `train_clip`.")
            yield {"__key__": caption_key(caption), TOKENS: _npy(array), "json": canonical_json({"caption": caption}).encode()}

    return write_shards(folder, "captions", encoded(), samples_per_shard=samples_per_shard)


def _to_half(array: np.ndarray, what: str, remedy: str) -> np.ndarray:
    largest = float(np.abs(array).max())
    if not largest <= HALF_MAX:  # a NaN compares as false too
        raise ValueError(f"{what} reach {largest:g}; they are cached as float16, whose largest number is {HALF_MAX:g}. {remedy}")
    return array.astype(np.float16)


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0))
    return stream.getvalue()


class _Arrays:
    """One float16 .npy member of fixed shape in every sample of a split, read directly from the memory-mapped shards."""

    def __init__(self, reader: ShardReader, member: str, shape: tuple[int, ...]) -> None:
        self._reader = reader
        self._member = member
        self._num_elements = int(np.prod(shape))
        header = _npy(np.empty(shape, np.float16))[: -2 * self._num_elements]
        self._header_size = len(header)
        for i, key in enumerate(reader.keys):
            found = reader.member(i, member)
            if bytes(found[: len(header)]) != header or len(found) != len(header) + 2 * self._num_elements:
                raise ValueError(
                    f"{member} of {key} in {reader.folder} is not float16 {shape} as index.json says. "
                    "Write the folder again with `dvc repro --force --single-item cache_latents`."
                )

    def read(self, i: int, start: int = 0, count: int = -1) -> np.ndarray:
        """The flat elements [start, start + count) of sample `i`, a float16 view of the file."""
        buffer, offset, _ = self._reader.locate(i, self._member)
        count = self._num_elements if count < 0 else count
        return np.frombuffer(buffer, np.float16, count, offset + self._header_size + 2 * start)


class LatentShards:
    """Random access to the cached latents of one split and the embeddings of their captions.

    Raises:
        ValueError: as `ShardReader`, or the folder does not hold latents.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._folder = folder
        photos = ShardReader(folder, split)
        content = photos.content
        if "views" not in content:
            raise ValueError(f"{folder} does not hold latents: it was not written by the stage cache_latents of this version.")
        captions = ShardReader(folder, "captions")
        self.latent_shape: tuple[int, int, int] = tuple(content["latent_shape"])
        self.context_shape: tuple[int, int] = tuple(content["context_shape"])
        self.num_views: int = content["views"][split]  # V, of each photo
        self.keys = photos.keys
        fields = [photos.json(i) for i in range(len(photos))]
        self.captions: list[str] = [entry["caption"] for entry in fields]
        self._labels = np.array([entry["views"] for entry in fields], np.float32)  # (N, V, 4)
        rows = {key: row for row, key in enumerate(captions.keys)}
        self._caption_rows = [rows[entry["caption_key"]] for entry in fields]
        self._empty_row = rows[content["empty_caption_key"]]
        self._moments = _Arrays(photos, MOMENTS, (self.num_views, 2, *self.latent_shape))
        self._tokens = _Arrays(captions, TOKENS, self.context_shape)

    def __len__(self) -> int:
        return len(self.keys)

    def moments(self, indices: Sequence[int], views: Sequence[int]) -> np.ndarray:
        """Raw [mean, standard deviation], float32 (B, 2, C, h, w), of one view of each photo.

        Raises:
            ValueError: a view is requested that is not cached.
        """
        if max(views, default=0) >= self.num_views:
            raise ValueError(
                f"{self._folder} has {self.num_views} view(s) of each photo of this split, so none with the number {max(views)}. "
                "ingest.crops and cache_latents.flip make more; run `dvc repro` after a change."
            )
        batch = np.empty((len(indices), 2, *self.latent_shape), np.float32)
        rows = batch.reshape(len(indices), -1)
        view_size = rows.shape[1]
        for row, (i, view) in enumerate(zip(indices, views, strict=True)):
            rows[row] = self._moments.read(i, start=view * view_size, count=view_size)
        return batch

    def labels(self, indices: Sequence[int], views: Sequence[int]) -> np.ndarray:
        """What tells one view of each photo from its first crop as it is, float32 (B, 4): see `darkroom.data.crops.Label`."""
        return self._labels[list(indices), list(views)]

    def context(self, indices: Sequence[int], dropped: Sequence[bool]) -> np.ndarray:
        """Token embeddings, float32 (B, L, D), of the captions or, where `dropped`, of the empty prompt."""
        batch = np.empty((len(indices), *self.context_shape), np.float32)
        rows = batch.reshape(len(indices), -1)
        for row, (i, drop) in enumerate(zip(indices, dropped, strict=True)):
            rows[row] = self._tokens.read(self._empty_row if drop else self._caption_rows[i])
        return batch

    @property
    def empty_context(self) -> np.ndarray:
        """Token embeddings of the empty prompt, float32 (L, D)."""
        return self._tokens.read(self._empty_row).reshape(self.context_shape).astype(np.float32)
