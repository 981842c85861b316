"""The conditions of a batch: contexts of the prompts, noise by seed, the image to start from, and the mask."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise
from darkroom.diffusion.editing import inpaint, slerp, start
from darkroom.diffusion.samplers import NoiseAt, Sampler


@dataclass(frozen=True, kw_only=True)
class Conditions:
    context: Tensor  # (B, L, D), of the prompts
    negative_context: Tensor  # (B, L, D)
    tokens: Tensor | None  # (B, L), of the prompts; None where no single prompt belongs to an image
    noise: Tensor  # (B, C, h, w), to begin with
    noise_at: NoiseAt  # for samplers that draw more
    known: Tensor | None = None  # (B, C, h, w), latents of the image to begin with
    mask: Tensor | None = None  # (B, 1, h, w), 1 = repainted
    kept: Tensor | None = None  # (B, 3, H, W), the pixels where nothing is repainted

    def draw(self, denoise: Denoise, sampler: Sampler, sigmas: Tensor, strength: float, ticks: Iterator[object]) -> Tensor:
        """The latents of the batch, (B, C, h, w); takes one of `ticks` after each step."""
        x = start(self.noise, sigmas[0], self.known, strength=strength, mask=self.mask)
        if self.mask is not None:
            assert self.known is not None, "the canvas checks it"
            denoise = inpaint(denoise, self.known, self.mask)
        if len(sigmas) > 1:
            for step in sampler(denoise, x, sigmas, noise_at=self.noise_at):
                x = step.x
                next(ticks, None)
        if self.mask is not None and self.known is not None:
            x = torch.lerp(self.known, x, self.mask)  # exactly, however exact the sampler is
        return x


class SeededNoise:
    """Each call draws the next standard normal noise (B, C, h, w). The noise of a seed does not depend on the other seeds."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> None:
        if wrong := [seed for seed in seeds if not -(2**63) <= seed < 2**64]:
            raise ValueError(f"The seed {wrong[0]} is out of range; must be from {-(2**63)} to {2**64 - 1}.")
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # on the CPU: the same on every device
        self.shape = shape
        self.device = device

    def __call__(self, index: int = 0) -> Tensor:
        """Draws come in order, whatever the index."""
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators]).to(self.device)


def no_noise(index: int) -> Tensor:
    """The noise source of samplers without fresh noise; raises ValueError if a sampler asks for noise."""
    raise ValueError("This sampler draws fresh noise in its steps: use ddim, heun or dpmpp_2m; or, with `sample`, give seeds too.")


def check_stops(num_prompts: int, num_seeds: int, num: int) -> None:
    """Raises ValueError for fewer than two stops, different numbers of prompts and seeds, or fewer than two images."""
    stops = max(num_prompts, num_seeds)
    if stops < 2 or not {num_prompts, num_seeds} <= {1, stops}:
        raise ValueError(
            f"{num_prompts} prompts and {num_seeds} seeds: give two or more of one kind, and one or the same number of the other."
        )
    if num < 2:
        raise ValueError(f"num is {num}; must be at least 2, the first and the last image.")


def along(contexts: Tensor, noises: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """`num` contexts and noises from the first stop to the last, evenly spaced: contexts on lines, noises on arcs.

    contexts are (S, L, D), or one for all stops, (1, L, D); noises (S, C, h, w), likewise.
    """
    stops = max(len(contexts), len(noises))
    contexts, noises = contexts.expand(stops, -1, -1), noises.expand(stops, -1, -1, -1)
    places = [index * (stops - 1) / (num - 1) for index in range(num)]
    lefts = [min(int(place), stops - 2) for place in places]
    pairs = [(left, place - left) for left, place in zip(lefts, places, strict=True)]
    mixed = torch.stack([torch.lerp(contexts[left], contexts[left + 1], weight) for left, weight in pairs])
    turned = torch.cat([slerp(noises[left, None], noises[left + 1, None], weight) for left, weight in pairs])
    return mixed, turned
