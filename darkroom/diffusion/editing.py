"""Editing of images: image-to-image, inpainting, DDIM inversion and interpolation.

All of it acts on D(x, sigma), on the noise levels or on the noise, so that it works with every sampler. Images are normalised
latents here.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise

SMALLEST_ANGLE = 1e-6  # between two directions whose arc float64 can resolve


def levels_of_strength(sigmas: Tensor, strength: float) -> Tensor:
    """The last noise levels, for image-to-image (Meng et al. 2022, SDEdit): a share `strength` of the steps, rounded down.

    Args:
        sigmas: (steps + 1,), falling to 0.
        strength: 0 = no step, 1 = all steps; above 0 there is at least one step.

    Raises:
        ValueError: strength outside 0 to 1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it must be between 0 (the image as it is) and 1 (nothing of it is left).")
    steps = len(sigmas) - 1
    taken = max(1, math.floor(steps * strength + 1e-9)) if strength else 0  # 100 * 0.29 is 28.999999999999996
    return sigmas[steps - taken :]


def start(noise: Tensor, sigma: Tensor, known: Tensor | None = None, *, strength: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """x at the first noise level: known + sigma noise, without `known` where nothing of it may show.

    At strength 1 that is everywhere, as in text-to-image: a network would find the little that is left of the image in
    known + sigma noise. What a mask keeps is in x at every strength.

    Args:
        noise: standard normal, (B, C, h, w).
        known: the image to start from, (B, C, h, w).
        mask: (B, 1, h, w), 1 where it is repainted and 0 where it is kept.
    """
    x = noise * sigma
    if known is None:
        return x
    if strength < 1:
        return x + known
    return x if mask is None else x + (1 - mask) * known


def inpaint(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """A D that is `known` where the mask is 0, whatever x is, so that every sampler ends there.

    The known part needs no network: D is an expectation, and `known` is its value. This equals writing
    known + sigma noise into x after each step (Lugmayr et al. 2022, RePaint, equation 8), but without a second draw of noise.

    Args:
        known: (B, C, h, w).
        mask: (B, 1, h, w), 1 where the image is repainted; between 0 and 1 the two are mixed.
    """
    return lambda x, sigma: torch.lerp(known, denoise(x, sigma), mask)


def ddim_invert(denoise: Denoise, known: Tensor, sigmas: Tensor, *, iterations: int = 1) -> Tensor:
    """x at noise level sigmas[0] from which `ddim` with the same noise levels returns to `known`: its steps in reverse.

    A step of DDIM goes from x' at sigma' down to x = D(x', sigma') + sigma / sigma' (x' - D(x', sigma')). To undo it, one
    needs D where the step began. The first guess is x, scaled to the length of x' (Dhariwal & Nichol 2021, appendix F; in the
    variance-preserving form of diffusers it is x itself). Each further iteration evaluates D at the x' just found (Pan et al. 2023).

    Solved for the x' outside of D, the equation has two forms. For a Gaussian of variance 1 an iteration makes the error smaller by
    (1 - sigma / sigma') sigma'^2 / (1 + sigma'^2) with the noise held, and by (sigma' / sigma - 1) / (1 + sigma'^2) with D held. The second
    is smaller where sigma sigma' > 1, and is all there is at a first step from sigma' = 1000.

    Args:
        known: (B, C, h, w).
        sigmas: (steps + 1,), falling to 0.
        iterations: network evaluations per step.

    Raises:
        ValueError: iterations below 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it must be at least 1.")
    x = known
    for low, high in pairwise(sigmas.detach().to("cpu", torch.float64).flip(0)):
        above = x * ((1 + high**2) / (1 + low**2)).sqrt()
        for _ in range(iterations):
            denoised = denoise(above, high)
            holds_denoised = low * high > 1
            above = denoised + high / low * (x - denoised) if holds_denoised else x + (1 - low / high) * (above - denoised)
        x = above
    return x


def slerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """Spherical interpolation of each sample (Shoemake 1985). Noise keeps its length, while the mean of two noises would be too short.

    From `start` (B, ...) at weight 0 to `end` at weight 1, along the arc between their directions; the length changes linearly from
    one to the other. Equal or opposite directions, which have no unique arc, are joined by a straight line.
    """
    axes = tuple(range(1, start.ndim))
    ends = [side.to("cpu", torch.float64) for side in (start, end)]  # not every accelerator has float64
    start_length, end_length = (torch.linalg.vector_norm(side, dim=axes, keepdim=True) for side in ends)
    first, last = ends[0] / start_length, ends[1] / end_length
    angle = (first * last).sum(axes, keepdim=True).clamp(-1, 1).arccos().clamp(SMALLEST_ANGLE, math.pi - SMALLEST_ANGLE)
    direction = (((1 - weight) * angle).sin() * first + (weight * angle).sin() * last) / angle.sin()
    return (direction * torch.lerp(start_length, end_length, weight)).to(start)
