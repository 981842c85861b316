"""The losses of the three tasks, as functions of tensors."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def negative_log_likelihood(images: Tensor, reconstruction: Tensor, *, likelihood: str, scale: float) -> Tensor:
    """-log p(x|z) in nats per picture (B,), of a Gaussian or Laplace decoder with mean `reconstruction`.

    Gaussian: (x - m)^2 / 2 s^2 + log s + log(2 pi) / 2 a pixel and channel. Laplace: |x - m| / s + log 2 s.
    """
    if likelihood == "gaussian":
        nats = (images - reconstruction).square() / (2 * scale**2) + math.log(scale) + 0.5 * math.log(2 * math.pi)
    else:
        nats = (images - reconstruction).abs() / scale + math.log(2 * scale)
    return nats.flatten(1).sum(1)


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats per picture (B,) (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, same: Tensor) -> Tensor:
    """The symmetric contrastive loss of CLIP (Radford et al. 2021, figure 3), with every equal caption a positive.

    Args:
        image_features: (B, E), of unit length.
        text_features: (B, E), of unit length.
        logit_scale: inverse temperature, a scalar.
        same: (B, B) bool, whether picture i and picture j have the same caption. Photos often share captions, and
            to push them apart would teach the towers to tell equal texts from each other.
    """
    logits = logit_scale * image_features @ text_features.T
    targets = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def weighted_squared_error(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean over pixels of the squared error, times a weight a sample: (B,)."""
    return weights * (prediction.float() - target.float()).square().flatten(1).mean(1)


def gather_with_gradient(features: Tensor) -> Tensor:
    """(B, E) of this process -> (num_processes x B, E) of all; gradients flow back to each."""
    if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
        return features
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(features))
