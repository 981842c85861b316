"""The bound, held against Gaussian data, for which everything is known, and term by term against torch's distributions.

With Gaussian data of standard deviation d, the exact D is linear, so that the expected bound needs nothing but second moments: the
four pairs of x_0 = +-d and noise = +-1 give it exactly, without any sampling error.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from darkroom.diffusion.bound import (
    bits_per_dim,
    chain_term,
    decoder_term,
    prior_term,
    spread_timesteps,
    timestep_probabilities,
    variational_bound,
)
from darkroom.diffusion.denoiser import Denoise, add_noise, times
from darkroom.diffusion.posterior import VARIANCES, mean_from_x0, variance
from darkroom.diffusion.schedule import KINDS, Schedule
from darkroom.training.losses import loss_weights

LINEAR = Schedule.make("linear", 1000, 1e-4, 0.02)


def exact(std: float) -> Denoise:
    """D of Gaussian data."""
    return lambda x, sigma: times(x, std**2 / (std**2 + sigma**2))


def expected_bound(schedule: Schedule, std: float, denoise: Denoise, kind: str = "beta") -> float:
    """The exact expectation over data and noise, in nats of one dimension."""
    x0 = torch.tensor([[std], [std], [-std], [-std]], dtype=torch.float64)
    noise = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    return variational_bound(denoise, x0, schedule, noise_of=lambda _: noise, variance_kind=kind).total.mean().item()


def entropy(std: float) -> float:
    return 0.5 * math.log(2 * math.pi * math.e * std**2)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_with_the_true_variance_of_a_step_back_the_bound_is_the_entropy_whatever_the_number_of_steps(steps: int) -> None:
    """Of white noise, every step back has variance beta."""
    schedule = Schedule.make("linear", steps, 1e-4, 0.02)
    assert expected_bound(schedule, 1.0, exact(1.0)) == pytest.approx(entropy(1.0), abs=1e-12)


@pytest.mark.parametrize("std", [0.2, 0.5, 2.0])
def test_the_bound_falls_to_the_entropy_as_one_over_the_number_of_steps(std: float) -> None:
    schedules = [Schedule.make("flow", steps, 0.1, 0.2) for steps in (250, 500, 1000)]
    gaps = [expected_bound(schedule, std, exact(std)) - entropy(std) for schedule in schedules]
    assert gaps[-1] < 0.005
    assert [before / after for before, after in pairwise(gaps)] == pytest.approx([2, 2], rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_thousand_steps_the_bound_is_at_the_entropy_and_far_tighter_than_with_beta_tilde(kind: str) -> None:
    schedule = Schedule.make(kind, 1000, 1e-4, 0.02)
    for std in (0.2, 2.0):
        assert 0 < expected_bound(schedule, std, exact(std)) - entropy(std) < 0.008
        assert expected_bound(schedule, std, exact(std), "beta_tilde") - entropy(std) > 0.2


def test_the_stretched_schedule_has_no_prior_term_left() -> None:
    schedule = Schedule.make("linear", 1000, 1e-4, 0.02, zero_terminal_snr=True)
    assert prior_term(draw(5, 30), schedule).abs().max() < 1e-7
    assert expected_bound(schedule, 0.7, exact(0.7)) < entropy(0.7) + 0.001


@pytest.mark.parametrize("error", [0.9, 1.1])
def test_a_denoiser_that_is_off_has_a_larger_bound(error: float) -> None:
    assert expected_bound(LINEAR, 0.7, lambda x, sigma: error * exact(0.7)(x, sigma)) > expected_bound(LINEAR, 0.7, exact(0.7)) + 1


def test_drawn_data_has_the_expected_bound_in_each_of_its_terms() -> None:
    schedule = Schedule.make("linear", 40, 0.002, 0.4)
    x0 = 0.7 * draw(20_000, 2)
    bound = variational_bound(exact(0.7), x0, schedule, noise_of=lambda number: draw(20_000, 2, seed=1 + number))
    error = (2 * bound.total.var() / len(x0)).sqrt().item()
    assert bound.total.mean().item() / 2 == pytest.approx(expected_bound(schedule, 0.7, exact(0.7)), abs=3 * error / 2)
    torch.testing.assert_close(bound.total, bound.prior + bound.chain + bound.decoder)


def test_the_prior_term_is_the_divergence_of_the_last_step_from_white_noise() -> None:
    schedule = Schedule.make("linear", 30, 1e-4, 0.2)
    x0, t = draw(3, 2, 2), torch.full((3,), 29)
    mean = add_noise(x0, torch.zeros_like(x0), t, schedule, "epsilon")
    std = (1 - schedule.alphas_cumprod[-1]).sqrt()
    torch.testing.assert_close(prior_term(x0, schedule), kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).flatten(1).sum(1))


@pytest.mark.parametrize("kind", VARIANCES)
def test_a_chain_term_is_the_divergence_of_the_models_step_back_from_the_true_one(kind: str) -> None:
    x0, noise, t = draw(4, 3, 2), draw(4, 3, 2, seed=1), torch.tensor([1, 20, 500, 999])
    sigma = LINEAR.sigmas[t]
    denoised = exact(0.7)(x0 + times(noise, sigma), sigma)
    x_t = add_noise(x0, noise, t, LINEAR, "epsilon")
    q = Normal(mean_from_x0(x0, x_t, t, LINEAR), variance(t, LINEAR).sqrt()[:, None, None])
    p = Normal(mean_from_x0(denoised, x_t, t, LINEAR), variance(t, LINEAR, kind).sqrt()[:, None, None])
    found = chain_term(exact(0.7), x0, noise, t, LINEAR, kind)
    torch.testing.assert_close(found, kl_divergence(q, p).flatten(1).sum(1), rtol=1e-7, atol=1e-12)
    steps = q.mean + q.stddev * draw(50_000, *x0.shape, seed=2)
    monte_carlo = (q.log_prob(steps) - p.log_prob(steps)).flatten(2).sum(2)
    assert ((monte_carlo.mean(0) - found).abs() < 4 * monte_carlo.std(0) / 50_000**0.5 + 1e-12).all()


def test_the_bound_is_the_variational_weights_times_the_squared_errors_and_a_constant() -> None:
    """So training with them minimises the bound itself. Two denoisers have the same constant."""
    x0, noise, times_of_chain = draw(3, 5), draw(3, 5, seed=1), torch.tensor([1, 400, 999])
    terms, weighted = [], []
    for std in (0.5, 0.7):
        chain = chain_term(exact(std), x0, noise, times_of_chain, LINEAR)
        terms.append(torch.cat([chain, decoder_term(exact(std), x0[:1], noise[:1], LINEAR)]))
        x0s, noises, t = torch.cat([x0, x0[:1]]), torch.cat([noise, noise[:1]]), torch.tensor([1, 400, 999, 0])
        sigma = LINEAR.sigmas[t]
        x = x0s + times(noises, sigma)
        said = times(x - exact(std)(x, sigma), 1 / sigma)  # the noise that this D amounts to
        weighted.append(loss_weights(t, LINEAR, "epsilon", "variational") * (said - noises).square().sum(1))
    torch.testing.assert_close(terms[1] - terms[0], weighted[1] - weighted[0], rtol=1e-5, atol=1e-7)


def test_the_decoder_term_is_a_gaussian_density_around_the_denoised() -> None:
    x0, noise = draw(3, 2, 2), draw(3, 2, 2, seed=1)
    sigma = LINEAR.sigmas[0]
    expected = -Normal(exact(0.7)(x0 + sigma * noise, sigma), LINEAR.betas[0].sqrt()).log_prob(x0).flatten(1).sum(1)
    torch.testing.assert_close(decoder_term(exact(0.7), x0, noise, LINEAR), expected)


@pytest.mark.parametrize("mean", [-1.3, -0.99, 0.003, 0.5, 1.0])
def test_the_probabilities_of_the_256_values_of_a_pixel_add_up_to_one(mean: float) -> None:
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    nats = decoder_term(lambda x, _: torch.full_like(x, mean), values, torch.zeros_like(values), LINEAR, bin_width=2 / 255)
    assert nats.isfinite().all()
    assert (-nats).exp().sum().item() == pytest.approx(1)


def test_the_probability_of_a_bin_is_that_of_ddpm_and_far_in_the_tails_still_exact() -> None:
    half, sigma = 1 / 255, LINEAR.betas[0].sqrt().item()
    values = torch.tensor([[-1.0], [100 / 127.5 - 1], [1.0]], dtype=torch.float64)
    normal = Normal(torch.tensor(-0.21, dtype=torch.float64), sigma)
    nats = decoder_term(lambda x, _: torch.full_like(x, -0.21), values, torch.zeros_like(values), LINEAR, bin_width=2 * half)
    assert math.exp(-nats[1]) == pytest.approx((normal.cdf(values[1] + half) - normal.cdf(values[1] - half)).item())
    for value, edge in ((0, -1 + half), (2, 1 - half)):  # log of the tail beyond z is near -z^2/2 - log(z sqrt(2 pi))
        z = abs(edge + 0.21) / sigma
        assert nats[value].item() == pytest.approx(z**2 / 2 + math.log(z * math.sqrt(2 * math.pi)), rel=1e-3)


def test_narrow_bins_have_the_density_times_their_width() -> None:
    x0, noise = 0.3 * draw(3, 4), draw(3, 4, seed=1)
    density = decoder_term(exact(0.7), x0, noise, LINEAR)
    bins = decoder_term(exact(0.7), x0, noise, LINEAR, bin_width=1e-5)
    torch.testing.assert_close(bins, density - 4 * math.log(1e-5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_timesteps_of_each_sample_stand_for_all(kind: str) -> None:
    schedule = Schedule.make(kind, 1000, 1e-4, 0.02)
    x0 = 0.7 * draw(1, 8).expand(256, 8)
    timesteps = spread_timesteps(schedule, num=4, positions=range(256), num_positions=256)
    probabilities = timestep_probabilities(schedule)
    noises = [draw(256, 8, seed=seed) for seed in range(5)]
    few = variational_bound(exact(0.7), x0, schedule, noise_of=noises.__getitem__, timesteps=timesteps, probabilities=probabilities)
    everything = variational_bound(exact(0.7), x0[:64], schedule, noise_of=lambda number: draw(64, 8, seed=number))
    assert few.chain.mean().item() == pytest.approx(everything.chain.mean().item(), rel=0.03)
    torch.testing.assert_close(few.prior[:64], everything.prior)


def test_timesteps_are_spread_evenly_over_the_log_of_the_noise_level_and_do_not_depend_on_the_batch() -> None:
    spread = spread_timesteps(LINEAR, num=4, positions=range(64), num_positions=64)
    assert spread.min() >= 1
    assert spread.max() <= 999
    assert (spread.diff(dim=0) > 0).all()
    share = (LINEAR.sigmas[spread].log() - LINEAR.sigmas[0].log()) / (LINEAR.sigmas[-1] / LINEAR.sigmas[0]).log()
    even = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    torch.testing.assert_close(share.flatten().sort().values, even, rtol=0, atol=0.08)  # one of T steps: the first is the longest
    torch.testing.assert_close(timestep_probabilities(LINEAR).sum(), torch.tensor(1.0).double())
    part = spread_timesteps(LINEAR, num=4, positions=range(10, 20), num_positions=64)
    torch.testing.assert_close(part, spread[:, 10:20], rtol=0, atol=0)


def test_bits_per_dim_of_a_uniform_byte_is_eight() -> None:
    nats = torch.tensor([3 * 16 * math.log(256)], dtype=torch.float64)
    torch.testing.assert_close(bits_per_dim(nats, 3 * 16), torch.tensor([8.0], dtype=torch.float64))
