"""Strength, masks, DDIM backwards and arcs between noises, against closed forms of Gaussian data and against scipy."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp
from torch import Tensor

from darkroom.diffusion.editing import ddim_invert, inpaint, levels_of_strength, slerp, start
from darkroom.diffusion.samplers import SAMPLERS
from darkroom.diffusion.samplers.stochastic import ddim
from darkroom.diffusion.schedule import Schedule, noise_levels
from tests.diffusion.gaussian_data import gaussian

SCHEDULE = Schedule.make("cosine", 1000, 1e-4, 0.02)  # its last noise level is far above the others
SPREAD = 0.8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(denoise, x: Tensor, sigmas: Tensor, sampler: str = "ddim") -> Tensor:
    fresh = (noise(*x.shape, seed=seed) for seed in range(1, 1000))
    *_, last = SAMPLERS[sampler](denoise, x, sigmas, noise_at=lambda _: next(fresh))
    return last.x


@pytest.mark.parametrize(
    ("steps", "strength", "taken"), [(10, 0.0, 0), (10, 1.0, 10), (10, 0.55, 5), (10, 0.7, 7), (100, 0.29, 29), (10, 0.01, 1), (1, 0.5, 1)]
)
def test_strength_is_the_share_of_the_steps_and_they_are_the_last_ones(steps: int, strength: float, taken: int) -> None:
    sigmas = noise_levels(SCHEDULE, steps)
    torch.testing.assert_close(levels_of_strength(sigmas, strength), sigmas[steps - taken :], rtol=0, atol=0)


@pytest.mark.parametrize("strength", [-0.1, 1.01, math.nan])
def test_a_strength_that_is_no_share_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=rf"strength is {strength}; it must be between 0 .* and 1"):
        levels_of_strength(noise_levels(SCHEDULE, 10), strength)


def test_a_start_shows_the_known_picture_below_strength_1_and_always_where_it_is_kept() -> None:
    known, begin, sigma = noise(2, 3, 4, 4, seed=1), noise(2, 3, 4, 4), torch.tensor(2.0)
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    mask[..., :2] = 1
    torch.testing.assert_close(start(begin, sigma), 2 * begin)
    torch.testing.assert_close(start(begin, sigma, known, strength=0.9, mask=mask), 2 * begin + known)
    torch.testing.assert_close(start(begin, sigma, known, strength=1), 2 * begin)
    masked = start(begin, sigma, known, strength=1, mask=mask)
    torch.testing.assert_close(masked[..., :2], 2 * begin[..., :2])
    torch.testing.assert_close(masked[..., 2:], (2 * begin + known)[..., 2:])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_ends_in_what_is_known_outside_of_the_mask_and_draws_freely_inside(sampler: str) -> None:
    known, begin, sigmas = 3 * noise(1, 2, 4, 4, seed=1), noise(1, 2, 4, 4), noise_levels(SCHEDULE, 12)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., 1:3, :] = 1
    x = start(begin, sigmas[0], known, mask=mask)
    found = drawn(inpaint(gaussian(SPREAD), known, mask), x, sigmas, sampler)
    torch.testing.assert_close(found * (1 - mask), known * (1 - mask), rtol=0, atol=1e-12)
    free = drawn(gaussian(SPREAD), begin * sigmas[0], sigmas, sampler)  # of a network that looks at one pixel at a time
    rtol, atol = (1e-3, 1e-3) if sampler == "ode_adaptive" else (0, 1e-12)  # its steps depend on the whole picture
    torch.testing.assert_close(found * mask, free * mask, rtol=rtol, atol=atol)


def test_on_the_way_the_kept_part_is_the_known_picture_with_its_noise() -> None:
    known, begin, sigmas = noise(1, 2, 4, 4, seed=1), noise(1, 2, 4, 4), noise_levels(SCHEDULE, 12)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x = start(begin, sigmas[0], known, mask=mask)
    for step, sigma in zip(ddim(inpaint(gaussian(SPREAD), known, mask), x, sigmas), sigmas[1:], strict=True):
        torch.testing.assert_close(step.x, known + sigma * begin)


def test_a_mask_between_0_and_1_mixes() -> None:
    known, x = noise(1, 2, 4, 4, seed=1), noise(1, 2, 4, 4)
    half = inpaint(lambda x, sigma: x, known, torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64))
    torch.testing.assert_close(half(x, torch.tensor(1.0)), (known + x) / 2)


# ---- DDIM backwards


def along_the_ode(known: Tensor, sigma: Tensor) -> Tensor:
    """Where the probability-flow ODE of N(0, SPREAD^2) has come to from `known`."""
    return known * (SPREAD**2 + sigma**2).sqrt() / SPREAD


def inversion_errors(sigmas_of, iterations: int) -> list[float]:
    known = noise(1, 2, 4, 4)
    errors = []
    for steps in (20, 40, 80, 160):
        sigmas = sigmas_of(steps)
        truth = along_the_ode(known, sigmas[0])
        found = ddim_invert(gaussian(SPREAD), known, sigmas, iterations=iterations)
        errors.append(((found - truth).norm() / truth.norm()).item())
    return errors


@pytest.mark.parametrize("iterations", [1, 2, 8])
def test_inversion_comes_to_the_noise_of_the_ode_with_an_error_of_first_order(iterations: int) -> None:
    errors = inversion_errors(lambda steps: levels_of_strength(noise_levels(SCHEDULE, steps), 0.9), iterations)
    assert errors[-1] < 0.03
    assert all(1.7 < coarse / fine < 2.3 for coarse, fine in pairwise(errors))


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["cosine", "scaled_linear", "flow"])
def test_sampling_from_an_inversion_comes_back_the_closer_the_more_steps_and_iterations(kind: str, strength: float) -> None:
    known, schedule = noise(1, 2, 4, 4), Schedule.make(kind, 1000, 0.00085, 0.012)

    def error(steps: int, iterations: int) -> float:
        sigmas = levels_of_strength(noise_levels(schedule, steps), strength)
        back = drawn(gaussian(SPREAD), ddim_invert(gaussian(SPREAD), known, sigmas, iterations=iterations), sigmas)
        return (back - known).abs().max().item()

    assert error(40, 1) < 0.6 * error(20, 1) < 0.3
    assert error(20, 3) < 0.3 * error(20, 1)
    assert error(20, 60) < 1e-9  # the exact inverse, also of a first step from sigma 1000


def test_an_inversion_without_iterations_is_refused() -> None:
    with pytest.raises(ValueError, match="iterations is 0; it must be at least 1"):
        ddim_invert(gaussian(SPREAD), noise(1, 1, 2, 2), noise_levels(SCHEDULE, 4), iterations=0)


# ---- between two noises


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_the_arc_is_that_of_scipy(weight: float) -> None:
    first, last = noise(3, 2, 4, 4), noise(3, 2, 4, 4, seed=1)
    found = slerp(first, last, weight)
    for row in range(3):
        begin, end = (side[row].flatten().numpy() for side in (first, last))
        lengths = np.linalg.norm(begin), np.linalg.norm(end)
        direction = geometric_slerp(begin / lengths[0], end / lengths[1], weight)
        truth = direction * ((1 - weight) * lengths[0] + weight * lengths[1])
        np.testing.assert_allclose(found[row].flatten().numpy(), truth, atol=1e-12)


def test_noise_stays_as_long_as_noise_where_the_mean_of_two_noises_is_too_short() -> None:
    first, last = noise(4, 4, 32, 32), noise(4, 4, 32, 32, seed=1)
    assert slerp(first, last, 0.5).std().item() == pytest.approx(1, abs=0.02)
    assert ((first + last) / 2).std().item() == pytest.approx(2**-0.5, abs=0.02)


def test_equal_and_opposite_directions_have_finite_pictures_in_between() -> None:
    first = noise(1, 2, 4, 4)
    torch.testing.assert_close(slerp(first, first, 0.3), first)
    torch.testing.assert_close(slerp(first, 3 * first, 0.5), 2 * first)
    assert slerp(first, -first, 0.3).isfinite().all()
    assert slerp(first.float(), first.float(), 0.5).dtype == torch.float32
