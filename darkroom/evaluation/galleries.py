"""Galleries: images with labels, as the report shows them and as one PNG each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from darkroom.evaluation.copies import Copies, Rows
from darkroom.evaluation.features import ImageSource
from darkroom.evaluation.reconstruction import psnr
from darkroom.pixels import picture_grid

Images = NDArray[np.uint8]  # (B, H, W, 3)
COLUMNS = 8  # of a PNG
SAMPLES_OF_A_PROMPT = 3
NUM_WORST = 12  # prompts, photos and captions that fit worst


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


def sample_gallery(samples: ImageSource, prompts: Sequence[str], num: int) -> Gallery:
    tiles = [Tile(samples.images([index]), prompt) for index, prompt in enumerate(prompts[:num])]
    return Gallery("Samples", f"The first {len(tiles)} of {len(samples)} samples with their prompts. None was picked by hand.", tiles)


def worst_gallery(samples: ImageSource, prompts: Sequence[str], fit: NDArray[np.floating], measure: str, num: int = NUM_WORST) -> Gallery:
    """The `num` prompts whose samples fit worst on average, each with up to `SAMPLES_OF_A_PROMPT` of them, the worst first.

    If all prompts are equal, they are the worst samples.

    Args:
        samples: one per prompt.
        prompts: (N,), which may repeat.
        fit: (N,), larger is better.
        measure: what `fit` is, in words.
        num: of prompts.
    """
    rows_of: dict[str, list[int]] = {}
    for row in np.argsort(fit, kind="stable"):
        rows_of.setdefault(prompts[row], []).append(int(row))
    groups = list(rows_of.values()) if len(rows_of) > 1 else [[row] for row in rows_of[prompts[0]]]
    worst = sorted(groups, key=lambda rows: float(fit[rows].mean()))[:num]
    tiles = [Tile(samples.images(rows[:SAMPLES_OF_A_PROMPT]), f"{fit[rows].mean():.1f} · {prompts[rows[0]]}") for rows in worst]
    title = "Worst prompts" if len(rows_of) > 1 else "Worst samples"
    return Gallery(title, f"The {len(tiles)} that fit worst of {len(groups)}, by their {measure}.", tiles)


def worst_samples(
    samples: ImageSource, prompts: Sequence[str], scores: NDArray[np.floating] | None, distances: NDArray[np.floating] | None
) -> Gallery | None:
    """The prompts that CLIP scores lowest, or else those whose samples are farthest from the photos; None if neither is known, (N,)."""
    if scores is not None:
        return worst_gallery(samples, prompts, scores, "CLIP score")
    if distances is not None:
        return worst_gallery(samples, prompts, -distances, "nearness to the photos (minus the distance)")
    return None


def comparison_gallery(samples: ImageSource, champions: ImageSource, prompts: Sequence[str], num: int) -> Gallery:
    """Samples of this model (left) and of the champion (right), drawn with the same prompts and seeds."""
    rows = range(min(num, len(samples), len(champions)))
    tiles = [Tile(np.concatenate([samples.images([row]), champions.images([row])]), prompts[row]) for row in rows]
    return Gallery("Beside the champion", "This model (left) and the champion (right), with the same prompt and seed.", tiles)


def reconstruction_gallery(photos: Images, reconstructions: Images, num: int) -> Gallery:
    pairs = np.stack([photos[:num], reconstructions[:num]], axis=1)
    tiles = [Tile(pair, f"{value:.1f} dB") for pair, value in zip(pairs, psnr(photos[:num], reconstructions[:num]), strict=True)]
    return Gallery("Reconstructions", "Held-out photos (left) and their reconstructions by the VAE (right), with the PSNR.", tiles)


def nearest_gallery(
    samples: ImageSource, prompts: Sequence[str], train: ImageSource, held_out: ImageSource, copies: Copies, num: int
) -> Gallery:
    """The `num` samples most like a copy, and a quarter as many held-out photos: what a picture reaches that is no copy."""

    def tiles(source: ImageSource, rows: Rows, nearest: Rows, labels: Sequence[str]) -> list[Tile]:
        pairs = zip(source.images(rows.tolist()), train.images(nearest[rows].tolist()), labels, strict=True)
        return [Tile(np.stack([picture, photo]), label) for picture, photo, label in pairs]

    rows, photos = copies.closest(num), copies.closest_photos(max(1, num // 4))
    labels = [f"{prompts[row]} · ratio {copies.ratio[row]:.2f}" for row in rows]
    photo_labels = [f"held-out photo · ratio {copies.photo_ratio[row]:.2f}" for row in photos]
    note = (
        "The samples that are most like a training photo (left), each beside that photo (right); then the held-out photos that are most "
        "like one. The ratio is the distance to that photo over the distance to the nearest held-out photo, in units of the smallest "
        f"that fresh photos reach: a sample with a ratio below 1 counts as a copy. {copies.copied_fraction:.1%} of the samples do, "
        f"{copies.photos:.1%} of the held-out photos."
    )
    pairs = tiles(samples, rows, copies.nearest_photo, labels) + tiles(held_out, photos, copies.photo_nearest, photo_labels)
    return Gallery("Nearest training photos", note, pairs)


def write_gallery(path: Path, gallery: Gallery) -> Images:
    """Write all images of a gallery as one PNG in a folder, which is made if it is missing, and return its pixels (H, W, 3).

    A tile is a row of its own if tiles hold many images; otherwise a row holds as many tiles as fit.
    """
    widest = max(len(tile.images) for tile in gallery.tiles)
    blank = np.full_like(gallery.tiles[0].images[:1], 255)
    images = np.concatenate([part for tile in gallery.tiles for part in (tile.images, *[blank] * (widest - len(tile.images)))])
    columns = min(COLUMNS // widest * widest, len(images))
    grid = picture_grid(images, columns)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(grid).save(path)
    return grid
