"""Training that starts from a whole model: the parameters that carry its parts over, and a copy of them that no run overwrites."""

import json
import shutil
from pathlib import Path
from typing import Any

from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.models.autoencoder import read_autoencoder_config
from darkroom.models.autoencoder_kl import AutoencoderKLConfig
from darkroom.models.clip import CONFIG_FILE as CLIP_CONFIG_FILE
from darkroom.models.unet import UNetConfig
from darkroom.models.weights import CONFIG_FILE, read_json
from darkroom.params_file import merged
from darkroom.provenance import INDEX, photos_prepared_by, read_index, replacing
from darkroom.sampling import PARTS
from darkroom.sampling.model_folder import ModelFolder

LIKELIHOOD_FILE = "likelihood.json"  # beside a VAE that train_vae wrote
SCHEDULE = ("kind", "num_train_timesteps", "beta_start", "beta_end", "zero_terminal_snr")


def carried_over(model: Path, name: str) -> dict[str, Any]:
    """The parameters (section -> keys) by which a run uses the VAE and the text encoder of a model as they are, and trains its U-Net on.

    These are the three folders, and what the U-Net was trained for: side of the photos, token embeddings, schedule, prediction; also
    the defaults of sampling, and the likelihood of the VAE. A model that says so adds crop and captions of its photos, and the limits
    that its VAE has passed.

    Args:
        model: folder with clip/, vae/ and unet/.
        name: this folder as params.yaml names it.

    Raises:
        ValueError: a part or its configuration is missing, or the parts come from different runs.
    """
    diffusion = ModelFolder(model).diffusion()
    vae = read_autoencoder_config(model / "vae")
    kind = "kl" if isinstance(vae, AutoencoderKLConfig) else "pretrained"  # of the kinds, only kl can be trained further
    unet = UNetConfig.from_json(read_json(model / "unet" / CONFIG_FILE), model / "unet" / CONFIG_FILE)
    if unet.sample_size is None:
        raise ValueError(f"{model / 'unet' / CONFIG_FILE}: `sample_size` is missing: add the side of the training images in latent pixels.")
    changes: dict[str, Any] = {
        "ingest": {"side": unet.sample_size * vae.stride},
        "train_clip": {"mode": "pretrained", "pretrained": f"{name}/clip", "text_layer": "source", "pad_token": "source"},
        "train_vae": {"kind": kind, "init": f"{name}/vae", "init_sha256": "", "steps": 0, **_likelihood(model / "vae" / LIKELIHOOD_FILE)},
        "train_unet": {"init": f"{name}/unet", **_diffusion(diffusion)},
        "evaluate": {"sampling": {key: diffusion.defaults[key] for key in ("spacing", "guidance_scale")}},  # the rest changes the cost
    }
    if read_json(model / "clip" / CLIP_CONFIG_FILE)["model_cfg"].get("vision_cfg", {}) is None:  # no features to measure it in
        changes["cache_latents"] = {"gate": {"max_frechet": None}}
    return merged(photos_prepared_by(model / "unet"), changes)


def _diffusion(config: DiffusionConfig) -> dict[str, Any]:
    schedule = {key: getattr(config.schedule, key) for key in SCHEDULE}
    return {"schedule": schedule, "prediction": config.prediction, "sampling": config.defaults}


def _likelihood(file: Path) -> dict[str, Any]:
    """What `evaluate` computes bounds with; imported autoencoders have none."""
    if not file.is_file():
        return {}
    stored = json.loads(file.read_text(encoding="utf-8"))
    return {"likelihood": stored["likelihood"]} | ({} if stored["scale"] is None else {"decoder_scale": stored["scale"]})


def keep(model: Path, out: Path) -> None:
    """Copy the parts of a model to `out`, unless they are there already.

    Raises:
        ValueError: a part is missing, or `out` holds something else.
    """
    ModelFolder(model)
    if out.exists():
        if not all((out / part / INDEX).is_file() and _fingerprint(out / part) == _fingerprint(model / part) for part in PARTS):
            raise ValueError(f"{out} exists and is not a copy of {model}. Move it away, and run the same command again.")
        return
    with replacing(out) as tmp:
        for part in PARTS:
            shutil.copytree(model / part, tmp / part)


def _fingerprint(folder: Path) -> str:
    return str(read_index(folder)["fingerprint"])
