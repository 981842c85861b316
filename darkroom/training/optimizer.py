"""How weights change: AdamW or Muon, the learning rate as a function of the step, and the moving average (EMA) of the weights."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from darkroom.choices import OptimizerName

LEAST_SIDE = 32  # rows and columns of a matrix that Muon takes; AdamW takes smaller ones
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of Jordan et al. 2024: singular values from 0.01 to 1 go to about 0.7 to 1.2 in 5 steps
NEWTON_SCHULZ_STEPS = 5
LEAST_NORM = 1e-7  # a gradient of zeros stays zeros
ADAM_SIZE = 0.2  # root mean square of a step of AdamW, over its learning rate (Liu et al. 2025)


class Muon(torch.optim.AdamW):
    """Muon for the parameters of groups with `muon: True`, AdamW for the others (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982).

    A gradient with Nesterov momentum is replaced by the nearest matrix with equal singular values, so that a step changes all
    directions of a matrix alike. Its size is that of a step of AdamW, so that both have one learning rate. The kernel of a convolution
    is the matrix (out, in x height x width).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"] if group["muon"] else ():
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {"momentum": torch.zeros_like(parameter), "step": torch.tensor(0.0)}  # AdamW looks for `step` when it loads
                momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                direction = orthogonalised(parameter.grad.lerp(momentum, MOMENTUM).flatten(1))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                size = ADAM_SIZE * math.sqrt(max(direction.shape))
                parameter.add_(direction.reshape(parameter.shape), alpha=-group["lr"] * size)
                parameter.grad = None  # AdamW passes over parameters without a gradient
        return super().step(closure)


def orthogonalised(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition U S V^T of (M, N), about: singular values become 0.7 to 1.2.

    By Newton-Schulz iterations, in bf16 on a GPU. On the CPU a wide matrix X is not iterated itself: each iteration multiplies it
    from the left by a polynomial of X X^T, and the product Q of these small matrices gives Q X at the end.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = iterated_by_gram(x) if not matrix.is_cuda and _is_wide(*x.shape) else iterated(x.bfloat16() if matrix.is_cuda else x)
    return (x.T if is_tall else x).to(matrix.dtype)


def _is_wide(rows: int, columns: int) -> bool:
    """Whether `iterated_by_gram` needs less arithmetic than `iterated`: see `newton_schulz_flop`."""
    return columns > 1.5 * rows


def iterated(x: Tensor) -> Tensor:
    """Newton-Schulz iterations of (M, N), M <= N, of the norm 1."""
    a, b, c = NEWTON_SCHULZ
    x = x / (x.norm() + LEAST_NORM)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def iterated_by_gram(x: Tensor) -> Tensor:
    """As `iterated`. With P = a I + b G + c G^2 an iteration is X -> P X and G = X X^T -> P G P; all P and G commute."""
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.T
    norm = gram.trace().sqrt() + LEAST_NORM
    gram = gram / norm.square()
    factors: list[Tensor] = []
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = factors[-1] @ gram @ factors[-1] if factors else gram
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        factors.append(factor)
    return (torch.linalg.multi_dot(factors) @ x) / norm


def newton_schulz_flop(net: nn.Module) -> float:
    """Arithmetic of `orthogonalised` on the CPU for all matrices that Muon takes of `net`, in a step."""

    def flop(side: int, length: int) -> float:
        if _is_wide(side, length):
            return 4.0 * side**2 * length + (8 * NEWTON_SCHULZ_STEPS - 6) * side**3
        return NEWTON_SCHULZ_STEPS * (4.0 * side**2 * length + 2 * side**3)

    shapes = [parameter.flatten(1).shape for parameter in _matrices(net)]
    return sum(flop(min(shape), max(shape)) for shape in shapes)


def _matrices(net: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of `net` that Muon takes."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return [parameter for parameter in trained if parameter.dim() >= 2 and min(parameter.flatten(1).shape) >= LEAST_SIDE]


def make_optimizer(net: nn.Module, *, kind: OptimizerName, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), or Muon for all matrices but small ones; biases, norms and scalars are not decayed."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    large = _matrices(net) if kind == "muon" else []
    taken = {id(parameter) for parameter in large}
    others = [parameter for parameter in trained if id(parameter) not in taken]
    groups = [
        {"params": [parameter for parameter in others if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in others if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
    groups = [{**group, "muon": False} for group in groups] + [{"params": large, "weight_decay": weight_decay, "muon": True}]
    return Muon(groups, lr=lr, betas=(0.9, 0.99), fused=True)


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
