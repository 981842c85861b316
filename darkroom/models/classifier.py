"""Image classifiers of torchvision, whose features measure how alike images are: their weights, their pixels, their layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import torch
from torch import Tensor, nn

from darkroom.models.weights import load_weights, read_weights


def load_classifier(arch: str, weights: str | Path, *, section: str) -> nn.Module:
    """Load a classifier with as many classes as its weights have: fp32, on the CPU, in evaluation mode.

    Args:
        arch: a name in `torchvision.models`.
        weights: a .safetensors file with torchvision's names; "" = torchvision's own, downloaded once into torch's hub folder.
        section: where params.yaml names both, for messages, e.g. `evaluate.features`.

    Raises:
        ValueError: an unknown architecture, or weights that are missing, unreadable or of another architecture.
    """
    from torchvision import models

    if arch not in models.list_models(module=models):
        raise ValueError(f"{section}.arch: torchvision has no classifier {arch!r}; see `torchvision.models.list_models()`.")
    try:
        tensors = read_weights(Path(weights)) if weights else _hub_weights(arch, section)
        classifier = _build(arch, tensors)
        load_weights(classifier, tensors, where=weights or f"torchvision's {arch}")
    except ValueError as error:
        raise ValueError(f"{section}.weights: {error}") from error
    return classifier.eval()


def _build(arch: str, tensors: dict[str, Tensor]) -> nn.Module:
    """A new classifier with as many classes as `tensors` have; the global generator stays as it was."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]):  # initial weights are drawn before they are replaced
        classifier = models.get_model(arch, weights=None)
        name, layer = last_layer(classifier)
        num_classes = len(tensors.get(f"{name}.weight", layer.weight))
        if num_classes != len(layer.weight):
            classifier = models.get_model(arch, weights=None, num_classes=num_classes)
    return classifier


def _hub_weights(arch: str, section: str) -> dict[str, Tensor]:
    from torchvision import models

    try:
        return dict(models.get_model_weights(arch).DEFAULT.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (URLError, OSError) as error:
        raise ValueError(
            f"the weights of {arch} could not be downloaded ({error}). Name a local .safetensors file in {section}.weights, "
            f"or set {section}.weight to 0."
        ) from error


def last_layer(classifier: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Name and module of the layer that gives the class scores: the last linear or convolutional one in order of definition."""
    layers = [(name, module) for name, module in classifier.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[-1]


def classifier_pixels(
    images: Tensor,  # (B, 3, H, W) in [0, 1]
    *,
    channels: Literal["rgb", "bgr"],
    scale: float,  # pixels run from 0 to this before mean and std
    mean: Sequence[float],  # in the order of `channels`, like std
    std: Sequence[float],
) -> Tensor:
    """The images as a classifier was trained on them, (B, 3, H, W)."""
    x = images.flip(1) if channels == "bgr" else images
    mean_, std_ = (torch.tensor(values, device=x.device)[:, None, None] for values in (mean, std))
    return (x * scale - mean_) / std_
