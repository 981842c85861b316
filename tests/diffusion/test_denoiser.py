"""What goes into the network, what comes out of it, and what it is trained towards, held against each other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from darkroom.diffusion.denoiser import PREDICTIONS, add_noise, denoised, make_denoiser, scalings, target, times
from darkroom.diffusion.schedule import KINDS, Schedule

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


def test_with_zero_terminal_snr_the_last_step_is_noise_and_the_velocity_is_minus_the_picture_as_diffusers_has_it() -> None:
    diffusers = pytest.importorskip("diffusers")
    schedule = Schedule.make("scaled_linear", 1000, 0.00085, 0.012, zero_terminal_snr=True)
    oracle = diffusers.DDIMScheduler(
        1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True,
        prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing",
    )  # fmt: skip
    latents, noise, t = draw(3, 2, 3, 3).float(), draw(3, 2, 3, 3, seed=1).float(), torch.tensor([0, 700, 999])
    seen = add_noise(latents, noise, t, schedule, "v_prediction")
    velocity = target(latents, noise, t, schedule, "v_prediction")
    torch.testing.assert_close(seen, oracle.add_noise(latents, noise, t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(velocity, oracle.get_velocity(latents, noise, t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen[2], noise[2], rtol=0, atol=1e-4)
    torch.testing.assert_close(velocity[2], -latents[2], rtol=0, atol=1e-4)
    oracle.set_timesteps(10)
    expected = oracle.step(velocity[2:], 999, noise[2:]).pred_original_sample
    denoised = make_denoiser(lambda *_: velocity[2:], schedule, "v_prediction")(
        noise[2:] * schedule.sigmas[-1].float(), schedule.sigmas[-1]
    )
    torch.testing.assert_close(denoised, expected, rtol=1e-4, atol=1e-4)


def test_the_network_of_flow_sees_the_straight_line_and_says_its_velocity_as_diffusers_has_it() -> None:
    diffusers = pytest.importorskip("diffusers")
    oracle = diffusers.FlowMatchEulerDiscreteScheduler(1000)
    schedule = Schedule.make("flow", 999, 0.1, 0.2)  # timesteps 1 .. 999 of their 1000; their last is noise alone
    latents, noise = draw(3, 2, 3, 3).float(), draw(3, 2, 3, 3, seed=1).float()
    t = torch.tensor([0, 400, 998])
    seen = add_noise(latents, noise, t, schedule, "flow")
    torch.testing.assert_close(seen, oracle.scale_noise(latents, (t + 1).float(), noise), rtol=1e-4, atol=1e-5)
    share = ((t + 1) / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(seen - share * target(latents, noise, t, schedule, "flow"), latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_three_coefficients_recover_the_picture_from_an_exact_prediction(prediction: str) -> None:
    """c_out is the factor from an error of the prediction to one of x_0: the weights of the loss need it."""
    t = torch.tensor([0, 300, 999])
    latents, noise = draw(3, 1, 2, 2), draw(3, 1, 2, 2, seed=1)
    sigma = SCHEDULE.sigmas[t]
    _, c_skip, c_out = scalings(sigma, prediction)
    answer = target(latents, noise, t, SCHEDULE, prediction)
    torch.testing.assert_close(times(latents + times(noise, sigma), c_skip) + times(answer, c_out), latents)


def test_epsilon_is_refused_where_noise_is_all_there_is_to_see() -> None:
    schedule = Schedule.make("scaled_linear", 1000, 0.00085, 0.012, zero_terminal_snr=True)
    message = r"prediction: epsilon does not work with schedule\.zero_terminal_snr: true.*Set prediction to v_prediction, sample or flow"
    with pytest.raises(ValueError, match=message):
        make_denoiser(lambda x, t: x, schedule, "epsilon")
    with pytest.raises(ValueError, match=message):
        target(draw(1, 1), draw(1, 1), torch.tensor([0]), schedule, "epsilon")


def test_noised_latents_have_the_mean_and_variance_of_q() -> None:
    t = torch.full((200_000,), 300)
    x = add_noise(torch.full((200_000, 1), 2.0), draw(200_000, 1).float(), t, SCHEDULE, "epsilon")
    alphas_cumprod = SCHEDULE.alphas_cumprod[300].item()
    assert x.mean().item() == pytest.approx(2 * alphas_cumprod**0.5, abs=0.01)
    assert x.var().item() == pytest.approx(1 - alphas_cumprod, rel=0.02)


@pytest.mark.parametrize(
    "use",
    [
        lambda name: make_denoiser(lambda x, t: x, SCHEDULE, name),
        lambda name: target(draw(1, 1), draw(1, 1), torch.tensor([0]), SCHEDULE, name),
        lambda name: add_noise(draw(1, 1), draw(1, 1), torch.tensor([0]), SCHEDULE, name),
        lambda name: scalings(torch.tensor(1.0), name),
    ],
    ids=["make_denoiser", "target", "add_noise", "scalings"],
)
def test_an_unknown_prediction_is_refused(use: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="Unknown prediction 'x0'; expected one of epsilon, v_prediction, sample, flow"):
        use("x0")


# ---- a spread for each channel

SPREAD = torch.tensor([6.0, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_preconditioned_network_that_says_its_target_denoises_to_the_clean_latents(kind: str) -> None:
    schedule = Schedule.make(kind, 1000, 1e-4, 0.02)
    latents, noise, t = draw(4, 2, 3, 3), draw(4, 2, 3, 3, seed=1), torch.tensor([0, 10, 500, 990])
    sigma = schedule.sigmas[t]
    said = target(latents, noise, t, schedule, "preconditioned", SPREAD)
    seen = add_noise(latents, noise, t, schedule, "preconditioned", SPREAD)

    def net(x: Tensor, _: Tensor) -> Tensor:
        torch.testing.assert_close(x, seen)
        return said

    denoise = make_denoiser(net, schedule, "preconditioned", SPREAD)
    torch.testing.assert_close(denoise(latents + times(noise, sigma), sigma), latents, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(denoised(said, seen, t, schedule, "preconditioned", SPREAD), latents, rtol=1e-6, atol=1e-6)


def test_a_preconditioned_network_sees_and_says_numbers_around_one_in_each_channel_and_at_each_noise_level() -> None:
    for t in torch.tensor([10, 500, 990]):
        latents, noise, times_of = draw(400, 2, 4, 4) * SPREAD.view(2, 1, 1), draw(400, 2, 4, 4, seed=1), t.expand(400)
        for function in (add_noise, target):
            of_channels = function(latents, noise, times_of, SCHEDULE, "preconditioned", SPREAD).square().mean((0, 2, 3)).sqrt()
            torch.testing.assert_close(of_channels, torch.ones(2, dtype=torch.float64), rtol=0, atol=0.05)


def test_without_its_network_the_preconditioned_denoiser_is_the_best_linear_one_of_independent_values() -> None:
    """The mean of x_0 given x, for x_0 normal with this spread: s^2 / (s^2 + sigma^2) x."""
    x, sigma = draw(3, 2, 4, 4), torch.tensor([0.1, 1.0, 30.0])
    found = make_denoiser(lambda x, t: torch.zeros_like(x), SCHEDULE, "preconditioned", SPREAD)(x, sigma)
    expected = x * (SPREAD**2 / (SPREAD**2 + sigma[:, None] ** 2))[:, :, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_preconditioned_with_a_spread_of_one_is_v_prediction_with_the_opposite_sign() -> None:
    latents, noise, t = draw(4, 2, 3, 3), draw(4, 2, 3, 3, seed=1), torch.tensor([0, 10, 500, 999])
    given = latents, noise, t, SCHEDULE
    torch.testing.assert_close(add_noise(*given, "preconditioned"), add_noise(*given, "v_prediction"))
    torch.testing.assert_close(target(*given, "preconditioned"), -target(*given, "v_prediction"))
