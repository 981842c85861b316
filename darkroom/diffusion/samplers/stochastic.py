"""Samplers that add fresh noise in their steps: those of DDPM and DDIM, and of the reverse SDE. `ddim` with eta 0 adds none.

A step goes from x = x_0 + sigma noise to x = x_0 + sigma_next noise. Dividing by sqrt(1 + sigma^2) gives the papers' x_t.
"""

from collections.abc import Iterator

from torch import Tensor

from darkroom.diffusion.denoiser import Denoise
from darkroom.diffusion.samplers.step import NoiseAt, Step, walk

LONGEST_EULER_MARUYAMA = 2.0  # integral of beta over a step; the state would change its sign in a longer one
LANGEVIN_STEP = 0.16  # r of Song et al. 2021, appendix G: their signal-to-noise ratio for CIFAR-10


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """Draws from the posterior q(x_(t-1) | x_t, x_0 = D) with the variance beta-tilde (Ho et al. 2020, algorithm 2).

    Exact if the data is one point; for other data this variance is the lower bound of the right one (their section 3.2).
    """
    yield from ddim(denoise, x, sigmas, noise_at=noise_at, eta=1.0)


def ddpm_beta(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """As `ddpm`, with the other variance of the paper, beta (Ho et al. 2020, section 3.2).

    Exact if the data is standard normal; for other data this variance is the upper bound of the right one. The last step adds no noise.
    """
    assert noise_at is not None, "ddpm_beta needs noise_at"
    for index, sigma, sigma_next in walk(sigmas):
        denoised = denoise(x, sigma)
        x = posterior_mean(x, denoised, sigma, sigma_next)
        if sigma_next > 0:
            variance = (1 + sigma_next**2) * (sigma**2 - sigma_next**2) / (1 + sigma**2)  # beta / abar_(t-1)
            x = x + variance.sqrt() * noise_at(index)
        yield Step(index, float(sigma), x, denoised)


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None, eta: float = 0.0) -> Iterator[Step]:
    """Non-Markovian sampling (Song et al. 2021, equation 12): `eta` 0 is deterministic, 1 is `ddpm`."""
    for index, sigma, sigma_next in walk(sigmas):
        denoised = denoise(x, sigma)
        renewed = eta**2 * (1 - (sigma_next / sigma) ** 2)  # share of the next variance that is fresh: their sigma_t (equation 16)
        x = denoised + sigma_next * (1 - renewed).sqrt() / sigma * (x - denoised)
        if renewed > 0 and sigma_next > 0:
            assert noise_at is not None, "eta above 0 needs noise_at"
            x = x + sigma_next * renewed.sqrt() * noise_at(index)
        yield Step(index, float(sigma), x, denoised)


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """An Euler step to below the next noise level, then fresh noise back up to it: "Euler a" of Stable Diffusion tools.

    The level below is sigma_next^2 / sigma, the Euler step D + sigma_next^2 / sigma^2 (x - D): the mean of the posterior. So this
    is `ddpm` under its name in k-diffusion (Crowson 2022).
    """
    yield from ddpm(denoise, x, sigmas, noise_at=noise_at)


def euler_maruyama(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """Euler-Maruyama steps of the reverse variance-preserving SDE (Song et al. 2021, equations 6 and 11).

    dy = (-beta y / 2 - beta score(y)) dt + sqrt(beta) dw with y = x / sqrt(1 + sigma^2); b is the integral of beta over a step. For
    study: `ddpm` solves the linear part exactly and needs fewer steps. Steps with b > LONGEST_EULER_MARUYAMA are those of `ddpm`, and
    the last step adds no noise.
    """
    assert noise_at is not None, "euler_maruyama needs noise_at"
    for index, sigma, sigma_next in walk(sigmas):
        denoised = denoise(x, sigma)
        b = ((1 + sigma**2) / (1 + sigma_next**2)).log()
        if sigma_next == 0:
            x = denoised
        elif b > LONGEST_EULER_MARUYAMA:
            spread = sigma_next * (1 - (sigma_next / sigma) ** 2).sqrt()
            x = posterior_mean(x, denoised, sigma, sigma_next) + spread * noise_at(index)
        else:
            score = (1 + 1 / sigma**2) * (denoised - x)  # of y, times sqrt(1 + sigma^2)
            x = (-b / 2).exp() * (x + b / 2 * x + b * score) + (b * (1 + sigma_next**2)).sqrt() * noise_at(index)
        yield Step(index, float(sigma), x, denoised)


def predictor_corrector(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """A `ddpm` step, then a Langevin step at the next noise level (Song et al. 2021, algorithm 1): two evaluations and two noises per step.

    Their Langevin step has the length e = 2 (r |noise| / |score|)^2, measured on the batch. Here |noise| / |score| is sigma, as
    for pure noise, so that a sample does not depend on its batch.
    """
    assert noise_at is not None, "predictor_corrector needs noise_at"
    for index, sigma, sigma_next in walk(sigmas):
        denoised = denoise(x, sigma)
        x = posterior_mean(x, denoised, sigma, sigma_next)
        if sigma_next > 0:
            x = x + sigma_next * (1 - (sigma_next / sigma) ** 2).sqrt() * noise_at(2 * index)
            drift = 2 * LANGEVIN_STEP**2 * (denoise(x, sigma_next) - x)  # e score
            x = x + drift + 2 * LANGEVIN_STEP * sigma_next * noise_at(2 * index + 1)  # sqrt(2 e) noise
        yield Step(index, float(sigma), x, denoised)


def posterior_mean(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """mu-tilde (Ho et al. 2020, equation 7), divided by sqrt(abar_(t-1)), in terms of sigma."""
    return denoised + (sigma_next / sigma) ** 2 * (x - denoised)
