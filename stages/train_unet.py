"""train_unet: the denoiser, a cross-attention U-Net on cached latents.

Reads data/latents, and data/vae and data/clip for preview samples. Writes data/unet in diffusers'
layout (EMA of the weights), diffusion.json (schedule, prediction, sampling defaults), metrics.json, curves/ and samples.png.
`init:` starts from such a folder; `lora:` then trains an adapter, which is written to lora/ and merged into the published U-Net.
`steps: 0` uses the U-Net of `init` as it is.
"""

from pathlib import Path

import torch
from PIL import Image

from darkroom.config import TrainUnetParams
from darkroom.data.crops import LABEL_UNITS
from darkroom.data.latents import LatentShards
from darkroom.device import best_device
from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.models.autoencoder import load_autoencoder
from darkroom.models.layers import use_gradient_checkpointing
from darkroom.models.lora import add_lora, merge_lora, save_lora
from darkroom.models.unet import UNet2DConditionModel
from darkroom.models.weights import save_model
from darkroom.open_model import initial_part
from darkroom.previews import SamplePreview
from darkroom.provenance import check_made_with, photos_prepared_by, write_json
from darkroom.stage import Contract, Stage
from darkroom.training.diffusion_task import DiffusionTask
from darkroom.training.initial_models import channel_spread, initial_unet, only_caption
from darkroom.training.loop import Curves, train


def run(stage: Stage[TrainUnetParams]) -> None:
    folder, version = initial_part(stage.params.init, "unet")
    params, out = stage.params.model_copy(update={"init": folder}), stage.outs["unet"]
    latents, held_out = (LatentShards(stage.inputs["latents"], split) for split in ("train", "val"))
    vae = load_autoencoder(stage.inputs["vae"])
    unet = initial_unet(params, latents)
    init = unet.fingerprint() if params.init else ""
    parts = {part: stage.indexes[part]["content"] for part in ("vae", "clip")}
    if params.init:
        check_made_with(Path(params.init), parts)
    prepare(unet, params)
    diffusion = DiffusionConfig.from_params(
        params, only_caption=only_caption(params, latents), channel_spread=channel_spread(params, latents, vae)
    )
    preview = SamplePreview(
        unet,
        vae=vae,
        clip=stage.inputs["clip"],
        diffusion=diffusion,
        held_out=held_out,
        num=params.num_samples,
        batch_size=params.micro_batch,  # what fits in training fits here
    )

    def draw_samples(step: int, device: torch.device) -> None:
        samples = preview.grid(device)
        stage.tracker.log_image("samples", samples, step)
        if stage.is_main:
            Image.fromarray(samples).save(out / "samples.png")

    curves = Curves()
    if params.steps:
        task = DiffusionTask(unet, latents, held_out, params, vae=vae, schedule=diffusion.schedule, spread=diffusion.spread)
        curves = train(
            task,
            params,
            name=stage.name,
            scratch=stage.scratch / init,
            tracker=stage.tracker,
            draw_preview=draw_samples,
            preview_every=params.sample_every,
        )
    else:
        unet.to(best_device())
        draw_samples(0, best_device())
    if not stage.is_main:
        return
    unet.forget_labels()
    if params.lora.rank:
        save_lora(unet, out / "lora")
        merge_lora(unet)
    save_model(unet, out)
    diffusion.save(out)
    curves.write(out)
    write_json(out / "metrics.json", curves.last_validation())
    made_with = {part: content["weights"] for part, content in parts.items()}
    prepared_by = stage.indexes["latents"]["content"]["prepared_by"] if params.steps else photos_prepared_by(Path(params.init))
    stage.content["unet"] = {"init": init, "version": version, "made_with": made_with, "prepared_by": prepared_by}


def prepare(unet: UNet2DConditionModel, params: TrainUnetParams) -> None:
    """Add to a network what it has in training alone."""
    if params.gradient_checkpointing:
        use_gradient_checkpointing(unet)
    if params.lora.rank:
        add_lora(unet, **params.lora.model_dump(), seed=params.seed)
    if params.augmentation_labels:
        unet.learn_labels(len(LABEL_UNITS))


STAGE = Contract("train_unet", run, reads=("latents", "vae", "clip"), writes=("unet",))

if __name__ == "__main__":
    STAGE.main()
