"""The hidden layer and the padding of a text encoder, and a text encoder without an image encoder."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from darkroom.interchange.text_encoder import model_cfg, to_open_clip
from darkroom.models.clip import ClipTowers
from darkroom.models.text_conditioning import FILE, TextConditioning
from tests.models.tiny_clip import CAPTIONS

WIDTH, LAYERS = 64, 3


@pytest.fixture(scope="module")
def alone() -> ClipTowers:
    return make_alone(TextConditioning())


def make_alone(conditioning: TextConditioning) -> ClipTowers:
    """Transformers' own model, as ours."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_attention_heads=2, num_hidden_layers=LAYERS)
    )
    config = model_cfg(width=WIDTH, heads=2, layers=LAYERS, context_length=77, mlp_ratio=4.0, quick_gelu=True)
    clip = ClipTowers.text_only(config, to_open_clip(model.state_dict()), conditioning=conditioning, where="a test")
    clip.theirs = (model.eval(),)  # a tuple, so that it is no submodule
    return clip


@torch.no_grad()
@pytest.mark.parametrize(("layer", "index"), [("last", -1), ("penultimate", -2)])
def test_a_hidden_state_is_transformers_and_passes_the_final_norm(layer: str, index: int) -> None:
    clip = make_alone(TextConditioning(layer=layer))  # type: ignore[arg-type]
    tokens = clip.tokenize(CAPTIONS)
    theirs = clip.theirs[0]  # type: ignore[index]
    states = theirs(tokens, output_hidden_states=True).hidden_states
    expected = theirs.final_layer_norm(states[index])
    torch.testing.assert_close(clip.encode_tokens(tokens), expected, rtol=1e-4, atol=1e-5)


def test_padding_with_the_end_mark_leaves_everything_before_it(alone: ClipTowers) -> None:
    zero = alone.tokenize(CAPTIONS)
    end = make_alone(TextConditioning(pad_token="end")).tokenize(CAPTIONS)
    length = (zero != 0).sum(dim=1)
    for row, count in enumerate(length):
        assert torch.equal(end[row, :count], zero[row, :count])
        assert (end[row, count - 1 :] == 49407).all()
        assert (zero[row, count:] == 0).all()


def test_a_text_encoder_alone_is_saved_with_its_conditioning_and_comes_back(alone: ClipTowers, tmp_path: Path) -> None:
    conditioning = TextConditioning(layer="penultimate", pad_token="end")
    clip = make_alone(conditioning)
    clip.save(tmp_path)
    loaded = ClipTowers.load(tmp_path)
    assert loaded.conditioning == conditioning
    assert not loaded.has_image_encoder
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), clip.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded.encode_tokens(loaded.tokenize(CAPTIONS)), clip.encode_tokens(clip.tokenize(CAPTIONS)))


def test_whole_towers_keep_their_conditioning_too(towers: ClipTowers, tmp_path: Path) -> None:
    assert towers.has_image_encoder
    towers.save(tmp_path)
    TextConditioning("penultimate", "end").save(tmp_path)
    assert ClipTowers.load(tmp_path).conditioning == TextConditioning("penultimate", "end")


def test_a_folder_that_says_nothing_is_open_clips(tmp_path: Path) -> None:
    assert TextConditioning.load(tmp_path) == TextConditioning(layer="last", pad_token="zero")


@pytest.mark.parametrize("values", [{"layer": "first"}, {"pad_token": "space"}, {"colour": "last"}])
def test_an_unknown_choice_is_refused(tmp_path: Path, values: dict[str, str]) -> None:
    (tmp_path / FILE).write_text(json.dumps(dataclasses.asdict(TextConditioning()) | values))
    key, value = next(iter(values.items()))
    with pytest.raises(ValueError, match=rf'`{key}: "{value}"` is not known: `layer` is last or penultimate; `pad_token` is zero or end'):
        TextConditioning.load(tmp_path)


def test_a_text_encoder_alone_says_that_it_sees_no_pictures(alone: ClipTowers) -> None:
    message = r"This CLIP has no image encoder .*train_clip\.pretrained: ARCH::TAG.*evaluate\.features\.kind: squeezenet"
    pictures = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        alone.encode_images(pictures)
    with pytest.raises(ValueError, match=message):
        alone.encode_texts(CAPTIONS)
    with pytest.raises(ValueError, match=message):
        alone(pictures, alone.tokenize(["a cat"]))


def test_weights_that_do_not_fit_a_tower_alone_are_named(alone: ClipTowers) -> None:
    weights = dict(alone.model.state_dict())
    del weights["ln_final.bias"]
    with pytest.raises(ValueError, match=r"a file does not fit CLIP as configured: `ln_final\.bias` is missing"):
        ClipTowers.text_only(alone.model_cfg, weights, conditioning=TextConditioning(), where="a file")


def test_building_a_tower_alone_leaves_the_global_generator_alone(alone: ClipTowers) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    ClipTowers.text_only(alone.model_cfg, dict(alone.model.state_dict()), conditioning=TextConditioning(), where="a file")
    torch.testing.assert_close(torch.rand(1), expected, rtol=0, atol=0)
