"""Samplers against closed forms (Gaussian data, where D is known) and, step for step, against diffusers."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom.diffusion.grids import sigma_grid
from darkroom.diffusion.samplers import SAMPLERS, Step, ddim, ddpm, euler
from darkroom.diffusion.schedule import Schedule

SCHEDULE = Schedule.make("scaled_linear", 1000, 0.00085, 0.012)
DETERMINISTIC = ["ddim", "euler", "heun", "dpmpp_2m"]
SPREAD = 0.5  # standard deviation of the Gaussian data


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of N(0, SPREAD^2)."""
    return x * SPREAD**2 / (SPREAD**2 + sigma**2)


def curved(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser without a closed form, for step-by-step comparisons."""
    return (x / (1 + sigma**2)).tanh() + 0.1 * x.sin() / (1 + sigma)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise_at(index: int) -> Tensor:
    return draw(2, 3, 4, 4, seed=100 + index)


def last(steps: Iterator[Step]) -> Tensor:
    return list(steps)[-1].x


def error_at_the_end(name: str, steps: int) -> float:
    """Of the probability-flow ODE from sigma 20 to 0.02, along which x is proportional to sqrt(SPREAD^2 + sigma^2)."""
    falling = torch.linspace(math.log(20), math.log(0.02), steps, dtype=torch.float64).exp()
    sigmas = torch.cat([falling, torch.zeros(1, dtype=torch.float64)])
    x = 20 * draw(4, 1, 2, 2)
    reached = list(SAMPLERS[name](gaussian, x, sigmas))[-2].x  # before the last step, which is of first order for all
    exact = x * math.sqrt((SPREAD**2 + 0.02**2) / (SPREAD**2 + 20**2))
    return (reached - exact).abs().max().item()


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_the_error_falls_with_the_order_of_the_method(name: str, order: int) -> None:
    errors = [error_at_the_end(name, steps) for steps in (40, 80, 160, 320)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_end_where_the_ode_does(name: str) -> None:
    sigmas = sigma_grid(SCHEDULE, 200, "karras")
    x = sigmas[0] * draw(4, 1, 2, 2)
    exact = x * SPREAD / (SPREAD**2 + sigmas[0] ** 2).sqrt()
    torch.testing.assert_close(last(SAMPLERS[name](gaussian, x, sigmas)), exact, rtol=0.03, atol=0)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_stochastic_samplers_keep_mean_and_variance_of_gaussian_data(eta: float) -> None:
    sigmas, mean, num = sigma_grid(SCHEDULE, 1000), 1.5, 20_000
    generator = torch.Generator().manual_seed(0)

    def noise(_: int) -> Tensor:
        return torch.randn(num, generator=generator, dtype=torch.float64)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return mean + gaussian(x - mean, sigma)

    x = last(ddim(denoise, mean + sigmas[0] * noise(0), sigmas, noise_at=noise, eta=eta))
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.std().item() == pytest.approx(SPREAD, rel=0.02)


def test_a_ddpm_step_is_the_posterior_of_the_paper() -> None:
    """x_{t-1} = mu-tilde + sqrt(beta-tilde) z, in the variance-preserving language (Ho et al. 2020, equation 7)."""
    sigmas = torch.cat([SCHEDULE.sigmas.flip(0), torch.zeros(1, dtype=torch.float64)])
    x = sigmas[0] * draw(2, 3, 4, 4)
    steps = ddpm(curved, x, sigmas, noise_at=noise_at)
    for t in range(999, 989, -1):
        step = next(steps)
        beta, abar, abar_before = SCHEDULE.betas[t], SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod[t - 1]
        x_t, x_0 = x * abar.sqrt(), step.denoised
        mean = (abar_before.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - abar_before) * x_t) / (1 - abar)
        variance = (1 - abar_before) / (1 - abar) * beta
        torch.testing.assert_close(step.x * abar_before.sqrt(), mean + variance.sqrt() * noise_at(step.index))
        x = step.x


def test_ddim_without_noise_is_euler_and_with_all_of_it_ddpm() -> None:
    sigmas = sigma_grid(SCHEDULE, 10)
    x = sigmas[0] * draw(2, 3, 4, 4)
    torch.testing.assert_close(last(ddim(curved, x, sigmas)), last(euler(curved, x, sigmas)))
    ancestral = last(ddpm(curved, x, sigmas, noise_at=noise_at))
    torch.testing.assert_close(ancestral, last(ddim(curved, x, sigmas, noise_at=noise_at, eta=1.0)), rtol=0, atol=0)
    assert not torch.allclose(ancestral, last(euler(curved, x, sigmas)))


GRIDS = [("trailing", 1), ("trailing", 2), ("trailing", 7), ("trailing", 50), ("karras", 4), ("karras", 7), ("karras", 50)]
SPACINGS = {"trailing": {"timestep_spacing": "trailing"}, "karras": {"use_karras_sigmas": True, "timestep_spacing": "linspace"}}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def oracle(name: str, steps: int, **options: Any) -> Any:
    scheduler = getattr(pytest.importorskip("diffusers"), name)(1000, **BETAS, **options)
    scheduler.set_timesteps(steps)
    return scheduler


def preserving_states(scheduler: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Iterator[Tensor]:
    """The states of a scheduler whose samples keep their variance, times sqrt(1 + sigma^2): they are ours then."""
    for index, t in enumerate(scheduler.timesteps):
        epsilon = (x - curved(x, sigmas[index])) / sigmas[index]
        if "eta" in options:
            options["variance_noise"] = noise_at(index)
        sample = scheduler.step(epsilon, t, x / (1 + sigmas[index] ** 2).sqrt(), **options).prev_sample
        x = sample * (1 + sigmas[index + 1] ** 2).sqrt()
        yield x


def exploding_states(scheduler: Any, x: Tensor, sigmas: Tensor, *, evaluations: int) -> Iterator[Tensor]:
    """The states of a scheduler whose samples are x_0 + sigma noise, as ours are."""
    timesteps = iter(scheduler.timesteps)
    for index in range(len(sigmas) - 1):
        for sigma in sigmas[index : index + evaluations]:
            if sigma > 0:
                t = next(timesteps)
                scheduler.scale_model_input(x, t)
                x = scheduler.step((x - curved(x, sigma)) / sigma, t, x).prev_sample
        yield x


def assert_same_states(ours: Iterator[Step], theirs: Iterator[Tensor], steps: int) -> None:
    pairs = list(zip(ours, theirs, strict=True))
    assert len(pairs) == steps
    for step, x in pairs:
        assert ((step.x - x).norm() / x.norm()).item() <= 1e-4, f"step {step.index}"


@pytest.mark.parametrize("steps", [1, 8, 50])  # divisors of 1000: with others theirs leaves its own grid
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_takes_the_steps_of_diffusers(eta: float, steps: int) -> None:
    sigmas = sigma_grid(SCHEDULE, steps)
    x = sigmas[0] * draw(2, 3, 4, 4)
    scheduler = oracle("DDIMScheduler", steps, timestep_spacing="trailing", clip_sample=False)
    assert_same_states(ddim(curved, x, sigmas, noise_at=noise_at, eta=eta), preserving_states(scheduler, x, sigmas, eta=eta), steps)


@pytest.mark.parametrize(("spacing", "steps"), GRIDS)
@pytest.mark.parametrize(("name", "theirs", "evaluations"), [("euler", "EulerDiscreteScheduler", 1), ("heun", "HeunDiscreteScheduler", 2)])
def test_euler_and_heun_take_the_steps_of_diffusers(name: str, theirs: str, evaluations: int, spacing: str, steps: int) -> None:
    sigmas = sigma_grid(SCHEDULE, steps, spacing)
    x = sigmas[0] * draw(2, 3, 4, 4)
    theirs_states = exploding_states(oracle(theirs, steps, **SPACINGS[spacing]), x, sigmas, evaluations=evaluations)
    assert_same_states(SAMPLERS[name](curved, x, sigmas), theirs_states, steps)


@pytest.mark.parametrize(("spacing", "steps"), GRIDS)
def test_dpmpp_2m_takes_the_steps_of_diffusers(spacing: str, steps: int) -> None:
    sigmas = sigma_grid(SCHEDULE, steps, spacing)
    x = sigmas[0] * draw(2, 3, 4, 4)
    scheduler = oracle("DPMSolverMultistepScheduler", steps, **SPACINGS[spacing])
    assert_same_states(SAMPLERS["dpmpp_2m"](curved, x, sigmas), preserving_states(scheduler, x, sigmas), steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_reports_its_steps_and_ends_on_what_it_denoised(name: str) -> None:
    sigmas = sigma_grid(SCHEDULE, 5)
    steps = list(SAMPLERS[name](curved, sigmas[0] * draw(2, 3, 4, 4), sigmas, noise_at=noise_at))
    assert [step.index for step in steps] == [0, 1, 2, 3, 4]
    assert [step.sigma for step in steps] == sigmas[:-1].tolist()
    torch.testing.assert_close(steps[-1].x, steps[-1].denoised)


@pytest.mark.parametrize(("name", "expected"), [("ddpm", 5), ("ddim", 5), ("euler", 5), ("dpmpp_2m", 5), ("heun", 9)])
def test_network_evaluations_are_as_documented(name: str, expected: int) -> None:
    calls: list[float] = []

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return curved(x, sigma)

    sigmas = sigma_grid(SCHEDULE, 5)
    last(SAMPLERS[name](counting, sigmas[0] * draw(2, 3, 4, 4), sigmas, noise_at=noise_at))
    assert len(calls) == expected


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_does_not_depend_on_the_others_in_its_batch(name: str) -> None:
    sigmas = sigma_grid(SCHEDULE, 6)
    x = sigmas[0] * draw(2, 3, 4, 4)
    together = last(SAMPLERS[name](curved, x, sigmas, noise_at=noise_at))
    alone = last(SAMPLERS[name](curved, x[1:], sigmas, noise_at=lambda index: noise_at(index)[1:]))
    torch.testing.assert_close(together[1:], alone)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_fp32_states_stay_fp32_and_finite_from_the_largest_sigma_down(name: str, kind: str) -> None:
    sigmas = sigma_grid(Schedule.make(kind, 1000, 1e-4, 0.02), 20)
    x = (sigmas[0] * draw(2, 3, 4, 4)).float()
    steps = list(SAMPLERS[name](gaussian, x, sigmas, noise_at=lambda index: noise_at(index).float()))
    assert all(step.x.dtype == torch.float32 and step.x.isfinite().all() for step in steps)
