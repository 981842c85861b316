"""Schedule and prediction of a trained U-Net, and the defaults it is sampled with."""

import json
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import InstanceOf, PositiveFloat
from torch import Tensor

from darkroom.choices import Prediction
from darkroom.config import TrainUnetParams
from darkroom.diffusion.schedule import Schedule
from darkroom.param_groups import SamplerParams
from darkroom.provenance import write_json

DIFFUSION_FILE = "diffusion.json"


class DiffusionConfig(SamplerParams):
    """The content of diffusion.json, which is stored beside the weights of a U-Net."""

    schedule: InstanceOf[Schedule]
    prediction: Prediction
    channel_spread: list[PositiveFloat] | None = None  # of prediction "preconditioned": see `denoiser.scalings`; None = 1
    only_caption: str | None = None  # the only one that the U-Net was trained with, whose embeddings it needs; None = there are several

    @classmethod
    def from_params(cls, params: TrainUnetParams, *, only_caption: str | None = None, channel_spread: list[float] | None = None) -> Self:
        schedule = Schedule.make(**params.schedule.model_dump())
        return cls(
            schedule=schedule,
            prediction=params.prediction,
            channel_spread=channel_spread,
            only_caption=only_caption,
            **params.sampling.model_dump(),
        )

    @property
    def spread(self) -> Tensor | None:
        """`channel_spread` as `denoiser.scalings` takes it: float64 (C,)."""
        return None if self.channel_spread is None else torch.tensor(self.channel_spread, dtype=torch.float64)

    @property
    def defaults(self) -> dict[str, Any]:
        """Sampler, spacing, steps and guidance scale."""
        return {name: getattr(self, name) for name in SamplerParams.model_fields}

    def save(self, folder: Path) -> None:
        keys = ("kind", "num_train_timesteps", "beta_start", "beta_end", "zero_terminal_snr")
        schedule = {key: getattr(self.schedule, key) for key in keys}
        facts = {key: value for key in ("only_caption", "channel_spread") if (value := getattr(self, key)) is not None}
        write_json(folder / DIFFUSION_FILE, {"schedule": schedule, "prediction": self.prediction, **facts, **self.defaults})

    @classmethod
    def load(cls, folder: Path) -> Self:
        path = folder / DIFFUSION_FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing: {folder} is not the folder of a U-Net that train_unet or `darkroom import` wrote.")
        content = json.loads(path.read_text(encoding="utf-8"))
        required = {"schedule", "prediction", *SamplerParams.model_fields} - {"spacing"}  # files of older models do not have it
        if missing := sorted(required - content.keys()):
            raise ValueError(f"{path}: `{missing[0]}` is missing. Restore the file, or make the U-Net again with `dvc repro`.")
        return cls(schedule=Schedule.make(**content.pop("schedule")), **content)
