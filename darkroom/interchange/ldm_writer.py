"""A model of ours as one file with the names of the latent-diffusion code, as ComfyUI, A1111 and `from_single_file` read it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from darkroom import __version__
from darkroom.interchange.latent_scale import fold_scale
from darkroom.interchange.ldm_config import OPEN_CLIP_TEXT, SCALING_FACTOR, TRANSFORMERS_TEXT
from darkroom.interchange.ldm_reader import METADATA_KEY
from darkroom.interchange.model_card import Card
from darkroom.interchange.scheduler import scheduler_config
from darkroom.interchange.single_file_tools import obstacles
from darkroom.interchange.source import Source
from darkroom.interchange.text_tower import open_clip_weights, plain_model_cfg, transformers_text
from darkroom.models.clip import ClipTowers
from darkroom.models.ldm_keys import unet_to_ldm, vae_to_ldm
from darkroom.models.text_conditioning import TextConditioning
from darkroom.models.text_keys import model_cfg_from_transformers


def write_single_file(model: Source, path: Path) -> str:
    """Writes the weights and, in the head of the file, all configurations, so that `import_model` gives the same model back.

    Returns:
        The text of a model card, which says what single-file tools will do with it.

    Raises:
        ValueError: the model has something that the format cannot express.
    """
    diffusion = model.diffusion()
    scheduler = scheduler_config(diffusion)
    text, weights = _text(model.clip())
    vae = fold_scale(model.vae(), SCALING_FACTOR)
    weights |= vae_to_ldm(vae.config, vae.state_dict())
    unet = model.unet()
    weights |= unet_to_ldm(unet.config, unet.state_dict())
    said = {
        "text": text,
        "vae": dataclasses.asdict(vae.config),
        "unet": dataclasses.asdict(unet.config),
        "scheduler": scheduler,
        "drawing": {name: getattr(diffusion, name) for name in ("sampler", "steps", "guidance_scale", "spacing")},
    }
    metadata = {METADATA_KEY: json.dumps(said, sort_keys=True)}  # one entry: safetensors writes several in any order
    save_file({key: value.detach().contiguous() for key, value in weights.items()}, path, metadata=metadata)
    assert unet.config.sample_size is not None, "every model folder has it"
    card = Card(__version__, unet.config.sample_size * vae.config.stride, diffusion, text["conditioning"]["pad_token"])
    return card.of_single_file(obstacles(diffusion, unet.config, vae.config, text))


def _text(clip: ClipTowers) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What to say of the text tower, and its weights: transformers' names where it has 1.x's activation, else open_clip's as in 2.x."""
    plain = plain_model_cfg(clip)
    if plain["quick_gelu"]:
        config, weights = transformers_text(clip)
        plain = model_cfg_from_transformers(config, "the text tower")
        conditioning = TextConditioning(layer="last", pad_token=clip.conditioning.pad_token)
        named = {TRANSFORMERS_TEXT + key: value for key, value in weights.items()}
    else:
        conditioning = clip.conditioning
        named = {OPEN_CLIP_TEXT + key: value for key, value in open_clip_weights(clip).items()}
    return {"model_cfg": plain, "conditioning": dataclasses.asdict(conditioning)}, named
