"""The interface between the training loop and a task: batches, a loss and a validation."""

from typing import Protocol

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]

VAL_BATCH = 64  # samples in a forward pass of the validation
VAL_SAMPLES = 256  # held-out samples in the validation, at most


class Task(Protocol):
    """A network, its loss and its validation."""

    num_samples: int  # training samples, for the log

    @property
    def net(self) -> nn.Module:
        """Everything that is trained and stored in checkpoints."""
        ...

    @property
    def averaged(self) -> nn.Module:
        """The part with an EMA of its weights, which is published: `net`, or `net` without the opponent of adversarial training."""
        ...

    def batch(self, positions: range) -> Batch:
        """The samples at these positions with all their random draws (noise, flips, dropout), on the CPU; runs in a thread."""
        ...

    def loss(self, net: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar to minimise, and scalars to log. A logged scalar named `loss` replaces the first one in the curves.

        The curves have the mean of a scalar over steps. A logged tensor (2,) is a sum and a count of samples: the curves have the ratio
        of both, over all steps, and nothing where the count is 0.

        `net` is the wrapped network. Call it and never its parts, or gradients are not averaged over processes.
        """
        ...

    def validate(self, device: torch.device) -> dict[str, float]:
        """Metrics of the held-out split at fixed noise. `self.averaged` has the EMA of the weights while it runs."""
        ...


def chunks(num: int, size: int = VAL_BATCH) -> list[range]:
    """0 .. num - 1 in ranges of `size`; the last one may be shorter."""
    return [range(start, min(start + size, num)) for start in range(0, num, size)]


def mirrored(images: Tensor, flips: Tensor) -> Tensor:
    """images (B, 3, H, W), mirrored left to right where `flips` (B,) bool are true"""
    return torch.where(flips[:, None, None, None], images.flip(-1), images)
