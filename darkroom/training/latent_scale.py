"""The two numbers that make latents fit for diffusion, measured once and kept in the VAE's own config."""

import torch

from darkroom.data.shards import ImageShards
from darkroom.models.autoencoder import AutoencoderKL
from darkroom.pixels import to_float

MEASURED_PICTURES = 4096  # at most; the error of a standard deviation over so many latents is far below a percent


@torch.no_grad()
def measure_latents(vae: AutoencoderKL, photos: ImageShards, device: torch.device) -> tuple[float, float]:
    """Scale and shift so that (z - shift) scale has mean 0 and variance 1 for z drawn from the posteriors of `photos`.

    The variance of z is that of the posterior means plus the mean of the posterior variances. Rombach et al. 2022,
    section D.1, rescale by the standard deviation of one batch; here it is the training set, and the mean goes too.
    """
    num = min(len(photos), MEASURED_PICTURES)
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
