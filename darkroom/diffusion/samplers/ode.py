"""Solvers of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma (Karras et al. 2022, equation 3), in sigma itself."""

from collections.abc import Iterator

from torch import Tensor

from darkroom.diffusion.denoiser import Denoise
from darkroom.diffusion.samplers.step import NoiseAt, Step, walk

LONGEST_HEUN = 20.0  # sigma / sigma_next; the first step of a cosine schedule, or of zero terminal SNR, can be 1000 times as long


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """First-order steps, equal to those of `ddim` without noise."""
    for index, sigma, sigma_next in walk(sigmas):
        denoised = denoise(x, sigma)
        x = euler_step(x, denoised, sigma, sigma_next)
        yield Step(index, float(sigma), x, denoised)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """Second order, two evaluations a step (Karras et al. 2022, algorithm 1), but for first-order steps at both ends of the grid.

    The last step is one, for there is no slope at sigma 0; so is a step with sigma > LONGEST_HEUN sigma_next. There the mean of the
    two slopes moves x by (sigma / sigma_next - 1) / 2 times the change of D: an error of D, however small, becomes the picture.
    """
    for index, sigma, sigma_next in walk(sigmas):
        denoised = denoise(x, sigma)
        x = euler_step(x, denoised, sigma, sigma_next)
        if sigma <= LONGEST_HEUN * sigma_next:
            x = x + (sigma / sigma_next - 1) / 2 * (denoise(x, sigma_next) - denoised)
        yield Step(index, float(sigma), x, denoised)


def euler_step(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """x + (sigma_next - sigma) (x - D) / sigma, in a form that does not cancel when sigma is huge."""
    return denoised + sigma_next / sigma * (x - denoised)
