"""The samplers of DDPM and DDIM: what is left of the noise shrinks, and fresh noise may take the place of some of it.

A step goes from x = x_0 + sigma noise to x = x_0 + sigma_next noise. Dividing by sqrt(1 + sigma^2) gives the papers' x_t.
"""

from collections.abc import Iterator

from torch import Tensor

from darkroom.diffusion.denoiser import Denoise
from darkroom.diffusion.samplers.step import NoiseAt, Step, walk


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """Draws from the posterior q(x_(t-1) | x_t, x_0 = D), of variance beta-tilde (Ho et al. 2020, algorithm 2).

    Exact when the data is one point; for other data this variance is the smallest that may be right (their section 3.2).
    """
    yield from ddim(denoise, x, sigmas, noise_at=noise_at, eta=1.0)


def ddpm_beta(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """As `ddpm`, with the other variance of the paper, beta (Ho et al. 2020, section 3.2).

    Exact when the data is standard normal; for other data this variance is the largest that may be right. The last step adds none.
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
    """An Euler step to below the next level and fresh noise back up to it, as users of Stable Diffusion know it ("Euler a").

    The level below is sigma_next^2 / sigma, the Euler step D + sigma_next^2 / sigma^2 (x - D): the mean of the posterior. So this
    is `ddpm`, under the name that k-diffusion (Crowson 2022) gave it.
    """
    yield from ddpm(denoise, x, sigmas, noise_at=noise_at)


def posterior_mean(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """mu-tilde (Ho et al. 2020, equation 7), divided by sqrt(abar_(t-1)): in this language it has no other coefficients."""
    return denoised + (sigma_next / sigma) ** 2 * (x - denoised)
