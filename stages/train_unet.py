"""train_unet: the denoiser, a cross-attention U-Net on cached latents.

Reads data/latents, and data/vae and data/clip for the pictures it draws on the way. Writes data/unet in diffusers'
layout (averaged weights), diffusion.json (schedule, prediction, how to sample), metrics.json, curves/ and samples.png.
"""

import torch
from PIL import Image

from darkroom.config import TrainUnetParams
from darkroom.data.latents import LatentShards
from darkroom.diffusion.schedule import Schedule
from darkroom.evaluation.grid import picture_grid
from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import load_model, save_model
from darkroom.provenance import write_json
from darkroom.sampling import DiffusionConfig, TextToImage
from darkroom.stage import Stage, main
from darkroom.training.diffusion_task import DiffusionTask
from darkroom.training.loop import train


def run(stage: Stage[TrainUnetParams]) -> None:
    params = stage.params
    latents, held_out = (LatentShards(stage.inputs["latents"], split) for split in ("train", "val"))
    vae = load_model(AutoencoderKL, stage.inputs["vae"])
    unet = UNet2DConditionModel(unet_config(params, latents))
    unet.initialise(params.seed)
    diffusion = DiffusionConfig(
        schedule=Schedule.make(**params.schedule.model_dump()), prediction=params.prediction, **params.sampling.model_dump()
    )
    artist = TextToImage(
        vae=vae, unet=unet, clip=ClipTowers.load(stage.inputs["clip"]), config=diffusion, latent_shape=latents.latent_shape
    )
    prompts = [held_out.captions[index % len(held_out)] for index in range(params.num_samples)]

    def draw(step: int, device: torch.device) -> None:
        artist.vae.to(device)
        artist.clip.to(device)
        samples = picture_grid(artist.sample(prompts, seeds=range(len(prompts))), columns=8)
        stage.tracker.log_image("samples", samples, step)
        if stage.is_main:
            Image.fromarray(samples).save(stage.outs["unet"] / "samples.png")

    task = DiffusionTask(unet, latents, held_out, params, vae=vae, schedule=diffusion.schedule)
    curves = train(
        task, params, name=stage.name, scratch=stage.scratch, tracker=stage.tracker, pictures=draw, pictures_every=params.sample_every
    )
    if stage.is_main:
        save_model(unet, stage.outs["unet"])
        diffusion.save(stage.outs["unet"])
        curves.write(stage.outs["unet"])
        write_json(stage.outs["unet"] / "metrics.json", curves.last_validation())


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
