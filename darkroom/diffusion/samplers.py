"""Samplers: generators over D(x, sigma) that walk a falling grid of noise levels down to 0.

All of them hold x = x_0 + sigma * noise. Chance is an argument: `noise_at(index)` gives the standard normal noise of a step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise

NoiseAt = Callable[[int], Tensor]


@dataclass(frozen=True)
class Step:
    index: int
    sigma: float  # the noise level that the step began at
    x: Tensor  # (B, C, h, w) after the step
    denoised: Tensor  # (B, C, h, w), the network's view of the final picture at `sigma`


class Sampler(Protocol):
    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
        """x (B, C, h, w) at noise level sigmas[0]; sigmas (steps + 1,) fall and end in 0. The last `Step.x` is the picture."""


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """Ancestral sampling with the posterior's variance (Ho et al. 2020, algorithm 2 with beta-tilde): `ddim` with eta 1."""
    yield from ddim(denoise, x, sigmas, noise_at=noise_at, eta=1.0)


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None, eta: float = 0.0) -> Iterator[Step]:
    """Non-Markovian sampling (Song et al. 2021, equation 12): `eta` 0 is deterministic, 1 is `ddpm`."""
    for index, sigma, sigma_next in _steps(sigmas):
        denoised = denoise(x, sigma)
        fresh = eta * sigma_next * (1 - (sigma_next / sigma) ** 2).sqrt()  # their sigma_t (equation 16), over sqrt(abar)
        kept = (sigma_next**2 - fresh**2).sqrt()
        x = denoised + kept / sigma * (x - denoised)
        if fresh > 0:
            assert noise_at is not None, "eta above 0 needs noise_at"
            x = x + fresh * noise_at(index)
        yield Step(index, float(sigma), x, denoised)


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """First-order steps along the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma (Karras et al. 2022, equation 3)."""
    for index, sigma, sigma_next in _steps(sigmas):
        denoised = denoise(x, sigma)
        x = x + (sigma_next - sigma) * (x - denoised) / sigma
        yield Step(index, float(sigma), x, denoised)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """Second order, two evaluations a step but one in the last (Karras et al. 2022, algorithm 1)."""
    for index, sigma, sigma_next in _steps(sigmas):
        denoised = denoise(x, sigma)
        slope = (x - denoised) / sigma
        x_next = x + (sigma_next - sigma) * slope
        if sigma_next > 0:  # there is no slope at sigma 0
            slope_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = x_next
        yield Step(index, float(sigma), x, denoised)


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """DPM-Solver++(2M): second order from the last two evaluations, one a step (Lu et al. 2022, algorithm 2)."""
    previous: Tensor | None = None  # denoised, one step ago
    h_previous = torch.zeros(())
    for index, sigma, sigma_next in _steps(sigmas):
        denoised = denoise(x, sigma)
        h = (sigma / sigma_next).log()  # step in lambda = -log sigma
        extrapolated = denoised
        if previous is not None and sigma_next > 0:  # the first and the last step are of first order
            r = h_previous / h
            extrapolated = denoised + (denoised - previous) / (2 * r)
        x = sigma_next / sigma * x - torch.expm1(-h) * extrapolated
        previous, h_previous = denoised, h
        yield Step(index, float(sigma), x, denoised)


def _steps(sigmas: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """index, sigma, next sigma, as float64 on the CPU: coefficients cost no synchronisation with an accelerator."""
    sigmas = sigmas.detach().to("cpu", torch.float64)
    assert (sigmas.diff() < 0).all(), "sigmas must fall"
    assert sigmas[-1] == 0, "sigmas must end in 0"
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        yield index, sigma, sigma_next


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}
