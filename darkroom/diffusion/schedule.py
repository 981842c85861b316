"""The noise schedule in both languages: beta and alpha-bar of DDPM, sigma of the score literature. All in float64, on the CPU.

DDPM (Ho et al. 2020) keeps the variance: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, t = 0 .. T-1. Divided by
sqrt(abar_t) the same picture is x = x_0 + sigma noise with sigma = sqrt((1 - abar_t) / abar_t) (Karras et al. 2022).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

COSINE_OFFSET = 0.008  # Nichol & Dhariwal 2021, section 3.2
MAX_BETA = 0.999  # there too: the last cosine beta would be 1
KARRAS_RHO = 7.0  # Karras et al. 2022, equation 5
KINDS = ("linear", "quadratic", "sigmoid", "scaled_linear", "cosine")


@dataclass(frozen=True, eq=False)
class Schedule:
    kind: str
    num_train_timesteps: int
    beta_start: float
    beta_end: float
    betas: Tensor  # (T,), variance that step t adds

    @classmethod
    def make(cls, kind: str, num_train_timesteps: int, beta_start: float, beta_end: float) -> Self:
        """A schedule by name. `cosine` has no use for the two betas; `quadratic` (DDPM's name) is Stable Diffusion's `scaled_linear`.

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
            case _:
                raise ValueError(f"There is no schedule {kind!r}; there are {', '.join(KINDS)}.")
        return cls(kind, num_train_timesteps, beta_start, beta_end, betas)

    @cached_property
    def alphas(self) -> Tensor:
        return 1 - self.betas

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """abar_t, the share of the picture's variance that is left after step t."""
        return self.alphas.cumprod(0)

    @cached_property
    def sigmas(self) -> Tensor:
        """Rising; the noise-to-signal ratio after step t."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """The fractional timestep of a noise level, by linear interpolation in log sigma; levels beyond the ends get the ends.

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

    def sigma_grid(self, steps: int, spacing: str = "trailing") -> Tensor:
        """The noise levels that a sampler visits: (steps + 1,), falling from the schedule's last sigma, then 0.

        Args:
            steps: at least 1.
            spacing: "trailing", evenly spaced timesteps that begin at the last one (Lin et al. 2024, table 2), or "karras"
                (Karras et al. 2022, equation 5).

        Raises:
            ValueError: steps below 1, more trailing steps than there are timesteps, or an unknown spacing.
        """
        if steps < 1:
            raise ValueError(f"steps is {steps}; a sampler takes at least 1.")
        if spacing == "trailing":
            if steps > self.num_train_timesteps:
                raise ValueError(f"{steps} steps do not fit into the schedule's {self.num_train_timesteps} timesteps; take fewer.")
            count = torch.arange(steps, dtype=torch.float64)
            timesteps = (self.num_train_timesteps * (1 - count / steps)).round().long() - 1
            sigmas = self.sigmas[timesteps]
        elif spacing == "karras":
            ends = self.sigmas[[-1, 0]] ** (1 / KARRAS_RHO)
            sigmas = torch.linspace(ends[0].item(), ends[1].item(), steps, dtype=torch.float64) ** KARRAS_RHO
        else:
            raise ValueError(f"There is no spacing {spacing!r}; there are trailing and karras.")
        return torch.cat([sigmas, sigmas.new_zeros(1)])


def _cosine_betas(num_train_timesteps: int) -> Tensor:
    """Betas of abar(t) = cos^2((t/T + s) / (1 + s) * pi/2) (Nichol & Dhariwal 2021, equation 17)."""
    time = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    alphas_cumprod = torch.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=MAX_BETA)
