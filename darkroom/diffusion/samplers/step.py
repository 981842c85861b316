"""The interface of all samplers: the step that they report, the source of their noise, and the loop over noise levels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise

NoiseAt = Callable[[int], Tensor]  # k -> the k-th draw of standard normal noise (B, C, h, w); called in order, once for each k


@dataclass(frozen=True)
class Step:
    index: int
    sigma: float  # the noise level before the step
    x: Tensor  # (B, C, h, w) after the step
    denoised: Tensor  # (B, C, h, w), D(x, sigma) at the start of the step


class Sampler(Protocol):
    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt | None = None) -> Iterator[Step]:
        """x (B, C, h, w) at noise level sigmas[0]; sigmas (steps + 1,) fall and end in 0. The last `Step.x` is the sample."""


def walk(sigmas: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(index, sigma, next sigma) in float64 on the CPU, so that coefficients cost no synchronisation with an accelerator."""
    sigmas = sigmas.detach().to("cpu", torch.float64)
    assert (sigmas.diff() < 0).all(), "sigmas must fall"
    assert sigmas[-1] == 0, "sigmas must end in 0"
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        yield index, sigma, sigma_next
