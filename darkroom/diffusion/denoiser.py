"""What the network predicts ends here: samplers see D(x, sigma), training sees a target and a weight."""

from collections.abc import Callable

import torch
from torch import Tensor

from darkroom.diffusion.schedule import Schedule

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) -> denoised: the expected x_0, given x = x_0 + sigma * noise
Net = Callable[[Tensor, Tensor], Tensor]  # (variance-preserving x (B, C, h, w), t (B,)) -> prediction (B, C, h, w)

PREDICTIONS = ("epsilon", "v_prediction")
WEIGHTINGS = ("simple", "min_snr")


def make_denoiser(net: Net, schedule: Schedule, prediction: str) -> Denoise:
    """Wraps a trained network as D(x, sigma); sigma is 0-dimensional or (B,).

    The network sees x / sqrt(1 + sigma^2), in the dtype of x, and the timestep of that sigma. The prediction is turned into a
    picture in the dtype of x, with coefficients computed in float64: sigma may reach 1e4.

    Raises:
        ValueError: an unknown prediction.
    """
    _check_prediction(prediction)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        t = schedule.sigma_to_t(sigma).to(x.device, torch.float32).expand(x.shape[0])
        sigma = sigma.to(torch.float64)
        output = net(_times(x, (1 + sigma**2).rsqrt()), t).to(x.dtype)
        if prediction == "epsilon":
            return x - _times(output, sigma)
        return _times(x, 1 / (1 + sigma**2)) - _times(output, sigma * (1 + sigma**2).rsqrt())  # Salimans & Ho 2022, appendix D

    return denoise


def add_noise(latents: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """A draw of q(x_t | x_0), variance-preserving (Ho et al. 2020, equation 4). latents, noise (B, C, h, w); t (B,) whole"""
    alphas_cumprod = schedule.alphas_cumprod.to(t.device)[t]
    return _times(latents, alphas_cumprod.sqrt()) + _times(noise, (1 - alphas_cumprod).sqrt())


def target(latents: Tensor, noise: Tensor, t: Tensor, schedule: Schedule, prediction: str) -> Tensor:
    """What the network should say about `add_noise(latents, noise, t, schedule)`: the noise, or v (Salimans & Ho 2022, section 4).

    Raises:
        ValueError: an unknown prediction.
    """
    _check_prediction(prediction)
    if prediction == "epsilon":
        return noise
    alphas_cumprod = schedule.alphas_cumprod.to(t.device)[t]
    return _times(noise, alphas_cumprod.sqrt()) - _times(latents, (1 - alphas_cumprod).sqrt())


def loss_weights(t: Tensor, schedule: Schedule, prediction: str, kind: str = "simple", gamma: float = 5.0) -> Tensor:
    """Factor of the squared error at each timestep: (B,) fp32.

    Args:
        t: (B,) whole.
        kind: "simple" is 1 (Ho et al. 2020, equation 14); "min_snr" weighs the error of x_0 by min(SNR, gamma)
            (Hang et al. 2023, section 3.4), here in terms of the error of what is predicted.

    Raises:
        ValueError: an unknown prediction or kind.
    """
    _check_prediction(prediction)
    if kind == "simple":
        return torch.ones_like(t, dtype=torch.float32)
    if kind == "min_snr":
        snr = (schedule.sigmas**-2).to(t.device)[t]
        x0_error = snr if prediction == "epsilon" else snr + 1  # squared error of the prediction / squared error of x_0
        return (snr.clamp(max=gamma) / x0_error).float()
    raise ValueError(f"There is no loss weighting {kind!r}; there are {', '.join(WEIGHTINGS)}.")


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """x (B, ...) times one factor for all or one for each sample, in the dtype of x."""
    return x * factor.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def _check_prediction(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise ValueError(f"There is no prediction {prediction!r}; there are {', '.join(PREDICTIONS)}.")
