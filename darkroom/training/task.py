"""What a network needs to be trained by the loop: batches, a loss and a validation."""

from typing import Protocol

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]

VAL_BATCH = 64  # samples a validation forward
VAL_SAMPLES = 256  # held-out samples that validation looks at, at most


class Task(Protocol):
    """A network, its loss and its validation."""

    num_samples: int  # training samples, for the log

    @property
    def net(self) -> nn.Module:
        """All that is trained, and all that a checkpoint holds."""
        ...

    @property
    def averaged(self) -> nn.Module:
        """What outlives training: `net`, or the part of it without an opponent that is only there to train against."""
        ...

    def batch(self, positions: range) -> Batch:
        """The samples at these positions with all their chance (noise, flips, dropout), on the CPU; runs in a thread."""
        ...

    def loss(self, net: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar to minimise, and scalars to log, of which `loss` replaces that scalar in the curves.

        `net` is the wrapped network: call it, never its parts, or gradients do not cross processes.
        """
        ...

    def validate(self, device: torch.device) -> dict[str, float]:
        """Numbers on the held-out split at fixed noise; `self.averaged` has the averaged weights."""
        ...


def chunks(num: int, size: int = VAL_BATCH) -> list[range]:
    """0 .. num - 1 in ranges of `size`, the last one shorter."""
    return [range(start, min(start + size, num)) for start in range(0, num, size)]


def mirrored(images: Tensor, flips: Tensor) -> Tensor:
    """images (B, 3, H, W), those with a flip (B,) bool left to right"""
    return torch.where(flips[:, None, None, None], images.flip(-1), images)
