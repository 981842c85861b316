"""Photos whose distribution given their caption is known, and the denoiser that knows it too."""

import csv
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise, times
from darkroom.evaluation.photo_losses import (
    MAX_LOSS_PHOTOS,
    NOISE_LEVELS,
    PhotoLosses,
    measure_photo_losses,
    noise_errors,
    photo_loss_galleries,
    write_photo_losses,
)

BRIGHTNESS = {"a white cat": 0.5, "a black cat": -0.5}  # mean of its pixels; the rest is normal
SPREAD = 0.2
NUM, SIDE = 60, 8
VAE: Any = SimpleNamespace(encode=lambda images: (images, torch.zeros_like(images)), normalise=lambda latents: latents)


class Photos:
    """Photos that are as their captions say; `wrong` has the caption of the other kind, and `strange` is noise."""

    def __init__(self, wrong: int = -1, strange: int = -1, captions: Sequence[str] = tuple(BRIGHTNESS), num: int = NUM) -> None:
        true = [captions[row % len(captions)] for row in range(num)]
        self.captions = [captions[(row + (row == wrong)) % len(captions)] for row in range(num)]
        self.keys = [f"{row:064x}" for row in range(num)]
        random = np.random.default_rng(0)
        pixels = np.stack([BRIGHTNESS.get(caption, 0.0) + SPREAD * random.standard_normal((SIDE, SIDE, 3)) for caption in true])
        if strange >= 0:
            pixels[strange] = random.uniform(-1, 1, pixels[strange].shape)
        self.pixels = ((pixels.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, rows: Sequence[int]) -> np.ndarray:
        return self.pixels[list(rows)]

    def source(self, row: int) -> str:
        return f"cat {row}.png"


def knows_the_truth(captions: Sequence[str]) -> Denoise:
    """D of N(brightness, SPREAD^2) given a caption, and of both kinds together without one."""
    mean = torch.tensor([BRIGHTNESS.get(caption, 0.0) for caption in captions]).view(-1, 1, 1, 1)
    variance = torch.tensor([SPREAD**2 + (caption not in BRIGHTNESS) * 0.25 for caption in captions], dtype=torch.float64)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return mean + times(x - mean, variance / (variance + sigma**2))

    return denoise


def measured(batch_size: int = 16, **planted: Any) -> tuple[PhotoLosses, Any]:
    train: Any = Photos(**planted)
    return measure_photo_losses(VAE, knows_the_truth, train, seed=0, batch_size=batch_size, device=torch.device("cpu")), train


@pytest.mark.parametrize("planted", [0, 17, 41])
def test_a_photo_of_noise_is_the_worst_photo(planted: int) -> None:
    assert measured(strange=planted)[0].worst_photos(3)[0] == planted


@pytest.mark.parametrize("planted", [0, 17, 41])
def test_a_photo_with_the_caption_of_another_one_is_the_worst_caption(planted: int) -> None:
    losses, _ = measured(wrong=planted)
    assert losses.worst_captions(3)[0] == planted
    assert losses.saved is not None
    assert losses.saved[planted] < 0 < np.delete(losses.saved, planted).min()
    assert losses.worst_photos(3)[0] == planted


def test_the_loss_is_the_share_of_noise_that_is_not_told_from_the_photo() -> None:
    """Of N(m, s^2) the error of D is s^2 sigma^2 / (s^2 + sigma^2), here over sigma^2."""
    expected = np.mean([SPREAD**2 / (SPREAD**2 + level**2) for level in NOISE_LEVELS])
    assert measured()[0].loss.mean() == pytest.approx(expected, rel=0.03)
    latents = torch.from_numpy(Photos().images(range(4))).permute(0, 3, 1, 2).float()
    np.testing.assert_array_equal(noise_errors(lambda x, sigma: latents, latents, seed=0, rows=range(4)), 0)
    shifted = noise_errors(lambda x, sigma: latents + times(torch.ones_like(x), sigma), latents, seed=0, rows=range(4))
    np.testing.assert_allclose(shifted, 1, rtol=1e-5)


def test_a_photo_has_the_same_loss_in_any_batch() -> None:
    (one, _), (other, _) = measured(batch_size=7), measured(batch_size=60)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-6)
    assert one.saved is not None
    assert other.saved is not None
    np.testing.assert_allclose(one.saved, other.saved, rtol=1e-4, atol=1e-7)


def test_one_caption_for_all_photos_ranks_no_captions_and_costs_one_evaluation() -> None:
    asked: list[str] = []
    train: Any = Photos(captions=["a cat"])

    def denoisers(captions: Sequence[str]) -> Denoise:
        asked.extend(captions)
        return knows_the_truth(captions)

    losses = measure_photo_losses(VAE, denoisers, train, seed=0, batch_size=16, device=torch.device("cpu"))
    assert losses.saved is None
    assert losses.worst_captions(5) == []
    assert asked == ["a cat"] * NUM
    assert list(photo_loss_galleries(losses, train, 4)) == ["worst_photos"]


def test_only_the_first_photos_are_ranked_and_the_report_says_so() -> None:
    losses, train = measured(num=MAX_LOSS_PHOTOS + 8, batch_size=520)
    assert len(losses.loss) == MAX_LOSS_PHOTOS
    assert f"{MAX_LOSS_PHOTOS} of {MAX_LOSS_PHOTOS + 8} training photos" in photo_loss_galleries(losses, train, 2)["worst_photos"].note


def test_the_worst_photos_are_shown_with_their_loss_file_and_caption(tmp_path) -> None:
    losses, train = measured(strange=17)
    gallery = photo_loss_galleries(losses, train, 4)["worst_photos"]
    assert gallery.tiles[0].label == f"{losses.loss[17]:.3f} · cat 17.png · a black cat"
    np.testing.assert_array_equal(gallery.tiles[0].images, train.images([17]))
    assert [len(found.tiles) for found in photo_loss_galleries(losses, train, 4).values()] == [4, 4]
    write_photo_losses(tmp_path / "losses.csv", losses, train)
    with (tmp_path / "losses.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == NUM
    assert rows[0]["key"] == train.keys[17]
    assert (rows[0]["source"], rows[0]["caption"]) == ("cat 17.png", "a black cat")
    assert [float(row["loss"]) for row in rows] == sorted((float(row["loss"]) for row in rows), reverse=True)
    assert losses.saved is not None
    assert float(rows[0]["saved_by_caption"]) == pytest.approx(losses.saved[17], abs=1e-4)
