"""Likelihood of held-out photos: upper bounds on -log p(photo | caption) by the VAE alone, and by VAE and U-Net together.

For the VAE alone, whose latents z have the prior N(0, 1), it is the evidence lower bound (Kingma & Welling 2014, equation 3). With the
U-Net's distribution of the latents in place of that prior (Vahdat et al. 2021, equation 6),

    -log p(x) <= E[-log p(x | z)] - H(q(z | x)) + E[bound of the normalised z] - dims log(scaling factor).

The last term is the change of variables from z to its normalised form.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from darkroom.data.shards import ImageShards
from darkroom.diffusion.bound import Bound, bits_per_dim, spread_timesteps, timestep_probabilities, variational_bound
from darkroom.diffusion.denoiser import Denoise, make_denoiser
from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.diffusion.guidance import classifier_free
from darkroom.diffusion.schedule import Schedule
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel
from darkroom.pixels import to_float
from darkroom.training.draws import normal
from darkroom.training.losses import kl_divergence, negative_log_likelihood

MAX_BOUND_PHOTOS = 128  # held-out photos whose likelihood is bounded
BOUND_TIMESTEPS = 3  # noise levels of the chain that are evaluated for each photo; they differ between photos
LIKELIHOOD = "likelihood.json"
LEVELS_A_UNIT = 127.5  # of 8-bit pixels in [-1, 1]
DenoiserFor = Callable[[Sequence[str]], Denoise]  # captions -> D(x, sigma) of normalised latents, without guidance


@dataclass(frozen=True)
class PixelLikelihood:
    """p(x | z) of the VAE's decoder."""

    likelihood: str  # see losses.negative_log_likelihood
    scale: float | None

    @classmethod
    def load(cls, vae: Path) -> "PixelLikelihood":
        """Read the folder of a VAE that train_vae wrote.

        Raises:
            ValueError: the file is missing.
        """
        if not (vae / LIKELIHOOD).is_file():
            raise ValueError(f"{vae} has no {LIKELIHOOD}: it is not the folder of a VAE that train_vae wrote. Run `dvc repro`.")
        return cls(**json.loads((vae / LIKELIHOOD).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class PhotoModel:
    """What a photo's bound needs besides the denoiser."""

    vae: Autoencoder
    pixels: PixelLikelihood
    schedule: Schedule  # the U-Net's


@dataclass(frozen=True)
class PhotoBounds:
    """Nats per photo, float64 (B,) each, on the CPU."""

    nll: Tensor  # -log p(x | z) of one draw of z
    kl: Tensor  # KL(q(z | x) || N(0, 1))
    entropy: Tensor  # of q(z | x)
    latents: Bound  # of the normalised z

    @property
    def vae(self) -> Tensor:
        """The negative evidence lower bound."""
        return self.nll + self.kl

    def together(self, latent_dims: int, scaling_factor: float) -> Tensor:
        """The bound of VAE and U-Net."""
        return self.nll - self.entropy + self.latents.total - latent_dims * math.log(scaling_factor)


def denoisers_of(unet: UNet2DConditionModel, clip: ClipTowers, config: DiffusionConfig) -> DenoiserFor:
    """The denoiser of each batch of captions."""

    def denoiser_for(captions: Sequence[str]) -> Denoise:
        context = clip.encode_tokens(clip.tokenize(captions).to(next(unet.parameters()).device))
        return make_denoiser(classifier_free(unet, context, context, scale=1), config.schedule, config.prediction, config.spread)

    return denoiser_for


@torch.no_grad()
def likelihood_metrics(
    model: PhotoModel,
    denoiser_for: DenoiserFor,
    held_out: ImageShards,
    *,
    latent_dims: int,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> dict[str, float]:
    """Bounds on the likelihood of the first `MAX_BOUND_PHOTOS` held-out photos, given their captions."""
    num = min(len(held_out), MAX_BOUND_PHOTOS)
    parts = []
    for rows in (range(start, min(start + batch_size, num)) for start in range(0, num, batch_size)):
        denoise = denoiser_for(held_out.captions[rows.start : rows.stop])
        images = to_float(held_out.images(rows)).to(device)
        parts.append(photo_bounds(model, denoise, images, seed=seed, positions=rows, num_positions=num, num_timesteps=BOUND_TIMESTEPS))
    return bound_metrics(model, parts, pixel_dims=3 * held_out.size**2, latent_dims=latent_dims)


@torch.no_grad()
def photo_bounds(
    model: PhotoModel, denoise: Denoise, images: Tensor, *, seed: int, positions: range, num_positions: int, num_timesteps: int
) -> PhotoBounds:
    """The bounds of one batch; noise and timesteps of a photo depend on its position alone.

    Args:
        model: VAE and schedule.
        denoise: D(x, sigma) of normalised latents, given the captions of these photos.
        images: (B, 3, H, W) in [-1, 1].
        seed: of the noise.
        positions: the numbers of these photos, of `num_positions` that are measured.
        num_positions: see `spread_timesteps`.
        num_timesteps: noise levels of the chain that are evaluated for each photo.
    """
    vae, schedule, pixels = model.vae, model.schedule, model.pixels
    mean, std = vae.encode(images)

    def noise_of(stream: str) -> Tensor:
        return normal(mean.shape[1:], seed=seed, stream=f"bound/{stream}", positions=positions).to(mean.device)

    z = mean + std * noise_of("posterior")
    nll = negative_log_likelihood(images, vae.decode(z), likelihood=pixels.likelihood, scale=pixels.scale)
    latents = variational_bound(
        denoise,
        vae.normalise(z),
        schedule,
        noise_of=lambda number: noise_of(str(number)),
        timesteps=spread_timesteps(schedule, num=num_timesteps, positions=positions, num_positions=num_positions),
        probabilities=timestep_probabilities(schedule),
    )
    entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).flatten(1).sum(1)
    kl = kl_divergence(mean, 2 * std.log())
    return PhotoBounds(nll.cpu().double(), kl.cpu().double(), entropy.cpu().double(), latents)


def bound_metrics(model: PhotoModel, parts: Sequence[PhotoBounds], *, pixel_dims: int, latent_dims: int) -> dict[str, float]:
    """Means over photos, under their names in metrics.json.

    Bits are those of 8-bit pixels: the probability of a value is its density times the distance to the next value. A Bernoulli
    likelihood is already a probability, of black or white, so there is no distance.
    """
    bin_bits = 0.0 if model.pixels.likelihood == "bernoulli" else math.log2(LEVELS_A_UNIT)
    together = torch.cat([part.together(latent_dims, model.vae.config.scaling_factor) for part in parts])
    vae = torch.cat([part.vae for part in parts])
    terms = {name: torch.cat([getattr(part.latents, name) for part in parts]) for name in ("total", "prior", "chain", "decoder")}
    photo_bits = bits_per_dim(together, pixel_dims) + bin_bits
    return {
        "photo_bits_per_dim": float(photo_bits.mean()),
        "photo_bits_per_dim_standard_error": standard_error(photo_bits),
        "vae_elbo_nats": -float(vae.mean()),
        "vae_bits_per_dim": float(bits_per_dim(vae, pixel_dims).mean()) + bin_bits,
        **{f"latent_bits_{name}": float(bits_per_dim(nats, latent_dims).mean()) for name, nats in terms.items()},
    }


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of values (B,) whose timesteps are spread over the photos: from the differences of neighbours.

    Neighbours have nearly the same timesteps and otherwise differ as much as any two photos. The spread of all values would count
    their dependence on time as chance (Wolter 2007, chapter 8).
    """
    return float((values.diff().square().mean() / (2 * len(values))).sqrt())
