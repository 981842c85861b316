"""Models on the Hugging Face hub: only the files that a pipeline needs, through huggingface_hub's own cache."""

import re
from pathlib import Path

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PATTERNS = ("model_index.json", "scheduler/*.json", "tokenizer/*", "text_encoder/config.json", "unet/config.json", "vae/config.json")
FULL = ("text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors")


def is_hub_id(source: str) -> bool:
    return HUB_ID.fullmatch(source) is not None


def download(hub_id: str) -> Path:
    """The folder of a pipeline in huggingface_hub's cache, downloaded where it is not there yet.

    Raises:
        ValueError: the hub has no such model, does not hand it out, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[*PATTERNS, *FULL]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{hub_id} is no file or folder here, and could not be had from the Hugging Face hub: {reason}") from error
