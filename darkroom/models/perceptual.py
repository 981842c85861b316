"""How different two images look to a trained classifier: a distance of its features that gradients flow through."""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkroom.models.classifier import SHIPPED_PIXELS, classifier_pixels, load_classifier, load_shipped
from darkroom.param_groups import ClassifierPixels, PerceptualParams

SHIPPED_LAYERS = [f"features.{index}" for index in (1, 4, 7, 8, 9, 10, 12)]  # conv1, fire3, fire5 to fire9: those of LPIPS


class PerceptualDistance:
    """Squared distance of features of unit length, averaged over places and layers (Zhang et al. 2018, equation 1, with w = 1).

    The network is a measure, not a part of the model: it has no gradients of its own, goes into no checkpoint, and follows
    the images to their device. The distance is between 0 and 4; features after a ReLU are at most 2 apart.
    """

    def __init__(
        self,
        network: nn.Module,  # prepared images (B, 3, H, W) -> features of each layer, (B, C, h, w)
        pixels: ClassifierPixels,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.pixels = pixels

    @classmethod
    def build(cls, params: PerceptualParams, *, size: int, section: str = "train_vae.perceptual") -> Self:
        """The distance that `params` name, for images of `size` px: without an architecture, by the classifier of this package.

        Errors name the parameters of `section`.

        Raises:
            ValueError: an unknown architecture or layer, weights that are missing or do not fit, or images too small for them.
        """
        if not params.arch:
            return cls(part_of(load_shipped(), params.layers or SHIPPED_LAYERS, size=size, section=section), SHIPPED_PIXELS)
        classifier = load_classifier(params.arch, params.weights, section=section)
        return cls(part_of(classifier, params.layers, size=size, section=section), params)

    def __call__(self, photos: Tensor, reconstructions: Tensor) -> Tensor:
        """Twice (B, 3, H, W) in [-1, 1] -> (B,); the gradient goes to the reconstructions alone."""
        self.network.to(photos.device)
        with torch.no_grad():
            expected = self._features(photos)
        pairs = zip(expected, self._features(reconstructions), strict=True)
        return torch.stack([(a - b).square().sum(1).flatten(1).mean(1) for a, b in pairs]).mean(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        x = classifier_pixels((images + 1) / 2, self.pixels)
        return [F.normalize(features.float(), dim=1, eps=1e-6) for features in self.network(x).values()]


def part_of(classifier: nn.Module, layers: Sequence[str], *, size: int, section: str) -> nn.Module:
    """A classifier up to these layers; a call returns their outputs by name.

    Args:
        classifier: changed: its ReLUs no longer overwrite their inputs.
        layers: names of modules, e.g. `features.3`.
        size: px, side of the images that it will get.
        section: of params.yaml, for errors.

    Raises:
        ValueError: an unknown layer, or images too small for it.
    """
    from torchvision.models.feature_extraction import create_feature_extractor

    for module in classifier.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # otherwise it overwrites the output of the layer before it
    name = type(classifier).__name__
    known = {name for name, _ in classifier.named_modules()}
    if unknown := [layer for layer in layers if layer not in known]:
        raise ValueError(f"{section}.layers: {name} has no layer {unknown[0]!r}; it has {', '.join(sorted(known - {''})[:40])}, ...")
    part = create_feature_extractor(classifier, list(layers)).to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            part(torch.zeros(1, 3, size, size))
    except RuntimeError as error:
        raise ValueError(f"{section}: images of {size} px are too small for {layers[-1]} of {name} ({error}).") from error
    return part
