"""How far one set of images is from another, on their features (N, D): Fréchet distance, KID, precision, recall, density, coverage."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from darkroom.evaluation.features import FeatureSets
from darkroom.evaluation.neighbours import BLOCK, Features, Groups, distance_blocks, radius


def distance_metrics(features: FeatureSets, *, sources: Groups, num_neighbours: int) -> dict[str, float]:
    """Distances of samples from held-out photos, never between a sample and the photo whose caption was its prompt.

    Args:
        features: two parts of the training set show how large the Fréchet distance of equal distributions is.
        sources: (N,), for each sample the row of the held-out photo whose caption was its prompt.
        num_neighbours: k of precision and recall.

    Raises:
        ValueError: too few samples or photos, or a feature that is not finite.
    """
    samples, held_out, train = features.samples, features.held_out, features.train
    photos = np.arange(len(held_out))
    kid, error = kernel_distance(samples, held_out, sources, photos)
    manifolds = precision_recall(held_out, samples, num_neighbours, photos, sources)
    # a covariance cannot leave pairs out: samples from the captions of one half are compared with the photos of the other
    crossed = [(samples[sources % 2 == half], held_out[photos % 2 != half]) for half in (0, 1)]
    num_a, num_b = (min(len(part), len(train) // 2) for part in crossed[0])
    return {
        "frechet_distance": sum(frechet_distance(*pair) for pair in crossed) / 2,
        "frechet_distance_photos": frechet_distance(train[:num_a], train[num_a : num_a + num_b]),
        "kid": kid,
        "kid_standard_error": error,
        **asdict(manifolds),
    }


def frechet_distance(a: Features, b: Features) -> float:
    """|mean difference|² + tr(S_a + S_b - 2 (S_a S_b)^½) over the sets' means and covariances S (Heusel et al. 2017, equation 6).

    Computed in float64 and never complex. With few rows the last trace is the nuclear norm of A Bᵀ (A, B centred, over √(n-1)),
    which is exact and fast; otherwise it comes from the eigenvalues of the symmetric S_a^½ S_b S_a^½.

    The bias is of order 1/N and large for small N: compare only sets of equal size, and with the distance of two sets of photos.

    Raises:
        ValueError: fewer than two rows, or a feature that is not finite.
    """
    mean_a, centred_a = _centre(a)
    mean_b, centred_b = _centre(b)
    if len(a) * len(b) < a.shape[1] ** 2:
        cross = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
    else:
        values, vectors = np.linalg.eigh(centred_a.T @ centred_a)
        root_a = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        half = centred_b @ root_a
        cross = np.sqrt(np.maximum(np.linalg.eigvalsh(half.T @ half), 0)).sum()
    distance = np.square(mean_a - mean_b).sum() + np.square(centred_a).sum() + np.square(centred_b).sum() - 2 * cross
    return float(max(distance, 0.0))


def _centre(x: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,), and rows C with Cᵀ C = unbiased covariance."""
    _check(x, len(x), at_least=2)
    wide = x.astype(np.float64)
    mean = wide.mean(axis=0)
    return mean, (wide - mean) / np.sqrt(len(x) - 1)


def kernel_distance(a: Features, b: Features, a_groups: Groups | None = None, b_groups: Groups | None = None) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018): the squared MMD with kernel (x·y / D + 1)³, and its standard error.

    The estimate is unbiased: it uses all pairs of independent images. A sample is not independent of the photo whose
    caption was its prompt, nor of another sample of that caption, so images of one group are not paired (without groups each
    image is a group of its own). The error is the jackknife's over groups. Where the two distributions are equal it is
    too large by about √2 (the statistic is degenerate there), so that two standard errors cover at least 95 %.

    Raises:
        ValueError: fewer than three groups, or a feature that is not finite.
    """
    a_groups = np.arange(len(a)) if a_groups is None else a_groups
    b_groups = np.arange(len(a), len(a) + len(b)) if b_groups is None else b_groups
    _check(a, np.unique(a_groups).size, at_least=3)
    _check(b, np.unique(b_groups).size, at_least=3)
    _, group = np.unique(np.concatenate([a_groups, b_groups]), return_inverse=True)
    of_a, of_b = group[: len(a)], group[len(a) :]
    num_groups = int(group.max()) + 1
    within_a, within_b, across = (
        _mean_kernels(x, y, of_x, of_y, num_groups) for x, y, of_x, of_y in ((a, a, of_a, of_a), (b, b, of_b, of_b), (a, b, of_a, of_b))
    )
    estimates = within_a + within_b - 2 * across
    return float(estimates[0]), float(np.sqrt((num_groups - 1) * estimates[1:].var()))


def _mean_kernels(x: Features, y: Features, of_x: Groups, of_y: Groups, num_groups: int) -> NDArray[np.float64]:
    """Mean of the kernel over all pairs of different groups, then the same mean without each of the groups: (1 + G,)."""
    of_rows, of_columns = _pair_sums(x, y, of_x, of_y)
    total = of_rows.sum(axis=1, keepdims=True)  # (2, 1)
    of_groups = np.zeros((2, num_groups))
    np.add.at(of_groups.T, of_x, of_rows.T)
    np.add.at(of_groups.T, of_y, of_columns.T)
    kernel, pairs = np.concatenate([total, total - of_groups], axis=1)
    return kernel / pairs


def _pair_sums(x: Features, y: Features, of_x: Groups, of_y: Groups) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Kernel sums and numbers of pairs with other groups, of each row of `x` (2, len(x)) and each row of `y` (2, len(y))."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    rows, columns = np.empty((2, len(x))), np.zeros((2, len(y)))
    for start in range(0, len(x), BLOCK):
        part = slice(start, start + BLOCK)
        paired = of_x[part, None] != of_y
        kernel = np.where(paired, (x[part] @ y.T / x.shape[1] + 1) ** 3, 0)
        for index, values in enumerate((kernel, paired)):
            rows[index, part] = values.sum(axis=1)
            columns[index] += values.sum(axis=0)
    return rows, columns


@dataclass(frozen=True)
class Manifolds:
    """How two sets overlap, each a union of balls around its images that reach to the k-th neighbour."""

    precision: float  # share of samples in the photos' manifold (Kynkäänniemi et al. 2019): are they plausible?
    recall: float  # share of photos in the samples' manifold: does the model generate everything?
    density: float  # number of photo balls around a sample, over k (Naeem et al. 2020): 1 for equal distributions
    coverage: float  # share of photos with a sample in their ball


def precision_recall(
    real: Features, fake: Features, k: int, real_groups: Groups | None = None, fake_groups: Groups | None = None
) -> Manifolds:
    """Precision, recall, density and coverage with `k` neighbours; images of one group do not count as neighbours.

    Raises:
        ValueError: `k` or fewer groups in a set, or a feature that is not finite.
    """
    _check(real, len(real) if real_groups is None else np.unique(real_groups).size, at_least=k + 1)
    _check(fake, len(fake) if fake_groups is None else np.unique(fake_groups).size, at_least=k + 1)
    radius_real, radius_fake = radius(real, k, real_groups), radius(fake, k, fake_groups)
    balls_of_fake = np.zeros(len(fake), dtype=np.int64)  # real balls around each fake
    recalled, covered = (np.zeros(len(real), dtype=bool) for _ in range(2))
    for rows, distances in distance_blocks(real, fake, real_groups, fake_groups):
        in_real_ball = distances <= radius_real[rows, None]
        balls_of_fake += in_real_ball.sum(axis=0)
        covered[rows] = in_real_ball.any(axis=1)
        recalled[rows] = (distances <= radius_fake).any(axis=1)
    return Manifolds(
        precision=float((balls_of_fake > 0).mean()),
        recall=float(recalled.mean()),
        density=float(balls_of_fake.mean() / k),
        coverage=float(covered.mean()),
    )


def _check(features: Features, num: int, *, at_least: int) -> None:
    if num < at_least:
        raise ValueError(
            f"This distance needs at least {at_least} independent images on each side, but there are {num}. "
            "Hold out more photos (ingest.val_fraction) or draw more samples (evaluate.num_samples)."
        )
    if not np.isfinite(features).all():
        raise ValueError("An image has features that are not finite: the extractor overflows on it, or its weights are damaged.")
