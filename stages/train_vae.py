"""train_vae: the autoencoder between pictures and latents, trained by the evidence lower bound.

Reads data/shards. Writes data/vae in diffusers' layout (config.json with the measured scale and shift of the latents,
diffusion_pytorch_model.safetensors), likelihood.json, metrics.json, curves/ and reconstructions.png. `init:` starts from such a folder;
`steps: 0` uses it as it is.
"""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from darkroom.config import TrainVaeParams
from darkroom.data.shards import ImageShards
from darkroom.device import best_device
from darkroom.evaluation.reconstruction import reconstruction_metrics
from darkroom.models.autoencoder import AutoencoderConfig, AutoencoderKL
from darkroom.models.weights import hash_init, load_model, save_model
from darkroom.pixels import map_pictures, picture_grid
from darkroom.provenance import write_json
from darkroom.stage import Stage, main
from darkroom.training.latent_scale import measure_latents
from darkroom.training.loop import train
from darkroom.training.vae_task import VaeTask

METRIC_PICTURES = 1024  # held-out photos that PSNR and SSIM are measured on, at most


def run(stage: Stage[TrainVaeParams]) -> None:
    params = stage.params
    photos, held_out = (ImageShards(stage.inputs["shards"], split) for split in ("train", "val"))
    vae, init = load_or_build(params, size=photos.size), hash_init(params.init)

    def log_reconstructions(step: int, device: torch.device) -> None:
        stage.tracker.log_image(
            "reconstructions", reconstruction_grid(vae, held_out, params.num_pictures, params.micro_batch, device), step
        )

    task = VaeTask(vae, photos, held_out, params)
    curves = train(task, params, name=stage.name, scratch=stage.scratch / init, tracker=stage.tracker, pictures=log_reconstructions)
    if not stage.is_main:
        return
    device = best_device()
    vae.to(device)
    if params.steps or not params.init:  # a VAE taken as it is keeps its own numbers
        scale, shift = measure_latents(vae, photos, device)
        vae.config = replace(vae.config, scaling_factor=scale, shift_factor=shift)
    out = stage.outs["vae"]
    save_model(vae, out)
    write_json(out / "likelihood.json", task.net.bound.likelihood.to_json())
    curves.write(out)
    originals, decoded = reconstruct(vae, held_out, min(len(held_out), METRIC_PICTURES), params.micro_batch, device)
    metrics = reconstruction_metrics(originals, decoded) | {"num_pictures": len(originals)}
    write_json(out / "metrics.json", metrics | {"scaling_factor": vae.config.scaling_factor, "shift_factor": vae.config.shift_factor})
    Image.fromarray(reconstruction_grid(vae, held_out, params.num_pictures, params.micro_batch, device)).save(out / "reconstructions.png")
    stage.tracker.log_metrics({f"held_out/{key}": value for key, value in metrics.items()}, params.steps)
    stage.content["vae"] = {"init": init, "metrics": metrics}


def load_or_build(params: TrainVaeParams, *, size: int) -> AutoencoderKL:
    """The VAE of `init`, or a new one.

    Raises:
        ValueError: pictures that do not divide into latents, or nothing to use as it is.
    """
    if params.init:
        vae = load_model(AutoencoderKL, params.init)
    elif params.steps == 0:
        raise ValueError("train_vae.steps is 0 and train_vae.init is empty: name the folder of a VAE to use as it is, or train one.")
    else:
        model = params.model.model_dump() | {"block_out_channels": tuple(params.model.block_out_channels)}
        vae = AutoencoderKL(AutoencoderConfig(sample_size=size, **model))
        vae.initialise(params.seed)
    if size % vae.config.stride:
        raise ValueError(
            f"ingest.side is {size} px, but this VAE needs a multiple of {vae.config.stride} (one halving a level after the first)."
        )
    return vae


def reconstruct(vae: AutoencoderKL, photos: ImageShards, num: int, batch_size: int, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """The first `num` photos and what their posterior means decode to, both uint8 (num, H, W, 3)."""
    originals = photos.images(range(num))
    return originals, map_pictures(vae.reconstruct, originals, batch_size=batch_size, device=device)


def reconstruction_grid(vae: AutoencoderKL, photos: ImageShards, num: int, batch_size: int, device: torch.device) -> np.ndarray:
    """Rows of photos, each above its reconstruction; uint8 (H, W, 3)."""
    originals, decoded = reconstruct(vae, photos, min(num, len(photos)), batch_size, device)
    columns = min(8, len(originals))
    rows = [part[start : start + columns] for start in range(0, len(originals), columns) for part in (originals, decoded)]
    blank = np.full_like(originals[:1], 255)
    padded = [np.concatenate([row, *[blank] * (columns - len(row))]) for row in rows]
    return picture_grid(np.concatenate(padded), columns)


if __name__ == "__main__":
    main("train_vae", run, reads=("shards",), writes=("vae",))
