"""Image classifiers: their weights, the pixels that they were trained on, and what they make of an image: features and class scores.

SqueezeNet 1.0 (Iandola et al. 2016) comes with the package. Its weights are those of songhan/SqueezeNet-Deep-Compression at fb13faa2
(BSD-2-Clause, see squeezenet1_0.LICENCE) in half precision, with torchvision's names.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from darkroom.models.weights import hash_weights, load_weights, read_weights
from darkroom.param_groups import ClassifierPixels
from darkroom.provenance import hash_file

CHUNK = 16  # images per pass through a network, always: the number of images in a pass changes the last bits of its output
SHIPPED_FOLDER = Path(__file__).parent
SHIPPED = "squeezenet1_0"  # name in torchvision, and of the files in that folder
SHIPPED_HASH = "9e31f02e1c1ecca075d93c73b47a7235991b88c9b08d656a6b73901746d94d88"  # sha256 of the weights: other weights are other code
SHIPPED_PIXELS = ClassifierPixels(channels="bgr", scale=255.0, mean=[104.0, 117.0, 123.0], std=[1.0] * 3)  # Caffe's
SHIPPED_SIDE = 227  # px, as it was trained
SHIPPED_SMALL_SIDE = 160  # px; more enlarged, small images upside down look like upright ones, see docs/evaluate.md
SMALL = 64  # px, the longer side
SHIPPED_FEATURE_SCALE = 1 / 16  # brings the mean square of its features to about 1 on photos, for which kernels are made
RESIZE = "bicubic, antialiased"  # by `resized`

Images = NDArray[np.uint8]  # (B, H, W, 3)
Floats = NDArray[np.float32]


class Classifier:
    """A network with the preprocessing that it was trained with.

    Features are the input of its last layer, averaged over places where it is still a map, times `feature_scale`.
    """

    def __init__(
        self,
        network: nn.Module,  # prepared images (B, 3, side, side) -> scores (B, classes)
        pixels: ClassifierPixels,
        *,
        arch: str,  # for its name
        side: int,  # px; images are resized to this square
        small_side: int | None = None,  # px; that of images whose longer side is at most `SMALL`; None = the same
        feature_scale: float = 1.0,
        device: torch.device | None = None,  # None = CPU
    ) -> None:
        self.arch = arch
        self.weights_hash = hash_weights(network)
        self.pixels = pixels
        self.side = side
        self.small_side = small_side or side
        self.feature_scale = feature_scale
        self._device = device or torch.device("cpu")
        self._network = network.eval().to(self._device).to(memory_format=torch.channels_last)
        self._caught: list[Tensor] = []
        last_layer(network)[1].register_forward_pre_hook(lambda _, inputs: self._caught.append(inputs[0]))

    @classmethod
    def shipped(cls, device: torch.device | None = None) -> Self:
        """SqueezeNet 1.0 of this package: 512 features, the 1000 classes of ImageNet in torchvision's order."""
        network = load_shipped()
        return cls(
            network,
            SHIPPED_PIXELS,
            arch=SHIPPED,
            side=SHIPPED_SIDE,
            small_side=SHIPPED_SMALL_SIDE,
            feature_scale=SHIPPED_FEATURE_SCALE,
            device=device,
        )

    @property
    def name(self) -> str:
        return f"{self.arch}-{self.weights_hash[:12]}"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that changes its numbers, for JSON."""
        return {
            "arch": self.arch,
            "weights": self.weights_hash,
            "side": self.side,
            "small_side": self.small_side,
            **self.pixels.model_dump(include=set(ClassifierPixels.model_fields)),
            "resize": RESIZE,
            "layer": "input of the last layer, averaged over places",
            "feature_scale": self.feature_scale,
        }

    def features_and_scores(self, images: Images) -> tuple[Floats, Floats]:
        """uint8 (B, H, W, 3) of any size -> features (B, D) and class scores (B, classes), in one pass.

        Scores are those before a softmax. An image gets the same bits whatever the other images and their number are.
        """
        parts = in_chunks(images, self._pass)
        return parts[0], parts[1]

    @torch.inference_mode()
    def _pass(self, images: Images) -> tuple[Tensor, Tensor]:
        self._caught.clear()
        side = self.small_side if max(images.shape[1:3]) <= SMALL else self.side
        x = classifier_pixels(resized(images, side), self.pixels).to(self._device, memory_format=torch.channels_last)
        scores = self._network(x)
        features = self._caught.pop()
        return self.feature_scale * (features.mean(dim=(2, 3)) if features.ndim == 4 else features), scores


def in_chunks(images: Images, function: Callable[[Images], tuple[Tensor, ...]]) -> list[Floats]:
    """The outputs of `function`, (B, ...) each, from passes of exactly `CHUNK` images: black ones fill the last pass.

    Libraries of convolutions and matrix products choose their order of summation by the number of images; so it must not vary.
    """
    assert len(images) > 0
    passes: list[tuple[Tensor, ...]] = []
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        filled = np.concatenate([chunk, np.zeros((CHUNK - len(chunk), *chunk.shape[1:]), np.uint8)])
        passes.append(tuple(output[: len(chunk)].float().cpu() for output in function(filled)))
    return [torch.cat(outputs).numpy() for outputs in zip(*passes, strict=True)]


def load_shipped() -> nn.Module:
    """SqueezeNet 1.0 of this package: fp32, on the CPU, in evaluation mode.

    Raises:
        ValueError: the file is missing, or not the one that belongs to this version of Darkroom.
    """
    path = SHIPPED_FOLDER / f"{SHIPPED}.safetensors"
    if path.is_file() and hash_file(path) != SHIPPED_HASH:
        raise ValueError(f"{path} is damaged or of another version of Darkroom. Install Darkroom again.")
    return _build(SHIPPED, read_weights(path), where=path)


def load_classifier(arch: str, weights: str | Path, *, section: str) -> nn.Module:
    """Load a classifier of torchvision with as many classes as its weights have: fp32, on the CPU, in evaluation mode.

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
        return _build(arch, tensors, where=weights or f"torchvision's {arch}")
    except ValueError as error:
        raise ValueError(f"{section}.weights: {error}") from error


def _build(arch: str, tensors: dict[str, Tensor], *, where: str | Path) -> nn.Module:
    """A classifier with the weights and the number of classes of `tensors`; the global generator stays as it was."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]):  # initial weights are drawn before they are replaced
        classifier = models.get_model(arch, weights=None)
        name, layer = last_layer(classifier)
        num_classes = len(tensors.get(f"{name}.weight", layer.weight))
        if num_classes != len(layer.weight):
            classifier = models.get_model(arch, weights=None, num_classes=num_classes)
    load_weights(classifier, tensors, where=where)
    return classifier.eval()


def _hub_weights(arch: str, section: str) -> dict[str, Tensor]:
    from torchvision import models

    try:
        return dict(models.get_model_weights(arch).DEFAULT.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (URLError, OSError) as error:
        raise ValueError(
            f"the weights of {arch} could not be downloaded ({error}). Name a local .safetensors file in {section}.weights, "
            f"or leave {section}.arch empty for the classifier that comes with Darkroom."
        ) from error


def last_layer(classifier: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Name and module of the layer that gives the class scores: the last linear or convolutional one in order of definition."""
    layers = [(name, module) for name, module in classifier.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[-1]


def resized(images: Images, size: int) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, size, size) in [0, 1], resized by antialiased bicubic."""
    x = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    if x.shape[2:] != (size, size):
        x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return x


def classifier_pixels(images: Tensor, pixels: ClassifierPixels) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> the same as a classifier was trained on them: order of channels, range, mean and std."""
    x = images.flip(1) if pixels.channels == "bgr" else images
    mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (pixels.mean, pixels.std))
    return (x * pixels.scale - mean) / std


def class_names() -> list[str]:
    """ImageNet's classes, in the order of the scores."""
    from torchvision.models import SqueezeNet1_0_Weights

    return list(SqueezeNet1_0_Weights.DEFAULT.meta["categories"])


def class_numbers(classes: Sequence[int | str], *, parameter: str) -> tuple[int, ...]:
    """
    Args:
        parameter: where params.yaml has them, for messages.

    Raises:
        ValueError: a name or a number that is none of ImageNet's classes.
    """
    names = class_names()
    numbers = {name.lower(): number for number, name in enumerate(names)}
    for named in classes:
        if isinstance(named, int) and not 0 <= named < len(names):
            raise ValueError(f"{parameter}: {named} is no class of ImageNet; they have the numbers 0 to {len(names) - 1}.")
        if isinstance(named, str) and named.lower() not in numbers:
            near = get_close_matches(named.lower(), numbers, n=3) or [name for name in numbers if named.lower() in name][:3]
            hint = f"did you mean {', '.join(names[numbers[name]] for name in near)}?" if near else "write its name as torchvision does."
            raise ValueError(f"{parameter}: ImageNet has no class {named!r}; {hint}")
    return tuple(dict.fromkeys(named if isinstance(named, int) else numbers[named.lower()] for named in classes))
