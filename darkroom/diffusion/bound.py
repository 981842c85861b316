"""The variational bound of a diffusion model on -log p(x_0), in nats per sample (Ho et al. 2020, equation 5).

-log p(x_0) <= L_T + sum of L_(t-1) + L_0 in expectation over the noise: the image that is left at the end of the chain, the error of each
step back, and the error of the last step. With t counted from 0, the terms of the chain are those of t = 1 .. T-1, and the term of the
decoder is that of t = 0. Everything holds for any D(x, sigma); the terms are float64, on the CPU.

The step back has the variance beta by default. It is exact where the data varies more than the noise, and most nats are there: for
Gaussian data and a thousand steps the bound is at most 0.008 nats per dimension above the entropy. With beta-tilde, which is exact for
a single image, it is 0.3 to 1.4 above; in a schedule whose first noise levels double, it stays there for any number of steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise, times
from darkroom.diffusion.posterior import mean_coefficients, variance
from darkroom.diffusion.schedule import Schedule

NoiseOf = Callable[[int], Tensor]  # number of an evaluation -> standard normal noise (B, ...)


@dataclass(frozen=True)
class Bound:
    """Nats per sample, float64 (B,) each."""

    prior: Tensor  # L_T
    chain: Tensor  # the sum of L_(t-1)
    decoder: Tensor  # L_0

    @property
    def total(self) -> Tensor:
        return self.prior + self.chain + self.decoder


def variational_bound(
    denoise: Denoise,
    x0: Tensor,
    schedule: Schedule,
    *,
    noise_of: NoiseOf,
    timesteps: Tensor | None = None,
    probabilities: Tensor | None = None,
    variance_kind: str = "beta",
    bin_width: float | None = None,
) -> Bound:
    """The three terms, from one draw of the noise at each evaluated timestep.

    Args:
        denoise: D(x, sigma).
        x0: (B, ...).
        schedule: the chain.
        noise_of: noise of evaluation 0, 1, ..; the last one is for the decoder.
        timesteps: (K, B), 1 .. T-1; the chain of a sample is the mean over K of L_(t-1) / p_t, which is unbiased if they are drawn
            with `probabilities` (see `spread_timesteps`). None = every timestep.
        probabilities: (T,), p_t of `timesteps`.
        variance_kind: variance of p(x_(t-1) | x_t), one of `posterior.VARIANCES`.
        bin_width: distance of two pixel values, see `decoder_term`.
    """
    if timesteps is None:
        timesteps = torch.arange(1, schedule.num_train_timesteps)[:, None].expand(-1, len(x0))
        weights = torch.ones_like(timesteps, dtype=torch.float64)
    else:
        assert probabilities is not None, "timesteps come with their probabilities"
        weights = 1 / (probabilities[timesteps] * len(timesteps))
    chain = torch.zeros(len(x0), dtype=torch.float64)
    for number, (t, weight) in enumerate(zip(timesteps, weights, strict=True)):
        chain += weight * chain_term(denoise, x0, noise_of(number), t, schedule, variance_kind)
    decoder = decoder_term(denoise, x0, noise_of(len(timesteps)), schedule, bin_width)
    return Bound(prior=prior_term(x0, schedule), chain=chain, decoder=decoder)


def prior_term(x0: Tensor, schedule: Schedule) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, 1)), (B,)."""
    left = schedule.alphas_cumprod[-1].item()
    nats = (left * _flat(x0).square() - left - math.log1p(-left)) / 2
    return nats.sum(1)


def chain_term(denoise: Denoise, x0: Tensor, noise: Tensor, t: Tensor, schedule: Schedule, variance_kind: str = "beta") -> Tensor:
    """L_(t-1) = KL(q(x_(t-1) | x_t, x_0) || p(x_(t-1) | x_t)) of one draw of x_t, (B,), with t (B,) in 1 .. T-1.

    p has the mean of the posterior at D instead of x_0. Where its variance is not the posterior's, each dimension adds its share.
    """
    sigma = schedule.sigmas[t]
    error = _flat(x0 - denoise(x0 + times(noise, sigma), sigma)).square().sum(1)
    of_x0, true, assumed = mean_coefficients(t, schedule)[0], variance(t, schedule), variance(t, schedule, variance_kind)
    ratio = true / assumed
    dims = x0[0].numel()
    return of_x0**2 / (2 * assumed) * error + dims / 2 * (ratio - 1 - ratio.log())


def decoder_term(denoise: Denoise, x0: Tensor, noise: Tensor, schedule: Schedule, bin_width: float | None = None) -> Tensor:
    """L_0 = -log p(x_0 | x at t = 0) of one draw of that x, (B,): a Gaussian around D with the variance beta_0.

    For pixels, `bin_width` is the distance of two values (2/255 in [-1, 1]), and the Gaussian is integrated over the bin, to
    infinity in the first and the last one (Ho et al. 2020, equation 13). None: a density.
    """
    sigma, std = schedule.sigmas[0], schedule.betas[0].sqrt().item()
    difference = _flat(x0 - denoise(x0 + times(noise, sigma), sigma))
    if bin_width is None:
        return (difference.square() / (2 * std**2) + math.log(std) + math.log(2 * math.pi) / 2).sum(1)
    return -_log_probability_of_bin(difference, _flat(x0), std, bin_width).sum(1)


def bits_per_dim(nats: Tensor, dims: int) -> Tensor:
    """Nats per sample to bits per dimension; a sample has `dims` numbers."""
    return nats / (dims * math.log(2))


def timestep_probabilities(schedule: Schedule) -> Tensor:
    """Probability of each timestep in an evaluation of only some of them: (T,), in proportion to its step in log SNR, 0 at t = 0.

    The chain is half the integral of the noise's squared error over log SNR (Kingma et al. 2021, equation 17), so that terms over these
    probabilities are of similar size.
    """
    steps = schedule.sigmas.log().diff()
    return torch.cat([steps.new_zeros(1), steps / steps.sum()])


def spread_timesteps(schedule: Schedule, *, num: int, positions: range, num_positions: int) -> Tensor:
    """`num` timesteps for each of the samples at `positions` of `num_positions`: (num, B), 1 .. T-1.

    Sample i gets the quantiles (k + (i + 1/2) / num_positions) / num of `timestep_probabilities`: each sample covers all of time, and
    all samples together cover it as evenly as their number allows. Nothing is random.
    """
    offsets = (torch.tensor(positions, dtype=torch.float64) + 0.5) / num_positions
    quantiles = (torch.arange(num, dtype=torch.float64)[:, None] + offsets) / num
    cumulative = timestep_probabilities(schedule).cumsum(0)
    return torch.searchsorted(cumulative, quantiles).clamp(1, schedule.num_train_timesteps - 1)


def _log_probability_of_bin(difference: Tensor, x0: Tensor, std: float, bin_width: float) -> Tensor:
    """log of the integral of N(0, std^2) over the bin around `difference`, exact in the tails (no difference of numbers near 1)."""
    upper, lower = (difference + bin_width / 2) / std, (difference - bin_width / 2) / std
    far, near = -(difference.abs() + bin_width / 2) / std, -(difference.abs() - bin_width / 2) / std  # by symmetry, on the left
    log_near = torch.special.log_ndtr(near)
    inner = log_near + torch.log(-torch.expm1(torch.special.log_ndtr(far) - log_near))
    ends = torch.where(x0 < 0, torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower))
    return torch.where(x0.abs() > 1 - bin_width / 2, ends, inner)


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1).cpu().double()
