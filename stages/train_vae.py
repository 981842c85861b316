"""train_vae: the autoencoder between images and latents, trained by the evidence lower bound.

Reads data/shards. Writes data/vae in diffusers' layout (config.json with the measured scale and shift of the latents,
diffusion_pytorch_model.safetensors), likelihood.json, metrics.json, curves/ and reconstructions.png. `init:` starts from such a folder,
which may be on the hub or in the registry; `steps: 0` uses it as it is.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from darkroom.config import TrainVaeParams
from darkroom.data.shards import ImageShards
from darkroom.device import best_device
from darkroom.evaluation.reconstruction import reconstruct, reconstruction_metrics
from darkroom.models.linear_autoencoder import LinearAutoencoder
from darkroom.models.weights import CONFIG_FILE, save_model
from darkroom.open_model import initial_part
from darkroom.previews import reconstruction_grid
from darkroom.provenance import write_json
from darkroom.stage import Contract, Stage
from darkroom.training.initial_models import check_hash, initial_vae
from darkroom.training.loop import train
from darkroom.training.vae_task import VaeTask, fit_linear, measure_latents


def run(stage: Stage[TrainVaeParams]) -> None:
    folder, version = initial_part(stage.params.init, "vae")
    params, out = stage.params.model_copy(update={"init": folder}), stage.outs["vae"]
    photos, held_out = (ImageShards(stage.inputs["shards"], split) for split in ("train", "val"))
    vae = initial_vae(params, size=photos.size)
    if isinstance(vae, LinearAutoencoder) and not params.init:
        params = params.model_copy(update={"decoder_scale": fit_linear(vae, photos)})
    init = vae.fingerprint() if params.init else ""
    check_hash(init, stage.params)

    def preview(device: torch.device) -> np.ndarray:
        return reconstruction_grid(vae, held_out, num=params.num_pictures, batch_size=params.micro_batch, device=device)

    def log_reconstructions(step: int, device: torch.device) -> None:
        stage.tracker.log_image("reconstructions", preview(device), step)

    task = VaeTask(vae, photos, held_out, params)
    curves = train(task, params, name=stage.name, scratch=stage.scratch / init, tracker=stage.tracker, draw_preview=log_reconstructions)
    if not stage.is_main:
        return
    device = best_device()
    vae.to(device)
    if params.steps or not (Path(params.init) / CONFIG_FILE).is_file():  # a VAE that is used as it is keeps its own scale and shift
        scale, shift = measure_latents(vae, photos, device)
        vae.config = replace(vae.config, scaling_factor=scale, shift_factor=shift)
    save_model(vae, out)
    write_json(out / "likelihood.json", task.net.bound.likelihood.to_json())
    curves.write(out)
    originals, decoded = reconstruct(vae, held_out, batch_size=params.micro_batch, device=device)
    metrics = reconstruction_metrics(originals, decoded) | {"num_pictures": len(originals)}
    write_json(out / "metrics.json", metrics | {"scaling_factor": vae.config.scaling_factor, "shift_factor": vae.config.shift_factor})
    Image.fromarray(preview(device)).save(out / "reconstructions.png")
    stage.tracker.log_metrics({f"held_out/{key}": value for key, value in metrics.items()}, params.steps)
    stage.content["vae"] = {"init": init, "version": version, "weights": vae.fingerprint(), "metrics": metrics}


STAGE = Contract("train_vae", run, reads=("shards",), writes=("vae",))

if __name__ == "__main__":
    STAGE.main()
