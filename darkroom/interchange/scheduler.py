"""Noise schedule and prediction in diffusers' words: scheduler/scheduler_config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darkroom.diffusion.schedule import Schedule

BETA_SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}  # theirs -> ours
NAMED = {"linear": "linear", "scaled_linear": "scaled_linear", "quadratic": "scaled_linear"}  # ours -> theirs, in every scheduler
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SAME_BETAS = 1e-4  # relative; schedulers compute in fp32
TRAINED_KINDS = ("cosine", "sigmoid", "flow", "scaled_linear", "linear")


def read_scheduler(config: Mapping[str, Any], where: Path | str) -> tuple[Schedule, str]:
    """Schedule and prediction that a scheduler's configuration describes; how it steps does not matter to a model.

    Raises:
        ValueError: a schedule or a prediction that is not built here.
    """
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(f"{where}: `prediction_type` is {prediction!r}; there are {', '.join(PREDICTIONS)}.")
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(f"{where}: a {config.get('_class_name')} has no betas; models of Stable Diffusion 1.x and 2.x have.")
    numbers = {
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "beta_start": config.get("beta_start", 0.0001),  # diffusers' defaults
        "beta_end": config.get("beta_end", 0.02),
        "zero_terminal_snr": config.get("rescale_betas_zero_snr", False),
    }
    if config.get("trained_betas") is not None:
        return recognise(torch.tensor(config["trained_betas"], dtype=torch.float64), numbers, where), prediction
    kind = config["beta_schedule"]
    if kind not in BETA_SCHEDULES:
        raise ValueError(f"{where}: `beta_schedule` is {kind!r}; there are {', '.join(BETA_SCHEDULES)}.")
    return Schedule.make(BETA_SCHEDULES[kind], **numbers), prediction


def recognise(betas: Tensor, numbers: Mapping[str, Any], where: Path | str, kinds: tuple[str, ...] = TRAINED_KINDS) -> Schedule:
    """The schedule of ours that has these betas (T,).

    Raises:
        ValueError: none has.
    """
    numbers = dict(numbers) | {"num_train_timesteps": len(betas)}
    for kind in kinds:
        for rescaled in (False, True):
            schedule = Schedule.make(kind, **numbers | {"zero_terminal_snr": rescaled})
            if torch.allclose(schedule.betas, betas.double(), rtol=SAME_BETAS, atol=0):
                return Schedule.make(kind, **numbers | {"zero_terminal_snr": rescaled or numbers["zero_terminal_snr"]})
    raise ValueError(f"{where}: `trained_betas` are those of none of the schedules that are built here ({', '.join(kinds)}).")


def scheduler_config(schedule: Schedule, prediction: str) -> dict[str, Any]:
    """The configuration of diffusers' DDIMScheduler that takes the same steps as ours; other schedulers read it too.

    A schedule that diffusers does not have under a name is written beta by beta.

    Raises:
        ValueError: a prediction that no scheduler with betas has.
    """
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
        "timestep_spacing": "trailing",  # from the last timestep, where nothing but noise is left
        "set_alpha_to_one": True,  # ... down to the clean picture
        "steps_offset": 1,  # of spacing `leading` alone; the pipeline wants this value
        "clip_sample": False,
        "thresholding": False,
    }


def plain_betas(schedule: Schedule) -> Tensor:
    """Before any rescaling to zero terminal SNR, which the reader does: (T,)"""
    return Schedule.make(schedule.kind, schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end).betas
