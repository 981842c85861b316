"""Identities of the theory that join several functions, on two bumps on a line, whose density is torch's."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from darkroom.diffusion.denoiser import PREDICTIONS, add_noise, make_denoiser, scalings, target
from darkroom.diffusion.editing import slerp
from darkroom.diffusion.samplers import SAMPLERS
from darkroom.diffusion.schedule import Schedule
from darkroom.training.losses import weighted_squared_error

SCHEDULE = Schedule.make("scaled_linear", 1000, 0.00085, 0.012)
CENTRES, SPREAD = torch.tensor([-1.0, 0.8], dtype=torch.float64), 0.3
SHARES = torch.tensor([0.3, 0.7], dtype=torch.float64)


def noised(sigma: Tensor) -> MixtureSameFamily:
    """The distribution of x_0 + sigma noise."""
    return MixtureSameFamily(Categorical(SHARES), Normal(CENTRES, (SPREAD**2 + sigma**2).sqrt().expand(2)))


def exact(x: Tensor, sigma: Tensor) -> Tensor:
    """The expected x_0 by Tweedie's formula (Robbins 1956), with the gradient that torch finds; x of any shape."""
    leaf = x.detach().requires_grad_()
    (score,) = torch.autograd.grad(noised(sigma).log_prob(leaf).sum(), leaf)
    return x + sigma**2 * score


def line(num: int) -> Tensor:
    return torch.linspace(-9, 9, num, dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [50, 400, 900])
def test_the_mean_of_all_targets_behind_one_x_denoises_to_the_score_by_tweedies_formula(t: int, prediction: str) -> None:
    sigma, x = SCHEDULE.sigmas[t], torch.tensor([[-2.0], [-0.2], [0.1], [1.5]], dtype=torch.float64)
    x0 = line(4001).expand(4, -1)
    noise = (x - x0) / sigma
    posterior = (noised(torch.zeros(())).log_prob(x0) - noise**2 / 2).softmax(1)  # of x_0, given x
    said = (posterior * target(x0, noise, torch.full((4,), t), SCHEDULE, prediction)).sum(1, keepdim=True)
    denoised = make_denoiser(lambda *_: said, SCHEDULE, prediction)(x, sigma)
    torch.testing.assert_close(denoised, exact(x, sigma), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_any_network_is_that_of_the_exact_one_plus_its_distance_to_it(prediction: str) -> None:
    """So that training on drawn noise fits the score, which nobody can draw (Vincent 2011)."""
    t = 300
    sigma, (c_in, c_skip, c_out) = SCHEDULE.sigmas[t], scalings(SCHEDULE.sigmas[t], prediction)
    x0, noise = (axis.reshape(-1, 1) for axis in torch.meshgrid(line(300), line(300), indexing="ij"))
    shares = (noised(torch.zeros(())).log_prob(x0) - noise**2 / 2).flatten().softmax(0)  # of each pair of x_0 and noise
    times = torch.full((len(x0),), t)
    seen, wanted = (function(x0, noise, times, SCHEDULE, prediction) for function in (add_noise, target))
    best = (exact(seen / c_in, sigma) - c_skip * seen / c_in) / c_out
    other = best + 0.3 * seen.sin()

    def loss(answer: Tensor) -> float:
        return float(shares @ weighted_squared_error(answer, wanted, torch.ones(len(x0))).double())

    assert loss(other) - loss(best) == pytest.approx(float(shares @ (other - best).square().flatten()), rel=1e-5)
    assert loss(best) > 0.01  # what no network can know


def test_an_euler_step_along_the_straight_lines_of_flow_is_one_in_sigma() -> None:
    times = torch.tensor([0.98, 0.9, 0.6, 0.3, 0.1, 0.0], dtype=torch.float64)  # tau, of x_tau = (1 - tau) x_0 + tau noise
    x = torch.tensor([[-1.5], [0.2], [2.0]], dtype=torch.float64)
    steps = SAMPLERS["euler"](exact, x / (1 - times[0]), times / (1 - times))
    for tau, tau_next, step in zip(times[:-1], times[1:], steps, strict=True):
        _, c_skip, c_out = scalings(tau / (1 - tau), "flow")
        velocity = (exact(x / (1 - tau), tau / (1 - tau)) - c_skip * x / (1 - tau)) / c_out
        x = x + (tau_next - tau) * velocity
        torch.testing.assert_close(step.x * (1 - tau_next), x)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_an_interpolated_noise_lies_on_the_arc_between_the_two_and_is_as_long(weight: float) -> None:
    first, other = torch.linalg.qr(torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q.T * 300**0.5
    second = math.cos(2.0) * first + math.sin(2.0) * other  # two radians away
    expected = math.cos(2.0 * weight) * first + math.sin(2.0 * weight) * other
    torch.testing.assert_close(slerp(first.reshape(1, 3, 10, 10), second.reshape(1, 3, 10, 10), weight).flatten(), expected)
