"""The kernel distances against their definitions, and their p-values, errors and limits by simulation."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from darkroom.evaluation import kernel_distance as module
from darkroom.evaluation.kernel_distance import KernelDistance, kernel_distance, mean_kernel_distance


def normal(count, dim, seed=0, *, mean=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(mean, scale, (count, dim))


def cubic(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x, y):
    """1000 exp(-|x - y|² / 2 sigma²) with sigma 10, of rows brought to length 1, as in the code of Jayasumana et al. 2024."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    return 1000 * np.exp(-np.square(x[:, None] - y).sum(axis=2) / (2 * 10**2))


def mmd(a, b, of_a, of_b, kernel=cubic):
    """Squared MMD over all pairs of different groups, all in one piece."""

    def mean(x, y, of_x, of_y):
        return kernel(x, y)[of_x[:, None] != of_y].mean()

    return mean(a, a, of_a, of_a) + mean(b, b, of_b, of_b) - 2 * mean(a, b, of_a, of_b)


def all_different(a, b):
    return np.arange(len(a)), np.arange(len(a), len(a) + len(b))


@pytest.mark.parametrize("block_bytes", [1, 2**25])
@pytest.mark.parametrize(("name", "kernel"), [("cubic", cubic), ("gaussian", gaussian)])
def test_the_value_is_the_unbiased_mmd_over_all_pairs_whatever_the_block(monkeypatch, name, kernel, block_bytes):
    monkeypatch.setattr("darkroom.evaluation.neighbours.BLOCK_BYTES", block_bytes)
    for rows_a, rows_b in ((12, 9), (5, 40)):
        a, b = normal(rows_a, 6), normal(rows_b, 6, seed=1, mean=0.4)
        np.testing.assert_allclose(kernel_distance(a, b, kernel=name).value, mmd(a, b, *all_different(a, b), kernel), rtol=1e-9)
        of_a, of_b = np.arange(rows_a) % 5 * 10, np.arange(rows_b) % 4 * 10  # they share some groups
        found = kernel_distance(a, b, of_a, of_b, kernel=name)
        np.testing.assert_allclose(found.value, mmd(a, b, of_a, of_b, kernel), rtol=1e-9)
        assert mean_kernel_distance(a, b, of_a, of_b, kernel=name) == found.value


def torch_fidelity_kid(a, b):
    """The whole sets as the one subset."""
    found = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), kid_subsets=1, kid_subset_size=len(a), verbose=False)
    return found["kernel_inception_distance_mean"]


def clean_fid_kernel_distance(a, b):
    """KID of one subset as clean-fid's `kernel_distance` writes it."""
    m, n = len(a), a.shape[1]
    within = (a @ a.T / n + 1) ** 3 + (b @ b.T / n + 1) ** 3
    return (within.sum() - np.diag(within).sum()) / (m - 1) / m - ((a @ b.T / n + 1) ** 3).sum() * 2 / m / m


@pytest.mark.parametrize("other", [torch_fidelity_kid, clean_fid_kernel_distance])
def test_kid_is_that_of_other_packages_on_the_same_features(other):
    a, b = normal(200, 64, scale=1.5).astype(np.float32), normal(200, 64, seed=1, mean=0.1).astype(np.float32)
    np.testing.assert_allclose(kernel_distance(a, b).value, other(a.astype(float), b.astype(float)), rtol=1e-9)


def flipped_in_one_piece(a, b, of_a, of_b, signs):
    """The distance with a sign on each row of the centred kernel."""
    x, group = np.concatenate([a, b]), np.concatenate([of_a, of_b])
    side = np.eye(2)[np.repeat([0, 1], [len(a), len(b)])]
    centring = np.eye(len(x)) - side @ (side / side.sum(axis=0)).T
    other = (group[:, None] != group).astype(float)
    weights = side @ (np.array([[1, -1], [-1, 1]]) / (side.T @ other @ side)) @ side.T
    return np.einsum("if,ij,jf->f", signs, centring @ cubic(x, x) @ centring.T * weights * other, signs)


@pytest.mark.parametrize("grouped", [False, True])
def test_chance_is_the_distance_with_random_signs_of_the_groups_in_the_centred_kernel(grouped):
    a, b = normal(12, 6), normal(9, 6, seed=1, mean=0.4)
    of_a, of_b = (np.arange(12) % 7, np.arange(9) + 4) if grouped else all_different(a, b)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(13 if grouped else 21, 999))[np.concatenate([of_a, of_b])]
    chance = flipped_in_one_piece(a, b, of_a, of_b, signs)
    found = kernel_distance(a, b, of_a, of_b)
    assert found.p == (1 + (chance >= found.value).sum()) / 1000
    np.testing.assert_allclose(found.z, (found.value - chance.mean()) / chance.std(), rtol=1e-9)
    if grouped:  # each image has a sign of its own; only the value leaves pairs out
        unpaired = kernel_distance(a, b, of_a, of_b, flip_images=True)
        assert (unpaired.value, unpaired.z > 0) == (found.value, True)
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(21, 999))
        chance = flipped_in_one_piece(a, b, *all_different(a, b), signs)
        np.testing.assert_allclose(unpaired.z, (unpaired.value - chance.mean()) / chance.std(), rtol=1e-9)


def test_all_of_it_is_the_same_for_any_block_size(monkeypatch):
    a, b, of_a, of_b = normal(70, 5), normal(40, 5, seed=1, mean=0.2), np.arange(70) % 40, np.arange(40)
    whole = kernel_distance(a, b, of_a, of_b)
    monkeypatch.setattr("darkroom.evaluation.neighbours.BLOCK_BYTES", 700)
    assert vars(kernel_distance(a, b, of_a, of_b)) == pytest.approx(vars(whole), rel=1e-9)


def true_kid(dim, shift):
    """Squared MMD of N(0, I) and N(shift, I) under (x·y / D + 1)³, from the moments of x·y."""
    a = dim * shift**2
    moments = (a, a**2 + 2 * a + dim, a**3 + 3 * a * (2 * a + dim) + 6 * a)
    both_shifted = 1 + 3 * moments[0] / dim + 3 * moments[1] / dim**2 + moments[2] / dim**3
    return 1 + 3 / dim + both_shifted - 2 * (1 + 3 * (a + dim) / dim**2)


def repeat(draw, times):
    """The distances of the sets that `draw(seed)` gives, as arrays."""
    found = [kernel_distance(*draw(seed), num_flips=99) for seed in range(times)]
    return KernelDistance(*(np.array([getattr(each, field) for each in found]) for field in KernelDistance.__dataclass_fields__))


def gap_to_uniform(p):
    """Kolmogorov's statistic sqrt(n) max |F_n - F|: of uniform values it is above 1.63 in 1 % of all cases."""
    return np.sqrt(len(p)) * np.abs(np.sort(p) - (np.arange(len(p)) + 0.5) / len(p)).max()


def independent(num_a, num_b, dim, shift=0.0):
    """Features of effective rank `dim`: more columns of zeros would change nothing but the scale."""
    return lambda seed: (normal(num_a, dim, 2 * seed, mean=shift), normal(num_b, dim, 2 * seed + 1))


def of_captions(num_samples, num_photos, dim, of_caption, of_model=0.0):
    """Photos and samples of their captions: `of_caption` of the variance is shared by all, `of_model` by samples of one caption."""

    def draw(seed):
        random = np.random.default_rng(seed)
        sources = np.arange(num_samples) % num_photos
        captions, habits, photos, samples = (random.normal(size=(n, dim)) for n in (num_photos, num_photos, num_photos, num_samples))
        samples = of_model**0.5 * habits[sources] + (1 - of_caption - of_model) ** 0.5 * samples
        photos = (1 - of_caption) ** 0.5 * photos
        return of_caption**0.5 * captions[sources] + samples, of_caption**0.5 * captions + photos, sources, np.arange(num_photos)

    return draw


EQUAL = {
    "40 of rank 4": independent(40, 40, 4),
    "40 of full rank": independent(40, 40, 64),
    "100 and 256 of rank 4": independent(256, 100, 4),
    "100 of full rank": independent(100, 100, 64),
    "a sample of each caption, rank 4": of_captions(100, 100, 4, 0.7),
    "a sample of some captions": of_captions(40, 100, 64, 0.7),
    "six samples of each caption, all nearly alike": of_captions(256, 40, 4, 0.0, 0.9),
    "six samples of each caption, alike and like their photo": of_captions(256, 40, 64, 0.4, 0.4),
}
EQUAL_LARGE = {
    "500 of rank 4": independent(500, 500, 4),
    "500 of full rank": independent(500, 500, 64),
    "a sample of each of 500 captions": of_captions(500, 500, 4, 0.7),
}
cases_of_equal = [
    *(pytest.param(draw, 200, id=name) for name, draw in EQUAL.items()),
    *(pytest.param(draw, 200, id=name, marks=pytest.mark.huge) for name, draw in EQUAL_LARGE.items()),
]


@pytest.mark.parametrize(("draw", "times"), cases_of_equal)
def test_where_the_distributions_are_equal_p_is_uniform_and_nothing_is_better_than_perfect(draw, times):
    found = repeat(draw, times)
    assert gap_to_uniform(found.p) < 1.63
    assert np.mean(found.p <= 0.05) <= 0.05 + 2.6 * (0.05 * 0.95 / times) ** 0.5  # 1 % of all cases are above
    assert np.abs(found.value.mean()) < 4 * found.value.std() / times**0.5  # no bias
    assert 0.7 < found.standard_error.mean() / found.value.std() < 1.5
    assert np.mean(found.value < -2 * found.standard_error) <= 0.04
    assert np.mean(found.high >= 0) == 1
    assert np.mean(found.value + 1.645 * found.standard_error >= 0) > 0.92


cases_of_different = [
    pytest.param(num_a, num_b, dim, shift, id=f"{num_a} and {num_b} of rank {dim}, shifted by {shift}", marks=marks)
    for num_a, num_b, marks in ((40, 40, ()), (256, 100, pytest.mark.huge), (500, 500, pytest.mark.huge))
    for dim in (4, 64)
    for shift in (0.1, 0.3, 1.0)
]


@pytest.mark.parametrize(("num_a", "num_b", "dim", "shift"), cases_of_different)
def test_the_upper_limit_is_above_the_distance_of_different_distributions(num_a, num_b, dim, shift):
    truth, found = true_kid(dim, shift), repeat(independent(num_a, num_b, dim, shift), 200)
    assert abs(found.value.mean() - truth) < 4 * found.value.std() / 200**0.5
    assert np.mean(found.high >= truth) >= 0.95 - 2.6 * (0.05 * 0.95 / 200) ** 0.5
    assert 0.75 < found.standard_error.mean() / found.value.std() < 1.35


def jackknife(a, b, of_a, of_b):
    groups = np.unique([*of_a, *of_b])
    without = [mmd(a[of_a != g], b[of_b != g], of_a[of_a != g], of_b[of_b != g]) for g in groups]
    return np.sqrt((len(groups) - 1) * np.var(without))


def test_on_few_references_of_rank_four_an_estimate_below_zero_has_no_small_error():
    """A report said -0.087 ± 0.027: the jackknife's error falls with the estimate."""

    def draw(seed):
        samples, photos, *groups = of_captions(40, 40, 4, 0.7)(seed)
        return samples + 3, photos + 3, *groups  # like CLIP's, the features have a mean far from 0

    lowest = kernel_distance(*draw(111))
    assert lowest.value < -3 * jackknife(*draw(111))
    assert lowest.value > -2 * lowest.standard_error
    assert lowest.high >= 0
    found = repeat(draw, 100)
    assert np.all(found.value > -2 * found.standard_error)
    assert np.min(found.standard_error) > 0.4 * found.standard_error.mean()


def test_samples_drawn_from_the_captions_of_the_photos_look_too_good_without_groups():
    naive = [kernel_distance(*of_captions(80, 40, 8, 0.64)(seed)[:2], num_flips=9).value for seed in range(100)]
    assert np.mean(naive) < -3 * repeat(of_captions(80, 40, 8, 0.64), 100).value.std()  # better than perfect, which cannot be


def test_a_real_difference_is_found_with_and_without_groups():
    assert kernel_distance(*independent(100, 100, 16, 0.3)(0)).p == 0.001
    samples, photos, sources, rows = of_captions(100, 100, 16, 0.7)(0)
    found = kernel_distance(samples + 0.3, photos, sources, rows)
    assert found.p == 0.001
    assert found.z > 5


def test_features_that_are_all_alike_are_no_distance_apart():
    same = np.full((30, 8), 0.3, np.float32)
    for kernel in ("cubic", "gaussian"):
        found = kernel_distance(same, same[:20], kernel=kernel)
        assert abs(found.z) < 0.01
        assert found.p == 1
    zeros = kernel_distance(0 * same, same, kernel="gaussian")  # no error: a row of zeros has cosine 0 with every row
    assert zeros.value == pytest.approx(1000 * (1 - np.exp(-0.01)))


def test_of_many_images_the_first_are_measured(monkeypatch):
    a, b, groups = normal(60, 4), normal(50, 4, seed=1), (np.arange(60) % 50, np.arange(50))
    monkeypatch.setattr(module, "MAX_IMAGES", 30)
    assert kernel_distance(a, b, *groups) == kernel_distance(a[:30], b[:30], groups[0][:30], groups[1][:30])
    assert mean_kernel_distance(a, b) == mean_kernel_distance(a[:30], b[:30])


@pytest.mark.parametrize("measure", [kernel_distance, mean_kernel_distance])
def test_too_few_images_or_captions_on_either_side_are_refused(measure):
    many, few = normal(20, 3), normal(2, 3)
    for pair in ((many, few), (few, many), (many, many, np.arange(20) % 2, np.arange(20)), (many, many, np.arange(20), np.arange(20) % 2)):
        with pytest.raises(ValueError, match="at least 3 independent images on each side, but there are 2"):
            measure(*pair)
    measure(many, normal(3, 3))


@pytest.mark.parametrize("measure", [kernel_distance, mean_kernel_distance])
def test_features_that_are_not_finite_are_refused(measure):
    good, bad = normal(20, 3), normal(20, 3)
    bad[4, 1] = np.nan
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="not finite"):
            measure(*pair)
