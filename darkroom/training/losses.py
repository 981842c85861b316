"""The losses of the three training tasks, as functions of tensors, and the loss weights of the timesteps."""

import math
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from darkroom.choices import LossWeighting
from darkroom.diffusion.denoiser import check_prediction, scalings, times
from darkroom.diffusion.posterior import mean_coefficients, variance
from darkroom.diffusion.schedule import Schedule

LEAST_PROBABILITY = 1 / 512  # of black or white by a Bernoulli decoder: about half a level of an 8-bit image
WEIGHTINGS = get_args(LossWeighting)


def negative_log_likelihood(images: Tensor, reconstruction: Tensor, *, likelihood: str, scale: float | Tensor | None) -> Tensor:
    """-log p(x|z) in nats per image (B,) of a decoder with the mean `reconstruction`; both (B, C, H, W) in [-1, 1].

    Gaussian: (x - m)^2 / 2 s^2 + log s + log(2 pi) / 2 per pixel and channel. Laplace: |x - m| / s + log 2 s. The scale s has the
    units of the pixels; Bernoulli has none (None).

    Bernoulli: -b log p - (1 - b) log(1 - p) with b = (x + 1) / 2 and p = (m + 1) / 2. The decoder's output *is* the mean, because
    every reader of an AutoencoderKL takes it for the image (a decoder of log-odds would need a sigmoid that those readers do not
    apply). p is clamped to [1/512, 511/512]; beyond, the term of the wrong class continues as its tangent, so that a gradient leads
    back. The value is then at least the nats of the clamped p, so a bound remains a bound. This is a likelihood of black and white
    pixels; a grey x counts as black and white in proportion.
    """
    if likelihood == "bernoulli":
        share, mean = (images + 1) / 2, (reconstruction + 1) / 2
        nats = share * _surprise(mean) + (1 - share) * _surprise(1 - mean)
    elif likelihood == "gaussian":
        assert scale is not None
        nats = (images - reconstruction).square() / (2 * scale**2) + _log(scale) + 0.5 * math.log(2 * math.pi)
    else:
        assert scale is not None
        nats = (images - reconstruction).abs() / scale + _log(2 * scale)
    return nats.flatten(1).sum(1)


def _surprise(probability: Tensor) -> Tensor:
    """-log p, a straight line below LEAST_PROBABILITY and constant above 1 - LEAST_PROBABILITY."""
    return (LEAST_PROBABILITY - probability).clamp_min(0) / LEAST_PROBABILITY - probability.clamp(
        LEAST_PROBABILITY, 1 - LEAST_PROBABILITY
    ).log()


def _log(value: float | Tensor) -> float | Tensor:
    return value.log() if isinstance(value, Tensor) else math.log(value)


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats per image (B,) (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def hinge_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """The loss of the discriminator, a scalar (Lim & Ye 2017, equation 9): scores of real patches above 1, of fake ones below -1."""
    return (F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean()) / 2


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
    """The weight of the adversarial loss: the ratio of the norms of both gradients at the decoder's last layer, a scalar.

    Esser et al. 2021, equation 7, at most 10^4. The gradients are averaged over processes first, so that a batch has one weight on
    any number of processes (each micro-step of `gradient_accumulation` has its own). The graph is kept for the backward pass, and
    no `.grad` changes.
    """
    with torch.autocast(last_layer.device.type, enabled=False):
        gradients = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction_loss, adversarial_loss)]
    wanted, given = (mean_over_processes(gradient).norm() for gradient in gradients)
    return (wanted / (given + 1e-6)).clamp(max=1e4)


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, same: Tensor) -> Tensor:
    """The symmetric contrastive loss of CLIP (Radford et al. 2021, figure 3); every equal caption is a positive.

    Args:
        image_features: (B, E), of unit length.
        text_features: (B, E), of unit length.
        logit_scale: inverse temperature, a scalar.
        same: (B, B) bool, whether photos i and j have the same caption. Photos often share captions, and to push
            them apart would teach the encoders to tell equal captions from each other.
    """
    logits = logit_scale * image_features @ text_features.T
    targets = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def weighted_squared_error(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The squared error times one weight per sample (B,), or per sample and channel (B, C), averaged over values: (B,)."""
    return times((prediction.float() - target.float()).square(), weights).flatten(1).mean(1)


def loss_weights(
    t: Tensor, schedule: Schedule, prediction: str, kind: str = "simple", gamma: float = 5.0, spread: Tensor | None = None
) -> Tensor:
    """The factor of the squared error at each timestep: (B,) fp32; of "preconditioned" (B, C).

    All but "simple" are weights w of the squared error of x_0, which is c_out^2 times the squared error of the prediction:

    - "simple": 1 for the error of the prediction, whatever it predicts (Ho et al. 2020, equation 14).
    - "min_snr": w = min(SNR, gamma) (Hang et al. 2023, section 3.4).
    - "soft_min_snr": w = SNR gamma / (SNR + gamma), the same without the corner (Crowson et al. 2024, HDiT).
    - "p2": w = SNR / (1 + SNR)^gamma (Choi et al. 2022, with their k = 1); gamma 0 is "simple" of the noise.
    - "variational": the weight in the variational bound; for the noise it is beta^2 / (2 beta alpha (1 - abar)) (Ho et al. 2020,
      equation 12, with the variance beta). Summed over t, with the squared error summed over the dimensions, it is
      `bound.variational_bound` up to terms that do not depend on the network.

    Args:
        t: (B,) whole.
        gamma: of "min_snr", "soft_min_snr" and "p2".
        spread: as in `denoiser.scalings`.

    Raises:
        ValueError: an unknown kind or prediction, or a prediction that this schedule excludes.
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
            raise ValueError(f"Unknown loss weighting {kind!r}; expected one of {', '.join(WEIGHTINGS)}.")
    c_out = scalings(schedule.sigmas.to(t.device)[t], prediction, spread).c_out
    return times(c_out**2, x0_weight).float()


def gather_with_gradient(features: Tensor) -> Tensor:
    """(B, E) of this process -> (num_processes x B, E) of all; gradients flow back to every process."""
    if not _many_processes():
        return features
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(features))


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean over processes, equal on all of them; no gradient flows through it."""
    tensor = tensor.detach().clone()
    if _many_processes():
        torch.distributed.all_reduce(tensor)
        tensor /= torch.distributed.get_world_size()
    return tensor


def _many_processes() -> bool:
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
