"""A model as our own training makes it: small, with its own text encoder, schedule, prediction, and scale and shift of latents."""

from pathlib import Path
from typing import Any

from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.diffusion.schedule import Schedule
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import save_model
from tests.interchange.pipelines import SIDE, shaken
from tests.models.tiny_clip import TINY


def write_model(
    folder: Path,
    *,
    kind: str = "cosine",
    prediction: str = "v_prediction",
    zero_terminal_snr: bool = False,
    vae_changes: dict[str, Any] | None = None,
) -> None:
    clip = ClipTowers.build(TINY, seed=0)
    shaken(clip, 1)
    clip.save(folder / "clip")
    config = AutoencoderKLConfig(block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.8, shift_factor=0.3, **vae_changes or {})
    vae = AutoencoderKL(config)
    vae.initialise(0)
    save_model(shaken(vae, 2), folder / "vae")  # type: ignore[type-var]
    unet = UNet2DConditionModel(
        UNetConfig(
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            attention_head_dim=2,
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=TINY["text_width"],
            sample_size=SIDE,
        )
    )
    unet.initialise(0)
    save_model(shaken(unet, 3), folder / "unet")  # type: ignore[type-var]
    schedule = Schedule.make(kind, 1000, 0.0001, 0.02, zero_terminal_snr=zero_terminal_snr)
    DiffusionConfig(schedule=schedule, prediction=prediction, sampler="dpmpp_2m", steps=20, guidance_scale=3.0).save(folder / "unet")
