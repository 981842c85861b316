"""Preview images during training. They change no weights and no metrics."""

from pathlib import Path

import numpy as np
import torch

from darkroom.data.latents import LatentShards
from darkroom.data.shards import ImageShards
from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel
from darkroom.pixels import map_pictures, picture_grid
from darkroom.sampling.text_to_image import TextToImage

COLUMNS = 8


class SamplePreview:
    """Samples of a U-Net in training, always from the same held-out captions and seeds."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        *,
        vae: Autoencoder,
        clip: Path,  # folder
        diffusion: DiffusionConfig,
        held_out: LatentShards,  # its captions are the prompts
        num: int,  # number of samples; captions repeat if they are fewer
        batch_size: int,
    ) -> None:
        clip_towers = ClipTowers.load(clip)
        self.model = TextToImage(vae=vae, unet=unet, clip=clip_towers, config=diffusion, latent_shape=held_out.latent_shape)
        self.prompts = [held_out.captions[index % len(held_out)] for index in range(num)]
        self.batch_size = batch_size

    def grid(self, device: torch.device) -> np.ndarray:
        """A grid of samples, uint8 (H, W, 3). `device` is that of the U-Net."""
        self.model.vae.to(device)
        self.model.clip.to(device)
        samples = self.model.sample(self.prompts, seeds=range(len(self.prompts)), batch_size=self.batch_size)
        return picture_grid(samples, columns=COLUMNS)


def reconstruction_grid(vae: Autoencoder, photos: ImageShards, *, num: int, batch_size: int, device: torch.device) -> np.ndarray:
    """Rows of the first `num` photos, each above its reconstruction; uint8 (H, W, 3)."""
    originals = photos.images(range(min(num, len(photos))))
    decoded = map_pictures(vae.reconstruct, originals, batch_size=batch_size, device=device)
    columns = min(COLUMNS, len(originals))
    rows = [part[start : start + columns] for start in range(0, len(originals), columns) for part in (originals, decoded)]
    blank = np.full_like(originals[:1], 255)
    padded = [np.concatenate([row, *[blank] * (columns - len(row))]) for row in rows]
    return picture_grid(np.concatenate(padded), columns)
