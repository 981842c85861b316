"""The training task of the autoencoder, and the scale and shift of its latents."""

import torch
from torch import Tensor, nn

from darkroom.config import TrainVaeParams
from darkroom.data.shards import ImageShards
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.linear_autoencoder import LinearAutoencoder
from darkroom.pixels import to_float
from darkroom.training.draws import normal, shuffled, uniform
from darkroom.training.task import VAL_SAMPLES, Batch, chunks, mirrored
from darkroom.training.vae_objective import VaeObjective

JUDGED = "judged"  # a batch for the discriminator has this key; a value would have to come back from the device in each step
MEASURED_PHOTOS = 4096  # at most; the error of a standard deviation over so many latents is far below a percent


class VaeTask:
    """The negative evidence lower bound in nats per pixel and channel (Kingma & Welling 2014, equation 3), plus optional terms."""

    def __init__(self, vae: Autoencoder, train: ImageShards, val: ImageShards, params: TrainVaeParams) -> None:
        self.vae = vae
        self.train = train
        self.val = val
        self.params = params
        self.num_samples = len(train)
        side = train.size // vae.config.stride
        self.latent_shape = (vae.config.latent_channels, side, side)
        self.net = VaeObjective.build(vae, params, size=train.size)
        self.averaged = self.net.bound

    def batch(self, positions: range) -> Batch:
        seed = self.params.seed
        indices = shuffled(positions, num_samples=self.num_samples, seed=seed)
        flips = uniform(seed=seed, stream="flip", positions=positions) < 0.5
        batch = {
            "images": mirrored(to_float(self.train.images(indices)), flips),
            "noise": normal(self.latent_shape, seed=seed, stream="posterior", positions=positions),
        }
        step = positions.start // self.params.batch_size
        return batch | ({JUDGED: torch.ones(())} if step >= self.params.adversarial.start_step else {})

    def loss(self, net: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        terms = net(batch["images"], batch["noise"], judged=JUDGED in batch)
        return terms.pop("total"), terms

    def validate(self, device: torch.device) -> dict[str, float]:
        """The terms of the loss on held-out photos at fixed noise, and the PSNR of reconstructions from the posterior mean."""
        totals: dict[str, float] = {}
        num = min(len(self.val), VAL_SAMPLES)
        for chunk in chunks(num):
            images = to_float(self.val.images(chunk)).to(device)
            noise = normal(self.latent_shape, seed=self.params.seed, stream="validation", positions=chunk).to(device)
            _, terms = self.loss(self.net, {"images": images, "noise": noise})
            error = (self.vae.reconstruct(images).float().clamp(-1, 1) - images).square().flatten(1).mean(1)
            psnr = 10 * torch.log10(4 / error.clamp_min(1e-10))  # the range of [-1, 1] is 2, its square 4
            for key, value in {**terms, "psnr": psnr.mean()}.items():
                totals[key] = totals.get(key, 0.0) + float(value) * len(chunk) / num
        return totals


def fit_linear(vae: LinearAutoencoder, photos: ImageShards) -> float:
    """Compute the basis of a linear autoencoder from `photos`; returns the standard deviation of a pixel given its latents."""
    return vae.fit(to_float(photos.images(rows)) for rows in chunks(min(len(photos), MEASURED_PHOTOS)))


@torch.no_grad()
def measure_latents(vae: Autoencoder, photos: ImageShards, device: torch.device) -> tuple[float, float]:
    """Scale and shift of the latents: (z - shift) scale has mean 0 and variance 1 for z drawn from the posteriors of `photos`.

    The variance of z is that of the posterior means plus the mean of the posterior variances. Rombach et al. 2022,
    section D.1, take the standard deviation of one batch; here it is that of the training set, and the mean is subtracted too.
    """
    num = min(len(photos), MEASURED_PHOTOS)
    total = square = variance = 0.0
    count = 0
    for start in range(0, num, 64):
        mean, std = vae.encode(to_float(photos.images(range(start, min(start + 64, num)))).to(device))
        mean, std = mean.cpu().double(), std.cpu().double()  # not every accelerator has float64
        total += float(mean.sum())
        square += float(mean.square().sum())
        variance += float(std.square().sum())
        count += mean.numel()
    shift = total / count
    return (square / count - shift**2 + variance / count) ** -0.5, shift
