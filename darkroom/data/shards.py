"""WebDataset shards with random access: plain tars, and in index.json the byte offset of every member.

A shard is an uncompressed ustar archive of files `<key>.<member>` that any WebDataset reader streams, with owner, mode and
time fixed and the keys sorted: the same samples give the same bytes. Our reader maps the tars into memory and never parses
them. The shard of a sample depends only on its key and the number of shards, so that a few new photos change few shards.
"""

import hashlib
import io
import json
import math
import mmap
import tarfile
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from darkroom.data.crops import CROPS_MEMBER, UNMOVED, Shift, crop_member, crop_side
from darkroom.provenance import read_index

Sample = Mapping[str, str | bytes]  # "__key__" (unique, no dot) and members: name -> bytes
IMAGE_MEMBERS = {"png": "png", "jpeg": "jpg"}  # image format -> name of the member
FULL_MEMBER = "full.jpg"  # the picture of some photos at full size, where that is larger than the working side
FULL_SIDE = 256  # px, the longest side of such a picture: classifiers look at no more
MAX_FULL = 128  # about so many photos of each split get one: enough for a share to within 9 %, and cheap to decode once more
LEAST_HELD_OUT = 4  # photos: as many as precision with 3 neighbours and both halves of a crossed Fréchet distance take
OWNER = "darkroom"  # user and group of every member, on every machine


class Spool:
    """Samples in an anonymous file on disk, until their number and the shard of each are known."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._members: dict[str, dict[str, tuple[int, int]]] = {}  # key -> member -> (offset, size)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def keys(self) -> list[str]:
        return list(self._members)

    def add(self, sample: Sample) -> None:
        key = str(sample["__key__"])
        assert "." not in key, f"WebDataset splits names at the first dot, so a key must not have one: {key}"
        assert key not in self._members, f"two samples have the key {key}"
        self._members[key] = {}
        for name, value in sample.items():
            if isinstance(value, bytes):
                offset = self._file.seek(0, io.SEEK_END)
                self._file.write(value)
                self._members[key][name] = (offset, len(value))

    def read(self, key: str, without: Collection[str] = ()) -> dict[str, str | bytes]:
        return {"__key__": key, **{name: self.member(key, name) for name in self._members[key] if name not in without}}

    def member(self, key: str, name: str) -> bytes:
        offset, size = self._members[key][name]
        self._file.seek(offset)
        return self._file.read(size)


def write_shards(folder: Path, split: str, samples: Iterable[Sample], *, samples_per_shard: int) -> list[dict[str, Any]]:
    """Write `{split}-00000.tar` and so on, with one sample at a time in memory and a second copy of all samples on disk.

    Returns:
        The table of the split for content.splits of index.json: one entry per shard,
        {"shard": file name, "samples": [{"key": ..., "members": {name: [offset, size]}}]}.
    """
    with Spool(folder) as spool:
        for sample in samples:
            spool.add(sample)
        return write_spooled(folder, split, spool, spool.keys, samples_per_shard=samples_per_shard)


def write_spooled(
    folder: Path, split: str, spool: Spool, keys: Sequence[str], *, samples_per_shard: int, without: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Write the samples `keys` of `spool` without some of their members; otherwise as `write_shards`."""
    num_shards = num_shards_for(len(keys), samples_per_shard)
    shards: list[list[str]] = [[] for _ in range(num_shards)]
    for key in sorted(keys):
        shards[shard_of(key, num_shards)].append(key)
    table = []
    for number, members in enumerate(shards):
        path = folder / f"{split}-{number:05d}.tar"
        _write_tar(path, (spool.read(key, without) for key in members))
        table.append({"shard": path.name, "samples": _read_offsets(path)})
    return table


def split_by_hash(hashes: Sequence[str], val_fraction: float) -> dict[str, list[str]]:
    """Split photos by their sha256 hex digests into {"train": ..., "val": ...}, both sorted.

    A photo is held out if its hash, as a fraction of the largest hash, is below `val_fraction`. It never changes sides, because its
    own content decides. If fewer than `LEAST_HELD_OUT` photos are below it, those with the lowest hashes are held out in their place, up
    to a quarter of all, but at least one. At least one photo, that with the highest hash, goes to train.

    Raises:
        ValueError: fewer than two photos.
    """
    if len(hashes) < 2:
        raise ValueError(f"{len(hashes)} usable photo(s); required: at least 2, one to train on and one to hold out. Add photos.")
    ordered = sorted(hashes)
    num_val = sum(is_below(digest, val_fraction) for digest in ordered)
    least = max(1, min(LEAST_HELD_OUT, len(ordered) // 4))
    num_val = min(max(num_val, least), len(ordered) - 1)
    return {"train": ordered[num_val:], "val": ordered[:num_val]}


def is_below(digest: str, share: float) -> bool:
    """Whether a sha256 hex digest, as a fraction of the largest one, is below `share`."""
    return int(digest[:16], 16) < share * 2**64


def num_shards_for(num_samples: int, samples_per_shard: int) -> int:
    """The smallest power of two with at most `samples_per_shard` samples per shard on average."""
    return 1 << max(0, math.ceil(math.log2(max(1, num_samples) / samples_per_shard)))


def shard_of(key: str, num_shards: int) -> int:
    """The shard of a key: the first bits of sha256(key). Twice as many shards are the old shards, each cut in two.

    The key is hashed again, because the first bits of a photo's own hash decide its split.
    """
    first_bits = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return first_bits * num_shards >> 64


def _write_tar(path: Path, samples: Iterable[Sample]) -> None:
    from webdataset import TarWriter  # imports torch, which takes two seconds; readers do not need it

    with path.open("wb") as file, TarWriter(file, user=OWNER, group=OWNER, mtime=0, encoder=False, compress=False) as writer:
        for sample in samples:
            writer.write(dict(sample))


def _read_offsets(path: Path) -> list[dict[str, Any]]:
    """The samples of a shard with their byte offsets, in the order of the tar."""
    samples: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            key, _, member = info.name.partition(".")
            samples.setdefault(key, {})[member] = [info.offset_data, info.size]
    return [{"key": key, "members": members} for key, members in samples.items()]


class ShardReader:
    """Random access to one split, in the order of the keys, whatever the number of shards.

    Raises:
        ValueError: the folder is not a finished output, a shard is missing or damaged, or the split is unknown.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.content: dict[str, Any] = read_index(folder)["content"]  # from index.json, written by the stage
        splits = self.content.get("splits", {})
        if split not in splits:
            known = ", ".join(splits) or "none: it does not hold shards"
            raise ValueError(f"{folder} has no split `{split}` (known: {known}).")
        self._maps: dict[str, mmap.mmap] = {}
        located = [(entry["key"], shard["shard"], entry["members"]) for shard in splits[split] for entry in shard["samples"]]
        located.sort(key=lambda item: item[0])
        self.keys: list[str] = [key for key, _, _ in located]
        self._shards: list[str] = [shard for _, shard, _ in located]
        self._members: list[dict[str, list[int]]] = [members for _, _, members in located]

    def __len__(self) -> int:
        return len(self.keys)

    def member(self, i: int, name: str) -> memoryview:
        """One member of sample `i`.

        Raises:
            ValueError: it has no member `name`.
        """
        if name not in self._members[i]:
            raise ValueError(f"{self._where(i)} has no `{name}` (it has {', '.join(self._members[i])}).")
        buffer, offset, size = self.locate(i, name)
        return memoryview(buffer)[offset : offset + size]

    def has(self, i: int, name: str) -> bool:
        """Whether sample `i` has a member `name`."""
        return name in self._members[i]

    def locate(self, i: int, name: str) -> tuple[mmap.mmap, int, int]:
        """(mapped shard, offset, size) of a member, for readers that map arrays directly from the file."""
        offset, size = self._members[i][name]
        return self._map(self._shards[i]), offset, size

    def json(self, i: int) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(bytes(self.member(i, "json")))
        return fields

    def _where(self, i: int) -> str:
        return f"Sample {self.keys[i]} of {self.folder / self._shards[i]}"

    def _map(self, shard: str) -> mmap.mmap:
        if shard not in self._maps:
            with (self.folder / shard).open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]


class ImageShards:
    """The photos of one split as `ingest` wrote them. Images are decoded on demand.

    Raises:
        ValueError: as `ShardReader`, or the folder does not hold photos.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._reader = ShardReader(folder, split)
        if "size" not in self._reader.content:
            raise ValueError(f"{folder} does not hold photos: it was not written by the stage ingest.")
        self.size: int = self._reader.content["size"]  # px, of the square
        self.keys = self._reader.keys
        self.num_crops: int = self._reader.content.get("crops", {}).get(split, 1)  # of each photo
        self._member = IMAGE_MEMBERS[self._reader.content["format"]]

    def __len__(self) -> int:
        return len(self._reader)

    def images(self, indices: Sequence[int], crop: int = 0) -> np.ndarray:
        """uint8 (B, size, size, 3); the first crop of each photo, or that of another number.

        Raises:
            ValueError: there is no such crop.
        """
        batch = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        for row, i in enumerate(indices):
            batch[row] = self._decode(i, crop_member(crop, self._member))
        return batch

    def shifts(self, i: int) -> list[Shift]:
        """How each crop of a photo lies beside its first one."""
        if self.num_crops == 1:
            return [UNMOVED]
        return [(x, y, log_scale) for x, y, log_scale in json.loads(bytes(self._reader.member(i, CROPS_MEMBER)))]

    @cached_property
    def captions(self) -> list[str]:
        return [self._reader.json(i)["caption"] for i in range(len(self))]

    def source(self, i: int) -> str:
        """The file of a photo, below data/raw."""
        return str(self._reader.json(i)["source"])

    @cached_property
    def with_full_size(self) -> list[int]:
        """Indices of the photos that `full_images` can read: those with a larger picture, and those that are no larger themselves.

        None if the shards have no larger picture at all: small photos, or shards of an older version.
        """
        larger = {i for i in range(len(self)) if self._reader.has(i, FULL_MEMBER)}
        return [i for i in range(len(self)) if i in larger or self._is_small(i)] if larger else []

    def full_images(self, indices: Sequence[int]) -> np.ndarray:
        """Photos of `with_full_size` at full size, enlarged where they are smaller: uint8 (B, S, S, 3).

        S is `FULL_SIDE`, or `size` if that is larger.

        Raises:
            ValueError: a photo of `indices` was not written at full size.
        """
        side = max(FULL_SIDE, self.size)
        batch = np.empty((len(indices), side, side, 3), np.uint8)
        for row, i in enumerate(indices):
            pixels = self._decode(i, self._member if self._is_small(i) else FULL_MEMBER)
            batch[row] = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))  # a copy if the side is right
        return batch

    def _is_small(self, i: int) -> bool:
        """Whether the shard holds all that can be seen of a photo."""
        fields = self._reader.json(i)
        return min(crop_side(fields.get("crop"), (fields["height"], fields["width"])), FULL_SIDE) <= self.size

    def _decode(self, i: int, member: str) -> np.ndarray:
        with Image.open(io.BytesIO(self._reader.member(i, member))) as image:
            return np.asarray(image)
