"""`darkroom sample`, `edit` and `interpolate`, with a stand-in for the model that draws plain colours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec

import numpy as np
import pytest
from PIL import ExifTags, Image

from darkroom import open_model
from darkroom.cli import main
from darkroom.diffusion.samplers import SAMPLERS
from darkroom.sampling.request import OPTIONS, Act, Request, choices
from darkroom.sampling.text_to_image import TextToImage
from tests.cli.test_main import fails

SIDE = 8
DEFAULTS: dict[str, Any] = {"steps": 2, "sampler": "ddim", "spacing": "trailing", "guidance_scale": 2.0}


def plain(act: Act) -> dict[str, Any]:
    """What a command hands over when no option is given: None, which leaves it to the model."""
    return {name: None for name, option in OPTIONS.items() if option.command and act not in option.not_for} | {"show_progress": True}


def sample(
    prompts: Sequence[str], *, seeds: Sequence[int], image: np.ndarray | None, mask: np.ndarray | None, **options: Any
) -> np.ndarray:
    """Images in the colour (length of the prompt, seed, length of the negative prompt)."""
    request = Request.make("sample", DEFAULTS, options)
    negative = len(request.negative_prompt)
    colours = [(len(prompt), seed, negative) for prompt, seed in zip(prompts, seeds, strict=True)]
    return np.stack([np.full((*(request.size or (SIDE, SIDE)), 3), colour, np.uint8) for colour in colours])


def edit(image: np.ndarray, prompt: str, edits: Sequence[str], *, iterations: int, **options: Any) -> np.ndarray:
    Request.make("edit", DEFAULTS, options)
    return np.stack([np.full(image.shape, (len(text), 9, len(prompt)), np.uint8) for text in edits])


def interpolate(prompts: Sequence[str], *, seeds: Sequence[int], num: int, **options: Any) -> np.ndarray:
    Request.make("interpolate", DEFAULTS, options)
    return np.stack([np.full((SIDE, SIDE, 3), index, np.uint8) for index in range(num)])


@pytest.fixture
def model() -> Mock:
    model: Mock = create_autospec(TextToImage, instance=True)
    model.size = (SIDE, SIDE)
    for function in (sample, edit, interpolate):
        getattr(model, function.__name__).side_effect = function
    return model


@pytest.fixture(autouse=True)
def opened(model: Mock, monkeypatch: pytest.MonkeyPatch) -> Mock:
    fake: Mock = create_autospec(open_model.open_model, return_value=model)
    monkeypatch.setattr(open_model, "open_model", fake)
    return fake


def colours(path: Path) -> list[tuple[int, ...]]:
    """Those of the picture file that the fake has drawn, row by row, without the lines of a grid."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    found = dict.fromkeys(tuple(int(value) for value in pixel) for pixel in pixels)
    return [colour for colour in found if colour[0] < 200]


def test_sample_draws_one_image(tmp_path: Path, model: Mock, opened: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "cat.png"
    main(["sample", "--model", "models:/cats@champion", "--prompt", "a cat", "--seed", "7", "--out", str(out)])
    opened.assert_called_once_with("models:/cats@champion")
    assert Image.open(out).size == (SIDE, SIDE)
    assert colours(out) == [(5, 7, 0)]
    assert f"{out}: 1 image(s) of 8 x 8 px." in capsys.readouterr().out
    asked = plain("sample") | {"seeds": [7], "image": None, "mask": None, "size": (SIDE, SIDE)}
    model.sample.assert_called_once_with(["a cat"], **asked)


def test_sample_draws_a_row_per_prompt_and_a_column_per_seed(tmp_path: Path, opened: Mock) -> None:
    out = tmp_path / "cats.png"
    main(["sample", "--prompt", "a", "--prompt", "bb", "--seed", "1", "--seed", "2", "--seed", "3", "--out", str(out)])
    assert colours(out) == [(1, 1, 0), (1, 2, 0), (1, 3, 0), (2, 1, 0), (2, 2, 0), (2, 3, 0)]
    width, height = Image.open(out).size
    assert (width >= 3 * SIDE, height >= 2 * SIDE, width > height) == (True, True, True)
    opened.assert_called_once_with("data")


def test_sample_hands_its_options_to_the_model(tmp_path: Path, model: Mock) -> None:
    options = ["--steps", "9", "--sampler", "heun", "--guidance-scale", "2.5", "--negative-prompt", "dog", "--spacing", "karras"]
    options += ["--guidance-rescale", "0.7", "--guidance-interval", "100", "900", "--clip-guidance-scale", "10", "--size", "24x16"]
    main(["sample", "--prompt", "a", "--prompt", "b", "--out", str(tmp_path / "a.png"), *options])
    asked = {"steps": 9, "sampler": "heun", "guidance_scale": 2.5, "spacing": "karras", "guidance_rescale": 0.7}
    asked |= {"guidance_interval": (100.0, 900.0), "clip_guidance_scale": 10.0, "size": (16, 24)}
    asked |= {"seeds": [0, 0], "image": None, "mask": None, "negative_prompt": "dog", "strength": None, "show_progress": True}
    model.sample.assert_called_once_with(["a", "b"], **asked)
    assert colours(tmp_path / "a.png") == [(1, 0, 3)]


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")])
def test_sample_writes_the_format_of_the_suffix(tmp_path: Path, suffix: str, kind: str) -> None:
    main(["sample", "--prompt", "a", "--out", str(tmp_path / f"a{suffix}")])
    assert Image.open(tmp_path / f"a{suffix}").format == kind
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_sample_replaces_a_file_only_when_told_to(tmp_path: Path, opened: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cat.png"
    out.write_bytes(b"precious")
    assert "already exists. Give another file, or --force" in fails(capsys, "sample", "--prompt", "a", "--out", str(out))
    assert out.read_bytes() == b"precious"
    opened.assert_not_called()
    main(["sample", "--prompt", "a", "--out", str(out), "--force"])
    assert Image.open(out).format == "PNG"


def test_sample_refuses_an_unknown_suffix_before_it_loads_the_model(
    tmp_path: Path, opened: Mock, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    assert "cat.gif must end in one of .jpeg, .jpg, .png, .webp." in fails(capsys, "sample", "--prompt", "a", "--out", "cat.gif")
    assert "is a folder; must be a file" in fails(capsys, "sample", "--prompt", "a", "--out", str(tmp_path / "folder.png"), "--force")
    opened.assert_not_called()


def test_sample_needs_a_prompt_and_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--prompt" in fails(capsys, "sample", "--out", "a.png")
    assert "--out" in fails(capsys, "sample", "--prompt", "a")


def test_sample_explains_what_a_model_is_when_it_is_missing(tmp_path: Path, opened: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    opened.side_effect = lambda source: TextToImage.load(Path(source))
    message = fails(capsys, "sample", "--model", str(tmp_path), "--prompt", "a", "--out", str(tmp_path / "a.png"))
    assert message.startswith("darkroom sample: ")
    assert "clip/, vae/ and unet/" in message
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("command", ["sample", "edit", "interpolate"])
def test_the_help_has_the_options_of_the_request_their_choices_and_defaults(command: Act, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, option in OPTIONS.items():
        shown = option.command and command not in option.not_for
        assert (f" --{name.replace('_', '-')} " in text) is shown
        if shown:
            names = f": {', '.join(choices(name))}" if choices(name) else ""
            assert f"{option.help}{names} [default: {option.default}]" in text


def test_the_choices_are_those_that_are_built() -> None:
    assert set(choices("sampler")) == set(SAMPLERS)


def photo(path: Path, width: int = 40, height: int = 20, *, orientation: int = 1) -> Path:
    """Left half black, right half white, as it is seen."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (upright.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else upright).save(path, exif=exif)
    return path


def test_sample_begins_with_the_upright_middle_of_a_photo_and_redraws_what_is_white_in_the_mask(tmp_path: Path, model: Mock) -> None:
    files = ["--image", str(photo(tmp_path / "photo.png", orientation=6)), "--mask", str(photo(tmp_path / "mask.png"))]
    main(["sample", "--prompt", "a", "--out", str(tmp_path / "a.png"), *files, "--strength", "0.5", "--size", "16x8"])
    call = model.sample.call_args.kwargs
    assert (call["image"].dtype, call["image"].shape) == (np.uint8, (8, 16, 3))
    assert (call["image"][:, :6] < 5).all()
    assert (call["image"][:, 10:] > 250).all()
    assert (call["mask"].dtype, call["mask"].shape) == (np.bool_, (8, 16))
    assert not call["mask"][:, :8].any()
    assert call["mask"][:, 8:].all()
    assert call["strength"] == 0.5


def test_without_a_size_a_photo_is_cut_to_that_of_the_model(tmp_path: Path, model: Mock) -> None:
    main(["sample", "--prompt", "a", "--out", str(tmp_path / "a.png"), "--image", str(photo(tmp_path / "photo.png"))])
    assert model.sample.call_args.kwargs["image"].shape == (SIDE, SIDE, 3)
    assert model.sample.call_args.kwargs["mask"] is None


def test_a_mask_of_another_size_or_without_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask, out = photo(tmp_path / "photo.png"), photo(tmp_path / "mask.png", 30, 20), str(tmp_path / "a.png")
    message = fails(capsys, "sample", "--prompt", "a", "--out", out, "--image", str(image), "--mask", str(mask))
    assert "mask.png is 30 x 20 px, but --image" in message
    assert "photo.png is 40 x 20 px: make them one size" in message
    assert "--mask needs an image to repaint: give --image too" in fails(
        capsys, "sample", "--prompt", "a", "--out", out, "--mask", str(mask)
    )


@pytest.mark.parametrize("option", ["--image", "--mask"])
def test_a_missing_image_file_is_named_before_the_model_is_loaded(
    option: str, tmp_path: Path, opened: Mock, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, "sample", "--prompt", "a", "--out", str(tmp_path / "a.png"), option, str(tmp_path / "none.png"))
    assert f"{option} {tmp_path / 'none.png'}: file not found." in message
    opened.assert_not_called()


def test_a_file_that_is_not_an_image_is_named_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.png").write_bytes(b"no picture")
    message = fails(capsys, "sample", "--prompt", "a", "--out", str(tmp_path / "a.png"), "--image", str(tmp_path / "photo.png"))
    assert "photo.png is unreadable: not a picture of a known format" in message


@pytest.mark.parametrize(("text", "size"), [("32", (32, 32)), ("48x32", (32, 48)), ("48X32", (32, 48))])
def test_a_size_is_width_by_height_or_one_side(text: str, size: tuple[int, int], tmp_path: Path, model: Mock) -> None:
    main(["sample", "--prompt", "a", "--out", str(tmp_path / "a.png"), "--size", text])
    assert model.sample.call_args.kwargs["size"] == size


@pytest.mark.parametrize("text", ["big", "32x", "-3", "3.5x2"])
def test_an_invalid_size_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"'{text}' is not a size; write WIDTHxHEIGHT" in fails(capsys, "sample", "--prompt", "a", "--out", "a.png", f"--size={text}")


def test_edit_hands_the_photo_and_its_options_to_the_model(tmp_path: Path, model: Mock) -> None:
    out, image = tmp_path / "edits.png", photo(tmp_path / "photo.png")
    options = ["--strength", "0.75", "--steps", "11", "--spacing", "karras", "--iterations", "2", "--guidance-scale", "3", "--size", "16x8"]
    main(["edit", "--image", str(image), "--prompt", "old", "--to", "new", "--to", "newer", "--out", str(out), *options])
    (shown, prompt, edits), asked = model.edit.call_args
    assert (shown.dtype, shown.shape, prompt, edits) == (np.uint8, (8, 16, 3), "old", ["new", "newer"])
    given = {"iterations": 2, "strength": 0.75, "steps": 11, "spacing": "karras", "guidance_scale": 3.0}
    left = {name: value for name, value in plain("edit").items() if name != "size"}
    assert asked == left | given
    assert colours(out) == [(3, 9, 3), (5, 9, 3)]


def test_edit_needs_a_photo_that_exists(tmp_path: Path, opened: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["edit", "--prompt", "a", "--to", "b", "--out", str(tmp_path / "a.png")]
    assert "--image" in fails(capsys, *arguments)
    assert "file not found" in fails(capsys, *arguments, "--image", str(tmp_path / "none.png"))
    opened.assert_not_called()


def test_interpolate_draws_a_strip(tmp_path: Path, model: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "strip.png"
    options = ["--num", "5", "--negative-prompt", "dog", "--sampler", "ddim", "--size", "16", "--guidance-rescale", "0.5"]
    main(["interpolate", "--prompt", "a", "--seed", "1", "--seed", "2", "--out", str(out), *options])
    asked = plain("interpolate") | {"negative_prompt": "dog", "size": (16, 16), "sampler": "ddim", "guidance_rescale": 0.5}
    model.interpolate.assert_called_once_with(["a"], seeds=[1, 2], num=5, **asked)
    assert colours(out) == [(index, index, index) for index in range(5)]
    width, height = Image.open(out).size
    assert height == SIDE
    assert width > 5 * SIDE
    assert "5 image(s)" in capsys.readouterr().out
