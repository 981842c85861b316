"""Models in and out: `import_model` and `export_model`, a part at a time, so that a large model fits into memory."""

from pathlib import Path
from typing import Protocol

from darkroom.interchange.pipeline_folder import PipelineFolder
from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import save_model
from darkroom.provenance import replacing
from darkroom.sampling import DiffusionConfig


class Source(Protocol):
    """A model somewhere, whose parts are read when they are asked for. Each raises ValueError where it is not what it should be."""

    def clip(self) -> ClipTowers: ...

    def vae(self) -> AutoencoderKL: ...

    def unet(self) -> UNet2DConditionModel: ...

    def diffusion(self) -> DiffusionConfig: ...


def import_model(source: str, out: Path) -> None:
    """Writes a folder with clip/, vae/ and unet/, which `TextToImage.load` and the stages read.

    Args:
        source: the folder of a diffusers pipeline.
        out: a new folder; it appears whole or not at all.

    Raises:
        ValueError: `out` is there already, or `source` is not a model of Stable Diffusion's architecture.
    """
    check_new(out)
    model = PipelineFolder(Path(source))
    with replacing(out) as folder:
        diffusion = model.diffusion()  # the cheap questions first
        clip = model.clip()
        clip.save(folder / "clip")
        context_dim = clip.context_dim
        del clip
        vae = model.vae()
        save_model(vae, folder / "vae")
        latent_channels = vae.config.latent_channels
        del vae
        unet = model.unet()
        check_fits(unet.config, context_dim=context_dim, latent_channels=latent_channels)
        save_model(unet, folder / "unet")
        diffusion.save(folder / "unet")


def check_new(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} is there already; nothing is overwritten. Name a new one.")


def check_fits(unet: UNetConfig, *, context_dim: int, latent_channels: int) -> None:
    """Raises ValueError where a U-Net does not fit its text tower or its autoencoder, or wants more than both."""
    if unet.cross_attention_dim != context_dim:
        raise ValueError(
            f"The U-Net reads text embeddings of width {unet.cross_attention_dim}, the text tower gives {context_dim}: "
            "they are not of one model."
        )
    if (unet.in_channels, unet.out_channels) != (latent_channels, latent_channels):
        raise ValueError(
            f"The U-Net has {unet.in_channels} channels in and {unet.out_channels} out, the autoencoder {latent_channels}: "
            "models for inpainting, depth or upscaling are other architectures."
        )
    if unet.sample_size is None:
        raise ValueError("The U-Net's config.json has no `sample_size`: add the side of its training pictures in latent pixels.")
