"""How close a reconstruction is to its photo: PSNR and SSIM, one number a picture, and whether a set of them will do."""

import operator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

Images = NDArray[np.uint8]  # (B, H, W, 3)
WINDOW = 11  # px, side of the Gaussian window of SSIM
WINDOW_SIGMA = 1.5


def psnr(photos: Images, reconstructions: Images) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB, (B,): 10 log10(255² / mean squared error); inf where the two are equal."""
    assert photos.shape == reconstructions.shape
    error = np.square(photos.astype(np.float64) - reconstructions).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def ssim(photos: Images, reconstructions: Images) -> NDArray[np.float64]:
    """Structural similarity, (B,): 1 for equal pictures (Wang et al. 2004, equation 13, on each colour channel).

    The window is the paper's Gaussian of 11 x 11 px with sigma 1.5, at every place where it fits whole.

    Raises:
        ValueError: the pictures are smaller than the window.
    """
    assert photos.shape == reconstructions.shape
    if min(photos.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM looks through a window of {WINDOW} px, but the pictures are {photos.shape[2]} x {photos.shape[1]} px.")
    return np.array([_ssim(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(photos, reconstructions, strict=True)])


def shortfalls(measured: dict[str, float], *, least: dict[str, float | None], most: dict[str, float | None]) -> list[str]:
    """One sentence for each number that is below its least or above its most value, or is not a number.

    Args:
        measured: name -> value; what was not measured is not asked for.
        least: name -> the value that must be reached; None = none.
        most: name -> the value that may not be passed; None = none.
    """
    found = []
    for limits, word, holds in ((least, "at least", operator.ge), (most, "at most", operator.le)):
        for name, limit in limits.items():
            if limit is not None and name in measured and not holds(measured[name], limit):
                found.append(f"{name} is {measured[name]:.4g}, asked for is {word} {limit:g}")
    return found


def _ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mu_x, mu_y = _window_mean(x), _window_mean(y)
    var_x, var_y = _window_mean(x * x) - mu_x**2, _window_mean(y * y) - mu_y**2
    covariance = _window_mean(x * y) - mu_x * mu_y
    similarity = (2 * mu_x * mu_y + c1) * (2 * covariance + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    return float(similarity.mean())


def _window_mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W, C) -> (H - 10, W - 10, C), weighted by the window."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    weights /= weights.sum()
    margin = slice(WINDOW // 2, -(WINDOW // 2))
    return correlate1d(correlate1d(x, weights, axis=0), weights, axis=1)[margin, margin]
