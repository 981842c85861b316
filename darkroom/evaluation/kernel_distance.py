"""Kernel distances of two sets of features (N, D): KID and CMMD, with p-value, standard error and upper limit."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from darkroom.evaluation.features import Kernel
from darkroom.evaluation.neighbours import Features, Groups, check_features, row_blocks, unit

MAX_IMAGES = 3000  # of each set, the first ones: then the standard error is small and all sums take seconds
NUM_FLIPS = 999  # random sign flips, so the smallest p-value is 0.001
CMMD_SIGMA = 10.0  # width of the Gaussian kernel, for embeddings of length 1 (Jayasumana et al. 2024, section 4)
CMMD_SCALE = 1000.0  # the same
CONFIDENCE = 0.95
ROUNDING = 1e-12  # part of the mean kernel

Array = NDArray[np.float64]


@dataclass(frozen=True)
class KernelDistance:
    value: float  # unbiased, so below 0 in about half of all cases where the distributions are equal
    standard_error: float
    high: float  # the distance is below this with 95 % confidence; never below 0
    p: float  # probability of such a value or a larger one if the distributions are equal
    z: float  # (value - mean) / standard deviation over the sign flips: how far it stands out of what equal distributions give


def kernel_distance(
    a: Features,
    b: Features,
    a_groups: Groups | None = None,
    b_groups: Groups | None = None,
    *,
    kernel: Kernel = "cubic",
    flip_images: bool = False,
    num_flips: int = NUM_FLIPS,  # the smallest p is 1 / (1 + num_flips)
) -> KernelDistance:
    """The squared MMD of two sets (Gretton et al. 2012): KID with the cubic kernel, CMMD with the Gaussian one.

    The estimate uses all pairs of independent images. A sample is not independent of the photo whose caption was its prompt, nor of
    another sample of that caption: images of one group are not paired (without groups each image is a group of its own).

    Chance is what random signs give: each group's part in the difference of the two mean embeddings keeps its sign or changes it (the
    wild bootstrap, Chwialkowski et al. 2014). For a group of one photo and one sample this swaps the two, as a permutation
    does. It holds with any dependence within groups, where permuted labels find too many differences or none.
    With `flip_images` each image has a sign of its own: the yardstick for images that depend on each other by pairs, which must differ
    by more than two independent sets do.

    The variance is that of a U-statistic: the part of second order, which the flips give and which does not fall with the estimate,
    plus that of first order, which vanishes where the distributions are equal. The part of first order grows with the
    distance, so the limit solves (high - value)² = t² (second² + first² high / value), as Wilson's interval of a share does.

    Raises:
        ValueError: fewer than three groups, or a feature that is not finite.
    """
    sums = _KernelSums.measure(a, b, a_groups, b_groups, kernel, num_flips)
    value = sums.distance()
    chance = (_KernelSums.measure(a, b, None, None, kernel, num_flips) if flip_images else sums).flipped()
    second, leave_one_out = float(chance.std()), sums.leave_one_out()
    rounding = ROUNDING * sums.mean_kernel()  # features that are all alike differ by no more
    quantile = float(student_t.ppf(CONFIDENCE, min(sums.num) - 1))
    return KernelDistance(
        value=value,
        # leaving images out also measures the second order, twice
        standard_error=max(second, max(leave_one_out**2 - second**2, 0) ** 0.5),
        high=_upper_limit(value, second, leave_one_out, quantile),
        p=float((1 + (chance >= value - rounding).sum()) / (1 + len(chance))),
        z=(value - float(chance.mean())) / max(second, rounding),
    )


def mean_kernel_distance(
    a: Features, b: Features, a_groups: Groups | None = None, b_groups: Groups | None = None, *, kernel: Kernel = "cubic"
) -> float:
    """The `value` of `kernel_distance` alone, which takes less time.

    Raises:
        ValueError: as `kernel_distance`.
    """
    return _KernelSums.measure(a, b, a_groups, b_groups, kernel, 0).distance()


@dataclass(frozen=True)
class _KernelSums:
    """Sums of the kernel over the pairs (image, image of a side); side 0 is `a`, side 1 is `b`; in the order of both sets together."""

    num: tuple[int, int]  # images of each side
    group: NDArray[np.intp]  # (N,), from 0
    kernel: Array  # (N, 2): of an image with all images of each side
    own: Array  # (N, 2): with those of its own group alone
    num_own: Array  # (N, 2): how many these are
    signs: Array  # (N, F): of each image in each flip
    signed: Array  # (2, 2, F): over all pairs of two sides, times the signs of both images

    @classmethod
    def measure(
        cls, a: Features, b: Features, a_groups: Groups | None, b_groups: Groups | None, kernel: Kernel, num_flips: int
    ) -> "_KernelSums":
        assert (a_groups is None) == (b_groups is None)
        a, b = a[:MAX_IMAGES], b[:MAX_IMAGES]
        a_groups = np.arange(len(a)) if a_groups is None else a_groups[: len(a)]
        b_groups = len(a) + np.arange(len(b)) if b_groups is None else b_groups[: len(b)]
        for features, groups in ((a, a_groups), (b, b_groups)):
            check_features(features, np.unique(groups).size, at_least=3)
        _, group = np.unique(np.concatenate([a_groups, b_groups]), return_inverse=True)
        num = len(a) + len(b)
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(group.max() + 1, num_flips))[group]
        by_side, signed = np.empty((3, num, 2)), np.zeros((2, 2, num_flips))
        sides = (slice(0, len(a)), slice(len(a), num))
        for s, t in product((0, 1), repeat=2):
            first, of_side = sides[s].start, _exact((a, b)[t], kernel)  # one side at a time: float64 takes twice the memory
            for rows in row_blocks(sides[s], num):
                images = _exact((a, b)[s][rows.start - first : rows.stop - first], kernel)
                values, same = _kernel(images, of_side, kernel), group[rows, None] == group[sides[t]]
                by_side[:, rows, t] = values.sum(axis=1), np.where(same, values, 0).sum(axis=1), same.sum(axis=1)
                signed[s, t] += (signs[rows] * (values @ signs[sides[t]])).sum(axis=0)
        return cls((len(a), len(b)), group, by_side[0], by_side[1], by_side[2], signs, signed)

    def mean_kernel(self) -> float:
        return float(np.abs(self.kernel / self.num).mean())

    def distance(self) -> float:
        sums = self._of_sides(self.kernel - self.own)
        return float(_mmd(sums / self._pairs()))

    def leave_one_out(self) -> float:
        """The jackknife's standard error over groups, to first order: from the influence of each group on the distance."""
        means = (self.kernel - self.own) / (self.num - self.num_own)  # (N, 2)
        influence = np.zeros(self.group.max() + 1)
        for sign, rows, num in zip((1, -1), self._sides(), self.num, strict=True):
            witness = means[rows, 0] - means[rows, 1]
            np.add.at(influence, self.group[rows], sign * (witness - witness.mean()) / num)
        return float(2 * np.sqrt(np.square(influence).sum() * len(influence) / (len(influence) - 1)))

    def flipped(self) -> Array:
        """(F,): the distance with random signs, in the kernel that is centred at the mean embedding of each side."""
        means = self.kernel / self.num  # (N, 2): m_it; the centred kernel of i (side s) and j (side t) is k_ij - m_it - m_js + m_st
        overall = self._of_sides(means) / np.array(self.num)[:, None]  # m_st
        signs = self._of_sides(self.signs)  # (2, F)
        weighted = np.array([means[rows].T @ self.signs[rows] for rows in self._sides()])  # (2, 2, F)
        shift = weighted * signs
        all_pairs = self.signed - shift - shift.swapaxes(0, 1) + signs[:, None] * signs * overall[..., None]
        own, num_own, own_shift = (self._of_sides(array) for array in (self.own, self.num_own, self.num_own * means))
        own_pairs = own - own_shift - own_shift.T + num_own * overall  # their signs are equal: no flip changes this sum
        return _mmd((all_pairs - own_pairs[..., None]) / self._pairs()[..., None])

    def _sides(self) -> tuple[slice, slice]:
        return slice(0, self.num[0]), slice(self.num[0], sum(self.num))

    def _of_sides(self, values: Array) -> Array:
        """Sums over the images of each side: (N, ...) -> (2, ...)."""
        return np.array([values[rows].sum(axis=0) for rows in self._sides()])

    def _pairs(self) -> Array:
        """(2, 2): how many pairs of two sides are of different groups."""
        return np.outer(self.num, self.num) - self._of_sides(self.num_own)


def _mmd(means: Array) -> Array:
    """From the mean kernel of all pairs of two sides (2, 2, ...): within the sides minus between them."""
    return means[0, 0] + means[1, 1] - 2 * means[0, 1]


def _exact(features: Features, kernel: Kernel) -> Array:
    """As the kernel takes them: float64, and unit vectors for the Gaussian one."""
    return unit(features.astype(np.float64)) if kernel == "gaussian" else features.astype(np.float64)


def _kernel(x: Array, y: Array, kernel: Kernel) -> Array:
    """(x·y / D + 1)³ (Bińkowski et al. 2018, equation 4), or of unit vectors 1000 exp(-|x - y|² / 2 sigma²)."""
    products = x @ y.T
    return (products / x.shape[1] + 1) ** 3 if kernel == "cubic" else CMMD_SCALE * np.exp((products - 1) / CMMD_SIGMA**2)


def _upper_limit(value: float, second: float, leave_one_out: float, quantile: float) -> float:
    slope = leave_one_out**2 / max(value, 2 * second, np.finfo(float).tiny)  # of the first order's variance, over the distance
    half = quantile**2 * slope / 2
    return max(value + half + (half**2 + quantile**2 * (second**2 + slope * max(value, 0))) ** 0.5, 0.0)
