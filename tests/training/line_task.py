"""A task small enough to train in a blink: fit a line, with noise that depends on the position alone."""

import torch
from torch import Tensor, nn

from darkroom.config import TrainingParams
from darkroom.training.draws import normal, shuffled

LINE_PARAMS = {
    "steps": 12, "batch_size": 8, "gradient_accumulation": 1, "lr": 0.05, "warmup_steps": 2, "lr_decay": "cosine",
    "weight_decay": 0.01, "grad_clip": 1.0, "ema_decay": 0.9, "precision": "fp32", "log_every": 5, "val_every": 4,
    "checkpoint_every": 3, "num_processes": 1, "seed": 0,
}  # fmt: skip


def line_params(**changes: object) -> TrainingParams:
    return TrainingParams.model_validate(LINE_PARAMS | changes)


class LineTask:
    num_samples = 20

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net: nn.Module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.inputs = torch.linspace(-1, 1, 60).reshape(20, 3)

    @property
    def averaged(self) -> nn.Module:
        return self.net

    def batch(self, positions: range) -> dict[str, Tensor]:
        inputs = self.inputs[shuffled(positions, num_samples=20, seed=0)]
        return {"inputs": inputs + 0.1 * normal((3,), seed=0, stream="noise", positions=positions)}

    def loss(self, net: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        error = net(batch["inputs"]).squeeze(1) - batch["inputs"].sum(1)
        return error.square().mean(), {"error": error.abs().mean()}

    def validate(self, device: torch.device) -> dict[str, float]:
        return {"loss": float(self.loss(self.net, {"inputs": self.inputs.to(device)})[0].detach())}
