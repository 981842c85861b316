"""How different two pictures look to a trained classifier: a distance of its features that gradients flow through."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkroom.models.weights import load_weights, read_weights


class PerceptualDistance:
    """Squared distance of features of unit length, averaged over places and layers (Zhang et al. 2018, equation 1, with w = 1).

    The network is a measure, not a part of what is trained: it has no gradients of its own, goes to no checkpoint, and follows
    the pictures to their device. Between 0 and 4; features after a ReLU are at most 2 apart.
    """

    def __init__(
        self,
        network: nn.Module,  # prepared pictures (B, 3, H, W) -> features of each layer, (B, C, h, w)
        *,
        channels: Literal["rgb", "bgr"],
        scale: float,  # pixels run from 0 to this before mean and std
        mean: Sequence[float],  # in the order of `channels`, like std
        std: Sequence[float],
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.channels = channels
        self.scale = scale
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __call__(self, photos: Tensor, reconstructions: Tensor) -> Tensor:
        """Twice (B, 3, H, W) in [-1, 1] -> (B,); the gradient goes to the reconstructions alone."""
        self.network.to(photos.device)
        with torch.no_grad():
            expected = self._features(photos)
        pairs = zip(expected, self._features(reconstructions), strict=True)
        return torch.stack([(a - b).square().sum(1).flatten(1).mean(1) for a, b in pairs]).mean(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        x = images.flip(1) if self.channels == "bgr" else images
        x = ((x + 1) / 2 * self.scale - self.mean.to(x.device)) / self.std.to(x.device)
        return [F.normalize(features.float(), dim=1, eps=1e-6) for features in self.network(x).values()]


def torchvision_layers(arch: str, weights: str, layers: Sequence[str], *, size: int) -> nn.Module:
    """A torchvision classifier up to these layers; a call gives their outputs by name.

    Args:
        arch: a name in `torchvision.models`.
        weights: a .safetensors file with torchvision's names; "" = torchvision's own, downloaded once into torch's hub folder.
        layers: names of modules, e.g. `features.3`.
        size: px, side of the pictures that it will see.

    Raises:
        ValueError: an unknown architecture or layer, weights that are not there or do not fit, or pictures too small for it.
    """
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor

    if arch not in models.list_models(module=models):
        raise ValueError(f"train_vae.perceptual.arch: torchvision has no classifier {arch!r}; see `torchvision.models.list_models()`.")
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn before they are replaced
        network = models.get_model(arch, weights=None)
    load_weights(network, read_weights(Path(weights)) if weights else _hub_weights(arch), where=weights or f"torchvision's {arch}")
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # or a layer before it would be handed out after it
    known = {name for name, _ in network.named_modules()}
    if strangers := [layer for layer in layers if layer not in known]:
        raise ValueError(
            f"train_vae.perceptual.layers: {arch} has no layer {strangers[0]!r}; it has {', '.join(sorted(known - {''})[:40])}, ..."
        )
    part = create_feature_extractor(network.eval(), list(layers))
    try:
        with torch.no_grad():
            part(torch.zeros(1, 3, size, size))
    except RuntimeError as error:
        raise ValueError(f"train_vae.perceptual: pictures of {size} px are too small for {layers[-1]} of {arch} ({error}).") from error
    return part


def _hub_weights(arch: str) -> dict[str, Tensor]:
    from torchvision import models

    try:
        return dict(models.get_model_weights(arch).DEFAULT.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (URLError, OSError) as error:
        raise ValueError(
            f"train_vae.perceptual: the weights of {arch} could not be downloaded ({error}). Name a local .safetensors file in "
            "train_vae.perceptual.weights, or set train_vae.perceptual.weight to 0."
        ) from error
