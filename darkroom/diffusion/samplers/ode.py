"""Solvers of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma (Karras et al. 2022, equation 3)."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise
from darkroom.diffusion.samplers.step import NoiseAt, Step, walk

LONGEST_HEUN = 20.0  # sigma / sigma_next; the first step of a cosine schedule, or of zero terminal SNR, can be 1000 times as long
SIGMA_END = 0.02  # the ODE is followed to here, if the grid itself does not end lower, and D makes the last step


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


def ode_adaptive(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None, tolerance: float = 1e-5
) -> Iterator[Step]:
    """Dormand-Prince 5(4) with an error of at most `tolerance`, relative or absolute, a step (Song et al. 2021, appendix D.4).

    The grid says where states are reported, not how many evaluations there are: about 100 to 300 a picture. Each picture has its own
    step sizes, so that it does not depend on its batch; as D may know the batch (its prompts), it is asked for whole batches, B
    times as many: sample one picture at a time.

    Raises:
        ValueError: D is not finite, or so rough that no step is short enough.
    """
    rows = [_solver(denoise, x, row, sigmas, tolerance) for row in range(len(x))]
    for index, sigma, sigma_next in walk(sigmas):
        denoised = denoise(x, sigma)
        last = min(float(sigma), SIGMA_END)
        reached = float(sigma_next) or last
        if reached < float(sigma):
            x = torch.stack([_advance(solver, reached).to(x).reshape(x.shape[1:]) for solver in rows])
        if sigma_next == 0:
            x = denoised = denoise(x, torch.tensor(last, dtype=torch.float64))
        yield Step(index, float(sigma), x, denoised)


def _solver(denoise: Denoise, x: Tensor, row: int, sigmas: Tensor, tolerance: float) -> Any:
    """Of y = x / sqrt(1 + sigma^2) in log sigma: dy / dlog sigma = (y / sqrt(1 + sigma^2) - D) / sqrt(1 + sigma^2), which is of the
    size of the data at every noise level.
    """
    from scipy.integrate import RK45

    def slope(log_sigma: float, y: np.ndarray) -> np.ndarray:
        shrink = 1 / math.hypot(1, math.exp(log_sigma))
        picture = torch.from_numpy(y / shrink).to(x).reshape(1, *x.shape[1:])
        denoised = denoise(picture.expand_as(x), torch.tensor(log_sigma, dtype=torch.float64).exp())[row]
        if not denoised.isfinite().all():
            raise ValueError(f"What the network says at sigma {math.exp(log_sigma):.4g} is not finite: ode_adaptive cannot go on.")
        return (y * shrink - _flat(denoised)) * shrink

    first, last = float(sigmas[0]), min(float(sigmas[-2]), SIGMA_END)
    start = _flat(x[row]) / math.hypot(1, first)
    return RK45(slope, math.log(first), start, math.log(last), rtol=tolerance, atol=tolerance)


def _advance(solver: Any, sigma: float) -> Tensor:
    """x at noise level `sigma`, which is below all that were asked for before: (C * h * w,) float64."""
    while solver.t > math.log(sigma) and solver.status == "running":
        solver.step()
    if solver.status == "failed":
        raise ValueError(
            f"ode_adaptive found no step short enough at sigma {math.exp(solver.t):.4g}, so rough is what the network says there. "
            "Take another sampler."
        )
    return torch.from_numpy(solver.dense_output()(math.log(sigma)) * math.hypot(1, sigma))


def _flat(x: Tensor) -> np.ndarray:
    return x.detach().to("cpu", torch.float64).numpy().reshape(-1)


def euler_step(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """x + (sigma_next - sigma) (x - D) / sigma, in a form that does not cancel when sigma is huge."""
    return denoised + sigma_next / sigma * (x - denoised)
