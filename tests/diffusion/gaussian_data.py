"""Gaussian data, whose denoiser is linear, so that every sampler can be followed exactly."""

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise
from darkroom.diffusion.samplers import SAMPLERS


def gaussian(spread: float) -> Denoise:
    """The denoiser of N(0, spread^2), element by element."""
    return lambda x, sigma: x * spread**2 / (spread**2 + sigma**2)


def linear_spread(name: str, denoise: Denoise, sigmas: Tensor, start: float) -> list[float]:
    """The standard deviation of x after each step, exactly, for a linear D and x of the standard deviation `start` at sigmas[0].

    x is then a linear function of its start and of each noise: every row of a batch follows one of them.
    """
    num = 2 * (len(sigmas) - 1)
    x = torch.zeros(num + 1, 1, dtype=torch.float64)
    x[0] = start

    def noise_at(index: int) -> Tensor:
        return torch.zeros_like(x).index_fill(0, torch.tensor(index + 1), 1.0)

    return [float(step.x.norm()) for step in SAMPLERS[name](denoise, x, sigmas, noise_at=noise_at)]
