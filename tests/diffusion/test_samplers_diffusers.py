"""Step for step, given the same noise, samplers end where the schedulers of diffusers do: within 1e-4 of the norm of x."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom.diffusion.samplers import SAMPLERS, Step
from darkroom.diffusion.samplers.stochastic import ddim
from darkroom.diffusion.schedule import Schedule, noise_levels

diffusers = pytest.importorskip("diffusers")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULE = Schedule.make("scaled_linear", 1000, **BETAS)
OPTIONS: dict[str, dict[str, Any]] = {  # ours -> theirs
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "karras": {"timestep_spacing": "linspace", "use_karras_sigmas": True},
    "exponential": {"timestep_spacing": "linspace", "use_exponential_sigmas": True},
}
GRIDS = [("trailing", 1), ("trailing", 2), ("trailing", 7), ("trailing", 30), ("karras", 4), ("karras", 7), ("exponential", 12)]


def curved(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser without a closed form."""
    return (x / (1 + sigma**2)).tanh() + 0.1 * x.sin() / (1 + sigma)


def noise_at(index: int) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(index), dtype=torch.float64)


def start(sigmas: Tensor) -> Tensor:
    return sigmas[0] * noise_at(1000)


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their draws are ours, in order."""
    for name in ("scheduling_ddpm", "scheduling_ddim", "scheduling_euler_ancestral_discrete", "scheduling_dpmsolver_multistep"):
        draws = iter(range(2000))
        module = getattr(diffusers.schedulers, name)
        monkeypatch.setattr(module, "randn_tensor", lambda *_, draws=draws, **__: noise_at(next(draws)))


def oracle(name: str, steps: int, num_train_timesteps: int = 1000, **options: Any) -> Any:
    scheduler = getattr(diffusers, name)(num_train_timesteps, beta_schedule="scaled_linear", **BETAS, **options)
    scheduler.set_timesteps(steps)
    return scheduler


def preserving_states(scheduler: Any, sigmas: Tensor, **options: Any) -> Iterator[Tensor]:
    """The states of a scheduler whose samples keep their variance, times sqrt(1 + sigma^2): they are ours then."""
    x = start(sigmas)
    for index, t in enumerate(scheduler.timesteps):
        epsilon = (x - curved(x, sigmas[index])) / sigmas[index]
        sample = scheduler.step(epsilon, t, x / (1 + sigmas[index] ** 2).sqrt(), **options).prev_sample
        x = sample * (1 + sigmas[index + 1] ** 2).sqrt()
        yield x


def exploding_states(scheduler: Any, sigmas: Tensor, *, evaluations: int = 1) -> Iterator[Tensor]:
    """The states of a scheduler whose samples are x_0 + sigma noise, as ours are."""
    x, timesteps = start(sigmas), iter(scheduler.timesteps)
    for index in range(len(sigmas) - 1):
        for sigma in sigmas[index : index + evaluations]:
            if sigma > 0:
                t = next(timesteps)
                scheduler.scale_model_input(x, t)
                x = scheduler.step((x - curved(x, sigma)) / sigma, t, x).prev_sample
        yield x


def ours(name: str, sigmas: Tensor, **options: Any) -> Iterator[Step]:
    return SAMPLERS[name](curved, start(sigmas), sigmas, noise_at=noise_at, **options)


def assert_same_states(steps: Iterator[Step], theirs: Iterator[Tensor], num: int) -> None:
    pairs = list(zip(steps, theirs, strict=True))
    assert len(pairs) == num
    for step, x in pairs:
        assert ((step.x - x).norm() / x.norm()).item() <= 1e-4, f"step {step.index}"


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 1), ("trailing", 8), ("trailing", 30), ("leading", 1), ("leading", 30)])
def test_ddpm_takes_the_steps_of_diffusers(spacing: str, steps: int) -> None:
    sigmas = noise_levels(SCHEDULE, steps, spacing)
    scheduler = oracle("DDPMScheduler", steps, **OPTIONS[spacing], variance_type="fixed_small", clip_sample=False)
    assert_same_states(ours("ddpm", sigmas), preserving_states(scheduler, sigmas), steps)


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize(("name", "variance"), [("ddpm", "fixed_small"), ("ddpm_beta", "fixed_large")])
def test_ddpm_at_every_timestep_takes_the_steps_of_diffusers_with_both_variances(name: str, variance: str) -> None:
    sigmas = noise_levels(Schedule.make("scaled_linear", 25, **BETAS), 25)
    scheduler = oracle("DDPMScheduler", 25, num_train_timesteps=25, variance_type=variance, clip_sample=False)
    assert_same_states(ours(name, sigmas), preserving_states(scheduler, sigmas), 25)


@pytest.mark.usefixtures("same_noise")
def test_ddpm_beta_takes_the_steps_of_diffusers_but_for_noise_on_the_finished_picture() -> None:
    """Theirs adds noise in the last step too unless that is the first timestep of training; Ho et al. 2020, algorithm 2, adds none."""
    sigmas = noise_levels(SCHEDULE, 30)
    scheduler = oracle("DDPMScheduler", 30, **OPTIONS["trailing"], variance_type="fixed_large", clip_sample=False)
    steps, theirs = list(ours("ddpm_beta", sigmas)), list(preserving_states(scheduler, sigmas))
    assert_same_states(iter(steps[:-1]), iter(theirs[:-1]), 29)
    added = (1 - 1 / (1 + sigmas[-2] ** 2)).sqrt() * noise_at(29)
    torch.testing.assert_close(theirs[-1], steps[-1].x + added, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 1), ("trailing", 8), ("trailing", 50), ("leading", 30)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_takes_the_steps_of_diffusers(eta: float, spacing: str, steps: int) -> None:
    """Trailing with divisors of 1000: with others theirs leaves its own grid."""
    sigmas = noise_levels(SCHEDULE, steps, spacing)
    scheduler = oracle("DDIMScheduler", steps, **OPTIONS[spacing], clip_sample=False)
    assert_same_states(ours("ddim", sigmas, eta=eta), preserving_states(scheduler, sigmas, eta=eta), steps)


@pytest.mark.parametrize(("spacing", "steps"), [*GRIDS, ("leading", 30)])
@pytest.mark.parametrize(("name", "theirs", "evaluations"), [("euler", "EulerDiscreteScheduler", 1), ("heun", "HeunDiscreteScheduler", 2)])
def test_euler_and_heun_take_the_steps_of_diffusers(name: str, theirs: str, evaluations: int, spacing: str, steps: int) -> None:
    sigmas = noise_levels(SCHEDULE, steps, spacing)
    scheduler = oracle(theirs, steps, **OPTIONS[spacing])
    assert_same_states(ours(name, sigmas), exploding_states(scheduler, sigmas, evaluations=evaluations), steps)


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 1), ("trailing", 7), ("trailing", 30), ("leading", 30)])
def test_euler_ancestral_takes_the_steps_of_diffusers(spacing: str, steps: int) -> None:
    sigmas = noise_levels(SCHEDULE, steps, spacing)
    scheduler = oracle("EulerAncestralDiscreteScheduler", steps, **OPTIONS[spacing])
    assert_same_states(ours("euler_ancestral", sigmas), exploding_states(scheduler, sigmas), steps)


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize(("spacing", "steps"), GRIDS)
@pytest.mark.parametrize(("name", "algorithm"), [("dpmpp_2m", "dpmsolver++"), ("dpmpp_2m_sde", "sde-dpmsolver++")])
def test_dpmpp_2m_takes_the_steps_of_diffusers(name: str, algorithm: str, spacing: str, steps: int) -> None:
    sigmas = noise_levels(SCHEDULE, steps, spacing)
    scheduler = oracle("DPMSolverMultistepScheduler", steps, **OPTIONS[spacing], algorithm_type=algorithm)
    assert_same_states(ours(name, sigmas), preserving_states(scheduler, sigmas), steps)


@pytest.mark.parametrize(("spacing", "steps"), GRIDS)
def test_unipc_takes_the_steps_of_diffusers(spacing: str, steps: int) -> None:
    sigmas = noise_levels(SCHEDULE, steps, spacing)
    scheduler = oracle("UniPCMultistepScheduler", steps, **OPTIONS[spacing], solver_order=2, solver_type="bh2")
    assert_same_states(ours("unipc", sigmas), preserving_states(scheduler, sigmas), steps)


def test_zero_terminal_snr_is_sampled_as_by_diffusers() -> None:
    """Theirs starts at an abar of 0, ours at a sigma of 2^16; given the same v, both take the same steps."""
    sigmas = noise_levels(Schedule.make("scaled_linear", 1000, **BETAS, zero_terminal_snr=True), 20)
    scheduler = oracle(
        "DDIMScheduler", 20, **OPTIONS["trailing"], clip_sample=False, rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )

    def theirs() -> Iterator[Tensor]:
        x = start(sigmas)
        for t, sigma, sigma_next in zip(scheduler.timesteps, sigmas[:-1], sigmas[1:], strict=True):
            v = (x - (1 + sigma**2) * curved(x, sigma)) / (sigma * (1 + sigma**2).sqrt())
            x = scheduler.step(v, t, x / (1 + sigma**2).sqrt()).prev_sample * (1 + sigma_next**2).sqrt()
            yield x

    assert_same_states(ddim(curved, start(sigmas), sigmas), theirs(), 20)
