"""AdamW with decay on matrices only, and the learning rate as a function of the step."""

import math

import torch
from torch import nn


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
