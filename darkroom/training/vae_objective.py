"""The module that is trained around an autoencoder: images and noise in, the terms of the loss out."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from darkroom.config import TrainVaeParams
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.autoencoder_kl import AutoencoderKL
from darkroom.models.discriminator import PatchDiscriminator
from darkroom.models.perceptual import PerceptualDistance
from darkroom.training.losses import adaptive_weight, hinge_loss, kl_divergence, negative_log_likelihood


class DecoderLikelihood(nn.Module):
    """p(x|z) around the output of the decoder. A learned scale is stored as the log-variance (twice the log of the scale)."""

    def __init__(self, likelihood: str, scale: float | None, *, learned: bool) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.fixed_scale = scale
        self.logvar = nn.Parameter(torch.tensor(2 * math.log(scale))) if learned and scale else None

    @property
    def scale(self) -> float | Tensor | None:
        return self.fixed_scale if self.logvar is None else torch.exp(self.logvar / 2)

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """images and reconstruction (B, 3, H, W) in [-1, 1] -> nats per image (B,)"""
        return negative_log_likelihood(images, reconstruction, likelihood=self.likelihood, scale=self.scale)

    def to_json(self) -> dict[str, Any]:
        """What `evaluate` needs to compute the likelihood of the trained autoencoder; bernoulli has no scale."""
        scale = self.scale.item() if isinstance(self.scale, Tensor) else self.scale
        return {"likelihood": self.likelihood, "scale": scale}


class EvidenceBound(nn.Module):
    """The autoencoder with its likelihood: the part with an EMA of its weights, which is published."""

    def __init__(self, vae: Autoencoder, likelihood: DecoderLikelihood) -> None:
        super().__init__()
        self.vae = vae
        self.likelihood = likelihood

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images (B, 3, H, W) in [-1, 1], noise (B, C, h, w) -> reconstruction (B, 3, H, W), -log p(x|z) and KL in nats per image, (B,)"""
        reconstruction, mean, logvar = self.vae(images, noise)
        reconstruction = reconstruction.float()
        return reconstruction, self.likelihood(images, reconstruction), kl_divergence(mean.float(), logvar.float())


class VaeObjective(nn.Module):
    """All terms in one forward pass: gradients are averaged over processes only for what the wrapped module computes in `forward`.

    With a discriminator, autoencoder and discriminator take a simultaneous gradient step. The term of the autoencoder has the
    discriminator with detached weights, the term of the discriminator a detached reconstruction. So the sum of all terms has, for
    each weight, the gradient of its own loss, and one backward pass and one optimizer serve both.
    """

    def __init__(
        self,
        bound: EvidenceBound,
        *,
        kl_weight: float,
        perceptual: PerceptualDistance | None = None,
        perceptual_weight: float = 0.0,
        discriminator: PatchDiscriminator | None = None,
        adversarial_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.bound = bound
        self.kl_weight = kl_weight
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight
        self.discriminator = discriminator
        self.adversarial_weight = adversarial_weight

    @classmethod
    def build(cls, vae: Autoencoder, params: TrainVaeParams, *, size: int) -> "VaeObjective":
        """The objective that `params` describe, for photos of `size` px.

        Raises:
            ValueError: the weights of the perceptual network are missing, or the photos are too small for one of the networks.
        """
        look, adversary = params.perceptual, params.adversarial
        perceptual = discriminator = None
        if look.weight and params.steps:
            perceptual = PerceptualDistance.build(look, size=size)
        if adversary.weight and params.steps:
            discriminator = PatchDiscriminator(channels=adversary.channels, num_halvings=adversary.num_halvings, size=size)
            discriminator.initialise(params.seed)
        scale = None if params.likelihood == "bernoulli" else params.decoder_scale
        return cls(
            EvidenceBound(vae, DecoderLikelihood(params.likelihood, scale, learned=params.learn_scale)),
            kl_weight=params.kl_weight,
            perceptual=perceptual,
            perceptual_weight=look.weight,
            discriminator=discriminator,
            adversarial_weight=adversary.weight,
        )

    def forward(self, images: Tensor, noise: Tensor, *, judged: bool = False) -> dict[str, Tensor]:
        """Scalars by name: `total` is minimised, the others are logged. Nats are per pixel and channel.

        `loss` is the total without the adversarial terms, so that it means the same before and after adversarial training starts.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            noise: (B, C, h, w), standard normal.
            judged: whether the discriminator takes part yet; in evaluation mode it never does.
        """
        reconstruction, nll, kl = self.bound(images, noise)
        dims = images[0].numel()
        terms = {"nll": nll.mean() / dims, "kl": kl.mean() / dims}
        rebuilt = terms["nll"]
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(images, reconstruction).mean()
            rebuilt = rebuilt + self.perceptual_weight * terms["perceptual"]
        loss = rebuilt + self.kl_weight * terms["kl"]
        total = loss
        if self.bound.likelihood.logvar is not None:
            terms["scale"] = torch.exp(self.bound.likelihood.logvar / 2)
        if self.discriminator is not None and self.training:
            scores = self._judge(self.discriminator, images, reconstruction, rebuilt) if judged else self._idle(self.discriminator)
            total = total + scores["adaptive_weight"] * scores["adversarial"] + scores["discriminator"]
            terms |= scores
        return {"total": total} | {name: value.detach() for name, value in {"loss": loss, **terms}.items()}

    def _judge(self, discriminator: PatchDiscriminator, images: Tensor, reconstruction: Tensor, rebuilt: Tensor) -> dict[str, Tensor]:
        frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        adversarial = -functional_call(discriminator, frozen, (reconstruction,)).float().mean()
        real, fake = discriminator(torch.cat([images, reconstruction.detach()])).float().chunk(2)
        assert isinstance(self.bound.vae, AutoencoderKL), "no other kind is trained"
        last_layer = self.bound.vae.decoder.conv_out.weight
        return {
            "adversarial": adversarial,
            "adaptive_weight": self.adversarial_weight * adaptive_weight(rebuilt, adversarial, last_layer),
            "discriminator": hinge_loss(real, fake),
        }

    @staticmethod
    def _idle(discriminator: PatchDiscriminator) -> dict[str, Tensor]:
        """Terms of 0 with a gradient of 0 for each weight: averaging over processes waits for every gradient."""
        nothing = 0.0 * torch.stack([parameter.sum() for parameter in discriminator.parameters()]).sum()
        return {"adversarial": nothing.detach(), "adaptive_weight": nothing.detach(), "discriminator": nothing}
