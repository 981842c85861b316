"""A batch of pictures, from what is known before the first step to latents."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise
from darkroom.diffusion.editing import inpaint, start
from darkroom.diffusion.samplers import NoiseAt
from darkroom.sampling.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Batch:
    context: Tensor  # (B, L, D), of the prompts
    negative_context: Tensor  # (B, L, D)
    tokens: Tensor | None  # (B, L), of the prompts; None where no one text belongs to a picture
    noise: Tensor  # (B, C, h, w), to begin with
    noise_at: NoiseAt  # for samplers that ask for more
    known: Tensor | None = None  # (B, C, h, w), latents of the picture to begin with
    mask: Tensor | None = None  # (B, 1, h, w), 1 = drawn anew
    kept: Tensor | None = None  # (B, 3, H, W), what is to be seen where nothing is drawn anew


def draw(denoise: Denoise, batch: Batch, settings: Settings, ticks: Iterator[object]) -> Tensor:
    """The latents of a batch, (B, C, h, w); takes one of `ticks` after each step."""
    known, mask = batch.known, batch.mask
    x = start(batch.noise, settings.sigmas[0], known, strength=settings.strength, mask=mask)
    if mask is not None:
        assert known is not None, "the canvas sees to it"
        denoise = inpaint(denoise, known, mask)
    if settings.num_steps:
        for step in settings.sampler(denoise, x, settings.sigmas, noise_at=batch.noise_at):
            x = step.x
            next(ticks, None)
    if mask is not None and known is not None:
        x = torch.lerp(known, x, mask)  # exactly, however exact the sampler is
    return x
