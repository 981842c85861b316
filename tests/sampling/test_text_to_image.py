"""What `TextToImage` promises, with a small random model: seeds, sizes, options, images to begin with, inversion, interpolation."""

import json
import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from darkroom.diffusion.denoiser import Denoise
from darkroom.diffusion.samplers import SAMPLERS, NoiseAt, Step
from darkroom.diffusion.schedule import SPACINGS
from darkroom.models.clip import ClipTowers
from darkroom.pixels import to_float, to_uint8
from darkroom.sampling.conditions import SeededNoise
from darkroom.sampling.text_to_image import TextToImage
from tests.interchange.own_model import write_model

STRIDE, SIDE = 2, 16  # px
PROMPTS = ["a black cat", "a dog", "", "a black cat", "two cats"]
SEEDS = [3, 17, 17, 1, 2]
FAST: dict[str, Any] = {"steps": 4, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextToImage:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return TextToImage.load(folder, torch.device("cpu"))


def photo(*shape: int) -> np.ndarray:
    """Coarse enough for the latents of a model of stride 2."""
    height, width = shape[-2:]
    pixels = np.random.default_rng(0).integers(0, 256, (*shape[:-2], -(-height // 4), -(-width // 4), 3), dtype=np.uint8)
    return pixels.repeat(4, axis=-3).repeat(4, axis=-2)[..., :height, :width, :]


def reconstruction(model: TextToImage, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return to_uint8(model.vae.reconstruct(to_float(images.reshape(-1, *images.shape[-3:]))))


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    """The same pictures but for kernels that add up in another order."""
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other).max() <= 1


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other).max() > 5)


# ---- seeds and noise


@pytest.mark.parametrize("sampler", [pytest.param(name, marks=[pytest.mark.slow] if name == "ode_adaptive" else []) for name in SAMPLERS])
def test_the_picture_of_a_seed_is_the_same_alone_in_a_batch_of_five_and_in_twos(model: TextToImage, sampler: str) -> None:
    settings = FAST | {"sampler": sampler, "steps": 3}
    together = model.sample(PROMPTS, seeds=SEEDS, **settings)
    assert together.shape == (5, SIDE, SIDE, 3)
    assert together.dtype == np.uint8
    assert_same(together, model.sample(PROMPTS, seeds=SEEDS, batch_size=2, **settings))
    assert_same(together[1:2], model.sample(PROMPTS[1:2], seeds=[17], **settings))
    assert differ(together[0], together[3]), "one prompt, two seeds"
    assert differ(together[1], together[2]), "one seed, two prompts"


def test_the_noise_of_a_seed_does_not_depend_on_its_neighbours_or_on_the_order_of_asking() -> None:
    together, alone = (SeededNoise(seeds, (4, 2, 2), torch.device("cpu")) for seeds in ([5, 17], [17]))
    for index in range(3):
        torch.testing.assert_close(together(index)[1:], alone(index), rtol=0, atol=0)


def spy(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Tensor, Tensor]]:
    """Replaces a sampler; what each batch began with, and the first noise that it was given beside, are returned."""
    seen: list[tuple[Tensor, Tensor]] = []

    def sampler(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise_at: NoiseAt) -> Iterator[Step]:
        seen.append((x / sigmas[0], noise_at(0)))
        yield Step(0, 0.0, x, x)

    monkeypatch.setitem(SAMPLERS, name, sampler)
    return seen


@pytest.mark.parametrize("given", [False, True])
def test_the_noise_of_the_steps_is_another_draw_of_the_seed_than_that_of_the_beginning(
    model: TextToImage, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = SeededNoise([17], model.latent_shape, torch.device("cpu"))
    first, second = draws(0), draws(1)
    seen = spy(monkeypatch, "ddpm")
    model.sample(["a"], seeds=[17], noise=first if given else None, sampler="ddpm", steps=1)
    torch.testing.assert_close(seen[0][0], first)
    torch.testing.assert_close(seen[0][1], second, rtol=0, atol=0)


@pytest.mark.parametrize(("sampler", "sizes"), [("ddim", [2, 1]), ("ode_adaptive", [1, 1, 1])])
def test_a_sampler_whose_work_grows_with_the_square_of_the_batch_gets_one_picture_at_a_time(
    model: TextToImage, sampler: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spy(monkeypatch, sampler)
    model.sample(PROMPTS[:3], seeds=SEEDS[:3], sampler=sampler, batch_size=2, steps=1)
    assert [len(begin) for begin, _ in seen] == sizes


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_noise_takes_the_place_of_the_first_draw_of_the_seeds(model: TextToImage, sampler: str) -> None:
    begin = SeededNoise([17, 4], model.latent_shape, torch.device("cpu"))()
    settings = FAST | {"sampler": sampler}
    given = model.sample(PROMPTS[:2], seeds=[17, 4], noise=begin, **settings)
    np.testing.assert_array_equal(given, model.sample(PROMPTS[:2], seeds=[17, 4], **settings))
    assert differ(given, model.sample(PROMPTS[:2], seeds=[17, 4], noise=begin.flip(0), **settings))


def test_noise_needs_no_seeds_but_for_samplers_that_draw_more(model: TextToImage) -> None:
    begin = SeededNoise([17], model.latent_shape, torch.device("cpu"))()
    given = model.sample(["a cat"], noise=begin, sampler="heun", **FAST)
    np.testing.assert_array_equal(given, model.sample(["a cat"], seeds=[17], sampler="heun", **FAST))
    with pytest.raises(ValueError, match=r"draws fresh noise in its steps: use ddim.* give seeds too"):
        model.sample(["a cat"], noise=begin, sampler="ddpm", **FAST)
    with pytest.raises(ValueError, match="give seeds, one per prompt, or noise"):
        model.sample(["a cat"])


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**64])
def test_a_seed_beyond_64_bits_is_refused_by_name(model: TextToImage, seed: int) -> None:
    with pytest.raises(ValueError, match=f"The seed {seed} is out of range; must be from {-(2**63)} to {2**64 - 1}"):
        model.sample(["a cat", "a cat"], seeds=[1, seed], **FAST)
    model.sample(["a cat", "a cat"], seeds=[-(2**63), 2**64 - 1], **FAST)


def test_no_prompts_are_no_pictures(model: TextToImage) -> None:
    assert model.sample([], seeds=[]).shape == (0, SIDE, SIDE, 3)


def test_one_text_is_no_list_of_its_letters(model: TextToImage) -> None:
    with pytest.raises(ValueError, match="prompts is the text 'a cat'; must be a list of texts, one per image"):
        model.sample("a cat", seeds=range(5))
    with pytest.raises(ValueError, match="negative_prompts is the text 'x'"):
        model.sample(["a"], seeds=[1], negative_prompts="x")
    with pytest.raises(ValueError, match="prompts is the text 'a'"):
        model.invert(np.zeros((SIDE, SIDE, 3), np.uint8), "a")
    with pytest.raises(ValueError, match="prompts is the text 'ab'"):
        model.interpolate("ab", seeds=[1], num=3)


@pytest.mark.parametrize("name", ["seeds", "noise", "negative_prompts"])
def test_lists_are_as_long_as_that_of_the_prompts(model: TextToImage, name: str) -> None:
    given: dict[str, Any] = {"seeds": [1, 2]} | {name: {"seeds": [1], "noise": torch.zeros(1, 4, 8, 8), "negative_prompts": ["a"]}[name]}
    with pytest.raises(ValueError, match=f"2 prompts but 1 {name}: give one per prompt"):
        model.sample(["a", "b"], **given)


# ---- sizes


@pytest.mark.parametrize("size", [(24, 10), (2, 2), (SIDE, SIDE)])
def test_pictures_of_other_sizes_can_be_drawn(model: TextToImage, size: tuple[int, int]) -> None:
    drawn = model.sample(["a cat"], seeds=[1], size=size, **FAST)
    assert drawn.shape == (1, *size, 3)
    begin = SeededNoise([1], (4, size[0] // STRIDE, size[1] // STRIDE), torch.device("cpu"))()
    np.testing.assert_array_equal(model.sample(["a cat"], noise=begin, **FAST), drawn)


@pytest.mark.parametrize("size", [(17, 16), (16, 17), (0, 16), (-2, 16)])
def test_a_size_that_the_stride_does_not_divide_is_refused(model: TextToImage, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"size is {size[1]} x {size[0]} px; both sides must be multiples of 2 px"):
        model.sample(["a cat"], seeds=[1], size=size)
    with pytest.raises(ValueError, match="size is 17 x 16 px"):
        model.sample(["a cat"], seeds=[1], image=photo(16, 17))


def test_noise_of_another_shape_is_refused(model: TextToImage) -> None:
    wanted = r"1 images of 16 x 16 px need \(1, 4, 8, 8\)"
    with pytest.raises(ValueError, match=rf"noise has the shape \(1, 8, 8\); {wanted}"):
        model.sample(["a cat"], noise=torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=rf"noise has the shape \(1, 3, 8, 8\); {wanted}"):
        model.sample(["a cat"], noise=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=rf"noise has the shape \(1, 4, 4, 4\); {wanted}"):
        model.sample(["a cat"], noise=torch.zeros(1, 4, 4, 4), size=(16, 16))


# ---- prompts and guidance


def test_a_prompt_that_is_too_long_is_cut_with_a_warning_that_names_the_lost_words(
    model: TextToImage, caplog: pytest.LogCaptureFixture
) -> None:
    long = "a black cat and a white dog on a red sofa under the moon"
    with caplog.at_level(logging.WARNING):
        cut = model.sample([long, long], seeds=[1, 1], negative_prompts=["", "no " * 20], **FAST)
    assert [record.getMessage() for record in caplog.records] == [
        f"Prompt `{long}` is too long for the text encoder, which ignores `sofa under the moon`.",
        f"Prompt `{'no ' * 20}` is too long for the text encoder, which ignores `{'no ' * 9}no`.",
    ]
    np.testing.assert_array_equal(cut[:1], model.sample(["a black cat and a white dog on a red"], seeds=[1], **FAST))


def test_what_fits_is_not_warned_about(model: TextToImage, caplog: pytest.LogCaptureFixture) -> None:
    model.sample(["a black cat and a white dog on a red"], seeds=[1], **FAST)
    assert not caplog.records


def test_a_negative_prompt_takes_the_place_of_the_empty_one(model: TextToImage) -> None:
    plain = model.sample(["a cat"], seeds=[1], **FAST)
    np.testing.assert_array_equal(plain, model.sample(["a cat"], seeds=[1], negative_prompts=[""], **FAST))
    assert differ(plain, model.sample(["a cat"], seeds=[1], negative_prompts=["a dog on a sofa"], **FAST | {"guidance_scale": 30.0}))
    alike = model.sample(["a cat"], seeds=[1], negative_prompts=["a cat"], **FAST)  # away from itself: no guidance at all
    assert_same(alike, model.sample(["a cat"], seeds=[1], **FAST | {"guidance_scale": 1.0}))


def test_a_negative_prompt_for_all_is_one_for_each(model: TextToImage) -> None:
    settings = FAST | {"guidance_scale": 30.0}
    for_all = model.sample(PROMPTS[:2], seeds=SEEDS[:2], negative_prompt="a mouse", **settings)
    np.testing.assert_array_equal(for_all, model.sample(PROMPTS[:2], seeds=SEEDS[:2], negative_prompts=["a mouse"] * 2, **settings))


def test_guidance_can_be_kept_to_an_interval_of_timesteps_and_rescaled(model: TextToImage) -> None:
    guided, plain = (model.sample(["a cat"], seeds=[1], **FAST | {"guidance_scale": scale}) for scale in (30.0, 1.0))
    strong = FAST | {"guidance_scale": 30.0}
    np.testing.assert_array_equal(guided, model.sample(["a cat"], seeds=[1], guidance_interval=(0, 999), **strong))
    assert_same(plain, model.sample(["a cat"], seeds=[1], guidance_interval=(0.1, 0.2), **strong))
    assert differ(guided, model.sample(["a cat"], seeds=[1], guidance_rescale=1.0, **strong))
    with pytest.raises(ValueError, match="guidance_rescale is 2; must be at least 0 and at most 1"):
        model.sample(["a cat"], seeds=[1], guidance_rescale=2, **strong)
    with pytest.raises(ValueError, match=r"guidance_interval is \(5, 2\); its first timestep must not exceed its last"):
        model.sample(["a cat"], seeds=[1], guidance_interval=(5, 2), **strong)


def test_clip_guidance_makes_pictures_that_clip_finds_more_like_their_prompts(model: TextToImage) -> None:
    settings = {"steps": 12, "guidance_scale": 1.0, "sampler": "ddim"}

    def similarity(scale: float) -> Tensor:
        images = model.sample(PROMPTS, seeds=SEEDS, clip_guidance_scale=scale, **settings)
        return (model.clip.encode_images(images) * model.clip.encode_texts(PROMPTS)).sum(1)

    without, some, more = (similarity(scale) for scale in (0.0, 20.0, 60.0))
    assert (some > without).all()
    assert more.mean() > some.mean()


def test_clip_guidance_needs_an_image_encoder(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipTowers, "has_image_encoder", False)
    with pytest.raises(ValueError, match="clip_guidance_scale needs a CLIP with an image encoder; this model has a text encoder only"):
        model.sample(["a cat"], seeds=[1], clip_guidance_scale=1.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samplr": "ddim"}, "`samplr` is not an option of `sample`; did you mean `sampler`?"),
        ({"x": 1}, "`x` is not an option of `sample`; its options are steps, sampler, .*show_progress"),
        ({"negative_prompt": "a", "negative_prompts": ["b"]}, "Give negative_prompt, one for all, or negative_prompts, one per prompt"),
        ({"sampler": "eulr"}, "sampler is 'eulr'; must be one of ddpm, ddpm_beta, ddim"),
        ({"sampler": ""}, "sampler is ''"),
        ({"spacing": "even"}, "spacing is 'even'; must be one of trailing"),
        ({"steps": 0}, "steps is 0; must be at least 1"),
        ({"steps": 1001}, "steps is 1001; with spacing trailing"),
        ({"batch_size": 0}, "batch_size is 0; must be at least 1"),
        ({"strength": 1.5, "image": photo(16, 16)}, "strength is 1.5; must be at least 0 and at most 1"),
        ({"strength": 0.5}, "strength needs an image to repaint: give `image` too"),
        ({"mask": np.ones((16, 16), bool)}, "mask needs an image to repaint: give `image` too"),
        ({"image": photo(16, 16), "size": (8, 8)}, "image is 16 x 16 px, but size is 8 x 8 px"),
        ({"image": photo(16, 16), "mask": np.ones((8, 16), bool)}, "mask is 16 x 8 px, but image is 16 x 16 px"),
        ({"image": photo(16, 16), "mask": np.ones((16, 16), np.uint8)}, r"mask is uint8 of shape \(16, 16\); must be bool"),
        (
            {"image": photo(16, 16), "mask": np.ones((2, 16, 16), bool)},
            r"mask is bool of shape \(2, 16, 16\); .* or \(1, H, W\), one per pr",
        ),
        ({"image": photo(3, 16, 16)}, r"image is uint8 of shape \(3, 16, 16, 3\); must be uint8 of shape \(H, W, 3\), one for all"),
        ({"image": photo(16, 16)[..., 0]}, r"image is uint8 of shape \(16, 16\)"),
        ({"image": photo(16, 16).repeat(2, -1)[..., :4]}, r"image is uint8 of shape \(16, 16, 4\)"),
        ({"image": photo(16, 16) / 255.0}, r"image is float64"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(model: TextToImage, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.sample(["a cat"], seeds=[0], **wrong)


def test_every_spacing_draws_and_the_default_is_that_of_the_model(model: TextToImage) -> None:
    drawn = {spacing: model.sample(["a cat"], seeds=[1], spacing=spacing, **FAST) for spacing in SPACINGS}
    np.testing.assert_array_equal(drawn["trailing"], model.sample(["a cat"], seeds=[1], **FAST))
    assert len({image.tobytes() for image in drawn.values()}) == len(SPACINGS)


# ---- pictures to begin with


def test_strength_0_is_the_reconstruction_and_strength_1_a_picture_of_text_alone(model: TextToImage) -> None:
    images = photo(2, SIDE, SIDE)
    np.testing.assert_array_equal(
        model.sample(PROMPTS[:2], seeds=SEEDS[:2], image=images, strength=0, **FAST), reconstruction(model, images)
    )
    anew = model.sample(PROMPTS[:2], seeds=SEEDS[:2], image=images, strength=1, **FAST)
    np.testing.assert_array_equal(anew, model.sample(PROMPTS[:2], seeds=SEEDS[:2], **FAST))


def test_less_strength_keeps_more_of_the_picture(model: TextToImage) -> None:
    image = photo(SIDE, SIDE)
    kept = reconstruction(model, image).astype(float)
    settings = {"steps": 20, "guidance_scale": 1.0}

    def distance(strength: float) -> float:
        return float(np.abs(model.sample(["a"], seeds=[0], image=image, strength=strength, **settings) - kept).mean())

    assert distance(0.1) < distance(0.5) < distance(1)
    default = model.sample(["a"], seeds=[0], image=image, **settings)
    np.testing.assert_array_equal(default, model.sample(["a"], seeds=[0], image=image, strength=0.8, **settings))


def test_one_picture_serves_all_prompts(model: TextToImage) -> None:
    image = photo(8, 24)
    one = model.sample(PROMPTS[:2], seeds=SEEDS[:2], image=image, strength=0.5, **FAST)
    assert one.shape == (2, 8, 24, 3)
    np.testing.assert_array_equal(one, model.sample(PROMPTS[:2], seeds=SEEDS[:2], image=np.stack([image] * 2), strength=0.5, **FAST))


def half(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """The lower half is drawn anew."""
    return np.arange(height)[:, None].repeat(width, 1) >= height // 2


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddpm", "euler_maruyama"])
def test_a_mask_leaves_the_latents_outside_exactly_as_they_were(
    model: TextToImage, sampler: str, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, decoded = photo(SIDE, SIDE), []
    decode = model.vae.decode
    monkeypatch.setattr(model.vae, "decode", lambda raw: decoded.append(raw) or decode(raw))
    model.sample(["a cat"], seeds=[1], image=image, mask=half(), strength=strength, sampler=sampler, **FAST)
    with torch.no_grad():
        known = model.vae.denormalise(model.vae.normalise(model.vae.encode(to_float(image[None]))[0]))
    found = decoded[-1]
    assert torch.equal(found[..., :4, :], known[..., :4, :])
    assert (found[..., 4:, :] - known[..., 4:, :]).abs().min() > 0


def test_beyond_a_margin_of_one_stride_the_pixels_outside_of_a_mask_are_the_reconstruction(model: TextToImage) -> None:
    image = photo(SIDE, SIDE)
    drawn = model.sample(["a cat"], seeds=[1], image=image, mask=half(), **FAST)
    kept = reconstruction(model, image)
    np.testing.assert_array_equal(drawn[:, : 8 - STRIDE], kept[:, : 8 - STRIDE])
    assert differ(drawn[:, 8:], kept[:, 8:])


def test_a_latent_pixel_is_drawn_anew_if_one_of_its_pixels_is(model: TextToImage) -> None:
    image, mask, cell = photo(SIDE, SIDE), np.zeros((SIDE, SIDE), bool), np.zeros((SIDE, SIDE), bool)
    mask[7, 4], cell[6:8, 4:6] = True, True
    one, all_four = (model.sample(["a cat"], seeds=[1], image=image, mask=area, **FAST) for area in (mask, cell))
    np.testing.assert_array_equal(one, all_four)
    assert differ(one, reconstruction(model, image))


def test_a_mask_of_everything_is_a_picture_of_text_alone_and_of_nothing_the_reconstruction(model: TextToImage) -> None:
    image, everything = photo(SIDE, SIDE), np.ones((SIDE, SIDE), bool)
    anew = model.sample(["a cat"], seeds=[1], image=image, mask=everything, **FAST)
    np.testing.assert_array_equal(anew, model.sample(["a cat"], seeds=[1], **FAST))
    nothing = model.sample(["a cat"], seeds=[1], image=image, mask=~everything, **FAST)
    np.testing.assert_array_equal(nothing, reconstruction(model, image))


def test_each_prompt_may_have_its_own_mask(model: TextToImage) -> None:
    images, masks = photo(2, SIDE, SIDE), np.stack([half(), ~half()])
    both = model.sample(PROMPTS[:2], seeds=SEEDS[:2], image=images, mask=masks, **FAST)
    for row in range(2):
        alone = model.sample(PROMPTS[row : row + 1], seeds=SEEDS[row : row + 1], image=images[row], mask=masks[row], **FAST)
        assert_same(both[row : row + 1], alone)


# ---- inversion


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_photo_inverted_and_drawn_under_the_same_prompt_comes_back(model: TextToImage, strength: float) -> None:
    images, settings = photo(3, SIDE, SIDE), {"steps": 10, "guidance_scale": 1.0, "spacing": "leading"}
    noise = model.invert(images, PROMPTS[:3], strength=strength, iterations=20, batch_size=2, **settings)
    assert noise.shape == (3, *model.latent_shape)
    given = {} if strength == 1 else {"image": images, "strength": strength}
    back = model.sample(PROMPTS[:3], noise=noise, sampler="ddim", **settings, **given)
    assert_same(back, reconstruction(model, images))
    assert differ(back, model.sample(PROMPTS[:3], seeds=[0, 0, 0], sampler="ddim", **settings, **given))


def test_more_iterations_come_back_closer(model: TextToImage) -> None:
    image, settings = photo(SIDE, SIDE), {"steps": 10, "guidance_scale": 1.0}
    kept = reconstruction(model, image).astype(float)

    def error(iterations: int) -> float:
        noise = model.invert(image, ["a cat"], iterations=iterations, **settings)
        return float(np.abs(model.sample(["a cat"], noise=noise, sampler="ddim", **settings) - kept).mean())

    assert error(4) < 0.5 * error(1)


def test_an_inversion_of_strength_0_or_of_a_wrong_image_is_refused(model: TextToImage) -> None:
    with pytest.raises(ValueError, match=r"strength is 0; must be above 0 and at most 1"):
        model.invert(photo(SIDE, SIDE), ["a"], strength=0)
    with pytest.raises(ValueError, match=r"one for all prompts, or \(2, H, W, 3\), one per prompt"):
        model.invert(photo(3, SIDE, SIDE), ["a", "b"])
    assert model.invert(photo(SIDE, SIDE), []).shape == (0, *model.latent_shape)


def test_an_inversion_warns_of_lost_words(model: TextToImage, caplog: pytest.LogCaptureFixture) -> None:
    model.invert(photo(SIDE, SIDE), ["cat " * 12], steps=2)
    assert "which ignores `cat cat`" in caplog.text


# ---- edits


def test_an_edit_is_the_inversion_drawn_under_other_prompts_away_from_its_own(model: TextToImage) -> None:
    image, edits = photo(SIDE, SIDE), ["a dog", "two cats"]
    drawn = model.edit(image, "a cat", edits, iterations=2, steps=6, spacing="karras", guidance_scale=3.0, guidance_rescale=0.5)
    noise = model.invert(image, ["a cat"], iterations=2, steps=6, spacing="karras").expand(2, -1, -1, -1)
    asked: dict[str, Any] = {"steps": 6, "spacing": "karras", "guidance_scale": 3.0, "guidance_rescale": 0.5, "sampler": "ddim"}
    np.testing.assert_array_equal(drawn, model.sample(edits, noise=noise, negative_prompts=["a cat"] * 2, **asked))
    part = model.edit(image, "a cat", edits, iterations=2, steps=6, strength=0.5, guidance_scale=3.0)
    kept = reconstruction(model, image).astype(float)
    assert np.abs(part - kept).mean() < np.abs(drawn - kept).mean()


def test_an_edit_takes_a_list_of_prompts_and_its_own_options(model: TextToImage) -> None:
    with pytest.raises(ValueError, match="edits is the text 'a dog'; must be a list of texts"):
        model.edit(photo(SIDE, SIDE), "a cat", "a dog")
    with pytest.raises(ValueError, match="`negative_prompt` is not an option of `edit`"):
        model.edit(photo(SIDE, SIDE), "a cat", ["a dog"], negative_prompt="x")
    with pytest.raises(ValueError, match="`sampler` is not an option of `edit`"):
        model.edit(photo(SIDE, SIDE), "a cat", ["a dog"], sampler="heun")


# ---- interpolation


def test_a_way_stops_at_the_pictures_of_its_prompts_and_seeds(model: TextToImage) -> None:
    prompts, seeds = ["a black cat", "a dog", "two cats"], [3, 17, 5]
    way = model.interpolate(prompts, seeds=seeds, num=9, batch_size=4, **FAST)
    assert way.shape == (9, SIDE, SIDE, 3)
    assert_same(way[::4], model.sample(prompts, seeds=seeds, **FAST))
    steps = [np.abs(left.astype(float) - right).mean() for left, right in pairwise(way)]
    assert all(step < np.abs(way[0].astype(float) - way[4]).mean() for step in steps[:4])


@pytest.mark.parametrize(("prompts", "seeds"), [(["a cat"], [1, 2]), (["a black cat", "a dog on a sofa"], [1])])
def test_one_prompt_or_one_seed_may_serve_the_whole_way(model: TextToImage, prompts: list[str], seeds: list[int]) -> None:
    way = model.interpolate(prompts, seeds=seeds, num=3, size=(8, 24), negative_prompt="a mouse", **FAST)
    ends = model.sample([prompts[0], prompts[-1]], seeds=[seeds[0], seeds[-1]], size=(8, 24), negative_prompts=["a mouse"] * 2, **FAST)
    assert_same(way[[0, 2]], ends)


@pytest.mark.parametrize(
    ("prompts", "seeds", "num", "message"),
    [
        (["a"], [1], 3, "1 prompts and 1 seeds: give two or more of one kind, and one or the same number of the other"),
        (["a", "b"], [1, 2, 3], 3, "2 prompts and 3 seeds"),
        ([], [1, 2], 3, "0 prompts and 2 seeds"),
        (["a"], [1, 2], 1, "num is 1; must be at least 2"),
    ],
)
def test_a_way_without_ends_is_refused(model: TextToImage, prompts: list[str], seeds: list[int], num: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.interpolate(prompts, seeds=seeds, num=num)


def test_a_way_of_fresh_noise_in_each_step_is_refused(model: TextToImage) -> None:
    with pytest.raises(ValueError, match="This sampler draws fresh noise in its steps"):
        model.interpolate(["a"], seeds=[1, 2], num=2, sampler="ddpm", steps=2)


# ---- a U-Net that knows one caption


def test_every_prompt_is_drawn_as_the_only_caption_without_guidance(model: TextToImage) -> None:
    parts: dict[str, Any] = {"vae": model.vae, "unet": model.unet, "clip": model.clip, "latent_shape": model.latent_shape}
    narrow = TextToImage(**parts, config=model.config.model_copy(update={"only_caption": "a dog"}))
    expected = model.sample(["a dog"] * len(PROMPTS), seeds=SEEDS, **FAST | {"guidance_scale": 1.0})
    assert differ(model.sample(PROMPTS, seeds=SEEDS, **FAST | {"guidance_scale": 1.0}), expected)
    assert_same(narrow.sample(PROMPTS, seeds=SEEDS, negative_prompt="a bird", **FAST), expected)
    first, middle, last = narrow.interpolate(["a black cat", "two cats"], seeds=[3], num=3, sampler="ddim", **FAST)
    assert_same(first, last)
    assert_same(first, middle)


# ---- files


def test_progress_is_told_step_by_step(model: TextToImage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("darkroom.progress.SECONDS_BETWEEN_LINES", 0.0)
    model.sample(PROMPTS, seeds=SEEDS, batch_size=2, show_progress=True, **FAST)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('::progress {"desc": "draw", "step": 1, "total": 12')
    assert any(line.startswith('::progress {"desc": "draw", "step": 12, "total": 12') for line in lines)


def test_a_model_without_its_diffusion_settings_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "unet" / "diffusion.json").unlink()
    with pytest.raises(ValueError, match=r"unet/diffusion\.json is missing: .*unet is not the folder of a U-Net that train_unet or"):
        TextToImage.load(tmp_path)


def test_diffusion_settings_without_a_value_are_refused_not_filled_in(tmp_path: Path) -> None:
    write_model(tmp_path)
    path = tmp_path / "unet" / "diffusion.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "spacing"}))
    assert TextToImage.load(tmp_path).config.spacing == "trailing"  # of models from before there was a choice
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "steps"}))
    with pytest.raises(ValueError, match=r"unet/diffusion\.json: `steps` is missing"):
        TextToImage.load(tmp_path)
