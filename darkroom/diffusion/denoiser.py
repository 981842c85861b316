"""The denoiser D(x, sigma) of a network, whatever the network predicts, and the input and target of its training.

Four predictions are one family: the network gets c_in x and predicts F, and D = c_skip x + c_out F (Karras et al. 2022,
equation 7), with x = x_0 + sigma noise. Sampling, training and loss weights take the coefficients from `scalings`.
"""

from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from darkroom.choices import Prediction
from darkroom.diffusion.schedule import Schedule

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) -> denoised: the expected x_0, given x = x_0 + sigma * noise
Net = Callable[[Tensor, Tensor], Tensor]  # (x at the network's scale (B, C, h, w), t (B,)) -> prediction (B, C, h, w)

PREDICTIONS = get_args(Prediction)


class Scalings(NamedTuple):
    """Float64, of the shape of sigma."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor


def scalings(sigma: Tensor, prediction: str) -> Scalings:
    """The coefficients c_in, c_skip and c_out of a prediction at a noise level.

    "epsilon" is the noise and "v_prediction" sqrt(abar) noise - sqrt(1 - abar) x_0 (Salimans & Ho 2022, appendix D); "sample" is
    the image itself. The network of these three gets the variance-preserving x_t. "flow" is the velocity noise - x_0 of rectified
    flow; its network gets the straight mix (1 - s) x_0 + s noise, s = sigma / (1 + sigma) (Liu et al. 2023, equation 1).

    Raises:
        ValueError: an unknown prediction.
    """
    sigma = sigma.to(torch.float64)
    c_in = 1 / (1 + sigma) if prediction == "flow" else (1 + sigma**2).rsqrt()
    match prediction:
        case "epsilon":
            return Scalings(c_in, torch.ones_like(sigma), -sigma)
        case "v_prediction":
            return Scalings(c_in, c_in**2, -sigma * c_in)
        case "sample":
            return Scalings(c_in, torch.zeros_like(sigma), torch.ones_like(sigma))
        case "flow":
            return Scalings(c_in, c_in, -sigma * c_in)
    raise ValueError(f"Unknown prediction {prediction!r}; expected one of {', '.join(PREDICTIONS)}.")


def make_denoiser(net: Net, schedule: Schedule, prediction: str) -> Denoise:
    """Wraps a trained network as D(x, sigma); sigma is 0-dimensional or (B,).

    The network gets c_in x, in the dtype of x, and the timestep of that sigma. D has the dtype of x; its coefficients are computed
    in float64, because sigma may reach 1e5.

    Raises:
        ValueError: an unknown prediction, or one that this schedule excludes.
    """
    check_prediction(prediction, schedule)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        t = schedule.sigma_to_t(sigma).to(x.device, torch.float32).expand(x.shape[0])
        c_in, c_skip, c_out = scalings(sigma, prediction)
        output = net(times(x, c_in), t).to(x.dtype)
        return times(x, c_skip) + times(output, c_out)

    return denoise


def add_noise(latents: Tensor, noise: Tensor, t: Tensor, schedule: Schedule, prediction: str) -> Tensor:
    """The input of the network in training, c_in (x_0 + sigma noise).

    Except for "flow" this is a draw of q(x_t | x_0) = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (Ho et al. 2020, equation 4).

    Args:
        latents: x_0, (B, C, h, w).
        noise: (B, C, h, w), standard normal.
        t: (B,), integers.

    Raises:
        ValueError: an unknown prediction.
    """
    sigma = schedule.sigmas.to(t.device)[t]
    c_in = scalings(sigma, prediction).c_in
    return times(latents, c_in) + times(noise, sigma * c_in)


def target(latents: Tensor, noise: Tensor, t: Tensor, schedule: Schedule, prediction: str) -> Tensor:
    """The target of the network for `add_noise(...)` of the same arguments: with this prediction D is x_0.

    Raises:
        ValueError: an unknown prediction, or one that this schedule excludes.
    """
    check_prediction(prediction, schedule)
    match prediction:
        case "epsilon":
            return noise
        case "sample":
            return latents
        case "flow":
            return noise - latents
    alphas_cumprod = schedule.alphas_cumprod.to(t.device)[t]
    return times(noise, alphas_cumprod.sqrt()) - times(latents, (1 - alphas_cumprod).sqrt())  # Salimans & Ho 2022, section 4


def denoised(output: Tensor, x: Tensor, t: Tensor, schedule: Schedule, prediction: str) -> Tensor:
    """D of a network's output for its input `x`, both at the network's scale: with `target(...)` as output, x_0 of `add_noise(...)`.

    Args:
        output: (B, C, h, w), what the network predicts.
        x: (B, C, h, w), of `add_noise`.
        t: (B,), integers.

    Raises:
        ValueError: an unknown prediction.
    """
    c_in, c_skip, c_out = scalings(schedule.sigmas.to(t.device)[t], prediction)
    return times(x, c_skip / c_in) + times(output, c_out)


def times(x: Tensor, factor: Tensor) -> Tensor:
    """x (B, ...) times one factor for all samples or one for each, in the dtype of x."""
    return x * factor.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def check_prediction(prediction: str, schedule: Schedule) -> None:
    """Refuse an unknown prediction, and epsilon for a schedule that ends in pure noise, where it says nothing about the image."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"Unknown prediction {prediction!r}; expected one of {', '.join(PREDICTIONS)}.")
    if prediction == "epsilon" and schedule.zero_terminal_snr:
        raise ValueError(
            "prediction: epsilon does not work with schedule.zero_terminal_snr: true, because pure noise says nothing about the image. "
            "Set prediction to v_prediction, sample or flow."
        )
