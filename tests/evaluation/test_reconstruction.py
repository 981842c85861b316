import numpy as np
import pytest
from scipy.signal import convolve2d

from darkroom.config import ReconstructionGate
from darkroom.evaluation.reconstruction import check_gate, psnr, reconstruction_metrics, ssim

random = np.random.default_rng(0)
PHOTOS = random.integers(0, 256, (3, 24, 20, 3), dtype=np.uint8)


def test_psnr_of_a_constant_error_has_its_closed_form():
    photos = np.full((2, 16, 16, 3), 100, np.uint8)
    worse = np.stack([photos[0] + 5, photos[1] - 50])
    np.testing.assert_allclose(psnr(photos, worse), [20 * np.log10(255 / 5), 20 * np.log10(255 / 50)])


def test_equal_images_have_infinite_psnr_and_ssim_one():
    assert np.all(psnr(PHOTOS, PHOTOS) == np.inf)
    np.testing.assert_allclose(ssim(PHOTOS, PHOTOS), 1)


def test_ssim_of_flat_pictures_is_its_luminance_term():
    a, b = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 140, np.uint8)
    c1 = (0.01 * 255) ** 2
    np.testing.assert_allclose(ssim(a, b), (2 * 100 * 140 + c1) / (100**2 + 140**2 + c1))


def test_ssim_is_the_papers_formula_written_out():
    blurred = PHOTOS // 2 + np.roll(PHOTOS, 1, axis=1) // 2
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    expected = []
    for photo, other in zip(PHOTOS, blurred, strict=True):
        maps = []
        for x, y in zip(photo.transpose(2, 0, 1).astype(float), other.transpose(2, 0, 1).astype(float), strict=True):
            mx, my, xx, yy, xy = (convolve2d(z, window, "valid") for z in (x, y, x * x, y * y, x * y))
            luminance_and_contrast = (2 * mx * my + 6.5025) * (2 * (xy - mx * my) + 58.5225)
            maps.append(luminance_and_contrast / ((mx**2 + my**2 + 6.5025) * (xx - mx**2 + yy - my**2 + 58.5225)))
        expected.append(np.mean(maps))
    np.testing.assert_allclose(ssim(PHOTOS, blurred), expected)


def test_images_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="window of 11 px, but the images are 10 x 16 px"):
        ssim(np.zeros((1, 16, 10, 3), np.uint8), np.zeros((1, 16, 10, 3), np.uint8))


def test_the_metrics_of_a_set_are_the_means_over_its_photos():
    worse = PHOTOS // 2 + 10
    metrics = reconstruction_metrics(PHOTOS, worse)
    assert metrics == {"psnr": pytest.approx(np.mean(psnr(PHOTOS, worse))), "ssim": pytest.approx(np.mean(ssim(PHOTOS, worse)))}


METRICS = {"psnr": 18.2345, "ssim": 0.8, "frechet": 3.0}


def gate(psnr: float | None = None, ssim: float | None = None, frechet: float | None = None) -> ReconstructionGate:
    return ReconstructionGate(min_psnr=psnr, min_ssim=ssim, max_frechet=frechet)


def test_limits_that_are_met_or_null_let_pass():
    check_gate(METRICS, gate(18.2345, 0.8, 3.0))
    check_gate(METRICS, gate())


def test_a_refusal_names_each_metric_with_its_value_and_its_limit():
    with pytest.raises(ValueError, match=r"PSNR is 18\.23 dB; required: at least 22 dB; Fréchet distance is 3; required: at most 2\.5\."):
        check_gate(METRICS, gate(22.0, 0.75, 2.5))
    with pytest.raises(ValueError, match=r": SSIM is 0\.8; required: at least 0\.85\. Look"):
        check_gate(METRICS, gate(ssim=0.85))


def test_a_value_that_is_not_a_number_misses_every_limit():
    with pytest.raises(ValueError, match=r"PSNR is nan dB; required: at least 1 dB"):
        check_gate(METRICS | {"psnr": np.nan}, gate(1.0))
    with pytest.raises(ValueError, match=r"Fréchet distance is nan; required: at most 9"):
        check_gate(METRICS | {"frechet": np.nan}, gate(frechet=9.0))


def test_a_required_distance_that_was_not_measured_is_refused():
    with pytest.raises(ValueError, match=r"max_frechet is 5, but .* needs a CLIP with an image encoder.* Set it to null"):
        check_gate({"psnr": 20.0, "ssim": 0.8}, gate(frechet=5.0))
