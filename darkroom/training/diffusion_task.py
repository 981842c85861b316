"""Denoising of cached latents as a task of the training loop."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from darkroom.config import TrainUnetParams
from darkroom.data.latents import LatentShards
from darkroom.diffusion.denoiser import add_noise, target
from darkroom.diffusion.schedule import Schedule
from darkroom.diffusion.weighting import loss_weights
from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.unet import UNet2DConditionModel
from darkroom.training.batches import VAL_SAMPLES, Batch, chunks
from darkroom.training.draws import normal, shuffled, uniform
from darkroom.training.losses import weighted_squared_error


class DiffusionTask:
    """The denoising loss on cached latents (Ho et al. 2020, equation 14; v: Salimans & Ho 2022)."""

    def __init__(
        self,
        net: UNet2DConditionModel,
        train: LatentShards,
        val: LatentShards,
        params: TrainUnetParams,
        *,
        vae: AutoencoderKL,  # owns scale and shift of the latents
        schedule: Schedule,
    ) -> None:
        self.net = net
        self.train = train
        self.val = val
        self.params = params
        self.vae = vae
        self.schedule = schedule
        self.num_samples = len(train)

    def batch(self, positions: range) -> Batch:
        """Chance comes in here: posterior noise, mirror image, caption dropout, timestep and noise of each position."""
        seed = self.params.seed
        indices = shuffled(positions, num_samples=self.num_samples, seed=seed)
        flips = uniform(seed=seed, stream="flip", positions=positions) < 0.5
        dropped = uniform(seed=seed, stream="caption", positions=positions) < self.params.caption_dropout
        timesteps = (uniform(seed=seed, stream="timestep", positions=positions) * self.schedule.num_train_timesteps).long()
        noise = normal(self.train.latent_shape, seed=seed, stream="noise", positions=positions)
        posterior = normal(self.train.latent_shape, seed=seed, stream="posterior", positions=positions)
        return self._inputs(self.train, indices, flips.tolist(), dropped.tolist(), timesteps, noise, posterior)

    def _inputs(
        self,
        shards: LatentShards,
        indices: Sequence[int],
        flips: list[bool],
        dropped: list[bool],
        timesteps: Tensor,
        noise: Tensor,
        posterior: Tensor,
    ) -> Batch:
        moments = torch.from_numpy(shards.moments(indices, flips))  # (B, 2, C, h, w)
        latents = self.vae.normalise(moments[:, 0] + moments[:, 1] * posterior)
        return {
            "x": add_noise(latents, noise, timesteps, self.schedule, self.params.prediction),
            "target": target(latents, noise, timesteps, self.schedule, self.params.prediction),
            "timesteps": timesteps,
            "context": torch.from_numpy(shards.context(indices, dropped)),
            "weights": loss_weights(
                timesteps, self.schedule, self.params.prediction, kind=self.params.loss_weighting, gamma=self.params.min_snr_gamma
            ),
        }

    def loss(self, net: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        prediction = net(batch["x"], batch["timesteps"], batch["context"])
        return weighted_squared_error(prediction, batch["target"], batch["weights"]).mean(), {}

    def validate(self, device: torch.device) -> dict[str, float]:
        """The same loss on held-out latents: timesteps spread evenly over the samples, noise fixed; by quarter of time too."""
        num = min(len(self.val), VAL_SAMPLES)
        repeats = -(-64 // num)  # at least 64 timesteps, however few the photos
        positions = range(num * repeats)
        timesteps = ((torch.arange(len(positions)) + 0.5) / len(positions) * self.schedule.num_train_timesteps).long()
        errors = []
        for chunk in chunks(len(positions)):
            noise = normal(self.val.latent_shape, seed=self.params.seed, stream="validation", positions=chunk)
            indices = [position % num for position in chunk]
            keep = [False] * len(chunk)
            inputs = self._inputs(self.val, indices, keep, keep, timesteps[chunk.start : chunk.stop], noise, torch.zeros_like(noise))
            batch = {key: tensor.to(device) for key, tensor in inputs.items()}
            prediction = self.net(batch["x"], batch["timesteps"], batch["context"])
            errors.append(weighted_squared_error(prediction, batch["target"], batch["weights"]).cpu())
        error = torch.cat(errors)
        quarters = {f"loss_quarter_{number}": float(part.mean()) for number, part in enumerate(error.chunk(4), start=1)}
        return {"loss": float(error.mean()), **quarters}
