"""Fine-tuning: what train_unet makes of a U-Net that stands already, with all weights or with LoRA, and what it refuses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from darkroom.config import TrainVaeParams
from darkroom.data.latents import LatentShards
from darkroom.diffusion.diffusion_config import DiffusionConfig
from darkroom.models.autoencoder import load_autoencoder
from darkroom.models.unet import UNet2DConditionModel
from darkroom.models.weights import load_model, save_model
from darkroom.outline import networks
from darkroom.params_file import load_params
from darkroom.provenance import read_index
from darkroom.sampling.text_to_image import TextToImage
from darkroom.training.diffusion_task import DiffusionTask
from tests.tiny_run import make_project, run_stage, write_params

LORA = {"rank": 2, "alpha": 6, "conv": True}
KEPT = {"train_vae": {"init": "data/vae"}, "train_clip": {"mode": "pretrained", "pretrained": "data/clip"}}  # as init knows them
DIFFERENT = {"block_out_channels": [32], "attention": [True], "layers_per_block": 3, "attention_head_dim": 8, "norm_num_groups": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with latents and a U-Net, and that U-Net once more in imported/unet."""
    root = tmp_path_factory.mktemp("fine-tuning")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_TRACKING", "off")
        make_project(root, train_clip={"steps": 1}, train_vae={"steps": 1}, train_unet={"ema_decay": 0.0})
        for name in ("ingest", "train_clip", "train_vae", "cache_latents", "train_unet"):
            run_stage(name, root)
        shutil.copytree(root / "data" / "unet", root / "imported" / "unet")
        yield root


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, to be run in its own folder."""
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def finetune(root: Path, **changes: Any) -> None:
    write_params(root / "params.yaml", **KEPT, train_unet={"init": "imported/unet"} | changes)
    run_stage("train_unet", root)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_full_finetuning_starts_from_init_and_changes_every_weight(workspace):
    finetune(workspace, lr=1e-12, warmup_steps=0, model=DIFFERENT)  # `model` is not read
    before, after = weights(workspace / "imported" / "unet"), weights(workspace / "data" / "unet")
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
    finetune(workspace, lr=1e-2, gradient_checkpointing=True)
    after = weights(workspace / "data" / "unet")
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_the_gradient_checkpoint_changes_no_weight(workspace):
    finetune(workspace)
    expected = weights(workspace / "data" / "unet")
    finetune(workspace, gradient_checkpointing=True)
    torch.testing.assert_close(weights(workspace / "data" / "unet"), expected, rtol=0, atol=0)


def test_the_index_says_what_the_training_began_with(workspace):
    found = []
    finetune(workspace, steps=0)
    found.append(read_index(workspace / "data" / "unet")["content"])
    unet = load_model(UNet2DConditionModel, "imported/unet")
    torch.nn.init.zeros_(unet.conv_out.weight)
    save_model(unet, workspace / "imported" / "unet")
    finetune(workspace, steps=0)
    found.append(read_index(workspace / "data" / "unet")["content"])
    assert len({content["init"] for content in found}) == 2
    finetune(workspace, init="")
    content = read_index(workspace / "data" / "unet")["content"]
    assert (content["init"], content["version"]) == ("", "")
    parts = {part: read_index(workspace / "data" / part)["content"]["weights"] for part in ("clip", "vae")}
    assert content["made_with"] == parts


def test_lora_publishes_a_merged_unet_and_a_file_that_makes_it_of_the_old_one_in_diffusers(workspace):
    finetune(workspace, lora=LORA, lr=1e-2, ema_decay=0.5)
    ours = load_model(UNet2DConditionModel, "data/unet")
    theirs = diffusers.UNet2DConditionModel.from_pretrained("imported/unet")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([3, 900]), torch.randn(2, 24, 32, generator=generator)
    with torch.no_grad():
        expected, plain = ours(*inputs), theirs(*inputs).sample
        theirs.load_lora_adapter(load_file("data/unet/lora/pytorch_lora_weights.safetensors"), prefix="unet")
        found = theirs(*inputs).sample
    assert (found - expected).norm() / expected.norm() < 1e-4
    assert (plain - expected).norm() / expected.norm() > 1e-3
    assert (workspace / "data" / "unet" / "samples.png").is_file()


def interrupt(root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    """A run that dies in its third step; returns its checkpoint of the second."""
    batch = DiffusionTask.batch

    def dies(self: DiffusionTask, positions: range) -> dict[str, Tensor]:
        if positions.start >= 2 * 8:
            raise RuntimeError("power cut")
        return batch(self, positions)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionTask, "batch", dies)
        with pytest.raises(RuntimeError, match="power cut"):
            finetune(root, **changes)
    (checkpoint,) = (root / ".scratch" / "train_unet").rglob("step-00000002")
    return checkpoint


def test_a_lora_run_that_was_cut_ends_in_the_same_bytes(workspace, monkeypatch):
    finetune(workspace, lora=LORA, ema_decay=0.5)
    expected = read_index(workspace / "data" / "unet")["files"]
    interrupt(workspace, monkeypatch, lora=LORA, ema_decay=0.5)
    finetune(workspace, lora=LORA, ema_decay=0.5)
    assert read_index(workspace / "data" / "unet")["files"] == expected


def test_a_checkpoint_of_lora_holds_the_adapter_alone(workspace, monkeypatch):
    checkpoint = interrupt(workspace, monkeypatch, lora=LORA, ema_decay=0.5)
    stored = {name: load_file(checkpoint / f"{name}.safetensors") for name in ("net", "ema")}
    assert set(stored["net"]) == set(stored["ema"])
    assert all(".lora_" in name for name in stored["net"])
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert sum(entry["exp_avg"].numel() for entry in moments.values()) == sum(tensor.numel() for tensor in stored["net"].values())


def test_a_checkpoint_begun_from_other_weights_is_not_gone_on_with(workspace, monkeypatch):
    interrupt(workspace, monkeypatch, lora=LORA)
    unet = load_model(UNet2DConditionModel, "imported/unet")
    torch.nn.init.ones_(unet.conv_in.weight)
    save_model(unet, workspace / "imported" / "unet")
    finetune(workspace, lora=LORA)
    found = read_index(workspace / "data" / "unet")["files"]
    finetune(workspace, lora=LORA)  # a finished run leaves no checkpoint: this one starts anew
    assert read_index(workspace / "data" / "unet")["files"] == found


def test_a_unet_is_used_as_it_is_without_steps(workspace):
    finetune(workspace, steps=0)
    before, after = weights(workspace / "imported" / "unet"), weights(workspace / "data" / "unet")
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert (workspace / "data" / "unet" / "samples.png").is_file()


def test_the_index_says_how_photos_like_those_of_the_unet_are_prepared(workspace):
    def said(**changes: Any) -> Any:
        finetune(workspace, **changes)
        return read_index(workspace / "data" / "unet")["content"]["prepared_by"]

    gate = {"min_psnr": None, "min_ssim": None, "max_frechet": None}
    of_this_run = {"ingest": {"crop": "centre", "subject": []}, "cache_latents": {"gate": gate}}
    of_init = {"ingest": {"crop": "subject", "subject": [281]}}
    index = workspace / "imported" / "unet" / "index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"content": content["content"] | {"prepared_by": of_init}}))
    assert said() == of_this_run
    assert said(steps=0) == of_init  # it has learned no others
    index.unlink()
    assert said(steps=0) == {}


def test_the_published_unet_knows_the_size_it_was_tuned_for(workspace):
    config = workspace / "imported" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 64}))
    finetune(workspace, steps=0)
    assert load_model(UNet2DConditionModel, "data/unet").config.sample_size == 8


def test_nothing_to_use_as_it_is_is_refused(workspace):
    with pytest.raises(ValueError, match=r"train_unet\.steps is 0 and train_unet\.init is empty"):
        finetune(workspace, init="", steps=0)


def test_another_schedule_or_prediction_than_that_of_init_is_refused_with_what_to_set(workspace):
    schedule = {"kind": "scaled_linear", "num_train_timesteps": 500, "beta_start": 0.1, "beta_end": 0.2, "zero_terminal_snr": True}
    with pytest.raises(ValueError, match=r'imported/unet/diffusion\.json: .* set schedule\.kind: "cosine"') as caught:
        finetune(workspace, schedule=schedule, prediction="flow")
    message = str(caught.value)
    assert "schedule.num_train_timesteps: 1000" in message
    assert "schedule.zero_terminal_snr: false" in message
    assert 'prediction: "v_prediction"' in message
    assert "beta" not in message  # which a cosine schedule has no use for


def test_other_betas_than_those_of_init_are_refused(workspace):
    file = workspace / "imported" / "unet" / "diffusion.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"schedule": content["schedule"] | {"kind": "scaled_linear"}}))
    schedule = content["schedule"] | {"kind": "scaled_linear", "beta_end": 0.02}
    with pytest.raises(ValueError, match=r"set schedule\.beta_end: 0\.012\.$"):
        finetune(workspace, schedule=schedule)


def test_an_init_that_no_run_or_import_wrote_is_refused(workspace):
    (workspace / "imported" / "unet" / "diffusion.json").unlink()
    with pytest.raises(ValueError, match=r"imported/unet/diffusion\.json is missing"):
        finetune(workspace)


def retrain(root: Path, stage: str, **changes: Any) -> None:
    write_params(root / "params.yaml", **{stage: {"steps": 1, **changes}})
    for name in (stage, "cache_latents"):
        run_stage(name, root)


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (
            "train_vae",
            {"seed": 1},
            r"VAE \w{12} \(here it is \w{12}\)\. .* Set train_vae\.init: imported/vae; or `darkroom tune --from imp",
        ),
        ("train_clip", {"seed": 1}, r"encoder \w{12} \(here it is \w{12}\)\. .*: pretrained with train_clip\.pretrained: imported/clip"),
    ],
)
def test_a_unet_that_was_made_with_other_weights_of_the_same_shape_is_refused(workspace, stage, changes, message):
    retrain(workspace, stage, **changes)
    with pytest.raises(ValueError, match=message):
        finetune(workspace)
    with pytest.raises(ValueError, match=message):  # already before the first stage
        networks(load_params(workspace / "params.yaml"))
    assert not (workspace / ".scratch" / "train_unet").exists() or not list((workspace / ".scratch" / "train_unet").rglob("step-*"))


def test_a_unet_may_go_on_with_a_vae_that_was_trained_further(workspace):
    shutil.copytree("data/vae", "imported/vae")
    retrain(workspace, "train_vae", init="imported/vae", lr=1e-2)
    finetune(workspace)
    networks(load_params(workspace / "params.yaml") | {"train_vae": TrainVaeParams(init="imported/vae")})
    contents = [read_index(Path(folder))["content"] for folder in ("imported/vae", "data/vae")]
    assert contents[1]["init"] == contents[0]["weights"] != contents[1]["weights"]


def test_what_an_unknown_unet_was_made_with_is_said_to_be_unchecked(workspace, caplog):
    (workspace / "imported" / "unet" / "index.json").unlink()
    finetune(workspace, steps=0)
    assert "imported/unet/index.json does not say which VAE and text encoder the U-Net was made with" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, r"has 9 input and 4 output channels, but the latents of data/vae have 4\. .*inpainting"),
        ({"cross_attention_dim": 48}, r"embeddings of width 48, but those of data/clip have 32\. Set train_clip"),
        (
            {"block_out_channels": [8] * 5, "down_block_types": ["DownBlock2D"] * 5, "attention_head_dim": 2},
            r"8 wide, .* halves them 4 times\. Choose an ingest\.side .* multiple of 16",
        ),
    ],
)
def test_a_unet_for_other_latents_or_another_text_encoder_is_refused(workspace, changes, message):
    config = load_model(UNet2DConditionModel, "imported/unet").config
    other = {key: value for key, value in config.to_json().items() if key not in ("_class_name", "up_block_types")}
    save_model(UNet2DConditionModel(type(config)(**other | changes)), workspace / "imported" / "unet")
    with pytest.raises(ValueError, match=message):
        finetune(workspace)


def test_validation_and_pictures_take_no_more_at_a_time_than_training(workspace, monkeypatch):
    seen = []
    forward = UNet2DConditionModel.forward

    def counts(self: UNet2DConditionModel, x: Tensor, *inputs: Tensor) -> Tensor:
        seen.append(len(x))
        return forward(self, x, *inputs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counts)
    unguided = {"sampler": "ddim", "spacing": "trailing", "steps": 2, "guidance_scale": 1.0}
    finetune(workspace, steps=1, batch_size=4, gradient_accumulation=2, num_samples=3, sampling=unguided)
    assert max(seen) == 2
    assert len(LatentShards(workspace / "data" / "latents", "val")) > 2


def test_a_preconditioned_u_net_knows_the_spread_of_each_channel_of_its_latents_and_keeps_it_in_finetuning(workspace):
    write_params(workspace / "params.yaml", **KEPT, train_unet={"prediction": "preconditioned"})
    run_stage("train_unet", workspace)
    latents, vae = LatentShards(workspace / "data" / "latents", "train"), load_autoencoder(workspace / "data" / "vae")
    mean, std = torch.from_numpy(latents.moments(range(len(latents)), [False] * len(latents))).unbind(1)
    square = vae.normalise(mean).square() + (std * vae.config.scaling_factor).square()
    spread = DiffusionConfig.load(workspace / "data" / "unet").channel_spread
    assert spread == pytest.approx(square.mean((0, 2, 3)).sqrt().tolist(), rel=1e-5)
    assert max(spread) / min(spread) > 1.01

    changed = json.loads((workspace / "data" / "unet" / "diffusion.json").read_text())
    changed["channel_spread"] = [0.5, 1.0, 2.0, 4.0]  # as if of other photos
    shutil.rmtree(workspace / "imported" / "unet")
    shutil.copytree(workspace / "data" / "unet", workspace / "imported" / "unet")
    (workspace / "imported" / "unet" / "diffusion.json").write_text(json.dumps(changed))
    (workspace / "imported" / "unet" / "index.json").unlink()  # it would name the change
    finetune(workspace, prediction="preconditioned")
    assert DiffusionConfig.load(workspace / "data" / "unet").channel_spread == [0.5, 1.0, 2.0, 4.0]


def test_samples_of_a_preconditioned_u_net_depend_on_the_spread(workspace):
    write_params(workspace / "params.yaml", **KEPT, train_unet={"prediction": "preconditioned"})
    run_stage("train_unet", workspace)
    model = TextToImage.load(workspace / "data", torch.device("cpu"))
    once = model.sample(["a cat"], seeds=[0]).astype(float)
    assert model.config.channel_spread is not None
    model.config = model.config.model_copy(update={"channel_spread": [3 * value for value in model.config.channel_spread]})
    assert once.std() < model.sample(["a cat"], seeds=[0]).astype(float).std()
