"""What a run is said to take, against what its networks and stages really take."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from darkroom.cli import main
from darkroom.demo.toy_cats import draw_toy_cats
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.classifier import CHUNK, Classifier
from darkroom.models.clip import ClipTowers
from darkroom.models.perceptual import PerceptualDistance
from darkroom.models.unet import UNet2DConditionModel, UNetConfig
from darkroom.models.weights import save_model
from darkroom.outline import Part, networks, not_here
from darkroom.param_groups import PerceptualParams
from darkroom.params_file import checked, defaults, merged, read_preset
from darkroom.run_plan import (
    LOOKS,
    SHARE,
    Machine,
    as_time,
    costs,
    find_photos,
    latents_bytes,
    measure_photo,
    measure_speed,
    passes,
    plan_lines,
)
from darkroom.training.optimizer import LEAST_SIDE, orthogonalised
from tests.tiny_run import CHANGES, write_params

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def sections(**changes: dict[str, Any]) -> dict[str, Any]:
    return dict(checked(merged(merged(defaults(), CHANGES), changes), Path("params.yaml")))


def machine(**changes: Any) -> Machine:
    return Machine(
        **{"device": CPU, "speed": dict.fromkeys(("train_clip", "train_vae", "train_unet"), 1e9), "start": 0.0, "base": 0.0} | changes
    )


def cost(stage: str, given: dict[str, Any], on: Machine, *, num_photos: int = 100) -> Any:
    found = costs(given, networks(given), on, num_photos=num_photos, photo_seconds=0.01)
    return next(item for item in found if item.stage == stage)


class Layer(nn.Module):
    """relu(W x) with W 5 x 4: 2 x 5 x 4 FLOP; it keeps x (4) and the output of the relu (5), 4 bytes each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5, bias=False, device="meta")

    def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x[:, 0]))


def test_the_arithmetic_and_memory_of_a_layer_are_those_on_paper() -> None:
    part = Part("train_vae", Layer(), ((1, 4), (1, 1)))
    assert (part.flop, part.kept, part.num_weights, part.num_trained) == (40, 36, 20, 20)


def test_the_networks_are_those_of_the_run_with_real_weights() -> None:
    given = sections()
    parts = networks(given)
    vae = AutoencoderKL(AutoencoderKLConfig(sample_size=16, **given["train_vae"].model.model_dump()))
    clip = ClipTowers.build(given["train_clip"].model.model_dump(), seed=0)
    for stage, real in {"train_vae": vae, "train_clip": clip}.items():
        assert parts[stage].num_weights == sum(parameter.numel() for parameter in real.parameters())
        outputs = real(*parts[stage].inputs(2, "cpu"))
        assert [item.shape for item in parts[stage].net(*parts[stage].inputs(2, "meta"))] == [item.shape for item in outputs]
    assert parts["train_unet"].net.config.sample_size == 8
    assert parts["train_unet"].net.config.cross_attention_dim == 32


def test_a_larger_batch_and_more_steps_take_more_and_weights_are_counted_with_their_optimizer() -> None:
    given = sections()
    before = cost("train_vae", given, machine())
    longer = cost("train_vae", sections(train_vae={"steps": 40, "val_every": 40}), machine())
    assert longer.flop / before.flop == pytest.approx((3 * 40 * 8 + 20) / (3 * 4 * 8 + 20), rel=0.2)
    part = networks(given)["train_vae"]
    assert before.memory == part.num_weights * 16 + part.kept * 8
    assert cost("train_vae", sections(train_vae={"ema_decay": 0.9}), machine()).memory - before.memory == part.num_weights * 4
    assert cost("train_vae", sections(train_vae={"gradient_accumulation": 8}), machine()).memory == part.num_weights * 16 + part.kept
    assert cost("train_vae", sections(train_vae={"precision": "bf16"}), machine()).memory == part.num_weights * 16 + part.kept * 4
    assert before.seconds == before.flop / 1e9
    assert cost("train_vae", given, machine(start=7.0)).seconds == before.seconds + 7


def test_the_preset_for_a_gpu_fits_24_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.run_plan.use_bf16", lambda precision, device: True)
    given = dict(checked(merged(defaults(), read_preset(str(ROOT / "presets" / "photos-256-gpu.yaml"))), Path("x")))
    found = {item.stage: item.memory for item in costs(given, networks(given), machine(base=2e9), num_photos=5000, photo_seconds=0.01)}
    assert 10e9 < found["train_vae"] < 22e9
    assert 10e9 < found["train_unet"] < 22e9


def test_muon_takes_the_arithmetic_of_its_matrix_products() -> None:
    given, plain = sections(train_unet={"optimizer": "muon"}), cost("train_unet", sections(), machine())
    net = networks(given)["train_unet"].net
    with FlopCounterMode(display=False) as counter:
        for parameter in net.parameters():
            if parameter.dim() >= 2 and min(parameter.flatten(1).shape) >= LEAST_SIDE:
                orthogonalised(parameter.detach().flatten(1))
    assert counter.get_total_flops() > 0
    assert cost("train_unet", given, machine()).flop == plain.flop + 4 * counter.get_total_flops()  # four steps


@pytest.mark.parametrize("side", [64, 128])
def test_the_perceptual_loss_takes_the_arithmetic_of_its_classifier(side: int) -> None:
    distance = PerceptualDistance.build(PerceptualParams(weight=0.1), size=side)
    images = torch.rand(1, 3, side, side, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        distance(images.detach(), images).sum().backward()
    plain, with_it = ({"ingest": {"side": side}, "train_unet": {"perceptual": {"weight": weight}}} for weight in (0.0, 0.1))
    extra = cost("train_unet", sections(**with_it), machine()).flop - cost("train_unet", sections(**plain), machine()).flop
    given = sections(**with_it)
    decoded = 3 * networks(given)["train_vae"].flop / 2
    images_seen = given["train_unet"].steps * given["train_unet"].batch_size
    assert extra / images_seen - decoded == pytest.approx(counter.get_total_flops(), rel=0.12)


def test_the_search_for_the_subject_takes_as_long_with_a_tiny_autoencoder_that_computes_slowly() -> None:
    given = sections(ingest={"crop": "subject"})
    slow = machine(speed={"train_clip": 1e9, "train_vae": 1e6, "train_unet": 1e9})
    assert cost("ingest", given, slow).seconds == cost("ingest", given, machine()).seconds


def test_gradient_checkpointing_takes_a_third_more_arithmetic_and_less_memory() -> None:
    plain, less = (
        cost("train_unet", sections(), machine()),
        cost("train_unet", sections(train_unet={"gradient_checkpointing": True}), machine()),
    )
    assert less.memory < plain.memory
    assert 1.1 < less.flop / plain.flop < 4 / 3


def test_guidance_and_two_evaluations_a_step_double_the_passes() -> None:
    sampling = sections()["evaluate"].sampling
    assert passes(sampling) == 2 * 2
    assert passes(sampling.model_copy(update={"guidance_scale": 1.0})) == 2
    assert passes(sampling.model_copy(update={"sampler": "heun"})) == 2 * 2 * 2


def test_every_stage_has_a_row_and_more_photos_take_longer() -> None:
    given = sections()
    few, many = (costs(given, networks(given), machine(), num_photos=num, photo_seconds=0.01) for num in (100, 1000))
    assert [item.stage for item in few] == list(defaults())
    assert all(b.seconds > a.seconds for a, b in zip(few, many, strict=True) if a.stage in ("ingest", "cache_latents", "evaluate"))


def test_the_search_for_the_subject_takes_time() -> None:
    centre, subject = sections(), sections(ingest={"crop": "subject"})
    without, looked = (costs(given, networks(given), machine(), num_photos=1000, photo_seconds=0.01)[0] for given in (centre, subject))
    assert without.flop == 0
    assert 1000 * 1.6e9 < looked.flop < 3000 * 1.6e9
    assert looked.seconds > without.seconds


@pytest.mark.parametrize("side", [64, 68])
def test_evaluation_looks_at_pictures_with_the_arithmetic_of_the_classifier_at_their_side(side: int) -> None:
    with FlopCounterMode(display=False) as counter:
        Classifier.shipped().features_and_scores(np.zeros((CHUNK, side, side, 3), np.uint8))
    given = sections(ingest={"side": side, "val_fraction": 0.1})
    parts = networks(given)
    few, many = (cost("evaluate", given, machine(), num_photos=num).flop for num in (100, 1100))
    of_the_model = 100 * (3 * parts["train_unet"].flop + parts["train_vae"].flop)  # of the held-out photos
    assert many - few - of_the_model == pytest.approx((1000 + LOOKS * 100) * counter.get_total_flops() / CHUNK, rel=0.01)


def test_latents_take_the_disk_that_is_foretold() -> None:
    given = sections()
    moments, tokens = latents_bytes(networks(given)["train_unet"], given, 10)
    assert moments == 10 * 2 * 2 * 4 * 8 * 8 * 2  # photos, views, mean and deviation, channels, sides, bytes
    assert tokens == 11 * 24 * 32 * 2
    moments, _ = latents_bytes(networks(given)["train_unet"], sections(ingest={"crops": 3, "val_fraction": 0.2}), 10)
    assert moments == (8 * 3 + 2) * 2 * 2 * 4 * 8 * 8 * 2  # held-out photos have one crop


def test_each_crop_is_encoded() -> None:
    given = sections(ingest={"val_fraction": 0.2})
    plain, three = (cost("cache_latents", changed, machine()) for changed in (given, sections(ingest={"crops": 3, "val_fraction": 0.2})))
    assert three.flop - plain.flop == 80 * 2 * 2 * networks(given)["train_vae"].flop / 2  # photos, more crops, with mirror images


def test_speed_is_the_arithmetic_over_the_time_of_the_fastest_of_three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says 3, 2 and 4 seconds. docs/benchmarks.md says how near real runs come to it."""
    readings = iter([0.0, 3.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr("darkroom.run_plan.time.process_time", lambda: next(readings))
    part = networks(sections())["train_vae"]
    assert measure_speed(part, CPU, bf16=False, most=4) == pytest.approx(
        3 * part.flop * 4 * (1 + SHARE * (torch.get_num_threads() - 1)) / 2.0
    )


def test_a_network_that_is_too_large_to_be_tried_is_as_fast_as_that_of_the_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr("darkroom.run_plan.measure_speed", lambda part, device, *, bf16, most: tried.append(part.num_weights) or 1e9)
    large = sections(train_unet={"model": {"block_out_channels": [640, 1280]}}, ingest={"side": 256})
    parts = networks(large)
    Machine.measure(parts, large, start=1.0)
    toys = networks(dict(checked(defaults(), Path("x"))))
    assert tried[1] == toys["train_unet"].num_weights
    assert tried[2] == parts["train_clip"].num_weights


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The parts of a tiny model, and the parameters that name them."""
    monkeypatch.chdir(tmp_path)
    given = sections()
    ClipTowers.build(given["train_clip"].model.model_dump(), seed=0).save(Path("m/clip"))
    save_model(AutoencoderKL(AutoencoderKLConfig(block_out_channels=(8, 8), norm_num_groups=4)), Path("m/vae"))
    save_model(unet(), Path("m/unet"))
    return {"train_clip": {"mode": "pretrained", "pretrained": "m/clip"}, "train_vae": {"init": "m/vae"}, "train_unet": {"init": "m/unet"}}


def unet(channels: int = 4, dim: int = 32, levels: int = 2) -> UNet2DConditionModel:
    config = UNetConfig.from_levels(
        block_out_channels=[16] * levels, attention=[True] * levels, layers_per_block=1, channels_per_head=16, norm_num_groups=4,
        latent_channels=channels, latent_size=8, context_dim=dim,
    )  # fmt: skip
    return UNet2DConditionModel(config)


def test_the_networks_of_folders_are_looked_at_and_only_what_is_trained_needs_an_optimizer(imported: dict[str, dict[str, Any]]) -> None:
    imported["train_unet"]["lora"] = {"rank": 2}
    imported["train_vae"]["steps"] = 0
    given = sections(**imported)
    parts = networks(given)
    assert parts["train_clip"].num_trained == parts["train_vae"].num_trained == 0
    assert 0 < parts["train_unet"].num_trained < parts["train_unet"].num_weights / 5
    found = cost("train_clip", given, machine())
    assert found.memory == 4 * found.weights


@pytest.mark.parametrize(
    ("changes", "other", "message"),
    [
        ({"train_vae": {"init": "m/va"}}, None, r"`train_vae\.init` names m/va, which is not there: import it"),
        ({"train_unet": {"init": "m/une"}}, None, r"`train_unet\.init` names m/une, which is not there"),
        ({"train_clip": {"pretrained": "m/clipp"}}, None, r"CLIP `m/clipp` not found"),
        ({"train_clip": {"pretrained": "ViT-B-3::x"}}, None, r"CLIP `ViT-B-3::x` has no known shapes"),
        ({"ingest": {"side": 17}}, None, r"`ingest\.side` is 17, but the VAE of `train_vae\.init` \(m/vae\) needs a multiple of 2"),
        ({"ingest": {"side": 18}}, None, r"The latents are 9 wide, but the U-Net halves them 1 times: choose another `ingest\.side`"),
        ({}, {"channels": 8}, r"takes 8 latent channels and .* width 32, but train_vae gives 4 and train_clip 32: name the VAE"),
        ({}, {"dim": 48}, r"takes 4 latent channels and token embeddings of width 48, but"),
    ],
)
def test_a_part_that_is_missing_or_does_not_fit_is_told_before_the_run(
    imported: dict[str, dict[str, Any]], changes: dict[str, Any], other: dict[str, int] | None, message: str
) -> None:
    if other:
        save_model(unet(**other), Path("m/unet"))
    with pytest.raises(ValueError, match=message):
        networks(sections(**merged(imported, changes)))


def test_a_text_encoder_without_image_encoder_has_no_row_of_its_own(imported: dict[str, dict[str, Any]]) -> None:
    file = Path("m/clip/open_clip_config.json")
    content = json.loads(file.read_text())
    content["model_cfg"]["vision_cfg"] = None
    file.write_text(json.dumps(content))
    assert sorted(networks(sections(**imported))) == ["train_unet", "train_vae"]


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("hf-hub:laion/some-clip", {"train_clip": {"mode": "pretrained", "pretrained": "hf-hub:laion/some-clip"}}),
        ("hf-hub:some/vae@v1", {"train_vae": {"kind": "pretrained", "steps": 0, "init": "hf-hub:some/vae@v1"}}),
    ],
)
def test_a_model_that_is_fetched_later_is_not_estimated(
    source: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    given = sections(**changes)
    assert not_here(given) == [source]
    assert plan_lines(given, tmp_path) == [f"Nothing is estimated: {source} is fetched when its stage starts."]


def test_photos_are_counted_and_one_is_timed(tmp_path: Path) -> None:
    draw_toy_cats(tmp_path / "raw", num_cats=20, size=16, seed=0)
    (tmp_path / "raw" / "note.txt").write_text("no photo")
    photos = find_photos(tmp_path / "raw")
    assert len(photos) == 20
    assert 0 < measure_photo(photos, sections()["ingest"]) < 1
    assert 0 < measure_photo(photos, sections(ingest={"crop": "subject"})["ingest"]) < 1
    for photo in photos:
        photo.unlink()
    with pytest.raises(ValueError, match="holds no photos"):
        find_photos(tmp_path / "raw")


@pytest.mark.parametrize(("seconds", "words"), [(50, "50 s"), (200, "3 min"), (9000, "2.5 h"), (400_000, "5 days")])
def test_a_time_is_written_in_its_unit(seconds: float, words: str) -> None:
    assert as_time(seconds) == words


def test_the_command_checks_tells_the_plan_and_with_once_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path / "params.yaml")
    with pytest.raises(SystemExit, match=r"data/raw holds no photos\. Put them there, or draw toy cats"):
        main(["plan"])
    draw_toy_cats(tmp_path / "data" / "raw", num_cats=12, size=16, seed=0)
    main(["plan", "--once"])
    told = capsys.readouterr().out
    assert "12 photos in data/raw" in told
    assert [line.split()[0] for line in told.splitlines()[-8:-1]] == list(defaults())
    assert "An estimate for a machine that does nothing else" in told
    main(["plan", "--once"])
    assert capsys.readouterr().out == ""
    write_params(tmp_path / "params.yaml", train_unet={"steps": 5})
    main(["plan", "--once"])
    assert "12 photos" in capsys.readouterr().out
    main(["plan", "--params", "params.yaml", "--data", "data"])
    assert "12 photos" in capsys.readouterr().out
    write_params(tmp_path / "params.yaml", ingest={"side": 18})
    with pytest.raises(SystemExit, match=r"`ingest\.side` is 18"):
        main(["plan", "--once"])


def test_photos_that_dvc_can_fetch_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path / "params.yaml")
    (tmp_path / "data").mkdir()
    shutil.copy(tmp_path / "params.yaml", tmp_path / "data" / "raw.dvc")
    main(["plan"])
