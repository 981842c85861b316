"""Canaries: photos spoiled in known ways. An extractor that does not tell them from photos cannot judge samples either."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from darkroom.evaluation.features import ChosenImages, Extractor, Images, ImageSource, MappedImages
from darkroom.evaluation.kernel_distance import kernel_distance
from darkroom.evaluation.neighbours import Features

NUM_CANARIES = 128  # photos that are spoiled, the first ones of the held-out set
MIN_REFERENCES = 100  # held-out photos; with fewer no distance is certain enough to decide on a promotion
LEAST_Z = 5.0  # of every canary
LEAST_P = 0.001  # training photos against held-out photos: the smallest p-value that 999 sign flips can give
BLUR_SIGMA = 1.0  # px
TILES = 4  # along each side
MEAN_COLOUR = "mean colour"
FRESH_PHOTOS = "training photos"


class Canary(NamedTuple):
    """How far spoiled photos are from held-out photos; the last of a table is training photos, which should not be far."""

    name: str
    z: float  # standard deviations of what equal distributions give
    p: float  # probability of such a distance if the distributions are equal


@dataclass(frozen=True)
class Fitness:
    """Whether distances of samples from photos mean something in the features of an extractor."""

    canaries: Sequence[Canary]
    unfit_because: str  # a plain sentence; "" = fit
    mean_colours: Features  # (M, D) of the first M held-out photos, each replaced by its mean colour: chance


def blurred(images: Images) -> Images:
    """Blurred by a Gaussian of `BLUR_SIGMA`."""
    return gaussian_filter(images.astype(np.float32), (0, BLUR_SIGMA, BLUR_SIGMA, 0), mode="nearest").round().astype(np.uint8)


def upside_down(images: Images) -> Images:
    return np.ascontiguousarray(images[:, ::-1])


def mean_colour(images: Images) -> Images:
    """Every pixel has the mean colour of its image."""
    return np.broadcast_to(images.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8), images.shape).copy()


@dataclass(frozen=True)
class TiledImages:
    """The images of `source` with their 4 x 4 tiles shuffled; the order of the tiles depends on the index of the image alone.

    Where the side is no multiple of 4 the last rows and columns stay where they are.
    """

    source: ImageSource

    def __len__(self) -> int:
        return len(self.source)

    def images(self, indices: Sequence[int]) -> Images:
        shuffled = self.source.images(indices).copy()
        height, width = (side // TILES for side in shuffled.shape[1:3])
        inner = shuffled[:, : TILES * height, : TILES * width]
        tiles = inner.reshape(-1, TILES, height, TILES, width, 3).swapaxes(2, 3).reshape(-1, TILES**2, height, width, 3)
        orders = np.array([np.random.default_rng(index).permutation(TILES**2) for index in indices])
        tiles = np.take_along_axis(tiles, orders[:, :, None, None, None], axis=1)
        inner[:] = tiles.reshape(-1, TILES, TILES, height, width, 3).swapaxes(2, 3).reshape(inner.shape)
        return shuffled


def canary_images(photos: ImageSource) -> dict[str, ImageSource]:
    """The canaries by name, made batch by batch as they are read."""
    return {
        "blurred photos": MappedImages(photos, blurred),
        "photos of shuffled tiles": TiledImages(photos),
        "photos upside down": MappedImages(photos, upside_down),
        MEAN_COLOUR: MappedImages(photos, mean_colour),
    }


def check_extractor(
    extractor: Extractor,
    photos: ImageSource,  # held-out photos
    held_out: Features,  # their features (N, D)
    train: Features,  # of training photos
    *,
    batch_size: int,
) -> Fitness:
    """Whether the extractor tells canaries from held-out photos, and does not tell training photos from them.

    A canary is not compared with the photo that it was made of. Its z says how far it is out of what two *independent* sets of
    photos give, as samples are, although canaries and photos depend on each other: an extractor for which
    everything is nearly alike sees that all pairs differ in the same way, which says nothing about samples.
    """
    references, kernel = held_out[:NUM_CANARIES], extractor.kernel
    rows = np.arange(len(references))
    sources = canary_images(ChosenImages(photos, range(len(references))))
    features = {name: extractor.of(images, batch_size=batch_size, desc=name) for name, images in sources.items()}
    mean_colours = features[MEAN_COLOUR]
    if not all(np.isfinite(array).all() for array in (*features.values(), held_out, train)):
        return Fitness([], "The extractor gives features that are not finite: its weights are damaged, or it overflows.", mean_colours)
    canaries = []
    for name, found in features.items():
        distance = kernel_distance(found, references, rows, rows, kernel=kernel, flip_images=True)
        canaries.append(Canary(name, distance.z, distance.p))
    fresh = kernel_distance(train[: len(references)], references, kernel=kernel)
    return Fitness([*canaries, Canary(FRESH_PHOTOS, fresh.z, fresh.p)], _reason(canaries, fresh.p), mean_colours)


def _reason(canaries: Sequence[Canary], p_of_photos: float) -> str:
    missed = [f"{canary.name} (z = {round(canary.z, 1) + 0.0:.1f})" for canary in canaries if not canary.z >= LEAST_Z]
    if missed:
        return f"The extractor does not tell held-out photos from {', '.join(missed)}; every z must be at least {LEAST_Z:g}."
    if p_of_photos <= LEAST_P:
        return (
            f"Training photos and held-out photos differ in the features of the extractor (p = {p_of_photos:.3f}), "
            "so nobody knows which distance is a good one."
        )
    return ""


def too_few_references(num_held_out: int) -> str:
    """A sentence if there are fewer than `MIN_REFERENCES` held-out photos; "" = there are enough."""
    if num_held_out >= MIN_REFERENCES:
        return ""
    return (
        f"There are {num_held_out} held-out photos, and distances from fewer than {MIN_REFERENCES} are too uncertain to decide on a "
        "promotion: add photos, or hold out more (ingest.val_fraction)."
    )
