"""Are samples copies of training photos? Nearest training photo against nearest held-out photo, in feature space."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from darkroom.evaluation.neighbours import Features, Groups, nearest


@dataclass(frozen=True)
class Memorization:
    copied_fraction: float  # 0.5 for fresh pictures of the same distribution, 1 for copies
    nearest_photo: NDArray[np.intp]  # (N,): the training photo nearest to each sample
    ratio: NDArray[np.float64]  # (N,): distance to it over the distance to the nearest held-out photo

    def closest(self, count: int) -> NDArray[np.intp]:
        """The samples most like a copy, first of all the one with the smallest ratio."""
        return np.argsort(self.ratio, kind="stable")[:count]


def memorization(samples: Features, train: Features, held_out: Features, sources: Groups | None = None) -> Memorization:
    """Compares samples with the photos that training saw and with those that it did not.

    There are more training photos than held-out ones, so a fresh picture is nearer to a training photo too. Held-out
    photos show by how much: the ratio of each is taken with itself left out, and `copied_fraction` is the share of
    samples whose ratio is below the median of theirs. The ratio also cancels what a blurred sample, which is near to
    everything, would bring. `sources` are the rows of `held_out` whose captions the samples were drawn from: a sample is
    near to its own for no merit, so that one is left out too.

    Raises:
        ValueError: no training photo, or fewer than two held-out ones.
    """
    if len(train) < 1 or len(held_out) < 2:
        raise ValueError(
            f"Memorization compares with at least 1 training photo and 2 held-out photos; there are {len(train)} and {len(held_out)}. "
            "Add photos or hold out more (ingest.val_fraction)."
        )
    index, to_train = nearest(samples, train)
    rows = np.arange(len(held_out))
    ratio = _ratio(to_train, nearest(samples, held_out, sources, rows)[1])
    fresh = _ratio(nearest(held_out, train)[1], nearest(held_out, held_out, rows, rows)[1])
    return Memorization(copied_fraction=float((ratio < np.median(fresh)).mean()), nearest_photo=index, ratio=ratio)


def _ratio(to_train: NDArray[np.float64], to_held_out: NDArray[np.float64]) -> NDArray[np.float64]:
    return to_train / np.maximum(to_held_out, np.finfo(np.float64).tiny)
