"""Solvers of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma (Karras et al. 2022, equation 3)."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise
from darkroom.diffusion.samplers.step import NoiseAt, Step, walk

LONGEST_HEUN = 20.0  # sigma / sigma_next; it can be 1000 times as large in the first step of cosine schedules and zero terminal SNR
SIGMA_END = 0.02  # ode_adaptive solves the ODE down to here (or to the last noise level, if lower); D is the last step


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """First-order steps, equal to those of `ddim` with eta 0."""
    for index, sigma, sigma_next in walk(sigmas):
        denoised = denoise(x, sigma)
        x = euler_step(x, denoised, sigma, sigma_next)
        yield Step(index, float(sigma), x, denoised)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
    """Second order with two evaluations per step (Karras et al. 2022, algorithm 1), except for first-order steps at both ends.

    The last step is of first order because sigma 0 has no slope. So is a step with sigma > LONGEST_HEUN sigma_next: there the mean
    of the two slopes moves x by (sigma / sigma_next - 1) / 2 times the change of D, so that small errors of D would dominate.
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
    """Dormand-Prince 5(4) with an error of at most `tolerance`, relative or absolute, per step (Song et al. 2021, appendix D.4).

    `sigmas` are the levels at which states are reported; the solver chooses its own steps, about 100 to 300 evaluations per sample.
    Each sample has its own step sizes, so that it does not depend on its batch. D may depend on the batch (its prompts) and is
    therefore evaluated on whole batches, B times as often: draw one sample at a time.

    Raises:
        ValueError: D is not finite, or not smooth enough for any step size.
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
    """The solver of sample `row`, for y = x / sqrt(1 + sigma^2) in log sigma.

    dy / dlog sigma = (y / sqrt(1 + sigma^2) - D) / sqrt(1 + sigma^2) has the size of the data at every noise level.
    """
    from scipy.integrate import RK45

    def slope(log_sigma: float, y: np.ndarray) -> np.ndarray:
        shrink = 1 / math.hypot(1, math.exp(log_sigma))
        state = torch.from_numpy(y / shrink).to(x).reshape(1, *x.shape[1:])
        denoised = denoise(state.expand_as(x), torch.tensor(log_sigma, dtype=torch.float64).exp())[row]
        if not denoised.isfinite().all():
            raise ValueError(f"The prediction of the network at sigma {math.exp(log_sigma):.4g} is not finite.")
        return (y * shrink - _flat(denoised)) * shrink

    first, last = float(sigmas[0]), min(float(sigmas[-2]), SIGMA_END)
    start = _flat(x[row]) / math.hypot(1, first)
    return RK45(slope, math.log(first), start, math.log(last), rtol=tolerance, atol=tolerance)


def _advance(solver: Any, sigma: float) -> Tensor:
    """x at noise level `sigma`, which is lower than in all earlier calls: (C * h * w,) float64."""
    while solver.t > math.log(sigma) and solver.status == "running":
        solver.step()
    if solver.status == "failed":
        raise ValueError(
            f"ode_adaptive found no step size that is small enough at sigma {math.exp(solver.t):.4g}: the prediction of the network is not "
            "smooth there. Use another sampler."
        )
    return torch.from_numpy(solver.dense_output()(math.log(sigma)) * math.hypot(1, sigma))


def _flat(x: Tensor) -> np.ndarray:
    return x.detach().to("cpu", torch.float64).numpy().reshape(-1)


def euler_step(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """x + (sigma_next - sigma) (x - D) / sigma, in a form that does not cancel when sigma is huge."""
    return denoised + sigma_next / sigma * (x - denoised)
