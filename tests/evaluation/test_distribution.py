import numpy as np
import pytest
from scipy.linalg import sqrtm

from darkroom.evaluation.distribution import frechet_distance, kernel_distance, precision_recall
from darkroom.evaluation.neighbours import BLOCK


def normal(count, dim, seed=0, *, mean=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(mean, scale, (count, dim))


def frechet_by_sqrtm(a, b):
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)


# rows of a, rows of b, features: both ways of taking the trace, and their border
SHAPES = [(40, 30, 8), (40, 30, 35), (20, 30, 200), (9, 300, 16), (16, 16, 16)]


@pytest.mark.parametrize(("rows_a", "rows_b", "dim"), SHAPES)
def test_frechet_distance_is_the_textbook_formula_with_scipys_matrix_root(rows_a, rows_b, dim):
    mixing = normal(dim, dim, seed=2) / np.sqrt(dim)
    a, b = normal(rows_a, dim), normal(rows_b, dim, seed=1, mean=0.3) @ mixing
    # scipy's root of a singular product is itself only good to about 1e-6
    np.testing.assert_allclose(frechet_distance(a, b), frechet_by_sqrtm(a, b), rtol=1e-5)


def test_frechet_distance_of_gaussians_is_its_closed_form():
    a, b = normal(200_000, 3), normal(200_000, 3, seed=1, mean=2.0, scale=1.5)
    np.testing.assert_allclose(frechet_distance(a, b), 3 * 2.0**2 + 3 * (1.5 - 1) ** 2, rtol=0.02)


def test_frechet_distance_of_shifted_and_scaled_copies_is_exact():
    a = normal(50, 80)
    a -= a.mean(0)
    np.testing.assert_allclose(frechet_distance(a, a + 3.0), 80 * 9.0, rtol=1e-10)
    np.testing.assert_allclose(frechet_distance(a, 2 * a), np.trace(np.cov(a, rowvar=False)), rtol=1e-10)


@pytest.mark.parametrize(("rows", "dim"), [(40, 8), (20, 200)])
def test_frechet_distance_of_a_set_to_itself_is_zero_and_the_order_does_not_matter(rows, dim):
    a, b = normal(rows, dim), normal(rows + 5, dim, seed=1)
    assert 0 <= frechet_distance(a, a) < 1e-9
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-9)


def test_frechet_distance_is_real_and_finite_where_features_are_constant_or_tiny():
    a, b = normal(60, 20).astype(np.float32), normal(60, 20, seed=1).astype(np.float32)
    a[:, 5:] = 0.25
    b[:, 5:] = 0.25
    assert np.isfinite(frechet_distance(a, b))
    np.testing.assert_allclose(frechet_distance(a * 1e-6, b * 1e-6), frechet_distance(a, b) * 1e-12, rtol=1e-4)


def test_frechet_distance_computes_float32_features_in_float64():
    a, b = normal(3000, 4, mean=1000.0).astype(np.float32), normal(3000, 4, seed=1, mean=1000.0).astype(np.float32)
    np.testing.assert_allclose(frechet_distance(a, b), frechet_by_sqrtm(a.astype(np.float64), b.astype(np.float64)), rtol=1e-6)


def kernel_mmd(a, b, of_a, of_b):
    """Squared MMD over all pairs of different groups, all in one piece."""

    def mean(x, y, of_x, of_y):
        return ((x @ y.T / x.shape[1] + 1) ** 3)[of_x[:, None] != of_y].mean()

    return mean(a, a, of_a, of_a) + mean(b, b, of_b, of_b) - 2 * mean(a, b, of_a, of_b)


def all_different(a, b):
    return np.arange(len(a)), np.arange(len(a), len(a) + len(b))


@pytest.mark.parametrize(("rows_a", "rows_b"), [(12, 9), (BLOCK + 3, 7), (5, BLOCK + 70)])
def test_kid_is_the_unbiased_mmd_over_all_pairs(rows_a, rows_b):
    a, b = normal(rows_a, 6), normal(rows_b, 6, seed=1, mean=0.4)
    np.testing.assert_allclose(kernel_distance(a, b)[0], kernel_mmd(a, b, *all_different(a, b)), rtol=1e-9)
    of_a, of_b = np.arange(rows_a) % 5 * 10, np.arange(rows_b) % 4 * 10  # they share some groups
    np.testing.assert_allclose(kernel_distance(a, b, of_a, of_b)[0], kernel_mmd(a, b, of_a, of_b), rtol=1e-9)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_error_of_kid_is_the_jackknife_by_leaving_each_group_out(grouped):
    a, b = normal(12, 6), normal(9, 6, seed=1, mean=0.4)
    of_a, of_b = (np.arange(12) % 7, np.arange(9) + 4) if grouped else all_different(a, b)
    groups = np.unique([*of_a, *of_b])
    without = [kernel_mmd(a[of_a != g], b[of_b != g], of_a[of_a != g], of_b[of_b != g]) for g in groups]
    expected = np.sqrt((len(groups) - 1) * np.var(without))
    np.testing.assert_allclose(kernel_distance(a, b, of_a, of_b)[1], expected, rtol=1e-9)
    if not grouped:
        np.testing.assert_allclose(kernel_distance(a, b)[1], expected, rtol=1e-9)


def true_kid(dim, shift):
    """Squared MMD of N(0, I) and N(shift, I) under (x·y / D + 1)³, from the moments of x·y."""
    a = dim * shift**2
    moments = (a, a**2 + 2 * a + dim, a**3 + 3 * a * (2 * a + dim) + 6 * a)
    both_shifted = 1 + 3 * moments[0] / dim + 3 * moments[1] / dim**2 + moments[2] / dim**3
    return 1 + 3 / dim + both_shifted - 2 * (1 + 3 * (a + dim) / dim**2)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_two_standard_errors_around_kid_hold_the_truth_in_95_percent_of_repetitions(shift):
    truth = true_kid(8, shift)
    found = np.array([kernel_distance(normal(60, 8, 2 * seed), normal(40, 8, 2 * seed + 1, mean=shift)) for seed in range(300)])
    estimates, errors = found.T
    assert abs(estimates.mean() - truth) < 4 * estimates.std() / np.sqrt(300)  # no bias
    assert np.mean(np.abs(estimates - truth) <= 2 * errors) >= 0.93
    assert 0.85 < errors.mean() / estimates.std() < 1.7  # and it is not simply huge; the square root of 2 where shift is 0


def test_samples_drawn_from_the_captions_of_the_photos_leave_kid_unbiased_with_groups_and_only_with_them():
    found, naive = [], []
    for seed in range(200):
        captions = normal(40, 8, 3 * seed, scale=0.8)  # what a photo and the samples of its caption have in common
        sources = np.arange(80) % 40
        photos = captions + normal(40, 8, 3 * seed + 1, scale=0.6)
        samples = captions[sources] + normal(80, 8, 3 * seed + 2, scale=0.6)
        found.append(kernel_distance(samples, photos, sources, np.arange(40)))
        naive.append(kernel_distance(samples, photos)[0])
    estimates, errors = np.array(found).T
    assert abs(estimates.mean()) < 4 * estimates.std() / np.sqrt(200)
    assert np.mean(np.abs(estimates) <= 2 * errors) >= 0.93
    assert np.mean(naive) < -3 * np.std(estimates)  # better than perfect, which cannot be


def manifolds_by_loops(real, fake, k):
    def radius(x):
        return [sorted(np.linalg.norm(x - row, axis=1))[k] for row in x]  # index 0 is the row itself

    near_real = np.array([[np.linalg.norm(f - r) <= size for r, size in zip(real, radius(real), strict=True)] for f in fake])
    near_fake = np.array([[np.linalg.norm(r - f) <= size for f, size in zip(fake, radius(fake), strict=True)] for r in real])
    return near_real.any(1).mean(), near_fake.any(1).mean(), near_real.sum(1).mean() / k, near_real.any(0).mean()


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_density_and_coverage_are_their_definitions(k):
    real, fake = normal(30, 3), normal(25, 3, seed=1, mean=0.5, scale=1.3)
    found = precision_recall(real, fake, k)
    np.testing.assert_allclose((found.precision, found.recall, found.density, found.coverage), manifolds_by_loops(real, fake, k))


def test_pictures_of_one_group_are_left_out_of_the_manifolds():
    real, fake = normal(30, 3), normal(30, 3, seed=1)
    of_real, of_fake = np.arange(30), np.arange(30) % 20
    fake[:10] = real[:10] + 1e-3  # each sits beside the photo of its group
    fake[20:] = fake[:10] + 1e-3  # and beside a sample of its group

    def distances(x, y, of_x, of_y):
        return np.where(of_x[:, None] == of_y, np.inf, np.linalg.norm(x[:, None] - y, axis=2))

    across = distances(real, fake, of_real, of_fake)
    in_real = across <= np.sort(distances(real, real, of_real, of_real), axis=1)[:, 2:3]
    in_fake = across <= np.sort(distances(fake, fake, of_fake, of_fake), axis=1)[:, 2]
    found = precision_recall(real, fake, 3, of_real, of_fake)
    expected = (in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum(0).mean() / 3, in_real.any(1).mean())
    np.testing.assert_allclose((found.precision, found.recall, found.density, found.coverage), expected)
    assert found.precision < precision_recall(real, fake, 3).precision


def test_manifolds_do_not_depend_on_how_the_rows_are_cut_into_blocks(monkeypatch):
    real, fake = normal(50, 3), normal(40, 3, seed=1)
    whole = precision_recall(real, fake, 3)
    monkeypatch.setattr("darkroom.evaluation.neighbours.BLOCK", 7)
    assert precision_recall(real, fake, 3) == whole


def test_equal_distributions_have_density_and_coverage_near_one():
    found = precision_recall(normal(1000, 8), normal(1000, 8, seed=1), 5)
    assert abs(found.density - 1) < 0.1
    assert found.coverage > 0.93


def test_one_picture_drawn_again_and_again_is_precise_but_recalls_and_covers_little():
    real = normal(200, 2)
    found = precision_recall(real, real[:1] + 1e-3 * normal(200, 2, seed=1), 3)
    assert found.precision == 1
    assert found.recall < 0.05
    assert found.coverage < 0.1


def test_far_away_samples_have_no_overlap_at_all():
    found = precision_recall(normal(50, 2), normal(50, 2, seed=1, mean=100.0), 3)
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("measure", "least"),
    [(frechet_distance, 2), (kernel_distance, 3), (lambda a, b: precision_recall(a, b, 4), 5)],
)
def test_too_few_pictures_on_either_side_are_refused(measure, least):
    many, few = normal(20, 3), normal(least - 1, 3)
    for pair in ((many, few), (few, many)):
        with pytest.raises(ValueError, match=f"at least {least} independent images on each side, but there are {least - 1}"):
            measure(*pair)
    measure(many, normal(least, 3))


@pytest.mark.parametrize(("measure", "least"), [(kernel_distance, 3), (lambda a, b, of_a, of_b: precision_recall(a, b, 4, of_a, of_b), 5)])
def test_samples_of_one_caption_count_as_one(measure, least):
    a, b = normal(20, 3), normal(20, 3, seed=1)
    few, many = np.arange(20) % (least - 1), np.arange(20)
    for groups in ((few, many), (many, few)):
        with pytest.raises(ValueError, match=f"at least {least} independent images on each side, but there are {least - 1}"):
            measure(a, b, *groups)


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, lambda a, b: precision_recall(a, b, 2)])
def test_features_that_are_not_finite_are_refused(measure):
    good, bad = normal(20, 3), normal(20, 3)
    bad[4, 1] = np.nan
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="not finite"):
            measure(*pair)
