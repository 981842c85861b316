"""What all autoencoders between images and latents have in common, and how a folder of any of them is read.

The cache, the U-Net, sampling and evaluation know this interface alone. `AutoencoderKL` is trained, `LinearAutoencoder` is computed
from the photos, `TinyAutoencoder` comes pretrained.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from darkroom.models.weights import CONFIG_FILE, WEIGHTS_FILE, ModelConfig, StoredModel, load_model, read_json

# names of the files that `load_autoencoder` reads, as patterns: those of diffusers, or the two of a tiny autoencoder
STORED_AS = ((CONFIG_FILE, WEIGHTS_FILE), ("*encoder*.safetensors", "*decoder*.safetensors"))


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(ModelConfig):
    latent_channels: int = 4
    sample_size: int = 32  # px, side of the training images
    scaling_factor: float = 0.18215  # latents = (raw - shift_factor) * scaling_factor have unit variance
    shift_factor: float | None = None  # None = 0

    @property
    def stride(self) -> int:
        """Pixels per latent pixel, along one side."""
        raise NotImplementedError


class Autoencoder(StoredModel):
    """Images to a diagonal Gaussian over latents, and latents to images.

    `raw` latents are those of the encoder; `latents` are normalised with the scale and shift of the configuration.
    A kind of autoencoder defines `moments` and `decode`.
    """

    Config: ClassVar[type[AutoencoderConfig]]
    config: AutoencoderConfig

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) in [-1, 1] -> mean and log-variance of the raw latents, each (B, C, h, w), fp32

        Raises:
            ValueError: a side is not a multiple of the stride.
        """
        raise NotImplementedError

    def decode(self, raw: Tensor) -> Tensor:
        """raw latents (B, C, h, w) -> images (B, 3, H, W), about [-1, 1] but not clamped"""
        raise NotImplementedError

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) in [-1, 1] -> mean and standard deviation of the raw latents, each (B, C, h, w)"""
        mean, logvar = self.moments(images)
        return mean, torch.exp(logvar / 2)

    def reconstruct(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1] -> reconstructions, decoded from the posterior means"""
        return self.decode(self.encode(images)[0])

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One pass for training, as a whole inside the module that DistributedDataParallel wraps.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            noise: (B, C, h, w), standard normal; the latents are mean + std * noise (Kingma & Welling 2014, equation 10).

        Returns:
            reconstruction (B, 3, H, W), mean and log-variance (B, C, h, w)
        """
        mean, logvar = self.moments(images)
        return self.decode(mean + torch.exp(logvar / 2) * noise), mean, logvar

    def normalise(self, raw: Tensor) -> Tensor:
        return (raw - (self.config.shift_factor or 0.0)) * self.config.scaling_factor

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents / self.config.scaling_factor + (self.config.shift_factor or 0.0)

    def check_size(self, images: Tensor) -> None:
        """Raises ValueError if a side of images (B, 3, H, W) is not a multiple of the stride."""
        if images.shape[2] % self.config.stride or images.shape[3] % self.config.stride:
            raise ValueError(
                f"Images of {images.shape[3]}x{images.shape[2]} px do not fit this autoencoder: "
                f"both sides must be multiples of {self.config.stride}. Resize or crop them."
            )


def load_autoencoder(folder: Path | str) -> Autoencoder:
    """The autoencoder in a folder, of any kind: fp32, on the CPU, in evaluation mode.

    Args:
        folder: as `save_model` writes it, or with the two files of a tiny autoencoder, see `load_taesd`.

    Raises:
        ValueError: as `load_model` or `load_taesd`; an unknown class is refused as one that is not `AutoencoderKL`.
    """
    from darkroom.models.tiny_autoencoder import load_taesd

    if not (Path(folder) / CONFIG_FILE).is_file() and list(Path(folder).glob("*encoder*.safetensors")):
        return load_taesd(folder)
    return load_model(_kind(Path(folder)), folder)


def read_autoencoder_config(folder: Path) -> AutoencoderConfig:
    """The configuration of the autoencoder that `save_model` wrote to a folder, of any kind, without its weights.

    Raises:
        ValueError: it is missing or not valid; an unknown class is refused as one that is not `AutoencoderKL`.
    """
    return _kind(folder).Config.from_json(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)


def _kind(folder: Path) -> type[Autoencoder]:
    from darkroom.models.autoencoder_kl import AutoencoderKL  # these modules import this one
    from darkroom.models.linear_autoencoder import LinearAutoencoder
    from darkroom.models.tiny_autoencoder import TinyAutoencoder

    name = read_json(folder / CONFIG_FILE).get("_class_name")
    kinds: tuple[type[Autoencoder], ...] = (LinearAutoencoder, TinyAutoencoder)
    return next((kind for kind in kinds if name == kind.Config.CLASS_NAME), AutoencoderKL)
