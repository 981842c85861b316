"""Models in and out: `import_model` and `export_model`, a part at a time, so that a large model fits into memory."""

from pathlib import Path

from darkroom.choices import ExportFormat
from darkroom.interchange.foreign_weights import SUFFIXES
from darkroom.interchange.pipeline_folder import PipelineFolder, fetch_pipeline, is_hub_id, write_pipeline
from darkroom.interchange.single_file import SingleFile, write_single_file
from darkroom.models.unet import UNetConfig
from darkroom.models.weights import save_model
from darkroom.provenance import replacing
from darkroom.sampling.model_folder import ModelFolder


def import_model(source: str, out: Path, *, prediction: str | None = None) -> None:
    """Writes a folder with clip/, vae/ and unet/, which `TextToImage.load` and the stages read.

    Args:
        source: the folder of a diffusers pipeline, a single file of Stable Diffusion, or OWNER/NAME on the hub.
        out: a new folder; it appears whole or not at all.
        prediction: what the U-Net predicts, for a single file that does not say it.

    Raises:
        ValueError: `out` is there already, or `source` is not a whole model of Stable Diffusion's architecture.
    """
    check_new(out)
    model = open_source(source, prediction)
    diffusion = model.diffusion()  # the cheap questions first
    with replacing(out) as folder:
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


def open_source(source: str, prediction: str | None) -> SingleFile | PipelineFolder:
    """A model that others wrote, by what its name looks like.

    Raises:
        ValueError: nothing is there, or it is of another kind.
    """
    path = Path(source)
    if path.is_file() or path.suffix in SUFFIXES:
        return SingleFile(path, prediction)
    if prediction is not None:
        raise ValueError(f"{source} says itself what it predicts; leave --prediction out.")
    if path.is_dir():
        return PipelineFolder(path)
    if is_hub_id(source):
        return PipelineFolder(fetch_pipeline(source))
    raise ValueError(f"{source} is not there: give the folder of a diffusers pipeline, a single file, or OWNER/NAME on the hub.")


def export_model(model: Path, out: Path, format: ExportFormat) -> list[Path]:
    """Writes a folder of ours for other programs.

    Args:
        model: a folder with clip/, vae/ and unet/.
        out: a new folder; or, of a single file, a new FILE.safetensors, beside which its card FILE.md appears.
        format: for diffusers, or one file for ComfyUI, A1111 and their like.

    Returns:
        What was written.

    Raises:
        ValueError: something is there already, or the model cannot be expressed.
    """
    check_new(out)
    source = ModelFolder(model)
    if format == "diffusers":
        with replacing(out) as folder:
            write_pipeline(source, folder)
        return [out]
    if out.suffix != ".safetensors":
        raise ValueError(f"{out} should end in .safetensors: a single file is written.")
    card = out.with_suffix(".md")
    check_new(card)
    with replacing(card) as text, replacing(out) as file:
        text.write_text(write_single_file(source, file), encoding="utf-8")
    return [out, card]


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
