import numpy as np
import pytest
from scipy.signal import convolve2d

from darkroom.evaluation.reconstruction import psnr, shortfalls, ssim

random = np.random.default_rng(0)
PHOTOS = random.integers(0, 256, (3, 24, 20, 3), dtype=np.uint8)


def test_psnr_of_a_constant_error_has_its_closed_form():
    photos = np.full((2, 16, 16, 3), 100, np.uint8)
    worse = np.stack([photos[0] + 5, photos[1] - 50])
    np.testing.assert_allclose(psnr(photos, worse), [20 * np.log10(255 / 5), 20 * np.log10(255 / 50)])


def test_equal_pictures_have_infinite_psnr_and_ssim_one():
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


def test_pictures_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="window of 11 px, but the pictures are 10 x 16 px"):
        ssim(np.zeros((1, 16, 10, 3), np.uint8), np.zeros((1, 16, 10, 3), np.uint8))


def test_shortfalls_name_the_number_what_was_measured_and_what_was_asked():
    measured = {"psnr": 18.2345, "ssim": 0.8, "frechet": 3.0}
    assert shortfalls(measured, least={"psnr": 22.0, "ssim": 0.75}, most={"frechet": 2.5}) == [
        "psnr is 18.23, asked for is at least 22",
        "frechet is 3, asked for is at most 2.5",
    ]
    assert shortfalls(measured, least={"psnr": 18.0, "ssim": None, "lpips": 1.0}, most={"frechet": 3.0}) == []
    assert shortfalls({"psnr": np.nan}, least={"psnr": 1.0}, most={}) == ["psnr is nan, asked for is at least 1"]
