"""A model to read, wherever it lies."""

from typing import Protocol

from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel
from darkroom.sampling.model_folder import DiffusionConfig


class Source(Protocol):
    """Each part is read when it is asked for, so that not all of them need be in memory; each raises ValueError if it is not right."""

    def clip(self) -> ClipTowers: ...

    def vae(self) -> AutoencoderKL: ...

    def unet(self) -> UNet2DConditionModel: ...

    def diffusion(self) -> DiffusionConfig: ...
