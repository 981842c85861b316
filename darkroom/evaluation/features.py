"""Features: what an extractor makes of images, vectors (B, D), in which they are compared; and what reports must share to compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from darkroom.choices import FeatureKind
from darkroom.data.shards import ImageShards
from darkroom.models.classifier import CHUNK, in_chunks
from darkroom.progress import progress
from darkroom.provenance import hash_json

MAX_PHOTOS = 10_000  # photos of a split that are measured: the first in the order of their keys, which are hashes
MEASURING = ("darkroom.evaluation.", "darkroom.models.classifier:")  # modules whose code shapes metrics; see `eval_key`
SHOWING = tuple(f"darkroom.evaluation.{name}:" for name in ("galleries", "glossary", "report"))  # those that only show them

Images = NDArray[np.uint8]  # (B, H, W, 3)
Features = NDArray[np.float32]  # (N, D)
Kernel = Literal["cubic", "gaussian"]


class ImageSource(Protocol):
    """Images that are read batch by batch, so that they need not fit into memory together."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> Images: ...


@dataclass(frozen=True)
class ArrayImages:
    """The images of an array, which may be a memory map."""

    array: Images

    def __len__(self) -> int:
        return len(self.array)

    def images(self, indices: Sequence[int]) -> Images:
        return np.asarray(self.array[list(indices)])


@dataclass(frozen=True)
class ChosenImages:
    """The images of `source` in these rows."""

    source: ImageSource
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, indices: Sequence[int]) -> Images:
        return self.source.images([self.rows[index] for index in indices])


@dataclass(frozen=True)
class MappedImages:
    """What `function` makes of the images of `source`, batch by batch and each time anew."""

    source: ImageSource
    function: Callable[[Images], Images]

    def __len__(self) -> int:
        return len(self.source)

    def images(self, indices: Sequence[int]) -> Images:
        return self.function(self.source.images(indices))


@dataclass(frozen=True)
class Extractor:
    """A distance means something only together with the extractor that it was measured with."""

    kind: FeatureKind
    name: str  # kind or architecture, and the hash of its weights
    extract: Callable[[Images], Features]  # (B, H, W, 3) -> (B, D); the bits of a row do not depend on the other rows
    identity: Mapping[str, Any] = field(default_factory=dict)  # everything that changes its numbers, for JSON
    kernel: Kernel = "cubic"  # of KID: (x y / D + 1)³ (Bińkowski et al. 2018), or a Gaussian of unit vectors (CMMD, Jayasumana et al. 2024)

    def of(self, source: ImageSource, *, limit: int | None = MAX_PHOTOS, batch_size: int, desc: str) -> Features:
        """Features (N, D) of the first `limit` images (None = all); `batch_size`, rounded up to whole passes, are in memory at a time."""
        num = len(source) if limit is None else min(len(source), limit)
        step = CHUNK * -(-batch_size // CHUNK)
        features = np.empty((num, 0), np.float32)
        for start in progress(range(0, num, step), desc=f"features of {desc}", unit="batch"):
            part = self.extract(source.images(range(start, min(start + step, num))))
            if start == 0:
                features = np.empty((num, part.shape[1]), np.float32)
            features[start : start + len(part)] = part
        return features


def clip_features(encode_images: Callable[[Images], Tensor], fingerprint: str) -> Extractor:
    """The run's own CLIP: its image embeddings of length 1, scaled to length √E, so that their dot product over E is the cosine."""
    identity = {"kind": "clip", "weights": fingerprint}
    return Extractor("clip", f"clip-{fingerprint[:12]}", embeddings_of(encode_images), identity, kernel="gaussian")


def embeddings_of(encode_images: Callable[[Images], Tensor]) -> Callable[[Images], Features]:
    """`encode_images` gives embeddings (B, E) of length 1; the features have length √E, that is mean square 1."""

    def encode(images: Images) -> tuple[Tensor]:
        embeddings = encode_images(images).float()
        return (embeddings * embeddings.shape[1] ** 0.5,)

    return lambda images: in_chunks(images, encode)[0]


@dataclass(frozen=True)
class FeatureSets:
    """Features of one extractor, (N, D) each."""

    samples: Features
    held_out: Features
    train: Features

    @classmethod
    def extract(cls, extractor: Extractor, samples: ImageSource, held_out: ImageSource, train: ImageSource, *, batch_size: int) -> Self:
        """All samples, the first `MAX_PHOTOS` held-out photos, and as many training photos as the larger of both, up to that number."""
        as_many = min(max(len(samples), len(held_out)), MAX_PHOTOS)
        return cls(
            samples=extractor.of(samples, limit=None, batch_size=batch_size, desc="samples"),
            held_out=extractor.of(held_out, batch_size=batch_size, desc="held-out photos"),
            train=extractor.of(train, limit=as_many, batch_size=batch_size, desc="training photos"),
        )


def eval_key(
    held_out: ImageShards,
    extractor: Extractor,
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Mapping[str, Any],  # sampler, spacing, steps, guidance scale
    settings: Mapping[str, Any],  # what else shapes metrics, e.g. `num_neighbours` and how many photos are measured
    code: Mapping[str, str],  # `module:definition` -> hash, of everything that the stage runs
) -> str:
    """A hash of all that two reports must share for their metrics to compare: everything but the model.

    Of `code` counts what measures; what only shows metrics does not, and the model and its samplers are what is measured.
    """
    measuring = {name: digest for name, digest in code.items() if name.startswith(MEASURING) and not name.startswith(SHOWING)}
    return hash_json(
        {
            "held_out": {"keys": held_out.keys, "side": held_out.size},
            "extractor": {"kernel": extractor.kernel, **extractor.identity},
            "prompts": list(prompts),
            "seeds": list(seeds),
            "sampling": dict(sampling),
            "settings": dict(settings),
            "code": measuring,
        }
    )
