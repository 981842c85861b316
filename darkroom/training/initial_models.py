"""The autoencoder and the U-Net that training starts from: those of `init`, or new ones."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import torch

from darkroom.config import TrainUnetParams, TrainVaeParams
from darkroom.data.latents import LatentShards
from darkroom.diffusion.diffusion_config import DIFFUSION_FILE, DiffusionConfig
from darkroom.models.autoencoder import Autoencoder, load_autoencoder
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.linear_autoencoder import LinearAutoencoder, LinearAutoencoderConfig
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import load_model

SPREAD_PHOTOS = 2048  # whose latents are looked at, in the order of their keys, which are hashes

logger = logging.getLogger(__name__)


def initial_vae(params: TrainVaeParams, *, size: int) -> Autoencoder:
    """The VAE of `init`, or a new one, for photos of `size` px. A linear one is still to be fitted, see `fit_linear`.

    Raises:
        ValueError: photos that do not divide into latents.
    """
    vae: Autoencoder
    if params.init:
        vae = load_autoencoder(params.init) if params.kind == "pretrained" else load_model(AutoencoderKL, params.init)
    elif params.kind == "linear":
        vae = LinearAutoencoder(LinearAutoencoderConfig(sample_size=size, **params.linear.model_dump()))
    else:
        model = params.model.model_dump() | {"block_out_channels": tuple(params.model.block_out_channels)}
        vae = AutoencoderKL(AutoencoderKLConfig(sample_size=size, **model))
        vae.initialise(params.seed)
    if size % vae.config.stride:
        raise ValueError(
            f"ingest.side is {size} px, but this VAE needs a multiple of {vae.config.stride}: that many pixels become one latent pixel."
        )
    return vae


def check_hash(vae: str, params: TrainVaeParams) -> None:
    """Refuse a VAE of `init` that is not the one that `init_sha256` says.

    Args:
        vae: its fingerprint.

    Raises:
        ValueError: the two differ.
    """
    if params.init_sha256 not in ("", vae):
        raise ValueError(
            f"The VAE of `train_vae.init` ({params.init}) has the hash {vae}, but `train_vae.init_sha256` is {params.init_sha256}: its "
            "weights or its configuration are others (it is not the hash of a file). Get the right one, or, if you want this one, set "
            f"train_vae.init_sha256: {vae}"
        )


def initial_unet(params: TrainUnetParams, latents: LatentShards) -> UNet2DConditionModel:
    """The U-Net of `init`, or a new one, for these latents and token embeddings.

    Raises:
        ValueError: a U-Net that was trained with another schedule or prediction than `params` have, or for other latents or token
            embeddings; latents that cannot be halved often enough.
    """
    if params.init:
        folder = Path(params.init)
        _check_diffusion(DiffusionConfig.from_params(params), folder)
        unet = load_model(UNet2DConditionModel, folder)
        _check_shapes(unet.config, latents, folder)
        unet.config = replace(unet.config, sample_size=latents.latent_shape[1])
        return unet
    unet = UNet2DConditionModel(_new_config(params, latents))
    unet.initialise(params.seed)
    return unet


def only_caption(params: TrainUnetParams, latents: LatentShards) -> str | None:
    """The caption of all training photos if the U-Net will know no other one, with a warning; None if prompts can steer it.

    The U-Net of `init` may have learned other captions before. Without steps, what it knows stays as it is.
    """
    before = DiffusionConfig.load(Path(params.init)).only_caption if params.init else None
    if params.steps == 0:
        return before
    captions = set(latents.captions)
    if len(captions) > 1 or (params.init and before is None):
        return None
    (caption,) = captions
    logger.warning("All %d training photos have the caption %r: prompts will steer nothing, and guidance is off", len(latents), caption)
    return caption


def channel_spread(params: TrainUnetParams, latents: LatentShards, vae: Autoencoder) -> list[float] | None:
    """Root mean square of each channel of the normalised latents, for prediction "preconditioned"; else None.

    That of the U-Net of `init` stays, whatever the new photos are: its weights were trained with it.
    """
    if params.init:
        return DiffusionConfig.load(Path(params.init)).channel_spread
    if params.prediction != "preconditioned":
        return None
    chosen = range(min(len(latents), SPREAD_PHOTOS))
    mean, std = torch.from_numpy(latents.moments(chosen, [0] * len(chosen))).double().unbind(1)
    square = vae.normalise(mean).square() + (std * vae.config.scaling_factor).square()
    return list(square.mean((0, 2, 3)).sqrt().tolist())


def _check_diffusion(wanted: DiffusionConfig, folder: Path) -> None:
    """Refuse a U-Net that was trained with another schedule or prediction."""
    trained = DiffusionConfig.load(folder)
    keys = ["kind", "num_train_timesteps", "zero_terminal_snr"]
    if trained.schedule.kind not in ("cosine", "flow"):  # these do not use betas
        keys += ["beta_start", "beta_end"]
    pairs = {f"schedule.{key}": (getattr(trained.schedule, key), getattr(wanted.schedule, key)) for key in keys}
    pairs["prediction"] = (trained.prediction, wanted.prediction)
    if differing := [f"{key}: {json.dumps(theirs)}" for key, (theirs, ours) in pairs.items() if theirs != ours]:
        raise ValueError(
            f"{folder / DIFFUSION_FILE}: the U-Net of train_unet.init was trained with other values than train_unet has. "
            f"In train_unet set {', '.join(differing)}."
        )


def _check_shapes(config: UNetConfig, latents: LatentShards, folder: Path) -> None:
    """Refuse a U-Net that was built for another VAE, another text encoder or larger photos."""
    channels, side, _ = latents.latent_shape
    if (config.in_channels, config.out_channels) != (channels, channels):
        raise ValueError(
            f"The U-Net of train_unet.init ({folder}) has {config.in_channels} input and {config.out_channels} output channels, but the "
            f"latents of data/vae have {channels}. Set train_vae.init to the VAE that belongs to it; inpainting U-Nets cannot be trained."
        )
    width = latents.empty_context.shape[-1]
    if config.cross_attention_dim != width:
        raise ValueError(
            f"The U-Net of train_unet.init ({folder}) attends to token embeddings of width {config.cross_attention_dim}, but those of "
            f"data/clip have {width}. Set train_clip.mode: pretrained and train_clip.pretrained to the text encoder that belongs to it."
        )
    halvings = len(config.block_out_channels) - 1
    if side % 2**halvings:
        raise ValueError(
            f"The latents are {side} wide, but the U-Net of train_unet.init ({folder}) halves them {halvings} times. "
            f"Choose an ingest.side that gives latents of a multiple of {2**halvings}."
        )


def _new_config(params: TrainUnetParams, latents: LatentShards) -> UNetConfig:
    """The configuration of a new U-Net, as `params` describe it, for these latents and token embeddings."""
    model = params.model
    channels, side, _ = latents.latent_shape
    halvings = len(model.block_out_channels) - 1
    if side % 2**halvings:
        raise ValueError(f"The latents are {side} wide, but train_unet.model halves them {halvings} times: remove a level.")
    return UNetConfig.from_levels(
        block_out_channels=model.block_out_channels,
        attention=model.attention,
        layers_per_block=model.layers_per_block,
        channels_per_head=model.attention_head_dim,
        norm_num_groups=model.norm_num_groups,
        latent_channels=channels,
        latent_size=side,
        context_dim=latents.empty_context.shape[-1],
    )
