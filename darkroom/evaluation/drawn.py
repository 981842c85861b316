"""Samples on disk: drawn batch by batch into one file, by one process or by several, and read a few at a time.

A file of 50,000 samples does not fit into memory. It outlives a kill: the next run keeps every batch that is in the file as a whole
and draws the others. Beside the file lies a record with the hash of each finished batch, its prompts and its seeds. Only the hash
says that a batch is there, so that half-written rows, or those of other prompts, are drawn again.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from darkroom.progress import progress
from darkroom.provenance import canonical_json

logger = logging.getLogger(__name__)

Images = NDArray[np.uint8]  # (B, H, W, 3)
Draw = Callable[[Sequence[str], Sequence[int]], Images]  # (prompts, seeds) -> one image for each
SECONDS_BETWEEN_LOOKS = 0.2  # at the batches of the other processes
HASH_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class DrawnSamples:
    """The samples of a file, as an `ImageSource`. Rows are read, not mapped: a map would count as memory of the process."""

    path: Path
    num: int
    size: tuple[int, int]  # height and width, px

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size, 3)

    @property
    def image_bytes(self) -> int:
        return self.size[0] * self.size[1] * 3

    def __len__(self) -> int:
        return self.num

    def images(self, indices: Sequence[int]) -> Images:
        """uint8 (B, H, W, 3)."""
        batch = np.empty((len(indices), *self.shape), np.uint8)
        with self.path.open("rb", buffering=0) as file:
            for row, index in enumerate(indices):
                file.seek(range(self.num)[index] * self.image_bytes)
                assert file.readinto(batch[row].data) == self.image_bytes, f"{self.path} ends before sample {index}"
        return batch


def draw_samples(
    draw: Draw,
    prompts: Sequence[str],
    seeds: Sequence[int],  # one per prompt
    path: Path,  # of the file; its folder is made
    *,
    size: tuple[int, int],  # height and width of the samples, px
    batch_size: int,
    rank: int = 0,
    world: int = 1,
) -> DrawnSamples:
    """Draw one sample for each prompt. Process `rank` of `world` draws every `world`-th batch; all see the same `path`.

    Rank 0 returns when the batches of all processes are in the file; the others return when theirs are, and should then end.
    A batch holds the same samples whatever `world` is, so the number of processes changes no byte.
    """
    assert len(prompts) == len(seeds)
    samples = DrawnSamples(path, len(prompts), size)
    batches = [_Batch(samples, index, prompts[start : start + batch_size], seeds[start : start + batch_size], start)
               for index, start in enumerate(range(0, len(prompts), batch_size))]  # fmt: skip
    _make_file(path, samples.num * samples.image_bytes)
    _make_file(_record_of(path), len(batches) * HASH_BYTES)
    own = batches[rank::world]
    missing = [batch for batch in own if not batch.is_drawn()]
    if len(missing) < len(own):
        logger.info("%d of %d batches of samples are already drawn", len(own) - len(missing), len(own))
    for batch in _shown(missing, len(own)) if rank == 0 else missing:
        batch.write(draw(batch.prompts, batch.seeds))
    if rank == 0:
        _wait_for([batch for other in range(1, world) for batch in batches[other::world]])
    return samples


@dataclass(frozen=True)
class _Batch:
    samples: DrawnSamples
    index: int  # among the batches
    prompts: Sequence[str]
    seeds: Sequence[int]
    start: int  # its first sample

    def write(self, images: Images) -> None:
        """The samples first and their hash last, so that a hash without its samples cannot last."""
        assert images.shape == (len(self.prompts), *self.samples.shape), f"drawn: {images.shape}"
        pixels = np.ascontiguousarray(images).tobytes()
        _write_at(self.samples.path, self.start * self.samples.image_bytes, pixels)
        _write_at(_record_of(self.samples.path), self.index * HASH_BYTES, self._hash(pixels))

    def is_drawn(self) -> bool:
        with _record_of(self.samples.path).open("rb", buffering=0) as file:
            file.seek(self.index * HASH_BYTES)
            found = file.read(HASH_BYTES)
        return any(found) and found == self._hash(self.samples.images(range(self.start, self.start + len(self.prompts))).tobytes())

    def _hash(self, pixels: bytes) -> bytes:
        return hashlib.sha256(canonical_json([list(self.prompts), list(self.seeds)]).encode() + pixels).digest()


def _record_of(path: Path) -> Path:
    return path.with_name(path.name + ".done")


def _make_file(path: Path, num_bytes: int) -> None:
    """A file of so many bytes, zeros where nothing was written; several processes may do it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(num_bytes)


def _write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _shown(missing: Sequence[_Batch], total: int) -> Iterable[_Batch]:
    return progress(missing, desc="draw samples", total=total, initial=total - len(missing), unit="batch")


def _wait_for(batches: Sequence[_Batch]) -> None:
    """Wait until other processes have drawn `batches`. If one of them dies, the launcher ends this process too."""
    for batch in batches:
        while not batch.is_drawn():
            time.sleep(SECONDS_BETWEEN_LOOKS)
