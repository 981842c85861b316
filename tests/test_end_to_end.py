"""The pipeline in small, stage by stage in this process: what it leaves, that it is deterministic, and what it refuses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from darkroom.models.weights import save_model
from darkroom.provenance import hash_file, read_index
from darkroom.sampling.text_to_image import TextToImage
from tests.tiny_run import STAGES, make_project, run_stage, write_params

DRAWING = [name for name in STAGES if name != "register"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose stages up to `evaluate` have run, untracked."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_TRACKING", "off")
        make_project(root)
        for name in DRAWING:
            run_stage(name, root)
        yield root


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished project that a test may break."""
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    shutil.copytree(finished, tmp_path / "project")
    return tmp_path / "project"


def test_every_output_is_in_place_and_nothing_half_made(finished):
    data = finished / "data"
    for name in DRAWING:
        for out in STAGES[name].writes:
            assert read_index(data / out)["stage"] == name
        assert json.loads((data / "runs" / f"{name}.json").read_text()) is not None
    assert not list(data.rglob("*.tmp"))
    assert not list((finished / ".scratch").rglob("step-*"))


def test_the_same_seed_gives_the_same_bytes(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    make_project(tmp_path)
    for name in DRAWING[:5]:
        run_stage(name, tmp_path)
    for out in ("shards", "doctor", "clip", "vae", "latents", "unet"):
        first, second = (read_index(root / "data" / out) for root in (finished, tmp_path))
        assert first["files"] == second["files"]


def test_the_model_draws_and_a_seed_is_a_picture(finished):
    model = TextToImage.load(finished / "data")
    prompts = ["a sitting orange cat", "a white cat", "a sitting orange cat"]
    together = model.sample(prompts, seeds=[17, 3, 4], batch_size=2)
    alone = model.sample(prompts[:1], seeds=[17])
    assert together.shape == (3, 16, 16, 3)
    assert together.dtype == np.uint8
    assert np.abs(together[0].astype(int) - alone[0]).max() <= 1  # the same but for rounding in another batch
    assert np.abs(together[0].astype(int) - together[2]).max() > 1


def test_given_noise_replaces_the_seeds(finished):
    model = TextToImage.load(finished / "data")
    noise = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(5))])
    from_noise = model.sample(["a cat"], seeds=[0], noise=noise)
    np.testing.assert_array_equal(from_noise, model.sample(["a cat"], seeds=[5]))


def test_what_the_model_cannot_draw_is_refused_by_name(finished):
    model = TextToImage.load(finished / "data")
    with pytest.raises(ValueError, match="sampler is 'eulr'; must be one of ddpm, ddpm_beta, ddim"):
        model.sample(["a cat"], seeds=[0], sampler="eulr")
    with pytest.raises(ValueError, match="steps is 0"):
        model.sample(["a cat"], seeds=[0], steps=0)
    with pytest.raises(ValueError, match="2 prompts but 1 seeds"):
        model.sample(["a cat", "a dog"], seeds=[0])
    with pytest.raises(ValueError, match="clip/ not found"):
        TextToImage.load(finished)


def test_open_clip_alone_loads_the_towers(finished):
    model = open_clip.create_model(f"local-dir:{finished / 'data' / 'clip'}")
    assert model.context_length == 24


def test_a_forced_repetition_trains_anew_to_the_same_weights(workspace):
    weights = workspace / "data" / "vae" / "diffusion_pytorch_model.safetensors"
    before = hash_file(weights)
    run_stage("train_vae", workspace)
    assert hash_file(weights) == before


def test_a_shard_deleted_behind_dvcs_back_is_named(workspace):
    shard = next((workspace / "data" / "shards").glob("train-*.tar"))
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard.name} is missing.*dvc checkout"):
        run_stage("train_vae", workspace)


def test_a_model_beside_a_vae_that_it_was_not_trained_with_is_refused(workspace):
    write_params(workspace / "params.yaml", train_vae={"seed": 1})
    run_stage("train_vae", workspace)
    with pytest.raises(ValueError, match="was made from another `vae`"):
        run_stage("evaluate", workspace)
    with pytest.raises(ValueError, match="was made from another `vae`"):
        TextToImage.load(workspace / "data")


def test_a_stage_that_fails_leaves_the_last_good_output(workspace):
    before = read_index(workspace / "data" / "unet")
    write_params(workspace / "params.yaml", train_unet={"lr": 1e30, "grad_clip": 1e30, "warmup_steps": 0, "steps": 8})
    with pytest.raises(ValueError, match=r"train_unet\.lr"):
        run_stage("train_unet", workspace)
    assert read_index(workspace / "data" / "unet") == before
    assert not list((workspace / "data").glob("*.tmp"))


def test_a_vae_taken_as_it_is_keeps_its_weights_and_its_scale(workspace):
    before = workspace / "data" / "vae"
    shutil.copytree(before, workspace / "own-vae")
    write_params(workspace / "params.yaml", train_vae={"init": str(workspace / "own-vae"), "steps": 0})
    run_stage("train_vae", workspace)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert hash_file(before / name) == hash_file(workspace / "own-vae" / name)


def test_nothing_to_use_as_it_is_is_refused(workspace):
    write_params(workspace / "params.yaml", train_vae={"init": "", "steps": 0})
    with pytest.raises(ValueError, match=r"train_vae\.init is empty"):
        run_stage("train_vae", workspace)


def test_a_vae_with_more_levels_than_the_pictures_divide_into_is_refused(workspace):
    vae = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(8,) * 6, norm_num_groups=4))
    save_model(vae, workspace / "own-vae")
    write_params(workspace / "params.yaml", train_vae={"init": str(workspace / "own-vae")})
    with pytest.raises(ValueError, match=r"ingest.side is 16 px.*multiple of 32"):
        run_stage("train_vae", workspace)


def test_clip_is_finetuned_from_a_folder_and_used_as_it_is(workspace):
    own = workspace / "own-clip"
    shutil.copytree(workspace / "data" / "clip", own)
    write_params(workspace / "params.yaml", train_clip={"mode": "pretrained", "pretrained": str(own)})
    run_stage("train_clip", workspace)
    assert hash_file(workspace / "data" / "clip" / "open_clip_model.safetensors") == hash_file(own / "open_clip_model.safetensors")
    write_params(workspace / "params.yaml", train_clip={"mode": "finetune", "pretrained": str(own), "seed": 5})
    run_stage("train_clip", workspace)
    assert hash_file(workspace / "data" / "clip" / "open_clip_model.safetensors") != hash_file(own / "open_clip_model.safetensors")


def test_captions_that_were_cut_are_reported(workspace, caplog):
    metadata = workspace / "data" / "raw" / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    rows[0]["text"] += ", seen by a very particular mouse who lives under the stairs of the old house"
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in DRAWING[:4]:
        run_stage(name, workspace)
    assert "longer than the 24 tokens" in caplog.text
    assert "under the stairs" in caplog.text
