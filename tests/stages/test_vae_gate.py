"""train_vae says what its decoder means, and cache_latents refuses a VAE that does not give photos back."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from darkroom.config import ReconstructionGate
from darkroom.data.shards import ImageShards
from darkroom.evaluation.distribution import frechet_distance
from darkroom.evaluation.features import clip_features
from darkroom.evaluation.reconstruction import check_gate, measure_vae, psnr, ssim
from darkroom.models.autoencoder_kl import AutoencoderKL
from darkroom.models.clip import ClipTowers
from darkroom.models.weights import load_model
from darkroom.pixels import map_pictures
from darkroom.provenance import read_index
from tests.tiny_run import make_project, run_stage, write_params

CPU = torch.device("cpu")
OPEN = {"min_psnr": None, "min_ssim": None, "max_frechet": None}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose VAE and CLIP are trained, and its latents cached behind an open gate."""
    root = tmp_path_factory.mktemp("gate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_TRACKING", "off")
        make_project(root, train_vae={"learn_scale": True}, cache_latents={"gate": OPEN, "precision": "fp32"})
        for name in ("ingest", "train_clip", "train_vae", "cache_latents"):
            run_stage(name, root)
    return root


@pytest.fixture(autouse=True)
def _untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_TRACKING", "off")


def models_of(root: Path) -> tuple[AutoencoderKL, ClipTowers, ImageShards]:
    data = root / "data"
    return load_model(AutoencoderKL, data / "vae"), ClipTowers.load(data / "clip"), ImageShards(data / "shards", "val")


def test_the_vae_says_which_likelihood_it_has(trained: Path) -> None:
    likelihood = json.loads((trained / "data" / "vae" / "likelihood.json").read_text())
    assert likelihood["likelihood"] == "gaussian"
    assert 0 < abs(math.log(likelihood["scale"] / 0.1)) < 0.1  # it has moved from decoder_scale, for four steps
    curve = (trained / "data" / "vae" / "curves" / "val.csv").read_text().splitlines()
    assert float(curve[-1].split(",")[curve[0].split(",").index("scale")]) == pytest.approx(likelihood["scale"])


def test_the_gate_measures_what_the_held_out_photos_decode_to(trained: Path) -> None:
    vae, clip, photos = models_of(trained)
    originals = photos.images(range(len(photos)))
    decoded = map_pictures(vae.reconstruct, originals, batch_size=64, device=CPU)
    look = clip_features(clip.encode_images, "").extract
    measured = read_index(trained / "data" / "latents")["content"]["reconstructions"]
    assert set(measured) == {"psnr", "ssim", "frechet"}
    assert measured["psnr"] == pytest.approx(psnr(originals, decoded).mean(), rel=1e-3)
    assert measured["ssim"] == pytest.approx(ssim(originals, decoded).mean(), rel=1e-3)
    assert measured["frechet"] == pytest.approx(frechet_distance(look(originals), look(decoded)), rel=1e-2)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (
            {"min_psnr": 40.0},
            r"PSNR is \d+(\.\d+)? dB; required: at least 40 dB\. Look .*train_vae\.steps.*latent_channels.*decoder_scale",
        ),
        ({"min_ssim": 0.99}, r"SSIM is -?0\.\d+; required: at least 0\.99"),
        ({"max_frechet": 1e-6}, r"Fréchet distance is \d+(\.\d+)?(e-?\d+)?; required: at most 1e-06"),
        (
            {"min_psnr": 40.0, "max_frechet": 1e-6},
            r"PSNR is .*; Fréchet .*change cache_latents\.gate; that does not train the VAE",
        ),
    ],
)
def test_a_vae_below_the_gate_fails_the_stage_before_anything_is_cached(trained: Path, limit: dict[str, float], message: str) -> None:
    before = read_index(trained / "data" / "latents")["fingerprint"]
    write_params(trained / "params.yaml", train_vae={"learn_scale": True}, cache_latents={"gate": OPEN | limit, "precision": "fp32"})
    with pytest.raises(ValueError, match=message):
        run_stage("cache_latents", trained)
    assert read_index(trained / "data" / "latents")["fingerprint"] == before
    assert not (trained / "data" / "latents.tmp").exists()


def test_without_an_image_encoder_there_is_no_distance_and_none_may_be_required(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    vae, clip, photos = models_of(trained)
    clip.model.visual = None
    measured = measure_vae(vae, clip, photos, batch_size=8, device=CPU)
    assert set(measured) == {"psnr", "ssim"}
    assert "not measured: this CLIP has no image encoder" in caplog.text
    check_gate(measured, ReconstructionGate(**OPEN))
    with pytest.raises(ValueError, match=r"max_frechet is 5, but .* needs a CLIP with an image encoder.* Set it to null"):
        check_gate(measured, ReconstructionGate(**OPEN | {"max_frechet": 5.0}))


def test_of_a_single_photo_there_is_no_distance(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    vae, clip, photos = models_of(trained)

    class One:
        def __len__(self) -> int:
            return 1

        def images(self, indices: range) -> np.ndarray:
            return photos.images(indices)

    assert set(measure_vae(vae, clip, One(), batch_size=8, device=CPU)) == {"psnr", "ssim"}  # type: ignore[arg-type]
    assert "there is only one held-out photo" in caplog.text
