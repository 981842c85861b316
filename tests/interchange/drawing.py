"""The same picture by diffusers' pipeline and by ours: one start, in the units of each."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from darkroom.diffusion.schedule import noise_levels
from darkroom.sampling.text_to_image import TextToImage
from tests.interchange.pipelines import SIDE

PROMPTS = ["a black cat on a sofa", "two ginger cats, at night"]
NEGATIVES = ["blurry, grey", "a dog"]
STEPS = 4


def start(num_channels: int = 4) -> Tensor:
    """What diffusers calls latents: (2, C, h, w) standard normal"""
    return torch.randn(2, num_channels, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


def draw_theirs(pipeline: Any, guidance_scale: float = 7.5) -> np.ndarray:
    """uint8 (2, H, W, 3)"""
    images = pipeline(
        PROMPTS,
        negative_prompt=NEGATIVES,
        latents=start(pipeline.unet.config.in_channels),
        height=SIDE * pipeline.vae_scale_factor,
        width=SIDE * pipeline.vae_scale_factor,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        output_type="np",
    ).images
    return (images * 255).round().astype(np.uint8)


def draw_ours(model: TextToImage, sampler: str, spacing: str, *, unit_start: bool = True, guidance_scale: float = 7.5) -> np.ndarray:
    """uint8 (2, H, W, 3); `unit_start`: diffusers begins at sqrt(1 + sigma^2) times its latents, we at sigma times our noise."""
    sigma = float(noise_levels(model.config.schedule, STEPS, spacing)[0])
    factor = (1 + sigma**2) ** 0.5 / sigma if unit_start else 1.0
    return model.sample(
        PROMPTS,
        negative_prompts=NEGATIVES,
        seeds=[0, 0],
        noise=start(model.latent_shape[0]) * factor,
        steps=STEPS,
        sampler=sampler,
        spacing=spacing,
        guidance_scale=guidance_scale,
    )


def assert_same_pictures(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal but for values that fp32 rounds to the level above or below."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 10, "a picture that shows something"
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
