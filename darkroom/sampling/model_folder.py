"""A model on disk: what the stages, an import and the registry leave in one folder."""

import json
from pathlib import Path
from typing import Self

from pydantic import InstanceOf

from darkroom.choices import Prediction, SpacingName
from darkroom.config import SamplerParams
from darkroom.diffusion.schedule import Schedule
from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel
from darkroom.models.weights import load_model
from darkroom.provenance import INDEX, check_lineage, read_index, write_json
from darkroom.sampling import PARTS
from darkroom.sampling.request import Options

DIFFUSION = "diffusion.json"


class DiffusionConfig(SamplerParams):
    """What a U-Net must be sampled with, and the defaults for what may be chosen. Lies beside its weights."""

    schedule: InstanceOf[Schedule]
    prediction: Prediction
    spacing: SpacingName = "trailing"  # for files of older models, which do not say it

    @property
    def defaults(self) -> Options:
        return Options(**{name: getattr(self, name) for name in SamplerParams.model_fields})  # type: ignore[typeddict-item]

    def save(self, folder: Path) -> None:
        keys = ("kind", "num_train_timesteps", "beta_start", "beta_end", "zero_terminal_snr")
        schedule = {key: getattr(self.schedule, key) for key in keys}
        write_json(folder / DIFFUSION, {"schedule": schedule, "prediction": self.prediction, **self.defaults})

    @classmethod
    def load(cls, folder: Path) -> Self:
        if not (folder / DIFFUSION).is_file():
            raise ValueError(f"{folder} has no {DIFFUSION}: it is not a U-Net folder written by train_unet or `darkroom import`.")
        content = json.loads((folder / DIFFUSION).read_text(encoding="utf-8"))
        return cls(schedule=Schedule.make(**content.pop("schedule")), **content)


class ModelFolder:
    """A folder with clip/, vae/ and unet/. Each part is read when it is asked for, so that not all of them need to be in memory."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError if a part is missing or damaged, or the parts come from different runs."""
        if missing := [name for name in PARTS if not (folder / name).is_dir()]:
            raise ValueError(
                f"{folder} has no folder {missing[0]}/: a model is a folder with clip/, vae/ and unet/ (data/ after `dvc repro`)."
            )
        check_lineage({name: read_index(folder / name) for name in PARTS if (folder / name / INDEX).is_file()})
        self.folder = folder

    def clip(self) -> ClipTowers:
        return ClipTowers.load(self.folder / "clip")

    def vae(self) -> AutoencoderKL:
        return load_model(AutoencoderKL, self.folder / "vae")

    def unet(self) -> UNet2DConditionModel:
        return load_model(UNet2DConditionModel, self.folder / "unet")

    def diffusion(self) -> DiffusionConfig:
        return DiffusionConfig.load(self.folder / "unet")
