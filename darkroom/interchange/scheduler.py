"""Noise schedule and prediction in the format of diffusers: scheduler/scheduler_config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darkroom.choices import SpacingName
from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.diffusion.schedule import KINDS, Schedule

# diffusers' names -> ours
BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
SPACINGS: dict[str, SpacingName] = {"leading": "leading", "trailing": "trailing", "linspace": "trailing"}  # or the most similar
# ours -> diffusers' names, if all of its schedulers have them
NAMED = {"linear": "linear", "scaled_linear": "scaled_linear", "quadratic": "scaled_linear"}
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
DEFAULTS: dict[str, Any] = {"sampler": "ddim", "steps": 50, "guidance_scale": 7.5}  # those of the StableDiffusionPipeline
STABLE_DIFFUSION: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
SAME_BETAS = 1e-2  # relative; rounding to half precision is less, the difference of two schedules more


def read_scheduler(config: Mapping[str, Any], where: Path | str) -> DiffusionConfig:
    """Schedule, prediction and spacing from the configuration of a scheduler; its algorithm is not a property of the model.

    Raises:
        ValueError: a schedule or a prediction that is not implemented.
    """
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise ValueError(f"{where}: `prediction_type` is {prediction!r}; expected one of {', '.join(PREDICTION_TYPES)}.")
    spacing = config.get("timestep_spacing", "leading")
    if spacing not in SPACINGS:
        raise ValueError(f"{where}: `timestep_spacing` is {spacing!r}; expected one of {', '.join(SPACINGS)}.")
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(
            f"{where}: `beta_schedule` is missing ({config.get('_class_name')}); models of Stable Diffusion 1.x and 2.x have it."
        )
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
        raise ValueError(f"{where}: `beta_schedule` is {config['beta_schedule']!r}; expected one of {', '.join(BETA_SCHEDULES)}.")
    return DiffusionConfig(schedule=schedule, prediction=prediction, spacing=SPACINGS[spacing], **DEFAULTS)


def recognise(betas: Tensor, numbers: Mapping[str, Any], where: Path | str) -> Schedule:
    """Our schedule with these betas (T,).

    Raises:
        ValueError: no schedule has them.
    """
    numbers = dict(numbers) | {"num_train_timesteps": len(betas)}
    for kind in KINDS:
        for rescaled in (False, True):
            schedule = Schedule.make(kind, **numbers | {"zero_terminal_snr": rescaled})
            if has_betas(schedule, betas):
                return Schedule.make(kind, **numbers | {"zero_terminal_snr": rescaled or numbers["zero_terminal_snr"]})
    raise ValueError(f"{where}: `trained_betas` do not match any known schedule ({', '.join(KINDS)}).")


def has_betas(schedule: Schedule, betas: Tensor) -> bool:
    """Whether `betas` (T,) are those of the schedule, up to rounding."""
    return schedule.betas.shape == betas.shape and torch.allclose(schedule.betas, betas.double(), rtol=SAME_BETAS, atol=0)


def scheduler_config(diffusion: DiffusionConfig) -> dict[str, Any]:
    """The configuration of a DDIMScheduler of diffusers that takes the same steps as ours; other schedulers read it too.

    A schedule without a name in diffusers is written as a list of betas.

    Raises:
        ValueError: a prediction that the schedulers of Stable Diffusion do not have.
    """
    schedule, prediction = diffusion.schedule, diffusion.prediction
    if prediction not in PREDICTION_TYPES:
        raise ValueError(
            f"Models with prediction {prediction!r} cannot be exported: the StableDiffusionPipeline has {', '.join(PREDICTION_TYPES)}."
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
        "set_alpha_to_one": True,  # the last step ends in the clean image
        "steps_offset": 1,  # used by spacing `leading` only; the pipeline requires this value
        "clip_sample": False,
        "thresholding": False,
    }


def plain_betas(schedule: Schedule) -> Tensor:
    """The betas (T,) without the rescaling to zero terminal SNR, which the reader applies."""
    return Schedule.make(schedule.kind, schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end).betas
