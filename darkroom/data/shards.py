"""WebDataset shards with random access: plain tars, and in index.json the byte offset of every member.

A shard is an uncompressed ustar archive of files `<key>.<member>` that any WebDataset reader streams, with owner, mode and
time fixed and the keys sorted: the same samples give the same bytes. Our reader maps the tars into memory and never parses
them. Which shard a sample is in depends on its key and the number of shards only, so that a few new photos change few shards.
"""

import hashlib
import io
import json
import math
import mmap
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from darkroom.provenance import read_index

Sample = Mapping[str, str | bytes]  # "__key__" (unique, no dot) and members: name -> bytes
IMAGE_MEMBERS = {"png": "png", "jpeg": "jpg"}  # format of the pictures -> member that holds one
OWNER = "darkroom"  # user and group of every member, whoever writes


class Spool:
    """Samples that wait on disk, in a nameless file, until it is known how many there are and which shard each belongs to."""

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
        assert "." not in key, f"WebDataset splits names at the first dot, so no key may have one: {key}"
        assert key not in self._members, f"two samples have the key {key}"
        self._members[key] = {}
        for name, value in sample.items():
            if isinstance(value, bytes):
                offset = self._file.seek(0, io.SEEK_END)
                self._file.write(value)
                self._members[key][name] = (offset, len(value))

    def read(self, key: str) -> dict[str, str | bytes]:
        return {"__key__": key, **{name: self.member(key, name) for name in self._members[key]}}

    def member(self, key: str, name: str) -> bytes:
        offset, size = self._members[key][name]
        self._file.seek(offset)
        return self._file.read(size)


def write_shards(folder: Path, split: str, samples: Iterable[Sample], *, samples_per_shard: int) -> list[dict[str, Any]]:
    """Writes `{split}-00000.tar` and so on; holds one sample at a time in memory and all of them once more on disk.

    Returns:
        The table of the split that belongs in index.json under content.splits: one entry a shard,
        {"shard": file name, "samples": [{"key": ..., "members": {name: [offset, size]}}]}.
    """
    with Spool(folder) as spool:
        for sample in samples:
            spool.add(sample)
        return write_spooled(folder, split, spool, spool.keys, samples_per_shard=samples_per_shard)


def write_spooled(folder: Path, split: str, spool: Spool, keys: Sequence[str], *, samples_per_shard: int) -> list[dict[str, Any]]:
    """Writes those samples of `spool` that `keys` names; otherwise as `write_shards`."""
    num_shards = num_shards_for(len(keys), samples_per_shard)
    shards: list[list[str]] = [[] for _ in range(num_shards)]
    for key in sorted(keys):
        shards[shard_of(key, num_shards)].append(key)
    table = []
    for number, members in enumerate(shards):
        path = folder / f"{split}-{number:05d}.tar"
        _write_tar(path, (spool.read(key) for key in members))
        table.append({"shard": path.name, "samples": _read_offsets(path)})
    return table


def split_by_hash(hashes: Sequence[str], val_fraction: float) -> dict[str, list[str]]:
    """sha256 hex digests to {"train": ..., "val": ...}, each sorted.

    A photo is held out if its hash, read as a fraction of all hashes, is below `val_fraction`. With so few photos that one
    side is empty, the lowest hash goes to val, or the highest to train.

    Raises:
        ValueError: fewer than two photos.
    """
    if len(hashes) < 2:
        raise ValueError(f"{len(hashes)} usable photo; at least two are needed, one to train on and one to hold out. Add photos.")
    ordered = sorted(hashes)
    num_val = sum(int(digest[:16], 16) < val_fraction * 2**64 for digest in ordered)
    num_val = min(max(num_val, 1), len(ordered) - 1)
    return {"train": ordered[num_val:], "val": ordered[:num_val]}


def num_shards_for(num_samples: int, samples_per_shard: int) -> int:
    """The power of two at which a shard has `samples_per_shard` or less on average."""
    return 1 << max(0, math.ceil(math.log2(max(1, num_samples) / samples_per_shard)))


def shard_of(key: str, num_shards: int) -> int:
    """The first bits of sha256(key), so that twice as many shards are the old ones, each cut in two.

    The key is hashed once more because photos are split into train and val by the first bits of their own hash.
    """
    first_bits = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return first_bits * num_shards >> 64


def _write_tar(path: Path, samples: Iterable[Sample]) -> None:
    from webdataset import TarWriter  # imports torch: two seconds that readers need not wait

    with path.open("wb") as file, TarWriter(file, user=OWNER, group=OWNER, mtime=0, encoder=False, compress=False) as writer:
        for sample in samples:
            writer.write(dict(sample))


def _read_offsets(path: Path) -> list[dict[str, Any]]:
    """The shard's samples, in the tar's order, as a tar reader finds them."""
    samples: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            key, _, member = info.name.partition(".")
            samples.setdefault(key, {})[member] = [info.offset_data, info.size]
    return [{"key": key, "members": members} for key, members in samples.items()]


class ShardReader:
    """Random access to one split, in the order of the keys whatever the number of shards.

    Raises:
        ValueError: the folder is no finished output, a shard is missing or damaged, or it has no such split.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.content: dict[str, Any] = read_index(folder)["content"]  # what the stage that wrote the folder says of it
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
            ValueError: it has no member of this name.
        """
        if name not in self._members[i]:
            raise ValueError(f"{self._where(i)} has no `{name}` (it has {', '.join(self._members[i])}).")
        buffer, offset, size = self.locate(i, name)
        return memoryview(buffer)[offset : offset + size]

    def locate(self, i: int, name: str) -> tuple[mmap.mmap, int, int]:
        """(mapped shard, offset, size) of a member, for readers that take arrays straight out of the file."""
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
    """The photos of one split as `ingest` wrote them: pictures decoded on demand, captions read at once.

    Raises:
        ValueError: as `ShardReader`, or the folder holds something else than pictures.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._reader = ShardReader(folder, split)
        if "size" not in self._reader.content:
            raise ValueError(f"{folder} does not hold pictures: it was not written by stage `ingest`.")
        self.size: int = self._reader.content["size"]  # px, of the square
        self.keys = self._reader.keys
        self._member = IMAGE_MEMBERS[self._reader.content["format"]]

    def __len__(self) -> int:
        return len(self._reader)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 (B, size, size, 3)."""
        batch = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        for row, i in enumerate(indices):
            with Image.open(io.BytesIO(self._reader.member(i, self._member))) as image:
                batch[row] = np.asarray(image)
        return batch

    @cached_property
    def captions(self) -> list[str]:
        return [self._reader.json(i)["caption"] for i in range(len(self))]
