"""Noise by seed: that of a seed does not depend on the other seeds of its batch."""

from collections.abc import Sequence

import torch
from torch import Tensor


class SeededNoise:
    """Draw after draw of standard normal noise (B, C, h, w): the first to begin with, the others for samplers that ask for more."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> None:
        """
        Raises:
            ValueError: a seed that does not fit into 64 bits.
        """
        if wrong := [seed for seed in seeds if not -(2**63) <= seed < 2**64]:
            raise ValueError(f"The seed {wrong[0]} is out of range: take one from {-(2**63)} to {2**64 - 1}.")
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # on the CPU: the same on every device
        self.shape = shape
        self.device = device

    def __call__(self, index: int = 0) -> Tensor:
        """Draws are handed out in order, whatever the index."""
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators]).to(self.device)


def no_noise(index: int) -> Tensor:
    """For samplers that were to do without.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "This sampler draws fresh noise in its steps, and there are no seeds to draw it from: take one that does not, e.g. ddim, heun or "
        "dpmpp_2m. (With `sample`, seeds beside the noise will do too.)"
    )
