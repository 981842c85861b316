"""Find a model in a folder, in the MLflow registry or on the Hugging Face hub, to draw with it or to train from it."""

from pathlib import Path

import torch

from darkroom.hub import PREFIX, download_folder
from darkroom.models.autoencoder import STORED_AS
from darkroom.sampling.text_to_image import TextToImage
from darkroom.tracking.registry import registered_folder, registered_version

REGISTERED = "models:/"  # what the names of registered versions begin with


def open_model(source: str | Path, device: torch.device | None = None) -> TextToImage:
    """Load a folder with clip/, vae/ and unet/ (e.g. data/), or a registered version: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        ValueError: a part is missing or damaged, the parts come from different runs, or the registry has no such version.
    """
    return TextToImage.load(model_folder(source), device)


def model_folder(source: str | Path) -> Path:
    """The folder of a model, without loading it."""
    return registered_folder(str(source)) if str(source).startswith(REGISTERED) else Path(source)


def find_model(source: str) -> tuple[Path, str]:
    """The folder of a model, and what it is called: a registered version by its number, because an alias moves, else the folder.

    Raises:
        ValueError: the registry has no such version.
    """
    if not source.startswith(REGISTERED):
        return Path(source), source
    version, folder = registered_version(source)
    return folder, version


def initial_part(source: str, part: str) -> tuple[str, str]:
    """Where training finds the part (clip, vae or unet) of a model that it starts from.

    Args:
        source: train_vae.init, train_unet.init or train_clip.pretrained.

    Returns:
        `source` and "", unless it names a registered version or a VAE on the hub. Then the folder of the part, and what it is called:
        `models:/NAME/VERSION` or `hf-hub:OWNER/NAME/FOLDER@COMMIT`, because an alias such as `champion` and a branch such as `main` move.

    Raises:
        ValueError: the registry has no such version; the VAE cannot be downloaded, or is none.
    """
    if source.startswith(REGISTERED):
        folder, version = find_model(source)
        return str(folder / part), version
    if part == "vae" and source.startswith(PREFIX):  # open_clip downloads CLIP by itself
        folder, version = download_folder(source, STORED_AS)
        return str(folder), version
    return source, ""
