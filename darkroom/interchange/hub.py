"""Models on the Hugging Face hub: only the files that a pipeline needs, through huggingface_hub's own cache."""

import re
from pathlib import Path

from darkroom.interchange.pipeline_reader import STEMS, weights_files

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CONFIGS = ("model_index.json", "scheduler/*.json", "tokenizer/*", "text_encoder/config.json", "unet/config.json", "vae/config.json")


def is_hub_id(source: str) -> bool:
    return HUB_ID.fullmatch(source) is not None


def download(hub_id: str) -> Path:
    """The folder of a pipeline in huggingface_hub's cache, downloaded where it is not there yet.

    Of each part the weights that are most wanted; half precision or pickles are asked for only where there is nothing better.

    Raises:
        ValueError: the hub has no such model, does not hand it out, or cannot be reached.
    """
    folder = _snapshot(hub_id, [*CONFIGS, *(f"{part}/{weights_files(part)[0]}" for part in STEMS)])
    for rank in range(1, max(len(weights_files(part)) for part in STEMS)):
        lacking = [part for part in STEMS if not any((folder / part / name).is_file() for name in weights_files(part))]
        if patterns := [f"{part}/{weights_files(part)[rank]}" for part in lacking if rank < len(weights_files(part))]:
            folder = _snapshot(hub_id, patterns)
    return folder


def _snapshot(hub_id: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{hub_id} is no file or folder here, and could not be had from the Hugging Face hub: {reason}") from error
