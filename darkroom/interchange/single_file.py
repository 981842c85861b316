"""A complete model in one file with the names of the latent-diffusion code, as ComfyUI, A1111 and `from_single_file` read it."""

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from darkroom import __version__
from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.interchange.foreign_weights import read_file_metadata, read_foreign_weights
from darkroom.interchange.ldm_config import (
    OPEN_CLIP_TEXT,
    SCALING_FACTOR,
    TRANSFORMERS_TEXT,
    check_architecture,
    text_model_cfg,
    unet_config,
    vae_config,
)
from darkroom.interchange.ldm_keys import UNET_PREFIX, VAE_PREFIX, unet_from_ldm, unet_to_ldm, vae_from_ldm, vae_to_ldm
from darkroom.interchange.model_card import Card, obstacles
from darkroom.interchange.scheduler import STABLE_DIFFUSION, has_betas, read_scheduler, scheduler_config
from darkroom.interchange.text_encoder import (
    model_cfg_from_transformers,
    open_clip_weights,
    plain_model_cfg,
    to_open_clip,
    transformers_text,
)
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, fold_scale
from darkroom.models.clip import ClipTowers
from darkroom.models.text_conditioning import TextConditioning
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import assemble
from darkroom.sampling.model_folder import ModelFolder

logger = logging.getLogger(__name__)

METADATA_KEY = "darkroom"  # metadata of files that we write: all configurations, so that nothing is derived from shapes
SAMPLE_SIZE = {"epsilon": 64, "v_prediction": 96}  # latent pixels; models with v_prediction were trained at 768 px
WHOLE_OPEN_CLIP_LAYERS = 24  # of ViT-H-14; a file that was converted from a pipeline folder has one less

# weights that sampling does not need
IGNORED = re.compile(
    r"(first_stage_model\.)?model_ema\..*|first_stage_model\.loss\..*|scale_factor|betas|alphas_cumprod(_prev)?|logvar|lvlb_weights"
    r"|sqrt_(one_minus_|recip_|recipm1_)?alphas_cumprod|log_one_minus_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
    r"|cond_stage_model\.(model\.)?(logit_scale|text_projection|attn_mask)"
    r"|cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids"
)


class SingleFile:
    """Reads one part at a time; weights stay on the disk until they are used."""

    def __init__(self, path: Path, prediction: str | None) -> None:
        """
        Args:
            path: .safetensors, or a pickle that holds tensors only.
            prediction: of the U-Net, for files that do not contain it; None = epsilon for 1.x.

        Raises:
            ValueError: another architecture, unexpected weights, or an unknown prediction.
        """
        self.path = path
        weights = read_foreign_weights(path)
        check_architecture(weights, path)
        parts = (UNET_PREFIX, VAE_PREFIX, TRANSFORMERS_TEXT, OPEN_CLIP_TEXT)
        self.weights = {key: value for key, value in weights.items() if not IGNORED.fullmatch(key)}
        if unexpected := [key for key in self.weights if not key.startswith(parts)]:
            raise ValueError(f"{path}: `{unexpected[0]}` is not a weight of Stable Diffusion ({len(unexpected)} in total).")
        logger.info(
            "%s: %d of %d tensors are not needed for sampling and are left out", path, len(weights) - len(self.weights), len(weights)
        )
        self.betas, self.scale_factor = weights.get("betas"), weights.get("scale_factor")
        self.is_transformers_text = any(key.startswith(TRANSFORMERS_TEXT) for key in self.weights)
        self.metadata = json.loads(read_file_metadata(path).get(METADATA_KEY, "null"))
        self.prediction = self._prediction(prediction)

    def _prediction(self, asked: str | None) -> str:
        if self.metadata is not None:
            if asked is not None:
                raise ValueError(f"{self.path} already defines its prediction; remove --prediction.")
            return str(self.metadata["scheduler"]["prediction_type"])
        if asked is None and not self.is_transformers_text:
            raise ValueError(
                f"{self.path} is a Stable Diffusion 2.x, whose files do not contain the prediction. Give --prediction epsilon (base "
                "models, 512 px) or --prediction v_prediction (768 px)."
            )
        if asked is not None and asked not in SAMPLE_SIZE:
            raise ValueError(f"--prediction {asked!r} is unknown; expected one of {', '.join(SAMPLE_SIZE)}.")
        return asked or "epsilon"

    def clip(self) -> ClipTowers:
        prefix = TRANSFORMERS_TEXT if self.is_transformers_text else OPEN_CLIP_TEXT
        weights = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
        if self.is_transformers_text:
            weights = to_open_clip(weights)
        if self.metadata:
            model_cfg, conditioning = self.metadata["text"]["model_cfg"], TextConditioning(**self.metadata["text"]["conditioning"])
        else:
            model_cfg = text_model_cfg(weights, self.path, quick_gelu=self.is_transformers_text)
            conditioning = self._conditioning(model_cfg["text_cfg"]["layers"])
        return ClipTowers.text_only(model_cfg, weights, conditioning=conditioning, where=self.path)

    def _conditioning(self, layers: int) -> TextConditioning:
        if self.is_transformers_text:
            return TextConditioning(layer="last", pad_token="end")
        return TextConditioning(layer="last" if layers == WHOLE_OPEN_CLIP_LAYERS - 1 else "penultimate", pad_token="zero")

    def vae(self) -> AutoencoderKL:
        if self.metadata:
            config = AutoencoderKLConfig(**self.metadata["vae"])
        else:
            config = vae_config(self.weights, self.path, sample_size=8 * SAMPLE_SIZE[self.prediction], scaling_factor=self._scale())
        return assemble(AutoencoderKL, config, vae_from_ldm(config, self.weights, where=self.path), where=self.path)

    def _scale(self) -> float:
        """The scale of the latents in training. Stable Diffusion's own is recognised if half precision has rounded it."""
        if self.scale_factor is None or self.scale_factor == torch.tensor(SCALING_FACTOR, dtype=self.scale_factor.dtype):
            return SCALING_FACTOR
        return round(float(self.scale_factor), 7)

    def unet(self) -> UNet2DConditionModel:
        if self.metadata:
            config = UNetConfig(**self.metadata["unet"])
        else:
            config = unet_config(self.weights, self.path, sample_size=SAMPLE_SIZE[self.prediction])
        return assemble(UNet2DConditionModel, config, unet_from_ldm(config, self.weights, where=self.path), where=self.path)

    def diffusion(self) -> DiffusionConfig:
        if self.metadata:
            return read_scheduler(self.metadata["scheduler"], self.path).model_copy(update=self.metadata["drawing"])
        diffusion = read_scheduler(STABLE_DIFFUSION | {"prediction_type": self.prediction}, self.path)
        if self.betas is not None and not has_betas(diffusion.schedule, self.betas):
            raise ValueError(f"{self.path}: `betas` are not those of Stable Diffusion; another schedule cannot be imported.")
        return diffusion


def write_single_file(model: ModelFolder, path: Path) -> str:
    """Write the weights and, as metadata, all configurations, so that `import_model` restores the same model.

    Returns:
        The text of the model card.

    Raises:
        ValueError: the format cannot express the model.
    """
    diffusion = model.diffusion()
    scheduler = scheduler_config(diffusion)
    text, weights = _text(model.clip())
    vae = fold_scale(model.vae_for_export(), SCALING_FACTOR)
    weights |= vae_to_ldm(vae.config, vae.state_dict())
    unet = model.unet()
    weights |= unet_to_ldm(unet.config, unet.state_dict())
    configurations = {
        "text": text,
        "vae": dataclasses.asdict(vae.config),
        "unet": dataclasses.asdict(unet.config),
        "scheduler": scheduler,
        "drawing": diffusion.defaults | {"only_caption": diffusion.only_caption},
    }
    metadata = {METADATA_KEY: json.dumps(configurations, sort_keys=True)}  # one entry, because safetensors writes several in random order
    save_file({key: value.detach().contiguous() for key, value in weights.items()}, path, metadata=metadata)
    assert unet.config.sample_size is not None, "every model folder has it"
    card = Card(__version__, unet.config.sample_size * vae.config.stride, diffusion, text["conditioning"]["pad_token"])
    return card.of_single_file(obstacles(diffusion, unet.config, vae.config, text))


def _text(clip: ClipTowers) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of the text encoder: transformers' names for the activation of 1.x, else open_clip's as in 2.x."""
    plain = plain_model_cfg(clip)
    if plain["quick_gelu"]:
        config, weights = transformers_text(clip)
        plain = model_cfg_from_transformers(config, "the text encoder")
        conditioning = TextConditioning(layer="last", pad_token=clip.conditioning.pad_token)
        named = {TRANSFORMERS_TEXT + key: value for key, value in weights.items()}
    else:
        conditioning = clip.conditioning
        named = {OPEN_CLIP_TEXT + key: value for key, value in open_clip_weights(clip).items()}
    return {"model_cfg": plain, "conditioning": dataclasses.asdict(conditioning)}, named
