"""Import and export of models, one part at a time, so that a large model fits into memory."""

from pathlib import Path
from typing import Any

from darkroom.choices import ExportFormat
from darkroom.hub import is_hub_id
from darkroom.interchange.foreign_weights import SUFFIXES
from darkroom.interchange.pipeline_folder import PipelineFolder, fetch_pipeline, write_pipeline
from darkroom.interchange.single_file import SingleFile, write_single_file
from darkroom.models.unet import UNetConfig
from darkroom.models.weights import save_model
from darkroom.provenance import IMPORT, read_index, replacing, write_index
from darkroom.sampling.model_folder import ModelFolder


def import_model(source: str, out: Path, *, prediction: str | None = None) -> None:
    """Write a folder with clip/, vae/ and unet/, which `TextToImage.load` and the stages read.

    Args:
        source: the folder of a diffusers pipeline, a single file of Stable Diffusion, or OWNER/NAME on the hub.
        out: a new folder; it is written whole or not at all.
        prediction: of the U-Net, for a single file that does not contain it.

    Raises:
        ValueError: `out` exists, or `source` is not a whole model of Stable Diffusion's architecture.
    """
    check_new(out)
    model = open_source(source, prediction)
    diffusion = model.diffusion()  # cheap, so errors come early
    origin = {"source": source, "prediction": prediction}
    with replacing(out) as folder:
        clip = model.clip()
        clip.save(folder / "clip")
        made_with, context_dim = {"clip": clip.fingerprint()}, clip.context_dim
        del clip
        vae = model.vae()
        save_model(vae, folder / "vae")
        made_with["vae"], latent_channels = vae.fingerprint(), vae.config.latent_channels
        del vae
        unet = model.unet()
        check_fits(unet.config, context_dim=context_dim, latent_channels=latent_channels)
        save_model(unet, folder / "unet")
        del unet
        diffusion.save(folder / "unet")
        write_indexes(folder, made_with, origin)


def write_indexes(folder: Path, made_with: dict[str, str], origin: dict[str, Any]) -> None:
    """An index.json for each part, so that training and drawing can check that the parts belong together.

    Args:
        made_with: clip and vae -> fingerprint of its weights.
        origin: stands in the indexes as the parameters of the import.
    """
    for part, weights in made_with.items():
        write_index(folder / part, stage=IMPORT, params=origin, inputs={}, content={"init": "", "weights": weights})
    inputs = {part: read_index(folder / part) for part in made_with}
    write_index(folder / "unet", stage=IMPORT, params=origin, inputs=inputs, content={"init": "", "made_with": made_with})


def open_source(source: str, prediction: str | None) -> SingleFile | PipelineFolder:
    """A model in a foreign format; `source` decides which.

    Raises:
        ValueError: not found, or of another kind.
    """
    path = Path(source)
    if path.is_file() or path.suffix in SUFFIXES:
        return SingleFile(path, prediction)
    if prediction is not None:
        raise ValueError(f"{source} already defines its prediction; remove --prediction.")
    if path.is_dir():
        return PipelineFolder(path)
    if is_hub_id(source):
        return PipelineFolder(fetch_pipeline(source))
    raise ValueError(f"{source} not found: give a pipeline folder, a single file, or OWNER/NAME on the Hugging Face hub.")


def export_model(model: Path, out: Path, format: ExportFormat) -> list[Path]:
    """Write a model for other programs.

    Args:
        model: a folder with clip/, vae/ and unet/.
        out: a new folder; or, for a single file, a new FILE.safetensors; its card FILE.md is written next to it.
        format: a folder for diffusers, or one file for ComfyUI, A1111 and similar programs.

    Returns:
        The written paths.

    Raises:
        ValueError: an output exists, or the format cannot express the model.
    """
    check_new(out)
    source = ModelFolder(model)
    if format == "diffusers":
        with replacing(out) as folder:
            write_pipeline(source, folder)
        return [out]
    if out.suffix != ".safetensors":
        raise ValueError(f"{out} must end in .safetensors: the export is a single file.")
    card = out.with_suffix(".md")
    check_new(card)
    with replacing(card) as text, replacing(out) as file:
        text.write_text(write_single_file(source, file), encoding="utf-8")
    return [out, card]


def check_new(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} exists and is not overwritten. Give a new path.")


def check_fits(unet: UNetConfig, *, context_dim: int, latent_channels: int) -> None:
    """Raise ValueError if a U-Net does not fit its text encoder or autoencoder, or needs further inputs."""
    if unet.cross_attention_dim != context_dim:
        raise ValueError(
            f"The U-Net expects token embeddings of width {unet.cross_attention_dim}, but those of the text encoder have {context_dim}: "
            "they belong to different models."
        )
    if (unet.in_channels, unet.out_channels) != (latent_channels, latent_channels):
        raise ValueError(
            f"The U-Net has {unet.in_channels} input and {unet.out_channels} output channels, but the latents have {latent_channels}: "
            "models for inpainting, depth or upscaling are not supported."
        )
    if unet.sample_size is None:
        raise ValueError("`sample_size` is missing in config.json of the U-Net: add the side of its training images in latent pixels.")
