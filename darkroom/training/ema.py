"""The exponential moving average of the weights, which is what validation, pictures and the published model use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages the parameters of `net`; with `decay` 0 the average is the net itself."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters: list[Tensor] = list(net.parameters())
        self.names = [name for name, _ in net.named_parameters()]
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` (from 0). The decay grows as (1 + step) / (10 + step), so that early weights fade."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Within, the net has the averaged weights."""
        kept = [parameter.detach().clone() for parameter in self.parameters]
        torch._foreach_copy_(self.parameters, self.average)
        try:
            yield
        finally:
            torch._foreach_copy_(self.parameters, kept)

    @torch.no_grad()
    def publish(self) -> None:
        """Leaves the averaged weights in the net."""
        torch._foreach_copy_(self.parameters, self.average)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        torch._foreach_copy_(self.average, [state[name] for name in self.names])
