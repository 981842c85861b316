"""What goes into the network, what comes out of it, and what it is trained towards, held against each other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from darkroom.diffusion.denoiser import PREDICTIONS, add_noise, make_denoiser, target
from darkroom.diffusion.schedule import KINDS, Schedule
from darkroom.diffusion.weighting import loss_weights

SCHEDULE = Schedule.make("scaled_linear", 1000, 0.00085, 0.012)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_says_its_target_denoises_to_the_clean_latents(kind: str, prediction: str) -> None:
    schedule = Schedule.make(kind, 1000, 1e-4, 0.02)
    latents, noise, t = draw(4, 2, 3, 3), draw(4, 2, 3, 3, seed=1), torch.tensor([0, 10, 500, 999])
    sigma = schedule.sigmas[t]
    x = latents + sigma.view(-1, 1, 1, 1) * noise

    def net(seen: Tensor, timesteps: Tensor) -> Tensor:
        torch.testing.assert_close(seen, add_noise(latents, noise, t, schedule, prediction))
        torch.testing.assert_close(timesteps, t.float(), rtol=0, atol=1e-3)
        return target(latents, noise, t, schedule, prediction)

    torch.testing.assert_close(make_denoiser(net, schedule, prediction)(x, sigma), latents, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_sigma_for_all_is_the_same_sigma_for_each(prediction: str) -> None:
    denoise = make_denoiser(lambda x, t: x.sin() * t.view(-1, 1, 1, 1), SCHEDULE, prediction)
    x = draw(3, 1, 2, 2)
    torch.testing.assert_close(denoise(x, torch.tensor(2.0)), denoise(x, torch.full((3,), 2.0)))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_fp32_stays_finite_and_accurate_at_the_largest_sigma(kind: str, prediction: str) -> None:
    schedule = Schedule.make(kind, 1000, 1e-4, 0.02)
    sigma, noise = schedule.sigmas[-1], draw(2, 4, 4, 4)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x.cos()

    precise = make_denoiser(net, schedule, prediction)(sigma * noise, sigma)
    denoised = make_denoiser(net, schedule, prediction)((sigma * noise).float(), sigma)
    assert denoised.dtype == torch.float32
    torch.testing.assert_close(denoised.double(), precise, rtol=1e-5, atol=1e-6 * max(sigma.item(), 10))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_half_precision_prediction_loses_nothing_more_on_the_way_to_a_picture(prediction: str) -> None:
    x, sigma = draw(1, 1, 8, 8).float(), torch.tensor(1.2345)
    half = make_denoiser(lambda x, t: x.cos().bfloat16(), SCHEDULE, prediction)(x, sigma)
    whole = make_denoiser(lambda x, t: x.cos().bfloat16().float(), SCHEDULE, prediction)(x, sigma)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0, atol=0)


def test_noised_latents_and_v_targets_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    oracle = diffusers.DDPMScheduler(1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents, noise, t = draw(4, 2, 3, 3).float(), draw(4, 2, 3, 3, seed=1).float(), torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(add_noise(latents, noise, t, SCHEDULE, "epsilon"), oracle.add_noise(latents, noise, t), rtol=1e-4, atol=1e-5)
    velocity = oracle.get_velocity(latents, noise, t)
    torch.testing.assert_close(target(latents, noise, t, SCHEDULE, "v_prediction"), velocity, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target(latents, noise, t, SCHEDULE, "epsilon"), noise)


def test_noised_latents_have_the_mean_and_variance_of_q() -> None:
    t = torch.full((200_000,), 300)
    x = add_noise(torch.full((200_000, 1), 2.0), draw(200_000, 1).float(), t, SCHEDULE, "epsilon")
    alphas_cumprod = SCHEDULE.alphas_cumprod[300].item()
    assert x.mean().item() == pytest.approx(2 * alphas_cumprod**0.5, abs=0.01)
    assert x.var().item() == pytest.approx(1 - alphas_cumprod, rel=0.02)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_error_of_x_0_by_the_clamped_snr(prediction: str) -> None:
    t = torch.tensor([0, 200, 600, 999])
    latents, noise, error = draw(4, 1, 1, 1), draw(4, 1, 1, 1, seed=1), 0.01
    sigma = SCHEDULE.sigmas[t]
    denoise = make_denoiser(lambda *_: target(latents, noise, t, SCHEDULE, prediction) + error, SCHEDULE, prediction)
    x0_error = (denoise(latents + sigma.view(-1, 1, 1, 1) * noise, sigma) - latents).flatten().square()
    expected = (sigma**-2).clamp(max=5.0) * x0_error / error**2
    weights = loss_weights(t, SCHEDULE, prediction, kind="min_snr", gamma=5.0)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=0)
    assert (sigma**-2 > 5).any()
    assert (sigma**-2 < 5).any()


def test_simple_weighs_every_timestep_alike() -> None:
    torch.testing.assert_close(loss_weights(torch.tensor([0, 999]), SCHEDULE, "epsilon"), torch.ones(2))


@pytest.mark.parametrize(
    "use",
    [
        lambda name: make_denoiser(lambda x, t: x, SCHEDULE, name),
        lambda name: target(draw(1, 1), draw(1, 1), torch.tensor([0]), SCHEDULE, name),
        lambda name: loss_weights(torch.tensor([0]), SCHEDULE, name),
    ],
    ids=["make_denoiser", "target", "loss_weights"],
)
def test_an_unknown_prediction_is_refused(use: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="no prediction 'x0'; there are epsilon, v_prediction, sample, flow"):
        use("x0")


def test_an_unknown_weighting_is_refused() -> None:
    with pytest.raises(ValueError, match="no loss weighting 'p3'; there are simple, min_snr, soft_min_snr, p2, variational"):
        loss_weights(torch.tensor([0]), SCHEDULE, "epsilon", kind="p3")
