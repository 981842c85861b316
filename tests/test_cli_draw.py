"""`darkroom sample`, `edit` and `interpolate`, with a model that draws plain colours and remembers what it was asked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from darkroom.cli import main
from darkroom.diffusion.grids import SPACINGS
from darkroom.diffusion.samplers import SAMPLERS
from darkroom.sampling.text_to_image import TextToImage
from tests.test_cli import fails

SIDE = 8
PLAIN: dict[str, Any] = {  # what `sample` asks for when no option is given, beside prompts and seeds
    "negative_prompts": None,
    "size": (SIDE, SIDE),
    "image": None,
    "mask": None,
    "strength": None,
    "steps": None,
    "sampler": None,
    "spacing": None,
    "guidance_scale": None,
    "guidance_rescale": 0.0,
    "guidance_interval": None,
    "clip_guidance_scale": 0.0,
    "show_progress": True,
}


class FakeModel:
    """Draws every picture in the colour (length of the prompt, seed, length of the negative prompt)."""

    size = (SIDE, SIDE)

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.calls: list[dict[str, Any]] = []

    def load(self, source: str) -> "FakeModel":
        self.loaded.append(source)
        return self

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        negative_prompts: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        **settings: object,
    ) -> np.ndarray:
        self.calls.append({"prompts": prompts, "negative_prompts": negative_prompts, "size": size} | settings)
        negatives = negative_prompts or [""] * len(prompts)
        colours = [
            (len(prompt), seed, len(negative))
            for prompt, seed, negative in zip(prompts, seeds or [9] * len(prompts), negatives, strict=True)
        ]
        return np.stack([np.full((*(size or self.size), 3), colour, np.uint8) for colour in colours])

    def invert(self, image: np.ndarray, prompts: Sequence[str], **settings: object) -> torch.Tensor:
        self.calls.append({"image": image, "prompts": prompts} | settings)
        return torch.full((1, 4, 2, 2), 0.5)

    def interpolate(self, prompts: Sequence[str], *, num: int, **settings: object) -> np.ndarray:
        self.calls.append({"prompts": prompts, "num": num} | settings)
        return np.stack([np.full((SIDE, SIDE, 3), index, np.uint8) for index in range(num)])


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(TextToImage, "load", fake.load)
    return fake


def colours(path: Path) -> list[tuple[int, ...]]:
    """Those of the picture file that the fake has drawn, row by row, without the lines of a grid."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    found = dict.fromkeys(tuple(int(value) for value in pixel) for pixel in pixels)
    return [colour for colour in found if colour[0] < 200]


def test_sample_draws_one_picture(tmp_path: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "cat.png"
    main(["sample", "--model", "models:/cats@champion", "--prompt", "a cat", "--seed", "7", "--out", str(out)])
    assert model.loaded == ["models:/cats@champion"]
    assert Image.open(out).size == (SIDE, SIDE)
    assert colours(out) == [(5, 7, 0)]
    assert f"{out}: 1 picture(s) of 8 x 8 px." in capsys.readouterr().out
    assert model.calls == [PLAIN | {"prompts": ["a cat"]}]


def test_sample_draws_a_row_a_prompt_and_a_column_a_seed(tmp_path: Path, model: FakeModel) -> None:
    out = tmp_path / "cats.png"
    main(["sample", "--prompt", "a", "--prompt", "bb", "--seed", "1", "--seed", "2", "--seed", "3", "--out", str(out)])
    assert colours(out) == [(1, 1, 0), (1, 2, 0), (1, 3, 0), (2, 1, 0), (2, 2, 0), (2, 3, 0)]
    width, height = Image.open(out).size
    assert (width >= 3 * SIDE, height >= 2 * SIDE, width > height) == (True, True, True)
    assert model.loaded == ["data"]


def test_sample_hands_its_options_to_the_model(tmp_path: Path, model: FakeModel) -> None:
    options = ["--steps", "9", "--sampler", "heun", "--guidance-scale", "2.5", "--negative-prompt", "dog", "--spacing", "karras"]
    options += ["--guidance-rescale", "0.7", "--guidance-interval", "100", "900", "--clip-guidance-scale", "10", "--size", "24x16"]
    main(["sample", "--prompt", "a", "--prompt", "b", "--out", str(tmp_path / "a.png"), *options])
    asked = {"steps": 9, "sampler": "heun", "guidance_scale": 2.5, "spacing": "karras", "guidance_rescale": 0.7}
    asked |= {"guidance_interval": (100.0, 900.0), "clip_guidance_scale": 10.0, "size": (16, 24)}
    assert model.calls == [PLAIN | asked | {"prompts": ["a", "b"], "negative_prompts": ["dog", "dog"]}]
    assert colours(tmp_path / "a.png") == [(1, 0, 3)]


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")])
def test_sample_writes_what_the_name_says(tmp_path: Path, model: FakeModel, suffix: str, kind: str) -> None:
    main(["sample", "--prompt", "a", "--out", str(tmp_path / f"a{suffix}")])
    assert Image.open(tmp_path / f"a{suffix}").format == kind
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_sample_replaces_a_file_only_when_told_to(tmp_path: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cat.png"
    out.write_bytes(b"precious")
    assert "is already there. Name another file, or give --force" in fails(capsys, "sample", "--prompt", "a", "--out", str(out))
    assert out.read_bytes() == b"precious"
    assert not model.loaded
    main(["sample", "--prompt", "a", "--out", str(out), "--force"])
    assert Image.open(out).format == "PNG"


def test_sample_refuses_a_file_that_is_no_picture_before_it_loads_the_model(
    tmp_path: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    assert "cat.gif should end in one of .jpeg, .jpg, .png, .webp." in fails(capsys, "sample", "--prompt", "a", "--out", "cat.gif")
    assert "is a folder; name a file" in fails(capsys, "sample", "--prompt", "a", "--out", str(tmp_path / "folder.png"), "--force")
    assert not model.loaded


def test_sample_needs_a_prompt_and_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--prompt" in fails(capsys, "sample", "--out", "a.png")
    assert "--out" in fails(capsys, "sample", "--prompt", "a")


def test_sample_says_what_a_model_is_when_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "sample", "--model", str(tmp_path), "--prompt", "a", "--out", str(tmp_path / "a.png"))
    assert message.startswith("darkroom sample: ")
    assert "clip/, vae/ and unet/" in message
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("command", ["sample", "edit", "interpolate"])
def test_the_help_names_the_samplers_and_spacings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    words = set(capsys.readouterr().out.replace(",", " ").replace(")", " ").split())
    assert set(SPACINGS) <= words
    if command == "sample":
        assert set(SAMPLERS) <= words
    if command == "interpolate":
        assert {"ddim", "euler", "heun", "dpmpp_2m", "unipc", "ode_adaptive"} <= words


def photo(path: Path, width: int = 40, height: int = 20, *, orientation: int = 1) -> Path:
    """Left half black, right half white, as it is seen."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (upright.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else upright).save(path, exif=exif)
    return path


def test_sample_begins_with_the_upright_middle_of_a_photo_and_redraws_what_is_white_in_the_mask(tmp_path: Path, model: FakeModel) -> None:
    files = ["--image", str(photo(tmp_path / "photo.png", orientation=6)), "--mask", str(photo(tmp_path / "mask.png"))]
    main(["sample", "--prompt", "a", "--out", str(tmp_path / "a.png"), *files, "--strength", "0.5", "--size", "16x8"])
    call = model.calls[0]
    assert (call["image"].dtype, call["image"].shape) == (np.uint8, (8, 16, 3))
    assert (call["image"][:, :6] < 5).all()
    assert (call["image"][:, 10:] > 250).all()
    assert (call["mask"].dtype, call["mask"].shape) == (np.bool_, (8, 16))
    assert not call["mask"][:, :8].any()
    assert call["mask"][:, 8:].all()
    assert call["strength"] == 0.5


def test_without_a_size_a_photo_is_cut_to_that_of_the_model(tmp_path: Path, model: FakeModel) -> None:
    main(["sample", "--prompt", "a", "--out", str(tmp_path / "a.png"), "--image", str(photo(tmp_path / "photo.png"))])
    assert model.calls[0]["image"].shape == (SIDE, SIDE, 3)
    assert model.calls[0]["mask"] is None


def test_a_mask_of_another_size_or_without_image_is_refused(tmp_path: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask, out = photo(tmp_path / "photo.png"), photo(tmp_path / "mask.png", 30, 20), str(tmp_path / "a.png")
    message = fails(capsys, "sample", "--prompt", "a", "--out", out, "--image", str(image), "--mask", str(mask))
    assert "mask.png is 30 x 20 px, but --image" in message
    assert "photo.png is 40 x 20 px: they should be of one size" in message
    assert "--mask says what of a picture is drawn anew: give --image too" in fails(
        capsys, "sample", "--prompt", "a", "--out", out, "--mask", str(mask)
    )


@pytest.mark.parametrize("option", ["--image", "--mask"])
def test_a_picture_file_that_is_not_there_is_named_before_the_model_is_loaded(
    option: str, tmp_path: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, "sample", "--prompt", "a", "--out", str(tmp_path / "a.png"), option, str(tmp_path / "none.png"))
    assert f"{option} {tmp_path / 'none.png'}: there is no such file." in message
    assert not model.loaded


def test_a_file_that_is_no_picture_is_named_with_the_reason(tmp_path: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.png").write_bytes(b"no picture")
    message = fails(capsys, "sample", "--prompt", "a", "--out", str(tmp_path / "a.png"), "--image", str(tmp_path / "photo.png"))
    assert "photo.png is unreadable: not a picture of a known format" in message


@pytest.mark.parametrize(("text", "size"), [("32", (32, 32)), ("48x32", (32, 48)), ("48X32", (32, 48))])
def test_a_size_is_width_by_height_or_one_side(text: str, size: tuple[int, int], tmp_path: Path, model: FakeModel) -> None:
    main(["sample", "--prompt", "a", "--out", str(tmp_path / "a.png"), "--size", text])
    assert model.calls[0]["size"] == size


@pytest.mark.parametrize("text", ["big", "32x", "-3", "3.5x2"])
def test_what_is_no_size_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"'{text}' is no size; write WIDTHxHEIGHT" in fails(capsys, "sample", "--prompt", "a", "--out", "a.png", f"--size={text}")


def test_edit_finds_the_noise_under_the_own_prompt_and_draws_it_under_the_others(tmp_path: Path, model: FakeModel) -> None:
    out, image = tmp_path / "edits.png", photo(tmp_path / "photo.png")
    options = ["--strength", "0.75", "--steps", "11", "--spacing", "karras", "--iterations", "2", "--guidance-scale", "3", "--size", "16x8"]
    main(["edit", "--image", str(image), "--prompt", "old", "--to", "new", "--to", "newer", "--out", str(out), *options])
    inverted, drawn = model.calls
    assert inverted.pop("image").shape == (8, 16, 3)
    assert inverted == {
        "prompts": ["old"], "strength": 0.75, "steps": 11, "spacing": "karras", "iterations": 2, "show_progress": True
    }  # fmt: skip
    assert drawn.pop("image").shape == (8, 16, 3)
    torch.testing.assert_close(drawn.pop("noise"), torch.full((2, 4, 2, 2), 0.5))
    assert drawn == {
        "prompts": ["new", "newer"], "negative_prompts": ["old", "old"], "size": None, "strength": 0.75, "sampler": "ddim",
        "steps": 11, "spacing": "karras", "guidance_scale": 3.0, "guidance_rescale": 0.0, "show_progress": True,
    }  # fmt: skip
    assert colours(out) == [(3, 9, 3), (5, 9, 3)]


def test_edit_needs_a_photo_that_is_there(tmp_path: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["edit", "--prompt", "a", "--to", "b", "--out", str(tmp_path / "a.png")]
    assert "--image" in fails(capsys, *arguments)
    assert "there is no such file" in fails(capsys, *arguments, "--image", str(tmp_path / "none.png"))
    assert not model.loaded


def test_interpolate_draws_a_strip(tmp_path: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "strip.png"
    options = ["--num", "5", "--negative-prompt", "dog", "--sampler", "ddim", "--size", "16", "--guidance-rescale", "0.5"]
    main(["interpolate", "--prompt", "a", "--seed", "1", "--seed", "2", "--out", str(out), *options])
    assert model.calls == [
        {"prompts": ["a"], "seeds": [1, 2], "num": 5, "negative_prompt": "dog", "size": (16, 16), "sampler": "ddim", "steps": None,
         "spacing": None, "guidance_scale": None, "guidance_rescale": 0.5, "show_progress": True}
    ]  # fmt: skip
    assert colours(out) == [(index, index, index) for index in range(5)]
    width, height = Image.open(out).size
    assert height == SIDE
    assert width > 5 * SIDE
    assert "5 picture(s)" in capsys.readouterr().out
