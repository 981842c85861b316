from dataclasses import asdict

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from darkroom.data.shards import LEAST_HELD_OUT
from darkroom.evaluation.distribution import crossed_frechet_distance, distance_metrics, frechet_distance, precision_recall
from darkroom.evaluation.features import FeatureSets


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


@pytest.mark.parametrize(("rows_a", "rows_b", "dim"), [(300, 200, 64), (200, 250, 256)])  # both ways of taking the trace
def test_frechet_distance_is_that_of_torch_fidelity_on_the_same_features(rows_a, rows_b, dim):
    a, b = normal(rows_a, dim).astype(np.float32), normal(rows_b, dim, seed=1, mean=0.3, scale=1.2).astype(np.float32)
    of_a, of_b = (fid_features_to_statistics(torch.from_numpy(x.astype(float))) for x in (a, b))
    expected = fid_statistics_to_metric(of_a, of_b, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


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
    monkeypatch.setattr("darkroom.evaluation.neighbours.BLOCK_BYTES", 8 * 50 * 7)
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
    [(frechet_distance, 2), (lambda a, b: precision_recall(a, b, 4), 5)],
)
def test_too_few_pictures_on_either_side_are_refused(measure, least):
    many, few = normal(20, 3), normal(least - 1, 3)
    for pair in ((many, few), (few, many)):
        with pytest.raises(ValueError, match=f"at least {least} independent images on each side, but there are {least - 1}"):
            measure(*pair)
    measure(many, normal(least, 3))


def test_samples_of_one_caption_count_as_one():
    a, b, few, many = normal(20, 3), normal(20, 3, seed=1), np.arange(20) % 4, np.arange(20)
    for groups in ((few, many), (many, few)):
        with pytest.raises(ValueError, match="at least 5 independent images on each side, but there are 4"):
            precision_recall(a, b, 4, *groups)


@pytest.mark.parametrize("measure", [frechet_distance, lambda a, b: precision_recall(a, b, 2)])
def test_features_that_are_not_finite_are_refused(measure):
    good, bad = normal(20, 3), normal(20, 3)
    bad[4, 1] = np.nan
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="not finite"):
            measure(*pair)


@pytest.mark.parametrize("k", [1, 5])
def test_manifolds_are_those_of_prdc_and_torch_fidelity_on_the_same_features(k):
    real, fake = normal(200, 16).astype(np.float32), normal(250, 16, seed=1, mean=0.3, scale=1.2).astype(np.float32)
    found = asdict(precision_recall(real, fake, k))
    assert found == pytest.approx(compute_prdc(real, fake, k), rel=1e-5)
    others = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), prc_neighborhood=k, verbose=False)
    assert (found["precision"], found["recall"]) == pytest.approx((others["precision"], others["recall"]), rel=1e-5)


def test_equal_images_lie_in_each_others_balls_although_these_have_no_size(monkeypatch):
    real = np.repeat(normal(5, 64, scale=30.0), 4, axis=0).astype(np.float32)  # each is there four times: its third neighbour is itself
    for block_bytes in (1, 2**20):
        monkeypatch.setattr("darkroom.evaluation.neighbours.BLOCK_BYTES", block_bytes)
        found = precision_recall(real, real[::-1], 3)
        assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_the_crossed_frechet_distance_leaves_out_the_photos_of_the_captions():
    photos, sources = normal(40, 4), np.arange(60) % 40
    images = normal(60, 4, seed=1)
    images[sources % 2 == 0] += photos[sources[sources % 2 == 0]]
    even, odd = sources % 2 == 0, sources % 2 == 1
    expected = frechet_distance(images[even], photos[1::2]) + frechet_distance(images[odd], photos[::2])
    assert crossed_frechet_distance(images, photos, sources) == pytest.approx(expected / 2)


NAMES = ("kid", "frechet_distance", "precision", "recall", "density", "coverage")


def measured(samples, held_out, train, **changes):
    given = {"sources": np.arange(len(samples)) % len(held_out), "num_neighbours": 3} | changes
    mean_colours = np.full((min(len(held_out), 128), samples.shape[1]), 5.0) + normal(
        min(len(held_out), 128), samples.shape[1], 9, scale=0.1
    )
    return distance_metrics(FeatureSets(samples, held_out, train), mean_colours, **given)


def test_samples_that_are_fresh_photos_reach_what_photos_reach_and_chance_is_far_away():
    found = [measured(normal(200, 8, 3 * s), normal(100, 8, 3 * s + 1), normal(900, 8, 3 * s + 2)) for s in range(20)]
    mean = {key: np.mean([each[key] for each in found]) for key in found[0]}
    spread = {key: np.std([each[key] for each in found]) for key in found[0]}
    for name in NAMES:
        assert abs(mean[name] - mean[f"{name}_photos"]) < 1.2 * spread[name], name  # of single reports; their mean is 4.5 times as exact
    assert mean["kid_chance"] > 100 * spread["kid"]
    assert mean["frechet_distance_chance"] > 10 * mean["frechet_distance_photos"]
    for name in ("precision", "recall", "density", "coverage"):
        assert mean[f"{name}_chance"] < 0.05
        assert mean[f"{name}_photos"] > 0.3
    assert 0.2 < mean["kid_p"] < 0.8
    assert all(each["kid_high"] > 0 for each in found)


def test_distances_that_depend_on_the_number_take_as_many_samples_as_training_photos():
    samples, held_out, train = normal(300, 8), normal(100, 8, seed=1), normal(120, 8, seed=2)
    many, few = measured(samples, held_out, train), measured(samples[:120], held_out, train)
    assert {key for key in many if many[key] != few[key]} == {"kid", "kid_standard_error", "kid_high", "kid_p"}
    # and the training photos stand in their places
    swapped = measured(train, held_out, samples[:120])
    assert all(swapped[f"{name}_photos"] == few[name] for name in NAMES)


def test_the_kernel_and_the_number_of_neighbours_change_the_metrics():
    sets = normal(80, 8, mean=0.2), normal(60, 8, seed=1), normal(90, 8, seed=2)
    plain, gaussian, more = measured(*sets), measured(*sets, kernel="gaussian"), measured(*sets, num_neighbours=5)
    by_kernel = {key for key in plain if plain[key] != gaussian[key]}
    assert {"kid", "kid_photos", "kid_chance"} <= by_kernel <= {key for key in plain if key.startswith("kid")}
    assert {key for key in plain if plain[key] != more[key]} <= {key for key in plain if not key.startswith(("kid", "frechet"))}
    assert plain["precision"] != more["precision"]


def test_as_many_photos_as_ingest_holds_out_at_least_are_enough():
    def measured(num: int) -> dict[str, float]:
        samples, held_out, train, colours = (rng.normal(size=(rows, 8)).astype(np.float32) for rows in (12, num, 12, num))
        return distance_metrics(FeatureSets(samples, held_out, train), colours, sources=np.arange(12) % num, num_neighbours=3)

    rng = np.random.default_rng(0)
    assert all(np.isfinite(value) for value in measured(LEAST_HELD_OUT).values())
    with pytest.raises(ValueError, match="needs at least"):
        measured(LEAST_HELD_OUT - 1)
