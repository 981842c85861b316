"""The galleries of the report, from arrays of pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from darkroom.evaluation.grid import picture_grid
from darkroom.evaluation.memorization import Memorization
from darkroom.evaluation.reconstruction import psnr
from darkroom.evaluation.report import Gallery, Tile

Images = NDArray[np.uint8]  # (B, H, W, 3)
COLUMNS = 8  # of a grid that is stored
IN_A_ROW = 8  # pictures of one coat


def sample_gallery(samples: Images, prompts: Sequence[str], num: int) -> Gallery:
    tiles = [Tile(image[None], prompt) for image, prompt in zip(samples[:num], prompts, strict=False)]
    return Gallery("Samples", f"The first {len(tiles)} of {len(samples)} pictures with their prompts; none was picked by hand.", tiles)


def reconstruction_gallery(photos: Images, reconstructions: Images, num: int) -> Gallery:
    pairs = np.stack([photos[:num], reconstructions[:num]], axis=1)
    tiles = [Tile(pair, f"{value:.1f} dB") for pair, value in zip(pairs, psnr(photos[:num], reconstructions[:num]), strict=True)]
    return Gallery("Reconstructions", "Held-out photos (left) and what the VAE makes of them (right).", tiles)


def nearest_gallery(samples: Images, prompts: Sequence[str], photos: Images, copies: Memorization) -> Gallery:
    """`photos` are the training photos nearest to the samples that are most like a copy, in that order."""
    tiles = [
        Tile(np.stack([samples[index], photo]), f"{prompts[index]} · ratio {copies.ratio[index]:.2f}")
        for index, photo in zip(copies.closest(len(photos)), photos, strict=True)
    ]
    note = (
        "The samples most like a training photo (left), and that photo (right), with the ratio of its distance to that of the nearest "
        "held-out photo: 0 is a copy."
    )
    return Gallery("Nearest training photos", note, tiles)


def coat_gallery(samples: Images, asked: Sequence[str], seen: Sequence[str | None], coats: Sequence[str]) -> Gallery:
    """Toy cats by the coat that was asked for."""
    tiles = []
    for coat in coats:
        rows = [index for index, name in enumerate(asked) if name == coat]
        if rows:
            right = sum(seen[index] == coat for index in rows)
            tiles.append(Tile(samples[rows[:IN_A_ROW]], f"{coat}: {right} of {len(rows)} are {coat}"))
    return Gallery("Coats", "Samples by the coat colour that their prompts ask for.", tiles)


def write_picture(path: Path, gallery: Gallery) -> None:
    """All pictures of a gallery in one PNG: a row a tile where tiles hold many pictures, else as many tiles a row as fit."""
    widest = max(len(tile.images) for tile in gallery.tiles)
    blank = np.full_like(gallery.tiles[0].images[:1], 255)
    images = np.concatenate([part for tile in gallery.tiles for part in (tile.images, *[blank] * (widest - len(tile.images)))])
    columns = min(COLUMNS // widest * widest, len(images))
    Image.fromarray(picture_grid(images, columns)).save(path)
