"""A linear-Gaussian VAE with the exact denoiser of its latents: both bounds are the true -log p(x), whatever the photo.

z ~ N(0, 1) a pixel, x = A z + S noise. The posterior of z is Gaussian, so the encoder can be exact and the bounds tight.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from darkroom.diffusion.bound import Bound
from darkroom.diffusion.denoiser import Denoise, times
from darkroom.diffusion.schedule import Schedule
from darkroom.evaluation.likelihood import PhotoBounds, PhotoModel, PixelLikelihood, bound_metrics, photo_bounds, standard_error
from darkroom.provenance import write_json
from darkroom.training.vae_objective import DecoderLikelihood

A, S = 0.8, 0.3
SCALE, SHIFT = 1.6, -0.4  # of the normalised latents
SHAPE = (3, 24, 24)
NUM = 48
DIMS = math.prod(SHAPE)


class LinearVae:
    config = SimpleNamespace(scaling_factor=SCALE)

    def __init__(self, error: float = 0.0) -> None:
        self.error = error  # of the encoder's mean

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        variance = S**2 / (A**2 + S**2)
        return A / (A**2 + S**2) * images + self.error, torch.full_like(images, math.sqrt(variance))

    def decode(self, z: Tensor) -> Tensor:
        return A * z

    def normalise(self, z: Tensor) -> Tensor:
        return (z - SHIFT) * SCALE


def exact(x: Tensor, sigma: Tensor) -> Tensor:
    """D of latents N(-SHIFT SCALE, SCALE^2)."""
    mean = -SHIFT * SCALE
    return mean + times(x - mean, SCALE**2 / (SCALE**2 + sigma**2))


def model(likelihood: str = "gaussian", **vae: float) -> PhotoModel:
    made: Any = LinearVae(**vae)
    return PhotoModel(vae=made, pixels=PixelLikelihood(likelihood, S), schedule=Schedule.make("flow", 1000, 0.1, 0.2))


@pytest.fixture(scope="module")
def photos() -> Tensor:
    noise = torch.randn(NUM, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return math.sqrt(A**2 + S**2) * noise


def measure(photos: Tensor, of: PhotoModel, denoise: Denoise = exact, batch_size: int = NUM, num_timesteps: int = 4) -> list[PhotoBounds]:
    starts = range(0, len(photos), batch_size)
    return [
        photo_bounds(of, denoise, photos[start : start + batch_size], seed=0, positions=range(start, min(start + batch_size, NUM)),
                     num_positions=NUM, num_timesteps=num_timesteps)
        for start in starts
    ]  # fmt: skip


def truth(photos: Tensor) -> float:
    """The mean of -log p(x), nats a photo."""
    return -Normal(0.0, math.sqrt(A**2 + S**2)).log_prob(photos).flatten(1).sum(1).mean().item()


def test_the_bound_of_a_vae_is_tight_with_the_exact_encoder(photos: Tensor) -> None:
    (bounds,) = measure(photos, model())
    error = (bounds.vae.std() / NUM**0.5).item()
    assert bounds.vae.mean().item() == pytest.approx(truth(photos), abs=3 * error)
    assert error < 0.004 * truth(photos)


def test_the_bound_of_vae_and_denoiser_is_tight_when_both_are_exact(photos: Tensor) -> None:
    """The four timesteps of a photo are an estimate; the number is right within what it says of its own error."""
    of = model()
    numbers = bound_metrics(of, measure(photos, of), pixel_dims=DIMS, latent_dims=DIMS)
    expected = truth(photos) / DIMS / math.log(2) + math.log2(127.5)
    assert numbers["photo_bits_per_dim"] == pytest.approx(expected, abs=min(0.02, 3 * numbers["photo_bits_per_dim_standard_error"]))
    assert numbers["photo_bits_per_dim_standard_error"] < 0.04
    assert numbers["vae_bits_per_dim"] == pytest.approx(expected, abs=0.02)
    assert numbers["vae_elbo_nats"] == pytest.approx(-truth(photos), rel=0.01)
    entropy_bits = math.log2(SCALE * math.sqrt(2 * math.pi * math.e))
    assert numbers["latent_bits_total"] == pytest.approx(entropy_bits, abs=0.05)
    parts = [numbers[f"latent_bits_{name}"] for name in ("prior", "chain", "decoder")]
    assert numbers["latent_bits_total"] == pytest.approx(sum(parts))


@pytest.mark.parametrize(
    "worse",
    [
        lambda photos: measure(photos, model(error=0.1)),
        lambda photos: measure(photos, model(), denoise=lambda x, sigma: 0.98 * exact(x, sigma)),
    ],
    ids=["encoder", "denoiser"],
)
def test_what_is_not_exact_makes_the_bound_larger(photos: Tensor, worse: Callable[[Tensor], list[PhotoBounds]]) -> None:
    best = bound_metrics(model(), measure(photos, model()), pixel_dims=DIMS, latent_dims=DIMS)["photo_bits_per_dim"]
    assert bound_metrics(model(), worse(photos), pixel_dims=DIMS, latent_dims=DIMS)["photo_bits_per_dim"] > best + 0.01


def test_a_photo_has_the_same_bound_in_any_batch(photos: Tensor) -> None:
    whole, parts = measure(photos, model()), measure(photos, model(), batch_size=20)
    for of in (lambda part: part.vae, lambda part: part.together(DIMS, SCALE)):
        torch.testing.assert_close(of(whole[0]), torch.cat([of(part) for part in parts]))


def test_the_standard_error_is_that_of_draws_and_blind_to_a_slow_trend() -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert standard_error(values) == pytest.approx(1 / 4000**0.5, rel=0.05)
    assert standard_error(values + torch.linspace(0, 50, 4000)) == pytest.approx(standard_error(values), rel=0.01)


def test_bits_of_black_and_white_pixels_know_no_distance_between_values() -> None:
    half = torch.full((2,), DIMS * math.log(2), dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    parts = [PhotoBounds(nll=half, kl=zero, entropy=zero, latents=Bound(zero, zero, zero))]
    assert bound_metrics(model("bernoulli"), parts, pixel_dims=DIMS, latent_dims=DIMS)["vae_bits_per_dim"] == pytest.approx(1)
    assert bound_metrics(model(), parts, pixel_dims=DIMS, latent_dims=DIMS)["vae_bits_per_dim"] == pytest.approx(1 + math.log2(127.5))


@pytest.mark.parametrize(("likelihood", "scale"), [("gaussian", 0.1), ("bernoulli", None)])
def test_the_likelihood_lies_beside_the_weights_as_train_vae_writes_it(tmp_path, likelihood, scale) -> None:
    write_json(tmp_path / "likelihood.json", DecoderLikelihood(likelihood, scale, learned=False).to_json())
    assert PixelLikelihood.load(tmp_path) == PixelLikelihood(likelihood, scale)


def test_a_vae_without_a_likelihood_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"has no likelihood\.json: it is not the folder of a VAE that train_vae wrote"):
        PixelLikelihood.load(tmp_path)
