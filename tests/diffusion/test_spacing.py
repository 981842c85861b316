"""Spacings of the noise levels, held against the definitions of the papers and the schedulers of diffusers."""

from typing import Any, get_args

import pytest
import torch

from darkroom.diffusion.samplers import SAMPLERS
from darkroom.diffusion.schedule import KINDS, MOST_NOISE, SPACINGS, Schedule, noise_levels
from darkroom.param_groups import SamplerParams

ENDS = {"beta_start": 1e-4, "beta_end": 0.02}
LINEAR = Schedule.make("linear", 1000, **ENDS)
STRETCHED = Schedule.make("linear", 1000, **ENDS, zero_terminal_snr=True)
FAR = {"cosine": Schedule.make("cosine", 1000, **ENDS), "flow": Schedule.make("flow", 1000, **ENDS), "zero terminal SNR": STRETCHED}

ALL = [*(Schedule.make(kind, 1000, **ENDS) for kind in KINDS), STRETCHED]


def oracle(name: str, steps: int, **options: Any) -> Any:
    scheduler = getattr(pytest.importorskip("diffusers"), name)(1000, **ENDS, **options)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [1, 7, 30, 999])  # most divide 1000 badly
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: schedule.kind)
def test_noise_levels_fall_to_zero_within_the_schedule(schedule: Schedule, spacing: str, steps: int) -> None:
    levels = noise_levels(schedule, steps, spacing)
    assert levels.shape == (steps + 1,)
    assert levels.dtype == torch.float64
    assert (levels.diff() < 0).all()
    assert levels[-1] == 0
    assert levels[-2] >= schedule.sigmas[0] * (1 - 1e-9)
    assert levels[0] <= schedule.sigmas[-1] * (1 + 1e-9)
    if spacing != "leading":
        assert levels[0].item() == pytest.approx(schedule.sigmas[-1].item())


@pytest.mark.parametrize("steps", [1, 3, 30, 700, 1000])
def test_the_trailing_grid_visits_the_timesteps_of_diffusers(steps: int) -> None:
    timesteps = oracle("DDIMScheduler", steps, timestep_spacing="trailing").timesteps
    torch.testing.assert_close(LINEAR.sigma_to_t(noise_levels(LINEAR, steps)[:-1]).round().long(), timesteps)


@pytest.mark.parametrize("steps", [1, 3, 30, 50, 499, 999])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DDPMScheduler"])
def test_the_leading_grid_visits_the_timesteps_of_stable_diffusion_in_diffusers(name: str, steps: int) -> None:
    timesteps = oracle(name, steps, timestep_spacing="leading", steps_offset=1).timesteps
    torch.testing.assert_close(LINEAR.sigma_to_t(noise_levels(LINEAR, steps, "leading")[:-1]).round().long(), timesteps.long())


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize(("spacing", "option"), [("karras", "use_karras_sigmas"), ("exponential", "use_exponential_sigmas")])
def test_karras_and_exponential_spacing_are_those_of_diffusers(spacing: str, option: str, steps: int) -> None:
    sigmas = oracle("EulerDiscreteScheduler", steps, timestep_spacing="linspace", **{option: True}).sigmas
    torch.testing.assert_close(noise_levels(LINEAR, steps, spacing).float(), sigmas, rtol=1e-4, atol=0)


def test_karras_levels_are_even_in_their_seventh_root() -> None:
    roots = noise_levels(LINEAR, 9, "karras")[:-1] ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(8))


def test_uniform_lambda_takes_even_steps_of_which_the_last_would_end_at_the_first_sigma_of_the_schedule() -> None:
    lambdas = -noise_levels(LINEAR, 9, "uniform_lambda")[:-1].log()
    to_the_end = torch.cat([lambdas, -LINEAR.sigmas[:1].log()]).diff()
    torch.testing.assert_close(to_the_end, to_the_end.mean().expand(9))


@pytest.mark.parametrize("schedule", [*FAR.values()], ids=[*FAR])
@pytest.mark.parametrize("spacing", ["karras", "exponential", "uniform_lambda"])
def test_a_schedule_that_goes_beyond_all_pictures_is_left_in_one_step(schedule: Schedule, spacing: str) -> None:
    levels = noise_levels(schedule, 10, spacing)
    assert levels[0] == schedule.sigmas[-1]
    assert levels[1].item() == pytest.approx(MOST_NOISE)
    assert (levels > MOST_NOISE * (1 + 1e-9)).sum() == 1


def test_more_steps_than_timesteps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is 1001; with spacing trailing and 1000 timesteps it must be at most 1000"):
        noise_levels(LINEAR, 1001)
    with pytest.raises(ValueError, match="steps is 1000; with spacing leading and 1000 timesteps it must be at most 999"):
        noise_levels(LINEAR, 1000, "leading")
    assert len(noise_levels(LINEAR, 1200, "karras")) == 1201  # even in sigma: as many as one likes


def test_less_than_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="steps is 0; it must be at least 1"):
        noise_levels(LINEAR, 0)


def test_an_unknown_spacing_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Unknown spacing 'linspace'; expected one of trailing, leading, karras"):
        noise_levels(LINEAR, 5, "linspace")


def test_params_may_name_every_sampler_and_every_spacing_and_no_other() -> None:
    fields = SamplerParams.model_fields
    assert get_args(fields["sampler"].annotation) == tuple(SAMPLERS)
    assert get_args(fields["spacing"].annotation) == SPACINGS
