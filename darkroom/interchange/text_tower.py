"""The text tower alone, as other programs know it: transformers' text encoder, or open_clip's names without the rest of CLIP."""

from typing import Any

from torch import Tensor

from darkroom.models.clip import ClipTowers
from darkroom.models.text_keys import VOCAB_SIZE, model_cfg, to_transformers, transformers_config

SHAPE = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
UNUSED = ("proj_type", "proj_bias", "pool_type", "pad_id", "eos_id", "output_tokens")  # of the space shared with pictures
OUTSIDE = ("visual.", "text_projection", "logit_scale", "logit_bias")  # weights, likewise


def plain_model_cfg(clip: ClipTowers) -> dict[str, Any]:
    """open_clip's description of the text tower without the rest.

    Raises:
        ValueError: the tower has something that CLIP's own has not, so that no other program would build it.
    """
    text = clip.model_cfg["text_cfg"]
    if strange := [key for key, value in text.items() if key not in (*SHAPE, *UNUSED) and value]:
        raise ValueError(f"The text tower has `{strange[0]}: {text[strange[0]]!r}`, which CLIP's own has not: it cannot be exported.")
    if clip.model.vocab_size != VOCAB_SIZE:
        raise ValueError(f"The text tower knows {clip.model.vocab_size} tokens, CLIP's own {VOCAB_SIZE}: it cannot be exported.")
    return model_cfg(
        width=text["width"],
        heads=text["heads"],
        layers=text["layers"],
        context_length=clip.context_length,
        mlp_ratio=text.get("mlp_ratio", 4.0),
        quick_gelu=clip.model_cfg.get("quick_gelu", False),
    )


def open_clip_weights(clip: ClipTowers) -> dict[str, Tensor]:
    """All layers of the text tower, under open_clip's names."""
    return {key: value for key, value in clip.model.state_dict().items() if not key.startswith(OUTSIDE)}


def transformers_text(clip: ClipTowers) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of the `CLIPTextModel` whose last hidden state is what the U-Net was given.

    transformers stores as many layers as are used: a penultimate hidden state is the last one of a tower with a layer less.
    """
    plain = plain_model_cfg(clip)
    layers = plain["text_cfg"]["layers"] - (clip.conditioning.layer == "penultimate")
    return transformers_config(plain, num_layers=layers), to_transformers(clip.model.state_dict(), num_layers=layers)
