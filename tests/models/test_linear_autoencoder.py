"""The linear autoencoder against the definition of principal components: an oracle by singular values, and the errors that it must have."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter
from torch import Tensor

from darkroom.models.autoencoder import load_autoencoder
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.linear_autoencoder import ROUNDING, LinearAutoencoder, LinearAutoencoderConfig
from darkroom.models.weights import save_model
from darkroom.pixels import to_float


@pytest.fixture
def smooth_images() -> Tensor:
    """(12, 3, 16, 16) in [-1, 1]: as in photos, neighbours are alike, and colours have different means."""
    rough = np.random.default_rng(0).standard_normal((12, 3, 16, 16))
    smooth = gaussian_filter(rough, (0, 0.5, 1.5, 1.5), mode="nearest") * 1.2 + np.array([0.2, 0.0, -0.1])[:, None, None]
    return torch.tensor(np.clip(smooth, -1, 1), dtype=torch.float32)


def fitted(photos: Tensor, channels: int, patch: int = 4) -> tuple[LinearAutoencoder, float]:
    vae = LinearAutoencoder(LinearAutoencoderConfig(patch_size=patch, latent_channels=channels, sample_size=photos.shape[-1]))
    return vae, vae.fit([photos[:5], photos[5:]])


def patches_of(photos: Tensor, patch: int = 4) -> np.ndarray:
    """(N, 3 p p) of the photos and their mirror images, cut by hand."""
    both = torch.cat([photos, photos.flip(-1)]).double().numpy()
    num, _, height, width = both.shape
    cut = both.reshape(num, 3, height // patch, patch, width // patch, patch).transpose(0, 2, 4, 1, 3, 5)
    return cut.reshape(-1, 3 * patch * patch)


def test_the_latents_are_the_principal_components_of_patches(smooth_images: Tensor) -> None:
    vae, _ = fitted(smooth_images, 10)
    patches = patches_of(smooth_images)
    colours = patches.reshape(len(patches), 3, -1).mean(axis=(0, 2))
    _, _, rows = np.linalg.svd(patches - colours.repeat(16), full_matrices=False)
    basis = vae.basis.detach().reshape(10, -1).double().numpy()
    assert np.abs(np.abs(np.sum(basis * rows[:10], axis=1)) - 1).max() < 1e-4
    assert np.abs(basis @ basis.T - np.eye(10)).max() < 1e-5
    assert (basis @ np.arange(1, 49) > 0).all()  # of the two signs always the same


def test_what_is_left_out_is_the_scale_of_the_likelihood(smooth_images: Tensor) -> None:
    vae, scale = fitted(smooth_images, 10)
    both = torch.cat([smooth_images, smooth_images.flip(-1)])
    error = (vae.reconstruct(both) - both).detach().double().square().mean()
    assert float(error) == pytest.approx(scale**2 * 38 / 48, rel=1e-3)  # the noise of all 48 directions, but only 38 are lost


def test_with_all_components_nothing_is_lost(smooth_images: Tensor) -> None:
    vae, scale = fitted(smooth_images, 48)
    assert (vae.reconstruct(smooth_images) - smooth_images).abs().max() < 1e-4
    assert scale == ROUNDING


def test_the_posterior_is_as_wide_as_the_rounding_of_pixels(smooth_images: Tensor) -> None:
    vae, _ = fitted(smooth_images, 48)
    mean, std = vae.encode(smooth_images)
    assert mean.shape == (len(smooth_images), 48, 4, 4)
    rounded = ((smooth_images + 1) * 127.5).round() / 127.5 - 1
    assert float((vae.encode(rounded)[0] - mean).std()) == pytest.approx(float(std.mean()), rel=0.1)


def test_a_mirror_image_is_as_exact_as_its_photo(smooth_images: Tensor) -> None:
    vae, _ = fitted(smooth_images, 6)
    errors = [(vae.reconstruct(images) - images).detach().square().mean() for images in (smooth_images, smooth_images.flip(-1))]
    assert float(errors[0]) == pytest.approx(float(errors[1]), rel=0.02)


def test_photos_keep_32_decibels_of_8_x_8_pixels_in_48_components(shared: Path) -> None:
    paths = sorted((shared / "data" / "cats").glob("*.jpg"))[::5]
    photos = [ImageOps.fit(Image.open(path).convert("RGB"), (64, 64), Image.Resampling.LANCZOS) for path in paths]
    images = to_float(np.stack([np.asarray(photo) for photo in photos]))
    vae, _ = fitted(images[:80], 48, patch=8)
    error = (vae.reconstruct(images[80:]).clamp(-1, 1) - images[80:]).square().flatten(1).mean(1)
    assert float((10 * torch.log10(4 / error)).mean()) > 31


def test_a_folder_says_which_autoencoder_it_holds(smooth_images: Tensor, tmp_path: Path) -> None:
    linear, _ = fitted(smooth_images, 10)
    network = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(8, 8), norm_num_groups=4))
    for vae in (linear, network):
        save_model(vae, tmp_path / type(vae).__name__)
        loaded = load_autoencoder(tmp_path / type(vae).__name__)
        assert type(loaded) is type(vae)
        assert loaded.fingerprint() == vae.fingerprint()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"_class_name": "VQModel"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json: `_class_name` is 'VQModel', expected 'AutoencoderKL'"):
        load_autoencoder(tmp_path / "other")


def test_photos_that_do_not_divide_into_patches_are_refused(smooth_images: Tensor) -> None:
    vae, _ = fitted(smooth_images, 10)
    with pytest.raises(ValueError, match="Images of 16x14 px do not fit this autoencoder: both sides must be multiples of 4"):
        vae.encode(smooth_images[:, :, :14])


def test_a_patch_has_no_more_components_than_values() -> None:
    with pytest.raises(ValueError, match="`latent_channels` is 49, but a patch of 4 px has only 48 values"):
        LinearAutoencoderConfig(patch_size=4, latent_channels=49)
