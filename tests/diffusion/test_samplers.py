"""Samplers against closed forms: data for which D, and where the ODE or the SDE ends, are known."""

import inspect
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from benchmarks.exact import Mixture, counted, even_shares
from benchmarks.samplers import OF_THE_ODE, TWO_A_STEP
from darkroom.choices import SamplerName
from darkroom.diffusion.samplers import FAMILIES, SAMPLERS, Step
from darkroom.diffusion.samplers.ode import euler, ode_adaptive
from darkroom.diffusion.samplers.stochastic import ddim, ddpm, euler_maruyama
from darkroom.diffusion.schedule import Schedule, noise_levels
from tests.diffusion.gaussian_data import gaussian, linear_spread

SCHEDULE = Schedule.make("scaled_linear", 1000, 0.00085, 0.012)
MIXTURE = Mixture.of(means=[-1.2, 0.4, 1.5], spreads=[0.2, 0.1, 0.3], weights=[0.3, 0.2, 0.5])
ODE = [*OF_THE_ODE, "ode_adaptive"]
STOCHASTIC = [name for name in SAMPLERS if name not in ODE]
SPREAD = 0.5  # standard deviation of the Gaussian data


def curved(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser without a closed form."""
    return (x / (1 + sigma**2)).tanh() + 0.1 * x.sin() / (1 + sigma)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise_at(index: int) -> Tensor:
    return draw(2, 3, 4, 4, seed=100 + index)


def last(steps: Iterator[Step]) -> Tensor:
    return list(steps)[-1].x


def falling(first: float, end: float, steps: int) -> Tensor:
    """Even in log sigma, then 0."""
    return torch.cat(
        [torch.linspace(math.log(first), math.log(end), steps, dtype=torch.float64).exp(), torch.zeros(1, dtype=torch.float64)]
    )


def test_every_generator_of_the_families_has_a_name_in_choices() -> None:
    functions = {name: value for family in FAMILIES for name, value in vars(family).items() if inspect.isgeneratorfunction(value)}
    samplers = {
        name for name, function in functions.items() if list(inspect.signature(function).parameters)[:3] == ["denoise", "x", "sigmas"]
    }
    assert {name for name in samplers if not name.startswith("_")} == set(get_args(SamplerName))


def pathwise_error(name: str, steps: int) -> float:
    """Of the ODE from sigma 20 to 0.02, along which x of Gaussian data is proportional to sqrt(SPREAD^2 + sigma^2)."""
    x = 20 * draw(4, 1, 2, 2)
    reached = list(SAMPLERS[name](gaussian(SPREAD), x, falling(20, 0.02, steps)))[-2].x  # the last step is of first order for all
    return (reached - x * math.hypot(SPREAD, 0.02) / math.hypot(SPREAD, 20)).abs().max().item()


def spread_error(name: str, steps: int) -> float:
    """Of the standard deviation after the SDE from sigma 20 to 0.02, for Gaussian data."""
    reached = linear_spread(name, gaussian(SPREAD), falling(20, 0.02, steps), start=math.hypot(SPREAD, 20))[-2]
    return abs(reached - math.hypot(SPREAD, 0.02))


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 3)])
def test_the_error_of_a_path_falls_with_the_order_of_the_method(name: str, order: int) -> None:
    for coarse, fine in pairwise(pathwise_error(name, steps) for steps in (40, 80, 160, 320)):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(
    ("name", "order"), [("ddpm", 1), ("ddpm_beta", 1), ("euler_ancestral", 1), ("euler_maruyama", 1), ("dpmpp_2m_sde", 2)]
)
def test_the_error_of_the_variance_falls_with_the_order_of_the_method(name: str, order: int) -> None:
    for coarse, fine in pairwise(spread_error(name, steps) for steps in (40, 80, 160, 320)):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_keep_the_variance_of_gaussian_data(name: str) -> None:
    sigmas = noise_levels(SCHEDULE, 1000, "karras")
    spread = linear_spread(name, gaussian(SPREAD), sigmas, start=math.hypot(SPREAD, sigmas[0]))[-1]
    assert spread == pytest.approx(SPREAD, rel=0.006)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_data_of_one_point_is_noised_exactly_as_much_as_each_level_says(name: str) -> None:
    sigmas = falling(10, 0.1, 4)
    reached = linear_spread(name, lambda x, sigma: torch.zeros_like(x), sigmas, start=10)
    torch.testing.assert_close(torch.tensor(reached, dtype=torch.float64), sigmas[1:])


def test_the_variance_beta_is_exact_for_standard_normal_data_at_any_number_of_steps() -> None:
    sigmas = falling(10, 0.1, 4)
    reached = linear_spread("ddpm_beta", gaussian(1.0), sigmas, start=math.hypot(1, 10))
    torch.testing.assert_close(torch.tensor(reached[:-1], dtype=torch.float64), (1 + sigmas[1:-1] ** 2).sqrt())


def test_langevin_steps_repair_a_wrong_variance() -> None:
    """Started with 1.5 times the noise that there should be."""
    sigmas = falling(1, 0.02, 160)
    errors = {name: linear_spread(name, gaussian(SPREAD), sigmas, start=1.5 * math.hypot(SPREAD, 1))[-2] for name in STOCHASTIC}
    truth = math.hypot(SPREAD, 0.02)
    assert errors["ddpm"] > 1.1 * truth
    assert errors["predictor_corrector"] == pytest.approx(truth, rel=2e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_exact_score_of_a_mixture_is_sampled_to_its_moments(name: str) -> None:
    num = 32 if name == "ode_adaptive" else 4096
    sigmas = noise_levels(SCHEDULE, 150, "karras")
    generator = torch.Generator().manual_seed(0)
    start = MIXTURE.quantile(even_shares(num)[torch.randperm(num, generator=generator)], sigmas[0])
    x = last(SAMPLERS[name](MIXTURE.denoise, start, sigmas, noise_at=lambda _: torch.randn(num, generator=generator, dtype=torch.float64)))
    shares = MIXTURE.log_posterior(x, torch.tensor(0.01)).exp().mean(0)
    assert x.mean().item() == pytest.approx(MIXTURE.mean, abs=0.04)
    assert x.std().item() == pytest.approx(MIXTURE.std, rel=0.03)
    torch.testing.assert_close(shares, MIXTURE.weights, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ODE)
def test_the_ode_keeps_the_quantiles_of_a_mixture(name: str) -> None:
    """On a line the paths cannot cross, so that x goes from a quantile of the noise to the same one of the data."""
    sigmas = noise_levels(SCHEDULE, 300, "karras")
    shares = even_shares(12)
    x = last(SAMPLERS[name](MIXTURE.denoise, MIXTURE.quantile(shares, sigmas[0]), sigmas))
    torch.testing.assert_close(x, MIXTURE.quantile(shares, torch.tensor(0.0)), rtol=0, atol=0.02)


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


def test_an_euler_maruyama_step_is_that_of_the_reverse_sde() -> None:
    """y + (beta y / 2 + beta score) dt + sqrt(beta dt) z, in the variance-preserving language (Song et al. 2021, equations 6 and 11)."""
    sigmas = falling(2.0, 1.9, 2)
    x = 2 * draw(2, 3, 4, 4)
    step = next(euler_maruyama(curved, x, sigmas, noise_at=noise_at))
    abar, abar_next = (1 / (1 + sigmas[:2] ** 2)).tolist()
    beta_dt = math.log(abar_next / abar)  # d log abar = -beta dt
    y = x * abar**0.5
    score = -(y - abar**0.5 * step.denoised) / (1 - abar)
    expected = y + beta_dt * (y / 2 + score) + beta_dt**0.5 * noise_at(0)
    torch.testing.assert_close(step.x * abar_next**0.5, expected)


def test_too_long_a_step_of_euler_maruyama_is_one_of_ddpm() -> None:
    sigmas = falling(500.0, 3.0, 2)
    x = 500 * draw(2, 3, 4, 4)
    ours, theirs = (next(sampler(curved, x, sigmas, noise_at=noise_at)).x for sampler in (euler_maruyama, ddpm))
    torch.testing.assert_close(ours, theirs)


def test_ddim_without_noise_is_euler_and_with_all_of_it_ddpm() -> None:
    sigmas = noise_levels(SCHEDULE, 10)
    x = sigmas[0] * draw(2, 3, 4, 4)
    torch.testing.assert_close(last(ddim(curved, x, sigmas)), last(euler(curved, x, sigmas)))
    ancestral = last(ddpm(curved, x, sigmas, noise_at=noise_at))
    torch.testing.assert_close(ancestral, last(ddim(curved, x, sigmas, noise_at=noise_at, eta=1.0)), rtol=0, atol=0)
    assert not torch.allclose(ancestral, last(euler(curved, x, sigmas)))


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
def test_the_adaptive_solver_is_as_exact_as_it_is_asked_to_be(tolerance: float) -> None:
    sigmas = falling(20, 1e-4, 3)
    x = 20 * draw(2, 1, 2, 2)
    exact = x * SPREAD / math.hypot(SPREAD, 20)
    torch.testing.assert_close(last(ode_adaptive(gaussian(SPREAD), x, sigmas, tolerance=tolerance)), exact, rtol=0, atol=20 * tolerance)


def test_the_adaptive_solver_reports_the_states_of_the_grid_and_needs_no_more_evaluations_for_a_finer_one() -> None:
    x, evaluations = 20 * draw(1, 1, 2, 2), []
    for steps in (2, 40):
        denoise, calls = counted(gaussian(SPREAD))
        sigmas = falling(20, 0.02, steps)
        for step, sigma in zip(ode_adaptive(denoise, x, sigmas), sigmas[1:-1], strict=False):
            torch.testing.assert_close(step.x, x * (SPREAD**2 + sigma**2).sqrt() / math.hypot(SPREAD, 20), rtol=1e-3, atol=0)
        evaluations.append(calls() - steps)
    assert evaluations[0] == evaluations[1] > 10


def test_the_adaptive_solver_goes_below_the_last_level_of_a_coarse_grid() -> None:
    x = 20 * draw(2, 1, 2, 2)
    reached = last(ode_adaptive(gaussian(SPREAD), x, falling(20, 5, 2)))
    torch.testing.assert_close(reached, x * SPREAD / math.hypot(SPREAD, 20), rtol=1e-3, atol=0)


def test_the_adaptive_solver_asks_a_denoiser_that_knows_the_batch_for_the_batch() -> None:
    prompts = torch.tensor([-1.0, 2.0], dtype=torch.float64).reshape(2, 1, 1, 1)  # each picture has data of its own

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return prompts + gaussian(SPREAD)(x - prompts, sigma)

    x = 20 * draw(2, 1, 2, 2)
    expected = prompts + (x - prompts) * SPREAD / math.hypot(SPREAD, 20)
    torch.testing.assert_close(last(ode_adaptive(denoise, x, falling(20, 0.01, 3))), expected, rtol=0, atol=1e-3)


def test_the_adaptive_solver_refuses_what_is_not_finite_or_has_no_end() -> None:
    x, sigmas = 20 * draw(1, 1, 2, 2), falling(20, 0.02, 3)
    with pytest.raises(ValueError, match=r"The prediction of the network at sigma [0-4]\.\d+ is not finite"):
        last(ode_adaptive(lambda x, sigma: x * (torch.nan if sigma < 5 else 0.1), x, falling(20, 4, 2)))
    with pytest.raises(ValueError, match="no step size that is small enough at sigma 3: the prediction of the network is not smooth"):
        last(ode_adaptive(lambda x, sigma: torch.ones_like(x) / (sigma.log() - math.log(3)) ** 2, x, sigmas))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_reports_its_steps_and_ends_on_what_it_denoised(name: str) -> None:
    sigmas = noise_levels(SCHEDULE, 5)
    steps = list(SAMPLERS[name](curved, sigmas[0] * draw(2, 3, 4, 4), sigmas, noise_at=noise_at))
    assert [step.index for step in steps] == [0, 1, 2, 3, 4]
    assert [step.sigma for step in steps] == sigmas[:-1].tolist()
    torch.testing.assert_close(steps[-1].x, steps[-1].denoised)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ode_adaptive"])
def test_network_evaluations_are_as_documented(name: str) -> None:
    denoise, calls = counted(curved)
    sigmas = noise_levels(SCHEDULE, 5)
    last(SAMPLERS[name](denoise, sigmas[0] * draw(2, 3, 4, 4), sigmas, noise_at=noise_at))
    assert calls() == (9 if name in TWO_A_STEP else 5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_noises_are_asked_for_in_order_and_each_once(name: str) -> None:
    asked: list[int] = []

    def listening(index: int) -> Tensor:
        asked.append(index)
        return noise_at(index)

    sigmas = noise_levels(SCHEDULE, 5)
    last(SAMPLERS[name](curved, sigmas[0] * draw(2, 3, 4, 4), sigmas, noise_at=listening))
    assert asked == list(range({"predictor_corrector": 8}.get(name, 4) if name in STOCHASTIC else 0))  # the last step has none


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_does_not_depend_on_the_others_in_its_batch(name: str) -> None:
    sigmas = noise_levels(SCHEDULE, 6)
    x = sigmas[0] * draw(2, 3, 4, 4)
    together = last(SAMPLERS[name](curved, x, sigmas, noise_at=noise_at))
    alone = last(SAMPLERS[name](curved, x[1:], sigmas, noise_at=lambda index: noise_at(index)[1:]))
    torch.testing.assert_close(together[1:], alone)


FAR = {
    "cosine": Schedule.make("cosine", 1000, 1e-4, 0.02),
    "flow": Schedule.make("flow", 1000, 1e-4, 0.02),
    "zero terminal SNR": Schedule.make("scaled_linear", 1000, 0.00085, 0.012, zero_terminal_snr=True),
}


@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize("kind", FAR)
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ode_adaptive"])
def test_a_huge_first_sigma_leaves_the_variance_right(name: str, kind: str, spacing: str) -> None:
    sigmas = noise_levels(FAR[kind], 50, spacing)
    spread = linear_spread(name, gaussian(SPREAD), sigmas, start=math.hypot(SPREAD, sigmas[0]))[-1]
    assert spread == pytest.approx(SPREAD, rel=0.2)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ode_adaptive"])
def test_a_small_error_of_the_network_stays_small_in_a_step_from_a_huge_sigma(name: str) -> None:
    sigmas = falling(65536, 50, 2)
    x = 65536 * draw(2, 3, 4, 4)

    def rough(x: Tensor, sigma: Tensor) -> Tensor:
        return gaussian(SPREAD)(x, sigma) + 0.01 * (1000 * x / (1 + sigma**2).sqrt()).sin()

    exact, off = (next(SAMPLERS[name](denoise, x, sigmas, noise_at=noise_at)).x for denoise in (gaussian(SPREAD), rough))
    torch.testing.assert_close(off, exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("kind", FAR)
@pytest.mark.parametrize("name", SAMPLERS)
def test_single_precision_is_enough_from_the_largest_sigma_down(name: str, kind: str) -> None:
    sigmas = noise_levels(FAR[kind], 20)
    x = sigmas[0] * draw(2, 3, 4, 4)
    exact = last(SAMPLERS[name](gaussian(SPREAD), x, sigmas, noise_at=noise_at))
    steps = list(SAMPLERS[name](gaussian(SPREAD), x.float(), sigmas, noise_at=lambda index: noise_at(index).float()))
    assert all(step.x.dtype == torch.float32 for step in steps)
    torch.testing.assert_close(steps[-1].x.double(), exact, rtol=0, atol=1e-4)
