"""How far a set of pictures is from another, on their features (N, D): Fréchet distance, KID, precision, recall, density, coverage."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from darkroom.evaluation.neighbours import BLOCK, Features, distance_blocks, radius


def frechet_distance(a: Features, b: Features) -> float:
    """|mean difference|² + tr(S_a + S_b - 2 (S_a S_b)^½) over the sets' means and covariances S (Heusel et al. 2017, equation 6).

    In float64 and never complex. With few rows the last trace is the nuclear norm of A Bᵀ (A, B centred, over √(n-1)),
    which is exact and fast; else it comes from eigenvalues of the symmetric S_a^½ S_b S_a^½.

    Its bias is of order 1/N and large for small N: compare only sets of equal size, and with the distance of two sets of photos.

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
    _check(x, at_least=2)
    wide = x.astype(np.float64)
    mean = wide.mean(axis=0)
    return mean, (wide - mean) / np.sqrt(len(x) - 1)


def kernel_distance(a: Features, b: Features) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018): the unbiased squared MMD with kernel (x·y / D + 1)³ over all pairs, and its standard error.

    The error is the jackknife's over single pictures of both sets. Where the two distributions are equal it is too
    large by about √2 (the statistic is degenerate there), so that two standard errors cover at least 95 %.

    Raises:
        ValueError: fewer than three rows, or a feature that is not finite.
    """
    _check(a, at_least=3)
    _check(b, at_least=3)
    m, n = len(a), len(b)
    within_a, _ = _kernel_sums(a, a, skip_self=True)  # (m,)
    within_b, _ = _kernel_sums(b, b, skip_self=True)  # (n,)
    across_a, across_b = _kernel_sums(a, b)  # (m,), (n,)
    mean_a, mean_b, mean_ab = within_a.sum() / (m * (m - 1)), within_b.sum() / (n * (n - 1)), across_a.sum() / (m * n)
    without_a = (within_a.sum() - 2 * within_a) / ((m - 1) * (m - 2)) + mean_b - 2 * (across_a.sum() - across_a) / ((m - 1) * n)
    without_b = mean_a + (within_b.sum() - 2 * within_b) / ((n - 1) * (n - 2)) - 2 * (across_b.sum() - across_b) / (m * (n - 1))
    variance = (m - 1) * without_a.var() + (n - 1) * without_b.var()
    return float(mean_a + mean_b - 2 * mean_ab), float(np.sqrt(variance))


def _kernel_sums(x: Features, y: Features, *, skip_self: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Row sums (len(x),) and column sums (len(y),) of the kernel matrix."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    rows, columns = np.empty(len(x)), np.zeros(len(y))
    for start in range(0, len(x), BLOCK):
        kernel = (x[start : start + BLOCK] @ y.T / x.shape[1] + 1) ** 3
        if skip_self:
            np.fill_diagonal(kernel[:, start:], 0)
        rows[start : start + BLOCK] = kernel.sum(axis=1)
        columns += kernel.sum(axis=0)
    return rows, columns


@dataclass(frozen=True)
class Manifolds:
    """How two sets overlap, each a union of balls that reach to the k-th neighbour of their centre."""

    precision: float  # share of samples in the photos' manifold (Kynkäänniemi et al. 2019): are they plausible?
    recall: float  # share of photos in the samples' manifold: is everything drawn?
    density: float  # photo balls that a sample lies in, over k (Naeem et al. 2020): 1 for equal distributions
    coverage: float  # share of photos with a sample in their ball


def precision_recall(real: Features, fake: Features, k: int) -> Manifolds:
    """Precision, recall, density and coverage with `k` neighbours.

    Raises:
        ValueError: `k` or fewer rows in a set, or a feature that is not finite.
    """
    _check(real, at_least=k + 1)
    _check(fake, at_least=k + 1)
    radius_real, radius_fake = radius(real, k), radius(fake, k)
    balls_of_fake = np.zeros(len(fake), dtype=np.int64)  # real balls around each fake
    recalled, covered = (np.zeros(len(real), dtype=bool) for _ in range(2))
    for rows, distances in distance_blocks(real, fake):
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


def _check(features: Features, *, at_least: int) -> None:
    if len(features) < at_least:
        raise ValueError(
            f"This distance needs at least {at_least} pictures on each side, but there are {len(features)}: "
            "hold out (ingest.val_fraction) or draw (evaluate.num_samples) more."
        )
    if not np.isfinite(features).all():
        raise ValueError("A picture has features that are not finite: the extractor overflows on it, or its weights are damaged.")
