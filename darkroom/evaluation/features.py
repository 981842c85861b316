"""Feature extractors: uint8 images (B, H, W, 3) to vectors (B, D), under a name that identifies their weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from darkroom.config import FeatureParams
from darkroom.data.shards import ImageShards
from darkroom.models.classifier import classifier_pixels, last_layer, load_classifier
from darkroom.models.clip import ClipTowers
from darkroom.progress import progress
from darkroom.provenance import hash_file

MAX_PHOTOS = 10_000  # photos of a split that are measured: the first in the order of their keys, which are hashes
Images = NDArray[np.uint8]  # (B, H, W, 3)


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
    """A distance means something only together with the name of the extractor that it was measured with."""

    name: str  # its kind, and the hash of its weights
    extract: Callable[[Images], NDArray[np.float32]]

    def __call__(self, read: Callable[[range], Images], num: int, *, batch_size: int, desc: str) -> NDArray[np.float32]:
        """Features (num, D) of the images that `read` returns for indices below `num`; only one batch of them is in memory."""
        starts = progress(range(0, num, batch_size), desc=f"features of {desc}", unit="batch")
        return np.concatenate([self.extract(read(range(start, min(start + batch_size, num)))) for start in starts])

    def of_images(self, images: Images, *, batch_size: int, desc: str) -> NDArray[np.float32]:
        return self(lambda rows: images[rows], len(images), batch_size=batch_size, desc=desc)

    def of_photos(self, photos: ImageShards, *, batch_size: int, desc: str) -> NDArray[np.float32]:
        """Features of the first `MAX_PHOTOS` photos."""
        return self(photos.images, min(len(photos), MAX_PHOTOS), batch_size=batch_size, desc=desc)


@dataclass(frozen=True)
class FeatureSets:
    """Features of one extractor, (N, D) each."""

    samples: NDArray[np.float32]
    held_out: NDArray[np.float32]
    train: NDArray[np.float32]

    @classmethod
    def extract(cls, extractor: Extractor, samples: Images, held_out: ImageShards, train: ImageShards, *, batch_size: int) -> Self:
        return cls(
            samples=extractor.of_images(samples, batch_size=batch_size, desc="samples"),
            held_out=extractor.of_photos(held_out, batch_size=batch_size, desc="held-out photos"),
            train=extractor.of_photos(train, batch_size=batch_size, desc="training photos"),
        )


def make_extractor(params: FeatureParams, clip: ClipTowers, clip_fingerprint: str, device: torch.device) -> Extractor:
    """The extractor that `params` name: the run's own CLIP, or a torchvision classifier on `device`.

    Raises:
        ValueError: this CLIP has no image encoder, or the classifier's weights are missing or do not fit.
    """
    if params.kind == "clip":
        clip.check_image_encoder()
        return clip_features(clip.encode_images, clip_fingerprint)
    return torchvision_features(
        params.arch,
        Path(params.weights),
        size=params.side,
        channels=params.channels,
        scale=params.scale,
        mean=params.mean,
        std=params.std,
        device=device,
    )


def clip_features(encode_images: Callable[[Images], Tensor], fingerprint: str) -> Extractor:
    """CLIP's image embeddings of length 1, scaled to length √E, so that their dot product over E is the cosine."""

    def extract(images: Images) -> NDArray[np.float32]:
        embeddings = encode_images(images).float()  # (B, E)
        return (embeddings * embeddings.shape[1] ** 0.5).cpu().numpy()

    return Extractor(f"clip-{fingerprint[:12]}", extract)


def torchvision_features(
    arch: str,  # a name in torchvision.models
    weights: Path,  # .safetensors with torchvision's keys
    *,
    size: int,  # px; images are resized to this square
    channels: Literal["rgb", "bgr"],
    scale: float,  # pixels run from 0 to this before mean and std
    mean: Sequence[float],  # in the order of `channels`, like std
    std: Sequence[float],
    device: torch.device | None = None,
) -> Extractor:
    """The input of a classifier's last layer, averaged over places where it is still a map.

    Raises:
        ValueError: an unknown architecture, a missing file, or weights of another architecture.
    """
    classifier = load_classifier(arch, weights, section="evaluate.features").to(device or torch.device("cpu"))
    place = next(classifier.parameters()).device
    caught: list[Tensor] = []
    last_layer(classifier)[1].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))

    @torch.inference_mode()
    def extract(images: Images) -> NDArray[np.float32]:
        caught.clear()
        x = classifier_pixels(resized(images, size), channels=channels, scale=scale, mean=mean, std=std)
        classifier(x.to(place))
        features = caught.pop()
        return (features.mean(dim=(2, 3)) if features.ndim == 4 else features).float().cpu().numpy()

    return Extractor(f"{arch}-{hash_file(weights)[:12]}", extract)


def resized(images: Images, size: int) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, size, size) in [0, 1], resized by antialiased bicubic."""
    x = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    if x.shape[2:] != (size, size):
        x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return x
