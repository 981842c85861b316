"""A linear autoencoder: the principal components of patches. It is computed in seconds, not trained.

A patch x of p x p pixels is mu + U z + noise with orthonormal columns U and noise N(0, s^2 I): probabilistic PCA (Tipping & Bishop
1999) without the scaling of its columns. The most likely U are the eigenvectors of the largest eigenvalues of the covariance of patches,
the most likely s^2 the mean of the other eigenvalues (their equation 8). Because U is orthonormal and no channel is scaled by itself, the
latents keep the falling spectrum of photos, which makes them easy to diffuse (Skorokhodov et al. 2025, arXiv:2502.14831).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkroom.models.autoencoder import Autoencoder, AutoencoderConfig

ROUNDING = 2 / 255 / math.sqrt(12)  # standard deviation of the rounding of 8-bit pixels in [-1, 1]


@dataclass(frozen=True, kw_only=True)
class LinearAutoencoderConfig(AutoencoderConfig):
    CLASS_NAME: ClassVar[str] = "LinearAutoencoder"
    IMPLIED: ClassVar[dict[str, tuple[Any, ...]]] = {}

    patch_size: int = 8  # px, side of a patch: the stride
    latent_channels: int = 48  # principal components of a patch

    def check(self) -> None:
        if self.latent_channels > 3 * self.patch_size**2:
            raise ValueError(
                f"`latent_channels` is {self.latent_channels}, but a patch of {self.patch_size} px has only {3 * self.patch_size**2} values"
            )

    @property
    def stride(self) -> int:
        return self.patch_size


class LinearAutoencoder(Autoencoder):
    """Patches projected onto their principal components.

    The posterior of the raw latents is as wide as the rounding of 8-bit pixels, which an orthonormal projection keeps.
    """

    Config = LinearAutoencoderConfig
    config: LinearAutoencoderConfig

    def __init__(self, config: LinearAutoencoderConfig) -> None:
        super().__init__(config)
        self.mean = nn.Parameter(torch.zeros(3))  # of each colour
        self.basis = nn.Parameter(torch.zeros(config.latent_channels, 3, config.patch_size, config.patch_size))

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.check_size(images)
        mean = F.conv2d(images.float() - self.mean[:, None, None], self.basis, stride=self.config.patch_size).float()
        return mean, torch.full_like(mean, 2 * math.log(ROUNDING))

    def decode(self, raw: Tensor) -> Tensor:
        return F.conv_transpose2d(raw, self.basis, stride=self.config.patch_size) + self.mean[:, None, None]

    @torch.no_grad()
    def fit(self, photos: Iterable[Tensor]) -> float:
        """Compute mean and basis from photos and their mirror images.

        Args:
            photos: batches (B, 3, H, W) in [-1, 1]; they are read once.

        Returns:
            s, the standard deviation of a pixel value given its latents; that of rounding if no component is left out.
        """
        patch, dims = self.config.patch_size, 3 * self.config.patch_size**2
        total, square, count = torch.zeros(dims, dtype=torch.float64), torch.zeros(dims, dims, dtype=torch.float64), 0
        for images in photos:
            for variant in (images, images.flip(-1)):
                patches = F.unfold(variant.double(), patch, stride=patch).transpose(1, 2).reshape(-1, dims)
                total, square, count = total + patches.sum(0), square + patches.T @ patches, count + len(patches)
        means = total / count
        colours = means.reshape(3, -1).mean(1)
        about = colours.repeat_interleave(patch**2)
        covariance = square / count - torch.outer(means, about) - torch.outer(about, means) + torch.outer(about, about)
        values, vectors = torch.linalg.eigh(covariance)  # rising
        kept = vectors.flip(1)[:, : self.config.latent_channels].T
        signs = (kept @ torch.arange(1.0, dims + 1, dtype=torch.float64)).sign()[:, None]  # a vector and its opposite are equally good
        self.mean.copy_(colours)
        self.basis.copy_((kept * signs).reshape(self.basis.shape))
        left_out = values[: dims - self.config.latent_channels]
        return max(ROUNDING, math.sqrt(max(0.0, float(left_out.mean())))) if len(left_out) else ROUNDING
