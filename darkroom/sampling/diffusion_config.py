"""What a U-Net must be sampled with, and how it is sampled unless somebody asks for something else."""

import json
from dataclasses import dataclass
from pathlib import Path

from darkroom.diffusion.schedule import Schedule
from darkroom.provenance import write_json

DIFFUSION = "diffusion.json"


@dataclass(frozen=True)
class DiffusionConfig:
    """Lies beside the weights of a U-Net."""

    schedule: Schedule
    prediction: str  # a name in diffusion.denoiser.PREDICTIONS
    sampler: str  # from here on defaults
    steps: int
    guidance_scale: float
    spacing: str = "trailing"  # of the noise levels, a name in diffusion.grids.SPACINGS

    def save(self, folder: Path) -> None:
        schedule_keys = ("kind", "num_train_timesteps", "beta_start", "beta_end", "zero_terminal_snr")
        schedule = {key: getattr(self.schedule, key) for key in schedule_keys}
        rest = {key: getattr(self, key) for key in ("prediction", "sampler", "steps", "guidance_scale", "spacing")}
        write_json(folder / DIFFUSION, {"schedule": schedule, **rest})

    @classmethod
    def load(cls, folder: Path) -> "DiffusionConfig":
        if not (folder / DIFFUSION).is_file():
            raise ValueError(f"{folder} has no {DIFFUSION}: it is not the folder of a U-Net that train_unet or `darkroom import` wrote.")
        content = json.loads((folder / DIFFUSION).read_text(encoding="utf-8"))
        return cls(schedule=Schedule.make(**content.pop("schedule")), **content)
