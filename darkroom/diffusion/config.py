"""Schedule and prediction of a trained U-Net, and the defaults it is sampled with."""

import json
from dataclasses import dataclass
from pathlib import Path

from darkroom.config import TrainUnetParams
from darkroom.diffusion.schedule import Schedule
from darkroom.provenance import write_json

DIFFUSION_FILE = "diffusion.json"


@dataclass(frozen=True)
class DiffusionConfig:
    """The content of diffusion.json, which is stored beside the weights of a U-Net."""

    schedule: Schedule
    prediction: str  # one of diffusion.denoiser.PREDICTIONS
    sampler: str  # this and the following: defaults of sampling
    steps: int
    guidance_scale: float
    spacing: str = "trailing"  # of the noise levels, one of diffusion.schedule.SPACINGS

    @classmethod
    def from_params(cls, params: TrainUnetParams) -> "DiffusionConfig":
        schedule = Schedule.make(**params.schedule.model_dump())
        return cls(schedule=schedule, prediction=params.prediction, **params.sampling.model_dump())

    def save(self, folder: Path) -> None:
        schedule_keys = ("kind", "num_train_timesteps", "beta_start", "beta_end", "zero_terminal_snr")
        schedule = {key: getattr(self.schedule, key) for key in schedule_keys}
        rest = {key: getattr(self, key) for key in ("prediction", "sampler", "steps", "guidance_scale", "spacing")}
        write_json(folder / DIFFUSION_FILE, {"schedule": schedule, **rest})

    @classmethod
    def load(cls, folder: Path) -> "DiffusionConfig":
        path = folder / DIFFUSION_FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing: {folder} is not the folder of a U-Net that train_unet or `darkroom import` wrote.")
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(schedule=Schedule.make(**content.pop("schedule")), **content)
