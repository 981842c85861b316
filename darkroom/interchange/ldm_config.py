"""The configuration of a single-file Stable Diffusion, derived from the shapes of its weights."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from darkroom.interchange.ldm_keys import UNET_PREFIX, VAE_PREFIX
from darkroom.interchange.text_encoder import model_cfg
from darkroom.models.autoencoder_kl import AutoencoderKLConfig
from darkroom.models.unet import DOWN_TYPES, UNetConfig

TRANSFORMERS_TEXT = "cond_stage_model.transformer."  # Stable Diffusion 1.x
OPEN_CLIP_TEXT = "cond_stage_model.model."  # 2.x
HEADS = 8  # of every attention of 1.x; the heads of 2.x and of both text encoders have HEAD_WIDTH channels
HEAD_WIDTH = 64
SCALING_FACTOR = 0.18215  # of the autoencoder of 1.x and 2.x; not in the files, their readers assume it

# pattern of a weight's name -> architecture or kind of file; the first match counts
OTHER_ARCHITECTURES = {
    r"^conditioner\.embedders\.|\blabel_emb\.": "Stable Diffusion XL",
    r"lora_(up|down|A|B|te|unet)|\.hada_w|\.lokr_": "a LoRA adapter, not a full model",
    r"^control_model\.|input_hint_block|controlnet_cond_embedding": "a ControlNet, not a full model",
    r"joint_blocks\.": "Stable Diffusion 3",
    r"(double|single)_blocks\.": "Flux",
    r"^(string_to_param|emb_params|clip_l$|clip_g$)": "a textual inversion (an embedding), not a full model",
    r"^(encoder|decoder)\.(conv_in|down|up)": "only an autoencoder",
    r"^(down_blocks|up_blocks|mid_block)\.": "one part of a pipeline folder; import the folder",
}


class Shapes:
    """Shapes of weights by name; a missing one raises an error for users."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, where: Path | str) -> None:
        self.shapes = {key.removeprefix(prefix): tuple(value.shape) for key, value in weights.items() if key.startswith(prefix)}
        self.prefix = prefix
        self.where = where

    def __getitem__(self, key: str) -> tuple[int, ...]:
        if key not in self.shapes:
            raise ValueError(f"{self.where}: `{self.prefix}{key}` is missing: this is not a complete Stable Diffusion 1.x or 2.x.")
        return self.shapes[key]

    def __contains__(self, key: str) -> bool:
        return key in self.shapes

    def count(self, pattern: str) -> int:
        """Number of different values of the group in `pattern`, over all names that start with it."""
        return len({match[1] for key in self.shapes if (match := re.match(pattern, key))})


def check_architecture(names: Iterable[str], where: Path | str) -> None:
    """Raise ValueError, with the kind of the file, if these are not the weights of a complete Stable Diffusion 1.x or 2.x."""
    names = list(names)
    for pattern, kind in OTHER_ARCHITECTURES.items():
        if found := next((name for name in names if re.search(pattern, name)), None):
            raise ValueError(f"{where} is {kind} (it has `{found}`); only Stable Diffusion 1.x and 2.x can be imported.")
    for prefix, part in ((UNET_PREFIX, "U-Net"), (VAE_PREFIX, "autoencoder"), ("cond_stage_model.", "text encoder")):
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"{where} has no {part} (`{prefix}*`): it is not a complete Stable Diffusion 1.x or 2.x.")


def unet_config(weights: Mapping[str, Tensor], where: Path | str, *, sample_size: int) -> UNetConfig:
    """
    Raises:
        ValueError: a required weight is missing, or the transformers have another depth.
    """
    shapes = Shapes(weights, UNET_PREFIX, where)
    levels = 1 + shapes.count(r"input_blocks\.(\d+)\.0\.op\.")
    layers = (shapes.count(r"input_blocks\.(\d+)\.") - levels) // levels
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    if "middle_block.1.transformer_blocks.1.norm1.weight" in shapes:
        raise ValueError(
            f"{where}: its transformers have more than one block, as in Stable Diffusion XL; only 1.x and 2.x can be imported."
        )
    widths = tuple(shapes[f"input_blocks.{first}.0.out_layers.3.weight"][0] for first in firsts)
    linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    return UNetConfig(
        sample_size=sample_size,
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        down_block_types=tuple(DOWN_TYPES[f"input_blocks.{first}.1.proj_in.weight" in shapes] for first in firsts),
        block_out_channels=widths,
        layers_per_block=layers,
        cross_attention_dim=shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        attention_head_dim=tuple(_heads(width, where) for width in widths) if linear else HEADS,
        use_linear_projection=linear,
    )


def vae_config(weights: Mapping[str, Tensor], where: Path | str, *, sample_size: int, scaling_factor: float) -> AutoencoderKLConfig:
    """
    Raises:
        ValueError: a required weight is missing.
    """
    shapes = Shapes(weights, VAE_PREFIX, where)
    levels = shapes.count(r"encoder\.down\.(\d+)\.")
    return AutoencoderKLConfig(
        in_channels=shapes["encoder.conv_in.weight"][1],
        out_channels=shapes["decoder.conv_out.weight"][0],
        block_out_channels=tuple(shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)),
        layers_per_block=shapes.count(r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=shapes["decoder.conv_in.weight"][1],
        sample_size=sample_size,
        scaling_factor=scaling_factor,
        use_quant_conv="quant_conv.weight" in shapes,
        use_post_quant_conv="post_quant_conv.weight" in shapes,
        mid_block_add_attention="encoder.mid.attn_1.q.weight" in shapes,
    )


def text_model_cfg(weights: Mapping[str, Tensor], where: Path | str, *, quick_gelu: bool) -> dict[str, Any]:
    """open_clip's description of the text encoder; `weights` have open_clip's names.

    Raises:
        ValueError: a required weight is missing.
    """
    shapes = Shapes(weights, "", where)
    context_length, width = shapes["positional_embedding"]
    return model_cfg(
        width=width,
        heads=_heads(width, where),
        layers=shapes.count(r"transformer\.resblocks\.(\d+)\."),
        context_length=context_length,
        mlp_ratio=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0] / width,
        quick_gelu=quick_gelu,
    )


def _heads(width: int, where: Path | str) -> int:
    if width % HEAD_WIDTH:
        raise ValueError(f"{where}: the width {width} is not a multiple of {HEAD_WIDTH}, the channels of an attention head in such files.")
    return width // HEAD_WIDTH
