"""Galleries: images with labels, as the report shows them and as one PNG each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from darkroom.data.shards import ImageShards
from darkroom.evaluation.neighbours import Memorization
from darkroom.evaluation.reconstruction import psnr
from darkroom.pixels import picture_grid

Images = NDArray[np.uint8]  # (B, H, W, 3)
COLUMNS = 8  # of a PNG


@dataclass(frozen=True)
class Tile:
    images: Images  # (n, H, W, 3), shown side by side
    label: str

    @property
    def row(self) -> NDArray[np.uint8]:
        """All images in one, (H, n W and the gaps, 3)."""
        return picture_grid(self.images, columns=len(self.images))


@dataclass(frozen=True)
class Gallery:
    title: str
    note: str  # one plain sentence
    tiles: Sequence[Tile]


def report_galleries(
    samples: Images,
    prompts: Sequence[str],
    copies: Memorization,  # of the samples
    train: ImageShards,
    photos: Images,
    reconstructions: Images,
    num: int,
) -> dict[str, Gallery]:
    """File name without suffix -> gallery, of at most `num` images each."""
    pairs = max(1, num // 2)
    nearest = train.images([int(copies.nearest_photo[index]) for index in copies.closest(pairs)])
    return {
        "samples": sample_gallery(samples, prompts, num),
        "nearest": nearest_gallery(samples, prompts, nearest, copies),
        "reconstructions": reconstruction_gallery(photos, reconstructions, pairs),
    }


def sample_gallery(samples: Images, prompts: Sequence[str], num: int) -> Gallery:
    tiles = [Tile(image[None], prompt) for image, prompt in zip(samples[:num], prompts, strict=False)]
    return Gallery("Samples", f"The first {len(tiles)} of {len(samples)} samples with their prompts. None was picked by hand.", tiles)


def reconstruction_gallery(photos: Images, reconstructions: Images, num: int) -> Gallery:
    pairs = np.stack([photos[:num], reconstructions[:num]], axis=1)
    tiles = [Tile(pair, f"{value:.1f} dB") for pair, value in zip(pairs, psnr(photos[:num], reconstructions[:num]), strict=True)]
    return Gallery("Reconstructions", "Held-out photos (left) and their reconstructions by the VAE (right), with the PSNR.", tiles)


def nearest_gallery(samples: Images, prompts: Sequence[str], photos: Images, copies: Memorization) -> Gallery:
    """`photos` are the training photos nearest to the samples that are most like a copy, in that order."""
    tiles = [
        Tile(np.stack([samples[index], photo]), f"{prompts[index]} · ratio {copies.ratio[index]:.2f}")
        for index, photo in zip(copies.closest(len(photos)), photos, strict=True)
    ]
    note = (
        "The samples that are most like a training photo (left), each beside that photo (right). The ratio is the distance to that photo "
        "over the distance to the nearest held-out photo; 0 is a copy."
    )
    return Gallery("Nearest training photos", note, tiles)


def write_gallery(path: Path, gallery: Gallery) -> Images:
    """Write all images of a gallery as one PNG and return its pixels (H, W, 3).

    A tile is a row of its own if tiles hold many images; otherwise a row holds as many tiles as fit.
    """
    widest = max(len(tile.images) for tile in gallery.tiles)
    blank = np.full_like(gallery.tiles[0].images[:1], 255)
    images = np.concatenate([part for tile in gallery.tiles for part in (tile.images, *[blank] * (widest - len(tile.images)))])
    columns = min(COLUMNS // widest * widest, len(images))
    grid = picture_grid(images, columns)
    Image.fromarray(grid).save(path)
    return grid
