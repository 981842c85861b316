"""An autoencoder, pictures and an objective small enough to train in a blink, with every term switched on."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkroom.config import TrainVaeParams
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.discriminator import PatchDiscriminator
from darkroom.models.perceptual import PerceptualDistance
from darkroom.param_groups import ClassifierPixels
from darkroom.training.vae_objective import DecoderLikelihood, EvidenceBound, VaeObjective
from darkroom.training.vae_task import VaeTask

MODEL = {"latent_channels": 4, "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "mid_block_add_attention": False}
PARAMS = {
    "init": "", "model": MODEL, "likelihood": "gaussian", "decoder_scale": 0.3, "learn_scale": True, "kl_weight": 1.0,
    "perceptual": {"weight": 0.0}, "adversarial": {"weight": 0.5, "start_step": 2, "channels": 8, "num_halvings": 1},
    "num_pictures": 4, "steps": 6, "batch_size": 4, "gradient_accumulation": 1, "lr": 1e-3, "warmup_steps": 1, "lr_decay": "constant",
    "weight_decay": 0.01, "grad_clip": 1.0, "ema_decay": 0.9, "precision": "fp32", "log_every": 1, "val_every": 3,
    "checkpoint_every": 2, "num_processes": 1, "seed": 0,
}  # fmt: skip

IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
NOISE = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(2))


class Pictures:
    """What a task asks of `ImageShards`: noise of 16 px."""

    size = 16

    def __init__(self, num: int, seed: int) -> None:
        self.pictures = np.random.default_rng(seed).integers(0, 256, (num, 16, 16, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pictures)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        return self.pictures[list(indices)]


class Features(nn.Module):
    """In the place of a classifier's layers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"edges": F.conv2d(x, self.weight).relu()}


def perceptual() -> PerceptualDistance:
    return PerceptualDistance(Features(), ClassifierPixels(mean=[0.5] * 3, std=[0.5] * 3))


def vae_params(**changes: object) -> TrainVaeParams:
    return TrainVaeParams.model_validate(PARAMS | changes)


def new_vae() -> AutoencoderKL:
    vae = AutoencoderKL(AutoencoderKLConfig(sample_size=16, **MODEL | {"block_out_channels": (8, 8)}))
    vae.initialise(0)
    return vae


def objective(*, adversarial_weight: float = 0.5, perceptual_weight: float = 0.7) -> VaeObjective:
    discriminator = PatchDiscriminator(channels=8, num_halvings=1, size=16)
    discriminator.initialise(0)
    return VaeObjective(
        EvidenceBound(new_vae(), DecoderLikelihood("gaussian", 0.3, learned=True)),
        kl_weight=0.1,
        perceptual=perceptual() if perceptual_weight else None,
        perceptual_weight=perceptual_weight,
        discriminator=discriminator,
        adversarial_weight=adversarial_weight,
    )


def vae_task(**changes: object) -> VaeTask:
    return VaeTask(new_vae(), Pictures(10, seed=0), Pictures(4, seed=1), vae_params(**changes))  # type: ignore[arg-type]
