"""Second order and higher with one evaluation per step: earlier evaluations extrapolate D.

In lambda = -log sigma the ODE has a closed-form solution up to D (Lu et al. 2022, DPM-Solver++, equation 8): a step of
length h = lambda_next - lambda ends in sigma_next / sigma x plus (1 - e^-h) times a weighted mean of D along the step.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise
from darkroom.diffusion.samplers.step import NoiseAt, Step, walk


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """DPM-Solver++(2M): the mean of D is its linear extrapolation from two evaluations to mid-step (Lu et al. 2022, algorithm 2)."""
    past: _Evaluation | None = None
    for index, sigma, sigma_next in walk(sigmas):
        now = _Evaluation(x, denoise(x, sigma), sigma, h=(sigma / sigma_next).log())
        x = sigma_next / sigma * x - torch.expm1(-now.h) * _mid_step(now, past)
        past = now
        yield Step(index, float(sigma), x, now.denoised)


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M): the same for the reverse SDE; with D constant along the step it is `ddpm` (Lu et al. 2022, appendix B)."""
    past: _Evaluation | None = None
    for index, sigma, sigma_next in walk(sigmas):
        now = _Evaluation(x, denoise(x, sigma), sigma, h=(sigma / sigma_next).log())
        renewed = -torch.expm1(-2 * now.h)  # share of the variance
        x = (sigma_next / sigma) ** 2 * x + renewed * _mid_step(now, past)
        if sigma_next > 0:
            assert noise_at is not None, "dpmpp_2m_sde needs noise_at"
            x = x + sigma_next * renewed.sqrt() * noise_at(index)
        past = now
        yield Step(index, float(sigma), x, now.denoised)


def unipc(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """UniPC of order 2, B(h) = e^h - 1 (Zhao et al. 2023, algorithm 1): the predictor is `dpmpp_2m`. The evaluation at the
    end of a step, which the next step needs anyway, corrects that step: third order with one evaluation per step.
    """
    past: _Evaluation | None = None
    before: _Evaluation | None = None  # the one before `past`
    for index, sigma, sigma_next in walk(sigmas):
        denoised = denoise(x, sigma)
        if past is not None:
            x = _corrected(denoised, sigma, past, before)
        now = _Evaluation(x, denoised, sigma, h=(sigma / sigma_next).log())
        x = sigma_next / sigma * x - torch.expm1(-now.h) * _mid_step(now, past)
        past, before = now, past
        yield Step(index, float(sigma), x, denoised)


class _Evaluation(NamedTuple):
    x: Tensor  # before the step
    denoised: Tensor
    sigma: Tensor
    h: Tensor  # length of the step that follows; infinite if it is the last


def _mid_step(now: _Evaluation, past: _Evaluation | None) -> Tensor:
    """D, extrapolated to the middle of the following step; D itself in the first and in the last step."""
    if past is None or now.h.isinf():
        return now.denoised
    return now.denoised + now.h / (2 * past.h) * (now.denoised - past.denoised)


def _corrected(denoised: Tensor, sigma: Tensor, past: _Evaluation, before: _Evaluation | None) -> Tensor:
    """The end of the step from `past` to `sigma`, given D at the end (Zhao et al. 2023, equation 9).

    D along the step, at s = 0 .. 1 of its length, is the parabola through its value `before`, at 0 and at 1. Its mean has the weight
    e^(-h (1 - s)); the paper's b_1 and b_2 are the means of s and s^2. The first step has a line, with the paper's weight 1/2.
    """
    h = past.h
    change = denoised - past.denoised
    if before is None:
        mean = past.denoised + change / 2
    else:
        weight = -torch.expm1(-h)
        mean_s, mean_s2 = 1 / weight - 1 / h, (1 - 2 / h) / weight + 2 / h**2
        s_before = -before.h / h
        quadratic = (change - (before.denoised - past.denoised) / s_before) / (1 - s_before)
        mean = past.denoised + mean_s * (change - quadratic) + mean_s2 * quadratic
    return sigma / past.sigma * past.x - torch.expm1(-h) * mean
