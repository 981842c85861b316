"""CLIP's text encoder in the formats of transformers (`CLIPTextModel`) and of open_clip, which is ours. Both ways, bit for bit.

transformers stores query, key and value separately, open_clip in one stacked matrix; everything else differs in names only.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darkroom.models.clip import VOCAB_SIZE, ClipTowers

START_ID, END_ID = VOCAB_SIZE - 2, VOCAB_SIZE - 1
IGNORED = ("embeddings.position_ids",)  # 0, 1, 2, ...: a buffer in files of old versions

# transformers -> open_clip
OUTER = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
INNER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
ACTIVATIONS = {"quick_gelu": True, "gelu": False}  # transformers' name -> open_clip's `quick_gelu`
SHAPE = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
UNUSED = ("proj_type", "proj_bias", "pool_type", "pad_id", "eos_id", "output_tokens")  # of the space shared with images
OUTSIDE = ("visual.", "text_projection", "logit_scale", "logit_bias")  # weights, likewise


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `CLIPTextModel`, with or without the prefix `text_model.`, with open_clip's names.

    Unknown names stay, and incomplete stacks are left out, so that strict loading reports them.
    """
    weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key in IGNORED:
            continue
        if key in OUTER:
            renamed[OUTER[key]] = value
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
            layer, name, kind = match.groups()
            block = f"transformer.resblocks.{layer}"
            if name in INNER:
                renamed[f"{block}.{INNER[name]}.{kind}"] = value
            elif name == "self_attn.q_proj":
                stack = [f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"]
                if all(part in weights for part in stack):
                    renamed[f"{block}.attn.in_proj_{kind}"] = torch.cat([weights[part] for part in stack])
            elif name not in ("self_attn.k_proj", "self_attn.v_proj"):
                renamed[key] = value
        else:
            renamed[key] = value
    return renamed


def to_transformers(weights: Mapping[str, Tensor], *, num_layers: int) -> dict[str, Tensor]:
    """The first `num_layers` layers of open_clip's text encoder with the names of `CLIPTextModel`.

    The image encoder and the projections into the shared space are left out.
    """
    outer = {ours: theirs for theirs, ours in OUTER.items()}
    inner = {ours: theirs for theirs, ours in INNER.items()}
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key in outer:
            renamed[f"text_model.{outer[key]}"] = value
        elif match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", key):
            layer, name, kind = match.groups()
            if int(layer) >= num_layers:
                continue
            prefix = f"text_model.encoder.layers.{layer}"
            if name == "attn.in_proj":
                for part, rows in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"{prefix}.self_attn.{part}_proj.{kind}"] = rows
            else:
                renamed[f"{prefix}.{inner[name]}.{kind}"] = value
    return renamed


def model_cfg_from_transformers(config: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """open_clip's description of the text encoder that a `CLIPTextConfig` describes.

    Raises:
        ValueError: a missing field, or a variant that is not CLIP's text encoder.
    """
    needed = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings", "vocab_size")
    if missing := [name for name in needed if name not in config]:
        raise ValueError(f"{where}: `{missing[0]}` is missing; expected the configuration of a CLIPTextModel of transformers.")
    activation, eps = config.get("hidden_act", "quick_gelu"), config.get("layer_norm_eps", 1e-5)
    for name, value, known in (
        ("hidden_act", activation, tuple(ACTIVATIONS)),
        ("layer_norm_eps", eps, (1e-5,)),
        ("vocab_size", config["vocab_size"], (VOCAB_SIZE,)),
    ):
        if value not in known:
            raise ValueError(f"{where}: `{name}` is {value!r}; CLIP's text encoder has {' or '.join(map(str, known))}.")
    return model_cfg(
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        layers=config["num_hidden_layers"],
        context_length=config["max_position_embeddings"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        quick_gelu=ACTIVATIONS[activation],
    )


def model_cfg(*, width: int, heads: int, layers: int, context_length: int, mlp_ratio: float, quick_gelu: bool) -> dict[str, Any]:
    """open_clip's description of a text encoder without an image encoder."""
    text_cfg = {
        "context_length": context_length,
        "vocab_size": VOCAB_SIZE,
        "width": width,
        "heads": heads,
        "layers": layers,
        "mlp_ratio": mlp_ratio,
        "proj_type": "none",
    }
    return {"embed_dim": width, "quick_gelu": quick_gelu, "vision_cfg": None, "text_cfg": text_cfg}


def transformers_config(model_cfg: Mapping[str, Any], *, num_layers: int) -> dict[str, Any]:
    """The configuration of transformers' `CLIPTextModel` for the first `num_layers` layers of an open_clip text encoder."""
    text = model_cfg["text_cfg"]
    activation = next(name for name, quick in ACTIVATIONS.items() if quick == model_cfg.get("quick_gelu", False))
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "attention_dropout": 0.0,
        "bos_token_id": START_ID,
        "eos_token_id": END_ID,
        "pad_token_id": 1,  # transformers' default, which the model does not use: the tokenizer pads
        "hidden_act": activation,
        "hidden_size": text["width"],
        "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0)),
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": text["context_length"],
        "num_attention_heads": text["heads"],
        "num_hidden_layers": num_layers,
        "projection_dim": model_cfg["embed_dim"],
        "torch_dtype": "float32",
        "vocab_size": text["vocab_size"],
    }


def plain_model_cfg(clip: ClipTowers) -> dict[str, Any]:
    """open_clip's description of the text encoder alone.

    Raises:
        ValueError: it differs from CLIP's own in a way that other programs cannot build.
    """
    text = clip.model_cfg["text_cfg"]
    if unexpected := [key for key, value in text.items() if key not in (*SHAPE, *UNUSED) and value]:
        raise ValueError(f"The text encoder cannot be exported: CLIP's own does not have `{unexpected[0]}: {text[unexpected[0]]!r}`.")
    if clip.model.vocab_size != VOCAB_SIZE:
        raise ValueError(f"The text encoder cannot be exported: it has {clip.model.vocab_size} tokens, CLIP's own has {VOCAB_SIZE}.")
    return model_cfg(
        width=text["width"],
        heads=text["heads"],
        layers=text["layers"],
        context_length=clip.context_length,
        mlp_ratio=text.get("mlp_ratio", 4.0),
        quick_gelu=clip.model_cfg.get("quick_gelu", False),
    )


def open_clip_weights(clip: ClipTowers) -> dict[str, Tensor]:
    """All layers of the text encoder, with open_clip's names."""
    return {key: value for key, value in clip.model.state_dict().items() if not key.startswith(OUTSIDE)}


def transformers_text(clip: ClipTowers) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of the `CLIPTextModel` whose last hidden state conditions the U-Net.

    The penultimate hidden state is the last one of a text encoder with one layer less, so that layer is left out.
    """
    plain = plain_model_cfg(clip)
    layers = plain["text_cfg"]["layers"] - (clip.conditioning.layer == "penultimate")
    return transformers_config(plain, num_layers=layers), to_transformers(clip.model.state_dict(), num_layers=layers)
