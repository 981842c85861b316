"""An autoencoder that is computed, and one that is used as it is, through every stage that reads an autoencoder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from darkroom.data.latents import LatentShards
from darkroom.demo.toy_cats import draw_toy_cats
from darkroom.interchange.exchange import export_model
from darkroom.models.autoencoder import load_autoencoder
from darkroom.models.linear_autoencoder import LinearAutoencoder
from darkroom.models.tiny_autoencoder import TinyAutoencoder
from darkroom.provenance import hash_file, read_index
from darkroom.sampling.text_to_image import TextToImage
from tests.tiny_run import make_project, run_stage

LINEAR = {"kind": "linear", "steps": 0, "linear": {"patch_size": 4, "latent_channels": 12}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("linear")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_TRACKING", "off")
        make_project(root, train_vae=LINEAR)
        for name in ("ingest", "train_clip", "train_vae", "cache_latents", "train_unet", "evaluate"):
            run_stage(name, root)
    return root


@pytest.fixture(autouse=True)
def _untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_TRACKING", "off")


def test_a_linear_autoencoder_serves_every_stage(finished: Path) -> None:
    data = finished / "data"
    assert isinstance(load_autoencoder(data / "vae"), LinearAutoencoder)
    assert read_index(data / "latents")["content"]["latent_shape"] == [12, 4, 4]
    metrics = json.loads((data / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["reconstruction_psnr"] > metrics["reconstruction_psnr_chance"] + 3
    assert np.isfinite(metrics["photo_bits_per_dim"])
    samples = TextToImage.load(data).sample(["a cat"], seeds=[0], steps=2)
    assert samples.shape == (1, 16, 16, 3)


def test_the_scale_of_its_likelihood_is_what_it_leaves_out(finished: Path) -> None:
    vae = finished / "data" / "vae"
    likelihood = json.loads((vae / "likelihood.json").read_text(encoding="utf-8"))
    psnr = json.loads((vae / "metrics.json").read_text(encoding="utf-8"))["psnr"]
    assert likelihood["likelihood"] == "gaussian"
    error = 2 * 10 ** (-psnr / 20) * (48 / 36) ** 0.5  # all 48 directions have noise, the 36 that are left out show it
    assert likelihood["scale"] == pytest.approx(error, rel=0.3)  # photos that it has not seen, and a mean of decibels


def test_it_is_the_same_when_it_is_computed_again(finished: Path, tmp_path: Path) -> None:
    make_project(tmp_path, train_vae=LINEAR)
    for name in ("ingest", "train_vae"):
        run_stage(name, tmp_path)
    files = ("diffusion_pytorch_model.safetensors", "config.json", "likelihood.json")
    assert [hash_file(tmp_path / "data" / "vae" / name) for name in files] == [
        hash_file(finished / "data" / "vae" / name) for name in files
    ]


def test_an_autoencoder_of_any_kind_is_used_as_it_is(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "data" / "vae", tmp_path / "mine")
    make_project(tmp_path, train_vae={"kind": "pretrained", "init": "mine", "steps": 0, "decoder_scale": 0.25})
    shutil.rmtree(tmp_path / "data" / "raw")
    draw_toy_cats(tmp_path / "data" / "raw", num_cats=24, size=16, seed=1)  # a linear one is not computed from them once more
    for name in ("ingest", "train_vae"):
        run_stage(name, tmp_path)
    assert load_autoencoder(tmp_path / "data" / "vae").fingerprint() == load_autoencoder(tmp_path / "mine").fingerprint()
    assert json.loads((tmp_path / "data" / "vae" / "likelihood.json").read_text(encoding="utf-8"))["scale"] == 0.25


def test_a_model_that_other_programs_cannot_know_is_not_exported(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a LinearAutoencoder, which other programs do not know, so the model cannot be exported"):
        export_model(finished / "data", tmp_path / "out", "diffusers")
    assert not (tmp_path / "out").exists()


def test_the_two_files_of_a_tiny_autoencoder_are_used_as_it_is_with_a_measured_scale(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, ingest={"side": 32}, train_vae={"kind": "pretrained", "init": str(shared / "weights" / "taef2"), "steps": 0})
    for name in ("ingest", "train_clip", "train_vae", "cache_latents"):
        run_stage(name, tmp_path)
    vae = load_autoencoder(tmp_path / "data" / "vae")
    assert isinstance(vae, TinyAutoencoder)
    assert vae.config.scaling_factor != 1.0
    latents = LatentShards(tmp_path / "data" / "latents", "train")
    assert latents.latent_shape == (32, 4, 4)
    spread = float(vae.normalise(torch.from_numpy(latents.moments(range(len(latents)), [0] * len(latents))[:, 0])).std())
    assert spread == pytest.approx(1, abs=0.1)
