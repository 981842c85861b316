"""How different two images look to a trained classifier: a distance of its features that gradients flow through."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkroom.models.classifier import classifier_pixels, load_classifier


class PerceptualDistance:
    """Squared distance of features of unit length, averaged over places and layers (Zhang et al. 2018, equation 1, with w = 1).

    The network is a measure, not a part of the model: it has no gradients of its own, goes into no checkpoint, and follows
    the images to their device. The distance is between 0 and 4; features after a ReLU are at most 2 apart.
    """

    def __init__(
        self,
        network: nn.Module,  # prepared images (B, 3, H, W) -> features of each layer, (B, C, h, w)
        *,
        channels: Literal["rgb", "bgr"],
        scale: float,  # pixels run from 0 to this before mean and std
        mean: Sequence[float],  # in the order of `channels`, like std
        std: Sequence[float],
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.channels = channels
        self.scale = scale
        self.mean = mean
        self.std = std

    def __call__(self, photos: Tensor, reconstructions: Tensor) -> Tensor:
        """Twice (B, 3, H, W) in [-1, 1] -> (B,); the gradient goes to the reconstructions alone."""
        self.network.to(photos.device)
        with torch.no_grad():
            expected = self._features(photos)
        pairs = zip(expected, self._features(reconstructions), strict=True)
        return torch.stack([(a - b).square().sum(1).flatten(1).mean(1) for a, b in pairs]).mean(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        x = classifier_pixels((images + 1) / 2, channels=self.channels, scale=self.scale, mean=self.mean, std=self.std)
        return [F.normalize(features.float(), dim=1, eps=1e-6) for features in self.network(x).values()]


def torchvision_layers(arch: str, weights: str | Path, layers: Sequence[str], *, size: int) -> nn.Module:
    """A torchvision classifier up to these layers; a call returns their outputs by name.

    Args:
        arch: a name in `torchvision.models`.
        weights: a .safetensors file with torchvision's names; "" = torchvision's own, downloaded once into torch's hub folder.
        layers: names of modules, e.g. `features.3`.
        size: px, side of the images that it will get.

    Raises:
        ValueError: an unknown architecture or layer, weights that are missing or do not fit, or images too small for it.
    """
    from torchvision.models.feature_extraction import create_feature_extractor

    network = load_classifier(arch, weights, section="train_vae.perceptual")
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # otherwise it overwrites the output of the layer before it
    known = {name for name, _ in network.named_modules()}
    if unknown := [layer for layer in layers if layer not in known]:
        raise ValueError(
            f"train_vae.perceptual.layers: {arch} has no layer {unknown[0]!r}; it has {', '.join(sorted(known - {''})[:40])}, ..."
        )
    part = create_feature_extractor(network, list(layers))
    try:
        with torch.no_grad():
            part(torch.zeros(1, 3, size, size))
    except RuntimeError as error:
        raise ValueError(f"train_vae.perceptual: images of {size} px are too small for {layers[-1]} of {arch} ({error}).") from error
    return part
