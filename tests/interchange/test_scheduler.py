"""Schedules in diffusers' words, both ways, against diffusers' schedulers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.diffusion.schedule import KINDS, Schedule
from darkroom.interchange.scheduler import DEFAULTS, read_scheduler, scheduler_config

SD = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def config_of(kind: str, prediction: str = "epsilon", *, zero_terminal_snr: bool = False, spacing: str = "trailing") -> DiffusionConfig:
    schedule = Schedule.make(kind, 1000, 0.0001, 0.02, zero_terminal_snr=zero_terminal_snr)
    return DiffusionConfig(schedule=schedule, prediction=prediction, spacing=spacing, **DEFAULTS)


def theirs(config: dict[str, Any], tmp_path: Path, name: str = "DDIMScheduler") -> Any:
    """Diffusers' scheduler of this configuration, through its own file."""
    diffusers = pytest.importorskip("diffusers")
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    return getattr(diffusers, name).from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_scheduler_of_diffusers_reads_our_noise_levels(kind: str, name: str, tmp_path: Path) -> None:
    config = config_of(kind)
    scheduler = theirs(scheduler_config(config), tmp_path, name)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), config.schedule.alphas_cumprod, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_what_we_write_reads_back_as_it_was(kind: str, zero_terminal_snr: bool) -> None:
    config = config_of(kind, "v_prediction", zero_terminal_snr=zero_terminal_snr)
    back = read_scheduler(json.loads(json.dumps(scheduler_config(config))), "a file")
    assert (back.prediction, back.spacing, back.schedule.zero_terminal_snr) == ("v_prediction", "trailing", zero_terminal_snr)
    torch.testing.assert_close(back.schedule.betas, config.schedule.betas, rtol=1e-12, atol=0)


def test_zero_terminal_snr_is_left_to_the_reader(tmp_path: Path) -> None:
    config = config_of("cosine", "v_prediction", zero_terminal_snr=True)
    scheduler = theirs(scheduler_config(config), tmp_path)
    assert scheduler.alphas_cumprod[-1] < 1e-9
    torch.testing.assert_close(scheduler.alphas_cumprod[:-1].double(), config.schedule.alphas_cumprod[:-1], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(("spacing", "written"), [("trailing", "trailing"), ("leading", "leading"), ("karras", "trailing")])
def test_the_spacing_is_written_or_the_nearest(spacing: str, written: str) -> None:
    assert scheduler_config(config_of("linear", spacing=spacing))["timestep_spacing"] == written


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_scheduler_visits_the_timesteps_that_we_visit(spacing: str, tmp_path: Path) -> None:
    from darkroom.diffusion.schedule import noise_levels

    config = config_of("cosine", spacing=spacing)
    scheduler = theirs(scheduler_config(config), tmp_path)
    scheduler.set_timesteps(7)
    levels = config.schedule.sigmas[scheduler.timesteps]
    torch.testing.assert_close(levels, noise_levels(config.schedule, 7, spacing)[:-1])


def test_stable_diffusions_own_configuration_is_read() -> None:
    config = read_scheduler(SD | {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1, "trained_betas": None}, "a file")
    assert (config.prediction, config.sampler, config.steps, config.guidance_scale, config.spacing) == (
        "epsilon",
        "ddim",
        50,
        7.5,
        "leading",
    )
    torch.testing.assert_close(config.schedule.betas, Schedule.make("scaled_linear", 1000, 0.00085, 0.012).betas)


def test_betas_that_were_rescaled_before_they_were_written_are_recognised() -> None:
    betas = Schedule.make("scaled_linear", 1000, 0.00085, 0.012, zero_terminal_snr=True).betas
    config = read_scheduler(SD | {"trained_betas": betas.tolist()}, "a file")
    assert config.schedule.zero_terminal_snr
    torch.testing.assert_close(config.schedule.betas, betas)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "flow"}, r"a file: `prediction_type` is 'flow'; expected one of epsilon, v_prediction, sample"),
        ({"timestep_spacing": "random"}, r"`timestep_spacing` is 'random'; expected one of leading, trailing, linspace"),
        ({"beta_schedule": "laplace"}, r"`beta_schedule` is 'laplace'; expected one of linear, scaled_linear, squaredcos_cap_v2, sigmoid"),
        ({"trained_betas": [0.1, 0.1, 0.1]}, r"`trained_betas` do not match any known schedule \(linear, .*flow\)"),
    ],
)
def test_a_schedule_that_is_not_built_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_scheduler(SD | changes, "a file")


def test_a_scheduler_without_betas_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"`beta_schedule` is missing \(FlowMatchEulerDiscreteScheduler\); models of Stable",
    ):
        read_scheduler({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}, "a file")


def test_a_prediction_that_no_pipeline_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Models with prediction 'flow' cannot be exported: the StableDiffusionPipeline has epsilon, "):
        scheduler_config(config_of("flow", "flow"))
