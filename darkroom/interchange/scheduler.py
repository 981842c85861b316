"""Noise schedule and prediction in diffusers' words: scheduler/scheduler_config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darkroom.choices import SpacingName
from darkroom.diffusion.config import DiffusionConfig
from darkroom.diffusion.schedule import KINDS, Schedule

# diffusers' names -> ours
BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
SPACINGS: dict[str, SpacingName] = {"leading": "leading", "trailing": "trailing", "linspace": "trailing"}  # or the nearest
# ours -> diffusers', as far as every scheduler there has them
NAMED = {"linear": "linear", "scaled_linear": "scaled_linear", "quadratic": "scaled_linear"}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
DEFAULTS: dict[str, Any] = {"sampler": "ddim", "steps": 50, "guidance_scale": 7.5}  # of Stable Diffusion's pipeline
STABLE_DIFFUSION: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
SAME_BETAS = 1e-2  # relative; half precision rounds by less, two schedules differ by more


def read_scheduler(config: Mapping[str, Any], where: Path | str) -> DiffusionConfig:
    """Schedule, prediction and spacing of a scheduler's configuration; its way of stepping is no property of a model.

    Raises:
        ValueError: a schedule or a prediction that is not built here.
    """
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(f"{where}: `prediction_type` is {prediction!r}; there are {', '.join(PREDICTIONS)}.")
    spacing = config.get("timestep_spacing", "leading")
    if spacing not in SPACINGS:
        raise ValueError(f"{where}: `timestep_spacing` is {spacing!r}; there are {', '.join(SPACINGS)}.")
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(f"{where}: a {config.get('_class_name')} has no betas; models of Stable Diffusion 1.x and 2.x have.")
    numbers = {
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "beta_start": config.get("beta_start", 0.0001),  # diffusers' defaults
        "beta_end": config.get("beta_end", 0.02),
        "zero_terminal_snr": config.get("rescale_betas_zero_snr", False),
    }
    if config.get("trained_betas") is not None:
        schedule = recognise(torch.tensor(config["trained_betas"], dtype=torch.float64), numbers, where)
    elif config["beta_schedule"] in BETA_SCHEDULES:
        schedule = Schedule.make(BETA_SCHEDULES[config["beta_schedule"]], **numbers)
    else:
        raise ValueError(f"{where}: `beta_schedule` is {config['beta_schedule']!r}; there are {', '.join(BETA_SCHEDULES)}.")
    return DiffusionConfig(schedule=schedule, prediction=prediction, spacing=SPACINGS[spacing], **DEFAULTS)


def recognise(betas: Tensor, numbers: Mapping[str, Any], where: Path | str) -> Schedule:
    """The schedule of ours that has these betas (T,).

    Raises:
        ValueError: none has.
    """
    numbers = dict(numbers) | {"num_train_timesteps": len(betas)}
    for kind in KINDS:
        for rescaled in (False, True):
            schedule = Schedule.make(kind, **numbers | {"zero_terminal_snr": rescaled})
            if has_betas(schedule, betas):
                return Schedule.make(kind, **numbers | {"zero_terminal_snr": rescaled or numbers["zero_terminal_snr"]})
    raise ValueError(f"{where}: `trained_betas` are those of none of the schedules that are built here ({', '.join(KINDS)}).")


def has_betas(schedule: Schedule, betas: Tensor) -> bool:
    """Are these (T,) the schedule's, but for rounding?"""
    return schedule.betas.shape == betas.shape and torch.allclose(schedule.betas, betas.double(), rtol=SAME_BETAS, atol=0)


def scheduler_config(diffusion: DiffusionConfig) -> dict[str, Any]:
    """The configuration of diffusers' DDIMScheduler that takes the same steps as ours; other schedulers read it too.

    A schedule that diffusers does not have under a name is written beta by beta.

    Raises:
        ValueError: a prediction that no scheduler with betas has.
    """
    schedule, prediction = diffusion.schedule, diffusion.prediction
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"Models with prediction {prediction!r} cannot be exported: Stable Diffusion's pipeline has {', '.join(PREDICTIONS)}."
        )
    named = schedule.kind in NAMED
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": NAMED.get(schedule.kind, "linear"),
        "trained_betas": None if named else plain_betas(schedule).tolist(),
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "prediction_type": prediction,
        "timestep_spacing": "leading" if diffusion.spacing == "leading" else "trailing",
        "set_alpha_to_one": True,  # the last step ends in the clean picture
        "steps_offset": 1,  # of spacing `leading` alone; the pipeline wants this value
        "clip_sample": False,
        "thresholding": False,
    }


def plain_betas(schedule: Schedule) -> Tensor:
    """Before any rescaling to zero terminal SNR, which the reader does: (T,)"""
    return Schedule.make(schedule.kind, schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end).betas
