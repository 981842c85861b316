"""A whole Stable Diffusion out of one file with the names of the latent-diffusion code (.safetensors or .ckpt)."""

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
from darkroom.diffusion.config import DiffusionConfig
from darkroom.interchange.foreign_weights import read_foreign_weights, read_metadata
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
from darkroom.models.autoencoder import AutoencoderConfig, AutoencoderKL, fold_scale
from darkroom.models.clip import ClipTowers
from darkroom.models.text_conditioning import TextConditioning
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import assemble
from darkroom.sampling.model_folder import ModelFolder

logger = logging.getLogger(__name__)

METADATA_KEY = "darkroom"  # in the head of files that we write: all configurations, so that nothing is guessed from shapes
SAMPLE_SIZE = {"epsilon": 64, "v_prediction": 96}  # latent pixels: models of velocity were trained at 768 px
WHOLE_OPEN_CLIP_LAYERS = 24  # of ViT-H-14; a file that went through a diffusers folder has one less

# what training leaves in a file and drawing does not need
IGNORED = re.compile(
    r"(first_stage_model\.)?model_ema\..*|first_stage_model\.loss\..*|scale_factor|betas|alphas_cumprod(_prev)?|logvar|lvlb_weights"
    r"|sqrt_(one_minus_|recip_|recipm1_)?alphas_cumprod|log_one_minus_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
    r"|cond_stage_model\.(model\.)?(logit_scale|text_projection|attn_mask)"
    r"|cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids"
)


class SingleFile:
    """Reads one part at a time; the weights stay on the disk until they are asked for."""

    def __init__(self, path: Path, prediction: str | None) -> None:
        """
        Args:
            path: .safetensors, or a pickle that holds tensors only.
            prediction: what the U-Net predicts, for files that do not say it; None = epsilon for 1.x.

        Raises:
            ValueError: another architecture, weights that nobody knows, or a prediction that is not known.
        """
        self.path = path
        weights = read_foreign_weights(path)
        check_architecture(weights, path)
        parts = (UNET_PREFIX, VAE_PREFIX, TRANSFORMERS_TEXT, OPEN_CLIP_TEXT)
        self.weights = {key: value for key, value in weights.items() if not IGNORED.fullmatch(key)}
        if strange := [key for key in self.weights if not key.startswith(parts)]:
            raise ValueError(f"{path}: `{strange[0]}` is no weight of Stable Diffusion 1.x or 2.x ({len(strange)} such).")
        logger.info("%s: %d of %d tensors are of no use for drawing and left out", path, len(weights) - len(self.weights), len(weights))
        self.betas, self.scale_factor = weights.get("betas"), weights.get("scale_factor")
        self.is_transformers_text = any(key.startswith(TRANSFORMERS_TEXT) for key in self.weights)
        self.said = json.loads(read_metadata(path).get(METADATA_KEY, "null"))
        self.prediction = self._prediction(prediction)

    def _prediction(self, asked: str | None) -> str:
        if self.said is not None:
            if asked is not None:
                raise ValueError(f"{self.path} says itself what it predicts; leave --prediction out.")
            return str(self.said["scheduler"]["prediction_type"])
        if asked is None and not self.is_transformers_text:
            raise ValueError(
                f"{self.path} is a Stable Diffusion 2.x, and its file does not say what it predicts. Give --prediction epsilon (the base "
                "models of 512 px) or --prediction v_prediction (those of 768 px)."
            )
        if asked is not None and asked not in SAMPLE_SIZE:
            raise ValueError(f"--prediction {asked!r} is not known; there are {', '.join(SAMPLE_SIZE)}.")
        return asked or "epsilon"

    def clip(self) -> ClipTowers:
        prefix = TRANSFORMERS_TEXT if self.is_transformers_text else OPEN_CLIP_TEXT
        weights = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
        if self.is_transformers_text:
            weights = to_open_clip(weights)
        if self.said:
            model_cfg, conditioning = self.said["text"]["model_cfg"], TextConditioning(**self.said["text"]["conditioning"])
        else:
            model_cfg = text_model_cfg(weights, self.path, quick_gelu=self.is_transformers_text)
            conditioning = self._conditioning(model_cfg["text_cfg"]["layers"])
        return ClipTowers.text_only(model_cfg, weights, conditioning=conditioning, where=self.path)

    def _conditioning(self, layers: int) -> TextConditioning:
        if self.is_transformers_text:
            return TextConditioning(layer="last", pad_token="end")
        return TextConditioning(layer="last" if layers == WHOLE_OPEN_CLIP_LAYERS - 1 else "penultimate", pad_token="zero")

    def vae(self) -> AutoencoderKL:
        if self.said:
            config = AutoencoderConfig(**self.said["vae"])
        else:
            config = vae_config(self.weights, self.path, sample_size=8 * SAMPLE_SIZE[self.prediction], scaling_factor=self._scale())
        return assemble(AutoencoderKL, config, vae_from_ldm(config, self.weights, where=self.path), where=self.path)

    def _scale(self) -> float:
        """The latents' scale that the file was trained with; where half precision has rounded Stable Diffusion's, that one is meant."""
        if self.scale_factor is None or self.scale_factor == torch.tensor(SCALING_FACTOR, dtype=self.scale_factor.dtype):
            return SCALING_FACTOR
        return round(float(self.scale_factor), 7)

    def unet(self) -> UNet2DConditionModel:
        if self.said:
            config = UNetConfig(**self.said["unet"])
        else:
            config = unet_config(self.weights, self.path, sample_size=SAMPLE_SIZE[self.prediction])
        return assemble(UNet2DConditionModel, config, unet_from_ldm(config, self.weights, where=self.path), where=self.path)

    def diffusion(self) -> DiffusionConfig:
        if self.said:
            return read_scheduler(self.said["scheduler"], self.path).model_copy(update=self.said["drawing"])
        diffusion = read_scheduler(STABLE_DIFFUSION | {"prediction_type": self.prediction}, self.path)
        if self.betas is not None and not has_betas(diffusion.schedule, self.betas):
            raise ValueError(f"{self.path}: its `betas` are not those of Stable Diffusion; single files of another schedule are not read.")
        return diffusion


def write_single_file(model: ModelFolder, path: Path) -> str:
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
