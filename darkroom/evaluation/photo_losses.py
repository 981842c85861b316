"""Which training photos and which captions fit worst: the denoising loss of single photos, ranked.

A photo whose latents the U-Net predicts badly is unlike the others: a scan, a screenshot, noise. A caption that helps its photo less
than no caption does is probably wrong. Both losses of a photo share timesteps and noise, so that little of their difference is chance.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from darkroom.data.shards import ImageShards
from darkroom.diffusion.denoiser import Denoise
from darkroom.evaluation.galleries import NUM_WORST, Gallery, Tile
from darkroom.evaluation.likelihood import DenoiserFor
from darkroom.models.autoencoder import Autoencoder
from darkroom.pixels import to_float
from darkroom.progress import progress
from darkroom.training.draws import normal

MAX_LOSS_PHOTOS = 512  # training photos that are ranked: the first in the order of their keys, which are hashes
NOISE_LEVELS = (0.5, 2.0)  # in units of clean latents: where the details of a photo are decided, and where its subject is


@dataclass(frozen=True)
class PhotoLosses:
    """The losses of the first photos of the training set: 0 = all noise is told from the photo, 1 = none of it."""

    loss: NDArray[np.float64]  # (N,), given the photo's caption
    saved: NDArray[np.float64] | None  # (N,), what the caption saves over the empty prompt; None if all captions are equal

    def worst_photos(self, num: int) -> list[int]:
        """Rows by falling loss."""
        return [int(row) for row in np.argsort(-self.loss, kind="stable")[:num]]

    def worst_captions(self, num: int) -> list[int]:
        """Rows by rising loss that the caption saves: below 0 it misleads. Empty if all captions are equal."""
        return [] if self.saved is None else [int(row) for row in np.argsort(self.saved, kind="stable")[:num]]


@torch.no_grad()
def measure_photo_losses(
    vae: Autoencoder, denoiser_for: DenoiserFor, train: ImageShards, *, seed: int, batch_size: int, device: torch.device
) -> PhotoLosses:
    """The denoising losses of the first `MAX_LOSS_PHOTOS` training photos.

    Args:
        vae: its posterior mean gives the latents.
        denoiser_for: captions of a batch -> its denoiser.
        train: photos and captions.
        seed: of the noise, which depends on the row of a photo alone.
        batch_size: photos per network evaluation; it changes nothing but rounding.
        device: where the networks are.
    """
    num, captions = min(len(train), MAX_LOSS_PHOTOS), train.captions
    compared = len(set(captions[:num])) > 1
    losses, plain = [], []
    for start in progress(range(0, num, batch_size), desc="losses of training photos", unit="batch"):
        rows = range(start, min(start + batch_size, num))
        latents = vae.normalise(vae.encode(to_float(train.images(rows)).to(device))[0])
        losses.append(noise_errors(denoiser_for(captions[rows.start : rows.stop]), latents, seed=seed, rows=rows))
        if compared:
            plain.append(noise_errors(denoiser_for([""] * len(rows)), latents, seed=seed, rows=rows))
    loss = np.concatenate(losses)
    return PhotoLosses(loss, np.concatenate(plain) - loss if compared else None)


def noise_errors(denoise: Denoise, latents: Tensor, *, seed: int, rows: range) -> NDArray[np.float64]:
    """The squared error of the noise that D implies, |x_0 - D|^2 / sigma^2 per value, averaged over `NOISE_LEVELS`: (B,).

    All photos have the same noise levels, because the losses of different levels differ more than those of photos do. With levels evenly
    spaced in log sigma, differences estimate differences of log-likelihoods (Kingma et al. 2021, equation 17).
    """
    total = torch.zeros(len(latents), dtype=torch.float64)
    for number, level in enumerate(NOISE_LEVELS):
        noise = normal(latents.shape[1:], seed=seed, stream=f"photo_loss/{number}", positions=rows).to(latents)
        denoised = denoise(latents + level * noise, torch.full((len(latents),), level, dtype=torch.float64))
        total += (latents - denoised).div(level).square().flatten(1).mean(1).double().cpu()
    return (total / len(NOISE_LEVELS)).numpy()


def write_photo_losses(path: Path, losses: PhotoLosses, train: ImageShards) -> None:
    """One line per photo by falling loss: file in data/raw, key, loss, what its caption saves of it, caption."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["source", "key", "loss", "saved_by_caption", "caption"])
        for row in losses.worst_photos(len(losses.loss)):
            saved = "" if losses.saved is None else f"{losses.saved[row]:.4f}"
            writer.writerow([train.source(row), train.keys[row], f"{losses.loss[row]:.4f}", saved, train.captions[row]])


def photo_loss_galleries(losses: PhotoLosses, train: ImageShards, num: int = NUM_WORST) -> dict[str, Gallery]:
    """File name without suffix -> gallery of the `num` worst photos, and of the `num` worst captions."""
    of = f"{len(losses.loss)} of {len(train)} training photos were looked at"
    photo_note = f"The training photos with the largest denoising loss: look whether they belong to the others; {of}."
    caption_note = f"The training photos whose captions lower the denoising loss least: below 0 a caption misleads, so read it again; {of}."
    galleries = {"worst_photos": Gallery("Photos that fit worst", photo_note, _tiles(losses.worst_photos(num), losses.loss, train))}
    if losses.saved is not None:
        galleries["worst_captions"] = Gallery(
            "Captions that fit worst", caption_note, _tiles(losses.worst_captions(num), losses.saved, train)
        )
    return galleries


def _tiles(rows: Sequence[int], numbers: NDArray[np.float64], train: ImageShards) -> list[Tile]:
    return [Tile(train.images([row]), f"{numbers[row]:.3f} · {train.source(row)} · {train.captions[row]}") for row in rows]
