"""The noise schedule, and the noise levels that a sampler visits. All in float64, on the CPU.

A schedule has two descriptions: beta and alpha-bar of DDPM, sigma of the score literature.

DDPM (Ho et al. 2020) keeps the variance: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, t = 0 .. T-1. Divided by
sqrt(abar_t) the same image is x = x_0 + sigma noise with sigma = sqrt((1 - abar_t) / abar_t) (Karras et al. 2022).
The papers count t from 1; here t = 0 is their 1, and the clean image comes before it.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self, get_args

import torch
from torch import Tensor

from darkroom.choices import ScheduleKind, SpacingName

COSINE_OFFSET = 0.008  # Nichol & Dhariwal 2021, section 3.2
MAX_BETA = 0.999  # there too: the last cosine beta would be 1
TERMINAL_SIGNAL = 2.0**-16  # sqrt(abar) that stands for 0 in a schedule of zero terminal SNR
KARRAS_RHO = 7.0  # Karras et al. 2022, equation 5
MOST_NOISE = math.exp(5.1)  # where DPM-Solver cuts cosine schedules (Lu et al. 2022, lambda = -5.1): above it there is no image
KINDS = get_args(ScheduleKind)
SPACINGS = get_args(SpacingName)


@dataclass(frozen=True, eq=False)
class Schedule:
    kind: str
    num_train_timesteps: int
    beta_start: float
    beta_end: float
    zero_terminal_snr: bool
    betas: Tensor  # (T,), variance that step t adds

    @classmethod
    def make(cls, kind: str, num_train_timesteps: int, beta_start: float, beta_end: float, zero_terminal_snr: bool = False) -> Self:
        """A schedule by name. `quadratic` (DDPM's name) is Stable Diffusion's `scaled_linear`; `cosine` and `flow` do not use betas.

        Args:
            kind: one of KINDS. `flow` has the noise levels of rectified flow (Liu et al. 2023), where x = (1 - s) x_0 + s noise at
                s = (t + 1) / (T + 1): sigma = s / (1 - s) goes from 1/T to T.
            num_train_timesteps: T.
            beta_start: the first beta.
            beta_end: the last beta.
            zero_terminal_snr: stretch the schedule so that no signal is left after its last step (see `zero_terminal`).

        Raises:
            ValueError: an unknown kind, or betas that do not rise within (0, 1).
        """
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"beta_start ({beta_start}) and beta_end ({beta_end}) must satisfy 0 < beta_start <= beta_end < 1.")

        def between(start: float, end: float) -> Tensor:
            return torch.linspace(start, end, num_train_timesteps, dtype=torch.float64)

        match kind:
            case "linear":
                betas = between(beta_start, beta_end)
            case "quadratic" | "scaled_linear":
                betas = between(beta_start**0.5, beta_end**0.5) ** 2
            case "sigmoid":
                betas = beta_start + (beta_end - beta_start) * torch.sigmoid(between(-6, 6))
            case "cosine":
                betas = _cosine_betas(num_train_timesteps)
            case "flow":
                betas = _flow_betas(num_train_timesteps)
            case _:
                raise ValueError(f"Unknown schedule {kind!r}; expected one of {', '.join(KINDS)}.")
        if zero_terminal_snr:
            betas = zero_terminal(betas)
        return cls(kind, num_train_timesteps, beta_start, beta_end, zero_terminal_snr, betas)

    @cached_property
    def alphas(self) -> Tensor:
        return 1 - self.betas

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """abar_t, the share of the image's variance that is left after step t."""
        return self.alphas.cumprod(0)

    @cached_property
    def alphas_cumprod_previous(self) -> Tensor:
        """abar_(t-1); 1 before the first step."""
        return torch.cat([self.betas.new_ones(1), self.alphas_cumprod[:-1]])

    @cached_property
    def sigmas(self) -> Tensor:
        """The ratio of the standard deviations of noise and signal after step t; rising."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    @cached_property
    def snr(self) -> Tensor:
        """The signal-to-noise ratio abar / (1 - abar) after step t."""
        return self.sigmas**-2

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """The fractional timestep of a noise level, by linear interpolation in log sigma; levels beyond the ends become the ends.

        Any shape, float64, on the CPU.
        """
        knots = self.sigmas.log()
        log_sigma = sigma.detach().to("cpu", torch.float64).log().clamp(knots[0], knots[-1])
        right = torch.searchsorted(knots, log_sigma).clamp(1, len(knots) - 1)
        return right - (knots[right] - log_sigma) / (knots[right] - knots[right - 1])

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """Inverse of `sigma_to_t`; t in 0 .. T-1, whole or fractional."""
        knots = self.sigmas.log()
        t = t.detach().to("cpu", torch.float64)
        left = t.floor().long().clamp(0, len(knots) - 2)
        return torch.lerp(knots[left], knots[left + 1], t - left).exp()


def zero_terminal(betas: Tensor) -> Tensor:
    """Betas whose last step leaves no signal (Lin et al. 2024, algorithm 1).

    sqrt(abar) is shifted to end in 0 and scaled to keep its first value. The end is not 0 but TERMINAL_SIGNAL, or half of the step
    before if that is less, because sigma = 1 / sqrt(abar) must be finite. At sigma 65536, the rest of the image and the rounding of
    x = x_0 + sigma noise in fp32 are equally small compared with the noise of the next step, both about 1e-5.
    """
    signal = (1 - betas).cumprod(0).sqrt()
    first, last = signal[0], signal[-1]
    signal = (signal - last) * first / (first - last)
    signal[-1] = (signal[-2] / 2).clamp(max=TERMINAL_SIGNAL)
    return _betas_of(signal**2)


def _betas_of(alphas_cumprod: Tensor) -> Tensor:
    return 1 - alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])


def _flow_betas(num_train_timesteps: int) -> Tensor:
    """Betas of sigma_t = s / (1 - s), s = (t + 1) / (T + 1); the variance-preserving abar is 1 / (1 + sigma^2)."""
    sigmas = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / torch.arange(num_train_timesteps, 0, -1, dtype=torch.float64)
    return _betas_of(1 / (1 + sigmas**2))


def _cosine_betas(num_train_timesteps: int) -> Tensor:
    """Betas of abar(t) = cos^2((t/T + s) / (1 + s) * pi/2) (Nichol & Dhariwal 2021, equation 17)."""
    time = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    alphas_cumprod = torch.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=MAX_BETA)


def noise_levels(schedule: Schedule, steps: int, spacing: str = "trailing") -> Tensor:
    """The noise levels of `steps` sampling steps: (steps + 1,) float64, falling, the last one 0.

    The first level is the schedule's last sigma, except with "leading". Spacings that are even in a function of sigma cover
    everything above MOST_NOISE (in cosine and flow schedules, and with zero terminal SNR) in their first step.

    Args:
        schedule: of the model.
        steps: at least 1; need not divide the number of timesteps.
        spacing:
            "trailing": evenly spaced timesteps that begin at the last one (Lin et al. 2024, table 2).
            "leading": evenly spaced timesteps that end at 1, T // steps apart, as in diffusers with Stable Diffusion's
                `steps_offset: 1`. The last timesteps, those with the most noise, are never visited.
            "karras": even in sigma^(1/7) (Karras et al. 2022, equation 5).
            "exponential": even in log sigma down to the first sigma of the schedule, then 0.
            "uniform_lambda": even in lambda = -log sigma too, but the last of the even steps leads to 0 instead of the first
                sigma (Lu et al. 2022, DPM-Solver, section 3.3).

    Raises:
        ValueError: steps below 1, more steps than timesteps, or an unknown spacing.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1.")
    if spacing not in SPACINGS:
        raise ValueError(f"Unknown spacing {spacing!r}; expected one of {', '.join(SPACINGS)}.")
    if spacing in ("trailing", "leading"):
        levels = schedule.sigmas[_timesteps(schedule.num_train_timesteps, steps, spacing)]
    else:
        low, high = schedule.sigmas[[0, -1]].tolist()
        beyond = [high] if high > MOST_NOISE else []
        rest = _between(MOST_NOISE if beyond else high, low, steps - len(beyond), spacing)
        levels = torch.cat([torch.tensor(beyond, dtype=torch.float64), rest])
    return torch.cat([levels, levels.new_zeros(1)])


def _timesteps(num_train_timesteps: int, steps: int, spacing: str) -> Tensor:
    """Integer timesteps, falling."""
    most = num_train_timesteps if spacing == "trailing" else num_train_timesteps - 1
    if steps > most:
        raise ValueError(f"steps is {steps}; with spacing {spacing} and {num_train_timesteps} timesteps it must be at most {most}.")
    if spacing == "leading":
        return torch.arange(steps).flip(0) * (num_train_timesteps // steps) + 1
    count = torch.arange(steps, dtype=torch.float64)
    return (num_train_timesteps * (1 - count / steps)).round().long() - 1


def _between(high: float, low: float, num: int, spacing: str) -> Tensor:
    """`num` levels from `high` downwards, evenly spaced in a function of sigma."""
    if spacing == "karras":
        return torch.linspace(high ** (1 / KARRAS_RHO), low ** (1 / KARRAS_RHO), num, dtype=torch.float64) ** KARRAS_RHO
    if spacing == "exponential":
        return torch.linspace(math.log(high), math.log(low), num, dtype=torch.float64).exp()
    return torch.linspace(math.log(high), math.log(low), num + 1, dtype=torch.float64)[:-1].exp()
