"""Each weighting, held against the formula of its paper and against the error that it claims to weigh."""

import pytest
import torch
from torch import Tensor

from darkroom.diffusion.denoiser import PREDICTIONS, make_denoiser, target
from darkroom.diffusion.schedule import Schedule
from darkroom.training.losses import WEIGHTINGS, loss_weights, weighted_squared_error

SCHEDULE = Schedule.make("scaled_linear", 1000, 0.00085, 0.012)
TIMES = torch.tensor([0, 200, 600, 999])
SNR = SCHEDULE.sigmas[TIMES] ** -2


def x0_error_per_error(prediction: str) -> Tensor:
    """How much a squared error of 1 in the prediction is as a squared error of x_0, found through the denoiser."""
    latents, noise = torch.randn(2, 4, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoise = make_denoiser(lambda *_: target(latents, noise, TIMES, SCHEDULE, prediction) + 0.01, SCHEDULE, prediction)
    sigma = SCHEDULE.sigmas[TIMES]
    return (denoise(latents + sigma.view(-1, 1, 1, 1) * noise, sigma) - latents).flatten().square() / 0.01**2


X0_WEIGHTS = {
    "min_snr": SNR.clamp(max=5.0),
    "soft_min_snr": 1 / (1 / SNR + 1 / 5.0),
    "p2": SNR / (1 + SNR) ** 5.0,
    "variational": SCHEDULE.betas[TIMES] * SCHEDULE.alphas_cumprod[TIMES] * (1 + SNR) ** 2 / (2 * SCHEDULE.alphas[TIMES]),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", sorted(X0_WEIGHTS))
def test_a_weighting_weighs_the_error_of_x_0_alike_for_every_prediction(kind: str, prediction: str) -> None:
    weights = loss_weights(TIMES, SCHEDULE, prediction, kind, gamma=5.0)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double().flatten(), X0_WEIGHTS[kind] * x0_error_per_error(prediction), rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_simple_weighs_every_timestep_alike(prediction: str) -> None:
    torch.testing.assert_close(loss_weights(TIMES, SCHEDULE, prediction), torch.ones(4))


def test_the_variational_weight_of_the_noise_is_that_of_ddpm() -> None:
    t = torch.arange(1000)
    beta, alpha, alphas_cumprod = SCHEDULE.betas[t], SCHEDULE.alphas[t], SCHEDULE.alphas_cumprod[t]
    expected = beta**2 / (2 * beta * alpha * (1 - alphas_cumprod))  # with sigma^2 = beta
    torch.testing.assert_close(loss_weights(t, SCHEDULE, "epsilon", "variational").double(), expected, rtol=1e-5, atol=0)


def test_min_snr_of_the_noise_and_of_v_is_that_of_its_paper() -> None:
    torch.testing.assert_close(loss_weights(TIMES, SCHEDULE, "epsilon", "min_snr").double(), (5 / SNR).clamp(max=1), rtol=1e-5, atol=0)
    clamped = SNR.clamp(max=5) / (SNR + 1)
    torch.testing.assert_close(loss_weights(TIMES, SCHEDULE, "v_prediction", "min_snr").double(), clamped, rtol=1e-5, atol=0)


def test_soft_min_snr_lies_below_min_snr_and_touches_it_at_both_ends() -> None:
    t = torch.arange(1000)
    soft, hard = (loss_weights(t, SCHEDULE, "sample", kind, gamma=5.0) for kind in ("soft_min_snr", "min_snr"))
    assert (soft < hard).all()
    assert (soft / hard)[[0, -1]].min() > 0.99
    assert (soft / hard).min() == pytest.approx(0.5, abs=0.01)  # at SNR = gamma


def test_p2_with_gamma_zero_is_the_simple_weight_of_the_noise() -> None:
    torch.testing.assert_close(loss_weights(TIMES, SCHEDULE, "epsilon", "p2", gamma=0.0), torch.ones(4))


@pytest.mark.parametrize("kind", WEIGHTINGS)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample", "flow"])
def test_weights_are_finite_without_any_signal(kind: str, prediction: str) -> None:
    schedule = Schedule.make("cosine", 1000, 0.1, 0.2, zero_terminal_snr=True)
    weights = loss_weights(torch.arange(1000), schedule, prediction, kind)
    assert weights.isfinite().all()
    assert (weights >= 0).all()


def test_an_unknown_weighting_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown loss weighting 'p3'; expected one of simple, min_snr, soft_min_snr, p2, variational"):
        loss_weights(torch.tensor([0]), SCHEDULE, "epsilon", kind="p3")


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown prediction 'x0'; expected one of epsilon, v_prediction, sample, flow"):
        loss_weights(torch.tensor([0]), SCHEDULE, "x0")


def test_each_channel_of_a_preconditioned_network_has_the_weight_of_its_error_of_x_0() -> None:
    spread = torch.tensor([6.0, 0.1], dtype=torch.float64)
    weights = loss_weights(TIMES, SCHEDULE, "preconditioned", "min_snr", gamma=5.0, spread=spread)
    sigma = SCHEDULE.sigmas[TIMES][:, None]
    expected = (1 / sigma**2).clamp(max=5.0) * sigma**2 * spread**2 / (sigma**2 + spread**2)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=0)
    wrong = torch.randn((len(TIMES), 2, 4, 4), generator=torch.Generator().manual_seed(0))
    found = weighted_squared_error(wrong, torch.zeros_like(wrong), weights)
    torch.testing.assert_close(found, (weights[:, :, None, None] * wrong.square()).mean((1, 2, 3)))
