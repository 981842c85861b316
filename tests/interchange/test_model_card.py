"""The card of a single file: no difference for a true Stable Diffusion, one sentence for each difference of another model."""

import dataclasses
from typing import Any

import pytest

from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.diffusion.schedule import Schedule
from darkroom.interchange.model_card import Card, obstacles
from darkroom.interchange.scheduler import STABLE_DIFFUSION, read_scheduler
from darkroom.interchange.text_encoder import model_cfg
from darkroom.models.autoencoder_kl import AutoencoderKLConfig
from darkroom.models.unet import UNetConfig

VAE = AutoencoderKLConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512)
UNET1 = UNetConfig(cross_attention_dim=768, sample_size=64)
UNET2 = UNetConfig(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True, sample_size=96)


def text(family: str, layers: int, layer: str, pad_token: str, **changes: Any) -> dict[str, Any]:
    width, heads = (768, 12) if family == "1.x" else (1024, 16)
    values: dict[str, Any] = {"width": width, "heads": heads, "layers": layers, "context_length": 77, "mlp_ratio": 4.0}
    config = model_cfg(**values | changes, quick_gelu=family == "1.x")
    return {"model_cfg": config, "conditioning": {"layer": layer, "pad_token": pad_token}}


def diffusion(prediction: str = "epsilon") -> DiffusionConfig:
    return read_scheduler(STABLE_DIFFUSION | {"prediction_type": prediction}, "")


TEXT1 = text("1.x", 12, "last", "end")


@pytest.mark.parametrize(
    ("unet", "text_encoder", "prediction"),
    [
        (UNET1, TEXT1, "epsilon"),
        (UNET2, text("2.x", 24, "penultimate", "zero"), "v_prediction"),
        (UNET2, text("2.x", 23, "last", "zero"), "epsilon"),
    ],
    ids=["1.5", "2.1", "2.1-base from a diffusers folder"],
)
def test_stable_diffusion_has_no_obstacle(unet: UNetConfig, text_encoder: dict[str, Any], prediction: str) -> None:
    assert obstacles(diffusion(prediction), unet, VAE, text_encoder) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"unet": dataclasses.replace(UNET1, layers_per_block=1)},
            "The U-Net has `layers_per_block` 1; that of Stable Diffusion 1.x has 2.",
        ),
        ({"unet": dataclasses.replace(UNET1, attention_head_dim=4)}, "The U-Net has `attention_head_dim` (4, 4, 4, 4); that"),
        ({"unet": dataclasses.replace(UNET1, flip_sin_to_cos=False)}, "The U-Net has `flip_sin_to_cos` False; that"),
        (
            {"vae": dataclasses.replace(VAE, latent_channels=16)},
            "The autoencoder has `latent_channels` 16; that",
        ),
        ({"text": text("1.x", 12, "last", "end", width=512)}, "The text encoder has width 512; that of Stable Diffusion 1.x has 768."),
        ({"text": text("1.x", 11, "last", "end")}, "The U-Net attends to the last of 11 text layers; tools use the last of 12."),
        ({"text": text("1.x", 12, "last", "zero")}, "Short prompts are padded with `zero`; tools pad with `end` in files of this kind."),
        (
            {"diffusion": diffusion("v_prediction")},
            "The U-Net predicts `v_prediction`, which tools do not expect in a file of kind 1.x",
        ),
        ({"diffusion": diffusion("sample")}, "The U-Net predicts `sample`, which tools do not expect"),
    ],
)
def test_each_difference_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    parts: dict[str, Any] = {"diffusion": diffusion(), "unet": UNET1, "vae": VAE, "text": TEXT1} | changes
    found = obstacles(parts["diffusion"], parts["unet"], parts["vae"], parts["text"])
    assert len(found) == 1
    assert found[0].startswith(sentence)


@pytest.mark.parametrize(("kind", "zero_terminal_snr"), [("cosine", False), ("scaled_linear", True), ("linear", False)])
def test_another_schedule_is_an_obstacle(kind: str, zero_terminal_snr: bool) -> None:
    schedule = Schedule.make(kind, 1000, 0.00085, 0.012, zero_terminal_snr=zero_terminal_snr)
    (found,) = obstacles(diffusion().model_copy(update={"schedule": schedule}), UNET1, VAE, TEXT1)
    assert found.startswith(f"The noise schedule is `{kind}` (1000 steps, beta 0.00085 to 0.012")
    assert ("zero terminal SNR" in found) == zero_terminal_snr


def test_quadratic_is_stable_diffusions_schedule_under_another_name() -> None:
    schedule = Schedule.make("quadratic", 1000, 0.00085, 0.012)
    assert not obstacles(diffusion().model_copy(update={"schedule": schedule}), UNET1, VAE, TEXT1)


def test_the_card_lists_the_differences_or_says_that_there_are_none() -> None:
    card = Card("1.2.3", 512, diffusion(), "end")
    assert "these programs draw the same images" in card.of_single_file([])
    listed = card.of_single_file(["One.", "Two."])
    assert "## Differences from Stable Diffusion" in listed
    assert listed.endswith("- One.\n- Two.\n")
    assert "exported by darkroom 1.2.3" in listed


def test_the_card_names_the_only_caption_that_a_model_knows() -> None:
    narrow = Card("1.2.3", 512, diffusion().model_copy(update={"only_caption": "a cat"}), "end")
    for text_of_card in (narrow.of_pipeline(), narrow.of_single_file([])):
        assert "It was trained with one caption, `a cat`, and knows no other: use this one as the prompt" in text_of_card
    assert "one caption" not in Card("1.2.3", 512, diffusion(), "end").of_pipeline()
