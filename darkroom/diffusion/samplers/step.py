"""What all samplers share: the step that they report, where their noise comes from, the grid that they walk down."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise

NoiseAt = Callable[[int], Tensor]  # k -> the k-th draw of standard normal noise (B, C, h, w); asked in order, each once


@dataclass(frozen=True)
class Step:
    index: int
    sigma: float  # the noise level that the step began at
    x: Tensor  # (B, C, h, w) after the step
    denoised: Tensor  # (B, C, h, w), the network's view of the final picture at `sigma`


class Sampler(Protocol):
    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
        """x (B, C, h, w) at noise level sigmas[0]; sigmas (steps + 1,) fall and end in 0. The last `Step.x` is the picture."""


def walk(sigmas: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """index, sigma, next sigma, as float64 on the CPU: coefficients cost no synchronisation with an accelerator."""
    sigmas = sigmas.detach().to("cpu", torch.float64)
    assert (sigmas.diff() < 0).all(), "sigmas must fall"
    assert sigmas[-1] == 0, "sigmas must end in 0"
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        yield index, sigma, sigma_next
