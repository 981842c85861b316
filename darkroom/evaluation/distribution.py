"""How far one set of images is from another, on their features (N, D): Fréchet distance, KID, precision, recall, density, coverage."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from darkroom.evaluation.features import FeatureSets, Kernel
from darkroom.evaluation.kernel_distance import kernel_distance, mean_kernel_distance
from darkroom.evaluation.neighbours import Features, Groups, check_features, distance_blocks, radius, row_blocks

Array = NDArray[np.float64]


def distance_metrics(
    features: FeatureSets,
    mean_colours: Features,  # (M, D) of the first M held-out photos, each replaced by its mean colour
    *,
    sources: Groups,  # (N,), for each sample the row of the held-out photo whose caption was its prompt
    num_neighbours: int,  # k of precision, recall, density and coverage
    kernel: Kernel = "cubic",
) -> dict[str, float]:
    """Distances of samples from held-out photos, each beside what training photos reach in the place of the samples (`_photos`), and mean
    colours (`_chance`).

    A sample is never compared with the photo whose caption was its prompt, nor a mean colour with its own photo. All distances but KID
    depend on the number of images, so they take as many samples as there are training photos, or fewer; training photos stand in the
    very places of these samples: as many, with the same pairs left out. There are fewer mean colours, which are so far
    away that their number does not matter.

    Raises:
        ValueError: too few samples or photos, or a feature that is not finite.
    """
    samples, held_out, train = features.samples, features.held_out, features.train
    num, photos = min(len(samples), len(train)), np.arange(len(held_out))
    kid = kernel_distance(samples, held_out, sources, photos, kernel=kernel)
    measured = {"kid": kid.value, "kid_standard_error": kid.standard_error, "kid_high": kid.high, "kid_p": kid.p}
    stand_ins = {"": samples[:num], "_photos": train[:num], "_chance": mean_colours}
    for companion, images in stand_ins.items():
        groups = photos[: len(images)] if companion == "_chance" else sources[:num]
        if companion:
            measured[f"kid{companion}"] = mean_kernel_distance(images, held_out, groups, photos, kernel=kernel)
        measured[f"frechet_distance{companion}"] = crossed_frechet_distance(images, held_out, groups)
        manifolds = precision_recall(held_out, images, num_neighbours, photos, groups)
        measured |= {f"{name}{companion}": value for name, value in asdict(manifolds).items()}
    return measured


def crossed_frechet_distance(images: Features, photos: Features, sources: Groups) -> float:
    """Fréchet distance without pairs of an image and the photo `sources` names: the mean of two distances between halves.

    A covariance cannot leave pairs out, so the images whose photos are in one half of the rows are compared with the other half.

    Raises:
        ValueError: as `frechet_distance`, for each half.
    """
    halves = [(images[sources % 2 == half], photos[1 - half :: 2]) for half in (0, 1)]
    return sum(frechet_distance(*pair) for pair in halves) / 2


def frechet_distance(a: Features, b: Features) -> float:
    """|mean difference|² + tr(S_a + S_b - 2 (S_a S_b)^½) over the sets' means and covariances S (Heusel et al. 2017, equation 6).

    Computed in float64 and never complex. With few rows the last trace is the nuclear norm of A Bᵀ (A, B centred, over √(n-1)),
    which is exact and fast; otherwise it comes from the eigenvalues of the symmetric S_a^½ S_b S_a^½.

    The bias is of order 1/N and large for small N: compare only sets of equal size, and with the distance of two sets of photos.

    Raises:
        ValueError: fewer than two rows, or a feature that is not finite.
    """
    for features in (a, b):
        check_features(features, len(features), at_least=2)
    mean_a, mean_b = (features.mean(axis=0, dtype=np.float64) for features in (a, b))
    if max(len(a), len(b)) <= a.shape[1]:
        rows_a, rows_b = ((x - mean) / np.sqrt(len(x) - 1) for x, mean in ((a, mean_a), (b, mean_b)))
        variances = np.square(rows_a).sum() + np.square(rows_b).sum()
        cross = np.linalg.svd(rows_a @ rows_b.T, compute_uv=False).sum()
    else:
        cov_a, cov_b = _covariance(a, mean_a), _covariance(b, mean_b)
        variances = np.trace(cov_a) + np.trace(cov_b)
        values, vectors = np.linalg.eigh(cov_a)
        root_a = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root_a @ cov_b @ root_a), 0)).sum()
    return float(max(np.square(mean_a - mean_b).sum() + variances - 2 * cross, 0.0))


def _covariance(x: Features, mean: Array) -> Array:
    """The unbiased covariance (D, D); a part of the rows at a time becomes float64."""
    scatter = np.zeros((len(mean), len(mean)))
    for rows in row_blocks(slice(0, len(x)), len(mean)):
        centred = x[rows] - mean
        scatter += centred.T @ centred
    return scatter / (len(x) - 1)


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
    check_features(real, len(real) if real_groups is None else np.unique(real_groups).size, at_least=k + 1)
    check_features(fake, len(fake) if fake_groups is None else np.unique(fake_groups).size, at_least=k + 1)
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
