"""How close the VAE's reconstructions are to their photos: PSNR, SSIM and Fréchet distance, and the gate that requires them."""

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from darkroom.config import ReconstructionGate
from darkroom.evaluation.distribution import frechet_distance
from darkroom.evaluation.features import ArrayImages, ImageSource, clip_features
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.clip import ClipTowers
from darkroom.pixels import map_pictures

logger = logging.getLogger(__name__)

MAX_RECONSTRUCTIONS = 1024  # photos that are reconstructed to measure a VAE
Images = NDArray[np.uint8]  # (B, H, W, 3)
WINDOW = 11  # px, side of the Gaussian window of SSIM
WINDOW_SIGMA = 1.5


def reconstruct(vae: Autoencoder, photos: ImageSource, *, batch_size: int, device: torch.device) -> tuple[Images, Images]:
    """The first `MAX_RECONSTRUCTIONS` photos and what their posterior means decode to, both (N, H, W, 3)."""
    originals = photos.images(range(min(len(photos), MAX_RECONSTRUCTIONS)))
    return originals, map_pictures(vae.reconstruct, originals, batch_size=batch_size, device=device)


def reconstruction_metrics(photos: Images, reconstructions: Images) -> dict[str, float]:
    """Mean PSNR (dB) and mean SSIM over a set of photos. Chance is that of their mean colours, see `canaries.mean_colour`."""
    return {"psnr": float(psnr(photos, reconstructions).mean()), "ssim": float(ssim(photos, reconstructions).mean())}


def measure_vae(vae: Autoencoder, clip: ClipTowers, photos: ImageSource, *, batch_size: int, device: torch.device) -> dict[str, float]:
    """`psnr` and `ssim` of reconstructed photos, and `frechet`, the Fréchet distance of photos and reconstructions.

    The distance is measured in the features of the run's own CLIP. It is left out, with a warning, if that has no image encoder or
    if there is only one photo.
    """
    originals, decoded = reconstruct(vae, photos, batch_size=batch_size, device=device)
    metrics = reconstruction_metrics(originals, decoded)
    if not clip.has_image_encoder or len(originals) < 2:
        reason = "there is only one held-out photo" if clip.has_image_encoder else "this CLIP has no image encoder"
        logger.warning("The Fréchet distance of reconstructions is not measured: %s.", reason)
        return metrics
    extractor = clip_features(clip.encode_images, "")
    features = extractor.of(ArrayImages(originals), batch_size=batch_size, desc="held-out photos")
    features_decoded = extractor.of(ArrayImages(decoded), batch_size=batch_size, desc="reconstructions")
    return metrics | {"frechet": frechet_distance(features, features_decoded)}


def check_gate(metrics: dict[str, float], gate: ReconstructionGate) -> None:
    """Refuse a VAE whose `metrics` (of `measure_vae`) do not reach the limits of `gate`.

    Raises:
        ValueError: a metric is below its least or above its greatest value or is not a number, or a required one was not measured.
    """
    if gate.max_frechet is not None and "frechet" not in metrics:
        raise ValueError(
            f"cache_latents.gate.max_frechet is {gate.max_frechet:g}, but the Fréchet distance of reconstructions needs a CLIP with an "
            "image encoder and at least two held-out photos. Set it to null; min_psnr and min_ssim still apply."
        )
    if failures := _failures(metrics, gate):
        raise ValueError(
            f"The VAE is not good enough to train a U-Net on its latents. On reconstructions of held-out photos: {'; '.join(failures)}. "
            "Look at data/vae/reconstructions.png. Then train the VAE longer (train_vae.steps; above 0 also with train_vae.init), enlarge "
            "it (train_vae.model.latent_channels, block_out_channels), lower train_vae.decoder_scale, or add photos if there are few. "
            "If the reconstructions are good enough for you, change cache_latents.gate; that does not train the VAE again."
        )


def _failures(metrics: dict[str, float], gate: ReconstructionGate) -> list[str]:
    """One phrase for each metric that misses its limit; nan misses every limit."""
    failures = []
    for key, name, unit, least in (("psnr", "PSNR", " dB", gate.min_psnr), ("ssim", "SSIM", "", gate.min_ssim)):
        if least is not None and not metrics[key] >= least:
            failures.append(f"{name} is {metrics[key]:.4g}{unit}; required: at least {least:g}{unit}")
    if gate.max_frechet is not None and not metrics["frechet"] <= gate.max_frechet:
        failures.append(f"Fréchet distance is {metrics['frechet']:.4g}; required: at most {gate.max_frechet:g}")
    return failures


def psnr(photos: Images, reconstructions: Images) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB, (B,): 10 log10(255² / mean squared error); inf where the two are equal."""
    assert photos.shape == reconstructions.shape
    error = np.square(photos.astype(np.float64) - reconstructions).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def ssim(photos: Images, reconstructions: Images) -> NDArray[np.float64]:
    """Structural similarity, (B,): 1 for equal images (Wang et al. 2004, equation 13, on each colour channel).

    The window is the paper's Gaussian of 11 x 11 px with sigma 1.5, at every place where all of it fits.

    Raises:
        ValueError: the images are smaller than the window.
    """
    assert photos.shape == reconstructions.shape
    if min(photos.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM has a window of {WINDOW} px, but the images are {photos.shape[2]} x {photos.shape[1]} px.")
    return np.array([_ssim(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(photos, reconstructions, strict=True)])


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
