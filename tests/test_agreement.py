"""The sections of params.yaml are compared before any work; what each network itself would refuse is the truth."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from darkroom.agreement import CLIP_HEAD_WIDTH, DISCRIMINATOR_GROUPS, disagreements, nearest_multiples
from darkroom.models import clip as clip_module
from darkroom.models import discriminator
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.discriminator import PatchDiscriminator
from darkroom.models.unet import UNetConfig
from darkroom.params_file import checked, defaults, load_params, merged, read_preset

IMPORTED = {"train_vae": {"init": "m/vae"}, "train_clip": {"mode": "pretrained", "pretrained": "m/clip"}, "train_unet": {"init": "m/unet"}}

LINEAR: dict[str, Any] = {"kind": "linear", "steps": 0}


def problems(changes: dict[str, Any]) -> str:
    """What is said about the defaults with these changes; "" if they agree."""
    try:
        checked(merged(defaults(), changes), Path("params.yaml"))
    except ValueError as error:
        return str(error)
    return ""


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"ingest": {"side": 30}},
        "`ingest.side` is 30, but `train_vae.model.block_out_channels` has 3 resolutions and halves the side 2 times: "
        "set ingest.side: 24 or 32",
    ),
    (
        {"ingest": {"side": 36}},
        "`ingest.side` is 36, so that the latents are 9 wide, but `train_unet.model.block_out_channels` halves them 1 times: "
        "set ingest.side: 32 or 40, or remove a resolution of the U-Net",
    ),
    (
        {"train_vae": {"model": {"block_out_channels": [32, 60]}}},
        "has 60, not a multiple of train_vae.model.norm_num_groups (16): set 48 or",
    ),
    ({"train_vae": {"model": {"block_out_channels": [8]}}}, "has 8, not a multiple of train_vae.model.norm_num_groups (16): set 16, or"),
    (
        {"ingest": {"side": 36}, "train_vae": {**LINEAR, "linear": {"patch_size": 8}}},
        "`ingest.side` is 36, but `train_vae.linear.patch_size` is 8: set ingest.side: 32 or 48",
    ),
    ({"train_vae": {"kind": "linear"}}, "`train_vae.kind: linear` is not trained, but `train_vae.steps` is 800: set train_vae.steps: 0"),
    ({"train_vae": {**LINEAR, "init": "m/vae"}}, "is computed from the photos, but `train_vae.init` is m/vae: empty it, or set kind: pret"),
    ({"train_vae": {**LINEAR, "likelihood": "laplace"}}, "has a gaussian likelihood of its own scale: set train_vae.likelihood: gaussian"),
    ({"train_vae": {"kind": "pretrained", "steps": 0}}, "but `train_vae.init` is empty: name the folder of an autoencoder"),
    (
        {"train_vae": {"init": "hf-hub:some-vae"}},
        "`train_vae.init` is hf-hub:some-vae, which names nothing on the Hugging Face hub: write hf-hub:OWNER/NAME, with /FOLDER and",
    ),
    ({"train_vae": {"init_sha256": "0" * 64}}, "`train_vae.init_sha256` is set, but `train_vae.init` is empty: name the autoencoder that"),
    (
        {"train_vae": {"init": "m/vae", "init_sha256": "a1b2"}},
        "`train_vae.init_sha256` is a1b2, but a hash has 64 digits of 0-9 and a-f: take content.init in data/vae/index.json",
    ),
    ({"train_vae": {"linear": {"patch_size": 2}}}, "linear.latent_channels is 48, but a patch of 2 px has 12 values: lower it"),
    ({"train_vae": {"steps": 0}}, "train_vae.steps is 0 and train_vae.init is empty: name the folder of a VAE"),
    (
        {"train_vae": {"adversarial": {"weight": 0.5, "channels": 20}}},
        "`train_vae.adversarial.channels` is 20; it must be a multiple of 8, the groups of a norm: set 16 or 24",
    ),
    (
        {"train_vae": {"adversarial": {"weight": 0.5, "num_halvings": 4}}},
        "`train_vae.adversarial.num_halvings` (4) is too large for `ingest.side` (32): set num_halvings: 3, or side: 48 or more",
    ),
    ({"train_clip": {"model": {"text_width": 100}}}, "`train_clip.model.text_width` is 100; it must be a multiple of 32"),
    ({"train_clip": {"model": {"vision_width": 40}}}, "the width of an attention head: set 32 or 64"),
    (
        {"train_clip": {"model": {"patch_size": 12}}},
        "`train_clip.model.image_size` (32) must be a multiple of train_clip.model.patch_size (12): set image_size: 24 or 36",
    ),
    ({"train_clip": {"batch_size": 8, "gradient_accumulation": 8}}, "`train_clip.batch_size` (8) leaves one pair of photo and caption"),
    ({"train_unet": {"steps": 0}}, "train_unet.steps is 0 and train_unet.init is empty: name the folder of a U-Net"),
    (
        {"train_unet": {"model": {"block_out_channels": [64, 100]}}},
        "has 100, not a multiple of train_unet.model.attention_head_dim (32): set 96 or 128, or another attention_head_dim",
    ),
    ({"train_unet": {"model": {"norm_num_groups": 48}}}, "has 64, not a multiple of train_unet.model.norm_num_groups (48): set 48 or 96"),
    (
        {"train_unet": {"model": {"block_out_channels": [15, 30], "attention_head_dim": 15, "norm_num_groups": 15}}},
        "`train_unet.model.block_out_channels` begins with 15; the first must be even",
    ),
    (
        {"train_unet": {"init": "m/unet"}},
        "is m/unet, but `train_vae.init` and `train_clip.pretrained` would be trained anew",
    ),
    ({**IMPORTED, "train_vae": {"init": ""}}, "but `train_vae.init` would be trained anew"),
    ({**IMPORTED, "train_clip": {"mode": "scratch"}}, "but `train_clip.pretrained` would be trained anew"),
    (
        {"train_unet": {"schedule": {"num_train_timesteps": 10}, "sampling": {"steps": 10}}},
        "`evaluate.sampling.steps` is 20; with spacing: trailing and train_unet.schedule.num_train_timesteps: 10 it must be at most 10",
    ),
    (
        {"train_unet": {"schedule": {"num_train_timesteps": 20}, "sampling": {"spacing": "leading"}}},
        "`train_unet.sampling.steps` is 20; with spacing: leading and train_unet.schedule.num_train_timesteps: 20 it must be at most 19",
    ),
    (
        {"train_unet": {"augmentation_labels": True}, "cache_latents": {"flip": False}},
        "`train_unet.augmentation_labels` is true, but each photo has a single view: set ingest.crops: 2 or more, or cache_lat",
    ),
    ({"evaluate": {"num_samples": 3}}, "`evaluate.num_neighbours` (3) must be below evaluate.num_samples (3): set num_samples: 4 or more"),
]
ACCEPTED: list[dict[str, Any]] = [
    {},
    IMPORTED,
    {**IMPORTED, "ingest": {"side": 30}},  # the stage asks the folders
    {**IMPORTED, "train_unet": {"init": "m/unet", "steps": 0, "model": {"norm_num_groups": 48}}},  # `model` is ignored with init
    {"ingest": {"side": 24}},
    {"train_vae": {"adversarial": {"weight": 0.0, "channels": 20}}},  # there is no discriminator
    {"train_vae": {"adversarial": {"weight": 0.5, "num_halvings": 3}}},
    {"train_clip": {"batch_size": 16, "gradient_accumulation": 8}},
    {"train_unet": {"schedule": {"num_train_timesteps": 20}, "sampling": {"spacing": "karras"}}},
    {"evaluate": {"num_samples": 4}},
    {"train_unet": {"augmentation_labels": True}},
    {"train_unet": {"augmentation_labels": True}, "cache_latents": {"flip": False}, "ingest": {"crops": 2}},
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=[sentence[:50] for _, sentence in REFUSED])
def test_sections_that_do_not_agree_are_refused_with_both_keys_and_what_works(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in problems(changes)


@pytest.mark.parametrize("changes", ACCEPTED)
def test_sections_that_agree_are_accepted(changes: dict[str, Any]) -> None:
    assert problems(changes) == ""


def test_all_disagreements_are_named_at_once_and_each_key_is_one_of_the_file() -> None:
    message = problems({"ingest": {"side": 30}, "train_unet": {"model": {"norm_num_groups": 48}}, "evaluate": {"num_samples": 2}})
    keys = re.findall(r"`([a-z_]+\.[\w.]+)`", message)
    assert {key.split(".")[0] for key in keys} == {"ingest", "train_vae", "train_unet", "evaluate"}
    for key in keys:
        value = defaults()
        for part in key.split("."):
            value = value[part]


@pytest.mark.parametrize("side", range(16, 70))
def test_a_side_is_refused_exactly_if_a_network_would_refuse_it(side: int) -> None:
    sections = checked(defaults(), Path("params.yaml"))
    found = disagreements({**sections, "ingest": sections["ingest"].model_copy(update={"side": side})})
    stride = AutoencoderKLConfig(block_out_channels=(32, 64, 64), norm_num_groups=16).stride
    assert bool(found) == bool(side % stride or side // stride % 2)


@pytest.mark.parametrize("name", ["sd15-lora", "photos-256-gpu"])
def test_a_preset_whose_sections_do_not_agree_is_refused(name: str, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(
        re.sub("  init: models/sd15/vae\n", "", text).replace("[192, 384, 576, 576]", "[192, 384, 576, 500]")
    )
    with pytest.raises(ValueError, match=r"mine\.yaml: .*(trained anew|has 500, not a multiple)"):
        read_preset(str(tmp_path / "mine.yaml"))


def test_every_stage_reads_its_parameters_with_these_checks(tmp_path: Path) -> None:
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(merged(defaults(), {"ingest": {"side": 30}}), file)
    with pytest.raises(ValueError, match=r"params\.yaml: `ingest\.side` is 30, but .* set ingest\.side: 24 or 32\.$"):
        load_params(tmp_path / "params.yaml")


def test_the_numbers_here_are_those_of_the_networks() -> None:
    """They are written twice, because asking the networks costs seconds of imports."""
    assert (CLIP_HEAD_WIDTH, DISCRIMINATOR_GROUPS) == (clip_module.HEAD_WIDTH, discriminator.GROUPS)
    PatchDiscriminator(channels=8, num_halvings=3, size=24)
    with pytest.raises(ValueError, match="too small"):
        PatchDiscriminator(channels=8, num_halvings=3, size=23)
    assert not problems({"ingest": {"side": 24}, "train_vae": {"adversarial": {"weight": 1.0, "num_halvings": 3}}})
    assert problems({"ingest": {"side": 16}, "train_vae": {"adversarial": {"weight": 1.0, "num_halvings": 3}}})
    with pytest.raises(ValueError, match="norm_num_groups"):
        AutoencoderKL(AutoencoderKLConfig(block_out_channels=(32, 60), norm_num_groups=16))
    with pytest.raises(ValueError, match="attention head"):
        UNetConfig.from_levels(
            block_out_channels=[64, 100], attention=[True, True], layers_per_block=1, channels_per_head=32, norm_num_groups=4,
            latent_channels=4, latent_size=8, context_dim=32,
        )  # fmt: skip


@pytest.mark.parametrize(("value", "step", "words"), [(30, 4, "28 or 32"), (3, 4, "4"), (47, 16, "32 or 48")])
def test_the_nearest_multiples_lie_on_both_sides(value: int, step: int, words: str) -> None:
    assert nearest_multiples(value, step) == words
