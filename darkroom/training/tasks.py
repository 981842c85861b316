"""The three tasks of the training loop: what a batch holds, what the loss is, how it is validated."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from darkroom.config import TrainUnetParams, TrainVaeParams
from darkroom.data.latents import LatentShards
from darkroom.data.shards import ImageShards
from darkroom.diffusion.denoiser import add_noise, loss_weights, target
from darkroom.diffusion.schedule import Schedule
from darkroom.models.autoencoder import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.unet import UNet2DConditionModel
from darkroom.training.draws import normal, shuffled, uniform
from darkroom.training.losses import contrastive_loss, gather_with_gradient, kl_divergence, negative_log_likelihood, weighted_squared_error
from darkroom.training.loop import Batch

VAL_BATCH = 64  # samples a validation forward
VAL_SAMPLES = 256  # held-out samples that validation looks at, at most


def to_float(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3)."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _chunks(num: int, size: int = VAL_BATCH) -> list[range]:
    return [range(start, min(start + size, num)) for start in range(0, num, size)]


def _mirrored(images: Tensor, flips: Tensor) -> Tensor:
    return torch.where(flips[:, None, None, None], images.flip(-1), images)


class ClipTask:
    """Contrastive training of an image and a text tower on the user's own pairs (Radford et al. 2021)."""

    def __init__(self, net: ClipTowers, train: ImageShards, val: ImageShards, *, seed: int) -> None:
        self.net = net
        self.train = train
        self.val = val
        self.seed = seed
        self.num_samples = len(train)

    def batch(self, positions: range) -> Batch:
        indices = shuffled(positions, num_samples=self.num_samples, seed=self.seed)
        flips = uniform(seed=self.seed, stream="flip", positions=positions) < 0.5
        return {
            "images": _mirrored(to_float(self.train.images(indices)), flips),
            "tokens": self.net.tokenize([self.train.captions[index] for index in indices]),
        }

    def loss(self, net: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        image_features, text_features, logit_scale = net(batch["images"], batch["tokens"])
        tokens = gather_with_gradient(batch["tokens"])
        same = (tokens[:, None] == tokens[None]).all(-1)
        loss = contrastive_loss(gather_with_gradient(image_features), gather_with_gradient(text_features), logit_scale, same)
        return loss, {"logit_scale": logit_scale}

    def validate(self, device: torch.device) -> dict[str, float]:
        """Loss over the held-out pairs, and how often the nearest text of a photo is its own caption."""
        num = min(len(self.val), VAL_SAMPLES)
        tokens = self.net.tokenize(self.val.captions[:num]).to(device)
        parts = [self.net(to_float(self.val.images(chunk)).to(device), tokens[chunk.start : chunk.stop]) for chunk in _chunks(num)]
        image_features = torch.cat([part[0] for part in parts]).float()
        text_features = torch.cat([part[1] for part in parts]).float()
        same = (tokens[:, None] == tokens[None]).all(-1)
        nearest = (image_features @ text_features.T).argmax(1)
        return {
            "loss": float(contrastive_loss(image_features, text_features, parts[0][2].float(), same)),
            "retrieval_accuracy": float(same[torch.arange(num, device=device), nearest].float().mean()),
        }


class VaeTask:
    """The negative evidence lower bound, in nats a pixel and channel (Kingma & Welling 2014, equation 3)."""

    def __init__(self, net: AutoencoderKL, train: ImageShards, val: ImageShards, params: TrainVaeParams) -> None:
        self.net = net
        self.train = train
        self.val = val
        self.params = params
        self.num_samples = len(train)
        stride = 2 ** (len(net.config.block_out_channels) - 1)
        self.latent_shape = (net.config.latent_channels, train.size // stride, train.size // stride)

    def batch(self, positions: range) -> Batch:
        seed = self.params.seed
        indices = shuffled(positions, num_samples=self.num_samples, seed=seed)
        flips = uniform(seed=seed, stream="flip", positions=positions) < 0.5
        return {
            "images": _mirrored(to_float(self.train.images(indices)), flips),
            "noise": normal(self.latent_shape, seed=seed, stream="posterior", positions=positions),
        }

    def loss(self, net: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch["images"]
        reconstruction, mean, logvar = net(images, batch["noise"])
        dims = images[0].numel()
        nll = negative_log_likelihood(images, reconstruction.float(), likelihood=self.params.likelihood, scale=self.params.decoder_scale).mean() / dims
        kl = kl_divergence(mean.float(), logvar.float()).mean() / dims
        return nll + self.params.kl_weight * kl, {"nll": nll, "kl": kl}

    def validate(self, device: torch.device) -> dict[str, float]:
        """The bound on held-out photos at fixed noise, and the PSNR of what the posterior mean decodes to."""
        totals = {"loss": 0.0, "nll": 0.0, "kl": 0.0, "psnr": 0.0}
        num = min(len(self.val), VAL_SAMPLES)
        for chunk in _chunks(num):
            images = to_float(self.val.images(chunk)).to(device)
            noise = normal(self.latent_shape, seed=self.params.seed, stream="validation", positions=chunk).to(device)
            loss, logs = self.loss(self.net, {"images": images, "noise": noise})
            mean, _ = self.net.encode(images)
            error = (self.net.decode(mean).float().clamp(-1, 1) - images).square().flatten(1).mean(1)
            psnr = 10 * torch.log10(4 / error.clamp_min(1e-10))  # the range of [-1, 1] is 2, its square 4
            for key, value in {"loss": loss, **logs, "psnr": psnr.mean()}.items():
                totals[key] += float(value) * len(chunk) / num
        return totals


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
        self, shards: LatentShards, indices: Sequence[int], flips: list[bool], dropped: list[bool], timesteps: Tensor, noise: Tensor, posterior: Tensor
    ) -> Batch:
        moments = torch.from_numpy(shards.moments(indices, flips))  # (B, 2, C, h, w)
        latents = self.vae.normalise(moments[:, 0] + moments[:, 1] * posterior)
        return {
            "x": add_noise(latents, noise, timesteps, self.schedule),
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
        for chunk in _chunks(len(positions)):
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
