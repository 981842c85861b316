"""Feature extractors: uint8 pictures (B, H, W, 3) to vectors (B, D), under a name that says which weights they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from darkroom.progress import progress
from darkroom.provenance import hash_file

Images = NDArray[np.uint8]  # (B, H, W, 3)


@dataclass(frozen=True)
class Extractor:
    """Distances mean something only together with the name of the extractor that they were measured with."""

    name: str  # what it is, and the hash of its weights
    extract: Callable[[Images], NDArray[np.float32]]

    def __call__(self, read: Callable[[range], Images], num: int, *, batch_size: int, desc: str) -> NDArray[np.float32]:
        """(num, D) of the pictures that `read` gives for indices below `num`, so that they need not all be in memory at once."""
        starts = progress(range(0, num, batch_size), desc=f"features of {desc}", unit="batch")
        return np.concatenate([self.extract(read(range(start, min(start + batch_size, num)))) for start in starts])


def clip_features(encode_images: Callable[[Images], Tensor], fingerprint: str) -> Extractor:
    """An image tower whose embeddings have length 1, scaled to length √E, so that their dot product over E is the cosine."""

    def extract(images: Images) -> NDArray[np.float32]:
        embeddings = encode_images(images).float()  # (B, E)
        return (embeddings * embeddings.shape[1] ** 0.5).cpu().numpy()

    return Extractor(f"clip-{fingerprint[:12]}", extract)


def torchvision_features(
    arch: str,  # a name in torchvision.models
    weights: Path,  # .safetensors with torchvision's keys
    *,
    size: int,  # px; pictures are resized to this square
    channels: Literal["rgb", "bgr"],
    scale: float,  # pixels run from 0 to this before mean and std
    mean: Sequence[float],  # in the order of `channels`, like std
    std: Sequence[float],
    device: torch.device | None = None,
) -> Extractor:
    """What enters the last layer of a classifier, averaged over places where it is still a map.

    Raises:
        ValueError: an unknown architecture, no such file, or weights of another architecture.
    """
    classifier = load_classifier(arch, weights).to(device or torch.device("cpu"))
    place = next(classifier.parameters()).device
    caught: list[Tensor] = []
    last_layer(classifier)[1].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))

    @torch.inference_mode()
    def extract(images: Images) -> NDArray[np.float32]:
        caught.clear()
        classifier(prepare(images, size=size, channels=channels, scale=scale, mean=mean, std=std).to(place))
        features = caught.pop()
        return (features.mean(dim=(2, 3)) if features.ndim == 4 else features).float().cpu().numpy()

    return Extractor(f"{arch}-{hash_file(weights)[:12]}", extract)


def load_classifier(arch: str, weights: Path) -> nn.Module:
    """A torchvision classifier with the weights of a local file, in evaluation mode; as many classes as the file has."""
    from torchvision import models

    if arch not in models.list_models(module=models):
        raise ValueError(f"evaluate.features.arch: torchvision has no classifier {arch!r}; see `torchvision.models.list_models()`.")
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"evaluate.features.weights: {weights} cannot be read as .safetensors ({error}).") from error
    with torch.random.fork_rng(devices=[]):
        classifier = models.get_model(arch, weights=None)
        name, layer = last_layer(classifier)
        num_classes = len(tensors.get(f"{name}.weight", layer.weight))
        if num_classes != len(layer.weight):
            classifier = models.get_model(arch, weights=None, num_classes=num_classes)
    try:
        classifier.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"evaluate.features.weights: {weights} does not fit {arch} with torchvision's names: {reason}") from error
    return classifier.float().eval()


def last_layer(classifier: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Name and module of the layer that gives the class scores: the last linear or convolutional one in order of definition."""
    layers = [(name, module) for name, module in classifier.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[-1]


def prepare(images: Images, *, size: int, channels: str, scale: float, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, size, size), resized by antialiased bicubic."""
    x = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    if x.shape[2:] != (size, size):
        x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    if channels == "bgr":
        x = x.flip(1)
    return (x * scale - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
