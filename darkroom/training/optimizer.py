"""How weights change: AdamW, the learning rate as a function of the step, and the exponential moving average (EMA) of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def adamw(net: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); biases, norms and scalars are not decayed."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)


def learning_rate(step: int, *, lr: float, warmup_steps: int, decay: str, steps: int) -> float:
    """Linear warm-up over `warmup_steps`, then constant or half a cosine down to zero at `steps`."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if decay == "constant":
        return lr
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return lr * 0.5 * (1 + math.cos(math.pi * progress))


class Ema:
    """An average of the trained parameters of `net`, for validation, samples and the published model.

    With `decay` 0 the average is the net itself and takes no memory.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        averaged = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad and decay}
        self.names = list(averaged)
        self.parameters: list[Tensor] = list(averaged.values())
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` (from 0). The decay grows as (1 + step) / (10 + step), so that early weights fade."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if self.average:
            torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the net has the averaged weights, and the average is not to be updated."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """One tensor at a time: a third copy of the weights might not fit."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def publish(self) -> None:
        """Leaves the averaged weights in the net."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.copy_(average)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, average in zip(self.names, self.average, strict=True):
            average.copy_(state[name])
