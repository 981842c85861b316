"""Sigma grids: which noise levels a sampler visits on its way from the schedule's last one down to 0."""

import math
from typing import get_args

import torch
from torch import Tensor

from darkroom.choices import SpacingName
from darkroom.diffusion.schedule import Schedule

KARRAS_RHO = 7.0  # Karras et al. 2022, equation 5
MOST_NOISE = math.exp(5.1)  # where DPM-Solver cuts cosine schedules (Lu et al. 2022, lambda = -5.1): above it there is no picture
SPACINGS = get_args(SpacingName)


def sigma_grid(schedule: Schedule, steps: int, spacing: str = "trailing") -> Tensor:
    """The noise levels of a walk of `steps` steps: (steps + 1,) float64, falling, the last one 0.

    The first level is the schedule's last sigma, except with "leading". Spacings that are even in a function of sigma leave what
    lies above MOST_NOISE (in cosine and flow schedules, and those of zero terminal SNR) in their first step.

    Args:
        schedule: whose sigmas are visited.
        steps: at least 1; need not divide the number of timesteps.
        spacing:
            "trailing": evenly spaced timesteps that begin at the last one (Lin et al. 2024, table 2).
            "leading": evenly spaced timesteps that end at 1, T // steps apart: what diffusers makes of the `steps_offset: 1` of
                Stable Diffusion. The last timesteps, those with the most noise, are never visited.
            "karras": even in sigma^(1/7) (Karras et al. 2022, equation 5).
            "exponential": even in log sigma down to the schedule's first sigma, and from there to 0.
            "uniform_lambda": even in lambda = -log sigma too, but the last of the even steps goes to 0 instead of to the first
                sigma (Lu et al. 2022, DPM-Solver, section 3.3).

    Raises:
        ValueError: steps below 1, more steps than there are timesteps for them, or an unknown spacing.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; a sampler takes at least 1.")
    if spacing not in SPACINGS:
        raise ValueError(f"There is no spacing {spacing!r}; there are {', '.join(SPACINGS)}.")
    if spacing in ("trailing", "leading"):
        levels = schedule.sigmas[_timesteps(schedule.num_train_timesteps, steps, spacing)]
    else:
        low, high = schedule.sigmas[[0, -1]].tolist()
        beyond = [high] if high > MOST_NOISE else []
        rest = _between(MOST_NOISE if beyond else high, low, steps - len(beyond), spacing)
        levels = torch.cat([torch.tensor(beyond, dtype=torch.float64), rest])
    return torch.cat([levels, levels.new_zeros(1)])


def _timesteps(num_train_timesteps: int, steps: int, spacing: str) -> Tensor:
    """Whole timesteps, falling."""
    most = num_train_timesteps if spacing == "trailing" else num_train_timesteps - 1
    if steps > most:
        raise ValueError(f"{steps} {spacing} steps do not fit into the schedule's {num_train_timesteps} timesteps; take at most {most}.")
    if spacing == "leading":
        return torch.arange(steps).flip(0) * (num_train_timesteps // steps) + 1
    count = torch.arange(steps, dtype=torch.float64)
    return (num_train_timesteps * (1 - count / steps)).round().long() - 1


def _between(high: float, low: float, num: int, spacing: str) -> Tensor:
    """`num` levels from `high` on, evenly spaced in a function of sigma."""
    if spacing == "karras":
        return torch.linspace(high ** (1 / KARRAS_RHO), low ** (1 / KARRAS_RHO), num, dtype=torch.float64) ** KARRAS_RHO
    if spacing == "exponential":
        return torch.linspace(math.log(high), math.log(low), num, dtype=torch.float64).exp()
    return torch.linspace(math.log(high), math.log(low), num + 1, dtype=torch.float64)[:-1].exp()
