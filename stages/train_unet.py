"""train_unet: the denoiser, a cross-attention U-Net on cached latents.

Reads data/latents, and data/vae and data/clip for the pictures it draws on the way. Writes data/unet in diffusers'
layout (averaged weights), diffusion.json (schedule, prediction, how to sample), metrics.json, curves/ and samples.png.
`init:` starts from such a folder, with `lora:` by training matrices beside its weights, which are written to lora/ and
merged into the published U-Net; `steps: 0` uses it as it is.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from darkroom.config import TrainUnetParams
from darkroom.data.latents import LatentShards
from darkroom.device import best_device
from darkroom.diffusion.schedule import Schedule
from darkroom.evaluation.grid import picture_grid
from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.layers import use_gradient_checkpointing
from darkroom.models.lora import add_lora, merge_lora, save_lora
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import hash_init, load_model, save_model
from darkroom.provenance import write_json
from darkroom.sampling.model_folder import DIFFUSION, DiffusionConfig
from darkroom.sampling.text_to_image import TextToImage
from darkroom.stage import Stage, main
from darkroom.training.diffusion_task import DiffusionTask
from darkroom.training.loop import Curves, train


def run(stage: Stage[TrainUnetParams]) -> None:
    params = stage.params
    latents, held_out = (LatentShards(stage.inputs["latents"], split) for split in ("train", "val"))
    vae = load_model(AutoencoderKL, stage.inputs["vae"])
    unet, init = load_or_build(params, latents), hash_init(params.init)
    if params.gradient_checkpointing:
        use_gradient_checkpointing(unet)
    if params.lora.rank:
        add_lora(unet, **params.lora.model_dump(), seed=params.seed)
    diffusion = DiffusionConfig(schedule=schedule_of(params), prediction=params.prediction, **params.sampling.model_dump())
    artist = TextToImage(
        vae=vae, unet=unet, clip=ClipTowers.load(stage.inputs["clip"]), config=diffusion, latent_shape=latents.latent_shape
    )
    prompts = [held_out.captions[index % len(held_out)] for index in range(params.num_samples)]

    def draw(step: int, device: torch.device) -> None:
        artist.vae.to(device)
        artist.clip.to(device)
        samples = picture_grid(artist.sample(prompts, seeds=range(len(prompts)), batch_size=params.micro_batch), columns=8)
        stage.tracker.log_image("samples", samples, step)
        if stage.is_main:
            Image.fromarray(samples).save(stage.outs["unet"] / "samples.png")

    curves = Curves()
    if params.steps:
        task = DiffusionTask(unet, latents, held_out, params, vae=vae, schedule=diffusion.schedule)
        curves = train(
            task,
            params,
            name=stage.name,
            scratch=stage.scratch / init,
            tracker=stage.tracker,
            pictures=draw,
            pictures_every=params.sample_every,
        )
    else:
        unet.to(best_device())
        draw(0, best_device())
    if stage.is_main:
        publish(unet, stage.outs["unet"], lora=params.lora.rank > 0)
        diffusion.save(stage.outs["unet"])
        curves.write(stage.outs["unet"])
        write_json(stage.outs["unet"] / "metrics.json", curves.last_validation())
        stage.content["unet"] = {"init": init}


def load_or_build(params: TrainUnetParams, latents: LatentShards) -> UNet2DConditionModel:
    """The U-Net of `init`, or a new one.

    Raises:
        ValueError: nothing to use as it is; a U-Net that was trained with another schedule or prediction than params say, or for
            other latents or token embeddings; latents that cannot be halved often enough.
    """
    if params.init:
        folder = Path(params.init)
        check_diffusion(params, DiffusionConfig.load(folder), folder)
        unet = load_model(UNet2DConditionModel, folder)
        check_shapes(unet.config, latents, folder)
        unet.config = replace(unet.config, sample_size=latents.latent_shape[1])
        return unet
    if params.steps == 0:
        raise ValueError("train_unet.steps is 0 and train_unet.init is empty: name the folder of a U-Net to use as it is, or train one.")
    unet = UNet2DConditionModel(unet_config(params, latents))
    unet.initialise(params.seed)
    return unet


def schedule_of(params: TrainUnetParams) -> Schedule:
    return Schedule.make(**params.schedule.model_dump())


def check_diffusion(params: TrainUnetParams, trained: DiffusionConfig, folder: Path) -> None:
    """Refuses to go on with another question than the one that the U-Net of `folder` has learned to answer."""
    wanted = schedule_of(params)
    keys = ["kind", "num_train_timesteps", "zero_terminal_snr"]
    if trained.schedule.kind not in ("cosine", "flow"):  # these have no use for betas
        keys += ["beta_start", "beta_end"]
    differing = [f"schedule.{key}: {json.dumps(told)}" for key in keys if (told := getattr(trained.schedule, key)) != getattr(wanted, key)]
    if trained.prediction != params.prediction:
        differing.append(f"prediction: {json.dumps(trained.prediction)}")
    if differing:
        raise ValueError(
            f"{folder / DIFFUSION} says how that U-Net was trained, and train_unet says something else. "
            f"In train_unet set {', '.join(differing)}."
        )


def check_shapes(config: UNetConfig, latents: LatentShards, folder: Path) -> None:
    """Refuses a U-Net that was built for another VAE, another text tower or larger pictures."""
    channels, side, _ = latents.latent_shape
    if (config.in_channels, config.out_channels) != (channels, channels):
        raise ValueError(
            f"The U-Net of train_unet.init ({folder}) takes {config.in_channels} channels and gives {config.out_channels}, but the "
            f"latents of data/vae have {channels}. Set train_vae.init to the VAE that belongs to it; inpainting U-Nets are not trained."
        )
    width = latents.empty_context.shape[-1]
    if config.cross_attention_dim != width:
        raise ValueError(
            f"The U-Net of train_unet.init ({folder}) attends to token embeddings of width {config.cross_attention_dim}, but those of "
            f"data/clip have {width}. Set train_clip.mode: pretrained and train_clip.pretrained to the text tower that belongs to it."
        )
    halvings = len(config.block_out_channels) - 1
    if side % 2**halvings:
        raise ValueError(
            f"The latents are {side} wide, but the U-Net of train_unet.init ({folder}) halves them {halvings} times. "
            f"Choose an ingest.side that gives latents of a multiple of {2**halvings}."
        )


def publish(unet: UNet2DConditionModel, folder: Path, *, lora: bool) -> None:
    """Writes the U-Net, and the matrices that were trained beside it before they become part of it."""
    if lora:
        save_lora(unet, folder / "lora")
        merge_lora(unet)
    save_model(unet, folder)


def unet_config(params: TrainUnetParams, latents: LatentShards) -> UNetConfig:
    """The config of the U-Net that params describe, for these latents and token embeddings."""
    model = params.model
    channels, side, _ = latents.latent_shape
    halvings = 2 ** (len(model.block_out_channels) - 1)
    if side % halvings:
        raise ValueError(
            f"The latents are {side} wide, but train_unet.model halves them {len(model.block_out_channels) - 1} times: drop a level."
        )
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


if __name__ == "__main__":
    main("train_unet", run, reads=("latents", "vae", "clip"), writes=("unet",))
