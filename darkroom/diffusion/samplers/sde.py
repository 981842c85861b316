"""The reverse SDE of Song et al. 2021 by its plain discretisation, and with Langevin steps that repair it."""

from collections.abc import Iterator

from torch import Tensor

from darkroom.diffusion.denoiser import Denoise
from darkroom.diffusion.samplers.ancestral import posterior_mean
from darkroom.diffusion.samplers.step import NoiseAt, Step, walk

LONGEST_EULER_MARUYAMA = 2.0  # integral of beta over a step; the state would change its sign in a longer one
LANGEVIN_STEP = 0.16  # r of Song et al. 2021, appendix G: their signal-to-noise ratio for CIFAR-10


def euler_maruyama(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """Euler-Maruyama steps of the reverse variance-preserving SDE (Song et al. 2021, equations 6 and 11).

    dy = (-beta y / 2 - beta score(y)) dt + sqrt(beta) dw with y = x / sqrt(1 + sigma^2); a step has b, the integral of beta. For
    study: `ddpm` solves the linear part exactly and needs fewer steps. Where b > LONGEST_EULER_MARUYAMA its step is taken, and the
    last step adds no noise.
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
    """A `ddpm` step down, then a Langevin step at the level reached (Song et al. 2021, algorithm 1). Two evaluations a step, two noises.

    Their Langevin step has the length e = 2 (r |noise| / |score|)^2, measured on the batch; here |noise| / |score| is sigma, as it
    is for pure noise, so that a picture does not depend on its batch.
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
