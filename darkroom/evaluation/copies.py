"""Copies of training photos among samples, found also if they are mirrored, noisy, cropped or blurred by the VAE.

A sample is compared with the training photos and with the held-out photos: each as it is and as the VAE reconstructs it, because a copy
comes out of the VAE's decoder too, and with the mirror images of both. For a copy the distance to the nearest training photo is small
beside the mean distance to the 10 nearest held-out photos, in pixels or in edges. What is small, the photos say themselves: each is
compared with all others, as a fresh picture would be, as it is and as the VAE reconstructs it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats

from darkroom.evaluation.features import MAX_PHOTOS, Images, ImageSource
from darkroom.models.classifier import resized
from darkroom.progress import progress

Vectors = NDArray[np.float32]  # (..., D), each of length 1
Views = NDArray[np.float16]  # (V, N, D): vectors of V views of each of N photos
Queries = tuple[Vectors, Vectors]  # pixels (B, 192) and edges (B, 512) of pictures
Window = tuple[slice, slice]  # rows and columns
Rows = NDArray[np.intp]  # (N,)
Ratios = NDArray[np.float64]  # (N,)
Distances = NDArray[np.float32]  # (B, N)

FRESH = 0.005  # share of fresh pictures that may be taken for copies in pixels, and in edges: together at most 1 %
FRESH_IF_FEW = 1e-4  # that share where too few photos show it: a normal distribution stands in, and real tails are longer
CONFIDENCE = 0.95  # that it is no more than this
NEIGHBOURS = 10  # held-out photos whose mean distance is the yardstick: the nearest one alone varies too much
TWIN = 6.0  # robust standard deviations of log ratios below their median: only near duplicates are as near
TIMES_NEARER = 2.0  # than the median photo, at least: ratios of unlike photos can lie close together, but with a tail
MAX_FRESH = 2_000  # training photos that show, beside the held-out ones, what fresh pictures reach
PIXELS_SIDE, EDGES_SIDE, CELLS, DIRECTIONS = 8, 40, 8, 8
WINDOWS_SIDE = 80  # px to which pictures are resized before windows are cut
CROPPED = [slice(first, WINDOWS_SIDE - 4 + first) for first in range(5)]  # 95 % of the rows or columns
WINDOWS: list[Window] = [(slice(WINDOWS_SIDE), slice(WINDOWS_SIDE)), *product(CROPPED, CROPPED)]
BLOCK = 256  # pictures that are compared together, whatever the batch size: sums then round alike
PLAIN, DECODED = 0, 2  # views: the photo itself, and its whole reconstruction
NONE = -1  # the row that is left out where none is
ROUNDING = 1e-4  # squared distances are not more exact than this: views are kept in 16 bits


@dataclass(frozen=True)
class Copies:
    """How many samples are copies, and which are most like one. Rows are those of the sources that were compared."""

    copied_fraction: float  # share of samples whose ratio is below 1
    low: float  # its exact 95 % interval (Clopper and Pearson 1934)
    high: float
    photos: float  # the same share of the held-out photos; above 0.01 if they are near duplicates of training photos
    ratio: Ratios  # the smaller of that in pixels and that in edges, each over the ratio that only 0.5 % of fresh pictures have
    nearest_photo: Rows  # the training photo nearest to each sample
    photo_ratio: Ratios  # the same two of the held-out photos, each compared with the others
    photo_nearest: Rows

    @property
    def metrics(self) -> dict[str, float]:
        """Keys of metrics.json."""
        values = {"": self.copied_fraction, "_low": self.low, "_high": self.high, "_photos": self.photos}
        return {f"copied_fraction{suffix}": value for suffix, value in values.items()}

    def closest(self, num: int) -> Rows:
        """The samples most like a copy, by rising ratio."""
        return np.argsort(self.ratio, kind="stable")[:num]

    def closest_photos(self, num: int) -> Rows:
        """The held-out photos most like a copy, by rising ratio: what a picture reaches that is none."""
        return np.argsort(self.photo_ratio, kind="stable")[:num]


def find_copies(
    samples: ImageSource,
    train: ImageSource,  # of these, and of the held-out photos, the first `MAX_PHOTOS` count
    held_out: ImageSource,
    *,
    decode: Callable[[Images], Images],  # photos -> their reconstructions by the VAE
    sources: Sequence[int] | Rows,  # (N,): the held-out photo whose caption was the prompt of each sample
    batch_size: int,  # images that are read and decoded together
) -> Copies:
    """Count the samples that are nearer to a training photo than fresh pictures come.

    A sample is near to the photo whose caption was its prompt, so that photo is left out for it. A held-out photo that is a near
    duplicate of a training photo is left out for all, because a copy of one is a copy of the other. Memory does not grow with the
    number of samples but for their ratios.

    Raises:
        ValueError: fewer than 2 training photos, or fewer than 2 held-out photos that are no near duplicates of training photos.
    """
    _check(len(train), len(held_out), "")
    trained = _Views.read(train, decode, batch_size, "training photos")
    others = _Views.read(held_out, decode, batch_size, "held-out photos")
    _, plain = _fresh(trained, others, PLAIN)
    (photo_nearest, photo_ratios), decoded = _fresh(trained, others, DECODED)
    thresholds = np.array([min(copy_threshold(kind) for kind in kinds) for kinds in zip(plain, decoded, strict=True)])

    kept = np.flatnonzero((photo_ratios >= np.array([[ratios[0]] for ratios in decoded])).all(axis=0))
    _check(len(trained), len(kept), " that are no near duplicates of training photos")
    place = np.full(len(held_out), NONE)
    place[kept] = np.arange(len(kept))
    skipped, others = place[np.asarray(sources)], others[kept]
    blocks = _sample_blocks(samples, batch_size)
    found = [_compare(queries, trained, others, skip_held_out=skipped[rows]) for rows, queries in blocks]
    nearest, ratios = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return _count(*_smaller(nearest, ratios, thresholds), *_smaller(photo_nearest, photo_ratios, thresholds))


def _fresh(train: "_Views", held_out: "_Views", view: int) -> tuple[tuple[Rows, Ratios], list[Ratios]]:
    """What fresh pictures reach, if they look like this view of a photo: each photo is compared with all others.

    Returns:
        the nearest training photo and the ratio of each held-out photo, both (2, N), in pixels and in edges; and the sorted ratios
        of these and of training photos, one array for pixels and one for edges, without near duplicates.
    """
    photos = _compare(held_out.queries(view), train, held_out, skip_held_out=np.arange(len(held_out)))
    few = train[np.arange(min(len(train), MAX_FRESH))]
    _, ratios = _compare(few.queries(view), train, held_out, skip_train=np.arange(len(few)))
    return photos, [without_near_duplicates(both) for both in np.concatenate([photos[1], ratios], axis=1)]


def _smaller(nearest: Rows, ratios: Ratios, thresholds: Ratios) -> tuple[Rows, Ratios]:
    """Of pixels and edges (2, B) those with the smaller ratio to the threshold (2,): the photo and that ratio."""
    relative = ratios / thresholds[:, None]
    kind, columns = relative.argmin(axis=0), np.arange(relative.shape[1])
    return nearest[kind, columns], relative[kind, columns]


def _check(num_train: int, num_held_out: int, which: str) -> None:
    if min(num_train, num_held_out) < 2:
        raise ValueError(
            f"Copies are found by comparison with at least 2 training photos and 2 held-out photos{which}, but there are {num_train} and "
            f"{num_held_out}. Add photos or hold out more (ingest.val_fraction)."
        )


def _count(nearest: Rows, ratio: Ratios, photo_nearest: Rows, photo_ratio: Ratios) -> Copies:
    below = ratio < 1
    interval = stats.binomtest(int(below.sum()), len(below)).proportion_ci(CONFIDENCE, method="exact")
    return Copies(
        copied_fraction=float(below.mean()),
        low=float(interval.low),
        high=float(interval.high),
        photos=float((photo_ratio < 1).mean()),
        ratio=ratio,
        nearest_photo=nearest,
        photo_ratio=photo_ratio,
        photo_nearest=photo_nearest,
    )


def without_near_duplicates(ratios: Ratios) -> Ratios:
    """The ratios, sorted, without those so small that only a near duplicate has them: they would hide copies."""
    logs = np.log(np.sort(ratios))
    spread = stats.median_abs_deviation(logs, scale="normal")
    return np.exp(logs[logs >= np.median(logs) - max(TWIN * spread, math.log(TIMES_NEARER))])


def copy_threshold(fresh: Ratios) -> float:
    """The ratio below which, with 95 % confidence, lies at most 0.5 % of the distribution from which `fresh` (sorted) was drawn.

    From 598 ratios on it is one of them, whatever the distribution (the tolerance limit of Wilks 1941). Fewer do not know their
    200th part; then at most 0.01 % of a normal distribution of log ratios lies below it (Owen 1968), so that longer tails than the
    normal have room, and it is not above the smallest of them.
    """
    num = len(fresh)
    ranks = np.arange(1, num + 1)
    enough = stats.beta.ppf(CONFIDENCE, ranks, num + 1 - ranks) <= FRESH  # the share below the k-th has a beta distribution
    if enough.any():
        return float(fresh[np.flatnonzero(enough)[-1]])
    logs = np.log(fresh)
    deviations = stats.nct.ppf(CONFIDENCE, num - 1, -stats.norm.ppf(FRESH_IF_FEW) * math.sqrt(num)) / math.sqrt(num)
    return float(np.exp(min(logs[0], logs.mean() - deviations * logs.std(ddof=1))))


@dataclass(frozen=True)
class _Views:
    """Photos as samples may show them: V views of each of N photos."""

    pixels: Views  # (54, N, 192): photo and mirror image; whole and in 25 windows, the reconstructions of both
    edges: Views  # (4, N, 512): the photo, its mirror image, the reconstructions of both

    @classmethod
    def read(cls, photos: ImageSource, decode: Callable[[Images], Images], batch_size: int, desc: str) -> Self:
        """Views of the first `MAX_PHOTOS` photos."""
        num = min(len(photos), MAX_PHOTOS)
        pixels = np.empty((2 + 2 * len(WINDOWS), num, 3 * PIXELS_SIDE**2), np.float16)
        edges = np.empty((4, num, DIRECTIONS * CELLS**2), np.float16)
        for start in progress(range(0, num, batch_size), desc=f"copies: {desc}", unit="batch"):
            stop = min(start + batch_size, num)
            images = photos.images(range(start, stop))
            plain, decoded = ((pictures, mirrored(pictures)) for pictures in (images, decode(images)))
            whole = [pixel_vectors(pictures, WINDOWS[:1]) for pictures in plain]
            pixels[:, start:stop] = np.concatenate(whole + [pixel_vectors(pictures, WINDOWS) for pictures in decoded])
            edges[:, start:stop] = np.stack([edge_vectors(pictures) for pictures in (*plain, *decoded)])
        return cls(pixels, edges)

    def __len__(self) -> int:
        return self.pixels.shape[1]

    def __getitem__(self, rows: Rows) -> Self:
        return replace(self, pixels=self.pixels[:, rows], edges=self.edges[:, rows])

    def queries(self, view: int) -> Queries:
        """The photos as if they were samples: `PLAIN`, or their whole reconstructions (`DECODED`)."""
        return self.pixels[view].astype(np.float32), self.edges[view].astype(np.float32)


def _compare(
    queries: Queries, train: _Views, held_out: _Views, *, skip_train: Rows | None = None, skip_held_out: Rows | None = None
) -> tuple[Rows, Ratios]:
    """The training photo nearest to each of B pictures in pixels and in edges, and the ratios of distances, both (2, B).

    A ratio is the distance to that photo over the mean distance to the `NEIGHBOURS` nearest held-out photos.

    For each picture one row of the photos may be left out; `NONE` leaves out none.
    """
    nearest, ratios = np.empty((2, len(queries[0])), np.intp), np.empty((2, len(queries[0])))
    for start in range(0, len(queries[0]), BLOCK):
        rows = slice(start, start + BLOCK)
        skips = [None if skip is None else skip[rows] for skip in (skip_train, skip_held_out)]
        kinds = zip(queries, (train.pixels, train.edges), (held_out.pixels, held_out.edges), strict=True)
        for kind, (query, of_train, of_held_out) in enumerate(kinds):
            to_train = _distances(query[rows], of_train, skips[0])
            to_held_out = np.sort(_distances(query[rows], of_held_out, skips[1]), axis=1)[:, :NEIGHBOURS]
            nearest[kind, rows] = to_train.argmin(axis=1)
            ratios[kind, rows] = to_train.min(axis=1) / to_held_out.mean(axis=1, where=np.isfinite(to_held_out))
    return nearest, ratios


def _distances(query: Vectors, views: Views, skip: Rows | None) -> Distances:
    """From each picture to each photo in the view that is nearest to it: (B, N); infinite to the photo that is left out."""
    cosine = np.full((len(query), views.shape[1]), -1, np.float32)
    for view in views:
        np.maximum(cosine, query @ view.astype(np.float32).T, out=cosine)
    distances = np.sqrt(np.maximum(2 - 2 * cosine, ROUNDING))
    if skip is not None:
        rows = np.flatnonzero(skip != NONE)
        distances[rows, skip[rows]] = np.inf
    return distances


def _sample_blocks(samples: ImageSource, batch_size: int) -> Iterator[tuple[slice, Queries]]:
    for start in progress(range(0, len(samples), BLOCK), desc="copies: samples", unit="block"):
        stop = min(start + BLOCK, len(samples))
        batches = [samples.images(range(first, min(first + batch_size, stop))) for first in range(start, stop, batch_size)]
        pixels = np.concatenate([pixel_vectors(images, WINDOWS[:1])[0] for images in batches])
        yield slice(start, stop), (pixels, np.concatenate([edge_vectors(images) for images in batches]))


def mirrored(images: Images) -> Images:
    return np.ascontiguousarray(images[:, :, ::-1])


def pixel_vectors(images: Images, windows: Sequence[Window]) -> Vectors:
    """Each window in 8 x 8 pixels without their mean brightness and contrast: (windows, B, 192)."""
    x = resized(images, WINDOWS_SIDE)
    parts = [F.adaptive_avg_pool2d(x[:, :, rows, columns], PIXELS_SIDE).flatten(1) for rows, columns in windows]
    return torch.stack([F.normalize(part - part.mean(dim=1, keepdim=True), dim=1) for part in parts]).numpy()


def edge_vectors(images: Images) -> Vectors:
    """Root energy of edges in 8 directions and 8 x 8 cells: (B, 512).

    These are histograms of oriented gradients (Dalal and Triggs 2005), where an edge counts in each direction by the positive part
    of its slope along it.
    """
    x = F.pad(resized(images, EDGES_SIDE), (1, 1, 1, 1), mode="replicate")
    across, down = x[:, :, 1:-1, 2:] - x[:, :, 1:-1, :-2], x[:, :, 2:, 1:-1] - x[:, :, :-2, 1:-1]
    energies = []
    for direction in range(DIRECTIONS):
        angle = 2 * math.pi * direction / DIRECTIONS
        slope = (across * math.cos(angle) + down * math.sin(angle)).relu()
        energies.append(F.adaptive_avg_pool2d(slope.square().sum(dim=1), CELLS))
    return F.normalize(torch.stack(energies, dim=1).sqrt().flatten(1), dim=1).numpy()
