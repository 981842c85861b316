"""The autoencoder as a task of the training loop."""

import torch
from torch import Tensor, nn

from darkroom.config import TrainVaeParams
from darkroom.data.shards import ImageShards
from darkroom.models.autoencoder import AutoencoderKL
from darkroom.pixels import to_float
from darkroom.training.batches import VAL_SAMPLES, Batch, chunks, mirrored
from darkroom.training.draws import normal, shuffled, uniform
from darkroom.training.losses import kl_divergence, negative_log_likelihood


class VaeTask:
    """The negative evidence lower bound, in nats a pixel and channel (Kingma & Welling 2014, equation 3)."""

    def __init__(self, net: AutoencoderKL, train: ImageShards, val: ImageShards, params: TrainVaeParams) -> None:
        self.net = net
        self.train = train
        self.val = val
        self.params = params
        self.num_samples = len(train)
        side = train.size // net.config.stride
        self.latent_shape = (net.config.latent_channels, side, side)

    def batch(self, positions: range) -> Batch:
        seed = self.params.seed
        indices = shuffled(positions, num_samples=self.num_samples, seed=seed)
        flips = uniform(seed=seed, stream="flip", positions=positions) < 0.5
        return {
            "images": mirrored(to_float(self.train.images(indices)), flips),
            "noise": normal(self.latent_shape, seed=seed, stream="posterior", positions=positions),
        }

    def loss(self, net: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch["images"]
        reconstruction, mean, logvar = net(images, batch["noise"])
        dims = images[0].numel()
        nll = (
            negative_log_likelihood(
                images, reconstruction.float(), likelihood=self.params.likelihood, scale=self.params.decoder_scale
            ).mean()
            / dims
        )
        kl = kl_divergence(mean.float(), logvar.float()).mean() / dims
        return nll + self.params.kl_weight * kl, {"nll": nll, "kl": kl}

    def validate(self, device: torch.device) -> dict[str, float]:
        """The bound on held-out photos at fixed noise, and the PSNR of what the posterior mean decodes to."""
        totals = {"loss": 0.0, "nll": 0.0, "kl": 0.0, "psnr": 0.0}
        num = min(len(self.val), VAL_SAMPLES)
        for chunk in chunks(num):
            images = to_float(self.val.images(chunk)).to(device)
            noise = normal(self.latent_shape, seed=self.params.seed, stream="validation", positions=chunk).to(device)
            loss, logs = self.loss(self.net, {"images": images, "noise": noise})
            error = (self.net.reconstruct(images).float().clamp(-1, 1) - images).square().flatten(1).mean(1)
            psnr = 10 * torch.log10(4 / error.clamp_min(1e-10))  # the range of [-1, 1] is 2, its square 4
            for key, value in {"loss": loss, **logs, "psnr": psnr.mean()}.items():
                totals[key] += float(value) * len(chunk) / num
        return totals
