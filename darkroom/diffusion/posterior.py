"""The chain of DDPM, one step at a time: q(x_t | x_(t-1)), and its reverse given x_0, q(x_(t-1) | x_t, x_0).

x_t is variance-preserving here, t counts from 0, and x_(-1) is the clean image, to which the step t = 0 leads back.
"""

from typing import get_args

from torch import Tensor

from darkroom.choices import VarianceKind
from darkroom.diffusion.denoiser import times
from darkroom.diffusion.schedule import Schedule

VARIANCES = get_args(VarianceKind)  # of p(x_(t-1) | x_t): exact for data that is one point, exact for white noise


def forward_step(previous: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x_t = sqrt(1 - beta_t) x_(t-1) + sqrt(beta_t) noise (Ho et al. 2020, equation 2). previous, noise (B, ...); t (B,), integers."""
    betas = schedule.betas.to(t.device)[t]
    return times(previous, (1 - betas).sqrt()) + times(noise, betas.sqrt())


def mean_from_x0(x0: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """mu-tilde, the mean of q(x_(t-1) | x_t, x_0), from x_0 (Ho et al. 2020, equation 7)."""
    of_x0, of_x_t = mean_coefficients(t, schedule)
    return times(x0, of_x0) + times(x_t, of_x_t)


def mean_from_noise(noise: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The same mu-tilde, from the noise in x_t (Ho et al. 2020, equation 11)."""
    betas, alphas_cumprod = schedule.betas.to(t.device)[t], schedule.alphas_cumprod.to(t.device)[t]
    return times(x_t - times(noise, betas * (1 - alphas_cumprod).rsqrt()), (1 - betas).rsqrt())


def mean_coefficients(t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """The factors of x_0 and of x_t in mu-tilde, float64 (B,); 1 and 0 at t = 0."""
    betas, alphas_cumprod, previous = (
        values.to(t.device)[t] for values in (schedule.betas, schedule.alphas_cumprod, schedule.alphas_cumprod_previous)
    )
    return previous.sqrt() * betas / (1 - alphas_cumprod), (1 - betas).sqrt() * (1 - previous) / (1 - alphas_cumprod)


def variance(t: Tensor, schedule: Schedule, kind: str = "beta_tilde") -> Tensor:
    """The variance of a step back, float64 (B,): beta-tilde is that of q(x_(t-1) | x_t, x_0), 0 at t = 0 (Ho et al. 2020, equation 7).

    Raises:
        ValueError: an unknown kind.
    """
    betas = schedule.betas.to(t.device)[t]
    match kind:
        case "beta":
            return betas
        case "beta_tilde":
            alphas_cumprod, previous = schedule.alphas_cumprod.to(t.device)[t], schedule.alphas_cumprod_previous.to(t.device)[t]
            return betas * (1 - previous) / (1 - alphas_cumprod)
    raise ValueError(f"Unknown variance {kind!r}; expected one of {', '.join(VARIANCES)}.")
