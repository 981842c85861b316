"""The chain's Gaussians, held against Bayes' rule, against each other and against draws."""

import math

import pytest
import torch
from torch import Tensor

from darkroom.diffusion.denoiser import add_noise
from darkroom.diffusion.posterior import forward_step, mean_coefficients, mean_from_noise, mean_from_x0, variance
from darkroom.diffusion.schedule import KINDS, Schedule

TIMES = torch.tensor([0, 1, 2, 50, 500, 998, 999])


@pytest.fixture(params=KINDS)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return Schedule.make(request.param, 1000, 1e-4, 0.02)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_both_forms_of_the_posterior_mean_are_equal(schedule: Schedule) -> None:
    x0, noise = draw(len(TIMES), 3, 4), draw(len(TIMES), 3, 4, seed=1)
    x_t = add_noise(x0, noise, TIMES, schedule, "epsilon")
    torch.testing.assert_close(mean_from_x0(x0, x_t, TIMES, schedule), mean_from_noise(noise, x_t, TIMES, schedule), rtol=1e-8, atol=1e-8)


def test_the_posterior_is_that_of_bayes_rule(schedule: Schedule) -> None:
    """q(x_(t-1) | x_0) is the prior and q(x_t | x_(t-1)) the likelihood of a linear-Gaussian model: precisions add up."""
    for t in TIMES[1:].tolist():
        beta, before = schedule.betas[t].item(), schedule.alphas_cumprod[t - 1].item()
        precision = 1 / (1 - before) + (1 - beta) / beta
        of_x0, of_x_t = mean_coefficients(torch.tensor([t]), schedule)
        assert variance(torch.tensor([t]), schedule).item() == pytest.approx(1 / precision, rel=1e-8)
        assert of_x0.item() == pytest.approx(math.sqrt(before) / (1 - before) / precision, rel=1e-8)
        assert of_x_t.item() == pytest.approx(math.sqrt(1 - beta) / beta / precision, rel=1e-8)


def test_the_posterior_takes_q_of_x_t_to_q_of_the_step_before(schedule: Schedule) -> None:
    of_x0, of_x_t = mean_coefficients(TIMES, schedule)
    alphas_cumprod, before = schedule.alphas_cumprod[TIMES], schedule.alphas_cumprod_previous[TIMES]
    torch.testing.assert_close(of_x0 + of_x_t * alphas_cumprod.sqrt(), before.sqrt())
    torch.testing.assert_close(of_x_t**2 * (1 - alphas_cumprod) + variance(TIMES, schedule), 1 - before, rtol=1e-9, atol=1e-12)


def test_the_first_step_back_is_to_the_picture_itself(schedule: Schedule) -> None:
    t = torch.zeros(2, dtype=torch.long)
    x0, x_t = draw(2, 3), draw(2, 3, seed=1)
    torch.testing.assert_close(mean_from_x0(x0, x_t, t, schedule), x0)
    assert (variance(t, schedule) == 0).all()


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_a_step_back_is_that_of_diffusers(variance_type: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    schedule = Schedule.make("linear", 1000, 1e-4, 0.02)
    oracle = diffusers.DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, clip_sample=False, variance_type=variance_type)
    noise, x_t = draw(1, 3, 4, 4).float(), draw(1, 3, 4, 4, seed=1).float()
    kind = {"fixed_small": "beta_tilde", "fixed_large": "beta"}[variance_type]
    for t in (1, 30, 999):
        given = torch.Generator().manual_seed(3)
        expected = oracle.step(noise, t, x_t, generator=given).prev_sample
        fresh = torch.randn(noise.shape, generator=torch.Generator().manual_seed(3))
        mean = mean_from_noise(noise, x_t, torch.tensor([t]), schedule)
        torch.testing.assert_close(
            mean + variance(torch.tensor([t]), schedule, kind).sqrt().float() * fresh, expected, rtol=1e-4, atol=1e-4
        )


def test_draws_of_the_chain_have_the_moments_of_q_and_of_the_posterior() -> None:
    """Forwards from x_0 = 1.5 to t = 5, then of those with x_5 near 1: mean and variance of x_4."""
    schedule = Schedule.make("linear", 6, 0.05, 0.4)
    num = 1_000_000
    x = torch.full((num,), 1.5, dtype=torch.float64)
    for t in range(6):
        before, x = x, forward_step(x, draw(num, seed=t), torch.full((num,), t), schedule)
    q = add_noise(torch.tensor([1.5, 0.0]).double(), torch.tensor([0.0, 1.0]).double(), torch.tensor([5, 5]), schedule, "epsilon")
    assert x.mean().item() == pytest.approx(q[0].item(), abs=0.005)
    assert x.std().item() == pytest.approx(q[1].item(), abs=0.005)
    near = before[(x - 1).abs() < 0.05]
    t = torch.tensor([5])
    expected = mean_from_x0(torch.tensor([1.5]).double(), torch.tensor([1.0]).double(), t, schedule)
    assert near.mean().item() == pytest.approx(expected.item(), abs=0.01)
    assert near.var().item() == pytest.approx(variance(t, schedule).item(), rel=0.03)


def test_beta_is_the_variance_of_the_step_forward_and_larger(schedule: Schedule) -> None:
    torch.testing.assert_close(variance(TIMES, schedule, "beta"), schedule.betas[TIMES])
    assert (variance(TIMES, schedule, "beta") > variance(TIMES, schedule, "beta_tilde")).all()


def test_an_unknown_variance_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown variance 'learned'; expected one of beta_tilde, beta"):
        variance(TIMES, Schedule.make("linear", 1000, 1e-4, 0.02), "learned")
