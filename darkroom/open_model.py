"""Open a model from a folder or from the MLflow registry."""

from pathlib import Path

import torch

from darkroom.sampling.text_to_image import TextToImage
from darkroom.tracking.registry import registered_folder


def open_model(source: str | Path, device: torch.device | None = None) -> TextToImage:
    """Load a folder with clip/, vae/ and unet/ (e.g. data/), or a registered version: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        ValueError: a part is missing or damaged, the parts come from different runs, or the registry has no such version.
    """
    return TextToImage.load(model_folder(source), device)


def model_folder(source: str | Path) -> Path:
    """The folder of a model, without loading it."""
    return registered_folder(str(source)) if str(source).startswith("models:/") else Path(source)
