"""How much each timestep counts in training: weights of the squared error of what the network predicts."""

from typing import get_args

import torch
from torch import Tensor

from darkroom.choices import LossWeighting
from darkroom.diffusion.denoiser import check_prediction, scalings
from darkroom.diffusion.posterior import mean_coefficients, variance
from darkroom.diffusion.schedule import Schedule

WEIGHTINGS = get_args(LossWeighting)


def loss_weights(t: Tensor, schedule: Schedule, prediction: str, kind: str = "simple", gamma: float = 5.0) -> Tensor:
    """Factor of the squared error at each timestep: (B,) fp32.

    All but "simple" are weights w of the squared error of x_0, which is c_out^2 times that of what is predicted:

    - "simple": 1 for what is predicted, whatever it is (Ho et al. 2020, equation 14).
    - "min_snr": w = min(SNR, gamma) (Hang et al. 2023, section 3.4).
    - "soft_min_snr": w = SNR gamma / (SNR + gamma), the same without the corner (Crowson et al. 2024, HDiT).
    - "p2": w = SNR / (1 + SNR)^gamma (Choi et al. 2022, with their k = 1); gamma 0 is "simple" of the noise.
    - "variational": the weight that the bound has, which for the noise is beta^2 / (2 beta alpha (1 - abar)) (Ho et al. 2020,
      equation 12, with the variance beta). Summed over t, with the squared error summed over the dimensions, it is
      `bound.variational_bound` but for terms that do not depend on the network.

    Args:
        t: (B,) whole.
        gamma: of "min_snr", "soft_min_snr" and "p2".

    Raises:
        ValueError: an unknown kind or prediction, or a prediction that this schedule cannot have.
    """
    check_prediction(prediction, schedule)
    if kind == "simple":
        return torch.ones_like(t, dtype=torch.float32)
    snr = schedule.snr.to(t.device)[t]
    match kind:
        case "min_snr":
            x0_weight = snr.clamp(max=gamma)
        case "soft_min_snr":
            x0_weight = snr * gamma / (snr + gamma)
        case "p2":
            x0_weight = snr / (1 + snr) ** gamma
        case "variational":
            x0_weight = mean_coefficients(t, schedule)[0] ** 2 / (2 * variance(t, schedule, "beta"))
        case _:
            raise ValueError(f"There is no loss weighting {kind!r}; there are {', '.join(WEIGHTINGS)}.")
    c_out = scalings(schedule.sigmas.to(t.device)[t], prediction).c_out
    return (x0_weight * c_out**2).float()
