"""Stable Diffusion 1.5 through the stages by its presets: in miniature, and (slow) with all of its 860 million parameters."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import squeezenet1_0

from darkroom.cli import main as darkroom
from darkroom.data.toy_cats import draw_toy_cats
from darkroom.params_file import read_yaml
from tests.interchange.pipelines import make_pipeline
from tests.tiny_run import run_stage

ROOT = Path(__file__).parents[2]
SAMPLING = {"sampler": "ddim", "spacing": "trailing", "steps": 2, "guidance_scale": 2.0}
SMALL: dict[str, dict[str, Any]] = {  # what a preset is changed in, so that it ends in seconds and bears random weights
    "ingest": {"size": 64, "min_side": 16, "num_workers": 1, "val_fraction": 0.25},
    "train_vae": {"num_pictures": 2},
    "cache_latents": {"gate": {"min_psnr": None, "min_ssim": None, "max_frechet": None}},
    "train_unet": {
        "steps": 2,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "warmup_steps": 0,
        "num_samples": 1,
        "precision": "fp32",
        "sampling": SAMPLING,
    },
    "evaluate": {
        "num_samples": 4,
        "num_grid": 2,
        "sampling": SAMPLING,
        "features": {"kind": "torchvision", "arch": "squeezenet1_0", "weights": "weights/squeezenet1_0.safetensors", "size": 64},
    },
}


def use_preset(root: Path, name: str) -> None:
    """Copies a preset as it stands, but for SMALL."""
    params = read_yaml(ROOT / "presets" / name)
    for section, values in SMALL.items():
        params[section] |= values
    YAML().dump(params, root / "params.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which everything stands but the U-Net, after `darkroom import` of Stable Diffusion in miniature."""
    root = tmp_path_factory.mktemp("sd15")
    make_pipeline("sd1").save_pretrained(root / "source")
    draw_toy_cats(root / "data" / "raw", num_cats=16, size=64, seed=0)
    (root / "weights").mkdir()
    torch.manual_seed(0)
    save_file(squeezenet1_0().state_dict(), root / "weights" / "squeezenet1_0.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_TRACKING", "off")
        patch.chdir(root)
        darkroom(["import", "source", "models/sd15"])
        use_preset(root, "sd15-lora.yaml")
        for stage in ("ingest", "train_clip", "train_vae", "cache_latents"):
            run_stage(stage, root)
        yield root


@pytest.fixture(scope="module", params=["sd15-finetune", "sd15-lora"])
def tuned(request: pytest.FixtureRequest, project: Path) -> Path:
    """The folder of a finished run of a preset, and beside it, in exported/, the same as a pipeline."""
    folder = project / request.param
    use_preset(project, f"{request.param}.yaml")
    run_stage("train_unet", project)
    run_stage("evaluate", project)
    shutil.copytree(project / "data", folder)
    darkroom(["export", request.param, f"{request.param}/exported", "--format", "diffusers"])
    return folder


def load_pipeline(folder: Path) -> Any:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(pipeline: Any) -> Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = pipeline("a sitting black cat", num_inference_steps=2, latents=noise, height=64, width=64, output_type="pt").images
    return pictures[0]


def test_a_tuned_stable_diffusion_has_a_report_of_distances_without_clip_scores(tuned):
    metrics = json.loads((tuned / "report" / "metrics.json").read_text())
    assert {"kid", "copied_fraction", "reconstruction_psnr"} <= set(metrics)
    assert not [key for key in metrics if key.startswith("clip")]
    assert (tuned / "unet" / "samples.png").is_file()


def test_only_the_unet_is_another_than_that_of_the_source(tuned, project):
    found, source = load_pipeline(tuned / "exported"), load_pipeline(project / "source")
    torch.testing.assert_close(found.vae.state_dict(), source.vae.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(found.text_encoder.state_dict(), source.text_encoder.state_dict(), rtol=0, atol=0)
    before, after = source.unet.state_dict(), found.unet.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    projections = {name for name in before if ".attn" in name and name.endswith(".weight")}
    assert changed == (projections if "lora" in tuned.name else set(before))
    assert (tuned / "unet" / "lora").exists() == ("lora" in tuned.name)


@pytest.mark.parametrize("tuned", ["sd15-lora"], indirect=True)
def test_the_source_with_our_lora_file_draws_in_diffusers_what_the_export_draws(tuned, project):
    exported, source = load_pipeline(tuned / "exported"), load_pipeline(project / "source")
    exported.scheduler = source.scheduler
    plain = picture(source)
    source.load_lora_weights(tuned / "unet" / "lora")
    expected, found = picture(exported), picture(source)
    assert (found - expected).abs().max() < 1e-4
    assert (plain - expected).abs().max() > 1e-3
